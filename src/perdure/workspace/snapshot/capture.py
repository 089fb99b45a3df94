"""Saves a workdir as one commit: the workdir's part of a checkpoint.

The attempt calls `WorkdirCheckpoints.save` while the agent runs and after it has ended. The
commit's tree has these entries:

- `worktree/`: every file as bytes: tracked, untracked, and ignored ones by policy.
- `index/`: the content that is staged in the workdir's git index; absent if it equals HEAD.
- `stages/`: the versions of each file in conflict, from the git index; absent without conflicts.
- `checkpoint.json`: HEAD, branch, an operation in progress, empty directories, and left-out files
  with the reasons.

The commit's parents are HEAD and the commits that an operation in progress needs. The commit is
made with perdure's own index. So neither HEAD, the index nor a branch moves, and no filter, hook or
setting of the repository is used.

Each capture starts with perdure's index from the last capture, so unchanged files are not read. The
first capture of a worktree starts with the git index that git wrote when it checked out the
worktree, if that is safe (see `checkout`). The indexes of a capture are written to a temporary
directory, which is moved into place before the ref is written. The ref keeps gc from removing the
objects that the index names. If git fails with the kept index, that index is discarded and
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
from typing import TYPE_CHECKING, TypeVar

from perdure.errors import GitFailed, NotFound, WorkspaceError
from perdure.host.git.output import one_a_line
from perdure.host.system.files import flush
from perdure.model import Saved
from perdure.workspace import branches
from perdure.workspace.snapshot import index as staging
from perdure.workspace.snapshot.cache import LISTED, CapturedState, load_state, store_state
from perdure.workspace.snapshot.checkpoint_repository import FATAL, CheckpointRepository, split
from perdure.workspace.snapshot.differences import Piece
from perdure.workspace.snapshot.index import Staged
from perdure.workspace.snapshot.scan import scan
from perdure.workspace.snapshot.trees import changes, escape, missing, tree_of, unescape

if TYPE_CHECKING:
    from perdure.workspace.snapshot.checkout import Checkout

_T = TypeVar("_T")


def save(repo: CheckpointRepository, ref: str, policy: str) -> Saved:
    """Save the workdir under the ref `ref` (a full name). If no ref was written, raises
    WorkspaceError or GitFailed."""
    with report_disk_errors(repo, "saved"):
        return retry_without_cache(repo, lambda repo: _save(repo, ref, policy))


@contextlib.contextmanager
def report_disk_errors(repo: CheckpointRepository, what: str) -> Iterator[None]:
    """Turn errors of the file system, such as a full disk or missing permissions, into
    WorkspaceError. The error's text says that the workdir could not be `what`. `what` is a
    participle, such as "examined"."""
    try:
        yield
    except OSError as error:
        file = f" ({error.filename})" if error.filename else ""
        raise WorkspaceError(
            f"{repo.top} could not be {what}: {error.strerror or error}{file}.",
            "Nothing is lost. Free some space or check its permissions, then try again.",
        ) from error


def _save(repo: CheckpointRepository, ref: str, policy: str) -> Saved:
    with captured_state(repo, policy, kept=True) as (state, new_directory):
        known = state.commit
        _commit(repo, state)
        store_state(repo, state, new_directory)
        repo.publish(ref, state.commit, last=known)
    return Saved(
        commit=state.commit,
        ref=ref,
        git_dir=str(repo.refs.git_dir),
        head=state.head,
        branch=state.branch,
        changed=state.changed,
        untracked=state.untracked,
        left_out=tuple(state.found.left_out[:LISTED]),
        unsteady=tuple(state.found.unsteady[:LISTED]),
    )


def retry_without_cache(
    repo: CheckpointRepository, action: Callable[[CheckpointRepository], _T]
) -> _T:
    """Call `action` and return its result. If git fails, discard the cached state and call `action`
    once more. If git still fails, the workdir's own git directory is damaged. Then call `action`
    for the files only, without that git directory."""
    try:
        return action(repo)
    except GitFailed as error:
        if _is_full(error) or not ((repo.directory / "looks").exists() or repo.admin):
            raise
        from perdure.workspace.snapshot.checkout import forget_checkout

        forget_checkout(repo)
        shutil.rmtree(repo.directory / "looks", ignore_errors=True)
    try:
        return action(repo)
    except GitFailed as error:
        if repo.admin is None or error.code != FATAL or _is_full(error):
            raise
        shutil.rmtree(repo.directory / "looks", ignore_errors=True)
    return action(repo.without_git())


_NOT_NAMES = frozenset(("", ".", ".."))
_FULL = ("No space left", "Out of diskspace", "Disk quota exceeded")
"""Messages of git 2.39 on a full disk: those of the operating system, and those of csum-file.c for
a short write."""


def _is_full(error: GitFailed) -> bool:
    return any(words in error.stderr for words in _FULL)


@contextlib.contextmanager
def captured_state(
    repo: CheckpointRepository, policy: str, *, kept: bool = False
) -> Iterator[tuple[CapturedState, Path]]:
    """Capture the workdir's current state. Yields the state, and the directory with its indexes.

    The state's `commit` is the last checkpoint's commit, even if files have changed since. At the
    end of the `with` statement the directory is removed, unless the state was stored. `kept`:
    whether the caller intends to store the state.
    """
    cache_directory = repo.directory / "looks"
    cache_directory.mkdir(exist_ok=True)
    new_directory = cache_directory / "next"
    shutil.rmtree(new_directory, ignore_errors=True)
    new_directory.mkdir()
    try:
        known = load_state(repo, cache_directory, new_directory)
        yield _capture_state(repo, new_directory, known, policy, kept=kept), new_directory
    finally:
        shutil.rmtree(new_directory, ignore_errors=True)


def _capture_state(
    repo: CheckpointRepository,
    new_directory: Path,
    known: CapturedState,
    policy: str,
    *,
    kept: bool,
) -> CapturedState:
    if known.head and known.tree:
        repo.trees.setdefault(known.head, known.tree)
    first = None
    if not (new_directory / "index").exists():
        from perdure.workspace.snapshot.checkout import read_checkout

        first = read_checkout(repo)
    if kept:
        from perdure.workspace.snapshot.checkout import forget_checkout

        # The kept index may be a hard link to the worktree's own index, so removing it changes the
        # change time (ctime) of that file. Therefore it is removed before the index is examined.
        forget_checkout(repo)
    if first is not None:
        _begin_with_checkout(repo, known, first)
    state = CapturedState(
        head=repo.head,
        tree=repo.tree,
        branch=repo.branch,
        top=str(repo.top),
        commit=known.commit,
        says=known.says,
    )
    copy = None
    if repo.broken:
        state.found.left_out.append(
            (
                ".git",
                "git cannot use it: this checkpoint has only files, not HEAD, index and branches",
            )
        )
    state.branches = branches.collect_branches(repo, known.branches)
    if state.branches.more:
        state.found.left_out.append(
            (
                ".git/refs",
                f"{state.branches.more} branches and tags exceed the limit and are not kept",
            )
        )
    if repo.admin is not None:
        state.index = staging.signature(repo.admin / "index")
        state.operation = staging.operation(repo.admin)
        if state.index and state.index == known.index and known.head == state.head:
            state.staged = known.staged
        else:
            copy = staging.copied(repo.admin, new_directory / "user-index")
            if copy is not None:
                shutil.copy2(copy, new_directory / "user-index.read")
    if repo.agent_objects is not None and (state.head, state.index, state.branches.says) != (
        known.head,
        known.index,
        known.branches.says,
    ):
        _copy_agent_objects(
            repo, known, [state.head, *staging.commits(state.operation), *state.branches.commits]
        )
    begun = None
    if first is not None:
        begun = first.names
        first.copy_to(new_directory / "index")
    elif not (new_directory / "index").exists():
        begun = _fill_first_index(repo, new_directory / "index")
    piece = Piece(
        root=repo.top,
        index=new_directory / "index",
        seen=dict(known.found.pieces.get("", {})),
        begun=begun,
        examined=first is not None,
    )
    state.worktree = scan(repo, piece, known.found, state.found, policy, copy, kept=kept)
    if copy is not None:
        state.staged = staging.staged(repo, new_directory / "user-index.read")
        if repo.agent_objects is not None:
            # The tree of the agent's index is in the checkpoint repository already. The files in
            # that tree may exist only in the agent's own repository, so they are copied.
            base = state.tree or repo.write_object("tree", b"")
            named = []
            for change in changes(repo, base, state.staged.tree):
                if change.mode not in ("000000", "160000"):
                    named.append(change.new)
            _copy_agent_objects(repo, known, [*named, *state.staged.objects])
    if (state.worktree, state.head) == (known.worktree, known.head):
        state.changed, state.untracked = known.changed, known.untracked
    else:
        state.changed, state.untracked = _count_changes(repo, state)
    return state


def _begin_with_checkout(repo: CheckpointRepository, known: CapturedState, first: Checkout) -> None:
    """Fill `known`, which is empty before the first capture, with the state of the worktree
    directly after perdure made it."""
    repo.trees.setdefault(first.head, first.tree)
    known.head, known.tree, known.worktree = first.head, first.tree, first.tree
    signature = staging.signature(repo.admin / "index") if repo.admin is not None else []
    if first.is_index(signature):
        known.index, known.staged = signature, Staged(tree=first.tree)
    known.found.trees[""] = first.tree
    known.found.recent[""] = first.names


def _fill_first_index(repo: CheckpointRepository, index: Path) -> list[str]:
    """Fill the first index of a workdir from HEAD, so that few files are new; return the names in
    it. Entries that git refuses in an index are skipped."""
    names: list[str] = []
    if not repo.tree:
        return names
    lines = []
    for line in split(repo.run("ls-tree", "-r", "-z", "--full-tree", repo.tree).stdout):
        facts, _, name = line.partition("\t")
        mode, kind, oid = facts.split(" ")
        parts = name.split("/")
        escaped = [escape(part, mode == "120000") for part in parts]
        if kind == "blob" and escaped == parts and not _NOT_NAMES.intersection(parts):
            names.append(name)
            lines.append(f"{mode} {oid}\t{name}\0")
    repo.run("update-index", "-z", "--index-info", index=index, stdin=os.fsencode("".join(lines)))
    return names


def keep_commits(repo: CheckpointRepository, commits: Sequence[str]) -> None:
    """Keep commits of the agent's own repository beside the checkpoints, under rescue refs. The
    order of `commits` is newest first: they may contain the older ones, so few refs are needed.

    Raises WorkspaceError where a commit is missing or incomplete, GitFailed.
    """
    with report_disk_errors(repo, "saved"):
        _copy_agent_objects(repo, CapturedState(head=repo.head), list(commits))
        if absent := missing(repo, list(commits)):
            raise WorkspaceError(
                f"The commit {absent[0][:12]} of {repo.top} could not be saved.",
                "Check it with git fsck.",
            )
        kept: list[str] = []
        for oid in commits:
            if not _is_below(repo, oid, kept):
                kept.append(oid)
        flush(repo.objects)
        repo.update_refs(*(f"update refs/perdure/rescue/{repo.id}/{oid} {oid}" for oid in kept))


def _is_below(repo: CheckpointRepository, oid: str, tips: Sequence[str]) -> bool:
    """Return whether the commit is one of the tips or an ancestor of one."""
    for tip in tips:
        asked = repo.run("merge-base", "--is-ancestor", oid, tip, good=(0, 1))
        if asked.code == 0:
            return True
    return False


def _copy_agent_objects(
    repo: CheckpointRepository, known: CapturedState, wanted: list[str]
) -> None:
    """Copy the agent's objects that a checkpoint needs. perdure's own git only reads the agent's
    repository, and runs no program that its settings name."""
    wanted = missing(repo, [oid for oid in dict.fromkeys(wanted) if oid])
    if unknown := set(missing(repo, wanted, lent=True)):
        wanted = [oid for oid in wanted if oid not in unknown]
    if not wanted:
        return
    there = [oid for oid in dict.fromkeys((known.head, repo.pinned)) if oid and repo.commit_id(oid)]
    asked = one_a_line([*wanted, "--not", *there])
    packs = repo.objects / "pack"
    packs.mkdir(exist_ok=True)
    repo.run(
        "pack-objects",
        "-q",
        "--revs",
        "--non-empty",
        str(packs / "pack"),
        stdin=asked.encode(),
        with_agent_objects=True,
    )


def copy_commit(repo: CheckpointRepository, commit: str) -> None:
    """Copy a commit with its history from the agent's repository to the checkpoint repository,
    unless it is there already. Raises NotFound."""
    if repo.agent_objects is not None:
        _copy_agent_objects(repo, CapturedState(), [commit])
    if not repo.commit_id(commit):
        raise NotFound(
            f"The commit {commit[:12]} is not in {repo.top} any more.",
            "Inspect that repository: the agent may have removed it.",
        )


def _count_changes(repo: CheckpointRepository, state: CapturedState) -> tuple[int, int]:
    """Return the numbers of files that differ from HEAD: (changed or deleted, new). A file does not
    count if a sparse checkout left it out, or if it differs only by the line ends that git
    converts."""
    base = state.tree or repo.write_object("tree", b"")
    skipped = set(state.staged.skipped)
    found = changes(repo, base, state.worktree)
    same = set[str]()
    if any(change.state == "M" for change in found):
        from perdure.workspace.snapshot.line_ends import converted

        same = converted(repo, found)
    states = []
    for change in found:
        if "160000" in (change.old_mode, change.mode) or unescape(change.name) in same:
            continue
        if change.state != "D" or unescape(change.name) not in skipped:
            states.append(change.state)
    return len(states) - states.count("A"), states.count("A")


def _commit(repo: CheckpointRepository, state: CapturedState) -> None:
    """Write the commit of the checkpoint, unless it would equal the last commit."""
    entries = [
        ("100644", "checkpoint.json", repo.write_object("blob", state.about)),
        ("40000", "worktree", state.worktree),
    ]
    if state.staged.tree and state.staged.tree != state.tree:
        entries.append(("40000", "index", state.staged.tree))
    if stages := state.staged.objects:
        entries.append(("40000", "stages", tree_of(repo, [("100644", oid, oid) for oid in stages])))
    tree = tree_of(repo, entries)
    named = dict.fromkeys([*staging.commits(state.operation), *state.branches.commits])
    also = [oid for oid in named if oid != state.head]
    absent = set(missing(repo, also))
    parents = [oid for oid in (state.head, *also) if oid and oid not in absent]
    says = [tree, *parents]
    if state.commit and state.says == says:
        return
    state.says = says
    lines = [f"tree {tree}", *(f"parent {oid}" for oid in parents)]
    who = f"perdure <perdure@perdure.invalid> {int(time.time())} +0000"
    state.commit = repo.write_object(
        "commit",
        "\n".join(
            [*lines, f"author {who}", f"committer {who}", "", "perdure: checkpoint\n"]
        ).encode(),
    )
