"""Performs the attempt that a pod's order describes, and reports how it ended. Uses the same engine
as the command line. Called by `perdure work --run`.

The operator numbers the attempts, and the run's record in the pod's database must use the same
numbers. Before the pod performs its attempt, it therefore brings this record up to date:

- An attempt that the record shows as running is taken over. The pod of that attempt cannot be
  working any more, because this pod now has the volume, or the newest term in the checkpoint store
  (see `pod_state`).
- An earlier attempt that is missing from the record is added and closed, with the outcome that the
  operator reports.

If the record shows that the ordered attempt itself has already begun, it is not begun again. Only
its outcome is reported.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from msgspec.structs import replace

from perdure.engine import service
from perdure.engine.attempt import Engine, perform, take_over
from perdure.engine.attempt.engine import EngineStore
from perdure.engine.attempt.finish import close_unopened
from perdure.errors import (
    Conflict,
    GitFailed,
    LostLease,
    PerdureError,
    StoreAway,
    StoreError,
    UsageError,
)
from perdure.host.homes import durable
from perdure.kubernetes import pod_state
from perdure.kubernetes.order import AnswerOrder, Earlier, Order, missing
from perdure.kubernetes.requests import GRACE_S
from perdure.kubernetes.result import AttemptResult
from perdure.kubernetes.termination import result_of
from perdure.model import Claim, Outcome, OutcomeKind, RunState, TaskRun
from perdure.model.requests import AgentRequest, AnswerKind, RequestState
from perdure.protocols import AgentDriver, RunStore
from perdure.rules.requests import short_id
from perdure.rules.text import write_stderr
from perdure.workspace.task_files import FileRequest

LOCK = "pod.lock"
"""Lock file in the state directory. A pod holds it as long as it uses that directory."""
GONE = "(This version of the instructions is gone.)"
"""Placeholder text for a version of the instructions that no longer exists in the cluster. It keeps
the numbers of later versions correct."""
NOT_SHOWN = "nobody was shown this call yet: make it again, alone, if it is still needed"
"""Reason that the agent gets for the refusal of a call that no person saw, because the attempt's
result had no room for the call."""
UNBEGUN = "its pod was asked to end before the attempt had started"


def perform_order(
    engine: Engine,
    order: Order,
    texts: Sequence[str | None],
    variables: Sequence[str] = (),
    files: Path | None = None,
) -> AttemptResult:
    """Perform the attempt of the order, unless the pod's database shows that the attempt was
    performed already. Return the attempt's result.

    `texts` are the texts of the order's instructions. None stands for a missing text, which is an
    error only if the run lacks it too. `variables` are the names of additional environment
    variables for the agent. `files` is the directory with the contents of the task files.

    A PerdureError or OSError in the attempt is not raised. It becomes the outcome of the attempt.
    """
    if order.request_expiry_s:
        engine = replace(engine, request_expiry_s=order.request_expiry_s + GRACE_S)
    engine.state.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        with durable.lock(engine.state / LOCK, "another pod uses this state"):
            every = (*(GONE,) * order.unlisted, *texts)
            return _perform_order(engine, order, every, variables, _asked(order, files))
    except (PerdureError, OSError) as error:
        return AttemptResult(attempt=order.attempt, outcome=outcome_of(error, engine))


def outcome_of(error: Exception, engine: Engine | None = None) -> Outcome:
    """Convert an error from before the attempt's start to an outcome: a temporary problem, a
    conflict with another writer, or a problem that a person must solve.

    For an unexpected error only its type and location are reported, because its message may contain
    anything, even secrets.
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


