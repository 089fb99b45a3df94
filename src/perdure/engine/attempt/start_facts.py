"""Decides how an attempt starts. It gathers the facts for `continuation.choose`: transcripts,
copies, earlier sessions and other programs that use the conversation. Called by `opening_steps`."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from glob import escape
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from perdure.agents.transcripts import Copies, locate, snapshot
from perdure.agents.transcripts.copies import UNUSABLE as MOVED
from perdure.agents.transcripts.copy_file import prefix
from perdure.engine.attempt.baseline import (
    TOLD,
    Baseline,
    Journaled,
    baseline_of,
    compare_transcript,
    count_fully_quoted,
    damage_of,
    fingerprints_of,
    load,
    shown_of,
    unrecorded,
    with_added,
    with_ids_of,
    without_rewound,
)
from perdure.engine.attempt.baseline import UNKNOWN as NOTHING_KNOWN
from perdure.engine.attempt.context_fill import UNKNOWN, size_before
from perdure.engine.attempt.engine import Engine, EngineStore
from perdure.engine.attempt.warm_agents import Idle
from perdure.errors import PerdureError
from perdure.host import process
from perdure.host.redaction import Redactor
from perdure.model import (
    RESET,
    Attempt,
    Claim,
    Continuation,
    Item,
    Loaded,
    Measure,
    Outcome,
    OutcomeKind,
    Rung,
    Session,
    SessionState,
    Snapshot,
    Start,
    TaskRun,
    TranscriptCondition,
    Verdict,
)
from perdure.model.events import CheckpointRestored, CollisionSeen
from perdure.protocols import AgentDriver, RunStore
from perdure.rules.context_window import describe_fill
from perdure.rules.continuation import UNFIT, Situation, choose, is_abandoned
from perdure.rules.lifecycle import UNUSABLE, failed_by_itself


class NotStarted(Exception):
    """Raised to end an attempt before its agent is launched. `outcome`: the outcome of the
    attempt."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome.detail)
        self.outcome = outcome


class StartDecision(Struct, frozen=True):
    """How the attempt starts, and which known items its transcript lacks."""

    continuation: Continuation
    unrecorded: tuple[Journaled, ...] = ()
    """Items that are in the journal but not in the transcript."""
    others: tuple[Item, ...] = ()
    """Items that somebody else had added to the agent's transcript. perdure's own copy now replaces
    that transcript."""


