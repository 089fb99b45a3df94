"""Makes a task's run: where it works, in whose conversation, with which files. Called by `driver`,
once what it needs is done.

The workdir is whole before the run is in the store, because a run that is there may be claimed by
anybody. Killed in between, it is begun again: a merge that was made is found, and what grew from a
checkpoint grows into the same.
"""

from __future__ import annotations

import hashlib
import os
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from perdure.engine.attempt import Engine
from perdure.engine.plans.budget import share
from perdure.engine.plans.status import Stand
from perdure.engine.sessions import plan_scope
from perdure.errors import Conflict, NotFound, WorkspaceError
from perdure.model import Backend, MapWhen, TaskRun, TaskSpec, Workspace
from perdure.rules.plan import PlannedRun, PlanRun, TaskEnd
from perdure.workspace.identity import is_remote

NAME_WIDTH = 63
PATIENCE_S = 30.0
"""A shim that is just leaving, or a person's look at the workdir, holds its lock for a moment."""


def start(engine: Engine, plan: PlanRun, stand: Stand, stands: Mapping[str, Stand]) -> TaskRun:
    """The task's run, queued, or as it is if it was made before. Raises PerdureError."""
    with_key = key_of(plan, stand.task.name)
    try:
        return engine.store.get(with_key)
    except NotFound:
        pass
    spec, source = _spec(plan, stand, stands)
    spec = replace(spec, budget_usd=share(engine.store, plan, spec.budget_usd))
    name = _name(engine, spec.name)
    there = (
        stands[stand.strand.goes_on].run
        if stand.strand.goes_on and not stand.strand.merges
        else None
    )
    run_id = stand.planned.run if stand.planned is not None else ""
    if not run_id or engine.store.history(run_id, limit=1):  # a person took that run off the list
        run_id = uuid.uuid4().hex
    planned = PlannedRun(task=stand.task.name, run=run_id)
    engine.store.put_planned(plan, planned)
    before = stands[stand.strand.goes_on].end if stand.strand.goes_on else None
    if there is not None and there.workspace is not None and before is not None:
        engine.store.put_planned(plan, replace(planned, began=before.commit))
        return engine.store.add(spec, run_id, name, there.workspace)
    place = engine.workspaces.plan(spec, name, Path(spec.repo))
    with held(engine, place, f"perdure plan {plan.name}: {stand.task.name}"):
        made = engine.workspaces.prepare(place, spec.agent)
        began = made.head
        if place.backend is Backend.ISOLATED and engine.workspaces.taken(place, [place.branch]):
            raise Conflict(
                f"{place.repo} has a branch {place.branch} already",
                "give this plan another name, or rename that branch",
            )
        # A head that is neither is that of a merge which was made before a kill: then the files
        # have grown, too.
        if (
            source is not None
            and source.end is not None
            and made.head in (spec.base, source.end.commit)
        ):
            began = _grow(engine, source, source.end, place)
        head, joined = merged(
            engine, plan, place, spec.agent, {need: stands[need] for need in stand.strand.merges}
        )
        planned = replace(
            planned, merged=stand.strand.merges, conflicts=joined, began=head or began
        )
        spec = replace(spec, map=spec.map or _map(engine, stand))
        if joined:
            spec = replace(
                spec,
                prompt=f"{spec.prompt}\n\n{told(joined)}",
                conflicts=tuple(file for file, _ in joined),
            )
        engine.store.put_planned(plan, planned)
        return engine.store.add(spec, run_id, name, place)


def key_of(plan: PlanRun, task: str) -> str:
    """The key of the task's run."""
    return f"plan:{plan.id}/{task}"


def spec_of(plan: PlanRun, stand: Stand) -> TaskSpec:
    """What is asked of the task, before it is known where it begins."""
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
        # No name has a `_`: what is joined by it is nobody else's
        branch=f"perdure/{plan.name}_{strand.name}",
        labels={"plan": plan.name, "task": task.name},
        map=task.map,
    )


def _map(engine: Engine, stand: Stand) -> str:
    """Where the plan says nothing: files that another conversation made are told by the project
    map, unless there is to be none."""
    strand = stand.strand
    strange = strand.merges or (strand.files_of and not strand.forks)
    return str(MapWhen.ALWAYS) if strange and engine.map_when is not MapWhen.OFF else ""


