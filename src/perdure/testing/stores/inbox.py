"""Tests of the inbox and of postings.

The inbox holds the deliveries of forges. A delivery is stored only once, even if it is sent again.
Deliveries that wait are never removed.

A posting is perdure's record of the comment about a run on a forge. Each run that a delivery
started has a posting. A posting is due when its run has changed, and only one host at a time may
hold it.
"""

from __future__ import annotations

import hashlib
from itertools import count

import pytest
from msgspec.structs import replace

from perdure.errors import Conflict, LostLease, NotFound
from perdure.model import Condition, TaskRun, TaskSpec
from perdure.model.events import NotPublished, Published
from perdure.model.forge.deliveries import (
    Arrived,
    DeliveryState,
    Forge,
    Intent,
    IntentKind,
    PayloadReading,
)
from perdure.model.forge.postings import Posting
from perdure.testing.stores.samples import (
    LEASE_S,
    Store,
    claimed,
    events_of,
    numbers_of,
    place,
    run_ids_of,
    submit,
    texts_of,
)

_numbers = count(1)
DULL = PayloadReading(None, "nothing follows from it")


def arrived(
    id: str = "", body: str = "", *, source: str = "shop", reading: PayloadReading | None = None
) -> Arrived:
    """Return a delivery that contains a comment."""
    number = next(_numbers)
    body = body or f'{{"number": {number}}}'
    intent = Intent(
        kind=IntentKind.COMMENTED,
        forge=Forge.GITEA,
        repository="a/b",
        number=number,
        text="\u00e9 \U0001f600",
        labels=("x",),
    )
    sha256 = hashlib.sha256(body.encode()).hexdigest()
    return Arrived(
        source=source,
        id=id or f"id-{number:04}",
        forge=Forge.GITEA,
        event="issue_comment",
        sha256=sha256,
        body=body,
        reading=reading or PayloadReading(intent),
    )


