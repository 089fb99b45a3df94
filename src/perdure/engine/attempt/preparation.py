"""Prepares an attempt for its launch: puts files and transcripts in place, writes the agent's
prompt, and stores the start.

`opening_steps` calls `begin` while it holds the workdir's lock. Everything before `store.begin` can
be repeated at any time; that call records the start permanently. The agent is not started here.

`flags_of` collects the settings that the conversation does not contain: the CLIs do not keep model,
permissions, tools, servers and directories between two launches. The settings come from the run's
spec, which only a person can change, so a resume never widens them. They are passed to the agent
again at every launch, and stored with the attempt. `perdure why` compares the attempts to show
changes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from msgspec.structs import replace

from perdure.agents.transcripts import begins_with, fingerprint, locate, prompts_since, snapshot
from perdure.engine.attempt.accounts import credentials_digest
from perdure.engine.attempt.context_fill import rolled_over
from perdure.engine.attempt.engine import Engine, agent_environment
from perdure.engine.attempt.live_attempt import LiveAttempt
from perdure.engine.attempt.project_map import map_for
from perdure.engine.attempt.prompt_facts import story_of
from perdure.engine.attempt.requests import answers_for, write_decisions
from perdure.engine.attempt.start_facts import StartDecision
from perdure.engine.attempt.workdir import StartingState, drift, starting_state
from perdure.engine.prompt_file import prompt_path
from perdure.model import (
    NOTHING_GIVEN,
    PUT_BACK,
    Claim,
    Continuation,
    Program,
    Rung,
    Session,
    SessionKey,
    SessionState,
    Snapshot,
    Start,
    Usage,
)
from perdure.model.events import (
    CopyRestored,
    MessageDelivered,
    SessionExpired,
    TranscriptMended,
)
from perdure.protocols import AgentDriver, Begun, RunStore, TakesMessages
from perdure.rules.context_window import FillRules
from perdure.rules.continuation.instructions import counting
from perdure.rules.continuation.prompt import prompt
from perdure.rules.placement import planned_since


def flags_of(environ: Mapping[str, str], claim: Claim, driver: AgentDriver) -> dict[str, str]:
    """Return the attempt's settings by name: agent, model, permissions, arguments and account."""
    spec = claim.run.spec
    return {
        "agent": spec.agent,
        "model": spec.model,
        "permissions": str(spec.permissions),
        "agent_args": " ".join(spec.agent_args),
        "account": credentials_digest(environ, claim.run, driver),
    }


class CopyNotInPlace(Exception):
    """Raised if a copy could not replace the transcript that the agent would load. `rung`: the rung
    (way to continue the conversation) that failed for this reason."""

    def __init__(self, rung: Rung) -> None:
        super().__init__(rung)
        self.rung = rung


