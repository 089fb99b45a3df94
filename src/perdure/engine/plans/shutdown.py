"""Where a task that succeeded left its workdir and conversation: kept once, so that others can
begin there while this strand goes on.

What the agent left uncommitted is committed by perdure in the agent's name on the strand's branch,
because only commits can be merged and forked without a copy of everything. Where another workdir
grows from it, and at the end of the plan, a checkpoint of both halves is taken then, which has the
small ignored files as well.
"""

from __future__ import annotations

from dataclasses import replace

from perdure.agents.transcripts import locate, snapshot
from perdure.engine import checkpoints
from perdure.engine.attempt import Engine
from perdure.engine.plans.starts import held
from perdure.model import SessionKey, TaskRun
from perdure.rules.plan import PlannedRun, PlanRun, TaskEnd
from perdure.rules.plan.conversations import order

FILES = 200


def keep_end(engine: Engine, plan: PlanRun, planned: PlannedRun, run: TaskRun) -> TaskEnd:
    """Commits, takes the checkpoint and stores both. Done again after a kill. Raises
    PerdureError."""
    assert run.workspace is not None
    first = run.spec.prompt.strip().partition("\n")[0][:72]
    text = (
        f"{planned.task}: {first}\n\nLeft uncommitted by the agent at the end of the task "
        f"{planned.task} of the plan {plan.name}.\n"
    )
    with held(
        engine, run.workspace, f"perdure plan {plan.name}: end of {planned.task}", looks=True
    ):
        commit = engine.workspaces.commit(run.workspace, run.spec.agent, text)
        kept = (
            checkpoints.keep(engine, run, run.workspace, "end")
            if _is_grown_from(plan, planned.task)
            else None
        )
        session_id, turns = _conversation(engine, run)
        files = (
            engine.workspaces.changed(run.workspace, planned.began, commit, FILES)
            if planned.began
            else ()
        )
    end = TaskEnd(
        files=files,
        commit=commit,
        checkpoint=kept.number if kept is not None else 0,
        session_id=session_id,
        turns=turns,
    )
    engine.store.put_planned(plan, replace(planned, end=end))
    return end


def _is_grown_from(plan: PlanRun, task: str) -> bool:
    """Whether another workdir begins with this task's files, or the plan ends with it: a person's
    update then finds nothing moved."""
    return task == order(plan.plan)[-1].name or any(
        strand.files_of == task for strand in plan.strands.values()
    )


def _conversation(engine: Engine, run: TaskRun) -> tuple[str, int]:
    """The run's conversation and how many turns it has now."""
    session = engine.store.session(SessionKey(run.spec.agent, run.scope))
    if session is None:
        return "", 0
    driver = engine.driver(run.spec.agent)
    home = driver.home({**engine.environ, **run.spec.env})
    found = (
        snapshot(driver, locate(driver, home, session.id, engine.state / "runs" / run.id / "end"))
        or session.snapshot
    )
    return session.id, found.turns if found is not None else 0
