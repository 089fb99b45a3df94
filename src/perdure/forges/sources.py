"""Where deliveries come from, as the configuration has it: the tables `[webhooks.NAME]`, read by `config`.

The secrets themselves never stand there: only the files, or the names of the variables, that hold them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from perdure.forges.intents import Forge

NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
KEYS = ("forge", "secret_file", "secret_env")
ACTIVE_MOST = 2
"""The new secret and the old one, while one takes the other's place on the forge."""


@dataclass(frozen=True, slots=True)
class Source:
    """One source of deliveries: its webhook is `/webhooks/{name}`."""

    name: str
    forge: Forge | None = None
    """What it must be; None: whatever forge the headers name."""
    files: tuple[str, ...] = ()
    """Absolute paths, a secret each."""
    variables: tuple[str, ...] = ()

    def __str__(self) -> str:
        held = [f"secret in {place}" for place in (*self.files, *(f"${name}" for name in self.variables))]
        return f"{self.name} ({', '.join([*([self.forge.value] if self.forge else []), *held])})"


def sources(value: object) -> tuple[Source, ...]:
    """The sources of a `[webhooks]` table, or of a text such as `shop=gitea:/etc/secret lab=$LAB_SECRET`. Raises ValueError."""
    if isinstance(value, str):
        value = dict(map(_in_words, value.split()))
    if not isinstance(value, Mapping):
        raise ValueError("a table [webhooks.NAME] with forge, and secret_file or secret_env, is needed")
    return tuple(_source(str(name), table) for name, table in value.items())


def _in_words(word: str) -> tuple[str, dict[str, object]]:
    """`NAME=FORGE:PLACE,PLACE`, where a place is a path or a `$VARIABLE`, as the table that it stands for."""
    found = re.fullmatch(r"([^=]+)=(?:([a-z]+):)?([/$].*)", word)
    if not found:
        raise ValueError("NAME=FORGE:/path/of/the/secret, or NAME=$VARIABLE, is needed")
    places = found[3].split(",")
    held = {
        "secret_file": [place for place in places if place[:1] != "$"],
        "secret_env": [place[1:] for place in places if place[:1] == "$"],
    }
    return found[1], held | ({"forge": found[2]} if found[2] else {})


def _source(name: str, table: object) -> Source:
    if not NAME.fullmatch(name):
        raise ValueError(f"{name!r} cannot be a part of an address: small letters, digits, - and _ can")
    if not isinstance(table, Mapping):
        raise ValueError(f"a table [webhooks.{name}] is needed")
    if unknown := [key for key in table if key not in KEYS]:
        raise ValueError(f"{name} has no setting {unknown[0]!r}; known are {', '.join(KEYS)}")
    forge = table.get("forge")
    if forge is not None and forge not in list(Forge):
        raise ValueError(f"the forge of {name} is one of {', '.join(Forge)}")
    files, variables = _texts(name, table.get("secret_file", [])), _texts(name, table.get("secret_env", []))
    if not 1 <= len(files) + len(variables) <= ACTIVE_MOST:
        raise ValueError(f"{name} needs a secret: secret_file or secret_env, and at most {ACTIVE_MOST} while one takes the other's place")
    if any(not path.startswith("/") or "\0" in path for path in files):
        raise ValueError(f"secret_file of {name} is an absolute path")
    if any(not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", variable) for variable in variables):
        raise ValueError(f"secret_env of {name} is the name of a variable, not the secret")
    return Source(name, Forge(forge) if forge else None, files, variables)


def _texts(name: str, value: Any) -> tuple[str, ...]:
    found = value if isinstance(value, list) else [value]
    if not all(isinstance(each, str) and each for each in found):
        raise ValueError(f"the secrets of {name} are named by texts")
    return tuple(found)
