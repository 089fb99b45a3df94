"""The Anthropic and OpenAI dialects over plain HTTP, and the promises of the server."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from perdure.agents.rehearsal import Rehearsal
from perdure.agents.rehearsal.script import TokenCounts

from .conftest import ask, claude_body, codex_body

MESSAGES, RESPONSES = "/v1/messages?beta=true", "/v1/responses"
SHELL = [{"type": "function", "name": "exec_command"}]


def test_anthropic_streams_text_and_tool():
    """A reply becomes the events of the Messages API, in order, with the usage that the script
    names."""
    with Rehearsal("say I look.\nsay Closely.\nrun ls -l\nusage in=11 out=3 cached=5") as rehearsal:
        events = ask(rehearsal, "POST", MESSAGES, claude_body("hello")).events
    assert [event["type"] for event in events if event["type"] != "content_block_delta"] == [
        "message_start",
        "ping",
        "content_block_start",
        "content_block_stop",
        "content_block_start",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert events[0]["message"]["usage"]["input_tokens"] == 11
    assert events[0]["message"]["usage"]["cache_read_input_tokens"] == 5
    deltas = [event["delta"] for event in events if event["type"] == "content_block_delta"]
    assert "".join(delta.get("text", "") for delta in deltas) == "I look.\nClosely."
    assert (
        json.loads("".join(delta.get("partial_json", "") for delta in deltas))["command"] == "ls -l"
    )
    assert events[-2]["delta"]["stop_reason"] == "tool_use"
    assert events[-2]["usage"]["output_tokens"] == 3


@pytest.mark.parametrize(
    ("place", "body", "of_a_cut"),
    [
        (MESSAGES, claude_body("hello"), {1: TokenCounts(22, 1, 0)}),
        (RESPONSES, codex_body("hello"), {}),
    ],
)
def test_what_was_reported_is_in_the_record(
    place: str, body: dict[str, Any], of_a_cut: dict[int, TokenCounts]
):
    """`reported` has the usage that each answer reported; for an interrupted answer, that is the
    usage which the service reports at its beginning. `begun` has the complete usage of every answer
    that was begun."""
    with Rehearsal("say a\nusage in=11 out=3 cached=5") as rehearsal:
        ask(rehearsal, "POST", place, body)
    assert rehearsal.reported == rehearsal.begun == {1: TokenCounts(11, 3, 5)}
    with (
        Rehearsal("usage in=22 out=4\nsay b\ncut") as rehearsal,
        pytest.raises(http.client.IncompleteRead),
    ):
        ask(rehearsal, "POST", place, body)
    assert rehearsal.reported == of_a_cut and rehearsal.begun == {1: TokenCounts(22, 4, 0)}


def test_anthropic_answers_as_one_body_when_not_streamed():
    """Without `stream` the same reply comes as plain JSON."""
    with Rehearsal("say a\nrun b") as rehearsal:
        message = ask(rehearsal, "POST", MESSAGES, claude_body("hello", stream=False)).json
    assert [block.get("text") or block["input"]["command"] for block in message["content"]] == [
        "a",
        "b",
    ]
    assert message["stop_reason"] == "tool_use"


def test_openai_streams_text_and_tool():
    """A reply becomes the events of the Responses API, with the shell tool that the request
    offered."""
    with Rehearsal("say I look.\nrun ls -l\nusage in=11 out=3 cached=5") as rehearsal:
        events = ask(rehearsal, "POST", RESPONSES, codex_body("hello", tools=SHELL)).events
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert done[0]["content"][0]["text"] == "I look."
    assert (done[1]["name"], json.loads(done[1]["arguments"])["cmd"]) == ("exec_command", "ls -l")
    assert (events[0]["type"], events[-1]["type"]) == ("response.created", "response.completed")
    response = events[-1]["response"]
    assert response["output"] == done
    assert response["usage"]["input_tokens"] == 11
    assert response["usage"]["input_tokens_details"] == {"cached_tokens": 5}


@pytest.mark.parametrize(
    ("tool", "arguments"),
    [
        ("shell_command", {"command": "ls"}),
        ("shell", {"command": ["bash", "-lc", "ls"]}),
    ],
)
def test_openai_uses_the_shell_tool_that_is_offered(tool: str, arguments: dict[str, Any]):
    """Older shell tools get their own form of arguments."""
    with Rehearsal("run ls") as rehearsal:
        body = codex_body("hello", stream=False, tools=[{"type": "function", "name": tool}])
        (call,) = ask(rehearsal, "POST", RESPONSES, body).json["output"]
    given = json.loads(call["arguments"])
    assert call["name"] == tool
    assert {name: given[name] for name in arguments} == arguments


def test_openai_waits_on_for_a_command_that_still_runs():
    """A shell tool that stopped waiting for its command is called again to wait on. The script does
    not advance, and this is a side request."""
    call = {
        "type": "function_call",
        "name": "exec_command",
        "call_id": "c1",
        "arguments": '{"cmd":"make"}',
    }
    running = {
        "type": "function_call_output",
        "call_id": "c1",
        "output": "Wall time: 30\nProcess running with session ID 7\nOutput:\n",
    }
    with Rehearsal("by history\nrun make\n---\nsay built") as rehearsal:
        body = codex_body("hello", stream=False, tools=SHELL)
        body["input"] += [call, running]
        (wait,) = ask(rehearsal, "POST", RESPONSES, body).json["output"]
        given = json.loads(wait["arguments"])
        body["input"] += [
            wait,
            {
                "type": "function_call_output",
                "call_id": wait["call_id"],
                "output": "Process exited with code 0\nOutput:\n",
            },
        ]
        (built,) = ask(rehearsal, "POST", RESPONSES, body).json["output"]
        assert (wait["name"], given["session_id"]) == ("write_stdin", 7)
        assert built["content"][0]["text"] == "built"
        assert [request.answer for request in rehearsal.everything] == ["wait", "reply"]
        assert len(rehearsal.requests) == 1


def test_what_a_cli_adds_by_itself_is_not_in_the_record():
    """The record has the messages, calls and results of the conversation. Reminders, environment
    notes and instructions that the CLI adds are removed."""
    claude = claude_body()
    claude["messages"] = [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "<system-reminder>\nx\n</system-reminder>\n"},
                {"type": "text", "text": "first"},
            ],
        },
        {"role": "system", "content": "# Environment"},
        {
            "role": "assistant",
            "content": [
                {"type": "text", "text": "yes"},
                {"type": "tool_use", "id": "t", "name": "Bash", "input": {"command": "ls"}},
            ],
        },
        {
            "role": "user",
            "content": [
                {
                    "type": "tool_result",
                    "tool_use_id": "t",
                    "content": [{"type": "text", "text": "file"}],
                }
            ],
        },
        {"role": "user", "content": "<system-reminder> is a word that I like"},
    ]
    codex = codex_body(
        "<environment_context>\n<cwd>/x</cwd>", "skipped?", "# AGENTS.md instructions for /x", "yes"
    )
    codex["input"] = [
        {
            "type": "message",
            "role": "developer",
            "content": [{"type": "input_text", "text": "rules"}],
        },
        {
            "type": "message",
            "role": "user",
            "content": [
                {"type": "input_text", "text": "<environment_context>\n</environment_context>"}
            ],
        },
        {
            "type": "message",
            "role": "user",
            "content": [{"type": "input_text", "text": "# AGENTS.md instructions for /x"}],
        },
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "first"}]},
        {"type": "reasoning", "summary": []},
        {
            "type": "message",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "yes"}],
        },
        {
            "type": "function_call",
            "name": "exec_command",
            "call_id": "c",
            "arguments": '{"cmd":"ls"}',
        },
        {"type": "function_call_output", "call_id": "c", "output": "file"},
    ]
    said = [("user", "first"), ("assistant", "yes"), ("tool_call", "ls"), ("tool_result", "file")]
    with Rehearsal() as rehearsal:
        ask(rehearsal, "POST", MESSAGES, claude, {"x-claude-code-session-id": "S1"})
        ask(rehearsal, "POST", RESPONSES, codex, {"thread-id": "T1"})
        first, second = rehearsal.requests
    assert [(m.role, m.text) for m in first.messages] == [
        *said,
        ("user", "<system-reminder> is a word that I like"),
    ]
    assert [(m.role, m.text) for m in second.messages] == said
    assert [(r.dialect, r.session) for r in (first, second)] == [
        ("anthropic", "S1"),
        ("openai", "T1"),
    ]


def test_side_requests_do_not_advance_the_script():
    """A request for a title, for a summary or of a subagent gets a harmless text, and is not in the
    list of steps."""
    title = claude_body("Write a title", tools=[])
    summary = claude_body(
        "hello",
        "yes",
        "Your task is to create a detailed summary of the conversation",
        tools=[{"name": "Bash"}],
    )
    with Rehearsal("say step") as rehearsal:
        for path, body, headers in (
            (MESSAGES, title, {"user-agent": "claude-cli/2.1.329 (external, sdk-cli)"}),
            (MESSAGES, summary, {"user-agent": "claude-cli/2.1.329 (external, sdk-cli)"}),
            (RESPONSES, codex_body("hello"), {"x-openai-subagent": "compact"}),
        ):
            assert ask(rehearsal, "POST", path, body, headers).status == 200
        assert rehearsal.requests == []
        assert [request.answer for request in rehearsal.everything] == ["side"] * 3
        assert "step" in ask(rehearsal, "POST", MESSAGES, claude_body("hello")).text


def test_errors_have_the_providers_own_bodies():
    """`fail` sends the status K times, with the body that the provider's clients expect, and then
    the reply."""
    with Rehearsal("fail 529 x2\nsay a") as rehearsal:
        answers = [ask(rehearsal, "POST", MESSAGES, claude_body("hello")) for _ in range(3)]
    assert [answer.status for answer in answers] == [529, 529, 200]
    assert answers[0].json["error"] == {"type": "overloaded_error", "message": "Overloaded"}
    with Rehearsal("fail 401") as rehearsal:
        answer = ask(rehearsal, "POST", RESPONSES, codex_body("hello"))
    assert (answer.status, answer.json["error"]["code"]) == (401, "invalid_api_key")


def test_a_usage_limit_names_its_end():
    """`limit` is a 429 with the time at which it ends, in each provider's own field."""
    with Rehearsal("limit 3600 x2") as rehearsal:
        now = time.time()
        claude = ask(rehearsal, "POST", MESSAGES, claude_body("hello"))
        codex = ask(rehearsal, "POST", RESPONSES, codex_body("hello"))
    assert (claude.status, codex.status) == (429, 429)
    assert int(claude.headers["anthropic-ratelimit-unified-reset"]) == pytest.approx(
        now + 3600, abs=60
    )
    assert codex.json["error"]["type"] == "usage_limit_reached"
    assert codex.json["error"]["resets_at"] == pytest.approx(now + 3600, abs=60)


