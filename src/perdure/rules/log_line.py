"""Formats a record of the journal as a line for people. `perdure logs`, the live progress and the
dashboard show such lines. Pure."""

from __future__ import annotations

from perdure.model import OutcomeKind, Start
from perdure.model.events import (
    AttemptAdopted,
    AttemptEnded,
    AttemptStarted,
    BaseMoved,
    BroughtBack,
    CheckpointMissed,
    CheckpointRestored,
    ChecksFailed,
    CleanedUp,
    CollisionSeen,
    Compacted,
    ContextAdded,
    CopyMissed,
    CopyRestored,
    DriftSeen,
    FilesPlanned,
    LastWordGiven,
    LeftoversFound,
    LimitSeen,
    MapGiven,
    MapMissed,
    MessageDelivered,
    MessageReceived,
    NotCompacted,
    NotPublished,
    OutputCapped,
    Published,
    QuestionAsked,
    Record,
    ReplyCut,
    RequestAnswered,
    RequestGiven,
    RequestSuperseded,
    RetrySeen,
    RolledOver,
    RunFinished,
    RunOpened,
    RunQueued,
    RunTakenBack,
    Said,
    SessionExpired,
    SessionRetired,
    SessionsRebuilt,
    SettingsChanged,
    Summarised,
    ToldForge,
    ToolDenied,
    ToolEnded,
    ToolStarted,
    TranscriptMended,
    VerifyEnded,
    VerifyStarted,
    Withdrawn,
    WorkdirLost,
    WorkdirNoted,
    WorkdirSwept,
    WorkSeen,
    WritesLost,
)
from perdure.rules.messages import GIVEN
from perdure.rules.text import clean, clock, one_line, receipt_words, soon, tokens

SOON_MS = 2000
"""Maximum delay until a retry, in ms, for which no time of day is shown."""


