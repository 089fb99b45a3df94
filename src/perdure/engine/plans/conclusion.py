"""Ends a plan. Takes the results that no other task has used, merges them into the workdir of the
last task, and runs the plan's own check there. Called by `driver`.

Merge conflicts and a failed check are given to the conversation of the last task as new
instructions. This is repeated at most as often as that task may be attempted. Then the plan fails,
and its reason says what was wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from msgspec.structs import replace

from perdure.engine import service
from perdure.engine.attempt import Engine
from perdure.engine.attempt.promises import missing_files_sentence
from perdure.engine.attempt.verification import LOG_CAP, check_environment, said_in
from perdure.engine.plans.budget import overspent
from perdure.engine.plans.starts import conflict_prompt, merged, workdir_locked, workdir_of
from perdure.engine.plans.status import TaskStatus
from perdure.engine.plans.task_end import record_task_end
from perdure.host import process
from perdure.model import Command, Exit, RunState, TaskRun, TaskSpec
from perdure.protocols import PlanStore, RunStore
from perdure.rules.continuation.prompt import quoted
from perdure.rules.excerpt import excerpt, telling_line
from perdure.rules.plan import PlanRun, PlanState, TaskEnd
from perdure.rules.plan.conversations import order

GRACE_S = 5.0
TICK_S = 0.05


def conclude(
    engine: Engine,
    plan: PlanRun,
    stands: Mapping[str, TaskStatus],
    follow: Callable[[Engine, str], TaskRun],
) -> PlanRun:
    """Conclude a plan whose tasks are all done. Return it as succeeded or failed, or unchanged if
    perdure was asked to stop. `follow` returns a run when it has ended: corrections are performed
    like the plan's tasks. Raises PerdureError."""
    last = stands[order(plan.plan)[-1].name]
    place, planned = workdir_of(last), last.planned
    assert last.run is not None and planned is not None
    run = last.run
    while True:
        run = follow(engine, run.id)
        if engine.stopping():
            return plan
        if run.state is not RunState.SUCCEEDED:
            return _failed(
                engine.store, plan, f"{last.task.name} failed at the end of the plan: {run.reason}"
            )
        if not _end_is_recorded(engine.store, run, planned.end):
            planned = replace(planned, end=record_task_end(engine, plan, planned, run))
        others = {
            name: stand
            for name, stand in stands.items()
            if name not in (last.task.name, *planned.merged) and _is_unmerged(name, stands)
        }
        problem, said = "", ""
        with workdir_locked(
            engine.workspaces, engine.stopping, place, f"perdure plan {plan.name}: its end"
        ):
            _, conflicts = merged(engine.workspaces, plan, place, run.spec.agent, others)
            if conflicts:
                problem = conflict_prompt(conflicts)
            elif left := missing_files_sentence(
                TaskSpec(prompt="", conflicts=tuple(name for name, _ in planned.conflicts)),
                Path(place.path),
            ):
                problem = f"The merge is not resolved yet: {left}."
        planned = replace(
            planned,
            merged=(*planned.merged, *others),
            conflicts=tuple(dict((*planned.conflicts, *conflicts)).items()),
        )
        if not problem:
            problem, said = _check(engine, plan, run)
        if engine.stopping():
            return plan
        if not problem:
            if others:
                record_task_end(engine, plan, planned, run)
            return engine.store.put_plan(
                replace(plan, state=PlanState.SUCCEEDED, reason="", verified=bool(plan.plan.verify))
            )
        if planned.checks >= last.task.attempts:
            return _failed(
                engine.store,
                plan,
                f"the result still fails after {planned.checks} correction(s): "
                f"{telling_line(said or problem)}",
            )
        if reason := overspent(engine.store, plan):
            return _failed(
                engine.store,
                plan,
                f"the result fails ({telling_line(said or problem)}), and {reason}",
            )
        service.may_instruct(engine, run, problem)
        planned = replace(planned, checks=planned.checks + 1)
        engine.store.put_planned(plan, planned, instructions=problem)


def _end_is_recorded(store: RunStore, run: TaskRun, end: TaskEnd | None) -> bool:
    """Return whether the recorded end of the task belongs to the newest attempt of the task's
    run."""
    return end is not None and any(
        each.number == end.checkpoint and each.attempt == run.attempt
        for each in store.checkpoints(run.id)
    )


def _is_unmerged(name: str, stands: Mapping[str, TaskStatus]) -> bool:
    """Return whether the task's result is used by no other task: none continues it, and none merges
    it."""
    return not any(
        name in (stand.strand.goes_on, *stand.strand.merges) for stand in stands.values()
    )


def _check(engine: Engine, plan: PlanRun, run: TaskRun) -> tuple[str, str]:
    """Run the plan's check in the run's workdir. If it fails, return instructions for the agent and
    the check's output; otherwise two empty texts."""
    command = plan.plan.verify
    if not command:
        return "", ""
    directory = _directory(engine.state, plan)
    env = check_environment(engine.environ, run, engine.driver(run.spec.agent))
    end = _run(plan, run, directory, env, engine.stopping)
    code, output = _result(end, said_in(engine.redactor, directory, end), run)
    if code == 0:
        return "", ""
    words = (
        f"All tasks of the plan are done, and its check `{command}` fails with exit code {code} in "
        f"this working directory. Find out why, and put it right. {quoted(excerpt(output))}"
    )
    return words, output


def _run(
    plan: PlanRun,
    run: TaskRun,
    directory: Path,
    env: Mapping[str, str],
    stopping: Callable[[], bool],
) -> Exit:
    """Run the check, and return how it ended. If perdure is asked to stop, the check is ended
    early."""
    assert run.workspace is not None
    running = process.start(
        Command(
            argv=("/bin/sh", "-c", 'exec 2>&1; exec /bin/sh -c "$1"', "sh", plan.plan.verify),
            stdin=b"",
        ),
        directory=directory,
        cwd=Path(run.workspace.path),
        env=env,
        mark=f"plan-{plan.id}",
        deadline_s=run.spec.verify_timeout_s,
        grace_s=GRACE_S,
        output_cap=LOG_CAP,
    )
    stopped = False
    while (end := running.wait(TICK_S)) is None:
        if stopping() and not stopped:
            stopped = True
            running.stop("stopped")
    return end


def _result(end: Exit, said: str, run: TaskRun) -> tuple[int, str]:
    """Return the exit code and the output of a check that has ended."""
    if end.cause == "exited":
        return (end.code if end.code is not None else 128 + (end.signal or 0)), said
    return 124, f"{said}\n[{end.cause} after {run.spec.verify_timeout_s:g} s]"


def _directory(state: Path, plan: PlanRun) -> Path:
    """Return the path of a new directory for a check. First, checks of this plan whose supervisor
    died are killed if they are still running."""
    number = 1
    while (directory := state / "plans" / plan.id / f"verify-{number}").exists():
        begun = process.find(directory)
        if begun is not None:
            begun.kill()
        number += 1
    directory.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    return directory


def _failed(store: PlanStore, plan: PlanRun, reason: str) -> PlanRun:
    return store.put_plan(replace(plan, state=PlanState.FAILED, reason=reason))
