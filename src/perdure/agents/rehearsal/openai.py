"""Speaks the Responses API of OpenAI, as Codex CLI 0.169.0 uses it (`wire_api = "responses"`)."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, TypeAlias

from perdure.agents.rehearsal.conversation import (
    ChatMessage,
    PlannedReply,
    Refusal,
    ReplyBody,
    RequestBody,
    ScriptedConversation,
    Step,
    event,
    items,
    paced,
)
from perdure.agents.rehearsal.script import (
    Cut,
    Fail,
    Hang,
    Hold,
    Limit,
    RunTool,
    Say,
    Slow,
    content,
)

OutputItem: TypeAlias = Mapping[str, object]
"""One item in the output of the model: a message or a tool call."""

_OWN = re.compile(
    r"\s*(<(environment_context|user_instructions|permissions|skill|turn_aborted"
    r"|user_shell_command)\b|# AGENTS\.md instructions)"
)
"""Pattern of the first words in a user message that Codex itself writes."""

_SUMMARY = "You are performing a CONTEXT CHECKPOINT COMPACTION"
_RUNNING = re.compile(r"^Process running with session ID (\d+)", re.MULTILINE)
_EXITED = re.compile(r"^Process exited with code", re.MULTILINE)
_SPAWNED = "collab_spawn"
"""Value of the header `x-openai-subagent` for a subagent that the model began, in Codex 0.169.0.
Other values mean that the request belongs to Codex's own work, such as a compaction or a review."""
_SHELLS = ("exec_command", "shell_command", "shell", "container.exec", "local_shell")

_ERRORS = {
    400: ("invalid_request_error", None, "The request was refused by the rehearsal."),
    401: ("invalid_request_error", "invalid_api_key", "Incorrect API key provided."),
    403: (
        "invalid_request_error",
        "unsupported_country_region_territory",
        "Country, region, or territory not supported",
    ),
    404: (
        "invalid_request_error",
        "model_not_found",
        "The model does not exist or you do not have access to it.",
    ),
    429: (
        "requests",
        "rate_limit_exceeded",
        "Rate limit reached for requests. Please try again later.",
    ),
    500: (
        "server_error",
        None,
        "The server had an error while processing your request. Sorry about that!",
    ),
    503: ("server_error", None, "The server is currently overloaded. Please try again later."),
}

_FULL = (
    "Your input exceeds the context window of this model. Please adjust your input and try again."
)


class OpenAI:
    """Implements `Dialect` for POST /v1/responses."""

    name = "openai"

    def conversation(self, headers: Mapping[str, str], body: RequestBody) -> ScriptedConversation:
        entries: Sequence[Mapping[str, object]]
        given = body.get("input")
        if isinstance(given, str):
            entries = [{"role": "user", "content": given}]
        else:
            entries = items(body, "input")
        messages = list(chain.from_iterable(map(_messages, entries)))
        running = _running(entries)
        prompts = [message.text for message in messages if message.role == "user"]
        summary = bool(prompts) and prompts[-1].lstrip().startswith(_SUMMARY)
        if messages and messages[-1].role == "tool_result":
            last = messages[-1].call
        else:
            last = ""
        return ScriptedConversation(
            tuple(messages),
            session=headers.get("thread-id")
            or headers.get("session-id")
            or str(body.get("prompt_cache_key") or ""),
            summary="{}" if summary else "",
            side=summary or headers.get("x-openai-subagent", _SPAWNED) != _SPAWNED,
            streamed=bool(body.get("stream")),
            model=str(body.get("model", "")),
            shell=_shell(items(body, "tools")),
            waiting=next((number for number, calls in running.items() if last in calls), ""),
            unfinished=frozenset(chain.from_iterable(running.values())),
        )

    def stream(self, cue: PlannedReply, conversation: ScriptedConversation) -> Iterator[Step]:
        name = _id("resp")
        yield event(
            "response.created",
            {"response": _response(name, conversation.model, None, [])},
        )
        output: list[OutputItem] = []
        text: _Text | None = None
        pace = 0.0
        if cue.waits:
            output.append(_wait(cue.waits))
            yield from _call_events(0, output[0])
        for action in cue.actions:
            if isinstance(action, Slow):
                pace += action.seconds
            elif isinstance(action, Say):
                say = Say(f"\n{action.text}") if text else action
                if text is None:
                    text = _Text(len(output))
                    yield from text.begin()
                for piece, pause in paced(say, pace):
                    yield text.delta(piece)
                    yield pause
                pace = 0.0
            elif isinstance(action, RunTool):
                if text is not None:
                    yield from text.end(output)
                    text = None
                yield Slow(pace)
                output.append(_call(conversation, action))
                yield from _call_events(len(output) - 1, output[-1])
                pace = 0.0
            elif isinstance(action, Hold):
                yield Slow(pace)
                yield action
                pace = 0.0
            elif isinstance(action, (Hang, Cut)):
                yield Slow(pace)
                yield action
                return
        if text is not None:
            yield from text.end(output)
        yield Slow(pace)
        ended = _response(name, conversation.model, cue, output)
        yield event(f"response.{ended['status']}", {"response": ended})
        yield cue.tokens

    def whole(self, cue: PlannedReply, conversation: ScriptedConversation) -> ReplyBody:
        output = [_wait(cue.waits)] if cue.waits else []
        for each in content(cue.actions):
            output.append(
                _message_item(_id("msg"), each.text)
                if isinstance(each, Say)
                else _call(conversation, each)
            )
        return _response(_id("resp"), conversation.model, cue, output)

    def refusal(self, failure: Fail | Limit, now: float) -> Refusal:
        if isinstance(failure, Limit):
            error = {
                "type": "usage_limit_reached",
                "message": "The usage limit has been reached",
                "plan_type": "pro",
            }
            times = {
                "resets_at": int(now + failure.seconds),
                "resets_in_seconds": int(failure.seconds),
            }
            used = {"x-codex-primary-used-percent": "100", "x-codex-primary-window-minutes": "300"}
            headers = {**used, "x-codex-primary-reset-at": str(times["resets_at"])}
            return Refusal(429, {"error": {**error, **times}}, headers)
        kind, code, sentence = _ERRORS.get(
            failure.status,
            ("server_error", None, f"The rehearsal failed with status {failure.status}."),
        )
        if failure.full:
            code, sentence = "context_length_exceeded", _FULL
        body = {
            "error": {
                "message": failure.words or sentence,
                "type": kind,
                "param": None,
                "code": code,
            }
        }
        return Refusal(failure.status, body, {"x-request-id": _id("req")})


