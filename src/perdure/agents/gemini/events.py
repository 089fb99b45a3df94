"""Converts Gemini CLI's `stream-json` lines into events. Pure. Observed with 0.61.0.

An answer is printed in pieces, which the watcher joins. The token counts of a result are those of
this launch only, and their input includes the cached part. A line `error` with severity `error` is
a failure, even if the result after it reports success; a warning is not a failure.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from perdure.agents.shared import json_lines
from perdure.agents.shared.calls import main_argument, question
from perdure.agents.shared.json_lines import OutputLine
from perdure.model import Usage
from perdure.model.events import (
    AgentEvent,
    ReplyCut,
    Said,
    SaidPart,
    SessionSeen,
    ToolDenied,
    ToolEnded,
    ToolStarted,
    TurnEnded,
    TurnStarted,
    Unrecognised,
    UsageSeen,
)
from perdure.model.requests import OpenCall
from perdure.patterns import late_pattern

SUMMARY = 500
_ENDED = frozenset({"STOP", "FINISH_REASON_UNSPECIFIED"})
_REASONS = {
    "MAX_TOKENS": "max_tokens",
    **dict.fromkeys(
        ("SAFETY", "PROHIBITED_CONTENT", "BLOCKLIST", "SPII", "RECITATION", "IMAGE_SAFETY"),
        "refusal",
    ),
}
_DENIED = frozenset({"policy_violation", "permission_denied", "path_not_in_workspace"})
_ASKS = "ask_user"
_BARRED = late_pattern(
    "Path not in workspace|"
    # A call for which the CLI would ask the user at a terminal. With the permissions `edit`, `rm
    # -rf` is such a call.
    "Tool execution for .{1,99} requires user confirmation|"
    # Tools that the permissions level removes. Only real tools are listed, because a call of a tool
    # that never existed is not a denial.
    r'Tool "(run_shell_command|write_file|replace|web_fetch|google_web_search|save_memory)" not '
    r"found"
)
"""Pattern of the first words in the error for a call that was not allowed."""
_ASKABLE = late_pattern(
    r"Tool execution denied by policy\.|Tool execution for .{1,99} requires user confirmation|"
    r"This call needs a permission that nobody has given\."
)
"""Pattern of the start of the error for a call that was denied, but that a person can allow. The
first two alternatives are texts of the CLI. The last one is a text of `gemini_bridge`."""
_ARGUMENTS = ("command", "file_path", "dir_path", "pattern", "query", "prompt", "url", "name")


def parse(line: bytes) -> Sequence[AgentEvent]:
    """Return the events of one line of output. Never raise; an unknown line becomes an
    `Unrecognised` event."""
    if not line.strip():
        return ()
    found = json_lines.read(line) or {}
    match found.get("type"):
        case "init":
            return (
                SessionSeen(
                    json_lines.text(found.get("session_id"), SUMMARY),
                    model=json_lines.text(found.get("model"), SUMMARY),
                ),
            )
        case "message":
            return _message(found)
        case "tool_use":
            key, name = (
                json_lines.text(found.get("tool_id"), SUMMARY),
                json_lines.text(found.get("tool_name"), SUMMARY),
            )
            given = found.get("parameters")
            started = ToolStarted(key, name, main_argument(given, _ARGUMENTS))
            if name == _ASKS:
                return (started, question(key, given))
            return (started,)
        case "tool_result":
            output = json_lines.text(found.get("output"), SUMMARY) or json_lines.text(
                json_lines.part(found, "error", "message"), SUMMARY
            )
            ended = ToolEnded(
                json_lines.text(found.get("tool_id"), SUMMARY),
                found.get("status") == "success",
                output,
            )
            error = json_lines.text(json_lines.part(found, "error", "type"))
            if error in _DENIED or _BARRED.match(output):
                return (ToolDenied(ended.tool_id, "", reason=output), ended)
            return (ended,)
        case "error":
            return _error(found)
        case "perdure_finish":
            return _finish(json_lines.text(found.get("reason"), SUMMARY))
        case "result":
            return _result(found)
        case _:
            return (Unrecognised(json_lines.text(line.decode("utf-8", "replace"))),)


def denied_calls(output: bytes) -> list[OpenCall]:
    """Return the calls in the output that the CLI or the bridge denied, and that a person can
    allow."""
    made: dict[str, OutputLine] = {}
    found = []
    for line in output.split(b"\n"):
        each = json_lines.read(line) if b'"tool_' in line else None
        key = json_lines.text(json_lines.part(each, "tool_id"), SUMMARY)
        if each and each.get("type") == "tool_use" and isinstance(each.get("parameters"), dict):
            made[key] = each
        elif key in made and _ASKABLE.match(json_lines.text(json_lines.part(each, "output"))):
            found.append(_open_call(made[key]))
    return found


def _open_call(used: OutputLine) -> OpenCall:
    given = used["parameters"]
    return OpenCall(
        call=json_lines.text(used.get("tool_id"), SUMMARY),
        tool=json_lines.text(used.get("tool_name"), SUMMARY),
        input=json.dumps(given, ensure_ascii=False).encode("utf-8", "replace").decode(),
        summary=main_argument(given, _ARGUMENTS),
    )


def _finish(reason: str) -> Sequence[AgentEvent]:
    """Return a `ReplyCut` event if the model's answer was cut off, else nothing. `reason` tells why
    the answer ended; `gemini_keep.mjs` prints it."""
    if reason in _ENDED:
        return ()
    return (ReplyCut(_REASONS.get(reason, reason)),)


def _message(found: OutputLine) -> Sequence[AgentEvent]:
    if found.get("role") == "user":
        return (TurnStarted(),)
    said = json_lines.text(found.get("content"))
    if not said:
        return ()
    return (SaidPart(said) if found.get("delta") is True else Said(said),)


def _error(found: OutputLine) -> Sequence[AgentEvent]:
    """Return the end of a failed turn, or nothing for a warning. The result that follows has no
    message for this error, and after too many turns it even reports `success`."""
    if found.get("severity") != "error":
        return ()
    return (TurnEnded(ok=False, text=json_lines.text(found.get("message"))),)


def _result(found: OutputLine) -> Sequence[AgentEvent]:
    stats, error = found.get("stats"), found.get("error")
    carried = json_lines.whole(json_lines.part(stats, "input_tokens"))
    # `output_tokens` does not include the model's thoughts, which cost as much as output. Only
    # `total_tokens` includes them.
    output = json_lines.whole(json_lines.part(stats, "output_tokens"))
    total = json_lines.whole(json_lines.part(stats, "total_tokens"))
    usage = Usage(
        input=carried,
        output=max(output, total - carried),
        cached=json_lines.whole(json_lines.part(stats, "cached")),
    )
    name = json_lines.text(json_lines.part(error, "type"), SUMMARY)
    ended = TurnEnded(
        ok=found.get("status") == "success",
        text=json_lines.text(json_lines.part(error, "message")),
        turns=1,
        facts={"error_type": name} if name else {},
    )
    return (UsageSeen(usage), ended)
