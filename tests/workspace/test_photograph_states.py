"""Workdirs in every state that git knows, and in some invalid states: they are saved without a
change, and restored exactly."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import threading
from pathlib import Path

import pytest

from perdure.errors import Conflict, WorkspaceError
from perdure.model import TaskSpec, Workspace
from perdure.workspace import Workspaces
from perdure.workspace.identity import Places
from perdure.workspace.snapshot import differences, disarm
from perdure.workspace.snapshot.trees import ignores_case
from tests.workspace.test_photograph import made, marks, show
from tests.workspace.yard import Yard

USER = {
    "GIT_AUTHOR_NAME": "u",
    "GIT_AUTHOR_EMAIL": "u@e",
    "GIT_COMMITTER_NAME": "u",
    "GIT_COMMITTER_EMAIL": "u@e",
}


def standing(yard: Yard, top: Path) -> tuple[str, ...]:
    """Return everything that git reports about the state of a workdir."""
    asked = (
        "status --porcelain=v2 --branch",
        "status",
        "ls-files --stage",
        "ls-files -v",
        "for-each-ref refs/heads",
    )
    return tuple(yard.git(*words.split(), cwd=top) for words in asked)


def clash(yard: Yard, top: Path) -> None:
    """Make two branches that changed the same line, and of which each changed another file as
    well."""
    yard.git("branch", "side", cwd=top)
    (top / "README").write_text("ours\n")
    yard.git("commit", "-qam", "ours", cwd=top)
    yard.git("checkout", "-q", "side", cwd=top)
    (top / "README").write_text("theirs\n")
    (top / "src/file5.txt").write_text("theirs\n")
    yard.git("commit", "-qam", "theirs", cwd=top)
    yard.git("checkout", "-q", "work", cwd=top)


def here(yard: Yard, path: Path) -> Workspace:
    return yard.workspaces.plan(TaskSpec(prompt="p", here=str(path)), "brave-otter", yard.repo)


@pytest.mark.parametrize("backend", ["worktree", "isolated"])
@pytest.mark.parametrize("what", ["merge", "rebase", "cherry-pick"])
def test_an_operation_in_progress_goes_on(yard: Yard, backend: str, what: str) -> None:
    """A merge, rebase or cherry-pick with a conflict was aborted. The restore brings the operation
    back, and it can be completed."""
    workspace, top = made(yard, backend)
    clash(yard, top)
    yard.git(what, "side", cwd=top, check=False)
    before, files = standing(yard, top), marks(top)
    assert "UU README" in yard.git("status", "--porcelain", cwd=top)
    saved = yard.workspaces.checkpoints.save(workspace, 1)
    assert standing(yard, top) == before
    yard.git(what, "--abort", cwd=top)
    yard.git("branch", "-D", "side", cwd=top)
    yard.git("reflog", "expire", "--expire=now", "--all", cwd=top)
    yard.git("gc", "--quiet", "--prune=now", cwd=top)
    assert yard.workspaces.checkpoints.restore(workspace, saved.commit).differs == ()
    assert marks(top) == files
    assert yard.git("ls-files", "--stage", cwd=top) == before[2]
    (top / "README").write_text("both\n")
    yard.git("add", "README", cwd=top)
    yard.git("-c", "core.editor=true", what, "--continue", cwd=top)
    assert (top / "src/file5.txt").read_text() == "theirs\n"
    assert yard.git("status", "--porcelain", cwd=top) == ""


def moved(yard: Yard, workspace: Workspace, top: Path) -> tuple[Path, tuple[str, ...]]:
    """Save a workdir, and restore the checkpoint on another machine, in a directory `landed`.
    Return this directory and the notes."""
    saved = yard.workspaces.checkpoints.save(workspace, 1)
    other, place = Workspaces(top / "other", environ=yard.environ), top / "landed"
    place.mkdir()
    target = other.plan(TaskSpec(prompt="p", here=str(place)), "brave-otter", top)
    with yard.workspaces.checkpoints.pack(workspace, saved.commit) as packed:
        other.checkpoints.unpack(target, packed.file, packed.facts)
    return place, other.checkpoints.restore(target, packed.facts.commit).notes


def test_an_operation_from_elsewhere_runs_nothing(yard: Yard, tmp_path: Path) -> None:
    """A rebase with an `exec` line stopped at a conflict, in the workdir and in a repository inside
    of it. A restore on another machine brings back the files and the index, but not the rebase. On
    this machine the rebase can be continued."""
    mark = tmp_path / "mark"
    workspace, top = made(yard, "isolated")
    clash(yard, top)
    yard.git("clone", "-q", str(top), str(top / "inner"))
    yard.git("branch", "side", "origin/side", cwd=top / "inner")
    for place in (top, top / "inner"):
        yard.git("rebase", "--exec", f"touch {mark}", "side", cwd=place, check=False)
        assert "UU README" in yard.git("status", "--porcelain", cwd=place)
    yard.git("bisect", "start", cwd=top / "inner")

    def finish(place: Path) -> None:
        (place / "README").write_text("both\n")
        yard.git("add", "README", cwd=place)
        yard.git("-c", "core.editor=true", "rebase", "--continue", cwd=place, check=False)

    landed, notes = moved(yard, workspace, tmp_path)
    assert "UU README" in yard.git("status", "--porcelain", cwd=landed)
    for place in (landed, landed / "inner"):
        finish(place)
        assert not mark.exists() and not list(place.glob(".git/BISECT_*"))
    named = " ".join(notes)
    for name in ("'.git/rebase-merge'", "'inner/.git/rebase-merge/git-rebase-todo'"):
        assert f"{name} was left out: a rebase" in named
    for place in (top, top / "inner"):
        mark.unlink(missing_ok=True)
        finish(place)
        assert mark.exists(), "the fixture could not have fired"


@pytest.mark.parametrize(
    ("parts", "role"),
    [
        ((".git", "hooks", "post-checkout"), "hook"),
        ((".GIT", "hooks", "post-checkout"), "hook"),
        (("a", ".Git", "HOOKS", "post-checkout"), "hook"),
        ((".git", "hoo\u200cks", "post-checkout"), "hook"),
        ((".git", "hooks.", "post-checkout"), "hook"),
        ((".git", "hooks", "post-checkout.sample"), ""),
        ((".GIT", "Config"), "config"),
        ((".GIT",), "pointer"),
        ((".git", "CommonDir"), "pointer"),
        ((".git", "Rebase-Merge", "git-rebase-todo"), "operation"),
        ((".git", "modules", "m", "sequencer", "opts"), "operation"),
        ((".git", "BISECT_NAMES"), "operation"),
        ((".git", "refs", "heads", "rebase-merge"), ""),
        ((".git", "HEAD"), ""),
        (("git", "hooks", "post-checkout"), ""),
    ],
)
def test_what_could_run_is_recognized(parts: tuple[str, ...], role: str) -> None:
    """Names that some file system treats as a name of git's files are recognized too."""
    assert disarm.kind(parts) == role


