"""Evidence and verdict: what `native` requires, and the reason for each contradiction."""

from __future__ import annotations

import pytest
from hypothesis import assume, event, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from perdure.model import PUT_BACK, Continuation, Evidence, Rung, Snapshot, Start, Verdict
from perdure.rules.receipt import judge
from tests.pure.making import continuations, evidences

V = Verdict
BEFORE = Snapshot("/t.jsonl", 100, "a" * 64, 1)
AFTER = Snapshot("/t.jsonl", 180, "b" * 64, 2)
OTHER = "bbbb-2"

RESUME = Continuation(kind=Start.RESUME, session_id="aaaa-1")
FORK = Continuation(kind=Start.FORK, session_id="aaaa-1")
FRESH = Continuation(
    kind=Start.FRESH, session_id="aaaa-1", rung=Rung.FRESH, reason="started a new conversation"
)
REBUILD = Continuation(
    kind=Start.REBUILD,
    session_id="aaaa-1",
    rung=Rung.REBUILT,
    lost_session_id="old-0",
    reason="old-0 was lost",
)
COPY = replace(RESUME, rung=Rung.COPY)
PATH = replace(RESUME, rung=Rung.PATH)
MENDED = replace(
    RESUME, rung=Rung.REPAIRED, edits=tuple(f"line {n}: left out (torn)" for n in range(1, 31))
)

WENT_ON = Evidence(
    asked="aaaa-1",
    returned="aaaa-1",
    before=BEFORE,
    after=AFTER,
    last_known=BEFORE,
    prefix_kept=True,
    known_kept=True,
    prompt_found=True,
    answered=True,
)
FORKED = replace(WENT_ON, returned=OTHER, last_known=None, known_kept=None, parent_kept=True)
NAMED = replace(FORK, fork_id=OTHER)
BEGAN = Evidence(asked="aaaa-1", returned="aaaa-1", after=AFTER, prompt_found=True, answered=True)
LOADED = Evidence(asked="aaaa-1", returned="aaaa-1", answered=True, opened="loaded", replayed=4)
UNTOUCHED = replace(WENT_ON, returned="", after=BEFORE, prompt_found=False, answered=False)


def but(evidence: Evidence, **changed: object) -> Evidence:
    return replace(evidence, **changed)  # type: ignore[arg-type]


