"""Lists of the conversations on disk, as the drivers make them, whatever an agent's home contains
and however much."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.agents import registry
from perdure.agents.claude import transcript
from perdure.agents.shared import conversation_files
from perdure.protocols import AgentDriver

FILES = ("claude", "codex", "gemini")
IDS = [f"{number:08x}-1111-4111-8111-111111111111" for number in range(40)]


def claude_line(words: str, cwd: str = "/src/app") -> str:
    entry = {
        "type": "user",
        "cwd": cwd,
        "uuid": IDS[0],
        "message": {"role": "user", "content": words},
        "promptSource": "user",
    }
    return json.dumps(entry) + "\n"


def write(driver: AgentDriver, home: Path, number: int, words: str, age_s: int = 0) -> Path:
    """Write a conversation with this one prompt and this age, as the CLI would have written it.
    Return its transcript."""
    path = {
        "claude": home / "projects" / "-src-app" / f"{IDS[number]}.jsonl",
        "codex": home / "sessions/2026/11/21" / f"rollout-2026-11-21T08-00-00-{IDS[number]}.jsonl",
        "gemini": home
        / "tmp/app/chats"
        / f"session-2026-11-21T08-{number:02}-{IDS[number][:8]}.jsonl",
    }[driver.name]
    content = {
        "claude": claude_line(words),
        "codex": json.dumps(
            {
                "type": "session_meta",
                "payload": {"id": IDS[number], "cwd": "/src/app", "source": "exec"},
            }
        )
        + "\n"
        + json.dumps(
            {
                "type": "response_item",
                "payload": {
                    "type": "message",
                    "role": "user",
                    "content": [{"type": "input_text", "text": words}],
                },
            }
        )
        + "\n",
        "gemini": json.dumps({"sessionId": IDS[number], "startTime": "2026-11-21T08:00:00Z"})
        + "\n"
        + json.dumps({"id": "m1", "type": "user", "content": [{"text": words}]})
        + "\n",
    }[driver.name]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    os.utime(path, (1_700_000_000 - age_s, 1_700_000_000 - age_s))
    return path


@pytest.fixture(params=FILES)
def driver(request: pytest.FixtureRequest) -> AgentDriver:
    return registry.load(request.param)


def test_the_newest_come_first_and_no_more_than_asked_for(
    driver: AgentDriver, tmp_path: Path
) -> None:
    """The order is by the last write, and the limit holds. An id finds only its own conversation."""
    for number in range(30):
        write(driver, tmp_path, number, f"task {number}", age_s=(number * 7) % 30)
    found = driver.conversations(tmp_path, 5)
    assert [each.updated for each in found] == sorted(
        (each.updated for each in found), reverse=True
    )
    assert found[0].first == "task 0" and len(found) == 5
    assert len(driver.conversations(tmp_path, 100)) == 30
    assert [each.first for each in driver.conversations(tmp_path, 9, IDS[17])] == ["task 17"]


def test_what_is_no_conversation_is_passed_over(driver: AgentDriver, tmp_path: Path) -> None:
    """Empty and damaged files, unknown names, a directory or a dangling link in place of a file,
    and a missing home are ignored."""
    assert not driver.conversations(tmp_path / "nowhere", 9)
    good = write(driver, tmp_path, 1, "the good one")
    write(driver, tmp_path, 2, "x").write_text("")
    write(driver, tmp_path, 3, "x").write_bytes(b"\xff\x00{{{\n" * 9)
    good.with_name("notes.jsonl").write_text("{}\n")
    gone = write(driver, tmp_path, 4, "x")
    gone.unlink()
    gone.symlink_to("/nonexistent")
    folder = write(driver, tmp_path, 5, "x")
    folder.unlink()
    folder.mkdir()
    assert [each.first for each in driver.conversations(tmp_path, 9)] == ["the good one"]


def test_a_long_transcript_is_not_read_whole(driver: AgentDriver, tmp_path: Path) -> None:
    """A list shows the first prompt of a long transcript, shortened if necessary, but not the
    number of turns."""
    path = write(driver, tmp_path, 1, "begin " * 200)
    with path.open("ab") as file:
        file.write((b"x" * 1023 + b"\n") * (conversation_files.WHOLE // 1024 + 1))
    (found,) = driver.conversations(tmp_path, 9)
    assert (found.turns, found.first[:12]) == (0, "begin begin ")
    assert len(found.first) <= 500


def test_threads_of_subagents_are_no_conversations_of_a_person(tmp_path: Path) -> None:
    """Codex threads that a subagent began are not listed. The first line of a thread says who began
    it."""
    driver = registry.load("codex")
    path = write(driver, tmp_path, 1, "x")
    path.write_text(path.read_text().replace('"exec"', '{"subagent": "review"}'))
    assert not driver.conversations(tmp_path, 9)


def test_a_fork_of_codex_names_its_parent(tmp_path: Path) -> None:
    """The parent of a fork is known even before the fork has a prompt."""
    driver = registry.load("codex")
    path = write(driver, tmp_path, 1, "x")
    head = json.dumps(
        {
            "type": "session_meta",
            "payload": {"id": IDS[1], "forked_from_id": IDS[2], "cwd": "/src", "source": "exec"},
        }
    )
    path.write_text(head + "\n")
    (found,) = driver.conversations(tmp_path, 9)
    assert (found.parent, found.turns, driver.parent(path.read_bytes())) == (IDS[2], 0, IDS[2])
    assert driver.parent(head.replace(IDS[2], "../../etc").encode()) == ""


@given(st.binary(max_size=400), st.sampled_from([*FILES, "opencode"]))
def test_nothing_raises_on_any_content(content: bytes, name: str) -> None:
    """A read of a transcript with any content returns a value or None, and raises no error."""
    driver = registry.load(name)
    for piece in (
        content,
        b'{"type":"user","message":' + content,
        b'{"type":"session_meta","payload":{"id":' + content,
    ):
        assert all(isinstance(each.text, str) for each in driver.messages_of(piece))
        assert isinstance(driver.parent(piece), str)
        assert driver.total(piece).input >= 0


def test_the_end_of_a_turn_is_its_last_answer() -> None:
    """A fork of Claude Code begins at the agent's last message before the next prompt. If there is
    no such message, the error is one sentence."""
    answers = [
        json.dumps({"type": "assistant", "uuid": each, "message": {"content": []}}) + "\n"
        for each in IDS[1:4]
    ]
    content = (
        claude_line("one")
        + answers[0]
        + answers[1]
        + claude_line("two")
        + answers[2]
        + claude_line("three")
    ).encode()
    assert [transcript.end_of_turn(content, turn) for turn in (1, 2)] == [IDS[2], IDS[3]]
    for turn in (3, 4):
        with pytest.raises(ValueError, match=f"no answer in turn {turn}"):
            transcript.end_of_turn(content, turn)
