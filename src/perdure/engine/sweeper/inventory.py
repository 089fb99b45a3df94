"""Lists everything that perdure has on disk. Each item has one row, which includes what the store
knows about the item. Only reads. Called by `sweeps`.

An item is recognized by its record in the store, or by its directory and name below the root. All
other items are `unknown`. Two state directories may share one root, so a workdir in which no run of
this store has ever worked is `unknown`, too.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from perdure.engine.attempt.engine import EngineStore
from perdure.engine.attempt.workdir import INCOMPLETE_MARKER
from perdure.engine.sessions.service import plan_scope
from perdure.engine.sweeper.verdicts import Class, Row
from perdure.model import CLEAN_UP, Backend, Checkpoint, Session, SessionState
from perdure.protocols import PlacedRun, PlanStore
from perdure.rules.lifecycle import FINAL
from perdure.rules.plan import PlanState
from perdure.workspace import RootItem, Workspaces, trash
from perdure.workspace.contents import newest

Plans = Mapping[str, str]

_RUN = re.compile(r"[0-9a-f]{32}")
RUN_FILES = frozenset({"supervisor.log", "open", INCOMPLETE_MARKER})
"""Names of files in a run's directory that belong to the run and not to one of its attempts."""
DERIVED = ("forks", "taken-in", "maps", "plans")
"""Names of directories whose files can be created again at any time. `plans` has the output of
plans' checks."""
OWN = frozenset(
    """runs transcripts trash perdure.db perdure.db-wal perdure.db-shm ballast sweep.json
    sweep.lock bells homes.json homes.lock forks taken-in given backups maps plans moved machine
    workdirs posting.lock pod.lock archive""".split()
)


def trashes(workspaces: Workspaces, state: Path) -> list[Path]:
    """Return both trash directories. Workdirs go to the one in the root, everything else to the one
    in the state directory. There are two because root and state may be on different volumes."""
    return [workspaces.trash, state / "trash"]


def inventory(store: EngineStore, workspaces: Workspaces, state: Path) -> list[Row]:
    """Return a row for each item on disk; its verdict is not decided yet. Raises WorkspaceError or
    StoreError if something cannot be listed."""
    runs = store.placed()
    sessions = store.sessions(limit=1_000_000)
    checkpoints = store.checkpoints()
    plans = unfinished(store)
    return [
        *_below_root(workspaces.contents(), runs, plans),
        *_logs(state, runs, plans),
        *_copies(state, runs, sessions, checkpoints, plans),
        *_checkpoints(runs, checkpoints, plans),
        *_trash(workspaces, state),
        *_strangers(state),
    ]


def unfinished(store: PlanStore) -> Plans:
    """Return the names of the unfinished plans, by the prefix that the scopes of their runs have.
    Unfinished plans still need the results of their tasks."""
    found = {}
    for plan in store.plans(1_000_000):
        if plan.state is not PlanState.SUCCEEDED:
            found[plan_scope(plan.id, "")] = plan.name
    return found


def at_work(runs: Sequence[PlacedRun], plans: Plans) -> str:
    """Return the reason why a workdir of these runs is in use; empty if it is not in use. A run
    that is not final counts as in use, because it may continue at any time."""
    for run in runs:
        if run.removed is None and (
            plan := next((plans[scope] for scope in plans if run.scope.startswith(scope)), "")
        ):
            return f"the plan {plan} is not finished"
        if run.opened:
            return f"{run.name} is open in the agent's own program"
        if run.state not in FINAL:
            return f"{run.name} is {run.state}"
    return ""


