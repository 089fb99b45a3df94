"""The result of an attempt, which its pod writes into the container's termination message. Pure.

The kubelet keeps 4096 bytes of the message, so `encode` shortens the result until it fits: first
the reasons, then earlier attempts, then the text of the outcome, then the text of requests. The
fields on which decisions depend (attempt, kind, conversation, verdicts, usage) are always kept.

The agent runs as the pod's user and can write the message file too. `trusted_result` therefore
accepts only a result whose outcome agrees with the exit code, which only perdure sets.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
from msgspec.structs import replace

from perdure.model import NO_USAGE, Outcome, OutcomeKind, Rung, Usage, Verdict
from perdure.model.codec import resolved
from perdure.model.requests import RequestKind
from perdure.model.work import WorkVerdict

Struct = TypeVar("Struct", bound=msgspec.Struct)
VERSION = 1
LONGEST = 4096
"""Number of bytes of the termination message that the kubelet keeps for each container."""
LONGEST_NAME = 1000
TEXT = 400
"""Maximum number of characters of each reason after the first step of shortening."""
MOST_EARLIER = 1000
MOST_REQUESTS = 4
"""Maximum number of requests of one result."""
SHOWN = 1600
"""Maximum number of characters of all requests' arguments together."""

EXIT_CODES: dict[OutcomeKind, int] = {
    OutcomeKind.SUCCEEDED: 0,
    OutcomeKind.FAILED: 1,
    OutcomeKind.VERIFY_FAILED: 1,
    OutcomeKind.TIMED_OUT: 1,
    OutcomeKind.STALLED: 1,
    OutcomeKind.MAX_TURNS: 1,
    OutcomeKind.TRUNCATED: 1,
    OutcomeKind.BUDGET_SPENT: 3,
    OutcomeKind.CONTINUITY_LOST: 3,
    OutcomeKind.NEEDS_INPUT: 3,
    OutcomeKind.DENIED: 3,
    OutcomeKind.REFUSED: 3,
    OutcomeKind.AUTH_FAILED: 4,
    OutcomeKind.CONFIG_ERROR: 7,
    OutcomeKind.LOST: 75,
    OutcomeKind.SESSION_MISSING: 75,
    OutcomeKind.SESSION_BROKEN: 75,
    OutcomeKind.CONTEXT_EXHAUSTED: 75,
    OutcomeKind.RATE_LIMITED: 75,
    OutcomeKind.OVERLOADED: 75,
    OutcomeKind.WRITER_CONFLICT: 75,
    OutcomeKind.CANCELLED: 130,
}
"""Exit code of a pod by the outcome of its attempt. The codes have the same meanings as those of
the command line."""


class ReceiptResult(msgspec.Struct, frozen=True, kw_only=True):
    """An attempt's receipt, without its evidence."""

    verdict: Verdict
    rung: Rung = Rung.NATIVE
    reasons: tuple[str, ...] = ()


class WorkSummary(msgspec.Struct, frozen=True, kw_only=True):
    """Summary of a work report: its verdict, its first reason, and some counts."""

    verdict: WorkVerdict
    reason: str = ""
    files: int = 0
    commits: int = 0
    pushed: bool | None = None
    denied: int = 0
    question: str = ""


class PlaceResult(msgspec.Struct, frozen=True, kw_only=True):
    """The attempt's workdir in its pod, with its branch and commit."""

    path: str = ""
    branch: str = ""
    commit: str = ""


class Before(msgspec.Struct, frozen=True, kw_only=True):
    """An earlier attempt as the pod's database records it. The operator may have got no result of
    this attempt."""

    number: int
    outcome: OutcomeKind | None = None
    verdict: Verdict | None = None
    session_id: str = ""


class RequestResult(msgspec.Struct, frozen=True, kw_only=True):
    """An open request of the agent to a person, which the pod's database has in full."""

    number: int
    sha256: str
    kind: RequestKind
    tool: str
    text: str
    """Arguments of the call as JSON, without secrets. Only their beginning if they are too long."""
    size: int
    """Length of the complete arguments in characters."""
    expires: int


class AttemptResult(msgspec.Struct, frozen=True, kw_only=True):
    """How one attempt ended. `attempt` is 0 if the order could not be read."""

    version: int = VERSION
    attempt: int
    outcome: Outcome
    session_id: str = ""
    receipt: ReceiptResult | None = None
    work: WorkSummary | None = None
    usage: Usage = NO_USAGE
    context_version: int = 0
    """Newest version of the instructions that the attempt was given, numbered as in the TaskRun."""
    workspace: PlaceResult = PlaceResult()
    saved: bool = False
    """Whether all work is saved outside the pod and its volume: in the checkpoint store, or
    committed and pushed."""
    earlier: tuple[Before, ...] = ()
    """Earlier attempts, oldest first. If not all fit, the oldest are left out."""
    requests: tuple[RequestResult, ...] = ()
    """The oldest requests that were open when the attempt ended; at most `MOST_REQUESTS`."""


def exit_code(result: AttemptResult) -> int:
    """Return the exit code with which the pod must end to agree with this result."""
    return EXIT_CODES[result.outcome.kind]


def encode(result: AttemptResult, longest: int = LONGEST) -> bytes:
    """Return the result as JSON of at most `longest` bytes (1200 or more)."""
    result = _clean(result)
    for cut in _CUTS:
        content = msgspec.json.encode(result)
        if len(content) <= longest:
            return content
        result = cut(result, len(content) - longest)
    return msgspec.json.encode(result)


