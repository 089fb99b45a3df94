"""A hook program for Claude Code that passes people's messages to a running agent. If a person has
sent a message, the CLI runs this program after each batch of tool calls and before the end of a
turn. Observed with 2.1.329.

The settings that `claude/settings.py` creates name this program as a hook. Its only argument is the
attempt's directory of messages (see `perdure.engine.attempt.messages`). It imports only a few
modules of the standard library, because the agent waits for it.

The output for `PostToolBatch` reaches the model together with the results of the tools. The output
for `Stop` makes the CLI continue the turn. The CLI writes each of these outputs into the
transcript, as an attachment, before it sends the output to the model.
"""

from __future__ import annotations

import json
import os
import sys

HOW = {"PostToolBatch": "turn", "Stop": "boundary"}


def take(path: str, how: str) -> bool:
    """Create the file that marks a message as passed on to the CLI. Return False if the file
    already existed."""
    try:
        file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    except FileExistsError:
        return False
    os.write(file, how.encode())
    os.close(file)
    return True


def messages(directory: str, how: str) -> list[str]:
    """Return the messages that have not been passed on to the CLI yet, in order. Mark them as
    passed on."""
    names = [name.removesuffix(".json") for name in os.listdir(directory)]
    found = []
    for number in sorted(int(name) for name in names if name.isdecimal()):
        if take(f"{directory}/taken-{number}", how):
            with open(f"{directory}/{number}.json", encoding="utf-8") as file:
                found.append(json.load(file))
    return found


def main() -> None:
    given = json.load(sys.stdin)
    event = given["hook_event_name"]
    # The hook also runs for the tools of subagents, but messages are only for the main agent.
    if event not in HOW or "agent_id" in given:
        return
    found = messages(sys.argv[1], HOW[event])
    if found:
        output = {"hookEventName": event, "additionalContext": "\n\n".join(found)}
        json.dump({"hookSpecificOutput": output}, sys.stdout)


if __name__ == "__main__":
    main()
