"""Performs the attempt of one pod: follows its order with the same engine as at a terminal, and
reports how the attempt ended. Called by `perdure work --run`.

The operator numbers the attempts, and the run's own record must use the same numbers. Attempts that
never reached this record are therefore claimed and closed here with the outcome that the operator
knows. An attempt that the record shows as running is taken over first: its pod is gone, because
this pod has the volume, or the term in the checkpoint store (see `pod_state`). If this attempt was
already begun here, it is not begun again, and its outcome is reported.
"""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from pathlib import Path

from msgspec.structs import replace

from perdure.engine import service
from perdure.engine.attempt import Engine, perform, take_over
from perdure.engine.attempt.finish import close_unopened
from perdure.errors import Conflict, GitFailed, LostLease, PerdureError, StoreAway, StoreError
from perdure.host.homes import durable
from perdure.kubernetes import pod_state
from perdure.kubernetes.order import Earlier, Order, missing
from perdure.kubernetes.result import AttemptResult
from perdure.kubernetes.termination import result_of
from perdure.model import Claim, Outcome, OutcomeKind, RunState, TaskRun
from perdure.protocols import RunStore
from perdure.workspace.task_files import FileRequest

LOCK = "pod.lock"
"""Lock file in the state directory, held while a pod works with it."""
GONE = "(This version of the instructions is gone.)"
"""Text in place of a version of the instructions that neither the cluster nor the run has any more.
It keeps the numbers of later versions correct."""
UNBEGUN = "its pod was asked to end before the attempt had started"


def follow(
    engine: Engine,
    order: Order,
    texts: Sequence[str | None],
    variables: Sequence[str] = (),
    files: Path | None = None,
) -> AttemptResult:
    """Perform the order's attempt, unless it was performed already. Return its result.

    `texts` are the texts of its contexts. None stands for a missing text; this is an error only if
    the run does not have it either. `variables` are the names of additional variables for the
    agent, and `files` is the directory with the contents of its task files.

    Never raises a PerdureError or an OSError: perdure's own trouble becomes an outcome.
    """
    engine.state.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        with durable.lock(engine.state / LOCK, "another pod uses this state"):
            every = (*(GONE,) * order.unlisted, *texts)
            return _follow(engine, order, every, variables, _asked(order, files))
    except (PerdureError, OSError) as error:
        return AttemptResult(attempt=order.attempt, outcome=outcome_of(error, engine))


def outcome_of(error: Exception, engine: Engine | None = None) -> Outcome:
    """Return an error from before an attempt as an outcome: a temporary problem, a conflict with
    another writer, or a problem for a person.

    For an unexpected error only its type and place are reported, because its message may contain
    anything.
    """
    if not isinstance(error, PerdureError | OSError):
        frames = traceback.extract_tb(error.__traceback__)
        if frames:
            where = f" in {Path(frames[-1].filename).name}, line {frames[-1].lineno}"
        else:
            where = ""
        return Outcome(
            kind=OutcomeKind.FAILED,
            detail=f"perdure itself failed: {type(error).__name__}{where}; the pod's log has more",
        )
    kind = OutcomeKind.CONFIG_ERROR
    if isinstance(error, Conflict):
        kind = OutcomeKind.WRITER_CONFLICT
    elif isinstance(error, StoreAway) or (
        isinstance(error, GitFailed | StoreError) and error.transient
    ):
        kind = OutcomeKind.OVERLOADED
    hint = getattr(error, "hint", "")
    advice = f" ({hint})" if hint else ""
    detail = f"{str(error).rstrip('.')}{advice}"
    return Outcome(
        kind=kind,
        detail=engine.redactor.text(detail) if engine is not None else detail,
        began=False,
    )


def _follow(
    engine: Engine,
    order: Order,
    texts: Sequence[str | None],
    variables: Sequence[str],
    files: FileRequest | None,
) -> AttemptResult:
    for claim in engine.store.claims():
        _taken_over(engine, claim)
    run = pod_state.known(engine.store, order.run_id)
    spec = pod_state.spec_of(order, texts[0] or "", variables)
    if run is None and order.checkpoints:
        run = pod_state.brought(engine, order, spec)
    if run is None:
        if texts[0] is None:
            missing(order.contexts[0])
        first = service.take_files(engine.state, files if len(texts) == 1 else None)
        run = pod_state.added(engine, order, spec, first)
    if run.attempt < order.attempt:
        run = _as_ordered(engine.store, run, order, variables)
        run = _instructed(engine, run, order, texts, files)
        run = _counted(engine, run, order)
        if engine.stopping():
            return AttemptResult(
                attempt=order.attempt,
                outcome=Outcome(kind=OutcomeKind.LOST, detail=UNBEGUN, began=False),
            )
        run = perform(engine, _claimed(engine, run))
    return result_of(engine, order, run)