TABLE: dict[str, tuple[Continuation, Evidence, Verdict | None, str]] = {
    # a conversation that went on
    "it went on": (
        RESUME,
        WENT_ON,
        V.NATIVE,
        "the first 100 bytes of the transcript are unchanged, it grew to 180",
    ),
    "killed before it repeated its id": (
        RESUME,
        but(WENT_ON, returned=""),
        V.NATIVE,
        "not repeated by the agent",
    ),
    "killed before it answered": (
        RESUME,
        but(WENT_ON, answered=False),
        V.NATIVE,
        "whether it had asked the model yet is not known",
    ),
    "it saved the prompt and refused the history": (
        RESUME,
        but(WENT_ON, answered=False, prompt_found=None, refused=True),
        V.BROKEN,
        "the agent ended before its first turn, because it could not use the conversation",
    ),
    "killed before it said a word": (
        RESUME,
        but(WENT_ON, answered=False),
        V.NATIVE,
        "this attempt's prompt is in the new part",
    ),
    "nothing was known of it before": (
        RESUME,
        but(WENT_ON, last_known=None, known_kept=None),
        V.NATIVE,
        "same id aaaa-1",
    ),
    "by its path": (PATH, WENT_ON, V.NATIVE, "resumed by the path"),
    "from the whole copy": (COPY, WENT_ON, V.NATIVE, "perdure's own copy was restored"),
    "a stranger came before": (
        RESUME,
        but(WENT_ON, turns_between=2),
        V.NATIVE,
        "2 foreign prompt(s) were added between",
    ),
    "from the cache": (
        RESUME,
        but(WENT_ON, cached_tokens=9000),
        V.NATIVE,
        "9000 tokens came from the prompt cache",
    ),
    # a conversation that did not go on
    "another id": (
        RESUME,
        but(WENT_ON, returned=OTHER),
        V.BROKEN,
        "asked for aaaa-1, the agent opened bbbb-2",
    ),
    "another id, and not a word": (
        RESUME,
        but(UNTOUCHED, returned=OTHER),
        V.BROKEN,
        "the agent opened bbbb-2",
    ),
    "no transcript": (
        RESUME,
        but(WENT_ON, after=None, prefix_kept=None),
        V.BROKEN,
        "no transcript of it on disk",
    ),
    "history gone": (
        RESUME,
        but(WENT_ON, prefix_kept=False),
        V.BROKEN,
        "not the beginning of the transcript as it is now",
    ),
    "history gone before a word": (
        RESUME,
        but(UNTOUCHED, prefix_kept=False),
        V.BROKEN,
        "not the beginning of the transcript",
    ),
    "nothing to compare with": (
        RESUME,
        but(WENT_ON, before=None, prefix_kept=None),
        V.BROKEN,
        "not the beginning",
    ),
    "the prompt is not in it": (
        RESUME,
        but(WENT_ON, prompt_found=False),
        V.BROKEN,
        "this attempt's prompt is not in the transcript",
    ),
    "nobody looked for the prompt": (
        RESUME,
        but(WENT_ON, prompt_found=None),
        V.BROKEN,
        "prompt is not in the transcript",
    ),
    "not saved": (
        RESUME,
        but(WENT_ON, writes_lost="disk full"),
        V.BROKEN,
        "the agent could not save it: disk full",
    ),
    "a stranger at the same time": (
        RESUME,
        but(WENT_ON, foreign_turns=1),
        V.BROKEN,
        "1 foreign prompt(s) came into",
    ),
    "a stranger, and not a word": (
        RESUME,
        but(UNTOUCHED, foreign_turns=1),
        V.BROKEN,
        "foreign",
    ),
    "changed between": (
        RESUME,
        but(WENT_ON, known_kept=False),
        V.BROKEN,
        "changed between the attempts",
    ),
    "changed between, by its path": (
        PATH,
        but(WENT_ON, known_kept=False),
        V.BROKEN,
        "changed between the attempts",
    ),
    # only by the agent's claim
    "loaded, and all replayed": (
        RESUME,
        LOADED,
        V.REPLAYED,
        "holds all 4 prompts, answers and tool calls that perdure knows",
    ),
    "loaded, and nothing was known": (
        RESUME,
        but(LOADED, replayed=0),
        V.CLAIMED,
        "nothing else is known",
    ),
    "resumed": (
        RESUME,
        but(LOADED, opened="resumed", replayed=None),
        V.CLAIMED,
        "the agent says that it resumed conversation aaaa-1",
    ),
    "resumed, and no word": (
        RESUME,
        but(LOADED, answered=False),
        V.REPLAYED,
        "whether it had asked the model yet is not known",
    ),
    "loaded another": (
        RESUME,
        but(LOADED, returned=OTHER),
        V.BROKEN,
        "asked for aaaa-1, the agent opened bbbb-2",
    ),
    "a new one that cannot be read": (
        FRESH,
        but(LOADED, opened="new", replayed=None),
        V.FRESH,
        "started a new conversation",
    ),
    # repaired, forked, new
    "from an older copy": (
        COPY,
        but(WENT_ON, known_kept=False),
        V.REPAIRED,
        "own copy was restored first, and its newest part is missing",
    ),
    "from a mended copy": (
        MENDED,
        but(WENT_ON, known_kept=False),
        V.REPAIRED,
        "repaired the transcript first: line 1: left out (torn)",
    ),
    "from a much mended copy": (
        MENDED,
        WENT_ON,
        V.REPAIRED,
        "and 10 more change(s), all in the journal",
    ),
    "from a mended copy, and not in it": (
        MENDED,
        but(WENT_ON, prefix_kept=False),
        V.BROKEN,
        "not the beginning of the transcript",
    ),
    "a fork": (FORK, FORKED, V.FORKED, "begins with the first 1 turn(s) of aaaa-1"),
    "a fork at a turn": (
        replace(FORK, fork_at=3),
        FORKED,
        V.FORKED,
        "begins with the first 3 turn(s) of aaaa-1",
    ),
    "a fork with the id asked for": (NAMED, FORKED, V.FORKED, "the new conversation bbbb-2 begins"),
    "a fork killed before it repeated its id": (
        NAMED,
        but(FORKED, returned=""),
        V.FORKED,
        "the new conversation bbbb-2 begins",
    ),
    "a fork with another id than asked for": (
        NAMED,
        but(FORKED, returned="cccc-3"),
        V.BROKEN,
        "the agent opened cccc-3",
    ),
    "a fork that changed its parent": (
        FORK,
        but(FORKED, parent_kept=False),
        V.BROKEN,
        "the parent aaaa-1 was changed",
    ),
    "a fork whose parent was not looked at": (
        FORK,
        but(FORKED, parent_kept=None),
        V.BROKEN,
        "the parent aaaa-1 was changed",
    ),
    "a fork into its parent": (
        FORK,
        but(FORKED, returned="aaaa-1"),
        V.BROKEN,
        "the agent wrote into its parent aaaa-1",
    ),
    "a fork without a name": (
        FORK,
        but(FORKED, returned=""),
        V.BROKEN,
        "named no new conversation",
    ),
    "a fork without its parent": (
        FORK,
        but(FORKED, prefix_kept=False),
        V.BROKEN,
        "not the beginning",
    ),
    "a new one": (FRESH, BEGAN, V.FRESH, "started a new conversation"),
    "a new one with an id of its own": (
        replace(FRESH, session_id=""),
        but(BEGAN, asked="", returned=OTHER),
        V.FRESH,
        "started a new conversation",
    ),
    "a new one, other than asked": (
        FRESH,
        but(BEGAN, returned=OTHER),
        V.BROKEN,
        "asked for aaaa-1, the agent opened bbbb-2",
    ),
    "a new one with a stranger": (
        FRESH,
        but(BEGAN, foreign_turns=3),
        V.BROKEN,
        "3 foreign prompt(s)",
    ),
    "a new one, not saved": (
        FRESH,
        but(BEGAN, after=None),
        V.FRESH,
        "not saved by the agent (no transcript on disk)",
    ),
    "a new one, writes lost": (
        FRESH,
        but(BEGAN, writes_lost="disk full"),
        V.FRESH,
        "not saved by the agent (disk full)",
    ),
    "a stand-in": (REBUILD, BEGAN, V.REBUILT, "old-0 was lost"),
    # nothing to judge
    "never touched": (RESUME, UNTOUCHED, None, ""),
    "never touched, a fork": (FORK, but(UNTOUCHED, returned="", parent_kept=True), None, ""),
    "killed before the fork was there": (
        NAMED,
        but(UNTOUCHED, returned=OTHER, after=None, prefix_kept=None, parent_kept=True),
        None,
        "",
    ),
    "killed in the middle of copying": (
        NAMED,
        but(UNTOUCHED, returned=OTHER, prefix_kept=False, parent_kept=True),
        None,
        "",
    ),
    "gone before the agent looked": (
        RESUME,
        but(UNTOUCHED, after=None, prefix_kept=None),
        None,
        "",
    ),
    "waited": (Continuation(kind=Start.WAIT, session_id="aaaa-1"), UNTOUCHED, None, ""),
    "refused": (Continuation(kind=Start.REFUSE, session_id="aaaa-1"), UNTOUCHED, None, ""),
}


