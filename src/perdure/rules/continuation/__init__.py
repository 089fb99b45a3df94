"""Decides how the next attempt starts, and writes its prompt (`prompt`). Pure.

`choose` tries the ways to continue in a fixed order, from the best: the agent's own transcript by
id, then by path, perdure's copy, a repaired copy, a checkpoint's conversation. If none works and
the policy allows it, a new conversation begins with a brief. `choose` never picks "the latest" of
anything, and never begins a new conversation without reporting it.
"""

from __future__ import annotations

from msgspec import Struct
from msgspec.structs import replace

from perdure.model import (
    Continuation,
    ContinuityPolicy,
    Measure,
    OnExpiry,
    Rung,
    Session,
    SessionState,
    Snapshot,
    Start,
    TranscriptCondition,
)

WRITER_WAIT_MS = 15_000


class Situation(Struct, frozen=True, kw_only=True):
    """All facts about a run and its conversation on which `choose` depends."""

    policy: ContinuityPolicy
    now: int
    session: Session | None = None
    lost: Session | None = None
    """The newest retired conversation of this scope, if the scope has no current one."""
    transcript: Snapshot | None = None
    """The agent's own transcript as it is on disk now; None if the agent has none."""
    standing: TranscriptCondition = TranscriptCondition.WHOLE
    """How the agent's transcript compares with perdure's own record of it."""
    announced: bool = False
    """Whether the output of an agent showed that the agent had opened the conversation. If so, the
    agent may have sent a request to the model."""
    copy: Snapshot | None = None
    """perdure's own copy of the transcript; None if there is none."""
    edits: tuple[str, ...] = ()
    """The changes in a repaired copy of the transcript. The installed agent was proven to accept
    that copy. Empty if there is no such copy."""
    tried: frozenset[Rung] = frozenset()
    """Ways to continue this conversation that were tried and failed. Reset when the conversation
    continues."""
    writers: tuple[int, ...] = ()
    """Process ids of other running programs that use this conversation."""
    checkpoint: int = 0
    """Number of the newest checkpoint whose conversation differs from perdure's own copy, if that
    copy is unusable. 0 if there is no such checkpoint, or if the copy is usable."""
    resume_by_path: bool = False
    new_id: str = ""
    """Unused conversation id, if the CLI lets the caller choose the id; else empty."""
    forks: str = ""
    """Id of the conversation that this run is to fork. Empty if no fork was requested, or if the
    run already has its own conversation."""
    fork_at: int = 0
    fork_id: str = ""
    """Unused id for the fork, if the CLI lets the caller choose the id; else empty."""
    parent: Snapshot | None = None
    """The transcript of the parent (the conversation to be forked), as it is on disk now; None if
    there is none."""
    parent_copy: Snapshot | None = None
    """perdure's own copy of the parent's transcript; None if there is none."""
    parent_standing: TranscriptCondition = TranscriptCondition.WHOLE
    """How the parent's transcript compares with perdure's own record of it."""
    parent_refused: bool = False
    """Whether the agent reported that it cannot fork the parent's conversation."""
    on_expiry: OnExpiry = OnExpiry.RESUME
    """Policy for a session whose lifetime has passed."""
    sessions: bool = True
    """Whether the agent can continue an earlier conversation."""
    transcripts: bool = True
    """Whether perdure can read the agent's conversations."""
    heard: bool = False
    """Whether an earlier attempt of this run has reached the model."""
    measure: Measure = Measure.NONE
    """Step that is needed before the conversation continues, because of its size."""
    size: str = ""
    """Size of the conversation in words, for use in a sentence."""
    handed_over: str = ""
    """Name of the agent that worked on this run before, if it was another agent; else empty."""


def choose(at: Situation) -> Continuation:
    """Return how the attempt starts. The result's `reason` is a sentence that `perdure why`
    shows."""
    if not at.transcripts:
        return _without_transcripts(at)
    if not at.sessions:
        return _keeping_none(at)
    if at.session is None:
        return _without_session(at)
    if at.writers:
        who = ", ".join(map(str, at.writers))
        return Continuation(
            kind=Start.WAIT,
            session_id=at.session.id,
            until=at.now + WRITER_WAIT_MS,
            reason=f"another live process ({who}) uses conversation {at.session.id}",
        )
    if at.forks and at.session.state is SessionState.PINNED and at.session.attempts == 0:
        # The earlier fork may have been killed when it had only a part of the parent's history. So
        # the fork is made again and not resumed.
        return _fork(at, at.session.id if at.transcript is None and at.fork_id else at.fork_id)
    if not (at.session.expires and at.session.expires <= at.now):
        return _by_ladder(at, at.session)
    return _after_expiry(at, at.session)


def _after_expiry(at: Situation, session: Session) -> Continuation:
    """Return how to continue an expired session. The reason always says when the lifetime ended.
    With a strict policy, an expired session never leads to a new conversation."""
    told = f"it had expired {(at.now - session.expires) / 1000:.0f} s before"
    if is_abandoned(at):
        reason = (
            f"conversation {session.id} is not continued: {told}, and the policy then "
            "starts a new one"
        )
        return Continuation(
            kind=Start.REBUILD,
            session_id=at.new_id,
            rung=Rung.REBUILT,
            lost_session_id=session.id,
            reason=reason,
            expired=session.expires,
        )
    found = _by_ladder(at, session)
    return replace(found, reason=f"{found.reason}; {told}", expired=session.expires)