class _Text:
    """Creates the stream events of one message of the model."""

    def __init__(self, index: int) -> None:
        self.id = _id("msg")
        self.index = index
        self.text = ""

    def begin(self) -> Iterator[bytes]:
        item = {**_message_item(self.id, ""), "content": [], "status": "in_progress"}
        yield event("response.output_item.added", {"output_index": self.index, "item": item})
        yield event("response.content_part.added", {**self._place(), "part": _part("")})

    def delta(self, piece: str) -> bytes:
        self.text += piece
        return event("response.output_text.delta", {**self._place(), "delta": piece})

    def end(self, output: list[OutputItem]) -> Iterator[bytes]:
        item = _message_item(self.id, self.text)
        output.append(item)
        yield event("response.output_text.done", {**self._place(), "text": self.text})
        yield event("response.content_part.done", {**self._place(), "part": _part(self.text)})
        yield event("response.output_item.done", {"output_index": self.index, "item": item})

    def _place(self) -> dict[str, object]:
        return {"item_id": self.id, "output_index": self.index, "content_index": 0}


def _part(text: str) -> dict[str, object]:
    return {"type": "output_text", "text": text, "annotations": []}


def _message_item(id: str, text: str) -> OutputItem:
    return {
        "type": "message",
        "id": id,
        "role": "assistant",
        "status": "completed",
        "content": [_part(text)],
    }


def _response(
    id: str, model: str, cue: PlannedReply | None, output: Sequence[OutputItem]
) -> ReplyBody:
    """Return the response object. Without a `cue` its status is in progress. With a `cue` the
    status is complete, or incomplete if the script has a `stop` line."""
    usage, status, reason = None, "in_progress", None
    if cue is not None:
        tokens, status = cue.tokens, "completed"
        if cue.stop:
            status, reason = "incomplete", {"reason": cue.stop}
        usage = {
            "input_tokens": tokens.input,
            "input_tokens_details": {"cached_tokens": tokens.cached},
            "output_tokens": tokens.output,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": tokens.input + tokens.output,
        }
    return {
        "id": id,
        "object": "response",
        "status": status,
        "incomplete_details": reason,
        "model": model,
        "output": output,
        "usage": usage,
    }


def _shell(tools: Iterable[Mapping[str, object]]) -> str:
    names = {str(tool.get("name") or tool.get("type", "")) for tool in tools}
    for name in _SHELLS:
        if name in names:
            return name
    return _SHELLS[0]