def decide(
    engine: Engine,
    claim: Claim,
    driver: AgentDriver,
    home: Path,
    live: Session | None,
    lineage: Sequence[Session],
    idle: Idle | None = None,
    failed: frozenset[Rung] = frozenset(),
) -> StartDecision:
    """Return how the attempt starts. `idle`: the kept agent for this attempt, which does not count
    as another program that uses the conversation. `failed`: the ways to continue (rungs) whose
    preparation failed earlier in this attempt.

    Raises NotStarted if the attempt has to wait or is refused.
    """
    run = claim.run
    retired = []
    for session in lineage:
        if session.state is SessionState.RETIRED and session.attempts and session.cause != RESET:
            retired.append(session)
    if live:
        path = locate(driver, home, live.id, engine.attempt_directory(claim))
    else:
        path = None
    transcript = snapshot(driver, path)
    known = baseline_of(engine.store, live) if live else NOTHING_KNOWN
    copy = _copy(engine.copies, claim, driver, home, live.id) if live else None
    tried = failed
    doubted: frozenset[Rung] = frozenset()
    if live:
        since = _since_restore(engine.store, run.id)
        archived = driver.archive is not None
        tried |= _rungs_tried(since, live.id, transcript, copy, archived=archived)
        doubted = _rungs_doubted(since, live.id, transcript, copy)
    directory = engine.attempt_directory(claim)
    forking = _forking(engine.store, engine.copies, claim.run, driver, home, directory)
    kept = idle.workspace.id if idle is not None else ""
    situation = Situation(
        policy=run.spec.continuity,
        now=engine.store.now(),
        session=live,
        lost=retired[-1] if retired else None,
        forks=run.spec.forks,
        fork_at=forking.at,
        fork_id=str(uuid.uuid4()) if driver.abilities.name_fork else "",
        parent=forking.parent,
        parent_copy=forking.copy,
        parent_standing=forking.standing,
        parent_refused=forking.refused,
        transcript=transcript,
        standing=(
            compare_transcript(engine.copies, driver, home, live.id, path, known)
            if live
            else TranscriptCondition.ABSENT
        ),
        announced=known.announced,
        copy=copy,
        tried=tried | doubted,
        writers=_writers(engine.writers(driver, home, live.id, but=kept), idle) if live else (),
        resume_by_path=driver.abilities.resume_by_path,
        new_id=str(uuid.uuid4()) if driver.abilities.choose_id else "",
        on_expiry=engine.on_expiry,
        sessions=driver.abilities.sessions,
        transcripts=driver.abilities.transcripts,
        heard=any(attempt.receipt is not None for attempt in engine.store.attempts(run.id)),
        handed_over=_other_agent(engine.store.attempts(run.id), run.spec.agent),
    )
    if live:
        size = size_before(engine.store, engine.context, driver, run, live, situation.transcript)
    else:
        size = UNKNOWN
    if size.fill is not None:
        situation = replace(situation, measure=size.measure, size=describe_fill(size.fill))
    continuation = choose(situation)
    if is_abandoned(situation):
        return StartDecision(continuation)
    reached = Rung.NATIVE not in situation.tried
    too_long = situation.measure in (Measure.ROLL_OVER, Measure.STOP) and reached
    lost = continuation.kind in (Start.REBUILD, Start.FRESH, Start.REFUSE) and not too_long
    if live and lost and Rung.REPAIRED not in situation.tried:
        from perdure.engine.attempt import repair

        foreign = situation.standing is TranscriptCondition.FOREIGN
        mended = repair.repair_transcript(engine, claim, driver, home, live.id, own=not foreign)
        if mended is not None:
            continuation = choose(replace(situation, edits=mended.log))
    if doubted and continuation.kind is not Start.RESUME and not too_long:
        # A failure that the driver does not recognize may have any cause, so it must not end the
        # conversation.
        situation = replace(situation, tried=tried)
        continuation = choose(situation)
    if live and lost and continuation.kind is not Start.RESUME and Rung.CHECKPOINT not in tried:
        older = _older(engine.store, engine.copies, run.id, driver, live)
        if older:
            continuation = choose(replace(situation, checkpoint=older))
    if live and size.fill is not None:
        from perdure.engine.attempt import (
            cache_price,  # imported late: a first attempt has no cache
        )

        if cache_price.has_choice(continuation):
            continuation = cache_price.weigh(
                engine, claim, driver, live, size.fill, continuation, situation.new_id
            )
            if continuation.kind is Start.REFUSE:
                raise NotStarted(Outcome(kind=OutcomeKind.NEEDS_INPUT, detail=continuation.reason))
    if continuation.kind is Start.WAIT:
        assert live is not None
        engine.store.record(claim, [CollisionSeen(session_id=live.id, detail=continuation.reason)])
        raise NotStarted(Outcome(kind=OutcomeKind.WRITER_CONFLICT, detail=continuation.reason))
    if continuation.kind is Start.REFUSE and too_long:
        raise NotStarted(Outcome(kind=OutcomeKind.CONTEXT_EXHAUSTED, detail=continuation.reason))
    if continuation.kind is Start.REFUSE:
        raise NotStarted(Outcome(kind=OutcomeKind.CONTINUITY_LOST, detail=continuation.reason))
    continuation = replace(continuation, standing=situation.standing)
    if continuation.kind is Start.RESUME and live is not None:
        return _with_comparison(engine, claim, driver, home, continuation, live, known)
    if continuation.kind is Start.FORK and forking.session is not None:
        continuation = replace(continuation, standing=forking.standing)
        return _with_comparison(
            engine, claim, driver, home, continuation, forking.session, forking.known
        )
    return StartDecision(continuation)


