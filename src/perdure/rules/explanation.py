"""Explains the state of a run, attempt by attempt, from its report. `perdure why` and the
dashboard's timeline show this explanation. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from perdure.model import FileChange
from perdure.model.events import DriftSeen, VerifyEnded
from perdure.model.reports import (
    AnySize,
    AttemptOfRun,
    CompactedSize,
    ReplacedSize,
    RunReport,
    SummarisedSize,
    UncompactedSize,
)
from perdure.model.work import CheckOfWork, WorkReport
from perdure.rules.text import clean, clock, filled, one_line, receipt_words, tokens

FILES = 10
"""Maximum number of file names in a line."""
COMMITS, CHECKS, CALLS, NAMES = 5, 5, 10, 3
"""Maximum numbers of items that are shown: commits; checks; denied calls or processes; names of
changed files."""
SAID = 12
"""Maximum number of lines of a check's output that are shown."""


def missed_checkpoint(report: RunReport) -> str:
    """Return a clean sentence on the consequences of a missed checkpoint. Empty if the run's newest
    state is saved."""
    if not report.missed_checkpoint:
        return ""
    if any(attempt.checkpoints for attempt in report.attempts):
        lost = "the newest checkpoint could not be taken: restore, fork and export use an older one"
    else:
        lost = "no checkpoint could be taken: restore, fork and export do not work"
    return f"{lost} ({one_line(report.missed_checkpoint, 300)}). Try: perdure doctor"


def explained(attempt: AttemptOfRun, previous: AttemptOfRun | None) -> Iterator[tuple[str, str]]:
    """Yield a label and a clean sentence for every fact about an attempt, in order. An empty label
    continues the previous fact. `previous` is the attempt before this one; changes since then are
    reported."""
    if attempt.continuation:
        yield (
            "start",
            f"{attempt.continuation} {clean(attempt.session_id)}: {clean(attempt.why)}",
        )
    if attempt.expired:
        yield (
            "expired",
            f"{clock(attempt.expired)}: the session had not been used for its whole lifetime, "
            "so the ways to continue were tried again",
        )
    if attempt.rebuilt_sessions:
        yield (
            "rebuilt",
            f"lost records were recreated: {', '.join(map(clean, attempt.rebuilt_sessions))}",
        )
    if attempt.turn > 1:
        kept = f"; turn {attempt.turn} of its process, which was kept warm"
    else:
        kept = ""
    version = attempt.agent_version or "version unknown"
    flags = _flags(attempt.flags)
    if flags:
        flags = f"; {flags}"
    yield "program", f"{version}{flags}{kept}"
    if given := attempt.map:
        about = (
            f"about {tokens(given.tokens)} tokens, {given.files} file(s), {given.left} left out "
            "for lack of space"
        )
        yield "map", one_line(given.missed, 200) if given.missed else about
    for line in _files(attempt.files):
        yield "file", line
    for change in (
        *(_drift(previous, attempt) if previous else ()),
        *map(_moved, attempt.drift),
    ):
        yield "drift", one_line(change, 200)
    if attempt.outcome:
        outcome = attempt.outcome
        yield "outcome", f"{outcome.kind}  {one_line(outcome.detail, 200)}".rstrip()
    if attempt.fill:
        yield "context", filled(attempt.fill)
    for size in attempt.sizes:
        yield "size", _size(size)
    for line in _checks(attempt.checks):
        yield "check", line
    for effect in attempt.effects:
        if effect.outcome == "unknown":
            ended = "end not seen"
        else:
            ended = effect.outcome
        doubt = "possible " if effect.possible else ""
        yield "effect", f"{doubt}{effect.kind}: {one_line(effect.command, 160)} ({ended})"
    for line in _saved(attempt):
        yield "saved", line
    yield from worked(attempt.work)
    receipt = attempt.receipt
    if receipt is None:
        untouched = "none: the attempt ended before it used the conversation"
        unseen = "none: the conversation was not observed"
        lost = attempt.outcome and attempt.outcome.kind == "lost" and attempt.continuation
        if not attempt.outcome:
            yield "receipt", "not yet"
        else:
            yield "receipt", unseen if lost else untouched
        return
    yield "receipt", receipt_words(receipt.verdict).removeprefix("receipt ")
    for reason in receipt.reasons:
        yield "", f"- {one_line(reason, 200)}"


