"""Restores a workdir to a checkpoint: files as bytes, index, HEAD and branch, and an operation in
progress.

`WorkdirCheckpoints.restore` calls `restore_workdir` while the workdir's lock is held. The current
state is saved first under a rescue ref, so a restore can be undone by another one. Only differences
are written. A restore can be killed at any moment: the next call saves what it finds and completes
the restore, and the first rescue ref still has the original state. A file that the checkpoint left
out (see `scan`) is not touched. It goes to the trash only if it is in the way.

A checkpoint may come from another machine, so nothing in it is trusted: names, ids and
`checkpoint.json` are checked.
"""

from __future__ import annotations

import base64
import json
import os
import re
import time
from collections.abc import Sequence

from msgspec import Struct, field
from msgspec.structs import replace

from perdure.errors import Conflict, NotFound, UsageError, WorkspaceError
from perdure.host import system
from perdure.host.git.output import one_a_line
from perdure.host.system.files import flush, umask
from perdure.model import Backend, Saved, Workspace
from perdure.patterns import late_pattern
from perdure.workspace import branches
from perdure.workspace.branches import Branches
from perdure.workspace.identity import Places, check_saved_branch
from perdure.workspace.locks import clear_locks
from perdure.workspace.snapshot import index as staging
from perdure.workspace.snapshot import trees
from perdure.workspace.snapshot.cache import FORMAT
from perdure.workspace.snapshot.capture import (
    captured_state,
    report_disk_errors,
    retry_without_cache,
    save,
)
from perdure.workspace.snapshot.checkpoint_repository import CheckpointRepository
from perdure.workspace.snapshot.index import Staged
from perdure.workspace.snapshot.trees import (
    Change,
    Rights,
    changes,
    entries,
    missing,
    objects,
    unescape,
)

_OID = late_pattern(r"([0-9a-f]{40}|[0-9a-f]{64})?")


class RestoredWorkdir(Struct, frozen=True, kw_only=True):
    """The result of a restore. `rescue` is the saved previous state; None if nothing differed or
    there was nothing to save."""

    rescue: Saved | None
    files: int = 0
    """Number of files that were written or removed."""
    notes: tuple[str, ...] = ()
    differs: tuple[str, ...] = ()
    """Names that still differ from the checkpoint after the restore, because another process writes
    there."""


class WorkdirCheckpoint(Struct, frozen=True, kw_only=True):
    """The workdir's part of a checkpoint, read and checked."""

    commit: str
    worktree: str
    index: str
    head: str
    branch: str
    empty: tuple[str, ...] = ()
    left_out: tuple[tuple[str, str], ...] = ()
    operation: dict[str, str] = field(default_factory=dict)
    staged: Staged = field(default_factory=Staged)
    branches: Branches = field(default_factory=Branches)
    rights: Rights = field(default_factory=Rights)


def load(repo: CheckpointRepository, commit: str) -> WorkdirCheckpoint:
    """Return a checkpoint's content. Raises NotFound if it is missing, WorkspaceError if it is
    damaged or is no checkpoint."""
    named = (f"{commit}^{{commit}}", f"{commit}^{{tree}}", f"{commit}:checkpoint.json")
    found, tree, about = objects(repo, *named)
    if found is None:
        raise NotFound(
            f"There is no checkpoint {commit[:12]} of {repo.top}.", "See: perdure checkpoints NAME"
        )
    oid = found[0]
    if tree is None or about is None:
        raise WorkspaceError(
            f"{oid[:12]} is not a checkpoint, or a damaged one: a part of it is missing.",
            "See: perdure checkpoints NAME",
        )
    try:
        parts = entries(tree[1], repo.form)
        said = json.loads(about[1])
        if said["format"] != FORMAT:
            raise WorkspaceError(
                f"The checkpoint {oid[:12]} has format {said['format']!r}.",
                "It was created by a newer perdure; upgrade perdure.",
            )
        index = said["index"]
        head, branch = str(said["head"]), str(said["branch"])
        stages = [[mode, side, stage, name] for mode, side, stage, name in index.get("stages", [])]
        rights = trees.read(said["modes"], said["umask"])
        empty = tuple(map(str, said["empty"]))
        staged = Staged(
            stages=stages,
            intent=list(map(str, index.get("intent", []))),
            assumed=list(map(str, index.get("assumed", []))),
            skipped=list(map(str, index.get("skipped", []))),
        )
        for name in (*rights.noted, *empty, *staged.names):
            _check_name(name)
        for content in said["operation"].values():
            base64.b64decode(content, validate=True)
        if not _OID.fullmatch(head):
            raise ValueError("an id is needed")
        for mode, side, stage, _ in stages:
            entry = " ".join((mode, side, stage))
            if not re.fullmatch("[0-7]{6} [0-9a-f]{40,64} [123]", entry):
                raise ValueError("an id is needed")
        operation = {}
        for name, content in said["operation"].items():
            if staging.is_state(str(name)):
                operation[str(name)] = str(content)
        return WorkdirCheckpoint(
            commit=oid,
            worktree=parts["worktree"],
            index=parts.get("index", ""),
            head=head,
            branch=check_saved_branch(branch) if branch else "",
            empty=empty,
            left_out=tuple((str(name), str(why)) for name, why in said["left_out"]),
            operation=operation,
            staged=staged,
            branches=branches.read(said),
            rights=rights,
        )
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError, UsageError) as error:
        raise WorkspaceError(
            f"{oid[:12]} is not a checkpoint, or a damaged one: {error}.",
            "See: perdure checkpoints NAME",
        ) from error


