"""How Gemini CLI's bridge finds the tool call that a permission request is about, and which
launches use the bridge."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from perdure.agents import registry
from perdure.agents.gemini.gemini_bridge import ReportedCalls, agrees
from perdure.model import Continuation, Launch, Program, Start, TaskSpec

GEMINI = registry.load("gemini")
ID = "0b6c641a-496d-4fb2-b8c3-c8923ea0411b"


def answer(*contents: str, reason: str = "STOP", call_id: str = "") -> dict[str, Any]:
    """Return a part of a model's answer that calls `write_file` once for each content."""
    calls = [
        {"id": call_id, "name": "write_file", "args": {"file_path": "Makefile", "content": each}}
        for each in contents
    ]
    return {"calls": calls, "reason": reason}


def taken(calls: ReportedCalls, number: int) -> str:
    """Return the content of the call to which the CLI's request with this number belongs, or an
    empty string if it is not known."""
    found = calls.take(f"write_file__write_file_1795455071154_{number}")
    return found["args"]["content"] if found else ""


def test_calls_of_an_answer_are_told_apart_by_their_number() -> None:
    calls = ReportedCalls()
    calls.add(answer("one", reason=""))
    calls.add(answer("two"))
    calls.add(answer("three"))
    assert [taken(calls, number) for number in (1, 0)] == ["two", ""]
    assert calls.waiting == [("write_file 0", answer("three")["calls"][0])]


def test_a_call_with_an_id_of_the_service_is_found_by_it() -> None:
    calls = ReportedCalls()
    calls.add(answer("one", call_id="abc"))
    calls.add(answer("two", call_id="write_file__def"))
    assert calls.take("write_file__abd") is None
    assert calls.take("write_file__def")["args"]["content"] == "two"
    assert calls.take("write_file__abc")["args"]["content"] == "one"


def test_a_call_that_may_be_another_one_is_not_known() -> None:
    """Calls of a subagent are reported, but never need permission. If a request could belong to
    more than one call, the call is unknown, so that an approval cannot let another call run."""
    calls = ReportedCalls()
    calls.add(answer("of a subagent"))
    calls.add(answer("of the agent"))
    assert taken(calls, 0) == ""
    calls = ReportedCalls()
    calls.add(answer("same"))
    calls.add(answer("same"))
    assert taken(calls, 0) == "same"


@pytest.mark.parametrize(
    ("given", "told", "agree"),
    [
        ({"command": "rm -rf a"}, {"kind": "execute", "title": "rm -rf a"}, True),
        ({"command": "rm -rf a"}, {"kind": "execute", "title": "rm -rf b"}, False),
        ({"file_path": "Makefile", "content": "a"}, ("/w/Makefile", "a"), True),
        ({"file_path": "Makefile", "content": "a"}, ("/w/Makefile", "b"), False),
        ({"file_path": "setup.py", "content": "a"}, ("/w/Makefile", "a"), False),
        (
            {"file_path": "Makefile", "old_string": "a", "new_string": "b"},
            ("/w/Makefile", "b"),
            True,
        ),
        ({"prompt": "https://example.com"}, {"kind": "fetch", "title": "fetch"}, True),
    ],
)
def test_a_request_that_shows_another_call_is_refused(
    given: dict[str, Any], told: Any, agree: bool
) -> None:
    if isinstance(told, tuple):
        told = {"kind": "edit", "content": [{"type": "diff", "path": told[0], "newText": told[1]}]}
    assert agrees({"name": "tool", "args": given}, told) is agree


def launch(tmp_path: Path, **more: Any) -> Launch:
    home = tmp_path / ".gemini"
    home.mkdir(exist_ok=True)
    return Launch(
        spec=TaskSpec(name="task", repo="/r", prompt="p", agent="gemini"),
        program=Program(path="gemini"),
        cwd=str(tmp_path),
        home=str(home),
        prompt="Go on.",
        continuation=Continuation(kind=Start.RESUME, session_id=ID),
        requests=str(tmp_path / "requests"),
        **more,
    )


def test_only_a_launch_with_answers_uses_the_bridge(tmp_path: Path) -> None:
    plain = GEMINI.command(launch(tmp_path)).argv
    assert plain[0] == "gemini" and f"--resume={ID}" in plain
    bridged = GEMINI.command(launch(tmp_path, answers=True)).argv
    order = json.loads(bridged[-1])
    assert bridged[-2].endswith("/gemini_bridge.py")
    assert order["session"] == ID and "--acp" in order["command"]
    assert "--output-format=stream-json" not in order["command"]
    fresh = replace(
        launch(tmp_path, answers=True), continuation=Continuation(kind=Start.FRESH, session_id=ID)
    )
    assert json.loads(GEMINI.command(fresh).argv[-1])["session"] == ""


@pytest.mark.parametrize(
    "place", [".gemini/settings.json", ".gemini/extensions/x/hooks/hooks.json"]
)
def test_hooks_for_tools_keep_the_command_line(place: str, tmp_path: Path) -> None:
    """A launch with hooks for tools uses the command line, because over its protocol the CLI does
    not run such hooks."""
    given = launch(tmp_path, answers=True)
    path = tmp_path / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('{"hooks": {"SessionStart": []}}')
    assert GEMINI.command(given).argv[-2].endswith("/gemini_bridge.py")
    path.write_text('{"hooks": {"BeforeTool": []}}')
    assert GEMINI.command(given).argv[0] == "gemini"
