"""The queries of the store. Nothing here writes. `find` decodes no JSON, which keeps `perdure ls`
fast."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from perdure.errors import NotFound
from perdure.model import (
    UNSHARED_HOST,
    Attempt,
    Checkpoint,
    Claim,
    Context,
    Host,
    RunState,
    Session,
    SessionKey,
    TaskRun,
)
from perdure.store.dialect import SQL, Database
from perdure.store.rows import (
    Row,
    claim_of,
    given_of,
    host_values,
    key_values,
    noun_of,
    nouns_of,
    placed_of,
    records_of,
    run_of,
    run_row_of,
    session_of,
)

if TYPE_CHECKING:
    from perdure.model.events import Record
    from perdure.protocols import PlacedRun, RunRow

ALL = 2**62
PREFIX = 4
"""Minimum number of characters if a run is named by the beginning of its id."""


class StoreReads:
    """The reading half of `SqlStore`. `RunStore` and `SessionStore` document its methods."""

    def __init__(self, database: Database, host: Host = UNSHARED_HOST) -> None:
        self._database = database
        self._host = host

    def now(self) -> int:
        return self._database.now()

    def close(self) -> None:
        """Close the database. The store cannot be used afterwards."""
        self._database.close()

    def problems(self) -> list[str]:
        """Return the problems that a quick check of the database finds; empty if there are none."""
        return self._database.problems()

    def get(self, ref: str) -> TaskRun:
        with self._database.reading() as cursor:
            return run_of(named(cursor, ref))

    def find(
        self,
        states: Sequence[RunState] = (),
        limit: int = 50,
        *,
        before: int = 0,
        agent: str = "",
        scope: str = "",
    ) -> Sequence[RunRow]:
        values = {"limit": limit, "before": before or ALL, "agent": agent, "scope": scope}
        with self._database.reading() as cursor:
            if not states:
                rows = cursor.execute(SQL["newest"], values).fetchall()
            else:
                # Each state is read in the order of an index. A query for all states would have to
                # sort the whole table.
                rows = []
                for state in dict.fromkeys(states):
                    of_state = values | {"state": str(state)}
                    rows += cursor.execute(SQL["newest_in_state"], of_state).fetchall()
                rows = sorted(rows, key=lambda row: -row["ordinal"])[: max(limit, 0)]
        return list(map(run_row_of, rows))

    def last_changed(self, states: Sequence[RunState] = (), limit: int = 50) -> Sequence[RunRow]:
        with self._database.reading() as cursor:
            rows: list[Row] = []
            for state in dict.fromkeys(states or RunState):
                of_state = {"limit": limit, "state": str(state)}
                rows += cursor.execute(SQL["last_changed_in_state"], of_state).fetchall()
        rows.sort(key=lambda row: (row["updated"], row["ordinal"]), reverse=True)
        return list(map(run_row_of, rows[: max(limit, 0)]))

    def due(self, limit: int = 50) -> Sequence[TaskRun]:
        now = self.now()
        rows = self._rows("due", now=now, limit=limit, **host_values(self._host, now))
        return list(map(run_of, rows))

    def placed(self) -> Sequence[PlacedRun]:
        return list(map(placed_of, self._rows("placed")))

    def lapsed(self) -> Sequence[Claim]:
        return list(map(claim_of, self._rows("lapsed", now=self.now())))

    def claims(self) -> Sequence[Claim]:
        return list(map(claim_of, self._rows("running")))

    def next_checkpoint(self, workspace_id: str, run_id: str) -> int:
        (row,) = self._rows("next_checkpoint", workspace_id=workspace_id, run=run_id)
        return int(row["number"])

    def checkpoints(self, run_id: str = "") -> Sequence[Checkpoint]:
        if run_id:
            rows = self._rows("checkpoints", run=run_id)
        else:
            rows = self._rows("all_checkpoints")
        return nouns_of(rows, Checkpoint)

    def attempts(self, run_id: str) -> Sequence[Attempt]:
        return nouns_of(self._rows("attempts", run=run_id), Attempt)

    def contexts(self, run_id: str) -> Sequence[Context]:
        found = []
        for row in self._rows("contexts", run=run_id):
            found.append(
                Context(row["version"], row["text"], row["at"], given_of(row), row["message"])
            )
        return found

    def latest(self, run_id: str, limit: int = 1000, before: int = ALL) -> Sequence[Record]:
        rows = self._rows("latest", run=run_id, limit=limit, before=before)
        return records_of(reversed(rows))

    def history(self, run_id: str, after: int = 0, limit: int = 1000) -> Sequence[Record]:
        return records_of(self._rows("history", run=run_id, after=after, limit=limit))

    def run_events(self, run_id: str) -> Sequence[Record]:
        return records_of(self._rows("run_events", run=run_id))

    def attempt_history(self, run_id: str, number: int, limit: int = 100_000) -> Sequence[Record]:
        rows = self._rows("attempt_history", run=run_id, attempt=number, limit=limit)
        return records_of(reversed(rows))

    def journal(self, after: int = 0, limit: int = 1000) -> Sequence[Record]:
        return records_of(self._rows("journal", after=after, limit=limit))

    def newest_record(self) -> int:
        return int(self._rows("newest_record")[0]["seq"])

    def session(self, key: SessionKey) -> Session | None:
        found = self._sessions("live_session", key)
        if found:
            return found[0]
        return None

    def lineage(self, key: SessionKey) -> Sequence[Session]:
        return self._sessions("lineage", key)

    def sessions(self, session_id: str = "", limit: int = 1000) -> Sequence[Session]:
        if session_id:
            rows = self._rows("sessions_by_id", id=session_id)
        else:
            rows = self._rows("sessions", limit=limit)
        return list(map(session_of, rows))

    def runs_of(self, key: SessionKey) -> Sequence[TaskRun]:
        return list(map(run_of, self._rows("runs_of_scope", **key_values(key))))

    def ended(
        self, since: int, until: int, agent: str = "", scope: str = ""
    ) -> Sequence[tuple[SessionKey, Attempt]]:
        rows = self._rows("ended_attempts", since=since, until=until, agent=agent, scope=scope)
        found = []
        for row in rows:
            found.append((SessionKey(row["agent"], row["scope"]), noun_of(row["body"], Attempt)))
        return found

    def run_of(self, key: SessionKey) -> TaskRun | None:
        rows = self._rows("newest_of_scope", **key_values(key))
        if rows:
            return run_of(rows[0])
        return None

    def run_under(self, rule: str, scope: str) -> TaskRun | None:
        rows = self._rows("newest_under_rule", rule=rule, scope=scope)
        if rows:
            return run_of(rows[0])
        return None

    def opened_beside(self, run: TaskRun) -> TaskRun | None:
        assert run.workspace is not None
        rows = self._rows(
            "opened_beside", workspace_id=run.workspace.id, agent=run.spec.agent, scope=run.scope
        )
        if rows:
            return run_of(rows[0])
        return None

    def _sessions(self, statement: str, key: SessionKey) -> list[Session]:
        return list(map(session_of, self._rows(statement, **key_values(key))))

    def _rows(self, statement: str, **values: Any) -> list[Row]:
        with self._database.reading() as cursor:
            rows: list[Row] = cursor.execute(SQL[statement], values).fetchall()
            return rows


def named(cursor: Any, ref: str) -> Row:
    """Return the row of the run with this id, name, key or beginning of an id. Raises NotFound,
    with similar names in the hint."""
    for statement in ("run_by_id", "run_by_name", "run_by_key"):
        if ref:
            row = cursor.execute(SQL[statement], {"ref": ref}).fetchone()
        else:
            row = None
        if row is not None:
            return row
    # `above` sorts after all texts that begin with `ref`. The comparison uses the index and, unlike
    # LIKE, has no wildcards to escape.
    if len(ref) >= PREFIX:
        near = cursor.execute(
            SQL["runs_by_prefix"], {"ref": ref, "above": ref + "\U0010ffff"}
        ).fetchall()
    else:
        near = []
    if len(near) == 1:
        return near[0]
    if near:
        raise NotFound(
            f"{ref!r} is the beginning of several ids",
            "one of: " + ", ".join(f"{row['id']} ({row['name']})" for row in near[:5]),
        )
    raise NotFound(f"There is no run {ref!r}", _near_names(cursor, ref))


def _near_names(cursor: Any, ref: str) -> str:
    from difflib import get_close_matches

    names = [row["name"] for row in cursor.execute(SQL["newest_names"]).fetchall()]
    close = get_close_matches(ref, names, n=3, cutoff=0.5)
    if close:
        return "did you mean " + " or ".join(close) + "?"
    return "perdure ls"