def _with_comparison(
    engine: Engine,
    claim: Claim,
    driver: AgentDriver,
    home: Path,
    asked: Continuation,
    session: Session,
    known: Baseline,
) -> StartDecision:
    """Return the decision, extended by a comparison of the known items with those that the agent
    will load from the transcript."""
    try:
        directory = engine.attempt_directory(claim)
        content = _content(engine.store, engine.copies, claim.run, driver, home, asked, directory)
        now = load(engine.redactor, driver, home, content)
        base = None
        others: tuple[Item, ...] = ()
        if now is not None:
            base = _loaded_before(
                engine.copies, engine.redactor, driver, home, asked, session, content
            )
        if now is not None and not asked.fork_at:
            whole = base or now
            added = _with_foreign_items(engine, claim, driver, home, asked, session, content, whole)
            if added is not None:
                base, others = added, added.items[len(whole.items) :]
    except (OSError, PerdureError):
        return StartDecision(asked)
    if now is None:
        return StartDecision(asked)
    # A fork at an earlier turn omits the newer items on purpose.
    journal = known.journal if not asked.fork_at else ()
    if not driver.abilities.tells_call_ids:
        journal = with_ids_of(now, journal)
    now = without_rewound(now, journal)
    unrecorded_items = unrecorded(now, journal)
    told = count_fully_quoted(unrecorded_items) if len(unrecorded_items) <= TOLD else 0
    # Damage in the part that a fork omits does not matter.
    damage = damage_of(driver, content, known) if not asked.fork_at else 0
    shown = replace(shown_of(base, now, journal), told=told, damaged=damage)
    return StartDecision(replace(asked, shown=shown), tuple(unrecorded_items), others)


def _content(
    store: RunStore,
    copies: Copies,
    run: TaskRun,
    driver: AgentDriver,
    home: Path,
    asked: Continuation,
    directory: Path,
) -> bytes:
    """Return the content of the transcript that the agent will continue. The transcript need not be
    in place yet. `directory`: the attempt's directory."""
    if asked.rung is Rung.REPAIRED:
        from perdure.engine.attempt.repair import REPAIRED_COPY

        return (directory / REPAIRED_COPY).read_bytes()
    if asked.rung is Rung.COPY:
        return copies.content(driver.name, asked.session_id)
    if asked.rung is Rung.CHECKPOINT:
        checkpoints = store.checkpoints(run.id)
        chosen = next(each for each in checkpoints if each.number == asked.checkpoint)
        return copies.content(driver.name, asked.session_id, chosen.conversation)
    path = locate(driver, home, asked.session_id, directory)
    if path is not None:
        return path.read_bytes()
    return b""


def _loaded_before(
    copies: Copies,
    redactor: Redactor,
    driver: AgentDriver,
    home: Path,
    asked: Continuation,
    session: Session,
    content: bytes,
) -> Loaded | None:
    """Return the items that the agent would have loaded from the last transcript that perdure saw.
    None if these items are the same as in the present transcript, or are unknown."""
    if asked.rung in (Rung.REPAIRED, Rung.CHECKPOINT):
        copy = copies.of(driver.name, asked.session_id)
        if copy.is_file():
            return load(redactor, driver, home, copy.read_bytes())
        return None
    seen = session.snapshot
    if asked.rung is Rung.COPY or seen is None or seen.size >= len(content):
        return None
    return load(redactor, driver, home, content[: seen.size])


