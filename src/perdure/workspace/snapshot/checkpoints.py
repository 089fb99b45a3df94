"""Saves, restores, compares, deletes, exports and imports the checkpoints of workdirs.

`Workspaces.checkpoints` is an instance of `WorkdirCheckpoints`. Every method locks and opens the
workdir's checkpoint repository (`shelf`) and calls `capture`, `restore` or `pack`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

from perdure.errors import GitFailed
from perdure.host.git import Git
from perdure.model import Backend, Saved, Workspace
from perdure.model.events import WorkSeen
from perdure.workspace.identity import Places
from perdure.workspace.snapshot import capture, refs
from perdure.workspace.snapshot.shelf import Shelf
from perdure.workspace.snapshot.trees import changes

if TYPE_CHECKING:
    from perdure.workspace.removal import HeldFiles
    from perdure.workspace.snapshot.pack import Packed, PackedFacts
    from perdure.workspace.snapshot.restore import RestoredWorkdir
    from perdure.workspace.work import Against


class WorkdirCheckpoints:
    """Checkpoints of all workdirs below a root. `git` makes the root if necessary, and returns git
    for it. `shelf` opens the checkpoint repository of a workdir."""

    def __init__(
        self,
        places: Places,
        git: Callable[[], Git],
        shelf: Callable[[Workspace], AbstractContextManager[Shelf]],
    ) -> None:
        self._places, self._git, self._shelf = places, git, shelf

    def carry(
        self, source: Workspace, target: Workspace, *, ignored: str = "small"
    ) -> RestoredWorkdir:
        """Copy the source's current state (files, staged and unstaged) to the target, on the
        target's own branch. The source is only read. The target must hold no work yet. Raises the
        errors of `put_in_place`."""
        with self._shelf(source) as shelf:
            ref = f"refs/perdure/fork/{target.id}"
            commit = capture.save(shelf, ref, ignored).commit
            try:
                return self._grow(shelf, commit, target, ignored)
            finally:
                shelf.order(f"delete {ref}")

    def grow(
        self, source: Workspace, commit: str, target: Workspace, *, ignored: str = "small"
    ) -> RestoredWorkdir:
        """Copy one of the source's checkpoints to the target's workdir, on the target's own branch.
        The source is only read. Raises the errors of `put_in_place`."""
        with self._shelf(source) as shelf:
            return self._grow(shelf, commit, target, ignored)

    def bring(self, source: Workspace, target: Workspace, commit: str) -> None:
        """Copy a commit from one isolated workdir's repository to another's. Does nothing for
        worktrees of one repository, which share it already. The source is only read. Raises
        NotFound if the source does not have the commit, and WorkspaceError."""
        from perdure.workspace.snapshot import pack

        if source.id != target.id and target.backend is Backend.ISOLATED:
            with self._shelf(source) as shelf, self._shelf(target) as other:
                _check_own(shelf)
                pack.bring(shelf, other, commit)

    def _grow(self, shelf: Shelf, commit: str, target: Workspace, ignored: str) -> RestoredWorkdir:
        from perdure.workspace.snapshot import pack, restore

        _check_own(shelf)
        with self._shelf(target) as other:
            pack.send(shelf, other, commit)
            return restore.put_in_place(
                self._places, target, other, commit, ignored, branch=target.branch
            )

    @contextmanager
    def pack(
        self,
        workspace: Workspace,
        commit: str,
        without: Sequence[str] = (),
        *,
        began: str = "",
        have: Sequence[str] = (),
    ) -> Iterator[Packed]:
        """Yield a checkpoint with the run's own commits as one pack, for a capsule. `without`:
        names of files to leave out. `began` and `have`: see `pack.pack`."""
        from perdure.workspace.snapshot import pack

        with (
            self._shelf(workspace) as shelf,
            pack.pack(self._places, shelf, commit, without, began=began, have=have) as packed,
        ):
            yield packed

    def unpack(
        self, workspace: Workspace, file: IO[bytes], packed: PackedFacts, number: int = 1
    ) -> Saved:
        """Import a pack as a checkpoint of this workdir and return that checkpoint, as `save`
        would. The caller then restores it with `put_in_place`. For the `here` backend in an empty
        directory, a shallow repository is made first.

        Raises Conflict where the directory has files, or where the repository lacks the commit that
        the run began at. Raises WorkspaceError for a damaged pack.
        """
        from perdure.workspace.snapshot import pack

        if workspace.backend is Backend.HERE and not os.path.lexists(Path(workspace.path) / ".git"):
            pack.found(self._git(), Path(workspace.path), packed.form, packed.shallow, packed.head)
        with self._shelf(workspace) as shelf:
            pack.unpack(shelf, file, packed.commit, packed.shallow, number)
            ref, git_dir = shelf.ref(number), str(shelf.refs.git_dir)
        return Saved(
            commit=packed.commit, ref=ref, git_dir=git_dir, head=packed.head, branch=packed.branch
        )

    def save(self, workspace: Workspace, number: int, *, ignored: str = "small") -> Saved:
        """Save the workdir durably as checkpoint `number`. Changes nothing in the workdir.
        `ignored`: the ignored files to include (`small`, `all`, `none`). If no checkpoint was made,
        raises WorkspaceError, GitFailed or OSError."""
        with self._shelf(workspace) as shelf:
            return capture.save(shelf, shelf.ref(number), ignored)

    def save_last(
        self, workspace: Workspace, number: int, against: Against, *, ignored: str = "small"
    ) -> tuple[Saved, WorkSeen | None]:
        """Save the workdir as the last checkpoint of an attempt, as `save` does, and compare it
        with its state at the beginning of the attempt. Returns the checkpoint and the comparison;
        the comparison is None where git cannot compare the two states."""
        from perdure.workspace.work import observe

        with self._shelf(workspace) as shelf:
            last = capture.save(shelf, shelf.ref(number), ignored)
            try:
                return last, observe(shelf, last, against)
            except GitFailed:
                # The commit that the attempt began with may be missing: its checkpoint was deleted,
                # or the history is shallow.
                return last, None

    def put_in_place(
        self, workspace: Workspace, commit: str, *, ignored: str = "small"
    ) -> RestoredWorkdir:
        """Restore the workdir to a checkpoint (a commit that `save` returned): files, index, HEAD
        and branch. Its current state is saved first. Idempotent: after a kill, another call
        completes the restore. The caller holds the workdir's lock.

        Raises NotFound, Conflict while a process works in the workdir, WorkspaceError.
        """
        from perdure.workspace.snapshot import restore

        with self._shelf(workspace) as shelf:
            return restore.put_in_place(self._places, workspace, shelf, commit, ignored)

    def drift(
        self, workspace: Workspace, commit: str, *, ignored: str = "small"
    ) -> tuple[str, ...]:
        """Return the names of the files that differ from a checkpoint. The names are untrusted
        text. Writes no ref."""
        from perdure.workspace.snapshot import restore

        with self._shelf(workspace) as shelf:
            return restore.drift(shelf, commit, ignored)

    def held(
        self, workspace: Workspace, number: int, commit: str, *, ignored: str = "small"
    ) -> HeldFiles | None:
        """Compare the workdir's current content with checkpoint `number`, and return the part that
        the checkpoint has. None where the checkpoint is missing or incomplete. Raises
        WorkspaceError, GitFailed."""
        from perdure.workspace.removal import HeldFiles
        from perdure.workspace.snapshot import restore

        found = refs.holders(self._places, workspace, self._git(), number, commit)
        if not found:
            return None
        with self._shelf(workspace) as shelf:
            now = restore.compare(shelf, commit, ignored)
        return HeldFiles(
            number=number,
            commit=commit,
            keepers=tuple(found),
            apart=now.apart,
            left_out=now.left_out,
            staged=now.staged,
        )

    def is_kept(self, workspace: Workspace, number: int, commit: str) -> bool:
        """Return whether a checkpoint exists with all its content, even if its workdir is gone.
        Raises GitFailed."""
        return bool(refs.holders(self._places, workspace, self._git(), number, commit))

    def keep_commits(self, workspace: Workspace, commits: Sequence[str]) -> None:
        """Save commits that only the reflog of an isolated workdir has. Raises WorkspaceError,
        GitFailed."""
        with self._shelf(workspace) as shelf:
            capture.keep_commits(shelf, commits)

    def added(self, workspace: Workspace, commits: Sequence[str]) -> list[list[str]]:
        """Return the new files of each of these checkpoints, in order. Each checkpoint is compared
        with the one before it. The first one is compared with the state in which the workdir began;
        its list is empty where that state is not known. The names are untrusted text."""
        with self._shelf(workspace) as shelf:
            begun = shelf.pinned or workspace.base
            if begun:
                before = f"{begun}^{{tree}}"
            elif workspace.backend is Backend.TASK:
                before = shelf.put("tree", b"")
            else:
                before = ""
            found = []
            for commit in commits:
                after = f"{commit}:worktree"
                found.append(
                    [
                        change.name
                        for change in changes(shelf, before or after, after)
                        if change.state == "A"
                    ]
                )
                before = after
            return found

    def list_saved(self, workspace: Workspace) -> dict[int, str]:
        """Return the commits of a workdir's checkpoints, by checkpoint number. The workdir itself
        may be gone."""
        return refs.numbers(self._places, workspace, self._git())

    def forget(self, workspace: Workspace, *numbers: int) -> None:
        """Delete checkpoints. Weeks later, git's own gc removes the objects that no other
        checkpoint needs."""
        refs.forget(self._places, workspace, self._git(), numbers)


def _check_own(shelf: Shelf) -> None:
    """Raise WorkspaceError if an agent's repository borrows objects from anywhere but the cache,
    because those objects would be copied into another workdir."""
    from perdure.workspace.isolated import check_objects

    if shelf.lent is not None and shelf.borrowed is not None and shelf.borrowed.git_dir is not None:
        check_objects(shelf.lent, shelf.borrowed.git_dir / "objects")