class InboxSuite:
    """Tests of `accept`, `inbox`, `waiting_deliveries`, `delivery`, `settle_delivery`,
    `delay_delivery`, `replay_delivery` and `thin_inbox`."""

    def test_a_delivery_is_kept_whole(self, store: Store) -> None:
        """A delivery is returned as it arrived, with body and intent. It is found by its number,
        its id and a prefix of the id. A list of deliveries has the newest first."""
        first, second = arrived(), arrived(reading=DULL)
        accepted = store.accept([first, second])
        assert [each.new for each in accepted] == [True, True] and accepted[0].number < accepted[
            1
        ].number
        found, body = store.delivery(str(accepted[0].number))
        assert (found.id, found.source, found.forge, found.event) == (
            first.id,
            "shop",
            Forge.GITEA,
            "issue_comment",
        )
        assert (found.intent, body, found.size, found.sha256) == (
            first.reading.intent,
            first.body,
            len(first.body),
            first.sha256,
        )
        assert (found.state, found.times, found.kept, found.reason) == (
            DeliveryState.RECEIVED,
            1,
            True,
            "",
        )
        assert found.received > 0
        assert store.delivery(first.id)[0] == found
        newest, older = store.inbox()
        assert older == found
        assert (newest.state, newest.reason, newest.intent) == (
            DeliveryState.IGNORED,
            DULL.reason,
            None,
        )

    def test_once_by_id_and_by_body(self, store: Store) -> None:
        """If a delivery arrives whose id or body is already stored, only the counter of the stored
        delivery is increased. Deliveries from different sources never count as the same
        delivery."""
        first = arrived("one", '{"a": 1}')
        (accepted,) = store.accept([first])
        again = store.accept([first, arrived("two", '{"a": 1}'), arrived("one", '{"a": 2}')])
        assert [(each.number, each.new) for each in again] == [(accepted.number, False)] * 3
        assert store.delivery(str(accepted.number))[0].times == 4
        (other,) = store.accept([arrived("one", '{"a": 1}', source="infra")])
        assert other.new
        assert len(store.inbox()) == 2

    def test_twice_in_one_transaction(self, store: Store) -> None:
        """If the same delivery is twice in one batch, only its first occurrence is stored as
        new."""
        each = arrived()
        assert [accepted.new for accepted in store.accept([each, each])] == [True, False]

    def test_filters_and_pages(self, store: Store) -> None:
        """Deliveries can be filtered by state and by source. A page contains the deliveries with
        lower numbers than a given one. Waiting deliveries are listed oldest first."""
        numbers = []
        for each in store.accept(
            [arrived(), arrived(source="infra"), arrived(reading=DULL), arrived()]
        ):
            numbers.append(each.number)
        assert numbers_of(store.inbox(DeliveryState.RECEIVED)) == [
            numbers[3],
            numbers[1],
            numbers[0],
        ]
        assert numbers_of(store.inbox(source="infra")) == [numbers[1]]
        assert numbers_of(store.inbox(limit=2)) == numbers[:1:-1]
        assert numbers_of(store.inbox(before=numbers[2])) == numbers[1::-1]
        assert numbers_of(store.waiting_deliveries(2)) == numbers[:2]

    def test_deliveries_about_an_issue(self, store: Store) -> None:
        """Deliveries about the same issue are found in any state, newest first. A pull request of
        the same number is another thing, and so is an issue of another repository or source."""
        one = Intent(kind=IntentKind.COMMENTED, forge=Forge.GITEA, repository="shop/web", number=4)
        others = [one, replace(one, pull=True), replace(one, number=5), one]
        made = [*others, replace(one, repository="shop/app"), one]
        numbers = []
        for at, each in enumerate(made):
            source = "infra" if at == len(made) - 1 else "shop"
            (accepted,) = store.accept([arrived(source=source, reading=PayloadReading(each))])
            numbers.append(accepted.number)
        store.settle_delivery(numbers[0], DeliveryState.FAILED, "no")
        assert numbers_of(store.deliveries_about("shop", one)) == [numbers[3], numbers[0]]
        assert numbers_of(store.deliveries_about("shop", one, before=numbers[3])) == [numbers[0]]
        whole = store.deliveries_about("shop", one, whole_repository=True)
        assert numbers_of(whole) == numbers[3::-1]
        store.replay_delivery(numbers[0], PayloadReading(replace(one, number=5)))
        assert numbers_of(store.deliveries_about("shop", one)) == [numbers[3]]

    def test_deliveries_with_a_reason(self, store: Store) -> None:
        """Settled deliveries are found by their exact reason, however long it is. Those that failed
        or have no intent are left out."""
        reason = "x" * 10_000
        numbers = []
        for state in (DeliveryState.IGNORED, DeliveryState.FAILED, DeliveryState.HANDLED):
            (accepted,) = store.accept([arrived()])
            numbers.append(accepted.number)
            store.settle_delivery(accepted.number, state, reason)
        store.accept([arrived(reading=PayloadReading(None, reason))])
        found = numbers_of(store.deliveries_with_reason("shop", reason))
        assert found == [numbers[2], numbers[0]]
        assert store.deliveries_with_reason("shop", reason, limit=1)[0].number == numbers[2]
        assert not store.deliveries_with_reason("infra", reason)
        assert store.delivery(str(numbers[1]))[0].reason == reason

    def test_settled_once(self, store: Store) -> None:
        """A delivery is settled only once. A second call of `settle_delivery` returns False and
        changes nothing."""
        (accepted,) = store.accept([arrived()])
        assert store.settle_delivery(accepted.number, DeliveryState.HANDLED, "run a")
        assert not store.settle_delivery(accepted.number, DeliveryState.FAILED, "late")
        found, _ = store.delivery(str(accepted.number))
        assert (found.state, found.reason) == (DeliveryState.HANDLED, "run a")
        assert store.waiting_deliveries() == []

    def test_handled_with_its_run(self, store: Store) -> None:
        """A delivery is settled in the same transaction that stores the run or the instructions
        that it asks for. If it is already settled, neither is stored. If the run's key is known,
        the existing run is returned."""
        numbers = numbers_of(store.accept([arrived(), arrived(), arrived()]))
        spec = TaskSpec(prompt="do it", key="a key of a delivery")
        run = store.add(spec, "d" * 32, "delivered", place("delivered"), deliveries=[numbers[0]])
        assert store.delivery(str(numbers[0]))[0].state is DeliveryState.HANDLED
        with pytest.raises(Conflict):
            store.add(
                replace(spec, key=""), "e" * 32, "late", place("late"), deliveries=[numbers[0]]
            )
        with pytest.raises(NotFound):
            store.get("late")
        assert store.update(run.id, "more", deliveries=[numbers[1]]).context_version == 2
        with pytest.raises(Conflict):
            store.update(run.id, "more, twice", deliveries=[numbers[1]])
        assert texts_of(store.contexts(run.id)) == ["do it", "more"]
        assert (
            store.add(spec, "f" * 32, "another", place("another"), deliveries=[numbers[2]]).id
            == run.id
        )
        assert store.waiting_deliveries() == []

    def test_several_in_one_update(self, store: Store) -> None:
        """One update can settle several deliveries. If one of them is already settled, the update
        settles none of them and stores no instructions."""
        numbers = numbers_of(store.accept([arrived(), arrived(), arrived()]))
        run = store.add(TaskSpec(prompt="do it"), "d" * 32, "delivered", place("delivered"))
        assert store.update(run.id, "more", deliveries=numbers[:2]).context_version == 2
        with pytest.raises(Conflict):
            store.update(run.id, "again", deliveries=[numbers[2], numbers[1]])
        assert numbers_of(store.waiting_deliveries()) == [numbers[2]]
        assert store.get(run.id).context_version == 2

    def test_why_it_waits(self, store: Store) -> None:
        """`delay_delivery` stores the reason why a delivery waits. It does not change a delivery
        that is settled."""
        (accepted,) = store.accept([arrived()])
        store.delay_delivery(accepted.number, "the agent is running")
        assert store.waiting_deliveries()[0].reason == "the agent is running"
        store.settle_delivery(accepted.number, DeliveryState.HANDLED, "done")
        store.delay_delivery(accepted.number, "late")
        assert store.delivery(str(accepted.number))[0].reason == "done"

    def test_replayed(self, store: Store) -> None:
        """A replayed delivery waits to be handled again, with its new intent. If the new reading of
        it has no intent, the delivery is ignored."""
        first = arrived(reading=DULL)
        (accepted,) = store.accept([first])
        reading = arrived().reading
        replayed = store.replay_delivery(accepted.number, reading)
        assert (replayed.state, replayed.intent, replayed.reason) == (
            DeliveryState.RECEIVED,
            reading.intent,
            "",
        )
        assert numbers_of(store.waiting_deliveries()) == [accepted.number]
        assert store.replay_delivery(accepted.number, DULL).state is DeliveryState.IGNORED
        with pytest.raises(NotFound):
            store.replay_delivery(10**9, DULL)

    def test_names_that_lead_nowhere(self, store: Store) -> None:
        """An unknown number or id raises NotFound. A prefix that fits several ids raises
        Conflict."""
        store.accept([arrived("same-1"), arrived("same-2")])
        for ref in ("", "999999999", "9" * 40, "none", "\u00b2", "same-3", "sam"):
            with pytest.raises(NotFound):
                store.delivery(ref)
        with pytest.raises(Conflict):
            store.delivery("same")
        assert store.delivery("same-1")[0].id == "same-1"

    def test_thinned_out(self, store: Store) -> None:
        """First the body of an old settled delivery is deleted, later its row. Deliveries that wait
        or have failed are kept with their bodies. A delivery without a body is still recognized
        when it is sent again."""
        waits, failed, done = arrived(), arrived(), arrived()
        numbers = numbers_of(store.accept([waits, failed, done]))
        store.settle_delivery(numbers[1], DeliveryState.FAILED, "no")
        store.settle_delivery(numbers[2], DeliveryState.HANDLED, "")
        later = store.now() + 1000
        assert store.thin_inbox(0, 0) == (0, 0)
        assert store.thin_inbox(later, 0) == (1, 0)
        assert [store.delivery(str(number))[1] for number in numbers] == [
            waits.body,
            failed.body,
            "",
        ]
        assert not store.delivery(str(numbers[2]))[0].kept
        assert [each.new for each in store.accept([done])] == [False]
        assert store.thin_inbox(later + 1000, later + 1000) == (0, 1)
        assert numbers_of(store.inbox()) == numbers[1::-1]
        assert [each.new for each in store.accept([done])] == [True]


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
        told = store.record_outside_attempt(
            run.id, [], Condition(type="needs_person", message="two", at=7)
        )
        assert told.conditions[0].at == 7
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