def _perform_order(
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
        run = pod_state.downloaded(engine, order, spec)
    if run is None:
        if texts[0] is None:
            missing(order.contexts[0])
        first = service.take_files(engine.state, files if len(texts) == 1 else None)
        run = pod_state.added(engine, order, spec, first)
    if run.attempt < order.attempt:
        _answer_requests(engine, run, order)
        run = engine.store.get(run.id)
        run = _as_ordered(engine.store, run, order, variables)
        run = _instructed(engine.store, engine.driver, engine.state, run, order, texts, files)
        run = _with_earlier_attempts(engine, run, order)
        if engine.stopping():
            return AttemptResult(
                attempt=order.attempt,
                outcome=Outcome(kind=OutcomeKind.LOST, detail=UNBEGUN, began=False),
            )
        run = perform(engine, _claimed(engine.store, engine.worker, engine.lease_s, run))
    return result_of(
        engine.store,
        engine.workspaces,
        engine.publisher,
        engine.redactor,
        engine.stopping,
        order,
        run,
    )


def _taken_over(engine: Engine, claim: Claim) -> None:
    """End an attempt whose pod is gone. If the files that the attempt left are unreadable, only
    close its record."""
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


def _answer_requests(engine: Engine, run: TaskRun, order: Order) -> None:
    """Record the answers of the order for the run's open requests. An answer is ignored if its
    request is no longer open or was for another call. If at least one answer fits, the open
    requests without an answer are denied; the agent may ask again."""
    given = {each.number: each for each in order.answers}
    opened = [each for each in engine.store.requests(run.id) if each.state is RequestState.OPEN]
    fits = [each for each in opened if _is_meant(given.get(each.number), each)]
    for request in opened if fits else ():
        if request in fits:
            found = given[request.number]
            kind, words, by = found.answer, found.words, found.by
        else:
            kind, words, by = AnswerKind.DENY, NOT_SHOWN, ""
        try:
            service.answer(engine, run.id, request.number, kind, words, by)
        except (UsageError, Conflict) as error:
            write_stderr(f"perdure: request {request.number} is not answered: {error}")


def _is_meant(answer: AnswerOrder | None, request: AgentRequest) -> bool:
    return answer is not None and answer.id == short_id(request)


def _as_ordered(store: RunStore, run: TaskRun, order: Order, variables: Sequence[str]) -> TaskRun:
    """Return the run, changed to the spec of the order. The prompt, the scope of the conversation,
    the number of attempts, and the starting point of a fork stay as they are."""
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
    """Return a request for the task files of the order; None if the order has no files."""
    if not order.files or files is None:
        return None
    named = tuple(f"{number}={name}" for number, name in enumerate(order.files))
    return FileRequest(cwd=files, files=named, on_edit=order.on_edit, whole=True)


def _instructed(
    store: EngineStore,
    driver: Callable[[str], AgentDriver],
    state: Path,
    run: TaskRun,
    order: Order,
    texts: Sequence[str | None],
    files: FileRequest | None,
) -> TaskRun:
    """Add the instructions that the run lacks, and attach the task files to the newest version.
    Return the run. Raises UsageError if a needed text is missing, and Conflict if the run has newer
    instructions than the order."""
    if run.context_version > len(texts):
        raise Conflict(
            f"the order of this attempt is outdated: its instructions end with version "
            f"{len(texts)}, and {run.name} has version {run.context_version}",
            "a newer order was already executed",
        )
    limit = driver(run.spec.agent).abilities.max_prompt_bytes
    for place, text in list(enumerate(texts))[run.context_version :]:
        if text is None:
            missing(order.contexts[place - order.unlisted])
        service.check_prompt(text, limit)
        newest = place == len(texts) - 1
        given = service.take_files(state, files if newest else None)
        run = store.update(run.id, text, given)
    return run


def _with_earlier_attempts(engine: Engine, run: TaskRun, order: Order) -> TaskRun:
    """Return the run with records of all attempts before the order's attempt. A missing record is
    created and closed with the outcome that the operator reports."""
    earlier = {each.number: each for each in order.earlier}
    while run.attempt < order.attempt - 1:
        claim = _claimed(engine.store, engine.worker, engine.lease_s, run)
        run = close_unopened(engine, claim, _outcome_of_missing(earlier.get(claim.attempt)))
    return run


def _outcome_of_missing(was: Earlier | None) -> Outcome:
    """Return the outcome to store for an earlier attempt that is missing in the pod's database.
    `was` is the attempt as the operator recorded it; None if the operator did not report it. The
    attempt's work is missing in this pod too, so even a success is stored as `lost`."""
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


def _claimed(store: RunStore, worker: str, lease_s: float, run: TaskRun) -> Claim:
    """Claim the run's next attempt, and return the claim. If the run is not due according to the
    pod's database, queue it first, because only the operator decides when an attempt starts. Raises
    Conflict if the workdir or the conversation is in use."""
    if run.state is not RunState.QUEUED or run.run_after > store.now():
        run = store.requeue(run.id, f"the operator orders attempt {run.attempt + 1}")
    claim = store.claim(worker, lease_s, ref=run.id)
    if claim is None:
        raise Conflict(
            f"{run.name} cannot start: its workdir or its conversation is in use",
            "perdure ls, with PERDURE_STATE set to the state on the volume",
        )
    return claim