def line_of(record: Record) -> str:
    """Return a record as one line (or several, for the agent's text). Empty if the record is of no
    interest to people."""
    match record.event:
        case AttemptStarted(continuation=asked):
            what = asked.kind if asked.kind is Start.FRESH else f"{asked.kind} {asked.session_id}"
            return f"attempt {record.attempt}: {what} ({one_line(asked.reason, 160)})"
        case AttemptAdopted():
            return f"attempt {record.attempt}: perdure had exited; following the attempt again"
        case Said(text=text):
            return "\n".join(f"  {line}" for line in clean(text).strip().split("\n"))
        case ToolStarted(name=name, summary=summary):
            if summary:
                return f"  > {one_line(name, 30)}: {one_line(summary, 160)}"
            return f"  > {one_line(name, 30)}"
        case ToolEnded(ok=False, summary=summary):
            return f"    failed: {one_line(summary, 160)}"
        case ToolDenied(name=name, summary=summary, deferred=deferred):
            what = "put off" if deferred else "denied"
            return f"    {what}: {one_line(f'{name} {summary}', 160)}"
        case QuestionAsked(text=text):
            return f"  the agent asks: {one_line(text, 300)}"
        case LastWordGiven(status=status, summary=summary, questions=asked, follow_ups=later):
            if asked:
                asks = f"; asks: {one_line(' '.join(asked), 160)}"
            else:
                asks = ""
            if later:
                then = f"; next: {one_line('; '.join(later), 160)}"
            else:
                then = ""
            return f"  last word: {status}: {one_line(summary, 200)}{asks}{then}"
        case ReplyCut(reason=reason):
            return f"  the model's answer was cut off: {one_line(reason, 80)}"
        case LeftoversFound(processes=processes, count=count):
            became = processes[0].became
            named = "; ".join(one_line(each.command, 80) for each in processes[:3])
            return f"  left running by the agent, {became}: {count} process(es): {named}"
        case RetrySeen(detail=detail, status=status):
            return f"  the agent retries: {status or ''} {one_line(detail, 160)}"
        case LimitSeen(detail=detail):
            return f"  usage limit: {one_line(detail, 160)}"
        case WritesLost(detail=detail):
            return f"  the agent could not save its conversation: {one_line(detail, 160)}"
        case CollisionSeen(detail=detail):
            return f"  COLLISION: {one_line(detail, 200)}"
        case SettingsChanged(names=names) if names:
            return f"changed by you: {', '.join(names)}"
        case CopyMissed(reason=reason):
            return f"perdure's copy of the conversation is behind: {reason}"
        case FilesPlanned(files=changes):
            odd = []
            for change in changes:
                if change.action not in ("written", "same"):
                    odd.append(f"{change.action} {one_line(change.name, 60)}")
            return f"  task files: {len(changes)}" + (
                f" ({one_line(', '.join(odd), 200)})" if odd else ""
            )
        case MapGiven(tokens=size, files=mapped, left=beyond):
            more = f", {beyond} left out for lack of space" if beyond else ""
            return (
                f"  the prompt holds a project map of about {tokens(size)} tokens: {mapped} "
                f"file(s){more}"
            )
        case ContextAdded(version=version, message=True):
            return f"message {version} was accepted"
        case MessageDelivered(version=version, how=how):
            return f"  message {version} was {GIVEN.get(how, 'given')}"
        case MessageReceived(version=version):
            return f"  message {version} is in the conversation"
        case MapMissed(reason=reason):
            return f"  no project map could be made: {one_line(reason, 200)}"
        case Compacted(before=before, after=after):
            return f"  the agent compacted its conversation: {before:,} tokens became {after:,}"
        case NotCompacted(tokens=held):
            return f"  the agent was asked to compact its conversation and did not: {held:,} tokens"
        case Summarised(text=text, reason=reason):
            what = (
                f"says for the next one: {one_line(text, 160)}"
                if text
                else f"gives no summary ({one_line(reason, 120)})"
            )
            return f"  the old conversation {what}"
        case RolledOver(session_id=session_id, cause=cause):
            return f"  conversation {session_id} is replaced by a new one: {one_line(cause, 160)}"
        case CopyRestored(session_id=session_id):
            return f"  conversation {session_id}: perdure's own copy was restored"
        case TranscriptMended(session_id=session_id, edits=edits):
            return (
                f"  conversation {session_id}: a repaired copy was put in place: "
                f"{one_line('; '.join(edits), 240)}"
            )
        case WorkdirNoted(note=note):
            return f"  note: {one_line(note, 300)}"
        case CheckpointMissed(reason=reason):
            return f"  no checkpoint could be taken: {one_line(reason, 200)}"
        case CheckpointRestored(number=number, moved_from=host) if host:
            return (
                f"fetched from {clean(host)} at its newest published checkpoint "
                f"(number {number} here)"
            )
        case CheckpointRestored(number=number, undo=undo, retired=versions):
            if undo:
                kept = f"; the state before is checkpoint {undo}"
            else:
                kept = ""
            if versions:
                gone = f"; retired instructions: {', '.join(map(str, versions))}"
            else:
                gone = ""
            return f"restored to checkpoint {number}{kept}{gone}"
        case DriftSeen(paths=paths, count=count, head_before=before, head_now=head):
            if before != head:
                moved = f"HEAD moved from {before[:12]} to {head[:12]}"
            else:
                moved = ""
            if count:
                files = (
                    f"{count} file(s) changed since checkpoint {record.event.number}: "
                    f"{one_line(', '.join(paths), 120)}"
                )
            else:
                files = ""
            return f"  drift: {'; '.join(filter(None, (files, moved)))}"
        case SessionExpired(session_id=session_id, expired=expired, continuation=kind):
            return f"  conversation {session_id}: it expired {clock(expired)}; next: {kind}"
        case SessionsRebuilt(sessions=sessions):
            return f"  lost records of {len(sessions)} conversation(s) were recreated"
        case SessionRetired(session_id=session_id, cause=cause):
            return f"  conversation {session_id} is retired: {one_line(cause, 160)}"
        case OutputCapped(stream=stream, limit=limit):
            return f"  {stream}: a line over {limit:,} bytes was cut"
        case VerifyStarted(command=command):
            return f"  verify: {one_line(command, 160)}"
        case VerifyEnded(code=code):
            if code == 0:
                return "  verify: passed"
            return f"  verify: failed with exit code {code}{_round(record.event)}"
        case WorkSeen(file_count=files, commit_count=commits):
            made = f", {commits} commit(s)" if commits else ""
            return f"  changed: {files} file(s){made}"
        case AttemptEnded(outcome=outcome, receipt=receipt):
            proof = (
                f"; {receipt_words(receipt.verdict)}: {one_line('; '.join(receipt.reasons), 240)}"
                if receipt
                else ""
            )
            return (
                f"attempt {record.attempt}: {outcome.kind}"
                + (f" ({one_line(outcome.detail, 160)})" if outcome.detail else "")
                + proof
            )
        case RunQueued(reason=reason, run_after=after):
            if reason == "new instructions":
                return reason
            if reason.startswith(f"{OutcomeKind.NEEDS_INPUT}: ") and after > record.at:
                return f"waits for you, {soon(after, record.at)} at most: {one_line(reason, 160)}"
            if after - record.at > SOON_MS:
                when = f" {soon(after, record.at)}"
            else:
                when = ""
            return f"retrying{when}: {one_line(reason, 160)}"
        case BaseMoved(branch=branch, commits=count):
            return (
                f"  informed of {count} new commit(s) in {one_line(branch) or 'the default branch'}"
            )
        case ChecksFailed(commit=commit, checks=checks):
            return (
                f"  informed of failed checks at {one_line(commit, 12)}: "
                f"{one_line(', '.join(checks), 120)}"
            )
        case Withdrawn(why=why):
            return f"withdrawn on the forge: {one_line(why, 160)}"
        case CleanedUp(why=why, checkpoint=number):
            return f"cleaned up ({one_line(why, 120)}): its workdir goes to the trash" + (
                f"; checkpoint {number}" if number else ""
            )
        case WorkdirSwept(why=why, checkpoint=number):
            return f"its workdir goes to the trash ({one_line(why, 120)})" + (
                f"; checkpoint {number}" if number else ""
            )
        case WorkdirLost(checkpoint=number):
            if not number:
                return "the workdir was gone, and no checkpoint of it could be restored"
            return f"the workdir was gone; the files of checkpoint {number} were restored"
        case BroughtBack(checkpoint=number):
            source = f"checkpoint {number}" if number else "the trash"
            return f"restored from {source}"
        case RequestAnswered(number=number, answer=answer, rule=rule) if rule:
            return f"request {number} was answered by a rule ({answer}): {one_line(rule, 200)}"
        case RequestAnswered(number=number, answer=answer, by=by, words=words):
            who = f" by {one_line(by, 100)}" if by else ""
            said = f": {one_line(words, 160)}" if words else ""
            return f"request {number} was answered{who} ({answer}){said}"
        case RequestGiven(number=number, answer=answer, parked=parked):
            if parked:
                how = "exactly this call continues"
            else:
                how = "the next prompt contains it"
            return f"  given the answer to request {number} ({answer}): {how}"
        case RequestSuperseded(number=number, reason=reason):
            return f"request {number} is not open any more: {one_line(reason, 160)}"
        case RunOpened(session_id=session_id):
            return f"opened in the agent's own program: conversation {session_id}"
        case Published(branch=branch, commit=commit, url=url):
            address = f", {one_line(url, 200)}" if url else ""
            return f"{one_line(branch)} was pushed: {commit[:12]}{address}"
        case NotPublished(branch=branch, reason=reason):
            return f"{one_line(branch)} was not pushed: {one_line(reason, 300)}"
        case ToldForge(url=url):
            return f"reported on the forge: {one_line(url, 200)}"
        case RunTakenBack(turns=turns, others=others, rewound=rewound):
            told = [f"taken back: {turns} turn(s) were added manually"]
            if rewound:
                told.append("it was rewound to an earlier point")
            if others:
                told.append(f"other conversations started meanwhile: {', '.join(others)}")
            return "; ".join(told)
        case RunFinished(state=state, reason=reason):
            why = reason.removeprefix(
                f"{state}: "
            )  # A failed attempt ends in a failed run, so the state is shown only once.
            if why:
                return f"{state}: {one_line(why, 200)}"
            return str(state)
        case _:
            return ""


def _round(check: VerifyEnded) -> str:
    if 0 < check.round <= check.rounds:
        return f", round {check.round} of {check.rounds}"
    return ""