def decode(content: bytes | str) -> AttemptResult | None:
    """Decode an untrusted result. Return None if it is not valid."""
    try:
        result = msgspec.json.decode(content, type=resolved(AttemptResult))
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None
    usage = result.usage
    counts = (usage.input, usage.output, usage.cached, usage.cache_write, usage.cost_usd)
    sane = (
        result.version == VERSION
        and 0 <= result.attempt < 2**31
        and 0 <= result.context_version <= 2**31
        and all(0 <= number < 2**53 for number in counts)
        and (result.outcome.until is None or 0 <= result.outcome.until < 2**53)
        and len(result.session_id) <= LONGEST_NAME
        and all(map(_is_sane, result.requests))
    )
    if sane:
        return result
    return None


def _is_sane(request: RequestResult) -> bool:
    return 0 < request.number < 2**31 and 0 <= request.size < 2**31 and 0 <= request.expires < 2**43


def trusted_result(message: bytes | str, attempt: int, code: int | None) -> AttemptResult | None:
    """Return the result from a container's termination message. Return None if the message has no
    valid result, or if the result is from another attempt or contradicts the container's exit code.
    """
    result = decode(message)
    if result is None or result.attempt not in (attempt, 0) or code != exit_code(result):
        return None
    if result.attempt:
        return result
    return msgspec.structs.replace(result, attempt=attempt)


def _clean(result: AttemptResult) -> AttemptResult:
    """Return the result without characters that JSON cannot contain, and with long texts
    shortened."""

    def text(value: str, longest: int = LONGEST_NAME) -> str:
        return value.encode("utf-8", "replace").decode()[:longest]

    receipt, place, outcome = result.receipt, result.workspace, result.outcome
    work = result.work
    earlier = []
    for attempt in result.earlier[-MOST_EARLIER:]:
        session_id = text(attempt.session_id, 200)
        earlier.append(msgspec.structs.replace(attempt, session_id=session_id))
    requests = []
    for request in result.requests[:MOST_REQUESTS]:
        tool, shown = text(request.tool, 200), text(request.text, SHOWN)
        requests.append(msgspec.structs.replace(request, tool=tool, text=shown))
    return msgspec.structs.replace(
        result,
        outcome=replace(outcome, detail=text(outcome.detail, LONGEST)),
        session_id=text(result.session_id, 200),
        receipt=receipt
        and msgspec.structs.replace(
            receipt, reasons=tuple(text(reason, LONGEST) for reason in receipt.reasons)
        ),
        work=work and _with(work, reason=text(work.reason), question=text(work.question)),
        workspace=PlaceResult(
            path=text(place.path, LONGEST), branch=text(place.branch), commit=text(place.commit, 64)
        ),
        earlier=tuple(earlier),
        requests=tuple(requests),
    )


def _shorter_reasons(result: AttemptResult, _: int) -> AttemptResult:
    receipt = result.receipt
    if receipt is None:
        return result
    return _with(
        result,
        receipt=_with(receipt, reasons=tuple(_cut(each, TEXT) for each in receipt.reasons[:4])),
    )


def _shorter_work(result: AttemptResult, _: int) -> AttemptResult:
    work = result.work
    if work is None:
        return result
    shorter = {"reason": _cut(work.reason, TEXT // 2), "question": _cut(work.question, TEXT // 2)}
    return _with(result, work=_with(work, **shorter))


def _no_words_of_work(result: AttemptResult, _: int) -> AttemptResult:
    work = result.work
    if work is None:
        return result
    return _with(result, work=_with(work, reason="", question=""))


def _shorter_detail(result: AttemptResult, _: int) -> AttemptResult:
    return _detail(result, 2 * TEXT)


def _less_of_before(result: AttemptResult, over: int) -> AttemptResult:
    """Leave out the oldest of the earlier attempts until the result is `over` bytes shorter. At
    least five earlier attempts are kept."""
    earlier = list(result.earlier)
    while over > 0 and len(earlier) > 5:
        over -= len(msgspec.json.encode(earlier.pop(0))) + 1
    return _with(result, earlier=tuple(earlier))


def _no_reasons(result: AttemptResult, _: int) -> AttemptResult:
    if result.receipt is None:
        return result
    return _with(result, receipt=_with(result.receipt, reasons=()))


def _nothing_of_before(result: AttemptResult, _: int) -> AttemptResult:
    return _with(result, earlier=())


def _brief(result: AttemptResult, _: int) -> AttemptResult:
    return _detail(result, TEXT // 4)


def _shorter_requests(result: AttemptResult, _: int) -> AttemptResult:
    longest = TEXT // 2
    shorter = tuple(_with(each, text=each.text[:longest]) for each in result.requests)
    return _with(result, requests=shorter)


def _no_place(result: AttemptResult, _: int) -> AttemptResult:
    return _with(result, workspace=PlaceResult(commit=result.workspace.commit))


def _no_words(result: AttemptResult, _: int) -> AttemptResult:
    return _detail(result, 0)


def _no_requests(result: AttemptResult, _: int) -> AttemptResult:
    return _with(result, requests=())


_CUTS: tuple[Callable[[AttemptResult, int], AttemptResult], ...] = (
    _shorter_reasons,
    _shorter_work,
    _shorter_detail,
    _less_of_before,
    _no_reasons,
    _no_words_of_work,
    _nothing_of_before,
    _brief,
    _shorter_requests,
    _no_place,
    _no_words,
    _no_requests,
)


def _detail(result: AttemptResult, longest: int) -> AttemptResult:
    return _with(
        result, outcome=replace(result.outcome, detail=_cut(result.outcome.detail, longest))
    )


def _cut(text: str, longest: int) -> str:
    if len(text) <= longest:
        return text
    if longest > 3:
        return f"{text[: longest - 3]}..."
    return ""


def _with(struct: Struct, **changes: Any) -> Struct:
    return msgspec.structs.replace(struct, **changes)
