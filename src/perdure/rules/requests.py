"""Decides which of an agent's calls become requests to a person, and what follows an answer. Pure.

`engine.attempt.requests` calls this module at the end of an attempt and before the next one starts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

from msgspec.structs import replace

from perdure.model import Attempt, Condition, Decision, Outcome, OutcomeKind, RunState
from perdure.model.requests import AgentRequest, AnswerKind, OpenCall, RequestKind, RequestState
from perdure.rules.text import visible

WAITING = "needs_input"
"""Type of the run condition which says that the run waits for answers."""
ASKING = frozenset({"needs_person", WAITING})
"""Types of run conditions that only a person can resolve."""
MOST_AT_ONCE = 20
"""Maximum number of requests of one attempt."""
MOST_OF_RUN = 100
"""Maximum number of requests of a run. Once it is reached, a denied call no longer becomes a
request."""
SHOWN = 16_000
"""Maximum number of characters of a call's arguments that are stored for display."""
WORDS = 8_000
"""Maximum length of an answer, in characters."""
ID_LETTERS = "bcdfghjkmnpqrstvwxz"
"""Letters of short ids. There are no vowels, so that no word of a sentence looks like an id."""
ID_LENGTH = 12
"""Number of letters of a short id. There are 2 * 10^15 possible ids, so an agent cannot construct
two calls with the same id."""
ON_FORGE = 2_500
"""Maximum length of a call that a comment on a forge shows, in characters. A longer call cannot be
allowed by a comment, because the comment does not show all of it."""
QUESTION = "AskUserQuestion"

Question = Mapping[str, object]
"""One of the questions in a call of the tool `QUESTION`, as the agent wrote it. Any field may be
missing or of another type."""

NOBODY = "Nobody answered in time, so the call is refused."
SPENT = (
    "This call was allowed once, and the agent was killed after that: whether it ran is not known. "
    "Check before you repeat it; a person has to allow it again."
)


