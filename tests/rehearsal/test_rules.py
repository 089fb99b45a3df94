"""A strict rehearsal refuses what the real services refuse, with the same sentences."""

from __future__ import annotations

from typing import Any

import pytest

from perdure.agents.rehearsal import Rehearsal
from perdure.agents.rehearsal.server import refusal
from tests.rehearsal.conftest import ask

CALL = {
    "role": "assistant",
    "content": [{"type": "tool_use", "id": "c1", "name": "Bash", "input": {}}],
}
RESULT = {
    "role": "user",
    "content": [{"type": "tool_result", "tool_use_id": "c1", "content": "one"}],
}
ASK = {"role": "user", "content": [{"type": "text", "text": "hello"}]}
FUNCTION, OUTPUT = (
    {"type": "function_call", "call_id": "c1"},
    {"type": "function_call_output", "call_id": "c1", "output": "one"},
)
TOOL_CALLS = {"role": "assistant", "tool_calls": [{"id": "c1"}]}


def said(*blocks: dict[str, Any]) -> dict[str, Any]:
    return {"role": "assistant", "content": list(blocks)}


def image(data: str) -> dict[str, Any]:
    shown = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": data}}
    return {
        "role": "user",
        "content": [{"type": "tool_result", "tool_use_id": "c1", "content": [shown]}],
    }


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([ASK, CALL, RESULT, ASK], ""),
        (
            [
                {"role": "user", "content": "hello"},
                said({"type": "thinking", "thinking": "hm", "signature": "s"}),
            ],
            "",
        ),
        ([ASK, CALL, ASK], "without `tool_result` blocks immediately after: c1"),
        ([ASK, CALL], "without `tool_result` blocks immediately after"),
        ([ASK, RESULT], "unexpected `tool_use_id` found in `tool_result` blocks: c1"),
        (
            [ASK, CALL, {"role": "user", "content": [*RESULT["content"], *RESULT["content"]]}],
            "unexpected `tool_use_id`",
        ),
        ([ASK, said({"type": "text", "text": " "})], "text content blocks must be non-empty"),
        (
            [ASK, said({"type": "tool_use", "id": "c1", "name": "Bash"})],
            "tool_use.input: Field required",
        ),
        (
            [ASK, said({"type": "thinking", "thinking": "hm", "signature": ""})],
            "Invalid `signature` in `thinking` block",
        ),
        ([ASK, CALL, image("A" * 6_000_000)], "image exceeds 5 MB maximum"),
        ([ASK, CALL, image("")], "image cannot be empty"),
    ],
)
def test_what_anthropic_refuses(messages: list[dict[str, Any]], words: str) -> None:
    """Calls and results must be in pairs, with the result directly after the call. Empty texts,
    thoughts without a signature, and images over the limit are refused."""
    found = refusal("anthropic", {"messages": messages})
    assert words in found and bool(words) == bool(found)


@pytest.mark.parametrize(
    ("dialect", "body", "words"),
    [
        ("openai", {"input": [FUNCTION, OUTPUT]}, ""),
        ("openai", {"input": [FUNCTION]}, "No tool output found for function call c1"),
        (
            "openai",
            {"input": [OUTPUT, FUNCTION]},
            "No tool call found for function call output with call_id c1",
        ),
        ("openai", {"input": [FUNCTION, OUTPUT, OUTPUT]}, "Duplicate item found"),
        (
            "chat",
            {"messages": [TOOL_CALLS, {"role": "tool", "tool_call_id": "c1"}, {"role": "user"}]},
            "",
        ),
        ("chat", {"messages": [TOOL_CALLS, {"role": "user"}]}, "must be followed by tool messages"),
        (
            "chat",
            {"messages": [{"role": "tool", "tool_call_id": "c1"}]},
            "must be a response to a preceding message",
        ),
        ("gemini", {"contents": []}, ""),
        ("anthropic", {"messages": "nonsense"}, ""),
    ],
)
def test_what_the_others_refuse(dialect: str, body: dict[str, Any], words: str) -> None:
    """In the other dialects each call must have one result after it. In Gemini's nothing is
    refused."""
    found = refusal(dialect, body)
    assert words in found and bool(words) == bool(found)


def test_only_a_strict_one_refuses() -> None:
    """A strict rehearsal answers with status 400 and the service's sentence. One that is not strict
    answers the same history normally."""
    body = {"model": "m", "stream": False, "messages": [ASK, CALL, ASK]}
    with Rehearsal("say a", strict=True) as rehearsal:
        refused = ask(rehearsal, "POST", "/v1/messages", body)
        assert (rehearsal.last.answer, rehearsal.last.script) == ("fail", None)
    with Rehearsal("say a") as rehearsal:
        assert ask(rehearsal, "POST", "/v1/messages", body).status == 200
    assert refused.status == 400
    assert "immediately after: c1" in refused.json["error"]["message"]