@pytest.mark.parametrize(
    ("path", "body"), [(MESSAGES, claude_body("hello")), (RESPONSES, codex_body("hello"))]
)
def test_a_cut_breaks_the_stream(path: str, body: dict[str, Any]):
    """The client sees the text and then a broken connection, not an end."""
    with (
        Rehearsal("say half of it\ncut") as rehearsal,
        pytest.raises(http.client.IncompleteRead) as caught,
    ):
        ask(rehearsal, "POST", path, body)
    assert b"half" in caught.value.partial


@pytest.mark.parametrize(
    ("path", "body"), [(MESSAGES, claude_body("hello")), (RESPONSES, codex_body("hello"))]
)
def test_stop_ends_a_hanging_answer(path: str, body: dict[str, Any]):
    """When the rehearsal stops, a client that waits in a hanging answer is disconnected, and `stop`
    returns."""
    rehearsal = Rehearsal("say begun\nhang").start()
    heard: list[BaseException] = []

    def client() -> None:
        # On a busy machine the stop may come before the first byte of the answer.
        with pytest.raises((http.client.HTTPException, ConnectionError)) as caught:
            ask(rehearsal, "POST", path, body)
        heard.append(caught.value)

    thread = threading.Thread(target=client)
    thread.start()
    rehearsal.wait_for(1)
    rehearsal.stop()
    rehearsal.stop()
    thread.join()
    assert len(heard) == 1


