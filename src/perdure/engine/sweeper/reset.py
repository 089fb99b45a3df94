"""`perdure reset`: saves the work of an agent on an issue, a branch or a task, and then clears it.
This module also restores entries of the trash, and purges them.

The order of the steps makes an interruption harmless. First, files are saved under a rescue ref.
Then the sessions are removed from the store, in a transaction that also records the conversations'
ids in the journal. Last, the workdir is moved. If the process is killed in between, the same reset
can be run again and finishes the work.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from urllib.parse import urlsplit

from msgspec import Struct

from perdure.engine.attempt.engine import EngineStore, require_here
from perdure.engine.sweeper.inventory import trashes
from perdure.errors import Conflict, NotFound, PerdureError, UsageError, WorkspaceError
from perdure.model import RESET, Backend, Host, RunState, Workspace
from perdure.model.disk_reports import ResetReport
from perdure.protocols import PlacedRun, RunStore
from perdure.workspace import Workspaces, trash
from perdure.workspace.identity import local_path
from perdure.workspace.removal import processes_inside

_NAME = re.compile(r"[\w.-]+(?:/[\w.-]+)+", re.ASCII)
"""Pattern of a repository's name on a forge: `owner/name`."""


class Target(Struct, frozen=True, kw_only=True):
    """Selects the work to reset: a run, an agent's work on a branch or an issue of a repository, or
    a service's task.

    `agent` is the name of a CLI or of a rule (`[agents.NAME]`); `repo` is an address, a path, or
    `owner/name`.
    """

    run: str = ""
    agent: str = ""
    repo: str = ""
    branch: str = ""
    issue: str = ""
    service: str = ""
    task: str = ""


class ResetOutcome(Struct, frozen=True, kw_only=True):
    """The result of a reset or a dry run. `kept`: workdirs that were not moved to the trash, each
    with the reason."""

    runs: tuple[PlacedRun, ...]
    sessions: tuple[str, ...] = ()
    saved: tuple[str, ...] = ()
    """Rescue refs under which uncommitted files were saved."""
    trash: tuple[Path, ...] = ()
    unsaved: tuple[str, ...] = ()
    """Descriptions of changes that exist only in the trash after the reset. An entry of the trash
    with such changes is deleted only if a person purges it."""
    kept: tuple[str, ...] = ()

    def report(self, *, dry: bool) -> ResetReport:
        """Return the object that `perdure reset --json` prints."""
        return ResetReport(
            schema_version=1,
            dry_run=dry,
            runs=[run.name for run in self.runs],
            sessions=list(self.sessions),
            saved=list(self.saved),
            trash=[path.name for path in self.trash],
            unsaved=list(self.unsaved),
            kept=list(self.kept),
        )


def clear(store: RunStore, host: Host, target: Target, cwd: Path) -> list[PlacedRun]:
    """Check that the target can be reset. Return the runs that it selects, together with all runs
    that share a workdir or conversation with them. Raises NotFound, UsageError, and Conflict if one
    of the runs is running or open."""
    on_list = [run for run in store.placed() if run.removed is None]
    meant = {run.id for run in _matching_runs(store, target, on_list, cwd)}
    if not meant:
        raise NotFound("No run matches", "perdure ls")
    places = set()
    keys = set()
    for run in on_list:
        if run.id in meant:
            places.add(run.workspace.id)
            keys.add((run.agent, run.scope))
    found = [run for run in on_list if run.workspace.id in places or (run.agent, run.scope) in keys]
    for run in found:
        require_here(host, store.get(run.id), "it cannot be reset")
        if run.state is RunState.RUNNING:
            raise Conflict(f"{run.name} is running", f"perdure stop {run.name}")
        if run.opened:
            raise Conflict(
                f"{run.name} is open in the agent's own program", f"perdure take-back {run.name}"
            )
    return found


def _matching_runs(
    store: RunStore, target: Target, runs: Sequence[PlacedRun], cwd: Path
) -> list[PlacedRun]:
    if target.run:
        wanted = store.get(target.run).id
        return [run for run in runs if run.id == wanted]
    if target.service and target.task:
        scope = f"task:{target.service}/{target.task}"
        ending = f"/{target.service}/.task/{target.task}"
        found = []
        for run in runs:
            if run.scope == scope or run.workspace.path.endswith(ending):
                found.append(run)
    elif target.branch or target.issue:
        found = [run for run in runs if _is_of(run.workspace, target.repo, cwd)]
        found = [run for run in found if not target.branch or run.workspace.branch == target.branch]
        if target.issue:
            issue = target.issue.lstrip("#")
            found = [run for run in found if run.scope.rpartition("#")[2] == issue]
    else:
        raise UsageError(
            "missing the work to reset",
            "perdure reset NAME, or --branch, --issue, or --service and --task",
        )
    kept = []
    for run in found:
        if target.agent in ("", run.agent) or store.get(run.id).spec.rule == target.agent:
            kept.append(run)
    return kept


def _is_of(workspace: Workspace, repo: str, cwd: Path) -> bool:
    if not workspace.repo:
        return False
    repo = local_path(repo)
    start = (cwd / Path(repo or ".").expanduser()).resolve()
    return (
        _address(repo) == _address(workspace.repo)
        or Path(workspace.repo) in (start, *start.parents)
        or (
            _NAME.fullmatch(repo) is not None
            and _named(workspace.repo).endswith(f"/{repo.removesuffix('.git')}")
        )
    )


def _named(repo: str) -> str:
    """Return the path part of a repository's address, so that it can be compared with `owner/name`.
    For a local repository, return its path on this disk."""
    return urlsplit(repo).path.rstrip("/").removesuffix(".git")


