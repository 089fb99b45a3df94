"""Runs Codex as one process for many turns: `codex app-server`, with `codex_bridge` between the
server and perdure's keeper. Observed with 0.169.0.

The bridge prints what `codex exec --json` would print, so the driver parses both in the same way.
Options that are flags of `exec` but not of the server are set by the bridge when it opens the
thread.

No server is kept in these cases: for a fork, for arguments that only `exec` accepts, for a Codex
whose version is older than OLDEST or unknown, for a turn that asks for the agent's last word, and
for a turn that carries people's answers to requests.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace

from perdure.agents.shared import json_lines
from perdure.agents.shared.calls import LAST_WORD
from perdure.agents.shared.conversation_files import checked
from perdure.host import system
from perdure.model import Command, Launch, Permissions, Rung, Start
from perdure.patterns import late_pattern
from perdure.protocols import TurnStatus

if TYPE_CHECKING:
    from perdure.agents.codex.codex_bridge import CodexOrder

BRIDGE = Path(__file__).with_name("codex_bridge.py")

OLDEST = (0, 169)
"""Oldest version whose app server is used. Older versions get a separate process for each turn."""

SANDBOX = {
    Permissions.READ: "read-only",
    Permissions.EDIT: "workspace-write",
    Permissions.FULL: "danger-full-access",
}

_SHARED = late_pattern(r"(-c.|--config=|--(enable|disable)=)", re.DOTALL)
_SHARED_WITH_VALUE = frozenset({"-c", "--config", "--enable", "--disable"})


class CodexWarm:
    """Implements `Warm` (one process for many turns) for Codex. `settings` is a function that
    returns the arguments of a launch that both `exec` and the server accept."""

    def __init__(self, settings: Callable[[Launch], Sequence[str]]) -> None:
        self._settings = settings

    def command(self, launch: Launch) -> Command | None:
        # A launch that carries people's answers needs a server that asks for approvals. A kept
        # server never asks, so such a launch gets a separate server.
        if launch.last_word or (launch.answers and launch.requests):
            return None
        return self.bridged(launch)

    def bridged(self, launch: Launch) -> Command | None:
        """Return the command that starts the bridge; None if the app server cannot be used for this
        launch. If the launch carries people's answers, the server asks before it runs a command
        without the sandbox. Raise ValueError for an invalid id and for a resume by path."""
        asked = launch.continuation
        if asked.kind is Start.FORK or not is_bridged(
            launch.spec.agent_args, launch.program.version
        ):
            return None
        if asked.kind not in (Start.FRESH, Start.REBUILD, Start.RESUME) or asked.rung is Rung.PATH:
            raise ValueError(f"Codex has no continuation {asked.kind} by {asked.rung}")
        order: CodexOrder = {
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
            # The import contracts do not allow an import of the package `perdure` here, and
            # `importlib.metadata` would load 32 modules. So the version is read from the package in
            # `sys.modules`.
            "version": sys.modules["perdure"].__version__,
            "requests": launch.requests if launch.answers else "",
            "schema": json.loads(LAST_WORD.read_text("utf-8")) if launch.last_word else None,
        }
        argv = (sys.executable, "-I", "-S", str(BRIDGE), json.dumps(order))
        line = json.dumps({"prompt": launch.prompt, "messages": launch.messages})
        return Command(argv=argv, stdin=line.encode() + b"\n", takes_messages=True)

    def update_status(self, line: bytes, so_far: TurnStatus) -> TurnStatus:
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
    """Return whether the app server of this Codex version can be used with the user's arguments."""
    return shared(arguments) and known(version)


def known(version: str) -> bool:
    """Return whether this version is at least OLDEST, the oldest version whose app server was
    tested. False for an unknown version (an empty string)."""
    numbers = re.match(r"(\d+)\.(\d+)", version)
    return numbers is not None and (int(numbers[1]), int(numbers[2])) >= OLDEST


def shared(arguments: Sequence[str]) -> bool:
    """Return whether the app server accepts all these arguments of `exec`. The server accepts only
    settings (`-c`) and feature switches."""
    left = iter(arguments)
    for argument in left:
        if argument in _SHARED_WITH_VALUE:
            if next(left, None) is None:
                return False
        elif not _SHARED.match(argument):
            return False
    return True
