"""Statements on requests within a transaction. Called by `fence`, `sql`, `retention` and `answers`.

A request is stored at the end of the attempt that made it. It is given, with its answer, to the
next attempt. If the run continues or ends without an answer, it is superseded.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from perdure.errors import LostLease
from perdure.model import RunState, TaskRun
from perdure.model.requests import AgentRequest, RequestState
from perdure.rules.requests import WAITING
from perdure.store.rows import noun_of
from perdure.store.transaction import Write


def of_run(write: Write, run_id: str) -> list[AgentRequest]:
    """Return the requests of a run, oldest first."""
    return [noun_of(row["body"], AgentRequest) for row in write.all("requests", run=run_id)]


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
    events: list[AnyEvent] = [
        RequestMade(number=each.number, request=each.kind.value, tool=each.tool)
        for each in requests
    ]
    events += [
        RequestAnswered(
            number=each.number,
            answer=str(each.answer),
            by=each.by,
            words=each.words,
            rule=each.rule,
        )
        for each in requests
        if each.state is RequestState.ANSWERED
    ]
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
    record gets the default answer here. Raises LostLease if a stored request was changed in the
    meantime."""
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
            state = RequestState.SUPERSEDED
        else:
            state = each.state
        put(write, replace(each, given=attempt, state=state), was)
        event = RequestGiven(number=each.number, answer=str(each.answer), parked=each.parked)
        write.note(each.run, attempt, [event])


def release(write: Write, run: TaskRun, why: str) -> None:
    """Supersede the requests of a run that are open, and those whose answer was not given to an
    attempt. If the run waits for an answer, make it due."""
    from perdure.model.codec import encode

    supersede(write, run.id, why, answered=True)
    if run.state is RunState.QUEUED and any(each.type == WAITING for each in run.conditions):
        kept = tuple(each for each in run.conditions if each.type != WAITING)
        write.do("answered_run", id=run.id, conditions=encode(kept), reason=why, now=write.now)


def supersede(write: Write, run_id: str, why: str, *, answered: bool = False) -> None:
    """Mark the open requests of a run as superseded, because its agent will not get an answer. If
    `answered` is true, also mark requests whose answer was not given to an attempt."""
    from perdure.model.events import RequestSuperseded

    for each in of_run(write, run_id):
        unused = answered and each.state is RequestState.ANSWERED and not each.given
        if each.state is not RequestState.OPEN and not unused:
            continue
        closed = replace(each, state=RequestState.SUPERSEDED, words=why)
        if put(write, closed, each.state):
            write.note(run_id, 0, [RequestSuperseded(number=each.number, reason=why)])
