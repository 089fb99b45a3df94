"""The changes of a run are applied to the user's own checkout: all of them, or none."""

from __future__ import annotations

from pathlib import Path

import pytest

from perdure.errors import Conflict, GitFailed, NotFound, UsageError
from perdure.model import Workspace
from tests.workspace.yard import REPOSITORIES, Yard


def contents(top: Path) -> dict[str, str]:
    """Return every file below a directory, except for git's own: its content and mode, or the
    link's target, by path."""
    found = {}
    for path in sorted(top.rglob("*")):
        if ".git" in path.relative_to(top).parts or (path.is_dir() and not path.is_symlink()):
            continue
        name = str(path.relative_to(top))
        found[name] = (
            f"-> {path.readlink()}"
            if path.is_symlink()
            else f"{path.stat().st_mode & 0o111:o} {path.read_bytes()!r}"
        )
    return found


def worked(yard: Yard, backend: str) -> Workspace:
    """Make a workdir in which an agent committed some changes and not others: changed, new,
    deleted, moved, executable, linked, binary."""
    workspace = yard.plan(backend)
    env = yard.workspaces.prepare(workspace, "claude").env
    top = Path(workspace.path)
    (top / "README").write_text("third\n")
    yard.git("mv", "src/file1.txt", "src/moved.txt", cwd=top)
    yard.git("commit", "-qam", "some", cwd=top, env=env)
    (top / "src/file2.txt").write_text("0\n" + "2\n" * 20)
    (top / "src/file3.txt").unlink()
    (top / "deep/er").mkdir(parents=True)
    (top / "deep/er/né w.txt").write_text("new\n")
    (top / "run.sh").write_text("#!/bin/sh\n")
    (top / "run.sh").chmod(0o755)
    (top / "link").symlink_to("README")
    (top / "bin").write_bytes(bytes(range(256)))
    (top / "build.log").write_text("ignored")
    return workspace


@pytest.mark.parametrize("backend", REPOSITORIES)
def test_the_patch_is_the_whole_change(yard: Yard, backend: str) -> None:
    """If git applies the patch to the base, the result is the workdir without ignored files. Making
    the patch changes nothing."""
    workspace = worked(yard, backend)
    top = Path(workspace.path)
    before, refs = yard.git("status", "--porcelain", "-uall", cwd=top), yard.git("for-each-ref")
    patch = yard.workspaces.diff(workspace, binary=True)
    (yard.top / "run.patch").write_bytes(patch)
    yard.git("apply", "--index", str(yard.top / "run.patch"))
    there = contents(top)
    assert there.pop("build.log")
    assert contents(yard.repo) == there
    assert (yard.git("status", "--porcelain", "-uall", cwd=top), yard.git("for-each-ref")) == (
        before,
        refs,
    )
    assert list((yard.root / ".perdure/tmp").iterdir()) == []


@pytest.mark.parametrize("backend", REPOSITORIES)
def test_the_summary_fits_the_width(yard: Yard, backend: str) -> None:
    """`stat` is git's summary, in the given number of columns, with new files and moves."""
    lines = yard.workspaces.diff(worked(yard, backend), stat=60).decode().splitlines()
    assert all(len(line) <= 60 for line in lines)
    text = "\n".join(lines)
    assert "{file1.txt => moved.txt}" in text and "né w.txt" in text and "8 files changed" in text


def test_more_than_there_is_room_for_is_not_taken(yard: Yard) -> None:
    """If a patch has more bytes than the caller allows, it is refused with its size. A patch of
    exactly that size is returned."""
    workspace = worked(yard, "isolated")
    size = len(yard.workspaces.diff(workspace))
    assert len(yard.workspaces.diff(workspace, most=size)) == size
    with pytest.raises(UsageError, match=f"more than {size - 1:,} bytes"):
        yard.workspaces.diff(workspace, most=size - 1)


def test_a_directory_of_the_users_own_is_compared_with_its_last_commit(yard: Yard) -> None:
    """With `here` it is unknown where the run began, so the patch has the uncommitted changes.
    Without git there is nothing with which to compare."""
    (yard.repo / "README").write_text("third\n")
    here = Workspace(id="here", path=str(yard.repo), backend="here")  # type: ignore[arg-type]
    assert b"+third" in yard.workspaces.diff(here)
    for backend in ("task", "here"):
        workspace = yard.plan(backend)
        yard.workspaces.prepare(workspace, "claude")
        with pytest.raises(UsageError, match="nothing to compare"):
            yard.workspaces.diff(workspace)


