"""Gathers what was observed of the conversation in an attempt that has ended. Called by `finish`,
which passes the result to `receipt.judge`.

A resumed conversation is compared, byte by byte, with its state before the launch. A fork has a
file of its own. That file either begins with the parent's history or names the parent, whose file
then has the history. The parent's file must contain nothing of this attempt.
"""

from __future__ import annotations

from pathlib import Path

from perdure.agents.transcripts import Copies, begins_with, prompts_since, snapshot
from perdure.engine.attempt.baseline import fingerprints_of
from perdure.engine.attempt.event_totals import EventTotals
from perdure.engine.attempt.live_attempt import LiveAttempt
from perdure.engine.attempt.supervision import SupervisionResult
from perdure.engine.prompt_file import prompt_fingerprint, prompt_path
from perdure.errors import PerdureError
from perdure.model import (
    Continuation,
    Evidence,
    Outcome,
    Session,
    Snapshot,
    Start,
    TranscriptCondition,
)
from perdure.protocols import AgentDriver, Parks
from perdure.rules.lifecycle import UNUSABLE


def collect(
    opened: LiveAttempt, watched: SupervisionResult, copies: Copies, outcome: Outcome
) -> Evidence:
    """Return the evidence. The present conversation is compared with its state before the launch,
    and with the last state that perdure saw. `outcome`: the outcome that the driver determined."""
    driver, asked, before = opened.driver, opened.asked, opened.attempt.before
    session, reading = watched.session, watched.reading
    judged = _judged_session(asked, reading.session_id)
    path = opened.transcript(judged) if judged else None
    after = snapshot(driver, path)
    own = prompt_fingerprint(opened.directory)
    if session is not None and asked.kind is Start.RESUME:
        known = session.snapshot
    else:
        known = None
    prefix_kept, new = _looked_at(opened, path, before)
    if known is not None and path is not None:
        known_kept = begins_with(driver, path, known)
    else:
        known_kept = None
    if known_kept is False and prefix_kept is False and asked.standing is TranscriptCondition.WHOLE:
        # Nothing was missing from the transcript at the launch, so every difference arose while the
        # attempt ran.
        known_kept = True
    sent = set(session.prompts) if session is not None else {own}
    foreign = sum(mark not in sent and mark != own for mark in new)
    # No supervisor saw the end of a lost attempt. Other programs may have added their prompts to
    # the transcript long after that end, so these prompts are counted separately (`turns_since`).
    unseen = watched.exit.cause == "lost" and (own in new or prefix_kept is True)
    unheard = asked.kind is Start.RESUME and not reading.answered
    arrived = _prompt_found(opened, path, own, new)
    saved = bool(arrived) and unheard and driver.abilities.saves_prompt_first
    refused = saved and outcome.kind in UNUSABLE
    if refused or (arrived and unproven(driver, asked, reading)):
        arrived = None
    used = watched.meter.usage(reading)
    return Evidence(
        asked=asked.session_id,
        returned=reading.session_id,
        before=before,
        after=after,
        last_known=known,
        prefix_kept=prefix_kept,
        parent_kept=_parent_kept(opened, before, own),
        known_kept=known_kept,
        copy_kept=_copy_kept(opened, copies, judged, path),
        prompt_found=arrived,
        foreign_turns=0 if unseen else foreign,
        turns_since=foreign if unseen else 0,
        turns_between=_foreign_prompts(opened, session, known, before),
        other_writers=watched.other_writers,
        writes_lost=reading.writes_lost,
        answered=reading.answered,
        refused=refused,
        opened=reading.opened,
        replayed=reading.replayed,
        # An estimate is not evidence, so only tokens that the agent reported count.
        cached_tokens=0 if used.estimated else used.cached,
    )


def unproven(driver: AgentDriver, asked: Continuation, reading: EventTotals) -> bool:
    """Return True if the prompt in the transcript is no proof that the agent resumed the
    conversation. OpenCode 1.18.33 saves the prompt before it reads the history. Only a part of an
    answer shows that the agent could read the history."""
    first = driver.abilities.saves_prompt_first and asked.kind is Start.RESUME
    return first and not reading.begun


def _prompt_found(opened: LiveAttempt, path: Path | None, own: str, new: list[str]) -> bool | None:
    """Return whether the transcript has the input of the attempt: its prompt, or the results of the
    parked calls that were answered. None if there is no transcript."""
    if path is None:
        return None
    if opened.parked and not prompt_path(opened.directory).stat().st_size:
        driver = opened.driver
        return isinstance(driver, Parks) and driver.answered(path.read_bytes(), opened.parked)
    return own in new


def _copy_kept(opened: LiveAttempt, copies: Copies, judged: str, path: Path | None) -> bool | None:
    """Return whether the transcript contains all of perdure's own copy. None if there is no
    transcript or no copy."""
    if path is None or not judged:
        return None
    try:
        return copies.continued_by(opened.driver, judged, path)
    except PerdureError:
        return None


def _judged_session(asked: Continuation, returned: str) -> str:
    """Return the id of the conversation to judge. For a resume it is the requested one, even if the
    agent opened another."""
    if asked.kind is Start.RESUME:
        return asked.session_id
    return returned or (asked.fork_id if asked.kind is Start.FORK else asked.session_id)


def _looked_at(
    opened: LiveAttempt, path: Path | None, before: Snapshot | None
) -> tuple[bool | None, list[str]]:
    """Return whether the transcript begins with the earlier conversation, and the fingerprints of
    the prompts after that part. The first value is None if there is nothing to compare."""
    if path is None:
        return None, []
    if opened.asked.kind is Start.FORK and before is not None:
        return _fork(opened, path, before)
    if before is not None:
        kept = begins_with(opened.driver, path, before)
    else:
        kept = None
    return kept, prompts_since(opened.driver, path, before)


def _fork(opened: LiveAttempt, path: Path, before: Snapshot) -> tuple[bool, list[str]]:
    driver, parent = opened.driver, Path(before.path)
    prompts = prompts_since(driver, path, None)
    if named := driver.parent(path.read_bytes()):
        return named == opened.asked.session_id and begins_with(driver, parent, before), prompts
    turns = opened.asked.fork_at or before.turns
    with parent.open("rb") as file:
        history = fingerprints_of(driver, file.read(before.size))[:turns]
    return prompts[:turns] == history, prompts[turns:]


def _parent_kept(opened: LiveAttempt, before: Snapshot | None, own: str) -> bool | None:
    if opened.asked.kind is not Start.FORK or before is None:
        return None
    parent = opened.transcript(opened.asked.session_id)
    return (
        parent is not None
        and begins_with(opened.driver, parent, before)
        and own not in prompts_since(opened.driver, parent, before)
    )


def _foreign_prompts(
    opened: LiveAttempt, session: Session | None, known: Snapshot | None, before: Snapshot | None
) -> int:
    """Return the number of prompts that other programs or people sent before this launch, but after
    perdure last saw the conversation."""
    if (
        session is None
        or known is None
        or before is None
        or not begins_with(opened.driver, Path(before.path), known)
    ):
        return 0
    all_new = prompts_since(opened.driver, Path(before.path), known)
    within = prompts_since(opened.driver, Path(before.path), before)
    between = all_new[: len(all_new) - len(within)]
    return sum(mark not in session.prompts for mark in between)
