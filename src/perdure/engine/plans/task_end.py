"""Records where a successful task left its workdir and conversation. Other tasks can then begin
from this point while the task's conversation continues. Called by `driver` and `conclusion`.

Uncommitted files are committed on the task's branch in the agent's name, because only commits can
be merged, and a workdir that is made from a commit has only committed files. If another workdir
starts from this task, or if it is the plan's last task, a checkpoint of workdir and conversation is
taken as well. It includes the small ignored files.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from msgspec.structs import replace

from perdure.agents.transcripts import locate, snapshot
from perdure.engine import checkpoints
from perdure.engine.attempt import Engine
from perdure.engine.plans.starts import workdir_locked
from perdure.model import SessionKey, TaskRun
from perdure.protocols import AgentDriver, SessionStore
from perdure.rules.plan import PlannedRun, PlanRun, TaskEnd
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
    return task == order(plan.plan)[-1].name or any(
        strand.files_of == task for strand in plan.strands.values()
    )


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
