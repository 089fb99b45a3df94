"""A TaskRun whose agent waits for a person: what its status shows, which answers count, and what
the operator does next."""

from __future__ import annotations

import json
from typing import Any

import pytest

from perdure.kubernetes import manifests, order, requests, result, status_moves
from perdure.kubernetes import step as steps
from perdure.kubernetes.admission import in_line
from perdure.kubernetes.events import events_between
from perdure.kubernetes.outcomes import End
from perdure.kubernetes.requests import ANSWERS, GivenAnswer
from perdure.kubernetes.result import AttemptResult, RequestResult
from perdure.kubernetes.status import AttemptStatus, RequestStatus, TaskRunStatus, moment, stamp
from perdure.kubernetes.wanted import wanted
from perdure.model import Outcome, OutcomeKind
from perdure.model.requests import AgentRequest, AnswerKind, RequestKind
from perdure.rules.requests import digest
from tests.kubernetes import making
from tests.pure.test_taskrun_steps import NOW, body, condition, over, status_of, step, write

LATER = NOW + 7 * 86_400_000
PUSH = {"command": "git push  origin\x7f é"}


def asked(number: int = 1, given: Any = None, **more: Any) -> RequestResult:
    """Return a request as a pod reports it."""
    arguments = PUSH if given is None else given
    text = json.dumps(arguments, ensure_ascii=False)
    usual = {
        "number": number,
        "sha256": digest("Bash", arguments),
        "kind": RequestKind.APPROVAL,
        "tool": "Bash",
        "text": text,
        "size": len(text),
        "expires": LATER,
    }
    return RequestResult(**{**usual, **more})


def waiting(*found: RequestResult, **more: Any) -> dict[str, Any]:
    """Return a TaskRun whose first attempt ended with these requests, as the operator stores it."""
    run = body({"number": 1, "jobUID": making.job_uid(1)}, phase="Running", **more)
    outcome = Outcome(kind=OutcomeKind.NEEDS_INPUT, detail="it waits for a person")
    ended = AttemptResult(attempt=1, outcome=outcome, session_id="s", requests=found or (asked(),))
    pod = making.pod(
        run,
        1,
        phase="Failed",
        state=making.ended(result.exit_code(ended), result.encode(ended).decode()),
    )
    write(run, status_of(step(run, pods=[pod])))
    return run


def answer(run: dict[str, Any], *given: GivenAnswer) -> None:
    run["metadata"].setdefault("annotations", {})[ANSWERS] = requests.annotation(given)


def opened(run: dict[str, Any]) -> RequestStatus:
    return wanted(run).status.requests[0]


def allow(run: dict[str, Any], kind: AnswerKind = AnswerKind.ALLOW, words: str = "") -> GivenAnswer:
    return GivenAnswer(request=opened(run).id, answer=kind, words=words, by="kubernetes:ada")


def test_a_taskrun_waits_for_its_person_without_a_pod() -> None:
    """The phase is Pending, the condition and its Event name the command, and the request is in the
    status. The TaskRun takes no place in the queue, and nothing happens until the request
    expires."""
    run = waiting()
    status = wanted(run).status
    assert (status.phase, moment(status.run_after), status.asks) == ("Pending", LATER, True)
    told = condition(status, "NeedsPerson")
    assert told.reason == "NeedsInput" and "kubectl perdure approve fix" in told.message
    assert status.condition("Failed") is None and status.condition("Reconciling") is not None
    before = TaskRunStatus(phase="Running", attempt=1, attempts=(AttemptStatus(number=1),))
    events = [each for each in events_between(before, status) if each.reason == "NeedsPerson"]
    assert [each.message for each in events] == [told.message]
    assert not in_line(wanted(run), 0).waits
    assert step(run) == steps.Wait(LATER)


def test_the_status_has_the_call_in_plain_letters() -> None:
    """The call in the status has only ASCII and no control characters, and it is still the same
    call."""
    request = opened(waiting())
    assert request.text.isascii() and request.text.isprintable()
    assert digest("Bash", json.loads(request.text)) == request.sha256
    assert request.size == len(request.text)


