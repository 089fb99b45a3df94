"""Converts Claude Code's `stream-json` lines into events. Pure.

Observed with 2.1.329 (`claude -p --output-format stream-json --verbose`). One process may print
several pairs of `init` and `result`, because a background task that ends starts another turn. Each
`result` counts the usage since the previous `result`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from msgspec.structs import replace

from perdure.agents.claude import transcript
from perdure.agents.shared import json_lines
from perdure.agents.shared.calls import last_word, main_argument, question
from perdure.agents.shared.json_lines import OutputLine
from perdure.model import Reply, Usage
from perdure.model.events import (
    AgentEvent,
    ContextSeen,
    HelpersSeen,
    LimitSeen,
    ReplyCut,
    ReplySeen,
    RequestSeen,
    RetrySeen,
    Said,
    SessionSeen,
    ToolDenied,
    ToolEnded,
    ToolStarted,
    TurnEnded,
    TurnStarted,
    Unrecognised,
    UsageSeen,
    WritesLost,
)
from perdure.model.requests import OpenCall
from perdure.patterns import late_pattern

SUMMARY = 500
HOOK_FILE = 1 << 16
"""Maximum number of characters that are read from a file written by the hook."""
_PIECE = b'{"type":"stream_event"'
_COUNTS = (b'"message_start"', b'"message_delta"')
"""Types of stream events that report the usage of a reply. The thousands of other stream events are
fragments of the reply's text, which a later line repeats in full."""
_ARGUMENTS = (
    "command",
    "file_path",
    "notebook_path",
    "pattern",
    "url",
    "query",
    "description",
    "prompt",
    "skill",
)
_FACTS = (
    "subtype",
    "terminal_reason",
    "api_error_status",
    "api_error_type",
    "api_error",
    "stop_reason",
    "startup_failure_reason",
    "result_index",
)
_EXIT_CODE = late_pattern(r"Exit code (\d{1,3})\b")
"""Pattern of the first words in the result of a failed command. The result of a successful command
contains no exit code."""
_COMMAND = "local_bash"
"""Type of a background task that is a shell command. Tasks of all other types are helpers, such as
subagents."""
_BARRED = late_pattern(
    r"<tool_use_error>Error: No such tool available: "
    r"(Bash|Edit|NotebookEdit|Task|WebFetch|WebSearch|Write)\b"
)
"""Pattern of the result of a call to a tool that the permissions level removed. The pattern lists
only real tools, because a call to a tool that never existed is not a denial."""
_LIMIT_HIT = "Output token limit hit"
"""First words of the prompt that 2.1.329 itself sends after an answer was cut off."""
_QUIET = frozenset(
    {
        "command_lifecycle",
        "control_request",
        "control_response",
        "transcript_mirror",
        "prompt_suggestion",
    }
)
"""Known types of lines that tell nothing about the attempt, so they become no event. The same
applies to lines of the type `system` with a subtype that the function `_system` does not handle."""


def parse(line: bytes) -> Sequence[AgentEvent]:
    """Return the events of one line of output. Never raise; an unknown line becomes an
    `Unrecognised` event."""
    if not line.strip():
        return ()
    if line.startswith(_PIECE) and not any(mark in line for mark in _COUNTS):
        return ()
    found = json_lines.read(line)
    if found is None:
        return (Unrecognised(json_lines.text(line.decode("utf-8", "replace"))),)
    match found.get("type"):
        case "system":
            return _system(found)
        case "assistant":
            return tuple(_assistant_message(found))
        case "user":
            return (*_retried_reply(found), *_tools_ended(found))
        case "result":
            return _result(found)
        case "stream_event":
            return _partial_usage(found)
        case "rate_limit_event":
            return _limit(found)
        case str() as name if name in _QUIET:
            return ()
        case _:
            return (Unrecognised(json_lines.text(line.decode("utf-8", "replace"))),)


