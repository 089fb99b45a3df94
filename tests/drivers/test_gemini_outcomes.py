"""The parser and the classifier on recorded output of the real Gemini CLI (`recorded/gemini.json`:
0.61.0; paths and ports replaced)."""

from __future__ import annotations

import json
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from perdure.agents import registry
from perdure.engine.attempt.event_totals import Joiner
from perdure.model import Exit, OutcomeKind, Usage, codec
from perdure.model.events import (
    MAX_TEXT,
    Said,
    SaidPart,
    SessionSeen,
    ToolEnded,
    ToolStarted,
    TurnEnded,
    Unrecognised,
    UsageSeen,
)

K = OutcomeKind
AT = 1795246963_000
GEMINI = registry.load("gemini")


@cache
def recorded() -> dict[str, Any]:
    return json.loads((Path(__file__).parent / "recorded" / "gemini.json").read_text())


def events(name: str) -> list[Any]:
    return list(
        chain.from_iterable(GEMINI.parse(line.encode()) for line in recorded()[name]["stdout"])
    )


def exit_of(name: str) -> Exit:
    run = recorded()[name]
    return Exit(code=run["code"], signal=run["signal"], stderr_tail=run["stderr"], at=AT)


EXPECTED = {
    "ok": (K.SUCCEEDED, ""),
    "tool": (K.SUCCEEDED, ""),
    "toolfail": (K.SUCCEEDED, ""),
    "denied": (K.SUCCEEDED, ""),
    "resume": (K.SUCCEEDED, ""),
    "unknown": (K.SESSION_MISSING, "Invalid session identifier"),
    "nosessions": (K.SESSION_MISSING, "No previous sessions found"),
    "empty": (K.SESSION_MISSING, "No previous sessions found"),
    "inuse": (K.WRITER_CONFLICT, "already exists"),
    "400": (K.FAILED, "refused by the rehearsal"),
    "400-call": (K.SESSION_BROKEN, "function response parts"),
    "400-context": (K.CONTEXT_EXHAUSTED, "exceeds the maximum"),
    "400-key": (K.AUTH_FAILED, "API key not valid"),
    "401": (K.AUTH_FAILED, "401"),
    "403": (K.AUTH_FAILED, "PERMISSION_DENIED"),
    "nokey": (K.AUTH_FAILED, "GEMINI_API_KEY"),
    "noauth": (K.AUTH_FAILED, "Invalid auth method"),
    "429-none": (K.AUTH_FAILED, "limit: 0"),
    "404": (K.CONFIG_ERROR, "is not found for API version"),
    "untrusted": (K.CONFIG_ERROR, "trusted directory"),
    "badflag": (K.CONFIG_ERROR, "does not know an argument"),
    "badmode": (K.CONFIG_ERROR, "does not take its value"),
    "badsettings": (K.CONFIG_ERROR, "fix the configuration"),
    "empty-prompt": (K.CONFIG_ERROR, "No input provided"),
    "429": (K.RATE_LIMITED, "exhausted"),
    "429-limit": (K.RATE_LIMITED, "exceeded your current quota"),
    "429-limit-long": (K.RATE_LIMITED, "exceeded your current quota"),
    "429-daily": (K.RATE_LIMITED, "daily quota"),
    "500": (K.OVERLOADED, "500"),
    "503": (K.OVERLOADED, "overloaded"),
    "cut": (K.OVERLOADED, "terminated"),
    "cut-clean": (K.OVERLOADED, "without a finish reason"),
    "refused": (K.OVERLOADED, "fetch failed"),
    "maxturns": (K.MAX_TURNS, "max session turns"),
    "sigterm": (K.FAILED, "without a result"),
    "sigint": (K.FAILED, "without a result"),
    "sigkill": (K.FAILED, "killed by SIGKILL"),
}


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [(name, *found) for name, found in EXPECTED.items()],
    ids=list(EXPECTED),
)
def test_each_recorded_end_has_its_outcome(name: str, kind: OutcomeKind, words: str) -> None:
    """The recorded output of the real CLI gets the right kind of outcome, and the CLI's own words
    are kept."""
    found = GEMINI.outcome(exit_of(name), events(name))
    assert found.kind is kind, found
    assert words in found.detail
    assert (found.code, found.signal) == (recorded()[name]["code"], recorded()[name]["signal"])
    assert "\n" not in found.detail
    assert "\x1b" not in found.detail


def test_no_recording_is_left_out() -> None:
    """Every recording has an expectation, and no line of the real CLI is unknown."""
    assert set(recorded()) == set(EXPECTED)
    assert not [
        event for name in recorded() for event in events(name) if isinstance(event, Unrecognised)
    ]


@pytest.mark.parametrize(
    ("name", "seconds"),
    [("429-limit", 120), ("429-limit-long", 7200), ("429-daily", None), ("429", None)],
)
def test_the_end_of_a_limit_is_known(name: str, seconds: int | None) -> None:
    """The end of a limit is computed from the seconds in the sentence. It is None if there are
    none."""
    assert GEMINI.outcome(exit_of(name), events(name)).until == (
        None if seconds is None else AT + seconds * 1000
    )