def worked(work: WorkReport) -> Iterator[tuple[str, str]]:
    """Yield labels and clean sentences for a work report: the verdict with its reasons first."""
    if work.verdict:
        yield "work", verdict_of(work)
    for words in work.contradictions:
        if words not in work.reasons[:1]:
            yield "", f"- {one_line(words, 300)}"
    if changes := changed_of(work):
        yield "changes", changes
    for commit in work.commits[:COMMITS]:
        yield "", f"- {commit.id[:12]} {one_line(commit.subject, 120)}"
    for check in [each for each in work.checks if each.by == "agent"][-CHECKS:]:
        yield "tests", f"{one_line(check.command, 160)}: {_ended(check)}"
    for call in work.denied[:CALLS]:
        many = f" ({call.count} times)" if call.count > 1 else ""
        yield "denied", f"{one_line(call.name, 60)} {one_line(call.input, 160)}{many}"
    if len(work.denied) > CALLS:
        yield "", f"- and {len(work.denied) - CALLS} more, in perdure show --json"
    for rule in work.ruled[:CALLS]:
        yield "by rule", one_line(rule, 240)
    if work.question:
        yield "asks", one_line(work.question, 300)
    for left in work.left[:CALLS]:
        age = f"{left.age_s:.0f} s old"
        yield "left", f"{one_line(left.command, 160)} ({age}): {clean(left.became)}"
    if word := work.last_word:
        yield "last word", f"{clean(word.status)}: {one_line(word.summary, 300)}"
        for text in word.questions:
            yield "", f"- it asks: {one_line(text, 200)}"
        for text in word.follow_ups:
            yield "", f"- next: {one_line(text, 200)}"
    if work.last_message:
        yield "says", one_line(work.last_message, 200)


def verdict_of(work: WorkReport) -> str:
    """Return the verdict on the work with its first reason, on one line; empty while the attempt is
    running."""
    why = one_line("; ".join(work.reasons[:1]), 240)
    if work.verdict:
        return f"{work.verdict}: {why}"
    return ""


def changed_of(work: WorkReport) -> str:
    """Return a summary of the changes of an attempt, on one line; empty if the workdir was not
    compared."""
    if not work.observed:
        return ""
    files = f"{work.file_count} file(s)"
    if work.lines_added or work.lines_removed:
        files += f" (+{work.lines_added} -{work.lines_removed} lines)"
    names = ", ".join(one_line(each.name, 60) for each in work.files[:NAMES])
    more = ", ..." if work.file_count > NAMES else ""
    parts = [f"{files}: {names}{more}" if names else files]
    if work.commit_count:
        pushed = "pushed" if work.pushed else "no push known"
        parts.append(f"{work.commit_count} commit(s), {pushed}")
    if work.uncommitted:
        parts.append(f"{work.uncommitted} file(s) not committed")
    return f"{'; '.join(parts)}; since {clean(work.against)}"


def _ended(check: CheckOfWork) -> str:
    code = check.code
    if code is None:
        return "end not seen"
    doubt = " of the whole line" if check.passed is None else ""
    return f"exit code {code}{doubt}"


def _size(size: AnySize) -> str:
    """Return a sentence on a compaction, or on another step that was taken because of the size of
    the conversation."""
    match size:
        case CompactedSize():
            # If perdure did not request the compaction, the agent or a person may have requested
            # it.
            begun = "the conversation was compacted"
            if size.asked:
                begun = "the agent compacted the conversation as requested"
            return f"{begun}: {size.before:,} tokens became {size.after:,}"
        case UncompactedSize():
            return (
                "the agent was asked to compact the conversation and did not: it has "
                f"{size.tokens:,} tokens"
            )
        case SummarisedSize() if size.text:
            return (
                f"{size.session_id} wrote a summary for the next conversation: "
                f"{one_line(size.text, 160)}"
            )
        case SummarisedSize():
            return (
                f"{size.session_id} gave no summary ({one_line(size.reason, 120)}): "
                f"perdure's own brief is used instead"
            )
        case ReplacedSize():
            return (
                f"{size.session_id} was replaced by a new conversation: {one_line(size.cause, 160)}"
            )