@pytest.mark.parametrize("backend", REPOSITORIES)
def test_apply_brings_everything_as_uncommitted_changes(yard: Yard, backend: str) -> None:
    """The checkout gets the run's files, unstaged, on the same commit. A second apply finds that
    the checkout has all of it."""
    workspace = worked(yard, backend)
    head = yard.git("rev-parse", "HEAD")
    (yard.repo / "src").chmod(0o755)
    applied = yard.workspaces.apply(workspace, yard.repo / "src", "claude")
    assert applied.refused == () and applied.commit == ""
    there = contents(Path(workspace.path))
    del there["build.log"]
    assert contents(yard.repo) == there
    assert set(applied.files) == {"README", "bin", "deep/er/né w.txt", "link", "run.sh"} | {
        f"src/{name}.txt" for name in ("file1", "moved", "file2", "file3")
    }
    assert (
        yard.git("rev-parse", "HEAD") == head and yard.git("diff", "--cached", "--name-only") == ""
    )
    again = yard.workspaces.apply(workspace, yard.repo, "claude")
    assert (again.files, set(again.already), again.refused) == ((), set(applied.files), ())


@pytest.mark.parametrize("backend", REPOSITORIES)
def test_a_sparse_checkout_loses_nothing_by_a_commit(yard: Yard, backend: str) -> None:
    """A commit in a sparse checkout has the run's changes. Files that the sparse checkout left out
    are not committed as deleted."""
    (yard.repo / "docs").mkdir()
    (yard.repo / "docs/a.txt").write_text("a\n")
    yard.git("add", ".")
    yard.git("commit", "-qm", "docs")
    yard.git("sparse-checkout", "set", "src")
    workspace = yard.plan(backend)
    yard.workspaces.prepare(workspace, "claude")
    (Path(workspace.path) / "src/file1.txt").write_text("mine\n")
    applied = yard.workspaces.apply(workspace, yard.repo, "claude", "Mine")
    assert (applied.files, applied.refused) == (("src/file1.txt",), ())
    assert yard.git("diff", "--name-status", "HEAD~", "HEAD") == "M\tsrc/file1.txt"
    assert yard.git("status", "--porcelain") == ""


@pytest.mark.parametrize("backend", REPOSITORIES)
def test_what_was_committed_since_is_merged(yard: Yard, backend: str) -> None:
    """The user's later commits stay. Lines that user and run changed in one file are merged, and a
    file that the user moved gets the run's change."""
    workspace = worked(yard, backend)
    (yard.repo / "src/file2.txt").write_text("2\n" * 20 + "end\n")
    yard.git("mv", "src/file0.txt", "zero.txt")
    yard.git("commit", "-qam", "mine")
    (Path(workspace.path) / "src/file0.txt").write_text("0\n" * 20 + "run\n")
    applied = yard.workspaces.apply(workspace, yard.repo, "claude")
    assert applied.refused == ()
    assert (yard.repo / "src/file2.txt").read_text() == "0\n" + "2\n" * 20 + "end\n"
    assert (yard.repo / "zero.txt").read_text().endswith("run\n") and not (
        yard.repo / "src/file0.txt"
    ).exists()


def refused(yard: Yard, workspace: Workspace, message: str = "") -> dict[str, str]:
    """Check that an apply is refused and changes nothing. Return the reasons by path."""
    before = (
        contents(yard.repo),
        yard.git("status", "--porcelain", "-uall"),
        yard.git("rev-parse", "HEAD"),
        yard.git("ls-files", "--stage"),
    )
    applied = yard.workspaces.apply(workspace, yard.repo, "claude", message)
    assert applied.refused and not applied.files and not applied.commit
    after = (
        contents(yard.repo),
        yard.git("status", "--porcelain", "-uall"),
        yard.git("rev-parse", "HEAD"),
        yard.git("ls-files", "--stage"),
    )
    assert before == after
    return dict(applied.refused)


