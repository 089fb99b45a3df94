"""The sender of notices is killed: nothing is lost, and duplicates have the same id."""

from __future__ import annotations

import random

from tests.notices.kills import kill_at, scene


def test_a_sender_that_is_killed() -> None:
    """If the sender is killed before or after the receiver's answer, that message comes again with
    the same id. All other messages come once."""
    with scene() as found:
        for moment in ("before", "after", "mail", "push before", "push after", "any time"):
            found.end_runs(2)
            kill_at(found, moment, random.Random(7))
        found.tell_all()
        doubled = found.check()
        assert 1 <= doubled["webhooks twice"] <= 6 and 1 <= doubled["mails twice"] <= 6
        assert 1 <= doubled["push messages posted twice"] <= 6
        assert doubled["push messages shown twice"] == 0
