"""Requests of an agent in a pod, and a person's answers to them, as a TaskRun has them. Pure.

A request goes this way: the pod's database -> the attempt's result (`shown`) -> the TaskRun's
status (`asked`). An answer goes back: the annotation `perdure.dev/answers` (`annotation`, written
by `kubectl perdure approve`) -> the status (`with_answers`) -> the order of the next attempt
(`answers_of`) -> the pod's database.

An answer names its request by an id that depends on the call. So it never counts for a call that
the person did not see. A call whose arguments were cut in the status cannot be allowed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec.structs import replace

from perdure.kubernetes.order import REQUEST_ID, AnswerOrder
from perdure.kubernetes.result import MOST_REQUESTS, SHOWN, AttemptResult, RequestResult
from perdure.kubernetes.status import RequestStatus, TaskRunStatus, moment, safe_line, stamp
from perdure.model import OutcomeKind
from perdure.model.codec import resolved
from perdure.model.requests import AgentRequest, AnswerKind, RequestKind, RequestState
from perdure.rules.approvals import why_not_allowed
from perdure.rules.requests import WORDS, options_of, questions, short_id

ANSWERS = "perdure.dev/answers"
GRACE_S = 30 * 86_400.0
"""Time, in seconds, by which a request expires later in the pod's database than in the status. So
an answer that a person gave in time is still valid if the next pod starts late, for example because
there was no room for it."""
LONGEST_ANNOTATION = 65_536


class GivenAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """An answer in the annotation of a TaskRun. `request` is the short id of the request."""

    request: str
    answer: AnswerKind
    words: str = ""
    by: str = ""


# --- in the pod


def shown(requests: Sequence[AgentRequest]) -> tuple[RequestResult, ...]:
    """Return the open requests in the form of the attempt's result, oldest first. The available
    length is shared evenly among them."""
    opened = [each for each in requests if each.state is RequestState.OPEN][:MOST_REQUESTS]
    found = []
    for each in opened:
        found.append(
            RequestResult(
                number=each.number,
                sha256=each.sha256,
                kind=each.kind,
                tool=each.tool,
                text=_text(each, SHOWN // len(opened)),
                size=each.size,
                expires=each.expires - int(GRACE_S * 1000),
            )
        )
    return tuple(found)


def _text(request: AgentRequest, longest: int) -> str:
    """Return the arguments of a call in at most `longest` characters. If questions are too long,
    the descriptions of their options are left out."""
    text = request.payload
    if len(text) > longest and (asked := questions(request)):
        brief = []
        for each in asked:
            options = [{"label": str(one.get("label", ""))} for one in options_of(each)]
            brief.append({"question": str(each.get("question", "")), "options": options})
        text = json.dumps({"questions": brief}, ensure_ascii=False)
    return text[:longest]


# --- in the status


def asked(found: Sequence[RequestResult], uid: str, attempt: int) -> tuple[RequestStatus, ...]:
    """Return the requests of an attempt's result for the status of the TaskRun with this uid."""
    requests = []
    for each in found[:MOST_REQUESTS]:
        text = _ascii(each.text)
        whole = len(each.text) == each.size
        request = RequestStatus(
            number=each.number,
            id="",
            attempt=attempt,
            kind=each.kind,
            tool=safe_line(each.tool, 200),
            text=text,
            size=len(text) if whole else max(each.size, len(text) + 1),
            sha256=safe_line(each.sha256, 64),
            expires=stamp(each.expires),
        )
        requests.append(replace(request, id=short_id(agent_request(request, uid))))
    return tuple(requests)


