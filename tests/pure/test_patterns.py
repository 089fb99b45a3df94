"""A pattern that is compiled on first use behaves like one of the standard library, in everything
that perdure uses."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.engine.attempt.engine import is_passed
from perdure.patterns import late_pattern

CALLS = ("match", "fullmatch", "search", "findall", "split")
TEXTS = ("", "ab12", "12", "AB 7", "x\n9")


def shown(found: Any) -> Any:
    """Return a match as its groups, and any other value unchanged."""
    return found.groups() if isinstance(found, re.Match) else found


@pytest.mark.parametrize("flags", [0, re.IGNORECASE, re.MULTILINE])
def test_it_finds_what_it_would_find(flags: int) -> None:
    """Every method works as the first call, and gives the result of the standard library. The text,
    flags and groups of the pattern are the same, too."""
    given_pattern = r"^(?P<word>[a-z]+)?\s*(\d+)"
    ordinary = re.compile(given_pattern, flags)
    for name in CALLS:
        for text in TEXTS:
            late = late_pattern(given_pattern, flags)
            assert shown(getattr(late, name)(text)) == shown(getattr(ordinary, name)(text))
    late = late_pattern(given_pattern, flags)
    assert (late.sub("-", "ab12 c"), late.subn("-", "ab12 c")) == (
        ordinary.sub("-", "ab12 c"),
        ordinary.subn("-", "ab12 c"),
    )
    assert (late.pattern, late.flags, late.groups) == (
        ordinary.pattern,
        ordinary.flags,
        ordinary.groups,
    )
    assert [found.span() for found in late_pattern(rb"\d").finditer(b"1a2")] == [(0, 1), (2, 3)]


def test_nothing_is_compiled_before_the_first_use() -> None:
    """No pattern is compiled before its first use, so an invalid one is reported only then. A used
    pattern keeps its methods."""
    wrong = late_pattern("(")
    with pytest.raises(re.error):
        wrong.match("")
    right = late_pattern("a")
    assert "match" not in vars(right)
    assert right.search("ba")
    assert vars(right)["match"].__self__ is vars(right)["search"].__self__


NAMES = st.text("AB_*?[]", max_size=6)


@given(name=NAMES, pattern=NAMES)
def test_a_variable_is_passed_by_the_rules_of_fnmatch(name: str, pattern: str) -> None:
    """The usual patterns are matched without fnmatch, with the same result."""
    wanted = not pattern.startswith("!") and fnmatchcase(name, pattern)
    assert is_passed(name, (pattern,)) == wanted
    assert is_passed(name, ("*", f"!{pattern}")) == (not fnmatchcase(name, pattern))
