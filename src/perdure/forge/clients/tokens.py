"""Reads the token of a forge from its configured place. A token in a file is read for each request,
so a new token needs no restart. A token in a variable or a systemd credential is read once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from msgspec import Struct

from perdure.errors import ForgeDenied

LONGEST = 4096
CREDENTIALS = "CREDENTIALS_DIRECTORY"
"""Name of the variable in which systemd passes the directory of a service's credentials."""


class ForgeToken(Struct, frozen=True):
    """The token of one login on a forge. The secret is never printed: `str` returns the place where
    it is kept."""

    place: str
    """A description of the place where the token is kept: `the file /path`, `the variable NAME`."""
    path: Path | None = None
    held: str = ""

    def __str__(self) -> str:
        return self.place

    def __repr__(self) -> str:
        return f"ForgeToken(place={self.place!r}, path={self.path!r})"

    def value(self) -> str:
        """Return the secret itself. Raises ForgeDenied if the secret is missing, unreadable or
        invalid."""
        if self.path is None:
            found, why = self.held, "is empty"
        else:
            try:
                with self.path.open("rb") as file:
                    found, why = file.read(LONGEST + 1).decode("ascii").strip(), "is empty"
            except OSError as error:
                found, why = "", f"cannot be read: {error.strerror}"
            except UnicodeDecodeError:
                found, why = "", "contains no token"
        if len(found) > LONGEST or any(not "!" <= each <= "~" for each in found):
            found, why = "", "contains no token: expected one word of ASCII"
        if not found:
            raise ForgeDenied(
                f"The token of the forge is missing: {self.place} {why}",
                "create one on the forge and put it there",
                everywhere=True,
            )
        return found


def token_at(
    file: str, variable: str, credential: str, environ: Mapping[str, str]
) -> ForgeToken | None:
    """Return the token that a configuration table names by `token_file` (absolute), `token_env` or
    `token_credential`; None if the table names none."""
    if file:
        return ForgeToken(f"the file {file}", Path(file))
    if credential:
        place = f"the credential {credential}"
        if directory := environ.get(CREDENTIALS, ""):
            return ForgeToken(place, held=ForgeToken(place, Path(directory) / credential).value())
        return ForgeToken(
            f"{place} (no {CREDENTIALS} is set: the unit of systemd needs "
            f"LoadCredential={credential}:/path)"
        )
    if variable:
        return ForgeToken(f"the variable {variable}", held=environ.get(variable, "").strip())
    return None