def is_abandoned(at: Situation) -> bool:
    """Return whether a usable conversation is replaced by a new one only because its lifetime has
    passed."""
    asked = at.on_expiry is OnExpiry.REBUILD and at.policy is not ContinuityPolicy.STRICT
    return (
        asked
        and at.session is not None
        and at.session.attempts > 0
        and 0 < at.session.expires <= at.now
    )


def _by_ladder(at: Situation, session: Session) -> Continuation:
    # If perdure knows that a transcript is unusable, the agent is not started with it.
    usable = at.standing not in UNFIT
    began = usable and at.transcript is not None and at.transcript.turns > 0
    copied = at.copy is not None and at.copy.turns > 0
    if began and Rung.NATIVE not in at.tried and at.measure is not Measure.NONE:
        return _too_long(at, session)
    if began and Rung.NATIVE not in at.tried:
        return Continuation(
            kind=Start.RESUME, session_id=session.id, reason="its transcript is on disk"
        )
    if began and at.resume_by_path and Rung.PATH not in at.tried:
        reason = "the agent did not find it by its id, but the file is there"
        return Continuation(kind=Start.RESUME, session_id=session.id, rung=Rung.PATH, reason=reason)
    if copied and Rung.COPY not in at.tried:
        reason = f"{_transcript_is(at.transcript, at.standing)}; perdure's own copy is restored"
        return Continuation(kind=Start.RESUME, session_id=session.id, rung=Rung.COPY, reason=reason)
    if at.edits and Rung.REPAIRED not in at.tried:
        reason = (
            f"no transcript could be used as it is; a copy was repaired ({len(at.edits)} "
            f"change(s)), and the agent was proven to continue from it"
        )
        return Continuation(
            kind=Start.RESUME,
            session_id=session.id,
            rung=Rung.REPAIRED,
            reason=reason,
            edits=at.edits,
        )
    if at.checkpoint and Rung.CHECKPOINT not in at.tried:
        reason = (
            "the agent does not accept the newest copy of the conversation; that of checkpoint "
            f"{at.checkpoint} is restored"
        )
        return Continuation(
            kind=Start.RESUME,
            session_id=session.id,
            rung=Rung.CHECKPOINT,
            checkpoint=at.checkpoint,
            reason=reason,
        )
    if session.state is SessionState.PINNED and session.attempts == 0 and not began and not copied:
        return _never_began(at, session)
    why = f"{_transcript_is(at.transcript, at.standing)}, and {_no_copy(at.copy)}"
    return _after_loss(at, session.id, why)


UNFIT = frozenset({TranscriptCondition.CHANGED, TranscriptCondition.FOREIGN})
"""States of a transcript that perdure never lets the agent continue from."""


def _transcript_is(transcript: Snapshot | None, standing: TranscriptCondition) -> str:
    """Return a clause that says why the agent's own transcript is not used."""
    if standing is TranscriptCondition.FOREIGN:
        return "another conversation was found in place of the agent's transcript"
    if standing is TranscriptCondition.CHANGED:
        return "the agent's transcript is not what perdure had recorded"
    if transcript is None:
        return "no transcript of it was found"
    if not transcript.turns:
        return "the agent's transcript is empty"
    return "the agent did not continue from its transcript"


def _no_copy(copy: Snapshot | None) -> str:
    if copy is None:
        return "perdure has no copy of it"
    return "perdure's own copy could not replace it"


def _too_long(at: Situation, session: Session) -> Continuation:
    """Return how to continue an intact conversation that is too long to continue unchanged."""
    if at.measure is Measure.COMPACT:
        reason = (
            f"its transcript is on disk; it holds {at.size}, and is compacted before it continues"
        )
        return Continuation(kind=Start.RESUME, session_id=session.id, compact=True, reason=reason)
    if at.measure is Measure.ROLL_OVER and at.policy is not ContinuityPolicy.STRICT:
        reason = f"rolled over at {at.size}"
        return Continuation(
            kind=Start.REBUILD,
            session_id=at.new_id,
            rung=Rung.REBUILT,
            lost_session_id=session.id,
            rolls_over=True,
            reason=reason,
        )
    if at.measure is Measure.STOP:
        why = "the settings stop it at this size"
    else:
        why = "a strict policy allows no new conversation in its place"
    return Continuation(
        kind=Start.REFUSE,
        session_id=session.id,
        lost_session_id=session.id,
        reason=f"conversation {session.id} holds {at.size}; {why}",
    )


