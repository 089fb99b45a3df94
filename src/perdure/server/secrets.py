"""Reads the webhook secrets of all sources from files, environment variables and systemd
credentials. They are checked before the server listens.

Secrets never appear in an argument, log or message.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, MutableMapping, Sequence
from pathlib import Path

from perdure.errors import ConfigError
from perdure.forge.clients.tokens import CREDENTIALS
from perdure.model.forge.sources import Source

SHORTEST = 16
"""Minimum length of a secret in characters. A shorter one could be guessed."""
LONGEST = 4096


def secrets_of(
    sources: Sequence[Source], environ: MutableMapping[str, str]
) -> Mapping[str, tuple[str, ...]]:
    """Return the webhook secrets, by the name of their source. The environment variables that
    contain them are removed from `environ`, so that no agent gets them. Raises ConfigError that
    lists all problems."""
    problems: list[str] = []
    found = {source.name: tuple(_of_one(source, environ, problems)) for source in sources}
    for source in sources:
        for variable in source.variables:
            environ.pop(variable, None)
    if problems:
        raise ConfigError(
            problems,
            "create a secret with openssl rand -hex 32; put it into the file and into the forge's "
            "webhook",
        )
    return found


def _of_one(source: Source, environ: Mapping[str, str], problems: list[str]) -> list[str]:
    places = [(f"the file {path}", _read(path, problems)) for path in source.files]
    places += [(f"the variable {name}", environ.get(name, "")) for name in source.variables]
    for name in source.credentials:
        places.append((f"the credential {name}", _credential(name, environ, problems)))
    for place, secret in places:
        if secret is not None and (wrong := _wrong(secret)):
            problems.append(f"webhooks.{source.name}: {place} {wrong}")
    return [secret for _, secret in places if secret]


def _credential(name: str, environ: Mapping[str, str], problems: list[str]) -> str | None:
    directory = environ.get(CREDENTIALS, "")
    if not directory:
        problems.append(
            f"the credential {name} is missing: no {CREDENTIALS} is set; the unit of systemd needs "
            f"LoadCredential={name}:/path"
        )
        return None
    return _read(f"{directory}/{name}", problems)


def _read(path: str, problems: list[str]) -> str | None:
    try:
        with Path(path).open("rb") as file:
            return file.read(LONGEST + 1).decode().strip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        if isinstance(error, OSError):
            why = error.strerror
        else:
            why = "not a text"
        problems.append(f"the secret in {path} cannot be read: {why}")
        return None


def _wrong(secret: str) -> str:
    if not secret:
        return "is empty: anybody could send a webhook"
    if len(secret) < SHORTEST:
        return f"has fewer than {SHORTEST} characters, which can be guessed"
    if len(secret) > LONGEST or not secret.isprintable():
        return f"is not a secret of one line with at most {LONGEST} characters"
    if secret.startswith("whsec_"):
        try:
            base64.b64decode(secret.removeprefix("whsec_"), validate=True)
        except (binascii.Error, ValueError):
            return "is not a signing secret: expected base64 after whsec_"
    return ""
