"""A run as every `--json` shows it: one stable, versioned object. Pure.

New fields do not change `schema_version`; removing a field or changing its meaning raises it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from perdure.model import (
    Attempt,
    Checkpoint,
    Context,
    Continuation,
    TaskRun,
    Usage,
    Workspace,
)
from perdure.model.codec import plain
from perdure.model.events import (
    PUBLISH,
    AgentLaunched,
    AnyEvent,
    CheckpointMissed,
    CheckpointTaken,
    Compacted,
    DriftSeen,
    MapGiven,
    MapMissed,
    NotCompacted,
    Record,
    RolledOver,
    SessionsRebuilt,
    Summarised,
    VerifyEnded,
)
from perdure.protocols import PostingStore, RunRow, RunStore
from perdure.rules.continuation.instructions import retired
from perdure.rules.effects import Effect, ledger
from perdure.rules.final_message import last_message
from perdure.rules.liveness import Liveness
from perdure.rules.messages import states
from perdure.rules.placement import changes_of
from perdure.rules.run_titles import role_of_run, title_of_run
from perdure.rules.text import LISTED_PROMPT

if TYPE_CHECKING:
    from perdure.model.forge.postings import Posting

SCHEMA_VERSION = 1
WHY = (
    *(
        "number",
        "continuation",
        "rung",
        "why",
        "prices",
        "session_id",
        "lost_session_id",
        "expired",
        "rebuilt_sessions",
        "fill",
        "sizes",
    ),
    *(
        "agent_version",
        "flags",
        "outcome",
        "receipt",
        "effects",
        "turn",
        "checkpoint",
        "checkpoints",
        "missed_checkpoints",
    ),
    *("drift", "files", "checks", "work"),
)
"""Fields of an attempt that `why` shows."""
Kind = TypeVar("Kind")
SIZES = (Compacted, NotCompacted, Summarised, RolledOver)


class ReportStore(RunStore, PostingStore, Protocol):
    """The store methods that give runs, and the postings about them on forges."""


def report_of(
    store: ReportStore,
    run: TaskRun,
    records: Sequence[Record] | None = None,
    liveness: Liveness | None = None,
) -> dict[str, Any]:
    """Return the report of a run as it is in the store. `records`: its history, if already read;
    `liveness`: of a running run."""
    if records is None:
        records = store.history(run.id, limit=100_000)
    if "delivery" in run.spec.labels:
        posting = store.posting(run.id)
    else:
        posting = None
    return run_report(
        run,
        store.attempts(run.id),
        store.contexts(run.id),
        ledger(records),
        store.checkpoints(run.id),
        records,
        posting,
        liveness,
    )


def run_report(
    run: TaskRun,
    attempts: Sequence[Attempt],
    contexts: Sequence[Context],
    effects: Sequence[Effect] = (),
    checkpoints: Sequence[Checkpoint] = (),
    records: Sequence[Record] = (),
    posting: Posting | None = None,
    liveness: Liveness | None = None,
) -> dict[str, Any]:
    """Return the object that `show`, `run`, `retry` and `update` print with --json."""
    total = Usage()
    for attempt in attempts:
        total = total + attempt.usage
    shown = [_attempt(attempt, effects, checkpoints, records) for attempt in attempts]
    verdicts = (each["work"]["verdict"] for each in reversed(shown))
    return {
        "schema_version": SCHEMA_VERSION,
        "id": run.id,
        "name": run.name,
        "title": title_of_run(run),
        "link": run.spec.link,
        "role": role_of_run(run),
        "state": str(run.state),
        "liveness": str(liveness) if liveness else None,
        "reason": run.reason,
        "agent": run.spec.agent,
        "scope": run.scope,
        "key": run.spec.key,
        "origin": run.origin,
        "host": run.host_name,
        "host_id": run.host,
        "labels": run.spec.labels,
        "policy": str(run.spec.continuity),
        "context_version": run.context_version,
        "contexts": [plain(context) for context in contexts],
        "retired_contexts": sorted(retired(records)),
        "messages": [plain(each) for each in states(contexts, records)],
        "workspace": _workspace(run.workspace, checkpoints),
        "attempts_allowed": run.attempts_allowed,
        "attempts": shown,
        "result": last_message(records, attempts[-1].number) if attempts else "",
        "verdict": next((each for each in verdicts if each), None),
        "usage": plain(total),
        "fill": next(
            (plain(each.fill) for each in reversed(attempts) if each.fill is not None), None
        ),
        "when_full": run.spec.when_full,
        "on_denied": run.spec.on_denied,
        "last_word": run.spec.last_word,
        "on_leftover": run.spec.on_leftover,
        "conditions": [plain(condition) for condition in run.conditions],
        "missed_checkpoint": missed_checkpoint(records),
        "posting": _plain_or_none(posting),
        "created": run.created,
        "updated": run.updated,
        "finished": run.finished,
        "run_after": run.run_after,
    }


def _workspace(place: Workspace | None, checkpoints: Sequence[Checkpoint]) -> dict[str, str]:
    """Return the workdir with the HEAD of its newest checkpoint; all fields empty if unknown."""
    found = dict.fromkeys(("path", "repo", "branch", "base", "backend", "head"), "")
    if place is not None:
        found |= {
            "path": place.path,
            "repo": place.repo,
            "branch": place.branch,
            "base": place.base,
            "backend": str(place.backend),
        }
    if checkpoints:
        found["head"] = checkpoints[-1].workdir.head
    return found


def why_of(report: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a run's report that `perdure why --json` prints."""
    waits = {
        key: report[key]
        for key in (
            "state",
            "liveness",
            "reason",
            "run_after",
            "conditions",
            "posting",
            "messages",
        )
    }
    attempts = [{key: attempt[key] for key in WHY} for attempt in report["attempts"]]
    return {"schema_version": SCHEMA_VERSION, "name": report["name"], **waits, "attempts": attempts}


