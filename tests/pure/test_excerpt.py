"""The excerpt of a failed check's output: its most useful part."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from perdure.rules.excerpt import MOST, excerpt, lines_of, telling_line

TRACE = """Traceback (most recent call last):
  File "test_sum.py", line 9, in test_sum
    assert add(1, 2) == 4
AssertionError: 3 != 4"""
NOISE = "\n".join(f"tests/test_{n}.py::test_case_{n} PASSED [ {n % 100}%]" for n in range(3000))


@given(st.text(max_size=20_000), st.integers(500, MOST))
def test_an_excerpt_is_bounded(text: str, most: int) -> None:
    """For any output of a command, the excerpt is no longer than requested, and the summary for a
    list is one line."""
    assert len(excerpt(text, most)) <= most
    assert "\n" not in telling_line(text) and len(telling_line(text)) <= 200


@given(
    st.lists(
        st.sampled_from(["", "ok", "Error: x", TRACE, "FAILED a::b", "50%", "x" * 900]),
        max_size=400,
    )
)
def test_an_excerpt_of_any_lines_has_its_first_failure(pieces: list[str]) -> None:
    """If a line names a failure, the excerpt has that line."""
    shown = excerpt("\n".join(pieces))
    for telling in ("Error: x", "AssertionError: 3 != 4", "FAILED a::b"):
        if any(telling in piece for piece in pieces[:50]) and not any(
            "Error" in piece or "FAILED" in piece for piece in pieces[50:]
        ):
            assert telling in shown or len(shown) > MOST // 2


def test_what_fits_is_given_as_it_is() -> None:
    """A short output is kept unchanged."""
    assert (
        excerpt("collected 1 item\n\n" + TRACE + "\n1 failed\n")
        == "collected 1 item\n\n" + TRACE + "\n1 failed"
    )


def test_errors_come_before_noise() -> None:
    """The excerpt of thousands of lines, most of them about passed tests, has the names of the
    failures, the traceback and the last lines, in this order."""
    shown = excerpt(
        f"{NOISE}\n{TRACE}\n{NOISE}\nFAILED tests/test_sum.py::test_sum - AssertionError: 3 != "
        "4\n== 1 failed, 6000 passed in 9 s =="
    )
    places = [
        shown.index(each)
        for each in (
            "FAILED tests/test_sum.py::test_sum",
            "Traceback (most recent",
            "AssertionError: 3 != 4",
            "The last lines:",
        )
    ]
    assert places[0] < places[1] < places[3]
    assert "test_case_1 PASSED" not in shown
    assert "lines in all" in shown


def test_errors_of_compilers_are_found() -> None:
    """A compiler's error with its place, and a linker's error, are found in a long build."""
    build = "\n".join(f"   Compiling crate-{n} v1.0" for n in range(500))
    rust = (
        "error[E0308]: mismatched types\n --> src/lib.rs:4:5\n  |\n4 |     'a'\n  |     ^^^ "
        "expected `u8`"
    )
    link = "main.o: undefined reference to `start'"
    shown = excerpt(f"{build}\n{rust}\n{build}\n{link}\n{build}")
    assert "mismatched types" in shown and "src/lib.rs:4:5" in shown and link in shown
    assert shown.count("Compiling") < 30


def test_repetition_and_overdrawn_lines_are_shown_once() -> None:
    """A line that overwrites itself (with carriage returns) is shown in its last state. A repeated
    line is shown once with its count."""
    assert lines_of("\r10%\r50%\rdone\nsame\nsame\nsame\nend") == [
        "done",
        "same",
        "[the line above 3 times]",
        "end",
    ]


def test_the_telling_line() -> None:
    """The summary for a list is the exception's own text, else an error, else the last line."""
    assert telling_line(f"{TRACE}\n1 failed in 0.1 s") == "AssertionError: 3 != 4"
    assert (
        telling_line("step 1\nmain.c:3:1: error: expected ';'\nmake: *** [all] Error 1")
        == "main.c:3:1: error: expected ';'"
    )
    assert telling_line("two is missing\n") == "two is missing"
    assert telling_line("") == ""
