"""An agent in a pod asks a person. The pod ends, and the pod of the next attempt has the answer:
exactly that call runs, or is refused. The agent is the real Claude Code."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from perdure.kubernetes import requests
from perdure.kubernetes.order import AnswerOrder
from perdure.kubernetes.requests import answers_of, with_answers
from perdure.kubernetes.status import RequestStatus
from perdure.model import OutcomeKind, Permissions
from perdure.model.requests import AnswerKind, RequestKind
from tests.kubernetes.pods import UID, Cluster, Ended, cluster

pytestmark = pytest.mark.journey
DAY_S = 86_400.0
Make = Callable[..., Cluster]


def writes(name: str) -> str:
    """Return a script with a call that needs a permission, because it writes outside of the
    workdir. The model makes the call in two attempts: at first it is denied, then it is
    answered."""
    call = f"call Write {json.dumps({'file_path': name, 'content': 'ran'})}\n"
    return f"by history\n{call}---\n{call}---\nsay It is done.\n"


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Make clusters whose agents may not write outside of their workdirs."""
    with ExitStack() as opened:

        def one(script: str, **settings: Any) -> Cluster:
            spec = {"permissions": Permissions.EDIT}
            return opened.enter_context(
                cluster(tmp_path / "c", "claude", script, spec=spec, **settings)
            )

        (tmp_path / "c").mkdir()
        yield one


def asked(ended: Ended) -> tuple[RequestStatus, ...]:
    """Return the requests with which an attempt ended, as the operator stores them."""
    result = ended.result
    assert result.outcome.kind is OutcomeKind.NEEDS_INPUT, (result, ended.log[-3000:])
    return requests.asked(result.requests, UID, result.attempt)


def answer(
    found: tuple[RequestStatus, ...], kind: AnswerKind, words: str = ""
) -> tuple[AnswerOrder, ...]:
    """Answer all requests, as `kubectl perdure` and the operator do."""
    given = [
        requests.GivenAnswer(request=each.id, answer=kind, words=words, by="kubernetes:ada")
        for each in found
    ]
    return answers_of(with_answers(found, given, UID, 1))


def test_an_approved_call_runs_in_the_next_pod(make: Make) -> None:
    """The pod reports the request and ends. The next pod has the answer, and exactly that call
    runs: the model gets one result for it, in the same conversation."""
    one = make(writes("GO"))
    first = one.run(1, request_expiry_s=DAY_S)
    (request,) = found = asked(first)
    assert (request.number, request.kind, request.tool) == (1, RequestKind.APPROVAL, "Write")
    assert json.loads(request.text) == {"file_path": str(one.go), "content": "ran"}
    assert not one.go.exists()
    second = one.run(2, request_expiry_s=DAY_S, answers=answer(found, AnswerKind.ALLOW))
    assert second.result.outcome.kind is OutcomeKind.SUCCEEDED, second.log[-3000:]
    assert one.go.read_text() == "ran"
    assert second.result.session_id == first.result.session_id
    results = [each.text for each in one.rehearsal.last.messages if each.role == "tool_result"]
    assert len([each for each in results if "created" in each]) == 1, results
    assert not second.result.requests
    # The same order a second time starts nothing.
    again = one.run(2, request_expiry_s=DAY_S, answers=answer(found, AnswerKind.ALLOW))
    assert again.result.outcome.kind is OutcomeKind.SUCCEEDED


def test_a_refusal_reaches_the_agent_after_a_lost_pod(make: Make) -> None:
    """The answer is in the order of an attempt whose pod never began. The next order has it again,
    and the agent gets the person's text."""
    one = make(writes("GO"))
    found = asked(one.run(1, request_expiry_s=DAY_S))
    given = answer(found, AnswerKind.DENY, "use the staging server")
    third = one.run(3, request_expiry_s=DAY_S, answers=given)
    assert third.result.outcome.kind is OutcomeKind.SUCCEEDED, third.log[-3000:]
    assert not one.go.exists()
    shown = "\n".join(each.text for each in one.rehearsal.last.messages)
    assert "use the staging server" in shown


def test_an_answer_for_another_call_counts_for_nothing(make: Make) -> None:
    """An approval names its call. An approval that names another call lets nothing run, and the
    agent asks again."""
    one = make(writes("GO"))
    (request,) = asked(one.run(1, request_expiry_s=DAY_S))
    other = AnswerOrder(number=1, id=request.id[::-1], answer=AnswerKind.ALLOW, by="kubernetes:eve")
    second = one.run(2, request_expiry_s=DAY_S, answers=(other,))
    assert not one.go.exists(), second.log[-3000:]


def test_an_older_operator_gets_what_it_knows(make: Make) -> None:
    """An order without an expiry for requests comes from an older operator, to which nobody could
    give an answer. So the attempt ends with the denied call, and without a request."""
    one = make(writes("GO"))
    first = one.run(1)
    assert first.result.outcome.kind is OutcomeKind.NEEDS_INPUT, first.log[-3000:]
    assert "Write" in first.result.outcome.detail and not first.result.requests