def _never_began(at: Situation, session: Session) -> Continuation:
    """Return how to start if an earlier attempt was to begin `session`, and nothing usable of that
    conversation is on disk. Normally it never began, so nothing is lost and the attempt begins a
    conversation.

    The conversation counts as lost if its agent may have sent a request to the model, or if its
    transcript is unusable. If the conversation was to replace a lost one, that older conversation
    is still lost.
    """
    if session.parent:
        return _after_loss(
            at, session.parent, f"{session.id}, which was to replace it, never started"
        )
    if at.standing in UNFIT:
        return _after_loss(at, session.id, _transcript_is(at.transcript, at.standing))
    if at.announced:
        why = "the agent had started, so it may have asked the model, and no transcript is on disk"
        return _after_loss(at, session.id, why)
    reason = (
        "the conversation was announced, but no agent answered in it and nothing of it is on disk"
    )
    same = at.transcript is None and Rung.FRESH not in at.tried
    return _begin(at, session.id if same and at.new_id else at.new_id, reason)


def _begin(at: Situation, new_id: str, reason: str) -> Continuation:
    """Return a continuation that starts the scope's first conversation. If another agent worked on
    the run before, the conversation begins with a brief."""
    if at.handed_over:
        reason = (
            f"handed over from {at.handed_over}: an agent cannot continue another one's "
            f"conversation"
        )
        return Continuation(kind=Start.REBUILD, session_id=new_id, rung=Rung.REBUILT, reason=reason)
    return Continuation(kind=Start.FRESH, session_id=new_id, rung=Rung.FRESH, reason=reason)


def _without_session(at: Situation) -> Continuation:
    if at.lost is None and at.forks:
        return _fork(at, at.fork_id)
    if at.lost is None:
        return _begin(at, at.new_id, "started a new conversation")
    return _after_loss(at, at.lost.id, at.lost.cause or "it was retired")


def _without_transcripts(at: Situation) -> Continuation:
    """Return how to continue with an agent whose conversations perdure cannot read. Such an agent
    has a session only if it offers to load or resume a conversation."""
    if at.forks:
        return _keeping_none(at)
    if at.session is None and (at.heard or at.lost is not None):
        return _after_loss(
            at,
            at.lost.id if at.lost is not None else "",
            "the agent can neither load nor resume a conversation",
        )
    if at.session is None:
        return _begin(at, "", "started a new conversation")
    if not at.session.attempts:
        return _begin(
            at, "", "the conversation was announced but never started: no answer of it is known"
        )
    if Rung.NATIVE in at.tried:
        return _after_loss(at, at.session.id, "the agent did not accept it as it was")
    told = f"the agent offers to load or resume conversation {at.session.id}"
    found = Continuation(kind=Start.RESUME, session_id=at.session.id, reason=told)
    expired = 0 < at.session.expires <= at.now
    if expired and is_abandoned(at):
        return _after_expiry(at, at.session)
    return found


def _keeping_none(at: Situation) -> Continuation:
    """Return how to start an attempt of an agent that keeps no conversation after its process ends.
    Each attempt begins a new conversation. Only the files in the workdir survive."""
    if at.heard or at.forks:
        known = at.session or at.lost
        return _after_loss(
            at,
            at.forks or (known.id if known is not None else ""),
            "this agent cannot continue a conversation",
        )
    return _begin(
        at, at.new_id, "this agent cannot continue a conversation; each task starts a new one"
    )


def _fork(at: Situation, fork_id: str) -> Continuation:
    """Return a continuation that forks a conversation. The parent conversation is only read,
    because another run may continue it."""
    usable = at.parent_standing not in UNFIT
    there = usable and at.parent is not None and at.parent.turns > 0
    copied = at.parent_copy is not None and at.parent_copy.turns > 0
    if at.parent_refused or not (there or copied):
        why = "the agent cannot fork it"
        if not at.parent_refused:
            found = _transcript_is(at.parent, at.parent_standing)
            why = f"{found}, and {_no_copy(at.parent_copy)}"
        return _after_loss(at, at.forks, f"it cannot be forked: {why}")
    if at.fork_at:
        reason = f"a fork was asked for, at the end of turn {at.fork_at}"
    else:
        reason = "a fork was asked for"
    if not there:
        standing = _transcript_is(at.parent, at.parent_standing)
        reason = f"{reason}; {standing}, perdure's own copy is restored"
    return Continuation(
        kind=Start.FORK,
        session_id=at.forks,
        rung=Rung.NATIVE if there else Rung.COPY,
        fork_id=fork_id,
        fork_at=at.fork_at,
        reason=reason,
    )


def _after_loss(at: Situation, lost: str, why: str) -> Continuation:
    which = f"conversation {lost}" if lost else "the earlier conversation"
    reason = f"{which} cannot continue: {why}"
    if at.policy is ContinuityPolicy.STRICT:
        return Continuation(
            kind=Start.REFUSE,
            session_id=lost,
            lost_session_id=lost,
            reason=f"{reason}; the policy is strict",
        )
    if at.policy is ContinuityPolicy.DISCLOSE:
        return Continuation(
            kind=Start.REBUILD,
            session_id=at.new_id,
            rung=Rung.REBUILT,
            lost_session_id=lost,
            reason=reason,
        )
    return Continuation(
        kind=Start.FRESH, session_id=at.new_id, rung=Rung.FRESH, lost_session_id=lost, reason=reason
    )
