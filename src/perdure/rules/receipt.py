"""Decides from the evidence whether an attempt really continued the known conversation. Pure.

`attempt` gathers the evidence (`perdure.agents.transcripts`, the driver's events) and calls `judge`
once per attempt. Nothing is inferred from an exit code, from age, or from "not found". The verdict
`native` is given only when all evidence that could contradict it was checked. An attempt with the
verdict `broken` never counts as a success.
"""

from __future__ import annotations

from perdure.model import (
    PUT_BACK,
    Continuation,
    Evidence,
    Receipt,
    Relation,
    Rung,
    Shown,
    Start,
    TranscriptCondition,
    Verdict,
)

EDITS = 20
"""Maximum number of changes that a receipt lists, if the transcript was repaired."""

DAMAGED = "the transcript does not have all that perdure's own copy has; the copy stays as it is"
REFUSED = "the agent ended before its first turn, because it could not use the conversation"
UNANSWERED = "the agent ended before it answered: whether it had asked the model yet is not known"


def judge(continuation: Continuation, evidence: Evidence) -> Receipt | None:
    """Return the receipt of one attempt. None if the attempt ended before it could touch the
    conversation, because then there is nothing to claim."""
    if continuation.kind in (Start.WAIT, Start.REFUSE):
        return None
    if continuation.kind in (Start.FRESH, Start.REBUILD):
        return _of_new(continuation, evidence)
    if evidence.opened:
        return _without_transcripts(continuation, evidence)
    if not _touched(continuation, evidence):
        return None
    wrong = _contradictions(continuation, evidence)
    if wrong:
        return _receipt(Verdict.BROKEN, continuation, evidence, *wrong)
    if continuation.kind is Start.FORK:
        shown = continuation.shown
        lacking = shown is not None and bool(shown.unrecorded or shown.off_branch or shown.damaged)
        verdict = Verdict.FORKED
        if shown is not None and shown.condensed:
            verdict = Verdict.COMPACTED
        if lacking:
            verdict = Verdict.SHORTENED
        return _receipt(verdict, continuation, evidence, *_fork_grounds(continuation, evidence))
    reasons = [*_mends(continuation), *_gaps(continuation.shown), *_grounds(continuation, evidence)]
    return _receipt(_resumed(continuation, evidence), continuation, evidence, *reasons)


def _resumed(continuation: Continuation, evidence: Evidence) -> Verdict:
    """Return the verdict on a conversation that continued. It depends on how much of the known
    conversation the model was shown."""
    shown = continuation.shown
    mended = continuation.rung in (Rung.REPAIRED, Rung.CHECKPOINT) or evidence.known_kept is False
    if mended:
        return Verdict.REPAIRED
    if shown is None:
        return Verdict.NATIVE
    if shown.relation in (Relation.SHORTENED, Relation.FOREIGN) or shown.off_branch:
        if shown.unrecorded and not shown.off_branch:
            return Verdict.REPAIRED
        return Verdict.SHORTENED
    if shown.relation is Relation.GAPS:
        # An agent that is killed may not have saved its newest items. Nothing is lost if the prompt
        # quotes all of them, and if no other item is missing from what the model was shown.
        own = continuation.rung in (Rung.NATIVE, Rung.PATH)
        if not own or shown.told != shown.unrecorded:
            return Verdict.REPAIRED
    if shown.damaged:
        return Verdict.REPAIRED
    # `relation` names only the worst difference. A conversation can have both gaps and a summary,
    # so the summary is checked separately.
    if shown.condensed:
        return Verdict.COMPACTED
    return Verdict.NATIVE


def _gaps(shown: Shown | None) -> list[str]:
    """Return sentences on the part of the known conversation that the model was not shown."""
    if shown is None:
        return []
    if shown.relation is Relation.WHOLE:
        return _damage(shown)
    found = [
        f"the model was shown {shown.shown} of the {shown.known} known items of the conversation"
    ]
    if shown.condensed:
        found.append(f"a summary by the agent replaces {shown.condensed} of them")
    if shown.off_branch:
        found.append(
            f"{shown.off_branch} are left out, because the agent does not load them: the "
            f"conversation was rewound, or another program continued from an earlier point"
        )
    if shown.unrecorded:
        found.append(
            f"{shown.unrecorded} are in no transcript any more; the prompt gave the agent what "
            f"the journal has of them"
        )
    if shown.missing:
        found.append(f"missing: {', '.join(shown.missing)}")
    return [*found, *_damage(shown)]


def _damage(shown: Shown) -> list[str]:
    if not shown.damaged:
        return []
    return [
        f"{shown.damaged} damaged line(s) of the transcript: the model may not be shown what they "
        f"held, and perdure has no copy of it"
    ]