def _below_root(
    things: Sequence[RootItem], runs: Sequence[PlacedRun], plans: Plans
) -> Iterator[Row]:
    by_id: dict[str, list[PlacedRun]] = {}
    by_path: dict[str, list[PlacedRun]] = {}
    for run in runs:
        by_id.setdefault(run.workspace.id, []).append(run)
        by_path.setdefault(run.workspace.path, []).append(run)
    for thing in things:
        if thing.kind == "workdir":
            mine = []
            for run in by_path.get(str(thing.path), []):
                if run.workspace.backend is not Backend.HERE:
                    mine.append(run)
            yield _workdir(thing, mine, plans)
        elif thing.kind in ("view", "shelf"):
            yield _view(thing, by_id.get(thing.id, []))
        elif thing.kind in ("cache", "scratch"):
            cls = Class.CACHES if thing.kind == "cache" else Class.SCRATCH
            yield Row(
                cls=cls,
                name=thing.path.name,
                path=str(thing.path),
                key=str(thing.path),
                used=thing.used,
                keep=thing.keep,
            )
        else:
            yield Row(
                cls=Class.UNKNOWN,
                name=thing.path.name,
                path=str(thing.path),
                used=thing.used,
                keep=thing.keep,
            )


def _workdir(thing: RootItem, runs: list[PlacedRun], plans: Plans) -> Row:
    if not runs:
        why = "no run of this store has ever worked in it"
        return Row(
            cls=Class.UNKNOWN, name=thing.path.name, path=str(thing.path), used=thing.used, keep=why
        )
    newest_run = runs[-1]
    on_list = [run for run in runs if run.removed is None]
    # A person may have worked in the workdir without perdure. This changes the modification time of
    # its top directory.
    used = max([thing.used, *(run.updated for run in runs)])
    cls = Class.WORKDIRS if on_list else Class.ORPHANS
    name = (on_list or [newest_run])[-1].name
    return Row(
        cls=cls,
        name=name,
        path=str(thing.path),
        key=newest_run.id,
        used=used,
        keep=at_work(runs, plans),
    )


def _view(thing: RootItem, runs: list[PlacedRun]) -> Row:
    keep = ""
    if not runs:
        keep = "no run of this store has ever worked in its workdir"
    elif Path(runs[-1].workspace.path).exists():
        keep = "its workdir is there"
    elif any(path.is_file() for path in (thing.path / "refs").rglob("*")) or _packed(thing.path):
        keep = "there are checkpoints in it"
    used = max([thing.used, *(run.updated for run in runs)])
    return Row(
        cls=Class.ORPHANS,
        name=thing.path.name,
        path=str(thing.path),
        key=str(thing.path),
        used=used,
        keep=keep,
    )


def _packed(view: Path) -> bool:
    with suppress(FileNotFoundError):
        return " refs/" in (view / "packed-refs").read_text(encoding="utf-8", errors="replace")
    return False


def _is_run_file(path: Path) -> bool:
    return path.name.isdecimal() or path.name in RUN_FILES


def _logs(state: Path, runs: Sequence[PlacedRun], plans: Plans) -> Iterator[Row]:
    known = {run.id: run for run in runs}
    first = min((run.updated for run in runs), default=0)
    for path in _entries(state / "runs"):
        run = known.get(path.name)
        if run is not None:
            yield Row(
                cls=Class.LOGS,
                name=run.name,
                path=str(path),
                key=run.id,
                used=run.updated,
                keep=at_work([run], plans),
            )
        elif _RUN.fullmatch(path.name) and all(map(_is_run_file, path.iterdir())):
            used = newest(path)
            # The store has no record of this run. If the directory is older than the first run in
            # the store, the run may belong to an older store that this one replaced.
            if first and first < used:
                keep = ""
            else:
                keep = "it is older than this store: check that this is the right store"
            yield Row(
                cls=Class.ORPHANS,
                name=path.name[:8],
                path=str(path),
                key=path.name,
                used=used,
                keep=keep,
            )
        else:
            yield Row(cls=Class.UNKNOWN, name=path.name, path=str(path))
    for folder in DERIVED:
        for path in _entries(state / folder):
            yield Row(
                cls=Class.LOGS, name=path.name[:8], path=str(path), key=path.name, used=newest(path)
            )


