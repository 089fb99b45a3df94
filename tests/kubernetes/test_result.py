"""The result in the termination message: it always fits, is always JSON, and is used only if it
agrees with the exit code."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.kubernetes.result import (
    EXIT_CODES,
    LONGEST,
    AttemptResult,
    Before,
    PlaceResult,
    ReceiptResult,
    RequestResult,
    WorkSummary,
    decode,
    encode,
    exit_code,
    trusted_result,
)
from perdure.model import Outcome, OutcomeKind, Rung, Usage, Verdict
from perdure.model.requests import RequestKind
from perdure.model.work import WorkVerdict

LONG = st.text(max_size=6000)
ANY_TEXT = st.one_of(st.text(max_size=40), LONG, st.text(st.characters(), max_size=40))
OUTCOMES = st.builds(
    lambda kind, detail, until, code, signal, began: Outcome(
        kind=kind, detail=detail, until=until, code=code, signal=signal, began=began
    ),
    st.sampled_from(OutcomeKind), ANY_TEXT, st.none() | st.integers(0, 2**50),
    st.none() | st.integers(0, 255),
    st.none() | st.integers(1, 64),
    st.booleans(),
)  # fmt: skip
RECEIPTS = st.none() | st.builds(
    lambda verdict, rung, reasons: ReceiptResult(verdict=verdict, rung=rung, reasons=tuple(reasons)),
    st.sampled_from(Verdict), st.sampled_from(Rung), st.lists(ANY_TEXT, max_size=8),
)  # fmt: skip
EARLIER = st.integers(0, 400).map(
    lambda count: tuple(
        Before(number=n, outcome=OutcomeKind.LOST, verdict=Verdict.NATIVE, session_id="a" * 36)
        for n in range(1, count + 1)
    )
)
WORKS = st.none() | st.builds(
    WorkSummary, verdict=st.sampled_from(WorkVerdict), reason=ANY_TEXT, files=st.integers(0, 2**40), commits=st.integers(0, 99),
    pushed=st.none() | st.booleans(), denied=st.integers(0, 10_000), question=ANY_TEXT,
)  # fmt: skip
REQUESTS = st.lists(
    st.builds(
        RequestResult, number=st.integers(1, 100), sha256=st.just("a" * 64), kind=st.sampled_from(RequestKind), tool=ANY_TEXT, text=ANY_TEXT,
        size=st.integers(0, 10**6), expires=st.integers(0, 2**42),
    ), max_size=6,
).map(tuple)  # fmt: skip
RESULTS = st.builds(
    lambda attempt, outcome, session_id, receipt, usage, version, place, saved, earlier, work, requests: AttemptResult(
        requests=requests, work=work, attempt=attempt, outcome=outcome, session_id=session_id, receipt=receipt, usage=Usage(*usage), context_version=version,
        workspace=PlaceResult(path=place[0], branch=place[1], commit=place[2]), saved=saved, earlier=earlier,
    ),
    st.integers(1, 10**5), OUTCOMES, st.text(max_size=300), RECEIPTS, st.tuples(*[st.integers(0, 2**50)] * 4), st.integers(0, 2**31),
    st.tuples(ANY_TEXT, ANY_TEXT, st.text(max_size=80)), st.booleans(), EARLIER, WORKS, REQUESTS,
)  # fmt: skip


@given(RESULTS)
def test_a_result_always_fits_and_keeps_what_decides(result: AttemptResult) -> None:
    """However long its parts are, the message is complete JSON of at most 4096 bytes with the same
    attempt, kind, verdict and usage."""
    content = encode(result)
    assert len(content) <= LONGEST
    back = decode(content)
    assert back is not None
    assert (back.attempt, back.outcome.kind, back.outcome.until, back.outcome.began, back.usage, back.saved) == (
        result.attempt, result.outcome.kind, result.outcome.until, result.outcome.began, result.usage, result.saved,
    )  # fmt: skip
    assert (back.receipt and back.receipt.verdict) == (result.receipt and result.receipt.verdict)
    assert (back.work and back.work.verdict) == (result.work and result.work.verdict)
    assert encode(back) == content


def test_a_short_result_loses_nothing() -> None:
    """A result that fits is read back unchanged."""
    result = AttemptResult(
        attempt=3, outcome=Outcome(kind=OutcomeKind.FAILED, detail="tests fail", code=1), session_id="abc",
        receipt=ReceiptResult(verdict=Verdict.NATIVE, reasons=("the transcript grew by 1 turn",)), usage=Usage(10, 2, 5, 0, 0.01), context_version=4,
        work=WorkSummary(verdict=WorkVerdict.UNVERIFIED, reason="not checked", files=2, commits=1, pushed=False),
        workspace=PlaceResult(path="/data/w", branch="perdure/x", commit="a" * 40), saved=True,
        earlier=(Before(number=1, outcome=OutcomeKind.LOST, verdict=Verdict.FRESH, session_id="abc"), Before(number=2)),
    )  # fmt: skip
    assert decode(encode(result)) == result


def test_reasons_go_before_the_sentence_and_the_oldest_attempts_before_the_newest() -> None:
    """To make a result fit, reasons are removed before the sentence, and the oldest attempts before
    the newest."""
    earlier = tuple(Before(number=n, session_id="s" * 36) for n in range(1, 101))
    told = ReceiptResult(verdict=Verdict.BROKEN, reasons=("r" * 3000,) * 3)
    result = AttemptResult(
        attempt=101,
        outcome=Outcome(kind=OutcomeKind.FAILED, detail="d" * 300),
        receipt=told,
        earlier=earlier,
    )
    back = decode(encode(result))
    assert back is not None and back.receipt is not None
    assert back.outcome.detail == "d" * 300
    assert 5 < len(back.earlier) < 100 and back.earlier[-1].number == 100
    assert all(len(reason) <= 400 for reason in back.receipt.reasons)


@given(RESULTS)
def test_only_the_right_attempt_with_the_right_exit_code_is_believed(result: AttemptResult) -> None:
    """If an agent writes a success into the file, the result is not used, because the pod does not
    exit with 0."""
    content = encode(result)
    assert trusted_result(content, result.attempt, exit_code(result)) == decode(content)
    assert trusted_result(content, result.attempt + 1, exit_code(result)) is None
    assert trusted_result(content, result.attempt, 137) is None
    assert trusted_result(content, result.attempt, None) is None


def test_every_outcome_has_an_exit_code_and_only_success_is_0() -> None:
    """Every kind of outcome has an exit code."""
    assert set(EXIT_CODES) == set(OutcomeKind)
    assert [kind for kind, code in EXIT_CODES.items() if code == 0] == [OutcomeKind.SUCCEEDED]


def test_a_pod_that_could_not_read_its_order_is_believed_for_its_own_attempt() -> None:
    """A pod that could not read its order does not know its attempt's number. Its result counts for
    the attempt whose pod it is."""
    content = encode(
        AttemptResult(attempt=0, outcome=Outcome(kind=OutcomeKind.CONFIG_ERROR, detail="no order"))
    )
    found = trusted_result(content, 7, 7)
    assert found is not None and found.attempt == 7


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff\xfe", b"[" * 4096, b"null", b'{"attempt": 1}', "caf\ud800", b'{"version":1,"attempt":-1,"outcome":{"kind":"succeeded"}}',
     b'{"version":1,"attempt":1,"outcome":{"kind":"succeeded"},"usage":{"input":-5}}',
     b'{"version":2,"attempt":1,"outcome":{"kind":"lost"}}',
     b'{"version":1,"attempt":1,"outcome":{"kind":"won"}}'],
)  # fmt: skip
def test_what_is_no_result_is_none(content: bytes | str) -> None:
    """The output of a broken program, an older or a newer version, and impossible numbers are not
    results."""
    assert decode(content) is None
