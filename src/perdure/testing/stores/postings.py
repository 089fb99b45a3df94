"""Tests of postings. A posting is perdure's record of the comment about a run on a forge. Each run
that a delivery started has one. It is due when the run has changed, and only one host at a time may
hold it."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from perdure.errors import LostLease, NotFound
from perdure.model import Condition, TaskRun, TaskSpec
from perdure.model.events import NotPublished, Published
from perdure.model.forge.postings import Posting
from perdure.testing.stores.inbox import arrived
from perdure.testing.stores.samples import (
    LEASE_S,
    Store,
    claimed,
    events_of,
    place,
    run_ids_of,
    submit,
)


def delivered(store: Store, number: int) -> TaskRun:
    """Add a run that a delivery started, and return it."""
    (accepted,) = store.accept([arrived()])
    return store.add(
        TaskSpec(prompt="do it"),
        f"{number:032x}",
        f"delivered-{number}",
        place(f"d{number}"),
        deliveries=[accepted.number],
    )


class PostingSuite:
    """Tests of `posting`, `postings_due`, `postings_waiting`, `hold_posting`, `put_posting`,
    `hurry_posting` and `record_outside_attempt`."""

    def test_due_when_its_run_changed(self, store: Store) -> None:
        """The posting of a run that a delivery started is due until it has been stored. It is due
        again after the run has changed. A run that a person started has no posting."""
        own, run = submit(store), delivered(store, 1)
        assert (
            store.posting(own.id) is None
            and store.hold_posting(own.id, LEASE_S) is None
            and not store.hurry_posting(own.id)
        )
        assert run_ids_of(store.postings_due()) == [run.id]
        assert store.hold_posting(run.id, LEASE_S) == store.posting(run.id)
        store.put_posting(
            Posting(run=run.id, seen=run.updated, comment="7", comment_url="https://f/7", pull=3)
        )
        assert store.postings_due() == []
        found = store.posting(run.id)
        assert found is not None and (found.comment, found.comment_url, found.pull, found.seen) == (
            "7",
            "https://f/7",
            3,
            run.updated,
        )
        claim = claimed(store, run)
        store.put_posting(replace(found, seen=claim.run.updated - 1))
        assert [each.comment for each in store.postings_due()] == ["7"]

    def test_what_waits(self, store: Store) -> None:
        """A posting that failed waits until the time of its next try. It is listed as waiting, and
        can be made due earlier. The posting of a removed run is not listed."""
        first, second = delivered(store, 1), delivered(store, 2)
        later = store.now() + 3_600_000
        for run, due in ((first, later), (second, 0)):
            store.hold_posting(run.id, LEASE_S)
            store.put_posting(
                Posting(
                    run=run.id,
                    seen=run.updated,
                    due=due,
                    tries=2,
                    reason="the forge does not answer",
                )
            )
        assert run_ids_of(store.postings_due()) == [second.id]
        assert [(each.run, each.reason) for each in store.postings_waiting()] == [
            (second.id, "the forge does not answer"), (first.id, "the forge does not answer"),
        ]  # fmt: skip
        assert store.hurry_posting(first.id)
        assert set(run_ids_of(store.postings_due())) == {first.id, second.id}
        store.request_cancel(second.id)
        store.remove(second.id)
        assert (
            run_ids_of(store.postings_due()) == [first.id] == run_ids_of(store.postings_waiting())
        )

    def test_nothing_is_stored_by_who_does_not_hold_it(self, store: Store) -> None:
        """A host that does not hold a posting cannot write the posting."""
        run = delivered(store, 1)
        with pytest.raises(LostLease):
            store.put_posting(Posting(run=run.id, seen=1))
        found = store.posting(run.id)
        assert found is not None and found.seen == 0

    def test_told_beside_the_attempts(self, store: Store) -> None:
        """`record_outside_attempt` adds events and a condition to a run in any state. The condition
        replaces one of the same type. A later call can remove it."""
        run = delivered(store, 1)
        store.record_outside_attempt(
            run.id,
            [NotPublished(branch="b", reason="a secret")],
            Condition(type="needs_person", message="one", at=0),
        )
        told = store.record_outside_attempt(
            run.id, [], Condition(type="needs_person", message="two", at=0)
        )
        assert [(each.type, each.message) for each in told.conditions] == [
            ("needs_person", "two")
        ] and told.conditions[0].at > 0
        assert told.state == run.state
        told = store.record_outside_attempt(
            run.id, [Published(branch="b", commit="c", pull=1, url="u")], solved="needs_person"
        )
        assert told.conditions == () and store.get(run.id).conditions == ()
        events = events_of(store.history(run.id))
        assert events[-2:] == [
            NotPublished(branch="b", reason="a secret"),
            Published(branch="b", commit="c", pull=1, url="u"),
        ]
        with pytest.raises(NotFound):
            store.record_outside_attempt("none", [])