@pytest.mark.parametrize(("asked", "evidence", "verdict", "words"), TABLE.values(), ids=TABLE)
def test_the_verdict_on_evidence(
    asked: Continuation, evidence: Evidence, verdict: Verdict | None, words: str
) -> None:
    """Each kind of evidence gets its verdict, with the reason in words, the rung, and the evidence
    itself."""
    receipt = judge(asked, evidence)
    if verdict is None:
        assert receipt is None
        return
    assert receipt is not None
    assert receipt.verdict is verdict, receipt.reasons
    assert words in "\n".join(receipt.reasons)
    assert (receipt.rung, receipt.evidence) == (asked.rung, evidence)


def test_all_contradictions_are_named() -> None:
    """The receipt names every contradiction, not only the first one."""
    everything = but(
        WENT_ON,
        returned=OTHER,
        prefix_kept=False,
        prompt_found=False,
        writes_lost="full",
        foreign_turns=1,
        known_kept=False,
    )
    receipt = judge(RESUME, everything)
    assert receipt is not None
    assert len(receipt.reasons) == 6


@settings(max_examples=400)
@given(continuations, evidences)
def test_native_is_never_given_on_less_than_everything(
    asked: Continuation, evidence: Evidence
) -> None:
    """`native` requires that the conversation was resumed, the id is the same or none, the earlier
    content is unchanged, the prompt was found, there are no turns of others, nothing is unsaved,
    and the conversation is on disk."""
    receipt = judge(asked, evidence)
    event(receipt.verdict if receipt else "none")
    if receipt is None or receipt.verdict is not V.NATIVE:
        return
    assert asked.kind is Start.RESUME
    assert evidence.returned in ("", evidence.asked)
    assert evidence.before is not None
    assert evidence.after is not None
    assert evidence.prefix_kept is True
    assert evidence.known_kept is not False
    assert evidence.prompt_found is True
    assert not evidence.foreign_turns
    assert not evidence.writes_lost
    assert not evidence.refused


