"""Accounts in SQL: how many runs are in progress on each account, and which accounts and agents are
parked. Part of `perdure.protocols.RunStore`.

`claim` calls `no_seat` in its own transaction, so two workers cannot both exceed the limit of an
account. Parking survives restarts. A row whose time has expired has no effect. It is deleted by the
next write that concerns only parking. The writes that end attempts do not delete expired rows. They
run concurrently, and would have to wait for each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from perdure.model import AccountSlot, Attempt, Parking, TaskRun
from perdure.store.rows import MAX_TIME, nouns_of, run_of
from perdure.store.transaction import Write
from perdure.store.writes import StoreWrites

if TYPE_CHECKING:
    from perdure.store.rows import Row


class Accounts(StoreWrites):
    """Adds the methods for accounts to the store: parking, and counts of running runs."""

    def parked(self) -> Sequence[Parking]:
        return list(map(_parking, self._rows("parked", now=self.now())))

    def park(self, parking: Parking) -> None:
        with self._write() as write:
            write.do("forget_parked", now=write.now)
            put(write, parking)

    def unpark(self, *what: str) -> None:
        with self._write() as write:
            write.do("forget_parked", now=write.now)
            for each in what:
                write.do("unpark", what=each)

    def defer(self, run_id: str, until: int, reason: str) -> TaskRun | None:
        from perdure.model.events import RunQueued

        with self._write(by_itself=True) as write:
            write.do("forget_parked", now=write.now)
            run_after = min(until, MAX_TIME)
            row = write.one("defer", id=run_id, run_after=run_after, reason=reason, now=write.now)
            if row is None:
                return None
            write.note(run_id, 0, [RunQueued(reason=reason, run_after=run_after)])
            return run_of(row)

    def seats_taken(self, account: str) -> int:
        return int(self._rows("seats_taken", account=account)[0]["taken"])

    def seats_taken_under(self, rule: str) -> int:
        return int(self._rows("seats_taken_under", rule=rule)[0]["taken"])

    def latest_attempts(self, agent: str, limit: int = 20) -> Sequence[Attempt]:
        return nouns_of(self._rows("latest_attempts", agent=agent, limit=limit), Attempt)


def no_seat(write: Write, seat: AccountSlot) -> bool:
    """Return True if a run may not begin now: its account or its agent is parked, or too many
    runs of its account or of its rule are in progress."""
    if (
        write.one(
            "parked_for", account=seat.account, agent=seat.agent, model=seat.model, now=write.now
        )
        is not None
    ):
        return True
    if (
        seat.rule_jobs
        and seat.rule
        and write.one("seats_taken_under", rule=seat.rule)["taken"] >= seat.rule_jobs
    ):
        return True
    return bool(
        seat.jobs
        and seat.account
        and write.one("seats_taken", account=seat.account)["taken"] >= seat.jobs
    )


def put(write: Write, parking: Parking) -> None:
    """Park the account or agent. If it is parked already, replace the time at which the parking
    ends."""
    until = min(parking.until, MAX_TIME)
    write.do(
        "park",
        what=parking.what,
        model=parking.model,
        since=write.now,
        until_ms=until,
        reason=parking.reason,
    )


def _parking(row: Row) -> Parking:
    return Parking(
        what=row["what"],
        model=row["model"],
        since=row["since"],
        until=row["until_ms"],
        reason=row["reason"],
    )
