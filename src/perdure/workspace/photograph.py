"""Saves a workdir as one commit: the workdir's half of a checkpoint.

The attempt calls `Checkpoints.save` while the agent works and when it has ended. The commit's tree holds `worktree/` (every file by its
bytes: tracked, untracked, and ignored by policy), `index/` (what is staged; absent where that is the last commit), `stages/` (the sides
of conflicts) and `checkpoint.json` (HEAD, branch, an operation in progress, empty directories, what was left out and why). Its parents
are HEAD and the commits that the operation stands on. It is made with perdure's own index, so neither HEAD, the index nor a branch
moves, and no filter, hook or setting of the repository takes part.

Each look begins with the index of the last one, so files that did not change are not read. A look is made aside and takes its place
before the ref is written; a ref keeps alive what its index is made of. Found to be anything else, it is thrown away and all is read again.
A workdir that is as it was gets its old commit under the new number. When `save` returns, the checkpoint survives a power cut.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import field
from pathlib import Path
from typing import Any, TypeVar

from perdure.errors import GitFailed, WorkspaceError
from perdure.lateclass import dataclass
from perdure.model import Saved
from perdure.workspace import branches, modes, staging
from perdure.workspace.branches import Branches
from perdure.workspace.escaping import escape
from perdure.workspace.findings import Findings, Piece
from perdure.workspace.scanning import scan
from perdure.workspace.shelf import FATAL, Shelf, split
from perdure.workspace.staging import Staged

FORMAT = 1
LISTED = 1000
"""So many names are listed of what was left out."""

_T = TypeVar("_T")


@dataclass(slots=True)
class Look:
    """One look at a workdir: what its checkpoint is made of."""

    worktree: str = ""
    staged: Staged = field(default_factory=Staged)
    operation: dict[str, str] = field(default_factory=dict)
    branches: Branches = field(default_factory=Branches)
    found: Findings = field(default_factory=lambda: Findings(umask=modes.umask()))
    head: str = ""
    tree: str = ""
    branch: str = ""
    index: list[int] = field(default_factory=list)
    """The workdir's own index file, as it was."""
    top: str = ""
    commit: str = ""
    says: list[str] = field(default_factory=list)
    """The commit's tree and its parents."""
    changed: int = 0
    untracked: int = 0

    @property
    def modes(self) -> dict[str, int]:
        """The modes that are not usual, by name as on disk; a directory's name ends in a slash."""
        outer = {prefix: Piece(root=Path(), index=Path(), prefix=prefix).outer for prefix in self.found.modes}
        return {outer[prefix] + name: mode for prefix, noted in self.found.modes.items() for name, mode in noted.items()}

    @property
    def about(self) -> bytes:
        """`checkpoint.json`."""
        left_out = self.found.left_out
        content: dict[str, Any] = {"format": FORMAT, "head": self.head, "branch": self.branch, "empty": sorted(self.found.empty)}
        content |= {
            "left_out": left_out[:LISTED],
            "left_out_more": max(0, len(left_out) - LISTED),
            "unsteady": self.found.unsteady[:LISTED],
        }
        content |= {"umask": f"{self.found.umask:03o}", "modes": modes.to_json(self.modes)}
        content |= {"operation": self.operation, "index": staging.to_json(self.staged), **branches.to_json(self.branches)}
        return json.dumps(content, indent=1, sort_keys=True).encode("ascii")


def save(shelf: Shelf, ref: str, policy: str) -> Saved:
    """Saves the workdir under a ref (a full name). Raises WorkspaceError, GitFailed; then nothing was published."""
    with in_words(shelf, "saved"):
        return again(shelf, lambda shelf: _save(shelf, ref, policy))


@contextlib.contextmanager
def in_words(shelf: Shelf, what: str) -> Iterator[None]:
    """What the file system refuses, as a WorkspaceError: a full disk, missing rights."""
    try:
        yield
    except OSError as error:
        raise WorkspaceError(
            f"{shelf.top} could not be {what}: {error.strerror or error}{f' ({error.filename})' if error.filename else ''}.",
            "Nothing is lost. Make room, or see to its rights, and try again.",
        ) from error


def _save(shelf: Shelf, ref: str, policy: str) -> Saved:
    with looked(shelf, policy) as (look, aside):
        known = look.commit
        _commit(shelf, look)
        _keep(shelf, look, aside)
        shelf.publish(ref, look.commit, last=known)
    return Saved(
        commit=look.commit, ref=ref, git_dir=str(shelf.refs.git_dir), head=look.head, branch=look.branch, changed=look.changed,
        untracked=look.untracked, left_out=tuple(look.found.left_out[:LISTED]), unsteady=tuple(look.found.unsteady[:LISTED]),
    )  # fmt: skip


def again(shelf: Shelf, look: Callable[[Shelf], _T]) -> _T:
    """What is remembered of earlier looks is only a means: where git fails with it, it is thrown away and all is read once more. Where it
    still fails, something in the workdir's own git directory is damaged: then the bare files are looked at."""
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
    return look(shelf.without_git())


def _is_full(error: GitFailed) -> bool:
    return "No space left" in error.stderr


