"""Performs a sweep: lists all items, decides which to remove, verifies that those are saved
elsewhere, and removes them one at a time. If a removal fails, the item stays, and its row has the
reason.

A dry run does everything except the removal. The record of the last sweep (`sweep.json` in the
state directory) contains the readings of both clocks and an id of the root's volume. If the clocks
or the volume do not fit this record at the next sweep, nothing is removed and the record is not
updated. No sweep removes anything until they fit again or a person accepts the change.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from msgspec import Struct
from msgspec.structs import asdict, replace

from perdure.config import Settings
from perdure.engine.attempt.checkpoints import forget, last_of, save_before_cleanup
from perdure.engine.attempt.engine import EngineStore
from perdure.engine.sweeper.inventory import at_work, inventory, read_json, trashes, unfinished
from perdure.engine.sweeper.usage import size_of
from perdure.engine.sweeper.verdicts import (
    Class,
    Moment,
    Row,
    Rules,
    SweepVerdict,
    brake,
    clock_trouble,
    judge,
    stop,
)
from perdure.errors import Conflict, PerdureError, StoreError
from perdure.host import process
from perdure.host.process.identity import boot_id
from perdure.model import UNSAVED, Checkpoint, Workspace
from perdure.model.disk_reports import SweepReport, SweepRow
from perdure.model.events import WorkdirSwept
from perdure.protocols import RunStore
from perdure.workspace import RemovalCheck, RootItem, Workspaces, trash
from perdure.workspace.locks import make_private, write
from perdure.workspace.removal import processes_inside

DAY_S = 86_400.0
SETTLE_S = 3600.0
"""Time in seconds for which nothing is removed if the machine was restarted and the clock could not
be confirmed. It counts from the first sweep after the restart."""


class Sweep(Struct, frozen=True, kw_only=True):
    """The result of one sweep. `trouble`: the reason why the whole sweep removed nothing; empty if
    there was no such reason."""

    rows: tuple[Row, ...]
    dry: bool
    trouble: str = ""

    @property
    def taken(self) -> tuple[Row, ...]:
        return tuple(row for row in self.rows if row.verdict is SweepVerdict.TAKE)

    @property
    def for_a_person(self) -> bool:
        return bool(self.trouble) or any(row.verdict is SweepVerdict.PERSON for row in self.rows)

    def report(self) -> SweepReport:
        """Return the object that `perdure gc --json` prints."""
        rows = []
        for row in self.rows:
            rows.append(
                SweepRow(
                    class_=row.cls,
                    name=row.name,
                    path=row.path,
                    verdict=row.verdict,
                    why=row.why,
                    used=row.used or None,
                    bytes=row.bytes,
                    trash=row.trash,
                )
            )
        return SweepReport(schema_version=1, dry_run=self.dry, trouble=self.trouble, rows=rows)


def rules_of(settings: Settings, *, many: bool = False) -> Rules:
    """Return the rules that the settings define. `many`: allow any number of removals."""
    ages: dict[Class, int] = {}
    for cls in Class:
        if cls is not Class.UNKNOWN:
            ages[cls] = int(1000 * getattr(settings, f"gc_{cls}"))
    return Rules(ages=ages, most=settings.gc_most, many=many)


def current_moment() -> Moment:
    """Return the present reading of both clocks of this machine."""
    return Moment(wall=time.time_ns() // 1_000_000, boot=process.boottime(), boot_id=boot_id())


def due(state: Path) -> bool:
    """Return whether the daily sweep is due: whether the last one was more than a day ago, by the
    wall clock or by the time since boot."""
    last, now = _last(_record(state)), current_moment()
    return (
        last is None
        or abs(now.wall - last.wall) > DAY_S * 1000
        or (last.boot_id == now.boot_id and now.boot - last.boot > DAY_S)
    )


def next_sweep(state: Path) -> int:
    """Return when the next daily sweep is due, in ms since 1970; 0 if there was none yet."""
    last = _last(_record(state))
    if last is not None:
        return int(last.wall + DAY_S * 1000)
    return 0


def sweep(
    store: EngineStore,
    workspaces: Workspaces,
    state: Path,
    rules: Rules,
    *,
    now: Moment | None = None,
    dry: bool = False,
    accept: bool = False,
) -> Sweep:
    """Run one sweep, and return its result. Raises Conflict while another sweep is running,
    StoreError or WorkspaceError if the items cannot be listed.

    `accept`: a person confirms that the clock and the volume are correct. `dry`: remove nothing.
    """
    now = now or current_moment()
    with _sweep_lock(state):
        trouble = "" if accept else _trouble(store, workspaces, state, now)
        rows = []
        for row in inventory(store, workspaces, state):
            judged = judge(row, rules, now.wall)
            rows.append(_verified(store, workspaces, state, judged))
        rows = [stop(row, trouble) for row in brake(rows, rules)]
        if not dry:
            for directory in trashes(workspaces, state):
                trash.finish_purges(directory)
            rows = [_done(store, workspaces, state, row, now.wall) for row in rows]
            _remember(workspaces, state, now, trouble)
        return Sweep(rows=tuple(rows), dry=dry, trouble=trouble)


@contextmanager
def _sweep_lock(state: Path) -> Iterator[None]:
    make_private(state)
    try:
        fd = os.open(state / "sweep.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StoreError(
            f"{state} cannot be written: {error.strerror}", "perdure doctor"
        ) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise Conflict("Another sweep is running", "wait for it to end") from None
    finally:
        # The lock must be released explicitly. Closing the file is not enough: a child that another
        # thread has just forked shares the descriptor until it calls exec.
        fcntl.flock(fd, fcntl.LOCK_UN)
        os.close(fd)


def _record(state: Path) -> dict[str, object]:
    return read_json(state / "sweep.json")


def _last(record: dict[str, object]) -> Moment | None:
    wall, boot, which = record.get("wall"), record.get("boot"), record.get("boot_id")
    if isinstance(wall, int) and isinstance(boot, int | float) and isinstance(which, str):
        return Moment(wall=wall, boot=float(boot), boot_id=which)
    return None


def _trouble(store: RunStore, workspaces: Workspaces, state: Path, now: Moment) -> str:
    record = _record(state)
    known = record.get("root_mark")
    if known and known != workspaces.root_volume_id(""):
        return (
            f"{workspaces.root} is not the same volume as at the last sweep: check that it "
            f"is mounted"
        )
    newest = max((run.updated for run in store.placed()), default=0)
    if newest > now.wall + int(SETTLE_S * 1000):
        return "the clock is earlier than the newest run"
    if since := record.get("unconfirmed"):
        waited = isinstance(since, int | float) and now.boot - since >= SETTLE_S
        same = _last(record)
        if same is not None and same.boot_id == now.boot_id and not waited:
            return (
                "the machine was restarted after a long time: the clock is trusted one hour after "
                "the first sweep"
            )
    return clock_trouble(_last(record), now)


def _remember(workspaces: Workspaces, state: Path, now: Moment, trouble: str) -> None:
    """Record this sweep. If there was any `trouble` other than a restart of the machine, nothing is
    recorded. The next sweep then reports the same changed clock or volume again."""
    record = _record(state)
    last = _last(record)
    unconfirmed = "restarted" in trouble
    if trouble and not unconfirmed:
        return
    first = unconfirmed and not (last is not None and last.boot_id == now.boot_id)
    mark = workspaces.root_volume_id(uuid.uuid4().hex)
    kept = {}
    if unconfirmed:
        kept["unconfirmed"] = now.boot if first else record.get("unconfirmed")
    write(
        state / "sweep.json",
        json.dumps({"format": 1, **asdict(now), "root_mark": mark, **kept}),
    )


def _verified(store: RunStore, workspaces: Workspaces, state: Path, row: Row) -> Row:
    """Check that the content of a row marked for removal is saved elsewhere, and return the row. If
    it is not saved, the verdict of the row becomes `keep` or `person`."""
    if row.verdict is not SweepVerdict.TAKE or row.cls is Class.CHECKPOINTS:
        return row
    try:
        if (workspace := _workspace(store, row)) is not None:
            return _judged(row, _prove(store, workspaces, workspace))
        if row.cls is Class.TRASH:
            entry = trash.find(trashes(workspaces, state), row.key)
            if why := _why_not_saved(store, workspaces, entry) or trash.purge_obstacle(
                entry, processes_inside(entry.path)
            ):
                return replace(row, verdict=SweepVerdict.KEEP, why=why)
        elif row.path.startswith(str(state / "runs")) and _shim_lives(Path(row.path)):
            return replace(
                row, verdict=SweepVerdict.KEEP, why="a process of an attempt is still alive"
            )
    except (PerdureError, OSError) as error:
        return replace(row, verdict=SweepVerdict.PERSON, why=f"it cannot be read: {error}")
    return replace(row, bytes=size_of(Path(row.path)))


def _prove(store: RunStore, workspaces: Workspaces, workspace: Workspace) -> RemovalCheck:
    """Check whether anything would be lost if the workdir were removed now, and return the proof.
    Changes that are in the newest checkpoint count as saved."""
    last = last_of(store, workspace)
    if last is None:
        return workspaces.check_removal(workspace)
    return workspaces.check_removal(workspace, last.number, last.workdir.commit)


def _judged(row: Row, proof: RemovalCheck) -> Row:
    if proof.lost:
        return replace(
            row,
            verdict=SweepVerdict.PERSON,
            why=f"it has changes that exist nowhere else: {'; '.join(proof.lost)}",
        )
    notes = [row.why]
    if proof.checkpoint:
        notes.append(f"checkpoint {proof.checkpoint} keeps its changes, which are in no repository")
    if proof.build_output:
        notes.append(f"it stays in the trash until you purge it: {'; '.join(proof.build_output)}")
    return replace(row, why="; ".join(notes), bytes=size_of(Path(row.path)))


def _why_not_saved(store: RunStore, workspaces: Workspaces, entry: trash.Entry) -> str:
    """Return the reason why a workdir in the trash is not proven to be saved elsewhere, as a
    sentence; empty if it is. A workdir that depends on a checkpoint is saved if that checkpoint
    still exists completely and the checkpoint's run is still on the list."""
    said = entry.about.get("checkpoint")
    if said is None:
        return ""
    if isinstance(said, dict):
        run_id, number, commit = map(said.get, ("run", "number", "commit"))
    else:
        run_id, number, commit = (None, None, None)
    run = next(
        (each for each in store.placed() if each.id == run_id and each.removed is None), None
    )
    rows = store.checkpoints(run.id) if run is not None else ()
    there = None
    for each in rows:
        if (each.number, each.workdir.commit) == (number, commit):
            there = each
            break
    if (
        run is not None
        and there is not None
        and workspaces.checkpoints.is_kept(run.workspace, there.number, there.workdir.commit)
    ):
        return ""
    return (
        f"part of its work was saved only in checkpoint {number}, which is or will be deleted; "
        f"perdure trash purge {entry.id}"
    )


