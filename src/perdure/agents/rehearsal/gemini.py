"""Speaks the Gemini API of Google (v1beta), as Gemini CLI 0.61.0 uses it with an API key."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import TypeAlias

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
    Nothing,
    RunTool,
    Say,
    Slow,
    content,
)

SHELL = "run_shell_command"

Part: TypeAlias = Mapping[str, object]
"""One part of the model's answer: a text or a tool call."""

_OWN = (
    "<session_context>",
    "<hook_context>",
    "[The previous response was interrupted before it completed.]",
)
"""First words of the messages that the CLI itself writes in the name of the user or the model."""

_ERRORS = {
    400: ("INVALID_ARGUMENT", "The request was refused by the rehearsal."),
    401: ("UNAUTHENTICATED", "Request had invalid authentication credentials."),
    403: ("PERMISSION_DENIED", "The caller does not have permission."),
    404: ("NOT_FOUND", "models/rehearsal is not found for API version v1beta."),
    429: ("RESOURCE_EXHAUSTED", "Resource has been exhausted (e.g. check quota)."),
    500: ("INTERNAL", "An internal error has occurred."),
    503: ("UNAVAILABLE", "The model is overloaded. Please try again later."),
}

_FULL = "The input token count (1050000) exceeds the maximum number of tokens allowed (1048576)."


class Gemini:
    """Implements `Dialect` for POST /v1beta/models/MODEL:streamGenerateContent. If `streamed` is
    False, implements it for POST /v1beta/models/MODEL:generateContent."""

    name = "gemini"

    def __init__(self, *, streamed: bool = True) -> None:
        self._streamed = streamed

    def conversation(self, headers: Mapping[str, str], body: RequestBody) -> ScriptedConversation:
        messages = list(chain.from_iterable(map(_messages, items(body, "contents"))))
        tools: list[object] = []
        for entry in items(body, "tools"):
            tools += items(entry, "functionDeclarations")
        # The CLI sends no id of the conversation. Its requests for routing, summaries and
        # compressions offer no tools, so they are side requests.
        beside = "GeminiCLI" in headers.get("user-agent", "") and not tools
        return ScriptedConversation(
            tuple(messages), side=beside, streamed=self._streamed, shell=SHELL
        )

    def stream(self, cue: PlannedReply, conversation: ScriptedConversation) -> Iterator[Step]:
        pace, said = 0.0, False
        for action in cue.actions:
            if isinstance(action, Slow):
                pace += action.seconds
            elif isinstance(action, Say):
                say, said = Say(f"\n{action.text}") if said else action, True
                for piece, pause in paced(say, pace):
                    yield _event([{"text": piece}])
                    yield pause
                pace = 0.0
            elif isinstance(action, RunTool):
                yield Slow(pace)
                yield _event([_call(action)])
                pace, said = 0.0, False
            elif isinstance(action, Hold):
                if not said:
                    yield _event([{"text": ""}])
                yield Slow(pace)
                yield action
                pace = 0.0
            elif isinstance(action, (Hang, Cut)):
                if not said:
                    yield _event([{"text": ""}])
                yield Slow(pace)
                yield action
                return
        yield Slow(pace)
        if any(isinstance(action, Nothing) for action in cue.actions):
            last = []
        else:
            last = [{"text": ""}]
        yield _sse(_response(last, cue))
        yield cue.tokens

    def whole(self, cue: PlannedReply, conversation: ScriptedConversation) -> ReplyBody:
        parts: list[Part] = []
        for each in content(cue.actions):
            parts.append({"text": each.text} if isinstance(each, Say) else _call(each))
        return _response(parts, cue)

    def refusal(self, failure: Fail | Limit, now: float) -> Refusal:
        status = 429 if isinstance(failure, Limit) else failure.status
        kind, sentence = _ERRORS.get(
            status, ("UNKNOWN", f"The rehearsal failed with status {status}.")
        )
        if isinstance(failure, Fail) and failure.full:
            sentence = _FULL
        error: dict[str, object] = {"code": status, "message": sentence, "status": kind}
        if isinstance(failure, Limit):
            error |= _limit(failure)
        return Refusal(status, {"error": error}, {"server-timing": "gfet4t7; dur=1"})


def _limit(limit: Limit) -> dict[str, object]:
    """Return the error for a quota that is used up. Its `details` (google.rpc) have the number of
    seconds until the quota is renewed."""
    delay = f"{limit.seconds:g}s"
    violation = {
        "quotaMetric": "generativelanguage.googleapis.com/generate_content_free_tier_requests",
        "quotaId": "GenerateRequestsPerMinutePerProjectPerModel-FreeTier",
        "quotaValue": "10",
    }
    return {
        "message": (
            "You exceeded your current quota, please check your plan and billing details. Please "
            f"retry in {delay}."
        ),
        "details": [
            {"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": [violation]},
            {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": delay},
        ],
    }


def _messages(content: Mapping[str, object]) -> Iterator[ChatMessage]:
    role = "assistant" if content.get("role") == "model" else "user"
    for part in items(content, "parts"):
        call, result = part.get("functionCall"), part.get("functionResponse")
        if isinstance(call, dict):
            yield ChatMessage("tool_call", _call_text(call), str(call.get("id", "")))
        elif isinstance(result, dict):
            yield ChatMessage(
                "tool_result", _result_text(result.get("response")), str(result.get("id", ""))
            )
        elif (
            not part.get("thought")
            and (text := str(part.get("text", ""))).strip()
            and not text.lstrip().startswith(_OWN)
        ):
            yield ChatMessage(role, text)


def _call_text(call: Mapping[str, object]) -> str:
    given = call.get("args")
    if call.get("name") == SHELL and isinstance(given, dict) and "command" in given:
        return str(given["command"])
    return f"{call.get('name')} {json.dumps(given)}"


def _result_text(response: object) -> str:
    if not isinstance(response, dict):
        return ""
    return str(response.get("output") or response.get("error") or json.dumps(response))


def _call(run: RunTool) -> Part:
    shell = {"command": run.command, "description": "A scripted command"}
    given = run.arguments if run.tool else shell
    return {"functionCall": {"name": run.tool or SHELL, "args": given}}


def _response(parts: Sequence[Part], cue: PlannedReply) -> ReplyBody:
    """Return the last event of a stream, or the complete answer if it is not streamed."""
    tokens = cue.tokens
    usage = {
        "promptTokenCount": tokens.input,
        "candidatesTokenCount": tokens.output,
        "cachedContentTokenCount": tokens.cached,
        "totalTokenCount": tokens.input + tokens.output + tokens.thoughts,
    }
    if tokens.thoughts:
        usage["thoughtsTokenCount"] = tokens.thoughts
    candidate = {
        "content": {"role": "model", "parts": parts},
        "finishReason": cue.stop or "STOP",
        "index": 0,
    }
    return {"candidates": [candidate], "usageMetadata": usage, "modelVersion": "rehearsal"}


def _event(parts: Sequence[Part]) -> bytes:
    return _sse(
        {
            "candidates": [{"content": {"role": "model", "parts": parts}, "index": 0}],
            "modelVersion": "rehearsal",
        }
    )


def _sse(payload: Mapping[str, object]) -> bytes:
    return f"data: {json.dumps(payload)}\n\n".encode()