def begin(
    engine: Engine,
    claim: Claim,
    driver: AgentDriver,
    program: Program,
    home: Path,
    decided: StartDecision,
    live: Session | None,
    lifetime_s: float,
    *,
    fresh: bool,
) -> LiveAttempt:
    """Prepare the attempt up to its launch, and return it. `lifetime_s`: own lifetime of the
    scope's sessions, in seconds; 0: the configured lifetime applies. `fresh`: whether the workdir
    was just created. Raises CopyNotInPlace."""
    run, asked = claim.run, decided.continuation
    assert run.workspace is not None
    now = engine.store.now()
    directory = engine.attempt_directory(claim)
    records = engine.store.run_events(run.id)
    starting = starting_state(engine.store, run, asked, records)
    _put_in_place(engine, claim, driver, program, home, asked, starting)
    if asked.kind is Start.FORK:
        own_id = asked.fork_id
    else:
        own_id = asked.session_id
    if live is not None:
        live = _session_in_use(
            engine.store, engine.context, claim, driver, asked, live, own_id, now
        )
    goes_on = asked.kind in (Start.RESUME, Start.FORK)
    if goes_on:
        before = snapshot(driver, locate(driver, home, asked.session_id, directory))
    else:
        before = None
    if asked.kind is Start.FORK:
        engine.copies.take_with_ancestors(driver, home, asked.session_id, directory)
    seen = drift(engine.workspaces, run, starting, planned_since(records))
    if seen is not None:
        engine.store.record(claim, [seen])
    _place_files(engine.store, engine.environ, engine.state, claim, fresh=fresh)
    between = _turns_between(driver, live, before) + _turns_since_lost(engine.store, claim, live)
    left = _came_from(driver, home, asked, live)
    heard = _prompt_marks(driver, asked, before)
    story = story_of(
        engine,
        claim,
        asked,
        live,
        between,
        left,
        heard,
        starting=starting,
        drift=seen,
        unrecorded=decided.unrecorded,
        turn_messages=_turn_messages(driver, before) if heard is not None else (),
        others=decided.others,
    )
    news = any(each.version > story.given for each in story.contexts)
    answers = answers_for(
        engine.store,
        directory,
        claim,
        driver,
        asked,
        Path(before.path) if before is not None else None,
        news=news or bool(asked.compact),
    )
    text = ""
    if not answers.parked:
        text = prompt(
            asked, replace(story, map=map_for(engine, claim, driver, asked, story.contexts))
        )
        text = "\n\n".join(part for part in (answers.prompt, text) if part)
    session = live
    if session is None and own_id:
        if asked.kind is Start.FORK:
            total = total_of(driver, before)
        else:
            total = Usage()
        session = _announced(claim, home, asked, own_id, now, total, lifetime_s)
    if session is not None:
        sent = () if answers.parked else (fingerprint(text),)
        session = replace(session, prompts=(*session.prompts, *sent)).used(
            now, engine.session_lifetime_s
        )
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    prompt_path(directory).write_text(text, encoding="utf-8", errors="surrogatepass")
    write_decisions(engine.state, run.id, answers)
    attempt = engine.store.begin(
        claim,
        Begun(
            continuation=asked,
            directory=str(directory),
            prompt_sha256=hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest(),
            flags=flags_of(engine.environ, claim, driver),
            agent_version=program.version,
            before=before,
            session=session,
            workspace=run.workspace,
            answers=answers.requests,
        ),
    )
    given = []
    for each in story.contexts:
        if each.message and each.version > story.given:
            given.append(MessageDelivered(each.version, "prompt"))
    if given:
        engine.store.record(claim, given)
    return LiveAttempt(
        claim=claim,
        attempt=attempt,
        driver=driver,
        workspace=run.workspace,
        home=home,
        session=session,
        process=None,
        lifetime_s=lifetime_s,
        answers=bool(answers.requests),
        parked=answers.parked,
    )


def _put_in_place(
    engine: Engine,
    claim: Claim,
    driver: AgentDriver,
    program: Program,
    home: Path,
    asked: Continuation,
    starting: StartingState,
) -> None:
    """Replace the agent's transcript if the chosen rung (way to continue) needs another one:
    perdure's own copy, an older part of it, or the repaired copy. Raises CopyNotInPlace."""
    if asked.rung in (Rung.COPY, Rung.CHECKPOINT):
        if starting.back and starting.checkpoint is not None:
            back = starting.checkpoint.conversation
        else:
            back = ()
        from perdure.engine.attempt.repair import place_transcript

        directory = engine.attempt_directory(claim)
        restoring = directory / f"restore-{asked.rung}"
        if asked.rung is Rung.CHECKPOINT and _keeps_rows(driver, program, home, asked.session_id):
            raise CopyNotInPlace(asked.rung)
        put = place_transcript(
            engine, claim.run, driver, program, home, asked.session_id, restoring, parts=back
        )
        if driver.archive is not None and asked.kind is Start.RESUME and asked.rung is Rung.COPY:
            # An import does not change existing rows. Rows of a conversation with subagents cannot
            # be removed first. So the result of the import is checked.
            path = locate(driver, home, asked.session_id, directory)
            if path is None or not engine.copies.continued_by(driver, asked.session_id, path):
                raise CopyNotInPlace(asked.rung)
        engine.store.record(claim, [CopyRestored(session_id=asked.session_id, path=str(put))])
    if asked.rung is Rung.REPAIRED:
        put, aside = _install_repaired(engine, claim, driver, program, home, asked.session_id)
        edits = list(map(engine.redactor.text, asked.edits))
        engine.store.record(
            claim,
            [
                TranscriptMended(
                    session_id=asked.session_id, path=str(put), aside=aside, edits=edits
                )
            ],
        )
    if asked.rung in (Rung.CHECKPOINT, Rung.REPAIRED):
        # The conversation continues from the transcript that perdure has just put in place, so
        # perdure's own copy gets the same content.
        path = locate(driver, home, asked.session_id, engine.attempt_directory(claim))
        if path is not None:
            engine.copies.take(driver, asked.session_id, path, replace=True)


