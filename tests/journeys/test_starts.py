"""The cost of a call besides its agent, measured in counts: programs that perdure starts, and
modules that it imports before the agent's start."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from perdure.agents.rehearsal import Rehearsal
from tests import spread
from tests.journeys.recorder import record
from tests.journeys.stage import Stage

NOT_BEFORE_THE_LAUNCH = {
    *("asyncio", "concurrent.futures", "email", "importlib.metadata", "tomllib", "zipfile"),
    "typing_extensions",  # perdure.cli.light_msgspec says what imports it
    *(
        "perdure.capsule",
        "perdure.forge.webhooks",
        "perdure.rules.transcript_repair",
        "perdure.agents.proof",
        "perdure.engine.sweeper",
    ),
    *(f"perdure.engine.attempt.{each}" for each in ("evidence", "finish", "repair", "supervision")),
    *("perdure.rules.work_report", "perdure.workspace.work"),
    *(f"perdure.agents.codex.{each}" for each in ("events", "outcome")),
    *(f"perdure.workspace.merge.{each}" for each in ("apply", "join", "push")),
    *(f"perdure.workspace.{each}" for each in ("changes", "contents", "isolated")),
    *(f"perdure.workspace.{each}" for each in ("removal", "transport", "view")),
    *(f"perdure.workspace.snapshot.{each}" for each in ("checkout", "disarm", "pack")),
}
"""Modules that no start of an agent in a worktree needs."""
OWN = 170
"""Largest number of perdure's own modules that are loaded before the agent starts."""


def test_a_call_starts_and_loads_little(tmp_path: Path) -> None:
    """A run is started in a new worktree and writes a file; then it is updated twice. The started
    programs are counted, and the imported modules are compared by name."""
    assert all(find_spec(name) for name in NOT_BEFORE_THE_LAUNCH)
    with Rehearsal("by history\nrun echo hello > hello.txt\n---\nsay Hello.\n") as rehearsal:
        stage = Stage(tmp_path, "codex", rehearsal)
        named = ("--agent", "codex", "--permissions", "full", "--name", "task")
        first = record(stage, "run", "-q", *named, "Say hello.")
        assert len(first.before) <= 3, first.before
        assert len(first.after) <= (13 if spread.is_on() else 8), "\n".join(first.after)
        record(stage, "update", "-q", "task", "Again.")
        third = record(stage, "update", "-q", "task", "And again.")
        assert len(third.before) <= 3, third.before
        assert len(third.after) <= 3, "\n".join(third.after)
        for each in (first, third):
            early = NOT_BEFORE_THE_LAUNCH & set(each.modules)
            assert not early, early
            assert sum(name.partition(".")[0] == "perdure" for name in each.modules) <= OWN
        # The changes of the run are known without another scan of its files.
        assert "1 file +1" in third.said
        # perdure's process exits without cleaning up its objects, but its database is complete.
        state = stage.home / ".local/state/perdure"
        assert [path.name for path in state.glob("perdure.db*")] == ["perdure.db"]
        stage.close()


def test_a_first_run_that_changes_nothing_starts_little(tmp_path: Path) -> None:
    """In a new worktree the first checkpoint needs three starts of git, and the next attempt finds
    its index in use."""
    with Rehearsal("by history\nsay Hello.\n") as rehearsal:
        stage = Stage(tmp_path, "codex", rehearsal)
        first = record(stage, "run", "-q", "--agent", "codex", "--name", "task", "Say hello.")
        # With the worktree on another file system, the index of the checkout is not used.
        assert len(first.after) <= (10 if spread.is_on() else 3), "\n".join(first.after)
        second = record(stage, "update", "-q", "task", "Again.")
        assert len(second.before) <= 3, second.before
        assert len(second.after) <= 3, "\n".join(second.after)
        stage.close()


def test_the_end_takes_no_modules_apart(tmp_path: Path) -> None:
    """perdure exits without Python's own clean-up, which takes as long as a start of Python.
    Functions registered for the exit still run, all output arrives, and the exit code is the
    verb's."""
    code = """
import atexit, sys
class Part:
    def __del__(self): print("taken apart")
part = Part()
from perdure.cli import main
def overview(text): atexit.register(print, "the last"); print(text)
main._overview = overview
raise SystemExit(main.main())
"""
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout.startswith("usage: perdure VERB")
    assert done.stdout.splitlines()[-1] == "the last"
    assert not done.stderr
