"""A hook program for Claude Code, for tool calls that a person has to allow. The CLI runs it before
each tool call and after each batch of tool calls. Observed with 2.1.329.

The settings that `claude/settings.py` creates name this program as a hook. Its only argument is the
run's directory of requests. It imports only a few modules of the standard library, because the
agent waits for it. Files in the directory:

- `decisions.json`: the answers of people, written by perdure before the launch;
- `armed`: exists if there is anything to look up. Before a call that is not a question, Python is
  started only if this file exists;
- `asked`: digests of calls that need a permission, written by this program;
- `parked`: ids of calls that this program deferred;
- `used-N`: the approval of request N was used. The file can be created only once, so an approval is
  used only once.

A call that needs a permission is denied the first time. The agent is then told to make the same
call again, as the only call of its answer. The reasons:

- Only `PreToolUse` can defer a call (`defer`), but it runs before the permissions are checked. So
  the first time it is not known yet that the call needs a permission.
- A call cannot be deferred if the same answer contains other calls.
- `PermissionRequest` runs after the check. But its answer comes too late if
  `--permission-prompt-tool=stdio` is set, and without that flag the agent cannot ask questions.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys

# Defined here instead of imported from `typing`, because that import takes longer than the rest of
# the program.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, TypeAlias, TypedDict

    HookInput: TypeAlias = dict[str, Any]
    """The JSON object that the CLI writes to stdin. Its fields depend on the event."""

    class RequestDecision(TypedDict):
        """A person's answer, as `perdure.engine.attempt.requests` writes it."""

        number: int
        """Number of the request."""
        call: str
        sha256: str
        parked: bool
        answer: str
        words: str
        each: dict[str, str]
        """Answers by the text of the question, if the call asks several questions."""


QUESTION = "AskUserQuestion"
FAILED = "Tool permission request failed: "
MOST = 200
ONCE_MORE = (
    "A person has to allow the call whose permission request failed. Make exactly the same call "
    "once more, as the only call of your answer: it then waits for the person, who allows or "
    "refuses it."
)
WAITS = "A person has to allow this call, and is asked when your turn ends. Go on without it."
SPENT = (
    "This call was allowed once, and the agent was killed after that: whether it ran is not known. "
    "Check before you repeat it."
)


def digest(tool: str, given: Any) -> str:
    text = json.dumps([tool, given], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def path_of(directory: str, name: str) -> str:
    return f"{directory}/{name}"


def lines(path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read().splitlines()
    except OSError:
        return []


def add(path: str, line: str) -> None:
    if len(lines(path)) < MOST:
        with open(path, "a", encoding="utf-8") as file:
            file.write(line + "\n")


def take(path: str) -> bool:
    """Create the file that marks an approval as used. Return False if the file already existed, so
    the approval had been used before."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except FileExistsError:
        return False
    return True


def decision_for(directory: str, call: str, key: str) -> RequestDecision | None:
    """Return the person's answer to this call; None if there is none. The answer to a parked call
    is found by the call's id, any other answer by the call's digest (`key`). Of several answers to
    the same digest, a refusal takes precedence, and approvals that were used are passed over. If a
    parked call has other arguments than the person saw, return a refusal."""
    try:
        with open(path_of(directory, "decisions.json"), encoding="utf-8") as file:
            decisions: list[RequestDecision] = json.load(file)
    except (OSError, ValueError):
        return None
    for each in decisions:
        if call and each["parked"] and each["call"] == call:
            if each["sha256"] == key:
                return each
            return {**each, "answer": "deny", "words": "It is not the call that was shown."}
    fitting = [each for each in decisions if not each["parked"] and each["sha256"] == key]
    for each in fitting:
        if each["answer"] == "deny":
            return each
    for each in fitting:
        if each["answer"] != "allow" or not os.access(used_path(directory, each), os.F_OK):
            return each
    return None


def used_path(directory: str, decision: RequestDecision) -> str:
    return path_of(directory, f"used-{decision['number']}")


def before(directory: str, given: HookInput, key: str) -> dict[str, object] | None:
    """Return the output for `PreToolUse`. None means that the hook decides nothing, so the CLI's
    own permissions apply."""
    call = given.get("tool_use_id", "")
    decided = decision_for(directory, call, key)
    if decided is not None:
        return answered(directory, given, decided)
    aside = "agent_id" in given
    if aside or (given["tool_name"] != QUESTION and key not in lines(path_of(directory, "asked"))):
        return None
    add(path_of(directory, "parked"), call)
    return {"permissionDecision": "defer", "permissionDecisionReason": "a person is asked"}


def answered(
    directory: str, given: HookInput, decided: RequestDecision
) -> dict[str, object] | None:
    words = decided["words"]
    if decided["answer"] == "deny":
        reason = "A person refused this call" + (": " + words if words else ".")
        return {"permissionDecision": "deny", "permissionDecisionReason": reason}
    # An approval is used only once. The answer to a question may be returned several times, because
    # it changes only the conversation.
    question = decided["answer"] == "text"
    if not question and not take(used_path(directory, decided)):
        if not decided["parked"]:
            return None
        return {"permissionDecision": "deny", "permissionDecisionReason": SPENT}
    allowed: dict[str, object] = {
        "permissionDecision": "allow",
        "permissionDecisionReason": "a person allowed it",
    }
    if question:
        asked = given["tool_input"].get("questions") or []
        answers = {}
        for each in asked:
            if isinstance(each, dict):
                answers[each.get("question", "")] = words
        allowed["updatedInput"] = {**given["tool_input"], "answers": {**answers, **decided["each"]}}
    return allowed


def after(directory: str, given: HookInput) -> dict[str, object] | None:
    """Return the output for `PostToolBatch`: a text to the agent about calls that needed a
    permission. None if there were no such calls."""
    told: list[str] = []
    asked = path_of(directory, "asked")
    for each in given.get("tool_calls") or []:
        response = each.get("tool_response")
        if not isinstance(response, str) or not response.startswith(FAILED):
            continue
        key = digest(each["tool_name"], each["tool_input"])
        if key in lines(asked):
            told.append(WAITS)
            continue
        add(asked, key)
        add(path_of(directory, "armed"), "")
        told.append(ONCE_MORE)
    if told:
        return {"additionalContext": "\n".join(dict.fromkeys(told))}
    return None


def main() -> None:
    directory = sys.argv[1]
    given = json.load(sys.stdin)
    event = given["hook_event_name"]
    if event == "PreToolUse":
        output = before(directory, given, digest(given["tool_name"], given["tool_input"]))
    else:
        output = after(directory, given)
    if output is not None:
        json.dump({"hookSpecificOutput": {"hookEventName": event, **output}}, sys.stdout)


if __name__ == "__main__":
    main()
