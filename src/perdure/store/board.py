"""The lists and counts of runs in SQL: `BoardStore` and `CountingStore` of `perdure.protocols`.

Counts and pages use indexes, so ten thousand runs cost no more than a hundred. The counts for
metrics and overviews are all made in one snapshot of the database.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from perdure.model import Attempt, Condition, RunState, SessionKey, SessionState, Workspace
from perdure.rules.run_titles import title_of
from perdure.store.dialect import SQL
from perdure.store.reads import StoreReads
from perdure.store.rows import Row, noun_of, nouns_of, records_of

if TYPE_CHECKING:
    from perdure.model.events import Record
    from perdure.protocols import BoardRow, Counts, FailedAttempt, RunProperties

NEWEST = (2**62, 2**62)
ASKING = "asking"
"""Name of the list of runs that need a person. All other lists are named after a state."""
PIPS = 8
"""Maximum number of attempts that are returned with each run of a list."""


class Boards(StoreReads):
    """Adds the methods of `BoardStore` to the store."""

    def board(
        self,
        group: str,
        *,
        agent: str = "",
        words: str = "",
        before: tuple[int, int] = NEWEST,
        limit: int = 50,
    ) -> Sequence[BoardRow]:
        which = {"state": group} if group != ASKING else {}
        values = {
            "agent": agent,
            "words": pattern(words),
            "updated": before[0],
            "ordinal": before[1],
            "limit": limit,
            **which,
        }
        with self._database.reading() as cursor:
            rows = cursor.execute(
                SQL["board_asking" if group == ASKING else "board"], values
            ).fetchall()
            newest = []
            for row in rows:
                newest.append(
                    cursor.execute(
                        SQL["newest_attempts"], {"run": row["id"], "limit": PIPS}
                    ).fetchall()
                )
        found = []
        for row, attempts in zip(rows, newest, strict=True):
            found.append(_row_of(row, nouns_of(reversed(attempts), Attempt)))
        return found

    def board_counts(self, *, agent: str = "", words: str = "") -> Mapping[str, int]:
        found = {ASKING: 0, **{str(state): 0 for state in RunState}}
        if agent or words:
            for row in self._rows("board_matching", agent=agent, words=pattern(words)):
                found[ASKING if row["asks"] else row["state"]] += row["many"]
            return found
        for row in self._rows("board_counts"):
            found[row["state"]] += row["many"]
        for row in self._rows("board_asking_counts"):
            found[row["state"]] -= row["many"]
            found[ASKING] += row["many"]
        return found

    def board_found(self, *, agent: str = "", words: str = "") -> Sequence[tuple[str, str]]:
        rows = self._rows("board_found", agent=agent, words=pattern(words))
        return [(row["id"], ASKING if row["asks"] else row["state"]) for row in rows]

    def run_properties(self) -> Sequence[RunProperties]:
        return list(map(marks_of, self._rows("run_marks")))

    def board_asking(self) -> int:
        return sum(row["many"] for row in self._rows("board_asking_counts"))

    def board_agents(self) -> Sequence[str]:
        return [row["agent"] for row in self._rows("board_agents")]

    def board_roles(self) -> Sequence[str]:
        return [row["rule"] for row in self._rows("board_roles")]

    def latest_word(self, run_id: str) -> str:
        from perdure.rules.log_line import line_of

        return "".join(map(line_of, records_of(self._rows("latest_word", run=run_id))))

    def failed_attempts(self, since: int, limit: int) -> Sequence[FailedAttempt]:
        from perdure.protocols import FailedAttempt

        found = []
        for row in self._rows("failed_attempts", since=since, limit=limit):
            found.append(
                FailedAttempt(
                    row["name"] if row["removed"] is None else "",
                    row["agent"],
                    RunState(row["state"]),
                    noun_of(row["body"], Attempt),
                )
            )
        return found


def pattern(words: str) -> str:
    """Return a LIKE pattern that matches texts with these lower-case words. Its escape character is
    `!`. Return an empty string if `words` is empty."""
    if not words:
        return ""
    escaped = words.lower().replace("!", "!!").replace("%", "!%").replace("_", "!_")
    return f"%{escaped}%"


def marks_of(row: Row) -> RunProperties:
    """Return the properties of a run that are compared with the limits of a token. Only these
    properties are decoded, not the whole task."""
    from perdure.protocols import RunProperties

    spec, place = json.loads(row["spec"]), json.loads(row["workspace"])
    repo = spec.get("repo") or place.get("repo") or ""
    return RunProperties(
        row["id"], row["name"], row["agent"], row["rule"], repo, spec.get("labels") or {}
    )


def _row_of(row: Row, attempts: Sequence[Attempt]) -> BoardRow:
    from perdure.protocols import BoardRow

    return BoardRow(
        id=row["id"],
        name=row["name"],
        state=RunState(row["state"]),
        agent=row["agent"],
        attempt=row["attempt"],
        attempts_allowed=row["attempts_allowed"],
        reason=row["reason"],
        created=row["created"],
        updated=row["updated"],
        finished=row["finished"],
        run_after=row["run_after"],
        fill_tokens=row["fill_tokens"],
        fill_window=row["fill_window"],
        host=row["host"],
        host_name=row["host_name"],
        worker=row["worker"],
        lease_until=row["lease_until"],
        opened=bool(row["opened"]),
        cancel_requested=bool(row["cancel_requested"]),
        conditions=noun_of(row["conditions"], tuple[Condition, ...]),
        workspace=noun_of(row["workspace"], Workspace),
        prompt=row["prompt"],
        title=title_of(row["title"], row["prompt"], row["key"] or "", row["scope"]),
        link=row["link"],
        role=row["rule"],
        attempts=tuple(attempts),
        place=(row["updated"], row["ordinal"]),
    )


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
        return records_of(self._rows("attempt_marks", run=run, attempt=attempt))


def _by_two(rows: Iterable[Row], first: str, second: str) -> dict[tuple[str, str], int]:
    """Return the numbers in the rows by the values of these two columns."""
    return {(row[first], row[second]): row["number"] for row in rows}