@pytest.mark.parametrize("folds", [True, False])
def test_another_spelling_of_git_from_elsewhere(
    yard: Yard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folds: bool
) -> None:
    """A directory `.GIT` is restored, on this machine and on another. It is left out on a file
    system that ignores case, because there it would be the workdir's own git directory."""
    workspace, top = made(yard, "isolated")
    if (top / ".GIT").exists():
        pytest.skip("this file system ignores case")
    (top / ".GIT").mkdir()
    (top / ".GIT/config").write_text("[core]\n\tfsmonitor = touch mark\n")
    with monkeypatch.context() as patched:
        patched.setattr("perdure.workspace.snapshot.files.ignores_case", lambda _: folds)
        landed, notes = moved(yard, workspace, tmp_path)
    assert (landed / ".GIT/config").exists() is not folds and (landed / "README").exists()
    assert any("that is the workdir's own git directory" in note for note in notes) is folds
    saved = yard.workspaces.checkpoints.save(workspace, 2)
    shutil.rmtree(top / ".GIT")
    assert yard.workspaces.checkpoints.restore(workspace, saved.commit).differs == ()
    assert (top / ".GIT/config").exists()


def test_a_file_system_that_ignores_case(tmp_path: Path) -> None:
    """Whether a directory ignores case is tested with its own `.git`. Without a `.git`, the careful
    answer is given: that it does."""
    (tmp_path / ".git").mkdir()
    ignores = (tmp_path / ".GIT").exists()
    assert ignores_case(tmp_path) is ignores
    (tmp_path / ".GIT").mkdir(exist_ok=True)
    assert ignores_case(tmp_path) is ignores
    (tmp_path / ".git").rmdir()
    assert ignores_case(tmp_path), "without `.git`, the careful answer is given"


