"""The states of a workdir in which clean-up tools lose work. The table of
docs/reference/deletion.md has one row for each.

`make` brings a workdir into the state; it may return a function that undoes it before the test
ends. `word` is a word in the reason that is given. `backend`: where the state can exist.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests import spread
from tests.sweeper.ground import Ground

Undo = Callable[[], object]
Make = Callable[[Ground, Path], Undo | None]


@dataclass(frozen=True)
class State:
    make: Make
    word: str
    backend: str = "worktree"
    movable: bool = True
    """Whether `reset` moves such a workdir to the trash. If not, `reset` also refuses."""


def _write(name: str, text: str = "precious\n") -> Make:
    def make(ground: Ground, top: Path) -> None:
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_text(text)

    return make


def _git(*steps: tuple[str, ...]) -> Make:
    def make(ground: Ground, top: Path) -> None:
        for step in steps:
            ground.yard.git(*step, cwd=top)

    return make


def _all(*makes: Make) -> Make:
    def make(ground: Ground, top: Path) -> Undo | None:
        undone = [undo for each in makes if (undo := each(ground, top)) is not None]
        return (lambda: [undo() for undo in undone]) if undone else None

    return make


COMMIT = _all(_write("README", "of the agent\n"), _git(("commit", "-qam", "work")))


def _exclude(ground: Ground, top: Path) -> None:
    path = Path(
        ground.yard.git(
            "rev-parse", "--path-format=absolute", "--git-path", "info/exclude", cwd=top
        )
    )
    path.parent.mkdir(exist_ok=True)
    path.write_text("hidden\n")
    (top / "hidden").write_text("precious\n")


def _nested(name: str, *, bare: bool = False) -> Make:
    def make(ground: Ground, top: Path) -> None:
        ground.yard.git("init", "-q", *(["--bare"] if bare else []), str(top / name))
        if not bare:
            ground.yard.git("commit", "-q", "--allow-empty", "-m", "x", cwd=top / name)

    return make


def _merge(ground: Ground, top: Path) -> None:
    git = ground.yard.git
    git("checkout", "-q", "-b", "side", cwd=top)
    _write("README", "side\n")(ground, top)
    git("commit", "-qam", "side", cwd=top)
    git("checkout", "-q", "work", cwd=top)
    _write("README", "mine\n")(ground, top)
    git("commit", "-qam", "mine", cwd=top)
    git("merge", "side", cwd=top, check=False)
    _write("README", "resolved\n")(ground, top)
    git("add", "README", cwd=top)


def _rebase(ground: Ground, top: Path) -> None:
    COMMIT(ground, top)
    ground.yard.git(
        "rebase", "-q", "-i", "HEAD~1", cwd=top, env={"GIT_SEQUENCE_EDITOR": "sed -i s/^pick/edit/"}
    )


def _sleeper(ground: Ground, top: Path) -> Undo:
    sleeper = subprocess.Popen(["sleep", "600"], cwd=top / "src")

    def end() -> None:
        sleeper.kill()
        sleeper.wait()

    return end


def _locked(ground: Ground, top: Path) -> None:
    ground.yard.git("worktree", "unlock", str(top))
    ground.yard.git("worktree", "lock", "--reason", "mine", str(top))


def _unmounted(ground: Ground, top: Path) -> Undo:
    aside = spread.rename(top, ground.yard.top / "unmounted")
    return lambda: spread.rename(aside, top)


def _repository_gone(ground: Ground, top: Path) -> Undo:
    aside = ground.yard.top / "aside"
    (ground.yard.repo / ".git").rename(aside)
    return lambda: aside.rename(ground.yard.repo / ".git")


def _status_fails(ground: Ground, top: Path) -> Undo:
    """Simulate a full disk for git, which then exits with 128 and prints nothing. Here the index is
    made unreadable."""
    broken = ground.yard.repo / ".git/objects"
    hidden = ground.yard.top / "objects"
    broken.rename(hidden)
    (broken).mkdir()
    return lambda: (shutil.rmtree(broken), hidden.rename(broken))


def _linked(ground: Ground, top: Path) -> Undo:
    aside = spread.rename(top, ground.yard.top / "moved")
    top.symlink_to(aside)

    def undo() -> None:
        top.unlink(missing_ok=True)
        if not top.exists():
            spread.rename(aside, top)

    return undo


def _no_pointer(ground: Ground, top: Path) -> Undo:
    text = (top / ".git").read_text()
    (top / ".git").unlink()
    return lambda: (top / ".git").write_text(text) if top.is_dir() else None


def _not_finished(ground: Ground, top: Path) -> Undo:
    run = ground.engine.store.requeue("task", "a test")
    return lambda: ground.engine.store.request_cancel(run.id)


def _held(ground: Ground, top: Path) -> Undo:
    place = ground.engine.store.get("task").workspace
    assert place is not None
    fd = ground.engine.workspaces.lock(place, "a test")
    return lambda: os.close(fd)


def _name_again(ground: Ground, top: Path) -> Undo:
    """Use the same branch, and so the same workdir, for another waiting run."""
    spec = ground.yard.spec("worktree")
    place = ground.engine.workspaces.plan(spec, "again", ground.yard.repo)
    run = ground.engine.store.add(spec, "a" * 32, "again", place)
    return lambda: ground.engine.store.request_cancel(run.id)


def _amended(ground: Ground, top: Path) -> None:
    COMMIT(ground, top)
    ground.yard.git("fetch", "-q", str(top), "work:refs/heads/kept")
    _write("README", "first try\n")(ground, top)
    ground.yard.git("commit", "-qam", "first try", cwd=top)
    ground.yard.git("reset", "-q", "--hard", "HEAD~1", cwd=top)


def _plain_repository(ground: Ground, top: Path) -> None:
    """Make a task's directory that contains only a repository without a checkout."""
    _nested(".")(ground, top)


