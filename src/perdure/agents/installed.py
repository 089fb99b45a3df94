"""The agents as `perdure agents --json` shows them: what is installed, where its home is, what it
can."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from perdure.agents.registry import load, names
from perdure.errors import AgentMissing, PerdureError


def installed(
    running: Iterable[str], environ: Mapping[str, str], homes: Mapping[str, str]
) -> list[dict[str, Any]]:
    """Every agent. `running`: the agents of the runs at work; `environ`: where programs are looked
    for; `homes`: the same, with where homes are that were linked to a volume."""
    at_work = Counter(running)
    return [_agent(name, at_work[name], environ, homes) for name in names()]


def _agent(
    name: str, running: int, environ: Mapping[str, str], homes: Mapping[str, str]
) -> dict[str, Any]:
    """One agent; a driver that cannot be loaded is said to be so, and hides no other."""
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
