"""Ordinary finished workdirs. Content that the last checkpoint has may be removed, and is restored
byte for byte. Other content stays."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

import pytest

from perdure.engine import checkpoints, service
from perdure.engine.attempt import workdir
from perdure.engine.sweeper import Class, SweepVerdict, Target, listed, reset
from perdure.errors import PerdureError, WorkspaceError
from perdure.model import RunState, TaskRun
from perdure.model.events import BroughtBack, WorkdirSwept
from perdure.workspace.snapshot.checkpoints import WorkdirCheckpoints
from tests.sweeper.ground import Ground, hashes
from tests.sweeper.states import STATES

BACKENDS = ("worktree", "isolated", "task")
BUILT = ("node_modules", "__pycache__")
"""Directories of build output, which a checkpoint does not contain."""
LARGE = 11 << 20
"""Size of an ignored file that is over the limit of checkpoints, in bytes."""

IGNORED = "*.log\ndist/\nbuild/\n.coverage\n*.egg-info/\n__pycache__/\nnode_modules/\n*.db\n"


def tree(top: Path) -> dict[str, tuple[int, bytes]]:
    """Return every file and link below the directory, with its permissions and content, except for
    git's own directory."""
    found = {}
    for directory, folders, names in os.walk(top):
        folders[:] = [name for name in folders if not (directory == str(top) and name == ".git")]
        for name in [*names, *(name for name in folders if Path(directory, name).is_symlink())]:
            path = Path(directory, name)
            if path != top / ".git":
                mode = path.lstat().st_mode
                content = os.fsencode(path.readlink()) if stat.S_ISLNK(mode) else path.read_bytes()
                found[str(path.relative_to(top))] = (mode, content)
    return found


