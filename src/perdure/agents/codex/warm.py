"""Codex as a process for many turns: `codex app-server`, with `codex_bridge` between it and its
keeper. Observed with 0.169.0.

The bridge prints what `codex exec --json` would print, so the driver parses both in the same way.
Options that are flags of `exec` but not of the server are set by the bridge when it opens the
thread. A fork, arguments that only `exec` has, and a Codex that is older or of unknown version get
a process for one turn.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from msgspec.structs import replace

from perdure.agents.shared import json_lines
from perdure.agents.shared.calls import LAST_WORD
from perdure.agents.shared.ids import checked
from perdure.host import system
from perdure.model import Command, Launch, Permissions, Rung, Start
from perdure.patterns import late_pattern
from perdure.protocols import Heard

BRIDGE = Path(__file__).with_name("codex_bridge.py")

OLDEST = (0, 169)
"""Oldest version whose app server is used. Older versions get one process for each turn."""

SANDBOX = {
    Permissions.READ: "read-only",
    Permissions.EDIT: "workspace-write",
    Permissions.FULL: "danger-full-access",
}

_SHARED = late_pattern(r"(-c.|--config=|--(enable|disable)=)", re.DOTALL)
_SHARED_WITH_VALUE = frozenset({"-c", "--config", "--enable", "--disable"})


class CodexWarm:
    """A `Warm`. `settings`: the arguments that `exec` and the server both take, for a launch."""

    def __init__(self, settings: Callable[[Launch], Sequence[str]]) -> None:
        self._settings = settings

    def command(self, launch: Launch) -> Command | None:
        # A kept server asks nobody, so a launch with answers to requests gets a server of its own.
        if launch.last_word or (launch.answers and launch.requests):
            return None
        return self.bridged(launch)

    def bridged(self, launch: Launch) -> Command | None:
        """Return the bridge's command. If the launch has answers of people, the server asks before
        it runs a command without its sandbox."""
        asked = launch.continuation
        if asked.kind is Start.FORK or not is_bridged(
            launch.spec.agent_args, launch.program.version
        ):
            return None
        if asked.kind not in (Start.FRESH, Start.REBUILD, Start.RESUME) or asked.rung is Rung.PATH:
            raise ValueError(f"Codex has no continuation {asked.kind} by {asked.rung}")
        order = {
            "command": [
                launch.program.path,
                "app-server",
                *launch.spec.agent_args,
                *self._settings(launch),
            ],
            "thread": checked(asked.session_id) if asked.kind is Start.RESUME else "",
            "sandbox": SANDBOX[launch.spec.permissions],
            "model": launch.spec.model,
            "portable": system.IS_PORTABLE,
            # This module may not import the package itself, and importlib.metadata would load 32
            # modules.
            "version": sys.modules["perdure"].__version__,
            "requests": launch.requests if launch.answers else "",
            "schema": json.loads(LAST_WORD.read_text("utf-8")) if launch.last_word else None,
        }
        argv = (sys.executable, "-I", "-S", str(BRIDGE), json.dumps(order))
        return Command(argv=argv, stdin=json.dumps({"prompt": launch.prompt}).encode() + b"\n")

    def hear(self, line: bytes, so_far: Heard) -> Heard:
        found = json_lines.read(line) if b'"turn.' in line else None
        match found.get("type") if found is not None else None:
            case "turn.started":
                return replace(so_far, over=False)
            case "turn.completed":
                turn = json_lines.text(json_lines.part(found, "turn_id"), 100)
                mark = f'"turn_id":"{turn}","last_agent_message"'
                return replace(so_far, over=True, mark=mark)
            case "turn.failed":
                return replace(so_far, over=True)
            case _:
                return so_far


def is_bridged(arguments: Sequence[str], version: str) -> bool:
    """Return whether this version's app server can be used with these arguments of the user."""
    return shared(arguments) and known(version)


def known(version: str) -> bool:
    """Return whether this version is at least the oldest one whose app server was tested. An empty
    version is unknown, so False."""
    numbers = re.match(r"(\d+)\.(\d+)", version)
    return numbers is not None and (int(numbers[1]), int(numbers[2])) >= OLDEST


def shared(arguments: Sequence[str]) -> bool:
    """Return whether the app server accepts all these arguments of `exec`. It accepts only settings
    and features."""
    left = iter(arguments)
    for argument in left:
        if argument in _SHARED_WITH_VALUE:
            if next(left, None) is None:
                return False
        elif not _SHARED.match(argument):
            return False
    return True
