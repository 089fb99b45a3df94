"""Requests in SQL: `perdure.protocols.RequestStore`. If two answers to a request arrive at the same
moment, one is stored and the other raises Conflict."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from perdure.errors import Conflict, NotFound
from perdure.model import RunState, TaskRun
from perdure.model.requests import AgentRequest, AnswerKind, RequestState
from perdure.rules.requests import WAITING, expired, late
from perdure.store import requests as stored
from perdure.store.rows import noun_of, nouns_of, run_of
from perdure.store.writes import StoreWrites


class StoredRequests(StoreWrites):
    """Adds the methods of `RequestStore` to the store."""

    def requests(self, run_id: str) -> Sequence[AgentRequest]:
        return nouns_of(self._rows("requests", run=run_id), AgentRequest)

    def open_requests(self, limit: int = 1000) -> Sequence[AgentRequest]:
        now = self.now()
        found = nouns_of(self._rows("open_requests", limit=limit), AgentRequest)
        return [each for each in found if each.expires > now]

    def answer(
        self,
        run_id: str,
        number: int,
        answer: AnswerKind,
        words: str,
        by: str = "",
        *,
        via: str = "",
    ) -> tuple[TaskRun, AgentRequest]:
        from perdure.model.codec import encode
        from perdure.model.events import RequestAnswered, RunQueued

        with self._write() as write:
            run = run_of(write.named(run_id))
            # Lock the run's row before anything is read. Several answers may arrive at the same
            # time. The last one makes the run due, so it must see that all others are stored.
            write.do("touch_run", id=run.id, now=write.now)
            found = write.one("request", run=run.id, number=number)
            if found is None:
                raise NotFound(
                    f"{run.name} has no request {number}", f"perdure requests {run.name}"
                )
            request = expired(noun_of(found["body"], AgentRequest), write.now)
            if request.state is not RequestState.OPEN:
                raise Conflict(late(request), f"perdure requests {run.name}")
            request = replace(
                request,
                state=RequestState.ANSWERED,
                answer=answer,
                words=words,
                by=by or write.actor,
                via=via,
                answered=write.now,
            )
            if run.state is not RunState.QUEUED or not stored.put(
                write, request, RequestState.OPEN
            ):
                raise Conflict(
                    f"Request {number} of {run.name} is not open any more",
                    f"perdure requests {run.name}",
                )
            write.note(
                run.id,
                0,
                [RequestAnswered(number=number, answer=answer.value, by=request.by, words=words)],
            )
            states = [each.state for each in stored.of_run(write, run.id)]
            if RequestState.OPEN in states:
                return run, request
            reason = f"request {number} was answered"
            kept = stored.other_conditions(run, WAITING)
            row = write.one(
                "answered_run", id=run.id, conditions=encode(kept), reason=reason, now=write.now
            )
            write.note(run.id, 0, [RunQueued(reason=reason, run_after=write.now)])
            return run_of(row), request