FLAWS = st.sampled_from(
    [
        {"returned": OTHER},
        {"before": None, "prefix_kept": None},
        {"before": None},
        {"after": None, "prefix_kept": None},
        {"prefix_kept": False},
        {"prefix_kept": None},
        {"prompt_found": False},
        {"prompt_found": None},
        {"foreign_turns": 1},
        {"writes_lost": "disk full"},
        {"known_kept": False},
        {"refused": True},
    ]
)


@given(FLAWS, st.sampled_from([RESUME, PATH, COPY, MENDED, FORK]))
def test_one_flaw_is_enough(flaw: dict[str, object], asked: Continuation) -> None:
    """Perfect evidence with any one flaw is never `native`. It is `forked` only if the flaw is
    normal for a fork."""
    receipt = judge(asked, but(replace(WENT_ON, parent_kept=asked is FORK or None), **flaw))
    assert receipt is not None
    if asked is FORK:
        assert (receipt.verdict is V.FORKED) == (flaw == {"returned": OTHER})
    elif asked in (COPY, MENDED) and flaw == {"known_kept": False}:
        assert receipt.verdict is V.REPAIRED
    else:
        assert receipt.verdict is V.BROKEN


@settings(max_examples=200)
@given(continuations, evidences)
def test_silence_only_where_nothing_was_touched(asked: Continuation, evidence: Evidence) -> None:
    """There is no receipt only if nothing of this attempt was added to a conversation and the
    requested one is unchanged."""
    assume(asked.kind not in (Start.WAIT, Start.REFUSE))
    if judge(asked, evidence) is None:
        assert asked.kind in (Start.RESUME, Start.FORK)
        assert not (evidence.answered or evidence.prompt_found or evidence.foreign_turns)
        assert not evidence.refused
        if asked.kind is Start.FORK:
            assert evidence.returned != evidence.asked
            assert evidence.parent_kept is not False
        else:
            assert evidence.returned in ("", evidence.asked)
            assert evidence.prefix_kept is not False


@settings(max_examples=200)
@given(continuations, evidences)
def test_a_verdict_fits_how_the_attempt_started(asked: Continuation, evidence: Evidence) -> None:
    """A new conversation is never called native, and an old one never fresh. Each receipt gives a
    reason, or the decision at the start of the attempt."""
    receipt = judge(asked, evidence)
    if receipt is None:
        return
    possible = {
        Start.FRESH: {V.FRESH, V.BROKEN},
        Start.REBUILD: {V.REBUILT, V.BROKEN},
        Start.RESUME: {V.NATIVE, V.REPAIRED, V.BROKEN},
        Start.FORK: {V.FORKED, V.BROKEN},
    }
    assert receipt.verdict in possible[asked.kind]
    assert receipt.reasons or not asked.reason
    if receipt.verdict is V.REPAIRED:
        assert asked.rung in PUT_BACK
    if receipt.verdict is V.FORKED:
        assert evidence.returned not in ("", evidence.asked)


def test_an_older_checkpoints_conversation_is_repaired_and_never_native() -> None:
    """A conversation that continued from a checkpoint's part has lost its newest turns. Its receipt
    says `repaired`, never `native`, and names the checkpoint."""
    asked = replace(RESUME, rung=Rung.CHECKPOINT, checkpoint=3)
    for known_kept in (True, False):
        receipt = judge(asked, replace(WENT_ON, known_kept=known_kept))
        assert receipt is not None and receipt.verdict is V.REPAIRED
        assert "checkpoint 3" in receipt.reasons[0]
