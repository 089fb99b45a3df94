"""The Chat Completions dialect over plain HTTP."""

from __future__ import annotations

import http.client
import json
from typing import Any

import pytest

from perdure.agents.rehearsal import Rehearsal

from .conftest import ask

CHAT = "/v1/chat/completions"
OPENCODE = {"user-agent": "opencode/1.18.33", "x-session-affinity": "ses_1"}
BASH = [{"type": "function", "function": {"name": "bash"}}]


def body(*turns: str, stream: bool = True, **more: Any) -> dict[str, Any]:
    """Return a request in which user and assistant take turns."""
    messages = [
        {"role": ("user", "assistant")[at % 2], "content": turn} for at, turn in enumerate(turns)
    ]
    return {
        "model": "m",
        "stream": stream,
        "messages": [{"role": "system", "content": "You are."}, *messages],
        **more,
    }


def chunks(text: str) -> list[dict[str, Any]]:
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def test_text_and_tool_are_streamed() -> None:
    """A reply is streamed as chunks, with a call of the shell tool that the request offered, the
    finish reason, and the usage if the request asked for it."""
    with Rehearsal("say I look.\nsay Closely.\nrun ls -l\nusage in=11 out=3 cached=5") as rehearsal:
        found = chunks(ask(rehearsal, "POST", CHAT, body("hello", tools=BASH)).text)
    deltas = [chunk["choices"][0]["delta"] for chunk in found if chunk["choices"]]
    assert "".join(delta.get("content", "") for delta in deltas) == "I look.\nClosely."
    (call,) = [call for delta in deltas for call in delta.get("tool_calls", ())]
    assert (call["function"]["name"], json.loads(call["function"]["arguments"])["command"]) == (
        "bash",
        "ls -l",
    )
    assert [chunk["choices"][0]["finish_reason"] for chunk in found if chunk["choices"]][
        -1
    ] == "tool_calls"
    used = found[-1]["usage"]
    assert (used["prompt_tokens"], used["completion_tokens"], used["prompt_tokens_details"]) == (
        11,
        3,
        {"cached_tokens": 5},
    )


def test_an_answer_as_one_body_when_not_streamed() -> None:
    """Without `stream` the same reply comes as plain JSON."""
    with Rehearsal("say a\nrun b") as rehearsal:
        choice = ask(rehearsal, "POST", CHAT, body("hello", stream=False)).json["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("a", "tool_calls")
    assert json.loads(choice["message"]["tool_calls"][0]["function"]["arguments"])["command"] == "b"


def test_what_reached_the_model_is_recorded() -> None:
    """The record has the texts (even those in parts), calls and results, with the id that joins a
    call and its result. System messages are left out."""
    call = {
        "id": "c1",
        "type": "function",
        "function": {"name": "bash", "arguments": '{"command":"ls"}'},
    }
    said = [
        {"role": "user", "content": [{"type": "text", "text": "hello"}]},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "out"},
    ]
    with Rehearsal("say a") as rehearsal:
        ask(rehearsal, "POST", CHAT, {"messages": said, "tools": BASH}, OPENCODE)
        found = [(message.role, message.text, message.call) for message in rehearsal.last.messages]
        assert rehearsal.last.session == "ses_1"
    assert found == [("user", "hello", ""), ("tool_call", "ls", "c1"), ("tool_result", "out", "c1")]


def test_after_a_kill_in_a_tool_the_reply_is_given_again() -> None:
    """With `by history`, OpenCode's text for an interrupted tool does not count as a result, so the
    reply is sent again."""
    call = {
        "id": "c1",
        "type": "function",
        "function": {"name": "bash", "arguments": '{"command":"ls"}'},
    }
    said = [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "[Tool execution was interrupted]"},
        {"role": "user", "content": "go on"},
    ]
    with Rehearsal("by history\nrun ls\n---\nsay done") as rehearsal:
        ask(rehearsal, "POST", CHAT, {"messages": said, "tools": BASH, "stream": True}, OPENCODE)
        assert rehearsal.last.reply == 0


def test_a_title_is_a_side_request() -> None:
    """OpenCode asks for a title or a summary without offering tools. This is a side request, and no
    reply of the script is used up. Other clients may send ordinary requests without tools."""
    with Rehearsal("say one\n---\nsay two") as rehearsal:
        ask(rehearsal, "POST", CHAT, body("hello"), OPENCODE)
        ask(rehearsal, "POST", CHAT, body("hello", tools=BASH), OPENCODE)
        ask(rehearsal, "POST", CHAT, body("hello"))
        assert [request.answer for request in rehearsal.everything] == ["side", "reply", "reply"]
        assert [request.reply for request in rehearsal.requests] == [0, 1]


@pytest.mark.parametrize("status", [400, 401, 404, 429, 500, 503, 418])
def test_a_failure_has_the_apis_own_body(status: int) -> None:
    """Status, message and type of a failure are in the fields that a client reads."""
    with Rehearsal(f"fail {status}\nsay after") as rehearsal:
        answer = ask(rehearsal, "POST", CHAT, body("hello"))
        assert (answer.status, bool(answer.json["error"]["message"])) == (status, True)
        assert ask(rehearsal, "POST", CHAT, body("hello")).status == 200


def test_a_limit_says_how_long_to_wait() -> None:
    """Only the header says when a limit ends."""
    with Rehearsal("limit 3600\nsay after") as rehearsal:
        answer = ask(rehearsal, "POST", CHAT, body("hello"))
    assert (answer.status, answer.headers["retry-after"]) == (429, "3600")


def test_a_cut_breaks_the_stream_and_a_clean_one_only_the_answer() -> None:
    """A cut breaks the connection. A clean cut ends the stream normally, but without a finish
    reason and without the last line."""
    with Rehearsal("say half of it\ncut\n---\nsay half of it\ncut clean") as rehearsal:
        with pytest.raises(http.client.IncompleteRead) as caught:
            ask(rehearsal, "POST", CHAT, body("hello"))
        clean = ask(rehearsal, "POST", CHAT, body("hello"))
    assert b"half" in caught.value.partial
    assert "half" in clean.text
    assert "[DONE]" not in clean.text
    assert '"finish_reason": "stop"' not in clean.text
