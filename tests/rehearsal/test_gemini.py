"""Gemini's dialect over plain HTTP, and the real CLI with it."""

from __future__ import annotations

import json
import os
import subprocess
import uuid
from pathlib import Path
from typing import Any

import pytest

from perdure.agents.rehearsal import Rehearsal
from tests.patience import PATIENCE_S

from .conftest import MODULES, ask

STREAM, WHOLE = (
    "/v1beta/models/some:streamGenerateContent?alt=sse",
    "/v1beta/models/some:generateContent",
)
TOOLS = [{"functionDeclarations": [{"name": "run_shell_command"}]}]


def body(*turns: str, **more: Any) -> dict[str, Any]:
    """Return a request in which user and model take turns."""
    contents = [
        {"role": ("user", "model")[at % 2], "parts": [{"text": turn}]}
        for at, turn in enumerate(turns)
    ]
    return {"contents": contents, "tools": TOOLS, **more}


def test_a_reply_is_streamed_as_chunks():
    """Text comes in pieces, and a command as a call of the shell tool. Only the last chunk has the
    reason and the usage."""
    with Rehearsal("say I look.\nsay Closely.\nrun ls -l\nusage in=11 out=3 cached=5") as rehearsal:
        events = ask(rehearsal, "POST", STREAM, body("hello")).events
    parts = [part for event in events for part in event["candidates"][0]["content"]["parts"]]
    assert "".join(part.get("text", "") for part in parts) == "I look.\nClosely."
    assert [
        part["functionCall"]["args"]["command"] for part in parts if "functionCall" in part
    ] == ["ls -l"]
    assert [event["candidates"][0].get("finishReason") for event in events][-2:] == [None, "STOP"]
    assert [event["usageMetadata"] for event in events if "usageMetadata" in event] == [
        {
            "promptTokenCount": 11,
            "candidatesTokenCount": 3,
            "cachedContentTokenCount": 5,
            "totalTokenCount": 14,
        }
    ]


def test_the_same_reply_as_one_body():
    """A request by the path that does not stream gets the same reply as one body."""
    with Rehearsal("say a\nrun b") as rehearsal:
        (candidate,) = ask(rehearsal, "POST", WHOLE, body("hello")).json["candidates"]
    assert [
        part.get("text") or part["functionCall"]["args"]["command"]
        for part in candidate["content"]["parts"]
    ] == ["a", "b"]


def test_a_limit_names_its_end():
    """The end of a limit is in the details of the error and in its sentence."""
    with Rehearsal("limit 90\nsay a") as rehearsal:
        refused = ask(rehearsal, "POST", STREAM, body("hello"))
    error = refused.json["error"]
    assert (refused.status, error["code"], error["status"]) == (429, 429, "RESOURCE_EXHAUSTED")
    assert "retry in 90s" in error["message"]
    kinds = {detail["@type"].rpartition(".")[2]: detail for detail in error["details"]}
    assert kinds["RetryInfo"]["retryDelay"] == "90s"
    assert kinds["QuotaFailure"]["violations"][0]["quotaId"].startswith("GenerateRequestsPerMinute")


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, "INVALID_ARGUMENT"), (401, "UNAUTHENTICATED"), (500, "INTERNAL"), (503, "UNAVAILABLE")],
)
def test_failures_have_the_services_own_words(status: int, kind: str):
    """The status of a failure is the HTTP status, and is also in the body."""
    with Rehearsal(f"fail {status}\nsay a") as rehearsal:
        refused = ask(rehearsal, "POST", STREAM, body("hello"))
    assert (refused.status, refused.json["error"]["code"], refused.json["error"]["status"]) == (
        status,
        status,
        kind,
    )


def test_what_reached_the_model():
    """Prompts, answers, calls and results are recorded in order, without the CLI's own additions. A
    request that offers no tools is not among them."""
    contents = [
        {
            "role": "user",
            "parts": [{"text": "<session_context>x</session_context>"}, {"text": "hello"}],
        },
        {
            "role": "model",
            "parts": [
                {"text": "hm", "thought": True},
                {"text": "I look."},
                {
                    "functionCall": {
                        "id": "1",
                        "name": "run_shell_command",
                        "args": {"command": "ls"},
                    }
                },
            ],
        },
        {
            "role": "user",
            "parts": [
                {
                    "functionResponse": {
                        "id": "1",
                        "name": "run_shell_command",
                        "response": {"output": "out"},
                    }
                }
            ],
        },
        {
            "role": "model",
            "parts": [{"text": "[The previous response was interrupted before it completed.]"}],
        },
    ]
    with Rehearsal("say a") as rehearsal:
        ask(
            rehearsal,
            "POST",
            STREAM,
            {"contents": contents, "tools": TOOLS},
            {"user-agent": "GeminiCLI/0.61.0"},
        )
        ask(rehearsal, "POST", WHOLE, {"contents": contents}, {"user-agent": "GeminiCLI/0.61.0"})
        said = [(message.role, message.text, message.call) for message in rehearsal.last.messages]
        assert [request.side for request in rehearsal.everything] == [False, True]
    assert said == [
        ("user", "hello", ""),
        ("assistant", "I look.", ""),
        ("tool_call", "ls", "1"),
        ("tool_result", "out", "1"),
    ]


def test_the_real_cli_takes_it_for_its_service(tmp_path: Path):
    """Two turns with a command and a resume: the command runs, the whole history reaches the model,
    and the usage is the script's."""
    for name in ("home", "work"):
        (tmp_path / name).mkdir()
    script = MODULES / "@google/gemini-cli/bundle/gemini.js"
    session = str(uuid.uuid4())
    with Rehearsal(
        "by history\nsay I look.\nrun echo proof > made.txt\n---\nsay first answer\n---\nsay "
        "second answer"
    ) as rehearsal:
        environ = {
            "PATH": os.environ["PATH"],
            "HOME": str(tmp_path / "home"),
            **rehearsal.environ("gemini", tmp_path / "home"),
        }

        def run(prompt: str, *words: str) -> dict[str, Any]:
            argv = [str(script), "--output-format=stream-json", "--approval-mode=yolo", *words]
            done = subprocess.run(
                argv,
                input=prompt.encode(),
                env=environ,
                cwd=tmp_path / "work",
                capture_output=True,
                check=True,
                timeout=PATIENCE_S,
            )
            last: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
            return last

        assert run("hello one", f"--session-id={session}")["stats"]["input_tokens"] == 200
        assert run("hello two", f"--resume={session}")["status"] == "success"
        assert [request.reply for request in rehearsal.requests] == [0, 1, 2]
        assert rehearsal.prompts() == ["hello one", "hello two"]
        assert rehearsal.everything == rehearsal.requests
    assert (tmp_path / "work" / "made.txt").read_text() == "proof\n"