def row_of(store: RunStore, row: RunRow, liveness: Liveness | None = None) -> dict[str, Any]:
    """Return a run of a list, as `perdure ls --json` prints it. Reads the run and its attempts."""
    run, attempts = store.get(row.id), store.attempts(row.id)
    used = sum((attempt.usage for attempt in attempts), Usage())
    place = run.workspace
    return {
        "id": row.id,
        "name": row.name,
        "state": str(row.state),
        "liveness": str(liveness) if liveness else None,
        "agent": row.agent,
        "attempt": row.attempt,
        "reason": row.reason,
        "updated": row.updated,
        "created": row.created,
        "place": row.place,
        "run_after": row.run_after,
        "fill_tokens": row.fill_tokens,
        "fill_window": row.fill_window,
        "repo": place.repo if place is not None else "",
        "branch": place.branch if place is not None else "",
        "prompt": run.spec.prompt[:LISTED_PROMPT],
        "title": title_of_run(run),
        "link": run.spec.link,
        "role": role_of_run(run),
        "labels": dict(run.spec.labels),
        "cost_usd": used.cost_usd,
        "estimated": used.estimated,
        "work": attempts[-1].work if attempts else "",
    }


def _attempt(
    attempt: Attempt,
    effects: Sequence[Effect],
    checkpoints: Sequence[Checkpoint],
    records: Sequence[Record],
) -> dict[str, Any]:
    # Imported when a run is reported: the agent's start must not wait for it.
    from perdure.rules.work_report import work_report

    own = [record.event for record in records if record.attempt == attempt.number]
    rebuilt = [event.sessions for event in _of_kind(own, SessionsRebuilt)]
    maps = [_map(event) for event in own if isinstance(event, MapGiven | MapMissed)]
    launches = _of_kind(own, AgentLaunched)
    report: dict[str, Any] = {
        "number": attempt.number,
        "context_version": attempt.context_version,
        "continuation": None,
        "rung": None,
        "why": "",
        "prices": {},
        "lost_session_id": "",
        "expired": 0,
        "rebuilt_sessions": list(chain.from_iterable(rebuilt)),
        "session_id": attempt.session_id,
        "agent_version": attempt.agent_version,
        "flags": attempt.flags,
        "outcome": _plain_or_none(attempt.outcome),
        "receipt": _plain_or_none(attempt.receipt),
        "usage": plain(attempt.usage),
        "fill": _plain_or_none(attempt.fill),
        "sizes": [_size(event) for event in own if isinstance(event, SIZES)],
        "effects": [_effect(each) for each in effects if each.attempt == attempt.number],
        "files": [
            plain(change) for number, change in changes_of(records) if number == attempt.number
        ],
        "map": maps[0] if maps else None,
        "checkpoint": 0,
        "checkpoints": [
            _checkpoint(each) for each in checkpoints if each.attempt == attempt.number
        ],
        "drift": [plain(event) for event in _of_kind(own, DriftSeen)],
        "missed_checkpoints": [event.reason for event in _of_kind(own, CheckpointMissed)],
        "checks": [plain(event) for event in _of_kind(own, VerifyEnded)],
        "result": last_message(records, attempt.number),
        "work": plain(work_report(attempt, records)),
        "turn": launches[-1].turn if launches else 0,
        "started": attempt.started,
        "ended": attempt.ended,
        "directory": attempt.directory,
    }
    if attempt.continuation is not None:
        report |= _start(attempt.continuation)
    return report