def digest(tool: str, given: Any) -> str:
    """Return the SHA-256 that identifies a call. It covers the tool and the arguments; the order of
    the arguments does not matter. `agents/claude/hook.py` computes the same digest."""
    text = json.dumps([tool, given], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def short_id(request: AgentRequest) -> str:
    """Return the short id by which a comment on a forge names the request. The id also depends on
    the call, so an answer never applies to a call that the person did not see."""
    cause = f"{request.run}\n{request.number}\n{request.sha256}"
    value = int.from_bytes(hashlib.sha256(cause.encode()).digest()[:8])
    letters = []
    for _ in range(ID_LENGTH):
        value, index = divmod(value, len(ID_LETTERS))
        letters.append(ID_LETTERS[index])
    return "".join(letters)


def requests_of(
    calls: Iterable[OpenCall],
    earlier: Sequence[AgentRequest],
    *,
    run: str,
    attempt: int,
    now: int,
    lasts_ms: int,
    spent: frozenset[int] = frozenset(),
) -> tuple[AgentRequest, ...]:
    """Return the requests with which an attempt ends. A denied call that a person has already
    allowed or refused is left out, because it was not denied for lack of an answer. If the answer
    was superseded or used, the next such call needs a new request. `spent`: requests whose approval
    has already let a call run."""
    decided = set()
    for each in earlier:
        if (
            each.answer in (AnswerKind.ALLOW, AnswerKind.DENY)
            and each.state is not RequestState.SUPERSEDED
            and each.number not in spent
        ):
            decided.add(each.sha256)
    found: dict[str, AgentRequest] = {}
    for call in calls:
        try:
            given = json.loads(call.input)
        except ValueError:
            continue
        key = digest(call.tool, given)
        asks = call.tool == QUESTION
        # A model can write half a surrogate pair, which no store takes. The digest stays that of
        # the original arguments, so a person can only refuse a call whose text was changed here.
        shown = call.input.encode("utf-8", "replace").decode()
        if key in found or (key in decided and not call.parked and not asks):
            continue
        number = len(earlier) + len(found) + 1
        if len(found) >= MOST_AT_ONCE or number > MOST_OF_RUN:
            break
        found[key] = AgentRequest(
            run=run,
            number=number,
            attempt=attempt,
            kind=RequestKind.QUESTION if asks else RequestKind.APPROVAL,
            tool=call.tool[:200],
            call=call.call,
            summary=call.summary,
            payload=shown[:SHOWN],
            size=len(shown),
            sha256=key,
            parked=call.parked,
            asked=now,
            expires=now + lasts_ms,
        )
    return tuple(found.values())


def detail(request: AgentRequest) -> str:
    """Return the text for the `detail` of an attempt's outcome, if the attempt ended with this
    request."""
    asked = questions(request)
    if not asked:
        return f"it waits for a person to allow a call: {request.tool} {request.summary}"[:400]
    texts = " ".join(str(each.get("question", "")) for each in asked)
    labels = []
    for option in chain.from_iterable(map(options_of, asked)):
        labels.append(str(option.get("label", "")))
    options = f" ({', '.join(labels)})" if labels else ""
    return f"it asks: {' '.join(texts.split())}{options}"[:400]


def options_of(question: Question) -> list[Mapping[str, object]]:
    """Return the answers that one question offers."""
    options = question.get("options")
    if isinstance(options, list):
        return [each for each in options if isinstance(each, dict)]
    return []


def open_requests(requests: Iterable[AgentRequest]) -> list[AgentRequest]:
    """Return the requests that wait for an answer, in order."""
    return [each for each in requests if each.state is RequestState.OPEN]


def waiting(outcome: Outcome, requests: Sequence[AgentRequest], name: str, now: int) -> Decision:
    """Return what follows an attempt that ended with requests: the run waits until the first open
    request expires. The run continues earlier when a person answers. If saved rules have answered
    all requests, it continues immediately."""
    requests = open_requests(requests)
    if not requests:
        reason = "saved rules answered what the agent asked"
        return Decision(state=RunState.QUEUED, run_after=now, reason=reason)
    verb = f"perdure approve {name}, or perdure deny {name}"
    if requests[0].kind is RequestKind.QUESTION:
        verb = f'perdure answer {name} "..."'
    count = len(requests)
    if count > 1:
        more = f" ({count} requests: perdure requests {name})"
    else:
        more = ""
    return Decision(
        state=RunState.QUEUED,
        run_after=min(each.expires for each in requests),
        reason=f"{outcome.kind}: {outcome.detail}",
        condition=Condition(type=WAITING, message=f"the agent waits for you: {verb}{more}", at=now),
    )


def expired(request: AgentRequest, now: int) -> AgentRequest:
    """Return the request. If it has expired without an answer, the returned copy is marked as
    expired and refused."""
    if request.state is not RequestState.OPEN or request.expires > now:
        return request
    return replace(
        request, state=RequestState.EXPIRED, answer=AnswerKind.DENY, words=NOBODY, answered=now
    )


def late(request: AgentRequest) -> str:
    """Return one sentence that says why a request that is not open cannot be answered."""
    if request.state is RequestState.ANSWERED:
        who = f" by {request.by}" if request.by else ""
        return f"Request {request.number} was answered already{who}: {request.answer}"
    if request.state is RequestState.EXPIRED:
        return f"Request {request.number} has expired, so the call was refused"
    return f"Request {request.number} is not open any more: {request.words or 'it was superseded'}"


def questions(request: AgentRequest) -> list[Question]:
    """Return the questions of a request, as the agent asked them. Empty for an approval, and for a
    request that was too long to be stored whole."""
    try:
        given = json.loads(request.payload)
    except ValueError:
        return []
    asked = given.get("questions") if isinstance(given, dict) else None
    if request.kind is not RequestKind.QUESTION or not isinstance(asked, list):
        return []
    return [each for each in asked if isinstance(each, dict)]


def payload_lines(request: AgentRequest) -> list[str]:
    """Return the arguments of the call, one on each line. Invisible characters are shown by
    name."""
    try:
        given = json.loads(request.payload)
    except ValueError:
        return [visible(request.payload)]
    if not isinstance(given, dict):
        return [visible(json.dumps(given, ensure_ascii=False))]
    lines = []
    for key, value in given.items():
        if isinstance(value, str):
            shown = _in_one_line(value)
        else:
            shown = json.dumps(value, ensure_ascii=False)
        lines.append(visible(f"{_in_one_line(key)}: {shown}"))
    return lines


def _in_one_line(text: str) -> str:
    """Return the text with `\\n` and `\\r` for line breaks. If the text contains a line break, or
    literally `\\n` or `\\r`, its own backslashes are doubled first. So two different texts never
    look the same."""
    if any(each in text for each in ("\n", "\r", "\\n", "\\r")):
        text = text.replace("\\", "\\\\")
    return text.replace("\r", "\\r").replace("\n", "\\n")


def shown_lines(request: AgentRequest) -> list[str]:
    """Return the lines that show a request to a person. Invisible characters are shown by name."""
    asked = questions(request)
    if not asked:
        return [f"tool: {visible(request.tool)}", *payload_lines(request)]
    lines = []
    for each in asked:
        lines.append(visible(str(each.get("question", ""))))
        lines += [f"- {visible(str(one.get('label', '')))}" for one in options_of(each)]
    return lines


def is_shown_whole(request: AgentRequest, clean: Callable[[str], str]) -> bool:
    """Return whether a comment on a forge shows the whole call. `clean` removes text that looks
    like a secret; a call with such text is not shown whole."""
    text = "\n".join(shown_lines(request))
    whole = request.size == len(request.payload) and len(text) <= ON_FORGE
    return whole and clean(text) == text


def answers_text(requests: Sequence[AgentRequest]) -> str:
    """Return the part of the agent's next prompt that reports the answers to requests; empty if
    there are none. Parked calls are left out, because their answers are inserted in the
    conversation itself."""
    lines = []
    for each in requests:
        if each.parked:
            continue
        call = f"{each.tool} {each.payload}"
        who = each.by or "a person"
        if each.answer is AnswerKind.ALLOW:
            lines.append(
                f"{who} allowed this call, which was denied before. Make it now, unchanged; it "
                f"will run once: {call}"
            )
        elif each.answer is AnswerKind.DENY:
            why = f" ({each.words})" if each.words else ""
            lines.append(f"{who} refused this call{why}. Go on without it: {call}")
        elif each.answer is AnswerKind.TEXT:
            lines.append(f"{who} answered your question {call}: {each.words}")
    return "\n\n".join(lines)


def unsettled_attempt(attempts: Sequence[Attempt]) -> int:
    """Return the number of the newest attempt that has begun, because it may not have used the
    answers that it got; 0 if there is none. If it succeeded, nothing is left to be answered."""
    begun = [each for each in attempts if each.continuation is not None]
    if not begun:
        return 0
    outcome = begun[-1].outcome
    if outcome is not None and outcome.kind is OutcomeKind.SUCCEEDED:
        return 0
    return begun[-1].number


def undelivered_answers(
    requests: Sequence[AgentRequest], previous: int, spent: frozenset[int]
) -> tuple[AgentRequest, ...]:
    """Return the requests whose answers have to be passed to the next attempt.

    `previous`: the `unsettled_attempt` of the run. `spent`: requests whose approval was used. An
    answer that the previous attempt did not use is passed again.
    """
    found = []
    for each in requests:
        if (
            each.state is not RequestState.OPEN
            and (each.state is not RequestState.SUPERSEDED or each.parked)
            and (not each.given or (each.given == previous and not _is_spent(each, spent)))
        ):
            found.append(_closed(each))
    return tuple(found)


def used_up(
    requests: Sequence[AgentRequest], previous: int, spent: frozenset[int]
) -> tuple[AgentRequest, ...]:
    """Return the parked calls whose approval the `previous` attempt used. That attempt was killed
    before the calls had a result. They may have run, so they must not run again."""
    found = []
    for each in requests:
        if each.parked and each.given == previous and _is_spent(each, spent):
            found.append(each)
    return tuple(found)


def _is_spent(request: AgentRequest, spent: frozenset[int]) -> bool:
    """Return whether the answer to a request was used up. Only an approval can be used up. The
    answer to a question can be passed on again."""
    return request.number in spent and request.answer is AnswerKind.ALLOW


def _closed(request: AgentRequest) -> AgentRequest:
    """Return the request. If it was superseded, the returned copy is marked as refused, whatever a
    person answered."""
    if request.state is not RequestState.SUPERSEDED:
        return request
    return replace(request, answer=AnswerKind.DENY, words=f"not now: {request.words}", by="")