def _system(found: OutputLine) -> Sequence[AgentEvent]:
    match found.get("subtype"):
        case "init":
            version, model = (
                json_lines.text(found.get("claude_code_version"), SUMMARY),
                json_lines.text(found.get("model"), SUMMARY),
            )
            return (
                SessionSeen(json_lines.text(found.get("session_id"), SUMMARY), version, model),
                TurnStarted(),
            )
        case "api_retry":
            status = found.get("error_status")
            return (
                RetrySeen(
                    json_lines.whole(status) if status is not None else None,
                    json_lines.text(found.get("error"), SUMMARY),
                ),
            )
        case "status" if found.get("status") == "requesting":
            return (RequestSeen(),)
        case "compact_boundary":
            return (
                ContextSeen(
                    json_lines.whole(json_lines.part(found, "compact_metadata", "post_tokens")),
                    compacted=True,
                ),
            )
        case "background_tasks_changed":
            tasks = json_lines.items(found.get("tasks"))
            return (HelpersSeen(sum(task.get("task_type") != _COMMAND for task in tasks)),)
        case "session_writes_lost":
            told = found.get("lost")
            names = told if isinstance(told, list) else []
            lost = ", ".join(what for what in names if isinstance(what, str))
            return (
                WritesLost(
                    json_lines.text(
                        f"{json_lines.text(found.get('error_code'))} {lost}".strip(), SUMMARY
                    )
                ),
            )
        case _:
            return ()


def _assistant_message(found: OutputLine) -> Iterator[AgentEvent]:
    """Yield the events of an assistant line. The CLI prints an API error like text of the agent.
    Such an error yields nothing here, because the result line repeats it."""
    if found.get("is_api_error_message") is True or found.get("error") is not None:
        return
    if (reply := transcript.reply(found.get("message"))) is not None:
        yield ReplySeen(reply)
    if not found.get("parent_tool_use_id") and (carried := transcript.carried_by(found)):
        yield ContextSeen(
            carried, model=json_lines.text(json_lines.part(found, "message", "model"), SUMMARY)
        )
    aside = bool(found.get("parent_tool_use_id"))
    for block in json_lines.items(json_lines.part(found, "message", "content")):
        if block.get("type") == "text" and (said := json_lines.text(block.get("text"))):
            yield Said(said, aside)
        elif block.get("type") == "tool_use":
            name = json_lines.text(block.get("name"), SUMMARY)
            tool_id = json_lines.text(block.get("id"), SUMMARY)
            yield ToolStarted(tool_id, name, main_argument(block.get("input"), _ARGUMENTS), aside)
            if name == "AskUserQuestion":
                yield question(tool_id, block.get("input"))


def _retried_reply(found: OutputLine) -> Iterator[AgentEvent]:
    """Yield a `ReplyCut` event if the line is a prompt that the CLI itself sent because the model's
    answer was refused or cut off. Otherwise yield nothing."""
    if found.get("isSynthetic") is not True:
        return
    said = []
    for block in json_lines.items(json_lines.part(found, "message", "content")):
        said.append(json_lines.text(block.get("text"), SUMMARY))
    if isinstance(found.get("refused_message_id"), str):
        yield ReplyCut("refusal")
    elif any(words.startswith(_LIMIT_HIT) for words in said):
        yield ReplyCut("max_tokens")


def _partial_usage(found: OutputLine) -> Sequence[AgentEvent]:
    """Return an event with the known part of a reply's usage: the input when the reply begins, the
    output when it ends. Return nothing if the line reports no usage."""
    event = found.get("event")
    begins = json_lines.part(event, "type") == "message_start"
    reply = transcript.reply(json_lines.part(event, "message") if begins else event)
    if reply is None:
        return ()
    key = reply.id or json_lines.text(found.get("api_message_id"), SUMMARY)
    ends = json_lines.part(event, "type") == "message_delta"
    counted = Reply(
        id=key,
        usage=reply.usage,
        model=reply.model,
        hour=reply.hour,
        begins=begins,
        ends=ends,
    )
    return (ReplySeen(counted),)