@pytest.mark.parametrize("backend", REPOSITORIES)
def test_a_conflict_is_named_and_nothing_is_applied(yard: Yard, backend: str) -> None:
    """A conflict is named with its reason, and nothing is applied: lines that both sides changed, a
    file that one side deleted, or a binary file that both changed."""
    workspace = worked(yard, backend)
    (yard.repo / "README").write_text("mine\n")
    (yard.repo / "src/file3.txt").write_text("mine\n")
    (yard.repo / "bin").write_bytes(b"\0mine")
    yard.git("add", ".")
    yard.git("commit", "-qm", "mine")
    reasons = refused(yard, workspace)
    assert reasons.keys() == {"README", "src/file3.txt", "bin"}
    assert "same lines" in reasons["README"] and "deleted" in reasons["src/file3.txt"]


def test_uncommitted_work_is_never_touched(yard: Yard) -> None:
    """A changed, deleted, untracked or ignored file of the user is never touched. If the run
    changes it too, the apply is refused, and so it is if there is a link in its place."""
    workspace = worked(yard, "worktree")
    Path(workspace.path, "kept.log").write_text("forced\n")
    yard.git("add", "-f", "kept.log", cwd=workspace.path)
    yard.git("commit", "-qm", "forced", cwd=workspace.path)
    (yard.repo / "src/file2.txt").write_text("mine\n")
    (yard.repo / "src/file3.txt").unlink()
    (yard.repo / "README").unlink()
    (yard.repo / "run.sh").write_text("mine\n")
    (yard.repo / "kept.log").write_text("mine\n")
    (yard.top / "elsewhere").mkdir()
    (yard.repo / "deep").symlink_to(yard.top / "elsewhere")
    reasons = refused(yard, workspace)
    assert reasons.keys() == {"src/file2.txt", "README", "run.sh", "kept.log", "deep/er/né w.txt"}
    assert "ignored by git" in reasons["kept.log"] and "in the way" in reasons["deep/er/né w.txt"]
    assert list((yard.top / "elsewhere").iterdir()) == []


def test_other_uncommitted_work_stays_beside(yard: Yard) -> None:
    """The user's changes in files that the run did not change, staged or not, do not cause a
    refusal and stay as they are."""
    workspace = worked(yard, "worktree")
    (yard.repo / "src/file9.txt").write_text("mine\n")
    (yard.repo / "src/file8.txt").write_text("staged\n")
    yard.git("add", "src/file8.txt")
    (yard.repo / "own.txt").write_text("mine\n")
    applied = yard.workspaces.apply(workspace, yard.repo, "claude", "What the run did\n")
    assert applied.refused == ()
    assert (
        yard.git("log", "-1", "--format=%H %an %cn %s")
        == f"{applied.commit} claude (perdure) Una User What the run did"
    )
    assert yard.git("status", "--porcelain", "-uall").splitlines() == [
        "M  src/file8.txt",
        " M src/file9.txt",
        "?? own.txt",
    ]
    assert yard.git("fsck", "--strict") == ""


def test_a_commit_leaves_what_is_staged_alone(yard: Yard) -> None:
    """With --commit, an apply is refused if the same file has a staged change, or if a merge is in
    progress."""
    workspace = worked(yard, "worktree")
    (yard.repo / "README").write_text("staged\n")
    yard.git("add", "README")
    (yard.repo / "README").write_text("second\n")
    assert "staged" in refused(yard, workspace, "message")["README"]
    yard.git("reset", "-q", "--hard")
    (yard.repo / ".git/MERGE_HEAD").write_text(yard.git("rev-parse", "HEAD") + "\n")
    with pytest.raises(Conflict, match="merge is in progress"):
        yard.workspaces.apply(workspace, yard.repo, "claude", "message")


def test_a_target_that_is_missing_is_named_without_flags_of_other_verbs(yard: Yard) -> None:
    """The hint for a missing target does not name --here, because `perdure apply` has no such
    flag."""
    workspace = worked(yard, "worktree")
    with pytest.raises(NotFound, match="no directory") as caught:
        yard.workspaces.apply(workspace, yard.top / "nowhere", "claude")
    assert "--here" not in caught.value.hint


def test_another_repository_is_refused(yard: Yard) -> None:
    """A checkout without the commit at which the run began, and a directory without git, are
    refused."""
    workspace = worked(yard, "worktree")
    other = yard.top / "other"
    other.mkdir()
    with pytest.raises(NotFound, match="not in a git repository"):
        yard.workspaces.apply(workspace, other, "claude")
    yard.git("init", "-q", cwd=other)
    yard.git("commit", "-q", "--allow-empty", "-m", "x", cwd=other)
    with pytest.raises(UsageError, match="another repository"):
        yard.workspaces.apply(workspace, other, "claude")
    assert [path.name for path in other.iterdir()] == [".git"]


