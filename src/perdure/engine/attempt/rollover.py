"""Asks an agent to summarize a conversation that is too long, in one last turn before a new
conversation replaces it.

Called by `opening_steps` before the new conversation begins. In that turn the agent has read-only
permissions. The summary is stored in the journal, so an attempt that is repeated after a kill does
not ask again. If the conversation is too full for another turn, or the agent does not answer,
perdure's own brief is used instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from pathlib import Path

from msgspec.structs import replace

from perdure.agents.transcripts import Copies, fingerprint, locate, snapshot
from perdure.engine.attempt.budget import left
from perdure.engine.attempt.engine import Engine, process_tag_of
from perdure.engine.attempt.event_totals import EventTotals, Joiner
from perdure.engine.attempt.launch import without_overridden
from perdure.engine.attempt.prompt_facts import find_summary
from perdure.engine.attempt.start_facts import NotStarted
from perdure.host import process
from perdure.model import (
    Claim,
    Continuation,
    Launch,
    Outcome,
    OutcomeKind,
    Permissions,
    Program,
    Session,
    Start,
    Usage,
)
from perdure.model.events import Said, Summarised
from perdure.protocols import AgentDriver, RunStore
from perdure.rules.context_window import HANDOVER

TURN = "summary"
"""Name of the directory for the logs and records of the summary turn's process. It is inside the
attempt's directory."""
PATIENCE_S = 900.0
LENGTH = 12_000
"""Maximum number of characters of a summary."""


def request_summary(
    engine: Engine,
    claim: Claim,
    driver: AgentDriver,
    program: Program,
    home: Path,
    live: Session,
    own: Mapping[str, str],
    lock_fd: int,
) -> Session:
    """Ask for the summary and store it, unless a summary exists already. Return the session with
    the summary turn added. Raises NotStarted if the turn was stopped, by a person or because the
    supervisor ends."""
    if find_summary(engine.store.run_events(claim.run.id), live.id) is not None:
        return live
    launch = _launch(engine.store, claim, program, home, live)
    if why_not := driver.refuse(launch):
        engine.store.record(claim, [Summarised(session_id=live.id, text="", reason=why_not)])
        return live
    command = driver.command(launch)
    started = process.start(
        without_overridden(command, own),
        directory=engine.attempt_directory(claim) / TURN,
        cwd=Path(launch.cwd),
        env=own,
        mark=process_tag_of(claim.run.id, claim.attempt),
        deadline_s=min(PATIENCE_S, claim.run.spec.timeout_s or PATIENCE_S),
        grace_s=engine.grace_s,
        lock_fd=lock_fd,
    )
    end, stopped = engine.heartbeat(claim).wait(started, engine.stopping)
    said, reading = _read_summary(driver, started)
    for output in (started.stdout, started.stderr):
        engine.redactor.file(output)
    outcome = driver.outcome(end, reading.for_classifier())
    text = engine.redactor.text(said)[:LENGTH] if outcome.ok else ""
    if text:
        reason = ""
    else:
        reason = engine.redactor.text(f"{outcome.kind} {outcome.detail}".strip())
    told = Summarised(session_id=live.id, text=text, usage=reading.usage(live.total), reason=reason)
    transcript = locate(driver, home, live.id, engine.attempt_directory(claim))
    live = _as_it_is(engine.copies, driver, transcript, live, reading.total or live.total)
    live = replace(live, updated=engine.store.now())
    engine.store.put_session(live)
    engine.store.record(claim, [told])
    if stopped:
        raise NotStarted(
            Outcome(
                kind=OutcomeKind.CANCELLED,
                detail="it was stopped on request, before its new conversation began",
            )
        )
    return live


def _launch(store: RunStore, claim: Claim, program: Program, home: Path, live: Session) -> Launch:
    assert claim.run.workspace is not None
    return Launch(
        spec=replace(claim.run.spec, permissions=Permissions.READ, prompt=HANDOVER),
        continuation=Continuation(kind=Start.RESUME, session_id=live.id),
        prompt=HANDOVER,
        cwd=claim.run.workspace.path,
        home=str(home),
        program=program,
        budget_usd=left(store, claim.run),
        mark=process_tag_of(claim.run.id, claim.attempt),
    )


def _read_summary(driver: AgentDriver, started: process.Process) -> tuple[str, EventTotals]:
    """Return the text that the agent wrote, and the totals of the turn's events."""
    reading, joiner, said = EventTotals(), Joiner(), list[str]()
    if started.stdout.exists():
        output = started.stdout.read_bytes()
    else:
        output = b""
    parsed = chain.from_iterable(driver.parse(line) for line in output.split(b"\n") if line)
    events = list(chain.from_iterable(map(joiner.add, parsed)))
    for event in [*events, *joiner.rest()]:
        reading.absorb(event)
        if isinstance(event, Said):
            said.append(event.text)
    return "\n\n".join(said).strip(), reading


def _as_it_is(
    copies: Copies, driver: AgentDriver, transcript: Path | None, live: Session, total: Usage
) -> Session:
    """Update perdure's own copy of the conversation. Return the session with the summary turn
    added."""
    if transcript is not None:
        copies.take(driver, live.id, transcript)
    prompts = (*live.prompts, fingerprint(HANDOVER))
    return replace(
        live,
        prompts=prompts,
        total=total,
        snapshot=snapshot(driver, transcript) or live.snapshot,
    )


def end_orphaned_summary(driver: AgentDriver, directory: Path) -> Usage:
    """End a summary turn whose supervisor died. Return the usage that the agent had reported for
    this turn; zero if the agent reports only totals of the conversation. `directory`: the attempt's
    directory."""
    found = process.find(directory / TURN)
    if found is None:
        return Usage()
    found.kill()
    _, reading = _read_summary(driver, found)
    if reading.total is None:
        return reading.usage(Usage())
    return Usage()
