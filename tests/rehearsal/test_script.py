"""The script language."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.agents.rehearsal import ScriptError, parse
from perdure.agents.rehearsal.script import (
    Cut,
    Fail,
    Hang,
    Hold,
    Limit,
    RunTool,
    Say,
    ScriptedReply,
    Slow,
    TokenCounts,
)


def test_every_action_is_read():
    """A script with all actions, comments and blank lines becomes the replies that it describes."""
    (script,) = parse(
        """
        # a comment
        match fix the test
        by history
        fail 529 x2
        limit 1.5
        usage in=1 cached=3
        slow 0.25
        say two words   # not a comment

        run echo "a b" && exit 3
        hold /tmp/go on
        hang x2
        ---
        cut
        """
    )
    assert script.match == "fix the test"
    assert script.by_history
    assert script.replies == (
        ScriptedReply(
            (
                Fail(529, 2),
                Limit(1.5),
                TokenCounts(1, 7, 3),
                Slow(0.25),
                Say("two words   # not a comment"),
                RunTool('echo "a b" && exit 3'),
                Hold("/tmp/go on"),
                Hang(2),
            )
        ),
        ScriptedReply((Cut(),)),
    )


def test_several_scripts_stand_in_one_text():
    """A line === separates scripts, each with its own match."""
    first, second = parse("match one\nsay 1\n===\nsay 2\n---\nsay 3")
    assert (first.match, len(first.replies), second.match, len(second.replies)) == ("one", 1, "", 2)


def test_a_script_may_be_empty():
    """A script without replies answers every request with `Done.`."""
    (script,) = parse("# nothing\n")
    assert script.replies == ()


def test_the_marks_of_a_reply_are_what_it_leaves_in_a_history():
    """The marks of a reply are what remains of it in a history: its text with all lines joined, and
    each command. Other actions leave no mark."""
    (script,) = parse("say a\nslow 1\nsay b\nrun c\nsay d\nusage in=1")
    assert script.replies[0].marks == (("say", "a\nb"), ("run", "c"), ("say", "d"))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("say a\nshout b", "line 2: unknown action 'shout'"),
        ("say", "line 1: say: a text is missing"),
        ("run   ", "line 1: run: a text is missing"),
        ("slow fast", "line 1: slow: expected seconds, not 'fast'"),
        ("slow -1", "line 1: slow: expected seconds"),
        ("fail 200", "line 1: fail: expected an HTTP status"),
        ("fail 500 twice", "line 1: fail: expected xK"),
        ("fail 500 x0", "line 1: fail: expected xK"),
        ("limit", "line 1: limit: expected seconds"),
        ("usage in=many", "line 1: usage: expected in=N"),
        ("usage", "line 1: usage: a text is missing"),
        ("hang 3", "line 1: hang: expected xK"),
        ("say a\nfail 500", "line 2: fail must stand before"),
        ("say a\n---\n---\nsay b", "line 3: a reply without an action"),
        ("say a\n---", "line 2: a reply without an action"),
        ("say a\nmatch b", "line 2: match must stand at the top"),
        ("match", "line 1: match: a text is missing"),
        ("by chance", "line 1: by: expected 'history'"),
    ],
)
def test_an_error_names_its_line(text: str, complaint: str):
    """An unreadable line is refused with its number and with what was expected there."""
    with pytest.raises(ScriptError) as caught:
        parse(text)
    assert str(caught.value).startswith(complaint)


@given(st.text())
def test_any_text_is_read_or_refused(text: str):
    """Any input gives scripts or a ScriptError."""
    try:
        assert len(parse(text)) >= 1
    except ScriptError as error:
        assert str(error).startswith("line ")


@given(st.text(alphabet="ab \t\u2003é", min_size=1), st.integers(1, 20))
def test_the_pieces_of_a_text_make_the_text(text: str, most: int):
    """The pieces into which a text is cut make up exactly the text."""
    pieces = Say(text).pieces(most)
    assert "".join(pieces) == text
    assert len(pieces) <= most
