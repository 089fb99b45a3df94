"""The items that a resume would load, compared with the known ones (`perdure.model.loaded`)."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from perdure.agents.transcripts import fingerprint
from perdure.model import Item, ItemKind, Loaded, Relation, compare
from perdure.model.loaded import describe, digest, item

PROMPT, ANSWER = ItemKind.PROMPT, ItemKind.ANSWER
CALL, RESULT, SUMMARY = ItemKind.CALL, ItemKind.RESULT, ItemKind.SUMMARY


def turn(number: int) -> list[Item]:
    """Return a prompt, a call with its result, and an answer that is the same in every turn."""
    key = f"call-{number}"
    words = [
        item(PROMPT, f"do {number}"),
        item(CALL, f"make {number}", key),
        item(RESULT, f"made {number}", key),
    ]
    return [*words, item(ANSWER, "Done.")]


ONE, TWO, THREE = turn(1), turn(2), turn(3)
TALK = [*ONE, *TWO, *THREE]


def loaded(items: list[Item], **more: tuple[Item, ...]) -> Loaded:
    return Loaded(items=tuple(items), **more)


def test_all_that_was_known_is_shown() -> None:
    """If the resume loads all known items and new ones, none is missing."""
    found = compare([*ONE, *TWO], loaded(TALK))
    assert found.whole
    assert (found.known, found.shown, found.missing, found.inserted) == (8, 8, (), ())
    assert found.added == tuple(THREE)


def test_a_rewind_is_named_with_what_it_took() -> None:
    """If the newest turns are not loaded although they are still in the file, the finding is a
    rewind that names them."""
    found = compare(TALK, loaded(ONE, dropped=(*TWO, *THREE)))
    assert found.relation is Relation.SHORTENED
    assert found.missing == (*TWO, *THREE)
    assert found.off_branch == 8
    assert describe(found) == (
        "the model is shown 4 of 12 known items, 8 at its end are missing, the first of them the "
        'prompt "do 2"; '
        "8 of them are in the transcript, on a branch that is not loaded"
    )


def test_a_rewind_that_went_on_differently_is_shortened_too() -> None:
    """If another program's prompt replaces the last turns, it counts as an addition, and the
    conversation as shortened."""
    other = turn(9)
    found = compare(TALK, loaded([*ONE, *other], dropped=(*TWO, *THREE)))
    assert found.relation is Relation.SHORTENED
    assert found.added == tuple(other)
    assert found.prompts_added == (other[0],)


def test_a_repeated_answer_does_not_hide_what_is_missing() -> None:
    """Every turn ends with the same answer. A turn that is missing in the middle is still found."""
    found = compare(TALK, loaded([*ONE, *THREE]))
    assert found.relation is Relation.GAPS
    assert found.missing == tuple(TWO)


def test_a_summary_stands_for_what_was_compacted() -> None:
    """Items after a summary count as shown. Known items before it count as condensed, not as shown
    and not as missing."""
    summary = item(SUMMARY, "what happened")
    found = compare(TALK, loaded([summary, *THREE], condensed=(*ONE, *TWO)))
    assert (found.relation, found.shown, found.condensed, found.missing) == (
        Relation.COMPACTED,
        4,
        8,
        (),
    )
    assert found.inserted == (summary,)


def test_another_conversation_that_was_compacted_is_not_ours() -> None:
    """A summary replaces only items of its own transcript. Other items stay missing."""
    found = compare(
        TALK, loaded([item(SUMMARY, "other"), *turn(9)], condensed=(*turn(7), *turn(8)))
    )
    assert found.relation is not Relation.COMPACTED
    assert found.missing


def test_another_conversation_is_foreign() -> None:
    """Two conversations with nothing in common are different, however many items they have."""
    found = compare(
        [item(PROMPT, "ours"), item(ANSWER, "yes")],
        loaded([item(PROMPT, "theirs"), item(ANSWER, "no")]),
    )
    assert found.relation is Relation.FOREIGN
    assert "another conversation" in describe(found)


def test_nothing_left_is_shortened() -> None:
    """An empty transcript counts as shortened, not as another conversation."""
    assert compare(ONE, loaded([])).relation is Relation.SHORTENED


def test_nothing_known_is_always_whole() -> None:
    """If no items are known, none is missing."""
    assert compare([], loaded(TALK)).whole


def test_a_result_that_was_known_and_is_made_up_now_is_missing() -> None:
    """If the CLI now sends "outcome unknown" for a result that perdure has seen, that result is
    missing."""
    unknown = item(RESULT, "[Tool call interrupted]", "call-1", made_up=True)
    found = compare(ONE[:3], loaded([*ONE[:2], unknown]))
    assert found.relation is Relation.SHORTENED
    assert found.missing == (ONE[2],)


def test_an_item_of_which_only_the_key_is_known_is_found_by_it() -> None:
    """The journal knows a call's id, but not all bytes of its result. The item is found by the
    id."""
    found = compare([ONE[0], Item(CALL, "call-1"), Item(RESULT, "call-1")], loaded(TALK))
    assert found.whole


def test_a_result_with_another_content_is_named_as_altered() -> None:
    """A result counts as altered if bytes of the tool's output were changed, or if the CLI cleared
    it."""
    other = item(RESULT, "something else", "call-2")
    found = compare(TALK, loaded([*ONE, *TWO[:2], other, TWO[3], *THREE]))
    assert found.relation is Relation.GAPS
    assert found.altered == found.missing == (TWO[2],)


def test_foreign_prompts_between_known_ones_are_told_from_those_behind() -> None:
    """The finding says whether another program's prompt is between known items or after them."""
    stranger = item(PROMPT, "me too")
    found = compare([*ONE, *TWO], loaded([*ONE, stranger, *TWO, *THREE]))
    assert found.whole
    assert found.inserted == (stranger,)
    assert found.prompts_added == (stranger, THREE[0])


def test_a_prompt_has_the_mark_that_the_engine_keeps_of_it() -> None:
    """Session records keep fingerprints of prompts. They equal the marks of the items, so that both
    can be compared."""
    assert digest("one\n two ") == fingerprint("one two") == item(PROMPT, "one two").digest


ITEMS = st.lists(
    st.builds(
        lambda kind, text, key: item(kind, text, key if kind in (CALL, RESULT) else ""),
        st.sampled_from([PROMPT, ANSWER, CALL, RESULT]),
        st.sampled_from("abc"),
        st.sampled_from("123"),
    ),
    max_size=12,
)


@given(ITEMS, ITEMS, ITEMS)
def test_a_conversation_that_only_grew_is_always_whole(
    known: list[Item], more: list[Item], dropped: list[Item]
) -> None:
    """Items after the known ones, or on other branches, do not change the verdict."""
    assert compare(known, loaded([*known, *more], dropped=tuple(dropped))).whole


@given(ITEMS, ITEMS)
def test_every_known_item_is_accounted_for_once(known: list[Item], there: list[Item]) -> None:
    """Each known item is shown, condensed or missing. Each loaded item is known, inserted or added."""
    found = compare(known, loaded(there))
    assert found.shown + found.condensed + len(found.missing) == found.known == len(known)
    assert found.shown + len(found.inserted) + len(found.added) == len(there)
    assert found.whole == (not found.missing)


def test_a_word_that_is_always_said_proves_nothing() -> None:
    """Two conversations that share only a repeated word are different. Ten thousand repetitions
    take little time."""
    same = [item(ANSWER, "OK.") for _ in range(20_000)]
    assert (
        compare([item(PROMPT, "a"), *same], loaded([item(PROMPT, "b"), *same])).relation
        is Relation.FOREIGN
    )
