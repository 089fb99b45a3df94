"""Converts database rows to model objects and back. `codec` is imported late, because listing runs
does not decode anything.

Called by `reads` and `sql`. A row is any object that returns a column by its name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from perdure.errors import StoreError
from perdure.model import (
    NOTHING_GIVEN,
    Attempt,
    Claim,
    Condition,
    Given,
    Host,
    RunState,
    Session,
    SessionKey,
    TaskRun,
    TaskSpec,
    Workspace,
)

if TYPE_CHECKING:
    from perdure.model.events import AnyEvent, Record
    from perdure.protocols import PlacedRun, RunRow

Noun = TypeVar("Noun")

Row = Any
"""A row from SQLite or PostgreSQL: `row["column"]`."""

MAX_TIME = 2**53
"""Latest time that is stored, in ms since 1970. Later times are replaced by this one. An agent may
report any number as the time at which its usage limit ends."""


def noun_of(text: str, kind: type[Noun]) -> Noun:
    """Decode stored JSON as an object of the given type. Raises StoreError if it does not fit the
    type, because it is damaged or from a newer perdure."""
    from msgspec import MsgspecError

    from perdure.model.codec import decode

    try:
        return decode(text, kind)
    except MsgspecError as error:
        raise StoreError(
            f"The database has a record that this perdure cannot read: {error}",
            "it may have been written by a newer one: upgrade perdure",
            transient=False,
        ) from error


def nouns_of(rows: Iterable[Row], kind: type[Noun]) -> list[Noun]:
    """Decode the column `body` of each row as an object of the given type. Raises StoreError."""
    return [noun_of(row["body"], kind) for row in rows]


def columns_of(row: Row, names: Iterable[str]) -> dict[str, Any]:
    """Return the values of these columns by their names."""
    return {name: row[name] for name in names}


def run_of(row: Row) -> TaskRun:
    """Return the run in a row of `runs`."""
    return TaskRun(
        id=row["id"],
        name=row["name"],
        spec=noun_of(row["spec"], TaskSpec),
        state=RunState(row["state"]),
        created=row["created"],
        updated=row["updated"],
        context_version=row["context_version"],
        attempt=row["attempt"],
        attempts_allowed=row["attempts_allowed"],
        run_after=row["run_after"],
        reason=row["reason"],
        workspace=noun_of(row["workspace"], Workspace),
        conditions=noun_of(row["conditions"], tuple[Condition, ...]),
        cancel_requested=bool(row["cancel_requested"]),
        worker=row["worker"],
        lease_until=row["lease_until"],
        finished=row["finished"],
        origin=row["origin"],
        host=row["host"],
        host_name=row["host_name"],
        account=row["account"],
    )


def given_of(row: Row) -> Given:
    """Return the task files in a row of `contexts`."""
    if row["given"]:
        return noun_of(row["given"], Given)
    return NOTHING_GIVEN


def claim_of(row: Row) -> Claim:
    """Return the current claim on the run in a row of `runs`."""
    return Claim(run_of(row), row["attempt"], row["worker"])


def run_row_of(row: Row) -> RunRow:
    """Return the `RunRow` for a row of `runs` without JSON columns."""
    from perdure.protocols import RunRow

    return RunRow(
        id=row["id"],
        name=row["name"],
        state=RunState(row["state"]),
        agent=row["agent"],
        attempt=row["attempt"],
        reason=row["reason"],
        updated=row["updated"],
        created=row["created"],
        place=row["place"],
        worker=row["worker"],
        run_after=row["run_after"],
        fill_tokens=row["fill_tokens"],
        fill_window=row["fill_window"],
        lease_until=row["lease_until"],
        host=row["host"],
        role=row["rule"],
        ordinal=row["ordinal"],
    )


def placed_of(row: Row) -> PlacedRun:
    """Return the `PlacedRun` for a row of `runs` that was read together with its workspace."""
    from perdure.protocols import PlacedRun

    return PlacedRun(
        id=row["id"],
        name=row["name"],
        state=RunState(row["state"]),
        agent=row["agent"],
        scope=row["scope"],
        updated=row["updated"],
        finished=row["finished"],
        removed=row["removed"],
        opened=bool(row["opened"]),
        workspace=noun_of(row["workspace"], Workspace),
        role=row["rule"],
    )


def scope_of(spec: TaskSpec, run_id: str) -> str:
    """Return the scope that a run with this spec and id has."""
    return TaskRun(id=run_id, name="", spec=spec, state=RunState.QUEUED, created=0, updated=0).scope


def attempt_values(attempt: Attempt) -> Mapping[str, str | int | None]:
    """Return an attempt as the parameters of `add_attempt` and `put_attempt`."""
    from perdure.model.codec import encode

    return {
        "run": attempt.run,
        "number": attempt.number,
        "started": attempt.started,
        "ended": attempt.ended,
        "outcome": attempt.outcome.kind.value if attempt.outcome else None,
        "body": encode(attempt),
    }


def session_values(session: Session) -> Mapping[str, str | int]:
    """Return a session as the parameters of `put_session`."""
    from perdure.model.codec import encode

    return {
        **key_values(session.key),
        "id": session.id,
        "state": session.state.value,
        "created": session.created,
        "updated": session.updated,
        "body": encode(session),
    }


def session_of(row: Row) -> Session:
    """Return the session in a row of `sessions`."""
    from msgspec.structs import replace

    return replace(noun_of(row["body"], Session), revision=row["revision"])


def key_values(key: SessionKey) -> dict[str, str]:
    """Return a session's key as parameters of a statement."""
    return {"agent": key.agent, "scope": key.scope}


def host_values(host: Host, now: int) -> Mapping[str, str | int]:
    """Return the parameters of statements that select the runs that this host may start: its own
    runs, runs that any host may start, and runs that another host has left alone for too long."""
    if not host.id:
        return {"host": "", "left_alone": now}
    return {
        "host": host.id,
        "left_alone": -1 if host.patience_s is None else now - int(host.patience_s * 1000),
    }


def records_of(rows: Iterable[Row]) -> list[Record]:
    """Return the Records in rows of `records`."""
    from perdure.model.events import Record

    row_list = list(rows)
    found = []
    for row, event in zip(row_list, events_of(row["event"] for row in row_list), strict=True):
        found.append(Record(row["run"], row["seq"], row["attempt"], row["at"], event, row["actor"]))
    return found


def events_of(texts: Iterable[str]) -> list[AnyEvent]:
    """Decode stored events. An event of an unknown type becomes Unrecognised and keeps its text."""
    from msgspec import MsgspecError

    from perdure.model.codec import decode_event
    from perdure.model.events import Unrecognised

    found: list[AnyEvent] = []
    for text in texts:
        try:
            found.append(decode_event(text))
        except MsgspecError:
            found.append(Unrecognised(text=text))
    return found