@contextlib.contextmanager
def looked(shelf: Shelf, policy: str) -> Iterator[tuple[Look, Path]]:
    """Looks at the workdir as it is now. `commit` of the look is the last checkpoint's, whatever has changed since.

    The directory holds the look's indexes, and is gone afterwards unless it was kept.
    """
    looks = shelf.directory / "looks"
    looks.mkdir(exist_ok=True)
    aside = looks / "next"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    try:
        known = _remembered(shelf, looks, aside)
        yield _look(shelf, aside, known, policy), aside
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _remembered(shelf: Shelf, looks: Path, aside: Path) -> Look:
    """The last look, its indexes copied aside; an empty one if there is none. Whether its objects are still kept is seen on publishing."""
    place = next((path.parent for path in looks.glob("*/look.json")), looks)
    try:
        known = _read(place / "look.json")
    except (OSError, ValueError, KeyError, TypeError):
        return Look()
    if known.top != str(shelf.top) or known.commit != place.name or known.found.umask != modes.umask():
        return Look()
    for path in place.iterdir():
        if path.name == "index" or path.name.startswith("piece-"):
            shutil.copy2(path, aside / path.name)  # With its time: git compares it with the files'.
    return known


def _look(shelf: Shelf, aside: Path, known: Look, policy: str) -> Look:
    look = Look(head=shelf.head, tree=shelf.tree, branch=shelf.branch, top=str(shelf.top), commit=known.commit, says=known.says)
    copy = None
    if shelf.broken:
        look.found.left_out.append((".git", "git cannot use it: HEAD, index and branches are not part of this checkpoint, only files are"))
    look.branches = branches.gather(shelf, known.branches)
    if look.branches.more:
        look.found.left_out.append((".git/refs", f"{look.branches.more} branches and tags are more than are kept"))
    if shelf.admin is not None:
        look.index = staging.signature(shelf.admin / "index")
        look.operation = staging.operation(shelf.admin)
        if look.index and look.index == known.index and known.head == look.head:
            look.staged = known.staged
        else:
            copy = staging.copied(shelf.admin, aside / "user-index")
            if copy is not None:
                shutil.copy2(copy, aside / "user-index.read")
    if shelf.lent is not None and (look.head, look.index, look.branches.says) != (known.head, known.index, known.branches.says):
        _bring(shelf, known, [look.head, *staging.commits(look.operation), *look.branches.commits])
    if not (aside / "index").exists():
        _begin(shelf, aside / "index")
    piece = Piece(root=shelf.top, index=aside / "index", seen=dict(known.found.pieces.get("", {})))
    look.worktree = scan(shelf, piece, known.found, look.found, policy, copy)
    if copy is not None:
        look.staged = staging.staged(shelf, aside / "user-index.read")
        if shelf.lent is not None:
            # The tree is here already; what it names may be nowhere but in the agent's objects.
            base = look.tree or shelf.put("tree", b"")
            named = [change.new for change in changes(shelf, base, look.staged.tree) if change.mode not in ("000000", "160000")]
            _bring(shelf, known, [*named, *look.staged.objects])
    if (look.worktree, look.head) == (known.worktree, known.head):
        look.changed, look.untracked = known.changed, known.untracked
    else:
        look.changed, look.untracked = _counted(shelf, look)
    return look


def _begin(shelf: Shelf, index: Path) -> None:
    """The first index of a workdir: what HEAD has, so that few files are new. Without what git itself would refuse in an index."""
    if not shelf.tree:
        return
    lines = []
    for line in split(shelf.run("ls-tree", "-r", "-z", "--full-tree", shelf.tree).stdout):
        facts, _, name = line.partition("\t")
        mode, kind, oid = facts.split(" ")
        parts = name.split("/")
        if kind == "blob" and not any(part in ("", ".", "..") or escape(part, mode == "120000") != part for part in parts):
            lines.append(f"{mode} {oid}\t{name}\0")
    shelf.run("update-index", "-z", "--index-info", index=index, stdin=os.fsencode("".join(lines)))


def _bring(shelf: Shelf, known: Look, wanted: list[str]) -> None:
    """Copies what a checkpoint needs of the agent's own objects. They are only read, by perdure's git: nothing of theirs runs."""
    wanted = missing(shelf, [oid for oid in dict.fromkeys(wanted) if oid])
    if unknown := set(missing(shelf, wanted, lent=True)):
        wanted = [oid for oid in wanted if oid not in unknown]
    if not wanted:
        return
    there = [oid for oid in dict.fromkeys((known.head, shelf.pinned)) if oid and shelf.commit(oid)]
    asked = "".join(f"{line}\n" for line in [*wanted, "--not", *there])
    packs = shelf.objects / "pack"
    packs.mkdir(exist_ok=True)
    shelf.run("pack-objects", "-q", "--revs", "--non-empty", str(packs / "pack"), stdin=asked.encode(), lent=True)


def missing(shelf: Shelf, ids: list[str], *, lent: bool = False) -> list[str]:
    """Those of the objects that are not on the shelf, nor, with `lent`, with the agent."""
    if not ids:
        return []
    said = shelf.run("cat-file", "--batch-check", stdin="".join(f"{oid}\n" for oid in ids).encode(), lent=lent).text
    return [line.partition(" ")[0] for line in said.split("\n") if line.endswith(" missing")]