def _with_foreign_items(
    engine: Engine,
    claim: Claim,
    driver: AgentDriver,
    home: Path,
    asked: Continuation,
    session: Session,
    content: bytes,
    known: Loaded,
) -> Loaded | None:
    """Return the known items, followed by those that somebody else had added to a transcript that
    perdure replaces. None if nothing was added. `content`: the transcript that the agent will
    continue."""
    path = locate(driver, home, asked.session_id, engine.attempt_directory(claim))
    found: list[bytes] = []
    standing = asked.standing in (TranscriptCondition.WHOLE, TranscriptCondition.CHANGED)
    if asked.rung is Rung.COPY and path is not None and standing:
        found.append(path.read_bytes())
    # Gemini CLI 0.61.0 replaces all messages of a transcript that it cannot read, and a restore may
    # have been interrupted. So the transcripts from the start of failed attempts are searched too.
    for given in _transcripts_of_failed_attempts(
        _since_restore(engine.store, claim.run.id), asked.session_id
    ):
        found += _still_there(given, path)
    for each in dict.fromkeys(found):
        strange = _foreign_marks(engine.redactor, driver, each, content, session.prompts)
        there = load(engine.redactor, driver, home, each) if strange else None
        base = with_added(known, there, strange) if there is not None else None
        if base is not None:
            return base
    return None


def _still_there(given: Snapshot, path: Path | None) -> list[bytes]:
    """Return a list with the transcript from the start of an earlier attempt. The list is empty if
    no file begins with that content any more. The files searched are the transcript's former path,
    the present transcript and files that were moved aside."""
    place = Path(given.path)
    aside = sorted(place.parent.glob(f"{escape(place.name)}{MOVED}.*"))
    for each in (place, *([path] if path is not None else []), *aside):
        if prefix(each, given.size) == given.sha256:
            return [each.read_bytes()[: given.size]]
    return []


def _foreign_marks(
    redactor: Redactor, driver: AgentDriver, found: bytes, copy: bytes, prompts: Sequence[str]
) -> frozenset[str]:
    """Return the fingerprints of those prompts in `found` that another program sent. These prompts
    are neither in `copy` nor in `prompts`, the fingerprints of the prompts that perdure sent."""
    # The copy is redacted, but perdure computed the fingerprints of sent prompts from the original
    # text. So both the original and the redacted prompt are compared.
    sent = fingerprints_of(driver, found)
    there = fingerprints_of(driver, redactor.bytes(found))
    kept = set(fingerprints_of(driver, copy))
    ours = kept.union(prompts)
    strange = [mark for mark, own in zip(there, sent, strict=False) if not ours & {mark, own}]
    # One of the copy's prompts may be damaged in `found`, and then looks like another program's
    # prompt. So unknown prompts count only if they outnumber the copy's prompts that are missing.
    if len(strange) <= len(kept.difference(there)):
        return frozenset()
    return frozenset(strange)


def _transcripts_of_failed_attempts(attempts: Sequence[Attempt], session_id: str) -> list[Snapshot]:
    """Return the states of the transcript from which attempts tried to continue the conversation
    and failed, newest first. Attempts before the last successful one are ignored."""
    found: list[Snapshot] = []
    for attempt in reversed(attempts):
        if attempt.outcome is None:
            continue
        asked, receipt = attempt.continuation, attempt.receipt
        if asked is None or asked.session_id != session_id:
            continue
        if receipt is not None and receipt.verdict is not Verdict.BROKEN:
            break
        if attempt.before is not None:
            found.append(attempt.before)
    return found


def _writers(there: Sequence[int], idle: Idle | None) -> tuple[int, ...]:
    """Return the processes that use the conversation, except those of the kept agent `idle`."""
    if idle is not None and there:
        own = process.survivors(idle.kept.mark)
    else:
        own = []
    return tuple(pid for pid in there if pid not in own)


class _Forking(Struct, frozen=True, kw_only=True):
    """The conversation to fork, and whether a fork is possible.

    `at`: the turn at which to fork; 0 means the end. For a CLI that can fork only at the end, `at`
    is 0 if the conversation ends at the requested turn. For other CLIs `at` is always the requested
    turn, because the parent may continue before the CLI reads its transcript.
    """

    at: int = 0
    parent: Snapshot | None = None
    copy: Snapshot | None = None
    refused: bool = False
    standing: TranscriptCondition = TranscriptCondition.ABSENT
    session: Session | None = None
    """Session of the conversation to fork; None if perdure has no record of it."""
    known: Baseline = NOTHING_KNOWN


