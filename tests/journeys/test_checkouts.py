"""The user's own checkout before and after a run: uncommitted changes, what perdure says about
them, and how a result is applied."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.journeys.stage import Stage

MakeStage = Callable[..., Stage]

TALK = """by history
run cat greet.py new.txt > seen.txt 2>&1; echo one > one.txt
---
say The first file is written.
"""
COMMITS = """by history
run echo one > one.txt; git add one.txt; git commit -qm one
---
say It is committed.
"""

pytestmark = pytest.mark.journey


@pytest.fixture(params=["claude"])
def agent(request: pytest.FixtureRequest) -> str:
    """The agent of these tests: only one, because the CLIs do not differ here."""
    return str(request.param)


def git(one: Stage, *words: str) -> str:
    return subprocess.run(
        ["git", *words], cwd=one.repo, env=one.environ, capture_output=True, text=True, check=True
    ).stdout


def begin(one: Stage, *words: str) -> tuple[str, ...]:
    return (
        "run",
        "--name",
        "task",
        "--permissions",
        "full",
        "--agent",
        one.agent,
        *words,
        "Write one.txt.",
    )


def dirty(one: Stage) -> str:
    """Make a checkout with a staged, an unstaged, a new and an ignored file. Return its status."""
    (one.repo / ".gitignore").write_text("*.log\n")
    git(one, "add", ".gitignore")
    (one.repo / "greet.py").write_text("changed = True\n")
    (one.repo / "new.txt").write_text("new\n")
    (one.repo / "noise.log").write_text("ignored\n")
    return git(one, "status", "--porcelain")


def test_uncommitted_changes_are_told_of(stage: MakeStage) -> None:
    """A run from a checkout with uncommitted changes says that the agent does not get them, and
    which flag would include them. The agent gets none of them. Without a commit on the branch, no
    merge is suggested."""
    one = stage(TALK)
    status = dirty(one)
    done = one.perdure(*begin(one))
    assert done.code == 0, done.err
    assert (
        f"perdure: 3 uncommitted changes of {one.repo} will not be in the workdir; "
        f"--include-changes copies them" in done.err
    )
    workdir = Path(one.show()["workspace"]["path"])
    assert "Hello" in (workdir / "seen.txt").read_text() and not (workdir / "new.txt").exists()
    assert "apply it: perdure apply task" in done.err and "git merge" not in done.err
    assert git(one, "status", "--porcelain") == status


def test_uncommitted_changes_are_included(stage: MakeStage) -> None:
    """With --include-changes the workdir begins with the staged, unstaged and new files of the
    checkout, which stays as it was. Ignored files are left out. A second run on that branch, or
    another base, is refused with a way out."""
    one = stage(TALK)
    status = dirty(one)
    done = one.perdure(*begin(one, "--include-changes", "--branch", "feature"))
    assert done.code == 0 and "will not be in the workdir" not in done.err, done.err
    workdir = Path(one.show()["workspace"]["path"])
    assert (workdir / "seen.txt").read_text() == "changed = True\nnew\n" and not (
        workdir / "noise.log"
    ).exists()
    assert git(one, "-C", str(workdir), "status", "--porcelain").split() == [
        *status.split(),
        "??",
        "one.txt",
        "??",
        "seen.txt",
    ]
    assert (
        git(one, "status", "--porcelain") == status
        and git(one, "for-each-ref", "refs/perdure/fork") == ""
    )
    words = ("run", "--agent", one.agent, "--include-changes")
    refused = one.perdure(*words, "--branch", "feature", "Again.")
    assert refused.code == 6 and "The branch feature already has a workdir" in refused.err, (
        refused.err
    )
    refused = one.perdure(*words, "--base", "main", "Again.")
    assert (
        refused.code == 2 and "--include-changes starts from the checkout's HEAD" in refused.err
    ), refused.err


def test_a_merge_is_suggested_where_there_is_one(stage: MakeStage) -> None:
    """If the agent committed, perdure suggests `git merge`, and that command brings the commit into
    the checkout."""
    one = stage(COMMITS)
    done = one.perdure(*begin(one, "--env", "GIT_CONFIG_NOSYSTEM=1"))
    assert done.code == 0, done.err
    assert "perdure apply task, or git merge perdure/task" in done.err, done.err
    git(one, "merge", "-q", "perdure/task")
    assert (one.repo / "one.txt").read_text() == "one\n"


def test_a_lost_workdir_is_restored(stage: MakeStage) -> None:
    """If the workdir of a run is gone, `diff` names the command `restore`, which makes the workdir
    again."""
    one = stage(TALK)
    assert one.perdure(*begin(one, "--quiet")).code == 0
    workdir = Path(one.show()["workspace"]["path"])
    shutil.rmtree(workdir)
    refused = one.perdure("diff", "task")
    assert refused.code != 0 and "perdure restore" in refused.err, refused.err
    assert one.perdure("restore", "task").code == 0
    assert (workdir / "one.txt").read_text() == "one\n"


def test_a_file_url_names_the_checkout(stage: MakeStage) -> None:
    """`--repo file://...` is the repository at that path, in `run` and in `ls`. A file URL that
    names another machine is refused, and the error says how to write one."""
    one = stage("say Done.")
    dirty(one)
    url = f"file://{one.repo}"
    done = one.perdure("run", "--name", "task", "--agent", one.agent, "--repo", url, "Do it.")
    assert done.code == 0 and f"3 uncommitted changes of {one.repo}" in done.err, done.err
    run = one.show()
    assert (run["workspace"]["backend"], run["workspace"]["repo"]) == ("worktree", str(one.repo))
    listed = one.perdure("ls", "--json", "--repo", url).json["runs"]
    assert [row["name"] for row in listed] == ["task"]
    refused = one.perdure("run", "--agent", one.agent, "--repo", "file://elsewhere/shop", "Do it.")
    assert refused.code == 2 and "names no directory on this machine" in refused.err, refused.err
    assert "https" not in refused.err