def _keeps_rows(driver: AgentDriver, program: Program, home: Path, session_id: str) -> bool:
    """Return whether the agent's archive has the conversation and cannot remove it, because the
    conversation has subagents. Rows newer than the checkpoint would then remain after an import."""
    archive = driver.archive
    if archive is None or archive.read(home, session_id) is None:
        return False
    return archive.removal(program, home, session_id) is None


def _session_in_use(
    store: RunStore,
    context: FillRules,
    claim: Claim,
    driver: AgentDriver,
    asked: Continuation,
    live: Session,
    own_id: str,
    now: int,
) -> Session | None:
    """Return the scope's session if the attempt continues it. Otherwise store the session as
    retired, with the reason, and return None."""
    if asked.expired:
        expired = SessionExpired(
            session_id=live.id, expired=asked.expired, continuation=str(asked.kind)
        )
        store.record(claim, [expired])
    if asked.kind is Start.RESUME or live.id == own_id:
        return live
    if asked.rolls_over:
        gone = rolled_over(context, driver, claim.run, live, asked.reason)
    else:
        gone = []
    store.record(
        claim, gone, replace(live, state=SessionState.RETIRED, cause=asked.reason, updated=now)
    )
    return None


def _announced(
    claim: Claim,
    home: Path,
    asked: Continuation,
    own_id: str,
    now: int,
    total: Usage,
    lifetime_s: float,
) -> Session:
    """Return a session for the scope's new conversation, with the id that the agent will be
    given."""
    run = claim.run
    assert run.workspace is not None
    return Session(
        key=SessionKey(run.spec.agent, run.scope),
        id=own_id,
        state=SessionState.PINNED,
        created=now,
        updated=now,
        cwd=str(Path(run.workspace.path)),
        home=str(home),
        parent=parent_of(asked),
        total=total,
        lifetime_s=lifetime_s,
    )


def _place_files(
    store: RunStore, environ: Mapping[str, str], state: Path, claim: Claim, *, fresh: bool
) -> None:
    """Put the task's files into the workdir. `fresh`: whether the workdir was just created."""
    run = claim.run
    assert run.workspace is not None
    contexts = []
    for context in store.contexts(run.id):
        if context.version <= run.context_version:
            contexts.append(context)
    if all(context.given == NOTHING_GIVEN for context in contexts):
        return
    from perdure.workspace.task_files import Contents, FilePlace, place

    records = store.run_events(run.id)
    contexts = counting(contexts, records)
    at = FilePlace(
        workdir=Path(run.workspace.path),
        backups=state / "backups" / run.id,
        contents=Contents(state),
        environ=environ,
        token=run.id,
        fresh=fresh,
    )
    place(at, contexts, records, lambda events: store.record(claim, events))


def parent_of(asked: Continuation) -> str:
    """Return the id of the conversation that the new one is forked from or replaces; empty if there
    is no such conversation."""
    if asked.kind is Start.FORK:
        return asked.session_id
    return asked.lost_session_id