def _forking(
    store: EngineStore,
    copies: Copies,
    run: TaskRun,
    driver: AgentDriver,
    home: Path,
    directory: Path,
) -> _Forking:
    """Return the facts about the conversation that the run forks from. `directory`: the attempt's
    directory."""
    spec = run.spec
    if not spec.forks:
        return _Forking()
    path = locate(driver, home, spec.forks, directory)
    parent = snapshot(driver, path)
    copy = snapshot(driver, copies.of(driver.name, spec.forks))
    records = store.sessions(spec.forks)
    session = next((each for each in records if each.key.agent == driver.name), None)
    if session is not None:
        known = baseline_of(store, session)
    else:
        known = NOTHING_KNOWN
    found = compare_transcript(copies, driver, home, spec.forks, path, known)
    stands = copy if found in UNFIT else parent or copy
    if not driver.abilities.fork_at and stands is not None and stands.turns == spec.fork_at:
        at = 0
    else:
        at = spec.fork_at
    # If a CLI can fork a conversation only at its end, the fork would include turns that came after
    # the requested one.
    unable = (
        not driver.abilities.fork
        or driver.abilities.fork_bound
        or bool(at and not driver.abilities.fork_at)
    )
    tried = _rungs_tried(
        store.attempts(run.id),
        spec.forks,
        parent,
        copy,
        archived=driver.archive is not None,
    )
    return _Forking(
        at=at,
        parent=parent,
        copy=copy,
        refused=unable or Rung.NATIVE in tried,
        standing=found,
        session=session,
        known=known,
    )


def _copy(
    copies: Copies, claim: Claim, driver: AgentDriver, home: Path, session_id: str
) -> Snapshot | None:
    """Return a snapshot of perdure's own copy. None if there is no copy. Also None if the copy is
    so damaged that its path in the agent's home cannot be determined."""
    copy = copies.of(driver.name, session_id)
    try:
        if driver.archive is None and claim.run.workspace is not None and copy.exists():
            driver.place(home, session_id, Path(claim.run.workspace.path), copy)
    except ValueError:
        return None
    return snapshot(driver, copy)


def _since_restore(store: RunStore, run_id: str) -> Sequence[Attempt]:
    """Return the attempts since the last restore. Earlier attempts say nothing about the restored
    conversation."""
    events = [record.event for record in store.run_events(run_id)]
    last = 0
    for event in events:
        if isinstance(event, CheckpointRestored) and not event.files_only:
            last = max(last, event.attempts)
    return [attempt for attempt in store.attempts(run_id) if attempt.number > last]


def _older(store: RunStore, copies: Copies, run_id: str, driver: AgentDriver, live: Session) -> int:
    """Return the number of the newest checkpoint that has an older state of the conversation than
    perdure's newest copy. The older state must contain a prompt. Return 0 if there is no such
    checkpoint."""
    newest = copies.parts(driver, live.id)[:1]
    for checkpoint in reversed(store.checkpoints(run_id)):
        main = checkpoint.conversation[:1]
        if checkpoint.session_id != live.id or not main or main == newest:
            continue
        path = copies.find(driver.name, main[0])
        if path is not None and driver.prompts(path.read_bytes()[: main[0].size]):
            return checkpoint.number
    return 0


def _other_agent(attempts: Sequence[Attempt], agent: str) -> str:
    """Return the name of the agent that worked on the run last, if it is not `agent`; otherwise
    empty. Attempts of `agent` that neither received their prompt nor answered are ignored."""
    for attempt in reversed(attempts):
        before = attempt.flags.get("agent", "")
        heard = attempt.receipt is not None and (
            attempt.receipt.evidence.prompt_found or attempt.receipt.evidence.answered
        )
        if before == agent and heard:
            return ""
        if before and before != agent:
            return before
    return ""


