"""Launches the agent of an attempt, as a new process or as the next turn of a kept agent. Called by
`opening_steps` after the attempt's start is stored.

`known_marks` lists the marks of a conversation whose transcript perdure cannot read. A mark is a
hash of a prompt, an answer or a tool call, taken from the journal. When the agent replays the
conversation, the replay is compared with the marks before the next prompt is sent.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace

from perdure.agents.transcripts import begins_with, prompts_since
from perdure.engine.attempt.budget import left
from perdure.engine.attempt.context_fill import fill_of, rules_of
from perdure.engine.attempt.engine import (
    HISTORY,
    Engine,
    EngineStore,
    agent_environment,
    leftover_policy,
    process_tag,
)
from perdure.engine.attempt.heartbeat import Heartbeat
from perdure.engine.attempt.messages import directory_of as messages_of
from perdure.engine.attempt.requests import asks, directory_of
from perdure.engine.attempt.start_facts import NotStarted
from perdure.engine.attempt.warm_agents import Idle, WarmAgents, compatibility_digest
from perdure.engine.prompt_file import read_prompt
from perdure.errors import PerdureError
from perdure.host import process
from perdure.model import (
    Command,
    CompactAt,
    Launch,
    OnLeftover,
    Outcome,
    OutcomeKind,
    Program,
    Rung,
    Session,
    Start,
)
from perdure.model.events import AgentLaunched, ItemsMarked, SessionPinned
from perdure.protocols import RunStore, TakesMessages
from perdure.rules.context_window import FillRules, compact_at

if TYPE_CHECKING:
    from collections.abc import Mapping

    from perdure.engine.attempt.live_attempt import LiveAttempt

MOST = 2000
"""Maximum number of marks that are compared with a replay. All of them are passed in one
command-line argument, and the length of an argument is limited."""


def known_marks(store: EngineStore, session: Session) -> tuple[str, ...]:
    """Return the newest marks that a replay of the conversation must contain, oldest first.

    It is unknown whether the agent saved all of a turn that was cut off. Such a turn contributes
    only its prompt, and only if the agent answered.
    """
    found: list[str] = []
    for run in store.runs_of(session.key):
        turns: dict[int, ItemsMarked] = {}
        for record in store.latest(run.id, HISTORY):
            if isinstance(record.event, ItemsMarked) and record.event.session_id == session.id:
                turns[record.attempt] = record.event
        for attempt in store.attempts(run.id):
            turn = turns.get(attempt.number)
            answered = attempt.receipt is not None and attempt.receipt.evidence.answered
            if turn is not None and (turn.ended or answered):
                found += turn.marks
    return tuple(found[-MOST:])


def start(
    engine: Engine,
    opened: LiveAttempt,
    program: Program,
    identity: dict[str, str],
    idle: Idle | None,
) -> None:
    """Start the agent, or give the idle kept agent its next turn. An idle agent that is not used is
    ended. Raises NotStarted and PerdureError."""
    try:
        launch = _launch(engine, opened, program)
        own = {**agent_environment(engine.environ, opened.driver, opened.claim.run), **identity}
        if refusal := opened.driver.refuse(launch):
            raise NotStarted(Outcome(kind=OutcomeKind.CONFIG_ERROR, detail=refusal))
        _check_wanted(engine.heartbeat(opened.claim), engine.stopping)
        opened.launch, opened.env = launch, own
        opened.process = (
            (
                _next_turn(engine.on_leftover, engine.warm, opened, idle)
                if idle is not None
                else None
            )
            or _first_turn(engine.on_leftover, engine.warm, opened)
            or _start_single_turn(engine.grace_s, engine.on_leftover, opened)
        )
    except BaseException:
        for each in (idle, opened.idle):
            if each is not None:
                each.kept.end()
        raise
    _record_launch(engine.store, opened)


def _check_wanted(heartbeat: Heartbeat, stopping: Callable[[], bool]) -> None:
    """Raise NotStarted if the run was stopped while the attempt was prepared. If the database is
    shared, renew the lease first, and raise LostLease if it was lost."""
    if heartbeat.host.id:
        run = heartbeat.beat()
    else:
        run = heartbeat.store.get(heartbeat.claim.run.id)
    if run.cancel_requested or stopping():
        raise NotStarted(Outcome(kind=OutcomeKind.CANCELLED, began=False))


def _launch(engine: Engine, opened: LiveAttempt, program: Program) -> Launch:
    run, attempt = opened.claim.run, opened.attempt
    return Launch(
        spec=run.spec,
        continuation=opened.asked,
        prompt=read_prompt(opened.directory),
        cwd=opened.workspace.path,
        home=str(opened.home),
        program=program,
        transcript=attempt.before.path if attempt.before else "",
        compact_at=_compact_at(engine.context, opened),
        budget_usd=left(engine.store, run, attempt.number),
        marks=_marks(engine.store, opened),
        mark=process_tag(attempt),
        requests=str(directory_of(engine.state, run.id))
        if asks(
            engine.on_denied, engine.request_expiry_s, opened.driver, opened.claim, program.version
        )
        else "",
        answers=opened.answers,
        parked=opened.parked,
        messages=_messages(opened),
        last_word=(run.spec.last_word or engine.last_word) == "on",
    )


def _messages(opened: LiveAttempt) -> str:
    """Return the directory for messages to the running turn; empty if the agent cannot receive
    messages during a turn."""
    if isinstance(opened.driver, TakesMessages):
        return str(messages_of(opened.directory))
    return ""


def _marks(store: EngineStore, opened: LiveAttempt) -> tuple[str, ...]:
    resumed = opened.asked.kind is Start.RESUME and opened.session is not None
    if opened.driver.abilities.transcripts or not resumed:
        return ()
    assert opened.session is not None
    return known_marks(store, opened.session)


def _compact_at(context: FillRules, opened: LiveAttempt) -> CompactAt | None:
    """Return the size at which the CLI has to compact the conversation in this launch. None if the
    CLI has no setting for that size."""
    run, rules = opened.claim.run, rules_of(context, opened.claim.run)
    known = opened.session.fill if opened.session is not None else None
    fill = fill_of(context, opened.driver, run, opened.attempt.before, known)
    if opened.driver.abilities.compacts:
        return compact_at(rules, fill, run.spec.model, now=opened.asked.compact)
    return None


def _next_turn(
    on_leftover: OnLeftover, warm: WarmAgents | None, opened: LiveAttempt, idle: Idle
) -> process.Process | None:
    """Give the idle agent its next turn, and return the turn's process. If the idle agent does not
    fit this turn (other settings, another conversation, or one that has changed meanwhile), end
    that agent and return None."""
    assert opened.launch is not None
    assert opened.lock_fd is not None
    asked = opened.asked
    same = (
        asked.kind is Start.RESUME
        and asked.rung is Rung.NATIVE
        and asked.session_id == idle.session_id
        and not asked.compact
    )
    if same and _may_be_kept(on_leftover, warm, opened) and _has_seen_all(opened, idle):
        like, command = compatibility_digest(
            opened.driver, opened.launch, opened.env, idle.session_id
        )
        if command is not None and like == idle.like:
            _make_messages_directory(opened.launch, command)
            timeout_s = opened.claim.run.spec.timeout_s
            served = idle.kept.turn(
                opened.directory, stdin=command.stdin, deadline_s=timeout_s, lock_fd=opened.lock_fd
            )
            opened.idle = idle if served is not None else None
            return served
    idle.kept.end()
    return None


def _may_be_kept(on_leftover: OnLeftover, warm: WarmAgents | None, opened: LiveAttempt) -> bool:
    """Return whether this launch's agent may be kept for later attempts. An agent becomes idle only
    when nothing of its turn is running, so an agent is not kept under the leftover policies `keep`
    and `wait`."""
    run = opened.claim.run
    wanted = warm is not None and warm.wanted(opened.driver, run)
    return wanted and leftover_policy(on_leftover, run) is OnLeftover.END


def _has_seen_all(opened: LiveAttempt, idle: Idle) -> bool:
    """Return whether the conversation is unchanged since the idle process finished its last
    turn."""
    before = opened.attempt.before
    if (
        idle.seen is None
        or before is None
        or not begins_with(opened.driver, Path(before.path), idle.seen)
    ):
        return False
    # This attempt's own prompt is not in the conversation yet. So any new prompt came from somebody
    # else.
    return not prompts_since(opened.driver, Path(before.path), idle.seen)


def _first_turn(
    on_leftover: OnLeftover, warm: WarmAgents | None, opened: LiveAttempt
) -> process.Process | None:
    """Start an agent that will be kept after its turn, and return the process of its first turn.
    Return None if the agent may not be kept, or if this launch needs a process of its own."""
    run, driver = opened.claim.run, opened.driver
    assert opened.launch is not None
    assert opened.lock_fd is not None
    if not _may_be_kept(on_leftover, warm, opened) or warm is None or driver.warm is None:
        return None
    command = driver.warm.command(opened.launch)
    if command is None:
        return None
    opened.notes = command.notes
    _make_messages_directory(opened.launch, command)
    idle = warm.start(without_overridden(command, opened.env), opened.workspace, opened.env)
    opened.idle = idle
    first = idle.kept.turn(
        opened.directory, stdin=command.stdin, deadline_s=run.spec.timeout_s, lock_fd=opened.lock_fd
    )
    opened.idle = idle if first is not None else None
    return first


def _start_single_turn(
    grace_s: float, on_leftover: OnLeftover, opened: LiveAttempt
) -> process.Process:
    assert opened.launch is not None
    command = opened.driver.command(opened.launch)
    opened.notes = command.notes
    _make_messages_directory(opened.launch, command)
    return process.start(
        without_overridden(command, opened.env),
        directory=opened.directory,
        cwd=Path(opened.workspace.path),
        env=opened.env,
        mark=process_tag(opened.attempt),
        deadline_s=opened.claim.run.spec.timeout_s,
        grace_s=grace_s,
        lock_fd=opened.lock_fd,
        leftover=leftover_policy(on_leftover, opened.claim.run),
    )


def _make_messages_directory(launch: Launch, command: Command) -> None:
    """Make the attempt's directory of messages if the agent's command uses the directory."""
    told = launch.messages
    # In Claude Code's arguments the path is part of a JSON text, which escapes characters outside
    # ASCII. So the arguments are searched for the escaped path.
    in_arguments = any(json.dumps(told)[1:-1] in argument for argument in command.argv)
    if told and (command.takes_messages or in_arguments):
        Path(told).mkdir(exist_ok=True, mode=0o700)


def without_overridden(command: Command, own: Mapping[str, str]) -> Command:
    """Return the command without the driver's variables that `own` already sets. The user's values
    thus take precedence over the driver's."""
    env = {name: value for name, value in command.env.items() if name not in own}
    return replace(command, env=env)


def _record_launch(store: RunStore, opened: LiveAttempt) -> None:
    assert opened.process is not None
    turn = opened.idle.kept.turns if opened.idle is not None else 1
    events: list[AgentLaunched | SessionPinned] = [
        AgentLaunched(pid=opened.process.agent_pid or 0, turn=turn, notes=opened.notes)
    ]
    if opened.session is not None and opened.asked.kind is not Start.RESUME:
        events.append(SessionPinned(session_id=opened.session.id))
    try:
        store.record(opened.claim, events)
    except PerdureError:
        # The attempt will be stored as not started, so the agent's process must not survive.
        opened.process.kill()
        raise
