"""A database that fails while an attempt begins. After a temporary failure the attempt is repeated
automatically; a permanent failure needs a person.

The failure is a trigger in the supervisor's own connection, so exactly one real statement of one
real attempt fails.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

import perdure
from perdure.engine.attempt import perform, take_over
from perdure.engine.worker import drive, work
from perdure.errors import StoreError
from perdure.model import Claim, OutcomeKind, RunState, TaskRun, TaskSpec
from tests.journeys.stage import Stage

MakeStage = Callable[..., Stage]

pytestmark = pytest.mark.journey

SCRIPT = """by history
run echo one > one.txt
---
say It is done.
"""


@pytest.fixture
def agent() -> str:
    """Return any agent, because the failure comes before an agent starts."""
    return "claude"


def fails(runner: perdure.Runner, how: str) -> None:
    """Make every later attempt to store a conversation fail."""
    with runner._engine.store._database.writing() as (cursor, _):  # type: ignore[attr-defined]
        cursor.execute(
            f"CREATE TEMP TRIGGER trouble BEFORE INSERT ON main.sessions BEGIN SELECT {how}; END"
        )


def begun(runner: perdure.Runner, one: Stage) -> Claim:
    spec = TaskSpec(
        prompt="Write one.txt.",
        agent="claude",
        repo=str(one.repo),
        permissions="full",
        attempts=1,
        name="task",
    )
    run = runner.submit(spec)
    claim = runner._engine.store.claim("here:00000000:1:1", 60.0, ref=run.id)
    assert claim is not None
    return claim


def ended(runner: perdure.Runner, run: TaskRun) -> list[OutcomeKind]:
    return [
        attempt.outcome.kind for attempt in runner._engine.store.attempts(run.id) if attempt.outcome
    ]


def test_a_database_that_fails_for_a_moment_is_tried_again(stage: MakeStage) -> None:
    """The attempt ends as overloaded, uses up no allowed attempt, and is queued for later. Then the
    task succeeds without a person."""
    one = stage(SCRIPT)
    with perdure.open(one.repo, one.environ) as runner:
        runner._engine.store._database.connection.create_function("explode", 0, lambda: 1 // 0)  # type: ignore[attr-defined]
        claim = begun(runner, one)
        fails(runner, "explode()")
        run = perform(runner._engine, claim)
        assert (run.state, run.conditions, ended(runner, run)) == (
            RunState.QUEUED,
            (),
            [OutcomeKind.OVERLOADED],
        ), run.reason
        assert run.run_after > runner._engine.store.now() and "cannot be used" in run.reason
        assert len(one.rehearsal.requests) == 0
        runner._engine.store._database.connection.execute("DROP TRIGGER trouble")  # type: ignore[attr-defined]
        runner._engine.store.requeue(run.id, "now")
        done = drive(runner._engine, run.id)
        assert (done.state, ended(runner, done)) == (
            RunState.SUCCEEDED,
            [OutcomeKind.OVERLOADED, OutcomeKind.SUCCEEDED],
        ), done.reason
    one.nothing_survives()


def test_restarts_before_the_agents_start_use_up_no_attempt(stage: MakeStage) -> None:
    """Four supervisors die before they have started the agent. They leave the one allowed attempt,
    and the fifth supervisor uses it."""
    one = stage(SCRIPT)
    with perdure.open(one.repo, one.environ) as runner:
        run = begun(runner, one).run
        for _ in range(4):
            (claim,) = runner._engine.store.claims()
            left = take_over(runner._engine, claim)
            assert (left.state, left.reason) == (
                RunState.QUEUED,
                "lost: perdure was ended before it had started the agent",
            )
            runner._engine.store.requeue(run.id, "now")
            assert runner._engine.store.claim("here:00000000:1:1", 60.0, ref=run.id) is not None
        (claim,) = runner._engine.store.claims()
        take_over(runner._engine, claim)
        runner._engine.store.requeue(run.id, "now")
        done = drive(runner._engine, run.id)
        assert (done.state, ended(runner, done)) == (
            RunState.SUCCEEDED,
            [OutcomeKind.LOST] * 5 + [OutcomeKind.SUCCEEDED],
        ), done.reason
    one.nothing_survives()


def test_a_pool_that_serves_waits_for_its_database(
    stage: MakeStage, capsys: pytest.CaptureFixture[str]
) -> None:
    """A serving pool that cannot claim anything says so once, and works again when it can. A pool
    that a person started ends with that sentence."""
    one = stage(SCRIPT)
    with perdure.open(one.repo, one.environ) as runner:
        connection = runner._engine.store._database.connection  # type: ignore[attr-defined]
        tries = itertools.count(1)
        connection.create_function("explode", 0, lambda: 1 // (next(tries) // 4))
        connection.execute(
            "CREATE TEMP TRIGGER trouble BEFORE INSERT ON main.attempts BEGIN SELECT explode(); END"
        )
        run = runner.submit(
            TaskSpec(
                prompt="Write one.txt.",
                agent="claude",
                repo=str(one.repo),
                permissions="full",
                name="task",
            )
        )
        with pytest.raises(StoreError):
            work(runner._engine, 1, once=True)
        over = lambda: runner._engine.store.get(run.id).state is RunState.SUCCEEDED  # noqa: E731
        assert work(runner._engine, 1, draining=over, patient=True, nap_s=0.05) == 1
        assert ended(runner, run) == [OutcomeKind.SUCCEEDED]
    assert capsys.readouterr().err.count("cannot be used") == 1
    one.nothing_survives()


def test_a_database_that_time_does_not_mend_asks_for_a_person(stage: MakeStage) -> None:
    """A change that violates a constraint of the database would violate it again on a retry. So the
    run fails without a retry, and a person is needed."""
    one = stage(SCRIPT)
    with perdure.open(one.repo, one.environ) as runner:
        claim = begun(runner, one)
        fails(runner, "RAISE(ABORT, 'not like this')")
        run = perform(runner._engine, claim)
        assert (run.state, ended(runner, run)) == (RunState.FAILED, [OutcomeKind.CONFIG_ERROR]), (
            run.reason
        )
        assert [condition.type for condition in run.conditions] == [
            "needs_person"
        ] and "not like this" in run.reason
