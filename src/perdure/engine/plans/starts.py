"""Creates a task's run: its workdir, its conversation and its files. Called by `driver`, once the
tasks that it needs are done.

The workdir is complete before the run is stored, because any pool may claim a stored run. After a
kill in between, the same steps run again. They find a merge that was already made, and restoring
files from a checkpoint again gives the same result.
"""

from __future__ import annotations

import hashlib
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from msgspec.structs import replace

from perdure.engine.attempt.engine import EngineStore
from perdure.engine.plans.status import TaskStatus, share
from perdure.engine.sessions.service import plan_scope
from perdure.errors import Conflict, NotFound, WorkspaceError
from perdure.model import Backend, MapWhen, TaskRun, TaskSpec, Workspace
from perdure.protocols import RunStore
from perdure.rules.plan import PlannedRun, PlanRun, TaskEnd
from perdure.workspace import Workspaces
from perdure.workspace.identity import is_remote

NAME_WIDTH = 63
PATIENCE_S = 30.0
"""Maximum time to wait for the lock of a workdir, in seconds. An exiting shim, or a person who
inspects the run, holds the lock briefly."""


def start(
    store: EngineStore,
    workspaces: Workspaces,
    map_when: MapWhen,
    stopping: Callable[[], bool],
    plan: PlanRun,
    stand: TaskStatus,
    stands: Mapping[str, TaskStatus],
) -> TaskRun:
    """Return the task's run. If it has none, create one, which is queued; an existing run is
    returned unchanged. Raises PerdureError."""
    with_key = key_of(plan, stand.task.name)
    try:
        return store.get(with_key)
    except NotFound:
        pass
    spec, source = _spec(plan, stand, stands)
    spec = replace(spec, budget_usd=share(store, plan, spec.budget_usd))
    name = _name(store, spec.name)
    if stand.strand.goes_on and not stand.strand.merges:
        there = stands[stand.strand.goes_on].run
    else:
        there = None
    run_id = stand.planned.run if stand.planned is not None else ""
    # If a person removed the task's run, the history of that run is kept under its id. A new run
    # therefore needs another id.
    if not run_id or store.history(run_id, limit=1):
        run_id = uuid.uuid4().hex
    planned = PlannedRun(task=stand.task.name, run=run_id)
    store.put_planned(plan, planned)
    if stand.strand.goes_on:
        before = stands[stand.strand.goes_on].end
    else:
        before = None
    if there is not None and there.workspace is not None and before is not None:
        store.put_planned(plan, replace(planned, began=before.commit))
        return store.add(spec, run_id, name, there.workspace)
    place = workspaces.plan(spec, name, Path(spec.repo))
    with workdir_locked(
        workspaces, stopping, place, f"perdure plan {plan.name}: {stand.task.name}"
    ):
        made = workspaces.prepare(place, spec.agent)
        began = made.head
        if place.backend is Backend.ISOLATED and workspaces.existing_branches(
            place, [place.branch]
        ):
            raise Conflict(
                f"{place.repo} already has a branch {place.branch}",
                "give this plan another name, or rename that branch",
            )
        # HEAD is the base or the last commit of `source`, unless an earlier call was killed after
        # the merge. In that case, the files were already restored before the merge.
        if (
            source is not None
            and source.end is not None
            and made.head in (spec.base, source.end.commit)
        ):
            began = _fill_workdir(store, workspaces, source, source.end, place)
        head, joined = merged(
            workspaces,
            plan,
            place,
            spec.agent,
            {need: stands[need] for need in stand.strand.merges},
        )
        planned = replace(
            planned, merged=stand.strand.merges, conflicts=joined, began=head or began
        )
        spec = replace(spec, map=spec.map or _map(map_when, stand))
        if joined:
            spec = replace(
                spec,
                prompt=f"{spec.prompt}\n\n{conflict_prompt(joined)}",
                conflicts=tuple(file for file, _ in joined),
            )
        store.put_planned(plan, planned)
        return store.add(spec, run_id, name, place)


def key_of(plan: PlanRun, task: str) -> str:
    """Return the key that identifies the task's run in the store."""
    return f"plan:{plan.id}/{task}"


def spec_of(plan: PlanRun, stand: TaskStatus) -> TaskSpec:
    """Return the task's spec. It does not say at which commit or with which files the task starts;
    the caller adds this."""
    task, strand = stand.task, stand.strand
    return replace(
        plan.seed,
        prompt=task.prompt,
        agent=task.agent,
        model=task.model,
        permissions=task.permissions,
        timeout_s=task.timeout_s,
        attempts=task.attempts,
        verify=task.verify,
        files=task.files,
        continuity=plan.plan.continuity,
        name=f"{plan.name}-{task.name}".lower(),
        key=key_of(plan, task.name),
        scope=plan_scope(plan.id, strand.name),
        # Names of plans and tasks never contain `_`. A branch name that joins two names with `_` is
        # therefore unique.
        branch=f"perdure/{plan.name}_{strand.name}",
        labels={"plan": plan.name, "task": task.name},
        map=task.map,
    )


def _map(map_when: MapWhen, stand: TaskStatus) -> str:
    """Return the value of `map` for a task whose plan does not set `map`: `always` if the task
    starts with files from another conversation and `map_when` is not off; else empty."""
    strand = stand.strand
    strange = strand.merges or (strand.files_of and not strand.forks)
    if strange and map_when is not MapWhen.OFF:
        return str(MapWhen.ALWAYS)
    return ""


