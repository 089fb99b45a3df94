"""The registry of the agents that perdure can drive, by name. A driver is imported only when it is
needed, so `perdure ls` imports none.

Called by `wiring`, by the commands and the server, and by `prove`. The engine gets its drivers from
`wiring`. Built-in drivers are listed in `BUILT_IN`. A third-party driver is an entry point of the
group `perdure.drivers` with the agent's name. The entry point's object is a driver, or a class that
is called without arguments to create one. The test suite in `perdure.testing.drivers` checks
whether a driver fulfills the contract.
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
"""Name prefix of the agents that are driven over ACP, as in `acp-codex`. `names` does not list
these agents, because any name may follow the prefix."""


def names() -> list[str]:
    """Return the sorted names of the built-in and third-party agents."""
    return sorted({*BUILT_IN, *(point.name for point in _from_outside())})


def load(name: str) -> AgentDriver:
    """Return the driver of the agent with this name. Raise AgentMissing if there is no such agent.
    Raise DriverError if a third-party driver cannot be loaded or is not a driver."""
    if place := BUILT_IN.get(name):
        module, _, attribute = place.partition(":")
        return cast(AgentDriver, getattr(import_module(module), attribute))
    if name.startswith(ACP):
        from perdure.agents import acp

        return acp.make(name.removeprefix(ACP), load)
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
    # Entry points are searched last, because listing them takes longer than the rest of the
    # start-up and no built-in agent needs them.
    from importlib.metadata import entry_points

    return entry_points(group=GROUP)


def _checked(driver: Any, name: str, place: str) -> AgentDriver:
    """Return `driver`, the object that was created from an entry point. Raise DriverError if the
    object lacks an attribute of AgentDriver."""
    public = [word for word in vars(AgentDriver) if not word.startswith("_")]
    wanted = [*AgentDriver.__annotations__, *public]
    if missing := sorted({word for word in wanted if not hasattr(driver, word)}):
        raise DriverError(
            f"The driver for {name!r} ({place}) lacks {', '.join(missing)}.",
            "A driver must implement all members of AgentDriver.",
        )
    return cast(AgentDriver, driver)
