"""After any operations on a store in any order, a run is in one of six states, has at most one
holder and one end for each attempt, and made only published transitions."""

from __future__ import annotations

import sqlite3
import tempfile
from collections import Counter
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from perdure import store
from perdure.errors import Conflict, LostLease
from perdure.model import (
    Claim,
    Continuation,
    Decision,
    Outcome,
    OutcomeKind,
    RunState,
    Start,
    TaskSpec,
)
from perdure.protocols import Begun, Ending
from perdure.rules.lifecycle import FINAL, MOVES
from perdure.testing.stores.samples import place, session_of

EDGES = {(before, after) for (before, _), after in MOVES.items()}
DECISIONS = [state for (before, _), state in MOVES.items() if before is RunState.RUNNING]

# One step of the test may contain several transitions. For example, an attempt ends and newer
# instructions reopen the run, which a reader sees as one transition.
picks = st.integers(min_value=0, max_value=50)


class StoreMachine(RuleBasedStateMachine):
    """Random operations by several workers, some of them with stale claims."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.store = store.open(Path(self.directory.name) / "perdure.db")
        self.reader = sqlite3.connect(Path(self.directory.name) / "perdure.db")
        self.reader.row_factory = sqlite3.Row
        self.ids: list[str] = []
        self.claims: list[Claim] = []
        self.seen: dict[str, RunState] = {}

    def teardown(self) -> None:
        assert self.store.problems() == []
        self.reader.close()
        self.store.close()
        self.directory.cleanup()

    def rows(self, query: str) -> list[Any]:
        return self.reader.execute(query).fetchall()

    @rule(scope=st.sampled_from(["", "a", "b"]), where=st.sampled_from(["p", "q", "r"]))
    def add(self, scope: str, where: str) -> None:
        number = len(self.ids)
        with Refused(Conflict):
            self.store.add(
                TaskSpec(prompt="x", scope=scope), f"{number:08d}", f"run-{number}", place(where)
            )
            self.ids.append(f"{number:08d}")

    @rule(worker=st.sampled_from(["ann", "bob"]), lease=st.sampled_from([0.0, 60.0]))
    def claim(self, worker: str, lease: float) -> None:
        claim = self.store.claim(worker, lease)
        if claim is not None:
            self.claims.append(claim)

    @precondition(lambda self: self.claims)
    @rule(pick=picks, worker=st.sampled_from(["ann", "bob", "cid"]))
    def adopt(self, pick: int, worker: str) -> None:
        with Refused(LostLease):
            self.claims.append(self.store.adopt(self.claims[pick % len(self.claims)], worker, 60.0))

    @precondition(lambda self: self.claims)
    @rule(pick=picks)
    def renew(self, pick: int) -> None:
        with Refused(LostLease):
            self.store.renew(self.claims[pick % len(self.claims)], 60.0)

    @precondition(lambda self: self.claims)
    @rule(pick=picks, where=st.sampled_from(["p", "q", "r"]))
    def begin(self, pick: int, where: str) -> None:
        claim = self.claims[pick % len(self.claims)]
        start = Continuation(kind=Start.FRESH)
        with Refused(Conflict):
            self.store.begin(
                claim,
                Begun(
                    continuation=start, directory="/d", prompt_sha256="", flags={}, agent_version="", before=None, workspace=place(where),
                    session=session_of(claim.run, f"s-{claim.run.id}"),
                ),
            )  # fmt: skip

    @precondition(lambda self: self.claims)
    @rule(pick=picks, state=st.sampled_from(DECISIONS), kind=st.sampled_from(list(OutcomeKind)))
    def finish(self, pick: int, state: RunState, kind: OutcomeKind) -> None:
        with Refused(LostLease):
            self.store.finish(
                self.claims[pick % len(self.claims)],
                Ending(outcome=Outcome(kind=kind), decision=Decision(state=state)),
            )

    @precondition(lambda self: self.ids)
    @rule(pick=picks, verb=st.sampled_from(["update", "requeue", "request_cancel"]))
    def ask(self, pick: int, verb: str) -> None:
        run_id = self.ids[pick % len(self.ids)]
        with Refused(Conflict):
            if verb == "request_cancel":
                self.store.request_cancel(run_id)
            else:
                getattr(self.store, verb)(run_id, "because")

    @invariant()
    def runs_move_as_published(self) -> None:
        for row in self.rows("SELECT id, state FROM runs"):
            state, before = RunState(row["state"]), self.seen.get(row["id"], RunState.QUEUED)
            assert state is before or (before, state) in EDGES
            self.seen[row["id"]] = state

    @invariant()
    def running_means_held(self) -> None:
        running = [
            row for row in self.rows("SELECT * FROM runs") if row["state"] == RunState.RUNNING
        ]
        for row in self.rows("SELECT * FROM runs"):
            assert (row in running) == bool(row["worker"]) == bool(row["lease_until"])
            assert (row["finished"] is not None) == (RunState(row["state"]) in FINAL)
        for held in ("workspace_id", "agent || ' ' || scope"):
            assert not self.rows(
                f"SELECT 1 FROM runs WHERE state = 'running' GROUP BY {held} HAVING count(*) > 1"
            )
        still_open = {
            row["run"] for row in self.rows("SELECT run FROM attempts WHERE ended IS NULL")
        }
        assert still_open == {row["id"] for row in running}

    @invariant()
    def each_attempt_ends_once(self) -> None:
        ended = {
            (row["run"], row["number"])
            for row in self.rows("SELECT run, number FROM attempts WHERE ended IS NOT NULL")
        }
        said = Counter(
            (row["run"], row["attempt"])
            for row in self.rows("SELECT run, attempt FROM records WHERE kind = 'attempt_ended'")
        )
        assert said == Counter(ended)
        counted = {
            row["id"]: row["attempt"]
            for row in self.rows("SELECT id, attempt FROM runs WHERE attempt > 0")
        }
        assert counted == {
            row["run"]: row["n"]
            for row in self.rows("SELECT run, max(number) AS n FROM attempts GROUP BY run")
        }


class Refused:
    """Check that an operation is refused with this error and no other."""

    def __init__(self, kind: type[Exception]) -> None:
        self.kind = kind

    def __enter__(self) -> None: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        return isinstance(error, self.kind)


class TestStoreMachine(StoreMachine.TestCase):  # type: ignore[misc]
    """Random operations never break an invariant of the state machine."""

    settings = settings(
        max_examples=25, stateful_step_count=40, deadline=None, database=None, derandomize=True,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    )  # fmt: skip


@pytest.mark.parametrize("before", list(RunState))
def test_the_schema_knows_the_same_moves(tmp_path: Path, before: RunState) -> None:
    """With manual SQL a run's state can be changed exactly along `lifecycle.MOVES`. The database
    itself refuses every other change."""
    store.open(tmp_path / "perdure.db").close()
    with closing(sqlite3.connect(tmp_path / "perdure.db", isolation_level=None)) as connection:
        connection.execute("DROP TRIGGER runs_begin_waiting")
        for number, after in enumerate(state for state in RunState if state is not before):
            _insert(connection, str(number), before)
            allowed = True
            try:
                _move(connection, str(number), before, after)
            except sqlite3.IntegrityError as error:
                assert "cannot move" in str(error)
                allowed = False
            assert allowed is ((before, after) in EDGES), after


@pytest.mark.parametrize(
    "change",
    [
        "state = 'sleeping'",
        "state = 'running', attempt = 1",
        "state = 'running', worker = 'ann', lease_until = 5",
        "state = 'succeeded', finished = 1",
        "attempt = attempt + 1",
        "worker = 'ann'",
        "cancel_requested = 2",
        "finished = 5",
    ],
)
def test_the_schema_refuses_what_no_program_may_do(tmp_path: Path, change: str) -> None:
    """The database itself refuses an unknown state, a running run without a holder or without a
    counted attempt, and an end without a time."""
    store.open(tmp_path / "perdure.db").close()
    with closing(sqlite3.connect(tmp_path / "perdure.db", isolation_level=None)) as connection:
        _insert(connection, "one", RunState.QUEUED)
        with pytest.raises(sqlite3.IntegrityError):
            connection.execute(f"UPDATE runs SET {change}")


def test_the_schema_refuses_a_second_writer(tmp_path: Path) -> None:
    """The database itself refuses two running runs in one workspace, or in one conversation,
    whatever the program does."""
    store.open(tmp_path / "perdure.db").close()
    with closing(sqlite3.connect(tmp_path / "perdure.db", isolation_level=None)) as connection:
        for number, (scope, where) in enumerate([("a", "p"), ("b", "p"), ("a", "q")]):
            _insert(connection, str(number), RunState.QUEUED, scope, where)
        _move(connection, "0", RunState.QUEUED, RunState.RUNNING)
        for other, what in (("1", "workspace_id"), ("2", "scope")):
            with pytest.raises(sqlite3.IntegrityError, match=what):
                _move(connection, other, RunState.QUEUED, RunState.RUNNING)


def _insert(
    connection: sqlite3.Connection, id: str, state: RunState, scope: str = "", where: str = ""
) -> None:
    held, finished = state is RunState.RUNNING, state in FINAL
    connection.execute(
        "INSERT INTO runs (id, name, state, agent, scope, workspace_id, place, attempts_allowed, "
        "worker, lease_until, created, updated, finished, spec, workspace) VALUES (?, ?, ?, "
        "'claude', ?, ?, '/', 3, ?, ?, 1, 1, ?, '{}', '{}')",
        (
            id,
            f"run-{id}",
            state,
            scope or id,
            where or id,
            "ann" if held else "",
            5 if held else 0,
            1 if finished else None,
        ),
    )


def _move(connection: sqlite3.Connection, id: str, before: RunState, after: RunState) -> None:
    held, finished = after is RunState.RUNNING, after in FINAL
    counted = before is RunState.QUEUED and held
    connection.execute(
        "UPDATE runs SET state = ?, worker = ?, lease_until = ?, finished = ?, attempt = attempt + "
        "? WHERE id = ?",
        (after, "ann" if held else "", 5 if held else 0, 1 if finished else None, int(counted), id),
    )