def test_stop_closes_idle_connections():
    """A kept-alive connection without a request in it is closed too."""
    rehearsal = Rehearsal().start()
    with socket.create_connection(("127.0.0.1", rehearsal.port), timeout=30) as idle:
        idle.sendall(b"HEAD / HTTP/1.1\r\n\r\n")
        heard = idle.recv(4096)
        rehearsal.stop()
        while more := idle.recv(4096):
            heard += more
    assert heard.startswith(b"HTTP/1.1 200")


def test_the_beginning_is_sent_before_the_pause():
    """Before a slow or hanging reply pauses, headers, the first event and the first words have
    arrived."""
    with Rehearsal("say one two\nhang") as rehearsal:
        connection = http.client.HTTPConnection("127.0.0.1", rehearsal.port, timeout=30)
        connection.request("POST", MESSAGES, json.dumps(claude_body("hello")))
        response = connection.getresponse()
        heard = b""
        while b" two" not in heard:
            heard += response.read1()
        assert b"message_start" in heard
        assert b"content_block_stop" not in heard
        response.close()
        connection.close()


CHAT, GEMINI = "/v1/chat/completions", "/v1beta/models/m:streamGenerateContent?alt=sse"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (MESSAGES, claude_body("hello")),
        (RESPONSES, codex_body("hello")),
        (CHAT, {"model": "m", "stream": True, "messages": [{"role": "user", "content": "hello"}]}),
        (GEMINI, {"contents": [{"role": "user", "parts": [{"text": "hello"}]}]}),
    ],
)
def test_a_reply_is_held(tmp_path: Path, path: str, body: dict[str, Any]):
    """The actions after `hold` are sent only when the file exists. If it exists already, they are
    sent at once."""
    with Rehearsal(f"say before\nhold {tmp_path / 'go'}\nsay after") as rehearsal:
        connection = http.client.HTTPConnection("127.0.0.1", rehearsal.port, timeout=30)
        connection.request("POST", path, json.dumps(body))
        response = connection.getresponse()
        heard = b""
        while b"before" not in heard:
            heard += response.read1()
        assert b"after" not in heard
        (tmp_path / "go").touch()
        assert b"after" in response.read()
        connection.close()
    with Rehearsal(f"hold {tmp_path / 'go'}\nsay after") as rehearsal:
        assert "after" in ask(rehearsal, "POST", path, body).text


