"""Builds the object that every `--json` prints about a run. It is stable and versioned. Pure.

New fields do not change `schema_version`; a removed field, or a field with a changed meaning,
increases it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

from perdure.model import (
    Attempt,
    Checkpoint,
    Context,
    Continuation,
    Liveness,
    TaskRun,
    Usage,
    Workspace,
)
from perdure.model.checkpoints import IMPORTED
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
    is_agent_event,
)
from perdure.model.reports import (
    AnySize,
    AttemptOfRun,
    AttemptWhy,
    CheckpointOfAttempt,
    CompactedSize,
    EffectOfAttempt,
    MapOfAttempt,
    ReplacedSize,
    RunOfList,
    RunReport,
    SummarisedSize,
    UncompactedSize,
    WhyReport,
    WorkspaceOfRun,
)
from perdure.protocols import PostingStore, RunRow, RunStore
from perdure.rules.continuation.instructions import retired
from perdure.rules.effects import Effect, ledger
from perdure.rules.final_message import last_message
from perdure.rules.messages import states
from perdure.rules.placement import changes_of
from perdure.rules.run_titles import role_of_run, title_of_run
from perdure.rules.text import LISTED_PROMPT

if TYPE_CHECKING:
    from perdure.model.forge.postings import Posting

SCHEMA_VERSION: Final = 1
Kind = TypeVar("Kind")


class ReportStore(RunStore, PostingStore, Protocol):
    """The store methods that a report needs: those for runs, and those for comments on forges
    (postings)."""


def report_of(
    store: ReportStore,
    run: TaskRun,
    records: Sequence[Record] | None = None,
    liveness: Liveness | None = None,
) -> RunReport:
    """Return the report of a run, read from the store. `records`: the run's history, if the caller
    has already read it. `liveness`: which processes of the running run are alive."""
    if records is None:
        records = store.latest(run.id, 100_000)
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
) -> RunReport:
    """Return the object that `show`, `run`, `retry` and `update` print with --json."""
    total = Usage()
    for attempt in attempts:
        total = total + attempt.usage
    by_attempt: dict[int, list[Record]] = defaultdict(list)
    for record in records:
        by_attempt[record.attempt].append(record)
    done = [record for record in records if not is_agent_event(record.event)]
    shown = []
    for attempt in attempts:
        own = by_attempt[attempt.number]
        shown.append(_attempt(attempt, effects, checkpoints, own, done))
    verdicts = (each.work.verdict for each in reversed(shown))
    fills = (each.fill for each in reversed(attempts))
    return RunReport(
        schema_version=SCHEMA_VERSION,
        id=run.id,
        name=run.name,
        title=title_of_run(run),
        link=run.spec.link,
        role=role_of_run(run),
        state=run.state,
        liveness=liveness,
        reason=run.reason,
        agent=run.spec.agent,
        scope=run.scope,
        key=run.spec.key,
        origin=run.origin,
        host=run.host_name,
        host_id=run.host,
        labels=run.spec.labels,
        policy=str(run.spec.continuity),
        context_version=run.context_version,
        contexts=list(contexts),
        retired_contexts=sorted(retired(records)),
        messages=list(states(contexts, records)),
        workspace=_workspace(run.workspace, checkpoints),
        attempts_allowed=run.attempts_allowed,
        attempts=shown,
        result=last_message(records, attempts[-1].number) if attempts else "",
        verdict=next(filter(None, verdicts), None),
        usage=total,
        fill=next((each for each in fills if each is not None), None),
        when_full=run.spec.when_full,
        on_denied=run.spec.on_denied,
        last_word=run.spec.last_word,
        on_leftover=run.spec.on_leftover,
        conditions=list(run.conditions),
        missed_checkpoint=missed_checkpoint(records),
        posting=posting,
        created=run.created,
        updated=run.updated,
        finished=run.finished,
        run_after=run.run_after,
    )


def _workspace(place: Workspace | None, checkpoints: Sequence[Checkpoint]) -> WorkspaceOfRun:
    """Return the workdir of the run, and the commit that was its HEAD at the newest checkpoint. A
    field whose value is not known is empty."""
    head = checkpoints[-1].workdir.head if checkpoints else ""
    if place is None:
        return WorkspaceOfRun(path="", repo="", branch="", base="", backend="", head=head)
    return WorkspaceOfRun(
        path=place.path,
        repo=place.repo,
        branch=place.branch,
        base=place.base,
        backend=str(place.backend),
        head=head,
    )


def why_of(report: RunReport) -> WhyReport:
    """Return the part of a run's report that `perdure why --json` prints."""
    return WhyReport(
        schema_version=SCHEMA_VERSION,
        name=report.name,
        state=report.state,
        liveness=report.liveness,
        reason=report.reason,
        run_after=report.run_after,
        conditions=report.conditions,
        posting=report.posting,
        messages=report.messages,
        attempts=list(map(_why, report.attempts)),
    )


def _why(attempt: AttemptOfRun) -> AttemptWhy:
    fields = AttemptWhy.__struct_fields__
    return AttemptWhy(**{name: getattr(attempt, name) for name in fields})


