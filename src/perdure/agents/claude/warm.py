"""Runs Claude Code as one process for many turns: `--input-format stream-json`. Observed with
2.1.329.

The process reads one line for each prompt and answers with an `init` and a `result`. After its
input is closed, it finishes its turn and exits with code 0. The line of an answer contains the id
of the answer's record in the transcript. The list of background tasks is printed whenever it
changes. A background task that ends starts a turn.
"""

from __future__ import annotations

import json
from collections.abc import Callable

from msgspec.structs import replace

from perdure.agents.shared import json_lines
from perdure.model import Command, Launch
from perdure.protocols import TurnStatus

COUNTED = ("--max-turns", "--max-budget-usd")
"""Arguments that set a limit for the whole life of a process. They cannot limit a single turn, so
they require a separate process for each turn."""
_NOT_READ = b'{"type":"user"'
"""First bytes of the lines that hold tool results. These lines may be long, so they are skipped
without parsing. All other lines are parsed, because in a `result` line the type is not always the
first key."""


class ClaudeWarm:
    """Implements `Warm` (one process for many turns) for Claude Code. `command` is a function that
    returns the command of a process for a single prompt."""

    def __init__(self, command: Callable[[Launch], Command]) -> None:
        self._command = command

    def command(self, launch: Launch) -> Command | None:
        if (
            launch.budget_usd
            or launch.last_word
            or launch.answers
            or any(argument.startswith(COUNTED) for argument in launch.spec.agent_args)
        ):
            return None
        # A deferred call must end the process. This is not possible for a kept agent, so it gets no
        # directory of requests. It gets no directory of messages either, because such a directory
        # belongs to a single attempt.
        once = self._command(replace(launch, requests="", messages=""))
        prompt = {"type": "user", "message": {"role": "user", "content": once.stdin.decode()}}
        argv = (*once.argv[:2], "--input-format=stream-json", *once.argv[2:])
        return replace(once, argv=argv, stdin=json.dumps(prompt).encode() + b"\n")

    def update_status(self, line: bytes, so_far: TurnStatus) -> TurnStatus:
        if line.startswith(_NOT_READ):
            found = None
        else:
            found = json_lines.read(line)
        if found is None:
            return so_far
        match found.get("type"), found.get("subtype"):
            case "assistant", _:
                own = found.get("parent_tool_use_id") is None
                if own:
                    return replace(so_far, over=False, mark=json_lines.text(found.get("uuid"), 100))
                return so_far
            case "result", _:
                return replace(so_far, over=not json_lines.whole(found.get("queued_turn_count")))
            case "system", "init":
                return replace(so_far, over=False)
            case "system", "background_tasks_changed":
                return replace(so_far, busy=bool(found.get("tasks")))
            case _:
                return so_far