def _stash(ground: Ground, top: Path) -> None:
    _write("README", "stashed\n")(ground, top)
    ground.yard.git("stash", "-q", cwd=top)


def _server_down(ground: Ground, top: Path) -> Undo:
    """Make the repository with the pushed commits unreachable, so that it is unknown whether they
    are there."""
    COMMIT(ground, top)
    ground.yard.git("fetch", "-q", str(top), "work:refs/heads/pushed")
    return _repository_gone(ground, top)


def _unborn(ground: Ground, top: Path) -> None:
    ground.yard.git("symbolic-ref", "HEAD", "refs/heads/unborn", cwd=top)


STATES: dict[str, State] = {
    "modified": State(_write("README"), "README"),
    "deleted": State(lambda ground, top: (top / "README").unlink(), "README"),
    "staged": State(_all(_write("new"), _git(("add", "new"))), "new"),
    "untracked": State(_write("new"), "untracked files: new"),
    "ignored": State(_write("secret.log"), "ignored files: secret.log"),
    "ignored by info/exclude": State(_exclude, "hidden"),
    "assume-unchanged": State(
        _all(_git(("update-index", "--assume-unchanged", "README")), _write("README")), "README"
    ),
    "skip-worktree": State(
        _all(_git(("update-index", "--skip-worktree", "README")), _write("README")), "README"
    ),
    "showUntrackedFiles=no": State(
        _all(_git(("config", "status.showUntrackedFiles", "no")), _write("new")), "new"
    ),
    "nested repository": State(_nested("inner"), "inner"),
    "nested repository in a build directory": State(
        _all(
            _write(".gitignore", "node_modules/\n"),
            _git(("commit", "-qam", "x")),
            _nested("node_modules/inner"),
        ),
        "node_modules",
    ),
    "bare repository in a build directory": State(
        _all(
            _write(".gitignore", "node_modules/\n"),
            _git(("commit", "-qam", "x")),
            _nested("node_modules/inner", bare=True),
        ),
        "node_modules",
    ),
    "locked by somebody": State(_locked, "locked"),
    "commits on a detached HEAD": State(
        _all(_git(("checkout", "-q", "--detach")), COMMIT), "detached HEAD"
    ),
    "commits on a ref of the worktree's own": State(
        _all(
            COMMIT,
            _git(("update-ref", "refs/worktree/mine", "HEAD"), ("reset", "-q", "--hard", "HEAD~1")),
        ),
        "refs/worktree/mine",
    ),
    "merge in progress, resolved": State(_merge, "merge is in progress"),
    "rebase stopped": State(_rebase, "rebase is in progress"),
    "process with its cwd inside": State(_sleeper, "works in it", movable=False),
    "branch not pushed": State(COMMIT, "work", "isolated"),
    "stash": State(_stash, "stash", "isolated"),
    "commits that only the reflog knows": State(_amended, "an earlier HEAD", "isolated"),
    "server does not answer": State(_server_down, "cannot be read", "isolated"),
    "workdir's volume not mounted": State(_unmounted, "mounted", movable=False),
    "repository's volume not mounted": State(_repository_gone, "cannot be read"),
    "status fails (full disk)": State(_status_fails, "cannot be read"),
    "workdir replaced by a link": State(_linked, "link"),
    "no .git any more": State(_no_pointer, "cannot be read"),
    "HEAD without a commit": State(_unborn, "cannot be read"),
    "files without a repository": State(_write("report.txt"), "report.txt", "task"),
    "nothing but a repository": State(_plain_repository, "no repository, and has", "task"),
    "not finished": State(_not_finished, "queued"),
    "lock held": State(_held, "in use", movable=False),
    "same workdir under another run": State(_name_again, "again"),
}
