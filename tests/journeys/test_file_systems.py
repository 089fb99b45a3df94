"""Root and repository on different file systems, and a repository of which no checkpoint can be
taken, as a user sees them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.finding import on_another_file_system
from tests.journeys.stage import Stage

MakeStage = Callable[..., Stage]

PROMPT = "Write one.txt."
TALK = """by history
run echo one > one.txt
---
say The first file is written.
---
say Two.
---
say Three.
"""

pytestmark = pytest.mark.journey


@pytest.fixture(params=["claude"])
def agent(request: pytest.FixtureRequest) -> str:
    """Return the only CLI that is tested, because the CLIs do not differ in what these tests
    check."""
    return str(request.param)


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Path]:
    """Make a directory on another file system than the stage, which is in the temporary
    directory."""
    other = on_another_file_system(Path(tempfile.gettempdir()))
    with tempfile.TemporaryDirectory(dir=other) as place:
        yield Path(place)


def begin(one: Stage, *words: str) -> tuple[str, ...]:
    return ("run", "--name", "task", "--permissions", "full", "--agent", one.agent, *words, PROMPT)


def test_a_run_is_kept_across_file_systems(stage: MakeStage, elsewhere: Path) -> None:
    """If perdure's root and the repository are on different file systems, checkpoints of a run are
    taken. Restore, export and fork work with them."""
    one = stage(TALK, extra={"PERDURE_ROOT": str(elsewhere / "root")})
    done = one.perdure(*begin(one))
    assert done.code == 0 and "WARNING" not in done.err, done.err
    report = one.show()
    assert report["missed_checkpoint"] == "" and report["attempts"][0]["checkpoints"], report
    workdir = Path(report["workspace"]["path"])
    (workdir / "one.txt").unlink()
    restored = one.perdure("restore", "task")
    assert restored.code == 0 and (workdir / "one.txt").read_text() == "one\n", restored.err
    exported = one.perdure("export", "task", "-o", str(one.tmp / "task.perdure"))
    assert exported.code == 0, exported.err
    fork = one.perdure("fork", "task", "Another way.", "--as", "other", "--json")
    assert fork.code == 0 and fork.json["attempts"][0]["receipt"]["verdict"] == "forked", fork.err
    checked = one.perdure("doctor", "--agent", one.agent)
    assert (
        f"ok    checkpoints  a trial checkpoint of {one.repo}/.git from {elsewhere / 'root'} "
        f"succeeded" in checked.out
    ), checked.out


def test_a_run_without_checkpoints_says_so(stage: MakeStage) -> None:
    """If no checkpoint can be taken of a repository, `doctor` finds this out by a trial and reports
    it. The run warns at its end, even with -q. `show`, `why`, `restore` and `export` give the
    reason."""
    one = stage(TALK)
    packs = one.repo / ".git/objects/pack"
    packs.rmdir()
    packs.write_text("no directory")
    checked = one.perdure("doctor", "--agent", one.agent)
    assert (
        checked.code == 1
        and "bad   checkpoints  no checkpoint of this repository can be taken" in checked.out
    ), checked.out
    done = one.perdure(*begin(one, "--quiet"))
    assert done.code == 0, done.err
    assert (
        "WARNING: task: no checkpoint could be taken: restore, fork and export do not work"
        in done.err
    ), done.err
    assert one.show()["missed_checkpoint"]
    for verb in ("show", "why"):
        told = one.perdure(verb, "task").out
        assert "WARNING" in told and "no checkpoint could be taken" in told, told
    for words in (("restore", "task"), ("export", "task", "-o", str(one.tmp / "task.perdure"))):
        refused = one.perdure(*words)
        assert (
            refused.code == 5
            and "task has no checkpoint, because none could be taken" in refused.err
        ), refused.err