def _call(conversation: ScriptedConversation, run: RunTool) -> OutputItem:
    """Return the tool call for a `run` or `call` line. A command becomes a call of the shell tool
    that the request offers."""
    if run.tool:
        namespace, _, name = run.tool.rpartition(".")
        made = _function(name, run.arguments)
        if namespace:
            made["namespace"] = namespace
        return made
    if conversation.shell == "exec_command":
        # In 0.169.0 the tool waits for at most 30 s. For a longer command, `_wait` makes further
        # calls.
        return _function("exec_command", {"cmd": run.command, "yield_time_ms": 30_000})
    if conversation.shell == "shell_command":
        return _function("shell_command", {"command": run.command, "timeout_ms": 600_000})
    argv = ["bash", "-lc", run.command]
    if conversation.shell == "local_shell":
        action = {"type": "exec", "command": argv, "timeout_ms": 600_000, "env": {}}
        return {
            "type": "local_shell_call",
            "id": _id("lsh"),
            "call_id": _id("call"),
            "status": "completed",
            "action": action,
        }
    return _function(conversation.shell, {"command": argv, "timeout_ms": 600_000})


def _wait(number: str) -> OutputItem:
    """Return a tool call that waits further for a running command. Such a call comes from no
    script. It is sent if a command runs longer than the shell tool waits."""
    return _function(
        "write_stdin", {"session_id": int(number), "chars": "", "yield_time_ms": 300_000}
    )


def _function(name: str, given: Mapping[str, object]) -> dict[str, object]:
    head = {"type": "function_call", "id": _id("fc"), "call_id": _id("call"), "status": "completed"}
    return {**head, "name": name, "arguments": json.dumps(given)}


def _id(prefix: str) -> str:
    return f"{prefix}_{uuid.uuid4().hex[:24]}"


def _call_events(index: int, call: OutputItem) -> Iterator[bytes]:
    begun = {**call, "status": "in_progress"}
    if call["type"] == "function_call":
        begun["arguments"] = ""
    yield event("response.output_item.added", {"output_index": index, "item": begun})
    if call["type"] == "function_call":
        place = {"item_id": call["id"], "output_index": index}
        yield event("response.function_call_arguments.delta", {**place, "delta": call["arguments"]})
        yield event(
            "response.function_call_arguments.done", {**place, "arguments": call["arguments"]}
        )
    yield event("response.output_item.done", {"output_index": index, "item": call})


def _messages(entry: Mapping[str, object]) -> Iterator[ChatMessage]:
    kind = entry.get("type", "message")
    if kind == "message" and entry.get("role") in ("user", "assistant"):
        text = _plain(entry.get("content"))
        if text.strip() and not (entry["role"] == "user" and _OWN.match(text)):
            yield ChatMessage(str(entry["role"]), text)
    elif kind in ("function_call", "custom_tool_call", "local_shell_call"):
        yield ChatMessage("tool_call", _call_text(entry), str(entry.get("call_id", "")))
    elif kind in ("function_call_output", "custom_tool_call_output", "local_shell_call_output"):
        yield ChatMessage("tool_result", _plain(entry.get("output")), str(entry.get("call_id", "")))


def _plain(content: object) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, dict):
        return _plain(content.get("content"))
    parts = content if isinstance(content, list) else []
    lines = []
    for part in parts:
        if isinstance(part, dict) and "text" in part:
            lines.append(str(part["text"]))
    return "\n".join(lines)


def _given(entry: Mapping[str, object]) -> dict[str, object]:
    raw: Any = entry.get("arguments") or "{}"
    try:
        given = json.loads(raw)
    except ValueError:
        return {}
    if isinstance(given, dict):
        return given
    return {}


def _call_text(entry: Mapping[str, object]) -> str:
    action = entry.get("action")
    given = action if isinstance(action, dict) else _given(entry)
    command = given.get("cmd") or given.get("command")
    if isinstance(command, list) and command:
        return str(command[-1])
    if command and (entry.get("name") or "local_shell") in _SHELLS:
        return str(command)
    name = ".".join(str(part) for part in (entry.get("namespace"), entry.get("name")) if part)
    return f"{name} {entry.get('arguments') or entry.get('input') or ''}".strip()


def _running(entries: Iterable[Mapping[str, object]]) -> dict[str, set[str]]:
    """Return the commands that are still running, by the command's number. Each value is the set of
    the ids of all calls that started this command or waited for it."""
    running: dict[str, set[str]] = {}
    waits: dict[str, str] = {}
    for entry in entries:
        call = str(entry.get("call_id", ""))
        if entry.get("type") == "function_call" and entry.get("name") == "write_stdin":
            waits[call] = str(_given(entry).get("session_id", ""))
        elif entry.get("type") == "function_call_output":
            text = _plain(entry.get("output")).partition("\nOutput:")[0]
            found = _RUNNING.search(text)
            if found:
                running.setdefault(found[1], set()).add(call)
            elif call in waits and _EXITED.search(text):
                running.pop(waits[call], None)
    return running