def _check_name(name: str) -> None:
    """Raise ValueError if no file can have this name. Callers that use a name expect only OSError,
    but Python refuses such a name with another error."""
    if "\0" in name:
        raise ValueError("a name contains a null character")
    os.fsencode(name)


def restore_workdir(
    places: Places,
    workspace: Workspace,
    repo: CheckpointRepository,
    commit: str,
    policy: str,
    *,
    branch: str = "",
) -> RestoredWorkdir:
    """Restore the workdir to a checkpoint. `branch`: the branch to switch to instead of the
    checkpoint's (a fork has its own).

    Raises NotFound, Conflict while a process works in the workdir, WorkspaceError, GitFailed.
    """
    with report_disk_errors(repo, "restored"):
        return _restore_workdir(places, workspace, repo, commit, policy, branch)


def _restore_workdir(
    places: Places,
    workspace: Workspace,
    repo: CheckpointRepository,
    commit: str,
    policy: str,
    branch: str,
) -> RestoredWorkdir:
    from perdure.workspace.removal import processes_inside
    from perdure.workspace.snapshot.files import Placer

    wanted, left_out = _without_commands(repo, load(repo, commit))
    if working := [pid for pid in processes_inside(repo.top) if pid not in _own_process_ids()]:
        raise Conflict(
            f"Process {working[0]} works in {repo.top}.", "Stop it first, or wait for it to end."
        )
    before, now = None, _empty_state(repo)
    if now is None:
        before = save(repo, f"refs/perdure/rescue/{repo.id}/{time.time_ns()}", policy)
        now = load(repo, before.commit)
    branch = branch or wanted.branch
    noted = {**now.rights.noted, **wanted.rights.noted}
    if _is_same_state(now, wanted, branch) and not wanted.rights.misfits(repo.top, noted, umask()):
        if before is not None:
            repo.update_refs(f"delete {before.ref}")
        return RestoredWorkdir(rescue=None)
    placer = Placer(places, repo, wanted.rights, outside=repo.is_outside(wanted.commit))
    placer.open_up([name for name in now.rights.noted if name.endswith("/")])
    differing = _differences(repo, now.worktree, wanted.worktree)
    placer.place(differing, wanted.empty, [name for name in now.empty if name not in wanted.empty])
    placer.fit(noted)
    notes = [*placer.notes, *left_out]
    if repo.broken:
        notes.append(f"git cannot use {repo.top}/.git: only the files were restored.")
    if repo.admin is not None:
        notes += _restore_head_and_index(workspace, repo, now, wanted, branch)
    flush(repo.top)
    return RestoredWorkdir(
        rescue=before,
        files=len(differing),
        notes=tuple(notes),
        differs=drift(repo, commit, policy),
    )


def _without_commands(
    repo: CheckpointRepository, wanted: WorkdirCheckpoint
) -> tuple[WorkdirCheckpoint, list[str]]:
    """Return the checkpoint, and notes for a person. If the checkpoint came from another machine,
    the state files that may make git run a command are removed from it. Each of them gets a note.
    """
    armed = [name for name in wanted.operation if staging.may_run(name)]
    if not armed or not repo.is_outside(wanted.commit):
        return wanted, []
    from perdure.workspace.snapshot import disarm

    kept = {name: content for name, content in wanted.operation.items() if name not in armed}
    places = dict.fromkeys(name.partition("/")[0] for name in armed)
    notes = [f"'.git/{place}' was left out: {disarm.OPERATION}." for place in places]
    return replace(wanted, operation=kept), notes


def _empty_state(repo: CheckpointRepository) -> WorkdirCheckpoint | None:
    """Return an empty state if there is nothing to save: the directory has no files, commits, index
    or operation in progress. Return None for any other directory."""
    admin = None if repo.broken else repo.admin
    if repo.head or any(path.name != ".git" or admin is None for path in repo.top.iterdir()):
        return None
    if admin is not None and ((admin / "index").exists() or staging.operation(admin)):
        return None
    return WorkdirCheckpoint(
        commit="", worktree=repo.write_object("tree", b""), index="", head="", branch=repo.branch
    )