@pytest.mark.parametrize("backend", ["worktree", "isolated", "task"])
def test_an_object_that_a_power_cut_emptied_is_written_again(yard: Yard, backend: str) -> None:
    """A power cut emptied objects of a checkpoint that were not flushed yet. When the machine runs
    again, the same content is saved and restored."""
    workspace, top = made(yard, backend)
    (top / "first.txt").write_text("first\n")
    yard.workspaces.checkpoints.save(workspace, 1)
    own = Places(yard.root).checkpoint_repository(workspace.id)
    oid = hashlib.sha1(b"blob 7\0second\n").hexdigest()
    torn = own / "objects" / oid[:2] / oid[2:]
    torn.parent.mkdir(exist_ok=True)
    torn.touch(0o444)
    (own / "boot").write_text("the boot before")
    (top / "second.txt").write_text("second\n")
    saved = yard.workspaces.checkpoints.save(workspace, 2)
    (top / "second.txt").unlink()
    assert yard.workspaces.checkpoints.restore(workspace, saved.commit).differs == ()
    assert (top / "second.txt").read_text() == "second\n"


def test_before_the_first_commit(yard: Yard) -> None:
    """In a repository without a commit, files and index are restored, and so is the unborn branch."""
    top = yard.top / "new"
    top.mkdir()
    yard.git("init", "-q", "-b", "trunk", cwd=top)
    (top / "a").write_text("staged\n")
    yard.git("add", "a", cwd=top)
    (top / "a").write_text("not staged\n")
    workspace, before = here(yard, top), standing(yard, top)
    saved = yard.workspaces.checkpoints.save(workspace, 1)
    assert (saved.head, saved.branch, saved.untracked) == ("", "trunk", 1)
    yard.git("commit", "-qam", "first", cwd=top)
    yard.workspaces.checkpoints.restore(workspace, saved.commit)
    assert standing(yard, top) == before
    assert show(yard, saved, "log", "--format=%s", "--glob=refs/perdure/rescue/*").split("\n") == [
        "perdure: checkpoint",
        "first",
    ]


def test_only_nothing_at_all_is_not_saved_first(yard: Yard) -> None:
    """Before a restore, staged content is saved, even if there is no commit and no file, and so is
    a single file. Only an empty workdir is not saved."""
    top = yard.top / "new"
    top.mkdir()
    yard.git("init", "-q", "-b", "trunk", cwd=top)
    (top / "a").write_text("kept\n")
    yard.git("add", "a", cwd=top)
    workspace, before = here(yard, top), standing(yard, top)
    saved = yard.workspaces.checkpoints.save(workspace, 1)

    def empty(*, index: bool, file: bool) -> int:
        (top / "a").unlink()
        (top / ".git/index").unlink()
        if index:
            (top / "a").write_text("staged alone\n")
            yard.git("add", "a", cwd=top)
            (top / "a").unlink()
        if file:
            (top / "b").write_text("a file alone\n")
        yard.workspaces.checkpoints.restore(workspace, saved.commit)
        assert standing(yard, top) == before
        return len(show(yard, saved, "for-each-ref", "refs/perdure/rescue").split("\n"))

    assert empty(index=True, file=False) == 1
    assert empty(index=False, file=True) == 2
    assert empty(index=False, file=False) == 2
    rescued = show(
        yard, saved, "for-each-ref", "--format=%(objectname)", "refs/perdure/rescue"
    ).split("\n")
    assert "staged alone" in show(yard, saved, "cat-file", "blob", f"{rescued[0]}:index/a")
    assert "a file alone" in show(yard, saved, "cat-file", "blob", f"{rescued[1]}:worktree/b")


