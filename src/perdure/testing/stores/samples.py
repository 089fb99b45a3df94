"""Sample data for the store tests: functions that make a run, a claim, a session, or the values for
`begin` and `finish` in one call."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import count
from typing import Any, Protocol

from perdure.model import (
    Backend,
    Claim,
    Condition,
    Context,
    Continuation,
    Decision,
    Outcome,
    OutcomeKind,
    RunState,
    Session,
    SessionKey,
    SessionState,
    Start,
    TaskRun,
    TaskSpec,
    Workspace,
)
from perdure.model.events import AnyEvent, Record
from perdure.protocols import (
    Begun,
    BoardStore,
    CountingStore,
    Ending,
    InboxStore,
    PlanStore,
    PostingStore,
    RequestStore,
    RunStore,
    SessionStore,
    TokenStore,
)

LEASE_S = 60.0
LAPSED_S = 0.0
"""Duration of a lease that expires immediately, in seconds."""

_numbers = count(1)


class Store(
    RunStore,
    SessionStore,
    PlanStore,
    InboxStore,
    PostingStore,
    BoardStore,
    TokenStore,
    CountingStore,
    RequestStore,
    Protocol,
):
    """Interface of a store that implements all the store protocols."""


def place(name: str) -> Workspace:
    """Return a workspace with this name. Nothing is created on disk."""
    return Workspace(id=name, path=f"/tmp/{name}", backend=Backend.TASK)


def submit(
    store: RunStore, spec: TaskSpec | None = None, *, name: str = "", where: str = ""
) -> TaskRun:
    """Add a run and return it. It gets its own workspace, or the one that `where` names."""
    number = next(_numbers)
    return store.add(
        spec or TaskSpec(prompt="do it"),
        f"{number:08x}",
        name or f"run-{number}",
        place(where or f"place-{number}"),
    )


def claimed(store: RunStore, run: TaskRun, worker: str = "ann", lease_s: float = LEASE_S) -> Claim:
    """Claim the run, which must be due, and return the claim."""
    claim = store.claim(worker, lease_s, run.id)
    assert claim is not None
    return claim


def session_of(run: TaskRun, id: str, state: SessionState = SessionState.PINNED) -> Session:
    """Return a session with this id for the run's agent and scope."""
    return Session(
        key=SessionKey(run.spec.agent, run.scope), id=id, state=state, created=1, updated=1
    )


def begun(run: TaskRun, session: Session | None = None, where: Workspace | None = None) -> Begun:
    """Return the value for `begin`: the data that is stored before an attempt's agent is
    launched."""
    assert run.workspace is not None
    return Begun(
        continuation=Continuation(
            kind=Start.FRESH, session_id=session.id if session else "", reason="first attempt"
        ),
        directory="/tmp/attempt",
        prompt_sha256="00",
        flags={"model": "small"},
        agent_version="1.2.3",
        before=None,
        session=session,
        workspace=where or run.workspace,
    )


def ending(
    kind: OutcomeKind,
    state: RunState,
    *,
    run_after: int = 0,
    reason: str = "",
    condition: Condition | None = None,
) -> Ending:
    """Return a value for `finish` with this outcome and the run's next state."""
    return Ending(
        outcome=Outcome(kind=kind),
        decision=Decision(state=state, run_after=run_after, reason=reason, condition=condition),
    )


SUCCESS = ending(OutcomeKind.SUCCEEDED, RunState.SUCCEEDED)
FAILURE = ending(OutcomeKind.FAILED, RunState.FAILED, reason="it broke")
AGAIN = ending(OutcomeKind.LOST, RunState.QUEUED, reason="once more")
STOPPED = ending(OutcomeKind.CANCELLED, RunState.CANCELLED)


def ids_of(rows: Iterable[Any]) -> list[str]:
    """Return the ids of these runs or sessions, in the given order."""
    return [row.id for row in rows]


def numbers_of(rows: Iterable[Any]) -> list[int]:
    """Return the numbers of these attempts, checkpoints, deliveries or requests, in the given
    order."""
    return [row.number for row in rows]


def texts_of(contexts: Iterable[Context]) -> list[str]:
    """Return the texts of these instructions, in the given order."""
    return [context.text for context in contexts]


def events_of(records: Iterable[Record]) -> list[AnyEvent]:
    """Return the events of these records, in the given order."""
    return [record.event for record in records]


def run_ids_of(rows: Iterable[Any]) -> list[str]:
    """Return the ids of the runs that these rows belong to, in the given order."""
    return [row.run for row in rows]
