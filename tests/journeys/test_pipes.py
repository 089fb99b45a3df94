"""An agent leaves named pipes where perdure reads files of its home. Opening such a pipe would wait
for a writer without end."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.journeys.stage import Stage
from tests.journeys.test_checkpoints import begin

SCRIPT = """by history
run for f in $HOME/.claude/projects/*/*.jsonl; do d=${f%.jsonl}/subagents; mkdir -p $d; mkfifo $d/agent-x.jsonl; done; mkdir -p $HOME/.claude/sessions; mkfifo $HOME/.claude/sessions/1.json
---
say Done.
---
say Two.
"""
SESSION = "f705a820-f693-4553-b00c-45eea0d9fd67"
LOOK = f"""
import sys
from pathlib import Path
from perdure.agents.gemini import transcript as files
home = Path(sys.argv[1])
print(files.transcript(home, "{SESSION}"), files.remains(home, "{SESSION}"))
print(files.project(home, home))
"""
"""The program that reads Gemini CLI's home as perdure does before each resume."""


@pytest.fixture
def agent() -> str:
    return "claude"


@pytest.mark.journey
def test_pipes_beside_a_conversation(stage: Callable[..., Stage]) -> None:
    """With named pipes beside the transcript, the attempt ends and the conversation continues."""
    one = stage(SCRIPT)
    done = one.finish(begin(one))
    assert done.code == 0, done.err
    assert len([path for path in one.agent_home.rglob("*") if path.is_fifo()]) == 2
    again = one.perdure("update", "task", "Go on.", "--json")
    assert again.code == 0, again.err
    assert again.json["attempts"][-1]["receipt"]["verdict"] == "native"


@pytest.mark.parametrize(
    "name",
    [f"tmp/p/chats/session-2026-01-01T00-00-{SESSION[:8]}.jsonl", "projects.json", "tmp/p/.project_root"],
)  # fmt: skip
def test_pipes_in_the_home_of_gemini(tmp_path: Path, name: str) -> None:
    """Named pipes in Gemini's home count as missing files. (Gemini CLI itself would wait for a
    writer.)"""
    pipe = tmp_path / name
    pipe.parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(pipe)
    done = subprocess.run(
        [sys.executable, "-c", LOOK, str(tmp_path)], capture_output=True, text=True, timeout=30
    )
    assert done.stdout.startswith("None []\n"), done.stderr
