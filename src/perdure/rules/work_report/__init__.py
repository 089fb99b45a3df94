"""Reports an attempt's work, and the verdict on it, from the journal alone. Pure.

Every command and page calls `work_report` with the run's records. So all of them show the same
report, even long after the attempt, and even if the attempt was killed. Facts that were never
observed are left out, and the verdict does not claim them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from perdure.model import Attempt
from perdure.model.events import (
    ContextAdded,
    LastWordGiven,
    Leftover,
    LeftoversFound,
    Published,
    QuestionAsked,
    Record,
    RequestAnswered,
    RequestGiven,
    ToolDenied,
    ToolEnded,
    ToolStarted,
    VerifyEnded,
    WorkSeen,
)
from perdure.model.work import (
    CheckOfWork,
    DeniedCall,
    EffectOfWork,
    LastWordOfWork,
    LeftProcess,
    WorkReport,
)
from perdure.rules.effects import DENIED, Effect, ledger
from perdure.rules.final_message import last_message
from perdure.rules.work_report.commands import changes_nothing, check_of
from perdure.rules.work_report.verdict import Facts, WorkClaim, claims_of, judge, last_check

LISTED = 50
"""Maximum number of checks, denied calls, processes and effects that are listed. The newest of each
are kept."""
INPUT = 300
"""Maximum length of a denied call's input in a report, and of a command, in characters."""
SAID = 4000
"""Maximum number of characters of the last message in a report."""
_SHELLS = frozenset(
    {"bash", "shell", "sh", "command_execution", "run_shell_command", "execute", "terminal"}
)
"""Names of tools that run a shell command, in lower case, as the agents call them."""
_READERS = frozenset(
    "read glob grep ls webfetch websearch todowrite todoread askuserquestion skill toolsearch "
    "read_file read_many_files list_directory search_file_content google_web_search web_fetch "
    "web_search fetch search list think enterplanmode exitplanmode bashoutput".split()
)
"""Names of tools that change no file, in lower case."""
_BACKGROUND = "Command running in background"
"""Beginning of the result with which Claude Code (2.1.329) answers a call whose command continues
in the background. The result does not show whether the command will succeed."""


def work_report(attempt: Attempt, records: Iterable[Record]) -> WorkReport:
    """Return the work report of one attempt. `records`: the journal of its run, or the part of it
    that `joined` returns."""
    journal = list(records)
    own = [each for each in journal if each.attempt == attempt.number]
    seen, pushed = _seen(own), False
    checks, stale = _checks(own)
    said = last_message(journal, attempt.number)
    effects = tuple(_effect(each) for each in ledger(own) if each.outcome != DENIED)
    report = WorkReport(
        checks=checks,
        denied=_denied(own),
        ruled=_ruled(own, journal),
        question=_question(own),
        left=_left(own),
        effects=effects[-LISTED:],
        last_word=_last_word(own),
        last_message=said if len(said) <= SAID else f"{said[: SAID - 6]} [...]",
    )
    if seen is not None:
        known = msgspec.structs.asdict(seen)
        pushed = bool(seen.commits) and (bool(seen.pushed) or _has_pushed(effects))
        later = pushed or _is_published(seen, journal)
        known["pushed"] = later if seen.commits else None
        report = msgspec.structs.replace(report, **known, observed=True)
    if attempt.outcome is None:
        return report
    earlier = _changed_earlier(attempt, journal)
    # perdure's later push does not change whether the agent's claim was true when it was made.
    denied = _contradictions(report, said, pushed, earlier)
    report = msgspec.structs.replace(report, contradictions=denied)
    facts = Facts(outcome=attempt.outcome, earlier=earlier, stale=stale)
    verdict, reasons = judge(report, facts)
    return msgspec.structs.replace(report, verdict=verdict, reasons=reasons)


def joined(own: Sequence[Record], done: Sequence[Record], number: int) -> list[Record]:
    """Return the part of a run's journal that `work_report` needs for attempt `number`, oldest
    first. `own`: the attempt's records. `done`: the run's records whose event is a `RunEvent`."""
    others = [each for each in done if each.attempt != number]
    return sorted([*own, *others], key=lambda each: each.seq)


def _effect(found: Effect) -> EffectOfWork:
    command = found.command[:INPUT]
    return EffectOfWork(kind=found.kind, command=command, ok=found.ok, possible=found.possible)


def _seen(own: Sequence[Record]) -> WorkSeen | None:
    for record in reversed(own):
        if isinstance(record.event, WorkSeen):
            return record.event
    return None


def _checks(own: Sequence[Record]) -> tuple[tuple[CheckOfWork, ...], bool]:
    """Return the checks in order, and whether files may have changed after the agent's last
    check."""
    denied = set()
    for each in own:
        if isinstance(each.event, ToolDenied):
            denied.add(each.event.tool_id)
    found: list[CheckOfWork] = []
    waiting: dict[str, tuple[int, ToolStarted]] = {}
    stale = False
    for record in own:
        match record.event:
            case ToolStarted(tool_id=key) as call if key not in denied:
                ran = check_of(call.summary) if _is_shell(call) else None
                if ran is not None:
                    waiting[key] = len(found), call
                    found.append(CheckOfWork(command=ran.command, by="agent"))
                    stale = False
                elif not _only_reads(call):
                    stale = True
            case ToolEnded(tool_id=key) as end if key in waiting:
                place, call = waiting.pop(key)
                found[place] = _ended(found[place], call, end)
            case VerifyEnded(command=command, code=code):
                check = CheckOfWork(command=command[:INPUT], by="verify", code=code)
                found.append(msgspec.structs.replace(check, passed=code == 0))
            case _:
                pass
    return tuple(found[-LISTED:]), stale


