"""How full a conversation is, and what perdure does about it: the pure decisions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from perdure.model import (
    ContinuityPolicy,
    Fill,
    Measure,
    Session,
    SessionKey,
    SessionState,
    Snapshot,
    Start,
    WhenFull,
)
from perdure.rules import context_window
from perdure.rules.context_window import (
    FillRules,
    can_compact,
    compact_at,
    completed,
    is_full,
    measure,
    window_of,
)
from perdure.rules.continuation import Situation, choose

FULL = Fill(tokens=170_000, window=200_000)
ROOMY = Fill(tokens=100_000, window=200_000)

fills = st.builds(
    Fill, tokens=st.integers(0, 2_000_000), window=st.sampled_from([0, 200_000, 1_000_000])
)
rules = st.builds(FillRules, policy=st.sampled_from(WhenFull), percent=st.integers(10, 100))


@pytest.mark.parametrize(
    ("policy", "compacts", "in_vain", "expected"),
    [
        (WhenFull.CLI, True, False, Measure.NONE),
        (WhenFull.COMPACT, True, False, Measure.COMPACT),
        (WhenFull.COMPACT, True, True, Measure.ROLL_OVER),
        (WhenFull.COMPACT, False, False, Measure.NONE),
        (WhenFull.ROLL_OVER, True, False, Measure.ROLL_OVER),
        (WhenFull.STOP, True, False, Measure.STOP),
    ],
)
def test_what_comes_before_the_wall(
    policy: WhenFull, compacts: bool, in_vain: bool, expected: Measure
) -> None:
    """For a conversation over the limit, the policy decides what is done. A CLI that cannot be told
    to compact decides that by itself."""
    assert (
        measure(FillRules(policy=policy), FULL, compacts=compacts, exhausted=False, in_vain=in_vain)
        is expected
    )
    assert (
        measure(
            FillRules(policy=policy), ROOMY, compacts=compacts, exhausted=False, in_vain=in_vain
        )
        is Measure.NONE
    )


@pytest.mark.parametrize(
    ("policy", "compacts", "in_vain", "expected"),
    [
        (WhenFull.CLI, True, False, Measure.COMPACT),
        (WhenFull.CLI, False, False, Measure.ROLL_OVER),
        (WhenFull.COMPACT, True, False, Measure.COMPACT),
        (WhenFull.COMPACT, True, True, Measure.ROLL_OVER),
        (WhenFull.ROLL_OVER, True, False, Measure.ROLL_OVER),
        (WhenFull.STOP, True, False, Measure.STOP),
    ],
)
def test_what_comes_after_it(
    policy: WhenFull, compacts: bool, in_vain: bool, expected: Measure
) -> None:
    """After a request was refused as too long, the conversation is compacted or replaced, whatever
    the counts say."""
    assert (
        measure(FillRules(policy=policy), ROOMY, compacts=compacts, exhausted=True, in_vain=in_vain)
        is expected
    )


@given(rules, st.none() | fills, st.booleans(), st.booleans())
def test_an_exhausted_conversation_never_goes_on_as_it_is(
    rules: FillRules, fill: Fill | None, compacts: bool, in_vain: bool
) -> None:
    """In no combination an exhausted conversation is resumed unchanged, and nothing that failed is
    tried twice."""
    found = measure(rules, fill, compacts=compacts, exhausted=True, in_vain=in_vain)
    assert found is not Measure.NONE
    assert not (in_vain and found is Measure.COMPACT)


@given(rules, fills, st.booleans(), st.booleans())
def test_what_is_not_known_is_left_alone(
    rules: FillRules, fill: Fill, compacts: bool, in_vain: bool
) -> None:
    """If the window is unknown, or the fill is below the limit, nothing is done."""
    if not is_full(fill, rules):
        assert (
            measure(rules, fill, compacts=compacts, exhausted=False, in_vain=in_vain)
            is Measure.NONE
        )
    assert not is_full(replace(fill, window=0), rules)
    assert not is_full(None, rules)


@given(fills.filter(lambda fill: fill.tokens > 100), st.sampled_from(WhenFull))
def test_a_compaction_at_once_begins_below_what_is_there(fill: Fill, policy: WhenFull) -> None:
    """A CLI that must compact at once gets a level below the conversation's fill, and far above the
    size of a summary."""
    level = compact_at(FillRules(policy=policy), fill, "", now=True)
    assert level is not None
    assert fill.tokens // 2 < level.tokens < fill.tokens


def test_the_level_of_a_launch_is_the_policys() -> None:
    """A launch changes the CLI's own level only if perdure is to compact. If the window is unknown,
    the level is a percentage."""
    level = compact_at(FillRules(percent=70), None, "claude-sonnet-4-5", now=False)
    assert level is not None
    assert (level.tokens, level.window, level.percent) == (140_000, 200_000, 70)
    unknown = compact_at(FillRules(), None, "unheard-of", now=False)
    assert unknown is not None
    assert (unknown.tokens, unknown.percent) == (0, 80)
    for policy in set(WhenFull) - {WhenFull.COMPACT}:
        assert compact_at(FillRules(policy=policy), ROOMY, "", now=False) is None


@pytest.mark.parametrize(
    ("model", "told", "expected"),
    [
        ("claude-opus-5-5", 0, (1_000_000, "table")),
        ("us.anthropic.claude-sonnet-4-5-v1", 0, (200_000, "table")),
        ("gpt-5.6-sol", 258_400, (258_400, "agent")),
        ("Gemini-3-pro", 0, (1_048_576, "table")),
        ("my-model", 0, (0, "")),
        ("local-7b", 500_000, (32_768, "setting")),
    ],
)
def test_who_says_what_a_model_takes(model: str, told: int, expected: tuple[int, str]) -> None:
    """The window of a model is that of the setting, or else that of the agent, or else that of the
    table. Otherwise it is unknown."""
    assert window_of(model, told, FillRules(windows={"local-*": 32_768})) == expected


def test_what_the_agent_once_said_is_remembered_for_that_model() -> None:
    """A transcript does not repeat the window, so the last reported one is used. It is not used for
    another model."""
    known = Fill(tokens=5, window=1_234, model="a", source="agent")
    assert completed(Fill(tokens=9, model="a"), known, "", FillRules()).window == 1_234
    assert completed(Fill(tokens=9), known, "", FillRules()) == Fill(
        tokens=9, window=1_234, model="a", source="agent"
    )
    assert completed(Fill(tokens=9, model="b"), known, "", FillRules()).window == 0
    assert completed(Fill(tokens=9), None, "claude-opus-5", FillRules()).source == "table"


@pytest.mark.parametrize("following", list(Measure))
@pytest.mark.parametrize("continuity", list(ContinuityPolicy))
def test_when_a_person_is_asked(following: Measure, continuity: ContinuityPolicy) -> None:
    """A strict policy forbids a new conversation and allows a compaction; `stop` always asks."""
    expected = following is Measure.STOP or (
        following is Measure.ROLL_OVER and continuity is ContinuityPolicy.STRICT
    )
    assert context_window.asks_for_person(continuity, following) is expected


def test_a_planner_can_ask() -> None:
    """`can_compact` returns whether an agent can be asked to shorten a conversation."""
    assert can_compact(True, ROOMY, in_vain=False)
    assert not can_compact(False, ROOMY, in_vain=False)
    assert not can_compact(True, ROOMY, in_vain=True)
    assert not can_compact(True, None, in_vain=False)


@pytest.mark.parametrize("policy", list(ContinuityPolicy))
@pytest.mark.parametrize("needed", list(Measure))
def test_how_a_conversation_of_that_size_goes_on(policy: ContinuityPolicy, needed: Measure) -> None:
    """A conversation is compacted in place, replaced by a new one that names the old one, or
    refused. A strict policy never leads to a new conversation."""
    key = SessionKey("claude", "run:r")
    live = Session(
        key=key, id="old", state=SessionState.CONFIRMED, created=1, updated=2, attempts=1
    )
    there = Snapshot(path="/t", size=9, sha256="x", turns=2)
    chosen = choose(
        Situation(
            policy=policy,
            now=3,
            session=live,
            transcript=there,
            new_id="new",
            measure=needed,
            size="9 tokens of 10",
        )
    )
    may_begin = policy is not ContinuityPolicy.STRICT
    expected = {
        Measure.NONE: (Start.RESUME, "old", False, False),
        Measure.COMPACT: (Start.RESUME, "old", True, False),
        Measure.ROLL_OVER: (Start.REBUILD, "new", False, True)
        if may_begin
        else (Start.REFUSE, "old", False, False),
        Measure.STOP: (Start.REFUSE, "old", False, False),
    }[needed]
    assert (chosen.kind, chosen.session_id, chosen.compact, chosen.rolls_over) == expected
    assert needed is Measure.NONE or "9 tokens of 10" in chosen.reason
    assert chosen.kind is Start.RESUME or chosen.lost_session_id == "old"