def _of_new(continuation: Continuation, evidence: Evidence) -> Receipt:
    """Return the receipt of a new conversation. It claims nothing about an earlier conversation.
    The verdict is `broken` only if the agent opened another conversation than requested, or if
    somebody else wrote into the new one."""
    if continuation.kind is Start.REBUILD:
        verdict = Verdict.REBUILT
    else:
        verdict = Verdict.FRESH
    notes = [continuation.reason] if continuation.reason else []
    if evidence.asked and evidence.returned and evidence.returned != evidence.asked:
        return _receipt(
            Verdict.BROKEN,
            continuation,
            evidence,
            f"asked for {evidence.asked}, the agent opened {evidence.returned}",
        )
    if evidence.foreign_turns:
        return _receipt(Verdict.BROKEN, continuation, evidence, _foreign(evidence))
    if evidence.copy_kept is False:
        notes.append(DAMAGED)
    if evidence.turns_since:
        notes.append(_since(evidence))
    unread = evidence.opened == "new"
    if evidence.answered and not unread and (evidence.after is None or evidence.writes_lost):
        notes.append(
            "the conversation was not saved by the agent "
            f"({evidence.writes_lost or 'no transcript on disk'})"
        )
    return _receipt(verdict, continuation, evidence, *notes)


def _without_transcripts(continuation: Continuation, evidence: Evidence) -> Receipt:
    """Return the receipt of a conversation whose transcript cannot be read. The verdict depends on
    the conversation's id, and on the items that the agent replayed from the conversation."""
    if _other_id(evidence):
        return _receipt(
            Verdict.BROKEN,
            continuation,
            evidence,
            f"asked for {evidence.asked}, the agent opened {evidence.returned}",
        )
    grounds = [f"the agent says that it {evidence.opened} conversation {evidence.asked}"]
    if not evidence.answered:
        grounds.append(UNANSWERED)
    if evidence.replayed:
        grounds.append(
            f"its replay holds all {evidence.replayed} prompts, answers and tool calls that "
            "perdure knows"
        )
        return _receipt(Verdict.REPLAYED, continuation, evidence, *grounds)
    return _receipt(
        Verdict.CLAIMED,
        continuation,
        evidence,
        *grounds,
        "nothing else is known: its transcript cannot be read",
    )


def _touched(continuation: Continuation, evidence: Evidence) -> bool:
    """Return whether the attempt touched a conversation: the prompt or an answer was added to the
    conversation, or its history changed during the attempt."""
    entered = evidence.answered or bool(evidence.prompt_found) or bool(evidence.foreign_turns)
    # The agent saves a prompt in the conversation even if the model's service refused it.
    entered = entered or evidence.refused
    if continuation.kind is Start.FORK:
        return entered or evidence.parent_kept is False or evidence.returned == evidence.asked
    changed = _other_id(evidence) or evidence.prefix_kept is False
    return entered or changed


def _other_id(evidence: Evidence) -> bool:
    return bool(evidence.returned) and evidence.returned != evidence.asked


def _contradictions(continuation: Continuation, evidence: Evidence) -> list[str]:
    """Return a sentence for each piece of evidence against the claim that the conversation
    continued."""
    forked = continuation.kind is Start.FORK
    found = [REFUSED] if evidence.refused else []
    if forked and not _other_id(evidence) and (evidence.returned or not continuation.fork_id):
        if evidence.returned:
            what = f"wrote into its parent {evidence.asked}"
        else:
            what = "named no new conversation"
        found.append(f"a fork was asked for, and the agent {what}")
    if forked and evidence.parent_kept is not True:
        found.append(f"the parent {evidence.asked} was changed, or has this attempt's prompt in it")
    if forked and continuation.fork_id and evidence.returned not in ("", continuation.fork_id):
        found.append(
            f"asked for a fork with the id {continuation.fork_id}, the agent opened "
            f"{evidence.returned}"
        )
    if not forked and _other_id(evidence):
        found.append(f"asked for {evidence.asked}, the agent opened {evidence.returned}")
    if evidence.after is None:
        found.append("there is no transcript of it on disk")
    elif evidence.before is None or evidence.prefix_kept is not True:
        found.append("the earlier conversation is not the beginning of the transcript as it is now")
    if evidence.answered and evidence.prompt_found is not True:
        found.append("this attempt's prompt is not in the transcript")
    if evidence.writes_lost:
        found.append(f"the agent could not save it: {evidence.writes_lost}")
    if evidence.foreign_turns:
        found.append(_foreign(evidence))
    if evidence.copy_kept is False and evidence.prefix_kept is True:
        found.append(DAMAGED)
    if evidence.known_kept is False and continuation.rung not in PUT_BACK:
        found.append(
            "the transcript was changed between the attempts: what perdure had recorded is not in "
            "it any more"
        )
    return found