def _checks(checks: list[VerifyEnded]) -> list[str]:
    """Return sentences on the results of the task's own check, with the most useful part of its
    output."""
    lines = []
    for check in checks:
        if check.code == 0:
            how = "passed"
        else:
            how = f"failed with exit code {check.code}"
        if 0 < check.round <= check.rounds:
            which = f", round {check.round} of {check.rounds}"
        else:
            which = ""
        lines.append(f"{how}{which}, after {check.seconds:.1f} s: {one_line(check.command, 120)}")
        if check.code:
            said = [line for line in clean(check.output).split("\n") if line.strip()]
        else:
            said = []
        lines += [f"  | {one_line(line, 160)}" for line in said[:SAID]]
        if len(said) > SAID:
            lines.append(f"  | ... {len(said) - SAID} more line(s)")
        if check.code:
            lines.append(f"  all of it: {clean(check.log)}")
    return lines


def _files(changes: list[FileChange]) -> list[str]:
    """Return a sentence on the action taken for each task file. Files that a person may want to
    look at come first."""
    plain = [change for change in changes if change.action in ("written", "same")]
    lines = []
    for change in [each for each in changes if each not in plain]:
        why = f" ({one_line(change.why, 120)})" if change.why else ""
        if change.backup:
            copy = f"; the agent's version: {clean(change.backup)}"
        else:
            copy = ""
        lines.append(
            f"{change.action}: {one_line(change.name, 120)}, version {change.version}{why}{copy}"
        )
    names = ", ".join(one_line(change.name, 60) for change in plain[:FILES])
    more = f" and {len(plain) - FILES} more" if len(plain) > FILES else ""
    if plain:
        return [*lines, f"as given: {names}{more}"]
    return lines


def _drift(previous: AttemptOfRun, attempt: AttemptOfRun) -> list[str]:
    """Return sentences on changes of the CLI's version, account and flags since the previous
    attempt. The conversation itself does not show these changes."""
    changes = []
    if previous.agent_version and attempt.agent_version not in (
        "",
        previous.agent_version,
    ):
        changes.append(f"the agent was version {previous.agent_version} before")
    for name, value in attempt.flags.items():
        before = previous.flags.get(name, value)
        if before != value:
            changes.append(f"the {name} was {before or 'the default'} before")
    return changes


def _moved(seen: DriftSeen) -> str:
    """Return a sentence on changes in the workdir that something other than the agent made before
    the attempt."""
    if seen.count:
        files = (
            f"{seen.count} file(s) changed since checkpoint {seen.number}: {', '.join(seen.paths)}"
        )
    else:
        files = ""
    if seen.head_before != seen.head_now:
        head = f"HEAD moved from {seen.head_before[:12]} to {seen.head_now[:12]}"
    else:
        head = ""
    return "; ".join(filter(None, (files, head)))


def _saved(attempt: AttemptOfRun) -> list[str]:
    """Return sentences on the attempt's newest checkpoint, and on a checkpoint that could not be
    taken."""
    kept = attempt.checkpoints
    lines = []
    for reason in attempt.missed_checkpoints[-1:]:
        lines.append(f"no checkpoint could be taken: {one_line(reason, 160)}")
    if kept:
        last = kept[-1]
        if len(kept) > 1:
            more = f" ({len(kept) - 1} more of this attempt)"
        else:
            more = ""
        if last.changed is None:
            files = "imported, its changed and new files are not counted"
        else:
            files = f"{last.changed} changed, {last.untracked} new"
        lines.append(f"checkpoint {last.number}, {clock(last.at)}: {files}{more}")
    return lines


def _flags(flags: dict[str, str]) -> str:
    return ", ".join(f"{name} {clean(value)}" for name, value in flags.items() if value)
