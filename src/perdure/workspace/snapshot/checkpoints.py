"""Saves, restores, compares, deletes, exports and imports the checkpoints of workdirs.

`Workspaces.checkpoints` is an instance of `WorkdirCheckpoints`. Every method locks and opens the
workdir's checkpoint repository (`checkpoint_repository`) and calls `capture`, `restore` or `pack`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

from perdure.errors import GitFailed
from perdure.host.git import Git
from perdure.model import Backend, Saved, Workspace
from perdure.model.events import WorkSeen
from perdure.workspace.identity import Places
from perdure.workspace.snapshot import refs
from perdure.workspace.snapshot.checkpoint_repository import CheckpointRepository

if TYPE_CHECKING:
    from perdure.workspace.removal import CheckpointCoverage
    from perdure.workspace.snapshot.pack import Packed, PackedFacts
    from perdure.workspace.snapshot.restore import RestoredWorkdir
    from perdure.workspace.work import AttemptBaseline


class WorkdirCheckpoints:
    """Checkpoints of all workdirs below a root. `git` makes the root if necessary, and returns git
    for it. `open_repository` opens the checkpoint repository of a workdir. `ignored`: the
    git-ignored files that checkpoints include (`small`, `all`, `none`), unless a call says
    otherwise."""

    def __init__(
        self,
        places: Places,
        git: Callable[[], Git],
        open_repository: Callable[[Workspace], AbstractContextManager[CheckpointRepository]],
        ignored: str = "small",
    ) -> None:
        self._places, self._git, self._open = places, git, open_repository
        self._ignored = ignored

    def copy_state(
        self, source: Workspace, target: Workspace, *, ignored: str = ""
    ) -> RestoredWorkdir:
        """Copy the source's current state (files, staged and unstaged) to the target, on the
        target's own branch. The source is only read. The target must hold no work yet. `ignored`:
        as in `save`. Raises the errors of `restore`."""
        from perdure.workspace.snapshot import capture

        with self._open(source) as repo:
            ref = f"refs/perdure/fork/{target.id}"
            commit = capture.save(repo, ref, ignored or self._ignored).commit
            try:
                return self._grow(repo, commit, target, ignored)
            finally:
                repo.update_refs(f"delete {ref}")

    def copy_checkpoint(
        self, source: Workspace, commit: str, target: Workspace, *, ignored: str = ""
    ) -> RestoredWorkdir:
        """Copy one of the source's checkpoints to the target's workdir, on the target's own branch.
        The source is only read. `ignored`: as in `save`. Raises the errors of `restore`."""
        with self._open(source) as repo:
            return self._grow(repo, commit, target, ignored)

    def copy_commit(self, source: Workspace, target: Workspace, commit: str) -> None:
        """Copy a commit from one isolated workdir's repository to another's. Does nothing for
        worktrees of one repository, which share it already. The source is only read. Raises
        NotFound if the source does not have the commit, and WorkspaceError."""
        from perdure.workspace.snapshot import pack

        if source.id != target.id and target.backend is Backend.ISOLATED:
            with self._open(source) as repo, self._open(target) as other:
                _check_own(repo)
                pack.transfer_commit(repo, other, commit)

    def _grow(
        self, repo: CheckpointRepository, commit: str, target: Workspace, ignored: str
    ) -> RestoredWorkdir:
        from perdure.workspace.snapshot import pack, restore

        _check_own(repo)
        with self._open(target) as other:
            pack.transfer_checkpoint(repo, other, commit)
            return restore.restore_workdir(
                self._places,
                target,
                other,
                commit,
                ignored or self._ignored,
                branch=target.branch,
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
        blobs: Mapping[str, str] | None = None,
    ) -> Iterator[Packed]:
        """Yield a checkpoint with the run's own commits as one pack, for a capsule. `without`:
        names of files to leave out. `began`, `have` and `blobs`: see `pack.pack`."""
        from perdure.workspace.snapshot import pack

        with (
            self._open(workspace) as repo,
            pack.pack(
                self._places, repo, commit, without, began=began, have=have, blobs=blobs
            ) as packed,
        ):
            yield packed

    def unpack(
        self, workspace: Workspace, file: IO[bytes], packed: PackedFacts, number: int = 1
    ) -> Saved:
        """Import a pack as a checkpoint of this workdir and return that checkpoint, as `save`
        would. The caller then restores it with `restore`. For the `here` backend in an empty
        directory, a shallow repository is made first.

        Raises Conflict where the directory has files, or where the repository lacks the commit that
        the run began at. Raises WorkspaceError for a damaged pack.
        """
        from perdure.workspace.snapshot import pack

        if workspace.backend is Backend.HERE and not os.path.lexists(Path(workspace.path) / ".git"):
            pack.make_shallow_repository(
                self._git(), Path(workspace.path), packed.form, packed.shallow, packed.head
            )
        with self._open(workspace) as repo:
            pack.unpack(repo, file, packed.commit, packed.shallow, number)
            ref, git_dir = repo.ref(number), str(repo.refs.git_dir)
        return Saved(
            commit=packed.commit, ref=ref, git_dir=git_dir, head=packed.head, branch=packed.branch
        )

    def save(self, workspace: Workspace, number: int, *, ignored: str = "") -> Saved:
        """Save the workdir durably as checkpoint `number`. Changes nothing in the workdir.
        `ignored`: the ignored files to include, if not the usual ones. If no checkpoint was made,
        raises WorkspaceError, GitFailed or OSError."""
        # Imported late, as in the other methods: an agent starts before the first capture.
        from perdure.workspace.snapshot import capture

        with self._open(workspace) as repo:
            return capture.save(repo, repo.ref(number), ignored or self._ignored)

    def save_last(
        self, workspace: Workspace, number: int, against: AttemptBaseline, *, ignored: str = ""
    ) -> tuple[Saved, WorkSeen | None]:
        """Save the workdir as the last checkpoint of an attempt, as `save` does, and compare the
        workdir with its state at the beginning of the attempt. Returns the checkpoint and the
        comparison. The comparison is None where git cannot compare the two states."""
        from perdure.workspace.snapshot import capture
        from perdure.workspace.work import observe

        with self._open(workspace) as repo:
            last = capture.save(repo, repo.ref(number), ignored or self._ignored)
            try:
                return last, observe(repo, last, against)
            except GitFailed:
                # The commit that the attempt began with may be missing: its checkpoint was deleted,
                # or the history is shallow.
                return last, None

    def restore(self, workspace: Workspace, commit: str, *, ignored: str = "") -> RestoredWorkdir:
        """Restore the workdir to a checkpoint (a commit that `save` returned): files, index, HEAD
        and branch. The workdir's current state is saved first. Idempotent: after a kill, another
        call completes the restore. The caller holds the workdir's lock.

        Raises NotFound, Conflict while a process works in the workdir, WorkspaceError.
        """
        from perdure.workspace.snapshot import restore

        with self._open(workspace) as repo:
            return restore.restore_workdir(
                self._places, workspace, repo, commit, ignored or self._ignored
            )

    def drift(self, workspace: Workspace, commit: str, *, ignored: str = "") -> tuple[str, ...]:
        """Return the names of the files that differ from a checkpoint. The names are untrusted
        text. `ignored`: as in `save`. Writes no ref."""
        from perdure.workspace.snapshot import restore

        with self._open(workspace) as repo:
            return restore.drift(repo, commit, ignored or self._ignored)

    def coverage(
        self, workspace: Workspace, number: int, commit: str, *, ignored: str = ""
    ) -> CheckpointCoverage | None:
        """Compare the workdir's current content with checkpoint `number`, and return the part that
        the checkpoint has. None where the checkpoint is missing or incomplete. Raises
        WorkspaceError, GitFailed."""
        from perdure.workspace.removal import CheckpointCoverage
        from perdure.workspace.snapshot import restore

        found = refs.complete_repositories(self._places, workspace, self._git(), number, commit)
        if not found:
            return None
        with self._open(workspace) as repo:
            now = restore.compare(repo, commit, ignored or self._ignored)
        return CheckpointCoverage(
            number=number,
            commit=commit,
            repositories=tuple(found),
            differing_files=now.differing,
            left_out=now.left_out,
            staged=now.staged,
        )

    def is_kept(self, workspace: Workspace, number: int, commit: str) -> bool:
        """Return whether a checkpoint exists with all its content, even if its workdir is gone.
        Raises GitFailed."""
        return bool(
            refs.complete_repositories(self._places, workspace, self._git(), number, commit)
        )

    def keep_commits(self, workspace: Workspace, commits: Sequence[str]) -> None:
        """Save commits that only the reflog of an isolated workdir has. Raises WorkspaceError,
        GitFailed."""
        from perdure.workspace.snapshot import capture

        with self._open(workspace) as repo:
            capture.keep_commits(repo, commits)

    def new_files(self, workspace: Workspace, commits: Sequence[str]) -> list[list[str]]:
        """Return the new files of each of these checkpoints, in order. Each checkpoint is compared
        with the one before it. The first one is compared with the state in which the workdir began;
        its list is empty where that state is not known. The names are untrusted text."""
        from perdure.workspace.snapshot.trees import changes

        with self._open(workspace) as repo:
            begun = repo.pinned or workspace.base
            if begun:
                before = f"{begun}^{{tree}}"
            elif workspace.backend is Backend.TASK:
                before = repo.write_object("tree", b"")
            else:
                before = ""
            found = []
            for commit in commits:
                after = f"{commit}:worktree"
                added = []
                for change in changes(repo, before or after, after):
                    if change.state == "A":
                        added.append(change.name)
                found.append(added)
                before = after
            return found

    def list_saved(self, workspace: Workspace) -> dict[int, str]:
        """Return the commits of a workdir's checkpoints, by checkpoint number. The workdir itself
        may be gone."""
        return refs.commits_by_number(self._places, workspace, self._git())

    def delete(self, workspace: Workspace, *numbers: int) -> None:
        """Delete checkpoints. Weeks later, git's own gc removes the objects that no other
        checkpoint needs."""
        refs.delete_refs(self._places, workspace, self._git(), numbers)


def _check_own(repo: CheckpointRepository) -> None:
    """Raise WorkspaceError if an agent's repository borrows objects from anywhere but the cache,
    because those objects would be copied into another workdir."""
    from perdure.workspace.isolated import check_objects

    if (
        repo.agent_objects is not None
        and repo.cache_git is not None
        and repo.cache_git.git_dir is not None
    ):
        check_objects(repo.agent_objects, repo.cache_git.git_dir / "objects")
