"""Decides whether a run that is stored as running really is. Pure.

`host.process.probe` reads the facts, and every command and page asks this module. The stored state
only says that an attempt was started. Its supervisor may have died since: killed, rebooted, cut
off. A dead supervisor cannot store that it died, so liveness is never stored but derived on each
query. `retry` and the worker pools act on the same facts.
"""

from __future__ import annotations

from msgspec import Struct

from perdure.model import Liveness


class Signs(Struct, frozen=True, kw_only=True):
    """The signs of life of a running attempt, as seen from this host."""

    supervisor: bool | None
    """Whether the supervisor is alive; None if that cannot be seen from here (another host or
    container)."""
    agent: bool | None
    """Whether the attempt's agent, its last turn or its check is alive; None if its files are on
    another host."""
    lease_over: bool
    """Whether the supervisor failed to renew the lease in time."""


def liveness(signs: Signs) -> Liveness:
    """Return which processes are alive.

    A supervisor that is seen to be alive counts even if its lease is late: it may be stopped or
    slow. One that cannot be seen counts as long as its lease lasts. On another host, the shim ends
    the agent before the lease is over.
    """
    if signs.supervisor or (signs.supervisor is None and not signs.lease_over):
        return Liveness.ATTENDED
    if signs.agent:
        return Liveness.UNATTENDED
    return Liveness.INTERRUPTED


def advice(name: str, found: Liveness) -> str:
    """Return a sentence about a run without supervisor, with the next command; empty if the run has
    a supervisor."""
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
