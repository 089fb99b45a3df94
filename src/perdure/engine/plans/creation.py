"""Starts a plan. If a plan of the same name is stored, applies the changes in the plan's file to
the stored plan instead. Called by `driver` and `server`.

A task that has not begun may be changed freely. A task that has begun keeps its dependencies and
its conversation. Its prompt may change until it is done; the change is then an update in the same
conversation. Later changes are refused, because other tasks may already build on the result.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

from msgspec.structs import replace

from perdure.engine import service
from perdure.engine.attempt import Engine
from perdure.engine.attempt.engine import EngineStore
from perdure.engine.plans.starts import spec_of
from perdure.engine.plans.status import TaskStatus, task_statuses
from perdure.engine.worker import rescue
from perdure.errors import Conflict, NotFound
from perdure.model import RunState, TaskRun, TaskSpec
from perdure.protocols import AgentDriver
from perdure.rules.plan import Forking, Plan, PlanError, PlanRun, PlanState, PlanTask, Strand
from perdure.rules.plan.conversations import assign_strands, order
from perdure.workspace import Workspaces

MAY_CHANGE = ("model", "verify", "timeout_s", "attempts", "files", "map")
"""Fields of a task, besides its prompt, that may change after it has begun."""


def begin(engine: Engine, plan: Plan, seed: TaskSpec, file: Path) -> PlanRun:
    """Return the stored plan of this name. If there is none, check the given plan, store it and
    return it. `seed`: the fields that all tasks' specs share. A repository in the plan overrides
    that of the seed. The plan may name it by a path relative to the directory of `file`.

    Raises UsageError, NotFound, Conflict, AgentMissing, WorkspaceError, DiskFull.
    """
    try:
        return find(engine.store, engine.workspaces, plan, seed, file)
    except NotFound:
        return engine.store.add_plan(_planned(engine, plan, seed, file))


def find(
    store: EngineStore, workspaces: Workspaces, plan: Plan, seed: TaskSpec, file: Path
) -> PlanRun:
    """Return the stored plan of this name if it is for the same repository. Raises NotFound, and
    Conflict if it was begun for another repository."""
    there = store.plan(plan.name)
    if plan.repo != there.plan.repo:
        return there  # A changed repository is checked by `take_changes`.
    first = order(plan)[0]
    wanted = replace(there, seed=_seed(plan, seed, file))
    try:
        place = workspaces.plan(
            spec_of(wanted, TaskStatus(task=first, strand=Strand(name=first.name))),
            plan.name,
            Path.cwd(),
        )
    except NotFound:
        if plan.repo:
            raise
        if there.file == str(file):
            return there
        # The name is taken by a plan from another file. That plan is a different one, so its state,
        # such as a success, must not be reported for this plan.
        raise Conflict(
            f"The plan {plan.name} was started in {there.seed.repo} from {there.file}; the "
            f"current directory is in no repository",
            f"to continue that one: cd {there.seed.repo}; otherwise give this one another name and "
            "a repo",
        ) from None
    if place.repo != there.seed.repo:
        raise Conflict(
            f"The plan {plan.name} was started in {there.seed.repo} from {there.file}; this one "
            f"is for {place.repo}",
            "give this one another name",
        )
    return there


def _seed(plan: Plan, seed: TaskSpec, file: Path) -> TaskSpec:
    """Return the fields that all tasks share. The plan's repository and base, if set, replace those
    of `seed`."""
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
    """Return at which turns the agent's CLI can fork a conversation into another directory: at any
    turn, only at the end, or at none."""
    can = driver.abilities
    if not can.fork or can.fork_bound:
        return Forking.NEVER
    if can.fork_at:
        return Forking.ANYWHERE
    return Forking.AT_END


def _planned(engine: Engine, plan: Plan, seed: TaskSpec, file: Path) -> PlanRun:
    """Return a new plan, which includes the commit at which all its tasks begin. Raises Conflict if
    the repository already has one of the plan's branches."""
    strands = assign_strands(plan, lambda agent: forking(engine.driver(agent)))
    fresh = PlanRun(
        id=uuid.uuid4().hex,
        name=plan.name,
        plan=plan,
        seed=_seed(plan, seed, file),
        file=str(file),
        strands=strands,
    )
    fresh = _checked(engine, fresh)
    stands = [TaskStatus(task=task, strand=strands[task.name]) for task in plan.tasks]
    specs = [spec_of(fresh, stand) for stand in stands]
    place = engine.workspaces.plan(specs[0], plan.name, Path.cwd())
    if taken := engine.workspaces.existing_branches(
        place, dict.fromkeys(spec.branch for spec in specs)
    ):
        raise Conflict(
            f"{place.repo} already has a branch {taken[0]}, from another plan {plan.name}; this "
            "one would continue from it",
            "give this plan another name, or rename that branch",
        )
    return fresh