def _start(asked: Continuation) -> dict[str, Any]:
    """Return the fields of an attempt about how it started."""
    return {
        "continuation": str(asked.kind),
        "rung": str(asked.rung),
        "why": asked.reason,
        "prices": dict(asked.prices),
        "lost_session_id": asked.lost_session_id,
        "expired": asked.expired,
        "checkpoint": asked.checkpoint,
    }


def _effect(effect: Effect) -> dict[str, Any]:
    return {
        "kind": effect.kind,
        "command": effect.command,
        "ok": effect.ok,
        "outcome": effect.outcome,
        "possible": effect.possible,
        "reversible": effect.reversible,
    }


def _of_kind(events: Sequence[AnyEvent], kind: type[Kind]) -> list[Kind]:
    """Return the events of one kind."""
    return [event for event in events if isinstance(event, kind)]


def _plain_or_none(noun: object) -> Any:
    if noun is not None:
        return plain(noun)
    return None


def missed_checkpoint(records: Sequence[Record]) -> str:
    """Return why the newest due checkpoint could not be taken; empty if a checkpoint was taken
    since, or if none was due."""
    reason = ""
    for record in records:
        match record.event:
            case CheckpointTaken():
                reason = ""
            case CheckpointMissed(why=why) if why != PUBLISH:
                reason = record.event.reason
            case _:
                pass
    return reason


def _map(event: MapGiven | MapMissed) -> dict[str, Any]:
    """Return the project map of an attempt's prompt; `missed` says why there is none."""
    if isinstance(event, MapMissed):
        return {"tokens": 0, "files": 0, "full": 0, "left": 0, "missed": event.reason}
    return {
        "tokens": event.tokens,
        "files": event.files,
        "full": event.full,
        "left": event.left,
        "missed": "",
    }


def _size(event: Compacted | NotCompacted | Summarised | RolledOver) -> dict[str, Any]:
    """Return the fields of an event about the size of a conversation, under the event's name."""
    return {"event": str(event.__struct_config__.tag), **plain(event)}


def _checkpoint(checkpoint: Checkpoint) -> dict[str, Any]:
    saved = checkpoint.workdir
    return {
        "number": checkpoint.number,
        "at": checkpoint.at,
        "why": checkpoint.why,
        "commit": saved.commit,
        "ref": saved.ref,
        "changed": saved.changed,
        "untracked": saved.untracked,
        "left_out": len(saved.left_out),
    }