def write(path: Path, content: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def finished(ground: Ground, number: int, backend: str) -> tuple[TaskRun, Path]:
    """Make a run that has ended, with the workdir that an agent leaves: work, logs, and output of
    builds and tests. Return the run and its workdir."""
    more = {"task": f"t{number}"} if backend == "task" else {"branch": f"work{number}"}
    run, top = ground.run(backend, f"task{number}", **more)
    write(top / ".gitignore", IGNORED)
    write(top / "src/new.py", f"print({number})\n")
    write(top / "README", "changed by the agent\n")
    write(top / "notes.md", "not committed\n")
    write(top / "build.log", "compiled\n" * number)
    write(top / "logs/run.log", f"run {number}\n")
    write(top / "dist/wheel.whl", os.urandom(200))
    write(top / "pkg.egg-info/PKG-INFO", "Name: pkg\n")
    write(top / ".coverage", os.urandom(100))
    write(top / "src/__pycache__/new.pyc", os.urandom(50))
    write(top / "node_modules/left-pad/index.js", "module.exports = 1\n")
    (top / "tool.sh").write_text("#!/bin/sh\n")
    (top / "tool.sh").chmod(0o755)
    (top / "latest").symlink_to("logs/run.log")
    if backend != "task" and number % 3:
        ground.yard.git("add", "src", cwd=top)
        ground.yard.git("commit", "-qm", "work", cwd=top)
    checkpoint(ground, run)
    return run, top


def checkpoint(ground: Ground, run: TaskRun) -> None:
    """Take the checkpoint of an attempt's end."""
    assert run.workspace is not None
    assert checkpoints.save_current(ground.engine, run, run.workspace, "end") is not None


def bring_back(ground: Ground, run: TaskRun) -> bool:
    """Restore the workdir, as each attempt does before it starts. Return whether something was
    restored."""
    assert run.workspace is not None
    fd = ground.engine.workspaces.lock(run.workspace, "a test")
    try:
        return workdir.restore_if_missing(
            ground.engine.store,
            ground.engine.workspaces,
            ground.engine.state,
            ground.engine.store.get(run.id),
        )
    finally:
        os.close(fd)


def empty_trash(ground: Ground) -> None:
    """Let the grace period pass and sweep, so that everything is deleted from the trash that was
    proven to be saved."""
    ground.sweep(days=8, many=True)
    assert [
        entry.id
        for entry in listed(ground.engine.workspaces, ground.engine.state)
        if entry.kind == "workdir"
    ] == []


def without_built(found: dict[str, tuple[int, bytes]]) -> dict[str, tuple[int, bytes]]:
    return {
        name: content
        for name, content in found.items()
        if not any(part in BUILT for part in Path(name).parts)
    }


def test_twenty_five_finished_workdirs(ground: Ground) -> None:
    """25 ordinary finished workdirs (some uncommitted, isolated, or without a repository) all go to
    the trash. Each is restored, file by file, when its work continues."""
    backends = ("worktree", "isolated", "worktree", "task", "worktree")
    made = [finished(ground, number, backends[number % 5]) for number in range(25)]
    before = {top: tree(top) for _, top in made}
    swept = ground.sweep(days=15, many=True)
    said = {row.path: row for row in swept.rows}
    taken = [(run, top) for run, top in made if said[str(top)].verdict is SweepVerdict.TAKE]
    assert len(taken) == 25, [row.why for row in swept.rows if row.verdict is SweepVerdict.PERSON]
    for run, top in taken:
        assert not top.exists()
        assert bring_back(ground, run) and tree(top) == before[top]
    assert listed(ground.engine.workspaces, ground.engine.state) == []


@pytest.mark.parametrize("backend", BACKENDS)
def test_back_from_its_checkpoint(ground: Ground, backend: str) -> None:
    """The trash was emptied. The checkpoint restores every byte except for build output, on the
    right branch. It is kept however old it is."""
    run, top = finished(ground, 4, backend)
    before = tree(top)
    status = (
        ground.yard.git("status", "--porcelain", "--branch", cwd=top) if backend != "task" else ""
    )
    ground.sweep(days=15)
    empty_trash(ground)
    ground.sweep(days=400, many=True)
    assert bring_back(ground, run) and tree(top) == without_built(before)
    assert (
        backend == "task" or ground.yard.git("status", "--porcelain", "--branch", cwd=top) == status
    )
    told = [record.event for record in ground.engine.store.history(run.id)]
    (gone,) = [event for event in told if isinstance(event, WorkdirSwept)]
    (back,) = [event for event in told if isinstance(event, BroughtBack)]
    assert gone.needed and gone.checkpoint == back.checkpoint > 0
    assert not bring_back(ground, run)


def test_a_restore_brings_back_what_is_in_the_trash_first(ground: Ground) -> None:
    """`perdure restore` of a run whose workdir was swept first restores everything from the trash,
    even content that no checkpoint has."""
    run, top = finished(ground, 1, "worktree")
    before = tree(top)
    ground.sweep(days=15)
    checkpoints.restore(ground.engine, run.id, files_only=True)
    assert tree(top) == before and listed(ground.engine.workspaces, ground.engine.state) == []


CHANGES = {
    "changed": ("notes.md", "written later\n"),
    "new": ("later.txt", "written later\n"),
    "new and ignored": ("later.log", "written later\n"),
    "ignored and changed": ("build.log", "written later\n"),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_what_came_after_the_checkpoint_stays(ground: Ground, backend: str, change: str) -> None:
    """If a file differs from the newest checkpoint, the workdir stays and the file is named. After
    a new checkpoint the workdir may go."""
    run, top = finished(ground, 5, backend)
    name, content = CHANGES[change]
    write(top / name, content)
    row = ground.row(ground.sweep(days=400), top)
    assert row.verdict is SweepVerdict.PERSON and name in row.why and "tool.sh" not in row.why
    checkpoint(ground, run)
    assert ground.row(ground.sweep(), top).verdict is SweepVerdict.TAKE


def test_a_large_ignored_file_keeps_the_workdir(ground: Ground) -> None:
    """Ignored files that are over the limit, so that no checkpoint contains them, are named and
    keep the workdir in place."""
    _, top = finished(ground, 2, "worktree")
    write(top / "data.db", bytes(LARGE))
    row = ground.row(ground.sweep(days=400), top)
    assert (
        row.verdict is SweepVerdict.PERSON
        and "data.db (it is ignored, and larger than 10 MiB)" in row.why
    )


def test_large_build_output_waits_in_the_trash(ground: Ground) -> None:
    """Build output over the limit goes to the trash together with its workdir. It is never deleted
    from there automatically, and it is restored with the workdir."""
    run, top = finished(ground, 2, "worktree")
    write(top / "dist/large.whl", os.urandom(LARGE))
    before = tree(top)
    row = ground.row(ground.sweep(days=15), top)
    assert row.verdict is SweepVerdict.TAKE and "dist/large.whl" in row.why
    (entry,) = listed(ground.engine.workspaces, ground.engine.state)
    assert any("dist/large.whl" in sentence for sentence in entry.unsaved or ())
    ground.sweep(days=400)
    assert bring_back(ground, run) and tree(top) == before


def test_build_output_without_a_checkpoint_waits_in_the_trash(ground: Ground) -> None:
    """If no checkpoint was ever taken, a workdir with ignored build output goes to the trash and
    stays there. An ignored log keeps the workdir in place."""
    _, top = ground.run()
    write(top / ".gitignore", IGNORED)
    ground.yard.git("commit", "-qam", "ignore", cwd=top)
    write(top / "dist/wheel.whl", "wheel")
    write(top / ".coverage", "data")
    write(top / "build.log", "compiled\n")
    assert "ignored files: build.log" in ground.row(ground.sweep(days=15), top).why
    (top / "build.log").unlink()
    entry = Path(ground.row(ground.sweep(), top).trash)
    ground.sweep(days=400)
    assert (entry / "workdir/dist/wheel.whl").read_text() == "wheel"


GO = {
    "modified", "deleted", "staged", "untracked", "ignored", "ignored by info/exclude", "assume-unchanged", "skip-worktree",
    "showUntrackedFiles=no", "nested repository", "commits on a detached HEAD", "branch not pushed", "stash",
    "commits that only the reflog knows", "server does not answer", "files without a repository", "nothing but a repository",
}  # fmt: skip
"""States all of whose content a checkpoint has."""


# Such commits are kept beside the checkpoint when the workdir goes. The last test about them is
# below.
@pytest.mark.parametrize(
    "name", [name for name in STATES if name != "commits that only the reflog knows"]
)
def test_a_checkpoint_before_a_state_saves_nothing_of_it(ground: Ground, name: str) -> None:
    """A checkpoint from before a workdir came into this state proves nothing about it. The workdir
    stays."""
    state = STATES[name]
    run, top = ground.run(state.backend)
    checkpoint(ground, run)
    ground.sweep(dry=True)
    undo = state.make(ground, top)
    try:
        assert str(top) not in [row.path for row in ground.sweep(days=400).taken]
    finally:
        if undo is not None:
            with suppress(PerdureError):
                undo()


@pytest.mark.parametrize(
    "name",
    [name for name in STATES if STATES[name].movable and name != "same workdir under another run"],
)
def test_a_checkpoint_after_a_state(ground: Ground, name: str) -> None:
    """If a checkpoint has everything of a state, the workdir goes, and is restored with every file
    from the trash or from the checkpoint. If it does not, or cannot be taken, the workdir stays."""
    state = STATES[name]
    run, top = ground.run(state.backend)
    ground.sweep(dry=True)
    undo = state.make(ground, top)
    try:
        with suppress(PerdureError, OSError):
            checkpoint(ground, run)
        before = hashes(top)
        taken = [row.path for row in ground.sweep(days=15).taken]
        assert (str(top) in taken) == (name in GO)
        if name not in GO:
            return
        assert bring_back(ground, run) and hashes(top) == before
        if undo is not None:
            undo()
        ground.sweep(days=15)
        empty_trash(ground)
        assert bring_back(ground, run) and hashes(top) >= {
            each for each in before if each[0] not in ("HEAD", "logs")
        }
    finally:
        if undo is not None:
            with suppress(PerdureError, OSError):
                undo()


def test_commits_of_the_reflog_are_kept_beside_the_checkpoint(ground: Ground) -> None:
    """An agent amended commits in its own repository. The earlier commits can still be reached
    after its workdir goes, and after the trash is emptied."""
    state = STATES["commits that only the reflog knows"]
    run, top = ground.run(state.backend)
    state.make(ground, top)
    checkpoint(ground, run)
    lost = ground.yard.git("rev-parse", "HEAD@{1}", cwd=top)
    ground.sweep(days=15)
    empty_trash(ground)
    (shelf,) = (ground.yard.root / ".perdure/shelves").glob("*.git")
    ground.yard.git("--git-dir", str(shelf), "gc", "--prune=now", "-q")
    assert ground.yard.git("--git-dir", str(shelf), "show", f"{lost}:README") == "first try"


@pytest.mark.parametrize("how", ["its ref", "its objects", "its row"])
def test_a_checkpoint_that_is_lost_proves_nothing(ground: Ground, how: str) -> None:
    """A checkpoint does not count if its ref, its objects or its row is missing. The workdir stays,
    and is not deleted from the trash."""
    run, top = finished(ground, 3, "task")
    (kept,) = ground.engine.store.checkpoints(run.id)
    entry = Path(ground.row(ground.sweep(days=15), top).trash)
    for each in ground.engine.store.checkpoints(run.id):
        _lose(ground, run, how, each.number, each.workdir.ref)
    row = ground.row(ground.sweep(days=400), entry)
    assert row.verdict is SweepVerdict.KEEP and f"perdure trash purge {entry.name}" in row.why
    assert (entry / "workdir/notes.md").exists() and kept.number
    if how != "its objects":
        assert bring_back(ground, run)
        assert ground.row(ground.sweep(days=400), top).verdict is SweepVerdict.PERSON


def _lose(ground: Ground, run: TaskRun, how: str, number: int, ref: str) -> None:
    (shelf,) = (ground.yard.root / ".perdure/shelves").glob("*.git")
    match how:
        case "its ref":
            ground.yard.git("--git-dir", str(shelf), "update-ref", "-d", ref)
        case "its objects":
            blob = ground.yard.git("--git-dir", str(shelf), "rev-parse", f"{ref}:worktree/notes.md")
            (shelf / "objects" / blob[:2] / blob[2:]).unlink(missing_ok=True)
        case _:
            ground.engine.store.forget_checkpoints(run.id, [number])


def test_a_run_off_the_list_keeps_no_checkpoint(ground: Ground) -> None:
    """`rm` refuses a run whose checkpoint is the only copy of its work, and says what to do. After
    `rm --force` its workdir is not deleted from the trash."""
    run, top = finished(ground, 1, "worktree")
    entry = Path(ground.row(ground.sweep(days=15), top).trash)
    with pytest.raises(WorkspaceError, match="only copy") as refused:
        service.remove(ground.engine.store, ground.engine.workspaces, ground.engine.host, run.id)
    assert f"perdure rm --force {run.name}" in refused.value.hint
    service.remove(
        ground.engine.store, ground.engine.workspaces, ground.engine.host, run.id, force=True
    )
    assert (
        ground.row(ground.sweep(days=400), entry).verdict is SweepVerdict.KEEP
        and (entry / "workdir/notes.md").exists()
    )


def test_what_was_pushed_needs_no_checkpoint(ground: Ground) -> None:
    """If all work of a run is in the repository, the run can be removed, whether its workdir was
    swept or not."""
    run, top = ground.run()
    checkpoint(ground, run)
    ground.sweep(days=15)
    empty_trash(ground)
    assert not top.exists()
    assert (
        service.remove(
            ground.engine.store, ground.engine.workspaces, ground.engine.host, run.id
        ).unsaved
        == ()
    )


def test_only_the_kept_checkpoint_outlives_its_age(ground: Ground) -> None:
    """Old checkpoints of a swept run are deleted, except for the one that proves that its workdir
    is saved."""
    run, _ = finished(ground, 1, "worktree")
    checkpoint(ground, run)
    swept = ground.sweep(days=60)
    (number,) = [
        event.checkpoint
        for record in ground.engine.store.history(run.id)
        if isinstance(event := record.event, WorkdirSwept)
    ]
    ground.sweep()
    assert [each.number for each in ground.engine.store.checkpoints(run.id)] == [number]
    assert [row.verdict for row in swept.rows if row.cls is Class.CHECKPOINTS].count(
        SweepVerdict.TAKE
    ) == 1


def test_killed_while_it_is_brought_back(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    """perdure is killed when the workdir has been made but not yet filled. It is filled before an
    agent starts in it."""
    run, top = finished(ground, 1, "worktree")
    before = tree(top)
    ground.sweep(days=15)
    empty_trash(ground)

    class Killed(BaseException): ...

    def killed(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as broken, pytest.raises(Killed):
        broken.setattr(WorkdirCheckpoints, "restore", killed)
        bring_back(ground, run)
    assert top.exists() and not (top / "notes.md").exists()
    ground.engine.store.requeue(run.id, "a test")
    ground.engine.store.request_cancel(run.id)
    assert bring_back(ground, run) and tree(top) == without_built(before)
    assert not bring_back(ground, run)


def test_after_a_reset_nothing_comes_back(ground: Ground) -> None:
    """A run that a person has reset begins in a fresh workdir. An earlier clean-up is not undone."""
    run, top = finished(ground, 1, "worktree")
    ground.sweep(days=15)
    reset(
        ground.engine.store,
        ground.engine.workspaces,
        ground.engine.host,
        Target(run=run.name),
        ground.yard.repo,
    )
    assert not bring_back(ground, run) and not top.exists()


def test_a_dry_run_takes_no_checkpoint(ground: Ground) -> None:
    """A dry run reports what would go and which checkpoint proves it, and stores nothing."""
    run, top = finished(ground, 1, "worktree")
    row = ground.row(ground.sweep(days=15, dry=True), top)
    assert row.verdict is SweepVerdict.TAKE and "checkpoint 1" in row.why
    assert (
        len(ground.engine.store.checkpoints(run.id)) == 1
        and ground.engine.store.get(run.id).state is RunState.CANCELLED
    )
