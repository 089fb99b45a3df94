"""The changes of an attempt, as git reports them, for all ways to make a workdir."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from perdure.model import Saved
from perdure.model.events import WorkSeen
from perdure.model.work import FILES, NAME
from perdure.workspace import AttemptBaseline
from tests.workspace.yard import BACKENDS, REPOSITORIES, Yard


class Bench:
    """A workdir, and an attempt that begins now."""

    def __init__(self, yard: Yard, backend: str, attempt: Path | None = None) -> None:
        self.yard, self.workspace = yard, yard.plan(backend)
        yard.workspaces.prepare(self.workspace, "claude")
        self.top = Path(self.workspace.path)
        self.launched = (attempt or yard.top) / "prompt.md"
        self.number = 0

    def launch(self) -> None:
        """Record the time of a launch. Wait before and after until the coarse clock of the file
        system has advanced, so that all other changes have another time."""
        self.launched.unlink(missing_ok=True)
        before = time.time_ns()
        while not self.launched.exists() or self.launched.stat().st_mtime_ns <= before:
            self.launched.write_text("go")
        moved = self.yard.top / "clock"
        while not moved.exists() or moved.stat().st_mtime_ns <= self.launched.stat().st_mtime_ns:
            moved.write_text("tick")

    def end(
        self, before: Saved | None = None, foreign: frozenset[str] = frozenset()
    ) -> tuple[Saved, WorkSeen]:
        self.number += 1
        against = AttemptBaseline(
            number=self.number - 1,
            commit=before.commit if before is not None else "",
            head=before.head if before is not None else "",
            since=self.launched,
            foreign=foreign,
        )
        saved, seen = self.yard.workspaces.checkpoints.save_last(
            self.workspace, self.number, against
        )
        assert seen is not None
        return saved, seen

    def commit(self, *names: str, subject: str = "work") -> str:
        self.yard.git("add", "--", *names, cwd=self.top)
        self.yard.git("commit", "-qm", subject, cwd=self.top)
        return self.yard.git("rev-parse", "HEAD", cwd=self.top)


def told(seen: WorkSeen) -> set[tuple[str, str, int | None, int | None]]:
    return {(each.name, each.state, each.added, each.removed) for each in seen.files}


@pytest.mark.parametrize("backend", BACKENDS)
def test_files_are_told_with_their_lines_one_attempt_after_the_other(
    yard: Yard, backend: str
) -> None:
    """Only the files that this attempt made, changed or deleted are listed, with their counts of
    lines. An attempt that changed nothing has none."""
    bench = Bench(yard, backend)
    (bench.top / "given.txt").write_text("task file\n")
    bench.launch()
    (bench.top / "new.txt").write_text("1\n2\n")
    (bench.top / "binary").write_bytes(b"\0\1\2")
    first, seen = bench.end(foreign=frozenset({"given.txt"}))
    assert told(seen) == {("new.txt", "added", 2, 0), ("binary", "added", None, None)}
    assert (seen.file_count, seen.lines_added, seen.lines_removed) == (2, 2, 0)
    assert (seen.commit_count, seen.pushed) == (0, None)
    bench.launch()
    second, seen = bench.end(first)
    assert (seen.file_count, seen.against) == (0, "checkpoint 1")
    bench.launch()
    (bench.top / "new.txt").write_text("1\n3\n")
    (bench.top / "binary").unlink()
    _, seen = bench.end(second)
    assert told(seen) == {("new.txt", "changed", 1, 1), ("binary", "deleted", None, None)}


@pytest.mark.parametrize("backend", BACKENDS)
def test_files_from_before_the_launch_are_not_the_agents_with_the_state_on_another_disk(
    yard: Yard, elsewhere: Path, backend: str
) -> None:
    """The record of the launch is on another file system than the workdir. A task file that was
    placed before the launch is not listed, and one that the agent changed is."""
    bench = Bench(yard, backend, elsewhere)
    for name in ("given.txt", "edited.txt"):
        (bench.top / name).write_text("task file\n")
    bench.launch()
    (bench.top / "edited.txt").write_text("by the agent\n")
    _, seen = bench.end(foreign=frozenset({"given.txt", "edited.txt"}))
    assert told(seen) == {("edited.txt", "added", 1, 0)}


@pytest.mark.parametrize("backend", REPOSITORIES)
def test_commits_are_those_that_came_since(yard: Yard, backend: str) -> None:
    """Commits since the attempt began are listed, newest first. Committed files count as changed,
    ignored files do not."""
    bench = Bench(yard, backend)
    bench.launch()
    (bench.top / "a.txt").write_text("a\n")
    bench.commit("a.txt", subject="one")
    (bench.top / "README").write_text("third\n")
    newest = bench.commit("README", subject="two | three")
    (bench.top / "build.log").write_text("noise\n")
    (bench.top / "open.txt").write_text("left\n")
    saved, seen = bench.end()
    assert told(seen) == {
        ("a.txt", "added", 1, 0),
        ("README", "changed", 1, 1),
        ("open.txt", "added", 1, 0),
    }
    assert [each.subject for each in seen.commits] == ["two | three", "one"]
    assert seen.commits[0].id == newest
    assert seen.against.startswith("commit ")
    assert seen.pushed is False
    bench.launch()
    _, seen = bench.end(saved)
    assert (seen.commit_count, seen.file_count) == (0, 0)


@pytest.mark.parametrize("backend", REPOSITORIES)
def test_a_push_leaves_its_mark(yard: Yard, backend: str) -> None:
    """After a push git records the position of the remote branch. perdure reads that record,
    without a network."""
    yard.git("init", "-q", "--bare", str(yard.top / "remote.git"))
    bench = Bench(yard, backend)
    bench.launch()
    (bench.top / "a.txt").write_text("a\n")
    bench.commit("a.txt")
    yard.git("remote", "add", "there", str(yard.top / "remote.git"), cwd=bench.top)
    yard.git("push", "-q", "there", "HEAD:refs/heads/topic", cwd=bench.top)
    assert bench.end()[1].pushed is True


def test_a_directory_of_the_users_own_counts_from_the_launch(yard: Yard) -> None:
    """In a directory of the user, changes that were made or committed before the launch do not
    count. Later ones do."""
    plain = yard.top / "plain"
    yard.git("init", "-q", cwd=plain)
    (plain / "old.txt").write_text("old\n")
    (plain / "dirty.txt").write_text("mine\n")
    yard.git("add", "old.txt", cwd=plain)
    yard.git("commit", "-qm", "before", cwd=plain)
    bench = Bench(yard, "here")
    bench.launch()
    (plain / "old.txt").write_text("new\n")
    assert told(bench.end()[1]) == {("old.txt", "changed", 1, 1)}
    later = {"GIT_COMMITTER_DATE": f"{int(time.time()) + 5} +0000"}
    yard.git("commit", "-qam", "the agent's", cwd=plain, env=later)
    _, seen = bench.end()
    assert told(seen) == {("old.txt", "changed", 1, 1)}
    assert [each.subject for each in seen.commits] == ["the agent's"]


def test_what_is_listed_is_bounded_and_can_be_written(yard: Yard) -> None:
    """Thousands of files, and files whose names are not text or are too long, are all counted. Only
    some of them are listed."""
    bench = Bench(yard, "worktree")
    bench.launch()
    deep = Path(*["d" * 200] * 3)
    (bench.top / deep).mkdir(parents=True)
    (bench.top / deep / "long").write_text("x\n")
    (bench.top / "\udcff\udcfe").write_text("x\n")
    (bench.top / "\x1b[31mred").write_text("x\n")
    for number in range(3 * FILES):
        (bench.top / f"many{number}").write_text("x\n")
    _, seen = bench.end()
    assert (seen.file_count, len(seen.files)) == (3 * FILES + 3, FILES)
    assert all(len(each.name) <= NAME for each in seen.files)
    for each in seen.files:
        each.name.encode()


def test_what_it_began_with_may_be_gone(yard: Yard) -> None:
    """If git cannot compare with the beginning of the attempt, the checkpoint is still taken, and
    no changes are reported."""
    bench = Bench(yard, "worktree")
    bench.launch()
    against = AttemptBaseline(number=7, commit="1" * 40, head="2" * 40, since=bench.launched)
    saved, seen = yard.workspaces.checkpoints.save_last(bench.workspace, 1, against)
    assert saved.commit
    assert seen is None


@pytest.mark.parametrize("backend", REPOSITORIES)
def test_line_ends_that_git_converts_are_no_change(yard: Yard, backend: str) -> None:
    """A file that git checks out with CRLF does not count as changed or uncommitted. If its text
    changes, it counts, and so it does after a change of line ends that git does not convert."""
    (yard.repo / ".gitattributes").write_text("*.bat text eol=crlf\n")
    (yard.repo / "a.bat").write_text("one\ntwo\n")
    (yard.repo / "b.bat").write_text("one\ntwo\n")
    yard.git("add", ".")
    yard.git("commit", "-qm", "line ends")
    bench = Bench(yard, backend)
    assert (bench.top / "a.bat").read_bytes() == b"one\r\ntwo\r\n"
    bench.launch()
    saved, seen = bench.end()
    assert (seen.file_count, seen.uncommitted, saved.changed) == (0, 0, 0)
    (bench.top / "b.bat").write_bytes(b"one\r\nthree\r\n")
    (bench.top / "README").write_bytes(b"second\r\n")
    saved, seen = bench.end()
    assert {each.name for each in seen.files} == {"README", "b.bat"}
    assert (seen.file_count, seen.uncommitted, saved.changed) == (2, 2, 2)
