"""Begins a plan, or finds the one of this name that was begun, and takes in what its file says by
now.

What has not begun may be changed freely. A begun task keeps its place among the others; its prompt
may be changed until it is done, which is an update in the same conversation; afterwards a change is
refused, because what was built on it would not know of it.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import chain
from pathlib import Path

from perdure.engine import service
from perdure.engine.attempt import Engine
from perdure.engine.plans.starts import spec_of
from perdure.engine.plans.status import Stand, standing
from perdure.engine.worker import rescue
from perdure.errors import Conflict, NotFound
from perdure.model import RunState, TaskRun, TaskSpec
from perdure.protocols import AgentDriver
from perdure.rules.plan import Forking, Plan, PlanError, PlanRun, PlanState, PlanTask, Strand
from perdure.rules.plan.conversations import order, weave

MAY_CHANGE = ("model", "verify", "timeout_s", "attempts", "files", "map")
"""What of a task may change after it has begun, beside its prompt."""


def begin(engine: Engine, plan: Plan, seed: TaskSpec, file: Path) -> PlanRun:
    """The plan as the store has it; a new one is checked whole and stored. `seed`: what all tasks'
    specs share; its repository may be overruled by the plan's, which is meant from the file's
    directory.

    Raises UsageError, NotFound, AgentMissing, WorkspaceError, DiskFull.
    """
    try:
        return find(engine, plan, seed, file)
    except NotFound:
        return engine.store.add_plan(_planned(engine, plan, seed, file))


def find(engine: Engine, plan: Plan, seed: TaskSpec, file: Path) -> PlanRun:
    """The plan of this name, if it was begun where this one would be. Raises NotFound, and Conflict
    where it was begun elsewhere."""
    there = engine.store.plan(plan.name)
    if plan.repo != there.plan.repo:
        return there  # that the file says another one by now, `take_changes` looks at
    first = order(plan)[0]
    wanted = replace(there, seed=_seed(plan, seed, file))
    try:
        place = engine.workspaces.plan(
            spec_of(wanted, Stand(task=first, strand=Strand(name=first.name))),
            plan.name,
            Path.cwd(),
        )
    except NotFound:
        if plan.repo:
            raise
        if there.file == str(file):
            return there
        # Another file of the same name is another plan: its success would say nothing of this one.
        raise Conflict(
            f"The plan {plan.name} was begun in {there.seed.repo}, from {there.file}, and {file} "
            "is read in no repository",
            f"cd {there.seed.repo} to go on with that one; for this one name another plan, and its "
            "repo",
        ) from None
    if place.repo != there.seed.repo:
        raise Conflict(
            f"The plan {plan.name} was begun in {there.seed.repo}, from {there.file}, and this one "
            f"is for {place.repo}",
            "give this one another name",
        )
    return there


def _seed(plan: Plan, seed: TaskSpec, file: Path) -> TaskSpec:
    """What all tasks share, with the plan's own word on where they begin."""
    from perdure.workspace.identity import is_remote, local_path

    plan = replace(plan, repo=local_path(plan.repo))
    if is_remote(plan.repo):
        repo = plan.repo
    elif plan.repo:
        repo = str((file.parent / plan.repo).resolve())
    else:
        repo = seed.repo
    return replace(seed, prompt="", repo=repo, base=plan.base or seed.base)


def forking(driver: AgentDriver) -> Forking:
    """Where the agent's program can fork a conversation, and go on with it in another directory."""
    can = driver.abilities
    if not can.fork or can.fork_bound:
        return Forking.NEVER
    return Forking.ANYWHERE if can.fork_at else Forking.AT_END


def _planned(engine: Engine, plan: Plan, seed: TaskSpec, file: Path) -> PlanRun:
    """A new plan, with the commit at which all of it begins."""
    strands = weave(plan, lambda agent: forking(engine.driver(agent)))
    fresh = PlanRun(
        id=uuid.uuid4().hex,
        name=plan.name,
        plan=plan,
        seed=_seed(plan, seed, file),
        file=str(file),
        strands=strands,
    )
    fresh = _checked(engine, fresh)
    stands = [Stand(task=task, strand=strands[task.name]) for task in plan.tasks]
    specs = [spec_of(fresh, stand) for stand in stands]
    place = engine.workspaces.plan(specs[0], plan.name, Path.cwd())
    if taken := engine.workspaces.taken(place, dict.fromkeys(spec.branch for spec in specs)):
        raise Conflict(
            f"{place.repo} has a branch {taken[0]} already, from another plan {plan.name}: this "
            "one would go on from there",
            "give this plan another name, or rename that branch",
        )
    return fresh