def _checkpoints(
    runs: Sequence[PlacedRun], checkpoints: Sequence[Checkpoint], plans: Plans
) -> Iterator[Row]:
    """Yield a row for each checkpoint. While a run is on the list, two kinds of its checkpoints are
    kept: the newest one, and those that a clean-up took before it removed the workdir."""
    known = {run.id: run for run in runs}
    last = {}
    for checkpoint in sorted(checkpoints, key=lambda each: each.number):
        last[checkpoint.run] = checkpoint.number
    for each in checkpoints:
        run = known[each.run]
        keep = at_work([run], plans)
        if not keep and run.removed is None and each.number == last[each.run]:
            keep = "it is the newest checkpoint of its run"
        if not keep and run.removed is None and each.why == CLEAN_UP:
            keep = "it is all that is left of a workdir"
        # While a run still changes, any of its checkpoints may be needed. Therefore the age of a
        # checkpoint counts from the run's last change.
        used = max(each.at, run.updated)
        yield Row(
            cls=Class.CHECKPOINTS,
            name=f"{run.name} {each.number}",
            path="",
            key=f"{each.run} {each.number}",
            used=used,
            keep=keep,
        )


def _copies(
    state: Path,
    runs: Sequence[PlacedRun],
    sessions: Sequence[Session],
    checkpoints: Sequence[Checkpoint],
    plans: Plans,
) -> Iterator[Row]:
    needed = set()
    for checkpoint in checkpoints:
        for part in checkpoint.conversation:
            needed.add(hashlib.sha256(part.session_id.encode()).hexdigest()[:32])
    owners: dict[tuple[str, str], list[Session]] = {}
    for session in sessions:
        for each in (session.id, session.parent):
            if each:
                name = hashlib.sha256(each.encode()).hexdigest()[:32]
                owners.setdefault((session.key.agent, name), []).append(session)
    by_key: dict[tuple[str, str], list[PlacedRun]] = {}
    for run in runs:
        by_key.setdefault((run.agent, run.scope), []).append(run)
    for agent in _entries(state / "transcripts"):
        for path in _entries(agent):
            mine = owners.get((agent.name, path.name))
            if mine is None:
                why = "no conversation of this store has this id"
                yield Row(
                    cls=Class.UNKNOWN,
                    name=f"{agent.name}/{path.name[:8]}",
                    path=str(path),
                    keep=why,
                )
                continue
            users = []
            for session in mine:
                users += by_key.get((session.key.agent, session.key.scope), [])
            used = max(
                [session.updated for session in mine]
                + [run.updated for run in users]
                + [newest(path)]
            )
            name = users[-1].name if users else mine[-1].key.scope
            live = any(session.state is not SessionState.RETIRED for session in mine)
            if live:
                keep = at_work([run for run in users if run.removed is None], plans)
            else:
                keep = ""
            keep = keep or ("a checkpoint needs it" if path.name in needed else "")
            yield Row(
                cls=Class.COPIES, name=name, path=str(path), key=str(path), used=used, keep=keep
            )


def _trash(workspaces: Workspaces, state: Path) -> Iterator[Row]:
    for directory in trashes(workspaces, state):
        for entry in trash.entries(directory):
            keep = ""
            if entry.unsaved is None:
                keep = f"not proven to be saved elsewhere; perdure trash purge {entry.id}"
            elif entry.unsaved:
                keep = (
                    f"it has changes that exist nowhere else: {entry.unsaved[0]}; perdure trash "
                    f"purge {entry.id}"
                )
            name = str(entry.about.get("run") or entry.kind)
            yield Row(
                cls=Class.TRASH,
                name=name,
                path=str(entry.path),
                key=entry.id,
                used=entry.at,
                keep=keep,
            )


def _strangers(state: Path) -> Iterator[Row]:
    for path in _entries(state):
        if path.name not in OWN:
            yield Row(cls=Class.UNKNOWN, name=path.name, path=str(path))


def _entries(directory: Path) -> list[Path]:
    if directory.is_dir() and not directory.is_symlink():
        return sorted(directory.iterdir())
    return []


def read_json(path: Path) -> dict[str, object]:
    """Return the content of one of perdure's small JSON files; empty if the file is missing or
    damaged."""
    with suppress(OSError, ValueError):
        found = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return found
        return {}
    return {}
