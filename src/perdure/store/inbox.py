"""The inbox in SQL: `perdure.protocols.InboxStore`. A delivery is stored before the forge gets its
answer, and is stored only once even if it is sent several times."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from perdure.errors import Conflict, NotFound
from perdure.store.plans import Plans
from perdure.store.rows import Row, noun_of

if TYPE_CHECKING:
    from perdure.model.forge.deliveries import (
        Accepted,
        Arrived,
        Delivery,
        DeliveryState,
        Intent,
        PayloadReading,
    )
    from perdure.store.transaction import Write

ALL = 2**62
RELATED_MOST = 1000
"""Maximum number of deliveries about one issue or repository, or with one reason, that are
returned."""
LONGEST_REASON = 600
"""Maximum length of the reason of a `handled` or `ignored` delivery, in characters. An index has
these reasons, and PostgreSQL accepts at most 2,704 bytes in an entry of an index."""


class Inbox(Plans):
    """Adds the methods of `InboxStore` to the store."""

    def accept(self, arrived: Sequence[Arrived]) -> Sequence[Accepted]:
        with self._write() as write:
            return [_accept(write, each) for each in arrived]

    def inbox(
        self, state: DeliveryState | None = None, source: str = "", limit: int = 50, before: int = 0
    ) -> Sequence[Delivery]:
        rows = self._rows(
            "inbox", state=state or "", source=source, limit=limit, before=before or ALL
        )
        return list(map(_delivery_of, rows))

    def deliveries_about(
        self,
        source: str,
        intent: Intent,
        *,
        whole_repository: bool = False,
        before: int = 0,
    ) -> Sequence[Delivery]:
        values = {"source": source, "repository": intent.repository}
        page = {"before": before or ALL, "limit": RELATED_MOST}
        if whole_repository:
            rows = self._rows("deliveries_about_repository", **values, **page)
        else:
            rows = self._rows("deliveries_about", **values, issue=issue_mark(intent), **page)
        found = []
        for delivery in map(_delivery_of, rows):
            other = delivery.intent
            if other is None or other.repository != intent.repository:
                continue
            if whole_repository or issue_mark(other) == issue_mark(intent):
                found.append(delivery)
        return found

    def deliveries_with_reason(
        self, source: str, reason: str, limit: int = RELATED_MOST
    ) -> Sequence[Delivery]:
        rows = self._rows(
            "deliveries_with_reason", source=source, reason=reason[:LONGEST_REASON], limit=limit
        )
        return list(map(_delivery_of, rows))

    def waiting_deliveries(self, limit: int = 50) -> Sequence[Delivery]:
        return list(map(_delivery_of, self._rows("waiting_deliveries", limit=limit)))

    def delivery(self, ref: str) -> tuple[Delivery, str]:
        if ref.isascii() and ref.isdigit() and len(ref) < 19:
            rows = self._rows("delivery", number=int(ref))
        else:
            if len(ref) >= 4:
                rows = self._rows("deliveries_by_id", ref=ref, above=f"{ref}\U0010ffff")
            else:
                rows = []
            rows = [row for row in rows if row["delivery"] == ref] or rows
        if not rows:
            raise NotFound(f"There is no delivery {ref!r} in the inbox", "perdure inbox")
        if len(rows) > 1:
            numbers = ", ".join(str(row["number"]) for row in rows)
            raise Conflict(
                f"Several deliveries begin with {ref!r}: numbers {numbers}",
                "name one by its number",
            )
        return _delivery_of(rows[0]), rows[0]["body"]

    def settle_delivery(self, number: int, state: DeliveryState, reason: str) -> bool:
        from perdure.model.forge.deliveries import DeliveryState

        if state is not DeliveryState.FAILED:
            reason = reason[:LONGEST_REASON]
        with self._write() as write:
            return (
                write.one(
                    "settle_delivery",
                    number=number,
                    state=state.value,
                    reason=reason,
                    now=write.now,
                )
                is not None
            )

    def delay_delivery(self, number: int, reason: str) -> None:
        with self._write() as write:
            write.do("delay_delivery", number=number, reason=reason)

    def replay_delivery(self, number: int, reading: PayloadReading) -> Delivery:
        with self._write() as write:
            row = write.one("replay_delivery", number=number, now=write.now, **_read(reading))
            if row is None:
                raise NotFound(f"There is no delivery {number} in the inbox", "perdure inbox")
            write.audit_action("delivery_replayed", f"delivery {number}")
            return _delivery_of(row)

    def thin_inbox(self, bodies_before: int, rows_before: int) -> tuple[int, int]:
        with self._write() as write:
            forgotten = write.all("forget_deliveries", before=rows_before)
            return len(write.all("thin_inbox", before=bodies_before)), len(forgotten)


def settle_deliveries(write: Write, numbers: Sequence[int], run_name: str) -> None:
    """Mark deliveries as `handled`. This is done in the same transaction that adds their
    instructions to the run. Raises Conflict if another process has already settled one of them."""
    if not numbers:
        return
    from perdure.model.forge.deliveries import DeliveryState

    state = DeliveryState.HANDLED.value
    for number in numbers:
        if (
            write.one(
                "settle_delivery",
                number=number,
                state=state,
                reason=f"given to {run_name}",
                now=write.now,
            )
            is None
        ):
            raise Conflict(f"Delivery {number} was settled already", f"perdure inbox show {number}")


def _accept(write: Write, arrived: Arrived) -> Accepted:
    from perdure.model.forge.deliveries import Accepted

    known = {"source": arrived.source, "delivery": arrived.id, "sha256": arrived.sha256}
    row = write.one(
        "accept_delivery",
        **known,
        forge=arrived.forge.value,
        event=arrived.event,
        size=arrived.size or len(arrived.body.encode()),
        body=arrived.body,
        kept=int(bool(arrived.body)),
        now=write.now,
        **_read(arrived.reading),
    )
    if row is not None:
        return Accepted(row["number"], True)
    return Accepted(write.one("delivery_again", **known, now=write.now)["number"], False)


def issue_mark(intent: Intent) -> str:
    """Return the issue or pull request of an intent as the inbox stores it: `#4` or `!4`. The
    number is 0 if the intent is about neither."""
    mark = "!" if intent.pull else "#"
    return f"{mark}{intent.number}"


def _read(reading: PayloadReading) -> dict[str, str]:
    from perdure.model.codec import encode
    from perdure.model.forge.deliveries import DeliveryState

    if reading.intent is None:
        return {
            "state": DeliveryState.IGNORED.value,
            "reason": reading.reason[:LONGEST_REASON],
            "intent": "",
            "repository": "",
            "issue": "",
        }
    return {
        "state": DeliveryState.RECEIVED.value,
        "reason": "",
        "intent": encode(reading.intent),
        "repository": reading.intent.repository,
        "issue": issue_mark(reading.intent),
    }


def _delivery_of(row: Row) -> Delivery:
    from perdure.model.forge.deliveries import Delivery, DeliveryState, Forge, Intent

    return Delivery(
        number=row["number"],
        source=row["source"],
        id=row["delivery"],
        forge=Forge(row["forge"]),
        event=row["event"],
        sha256=row["sha256"],
        state=DeliveryState(row["state"]),
        reason=row["reason"],
        received=row["received"],
        updated=row["updated"],
        times=row["times"],
        size=row["size"],
        kept=bool(row["kept"]),
        intent=noun_of(row["intent"], Intent) if row["intent"] else None,
    )