def _checked(engine: Engine, fresh: PlanRun) -> PlanRun:
    """The plan, with the commit at which it begins, if all of its tasks can be meant."""
    plan, strands = fresh.plan, fresh.strands
    for task in plan.tasks:
        service.check_task(
            engine, spec_of(fresh, Stand(task=task, strand=strands[task.name])), Path.cwd()
        )
    first = order(plan)[0]
    place = engine.workspaces.plan(
        spec_of(fresh, Stand(task=first, strand=strands[first.name])), plan.name, Path.cwd()
    )
    # One commit for all of it: branches that are cloned later begin at the same one, wherever the
    # remote's branch is by then.
    base = engine.workspaces.resolve(place)
    return replace(fresh, seed=replace(fresh.seed, repo=place.repo, base=base))


def take_changes(engine: Engine, plan: PlanRun, wanted: Plan) -> PlanRun:
    """The plan with what its file says now; stored under its lease. Raises PlanError with
    everything that cannot be changed any more."""
    if wanted == plan.plan:
        return plan
    strands = weave(wanted, lambda agent: forking(engine.driver(agent)))
    stands = standing(engine.store, plan)
    begun = {
        name: stand
        for name, stand in stands.items()
        if stand.run is not None or stand.end is not None
    }
    problems = [
        *_moved(plan, wanted, begun),
        *chain.from_iterable(_changed(stand, wanted, strands) for stand in begun.values()),
    ]
    if problems:
        raise PlanError(
            [f"{plan.file}: {problem}" for problem in problems], f"perdure plan show {plan.name}"
        )
    fresh = replace(
        plan, plan=wanted, strands=strands, state=PlanState.OPEN, reason="", verified=False
    )
    if not any(stand.planned is not None for stand in stands.values()):
        # The commit at which it was to begin is one of the repository that it named then.
        moved = (wanted.repo, wanted.base) != (plan.plan.repo, plan.plan.base)
        fresh = replace(
            fresh,
            seed=_seed(
                wanted, replace(fresh.seed, base="") if moved else fresh.seed, Path(plan.file)
            ),
        )
    fresh = _checked(engine, fresh)
    told: dict[str, str] = {}
    for stand in begun.values():
        if stand.run is not None and not _is_done(stand):
            new = wanted.task(stand.task.name)
            run = _assigned(engine, stand.run, stand.task, new)
            if new.prompt != stand.task.prompt:
                told[service.may_instruct(engine, run, new.prompt).id] = new.prompt
    # In one step: killed before it, all of it is done again; after it, none.
    return engine.store.put_plan(fresh, told)


def _assigned(engine: Engine, run: TaskRun, old: PlanTask, new: PlanTask) -> TaskRun:
    """A begun task's run with the limits that its file says by now. Raises Conflict where an
    attempt is at work."""
    changes = {
        name: getattr(new, name) for name in MAY_CHANGE if getattr(old, name) != getattr(new, name)
    }
    if all(getattr(run.spec, name) == value for name, value in changes.items()):
        return run
    run = (rescue(engine, run) if run.state is RunState.RUNNING else None) or run
    return engine.store.reassign(run.id, replace(run.spec, **changes))


def _is_done(stand: Stand) -> bool:
    return stand.end is not None or (
        stand.run is not None and stand.run.state is RunState.SUCCEEDED
    )


def _moved(plan: PlanRun, wanted: Plan, begun: Mapping[str, Stand]) -> Iterator[str]:
    for what in ("repo", "base"):
        if begun and getattr(plan.plan, what) != getattr(wanted, what):
            yield (
                f"{what} was changed, and {len(begun)} task(s) have begun: a plan of another name "
                "can begin elsewhere"
            )


def _changed(stand: Stand, wanted: Plan, strands: Mapping[str, Strand]) -> Iterator[str]:
    """What of a begun task cannot be as the file says."""
    old, name = stand.task, stand.task.name
    new = next((task for task in wanted.tasks if task.name == name), None)
    if new is None:
        yield f"the task {name!r} was begun, and is not in the file any more"
        return
    run = stand.run.name if stand.run is not None else name
    done = _is_done(stand)
    if done and new.prompt != old.prompt:
        yield (
            f"the prompt of {name!r} was changed after it was done: perdure update {run} "
            '"..." gives it new instructions'
        )
    # How a task that is done was to be done says nothing any more.
    fixed = ("needs", "agent") if done else ("needs", "agent", "permissions")
    if others := [each for each in fixed if getattr(old, each) != getattr(new, each)]:
        yield f"{', '.join(others)} of {name!r} changed after it had begun" + (
            "" if done else f": perdure rm {run} lets it begin anew"
        )
    if replace(strands[name], lets=()) != replace(stand.strand, lets=()):
        yield f"{name!r} has begun, and would now stand in another place of the conversation"
