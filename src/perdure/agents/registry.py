"""The agents that perdure can drive, by name. Loaded late: `perdure ls` pays for none of them.

Called by the composition root alone. Built-in drivers stand in `BUILT_IN`; a driver from outside is
an entry point of the group `perdure.drivers`, named like the agent, whose object is a driver or a
class that makes one without arguments. The suite in `perdure.testing.drivers` shows whether it
keeps the contract.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, cast

from perdure.errors import AgentMissing, DriverError
from perdure.protocols import AgentDriver

if TYPE_CHECKING:
    from collections.abc import Iterable
    from importlib.metadata import EntryPoint

BUILT_IN = {
    "claude": "perdure.agents.claude.driver:DRIVER",
    "codex": "perdure.agents.codex.driver:DRIVER",
    "gemini": "perdure.agents.gemini.driver:DRIVER",
    "opencode": "perdure.agents.opencode.driver:DRIVER",
}
GROUP = "perdure.drivers"
ACP = "acp-"
"""How the names of agents begin that are driven over ACP: `acp-codex`. They stand in no list,
because any of them may be there."""


def names() -> list[str]:
    """Every agent that `load` knows, sorted."""
    return sorted({*BUILT_IN, *(point.name for point in _from_outside())})


def load(name: str) -> AgentDriver:
    """The driver of that name. Raises AgentMissing if there is none, DriverError if it cannot be
    loaded or is not a driver."""
    if place := BUILT_IN.get(name):
        module, _, attribute = place.partition(":")
        return cast(AgentDriver, getattr(import_module(module), attribute))
    if name.startswith(ACP):
        from perdure.agents.acp import driver as acp

        return acp.make(name.removeprefix(ACP))
    for point in _from_outside():
        if point.name != name:
            continue
        try:
            found = point.load()
            driver = found() if isinstance(found, type) else found
        except Exception as error:
            raise DriverError(
                f"The driver for {name!r} ({point.value}) could not be loaded: {error}"
            ) from error
        return _checked(driver, name, point.value)
    from difflib import get_close_matches

    near = get_close_matches(name, names(), 1)
    meant = f"Did you mean {near[0]!r}? " if near else ""
    raise AgentMissing(
        f"There is no agent named {name!r}.", f"{meant}One of: {', '.join(names())}."
    )


def _from_outside() -> Iterable[EntryPoint]:
    # To look at what is installed costs more than all the rest of a start, and no built-in agent
    # needs it.
    from importlib.metadata import entry_points

    return entry_points(group=GROUP)


def _checked(driver: Any, name: str, place: str) -> AgentDriver:
    """The object, if it has all that a driver has."""
    wanted = [
        *AgentDriver.__annotations__,
        *(word for word in vars(AgentDriver) if not word.startswith("_")),
    ]
    if missing := sorted({word for word in wanted if not hasattr(driver, word)}):
        raise DriverError(
            f"The driver for {name!r} ({place}) lacks {', '.join(missing)}.",
            "It must have all of AgentDriver.",
        )
    return cast(AgentDriver, driver)