def _foreign(evidence: Evidence) -> str:
    count = evidence.foreign_turns
    if evidence.prompt_found is False and not evidence.prefix_kept:
        return f"another conversation was found in its place, with {count} foreign prompt(s)"
    return f"{count} foreign prompt(s) came into the conversation while the attempt ran"


def _since(evidence: Evidence) -> str:
    return (
        f"{evidence.turns_since} foreign prompt(s) came into the conversation during the attempt, "
        f"whose end was not observed, or after it"
    )


def _grounds(continuation: Continuation, evidence: Evidence) -> list[str]:
    assert evidence.before is not None and evidence.after is not None
    grounds = [
        f"same id {evidence.asked}"
        + ("" if evidence.returned else " (not repeated by the agent before it ended)"),
        f"the first {evidence.before.size} bytes of the transcript are unchanged, it grew to "
        f"{evidence.after.size}",
        "this attempt's prompt is in the new part",
    ]
    if not evidence.answered:
        grounds.append(UNANSWERED)
    if continuation.rung is Rung.COPY:
        grounds.append(_put_back(continuation, evidence))
    if continuation.rung is Rung.PATH:
        grounds.append("resumed by the path of the transcript")
    if evidence.turns_since:
        grounds.append(_since(evidence))
    if evidence.turns_between:
        grounds.append(
            f"{evidence.turns_between} foreign prompt(s) were added between perdure's attempts"
        )
    if evidence.compactions:
        grounds.append(
            f"the agent compacted the conversation {evidence.compactions} time(s); its content is "
            f"still in the transcript"
        )
    if evidence.cached_tokens:
        grounds.append(f"{evidence.cached_tokens} tokens came from the prompt cache")
    return grounds


def _put_back(continuation: Continuation, evidence: Evidence) -> str:
    """Return a sentence that says why perdure's own copy was restored, and whether it was
    complete."""
    why = {
        TranscriptCondition.ABSENT: "the transcript was missing",
        TranscriptCondition.CHANGED: "the transcript was not what perdure had recorded",
        TranscriptCondition.FOREIGN: "another conversation was found in place of the transcript",
        TranscriptCondition.WHOLE: "the agent had not continued from its own transcript",
    }[continuation.standing]
    shown = continuation.shown
    whole = shown is not None and shown.relation is Relation.WHOLE
    if evidence.known_kept is False and whole:
        return (
            f"{why}; perdure's own copy was restored first: it has everything in the journal, "
            "but its bytes differ from those recorded"
        )
    if evidence.known_kept is False:
        return f"{why}; perdure's own copy was restored first, and its newest part is missing"
    if shown is None or shown.unrecorded or shown.off_branch:
        return f"{why}; perdure's own copy was restored first"
    if shown.relation is Relation.SHORTENED:
        return (
            f"{why}; perdure's own copy was restored first, without what somebody else had added "
            f"to that transcript"
        )
    return f"{why}; perdure's own copy was restored first, and it has all that perdure knows"


def _mends(continuation: Continuation) -> list[str]:
    """Return sentences that describe the first changes to a repaired transcript (the journal has
    all of them), or the checkpoint that was restored."""
    if continuation.rung is Rung.CHECKPOINT:
        return [
            f"the conversation of checkpoint {continuation.checkpoint} was restored: its newest "
            f"part is missing"
        ]
    if continuation.rung is not Rung.REPAIRED:
        return []
    told = [f"perdure repaired the transcript first: {edit}" for edit in continuation.edits[:EDITS]]
    more = len(continuation.edits) - EDITS
    if more > 0:
        return [*told, f"and {more} more change(s), all in the journal"]
    return told


def _fork_grounds(continuation: Continuation, evidence: Evidence) -> list[str]:
    assert evidence.before is not None
    kept = continuation.fork_at or evidence.before.turns
    unanswered = [] if evidence.answered else [UNANSWERED]
    return [
        *unanswered,
        *_gaps(continuation.shown),
        f"the new conversation {evidence.returned or continuation.fork_id} begins with the first "
        f"{kept} turn(s) of {evidence.asked}",
        f"the first {evidence.before.size} bytes of the parent are unchanged, and nothing of this "
        "attempt was written into it",
        "this attempt's prompt is in the new part",
    ]


def _receipt(
    verdict: Verdict, continuation: Continuation, evidence: Evidence, *reasons: str
) -> Receipt:
    return Receipt(
        verdict=verdict, rung=continuation.rung, reasons=tuple(reasons), evidence=evidence
    )