def test_an_answer_queues_the_next_attempt_whose_order_has_it() -> None:
    """The answer gets into the status with its author, the condition ends, and the next attempt's
    order has the answer, also after an attempt whose pod was lost."""
    run = waiting()
    answer(run, allow(run))
    queued = status_of(step(run))
    assert (queued.phase, queued.run_after) == ("Queued", stamp(NOW))
    assert queued.condition("NeedsPerson") is None
    (found,) = queued.requests
    assert (found.answer, found.by) == (AnswerKind.ALLOW, "kubernetes:ada")
    write(run, queued)
    begun = status_of(step(run))
    write(run, begun)
    for attempt in (2, 3):
        now = wanted(run)
        assert now.status.attempts[-1].number == attempt
        told = order.decode(manifests.order(now, now.status.attempts[-1], (1,)))
        assert told.request_expiry_s == 7 * 86_400
        (given,) = told.answers
        assert (given.number, given.id, given.answer) == (1, opened(run).id, AnswerKind.ALLOW)
        if attempt == 2:
            lost = End(outcome=Outcome(kind=OutcomeKind.LOST), infrastructure=True)
            write(run, status_moves.closed(now.status, lost, now, NOW, 0.5))
            write(run, status_of(step(run, now=NOW + 10**7)))


@pytest.mark.parametrize(
    ("request_", "given"),
    [
        (asked(), {"request": "b" * 12}),
        (asked(text='{"command": "git push', size=4000), {}),
        (asked(sha256=digest("Bash", {"command": "rm -rf /"})), {}),
        (asked(kind=RequestKind.QUESTION), {}),
        (asked(), {"answer": AnswerKind.TEXT, "words": "yes"}),
        (asked(kind=RequestKind.QUESTION), {"answer": AnswerKind.TEXT, "words": " "}),
    ],
    ids=["another call", "a cut call", "another digest", "a question", "no question", "no words"],
)
def test_an_answer_that_does_not_fit_counts_for_nothing(
    request_: RequestResult, given: dict[str, Any]
) -> None:
    """A call that the status does not show completely cannot be allowed, whoever writes the
    annotation. It can be refused."""
    run = waiting(request_)
    plain = {"request": opened(run).id, "answer": AnswerKind.ALLOW}
    answer(run, GivenAnswer(**{**plain, **given}))
    assert step(run) == steps.Wait(LATER)
    answer(run, allow(run, AnswerKind.DENY, "no"))
    assert status_of(step(run)).phase == "Queued"


@pytest.mark.parametrize("text", ["", "{", "[1]", '[{"request": 7}]', "[" * 70_000, None, 7])
def test_a_broken_annotation_counts_for_nothing(text: Any) -> None:
    run = waiting()
    run["metadata"]["annotations"] = {ANSWERS: text}
    assert step(run) == steps.Wait(LATER)


def test_all_requests_are_answered_before_the_next_attempt() -> None:
    """The first answer is recorded, and the TaskRun still waits for the second."""
    run = waiting(asked(1), asked(2, {"command": "ls"}))
    one, two = wanted(run).status.requests
    assert one.id != two.id and "2 requests" in condition(wanted(run).status, "NeedsPerson").message
    answer(run, GivenAnswer(request=two.id, answer=AnswerKind.DENY))
    write(run, status_of(step(run)))
    assert (wanted(run).status.phase, wanted(run).status.asks) == ("Pending", True)
    answer(run, GivenAnswer(request=one.id, answer=AnswerKind.ALLOW))
    queued = status_of(step(run))
    assert [each.answer for each in queued.requests] == [AnswerKind.ALLOW, AnswerKind.DENY]
    assert queued.phase == "Queued"


def test_the_first_answer_counts() -> None:
    run = waiting()
    answer(run, allow(run, AnswerKind.DENY), allow(run))
    assert status_of(step(run)).requests[0].answer is AnswerKind.DENY


def test_a_request_that_nobody_answers_ends_the_taskrun() -> None:
    """After the expiry the TaskRun fails and still needs a person. An answer is too late then."""
    run = waiting()
    failed = status_of(step(run, now=LATER))
    assert (failed.phase, failed.requests) == ("Failed", ())
    assert "nobody answered" in condition(failed, "NeedsPerson").message
    answer(run, allow(run))
    write(run, failed)
    assert isinstance(step(run, now=LATER + 1), steps.Wait)