def _rungs_doubted(
    attempts: Sequence[Attempt], session_id: str, now: Snapshot | None, copy: Snapshot | None
) -> frozenset[Rung]:
    """Return the ways to continue (rungs) with which the agent failed for an unknown reason. Only
    failures before the agent's first turn count, and only those since the conversation last
    continued."""
    rungs: set[Rung] = set()
    for attempt in reversed(attempts):
        asked = attempt.continuation
        if attempt.outcome is None or asked is None or asked.session_id != session_id:
            continue
        if not _failed_unheard(attempt):
            break
        rungs.add(asked.rung)
    if rungs and now is not None and copy is not None and now.sha256 == copy.sha256:
        # The copy has the same content as the agent's transcript, so it would fail in the same way.
        rungs.add(Rung.COPY)
    return frozenset(rungs)


def _failed_unheard(attempt: Attempt) -> bool:
    """Return whether the agent failed for an unknown reason before it resumed the conversation."""
    asked, outcome, receipt = attempt.continuation, attempt.outcome, attempt.receipt
    if asked is None or outcome is None or asked.kind is not Start.RESUME:
        return False
    return receipt is None and failed_by_itself(outcome)


def _rungs_tried(
    attempts: Sequence[Attempt],
    session_id: str,
    now: Snapshot | None,
    copy: Snapshot | None,
    *,
    archived: bool,
) -> frozenset[Rung]:
    """Return the ways to continue (rungs) that failed since the conversation last continued, and
    that would fail again.

    `now`: the agent's transcript. `copy`: perdure's own copy. `archived`: whether the transcript is
    extracted from a database into the attempt's directory.

    The failure of a rung that uses the agent's transcript is ignored if the transcript has changed
    since that attempt. The failure of the copy is ignored if the copy has changed. All failures
    before an attempt that perdure refused to start are ignored too, because a later attempt means
    that a person asked for another try.
    """
    rungs: set[Rung] = set()
    for attempt in reversed([a for a in attempts if a.outcome is not None]):
        asked, outcome, receipt = attempt.continuation, attempt.outcome, attempt.receipt
        if asked is None and outcome is not None and outcome.kind is OutcomeKind.CONTINUITY_LOST:
            break
        if asked is None or outcome is None or asked.session_id != session_id:
            continue
        unusable = outcome.kind in UNUSABLE
        strayed = (
            asked.kind is Start.RESUME
            and receipt is not None
            and bool(receipt.evidence.returned)
            and receipt.evidence.returned != receipt.evidence.asked
        )
        changed = (
            receipt is not None
            and receipt.verdict is Verdict.BROKEN
            and False in (receipt.evidence.known_kept, receipt.evidence.prefix_kept)
        )
        if not (unusable or strayed or changed):
            break
        before = attempt.before
        # The failed attempt may have changed the transcript, so the transcript's state at the end
        # of that attempt is compared.
        left = receipt.evidence.after if receipt is not None else None
        left = left or before
        same = now is None or left is None or now.sha256 == left.sha256
        if same and now is not None and left is not None and not archived:
            same = now.path == left.path
        failed = {asked.rung}
        if same:
            failed.add(Rung.NATIVE)
            # An agent that did not find the file by its id may find it by its path, so `Rung.PATH`
            # may still be tried. A broken file fails either way.
            failed |= {Rung.PATH} if outcome.kind is OutcomeKind.SESSION_BROKEN else set()
        else:
            failed -= {Rung.NATIVE, Rung.PATH}
        followed = before is None or left is None or copy is None
        if before is not None and left is not None and copy is not None:
            # If the copy's size is between the transcript's sizes before and after the failed
            # attempt, the copy differs at most by what that attempt wrote. Such a copy would fail
            # too. A copy of any other size may be tried.
            followed = before.size <= copy.size <= left.size
        if not followed:
            failed.discard(Rung.COPY)
        rungs |= failed
    return frozenset(rungs)
