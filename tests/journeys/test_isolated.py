"""Repositories by URL, whose workdirs are isolated clones: forks of such runs, and plans whose
branches are merged, with the real CLIs."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.journeys.stage import Stage, said
from tests.journeys.test_conversations import TALK, awkward, prints
from tests.journeys.test_plan_runs import DIAMOND, meets, script, tasks_of, write
from tests.servers.githttp import GitHttp, serving

MakeStage = Callable[..., Stage]

pytestmark = pytest.mark.journey


@pytest.fixture(params=["claude", "codex"])
def agent(request: pytest.FixtureRequest) -> str:
    """Return a CLI that can fork."""
    return str(request.param)


@pytest.fixture
def forge(tmp_path: Path) -> Iterator[GitHttp]:
    """A git server without a password."""
    with serving(tmp_path / "forge", "") as server:
        yield server


def git(one: Stage, cwd: Path | str, *words: str) -> str:
    who = ["-c", "user.name=Ada", "-c", "user.email=ada@example.invalid"]
    return subprocess.run(
        ["git", *who, *words], cwd=cwd, env=one.environ, capture_output=True, text=True, check=True
    ).stdout.strip()


def files(workdir: Path) -> dict[str, object]:
    """Return every file of a clone except git's own."""
    return {
        name: mark for name, mark in prints(workdir).items() if name.partition("/")[0] != ".git"
    }


def test_a_fork_of_a_clone_begins_where_its_parent_stands(stage: MakeStage, forge: GitHttp) -> None:
    """The fork has its own clone with the parent's commits, staged and uncommitted files, and the
    parent's conversation. The parent and the repository are unchanged."""
    one = stage(TALK)
    forge.make("shop", one.repo)
    words = (
        "--permissions",
        "full",
        "--agent",
        one.agent,
        "--json",
        "Write one.txt. The magic word is quercus.",
    )
    parent = one.perdure("run", "--name", "task", "--repo", forge.url("shop"), *words)
    assert parent.code == 0, parent.err
    workdir = Path(parent.json["workspace"]["path"])
    git(one, workdir, "add", "one.txt")
    git(one, workdir, "commit", "-qm", "the agent's own commit")
    awkward(workdir)
    before = files(workdir)
    done = one.perdure("fork", "task", "In the fork.", "--as", "branched", "--json")
    assert done.code == 0, done.err
    (attempt,) = done.json["attempts"]
    assert (attempt["continuation"], attempt["receipt"]["verdict"]) == ("fork", "forked"), attempt
    place = Path(done.json["workspace"]["path"])
    assert (done.json["workspace"]["backend"], done.json["workspace"]["repo"]) == (
        "isolated",
        forge.url("shop"),
    )
    assert git(one, place, "branch", "--show-current") == "perdure/branched"
    assert git(one, place, "rev-parse", "HEAD") == git(one, workdir, "rev-parse", "HEAD")
    assert git(one, place, "diff", "--cached", "--name-only") == "staged.txt"
    assert files(place) == before == files(workdir)
    shown = said(one.rehearsal.last.messages)
    assert "quercus" in shown and "In the fork." in shown
    assert "the agent's own commit" not in git(
        one, forge.root / "shop.git", "log", "--all", "--format=%s"
    )
    git(one, place, "fsck", "--no-dangling", "--no-progress")
    one.nothing_survives()


def test_a_fork_takes_no_branch_that_is_there(stage: MakeStage, forge: GitHttp) -> None:
    """A fork onto a branch that the repository already has is refused, and leaves no workdir."""
    one = stage(TALK)
    bare = forge.make("shop", one.repo)
    words = ("--permissions", "full", "--agent", one.agent, "--json", "Write one.txt.")
    assert one.perdure("run", "--name", "task", "--repo", forge.url("shop"), *words).code == 0
    git(one, bare, "branch", "feature", "main")
    refused = one.perdure("fork", "task", "In the fork.", "--branch", "feature", "--as", "branched")
    assert refused.code == 6 and "already has a branch feature" in refused.err, refused.err
    assert one.perdure("show", "branched").code != 0
    assert one.perdure("fork", "task", "In the fork.", "--as", "branched").code == 0