def _ascii(text: str) -> str:
    """Return a call's arguments as ASCII JSON, which any terminal can print. Only the encoding
    changes, so the arguments keep their digest. Arguments that were cut become one safe line."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return safe_line(text)
    return json.dumps(found, separators=(",", ":")).replace("\x7f", "\\u007f")


def agent_request(request: RequestStatus, uid: str) -> AgentRequest:
    """Return a request of the status in perdure's own form, for the functions that judge and show
    requests. Values that only the pod knows are empty."""
    state = RequestState.OPEN if request.answer is None else RequestState.ANSWERED
    return AgentRequest(
        run=uid.replace("-", ""),
        number=request.number,
        attempt=request.attempt,
        kind=request.kind,
        tool=request.tool,
        call="",
        summary="",
        payload=request.text,
        size=request.size,
        sha256=request.sha256,
        parked=False,
        asked=0,
        expires=moment(request.expires),
        state=state,
        answer=request.answer,
        words=request.words,
        by=request.by,
        answered=moment(request.answered),
    )


def with_requests(status: TaskRunStatus, result: AttemptResult | None, uid: str) -> TaskRunStatus:
    """Return the status with the requests of the attempt that ended. If that attempt did not end
    with requests, the earlier requests stay with their answers, because the attempt may have ended
    before its pod read the answers."""
    if result is None or not result.requests or result.outcome.kind is not OutcomeKind.NEEDS_INPUT:
        return status
    return replace(status, requests=asked(result.requests, uid, result.attempt))


def asking(status: TaskRunStatus, name: str) -> str:
    """Return a sentence that names the command which answers the open requests."""
    opened = [each for each in status.requests if each.answer is None]
    verb = f"kubectl perdure approve {name}, or kubectl perdure deny {name}"
    if opened and opened[0].kind is RequestKind.QUESTION:
        verb = f'kubectl perdure answer {name} "..."'
    if len(opened) > 1:
        more = f" ({len(opened)} requests: kubectl perdure requests {name})"
    else:
        more = ""
    return f"The agent waits for you: {verb}{more}"


def expiry(requests: Sequence[RequestStatus]) -> int:
    """Return when the first open request expires, in milliseconds since 1970; 0 if none is open."""
    return min((moment(each.expires) for each in requests if each.answer is None), default=0)


def with_answers(
    requests: Sequence[RequestStatus], answers: Sequence[GivenAnswer], uid: str, now: int
) -> tuple[RequestStatus, ...]:
    """Return the requests with the answers of a person. A request that has an answer keeps it. The
    others get the first answer that fits them. An answer that does not fit its request is ignored.
    """
    found = []
    for each in requests:
        request = agent_request(each, uid)
        fitting = [one for one in answers if one.request == each.id and _fits(one, request)]
        if each.answer is None and fitting:
            given = fitting[0]
            each = replace(
                each,
                answer=given.answer,
                words=given.words,
                by=safe_line(given.by, 200),
                answered=stamp(now),
            )
        found.append(each)
    return tuple(found)


def _fits(given: GivenAnswer, request: AgentRequest) -> bool:
    if given.answer is AnswerKind.DENY:
        return True
    if request.kind is RequestKind.QUESTION:
        return given.answer is AnswerKind.TEXT and bool(given.words.strip())
    return given.answer is AnswerKind.ALLOW and not why_not_allowed(request)


def answers_of(requests: Sequence[RequestStatus]) -> tuple[AnswerOrder, ...]:
    """Return the answers that the order of the next attempt carries."""
    found = []
    for each in requests:
        if each.answer is not None and REQUEST_ID.fullmatch(each.id):
            found.append(
                AnswerOrder(
                    number=each.number, id=each.id, answer=each.answer, words=each.words, by=each.by
                )
            )
    return tuple(found)


# --- the annotation


def given_answers(text: Any) -> tuple[GivenAnswer, ...]:
    """Decode the annotation with answers. Return no answers if it is not valid, because anyone who
    may change TaskRuns may have written it."""
    if not isinstance(text, str) or len(text) > LONGEST_ANNOTATION:
        return ()
    try:
        found = msgspec.json.decode(text, type=resolved(tuple[GivenAnswer, ...]))
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return ()
    return tuple(each for each in found if len(each.words) <= WORDS)


def annotation(answers: Sequence[GivenAnswer]) -> str:
    return msgspec.json.encode(answers).decode()
