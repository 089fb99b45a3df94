"""Tests of requests, and of runs that a person has opened.

The requests of an agent are stored when its attempt ends. Each is answered once. A request without
an answer is superseded when its run continues or ends.

No attempt of an opened run starts until the run is taken back. The same holds for other runs that
share its workdir or its conversation.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from msgspec.structs import replace

from perdure.errors import Conflict, NotFound
from perdure.model import (
    Condition,
    Decision,
    OutcomeKind,
    RunState,
    SessionKey,
    SessionState,
    TaskRun,
    TaskSpec,
)
from perdure.model.events import CheckpointRestored, RunOpened, RunTakenBack
from perdure.model.requests import AgentRequest, AnswerKind, RequestKind, RequestState
from perdure.protocols import Ending
from perdure.rules.requests import digest
from perdure.testing.stores.samples import (
    AGAIN,
    FAILURE,
    LEASE_S,
    STOPPED,
    SUCCESS,
    Store,
    begun,
    claimed,
    ending,
    events_of,
    ids_of,
    numbers_of,
    session_of,
    submit,
)

HOUR = 3_600_000
CALL = '{"command": "make deploy"}'
RESTORED = CheckpointRestored(number=1, attempt=1, attempts=1)


def waiting(store: Store, count: int = 1, lasts_ms: int = HOUR, **changes: Any) -> TaskRun:
    """Return a run whose first attempt ended with `count` requests. `changes`: values for the
    requests' fields."""
    run = submit(store)
    claim = claimed(store, run)
    store.begin(claim, begun(run))
    now = store.now()
    requests = []
    for number in range(1, count + 1):
        request = AgentRequest(
            run=run.id,
            number=number,
            attempt=1,
            kind=RequestKind.APPROVAL,
            tool="Bash",
            call=f"call-{number}",
            summary="make deploy",
            payload=CALL,
            size=len(CALL),
            sha256="",
            parked=True,
            asked=now,
            expires=now + lasts_ms,
        )
        request = replace(request, **changes)
        sha256 = digest(request.tool, json.loads(request.payload))
        requests.append(replace(request, sha256=sha256))
    condition = Condition(type="needs_input", message="it asks", at=now)
    decision = Decision(
        state=RunState.QUEUED, run_after=now + lasts_ms, reason="it asks", condition=condition
    )
    end = ending(OutcomeKind.NEEDS_INPUT, RunState.QUEUED)
    return store.finish(claim, replace(end, decision=decision, requests=tuple(requests)))


def given(store: Store, answer: AnswerKind) -> TaskRun:
    """Return a run whose request was answered, and whose second attempt got the answer and was
    lost."""
    run = waiting(store)
    store.answer(run.id, 1, answer, "", "ada")
    claim = claimed(store, run)
    store.begin(claim, replace(begun(run), answers=tuple(store.requests(run.id))))
    return store.finish(claim, AGAIN)


def states(store: Store, run: TaskRun) -> list[RequestState]:
    return [each.state for each in store.requests(run.id)]