def test_files_and_directories_change_places(yard: Yard) -> None:
    """In the checkout, as in the run, a file becomes a directory and a directory becomes a file."""
    workspace = yard.plan("worktree")
    yard.workspaces.prepare(workspace, "claude")
    top = Path(workspace.path)
    (top / "README").unlink()
    (top / "README").mkdir()
    (top / "README/now").write_text("a directory\n")
    for path in (top / "src").iterdir():
        path.unlink()
    (top / "src").rmdir()
    (top / "src").write_text("a file\n")
    assert yard.workspaces.apply(workspace, yard.repo, "claude").refused == ()
    assert contents(yard.repo) == contents(top)


def test_trouble_in_the_middle_puts_everything_back(yard: Yard) -> None:
    """If the branch cannot be moved after all files were written, because another process holds its
    lock, everything is restored."""
    workspace = worked(yard, "worktree")
    before = (
        contents(yard.repo),
        yard.git("status", "--porcelain", "-uall"),
        yard.git("ls-files", "--stage"),
        yard.git("rev-parse", "HEAD"),
    )
    (yard.repo / ".git/refs/heads/main.lock").touch()
    with pytest.raises(GitFailed, match="update-ref"):
        yard.workspaces.apply(workspace, yard.repo, "claude", "message")
    after = (
        contents(yard.repo),
        yard.git("status", "--porcelain", "-uall"),
        yard.git("ls-files", "--stage"),
        yard.git("rev-parse", "HEAD"),
    )
    assert before == after
    (yard.repo / ".git/refs/heads/main.lock").unlink()
    assert yard.workspaces.apply(workspace, yard.repo, "claude", "message").refused == ()


@pytest.mark.parametrize("planted", ["filter", "textconv", "external", "attributes"])
@pytest.mark.parametrize("backend", REPOSITORIES)
def test_nothing_that_an_agent_planted_runs(yard: Yard, backend: str, planted: str) -> None:
    """When a hostile run is shown and applied, no filter, textconv, external diff or merge driver
    runs. Plain git starts them."""
    workspace = worked(yard, backend)
    top = Path(workspace.path)
    common = Path(yard.git("rev-parse", "--path-format=absolute", "--git-common-dir", cwd=top))
    canary, program = yard.top / "CANARY", yard.top / "program"
    program.write_text(f"#!/bin/sh\n: > '{canary}'\nexec cat\n")
    program.chmod(0o755)
    settings = {
        "filter": ("filter.x.clean", "filter.x.smudge"),
        "textconv": ("diff.x.textconv",),
        "external": ("diff.external",),
        "attributes": ("filter.x.clean", "filter.x.smudge", "merge.x.driver", "diff.x.command"),
    }[planted]
    for place in {common, yard.repo / ".git"}:
        for key in settings:
            yard.git("config", "--file", str(place / "config"), key, str(program))
        (place / "info").mkdir(exist_ok=True)
        (place / "info/attributes").write_text("* filter=x diff=x merge=x\n")
    if planted == "attributes":
        (top / ".gitattributes").write_text("* filter=x diff=x merge=x\n")
    (yard.repo / "src/file2.txt").write_text("2\n" * 20 + "end\n")
    yard.git("-c", "core.attributesFile=/dev/null", "commit", "-qam", "mine")
    canary.unlink(missing_ok=True)
    assert b"+third" in yard.workspaces.diff(workspace)
    assert yard.workspaces.diff(workspace, stat=80)
    assert yard.workspaces.apply(workspace, yard.repo, "claude", "message").refused == ()
    assert yard.workspaces.unsaved(workspace)
    assert not canary.exists()
    yard.git("diff", "HEAD~1", cwd=top, check=False)
    assert canary.exists(), "the fixture could not have fired"


@pytest.mark.parametrize("name", ["config", "index"])
def test_a_damaged_view_is_made_again(yard: Yard, name: str) -> None:
    """If the repository by which `apply` reads the workdir is damaged, `apply` itself repairs
    it."""
    workspace = worked(yard, "isolated")
    assert yard.workspaces.diff(workspace)
    heads = [path for path in yard.root.rglob("HEAD") if (path.parent / "made").exists()]
    assert heads
    for head in heads:
        head.with_name(name).write_text("[core")
    assert yard.workspaces.apply(workspace, yard.repo, "claude").files
