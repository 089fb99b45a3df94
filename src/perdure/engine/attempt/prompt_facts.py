"""Gathers the facts that the agent must know about earlier attempts, from the run's journal and
workdir. Called by `preparation`, which passes the result, a `Story`, to the module that writes the
prompt."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from perdure.agents.transcripts import Copies, fingerprint
from perdure.engine.attempt.baseline import Journaled
from perdure.engine.attempt.engine import HISTORY, Engine
from perdure.engine.attempt.workdir import NO_STARTING_STATE, StartingState, without_undone
from perdure.engine.prompt_file import kept_prompt_fingerprint
from perdure.model import (
    Attempt,
    Claim,
    Continuation,
    Item,
    ItemKind,
    OutcomeKind,
    Rung,
    Session,
    Start,
    TaskRun,
)
from perdure.model.events import (
    AttemptEnded,
    AttemptStarted,
    DriftSeen,
    Record,
    Said,
    Summarised,
    ToolEnded,
    ToolStarted,
    TurnEnded,
    VerifyEnded,
    WorkdirLost,
)
from perdure.model.loaded import quote
from perdure.rules.continuation.instructions import counting, retired
from perdure.rules.continuation.prompt import Story, Unrecorded
from perdure.rules.effects import DENIED, OUTCOME_UNKNOWN, Effect, ledger
from perdure.rules.placement import changes_of

if TYPE_CHECKING:
    from perdure.protocols import AgentDriver
    from perdure.workspace import WorkdirState

BRIEF_LINES = 60
BRIEF_WIDTH = 300
EARLIER_LINES = 40
EFFECTS = 40
"""Maximum number of effects in each of the prompt's two lists: the certain and the uncertain ones.
"""
NAMES = 10
NAME_WIDTH = 120


def story_of(
    engine: Engine,
    claim: Claim,
    asked: Continuation,
    live: Session | None,
    turns_between: int,
    came_from: str = "",
    prompt_fingerprints: frozenset[str] | None = None,
    *,
    starting: StartingState = NO_STARTING_STATE,
    drift: DriftSeen | None = None,
    unrecorded: Sequence[Journaled] = (),
    turn_messages: Sequence[str] = (),
    others: Sequence[Item] = (),
) -> Story:
    """Return the facts for the prompt.

    - `live`: the session in use; None for a new conversation.
    - `turns_between`: number of prompts in the conversation that perdure did not send.
    - `came_from`: the directory in which the conversation was used until now.
    - `prompt_fingerprints`: fingerprints of the prompts in the transcript that replaced the agent's
      own; None if it was not replaced.
    - `turn_messages`: messages in that transcript that agents received during their turns.
    - `unrecorded`: items of the conversation that are in the journal but not in the transcript.
    - `others`: items that somebody else had added to the replaced transcript.
    """
    run = claim.run
    assert run.workspace is not None
    records = engine.store.run_events(run.id)
    left = without_undone(records)
    there = set()
    for record in left:
        if isinstance(record.event, AttemptEnded):
            there.add(record.attempt)
    # The conversation no longer contains the attempts that a restore undid, so they are left out.
    ended = []
    for attempt in engine.store.attempts(run.id):
        if attempt.number in there and attempt.number < claim.attempt:
            ended.append(attempt)
    # Reading the state of a large workdir and the whole journal takes time. Only the prompt for a
    # new conversation or after an interruption describes them.
    looks = asked.kind is Start.REBUILD or bool(
        ended and ended[-1].outcome and not ended[-1].outcome.ok
    )
    done: tuple[str, ...] = ()
    open_tools: tuple[str, ...] = ()
    found: list[Effect] = []
    if looks or unrecorded:
        whole = engine.store.latest(run.id, HISTORY)
        done, open_tools = _recent_activity(without_undone(whole))
        found = [each for each in ledger(whole) if each.outcome != DENIED]
    contexts = []
    for each in counting(engine.store.contexts(run.id), records):
        if each.version <= run.context_version:
            contexts.append(each)
    given = _newest_delivered(run, ended, live, prompt_fingerprints, copied=asked.rung is Rung.COPY)
    if prompt_fingerprints is not None:
        from perdure.rules.messages import newest_in

        given = newest_in(contexts, given, turn_messages)
    return Story(
        contexts=tuple(contexts),
        given=given,
        previous=ended[-1].outcome if ended else None,
        open_tools=open_tools,
        workdir=_workdir(engine.workspaces.state(run.workspace)) if looks else "",
        done=done,
        turns_between=turns_between,
        left=came_from if came_from != run.workspace.path else "",
        cwd=run.workspace.path,
        effects=_effects(each for each in found if each.outcome != OUTCOME_UNKNOWN),
        uncertain=_effects(each for each in found if each.outcome == OUTCOME_UNKNOWN),
        summary=summary.text
        if (summary := find_summary(records, asked.lost_session_id)) is not None
        else "",
        earlier=_earlier(engine.driver, engine.copies, run, ended, asked),
        restored=_restored(starting) or _lost_workdir(records),
        drift=_drift(drift, starting) if drift is not None else "",
        files=_files(engine.state, claim, given, records),
        check=_check(left, ended, live if asked.kind in (Start.RESUME, Start.FORK) else None),
        unrecorded=_unrecorded(unrecorded, open_tools),
        damaged=asked.shown.damaged if asked.shown is not None else 0,
        taken_back=_taken_back(asked),
        others=tuple(map(quote, others)),
    )


def _unrecorded(
    unrecorded_items: Sequence[Journaled], open_tools: Sequence[str]
) -> tuple[Unrecorded, ...]:
    """Return the agent's messages and actions that are missing from its conversation, in order.

    A call and its result become one entry. Calls that were interrupted are left out, because
    another part of the prompt names them.
    """
    results = {}
    calls = set()
    for each in unrecorded_items:
        if each.item.kind is ItemKind.RESULT:
            results[each.item.key] = each
        elif each.item.kind is ItemKind.CALL:
            calls.add(each.item.key)
    found: list[Unrecorded] = []
    for each in unrecorded_items:
        key = each.item.key
        words = f"`{_short(each.words)}`"
        match each.item.kind:
            case ItemKind.ANSWER:
                found.append(Unrecorded(said=_short(each.words)))
            case ItemKind.CALL if key in results:
                ended = results[key]
                found.append(Unrecorded(ran=words, ok=ended.ok, output=ended.output))
            case ItemKind.CALL if words not in open_tools:
                found.append(Unrecorded(ran=words))
            case ItemKind.RESULT if key not in calls:
                found.append(Unrecorded(ran=words, ok=each.ok, output=each.output))
            case _:
                pass
    return tuple(found[-BRIEF_LINES:])


def _taken_back(asked: Continuation) -> int:
    """Return the number of known items that the agent will not load because they are on another
    branch of its transcript; 0 if perdure replaced the transcript."""
    shown = asked.shown
    if shown is not None and asked.rung is Rung.NATIVE:
        return shown.off_branch
    return 0


def _earlier(
    driver_of: Callable[[str], AgentDriver],
    copies: Copies,
    run: TaskRun,
    ended: Sequence[Attempt],
    asked: Continuation,
) -> tuple[str, ...]:
    """Return what was said in a lost conversation before this run joined it, as lines of text. For
    a fork, the lines end at the turn where the fork begins. The run's own journal lacks this part
    of the conversation. Empty unless a new conversation replaces the lost one."""
    if asked.kind is not Start.REBUILD or not asked.lost_session_id:
        return ()
    driver = driver_of(run.spec.agent)
    try:
        spoken = driver.messages_of(copies.of(driver.name, asked.lost_session_id).read_bytes())
    except OSError:
        return ()
    own = set()
    for attempt in ended:
        if attempt.session_id == asked.lost_session_id:
            own.add(kept_prompt_fingerprint(attempt))
    lines: list[str] = []
    turns = 0
    for each in spoken:
        turns += not each.by_agent
        beyond = 0 < run.spec.fork_at < turns and asked.lost_session_id == run.spec.forks
        if beyond or (not each.by_agent and fingerprint(each.text) in own):
            break
        speaker = "you said" if each.by_agent else "you were asked"
        lines.append(f"{speaker}: {_short(each.text)}")
    return tuple(lines[-EARLIER_LINES:])


def _lost_workdir(records: Sequence[Record]) -> str:
    """Return a sentence about a workdir that was missing at the start of this attempt, and what
    replaced it. Empty if it was not missing."""
    lost = None
    for record in records:
        if isinstance(record.event, AttemptEnded):
            lost = None
        elif isinstance(record.event, WorkdirLost):
            lost = record.event
    if lost is None:
        return ""
    if not lost.checkpoint:
        return (
            "The working directory was gone when this attempt began, and nothing had been saved of "
            "it. It was made again from its branch: what was not committed is lost."
        )
    when = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(lost.taken / 1000))
    return (
        "The working directory was gone when this attempt began. The runner put its files back as "
        f"they were saved at {when}; what you changed there after that is lost."
    )


def _restored(starting: StartingState) -> str:
    """Return a sentence about a restore of the workdir or the conversation since the agent last
    worked. Empty if there was none."""
    checkpoint = starting.checkpoint
    if checkpoint is None or not (starting.restored or starting.back):
        return ""
    when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(checkpoint.at / 1000))
    if starting.back:
        return (
            f"This conversation was taken back to where it stood at {when}, because its newest "
            "part cannot be used. What you said and did after that is not in it any more, but the "
            "files still have it."
        )
    if starting.restored is not None and starting.restored.moved_from:
        return (
            "This task was moved to another machine. Its working directory and this conversation "
            f"are as they were at {when}; what you did after that is not here."
        )
    if starting.restored is not None and starting.restored.files_only:
        return (
            f"A person took the working directory back to where it stood at {when}. What you did "
            "there after that is undone."
        )
    return (
        "A person took the working directory and this conversation back to where they stood at "
        f"{when}."
    )


def _drift(seen: DriftSeen, starting: StartingState) -> str:
    """Return a text about changes of files and HEAD that the agent does not know of."""
    if starting.by_itself:
        who = "these files were changed, by you or by somebody else"
    else:
        who = "somebody else changed these files"
    more = f" and {seen.count - NAMES} more" if seen.count > NAMES else ""
    if seen.count:
        said = [f"{who}: {', '.join(map(named, seen.paths[:NAMES]))}{more}"]
    else:
        said = []
    if seen.head_before != seen.head_now:
        said.append(
            f"HEAD moved from {seen.head_before[:12] or 'nothing'} to "
            f"{seen.head_now[:12] or 'nothing'}"
        )
    return (
        f"Since then {'; '.join(said)}. Look at them before you rely on what you remember of them."
    )


def _files(state: Path, claim: Claim, given: int, records: Sequence[Record]) -> str:
    """Return a text about the task files that changed: those changed in this attempt, and those
    changed by a version of the instructions that the conversation has not received. For each file,
    only the last change is included."""
    gone = retired(records)
    made = []
    for number, change in changes_of(records):
        if change.version not in gone:
            made.append((number, change))
    news = {}
    for number, change in made:
        if number == claim.attempt or change.version > given:
            news[change.name] = change
    if not news:
        return ""
    from perdure.workspace.task_files import Contents, files_note

    return files_note(tuple(news.values()), Contents(state))


def _check(
    records: Sequence[Record], ended: Sequence[Attempt], live: Session | None
) -> VerifyEnded | None:
    """Return the newest check if it failed and the conversation does not contain its result yet.
    Otherwise return None."""
    for last in reversed(records):
        if isinstance(last.event, VerifyEnded):
            break
    else:
        return None
    outcomes = {}
    for attempt in ended:
        if attempt.outcome is not None:
            outcomes[attempt.number] = attempt.outcome.kind
    later = []
    for attempt in ended:
        if attempt.number > last.attempt and live is not None and attempt.session_id == live.id:
            later.append(attempt)
    receipts = [attempt.receipt for attempt in later if attempt.receipt is not None]
    files_note = any(receipt.evidence.prompt_found for receipt in receipts)
    if outcomes.get(last.attempt) is OutcomeKind.VERIFY_FAILED and not files_note:
        return last.event
    return None


def _workdir(state: WorkdirState) -> str:
    """Return the state of the workdir as text, with the names of the first few changed files."""
    if state.head:
        if state.branch:
            branch = f"branch {named(state.branch)}"
        else:
            branch = "detached"
        where = f"{branch} at {state.head[:12]}, "
    else:
        where = ""
    if state.paths:
        more = ", ..." if len(state.paths) > NAMES else ""
        names = f" ({', '.join(map(named, state.paths[:NAMES]))}{more})"
    else:
        names = ""
    if state.in_progress:
        open_ended = f"; a {state.in_progress} is in progress"
    else:
        open_ended = ""
    return (
        f"{where}{state.changed} changed and {state.untracked} untracked "
        f"file(s){names}{open_ended}."
    )


def named(path: str) -> str:
    """Return a file name in a form that is safe inside a sentence. A name may contain a newline, a
    quote or a space, possibly to mislead the agent; such a name is quoted."""
    short = path if len(path) <= NAME_WIDTH else f"{path[:NAME_WIDTH]}..."
    if re.fullmatch(r"[\w./+@-]+", short):
        return short
    return repr(short)


def _newest_delivered(
    run: TaskRun,
    ended: list[Attempt],
    live: Session | None,
    heard: frozenset[str] | None,
    *,
    copied: bool,
) -> int:
    """Return the newest version of this run's instructions that is known to be in the conversation;
    0 if none is.

    `heard`: fingerprints of the prompts in a transcript that replaced the agent's own; None if it
    was not replaced. If it was, only the new transcript shows which versions were received.
    `copied`: whether the new transcript is perdure's newest copy.
    """
    if live is None:
        return 0
    if heard is not None:
        # The prompts of attempts on another machine are not stored on this host. So the version in
        # the session's record is used, because it is the version in the copy.
        imported = {attempt.session_id for attempt in ended if not attempt.directory}
        came = copied and live.id in imported
        known = []
        for attempt in ended:
            if kept_prompt_fingerprint(attempt) in heard:
                known.append(attempt.context_version - attempt.messages)
        return max([*known, live.context_version if came else 0])
    files_note = []
    for a in ended:
        if a.session_id == live.id and a.receipt and a.receipt.evidence.prompt_found:
            files_note.append(a.context_version)
    # If no other run shares the conversation, the version in the session's record counts too. After
    # a person had the run open, the conversation may be one in which no attempt has worked yet.
    return max([*files_note, live.context_version if live.key.scope == f"run:{run.id}" else 0])


def _effects(found: Iterable[Effect]) -> tuple[str, ...]:
    """Return a line of text for each of the newest `EFFECTS` effects."""
    return tuple(map(_effect, found))[-EFFECTS:]


def _effect(effect: Effect) -> str:
    ended = {True: "it succeeded", False: "it failed", None: "its end was not seen"}[effect.ok]
    kind = f"possible {effect.kind}" if effect.possible else effect.kind
    return f"attempt {effect.attempt}, {kind}: `{_short(effect.command)}` ({ended})"


def _recent_activity(records: Sequence[Record]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the newest lines about what was said and done. Also return the tool calls that were
    running when the last attempt ended."""
    lines: list[str] = []
    running: dict[str, str] = {}
    left: tuple[str, ...] = ()
    for record in records:
        match record.event:
            case Said(text=text):
                lines.append(f"you said: {_short(text)}")
            case ToolStarted(tool_id=tool_id, name=name, summary=summary):
                running[tool_id] = f"`{_short(summary or name)}`"
                lines.append(f"you ran {running[tool_id]}")
            case ToolEnded(tool_id=tool_id, ok=ok):
                running.pop(tool_id, None)
                if not ok:
                    lines.append("  and it failed")
            case TurnEnded(ok=True):
                lines.append("you ended your turn")
            case VerifyEnded(code=code, output=output) if code:
                lines.append(
                    f"the check of your work failed with exit code {code}: {_short(output)}"
                )
            case AttemptEnded(outcome=outcome):
                ended = f"attempt {record.attempt} ended: {outcome.kind}"
                lines.append(f"{ended} {_short(outcome.detail)}".rstrip())
                left, running = tuple(running.values()), {}
            case _:
                pass
    return tuple(lines[-BRIEF_LINES:]), left


def _short(text: str) -> str:
    line = " ".join(text.split())
    if len(line) <= BRIEF_WIDTH:
        return line
    return f"{line[:BRIEF_WIDTH]} ..."


def find_summary(records: Sequence[Record], session_id: str) -> Summarised | None:
    """Return the event with a conversation's summary. None if the agent was not asked for one, or
    if the conversation was continued after the summary."""
    for record in reversed(records):
        if isinstance(record.event, Summarised) and record.event.session_id == session_id:
            return record.event
        if isinstance(record.event, AttemptStarted) and _continues_session(
            record.event.continuation, session_id
        ):
            return None
    return None


def _continues_session(asked: Continuation, session_id: str) -> bool:
    return asked.kind is Start.RESUME and asked.session_id == session_id
