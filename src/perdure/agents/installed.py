"""Lists the agents for `perdure agents --json`: installed version, home, abilities."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from msgspec.structs import asdict

from perdure.agents.registry import load, names
from perdure.errors import AgentMissing, PerdureError


def installed(
    running: Iterable[str], environ: Mapping[str, str], homes: Mapping[str, str]
) -> list[dict[str, Any]]:
    """Return one entry for each agent.

    - `running`: name of the agent of each run in progress.
    - `environ`: environment in which the programs are searched.
    - `homes`: the same environment, but with the homes that are linked to a volume.
    """
    at_work = Counter(running)
    return [_agent(name, at_work[name], environ, homes) for name in names()]


def _agent(
    name: str, running: int, environ: Mapping[str, str], homes: Mapping[str, str]
) -> dict[str, Any]:
    """Return the entry of one agent. If its driver cannot be loaded, the entry has a `problem`, so
    that the other agents are still listed."""
    found = {
        "name": name,
        "installed": False,
        "version": "",
        "program": "",
        "home": "",
        "abilities": {},
        "running": running,
        "problem": "",
    }
    try:
        driver = load(name)
        found |= {"home": str(driver.home(homes)), "abilities": asdict(driver.abilities)}
        program = driver.locate(environ)
        found |= {"installed": True, "version": program.version, "program": program.path}
    except AgentMissing as error:
        found["problem"] = f"{str(error).rstrip('.')}: {error.hint}"
    except PerdureError as error:
        found["problem"] = str(error)
    return found