def _address(repo: str) -> str:
    """Return the address of a repository without a final `.git`, for comparison. Servers accept the
    address with and without it."""
    if "://" in repo:
        return repo.rstrip("/").removesuffix(".git")
    return repo


def reset(
    store: EngineStore,
    workspaces: Workspaces,
    host: Host,
    target: Target,
    cwd: Path,
    *,
    dry: bool = False,
) -> ResetOutcome:
    """Save and clear the target, and return the result. `dry`: only report what would be cleared.
    Raises the errors of `clear`, and WorkspaceError for a workdir that can be neither saved nor
    moved."""
    runs = clear(store, host, target, cwd)
    workdirs = {run.workspace.path: run.workspace for run in runs}
    unsaved: list[str] = []
    with ExitStack() as stack:
        for workspace in workdirs.values():
            stack.callback(os.close, workspaces.lock(workspace, "perdure reset"))
        lost = {}
        for path, each in workdirs.items():
            if each.backend is not Backend.HERE:
                lost[path] = workspaces.unsaved(each)
        for path in lost:
            _refuse_moving(path, lost[path])
        unsaved = list(chain.from_iterable(lost.values()))
        kept = []
        for path, each in workdirs.items():
            if each.backend is Backend.HERE:
                kept.append(f"{path} is your own directory")
        if dry:
            return ResetOutcome(runs=tuple(runs), unsaved=tuple(unsaved), kept=tuple(kept))
        saved: list[str] = []
        for path, each in workdirs.items():
            if lost.get(path):
                saved += _saved(workspaces, each)
        sessions = store.reset([run.id for run in runs], RESET)
        gone = []
        for path, workspace in workdirs.items():
            if workspace.backend is Backend.HERE:
                continue
            mine = [run for run in runs if run.workspace.path == path]
            about = {
                "verb": "reset",
                "run": mine[-1].name,
                "runs": [run.id for run in runs],
                "why": RESET,
                "unsaved": lost[path],
            }
            found = workspaces.trash_workdir(workspace, about)
            if found is not None:
                gone.append(found)
        return ResetOutcome(
            runs=tuple(runs),
            sessions=tuple(sessions),
            saved=tuple(saved),
            trash=tuple(gone),
            unsaved=tuple(unsaved),
            kept=tuple(kept),
        )


def _refuse_moving(path: str, lost: Sequence[str]) -> None:
    """Raise WorkspaceError if the workdir is missing and therefore cannot be saved, or Conflict if
    a process is working in it. `lost`: reasons why the workdir is not saved elsewhere."""
    if lost and not os.path.lexists(path):
        raise WorkspaceError(f"{path}: {lost[0]}", "mount it and try again")
    if busy := [sentence for sentence in lost if sentence.startswith("process ")]:
        raise Conflict(f"{path}: {busy[0]}", "end it and try again")


def _saved(workspaces: Workspaces, workspace: Workspace) -> list[str]:
    """Save uncommitted files of a worktree under a rescue ref, and return a list with the ref. The
    ref belongs to the repository, so it remains when the worktree is gone. Other kinds of workdirs
    need no ref, because the trash keeps them complete."""
    if workspace.backend is not Backend.WORKTREE or not Path(workspace.path).is_dir():
        return []
    try:
        return [workspaces.rescue(workspace, "before a reset")]
    except PerdureError:
        return []


class RestoredEntries(Struct, frozen=True, kw_only=True):
    """The result of a restore. `sessions`: ids of conversations that are live again. `run`: name of
    the run that is on the list again; empty if there is none."""

    places: tuple[Path, ...]
    sessions: tuple[str, ...] = ()
    run: str = ""


def restore(store: EngineStore, workspaces: Workspaces, state: Path, name: str) -> RestoredEntries:
    """Move an entry of the trash back to its original path, and return the result. The reset or
    removal that moved it to the trash is undone. Raises NotFound, and Conflict if its original path
    is taken."""
    entry = trash.find(trashes(workspaces, state), name)
    ids = list(map(str, entry.about.get("runs") or [])) + (
        [str(entry.about["id"])] if "id" in entry.about else []
    )
    known = {run.id: run for run in store.placed()}
    place = None
    for each in ids:
        if each in known and known[each].workspace.path == entry.about.get("path"):
            place = known[each].workspace
            break
    with ExitStack() as stack:
        if place is not None and entry.kind == "workdir":
            stack.callback(os.close, workspaces.lock(place, f"perdure trash restore {name}"))
        back = trash.restore(entry)
        match entry.about.get("verb"):
            case "reset":
                on_list = [each for each in ids if each in known and known[each].removed is None]
                return RestoredEntries(
                    places=tuple(back), sessions=tuple(store.undo_reset(on_list))
                )
            case "rm" if ids and ids[0] in known and known[ids[0]].removed is not None:
                run = store.put_back(
                    ids[0], str(entry.about.get("run", "")), str(entry.about.get("key", ""))
                )
                return RestoredEntries(places=tuple(back), run=run.name)
        return RestoredEntries(places=tuple(back))


def listed(workspaces: Workspaces, state: Path) -> list[trash.Entry]:
    """Return all entries of the trash, oldest first."""
    return sorted(
        chain.from_iterable(map(trash.entries, trashes(workspaces, state))),
        key=lambda entry: entry.at,
    )


def purge(workspaces: Workspaces, state: Path, name: str) -> trash.Entry:
    """Delete an entry of the trash permanently, whatever it contains, and return it. Must be called
    only at a person's request. Raises Conflict while a process works in it."""
    entry = trash.find(trashes(workspaces, state), name)
    if pids := processes_inside(entry.path):
        raise Conflict(f"process {pids[0]} works in {entry.path}", "end it first")
    trash.purge(entry)
    return entry