class RequestSuite:
    """Tests of `requests`, `open_requests`, `answer`, and of the operations that supersede a
    request."""

    def test_a_run_waits_until_its_last_request_is_answered(self, store: Store) -> None:
        """A run is not claimed before all of its requests are answered. The last answer makes it
        due immediately."""
        run = waiting(store, count=2)
        assert [each.type for each in run.conditions] == ["needs_input"]
        assert numbers_of(store.open_requests()) == [1, 2]
        assert store.claim("ann", 60.0) is None
        after, request = store.answer(run.id, 2, AnswerKind.DENY, "no", "ada")
        assert (request.state, request.by, request.words) == (RequestState.ANSWERED, "ada", "no")
        assert after.run_after > store.now() and store.claim("ann", 60.0) is None
        after, _ = store.answer(run.id, 1, AnswerKind.ALLOW, "", "bob")
        assert after.run_after <= store.now() and after.conditions == ()
        assert store.open_requests() == []
        assert claimed(store, run).attempt == 2

    def test_the_first_answer_counts(self, store: Store) -> None:
        """A second answer to a request is refused. The error says who gave the first answer. An
        unknown request raises NotFound."""
        run = waiting(store)
        store.answer(run.id, 1, AnswerKind.ALLOW, "", "ada")
        with pytest.raises(Conflict, match="answered already by ada: allow"):
            store.answer(run.id, 1, AnswerKind.DENY, "", "bob")
        with pytest.raises(NotFound):
            store.answer(run.id, 7, AnswerKind.ALLOW, "", "ada")
        assert store.requests(run.id)[0].by == "ada"

    def test_of_answers_at_the_same_moment_one_counts(self, store: Store) -> None:
        """If several answers arrive at the same moment, exactly one is accepted and stored."""
        run = waiting(store)

        def answer(person: int) -> str:
            try:
                return store.answer(run.id, 1, AnswerKind.TEXT, str(person), f"p{person}")[1].by
            except Conflict:
                return ""

        with ThreadPoolExecutor(6) as people:
            won = [by for by in people.map(answer, range(6)) if by]
        assert won == [store.requests(run.id)[0].by]

    def test_an_expired_request_takes_no_answer(self, store: Store) -> None:
        """A request that has expired cannot be answered. Its run becomes due without an answer."""
        run = waiting(store, lasts_ms=0)
        with pytest.raises(Conflict, match="has expired"):
            store.answer(run.id, 1, AnswerKind.ALLOW, "", "ada")
        assert store.open_requests() == []
        assert claimed(store, run).attempt == 2

    @pytest.mark.parametrize(
        ("happens", "keeps"),
        [
            (lambda store, run: store.update(run.id, "something else"), False),
            (lambda store, run: store.requeue(run.id, "retry"), True),
            (lambda store, run: store.request_cancel(run.id), False),
            (lambda store, run: store.reset([run.id], "start over"), False),
            (lambda store, run: store.restored(run.id, [], RESTORED), False),
        ],
        ids=["update", "retry", "stop", "reset", "restore"],
    )
    @pytest.mark.parametrize("answered", [False, True], ids=["open", "answered"])
    def test_what_happens_to_the_run_supersedes_its_requests(
        self, store: Store, happens: Callable[[Store, TaskRun], object], keeps: bool, answered: bool
    ) -> None:
        """After an update, retry, stop, reset or restore, the run has no open request and no longer
        waits. Later answers are refused. An approval that was not yet given to an attempt is kept
        only by a retry, which continues the same instructions in the same conversation."""
        run = waiting(store, count=2)
        if answered:
            store.answer(run.id, 1, AnswerKind.ALLOW, "", "ada")
        happens(store, run)
        assert RequestState.OPEN not in states(store, run)
        kept = RequestState.ANSWERED if answered and keeps else RequestState.SUPERSEDED
        assert store.requests(run.id)[0].state is kept
        with pytest.raises(Conflict):
            store.answer(run.id, 2, AnswerKind.ALLOW, "", "ada")
        assert all(each.type != "needs_input" for each in store.get(run.id).conditions)
        now = store.get(run.id)
        assert now.state is RunState.CANCELLED or now.run_after <= store.now()

    @pytest.mark.parametrize("end", [AGAIN, FAILURE], ids=["queued", "failed"])
    @pytest.mark.parametrize(
        ("happens", "keeps"),
        [
            (lambda store, run: store.update(run.id, "something else"), False),
            (lambda store, run: store.requeue(run.id, "retry"), True),
            (lambda store, run: store.reset([run.id], "start over"), False),
            (lambda store, run: store.restored(run.id, [], RESTORED), False),
        ],
        ids=["update", "retry", "reset", "restore"],
    )
    def test_what_happens_after_a_lost_attempt_supersedes_its_approval(
        self, store: Store, happens: Callable[[Store, TaskRun], object], keeps: bool, end: Ending
    ) -> None:
        """An approval that was given to the newest attempt may be unused. So it is superseded in
        the same cases as an approval that was given to no attempt. This also holds if a later
        attempt was claimed but never began."""
        run = given(store, AnswerKind.ALLOW)
        run = store.finish(claimed(store, run), end)
        assert states(store, run) == [RequestState.ANSWERED]
        happens(store, run)
        assert states(store, run) == [RequestState.ANSWERED if keeps else RequestState.SUPERSEDED]

    def test_a_stop_supersedes_the_approval_of_the_stopped_attempt(self, store: Store) -> None:
        """After a stop, a retry does not give the agent an approval from before the stop, whether
        the run was stopped during an attempt or between two attempts."""
        queued, running = given(store, AnswerKind.ALLOW), waiting(store)
        store.request_cancel(queued.id)
        store.answer(running.id, 1, AnswerKind.ALLOW, "", "ada")
        claim = claimed(store, running)
        store.begin(claim, replace(begun(running), answers=tuple(store.requests(running.id))))
        store.request_cancel(running.id)
        store.finish(claim, STOPPED)
        for run in (queued, running):
            assert states(store, run) == [RequestState.SUPERSEDED]
            assert store.requests(run.id)[0].answer is AnswerKind.ALLOW

    @pytest.mark.parametrize("answer", [AnswerKind.DENY, AnswerKind.TEXT])
    @pytest.mark.parametrize("used", [False, True], ids=["unused", "given"])
    def test_new_instructions_supersede_only_approvals(
        self, store: Store, answer: AnswerKind, used: bool
    ) -> None:
        """A refusal, and the answer to a question, are still valid after new instructions."""
        run = given(store, answer) if used else waiting(store)
        if not used:
            store.answer(run.id, 1, answer, "", "ada")
        store.update(run.id, "something else")
        assert states(store, run) == [RequestState.ANSWERED]

    def test_an_approval_of_an_earlier_attempt_is_not_superseded(self, store: Store) -> None:
        """An approval that was given to an attempt before the newest one cannot reach an attempt
        any more, so its record does not change."""
        run = given(store, AnswerKind.ALLOW)
        claim = claimed(store, run)
        store.begin(claim, begun(run))
        store.finish(claim, AGAIN)
        store.update(run.id, "something else")
        assert states(store, run) == [RequestState.ANSWERED]

    def test_an_attempt_is_given_an_answer(self, store: Store) -> None:
        """When an attempt starts and gets an answer, the number of this attempt is stored in the
        request."""
        run = waiting(store)
        store.answer(run.id, 1, AnswerKind.ALLOW, "", "ada")
        claim = claimed(store, run)
        store.begin(claim, replace(begun(run), answers=tuple(store.requests(run.id))))
        (request,) = store.requests(run.id)
        assert (request.given, request.state) == (2, RequestState.ANSWERED)
        kinds = [record.event.__struct_config__.tag for record in store.history(run.id)]
        assert kinds.count("request_made") == kinds.count("request_answered") == 1
        assert kinds.count("request_given") == 1