def _checked(engine: Engine, fresh: PlanRun) -> PlanRun:
    """Check that every task could start. Return the plan with the commit at which its tasks
    begin."""
    plan, strands = fresh.plan, fresh.strands
    for task in plan.tasks:
        service.check_task(
            engine.driver,
            engine.environ,
            engine.homes,
            engine.volumes,
            spec_of(fresh, TaskStatus(task=task, strand=strands[task.name])),
            Path.cwd(),
        )
    first = order(plan)[0]
    place = engine.workspaces.plan(
        spec_of(fresh, TaskStatus(task=first, strand=strands[first.name])), plan.name, Path.cwd()
    )
    # The commit is resolved once, so that all tasks begin at the same commit. This also holds for a
    # clone that is made later, when the remote branch may have moved.
    base = engine.workspaces.resolve(place)
    return replace(fresh, seed=replace(fresh.seed, repo=place.repo, base=base))


def take_changes(engine: Engine, plan: PlanRun, wanted: Plan) -> PlanRun:
    """Apply the changes that were made in the plan's file. Store them under the plan's lease, and
    return the plan. Raises PlanError, which lists all changes that are no longer allowed."""
    if wanted == plan.plan:
        return plan
    strands = assign_strands(wanted, lambda agent: forking(engine.driver(agent)))
    stands = task_statuses(engine.store, plan)
    begun = {}
    for name, stand in stands.items():
        if stand.run is not None or stand.end is not None:
            begun[name] = stand
    problems = [
        *_moved(plan, wanted, begun),
    ]
    for stand in begun.values():
        problems += _changed(stand, wanted, strands)
    if problems:
        raise PlanError(
            [f"{plan.file}: {problem}" for problem in problems], f"perdure plan show {plan.name}"
        )
    fresh = replace(
        plan, plan=wanted, strands=strands, state=PlanState.OPEN, reason="", verified=False
    )
    if not any(stand.planned is not None for stand in stands.values()):
        # The stored base is a commit that was resolved from the old repository and base. It is
        # dropped if the file now names another repository or base.
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
    # All changes are stored in one transaction. If perdure is killed before the transaction, the
    # next start applies all changes; after it, nothing is left to apply.
    return engine.store.put_plan(fresh, told)


def _assigned(engine: Engine, run: TaskRun, old: PlanTask, new: PlanTask) -> TaskRun:
    """Apply the task's changed settings to the run that has already been made for it, and return
    the run. Raises Conflict while an attempt is running."""
    changes = {}
    for name in MAY_CHANGE:
        if getattr(old, name) != getattr(new, name):
            changes[name] = getattr(new, name)
    if all(getattr(run.spec, name) == value for name, value in changes.items()):
        return run
    run = (rescue(engine, run) if run.state is RunState.RUNNING else None) or run
    return engine.store.reassign(run.id, replace(run.spec, **changes))


def _is_done(stand: TaskStatus) -> bool:
    return stand.end is not None or (
        stand.run is not None and stand.run.state is RunState.SUCCEEDED
    )


def _moved(plan: PlanRun, wanted: Plan, begun: Mapping[str, TaskStatus]) -> Iterator[str]:
    for what in ("repo", "base"):
        if begun and getattr(plan.plan, what) != getattr(wanted, what):
            yield (
                f"{what} was changed after {len(begun)} task(s) had started: use a plan of "
                f"another name"
            )


def _changed(stand: TaskStatus, wanted: Plan, strands: Mapping[str, Strand]) -> Iterator[str]:
    """Yield a sentence for each change in the file that is not allowed because the task has already
    begun."""
    old, name = stand.task, stand.task.name
    new = next((task for task in wanted.tasks if task.name == name), None)
    if new is None:
        yield f"the task {name!r} was started, but is no longer in the file"
        return
    run = stand.run.name if stand.run is not None else name
    done = _is_done(stand)
    if done and new.prompt != old.prompt:
        yield (
            f"the prompt of {name!r} was changed after it was done: perdure update {run} "
            '"..." gives it new instructions'
        )
    # Permissions no longer matter for a task that is done.
    fixed = ("needs", "agent") if done else ("needs", "agent", "permissions")
    if others := [each for each in fixed if getattr(old, each) != getattr(new, each)]:
        yield f"{', '.join(others)} of {name!r} changed after it had started" + (
            "" if done else f": perdure rm {run} lets it start over"
        )
    if replace(strands[name], lets=()) != replace(stand.strand, lets=()):
        yield (
            f"{name!r} has started, and the changed file would move it to another place in the "
            "conversation"
        )