@pytest.mark.parametrize("what", ["retry", "update", "suspend"])
def test_what_else_a_person_does_closes_the_requests(what: str) -> None:
    """After a retry, new instructions or a stop no earlier request is open, and no earlier answer
    gets into an order."""
    run = waiting()
    if what == "retry":
        run["metadata"]["annotations"] = {"perdure.dev/retry": "now"}
        status = status_of(step(run))
        assert status.open is not None
    elif what == "update":
        run["spec"] |= {"contextVersion": 2, "prompt": "Something else."}
        run["metadata"]["generation"] = 2
        status = status_of(step({**run}, recorded=frozenset({1, 2})))
        assert status.phase == "Queued"
    else:
        run["spec"]["suspend"] = True
        status = status_of(step(run))
        assert status.phase == "Suspended"
    assert (status.requests, status.condition("NeedsPerson")) == ((), None)


def test_an_attempt_that_was_stopped_asks_nobody() -> None:
    """A TaskRun that is suspended while its agent asks does not wait for an answer."""
    run = body({"number": 1}, phase="Running", spec={"suspend": True})
    outcome = Outcome(kind=OutcomeKind.NEEDS_INPUT)
    end = End(
        outcome=outcome, result=AttemptResult(attempt=1, outcome=outcome, requests=(asked(),))
    )
    closed = status_moves.closed(wanted(run).status, end, wanted(run), NOW, 0.5)
    assert (closed.phase, closed.requests) == ("Failed", ())


def test_a_definition_without_the_field_ends_as_before() -> None:
    """An older definition of TaskRuns drops the requests from the status, so nobody could answer.
    The TaskRun does not wait but fails, and says which definition to apply."""
    run = waiting()
    del run["status"]["requests"]
    failed = status_of(step(run))
    assert failed.phase == "Failed"
    assert "definition of TaskRuns" in condition(failed, "NeedsPerson").message
    write(run, failed)
    assert isinstance(step(run), steps.Wait)


def test_a_pod_of_an_older_version_ends_as_before() -> None:
    """A result without requests is a failure that needs a person."""
    run = body({"number": 1}, phase="Running")
    outcome = Outcome(kind=OutcomeKind.NEEDS_INPUT, detail="denied: Bash")
    end = End(outcome=outcome, result=AttemptResult(attempt=1, outcome=outcome))
    closed = status_moves.closed(wanted(run).status, end, wanted(run), NOW, 0.5)
    assert closed.phase == "Failed" and condition(closed, "NeedsPerson").reason == "NeedsInput"


@pytest.mark.parametrize("seconds", [0, 3600])
def test_a_taskrun_says_how_long_it_waits_for_an_answer(seconds: int) -> None:
    """The order carries the time of the TaskRun; with 0 the agent cannot ask."""
    spec = {"policy": {"requestExpirySeconds": seconds}}
    run = wanted(body(over(1), {"number": 2}, spec=spec))
    told = order.decode(manifests.order(run, run.status.attempts[-1], (1,)))
    assert told.request_expiry_s == seconds


def test_only_a_volume_of_its_own_keeps_requests() -> None:
    """Requests need mode Claim. In the other modes the database is lost together with the pod, so
    the agent cannot ask."""
    spec = {"workspace": {"mode": "Checkpoints", "checkpoints": "s3://bucket"}}
    run = wanted(body(over(1), {"number": 2}, spec=spec))
    assert order.decode(manifests.order(run, run.status.attempts[-1], (1,))).request_expiry_s == 0


def test_a_pod_tells_the_oldest_requests_and_shares_the_room() -> None:
    """A pod reports its four oldest requests at most, whose texts together have a limited length.
    The descriptions of a question's options are removed first. The expiry is that of the order."""
    options = [{"label": "SQLite", "description": "d" * 2000}]
    questions = json.dumps({"questions": [{"question": "Which?", "options": options}]})
    found = [
        AgentRequest(
            run="r", number=number, attempt=1, kind=RequestKind.QUESTION if number == 1 else RequestKind.APPROVAL, tool="Bash", call="c",
            summary="", payload=questions if number == 1 else json.dumps({"command": "x" * 3000}), size=3000, sha256="0" * 64, parked=False,
            asked=0, expires=LATER + int(requests.GRACE_S * 1000),
        )
        for number in range(1, 7)
    ]  # fmt: skip
    told = requests.shown(found)
    assert [each.number for each in told] == [1, 2, 3, 4]
    assert sum(len(each.text) for each in told) <= result.SHOWN
    assert json.loads(told[0].text)["questions"][0]["options"] == [{"label": "SQLite"}]
    assert {each.expires for each in told} == {LATER}