def _without_disarmed(names: list[str]) -> list[str]:
    """Return the names without those of files that `disarm` leaves out or replaces. Such a file
    differs from the checkpoint on purpose."""
    from perdure.workspace.snapshot import disarm

    kept = []
    for name in names:
        if not disarm.kind(name.removesuffix(disarm.ASIDE).split("/")):
            kept.append(name)
    return kept


def drift(repo: CheckpointRepository, commit: str, policy: str) -> tuple[str, ...]:
    """Return the names of files that differ from a checkpoint. Writes no ref. Raises
    WorkspaceError, GitFailed."""
    wanted = load(repo, commit)

    def capture_and_compare(repo: CheckpointRepository) -> tuple[str, ...]:
        with captured_state(repo, policy) as (now, _):
            differing = _differences(repo, now.worktree, wanted.worktree)
            names = []
            for change in differing:
                names.append(unescape(change.name, "120000" in (change.mode, change.old_mode)))
            if names and repo.is_outside(wanted.commit):
                names = _without_disarmed(names)
            return tuple(
                dict.fromkeys(
                    [
                        *names,
                        *wanted.rights.misfits(
                            repo.top, {**wanted.rights.noted, **now.modes}, umask()
                        ),
                    ]
                )
            )

    with report_disk_errors(repo, "examined"):
        return retry_without_cache(repo, capture_and_compare)


class Compared(Struct, frozen=True, kw_only=True):
    """A workdir's current state compared with a checkpoint. Names are as on disk."""

    differing: tuple[str, ...]
    """Files that differ, are new or are gone, and files that another process is writing now."""
    left_out: tuple[tuple[str, str], ...]
    """Files and directories that a checkpoint would leave out now, each with the reason. A
    directory's name ends in a slash."""
    staged: bool
    """Whether all staged content is in the checkpoint or in HEAD."""


def compare(repo: CheckpointRepository, commit: str, policy: str) -> Compared:
    """Compare the workdir with a checkpoint, by content alone. Writes no ref. Raises NotFound,
    WorkspaceError, GitFailed."""
    wanted = load(repo, commit)
    index = wanted.index or (
        repo.run("rev-parse", f"{wanted.head}^{{tree}}").text if wanted.head else ""
    )

    def capture_and_compare(repo: CheckpointRepository) -> Compared:
        with captured_state(repo, policy) as (now, _):
            changed = _differences(repo, now.worktree, wanted.worktree)
            names = []
            for change in changed:
                names.append(unescape(change.name, "120000" in (change.mode, change.old_mode)))
            staged = now.staged.tree in ("", now.tree, index) and set(now.staged.objects) <= set(
                wanted.staged.objects
            )
            apart = tuple(dict.fromkeys([*names, *now.found.unsteady]))
            return Compared(differing=apart, left_out=tuple(now.found.left_out), staged=staged)

    with report_disk_errors(repo, "examined"):
        return retry_without_cache(repo, capture_and_compare)


def _differences(repo: CheckpointRepository, before: str, after: str) -> list[Change]:
    """Return the differences between two trees, except the removal of files in the workdir's own
    git directory. A checkpoint has such files only if git could not use that directory when the
    checkpoint was taken."""
    found = changes(repo, before, after)
    own = repo.broken or repo.admin is not None
    result = []
    for change in found:
        if not (
            own and change.mode == "000000" and change.name.partition("/")[0].lower() == ".git%"
        ):
            result.append(change)
    return result


def _own_process_ids() -> set[int]:
    """Return the ids of this process and its ancestors. One of them may be a shell that requested
    the restore and has its current directory in the workdir."""
    found, pid = set[int](), os.getpid()
    while pid > 0 and pid not in found:
        found.add(pid)
        known = system.stat(pid)
        pid = known[1] if known else 0
    return found


def _is_same_state(now: WorkdirCheckpoint, wanted: WorkdirCheckpoint, branch: str) -> bool:
    def essence(of: WorkdirCheckpoint, branch: str) -> tuple[object, ...]:
        return (
            of.worktree,
            of.index or of.head,
            of.head,
            branch,
            set(of.empty),
            of.operation,
            of.staged,
        )

    there = now.branches.refs.items() >= wanted.branches.refs.items() and set(
        now.branches.commits
    ) >= set(wanted.branches.commits)
    return there and essence(now, now.branch) == essence(wanted, branch)