@pytest.mark.parametrize("backend", ["worktree", "isolated"])
def test_a_detached_head(yard: Yard, backend: str) -> None:
    """Commits on a detached HEAD are kept only by the checkpoint. After a restore HEAD is detached
    at the same commit again."""
    workspace, top = made(yard, backend)
    yard.git("checkout", "-q", "--detach", cwd=top)
    yard.git("commit", "-q", "--allow-empty", "-m", "adrift", cwd=top)
    before = (
        yard.git("status", "--porcelain=v2", "--branch", cwd=top),
        yard.git("for-each-ref", "refs/heads", cwd=top),
    )
    saved = yard.workspaces.checkpoints.save(workspace, 1)
    assert saved.branch == ""
    yard.git("checkout", "-q", "work", cwd=top)
    yard.git("reflog", "expire", "--expire=now", "--all", cwd=top)
    yard.git("gc", "--quiet", "--prune=now", cwd=top)
    yard.workspaces.checkpoints.restore(workspace, saved.commit)
    assert (
        yard.git("status", "--porcelain=v2", "--branch", cwd=top),
        yard.git("for-each-ref", "refs/heads", cwd=top),
    ) == before
    assert yard.git("log", "-1", "--format=%s", cwd=top) == "adrift"


def test_a_submodule_with_files(yard: Yard) -> None:
    """A submodule's files and its link to its repository are restored. The index still names its
    commit."""
    library = yard.top / "library"
    yard.git("init", "-q", str(library))
    (library / "lib.c").write_text("int x;\n")
    yard.git("add", ".", cwd=library)
    yard.git("commit", "-qm", "library", cwd=library)
    workspace, top = made(yard, "worktree")
    yard.git(
        "-c",
        "protocol.file.allow=always",
        "submodule",
        "--quiet",
        "add",
        str(library),
        "lib",
        cwd=top,
    )
    yard.git("commit", "-qm", "with a submodule", cwd=top)
    (top / "lib/lib.c").write_text("int y;\n")
    (top / "lib/new").write_text("untracked\n")
    before, files = standing(yard, top), marks(top)
    saved = yard.workspaces.checkpoints.save(workspace, 1)
    for path in (top / "lib/lib.c", top / "lib/new", top / "lib/.git"):
        path.unlink()
    yard.workspaces.checkpoints.restore(workspace, saved.commit)
    assert (standing(yard, top), marks(top)) == (before, files)


def test_small_ignored_files_come_along(yard: Yard) -> None:
    """By default small ignored files are saved. Large ones, and build output, are named as left
    out. Both rules can be configured."""
    workspace, top = made(yard, "worktree")
    (top / ".gitignore").write_text("*.log\n.env\nnode_modules/\nbuilt/\n*.bin\n")
    for name in (
        ".env",
        "a.log",
        "node_modules/m.js",
        "built/CACHEDIR.TAG",
        "built/x",
        "tracked.bin",
    ):
        (top / name).parent.mkdir(exist_ok=True)
        (top / name).write_text(name)
    (top / "built/CACHEDIR.TAG").write_text("Signature: 8a477f597d28d172789f06886806bc55\n")
    for name in ("large.bin", "tracked.bin"):
        (top / name).write_bytes(b"x" * (differences.LARGE + 1))
    yard.git("add", "--force", "tracked.bin", cwd=top)

    def saved_with(ignored: str, number: int) -> tuple[set[str], set[str]]:
        saved = yard.workspaces.checkpoints.save(workspace, number, ignored=ignored)
        there = set(
            show(yard, saved, "ls-tree", "-r", "--name-only", f"{saved.commit}:worktree").split(
                "\n"
            )
        )
        every = {".env", "a.log", "node_modules/m.js", "built/x", "large.bin", "tracked.bin"}
        return there & every, {name for name, _ in saved.left_out}

    assert saved_with("small", 1) == (
        {".env", "a.log", "tracked.bin"},
        {"node_modules/", "built/", "large.bin"},
    )
    assert saved_with("small", 2) == (
        {".env", "a.log", "tracked.bin"},
        {"node_modules/", "built/", "large.bin"},
    )
    assert saved_with("all", 3) == (
        {".env", "a.log", "tracked.bin", "node_modules/m.js", "built/x", "large.bin"},
        set(),
    )


