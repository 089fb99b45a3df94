"""`reset`: the work that it selects, its effects, what it refuses, and how it is undone."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from perdure.engine import service
from perdure.engine.sweeper import Target, reset, restore
from perdure.engine.sweeper.reset import clear
from perdure.errors import Conflict, NotFound, UsageError
from perdure.model import RESET, Condition, RunState, Session, SessionKey, SessionState, TaskRun
from tests.sweeper.ground import Ground


def talk(ground: Ground, run: TaskRun, name: str = "s1") -> Session:
    """Make a conversation of the run."""
    session = Session(
        key=SessionKey(run.spec.agent, run.scope),
        id=name,
        state=SessionState.PINNED,
        created=1,
        updated=1,
        attempts=1,
    )
    ground.engine.store.put_session(session)
    return session


def test_it_clears_and_can_be_undone(ground: Ground) -> None:
    """The workdir is in the trash with every file, the conversation is retired, and the waiting run
    is cancelled. `restore` restores all of this, with the rebase that was in progress and the
    staged changes."""
    run, top = ground.run()
    session = talk(ground, run)
    ground.engine.store.requeue(run.id, "a test")
    (top / "README").write_text("staged\n")
    ground.yard.git("add", "README", cwd=top)
    (top / "new").write_text("untracked\n")
    cleared = reset(
        ground.engine.store,
        ground.engine.workspaces,
        ground.engine.host,
        Target(run="task"),
        ground.yard.repo,
    )
    assert (cleared.sessions, len(cleared.saved), len(cleared.trash)) == (("s1",), 1, 1)
    assert ground.engine.store.get("task").state is RunState.CANCELLED
    (retired,) = ground.engine.store.lineage(session.key)
    assert (retired.state, retired.cause) == (SessionState.RETIRED, RESET)
    assert not top.exists()
    assert ground.yard.git("show", f"{cleared.saved[0]}:new") == "untracked"
    back = restore(
        ground.engine.store,
        ground.engine.workspaces,
        ground.engine.state,
        cleared.trash[0].name[:8],
    )
    assert back.sessions == ("s1",) and top in back.places
    live = ground.engine.store.session(session.key)
    assert live is not None and live.id == "s1"
    assert ground.yard.git("status", "--porcelain", cwd=top).splitlines() == ["M  README", "?? new"]


def test_afterwards_it_begins_anew(ground: Ground) -> None:
    """A new attempt has a fresh workdir and no conversation. The old workdir stays in the trash,
    and cannot replace the new one."""
    run, top = ground.run()
    talk(ground, run)
    (top / "new").write_text("of before\n")
    cleared = reset(
        ground.engine.store,
        ground.engine.workspaces,
        ground.engine.host,
        Target(run="task"),
        ground.yard.repo,
    )
    assert run.workspace is not None
    ground.prepare(run.workspace)
    assert top.is_dir() and not (top / "new").exists()
    talk(ground, run, "s2")
    with pytest.raises(Conflict, match="exists again"):
        restore(
            ground.engine.store,
            ground.engine.workspaces,
            ground.engine.state,
            cleared.trash[0].name,
        )
    assert (cleared.trash[0] / "workdir/new").read_text() == "of before\n"


def test_commits_on_the_branch_stay(ground: Ground) -> None:
    """The branch of a worktree keeps the agent's commits, and the new workdir has them. If the
    branch is deleted after the reset, the new workdir begins at the base."""
    run, top = ground.run()
    assert run.workspace is not None
    git = ground.yard.git
    (top / "work").write_text("of the agent\n")
    git("add", "-A", cwd=top)
    git("commit", "-q", "-m", "the agent's", cwd=top)
    tip = git("rev-parse", "HEAD", cwd=top)
    reset(
        ground.engine.store,
        ground.engine.workspaces,
        ground.engine.host,
        Target(run="task"),
        ground.yard.repo,
    )
    assert git("rev-parse", run.workspace.branch) == tip
    ground.prepare(run.workspace)
    assert (top / "work").exists()
    reset(
        ground.engine.store,
        ground.engine.workspaces,
        ground.engine.host,
        Target(run="task"),
        ground.yard.repo,
    )
    git("branch", "-D", run.workspace.branch)
    ground.prepare(run.workspace)
    assert git("rev-parse", "HEAD", cwd=top) == run.workspace.base
    assert not (top / "work").exists()


def test_a_conversation_that_took_its_place_stays(ground: Ground) -> None:
    """A reset is undone after a new conversation began. The files are restored, and the new
    conversation stays live."""
    run, top = ground.run()
    session = talk(ground, run)
    cleared = reset(
        ground.engine.store,
        ground.engine.workspaces,
        ground.engine.host,
        Target(run="task"),
        ground.yard.repo,
    )
    talk(ground, run, "s2")
    assert (
        restore(
            ground.engine.store,
            ground.engine.workspaces,
            ground.engine.state,
            cleared.trash[0].name,
        ).sessions
        == ()
    )
    live = ground.engine.store.session(session.key)
    assert live is not None and live.id == "s2" and top.is_dir()


TARGETS = {
    "name": (Target(run="task"), {"task"}),
    "branch": (Target(branch="work"), {"task", "codex"}),
    "branch and agent": (Target(branch="work", agent="codex"), {"codex"}),
    "issue": (Target(issue="#12"), {"issue"}),
    "issue of the repository by path": (Target(issue="12", repo="REPO"), {"issue"}),
    "service and task": (Target(service="shop", task="t1"), {"report"}),
}


@pytest.mark.parametrize("what", TARGETS)
def test_whose_work_is_meant(ground: Ground, what: str) -> None:
    """A run, an agent's work on a branch or an issue, or a service's task is selected, and no other
    work."""
    ground.run(name="task")
    ground.run("isolated", name="codex", agent="codex")
    ground.run(name="other", branch="other")
    ground.run(name="issue", branch="issue", scope="example/repo#12")
    ground.run("task", name="report")
    target, meant = TARGETS[what]
    target = replace(target, repo=str(ground.yard.repo)) if target.repo else target
    cleared = reset(
        ground.engine.store,
        ground.engine.workspaces,
        ground.engine.host,
        target,
        ground.yard.repo / "src",
    )
    assert {run.name for run in cleared.runs} == meant
    assert len(cleared.trash) == len(meant)


@pytest.mark.parametrize(
    "repo", ["https://git.example.com/shop/web", "https://git.example.com/shop/web.git/"]
)
def test_an_issue_of_a_forge_is_found_by_its_repositorys_address(ground: Ground, repo: str) -> None:
    """An issue is found by its repository's address, with or without `.git` at its end. The issue
    with the same number in another repository is not selected."""
    spec = ground.yard.spec("isolated", scope="src:dev:shop/web#12")
    planned = ground.engine.workspaces.plan(spec, "web", ground.yard.repo)
    run = ground.engine.store.add(
        spec, "a" * 32, "web", replace(planned, repo="https://git.example.com/shop/web.git")
    )
    ground.engine.store.request_cancel(run.id)
    assert [
        found.name
        for found in clear(
            ground.engine.store, ground.engine.host, Target(issue="12", repo=repo), ground.yard.top
        )
    ] == ["web"]
    with pytest.raises(NotFound):
        clear(
            ground.engine.store,
            ground.engine.host,
            Target(issue="12", repo="https://git.example.com/bank/web"),
            ground.yard.top,
        )


def test_nothing_is_meant(ground: Ground) -> None:
    """A reset with another repository or an unknown branch finds nothing, and one without any
    selection is a usage error. Nothing is moved."""
    _, top = ground.run()
    for target in (
        Target(branch="none"),
        Target(branch="work", repo=str(ground.yard.top / "home")),
    ):
        with pytest.raises(NotFound):
            reset(
                ground.engine.store,
                ground.engine.workspaces,
                ground.engine.host,
                target,
                ground.yard.repo,
            )
    with pytest.raises(UsageError):
        reset(
            ground.engine.store,
            ground.engine.workspaces,
            ground.engine.host,
            Target(agent="claude"),
            ground.yard.repo,
        )
    assert top.is_dir()


def test_it_refuses_while_somebody_is_at_it(ground: Ground) -> None:
    """A run that is running, or open in the agent's own program, cannot be reset, and neither can a
    run that shares its conversation. Nothing is cleared."""
    run, top = ground.run(scope="shared")
    other, _ = ground.run(name="other", branch="other", scope="shared")
    session = talk(ground, run)
    ground.engine.store.open_run(other.id, Condition(type="open", message="", at=0), session)
    with pytest.raises(Conflict, match="other is open"):
        reset(
            ground.engine.store,
            ground.engine.workspaces,
            ground.engine.host,
            Target(run="task"),
            ground.yard.repo,
        )
    ground.engine.store.requeue(run.id, "a test")
    from perdure.model.events import RunTakenBack

    ground.engine.store.take_back(other.id, [], RunTakenBack(session_id="s1"))
    ground.engine.store.claim("ann", 60.0, ref=run.id)
    with pytest.raises(Conflict, match="task is running"):
        reset(
            ground.engine.store,
            ground.engine.workspaces,
            ground.engine.host,
            Target(run="task"),
            ground.yard.repo,
        )
    assert top.is_dir() and ground.engine.store.session(session.key) is not None


def test_a_dry_run_only_tells(ground: Ground) -> None:
    """A dry run lists the runs, and the content that would exist only in the trash. Nothing is
    changed."""
    run, top = ground.run()
    session = talk(ground, run)
    (top / "new").write_text("x")
    cleared = reset(
        ground.engine.store,
        ground.engine.workspaces,
        ground.engine.host,
        Target(run="task"),
        ground.yard.repo,
        dry=True,
    )
    assert [each.name for each in cleared.runs] == [
        "task"
    ] and "untracked files: new" in cleared.unsaved[0]
    assert top.is_dir() and ground.engine.store.session(session.key) == session


def test_a_removed_run_is_on_the_list_again(ground: Ground) -> None:
    """`trash restore` undoes `rm`, with the same name and key. If the name is taken by now, the run
    is listed under its id."""
    run, top = ground.run(key="k1")
    removed = service.remove(
        ground.engine.store, ground.engine.workspaces, ground.engine.host, "task"
    )
    assert removed.trash is not None
    assert (
        restore(
            ground.engine.store, ground.engine.workspaces, ground.engine.state, removed.trash.name
        ).run
        == "task"
    )
    assert ground.engine.store.get("k1").id == run.id and top.is_dir()
    removed = service.remove(
        ground.engine.store, ground.engine.workspaces, ground.engine.host, "task"
    )
    ground.run(name="task", branch="another")
    assert (
        removed.trash is not None
        and restore(
            ground.engine.store, ground.engine.workspaces, ground.engine.state, removed.trash.name
        ).run
        == run.id
    )


def test_an_admin_directory_that_was_taken_gets_another_name(ground: Ground) -> None:
    """git has given the name of an admin directory to another worktree in the meantime. The
    restored worktree gets another name, and git knows both."""
    run, top = ground.run()
    removed = service.remove(
        ground.engine.store, ground.engine.workspaces, ground.engine.host, "task"
    )
    taken = ground.yard.repo / ".git/worktrees" / top.name
    taken.mkdir(parents=True)
    (taken / "gitdir").write_text("/nowhere/.git\n")
    assert removed.trash is not None
    restore(ground.engine.store, ground.engine.workspaces, ground.engine.state, removed.trash.name)
    assert (
        ground.yard.git("status", "--porcelain", cwd=top) == ""
        and Path(taken / "gitdir").read_text() == "/nowhere/.git\n"
    )
    assert run.name == "task"
