"""Decides whether a run that is stored as running really is running. Pure.

`host.process.probe` reads the facts, and every command and page calls this module. The stored state
only says that an attempt was started. Since then its supervisor may have been killed, or its host
restarted or disconnected. A dead supervisor cannot store that it died, so liveness is never stored
but derived on each query. `retry` and the worker pools act on the same facts.
"""

from __future__ import annotations

from msgspec import Struct

from perdure.model import Liveness


class Signs(Struct, frozen=True, kw_only=True):
    """The signs of life of a running attempt, as seen from this host."""

    supervisor: bool | None
    """Whether the supervisor is alive; None if this process cannot see that, because the supervisor
    is on another host or in another container."""
    agent: bool | None
    """Whether a process of the attempt is alive: its agent, its summary turn or a check. None if
    the files with the process ids are on another host."""
    lease_over: bool
    """Whether the supervisor's lease has expired because it was not renewed in time."""


def liveness(signs: Signs) -> Liveness:
    """Return which processes of the attempt are alive.

    A supervisor that is known to be alive is counted as alive even after its lease has expired: it
    may be stopped or slow. If it is unknown whether the supervisor is alive, it is counted as alive
    until its lease expires. On another host, the shim ends the agent before the lease expires.
    """
    if signs.supervisor or (signs.supervisor is None and not signs.lease_over):
        return Liveness.ATTENDED
    if signs.agent:
        return Liveness.UNATTENDED
    return Liveness.INTERRUPTED


def advice(name: str, found: Liveness) -> str:
    """Return a sentence about a run that has no supervisor, with the command to run next. Empty if
    the run has a supervisor."""
    match found:
        case Liveness.INTERRUPTED:
            return f"{name} was interrupted: perdure retry {name} continues where it stopped"
        case Liveness.UNATTENDED:
            return (
                f"{name} has no supervisor, but its agent still runs: perdure retry {name} follows "
                "it again"
            )
        case _:
            return ""