OPEN = Condition(type="open", message="a person has it", at=1)


def opened(store: Store, run: TaskRun) -> TaskRun:
    """Open the run and return it."""
    return store.open_run(run.id, OPEN, session_of(run, "native", SessionState.CONFIRMED))


class Opening:
    """Tests of `open_run` and `take_back`."""

    def test_no_attempt_starts_while_a_person_has_it(self, store: Store) -> None:
        """An open run that is queued is not claimed, neither by its name nor as the next due run.
        Once it is taken back, it can be claimed."""
        run = submit(store)
        assert opened(store, run).conditions == (OPEN,)
        assert store.claim("ann", LEASE_S) is None
        assert store.claim("ann", LEASE_S, run.id) is None
        back = store.take_back(run.id, [], RunTakenBack(session_id="native"))
        assert back.conditions == ()
        assert claimed(store, run).attempt == 1

    def test_its_neighbours_wait_as_well(self, store: Store) -> None:
        """While a run is open, no other run that shares its workdir or conversation is claimed."""
        shared = TaskSpec(prompt="x", scope="talk")
        run, same_talk, same_place = (
            submit(store, shared, where="here"),
            submit(store, shared),
            submit(store, where="here"),
        )
        other = submit(store)
        opened(store, run)
        assert [store.claim("ann", LEASE_S, each.id) for each in (same_talk, same_place)] == [
            None,
            None,
        ]
        beside = store.opened_beside(store.get(same_talk.id))
        assert beside is not None and beside.id == run.id
        assert store.opened_beside(store.get(other.id)) is None
        assert claimed(store, other).attempt == 1

    def test_a_run_at_work_is_not_opened(self, store: Store) -> None:
        """A person cannot open a run that is running or already open. The same holds if another run
        with the same conversation is running or open. In these cases Conflict is raised and nothing
        is stored."""
        shared = TaskSpec(prompt="x", scope="talk")
        run, neighbour = submit(store, shared), submit(store, shared)
        claim = claimed(store, neighbour)
        for each in (run, neighbour):
            with pytest.raises(Conflict):
                opened(store, each)
        assert store.sessions() == []
        store.finish(claim, SUCCESS)
        opened(store, run)
        for each in (run, neighbour):
            with pytest.raises(Conflict, match="open"):
                opened(store, each)

    def test_what_became_of_the_conversation_is_stored_with_it(self, store: Store) -> None:
        """`take_back` stores the sessions and its event together. If it is called again, it only
        adds the event."""
        run = submit(store)
        opened(store, run)
        old, new = (
            session_of(run, "native", SessionState.RETIRED),
            session_of(run, "branched", SessionState.CONFIRMED),
        )
        told = RunTakenBack(session_id="branched", turns=2, others=("branched",))
        store.take_back(run.id, [replace(old, cause="left"), replace(new, parent="native")], told)
        live = store.session(SessionKey(run.spec.agent, run.scope))
        assert live is not None and (live.id, live.parent) == ("branched", "native")
        assert events_of(store.history(run.id))[-2:] == [
            RunOpened(session_id="native"),
            told,
        ]
        assert store.take_back(run.id, [], told).conditions == ()
        with pytest.raises(NotFound):
            store.take_back("nobody", [], told)

    def test_sessions_are_found_by_id_and_runs_by_conversation(self, store: Store) -> None:
        """Sessions are listed newest first, and found by id. `run_of` returns the newest run of a
        conversation."""
        first, second = (
            submit(store, TaskSpec(prompt="x", scope="talk")),
            submit(store, TaskSpec(prompt="y", scope="talk")),
        )
        for run, updated in ((submit(store), 5), (submit(store), 9)):
            store.put_session(replace(session_of(run, f"id-{updated}"), updated=updated))
        assert ids_of(store.sessions()) == ["id-9", "id-5"]
        assert ids_of(store.sessions("id-5")) == ["id-5"]
        assert ids_of(store.sessions(limit=1)) == ["id-9"]
        found = store.run_of(SessionKey("claude", "talk"))
        assert found is not None and found.id == second.id != first.id
        assert store.run_of(SessionKey("claude", "silence")) is None

    def test_the_run_under_a_rule(self, store: Store) -> None:
        """`run_under` returns the newest run of a rule and a scope. It finds the run even if the
        run was handed over to another agent. It does not find removed runs."""
        submit(store, TaskSpec(prompt="x", scope="talk"))
        run = submit(store, TaskSpec(prompt="y", scope="talk", rule="dev"))
        store.reassign(run.id, replace(run.spec, agent="codex"))
        found = store.run_under("dev", "talk")
        assert found is not None and found.id == run.id and found.spec.agent == "codex"
        assert store.run_under("dev", "silence") is None and store.run_under("eye", "talk") is None
        store.request_cancel(run.id)
        store.remove(run.id)
        assert store.run_under("dev", "talk") is None
