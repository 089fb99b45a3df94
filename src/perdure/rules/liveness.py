"""Whether a run that is stored as running really runs. Pure; the facts are read by
`host.process.probe`, and every surface asks here.

The stored state says what was begun. Whoever began it may be gone since: killed, rebooted, cut off.
That is never stored, because who could store it is the one who is gone; it is derived each time
that somebody looks. `retry` and the worker pools act on the same facts.
"""

from __future__ import annotations

from enum import StrEnum

from perdure.lateclass import dataclass


class Liveness(StrEnum):
    """What is alive of a running attempt."""

    ATTENDED = "attended"
    """Its supervisor lives: it works."""
    UNATTENDED = "unattended"
    """The agent works, and nobody records what it does or keeps its limits."""
    INTERRUPTED = "interrupted"
    """Nothing of it lives."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Signs:
    """What can be seen of a running attempt from one place."""

    supervisor: bool | None
    """It lives; None: it cannot be seen from here, on another host or in another container."""
    agent: bool | None
    """The attempt's agent, its last turn or its check lives; None: its files are on another
    host."""
    lease_over: bool
    """The supervisor has not renewed the lease in time."""


def liveness(signs: Signs) -> Liveness:
    """Return what lives.

    A supervisor that is seen to live is believed, however late its lease is: it may be stopped, or
    slow. One that cannot be seen is believed as long as its lease lasts. On another host the agent
    is ended by its shim before a lease is over.
    """
    if signs.supervisor or (signs.supervisor is None and not signs.lease_over):
        return Liveness.ATTENDED
    return Liveness.UNATTENDED if signs.agent else Liveness.INTERRUPTED


def advice(name: str, found: Liveness) -> str:
    """Return what to say of a run that nobody attends, with the next command; empty for one that
    works."""
    match found:
        case Liveness.INTERRUPTED:
            return f"{name} was interrupted: perdure retry {name} continues where it stopped"
        case Liveness.UNATTENDED:
            return (
                f"{name} has no supervisor, but its agent works on: perdure retry {name} follows "
                "it again"
            )
        case _:
            return ""
