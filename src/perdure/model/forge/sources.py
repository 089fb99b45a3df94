"""The sources of deliveries: the tables `[webhooks.NAME]` of the configuration, read by `config`.

The configuration never contains the secrets themselves, only the files or variables that contain
them. If a source has a token, perdure can also call the API of its forge.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from perdure.model.forge.deliveries import Forge

NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
VARIABLE = r"[A-Za-z_][A-Za-z0-9_]*"
KEYS = (
    "forge",
    "secret_file",
    "secret_env",
    "secret_credential",
    "url",
    "token_file",
    "token_env",
    "token_credential",
)
CREDENTIAL = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,254}")
"""Pattern of the name of a systemd credential, which is a file name (systemd.exec(5),
LoadCredential)."""
USUAL = {Forge.GITHUB: "https://github.com", Forge.GITLAB: "https://gitlab.com"}
"""Addresses of the forges for which a source needs no `url`."""
ADDRESS = re.compile(
    r"(https?)://((?:[A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?)((?:/[\w.~-]+)*)/*"
)
ACTIVE_MOST = 2
"""Maximum number of active secrets per source: the old one and the new one, while the forge is
being switched to the new one."""


class Source(Struct, frozen=True):
    """A source of deliveries. Its webhook has the path `/webhooks/{name}`."""

    name: str
    forge: Forge | None = None
    """Kind of forge that the source must be; None: the headers of each request name the kind."""
    files: tuple[str, ...] = ()
    """Absolute paths of files with one secret each."""
    variables: tuple[str, ...] = ()
    url: str = ""
    """Address of the forge's website, without a slash at the end. Never empty if there is a
    token."""
    token_file: str = ""
    """Absolute path of the file with the API token. At most one of the three token settings is
    given. Without a token, perdure only receives deliveries."""
    token_env: str = ""
    token_credential: str = ""
    credentials: tuple[str, ...] = ()
    """Names of systemd credentials with one secret each."""

    def __str__(self) -> str:
        held = [self.forge.value] if self.forge else []
        for file in self.files:
            held.append(f"secret in {file}")
        for variable in self.variables:
            held.append(f"secret in ${variable}")
        for credential in self.credentials:
            held.append(f"secret in the credential {credential}")
        return f"{self.name} ({', '.join(held)})"


def sources(value: object) -> tuple[Source, ...]:
    """Return the sources in a `[webhooks]` table, or in a text such as `shop=gitea:/etc/secret
    lab=$LAB_SECRET`. Raises ValueError."""
    if isinstance(value, str):
        value = dict(map(_in_words, value.split()))
    if not isinstance(value, Mapping):
        raise ValueError(
            "expected a table [webhooks.NAME] with forge, and secret_file, secret_env or "
            "secret_credential"
        )
    return tuple(_source(str(name), table) for name, table in value.items())


def _in_words(word: str) -> tuple[str, dict[str, object]]:
    """Return the name and the table that the text `NAME=FORGE:PLACE,PLACE` stands for. A PLACE is a
    path or a `$VARIABLE`."""
    found = re.fullmatch(r"([^=]+)=(?:([a-z]+):)?([/$].*)", word)
    if not found:
        raise ValueError("expected NAME=FORGE:/path/of/the/secret, or NAME=$VARIABLE")
    places = found[3].split(",")
    files, variables = [], []
    for place in places:
        if place[:1] == "$":
            variables.append(place[1:])
        else:
            files.append(place)
    held: dict[str, object] = {"secret_file": files, "secret_env": variables}
    if found[2]:
        held["forge"] = found[2]
    return found[1], held


def _source(name: str, table: object) -> Source:
    if not NAME.fullmatch(name):
        raise ValueError(
            f"{name!r} must have only lowercase letters, digits, - and _, because it becomes part "
            "of an address"
        )
    if not isinstance(table, Mapping):
        raise ValueError(f"expected a table [webhooks.{name}]")
    if unknown := [key for key in table if key not in KEYS]:
        raise ValueError(f"{name} has no setting {unknown[0]!r}; known are {', '.join(KEYS)}")
    forge = table.get("forge")
    if forge is not None and forge not in list(Forge):
        raise ValueError(f"the forge of {name} must be one of {', '.join(Forge)}")
    files, variables = (
        _texts(name, table.get("secret_file", [])),
        _texts(name, table.get("secret_env", [])),
    )
    credentials = _texts(name, table.get("secret_credential", []))
    if not 1 <= len(files) + len(variables) + len(credentials) <= ACTIVE_MOST:
        raise ValueError(
            f"{name} needs a secret (secret_file, secret_env or secret_credential), or at most "
            f"{ACTIVE_MOST} while a new one replaces the old one"
        )
    if any(not path.startswith("/") or "\0" in path for path in files):
        raise ValueError(f"secret_file of {name} must be an absolute path")
    if any(not re.fullmatch(VARIABLE, variable) for variable in variables):
        raise ValueError(f"secret_env of {name} must be the name of a variable, not the secret")
    if any(not CREDENTIAL.fullmatch(credential) for credential in credentials):
        raise ValueError(
            f"secret_credential of {name} must be the name of a systemd credential, not a path"
        )
    known = Forge(forge) if forge else None
    return Source(name, known, files, variables, *_api(name, known, table), credentials)


def _api(name: str, forge: Forge | None, table: Mapping[str, Any]) -> tuple[str, str, str, str]:
    """Check the settings for the API together, and return `url`, `token_file`, `token_env` and
    `token_credential`. Raises ValueError."""
    token = token_of(name, table)
    url = table.get("url", "")
    if not url and not any(token):
        return "", "", "", ""
    if forge is None:
        raise ValueError(
            f"{name} needs its forge: with url or a token, perdure calls it ({', '.join(Forge)})"
        )
    if not url and forge not in USUAL:
        raise ValueError(
            f"{name} needs url, the address of its {forge}: with a token, perdure calls it"
        )
    return address(f"url of {name}", url or USUAL[forge]), *token


def token_of(name: str, table: Mapping[str, Any]) -> tuple[str, str, str]:
    """Return `token_file`, `token_env` and `token_credential` of a table, of which at most one is
    not empty. Raises ValueError."""
    file, variable = table.get("token_file", ""), table.get("token_env", "")
    credential = table.get("token_credential", "")
    if sum(map(bool, (file, variable, credential))) > 1:
        raise ValueError(f"{name} must have only one of token_file, token_env and token_credential")
    if not isinstance(file, str) or (file and (not file.startswith("/") or "\0" in file)):
        raise ValueError(f"token_file of {name} must be an absolute path")
    if not isinstance(variable, str) or (variable and not re.fullmatch(VARIABLE, variable)):
        raise ValueError(f"token_env of {name} must be the name of a variable, not the token")
    if not isinstance(credential, str) or (credential and not CREDENTIAL.fullmatch(credential)):
        raise ValueError(
            f"token_credential of {name} must be the name of a systemd credential, not a path"
        )
    return file, variable, credential


def address(what: str, url: object) -> str:
    """Check a forge's address and return it without a slash at the end. It must use https, or http
    on this machine, and have no user, query or fragment. Raises ValueError."""
    found = ADDRESS.fullmatch(url) if isinstance(url, str) else None
    if found is None:
        raise ValueError(
            f"{what} must be an address such as https://git.example.com, without user, query or "
            "fragment"
        )
    host = re.sub(r":[0-9]+$", "", found[2])
    if found[1] == "http" and not re.fullmatch(r"localhost|127(?:\.[0-9]{1,3}){3}|\[::1\]", host):
        raise ValueError(f"{what} must be https: over http, others could read the token")
    return f"{found[1]}://{found[2]}{found[3]}"


def _texts(name: str, value: Any) -> tuple[str, ...]:
    found = value if isinstance(value, list) else [value]
    if not all(isinstance(each, str) and each for each in found):
        raise ValueError(f"secret_file, secret_env and secret_credential of {name} must be texts")
    return tuple(found)