def test_a_client_that_sends_more_does_not_end_a_pause(tmp_path: Path):
    """A second request that arrives on the connection during a pause does not shorten the pause,
    and is answered afterwards. If the client then disconnects, its answer still ends."""
    body = json.dumps(claude_body("hello")).encode()
    request = b"POST /v1/messages HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body)
    go = tmp_path / "go"
    with Rehearsal(f"say before\nhold {go}\nsay after\n---\nsay second\nhang") as rehearsal:
        with socket.create_connection(("127.0.0.1", rehearsal.port), timeout=30) as client:
            client.sendall(request + body)
            heard = b""
            while b"before" not in heard:
                heard += client.recv(4096)
            client.sendall(request + body)
            client.settimeout(0.5)
            with pytest.raises(TimeoutError):
                client.recv(1)
            go.touch()
            client.settimeout(30)
            while b"second" not in heard:
                heard += client.recv(4096)
            assert heard.index(b"after") < heard.index(b"second")
            client.sendall(b"POST")
        while any("process_request_thread" in thread.name for thread in threading.enumerate()):
            time.sleep(0.01)


def test_clients_that_vanish_harm_nobody(capfd: pytest.CaptureFixture[str]):
    """Connections that are dropped in a request, or in a slow or hanging answer, leave no error
    output and no waiting thread."""
    with Rehearsal("say a\nhang\n---\nslow 60\nsay many words here\n---\nsay c") as rehearsal:
        for number in (1, 2):
            connection = http.client.HTTPConnection("127.0.0.1", rehearsal.port, timeout=30)
            connection.request("POST", MESSAGES, json.dumps(claude_body("hello")))
            rehearsal.wait_for(number)
            connection.close()
        with socket.create_connection(("127.0.0.1", rehearsal.port)) as half:
            half.sendall(b"POST /v1/messages HTTP/1.1\r\ncontent-length: 100\r\n\r\n{")
        assert '"c"' in ask(rehearsal, "POST", MESSAGES, claude_body("hello")).text
        while any("process_request_thread" in thread.name for thread in threading.enumerate()):
            time.sleep(0.01)
    assert capfd.readouterr().err == ""


