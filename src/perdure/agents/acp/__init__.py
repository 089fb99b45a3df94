"""The driver for agents that speak the Agent Client Protocol. `registry` makes one for each name
`acp-NAME`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from perdure.errors import AgentMissing
from perdure.patterns import late_pattern

if TYPE_CHECKING:
    from perdure.protocols import AgentDriver

_NAME = late_pattern(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


def make(name: str, load: Callable[[str], AgentDriver]) -> AgentDriver:
    """Return the driver of `acp-NAME`. It reads conversations if `load` has a native driver for the
    agent. Raise AgentMissing for an invalid name."""
    from perdure.agents.acp.driver import KNOWN, AcpDriver

    if name in KNOWN:
        return AcpDriver(name, load(name))
    if not _NAME.fullmatch(name):
        raise AgentMissing(
            f"There is no agent named 'acp-{name}'.",
            f"One of: {', '.join(f'acp-{known}' for known in sorted(KNOWN))}.",
        )
    from perdure.agents.acp.any_agent import AnyAcpDriver

    return AnyAcpDriver(name)