def _workspace(store: RunStore, row: Row) -> Workspace | None:
    """Return the workspace whose workdir the row describes; None if the row is not about a
    workdir."""
    if row.cls not in (Class.WORKDIRS, Class.ORPHANS) or not row.key:
        return None
    for run in store.placed():
        if run.id == row.key and run.workspace.path == row.path:
            return run.workspace
    return None


def _shim_lives(directory: Path) -> bool:
    """Return whether any attempt in the directory has a process that is alive or has just been
    started."""
    for attempt in directory.iterdir():
        if attempt.is_dir() and (found := process.find(attempt)) is not None and found.alive():
            return True
    return False


def _done(store: EngineStore, workspaces: Workspaces, state: Path, row: Row, now: int) -> Row:
    if row.verdict is not SweepVerdict.TAKE:
        return row
    try:
        return replace(row, trash=str(_move_to_trash(store, workspaces, state, row, now) or ""))
    except (PerdureError, OSError) as error:
        return replace(row, verdict=SweepVerdict.PERSON, why=f"it could not be removed: {error}")


def _move_to_trash(
    store: EngineStore, workspaces: Workspaces, state: Path, row: Row, now: int
) -> Path | None:
    about: dict[str, object] = {
        "verb": "gc",
        "run": row.name,
        "why": row.why,
        "at": now,
        "unsaved": [],
    }
    if (workspace := _workspace(store, row)) is not None:
        return _take_workdir(store, workspaces, workspace, about)
    path = Path(row.path)
    if row.cls is Class.CHECKPOINTS:
        run_id, _, number = row.key.partition(" ")
        place = next(run.workspace for run in store.placed() if run.id == run_id)
        found = [each for each in store.checkpoints(run_id) if each.number == int(number)]
        forget(store, workspaces, run_id, place, found)
        return None
    if row.cls is Class.TRASH:
        trash.purge(trash.find(trashes(workspaces, state), row.key))
        return None
    if path.is_relative_to(state):
        kind = "copies" if row.cls is Class.COPIES else "logs"
        return trash.move_to_trash(
            state / "trash",
            row.key if kind == "logs" else path.name,
            [(kind, path)],
            {"kind": kind, **about},
        )
    thing = next(
        (each for each in workspaces.contents() if each.path == path and not each.keep), None
    )
    if thing is None:
        raise Conflict(f"{path} is in use now")
    return workspaces.move_to_trash(RootItem(kind=thing.kind, path=path, id=thing.id), about)