@pytest.mark.parametrize("count", [3, 12_000])
def test_any_number_of_ignored_files_can_be_left_out(yard: Yard, count: int) -> None:
    """A few ignored files, or so many that their names fill a command line, are left out. A tracked
    file among them is saved. If its name could be read as a pattern, still only that file is
    saved."""
    workspace, top = made(yard, "worktree")
    (top / ".gitignore").write_text("build/\n")
    (top / "build").mkdir()
    for number in range(count):
        (top / "build" / f"{number:0200}").touch()
    (top / "build/committed").touch()
    yard.git("add", "--force", "build/committed", cwd=top)
    yard.git("commit", "-qm", "built", cwd=top)
    for name in ("staged*", "staged by pattern"):
        (top / "build" / name).touch()
    yard.git("--literal-pathspecs", "add", "--force", "build/staged*", cwd=top)
    saved = yard.workspaces.checkpoints.save(workspace, 1, ignored="none")
    names = show(yard, saved, "ls-tree", "--name-only", f"{saved.commit}:worktree/build")
    assert names.split("\n") == ["committed", "staged*"]
    assert len(saved.left_out) > 0


def test_left_out_files_stay_and_make_way_into_the_trash(yard: Yard) -> None:
    """A file that a checkpoint left out is not touched by a restore; but if a saved file has the
    same path, the left-out file is moved to the trash."""
    workspace, top = made(yard, "worktree")
    (top / ".gitignore").write_text("node_modules/\n")
    (top / "place").write_text("a file\n")
    saved = yard.workspaces.checkpoints.save(workspace, 1)
    (top / "node_modules").mkdir()
    (top / "node_modules/m.js").write_text("left\n")
    (top / "place").unlink()
    (top / "place/node_modules").mkdir(parents=True)
    (top / "place/node_modules/deep.js").write_text("moved\n")
    restored = yard.workspaces.checkpoints.restore(workspace, saved.commit)
    assert (top / "place").read_text() == "a file\n"
    assert (top / "node_modules/m.js").read_text() == "left\n"
    assert [
        path.read_text()
        for path in yard.root.glob(".perdure/trash/*/in-the-way/node_modules/deep.js")
    ] == ["moved\n"]
    assert len(restored.notes) == 1


def test_files_that_are_written_all_the_time(yard: Yard) -> None:
    """A file grows, is truncated and is replaced while it is saved. The save succeeds, keeps one
    version of the file, and names the file as changing."""
    workspace, top = made(yard, "worktree")
    stop = threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            for name in ("busy", f"come-{number % 7}"):
                (top / name).write_bytes(b"%d\n" % number * 60_000)
            (top / f"come-{(number + 3) % 7}").unlink(missing_ok=True)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        saves = [yard.workspaces.checkpoints.save(workspace, number) for number in range(1, 5)]
    finally:
        stop.set()
        writer.join()
    for saved in saves:
        assert {"worktree/busy"} <= set(
            show(yard, saved, "ls-tree", "-r", "--name-only", saved.commit).split("\n")
        ) | {f"worktree/{name}" for name, _ in saved.left_out}
    assert show(yard, saves[-1], "fsck", "--no-dangling") == ""
    last = yard.workspaces.checkpoints.save(workspace, 9)
    assert (last.unsteady, yard.workspaces.checkpoints.drift(workspace, last.commit)) == ((), ())


