"""What a call costs beside its agent, by counts: programs that perdure starts, and what it imports
before the agent's start."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from perdure.agents.rehearsal import Rehearsal
from tests.journeys.stage import TOP, Stage


@dataclass(frozen=True)
class Recorded:
    """One command: its git calls before and after the shim, and the modules loaded before it."""

    before: list[str]
    after: list[str]
    modules: list[str]


def record(stage: Stage, *words: str) -> Recorded:
    """Run a command of perdure to its end, with a record of it."""
    log = stage.directory / "record"
    log.unlink(missing_ok=True)
    argv = [sys.executable, "-m", "tests.journeys.recorder", str(log), *words]
    done = subprocess.run(
        argv,
        cwd=stage.repo,
        env=stage.environ | {"PYTHONPATH": str(TOP)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    at = next(place for place, row in enumerate(rows) if "modules" in row)
    starts = [row.get("start", [""]) for row in rows]
    git = [" ".join(each) if Path(each[0]).name == "git" else "" for each in starts]
    return Recorded(
        before=[each for each in git[:at] if each],
        after=[each for each in git[at:] if each],
        modules=rows[at]["modules"],
    )


NOT_BEFORE_THE_LAUNCH = {
    *("asyncio", "concurrent.futures", "email", "importlib.metadata", "tomllib", "zipfile"),
    *(
        "perdure.capsule",
        "perdure.forge.webhooks",
        "perdure.rules.transcript_repair",
        "perdure.agents.proof",
        "perdure.engine.sweeper",
    ),
    *(f"perdure.engine.attempt.{each}" for each in ("evidence", "finish", "repair", "supervision")),
    *(f"perdure.workspace.merge.{each}" for each in ("ahead", "apply", "join", "push")),
    *(f"perdure.workspace.{each}" for each in ("changes", "clone_cache", "contents", "isolated")),
    *(f"perdure.workspace.{each}" for each in ("removal", "sources", "transport", "view")),
    *(f"perdure.workspace.snapshot.{each}" for each in ("disarm", "pack")),
}
"""Modules that no start of an agent in a worktree needs."""
OWN = 200
"""Largest number of perdure's own modules that are loaded before the agent starts."""


def test_a_call_starts_and_loads_little(tmp_path: Path) -> None:
    """A run in a new worktree, new instructions for it, and the same once more. Programs are counted,
    and modules are known by their names."""
    assert all(find_spec(name) for name in NOT_BEFORE_THE_LAUNCH)
    with Rehearsal("by history\nsay Hello.\n") as rehearsal:
        stage = Stage(tmp_path, "codex", rehearsal)
        first = record(stage, "run", "-q", "--agent", "codex", "--name", "task", "Say hello.")
        assert len(first.before) <= 3, first.before
        record(stage, "update", "-q", "task", "Again.")
        third = record(stage, "update", "-q", "task", "And again.")
        assert len(third.before) <= 3, third.before
        assert len(third.after) <= 3, third.after
        for each in (first, third):
            early = NOT_BEFORE_THE_LAUNCH & set(each.modules)
            assert not early, early
            assert sum(name.partition(".")[0] == "perdure" for name in each.modules) <= OWN
        stage.close()
