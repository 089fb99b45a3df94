"""Problems that a turn left open although its agent reported success."""

from __future__ import annotations

import json

import pytest

from perdure.agents import registry
from perdure.model import ContinuityPolicy, OnDenied, Outcome, OutcomeKind, RunState
from perdure.model.events import (
    AgentEvent,
    LastWordGiven,
    QuestionAsked,
    ReplyCut,
    Said,
    ToolDenied,
    ToolEnded,
    ToolStarted,
    TurnEnded,
)
from perdure.rules.lifecycle import Tally, decide
from perdure.rules.unfinished import MOST, OpenEnds, judge

FINE = Outcome(kind=OutcomeKind.SUCCEEDED)
SAID, ENDED = Said("It is done."), TurnEnded(ok=True, turns=1)


def ends(*events: AgentEvent) -> OpenEnds:
    found = OpenEnds()
    for event in events:
        if (known := found.complete(event)) is not None:
            found.absorb(known)
    return found


def denied(key: str, name: str = "Fetch", summary: str = "a") -> list[AgentEvent]:
    started = ToolStarted(key, name, summary)
    return [started, ToolDenied(key, ""), ToolEnded(key, ok=False)]


def test_ten_thousand_denied_calls_are_one_sentence_and_little_memory() -> None:
    """Denied calls are listed up to a limit. The others are only counted."""
    calls = [event for n in range(10_000) for event in denied(str(n), summary=f"page {n}")]
    found = ends(*calls, SAID, ENDED)
    outcome = judge(FINE, found, OnDenied.ASK)
    assert outcome.detail == (
        "10000 calls were denied: Fetch page 0, Fetch page 1, Fetch page 2 and 9997 more"
    )
    assert len(found.denied) == MOST and not found.calls


def test_a_denial_counts_once_however_often_it_is_told() -> None:
    """A denied call counts once, although the result of the turn lists it again."""
    again = ToolDenied("1", "Fetch", "a")
    outcome = judge(FINE, ends(*denied("1"), again, SAID, ENDED), OnDenied.ASK)
    assert outcome.detail == "1 call was denied: Fetch a"


def test_a_denied_call_that_ran_later_is_no_denial() -> None:
    """A denied call does not count if the same tool succeeded later with the same input."""
    later = (ToolStarted("2", "Fetch", "a"), ToolEnded("2", ok=True))
    other = (ToolStarted("2", "Fetch", "b"), ToolEnded("2", ok=True))
    assert judge(FINE, ends(*denied("1"), *later, SAID, ENDED), OnDenied.ASK).ok
    assert not judge(FINE, ends(*denied("1"), *other, SAID, ENDED), OnDenied.ASK).ok


def test_a_question_is_open_until_work_follows() -> None:
    """A question is open until the agent does work after it. Reading files is not work."""
    asked = (ToolStarted("1", "AskUserQuestion"), QuestionAsked("1", "Which one?", ("A", "B")))
    looked = (ToolStarted("2", "Read", "x"), ToolEnded("2", ok=True))
    worked = (ToolStarted("3", "Bash", "make"), ToolEnded("3", ok=True))
    left = judge(FINE, ends(*asked, *looked, SAID, ENDED), OnDenied.REPORT)
    assert (left.kind, left.detail) == (OutcomeKind.NEEDS_INPUT, "it asks: Which one? (A, B)")
    assert judge(FINE, ends(*asked, *worked, SAID, ENDED), OnDenied.REPORT).ok


@pytest.mark.parametrize(
    ("policy", "kind"),
    [
        (OnDenied.ASK, OutcomeKind.NEEDS_INPUT),
        (OnDenied.FAIL, OutcomeKind.DENIED),
        (OnDenied.REPORT, OutcomeKind.SUCCEEDED),
    ],
)
def test_the_policy_decides_what_a_denial_is_worth(policy: OnDenied, kind: OutcomeKind) -> None:
    assert judge(FINE, ends(*denied("1"), SAID, ENDED), policy).kind is kind


def test_words_alone_are_never_evidence() -> None:
    """The outcome does not change because the last sentence asks, doubts or boasts."""
    for words in ("Shall I go on?", "I could not do it.", "<b>denied</b> \x1b[31mrefused"):
        assert judge(FINE, ends(Said(words), ENDED), OnDenied.ASK).ok


def test_a_failure_stays_what_it_is() -> None:
    """A failed attempt keeps its reason, even if it has open questions."""
    failed = Outcome(kind=OutcomeKind.OVERLOADED, detail="no answer")
    assert judge(failed, ends(*denied("1")), OnDenied.ASK) == failed


@pytest.mark.parametrize("reason", ["max_tokens", "empty", "odd"])
def test_an_answer_that_broke_off_goes_on_at_once(reason: str) -> None:
    """After an answer that was truncated, the run is queued again at once, and the attempt
    counts."""
    outcome = judge(FINE, ends(SAID, ReplyCut(reason), ENDED), OnDenied.ASK)
    assert outcome.kind is OutcomeKind.TRUNCATED
    tally = Tally(counted=1, free=0, allowed=3)
    decision = decide(outcome, tally, ContinuityPolicy.DISCLOSE, 1000)
    assert (decision.state, decision.run_after) == (RunState.QUEUED, 1000)


@pytest.mark.parametrize("kind", [OutcomeKind.DENIED, OutcomeKind.REFUSED, OutcomeKind.NEEDS_INPUT])
def test_what_only_a_person_can_settle_is_not_tried_again(kind: OutcomeKind) -> None:
    tally = Tally(counted=1, free=0, allowed=3)
    decision = decide(Outcome(kind=kind), tally, ContinuityPolicy.DISCLOSE, 1000)
    assert decision.state is RunState.FAILED
    assert decision.condition is not None and decision.condition.type == "needs_person"


def test_a_denied_call_of_five_megabytes_is_kept_small() -> None:
    """Claude Code repeats the whole input in its result. Only the beginning of the input is kept.
    ANSI and HTML in it are treated like any other characters."""
    given = {"command": "\x1b[31m<script>alert(1)</script>" + "x" * 5_000_000}
    denial = {"tool_name": "Bash", "tool_use_id": "1", "tool_input": given}
    result = {"type": "result", "subtype": "success", "is_error": False, "num_turns": 1}
    line = json.dumps({**result, "result": "Done", "permission_denials": [denial]}).encode()
    events = registry.load("claude").parse(line)
    (found,) = [event for event in events if isinstance(event, ToolDenied)]
    assert found.name == "Bash" and len(found.summary) <= 5000
    detail = judge(FINE, ends(*events), OnDenied.ASK).detail
    assert len(detail) < 200 and detail.startswith("1 call was denied: Bash")


@pytest.mark.parametrize(
    "given",
    [
        {"status": "done"},
        {"status": "excellent", "summary": "", "questions": [], "follow_ups": []},
        {"status": "done", "summary": "", "questions": [1], "follow_ups": []},
        {"status": "done", "summary": None, "questions": [], "follow_ups": []},
        {"status": "done", "summary": "", "questions": "none", "follow_ups": []},
        {"status": ["done"], "summary": "", "questions": [], "follow_ups": []},
    ],
)
def test_a_last_word_of_another_form_is_none(given: dict[str, object]) -> None:
    """The agent's answer to the schema is checked like any untrusted input. An answer of another
    form is ignored."""
    line = {"type": "result", "subtype": "success", "is_error": False, "num_turns": 1}
    told = json.dumps({**line, "result": "x", "structured_output": given}).encode()
    found = registry.load("claude").parse(told)
    assert not [event for event in found if isinstance(event, LastWordGiven)]
