"""Begins a plan, or finds the one of this name that was begun, and takes in what its file says by now.

What has not begun may be changed freely. A begun task keeps its place among the others; its prompt may be changed until it is done,
which is an update in the same conversation; afterwards a change is refused, because what was built on it would not know of it.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from pathlib import Path

from perdure import service
from perdure.attempt import Engine
from perdure.errors import NotFound, UsageError
from perdure.lifecycle import FINAL
from perdure.model import Backend, TaskSpec
from perdure.plan import Forking, Plan, PlanError, PlanRun, PlanState, Strand, order, weave
from perdure.plans.standing import Stand, standing
from perdure.plans.starting import spec_of
from perdure.protocols import AgentDriver


def begin(engine: Engine, plan: Plan, seed: TaskSpec, file: Path) -> PlanRun:
    """The plan as the store has it; a new one is checked whole and stored. `seed`: what all tasks' specs share; its repository may be
    overruled by the plan's, which is meant from the file's directory.

    Raises UsageError, NotFound, AgentMissing, WorkspaceError, DiskFull.
    """
    try:
        return engine.store.plan(plan.name)
    except NotFound:
        pass
    fresh = _planned(engine, plan, seed, file)
    return engine.store.add_plan(fresh)


def forking(driver: AgentDriver) -> Forking:
    """Where the agent's program can fork a conversation, and go on with it in another directory."""
    can = driver.abilities
    if not can.fork or can.fork_bound:
        return Forking.NEVER
    return Forking.ANYWHERE if can.fork_at else Forking.AT_END


def _planned(engine: Engine, plan: Plan, seed: TaskSpec, file: Path) -> PlanRun:
    """A new plan, with the commit at which all of it begins."""
    from perdure.workspace.identity import is_remote

    repo = plan.repo if is_remote(plan.repo) else str((file.parent / plan.repo).resolve()) if plan.repo else seed.repo
    seed = replace(seed, prompt="", repo=repo, base=plan.base or seed.base)
    strands = weave(plan, lambda agent: forking(engine.driver(agent)))
    fresh = PlanRun(id=uuid.uuid4().hex, name=plan.name, plan=plan, seed=seed, file=str(file), strands=strands)
    for task in plan.tasks:
        service.check_task(engine, spec_of(fresh, Stand(task=task, strand=strands[task.name])), Path.cwd())
    first = order(plan)[0]
    place = engine.workspaces.plan(spec_of(fresh, Stand(task=first, strand=strands[first.name])), plan.name, Path.cwd())
    if place.backend is Backend.ISOLATED and any(strand.files_of or strand.merges for strand in strands.values()):
        raise UsageError(
            f"the plan {plan.name} has branches, and those of isolated clones cannot be brought together",
            "give a repository on this machine, or make the plan one line",
        )
    return replace(fresh, seed=replace(seed, repo=place.repo, base=place.base))


def take_changes(engine: Engine, plan: PlanRun, wanted: Plan) -> PlanRun:
    """The plan with what its file says now; stored under its lease. Raises PlanError with everything that cannot be changed any more."""
    if wanted == plan.plan:
        return plan
    strands = weave(wanted, lambda agent: forking(engine.driver(agent)))
    begun = {name: stand for name, stand in standing(engine.store, plan).items() if stand.planned is not None}
    problems = [*_moved(plan, wanted, begun), *(text for stand in begun.values() for text in _changed(stand, wanted, strands))]
    if problems:
        raise PlanError([f"{plan.file}: {problem}" for problem in problems], f"perdure plan show {plan.name}")
    fresh = replace(plan, plan=wanted, strands=strands, state=PlanState.OPEN, reason="", verified=False)
    for task in wanted.tasks:
        service.check_task(engine, spec_of(fresh, Stand(task=task, strand=strands[task.name])), Path.cwd())
    for stand in begun.values():
        new = wanted.task(stand.task.name).prompt
        if new != stand.task.prompt and stand.run is not None:
            service.update(engine, stand.run.id, new)
    return engine.store.put_plan(fresh)


def _moved(plan: PlanRun, wanted: Plan, begun: Mapping[str, Stand]) -> Iterator[str]:
    for what in ("repo", "base"):
        if begun and getattr(plan.plan, what) != getattr(wanted, what):
            yield f"{what} was changed, and {len(begun)} task(s) have begun: a plan of another name can begin elsewhere"


def _changed(stand: Stand, wanted: Plan, strands: Mapping[str, Strand]) -> Iterator[str]:
    """What of a begun task cannot be as the file says."""
    old, name = stand.task, stand.task.name
    new = next((task for task in wanted.tasks if task.name == name), None)
    if new is None:
        yield f"the task {name!r} was begun, and is not in the file any more"
        return
    run = stand.run.name if stand.run is not None else name
    done = stand.end is not None or (stand.run is not None and stand.run.state in FINAL and stand.run.state == "succeeded")
    if done and new.prompt != old.prompt:
        yield f'the prompt of {name!r} was changed after it was done: perdure update {run} "..." gives it new instructions'
    others = [field.name for field in fields(old) if field.name != "prompt" and getattr(old, field.name) != getattr(new, field.name)]
    if others:
        yield f"{', '.join(others)} of {name!r} changed after it had begun"
    if replace(strands[name], lets=()) != replace(stand.strand, lets=()):
        yield f"{name!r} has begun, and would now stand in another place of the conversation"
