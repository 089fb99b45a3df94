"""Statements on requests within a transaction. Called by `fence`, `sql`, `writes` and `answers`.

A request is stored at the end of the attempt that made it. It is given, with its answer, to the
next attempt. If the run continues or ends without an answer, it is superseded. An answer is also
superseded if it could still reach a later attempt and something else happened to the run first.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from perdure.errors import LostLease
from perdure.model import Attempt, Condition, RunState, TaskRun
from perdure.model.requests import AgentRequest, AnswerKind, RequestState
from perdure.rules.requests import WAITING, unsettled_attempt
from perdure.store.rows import nouns_of
from perdure.store.transaction import Write

NO_ANSWER: frozenset[AnswerKind] = frozenset()
EVERY_ANSWER = frozenset(AnswerKind)


def of_run(write: Write, run_id: str) -> list[AgentRequest]:
    """Return the requests of a run, oldest first."""
    return nouns_of(write.all("requests", run=run_id), AgentRequest)


def other_conditions(run: TaskRun, type: str) -> tuple[Condition, ...]:
    """Return the conditions of the run without those of this type."""
    return tuple(each for each in run.conditions if each.type != type)


def add(write: Write, attempt: int, requests: Sequence[AgentRequest]) -> None:
    """Store the new requests of an attempt, and record them in the journal."""
    from perdure.model.codec import encode
    from perdure.model.events import AnyEvent, RequestAnswered, RequestMade

    for each in requests:
        write.do(
            "add_request",
            run=each.run,
            number=each.number,
            state=each.state.value,
            expires=each.expires,
            body=encode(each),
        )
    events: list[AnyEvent] = []
    for each in requests:
        events.append(RequestMade(number=each.number, request=each.kind.value, tool=each.tool))
    for each in requests:
        if each.state is RequestState.ANSWERED:
            events.append(
                RequestAnswered(
                    number=each.number,
                    answer=str(each.answer),
                    by=each.by,
                    words=each.words,
                    rule=each.rule,
                )
            )
    if events:
        write.note(requests[0].run, attempt, events)


def put(write: Write, request: AgentRequest, was: RequestState) -> bool:
    """Replace the stored request, but only if its stored state is still `was`. Return whether it
    was replaced."""
    from perdure.model.codec import encode

    row = write.one(
        "put_request",
        run=request.run,
        number=request.number,
        state=request.state.value,
        was=was.value,
        body=encode(request),
    )
    return row is not None


def give(write: Write, requests: Sequence[AgentRequest], attempt: int) -> None:
    """Store that an attempt gets the answers in these requests. If a request expired, its stored
    record gets the default answer here. If it was superseded, its stored record keeps the answer of
    the person. Raises LostLease if a stored request was changed in the meantime."""
    from perdure.model.events import RequestGiven

    if requests:
        known = {each.number: each for each in of_run(write, requests[0].run)}
    else:
        known = {}
    for each in requests:
        was = known[each.number].state
        if was is not each.state and was is not RequestState.OPEN:
            raise LostLease(
                f"Request {each.number} was changed in the meantime", "perdure requests"
            )
        if was is RequestState.SUPERSEDED:
            put(write, replace(known[each.number], given=attempt), was)
        else:
            put(write, replace(each, given=attempt), was)
        event = RequestGiven(number=each.number, answer=str(each.answer), parked=each.parked)
        write.note(each.run, attempt, [event])


def release(write: Write, run: TaskRun, why: str) -> None:
    """Supersede the requests of a run that are open, and those whose answer could still reach a
    later attempt. If the run waits for an answer, make it due."""
    from perdure.model.codec import encode

    supersede(write, run.id, why, answers=EVERY_ANSWER)
    kept = other_conditions(run, WAITING)
    if run.state is RunState.QUEUED and kept != run.conditions:
        write.do("answered_run", id=run.id, conditions=encode(kept), reason=why, now=write.now)


def supersede(
    write: Write, run_id: str, why: str, *, answers: frozenset[AnswerKind] = NO_ANSWER
) -> None:
    """Mark the open requests of a run as superseded, because its agent will not get an answer. Also
    mark the requests with one of these `answers`, if the answer could still reach a later
    attempt."""
    from perdure.model.events import RequestSuperseded

    requests = of_run(write, run_id)
    previous = 0
    if any(each.given for each in requests):
        rows = write.all("attempts", run=run_id)
        previous = unsettled_attempt(nouns_of(rows, Attempt))
    for each in requests:
        canceled = each.answer in answers and _could_be_given(each, previous)
        if each.state is RequestState.OPEN or canceled:
            closed = replace(each, state=RequestState.SUPERSEDED, words=why)
            if put(write, closed, each.state):
                write.note(run_id, 0, [RequestSuperseded(number=each.number, reason=why)])


def _could_be_given(request: AgentRequest, previous: int) -> bool:
    """Return whether the answer could still be given to an attempt. The next attempt also gets
    answers that the `previous` one may not have used. A refusal that an attempt got stays valid."""
    if request.state is not RequestState.ANSWERED:
        return False
    again = request.given == previous and request.answer is not AnswerKind.DENY
    return not request.given or again
