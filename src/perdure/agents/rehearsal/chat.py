"""Speaks the Chat Completions API, which OpenAI introduced and many services offer, as OpenCode
1.18.33 uses it through `@ai-sdk/openai-compatible`."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping
from itertools import chain

from perdure.agents.rehearsal.conversation import (
    ChatMessage,
    PlannedReply,
    Refusal,
    ReplyBody,
    RequestBody,
    ScriptedConversation,
    Step,
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
    TokenCounts,
    content,
)

_SHELLS = ("bash", "shell")

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
    "This model's maximum context length is 128000 tokens. However, your messages resulted in "
    "205000 tokens."
)


class Chat:
    """Implements `Dialect` for POST /v1/chat/completions."""

    name = "chat"

    def conversation(self, headers: Mapping[str, str], body: RequestBody) -> ScriptedConversation:
        """Return the content of the request as a `ScriptedConversation`. OpenCode sends requests
        without tools only for titles and summaries, so such a request is a side request."""
        functions = [tool.get("function") for tool in items(body, "tools")]
        tools = []
        for each in functions:
            if isinstance(each, dict):
                tools.append(str(each.get("name", "")))
        return ScriptedConversation(
            tuple(chain.from_iterable(map(_messages, items(body, "messages")))),
            session=headers.get("x-session-affinity") or headers.get("x-opencode-session") or "",
            side="opencode/" in headers.get("user-agent", "") and not tools,
            streamed=bool(body.get("stream")),
            model=str(body.get("model", "")),
            shell=next((name for name in _SHELLS if name in tools), _SHELLS[0]),
        )

    def stream(self, cue: PlannedReply, conversation: ScriptedConversation) -> Iterator[Step]:
        head = _head(conversation.model, "chat.completion.chunk")
        yield _chunk(head, {"role": "assistant", "content": ""})
        calls, pace, said = 0, 0.0, False
        for action in cue.actions:
            if isinstance(action, Slow):
                pace += action.seconds
            elif isinstance(action, Say):
                say, said = Say(f"\n{action.text}") if said else action, True
                for piece, pause in paced(say, pace):
                    yield _chunk(head, {"content": piece})
                    yield pause
                pace = 0.0
            elif isinstance(action, RunTool):
                yield Slow(pace)
                yield _chunk(
                    head, {"tool_calls": [{"index": calls, **_call(conversation, action)}]}
                )
                calls, pace = calls + 1, 0.0
            elif isinstance(action, Hold):
                yield Slow(pace)
                yield action
                pace = 0.0
            elif isinstance(action, (Hang, Cut)):
                yield Slow(pace)
                yield action
                return
        yield Slow(pace)
        yield _chunk(head, {}, _stop(cue))
        yield _line({**head, "choices": [], "usage": _usage(cue.tokens)})
        yield cue.tokens
        yield b"data: [DONE]\n\n"

    def whole(self, cue: PlannedReply, conversation: ScriptedConversation) -> ReplyBody:
        found = content(cue.actions)
        said = "\n".join(each.text for each in found if isinstance(each, Say))
        message: dict[str, object] = {"role": "assistant", "content": said or None}
        calls = [_call(conversation, each) for each in found if isinstance(each, RunTool)]
        if calls:
            message["tool_calls"] = calls
        choice = {"index": 0, "message": message, "finish_reason": _stop(cue)}
        return {
            **_head(conversation.model, "chat.completion"),
            "choices": [choice],
            "usage": _usage(cue.tokens),
        }

    def refusal(self, failure: Fail | Limit, now: float) -> Refusal:
        """Return the API's error response. The API has no field for the end of a usage limit, so
        the waiting time is in the header `retry-after`."""
        if isinstance(failure, Limit):
            error = {
                "message": "The usage limit has been reached",
                "type": "insufficient_quota",
                "param": None,
                "code": "usage_limit",
            }
            return Refusal(429, {"error": error}, {"retry-after": str(int(failure.seconds))})
        kind, code, sentence = _ERRORS.get(
            failure.status,
            ("server_error", None, f"The rehearsal failed with status {failure.status}."),
        )
        if failure.full:
            code, sentence = "context_length_exceeded", _FULL
        return Refusal(
            failure.status,
            {
                "error": {
                    "message": failure.words or sentence,
                    "type": kind,
                    "param": None,
                    "code": code,
                }
            },
        )


def _head(model: str, kind: str) -> dict[str, object]:
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex[:24]}",
        "object": kind,
        "created": 1767225600,
        "model": model,
    }


def _line(payload: Mapping[str, object]) -> bytes:
    return f"data: {json.dumps(payload)}\n\n".encode()


def _chunk(
    head: Mapping[str, object], delta: Mapping[str, object], finish: str | None = None
) -> bytes:
    return _line({**head, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})


def _usage(tokens: TokenCounts) -> dict[str, object]:
    counts = {
        "prompt_tokens": tokens.input,
        "completion_tokens": tokens.output,
        "total_tokens": tokens.input + tokens.output,
    }
    return {**counts, "prompt_tokens_details": {"cached_tokens": tokens.cached}}


def _call(conversation: ScriptedConversation, run: RunTool) -> dict[str, object]:
    """Return the tool call for a `run` or `call` line. A call of the shell tool gets a timeout of
    ten minutes (in ms), because the tool's default is only two minutes."""
    shell = {"command": run.command, "description": "A scripted command", "timeout": 600_000}
    given = run.arguments if run.tool else shell
    function = {"name": run.tool or conversation.shell, "arguments": json.dumps(given)}
    return {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function}


def _stop(cue: PlannedReply) -> str:
    if cue.stop:
        return cue.stop
    return "tool_calls" if cue.runs_tool else "stop"


def _messages(entry: Mapping[str, object]) -> Iterator[ChatMessage]:
    role, text = entry.get("role"), _plain(entry.get("content"))
    if role == "tool":
        yield ChatMessage("tool_result", text, str(entry.get("tool_call_id", "")))
    elif role in ("user", "assistant"):
        if text.strip():
            yield ChatMessage(str(role), text)
        for call in items(entry, "tool_calls"):
            yield ChatMessage("tool_call", _call_text(call), str(call.get("id", "")))


def _plain(content: object) -> str:
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    lines = []
    for part in parts:
        if isinstance(part, dict) and "text" in part:
            lines.append(str(part["text"]))
    return "\n".join(lines)


def _call_text(call: Mapping[str, object]) -> str:
    function = call.get("function")
    if isinstance(function, dict):
        name, raw = (str(function.get("name", "")), function.get("arguments"))
    else:
        name, raw = ("", None)
    try:
        given = json.loads(raw or "{}")
    except (TypeError, ValueError):
        given = {}
    if name in _SHELLS and isinstance(given, dict) and "command" in given:
        return str(given["command"])
    return f"{name} {raw or ''}".strip()
