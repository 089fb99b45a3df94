"""The known items that the model has been shown, compared with the items of a transcript and of the
journal."""

from __future__ import annotations

import pytest

from perdure.engine.attempt.baseline import (
    Journaled,
    count_fully_quoted,
    shown_of,
    unrecorded,
    with_added,
    with_ids_of,
)
from perdure.model import (
    Continuation,
    Evidence,
    Item,
    ItemKind,
    Loaded,
    Relation,
    Rung,
    Shown,
    Snapshot,
    Start,
    TranscriptCondition,
    Verdict,
)
from perdure.model.loaded import call, item
from perdure.rules.receipt import judge

P, Q = item(ItemKind.PROMPT, "Do it."), item(ItemKind.PROMPT, "Go on.")
CALL, RESULT = call("c1", "Bash", {}, "echo one"), item(ItemKind.RESULT, "one", "c1")
MADE_UP = item(ItemKind.RESULT, "interrupted", "c1", made_up=True)
SAID = item(ItemKind.ANSWER, "Done.")
SUMMARY = item(ItemKind.SUMMARY, "What happened.")


def told(*items: Item) -> list[Journaled]:
    """Return items as the journal has them: with the ids of calls and results, but without their
    text."""
    return [
        Journaled(
            item=Item(each.kind, each.key, "" if each.key else each.digest),
            attempt=0,
            words="echo one",
        )
        for each in items
    ]


EVERYTHING = told(P, CALL, RESULT, SAID)


THEIRS = (item(ItemKind.PROMPT, "Somebody else asks."), item(ItemKind.ANSWER, "An answer."))


def test_what_somebody_else_added_is_not_in_the_copy() -> None:
    """If another program's prompt and items follow the items of the copy in the transcript, only
    the items of the copy count as known."""
    copy = Loaded(items=(P, CALL, RESULT, SAID))
    strange = frozenset({THEIRS[0].digest})
    added = with_added(copy, Loaded(items=(*copy.items, *THEIRS, Q)), strange)
    assert added == Loaded(items=(*copy.items, *THEIRS, Q))
    found = shown_of(added, copy, EVERYTHING)
    assert (found.relation, found.known, found.shown) == (Relation.SHORTENED, 7, 4)
    assert found.missing[0] == 'prompt "Somebody else asks."'
    assert with_added(copy, Loaded(items=(*copy.items, Q)), strange) is None
    # The other program's branch leaves out items that the copy has.
    beside = with_added(copy, Loaded(items=(P, *THEIRS), dropped=(CALL, RESULT, SAID)), strange)
    assert beside == Loaded(items=(*copy.items, *THEIRS))


@pytest.mark.parametrize(
    ("base", "now", "relation", "unrecorded", "off_branch", "condensed"),
    [
        (None, Loaded(items=(P, CALL, RESULT, SAID)), Relation.WHOLE, 0, 0, 0),
        (None, Loaded(items=(P, CALL, MADE_UP, SAID)), Relation.GAPS, 1, 0, 0),
        (None, Loaded(items=(P,)), Relation.GAPS, 3, 0, 0),
        (None, Loaded(items=(P, CALL, RESULT), dropped=(SAID,)), Relation.SHORTENED, 0, 1, 0),
        (
            None,
            Loaded(items=(SUMMARY,), condensed=(P, CALL, RESULT, SAID)),
            Relation.COMPACTED,
            0,
            0,
            4,
        ),
        (
            Loaded(items=(P, CALL, RESULT, SAID)),
            Loaded(items=(P, CALL, RESULT, SAID, Q)),
            Relation.WHOLE,
            0,
            0,
            0,
        ),
        (
            Loaded(items=(P, CALL, RESULT, SAID)),
            Loaded(items=(P, Q), dropped=(CALL, RESULT, SAID)),
            Relation.SHORTENED,
            0,
            3,
            0,
        ),
    ],
    ids=[
        "whole",
        "a result made up",
        "most is gone",
        "rewound",
        "compacted",
        "grown",
        "rewound since",
    ],
)
def test_what_is_shown(
    base: Loaded | None,
    now: Loaded,
    relation: Relation,
    unrecorded: int,
    off_branch: int,
    condensed: int,
) -> None:
    """Each way to lose a known item is told apart and counted."""
    found = shown_of(base, now, EVERYTHING)
    assert (found.relation, found.unrecorded, found.off_branch, found.condensed) == (
        relation,
        unrecorded,
        off_branch,
        condensed,
    )
    assert bool(found.missing) == bool(unrecorded or off_branch)
    assert found.known >= found.shown + condensed


def test_the_journal_tells_what_no_transcript_has() -> None:
    """A result that the CLI invented does not count. The result in the journal is used instead."""
    (left,) = unrecorded(Loaded(items=(P, CALL, MADE_UP, SAID)), EVERYTHING)
    assert left.item.key == "c1" and left.item.kind is ItemKind.RESULT


def journaled(kind: ItemKind, words: str = "w", output: str = "") -> Journaled:
    return Journaled(item=Item(kind, "c1", "x"), attempt=0, words=words, output=output)


@pytest.mark.parametrize(
    ("untold", "count"),
    [
        ([journaled(ItemKind.RESULT, output="o" * 400)], 1),
        ([journaled(ItemKind.RESULT, output="o" * 500)], 0),
        ([journaled(ItemKind.ANSWER)], 1),
        ([journaled(ItemKind.ANSWER, words="w" * 400)], 0),
        ([journaled(ItemKind.ANSWER), journaled(ItemKind.CALL)], 2),
        ([journaled(ItemKind.CALL), journaled(ItemKind.RESULT)], 1),
        ([journaled(ItemKind.CALL), journaled(ItemKind.RESULT), journaled(ItemKind.ANSWER)], 2),
        ([journaled(ItemKind.PROMPT)], 0),
    ],
)
def test_what_the_prompt_tells_in_full(untold: list[Journaled], count: int) -> None:
    """A result that was cut, in the journal or in the prompt, does not count as told. A call or an
    answer before that result does not count either: only the history can show it to the model."""
    assert count_fully_quoted(untold) == count