@pytest.mark.parametrize(
    "command", ["write-tree", "update-index", "diff-files", "ls-files", "status"]
)
def test_a_file_that_is_cut_while_git_reads_it(
    yard: Yard, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """If a file is truncated at the wrong moment, SIGBUS ends git while it holds its lock, several
    times in a row. The checkpoint is still made, and equals one that was made without a
    disturbance. The same holds for the diff."""
    workspace, top = made(yard, "worktree")
    if command == "diff-files":
        # The first save does not run `diff-files`, because the index does not have the files yet.
        yard.workspaces.checkpoints.save(workspace, 1)
    (top / "README").write_text("changed\n")
    (top / "new").write_text("new\n")
    real, place, toll = shutil.which("git"), yard.top / "bin", yard.top / "toll"
    place.mkdir()
    dies = (
        f'[ -z "$GIT_INDEX_FILE" ] || : > "$GIT_INDEX_FILE.lock"; echo cut >> {toll}; kill -BUS $$'
    )
    one = f'case " $* " in *" {command} "*) [ $(wc -l < {toll}) -ge 4 ] || {{ {dies}; }};; esac'
    (place / "git").write_text(f'#!/bin/sh\n{one}\nexec {real} "$@"\n')
    (place / "git").chmod(0o755)
    monkeypatch.setenv("PATH", f"{place}:{os.environ['PATH']}")
    toll.write_text("")
    saved = yard.workspaces.checkpoints.save(workspace, 2)
    patch = yard.workspaces.diff(workspace)
    assert toll.read_text().count("cut") == 4
    assert (saved.changed, saved.untracked, saved.unsteady, saved.left_out) == (1, 1, (), ())
    assert [line for line in patch.decode().split("\n") if line.startswith("+")] == [
        "+++ b/README",
        "+changed",
        "+++ b/new",
        "+new",
    ]
    assert show(yard, saved, "show", f"{saved.commit}:worktree/README") == "changed"


def test_nothing_happens_while_a_process_works_there(yard: Yard) -> None:
    """A restore is refused, with the process's name, as long as that process's current directory is
    in the workdir."""
    workspace, top = made(yard, "worktree")
    saved = yard.workspaces.checkpoints.save(workspace, 1)
    with subprocess.Popen(["sleep", "60"], cwd=top) as sleeper:
        with pytest.raises(Conflict, match=str(sleeper.pid)):
            yard.workspaces.checkpoints.restore(workspace, saved.commit)
        sleeper.kill()


def test_a_ref_that_is_gone_means_that_all_is_read_again(yard: Yard) -> None:
    """An agent deletes perdure's refs and prunes. The next checkpoint reads everything again, and
    does not refer to objects that no longer exist."""
    workspace, top = made(yard, "worktree")
    (top / "new").write_text("only here\n")
    yard.workspaces.checkpoints.save(workspace, 1)
    for ref in yard.git("for-each-ref", "--format=%(refname)", "refs/perdure").split():
        yard.git("update-ref", "-d", ref)
    yard.git("gc", "--quiet", "--prune=now")
    saved = yard.workspaces.checkpoints.save(workspace, 2)
    assert show(yard, saved, "cat-file", "-p", f"{saved.commit}:worktree/new") == "only here"
    assert show(yard, saved, "fsck", "--no-dangling") == ""


def test_a_hostile_history_is_saved_all_the_same(yard: Yard) -> None:
    """The tree of HEAD has `.git`, a link called .gitmodules and a submodule's entry without one.
    The checkpoint is still made."""
    workspace, top = made(yard, "worktree")
    blob = yard.git("hash-object", "-w", "README")
    inner = subprocess.run(
        ["git", "mktree"],
        cwd=yard.repo,
        input=f"100644 blob {blob}\tconfig\n",
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    lines = (
        f"040000 tree {inner}\t.git\n100644 blob {blob}\tREADME\n120000 blob "
        f"{blob}\t.gitmodules\n160000 commit {'1' * 40}\tsub\n"
    )
    tree = subprocess.run(
        ["git", "mktree", "--missing"],
        cwd=yard.repo,
        input=lines,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    yard.git(
        "update-ref", "refs/heads/work", yard.git("commit-tree", "-m", "hostile", tree, env=USER)
    )
    saved = yard.workspaces.checkpoints.save(workspace, 1)
    assert (top / ".git").is_file()
    assert show(yard, saved, "ls-tree", "--name-only", f"{saved.commit}:worktree").split("\n") == [
        ".gitignore",
        "README",
        "src",
    ]


def test_a_checkpoint_cannot_write_outside(yard: Yard) -> None:
    """A forged checkpoint has names that lead outside of the workdir, or into its git directory.
    Nothing is written there, and the restore says so."""
    workspace, _ = made(yard, "isolated")
    saved = yard.workspaces.checkpoints.save(workspace, 1)
    shelf = saved.git_dir
    blob = yard.git("--git-dir", shelf, "hash-object", "-w", "README")

    def tree(*entries: tuple[str, str, str]) -> str:
        raw = b"".join(
            f"{mode} {name}\0".encode() + bytes.fromhex(oid) for mode, name, oid in entries
        )
        words = [
            "git",
            "--git-dir",
            shelf,
            "hash-object",
            "-w",
            "-t",
            "tree",
            "--literally",
            "--stdin",
        ]
        return (
            subprocess.run(words, input=raw, capture_output=True, check=True)
            .stdout.decode()
            .strip()
        )

    below = tree(("100644", "escaped", blob))
    worktree = tree(("40000", "..", below), ("40000", ".git%", below), ("100644", "README", blob))
    about = yard.git("--git-dir", shelf, "rev-parse", f"{saved.commit}:checkpoint.json")
    forged = yard.git(
        "--git-dir",
        shelf,
        "commit-tree",
        "-m",
        "x",
        tree(("100644", "checkpoint.json", about), ("40000", "worktree", worktree)),
        env=USER,
    )
    restored = yard.workspaces.checkpoints.restore(workspace, forged)
    assert not list(yard.top.rglob("escaped"))
    assert len(restored.notes) == 2


def test_a_directory_without_git_has_a_limit(yard: Yard) -> None:
    """Without git, a directory with too many files is refused with a sentence, and nothing is
    published."""
    workspaces = Workspaces(yard.root, environ=yard.environ, most_files=10)
    workspace, top = made(yard, "task")
    for number in range(12):
        (top / str(number)).write_text("x")
    with pytest.raises(WorkspaceError, match="more than 10 files"):
        workspaces.checkpoints.save(workspace, 1)
    assert yard.workspaces.checkpoints.list_saved(workspace) == {}


def test_a_split_index_and_other_ids(yard: Yard) -> None:
    """A repository with SHA-256 ids and an index in two files is saved and restored like any other."""
    top = yard.top / "other"
    yard.git("init", "-q", "--object-format=sha256", str(top))
    (top / "a").write_text("one\n")
    yard.git("add", ".", cwd=top)
    yard.git("commit", "-qm", "first", cwd=top)
    yard.git("update-index", "--split-index", cwd=top)
    (top / "b").write_text("staged\n")
    yard.git("add", "b", cwd=top)
    (top / "b").write_text("not staged\n")
    workspace, before, files = here(yard, top), standing(yard, top), marks(top)
    saved = yard.workspaces.checkpoints.save(workspace, 1)
    assert len(saved.commit) == 64
    (top / "a").unlink()
    yard.git("add", "--all", cwd=top)
    yard.workspaces.checkpoints.restore(workspace, saved.commit)
    assert (standing(yard, top), marks(top)) == (before, files)
