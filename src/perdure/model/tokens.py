"""Who may ask `perdure serve`."""

from __future__ import annotations

from enum import StrEnum

from perdure.lateclass import dataclass


class TokenScope(StrEnum):
    """What the bearer of a token may do; each one may also do what stands before it: look; have
    agents work; take away and bring back."""

    READ = "read"
    DISPATCH = "dispatch"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """Who may ask `perdure serve`, and for what. The secret itself is nowhere: the store knows its
    SHA-256."""

    name: str
    scope: TokenScope
    created: int
    expires: int = 0
    """When (ms) it is no longer good; 0: never."""
    used: int = 0
    """When (ms) it was last used, to the hour; 0: never."""
