"""The driver for agents that speak the Agent Client Protocol (ACP). `registry.load` calls `make`
for each agent name of the form `acp-NAME`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from perdure.errors import AgentMissing
from perdure.patterns import late_pattern

if TYPE_CHECKING:
    from perdure.protocols import AgentDriver

_NAME = late_pattern(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


def make(name: str, load: Callable[[str], AgentDriver]) -> AgentDriver:
    """Return the driver for an ACP agent. `name` is the agent's name without the prefix `acp-`. For
    an agent in `KNOWN`, the native driver that `load(name)` returns reads the transcripts. Raise
    AgentMissing for an invalid name."""
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