def _last_checkpoint(
    store: RunStore,
    workspaces: Workspaces,
    workspace: Workspace,
    proof: RemovalCheck,
) -> Checkpoint | None:
    """Take a last checkpoint of a workdir before it is removed, and return it. The sweeper keeps
    this checkpoint as long as its run is on the list.

    Return None if the workdir had no checkpoint before. Also return None if the checkpoint fails
    but everything is saved elsewhere without it; otherwise the failure (PerdureError or OSError) is
    raised.
    """
    last = last_of(store, workspace)
    if last is None:
        return None
    try:
        if proof.reflog_commits:
            workspaces.checkpoints.keep_commits(workspace, proof.reflog_commits)
        return save_before_cleanup(store, workspaces, workspace, last)
    except (PerdureError, OSError):
        if proof.checkpoint:
            raise
        return None


def _take_workdir(
    store: EngineStore,
    workspaces: Workspaces,
    workspace: Workspace,
    about: Mapping[str, object],
) -> Path | None:
    """Lock the workdir, verify again that nothing would be lost, and move the workdir to the trash.
    Return its path there; None if the workdir no longer existed. Raises Conflict if the workdir has
    come into use, or has changes that are not saved elsewhere."""
    fd = workspaces.lock(workspace, "perdure gc")
    try:
        runs = [run for run in store.placed() if run.workspace.path == workspace.path]
        if used := at_work(runs, unfinished(store)):
            raise Conflict(f"it came into use during the sweep: {used}")
        proof = _prove(store, workspaces, workspace)
        if proof.lost:
            raise Conflict(f"it is not saved elsewhere any more: {'; '.join(proof.lost)}")
        kept = _last_checkpoint(store, workspaces, workspace, proof)
        said = {**about, "unsaved": list(proof.build_output), "runs": [run.id for run in runs]}
        if kept is not None and proof.checkpoint:
            said["checkpoint"] = {
                "run": kept.run,
                "number": kept.number,
                "commit": kept.workdir.commit,
            }
        told = WorkdirSwept(
            why=str(about["why"]),
            checkpoint=kept.number if kept is not None else 0,
            needed=bool(proof.checkpoint),
        )
        # The event is recorded before the workdir is moved. An attempt that finds no workdir can
        # then see that the workdir can be restored.
        for run in runs:
            if run.removed is None:
                store.record_outside_attempt(run.id, [told], solved=UNSAVED)
        return workspaces.trash_workdir(workspace, said)
    finally:
        os.close(fd)
