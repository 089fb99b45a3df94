"""Saves a workdir as one commit: the workdir's part of a checkpoint.

The attempt calls `Checkpoints.save` while the agent runs and after it has ended. The commit's tree
has these entries:

- `worktree/`: every file as bytes: tracked, untracked, and ignored ones by policy.
- `index/`: staged content; absent if equal to the last commit.
- `stages/`: the sides of conflicts.
- `checkpoint.json`: HEAD, branch, an operation in progress, empty directories, and left-out files
  with the reasons.

The commit's parents are HEAD and the commits that an operation in progress needs. The commit is
made with perdure's own index. So neither HEAD, the index nor a branch moves, and no filter, hook or
setting of the repository is used.

Each capture starts with the index of the last one, so unchanged files are not read. Its indexes are
written to a temporary directory, which is moved into place before the ref is written. The ref keeps
the objects of its index alive. If git fails with the kept index, that index is discarded and
everything is read again. A workdir that has not changed gets its last commit under the new number.
When `save` returns, the checkpoint survives a power cut.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from perdure.errors import GitFailed, NotFound, WorkspaceError
from perdure.model import Saved
from perdure.workspace import branches
from perdure.workspace.locks import flush
from perdure.workspace.snapshot import index as staging
from perdure.workspace.snapshot.cache import LISTED, CapturedState, load_state, store_state
from perdure.workspace.snapshot.escapes import escape
from perdure.workspace.snapshot.findings import Piece
from perdure.workspace.snapshot.scan import scan
from perdure.workspace.snapshot.shelf import FATAL, Shelf, split
from perdure.workspace.snapshot.trees import changes, missing, tree_of

_T = TypeVar("_T")


def save(shelf: Shelf, ref: str, policy: str) -> Saved:
    """Save the workdir under the ref `ref` (a full name). If no ref was written, raises
    WorkspaceError or GitFailed."""
    with in_words(shelf, "saved"):
        return again(shelf, lambda shelf: _save(shelf, ref, policy))


@contextlib.contextmanager
def in_words(shelf: Shelf, what: str) -> Iterator[None]:
    """Turn errors of the file system, such as a full disk or missing permissions, into
    WorkspaceError. Its text says that the workdir could not be `what`, such as "examined"."""
    try:
        yield
    except OSError as error:
        file = f" ({error.filename})" if error.filename else ""
        raise WorkspaceError(
            f"{shelf.top} could not be {what}: {error.strerror or error}{file}.",
            "Nothing is lost. Free some space or check its permissions, then try again.",
        ) from error


def _save(shelf: Shelf, ref: str, policy: str) -> Saved:
    with captured_state(shelf, policy, kept=True) as (look, aside):
        known = look.commit
        _commit(shelf, look)
        store_state(shelf, look, aside)
        shelf.publish(ref, look.commit, last=known)
    return Saved(
        commit=look.commit,
        ref=ref,
        git_dir=str(shelf.refs.git_dir),
        head=look.head,
        branch=look.branch,
        changed=look.changed,
        untracked=look.untracked,
        left_out=tuple(look.found.left_out[:LISTED]),
        unsteady=tuple(look.found.unsteady[:LISTED]),
    )


def again(shelf: Shelf, look: Callable[[Shelf], _T]) -> _T:
    """Run `look` and return its result. If git fails, discard the cached state and run `look` once
    more. If git still fails, the workdir's own git directory is damaged. Then run `look` for the
    files only, without that git directory."""
    try:
        return look(shelf)
    except GitFailed as error:
        if _is_full(error) or not ((shelf.directory / "looks").exists() or shelf.admin):
            raise
        shutil.rmtree(shelf.directory / "looks", ignore_errors=True)
    try:
        return look(shelf)
    except GitFailed as error:
        if shelf.admin is None or error.code != FATAL or _is_full(error):
            raise
        shutil.rmtree(shelf.directory / "looks", ignore_errors=True)
    return look(shelf.without_git())


_FULL = ("No space left", "Out of diskspace", "Disk quota exceeded")
"""Messages of git 2.39 on a full disk: those of the operating system, and those of csum-file.c for
a short write."""


def _is_full(error: GitFailed) -> bool:
    return any(words in error.stderr for words in _FULL)


@contextlib.contextmanager
def captured_state(
    shelf: Shelf, policy: str, *, kept: bool = False
) -> Iterator[tuple[CapturedState, Path]]:
    """Capture the workdir's current state. Yields the state, and the directory with its indexes.

    The state's `commit` is the last checkpoint's commit, even if files have changed since. At the
    end of the `with` statement the directory is removed, unless the state was stored. `kept`:
    whether the caller intends to store the state.
    """
    looks = shelf.directory / "looks"
    looks.mkdir(exist_ok=True)
    aside = looks / "next"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    try:
        known = load_state(shelf, looks, aside)
        yield _capture_state(shelf, aside, known, policy, kept=kept), aside
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _capture_state(
    shelf: Shelf, aside: Path, known: CapturedState, policy: str, *, kept: bool
) -> CapturedState:
    if known.head and known.tree:
        shelf.trees.setdefault(known.head, known.tree)
    look = CapturedState(
        head=shelf.head,
        tree=shelf.tree,
        branch=shelf.branch,
        top=str(shelf.top),
        commit=known.commit,
        says=known.says,
    )
    copy = None
    if shelf.broken:
        look.found.left_out.append(
            (
                ".git",
                "git cannot use it: this checkpoint has only files, not HEAD, index and branches",
            )
        )
    look.branches = branches.gather(shelf, known.branches)
    if look.branches.more:
        look.found.left_out.append(
            (
                ".git/refs",
                f"{look.branches.more} branches and tags exceed the limit and are not kept",
            )
        )
    if shelf.admin is not None:
        look.index = staging.signature(shelf.admin / "index")
        look.operation = staging.operation(shelf.admin)
        if look.index and look.index == known.index and known.head == look.head:
            look.staged = known.staged
        else:
            copy = staging.copied(shelf.admin, aside / "user-index")
            if copy is not None:
                shutil.copy2(copy, aside / "user-index.read")
    if shelf.lent is not None and (look.head, look.index, look.branches.says) != (
        known.head,
        known.index,
        known.branches.says,
    ):
        _bring(shelf, known, [look.head, *staging.commits(look.operation), *look.branches.commits])
    begun = None
    if not (aside / "index").exists():
        begun = _begin(shelf, aside / "index")
    seen = dict(known.found.pieces.get("", {}))
    piece = Piece(root=shelf.top, index=aside / "index", seen=seen, begun=begun)
    look.worktree = scan(shelf, piece, known.found, look.found, policy, copy, kept=kept)
    if copy is not None:
        look.staged = staging.staged(shelf, aside / "user-index.read")
        if shelf.lent is not None:
            # The tree is in the checkpoint repository already, but its objects may be only in the
            # agent's own repository.
            base = look.tree or shelf.put("tree", b"")
            named = [
                change.new
                for change in changes(shelf, base, look.staged.tree)
                if change.mode not in ("000000", "160000")
            ]
            _bring(shelf, known, [*named, *look.staged.objects])
    if (look.worktree, look.head) == (known.worktree, known.head):
        look.changed, look.untracked = known.changed, known.untracked
    else:
        look.changed, look.untracked = _counted(shelf, look)
    return look


def _begin(shelf: Shelf, index: Path) -> list[str]:
    """Fill the first index of a workdir from HEAD, so that few files are new; return the names in
    it. Entries that git refuses in an index are skipped."""
    names: list[str] = []
    if not shelf.tree:
        return names
    lines = []
    for line in split(shelf.run("ls-tree", "-r", "-z", "--full-tree", shelf.tree).stdout):
        facts, _, name = line.partition("\t")
        mode, kind, oid = facts.split(" ")
        parts = name.split("/")
        if kind == "blob" and not any(
            part in ("", ".", "..") or escape(part, mode == "120000") != part for part in parts
        ):
            names.append(name)
            lines.append(f"{mode} {oid}\t{name}\0")
    shelf.run("update-index", "-z", "--index-info", index=index, stdin=os.fsencode("".join(lines)))
    return names


def keep_commits(shelf: Shelf, commits: Sequence[str]) -> None:
    """Keep commits of the agent's own repository beside the checkpoints, under rescue refs. The
    order of `commits` is newest first: they may contain the older ones, so few refs are needed.

    Raises WorkspaceError where a commit is missing or incomplete, GitFailed.
    """
    with in_words(shelf, "saved"):
        _bring(shelf, CapturedState(head=shelf.head), list(commits))
        if absent := missing(shelf, list(commits)):
            raise WorkspaceError(
                f"The commit {absent[0][:12]} of {shelf.top} could not be saved.",
                "Check it with git fsck.",
            )
        kept: list[str] = []
        for oid in commits:
            below = any(
                shelf.run("merge-base", "--is-ancestor", oid, other, good=(0, 1)).code == 0
                for other in kept
            )
            kept += [] if below else [oid]
        flush(shelf.objects)
        shelf.order(*(f"update refs/perdure/rescue/{shelf.id}/{oid} {oid}" for oid in kept))


def _bring(shelf: Shelf, known: CapturedState, wanted: list[str]) -> None:
    """Copy the agent's objects that a checkpoint needs. perdure's own git only reads the agent's
    repository, and runs no program that its settings name."""
    wanted = missing(shelf, [oid for oid in dict.fromkeys(wanted) if oid])
    if unknown := set(missing(shelf, wanted, lent=True)):
        wanted = [oid for oid in wanted if oid not in unknown]
    if not wanted:
        return
    there = [oid for oid in dict.fromkeys((known.head, shelf.pinned)) if oid and shelf.commit(oid)]
    asked = "".join(f"{line}\n" for line in [*wanted, "--not", *there])
    packs = shelf.objects / "pack"
    packs.mkdir(exist_ok=True)
    shelf.run(
        "pack-objects",
        "-q",
        "--revs",
        "--non-empty",
        str(packs / "pack"),
        stdin=asked.encode(),
        lent=True,
    )


def copy_commit(shelf: Shelf, commit: str) -> None:
    """Copy a commit with its history from the agent's repository to the checkpoint repository,
    unless it is there already. Raises NotFound."""
    if shelf.lent is not None:
        _bring(shelf, CapturedState(), [commit])
    if not shelf.commit(commit):
        raise NotFound(
            f"The commit {commit[:12]} is not in {shelf.top} any more.",
            "Inspect that repository: the agent may have removed it.",
        )


def _counted(shelf: Shelf, look: CapturedState) -> tuple[int, int]:
    base = look.tree or shelf.put("tree", b"")
    states = [
        change.state
        for change in changes(shelf, base, look.worktree)
        if "160000" not in (change.old_mode, change.mode)
    ]
    return len(states) - states.count("A"), states.count("A")


def _commit(shelf: Shelf, look: CapturedState) -> None:
    """Write the commit of the checkpoint, unless it would equal the last commit."""
    entries = [
        ("100644", "checkpoint.json", shelf.put("blob", look.about)),
        ("40000", "worktree", look.worktree),
    ]
    if look.staged.tree and look.staged.tree != look.tree:
        entries.append(("40000", "index", look.staged.tree))
    if stages := look.staged.objects:
        entries.append(
            ("40000", "stages", tree_of(shelf, [("100644", oid, oid) for oid in stages]))
        )
    tree = tree_of(shelf, entries)
    also = list(
        dict.fromkeys(
            oid
            for oid in [*staging.commits(look.operation), *look.branches.commits]
            if oid != look.head
        )
    )
    absent = set(missing(shelf, also))
    parents = [oid for oid in (look.head, *also) if oid and oid not in absent]
    says = [tree, *parents]
    if look.commit and look.says == says:
        return
    look.says = says
    lines = [f"tree {tree}", *(f"parent {oid}" for oid in parents)]
    who = f"perdure <perdure@perdure.invalid> {int(time.time())} +0000"
    look.commit = shelf.put(
        "commit",
        "\n".join(
            [*lines, f"author {who}", f"committer {who}", "", "perdure: checkpoint\n"]
        ).encode(),
    )
