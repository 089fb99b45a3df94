"""Counts over all runs, for metrics and overviews. Every count uses an index, and all counts are
made in one snapshot of the database."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from perdure.model import Attempt, RunState, SessionKey, SessionState
from perdure.store.queries import SQL
from perdure.store.reads import StoreReads
from perdure.store.rows import Row, noun_of, record_of

if TYPE_CHECKING:
    from perdure.model.events import Record
    from perdure.protocols import Counts


class StoreCounts(StoreReads):
    """Adds the methods of `CountingStore` to the store."""

    def counts(self) -> Counts:
        from perdure.protocols import Counts, RunningRuns

        now = self.now()
        with self._database.reading() as cursor:

            def rows(statement: str, **values: str | int) -> list[Row]:
                found: list[Row] = cursor.execute(SQL[statement], values).fetchall()
                return found

            runs = {}
            for row in rows("count_runs"):
                runs[row["agent"], RunState(row["state"])] = row["number"]
            roles = {}
            for row in rows("count_roles"):
                roles[row["rule"], RunState(row["state"])] = row["number"]
            sessions = {}
            for row in rows("count_sessions"):
                sessions[row["agent"], SessionState(row["state"])] = row["number"]
            running = []
            for row in rows("count_running", now=now):
                lapsed = row["lapsed"] or 0
                running.append(
                    RunningRuns(
                        row["agent"], row["host_name"], row["number"], lapsed, row["lease_until"]
                    )
                )
            due, delivery = rows("count_due", now=now)[0], rows("oldest_delivery")[0]
            return Counts(
                at=now,
                runs=runs,
                roles=roles,
                due=due["number"],
                due_since=due["since"],
                at_work=running,
                need_person={row["agent"]: row["number"] for row in rows("count_conditions")},
                opened=rows("count_opened")[0]["number"],
                parked=rows("count_parked", now=now)[0]["number"],
                sessions=sessions,
                checkpoints=rows("count_checkpoints")[0]["number"],
                deliveries=_by_two(rows("count_deliveries"), "source", "state"),
                delivery_since=delivery["since"],
                trouble=_by_two(rows("count_trouble"), "agent", "kind"),
            )

    def ended_after(
        self, ended: int, run: str, number: int, limit: int = 1000
    ) -> Sequence[tuple[SessionKey, Attempt]]:
        rows = self._rows("ended_after", ended=ended, run=run, number=number, limit=limit)
        found = []
        for row in rows:
            found.append((SessionKey(row["agent"], row["scope"]), noun_of(row["body"], Attempt)))
        return found

    def attempt_records(self, run: str, attempt: int) -> Sequence[Record]:
        return list(map(record_of, self._rows("attempt_marks", run=run, attempt=attempt)))


def _by_two(rows: Iterable[Row], first: str, second: str) -> dict[tuple[str, str], int]:
    """Return the numbers in the rows by the values of these two columns."""
    return {(row[first], row[second]): row["number"] for row in rows}