def _decisions(found: OutputLine) -> dict[str, str]:
    """Return what rejected each rejected call (`hook` or `permissions`), by the call's id."""
    told = {}
    for meta in json_lines.items(found.get("tool_result_meta")):
        told[json_lines.text(meta.get("id"), SUMMARY)] = meta.get("permission_decision")
    result = {}
    for key, decision in told.items():
        if json_lines.part(decision, "decision") == "reject":
            result[key] = "hook" if json_lines.part(decision, "source") == "hook" else "permissions"
    return result


def _tools_ended(found: OutputLine) -> Iterator[AgentEvent]:
    rejected = _decisions(found)
    for block in json_lines.items(json_lines.part(found, "message", "content")):
        if block.get("type") == "tool_result":
            content = block.get("content")
            if isinstance(content, str):
                output = content
            else:
                output = json_lines.joined_texts(content)
            tool_id = json_lines.text(block.get("tool_use_id"), SUMMARY)
            ok = block.get("is_error") is not True
            aside = bool(found.get("parent_tool_use_id"))
            told = None if ok else _EXIT_CODE.match(output)
            code = int(told[1]) if told else None
            if tool_id in rejected or _BARRED.match(output):
                by, reason = rejected.get(tool_id, "permissions"), json_lines.text(output, SUMMARY)
                yield ToolDenied(tool_id, "", by=by, reason=reason, aside=aside)
            yield ToolEnded(tool_id, ok, json_lines.text(output, SUMMARY), aside, code)


def _limit(found: OutputLine) -> Sequence[AgentEvent]:
    """Return a `LimitSeen` event if the usage limit was reached. Return nothing for the warning
    that the limit is near (`allowed_warning`)."""
    limit = found.get("rate_limit_info")
    if json_lines.part(limit, "status") != "rejected":
        return ()
    until = json_lines.whole(json_lines.part(limit, "resetsAt")) * 1000
    return (
        LimitSeen(
            json_lines.text(json_lines.part(limit, "rateLimitType"), SUMMARY) or "usage limit",
            until or None,
        ),
    )


def _result(found: OutputLine) -> Sequence[AgentEvent]:
    turns = json_lines.whole(found.get("num_turns"))
    told = found.get("errors")
    if isinstance(told, list):
        errors = [json_lines.text(error) for error in told if isinstance(error, str)]
    else:
        errors = []
    facts = {}
    for name in _FACTS:
        if isinstance(found.get(name), (str, int)):
            facts[name] = json_lines.text(str(found[name]), SUMMARY)
    ended = TurnEnded(
        ok=found.get("is_error") is False and found.get("subtype") == "success",
        text=json_lines.text(found.get("result")) or json_lines.text("\n".join(errors)),
        turns=turns,
        facts=facts,
    )
    if not turns:
        return (ended,)
    return (
        *_unrun(found),
        SessionSeen(json_lines.text(found.get("session_id"), SUMMARY)),
        *_worded(found),
        *_windows(found),
        UsageSeen(_usage(found)),
        ended,
    )


def _unrun(found: OutputLine) -> Iterator[AgentEvent]:
    """Yield a `ToolDenied` event for each call that the result lists as not run. In some versions
    only the result has this information."""
    for denial in json_lines.items(found.get("permission_denials")):
        yield _not_run(denial, "tool_name", "tool_use_id", "tool_input")
    deferred = found.get("deferred_tool_use")
    if isinstance(deferred, dict):
        yield _not_run(deferred, "name", "id", "input", deferred=True)


def _not_run(
    call: Mapping[str, object], name: str, key: str, given: str, *, deferred: bool = False
) -> ToolDenied:
    return ToolDenied(
        json_lines.text(call.get(key), SUMMARY),
        json_lines.text(call.get(name), SUMMARY),
        main_argument(call.get(given), _ARGUMENTS),
        by="hook" if deferred else "permissions",
        deferred=deferred,
    )


