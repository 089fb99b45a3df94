"""Data types for the tokens with which clients use `perdure serve`."""

from __future__ import annotations

from enum import StrEnum

from msgspec import Struct


class TokenScope(StrEnum):
    """The rights of a client with a token. Each scope includes those before it. `read`: only look.
    `answer`: also answer agents' questions and refuse their calls. `dispatch`: also start and
    control runs. `admin`: also remove and restore things, and allow agents' calls."""

    READ = "read"
    ANSWER = "answer"
    DISPATCH = "dispatch"
    ADMIN = "admin"


class Token(Struct, frozen=True, kw_only=True):
    """A token for `perdure serve`. Of its secret, only the SHA-256 is stored."""

    name: str
    scope: TokenScope
    created: int
    expires: int = 0
    """Time (ms) at which the token expires; 0: never."""
    used: int = 0
    """Time (ms) of the last use, rounded to the hour; 0: never used."""
    repositories: tuple[str, ...] = ()
    """Patterns of the repositories that the token may be used for (see `rules.access`); empty:
    all."""
    labels: tuple[str, ...] = ()
    """Labels that a run must have, as NAME=PATTERN; empty: no restriction."""
    kind: str = "token"
    """`token`; or `openid` for a person who signed in with a provider instead of a token. `name` is
    then the name of the person."""