def _taken_over(engine: Engine, claim: Claim) -> None:
    """End an attempt whose pod is gone. If its files are gone too, its record is closed anyway."""
    try:
        take_over(engine, claim)
    except LostLease:
        raise
    except (PerdureError, OSError) as error:
        detail = f"its pod is gone, and its state cannot be read: {error}"
        close_unopened(
            engine,
            replace(claim, worker=engine.worker),
            Outcome(kind=OutcomeKind.LOST, detail=detail),
        )


def _as_ordered(store: RunStore, run: TaskRun, order: Order, variables: Sequence[str]) -> TaskRun:
    """Return the run with the order's spec. The prompt, the scope of the conversation, the number
    of attempts, and the starting point of a fork stay as they are."""
    spec = pod_state.spec_of(order, run.spec.prompt, variables)
    was = run.spec
    spec = replace(spec, scope=was.scope, attempts=was.attempts)
    if was.forks:
        spec = replace(
            spec, forks=was.forks, fork_at=was.fork_at, base=was.base, backend=was.backend
        )
    if spec == run.spec:
        return run
    return store.reassign(run.id, spec)


def _asked(order: Order, files: Path | None) -> FileRequest | None:
    """Return the request for the task files that came with the order; None if there are none."""
    if not order.files or files is None:
        return None
    named = tuple(f"{number}={name}" for number, name in enumerate(order.files))
    return FileRequest(cwd=files, files=named, on_edit=order.on_edit, whole=True)


def _instructed(
    engine: Engine,
    run: TaskRun,
    order: Order,
    texts: Sequence[str | None],
    files: FileRequest | None,
) -> TaskRun:
    """Return the run with every version of the instructions, and the newest with its task files.
    Raises UsageError if one is missing, and Conflict if the order is older than what the run
    knows."""
    if run.context_version > len(texts):
        raise Conflict(
            f"the order of this attempt is outdated: its instructions end with version "
            f"{len(texts)}, and {run.name} has version {run.context_version}",
            "a newer order was already executed",
        )
    limit = engine.driver(run.spec.agent).abilities.max_prompt_bytes
    for place, text in list(enumerate(texts))[run.context_version :]:
        if text is None:
            missing(order.contexts[place - order.unlisted])
        service.check_prompt(text, limit)
        newest = place == len(texts) - 1
        given = service.take_files(engine.state, files if newest else None)
        run = engine.store.update(run.id, text, given)
    return run


def _counted(engine: Engine, run: TaskRun, order: Order) -> TaskRun:
    """Return the run with all attempts before the order's. Those that this record does not have are
    closed with the outcome that the operator reports."""
    told = {each.number: each for each in order.earlier}
    while run.attempt < order.attempt - 1:
        claim = _claimed(engine, run)
        run = close_unopened(engine, claim, _unseen(told.get(claim.attempt)))
    return run


def _unseen(was: Earlier | None) -> Outcome:
    """Return the outcome to store for an attempt that this record does not have. Its work is not
    here, even if it succeeded."""
    lost = was is None or was.outcome in (OutcomeKind.SUCCEEDED, OutcomeKind.CANCELLED)
    kind = OutcomeKind.LOST if was is None or lost else was.outcome
    if was is not None and lost:
        words = f"{was.outcome}: {was.detail}"
    elif was is not None:
        words = was.detail
    else:
        words = ""
    return Outcome(
        kind=kind,
        detail=(f"{words or 'its pod is gone'}; nothing of it was saved for its next attempt"),
    )


def _claimed(engine: Engine, run: TaskRun) -> Claim:
    """Claim the run's next attempt, regardless of the run's state in this record, because the
    operator decides. Raises Conflict."""
    if run.state is not RunState.QUEUED or run.run_after > engine.store.now():
        run = engine.store.requeue(run.id, f"the operator orders attempt {run.attempt + 1}")
    claim = engine.store.claim(engine.worker, engine.lease_s, ref=run.id)
    if claim is None:
        raise Conflict(
            f"{run.name} cannot start: its workdir or its conversation is in use",
            "perdure ls, with PERDURE_STATE set to the state on the volume",
        )
    return claim