@pytest.mark.parametrize(
    ("cause", "kind"),
    [("deadline", K.TIMED_OUT), ("stalled", K.STALLED), ("stopped", K.CANCELLED), ("lost", K.LOST)],
)
@pytest.mark.parametrize("name", ["ok", "500", "429", "unknown"])
def test_who_was_stopped_by_perdure_did_not_fail(cause: str, kind: OutcomeKind, name: str) -> None:
    """If perdure ended the agent, perdure's reason decides the outcome, not the agent's output."""
    assert GEMINI.outcome(replace(exit_of(name), cause=cause), events(name)).kind is kind


@pytest.mark.parametrize("end", [Exit(code=1), Exit(code=None), Exit(signal=9), Exit(code=173)])
def test_a_good_result_is_no_success_without_exit_code_zero(end: Exit) -> None:
    """The agent's own success message without exit code 0 is not a success."""
    assert GEMINI.outcome(end, events("ok")).kind is K.FAILED


def test_exit_code_zero_is_no_success_without_a_good_result() -> None:
    """Exit code 0 is no success if there is no result, or if an error came before the result: the
    CLI says `success` even after too many turns."""
    before = [event for event in events("ok") if not isinstance(event, TurnEnded)]
    assert GEMINI.outcome(Exit(code=0), before).kind is K.FAILED
    assert GEMINI.outcome(Exit(code=0), []).kind is K.FAILED
    error = GEMINI.parse(
        b'{"type":"error","severity":"error","message":"Maximum session turns exceeded"}'
    )
    assert GEMINI.outcome(Exit(code=0), [*error, *events("ok")]).kind is K.MAX_TURNS
    warning = GEMINI.parse(b'{"type":"error","severity":"warning","message":"Loop detected"}')
    assert GEMINI.outcome(Exit(code=0), [*warning, *events("ok")]).ok


def test_a_tool_is_seen_with_its_command_and_its_end() -> None:
    """The events name the conversation, the tool, its command, its output and the answer. The
    counts are only those of this launch."""
    found = events("tool")
    started, ended = (
        next(e for e in found if isinstance(e, ToolStarted)),
        next(e for e in found if isinstance(e, ToolEnded)),
    )
    assert isinstance(found[0], SessionSeen)
    assert started.summary == "id -u; touch made"
    assert (ended.tool_id, ended.ok, ended.summary.strip()) == (started.tool_id, True, "0")
    assert [event for event in found if isinstance(event, UsageSeen)] == [
        UsageSeen(Usage(input=200, output=14), cumulative=False)
    ]
    refused = next(event for event in events("denied") if isinstance(event, ToolEnded))
    assert not refused.ok
    assert "not found" in refused.summary


def joined(found: list[Any]) -> list[Any]:
    joiner = Joiner()
    return [*chain.from_iterable(joiner.add(event) for event in found), *joiner.rest()]


def test_the_pieces_of_an_answer_become_one() -> None:
    """The pieces of an answer are joined to one text before the event that follows them, and no
    piece is left over. Other events are not changed."""
    found = events("tool")
    assert any(isinstance(event, SaidPart) for event in found)
    whole = joined(found)
    assert [event.text for event in whole if isinstance(event, Said)] == ["I look.", "answer 2"]
    assert not any(isinstance(event, SaidPart) for event in whole)
    assert [event for event in whole if not isinstance(event, Said)] == [
        event for event in found if not isinstance(event, SaidPart)
    ]
    assert isinstance(whole[whole.index(Said("I look.")) + 1], ToolStarted)
    assert joined(found[:3]) == [*found[:2], Said(found[2].text)]


def test_no_text_grows_over_the_limit() -> None:
    """A long answer becomes several texts, and none of it is lost."""
    whole = joined([SaidPart("x" * 1000) for _ in range(40)])
    assert all(len(event.text) <= MAX_TEXT for event in whole)
    assert sum(len(event.text) for event in whole) == 40_000


words = st.sampled_from(
    (
        "init",
        "message",
        "tool_use",
        "tool_result",
        "error",
        "result",
        "role",
        "user",
        "content",
        "stats",
        "status",
    )
) | st.text(max_size=20)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | words
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(words, inner, max_size=5),
    max_leaves=25,
)


@settings(max_examples=150, deadline=None)
@given(
    kind=words,
    rest=st.dictionaries(words, values, max_size=6),
    cut=st.integers(0, 400),
    junk=st.binary(max_size=5),
)
def test_any_line_is_events(kind: str, rest: dict[str, Any], cut: int, junk: bytes) -> None:
    """No JSON raises an error, whatever the types of its fields are, complete, torn or with broken
    bytes. Unknown lines are kept."""
    line = json.dumps({**rest, "type": kind}).encode("utf-8", "surrogatepass")
    for each in (line, line[:cut] + junk, line[:cut] + junk + line[cut:]):
        found = GEMINI.parse(each)
        for event in found:
            assert codec.decode_event(codec.encode(event)) == event
        GEMINI.outcome(Exit(code=1, at=1), found)
        GEMINI.prompts(each)
    assert GEMINI.parse(b'{"type":"brand_new"}') == (Unrecognised('{"type":"brand_new"}'),)