def _ended(check: CheckOfWork, call: ToolStarted, end: ToolEnded) -> CheckOfWork:
    code = end.code
    if code is None and call.name == "Bash" and end.ok and not end.summary.startswith(_BACKGROUND):
        # Claude Code reports the exit code of a command that failed, but not of one that succeeded.
        code = 0
    ran = check_of(call.summary)
    own = ran is not None and ran.own and code is not None
    return msgspec.structs.replace(check, code=code, passed=code == 0 if own else None)


def _is_shell(call: ToolStarted) -> bool:
    return call.name.lower() in _SHELLS


def _only_reads(call: ToolStarted) -> bool:
    if _is_shell(call):
        return changes_nothing(call.summary)
    return call.name.lower() in _READERS


def _denied(own: Sequence[Record]) -> tuple[DeniedCall, ...]:
    counted: dict[tuple[str, str], int] = {}
    for record in own:
        if isinstance(record.event, ToolDenied):
            key = record.event.name[:INPUT], record.event.summary[:INPUT]
            counted[key] = counted.get(key, 0) + 1
    calls = [DeniedCall(name=key[0], input=key[1], count=many) for key, many in counted.items()]
    if len(calls) > LISTED:
        rest = sum(each.count for each in calls[LISTED - 1 :])
        calls = [*calls[: LISTED - 1], DeniedCall(name="other calls", input="", count=rest)]
    return tuple(calls)


def _ruled(own: Sequence[Record], journal: Sequence[Record]) -> tuple[str, ...]:
    """Return the saved rules (see `rules.approvals`) that gave answers to this attempt's agent."""
    given = []
    for each in own:
        if isinstance(each.event, RequestGiven):
            given.append(each.event.number)
    rules = {}
    for record in journal:
        if isinstance(record.event, RequestAnswered) and record.event.rule:
            rules[record.event.number] = record.event.rule
    found = []
    for number in given:
        if number in rules:
            found.append(rules[number])
    return tuple(dict.fromkeys(found))[-LISTED:]


def _question(own: Sequence[Record]) -> str:
    """Return the agent's last question; empty if the agent continued to work after it."""
    question = ""
    asked = ""
    for record in own:
        match record.event:
            case QuestionAsked(tool_id=key, text=text):
                question, asked = text, key
            case ToolStarted(tool_id=key) if key != asked:
                question = ""
            case _:
                pass
    return question[:INPUT]


def _last_word(own: Sequence[Record]) -> LastWordOfWork | None:
    given = []
    for each in own:
        if isinstance(each.event, LastWordGiven):
            given.append(each.event)
    if not given:
        return None
    word = given[-1]
    return LastWordOfWork(
        status=word.status,
        summary=word.summary,
        questions=word.questions,
        follow_ups=word.follow_ups,
    )


def _left(own: Sequence[Record]) -> tuple[LeftProcess, ...]:
    found: list[LeftProcess] = []
    for record in own:
        if isinstance(record.event, LeftoversFound):
            found += map(_left_process, record.event.processes[:LISTED])
    return tuple(found)


def _left_process(process: Leftover) -> LeftProcess:
    command = process.command[:INPUT]
    return LeftProcess(command=command, age_s=process.age_s, became=str(process.became))


def _has_pushed(effects: Sequence[EffectOfWork]) -> bool:
    """Return whether the agent itself pushed successfully."""
    return any(each.kind == "push" and each.ok is True for each in effects)


def _is_published(seen: WorkSeen, journal: Sequence[Record]) -> bool:
    """Return whether perdure pushed the newest commit."""
    newest = seen.commits[0].id if seen.commits else ""
    for record in journal:
        if isinstance(record.event, Published) and record.event.commit == newest:
            return True
    return False


def _changed_earlier(attempt: Attempt, journal: Sequence[Record]) -> bool:
    """Return whether an earlier attempt with the newest instructions changed something or may have
    done so."""
    changed = False
    for record in journal:
        match record.event:
            case ContextAdded(version=version) if version <= attempt.context_version:
                changed = False
            case WorkSeen() as seen if record.attempt < attempt.number:
                changed = changed or bool(seen.file_count or seen.commit_count)
            case _:
                pass
    return changed


def _contradictions(report: WorkReport, said: str, pushed: bool, earlier: bool) -> tuple[str, ...]:
    """Return a sentence for each claim in the last message that the facts contradict."""
    claims = claims_of(said)
    found = []
    if WorkClaim.TESTS_PASS in claims:
        for last in (last_check(report, "agent"), last_check(report, "verify")):
            if last is not None and last.passed is False:
                words = f"`{last.command}` ended with exit code {last.code}"
                found.append(f"it says that tests pass, but the last check {words}")
    if not report.observed or earlier:
        return tuple(found)
    if WorkClaim.COMMITTED in claims and not report.commit_count:
        found.append("it says that it committed, but there is no new commit")
    if WorkClaim.PUSHED in claims and report.commit_count and not pushed:
        found.append("it says that it pushed, but no push is known")
    nothing = not (report.file_count or report.commit_count or report.effects)
    if WorkClaim.CHANGED in claims and nothing:
        found.append("it says that it changed files, but no file differs")
    return tuple(found)
