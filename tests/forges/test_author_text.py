"""Mentions and commands in text that the author wrote, in the Markdown of the forges. The cost is
bounded for any text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.forge.dispatch.coalesce import difference
from perdure.forge.webhooks.author_text import mentioned, stop_commands, visible_text
from perdure.forge.webhooks.hunks import end_of, hunk_at

OWN_WORDS = [
    "@dev-bot fix it",
    "a\n\n> what now?\n\n@dev-bot fix it",
    "```\ncode\n```\n@dev-bot fix it",
    "````\n```\n````\n@dev-bot fix it",
    "~~~sh\n```\n~~~\n@dev-bot fix it",
    "- a list\n\n    @dev-bot fix it",
    "`a` and @dev-bot, `b`",
    "a ` alone, @dev-bot fix it",
    "<!-- a comment --> @dev-bot fix it <!-- no end",
    "a <!-- no end\n@dev-bot fix it",
    "```\n<!-- no end\n```\n@dev-bot fix it",
    "a\n\n    <!-- no end\n\n@dev-bot fix it",
    "a paragraph\n    @dev-bot, which only goes on",
    "(@dev-bot)",
    "> quoted\n- @dev-bot fix it",
]
OTHERS = [
    "> @dev-bot fix it",
    ">@dev-bot fix it",
    "   > > @dev-bot fix it",
    "> a quote\nthat goes on with @dev-bot",
    "```\n@dev-bot fix it\n```",
    "```\n@dev-bot fix it",
    "~~~\n@dev-bot\n```\n@dev-bot\n~~~",
    "a\n\n    @dev-bot fix it",
    "\t@dev-bot fix it",
    "`@dev-bot`",
    "``a ` @dev-bot``",
    "`a\n@dev-bot`",
    "<!-- @dev-bot fix it -->",
    "<!--\n@dev-bot\n-->",
    "<!-- @dev-bot fix it",
    "Thanks.\n  <!-- no end\n\n@dev-bot fix it",
    "<!-- a --><!-- no end\n@dev-bot fix it",
    "- <!-- no end\n  @dev-bot fix it",
    "1. a\n    <!-- no end\n    @dev-bot fix it",
    "mail@dev-bot.example, a/@dev-bot, x@dev-bot",
]


@pytest.mark.parametrize("text", OWN_WORDS)
def test_who_is_called(text: str) -> None:
    """A login in the author's own text is mentioned."""
    assert mentioned(text) == ("dev-bot",)


@pytest.mark.parametrize("text", OTHERS)
def test_who_is_not_called(text: str) -> None:
    """A login in a quote, in code or in an HTML comment is not mentioned."""
    assert mentioned(text) == ()


@pytest.mark.parametrize(
    ("text", "logins"),
    [
        ("@dev-bot stop", ("dev-bot",)),
        ("@Dev-Bot: STOP!", ("Dev-Bot",)),
        ("Thanks.\n@dev-bot, please stop\n@eye-bot stop.", ("dev-bot", "eye-bot")),
        ("Will @dev-bot stop", ()),
        ("@dev-bot stop the server", ()),
        ("@dev-bot don't stop", ()),
        ("> @dev-bot stop", ()),
        ("stop", ()),
    ],
)
def test_who_is_told_to_stop(text: str, logins: tuple[str, ...]) -> None:
    """The command to stop must be on a line of its own and name a login."""
    assert stop_commands(text) == logins


@given(st.text(alphabet="`~>@-* \n\tabc<!", max_size=300))
def test_what_is_left_is_said(text: str) -> None:
    """For any text, the result contains only lines of that text, and only logins that the text has
    are mentioned."""
    assert set(visible_text(text)) <= set(text) | {" ", "\n"}
    assert all(login in text for login in mentioned(text))


@pytest.mark.parametrize(
    "piece", ["`", "``` ", "<!--", "> ", "@", "~~~\n", "` `` ", "* ", "a\n\n", "@a-", "`a``b```c"]
)
def test_texts_at_the_bound(piece: str) -> None:
    """The longest accepted text is read completely, whatever it consists of, so a command at its
    end counts."""
    text = f"{piece * (60_000 // len(piece))}\n\n"
    assert stop_commands(f"@dev-bot stop\n\n{text}") == ("dev-bot",)
    assert set(visible_text(text)) <= set(text) | {" "}


@pytest.mark.parametrize(
    ("before", "now", "shown"),
    [
        ("a\nb\nc", "a\nB\nc", "  a\n- b\n+ B\n  c"),
        ("a", "a\nb", "  a\n+ b"),
        ("", "a", "+ a"),
        ("a  \r\nb", "a\nb\n", ""),
        ("\n".join("abcdefgh"), "\n".join("abcdXfgh"), "  c\n  d\n- e\n+ X\n  f\n  g"),
        (
            "a\n1\n2\n3\n4\n5\n6\nz",
            "b\n1\n2\n3\n4\n5\n6\ny",
            "- a\n+ b\n  1\n  2\n  [2 unchanged lines]\n  5\n  6\n- z\n+ y",
        ),
    ],
)
def test_a_difference(before: str, now: str, shown: str) -> None:
    """A difference has the removed and the added lines and a few lines around them, and no
    others."""
    assert difference(before, now) == shown


@given(st.lists(st.sampled_from("abc"), max_size=12), st.lists(st.sampled_from("abc"), max_size=12))
def test_every_difference(before: list[str], now: list[str]) -> None:
    """The difference marks exactly the lines that only one of the texts has. Equal texts have no
    difference."""
    shown = difference("\n".join(before), "\n".join(now)).splitlines()
    gone, come = (
        [line[2:] for line in shown if line[0] == "-"],
        [line[2:] for line in shown if line[0] == "+"],
    )
    assert bool(shown) == (before != now)
    assert sorted([*before, *come]) == sorted([*now, *gone])


DIFF = (
    "@@ -1,3 +1,3 @@\n a\n-b\n+B\n c\n@@ -20,2 +20,3 @@ def f\n x\n+y\n z\n\\ No newline at end of "
    "file\n"
)


@pytest.mark.parametrize(
    ("line", "removed", "shown"),
    [
        (2, False, "@@ -1,3 +1,3 @@\n a\n-b\n+B"),
        (2, True, "@@ -1,3 +1,3 @@\n a\n-b"),
        (3, False, "@@ -1,3 +1,3 @@\n a\n-b\n+B\n c"),
        (21, False, "@@ -20,2 +20,3 @@ def f\n x\n+y"),
        (21, True, "@@ -20,2 +20,3 @@ def f\n x\n+y\n z"),
        (9, False, ""),
    ],
)
def test_the_hunk_of_a_line(line: int, removed: bool, shown: str) -> None:
    """For a line of the new file or the old one, the result is the hunk that contains it, up to
    that line."""
    assert hunk_at(DIFF, line, removed=removed) == shown


def test_a_long_hunk() -> None:
    """A long hunk is shown by its head and its last lines, and long lines are cut with a mark."""
    shown = end_of(
        "\n".join(["@@ -1 +1 @@", *(f"+{number}" for number in range(100)), "+" + "x" * 1000])
    ).splitlines()
    assert shown[:3] == ["@@ -1 +1 @@", "[...]", "+89"] and len(shown) == 14
    assert shown[-1].endswith("x [...]") and len(shown[-1]) < 320