def _counted(shelf: Shelf, look: Look) -> tuple[int, int]:
    base = look.tree or shelf.put("tree", b"")
    states = [change.state for change in changes(shelf, base, look.worktree) if "160000" not in (change.old_mode, change.mode)]
    return len(states) - states.count("A"), states.count("A")


@dataclass(frozen=True, slots=True)
class Change:
    """How one name differs between two trees. `state`: A, D, M or T; what is not there has mode `000000`."""

    old_mode: str
    mode: str
    old: str
    new: str
    state: str
    name: str
    """As it stands in the tree."""


def changes(shelf: Shelf, before: str, after: str) -> list[Change]:
    """What differs between two trees, file by file."""
    said = split(shelf.run("diff-tree", "-r", "-z", "--raw", "--no-abbrev", "--no-renames", before, after, "--").stdout)
    found = []
    for facts, name in zip(said[::2], said[1::2], strict=True):
        old_mode, mode, old, new, state = facts.lstrip(":").split(" ")
        found.append(Change(old_mode, mode, old, new, state, name))
    return found


def _commit(shelf: Shelf, look: Look) -> None:
    """Writes the commit, unless the last one says the same."""
    entries = [("100644", "checkpoint.json", shelf.put("blob", look.about)), ("40000", "worktree", look.worktree)]
    if look.staged.tree and look.staged.tree != look.tree:
        entries.append(("40000", "index", look.staged.tree))
    if stages := look.staged.objects:
        entries.append(("40000", "stages", tree_of(shelf, [("100644", oid, oid) for oid in stages])))
    tree = tree_of(shelf, entries)
    also = list(dict.fromkeys(oid for oid in [*staging.commits(look.operation), *look.branches.commits] if oid != look.head))
    absent = set(missing(shelf, also))
    parents = [oid for oid in (look.head, *also) if oid and oid not in absent]
    says = [tree, *parents]
    if look.commit and look.says == says:
        return
    look.says = says
    lines = [f"tree {tree}", *(f"parent {oid}" for oid in parents)]
    who = f"perdure <perdure@perdure.invalid> {int(time.time())} +0000"
    look.commit = shelf.put("commit", "\n".join([*lines, f"author {who}", f"committer {who}", "", "perdure: checkpoint\n"]).encode())


def commit_of(shelf: Shelf, commit: str) -> tuple[dict[str, tuple[str, str]], list[str]]:
    """A checkpoint's entries (mode and id by name) and its parents."""
    entries = {}
    for line in split(shelf.run("ls-tree", "-z", commit).stdout):
        facts, _, name = line.partition("\t")
        mode, _, oid = facts.split(" ")
        entries[name] = (mode.lstrip("0"), oid)
    return entries, shelf.run("rev-parse", f"{commit}^@").text.split()


def tree_of(shelf: Shelf, entries: list[tuple[str, str, str]]) -> str:
    ordered = sorted(entries, key=lambda entry: entry[1] + ("/" if entry[0] == "40000" else ""))
    return shelf.put("tree", b"".join(f"{mode} {name}\0".encode() + bytes.fromhex(oid) for mode, name, oid in ordered))


def _keep(shelf: Shelf, look: Look, aside: Path) -> None:
    """The look takes its place under its commit's name; whatever stood there before goes."""
    looks = shelf.directory / "looks"
    for name in ("user-index", "user-index.read"):
        (aside / name).unlink(missing_ok=True)
    (aside / "look.json").write_bytes(_written(look))
    place = looks / look.commit
    if place.exists():
        shutil.rmtree(looks / "old", ignore_errors=True)
        place.rename(looks / "old")
    aside.rename(place)
    for other in looks.iterdir():
        if other != place and other.name != look.commit:
            shutil.rmtree(other, ignore_errors=True)


def _written(look: Look) -> bytes:
    found = {
        "left_out": look.found.left_out,
        "empty": look.found.empty,
        "pieces": look.found.pieces,
        "trees": look.found.trees,
        "umask": look.found.umask,
        "modes": look.found.modes,
        "recent": look.found.recent,
        "settled": look.found.settled,
        "idle": look.found.idle,
    }
    staged = {"tree": look.staged.tree, **staging.to_json(look.staged)}
    ours = {"refs": look.branches.refs, "stashes": look.branches.stashes, "says": look.branches.says, "more": look.branches.more}
    own = {
        key: getattr(look, key) for key in ("worktree", "head", "tree", "branch", "index", "top", "commit", "says", "changed", "untracked")
    }
    return json.dumps({**own, "found": found, "staged": staged, "branches": ours}).encode("ascii")


def _read(path: Path) -> Look:
    content = json.loads(path.read_bytes())
    found, staged, ours = content.pop("found"), content.pop("staged"), content.pop("branches")
    return Look(
        found=Findings(**{key: found[key] for key in ("pieces", "trees", "settled", "idle", "umask", "modes", "recent")}),
        staged=Staged(**staged),
        branches=Branches(**ours),
        **content,
    )