def _spec(
    plan: PlanRun, stand: TaskStatus, stands: Mapping[str, TaskStatus]
) -> tuple[TaskSpec, TaskStatus | None]:
    """Return the task's complete spec, and the task whose files are the first content of the new
    workdir (None if there is none)."""
    spec, strand = spec_of(plan, stand), stand.strand
    if strand.goes_on:
        first = stands[strand.name].run
        return replace(spec, base=first.spec.base if first is not None else spec.base), None
    if not strand.files_of:
        return spec, None
    source = stands[strand.files_of]
    assert source.end is not None
    # An isolated clone can begin only at a commit of its own repository. The commits of other tasks
    # are fetched into the clone after it was made.
    spec = replace(spec, base=plan.seed.base if _is_isolated(plan) else source.end.commit)
    if strand.forks and source.end.session_id:
        spec = replace(spec, forks=source.end.session_id, fork_at=source.end.turns)
    return spec, source


def _is_isolated(plan: PlanRun) -> bool:
    return plan.seed.backend == Backend.ISOLATED or is_remote(plan.seed.repo)


def _fill_workdir(
    store: RunStore, workspaces: Workspaces, source: TaskStatus, end: TaskEnd, place: Workspace
) -> str:
    """Fill the workdir with the files that the task `source` left, and return the commit of HEAD.
    If a checkpoint was taken at the end of `source`, its small ignored files are copied as well."""
    if place.backend is not Backend.ISOLATED and (
        source.run is None or source.run.workspace is None
    ):
        return end.commit
    there = workdir_of(source)
    assert source.run is not None
    known = {each.number: each for each in store.checkpoints(source.run.id)}
    kept = known.get(end.checkpoint)
    if kept is not None:
        workspaces.checkpoints.copy_checkpoint(there, kept.workdir.commit, place)
        return end.commit
    if place.backend is not Backend.ISOLATED:
        return end.commit
    # `source` has no checkpoint if this task was added to the plan after `source` was done. Its
    # commit is then fetched and merged.
    workspaces.checkpoints.copy_commit(there, place, end.commit)
    return workspaces.merge(
        place, source.task.agent, end.commit, f"Begin with {source.task.name}\n"
    ).commit


def merged(
    workspaces: Workspaces,
    plan: PlanRun,
    place: Workspace,
    agent: str,
    others: Mapping[str, TaskStatus],
) -> tuple[str, tuple[tuple[str, str], ...]]:
    """Merge the results of other tasks into a workdir. The caller must hold the workdir's lock.
    Return the commit of HEAD (empty if there was nothing to merge), and the conflicts as (file,
    reason)."""
    conflicts: dict[str, str] = {}
    head = ""
    for name, other in others.items():
        assert other.end is not None
        text = f"Merge {name} of the plan {plan.name}\n"
        if place.backend is Backend.ISOLATED:
            workspaces.checkpoints.copy_commit(workdir_of(other), place, other.end.commit)
        joined = workspaces.merge(place, agent, other.end.commit, text)
        head, conflicts = joined.commit, conflicts | dict(joined.conflicts)
    return head, tuple(conflicts.items())


def conflict_prompt(conflicts: tuple[tuple[str, str], ...]) -> str:
    """Return the instructions for the agent that must resolve the conflicts. File names are
    untrusted, so each one is quoted and has its own line."""
    lines = "\n".join(f"- {file!r}: {reason}" for file, reason in conflicts)
    return (
        "The work of other tasks of this plan was merged into this working directory, and there "
        "were conflicts. The merge is committed, with marks (<<<<<<<, =======, >>>>>>>) where "
        "both sides changed the same lines; `git show HEAD^1:FILE` and `git show HEAD^2:FILE` "
        "show each side. Resolve them as a part of this task, so that what both sides meant is "
        f"kept, and leave no marks:\n{lines}"
    )


def _name(store: RunStore, wanted: str) -> str:
    """Return a name for the run that no other run has. It is `wanted`, shortened if it is too long,
    with a number if it is taken."""
    digest = hashlib.sha256(wanted.encode()).hexdigest()[:6]
    if len(wanted) <= NAME_WIDTH:
        stem = wanted
    else:
        stem = f"{wanted[: NAME_WIDTH - 7]}-{digest}"
    taken = {row.name for row in store.find(limit=100_000)}
    number, name = 1, stem
    while name in taken:
        number += 1
        name = f"{stem[: NAME_WIDTH - 4]}-{number}"
    return name


@contextmanager
def workdir_locked(
    workspaces: Workspaces,
    stopping: Callable[[], bool],
    place: Workspace,
    holder: str,
    *,
    looks: bool = False,
) -> Iterator[None]:
    """Hold the workdir's lock for the `with` block. `looks`: the caller only reads the workdir, so
    an idle agent process that is kept alive in it is not ended. Raises Conflict if another process
    keeps the lock for longer than `PATIENCE_S`."""
    end = time.monotonic() + PATIENCE_S
    while True:
        try:
            fd = workspaces.lock(place, holder, keep_waiting_agents=looks)
            break
        except Conflict:
            if time.monotonic() >= end or stopping():
                raise
            time.sleep(0.1)
    try:
        yield
    finally:
        os.close(fd)


def workdir_of(stand: TaskStatus) -> Workspace:
    """Return the task's workdir. Raises WorkspaceError if its run was removed from the list."""
    if stand.run is None or stand.run.workspace is None:
        raise WorkspaceError(
            f"The run of the task {stand.task.name} was removed, and its workdir too",
            "perdure trash",
        )
    return stand.run.workspace
