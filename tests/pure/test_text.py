"""Hostile text on a terminal, and the helpers for short texts."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import perdure
from perdure.cli.text import age, clean, clock, cut, one_line, tokens, visible
from perdure.model.events import Record, RunFinished
from perdure.rules import text
from perdure.rules.log_line import line_of

HOSTILE = {
    "clipboard (OSC 52)": ("a\x1b]52;c;cm0gLXJmIC8=\x07b", "ab"),
    "link (OSC 8)": ("\x1b]8;;http://evil.example/\x1b\\click\x1b]8;;\x1b\\", "click"),
    "title (OSC 0)": ("\x1b]0;owned\x07text", "text"),
    "unfinished OSC": ("before\x1b]52;c;AAAA", "before"),
    "clear (CSI 2J)": ("a\x1b[2J\x1b[Hb", "ab"),
    "colour": ("\x1b[1;31mred\x1b[0m", "red"),
    "cursor up": ("\x1b[3A\x1b[2Kfake line", "fake line"),
    "report (CSI 6n)": ("\x1b[6n", ""),
    "private mode": ("\x1b[?1049h\x1b[?25l", ""),
    "device control (DCS)": ('\x1bP$q"p\x1b\\x', "x"),
    "program command (APC)": ("\x1b_Gi=1;AAAA\x1b\\x", "x"),
    "charset": ("\x1b(0lqqk", "lqqk"),
    "reset": ("\x1bcgone", "gone"),
    "8-bit CSI": ("a\x9b2Jb", "a2Jb"),
    "8-bit OSC": ("a\x9d52;c;AA\x9cb", "a52;c;AAb"),
    "lone CR": ("safe\rEVIL", "safeEVIL"),
    "backspaces": ("rm -rf\x08\x08\x08\x08\x08\x08ls", "rm -rfls"),
    "NUL and BEL": ("a\x00\x07b", "ab"),
    "escape in an escape": ("\x1b\x1b[31mx\x1b", "x"),
    "direction override": ("user\u202etxt.exe", "usertxt.exe"),
    "isolates": ("\u2066a\u2069\u061cb", "ab"),
    "no width": ("pass\u200bword\ufeff\u2060", "password"),
    "tags": ("hi\U000e0041\U000e0042", "hi"),
    "line separators": ("a\u2028b\u2029c", "abc"),
    "lone surrogate": ("a\ud800b", "a?b"),
    "kept": ("tab\tline\nüß漢🎉é", "tab\tline\nüß漢🎉é"),
}
pieces = st.sampled_from(
    [hostile for hostile, _ in HOSTILE.values()]
    + ["\x1b", "\x1b[", "\x1b]", "[2J", "\x9b", "\\", "m", "\x07"]
)
any_text = st.lists(pieces | st.text(st.characters()), max_size=8).map("".join)


@pytest.mark.parametrize(("text", "shown"), HOSTILE.values(), ids=HOSTILE)
def test_the_corpus(text: str, shown: str) -> None:
    """Each known trick is removed, and the text around it stays."""
    assert clean(text) == shown


@given(any_text)
def test_nothing_that_a_terminal_obeys_is_left(text: str) -> None:
    """For any combination of pieces, no control character but newline and tab is left, and no
    direction mark. The text can be printed."""
    for shown in (clean(text), one_line(text), visible(text), cut(clean(text), 7)):
        shown.encode()
        for character in shown:
            assert character in "\n\t" or unicodedata.category(character) != "Cc"
            assert unicodedata.bidirectional(character) not in {
                "LRE",
                "RLE",
                "LRO",
                "RLO",
                "PDF",
                "LRI",
                "RLI",
                "FSI",
                "PDI",
            }
            assert character not in "\u200e\u200f\u061c"
    assert clean(clean(text)) == clean(text)


@given(st.text(st.characters(exclude_categories=("C", "Z"))))
def test_ordinary_text_is_not_touched(text: str) -> None:
    """Letters, marks, numbers, signs and punctuation of all scripts are not changed."""
    assert clean(text) == visible(text) == text


def test_what_is_hidden_can_be_shown() -> None:
    """If a text is shown for examination, each hidden character is replaced by its name."""
    assert visible("a\x1b[2Jb\u202ec\x7f\r\n") == "a^[[2Jb<U+202E>c^?^M\n"


@given(any_text, st.integers(2, 40))
def test_one_line_is_one_line(text: str, width: int) -> None:
    """The result has no line break and at most the allowed length, with a mark if it was cut."""
    line = one_line(text, width)
    assert len(line.splitlines()) <= 1
    assert len(line) <= width
    assert line.endswith("…") or line == one_line(text, 10**6)


def columns_of(line: str) -> int:
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in line
    )


@given(st.text(st.sampled_from("ab漢🎉e\u0301 "), max_size=20), st.integers(1, 24))
def test_a_cut_line_fits_its_columns(line: str, width: int) -> None:
    """A line never takes more columns than allowed, with wide characters and marks counted
    correctly, and is cut only if necessary."""
    shown = cut(line, width)
    assert columns_of(shown) <= width
    assert (shown == line) == (columns_of(line) <= width)
    assert shown == line or line.startswith(shown.removesuffix("…"))
    assert cut(line, 0) == line


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (-5, "0s"),
        (0, "0s"),
        (59, "59s"),
        (60, "1m"),
        (3599, "59m"),
        (3600, "1h"),
        (86_399, "23h"),
        (864_000, "10d"),
    ],
)
def test_ages(seconds: int, words: str) -> None:
    """An age has one unit and is rounded down. A clock that went back gives no negative age."""
    assert age(0, seconds * 1000) == words


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1.0k"),
        (12_345, "12.3k"),
        (999_949, "999.9k"),
        (999_999, "1.0M"),
        (1_234_567, "1.2M"),
    ],
)
def test_token_counts(count: int, words: str) -> None:
    """Token counts are shown in a short form. A thousand thousands are shown as a million."""
    assert tokens(count) == words


def test_why_a_run_has_failed_is_said_once() -> None:
    """If a run failed because an attempt failed, its line has the word `failed` only once."""
    ended = RunFinished(state="failed", reason="failed: killed by SIGKILL; 1 of 1 attempts used")
    assert line_of(Record("r", 1, 0, 0, ended)) == "failed: killed by SIGKILL; 1 of 1 attempts used"
    assert (
        line_of(Record("r", 1, 0, 0, RunFinished(state="failed", reason="lost: no word")))
        == "failed: lost: no word"
    )
    assert line_of(Record("r", 1, 0, 0, RunFinished(state="succeeded"))) == "succeeded"


def test_a_moment_is_local_time() -> None:
    """A time is shown in local time, from the year to the second."""
    assert len(clock(1_700_000_000_000)) == len("2023-11-14 22:13:20")
    assert clock(1_700_000_000_999) == clock(1_700_000_000_000)


@pytest.mark.parametrize("log", ["full", "gone", "closed"])
def test_a_log_that_takes_nothing_ends_nothing(log: str) -> None:
    """If the disk is full, the reader has gone, or there is no log, a log line is lost. The thread
    that wrote it continues."""
    code = "from perdure.cli.runs.pool import say\nfor n in range(3): say(f'line {n}')\nprint('goes on')"
    if log == "closed":
        code = f"import os, sys\nsys.stderr.close()\n{code}"
    if log == "gone":
        reader, taken = os.pipe()
        os.close(reader)
    else:
        taken = os.open("/dev/full", os.O_WRONLY)
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=taken, text=True, check=False
    )
    os.close(taken)
    assert done.stdout == "goes on\n"


def test_what_runs_in_threads_tells_by_tell() -> None:
    """Code that runs in threads prints to standard error only by `tell`. Only the command line, and
    the programs that perdure starts, may use other ways."""
    top = Path(perdure.__file__).parent
    found = [
        f"{path.relative_to(top)}:{node.lineno}"
        for path in top.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_bytes()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "print"
        if path.relative_to(top).parts[0] != "cli"
        and path.relative_to(top).parts[:2] not in (("agents", "rehearsal"), ("rules", "text.py"))
        and path.name != "init.py"
    ]
    assert found == []


def test_plain_text_has_nothing_to_hide() -> None:
    """A text of printable characters is returned unchanged, without a search for the patterns,
    because no pattern would remove any of them."""
    every = "".join(char for char in map(chr, range(sys.maxunicode + 1)) if char.isprintable())
    assert not re.search(text._HIDDEN, every)
    assert not re.search(text._ESCAPES, every)
    assert text.clean(f"a\n\t{every}") == f"a\n\t{every}"