def test_many_clients_at_once():
    """Each of forty simultaneous requests gets a different reply, and the record has all of them,
    numbered in order."""
    script = "\n---\n".join(f"say reply {number}" for number in range(40))
    with Rehearsal(script) as rehearsal:
        texts: list[str] = []

        def client() -> None:
            texts.append(
                ask(rehearsal, "POST", MESSAGES, claude_body("hello", stream=False)).json[
                    "content"
                ][0]["text"]
            )

        threads = [threading.Thread(target=client) for _ in range(40)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(texts) == sorted(f"reply {number}" for number in range(40))
        assert [request.number for request in rehearsal.requests] == list(range(1, 41))
        assert sorted(request.reply or 0 for request in rehearsal.requests) == list(range(40))


def test_the_record_is_written_before_the_answer(tmp_path: Path):
    """When an answer arrives, its request is already in the JSON lines file, with side requests
    marked."""
    record = tmp_path / "record.jsonl"
    with Rehearsal("say a", record=record) as rehearsal:
        ask(rehearsal, "POST", RESPONSES, codex_body("hello", "yes", "go on"), {"session-id": "S"})
        ask(rehearsal, "HEAD", "/")
        first, second = (json.loads(line) for line in record.read_text().splitlines())
    assert first["messages"] == [
        {"role": r, "text": t}
        for r, t in (("user", "hello"), ("assistant", "yes"), ("user", "go on"))
    ]
    assert (first["number"], first["dialect"], first["session"], first["reply"], first["side"]) == (
        1,
        "openai",
        "S",
        0,
        False,
    )
    assert (second["path"], second["side"]) == ("HEAD /", True)


def test_the_small_requests_are_answered():
    """Reachability probes, the list of models and the token count get the expected answers."""
    with Rehearsal() as rehearsal:
        assert ask(rehearsal, "HEAD", "/api/hello").status == 200
        assert ask(rehearsal, "GET", "/v1/models").json["data"][0]["id"] == "rehearsal"
        assert (
            ask(rehearsal, "POST", "/v1/messages/count_tokens", claude_body("hello")).json[
                "input_tokens"
            ]
            > 0
        )
        assert rehearsal.requests == []


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        (MESSAGES, b"not json", 400),
        (MESSAGES, b"[]", 400),
        ("/v1/unknown", {"a": 1}, 404),
        (MESSAGES, {"messages": 5}, 200),
    ],
)
def test_strange_requests_are_answered(path: str, body: Any, status: int):
    """Bodies that are not JSON objects, unknown paths and missing parts get an answer, and the
    server continues."""
    with Rehearsal() as rehearsal:
        assert ask(rehearsal, "POST", path, body).status == status


def test_a_conversation_that_no_script_matches_is_refused():
    """The client gets a clear error instead of another script's reply."""
    with Rehearsal("match red\nsay r") as rehearsal:
        answer = ask(rehearsal, "POST", MESSAGES, claude_body("blue"))
        assert answer.status == 400
        assert "No script" in answer.json["error"]["message"]
        assert rehearsal.last.answer == "unmatched"


def test_waiting_in_vain_says_what_came():
    """After its timeout `wait_for` raises an error with the number of requests that came."""
    with Rehearsal() as rehearsal:
        ask(rehearsal, "POST", MESSAGES, claude_body("hello"))
        assert rehearsal.wait_for(1).prompts == ["hello"]
        with pytest.raises(TimeoutError, match="1 of 2 requests"):
            rehearsal.wait_for(2, timeout=0.05)


def test_only_loopback_is_served():
    """The server listens on 127.0.0.1 and nowhere else."""
    with Rehearsal() as rehearsal, socket.socket() as other:
        other.bind(("127.0.0.2", rehearsal.port))
        assert rehearsal.url.startswith("http://127.0.0.1:")
