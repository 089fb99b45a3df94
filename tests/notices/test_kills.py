"""The sender of notices is killed: nothing is lost, and what comes twice has the same id."""

from __future__ import annotations

import random

from tests.notices.kills import kill_at, scene


def test_a_sender_that_is_killed() -> None:
    """Before the answer and after it, the message comes again with its id; the others come once."""
    with scene() as found:
        for moment in ("before", "after", "mail", "any time"):
            found.end_runs(2)
            kill_at(found, moment, random.Random(7))
        found.tell_all()
        doubled = found.check()
        assert 1 <= doubled["webhooks twice"] <= 4 and 1 <= doubled["mails twice"] <= 4