def _spec(
    plan: PlanRun, stand: Stand, stands: Mapping[str, Stand]
) -> tuple[TaskSpec, Stand | None]:
    """The whole spec, and the task whose files a new workdir begins with."""
    spec, strand = spec_of(plan, stand), stand.strand
    if strand.goes_on:
        first = stands[strand.name].run
        return replace(spec, base=first.spec.base if first is not None else spec.base), None
    if not strand.files_of:
        return spec, None
    source = stands[strand.files_of]
    assert source.end is not None
    # An isolated clone begins at a commit that its repository has; what other tasks made there is
    # brought afterwards.
    spec = replace(spec, base=plan.seed.base if _is_isolated(plan) else source.end.commit)
    if strand.forks and source.end.session_id:
        spec = replace(spec, forks=source.end.session_id, fork_at=source.end.turns)
    return spec, source


def _is_isolated(plan: PlanRun) -> bool:
    return plan.seed.backend == Backend.ISOLATED or is_remote(plan.seed.repo)


def _grow(engine: Engine, source: Stand, end: TaskEnd, place: Workspace) -> str:
    """Make the workdir what the need was at its end, small ignored files too, by the checkpoint
    that was taken there; return HEAD."""
    if place.backend is not Backend.ISOLATED and (
        source.run is None or source.run.workspace is None
    ):
        return end.commit
    there = workdir_of(source)
    assert source.run is not None
    known = {each.number: each for each in engine.store.checkpoints(source.run.id)}
    kept = known.get(end.checkpoint)
    if kept is not None:
        engine.workspaces.checkpoints.grow(
            there, kept.workdir.commit, place, ignored=engine.checkpoint_ignored
        )
        return end.commit
    if place.backend is not Backend.ISOLATED:
        return end.commit
    # No checkpoint was due there: this branch came into the plan when the need was done.
    engine.workspaces.checkpoints.bring(there, place, end.commit)
    return engine.workspaces.merge(
        place, source.task.agent, end.commit, f"Begin with {source.task.name}\n"
    ).commit


def merged(
    engine: Engine, plan: PlanRun, place: Workspace, agent: str, others: Mapping[str, Stand]
) -> tuple[str, tuple[tuple[str, str], ...]]:
    """Merges where other tasks ended into a workdir that the caller holds; returns HEAD (empty
    where there was nothing to merge) and the conflicts, file and reason."""
    conflicts: dict[str, str] = {}
    head = ""
    for name, other in others.items():
        assert other.end is not None
        text = f"Merge {name} of the plan {plan.name}\n"
        if place.backend is Backend.ISOLATED:
            engine.workspaces.checkpoints.bring(workdir_of(other), place, other.end.commit)
        joined = engine.workspaces.merge(place, agent, other.end.commit, text)
        head, conflicts = joined.commit, conflicts | dict(joined.conflicts)
    return head, tuple(conflicts.items())


def told(conflicts: tuple[tuple[str, str], ...]) -> str:
    """The conflicts for the agent that has to resolve them. Names are hostile: each stands in
    quotes, on its own line."""
    lines = "\n".join(f"- {file!r}: {reason}" for file, reason in conflicts)
    return (
        "The work of other tasks of this plan was merged into this working directory, and there "
        "were conflicts. The merge is committed, with marks (<<<<<<<, =======, >>>>>>>) where "
        "both sides changed the same lines; `git show HEAD^1:FILE` and `git show HEAD^2:FILE` "
        "show each side. Resolve them as a part of this task, so that what both sides meant is "
        f"kept, and leave no marks:\n{lines}"
    )


def _name(engine: Engine, wanted: str) -> str:
    """A name for the run that is free: the wanted one where that can be."""
    digest = hashlib.sha256(wanted.encode()).hexdigest()[:6]
    stem = wanted if len(wanted) <= NAME_WIDTH else f"{wanted[: NAME_WIDTH - 7]}-{digest}"
    taken = {row.name for row in engine.store.find(limit=100_000)}
    number, name = 1, stem
    while name in taken:
        number += 1
        name = f"{stem[: NAME_WIDTH - 4]}-{number}"
    return name


@contextmanager
def held(engine: Engine, place: Workspace, holder: str, *, looks: bool = False) -> Iterator[None]:
    """The workdir's lock. Who only `looks` lets an agent that is kept warm there wait on. Raises
    Conflict where somebody else has it for long."""
    end = time.monotonic() + PATIENCE_S
    while True:
        try:
            fd = engine.workspaces.lock(place, holder, at_work=looks)
            break
        except Conflict:
            if time.monotonic() >= end or engine.stopping():
                raise
            time.sleep(0.1)
    try:
        yield
    finally:
        os.close(fd)


def workdir_of(stand: Stand) -> Workspace:
    """Where the task worked. Raises WorkspaceError once its run is off the list."""
    if stand.run is None or stand.run.workspace is None:
        raise WorkspaceError(
            f"The run of the task {stand.task.name} is off the list, and its workdir with it",
            "perdure trash",
        )
    return stand.run.workspace