def row_of(store: RunStore, row: RunRow, liveness: Liveness | None = None) -> RunOfList:
    """Return a row of the list that `perdure ls --json` prints. Reads the run and its attempts from
    the store."""
    run, attempts = store.get(row.id), store.attempts(row.id)
    used = sum((attempt.usage for attempt in attempts), Usage())
    place = run.workspace
    return RunOfList(
        id=row.id,
        name=row.name,
        state=row.state,
        liveness=liveness,
        agent=row.agent,
        attempt=row.attempt,
        reason=row.reason,
        updated=row.updated,
        created=row.created,
        place=row.place,
        run_after=row.run_after,
        fill_tokens=row.fill_tokens,
        fill_window=row.fill_window,
        repo=place.repo if place is not None else "",
        branch=place.branch if place is not None else "",
        prompt=run.spec.prompt[:LISTED_PROMPT],
        title=title_of_run(run),
        link=run.spec.link,
        role=role_of_run(run),
        labels=dict(run.spec.labels),
        cost_usd=used.cost_usd,
        estimated=used.estimated,
        work=attempts[-1].work if attempts else "",
    )


def _attempt(
    attempt: Attempt,
    effects: Sequence[Effect],
    checkpoints: Sequence[Checkpoint],
    records: Sequence[Record],
    done: Sequence[Record],
) -> AttemptOfRun:
    """Return the report of an attempt. `records`: those of the attempt. `done`: the records of
    what perdure did in the whole run."""
    # Imported here because an agent's start should not wait for this import.
    from perdure.rules.work_report import joined, work_report

    number = attempt.number
    own = [record.event for record in records]
    rebuilt = [event.sessions for event in _of_kind(own, SessionsRebuilt)]
    maps = []
    for event in own:
        if isinstance(event, MapGiven | MapMissed):
            maps.append(_map(event))
    launches = _of_kind(own, AgentLaunched)
    sizes = map(_size, own)
    report = AttemptOfRun(
        number=number,
        context_version=attempt.context_version,
        continuation=None,
        rung=None,
        why="",
        prices={},
        lost_session_id="",
        expired=0,
        rebuilt_sessions=list(chain.from_iterable(rebuilt)),
        session_id=attempt.session_id,
        agent_version=attempt.agent_version,
        flags=attempt.flags,
        outcome=attempt.outcome,
        receipt=attempt.receipt,
        usage=attempt.usage,
        fill=attempt.fill,
        sizes=[size for size in sizes if size is not None],
        effects=[_effect(each) for each in effects if each.attempt == number],
        files=[change for owner, change in changes_of(done) if owner == number],
        map=maps[0] if maps else None,
        checkpoint=0,
        checkpoints=[_checkpoint(each) for each in checkpoints if each.attempt == number],
        drift=_of_kind(own, DriftSeen),
        missed_checkpoints=[event.reason for event in _of_kind(own, CheckpointMissed)],
        checks=_of_kind(own, VerifyEnded),
        result=last_message(records, number),
        work=work_report(attempt, joined(records, done, number)),
        turn=launches[-1].turn if launches else 0,
        started=attempt.started,
        ended=attempt.ended,
        directory=attempt.directory,
    )
    if attempt.continuation is not None:
        _set_start(report, attempt.continuation)
    return report


def _set_start(report: AttemptOfRun, asked: Continuation) -> None:
    """Set the fields of `report` that describe how the attempt started."""
    report.continuation = asked.kind
    report.rung = asked.rung
    report.why = asked.reason
    report.prices = dict(asked.prices)
    report.lost_session_id = asked.lost_session_id
    report.expired = asked.expired
    report.checkpoint = asked.checkpoint


def _effect(effect: Effect) -> EffectOfAttempt:
    return EffectOfAttempt(
        kind=effect.kind,
        command=effect.command,
        ok=effect.ok,
        outcome=effect.outcome,
        possible=effect.possible,
        reversible=effect.reversible,
    )


def _of_kind(events: Sequence[AnyEvent], kind: type[Kind]) -> list[Kind]:
    """Return the events that are instances of `kind`."""
    return [event for event in events if isinstance(event, kind)]


def missed_checkpoint(records: Sequence[Record]) -> str:
    """Return the reason why the last try to take a checkpoint failed; empty if it succeeded."""
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


def _map(event: MapGiven | MapMissed) -> MapOfAttempt:
    """Return the report of the project map that the attempt's prompt contains. If the prompt has no
    map, the field `missed` has the reason."""
    if isinstance(event, MapMissed):
        return MapOfAttempt(tokens=0, files=0, full=0, left=0, missed=event.reason)
    return MapOfAttempt(
        tokens=event.tokens, files=event.files, full=event.full, left=event.left, missed=""
    )


def _size(event: AnyEvent) -> AnySize | None:
    """Return the report of an event about the size of a conversation; None for any other event."""
    match event:
        case Compacted():
            return CompactedSize(
                kind="compacted",
                session_id=event.session_id,
                before=event.before,
                after=event.after,
                times=event.times,
                asked=event.asked,
            )
        case NotCompacted():
            return UncompactedSize(
                kind="not_compacted", session_id=event.session_id, tokens=event.tokens
            )
        case Summarised():
            return SummarisedSize(
                kind="summarised",
                session_id=event.session_id,
                text=event.text,
                usage=event.usage,
                reason=event.reason,
            )
        case RolledOver():
            return ReplacedSize(
                kind="rolled_over",
                session_id=event.session_id,
                tokens=event.tokens,
                window=event.window,
                cause=event.cause,
            )
        case _:
            return None


def _checkpoint(checkpoint: Checkpoint) -> CheckpointOfAttempt:
    saved = checkpoint.workdir
    changed: int | None = saved.changed
    untracked: int | None = saved.untracked
    if checkpoint.why == IMPORTED:
        changed = untracked = None  # A capsule does not contain these numbers.
    return CheckpointOfAttempt(
        number=checkpoint.number,
        at=checkpoint.at,
        why=checkpoint.why,
        commit=saved.commit,
        ref=saved.ref,
        changed=changed,
        untracked=untracked,
        left_out=len(saved.left_out),
    )
