"""Measures how full the conversation of an attempt is. Called by `start_facts` before the attempt,
and by `finish` after it.

The size is read from the transcript, even if the agent reports a different size. The modules
`context_window` and `continuation` decide how a conversation of this size continues.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct
from msgspec.structs import replace

from perdure.model import (
    Attempt,
    Continuation,
    ContinuityPolicy,
    Fill,
    Measure,
    Outcome,
    OutcomeKind,
    Session,
    Snapshot,
    Start,
    TaskRun,
    WhenFull,
)
from perdure.model.events import AnyEvent, Compacted, NotCompacted, RolledOver, SessionRetired
from perdure.protocols import AgentDriver, RunStore
from perdure.rules.context_window import (
    FillRules,
    asks_for_person,
    completed,
    describe_fill,
    measure,
)

if TYPE_CHECKING:
    from perdure.engine.attempt.live_attempt import LiveAttempt


class Size(Struct, frozen=True):
    """Size of a conversation before an attempt, and the step (`measure`) that this size
    requires."""

    measure: Measure = Measure.NONE
    fill: Fill | None = None


UNKNOWN = Size()


def rules_of(context: FillRules, run: TaskRun) -> FillRules:
    """Return the user's rules for a conversation that is too long. A policy that the task sets
    replaces the user's."""
    return context.named(run.spec.when_full)


def fill_of(
    context: FillRules, driver: AgentDriver, run: TaskRun, at: Snapshot | None, known: Fill | None
) -> Fill | None:
    """Return how full the conversation was when the snapshot was taken. Return None if there is no
    transcript. `known`: the last known fill, which supplies values that the transcript lacks."""
    if at is None:
        return None
    try:
        with Path(at.path).open("rb") as file:
            content = file.read(at.size)
    except FileNotFoundError:  # the workdir or the agent's home was moved
        return None
    return completed(driver.fill(content), known, run.spec.model, rules_of(context, run))


def size_before(
    store: RunStore,
    context: FillRules,
    driver: AgentDriver,
    run: TaskRun,
    live: Session,
    at: Snapshot | None,
) -> Size:
    """Return the size of the conversation, and the step that is required before the conversation
    can continue."""
    fill = fill_of(context, driver, run, at, live.fill)
    if fill is None:
        return UNKNOWN
    last = _last(store.attempts(run.id), live.id)
    number = last.number if last is not None else 0
    events = []
    for record in store.run_events(run.id):
        if record.attempt == number:
            events.append(record.event)
    refused = (
        last is not None
        and last.outcome is not None
        and last.outcome.kind is OutcomeKind.CONTEXT_EXHAUSTED
    )
    # If a person compacted the conversation after the service refused it as too long, the refusal
    # does not apply to the shorter conversation.
    exhausted = refused and fill.compactions == (
        last.fill.compactions if last is not None and last.fill is not None else 0
    )
    compacted = any(isinstance(event, Compacted) for event in events)
    in_vain = any(isinstance(event, NotCompacted) for event in events) or (exhausted and compacted)
    found = measure(
        rules_of(context, run),
        fill,
        compacts=driver.abilities.compacts,
        exhausted=exhausted,
        in_vain=in_vain,
    )
    return Size(found, fill)


def _last(attempts: Sequence[Attempt], session_id: str) -> Attempt | None:
    """Return the newest attempt that used the conversation and has ended; None if there is none."""
    for each in reversed(attempts):
        if each.session_id == session_id and each.continuation is not None and each.outcome:
            return each
    return None


def changes(
    asked: Continuation, session_id: str, was: Fill | None, now: Fill | None, *, answered: bool
) -> list[AnyEvent]:
    """Return the journal events about changes in the conversation's size during an attempt. If a
    requested compaction did not happen, one event reports this, and the next attempt does not
    request a compaction again."""
    if now is None:
        return []
    times = now.compactions - (was.compactions if was is not None else 0)
    if times > 0:
        held = now.held or (was.tokens if was is not None else 0)
        return [
            Compacted(
                session_id=session_id, before=held, after=now.left, times=times, asked=asked.compact
            )
        ]
    if asked.compact and answered:
        return [NotCompacted(session_id=session_id, tokens=now.tokens)]
    return []


def rolled_over(
    context: FillRules, driver: AgentDriver, run: TaskRun, session: Session, cause: str
) -> list[AnyEvent]:
    """Return the journal events which say that a new conversation replaces one that is too long."""
    held = fill_of(context, driver, run, session.snapshot, session.fill) or session.fill or Fill()
    gone = RolledOver(session_id=session.id, tokens=held.tokens, window=held.window, cause=cause)
    return [gone, SessionRetired(session_id=session.id, cause=cause)]


class SizeChange(Struct, frozen=True):
    """Size of a conversation before and after an attempt."""

    was: Fill | None
    now: Fill | None
    following: Measure
    """The step that is required before the conversation can continue. It is used only if the
    attempt's last request was refused as too long."""

    @property
    def compactions(self) -> int:
        """Number of times that the conversation was compacted during the attempt."""
        if self.now is not None:
            return max(
                0, self.now.compactions - (self.was.compactions if self.was is not None else 0)
            )
        return 0

    def cause(self, outcome: Outcome, continuity: ContinuityPolicy) -> str:
        """Return the reason to retire the conversation; empty if it stays in use. It stays in use
        if it was not refused as too long, if it is to be compacted next, or if a person has to
        decide."""
        if outcome.kind is not OutcomeKind.CONTEXT_EXHAUSTED or self.following is Measure.COMPACT:
            return ""
        if self.now is not None and self.now.tokens:
            held = describe_fill(self.now)
        else:
            held = "an unknown size"
        if asks_for_person(continuity, self.following):
            return ""
        return f"rolled over at {held}: the model's service refused it as too long"


def size_after(
    context: FillRules,
    opened: LiveAttempt,
    session: Session | None,
    windows: Mapping[str, int],
    *,
    answered: bool,
) -> SizeChange:
    """Return the size of the conversation after the attempt, from its transcript. `windows`: the
    context windows that the agent reported, by model. `answered`: whether the agent said or did
    anything.

    If a new conversation is refused before its first answer, its instructions alone are too long.
    Compaction cannot help then, so the next step is `Measure.STOP`.
    """
    run, driver = opened.claim.run, opened.driver
    rules, known = rules_of(context, run), session.fill if session is not None else None
    was = fill_of(context, driver, run, opened.attempt.before, known)
    path = opened.transcript(session.id) if session is not None else None
    hopeless = not answered and opened.asked.kind in (Start.FRESH, Start.REBUILD)
    if path is None:
        return SizeChange(
            was,
            None,
            Measure.STOP if hopeless or rules.policy is WhenFull.STOP else Measure.ROLL_OVER,
        )
    found = driver.fill(path.read_bytes())
    found = replace(found, window=found.window or windows.get(found.model, 0))
    now = completed(found, known, run.spec.model, rules)
    in_vain = now.compactions > (was.compactions if was is not None else 0)
    if hopeless:
        return SizeChange(was, now, Measure.STOP)
    return SizeChange(
        was,
        now,
        measure(rules, now, compacts=driver.abilities.compacts, exhausted=True, in_vain=in_vain),
    )
