"""A source that sends thousands of deliveries: what the dispatcher knows of an issue does not depend
on how many other deliveries came since."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing

import pytest
from msgspec.structs import replace

from perdure.model import RunState
from perdure.model.forge.deliveries import (
    Arrived,
    DeliveryState,
    Forge,
    Intent,
    IntentKind,
    PayloadReading,
)
from perdure.model.forge.rules import Rule
from tests.dispatching.office import Office, intent
from tests.dispatching.test_cleaning import worked

HANDLED, IGNORED = DeliveryState.HANDLED, DeliveryState.IGNORED
ASSIGNED = intent(IntentKind.ASSIGNED, whom=("dev-bot",), title="Rounding", forge=Forge.GITEA)
UNASSIGNED = intent(IntentKind.UNASSIGNED, whom=(), unassigned=("dev-bot",), forge=Forge.GITEA)
COMMENT = intent(IntentKind.COMMENTED, text="Ben takes it.", forge=Forge.GITEA)
MANY = 1_100


def busy(office: Office, about: Intent | None = None) -> None:
    """Store many deliveries that are already settled: without an intent, or about `about`."""
    made = []
    for number in range(MANY):
        name = f"busy-{office.count}-{number}"
        made.append(
            Arrived(
                source="hub", id=name, forge=Forge.GITEA, event="push", sha256=name, body=name,
                reading=PayloadReading(about, "it calls for no action"),
            )
        )  # fmt: skip
    office.count += 1
    for each in office.engine.store.accept(made):
        if about is not None:
            office.engine.store.settle_delivery(each.number, HANDLED, "done")


def test_a_comment_that_the_run_gets_when_it_continues(office: Office) -> None:
    """A comment on work that was withdrawn is not lost, however much happens elsewhere before the
    agent gets its work again."""
    office.told(ASSIGNED)
    office.end(office.claim())
    office.told(UNASSIGNED)
    (told,) = office.told(COMMENT)
    assert told.state is IGNORED
    busy(office)
    assert office.told(ASSIGNED)[0].state is HANDLED
    assert "Ben takes it." in office.prompts()[-1]


@pytest.mark.parametrize("upgraded", [False, True])
def test_assigned_again(office: Office, upgraded: bool) -> None:
    """Gitea reports all assignees at each change. The last report about the issue shows that the
    agent was missing, even if it is old, or was stored by an older perdure."""
    office.told(ASSIGNED)
    office.end(office.claim())
    office.told(UNASSIGNED)
    if upgraded:
        database = office.engine.state / "perdure.db"
        with closing(sqlite3.connect(database)) as connection, connection:
            connection.execute("UPDATE inbox SET repository = NULL, issue = NULL")
    busy(office)
    assert office.told(ASSIGNED)[0].state is HANDLED
    assert office.run().state is RunState.QUEUED


@pytest.fixture
def worker(make: Callable[..., Office]) -> Office:
    """Make an office without a forge token, whose run has worked on its issue."""
    authors = ("ada", "ben")
    office = make(Rule(name="dev", agent="claude", authors=authors, clone="", login="dev-bot"))
    worked(office)
    return office


WISH = intent(IntentKind.COMMENTED, author="ben", text="Round up.", at=1000)
CLOSED = intent(IntentKind.CLOSED, at=2000)


def test_a_comment_that_was_not_read_before_the_closing(worker: Office) -> None:
    """The agent gets the comment if the issue is reopened, and gets it only once."""
    told, _ = worker.told(WISH, CLOSED)
    assert told.state is IGNORED
    busy(worker)
    worker.told(intent(IntentKind.REOPENED, at=3000))
    assert "Round up." in worker.prompts()[-1]
    worker.end(worker.claim())
    busy(worker, replace(WISH, repository="shop/other"))
    worker.told(replace(WISH, text="More.", at=4000))
    assert "More." in worker.prompts()[-1] and "Round up." not in worker.prompts()[-1]


def test_a_comment_after_an_old_closing(worker: Office) -> None:
    """A comment on an issue that was closed long ago counts as written after the closing."""
    worker.told(CLOSED)
    busy(worker)
    (told,) = worker.told(replace(WISH, text="Nice.", at=3000))
    assert (told.state, told.reason) == (
        IGNORED,
        f"{worker.run().name} has ended and was cleaned up",
    )
