"""Checks whether the real services would refuse a history. Without these checks, a resume against
the rehearsal would prove nothing. Called by the server if it is `strict`. Pure.

The messages are those of the services, because the CLIs and perdure's classifiers read them.
Anthropic's and OpenAI's rules are taken from their documentation and from reported errors
(claude-code#9346, #21726, #63147; codex "No tool output found"). Gemini has no rules, because
Gemini CLI 0.61.0 sends every tool result twice after a resume (gemini-cli#29365).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from perdure.agents.rehearsal.wire import RequestBody, items

IMAGE_LIMIT = 5 * 1024 * 1024
"""Maximum length of one image that Anthropic accepts, in base64 characters."""


def refusal(dialect: str, body: RequestBody) -> str:
    """Return the message with which the service would refuse the request (status 400). Empty if the
    service would accept it."""
    match dialect:
        case "anthropic":
            return _anthropic(body)
        case "openai":
            return _openai(items(body, "input"))
        case "chat":
            return _chat(items(body, "messages"))
        case _:
            return ""


def _anthropic(body: RequestBody) -> str:
    messages = []
    for message in items(body, "messages"):
        if message.get("role") in ("user", "assistant"):
            messages.append(message)
    calls: list[str] = []
    for at, message in enumerate(messages):
        blocks = items(message, "content")
        answered = []
        for block in blocks:
            if block.get("type") == "tool_result":
                answered.append(str(block.get("tool_use_id")))
        for each in answered:
            if each not in calls or answered.count(each) > 1:
                return (
                    f"messages.{at}: unexpected `tool_use_id` found in `tool_result` blocks: {each}"
                )
        if left := [call for call in calls if call not in answered]:
            return (
                f"messages.{at - 1}: `tool_use` ids were found without `tool_result` blocks "
                f"immediately after: {', '.join(left)}."
            )
        for number, block in enumerate(blocks):
            if wrong := _block(block):
                return f"messages.{at}.content.{number}{wrong}"
        calls = []
        for block in blocks:
            if block.get("type") == "tool_use":
                calls.append(str(block.get("id")))
    if calls:
        return (
            f"messages.{len(messages) - 1}: `tool_use` ids were found without `tool_result` blocks "
            "immediately after."
        )
    return ""


def _block(block: Mapping[str, object]) -> str:
    kind, source = block.get("type"), block.get("source")
    if kind == "text" and not str(block.get("text") or "").strip():
        return ": text content blocks must be non-empty"
    if kind == "tool_use" and not isinstance(block.get("input"), dict):
        return ".tool_use.input: Field required"
    if kind == "thinking" and not (block.get("signature") and block.get("thinking")):
        return ": Invalid `signature` in `thinking` block"
    if kind == "image" and isinstance(source, dict) and source.get("type") == "base64":
        size = len(str(source.get("data") or ""))
        if not size:
            return ".image.source.base64.data: image cannot be empty"
        if size > IMAGE_LIMIT:
            return (
                f".image.source.base64: image exceeds 5 MB maximum: {size} bytes > {IMAGE_LIMIT} "
                "bytes"
            )
    if kind == "tool_result":
        for each in items(block, "content"):
            if wrong := _block(each):
                return wrong
    return ""


def _openai(given: Iterable[Mapping[str, object]]) -> str:
    calls: set[str] = set()
    answered: set[str] = set()
    for item in given:
        call, kind = str(item.get("call_id")), str(item.get("type"))
        if kind.endswith("_call_output"):
            if call not in calls:
                return f"No tool call found for function call output with call_id {call}."
            if call in answered:
                return f"Duplicate item found: function call output with call_id {call}."
            answered.add(call)
        elif kind in ("function_call", "custom_tool_call"):
            calls.add(call)
    left = sorted(calls - answered)
    if left:
        return f"No tool output found for function call {left[0]}."
    return ""


def _chat(messages: Iterable[Mapping[str, object]]) -> str:
    open_calls: list[str] = []
    for message in messages:
        if message.get("role") == "tool":
            call = str(message.get("tool_call_id"))
            if call not in open_calls:
                return (
                    "messages with role 'tool' must be a response to a preceding message with "
                    "'tool_calls'"
                )
            open_calls.remove(call)
        elif open_calls:
            return (
                "An assistant message with 'tool_calls' must be followed by tool messages for "
                f"each 'tool_call_id': {open_calls[0]}"
            )
        else:
            open_calls = [str(call.get("id")) for call in items(message, "tool_calls")]
    return ""
