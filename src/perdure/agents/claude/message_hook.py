"""The program that Claude Code runs after a batch of tool calls and before it ends a turn, if a
message for the running attempt is there. Observed with 2.1.329.

Started by the settings that `settings` makes, with the attempt's directory of messages as its only
argument (see `perdure.engine.attempt.messages`); it must not import anything but a few modules of
the standard library, because the agent waits for it.

The output of `PostToolBatch` reaches the model with the results of the tools. That of `Stop` makes
the CLI go on with the turn. The CLI keeps both in the transcript, as an attachment, before it asks
the model.
"""

from __future__ import annotations

import json
import os
import sys

TYPE_CHECKING = False  # importing typing takes longer than all the rest
if TYPE_CHECKING:
    from typing import Any

HOW = {"PostToolBatch": "turn", "Stop": "boundary"}


def take(path: str, how: str) -> bool:
    """Return whether the message was not given to the CLI until now."""
    try:
        file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    except FileExistsError:
        return False
    os.write(file, how.encode())
    os.close(file)
    return True


def messages(directory: str, how: str) -> list[str]:
    """Return the messages that the CLI has not been given yet, in order, and mark them as given."""
    names = [name.removesuffix(".json") for name in os.listdir(directory)]
    found = []
    for number in sorted(int(name) for name in names if name.isdecimal()):
        if take(f"{directory}/taken-{number}", how):
            with open(f"{directory}/{number}.json", encoding="utf-8") as file:
                found.append(json.load(file))
    return found


def main() -> None:
    given: dict[str, Any] = json.load(sys.stdin)
    event = given["hook_event_name"]
    # A subagent has tools of its own; the message is for the agent.
    if event not in HOW or "agent_id" in given:
        return
    found = messages(sys.argv[1], HOW[event])
    if found:
        output = {"hookEventName": event, "additionalContext": "\n\n".join(found)}
        json.dump({"hookSpecificOutput": output}, sys.stdout)


if __name__ == "__main__":
    main()