def _codex(words: str, key: str, *, attempt: int = 0) -> list[Journaled]:
    return [
        Journaled(item=Item(kind, key), attempt=attempt, words=words)
        for kind in (ItemKind.CALL, ItemKind.RESULT)
    ]


def test_ids_of_an_agent_that_counts_its_calls() -> None:
    """If the agent numbers its calls by itself, calls are matched by their commands, else by their
    order. A call without a match is missing."""
    rows = Loaded(
        items=(
            item(ItemKind.PROMPT, "Before."),
            call("c0", "shell", {}, "echo before"),
            P,
            call("c1", "shell", {}, "echo one"),
            item(ItemKind.RESULT, "one", "c1"),
            call("c2", "shell", {}, "something else"),
            item(ItemKind.RESULT, "two", "c2"),
        )
    )
    journal = [
        *told(P),
        *_codex("/bin/bash -lc 'echo two'", "item_1"),
        *_codex("/bin/bash -lc 'echo one'", "item_2"),
        *_codex("/bin/bash -lc 'echo three'", "item_1", attempt=1),
    ]
    found = with_ids_of(rows, journal)
    assert [each.item.key for each in found] == ["", "c2", "c2", "c1", "c1", "item_1", "item_1"]
    assert [each.item.kind for each in unrecorded(rows, found)] == [ItemKind.CALL, ItemKind.RESULT]


def test_nothing_is_matched_before_the_first_known_prompt() -> None:
    """If a transcript lacks the prompt of the journal, none of the journal's calls is found in it,
    whatever it contains."""
    rows = Loaded(items=(Q, call("c1", "shell", {}, "echo one")))
    found = with_ids_of(rows, [*told(P), *_codex("echo one", "item_1")])
    assert len(unrecorded(rows, found)) == 3


BEFORE, AFTER = Snapshot("/t", 100, "a" * 64, 1), Snapshot("/t", 180, "b" * 64, 2)
WENT_ON = Evidence(
    asked="aaaa-1",
    returned="aaaa-1",
    before=BEFORE,
    after=AFTER,
    prefix_kept=True,
    prompt_found=True,
    answered=True,
)


@pytest.mark.parametrize(
    ("shown", "rung", "verdict", "words"),
    [
        (None, Rung.NATIVE, Verdict.NATIVE, "same id"),
        (Shown(known=5, shown=5), Rung.NATIVE, Verdict.NATIVE, "same id"),
        (Shown(known=5, shown=5), Rung.COPY, Verdict.NATIVE, "it has all that perdure knows"),
        (
            Shown(
                relation=Relation.GAPS, known=5, shown=4, unrecorded=1, missing=("result of `x`",)
            ),
            Rung.NATIVE,
            Verdict.REPAIRED,
            "1 are in no transcript any more",
        ),
        (
            Shown(
                relation=Relation.GAPS,
                known=5,
                shown=4,
                unrecorded=1,
                told=1,
                missing=("result of `x`",),
            ),
            Rung.NATIVE,
            Verdict.NATIVE,
            "the prompt gave the agent",
        ),
        (
            Shown(relation=Relation.GAPS, known=5, shown=4, unrecorded=1, told=1),
            Rung.COPY,
            Verdict.REPAIRED,
            "1 are in no transcript any more",
        ),
        (
            Shown(relation=Relation.GAPS, known=5, shown=2, unrecorded=3),
            Rung.COPY,
            Verdict.REPAIRED,
            "2 of the 5",
        ),
        (
            Shown(relation=Relation.SHORTENED, known=5, shown=2, off_branch=3),
            Rung.NATIVE,
            Verdict.SHORTENED,
            "the agent does not load them",
        ),
        (
            Shown(relation=Relation.COMPACTED, known=5, shown=1, condensed=4),
            Rung.NATIVE,
            Verdict.COMPACTED,
            "a summary by the agent replaces",
        ),
        (
            Shown(relation=Relation.GAPS, known=5, shown=1, condensed=3, unrecorded=1, told=1),
            Rung.NATIVE,
            Verdict.COMPACTED,
            "the prompt gave the agent",
        ),
        (
            Shown(known=5, shown=5, damaged=2),
            Rung.NATIVE,
            Verdict.REPAIRED,
            "2 damaged line(s) of the transcript",
        ),
        (
            Shown(relation=Relation.COMPACTED, known=5, shown=1, condensed=4, damaged=1),
            Rung.NATIVE,
            Verdict.REPAIRED,
            "1 damaged line(s) of the transcript",
        ),
    ],
)
def test_the_verdict_by_what_was_shown(
    shown: Shown | None, rung: Rung, verdict: Verdict, words: str
) -> None:
    """The verdict is native only if all known items were shown. The reasons name the missing ones."""
    asked = Continuation(
        kind=Start.RESUME,
        session_id="aaaa-1",
        rung=rung,
        shown=shown,
        standing=TranscriptCondition.CHANGED,
    )
    receipt = judge(asked, WENT_ON)
    assert receipt is not None
    assert receipt.verdict is verdict, receipt.reasons
    assert words in "; ".join(receipt.reasons)