def _restore_head_and_index(
    workspace: Workspace,
    repo: CheckpointRepository,
    now: WorkdirCheckpoint,
    wanted: WorkdirCheckpoint,
    branch: str,
) -> list[str]:
    """Restore HEAD and branch first, then the operation in progress, then the index. The old HEAD
    is not lost, because it is the parent of the rescue commit. Returns notes for a person."""
    assert repo.repository is not None and repo.admin is not None
    if not wanted.head and not wanted.branch:
        return [
            "The checkpoint was made without a usable git directory: HEAD, index and branches stay "
            "as they are."
        ]
    if repo.user_objects is not None:
        common = repo.user_objects.parent
    else:
        common = repo.admin
    own = []
    for name in {branch, now.branch}:
        if name:
            own.append(common / "refs/heads" / f"{name}.lock")
    if workspace.backend is not Backend.WORKTREE:
        own += [common / f"{name}.lock" for name in branches.written_refs(repo, wanted.branches)]
    notes = clear_locks(repo.top, repo.admin / "index.lock", repo.admin / "HEAD.lock", *own)
    copy_restored_objects(repo, wanted)
    if wanted.head and not repo.repository.commit(wanted.head):
        return [
            f"The commit {wanted.head[:12]} is not in the repository any more: HEAD and index stay "
            "as they are."
        ]
    if (now.head, now.branch) != (wanted.head, branch):
        notes += _move_head(workspace, repo, now, wanted, branch)
    notes += branches.restore_branches(repo, workspace.backend, wanted.branches, branch)
    staging.put_operation(repo.admin, wanted.operation)
    tree = wanted.index or (f"{wanted.head}^{{tree}}" if wanted.head else "")
    staging.put_staged(repo, wanted.staged, tree, repo.directory)
    return notes


def copy_restored_objects(repo: CheckpointRepository, wanted: WorkdirCheckpoint) -> None:
    """Copy the objects that HEAD and the index need into the agent's own repository. Does nothing
    for a workdir whose repository does not belong to an agent."""
    if repo.agent_objects is None or repo.repository is None:
        return
    asked = []
    for oid in (wanted.head, *staging.commits(wanted.operation), *wanted.branches.commits):
        if oid:
            asked.append(oid)
    absent = set(missing(repo, asked))
    needed = [oid for oid in asked if oid not in absent and not repo.repository.commit(oid)]
    needed += [oid for oid in (wanted.index, *wanted.staged.objects) if oid]
    copy_to_agent_repository(repo, needed, (wanted.head, repo.pinned))


def copy_to_agent_repository(
    repo: CheckpointRepository, needed: Sequence[str], known: Sequence[str]
) -> None:
    """Copy objects from the checkpoint repository to the agent's own repository. `known`: commits
    that the agent's repository may have already."""
    assert repo.agent_objects is not None and repo.repository is not None
    # Exclude objects that both repositories have: the agent may have committed since its last
    # checkpoint.
    there = []
    for oid in known:
        if oid and oid not in needed and repo.repository.commit(oid) and repo.commit_id(oid):
            there.append(oid)
    if needed:
        words = one_a_line([*needed, "--not", *there])
        (repo.agent_objects / "pack").mkdir(exist_ok=True)
        repo.run(
            "pack-objects",
            "-q",
            "--revs",
            "--non-empty",
            str(repo.agent_objects / "pack/pack"),
            stdin=words.encode(),
        )


def _move_head(
    workspace: Workspace,
    repo: CheckpointRepository,
    now: WorkdirCheckpoint,
    wanted: WorkdirCheckpoint,
    branch: str,
) -> list[str]:
    """Move HEAD and the branch. Only two branches are ever moved: the workdir's own branch, and the
    branch that is checked out there. Other branches may belong to somebody else. Returns notes for
    a person."""
    assert repo.repository is not None
    git, full, why = repo.repository, f"refs/heads/{branch}", "perdure: restore"
    if not branch:
        git.run("update-ref", "--no-deref", "-m", why, "HEAD", wanted.head)
        return []
    tip = git.refs(full).get(full, "")
    if tip != wanted.head:
        if tip and branch not in (now.branch, workspace.branch):
            if not wanted.head:
                return [f"The branch {branch} has commits now: HEAD stays as it is."]
            git.run("update-ref", "--no-deref", "-m", why, "HEAD", wanted.head)
            return [
                f"The branch {branch} has moved on to {tip[:12]} and was left alone: HEAD is "
                f"detached at {wanted.head[:12]}."
            ]
        if tip and tip != now.head:
            git.set_ref(
                f"refs/perdure/rescue/{repo.id}/{time.time_ns()}",
                tip,
                f"perdure: {branch} before a restore",
            )
        if wanted.head:
            git.run("update-ref", "-m", why, full, wanted.head, tip or "0" * len(wanted.head))
        elif tip:
            git.run("update-ref", "-m", why, "-d", full, tip)
    if branch != now.branch:
        for other in git.worktrees():
            if other.branch == full and other.path != repo.top:
                git.run("update-ref", "--no-deref", "-m", why, "HEAD", wanted.head)
                return [f"The branch {branch} is checked out in {other.path}: HEAD is detached."]
        git.run("symbolic-ref", "-m", why, "HEAD", full)
    return []
