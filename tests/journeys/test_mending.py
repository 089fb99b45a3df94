"""A conversation that its own agent refuses goes on as `repaired`, on the real CLIs: mended on a copy, proven, put in place."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.journeys.stage import Stage, said

MakeStage = Callable[..., Stage]
pytestmark = pytest.mark.journey

RUN = ("run", "--name", "task", "--permissions", "full", "--json", "--agent")
PROMPT = "Write one.txt. The magic word is quercus."
SCRIPT = """by history
run echo one > one.txt
---
say The file is written.
---
say I still know the word.
"""


def poisoned(agent: str, content: bytes) -> bytes:
    """The transcript as the agent refuses it: Claude for an image over the service's limit, Codex and Gemini for their first line."""
    first, _, rest = content.partition(b"\n")
    if agent != "claude":
        return first[:60] + b"\n" + rest
    lines = content.split(b"\n")
    at = next(n for n, line in enumerate(lines) if b'"tool_result"' in line)
    entry = json.loads(lines[at])
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "A" * 6_000_000}}
    entry["message"]["content"][0]["content"] = [{"type": "text", "text": "made"}, image]
    lines[at] = json.dumps(entry, separators=(",", ":")).encode()
    return b"\n".join(lines)


def poison(one: Stage) -> dict[Path, bytes]:
    """Breaks the agent's transcript and perdure's copy of it. Returns what stands in the agent's files then."""
    if one.agent == "opencode":
        for path in one.transcripts():
            path.unlink()
    for path in [*(one.transcripts() if one.agent != "opencode" else []), *one.copies()]:
        path.write_bytes(unreadable(path.read_bytes()) if one.agent == "opencode" else poisoned(one.agent, path.read_bytes()))
    return {path: path.read_bytes() for path in one.transcripts()}


def unreadable(content: bytes) -> bytes:
    """The copy of an OpenCode session, one of whose rows was broken."""
    lines = content.split(b"\n")
    at = next(n for n, line in enumerate(lines) if b'"callID"' in line)
    lines[at] = json.dumps({**json.loads(lines[at]), "data": {"unreadable": "{broken"}}).encode()
    return b"\n".join(lines)


def test_a_refused_conversation_goes_on_repaired(stage: MakeStage) -> None:
    """The rungs above fail, the mended copy is proven and used; the model sees the history, the receipt has the edit log, and the
    broken transcript lies aside, byte for byte."""
    one = stage(SCRIPT)
    assert one.perdure(*RUN, one.agent, "--attempts", "9", PROMPT).code == 0
    broken = poison(one)
    done = one.perdure("update", "task", "Which word was it?", "--json")
    assert done.code == 0, (done.err, done.out[-3000:])
    last = done.json["attempts"][-1]
    assert (last["rung"], last["receipt"]["verdict"], last["outcome"]["kind"]) == ("repaired", "repaired", "succeeded"), last
    assert any("perdure mended the transcript first: line" in reason for reason in last["receipt"]["reasons"])
    history = said(one.rehearsal.last.messages)
    assert "The magic word is quercus." in history and "The file is written." in history and "Which word was it?" in history
    assert "a mended copy was put in place" in one.perdure("logs", "task").out
    aside = [path.read_bytes() for path in one.agent_home.rglob("*perdure-unusable*")]
    assert all(any(each.startswith(content) for each in aside) for content in broken.values())
    again = one.perdure("update", "task", "And again?", "--json")
    assert (again.json["attempts"][-1]["rung"], again.json["attempts"][-1]["receipt"]["verdict"]) == ("native", "native"), again.out[-2000:]
    one.nothing_survives()