def total_of(driver: AgentDriver, before: Snapshot | None) -> Usage:
    """Return the total usage that the CLI had counted before the launch; zero if the CLI keeps no
    such total. Before a fork, `before` is the parent's transcript, so the parent's total is
    returned."""
    if before is None or not driver.abilities.cumulative_usage:
        return Usage()
    with Path(before.path).open("rb") as file:
        return driver.total(file.read(before.size))


def _prompt_marks(
    driver: AgentDriver, asked: Continuation, before: Snapshot | None
) -> frozenset[str] | None:
    """Return the fingerprints of the prompts in the transcript that replaced the agent's own.
    Return None if the agent's own transcript is used."""
    if before is None or asked.rung not in PUT_BACK:
        return None
    return frozenset(prompts_since(driver, Path(before.path), None))


def _turn_messages(driver: AgentDriver, before: Snapshot | None) -> Sequence[str]:
    """Return the messages that agents received during their turns, as the transcript `before` has
    them."""
    if before is None or not isinstance(driver, TakesMessages):
        return ()
    return driver.messages(Path(before.path).read_bytes())


def _came_from(driver: AgentDriver, home: Path, asked: Continuation, live: Session | None) -> str:
    """Return the directory in which the conversation was used until now; empty for a new
    conversation."""
    if asked.kind is Start.FORK:
        return next((found.cwd for found in driver.conversations(home, 1, asked.session_id)), "")
    if live is not None and asked.kind is Start.RESUME:
        return live.cwd
    return ""


def _install_repaired(
    engine: Engine, claim: Claim, driver: AgentDriver, program: Program, home: Path, session_id: str
) -> tuple[Path, list[str]]:
    """Put the repaired copy where the agent finds it. Return the copy's path, and the paths to
    which the replaced files were moved. Raises CopyNotInPlace."""
    from perdure.engine.attempt.repair import REPAIRED_COPY, make_room, run_import

    assert claim.run.workspace is not None
    directory = engine.attempt_directory(claim)
    mended = directory / REPAIRED_COPY
    content = mended.read_bytes()
    if driver.archive is None:
        put = engine.copies.put_repaired(
            driver, session_id, home, Path(claim.run.workspace.path), content
        )
    else:
        restoring = directory / f"restore-{Rung.REPAIRED}"
        env = agent_environment(engine.environ, driver, claim.run)
        there = driver.archive.read(home, session_id)
        if there is not None:
            removal = driver.archive.removal(program, home, session_id)
            if removal is None:
                raise CopyNotInPlace(Rung.REPAIRED)
            # If perdure is killed after the removal and before the import, the next attempt finds
            # this copy.
            engine.copies.take(driver, session_id, mended, replace=True)
            make_room(env, claim.run, removal, there, restoring)
        command = driver.archive.restore(program, session_id, content)
        run_import(env, claim.run, command, restoring)
        put = home, []
    mended.unlink()
    return put


def _turns_since_lost(store: RunStore, claim: Claim, live: Session | None) -> int:
    """Return the number of prompts that other programs or people sent during or after the previous
    attempt, if that attempt was lost. Return 0 if a supervisor saw the attempt's end."""
    ended = [each for each in store.attempts(claim.run.id) if each.number < claim.attempt]
    if live is None or not ended or ended[-1].session_id != live.id or ended[-1].receipt is None:
        return 0
    return ended[-1].receipt.evidence.turns_since


def _turns_between(driver: AgentDriver, live: Session | None, before: Snapshot | None) -> int:
    """Return the number of prompts that other programs or people sent after perdure last saw the
    conversation."""
    if (
        live is None
        or before is None
        or live.snapshot is None
        or not begins_with(driver, Path(before.path), live.snapshot)
    ):
        return 0
    count = 0
    for mark in prompts_since(driver, Path(before.path), live.snapshot):
        count += mark not in live.prompts
    return count
