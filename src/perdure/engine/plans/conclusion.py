"""Records the end of a task (`record_task_end`), and ends a plan (`conclude`). Called by `driver`.

The end of a task is the commit, checkpoint and turn at which it left its workdir and conversation.
Other tasks can begin from this point while the task's conversation continues. Uncommitted files are
committed on the task's branch in the agent's name, because only commits can be merged, and a
workdir that is made from a commit has only committed files. If another workdir starts from this
task, or if it is the plan's last task, a checkpoint of workdir and conversation is taken as well.
The checkpoint includes the small ignored files.

At the end of a plan, the results that no other task has used are merged into the workdir of the
last task, and the plan's own check runs there. Merge conflicts and a failed check are given to the
conversation of the last task as new instructions. This is repeated at most as often as that task
may be attempted. Then the plan fails, and its reason says what was wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from msgspec.structs import replace

from perdure.agents.transcripts import locate, snapshot
from perdure.engine import checkpoints, service
from perdure.engine.attempt import Engine
from perdure.engine.attempt.verification import (
    LOG_CAP,
    check_environment,
    missing_files_sentence,
    said_in,
)
from perdure.engine.plans.starts import conflict_prompt, merged, workdir_locked, workdir_of
from perdure.engine.plans.status import TaskStatus, overspent
from perdure.host import process
from perdure.host.redaction import Redactor
from perdure.model import Command, Exit, RunState, SessionKey, TaskRun, TaskSpec
from perdure.protocols import AgentDriver, PlanStore, RunStore, SessionStore
from perdure.rules.continuation.prompt import quoted
from perdure.rules.excerpt import excerpt, telling_line
from perdure.rules.plan import PlannedRun, PlanRun, PlanState, TaskEnd
from perdure.rules.plan.conversations import order

FILES = 200


def record_task_end(engine: Engine, plan: PlanRun, planned: PlannedRun, run: TaskRun) -> TaskEnd:
    """Record the end of a task, and return it. Uncommitted files are committed first, and a
    checkpoint is taken if one is needed. After a kill, the call can be repeated. Raises
    PerdureError."""
    assert run.workspace is not None
    first = run.spec.prompt.strip().partition("\n")[0][:72]
    text = (
        f"{planned.task}: {first}\n\nLeft uncommitted by the agent at the end of the task "
        f"{planned.task} of the plan {plan.name}.\n"
    )
    with workdir_locked(
        engine.workspaces,
        engine.stopping,
        run.workspace,
        f"perdure plan {plan.name}: end of {planned.task}",
        looks=True,
    ):
        commit = engine.workspaces.commit(run.workspace, run.spec.agent, text)
        if _needs_checkpoint(plan, planned.task):
            kept = checkpoints.save_current(engine, run, run.workspace, "end")
        else:
            kept = None
        driver = engine.driver(run.spec.agent)
        session_id, turns = _conversation(engine.store, engine.environ, engine.state, driver, run)
        if planned.began:
            files = engine.workspaces.changed(run.workspace, planned.began, commit, FILES)
        else:
            files = ()
    end = TaskEnd(
        files=files,
        commit=commit,
        checkpoint=kept.number if kept is not None else 0,
        session_id=session_id,
        turns=turns,
    )
    engine.store.put_planned(plan, replace(planned, end=end))
    return end


def _needs_checkpoint(plan: PlanRun, task: str) -> bool:
    """Return whether a checkpoint of the task's end is needed. It is needed if another workdir
    starts with the task's files, and for the plan's last task. Without a checkpoint of the last
    task, a later update would report perdure's own commit as drift."""
    sources = {strand.files_of for strand in plan.strands.values()}
    return task == order(plan.plan)[-1].name or task in sources


def _conversation(
    store: SessionStore,
    environ: Mapping[str, str],
    state: Path,
    driver: AgentDriver,
    run: TaskRun,
) -> tuple[str, int]:
    """Return the id of the run's conversation and its number of turns; empty and 0 if there is
    none."""
    session = store.session(SessionKey(run.spec.agent, run.scope))
    if session is None:
        return "", 0
    home = driver.home({**environ, **run.spec.env})
    found = (
        snapshot(driver, locate(driver, home, session.id, state / "runs" / run.id / "end"))
        or session.snapshot
    )
    return session.id, found.turns if found is not None else 0


GRACE_S = 5.0
TICK_S = 0.05


def conclude(
    engine: Engine,
    plan: PlanRun,
    stands: Mapping[str, TaskStatus],
    follow: Callable[[Engine, str], TaskRun],
) -> PlanRun:
    """Conclude a plan whose tasks are all done. Return it as succeeded or failed, or unchanged if
    perdure was asked to stop. `follow`: function that performs a run and returns it when it has
    ended; it performs the corrections in the same way as the plan's tasks. Raises PerdureError."""
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
        others = {}
        for name, stand in stands.items():
            if name not in (last.task.name, *planned.merged) and _is_unmerged(name, stands):
                others[name] = stand
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
            problem, said = _check(
                engine.driver,
                engine.environ,
                engine.state,
                engine.redactor,
                engine.stopping,
                plan,
                run,
            )
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
    if end is None:
        return False
    made = {(each.number, each.attempt) for each in store.checkpoints(run.id)}
    return (end.checkpoint, run.attempt) in made


def _is_unmerged(name: str, stands: Mapping[str, TaskStatus]) -> bool:
    """Return whether the task's result is used by no other task: none continues it, and none merges
    it."""
    for stand in stands.values():
        if name in (stand.strand.goes_on, *stand.strand.merges):
            return False
    return True


def _check(
    driver: Callable[[str], AgentDriver],
    environ: Mapping[str, str],
    state: Path,
    redactor: Redactor,
    stopping: Callable[[], bool],
    plan: PlanRun,
    run: TaskRun,
) -> tuple[str, str]:
    """Run the plan's check in the run's workdir. If it fails, return instructions for the agent and
    the check's output; otherwise two empty texts."""
    command = plan.plan.verify
    if not command:
        return "", ""
    directory = _directory(state, plan)
    env = check_environment(environ, run, driver(run.spec.agent))
    end = _run(plan, run, directory, env, stopping)
    code, output = _result(end, said_in(redactor, directory, end), run)
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
    """Return the exit code and the output of a check that has ended. The exit code of a check that
    did not exit by itself is 124."""
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
