"""Runs one attempt, from preparing the workdir to storing the outcome. Called by `worker` and, on a
Kubernetes cluster, by `kubernetes.pod`.

`perform` runs a claimed attempt. `take_over` continues an attempt whose supervisor died, whether or
not its agent is still alive. Unless the lease is lost, each call of either function ends with one
call of the store's `finish`, which stores exactly one outcome, one receipt and one decision.

The steps, by module:

- `opening_steps` starts the attempt, with `start_facts` (how) and `preparation` (files and prompt).
- `heartbeat` renews the lease.
- `supervision` turns output lines into events, enforces deadlines and detects collisions.
- `event_totals` sums up the events.
- `checkpoints` saves workdir and conversation together.
- `verification` runs the task's own check.
- `finish` gathers the evidence, makes the receipt and decides how the run continues.
"""

from __future__ import annotations

from perdure.engine.attempt.accounts import account_slot, wait_for
from perdure.engine.attempt.accounts import parking_keys as what_may_be_parked
from perdure.engine.attempt.checkpoints import Checkpointing, forget
from perdure.engine.attempt.engine import Engine
from perdure.engine.attempt.live_attempt import LiveAttempt
from perdure.engine.attempt.opening_steps import open_attempt, reopen_attempt
from perdure.engine.attempt.start_facts import NotStarted
from perdure.errors import Conflict, GitFailed, LostLease, PerdureError, StoreError
from perdure.model import Claim, Outcome, OutcomeKind, TaskRun
from perdure.rules.text import write_stderr

__all__ = [
    "Engine",
    "account_slot",
    "forget_checkpoints",
    "perform",
    "take_over",
    "wait_for",
    "what_may_be_parked",
]

forget_checkpoints = forget


def perform(engine: Engine, claim: Claim) -> TaskRun:
    """Perform the claimed attempt and return the run in its new state.

    If an error of perdure itself (a full disk, a workdir that cannot be created) prevents the start
    of the agent, the error becomes the attempt's outcome, with its message. Raises LostLease.
    """
    with engine.heartbeat(claim).beating():
        begun = _open_and_launch(engine, claim)
        # The modules that follow and close an attempt are imported late, so that they do not delay
        # the start of its agent.
        if isinstance(begun, LiveAttempt):
            return _follow(engine, begun)
        from perdure.engine.attempt.finish import close_unopened

        return close_unopened(engine, claim, begun)


def _open_and_launch(engine: Engine, claim: Claim) -> LiveAttempt | Outcome:
    """Return the attempt with its agent started, or the outcome if the agent was not started."""
    try:
        return open_attempt(engine, claim)
    except LostLease:
        raise
    except NotStarted as stop:
        return stop.outcome
    except Conflict as busy:
        # A restore, a fork, a reset or a person's git command briefly holds the workdir's lock. No
        # agent was started, so the attempt does not count as a try.
        return Outcome(kind=OutcomeKind.WRITER_CONFLICT, detail=str(busy))
    except (GitFailed, StoreError) as error:
        if error.transient:
            return Outcome(kind=OutcomeKind.OVERLOADED, detail=str(error))
        return _refused(error)
    except PerdureError as error:
        return _refused(error)
    except OSError as error:
        return Outcome(kind=OutcomeKind.CONFIG_ERROR, detail=str(error))


def _refused(error: PerdureError) -> Outcome:
    """Return the outcome for an error. Its detail includes the error's hint, because a person may
    read the outcome long after the error."""
    hint = f". {error.hint}" if error.hint else ""
    return Outcome(kind=OutcomeKind.CONFIG_ERROR, detail=f"{str(error).rstrip('.')}{hint}")


def take_over(engine: Engine, claim: Claim) -> TaskRun:
    """Continue an attempt whose supervisor died. If its agent is alive, follow the agent; otherwise
    record how the agent ended. Return the run in its new state.

    Raises LostLease if another supervisor took the attempt over first.
    """
    from perdure.engine.attempt.finish import close_unopened

    claim = engine.store.adopt(claim, engine.worker, engine.lease_s)
    if engine.host.elsewhere(claim.run):
        detail = f"{claim.run.host_name}, where it ran, stopped responding"
        return close_unopened(engine, claim, Outcome(kind=OutcomeKind.LOST, detail=detail))
    with engine.heartbeat(claim).beating():
        opened = reopen_attempt(engine.store, engine.driver, engine.environ, claim)
        if opened is not None:
            return _follow(engine, opened)
        from perdure.engine.attempt.rollover import end_orphaned_summary

        driver = engine.driver(claim.run.spec.agent)
        used = end_orphaned_summary(driver, engine.attempt_directory(claim))
        detail = "perdure was ended before it had started the agent"
        return close_unopened(engine, claim, Outcome(kind=OutcomeKind.LOST, detail=detail), used)


def _follow(engine: Engine, opened: LiveAttempt) -> TaskRun:
    from perdure.engine.attempt.finish import close
    from perdure.engine.attempt.supervision import watch

    with opened:
        checkpoints = Checkpointing(engine, opened)
        run = close(engine, opened, watch(engine, opened, checkpoints), checkpoints)
    if engine.publisher is not None and (trouble := engine.publisher.settle(run.id)):
        write_stderr(
            f"perdure: {run.name} was not uploaded to the checkpoint store: "
            f"{engine.redactor.text(trouble)}"
        )
    return run
