"""The end of a usage limit, parsed from the text of a CLI."""

from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.agents.shared.outcomes import resets_at

NOW = datetime(2026, 11, 21, 7, 42, 43, tzinfo=UTC)
BERLIN = ZoneInfo("Europe/Berlin")


def ms(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("You've hit your limit · resets 8:41am (UTC)", datetime(2026, 11, 21, 8, 42, tzinfo=UTC)),
        (
            "You've hit your limit · resets 3pm (Europe/Berlin)",
            datetime(2026, 11, 21, 15, 1, tzinfo=BERLIN),
        ),
        (
            "You've hit your limit · resets Nov 24, 8:48am (Europe/Berlin)",
            datetime(2026, 11, 24, 8, 49, tzinfo=BERLIN),
        ),
        (
            "You've hit your limit · resets Jun 9, 2027, 9:48am (Europe/Berlin)",
            datetime(2027, 6, 9, 9, 49, tzinfo=BERLIN),
        ),
        ("resets Jan 2, 12am (UTC)", datetime(2027, 1, 2, 0, 1, tzinfo=UTC)),
        ("or try again at 5:46 AM.", datetime(2026, 11, 22, 5, 47, tzinfo=UTC)),
        ("or try again at 12:05 PM.", datetime(2026, 11, 21, 12, 6, tzinfo=UTC)),
        ("try again at Nov 24th, 2026 10:42 AM.", datetime(2026, 11, 24, 10, 43, tzinfo=UTC)),
        ("try again at 7:42 AM.", datetime(2026, 11, 21, 7, 43, tzinfo=UTC)),
        ("resets Nov 30, 11:59pm (UTC)", datetime(2026, 12, 1, 0, 0, tzinfo=UTC)),
        ("Claude AI usage limit reached|1795250486", datetime(2026, 11, 21, 8, 41, 26, tzinfo=UTC)),
        ("Try again in 3 days 2 hours 5 minutes.", datetime(2026, 11, 24, 9, 47, 43, tzinfo=UTC)),
        ("Please try again in 11.5s.", datetime(2026, 11, 21, 7, 42, 54, 500_000, tzinfo=UTC)),
        ("Please try again in 250ms", datetime(2026, 11, 21, 7, 42, 43, 250_000, tzinfo=UTC)),
    ],
)
def test_sentences_of_the_clis(words: str, expected: datetime) -> None:
    """Every form of time that a CLI prints is parsed. A time without seconds means the end of that
    minute. An hour that has already passed today means tomorrow."""
    assert resets_at(words, ms(NOW), UTC) == ms(expected)


@pytest.mark.parametrize(
    "words",
    [
        "",
        "try again later.",
        "resets 25:99pm",
        "resets Feb 31, 3am",
        "resets 3pm (Nowhere/Land) today",
        "hit your limit",
    ],
)
def test_what_names_no_time_is_none_or_local(words: str) -> None:
    """A text without a time gives None. If its time zone is unknown, the local zone is used."""
    found = resets_at(words, ms(NOW), UTC)
    assert found == (ms(datetime(2026, 11, 21, 15, 1, tzinfo=UTC)) if "Nowhere" in words else None)


def test_local_time_is_that_of_the_zone_handed_in() -> None:
    """Codex prints local time without a zone. It is read in the zone that the caller passes."""
    assert resets_at("try again at 10:00 AM.", ms(NOW), BERLIN) == ms(
        datetime(2026, 11, 21, 10, 1, tzinfo=BERLIN)
    )


@given(
    st.text(max_size=80) | st.from_regex(r"(resets|try again) (at|in)? ?[\w ,:.]{0,40}[ap]m"),
    st.integers(1, 4_000_000_000_000),
)
def test_any_words_are_read(words: str, now: int) -> None:
    """Any text is parsed, or gives None, without an error."""
    resets_at(words, now, UTC)


@given(
    st.integers(1, 12),
    st.integers(0, 59),
    st.sampled_from(["am", "pm"]),
    st.integers(1_600_000_000_000, 2_000_000_000_000),
)
def test_a_clock_without_a_day_is_within_a_day(hour: int, minute: int, half: str, now: int) -> None:
    """A time of day without a date means its next occurrence: later than now, and at most a day and
    a minute away."""
    found = resets_at(f"resets {hour}:{minute:02}{half}", now, UTC)
    assert found is not None
    assert now < found <= now + (24 * 60 + 1) * 60_000
