"""The tokens that let a client use `perdure serve`."""

from __future__ import annotations

from enum import StrEnum

from msgspec import Struct


class TokenScope(StrEnum):
    """The permissions of a token's bearer. Each scope includes those before it. `read`: look.
    `answer`: also answer agents' questions and refuse their calls. `dispatch`: also have agents
    work. `admin`: also remove things and restore them, and allow calls."""

    READ = "read"
    ANSWER = "answer"
    DISPATCH = "dispatch"
    ADMIN = "admin"


class Token(Struct, frozen=True, kw_only=True):
    """A token for `perdure serve`, with its scope. The secret itself is not stored, only its
    SHA-256."""

    name: str
    scope: TokenScope
    created: int
    expires: int = 0
    """When (ms) it expires; 0: never."""
    used: int = 0
    """When (ms) it was last used, to the hour; 0: never."""
    repositories: tuple[str, ...] = ()
    """Patterns of the repositories that it is limited to (see `rules.access`); empty: all."""
    labels: tuple[str, ...] = ()
    """Labels that a run must have, as NAME=PATTERN; empty: none."""
    kind: str = "token"
    """`openid` for a person who signed in at a provider instead of with a token; `name` is then the
    person's."""