def test_branches_of_clones_meet(stage: MakeStage, forge: GitHttp, tmp_path: Path) -> None:
    """A plan on a repository by URL runs two branches at the same time, each in its own clone. Both
    clones begin at the same commit, although the remote's branch moves in the meantime. The last
    task has the files of both branches."""
    one = stage(
        script(
            Do_the_root=(
                "run echo a > a.txt; echo small > .env; echo .env > .gitignore\n---\nsay The root "
                "is done."
            ),
            Do_branch_B=f"{meets('b', 'c', str(tmp_path))}\n---\nsay B is done.",
            Do_branch_C=f"{meets('c', 'b', str(tmp_path))}\n---\nsay C is done.",
            Do_the_rest="run cat a.txt b.txt c.txt > d.txt\n---\nsay All is done.",
        )
    )
    bare = forge.make("shop", one.repo)
    began = git(one, bare, "rev-parse", "main")
    plan = write(one, *DIAMOND)
    plan.write_text(
        plan.read_text().replace(f'repo = "{one.repo}"', f'repo = "{forge.url("shop")}"')
    )

    def moves_on(what: str) -> None:
        forge.done = lambda what: None
        git(one, one.repo, "commit", "-q", "--allow-empty", "-m", "meanwhile")
        git(one, one.repo, "push", "-q", str(bare), "main")

    # The remote's branch moves after the first answer to a fetch, when the plan has already found
    # the commit to begin at.
    forge.done = lambda what: moves_on(what) if what.startswith("POST") else None
    done = one.perdure("plan", "run", str(plan), "--jobs", "2", "--json")
    assert done.code == 0, done.err
    tasks = tasks_of(done)
    assert [tasks[name]["verdict"] for name in "abcd"] == ["fresh", "native", "forked", "native"], (
        done.err
    )
    assert tasks["c"]["path"] != tasks["b"]["path"] == tasks["d"]["path"]
    assert (tasks["d"]["merged"], tasks["d"]["conflicts"], tasks["d"]["changed"]) == (
        ["c"],
        [],
        ["d.txt"],
    )
    assert (tasks["c"]["changed"], tasks["b"]["changed"]) == (["c.txt"], ["b.txt"])
    result = Path(done.json["result"]["path"])
    assert (result / "d.txt").read_text() == "a\nb\nc\n"
    assert (Path(tasks["c"]["path"]) / ".env").read_text() == "small\n"
    assert done.json["base"] == began != git(one, bare, "rev-parse", "main")
    for place in (result, Path(tasks["c"]["path"])):
        assert git(one, place, "merge-base", "HEAD", began) == began
        assert "meanwhile" not in git(one, place, "log", "--format=%s", "HEAD")
        git(one, place, "fsck", "--no-dangling", "--no-progress")
    one.nothing_survives()


@pytest.mark.parametrize("agent", ["claude"], indirect=True)
def test_a_conflict_of_clones_goes_to_the_last_task(stage: MakeStage, forge: GitHttp) -> None:
    """Both branches changed the same line. The prompt of the last task says so, and the task has
    both sides in its clone."""
    one = stage(
        script(
            Do_the_root="run echo a > a.txt\n---\nsay The root is done.",
            Do_branch_B="run echo 'b = 1' > greet.py\n---\nsay B is done.",
            Do_branch_C="run echo 'c = 1' > greet.py\n---\nsay C is done.",
            Do_the_rest="run git show HEAD^1:greet.py HEAD^2:greet.py > greet.py\n---\nsay Resolved.",
        )
    )
    forge.make("shop", one.repo)
    plan = write(one, *DIAMOND)
    plan.write_text(
        plan.read_text().replace(f'repo = "{one.repo}"', f'repo = "{forge.url("shop")}"')
    )
    done = one.perdure("plan", "run", str(plan), "--jobs", "2", "--json")
    assert done.code == 0, done.err
    task = tasks_of(done)["d"]
    assert task["conflicts"] == [{"file": "greet.py", "reason": "both changed the same lines"}]
    assert (Path(task["path"]) / "greet.py").read_text() == "b = 1\nc = 1\n"
    one.nothing_survives()
