"""The checkpoints of workdirs: saved, put back, compared, given up, taken elsewhere.

`Workspaces.checkpoints` is one of these. Every verb opens the workdir's `shelf` under its lock, and
leaves the work to `capture`, `restore` and `pack`.
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
from perdure.workspace.work import Against, observe

if TYPE_CHECKING:
    from perdure.workspace.removal import HeldFiles
    from perdure.workspace.snapshot.pack import Packed, PackedFacts
    from perdure.workspace.snapshot.restore import RestoredWorkdir


class WorkdirCheckpoints:
    """`git`: perdure's git at the root, which is made if need be; `shelf`: opens the shelf of a
    workdir."""

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
        """Makes the target what the source is now, on a branch of its own: files, staged and
        unstaged. The source is only read, and the target must be nobody's work yet. Raises as
        `put_in_place`."""
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
        """Makes the target what the source was at one of its checkpoints, on the target's own
        branch. The source is only read. Raises as `put_in_place`."""
        with self._shelf(source) as shelf:
            return self._grow(shelf, commit, target, ignored)

    def bring(self, source: Workspace, target: Workspace, commit: str) -> None:
        """Copy a commit from one isolated workdir's repository to another's; worktrees of one
        repository share it already. The source is only read. Raises NotFound where the source does
        not have it, WorkspaceError."""
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
        """A checkpoint as one pack, with the run's own commits, for a capsule; `without`: names
        that are left out. `began` and `have` as for `pack.pack`."""
        from perdure.workspace.snapshot import pack

        with (
            self._shelf(workspace) as shelf,
            pack.pack(self._places, shelf, commit, without, began=began, have=have) as packed,
        ):
            yield packed

    def unpack(
        self, workspace: Workspace, file: IO[bytes], packed: PackedFacts, number: int = 1
    ) -> Saved:
        """Takes a pack in as a checkpoint of this workdir; `put_in_place` does the rest. For `here`
        in an empty directory, a shallow repository is made first. Raises Conflict where there are
        files, or the repository lacks what the run began at; WorkspaceError for a pack that is
        damaged. Returns the checkpoint, as `save` would."""
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
        """Saves the workdir as checkpoint `number` of it, durably; changes nothing in it.
        `ignored`: which ignored files are taken (`small`, `all`, `none`). Raises WorkspaceError,
        GitFailed or OSError; then there is no new checkpoint."""
        with self._shelf(workspace) as shelf:
            return capture.save(shelf, shelf.ref(number), ignored)

    def save_last(
        self, workspace: Workspace, number: int, against: Against, *, ignored: str = "small"
    ) -> tuple[Saved, WorkSeen | None]:
        """Save the workdir as the last checkpoint of an attempt, as `save` does, and compare it
        with what the attempt began with; None where git cannot compare the two."""
        with self._shelf(workspace) as shelf:
            last = capture.save(shelf, shelf.ref(number), ignored)
            try:
                return last, observe(shelf, last, against)
            except GitFailed:
                # What it began with may be gone: a checkpoint that was deleted, a shallow history.
                return last, None

    def put_in_place(
        self, workspace: Workspace, commit: str, *, ignored: str = "small"
    ) -> RestoredWorkdir:
        """Makes the workdir again what it was at a checkpoint (a commit that `save` returned):
        files, index, HEAD and branch. What is there now is saved first. Idempotent, and goes on
        where it was killed. The caller holds the workdir's lock.

        Raises NotFound, Conflict while a process works in the workdir, WorkspaceError."""
        from perdure.workspace.snapshot import restore

        with self._shelf(workspace) as shelf:
            return restore.put_in_place(self._places, workspace, shelf, commit, ignored)

    def drift(
        self, workspace: Workspace, commit: str, *, ignored: str = "small"
    ) -> tuple[str, ...]:
        """The names of files that are no longer as they were at a checkpoint: hostile text.
        Publishes nothing."""
        from perdure.workspace.snapshot import restore

        with self._shelf(workspace) as shelf:
            return restore.drift(shelf, commit, ignored)

    def held(
        self, workspace: Workspace, number: int, commit: str, *, ignored: str = "small"
    ) -> HeldFiles | None:
        """What checkpoint `number` holds of the workdir as it is at this moment; None where the
        checkpoint is not there whole. Raises WorkspaceError, GitFailed."""
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
        """Whether a checkpoint is there whole, also where its workdir is gone. Raises GitFailed."""
        return bool(refs.holders(self._places, workspace, self._git(), number, commit))

    def keep_commits(self, workspace: Workspace, commits: Sequence[str]) -> None:
        """Keeps commits that only the reflog of an isolated workdir knows. Raises WorkspaceError,
        GitFailed."""
        with self._shelf(workspace) as shelf:
            capture.keep_commits(shelf, commits)

    def added(self, workspace: Workspace, commits: Sequence[str]) -> list[list[str]]:
        """For each of these checkpoints of a workdir, in their order, the files that came with it:
        the one before, or what the workdir began with, has them not. Where that is not known, none
        came with the first. Hostile text."""
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
        """The checkpoints of a workdir, whether or not it is still there: number and commit."""
        return refs.numbers(self._places, workspace, self._git())

    def forget(self, workspace: Workspace, *numbers: int) -> None:
        """Gives checkpoints up. What no other checkpoint needs is freed by git's own gc, weeks
        later."""
        refs.forget(self._places, workspace, self._git(), numbers)


def _check_own(shelf: Shelf) -> None:
    """Raise WorkspaceError where an agent's repository borrows objects that are not the cache's:
    they would become another one's."""
    from perdure.workspace.isolated import check_objects

    if shelf.lent is not None and shelf.borrowed is not None and shelf.borrowed.git_dir is not None:
        check_objects(shelf.lent, shelf.borrowed.git_dir / "objects")
