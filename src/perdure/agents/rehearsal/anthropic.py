"""Speaks the Messages API of Anthropic (version 2023-06-01), as Claude Code 2.1.329 uses it."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import TypeAlias

from msgspec.structs import replace

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
    TokenCounts,
    content,
)

Block: TypeAlias = Mapping[str, object]
"""One content block of a message: a text, a tool call or a tool result."""

_REMINDER = re.compile(r"\s*(<system-reminder>.*?</system-reminder>\s*)+", re.DOTALL)
_SUMMARY = "Your task is to create a detailed summary"
"""First words of the request with which Claude Code 2.1.329 asks for a summary, to compact a
conversation. If the reply has no `<summary>` block, the CLI asks again."""

_ERRORS = {
    400: ("invalid_request_error", "The request was refused by the rehearsal."),
    401: ("authentication_error", "invalid x-api-key"),
    403: (
        "permission_error",
        "Your API key does not have permission to use the specified resource.",
    ),
    404: ("not_found_error", "model: not found"),
    413: ("request_too_large", "Request exceeds the maximum size"),
    429: (
        "rate_limit_error",
        "This request would exceed your organization's rate limit. Please try again later.",
    ),
    500: ("api_error", "Internal server error"),
    529: ("overloaded_error", "Overloaded"),
}

_FULL = "prompt is too long: 205000 tokens > 200000 maximum"


class Anthropic:
    """Implements `Dialect` for POST /v1/messages."""

    name = "anthropic"

    def conversation(self, headers: Mapping[str, str], body: RequestBody) -> ScriptedConversation:
        messages = list(chain.from_iterable(map(_messages, items(body, "messages"))))
        tools = [str(tool.get("name", "")) for tool in items(body, "tools")]
        prompts = [message.text for message in messages if message.role == "user"]
        summary = bool(prompts) and _SUMMARY in prompts[-1]
        beside = "claude-cli" in headers.get("user-agent", "") and not tools
        return ScriptedConversation(
            tuple(messages),
            session=headers.get("x-claude-code-session-id") or _session(body),
            side=summary or beside,
            summary="<summary>\n{}\n</summary>" if summary else "",
            streamed=bool(body.get("stream")),
            model=str(body.get("model", "")),
            shell="Bash",
            added=tuple(chain.from_iterable(map(_added, items(body, "messages")))),
        )

    def stream(self, cue: PlannedReply, conversation: ScriptedConversation) -> Iterator[Step]:
        yield event(
            "message_start", {"message": _message(conversation.model, cue.tokens, [], None)}
        )
        yield replace(cue.tokens, output=1)
        yield event("ping", {})
        index, pace, text_open = 0, 0.0, False
        for action in cue.actions:
            if isinstance(action, Slow):
                pace += action.seconds
            elif isinstance(action, Say):
                if not text_open:
                    yield event(
                        "content_block_start",
                        {"index": index, "content_block": {"type": "text", "text": ""}},
                    )
                say, text_open = Say(f"\n{action.text}") if text_open else action, True
                for piece, pause in paced(say, pace):
                    yield event(
                        "content_block_delta",
                        {"index": index, "delta": {"type": "text_delta", "text": piece}},
                    )
                    yield pause
                pace = 0.0
            elif isinstance(action, RunTool):
                if text_open:
                    yield event("content_block_stop", {"index": index})
                    index, text_open = index + 1, False
                yield Slow(pace)
                yield from _tool_events(index, _tool_use(action))
                index, pace = index + 1, 0.0
            elif isinstance(action, Hold):
                yield Slow(pace)
                yield action
                pace = 0.0
            elif isinstance(action, (Hang, Cut)):
                yield Slow(pace)
                yield action
                return
        if text_open:
            yield event("content_block_stop", {"index": index})
        yield Slow(pace)
        yield event(
            "message_delta",
            {
                "delta": {"stop_reason": _stop(cue), "stop_sequence": None},
                "usage": {"output_tokens": cue.tokens.output},
            },
        )
        yield cue.tokens
        yield event("message_stop", {})

    def whole(self, cue: PlannedReply, conversation: ScriptedConversation) -> ReplyBody:
        blocks: list[Block] = []
        for each in content(cue.actions):
            blocks.append(
                {"type": "text", "text": each.text} if isinstance(each, Say) else _tool_use(each)
            )
        return _message(conversation.model, cue.tokens, blocks, _stop(cue))

    def refusal(self, failure: Fail | Limit, now: float) -> Refusal:
        status = 429 if isinstance(failure, Limit) else failure.status
        kind, sentence = _ERRORS.get(
            status, ("api_error", f"The rehearsal failed with status {status}.")
        )
        request = f"req_{uuid.uuid4().hex[:24]}"
        headers = {"request-id": request}
        if isinstance(failure, Limit):
            sentence = (
                "This request would exceed your account's rate limit. Please try again later."
            )
            headers |= _limit_headers(failure, now)
        elif failure.words:
            sentence = failure.words
        elif isinstance(failure, Fail) and failure.full:
            sentence = _FULL
        return Refusal(
            status,
            {"type": "error", "error": {"type": kind, "message": sentence}, "request_id": request},
            headers,
        )


def _limit_headers(limit: Limit, now: float) -> dict[str, str]:
    """Return the headers for a subscription whose five-hour window, or weekly window of one model,
    is used up. Claude Code 2.1.329 reads them only if it has a subscription's token. With an API
    key it prints the message of the body, which names no time."""
    claim = f"seven_day_{limit.model}" if limit.model else "five_hour"
    reset = str(int(now + limit.seconds))
    unified = {
        "status": "rejected",
        "reset": reset,
        "representative-claim": claim,
        "5h-status": "rejected",
        "5h-reset": reset,
        "5h-utilization": "1.0",
        "overage-status": "rejected",
        "overage-disabled-reason": "org_level_disabled",
    }
    headers = {f"anthropic-ratelimit-unified-{name}": text for name, text in unified.items()}
    return {**headers, "retry-after": str(int(limit.seconds))}


def _messages(raw: Mapping[str, object]) -> Iterator[ChatMessage]:
    role, content = raw.get("role"), raw.get("content")
    if role not in ("user", "assistant"):
        return
    blocks: Sequence[Block]
    if isinstance(content, str):
        blocks = [{"type": "text", "text": content}]
    else:
        blocks = items(raw, "content")
    for block in blocks:
        kind = block.get("type")
        if kind == "text":
            text = str(block.get("text", ""))
            if text.strip() and not _REMINDER.fullmatch(text):
                yield ChatMessage(str(role), text)
        elif kind == "tool_use":
            yield ChatMessage("tool_call", _call_text(block), str(block.get("id", "")))
        elif kind == "tool_result":
            yield ChatMessage(
                "tool_result", _result_text(block.get("content")), str(block.get("tool_use_id", ""))
            )


def _added(raw: Mapping[str, object]) -> Iterator[str]:
    """Yield those texts of a message that the CLI itself added. The function `_messages` leaves
    these texts out."""
    content = raw.get("content")
    if raw.get("role") == "system" and isinstance(content, str):
        yield content
        return
    for block in items(raw, "content"):
        text = str(block.get("text", ""))
        if raw.get("role") == "system" or (text.strip() and _REMINDER.fullmatch(text)):
            yield text


def _call_text(block: Block) -> str:
    given = block.get("input")
    if block.get("name") == "Bash" and isinstance(given, dict) and "command" in given:
        return str(given["command"])
    return f"{block.get('name')} {json.dumps(given)}"


def _result_text(content: object) -> str:
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    lines = []
    for part in parts:
        if isinstance(part, dict) and part.get("type") == "text":
            lines.append(str(part.get("text", "")))
    return "\n".join(lines)


def _session(body: RequestBody) -> str:
    metadata = body.get("metadata")
    try:
        if isinstance(metadata, dict):
            user = json.loads(metadata["user_id"])
        else:
            user = {}
        return str(user.get("session_id", ""))
    except (KeyError, TypeError, ValueError, AttributeError):
        return ""


def _message(
    model: str, tokens: TokenCounts, content: Sequence[Block], stop: str | None
) -> ReplyBody:
    usage = {
        "input_tokens": tokens.input,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": tokens.cached,
        "output_tokens": tokens.output if stop else 1,
        "service_tier": "standard",
    }
    head = {
        "id": f"msg_{uuid.uuid4().hex[:24]}",
        "type": "message",
        "role": "assistant",
        "model": model,
    }
    return {**head, "content": content, "stop_reason": stop, "stop_sequence": None, "usage": usage}


def _tool_use(run: RunTool) -> Block:
    # Set the timeout to ten minutes, the longest one that the tool accepts in 2.1.329.
    shell = {"command": run.command, "description": "A scripted command", "timeout": 600_000}
    return {
        "type": "tool_use",
        "id": f"toolu_{uuid.uuid4().hex[:24]}",
        "name": run.tool or "Bash",
        "input": run.arguments if run.tool else shell,
    }


def _tool_events(index: int, block: Block) -> Iterator[bytes]:
    yield event("content_block_start", {"index": index, "content_block": {**block, "input": {}}})
    delta = {"type": "input_json_delta", "partial_json": json.dumps(block["input"])}
    yield event("content_block_delta", {"index": index, "delta": delta})
    yield event("content_block_stop", {"index": index})


def _stop(cue: PlannedReply) -> str:
    if cue.stop:
        return cue.stop
    return "tool_use" if cue.runs_tool else "end_turn"