def open_calls(output: bytes, directory: Path) -> list[OpenCall]:
    """Return the calls that the newest result in the output reports as denied, and the deferred
    call if perdure's own hook deferred it. That hook writes the ids of the calls that it defers
    into the file `parked` in `directory`. A call that a hook of the repository deferred is not in
    that file, so it is not returned."""
    results = [line for line in output.split(b"\n") if b'"type":"result"' in line]
    found = json_lines.read(results[-1]) if results else None
    if found is None or found.get("type") != "result":
        return []
    calls = []
    for denial in json_lines.items(found.get("permission_denials")):
        calls.append(_open_call(denial, "tool_name", "tool_use_id", "tool_input"))
    deferred = found.get("deferred_tool_use")
    if isinstance(deferred, dict) and deferred.get("id") in hook_words(directory, "parked"):
        calls.append(_open_call(deferred, "name", "id", "input", parked=True))
    return calls


def hook_words(directory: Path, name: str) -> list[str]:
    """Return the lines of the file `name` in the hook's directory. Empty if the file cannot be
    read, for example because it does not exist."""
    try:
        with (directory / name).open(encoding="utf-8", errors="replace") as file:
            return file.read(HOOK_FILE).splitlines()
    except OSError:
        return []


def _open_call(
    call: Mapping[str, object], name: str, key: str, given: str, *, parked: bool = False
) -> OpenCall:
    return OpenCall(
        call=json_lines.text(call.get(key), SUMMARY),
        tool=json_lines.text(call.get(name), SUMMARY),
        input=json.dumps(call.get(given), ensure_ascii=False),
        summary=main_argument(call.get(given), _ARGUMENTS),
        parked=parked,
    )


def _worded(found: OutputLine) -> Iterator[AgentEvent]:
    """Yield the agent's last word (its structured final answer) if the result contains one."""
    if (word := last_word(found.get("structured_output"))) is not None:
        yield word


def _windows(found: OutputLine) -> Sequence[AgentEvent]:
    """Return one event for each model, with the size of its context window. The models of subagents
    are included."""
    models = found.get("modelUsage")
    told = models.items() if isinstance(models, dict) else ()
    result = []
    for name, model in told:
        if size := json_lines.whole(json_lines.part(model, "contextWindow")):
            result.append(ContextSeen(window=size, model=json_lines.text(name, SUMMARY)))
    return tuple(result)


def _usage(found: OutputLine) -> Usage:
    """Return the usage of all models since the previous result. The field `usage` is not enough,
    because it lacks the requests that the CLI makes outside of the conversation. The API counts
    cached input separately; here the input includes it.

    Since some version after 2.1.240, `total_cost_usd` accumulates over resumes. So it is read only
    if the CLI is too old to report the usage since the previous result. In such an old version,
    `total_cost_usd` counts only the current process.
    """
    models = found.get("model_usage_since_last_result")
    if isinstance(models, dict) and models:
        return sum(map(_of_model, models.values()), Usage())
    usage = transcript.usage(found.get("usage"))
    return replace(usage, cost_usd=round(json_lines.dollars(found.get("total_cost_usd")), 6))


def _of_model(told: object) -> Usage:
    cached, written = (
        json_lines.whole(json_lines.part(told, "cacheReadInputTokens")),
        json_lines.whole(json_lines.part(told, "cacheCreationInputTokens")),
    )
    return Usage(
        input=json_lines.whole(json_lines.part(told, "inputTokens")) + cached + written,
        output=json_lines.whole(json_lines.part(told, "outputTokens")),
        cached=cached,
        cache_write=written,
        cost_usd=round(json_lines.dollars(json_lines.part(told, "costUSD")), 6),
    )
