"""How an attempt starts: workspace, conversation, decision, prompt; stored, then launched.

Everything up to `begin` can be done again at any time; after `begin` the attempt's start is known for ever, and only then is
a process started. `reopen_attempt` finds an attempt again that another supervisor had started.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Sequence
from dataclasses import field, replace
from pathlib import Path
from types import TracebackType

from perdure import process
from perdure.attempt import launching
from perdure.attempt.deciding import NotStarted, decide
from perdure.attempt.drift import drift, ground_of
from perdure.attempt.engine import HISTORY, Engine
from perdure.attempt.filling import rolled_over
from perdure.attempt.flags import flags_of
from perdure.attempt.handing_over import ask, told_before
from perdure.attempt.mapping import map_for
from perdure.attempt.putting_back import put_back, take_in
from perdure.attempt.repairing import MENDED
from perdure.attempt.telling import story_of
from perdure.attempt.warming import Idle
from perdure.continuation.prompting import prompt
from perdure.errors import InUse, LostLease, PerdureError
from perdure.events import CopyRestored, Record, SessionExpired, SessionsRebuilt, TranscriptMended
from perdure.lateclass import dataclass
from perdure.model import (
    NOTHING_GIVEN,
    PUT_BACK,
    Attempt,
    Claim,
    Continuation,
    Launch,
    Outcome,
    OutcomeKind,
    Program,
    Rung,
    Session,
    SessionKey,
    SessionState,
    Snapshot,
    Start,
    Usage,
    Workspace,
)
from perdure.placement import planned_since
from perdure.protocols import AgentDriver, Begun
from perdure.sessions import missing
from perdure.taskfiles import Contents, Place, place
from perdure.transcripts import begins_with, fingerprint, locate, prompts_since, snapshot

BRIEFLY_S = 30.0


@dataclass(slots=True, kw_only=True)
class Opened:
    """An attempt on its way: everything that watching and closing need."""

    claim: Claim
    attempt: Attempt
    driver: AgentDriver
    workspace: Workspace
    home: Path
    session: Session | None
    process: process.Process | None
    adopted: bool = False
    lock_fd: int | None = None
    lifetime_s: float = 0.0
    """Of a session that the agent names only later."""
    launch: Launch | None = None
    env: dict[str, str] = field(default_factory=dict)
    idle: Idle | None = None
    """The kept agent whose turn this attempt is."""

    def __enter__(self) -> Opened:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.lock_fd is not None:
            os.close(self.lock_fd)
            self.lock_fd = None
        if self.idle is not None:
            # Whoever takes the attempt over finds an agent that ends with its turn.
            self.idle.kept.leave()

    @property
    def directory(self) -> Path:
        return Path(self.attempt.directory)

    def transcript(self, session_id: str) -> Path | None:
        """The file to judge a conversation by, as it is now."""
        return locate(self.driver, self.home, session_id, self.directory)

    @property
    def asked(self) -> Continuation:
        assert self.attempt.continuation is not None
        return self.attempt.continuation


def open_attempt(engine: Engine, claim: Claim) -> Opened:
    """Prepares, decides, stores and launches. Raises NotStarted, or a PerdureError of the workspace or the driver."""
    with engine.homes.still():
        return _open(engine, claim)


def _locked(engine: Engine, place: Workspace) -> int:
    """The workdir's lock. Who has it for a moment, to commit or to look, is waited for: that is no conflict. Raises InUse."""
    end = time.monotonic() + BRIEFLY_S
    while True:
        try:
            return engine.workspaces.lock(place, at_work=True)
        except InUse as use:
            if not use.brief or time.monotonic() >= end:
                raise
            time.sleep(0.05)


def _open(engine: Engine, claim: Claim) -> Opened:
    claim = _brought_here(engine, claim)
    run = claim.run
    assert run.workspace is not None
    driver = engine.driver(run.spec.agent)
    program = driver.locate(engine.environ)
    engine.homes.check(run.spec.agent)
    home = driver.home({**engine.environ, **run.spec.env})
    if (moved := engine.moved_to(run.id)).exists():
        url = moved.read_text(encoding="utf-8").strip()
        raise NotStarted(
            Outcome(
                kind=OutcomeKind.CONFIG_ERROR,
                detail=f"{run.name} was moved to {url}; perdure move {run.origin or run.id} --from {url} --name NEW takes it up here again",
            )
        )
    if engine.publisher is not None and (refused := engine.publisher.refused(run)):
        raise NotStarted(Outcome(kind=OutcomeKind.CONFIG_ERROR, detail=refused))
    lock_fd = _locked(engine, run.workspace)
    idle: Idle | None = None
    try:
        lineage = _lineage(engine, claim, driver, home)
        live = next((session for session in lineage if session.state is not SessionState.RETIRED), None)
        idle = engine.warm.borrow(run.workspace, live.id if live is not None else "") if engine.warm is not None else None
        prepared = engine.workspaces.prepare(run.workspace, run.spec.agent)
        prepared = replace(prepared, env=prepared.env | engine.committer(run))
        continuation = decide(engine, claim, driver, home, live, lineage, idle)
        lifetime_s = next((session.lifetime_s for session in reversed(lineage)), 0.0)
        if idle is not None and continuation.rolls_over:
            idle.kept.end()
            idle = None
        if continuation.rolls_over and live is not None and told_before(engine.store.history(run.id, limit=HISTORY), live.id) is None:
            own = {**engine.agent_environment(driver, run), **prepared.env}
            live = ask(engine, claim, driver, program, home, live, own, lock_fd)
        opened = _begin(engine, claim, driver, program, home, continuation, live, lifetime_s, fresh=prepared.created)
        opened.lock_fd = lock_fd
        lent, idle = idle, None
        launching.start(engine, opened, program, prepared.env, lent)
    except BaseException:
        if idle is not None:
            idle.kept.end()
        os.close(lock_fd)
        raise
    return opened


def _lineage(engine: Engine, claim: Claim, driver: AgentDriver, home: Path) -> Sequence[Session]:
    """The conversations of the run's scope; from the store itself, never from a cache. Records that were lost are made again."""
    key = SessionKey(claim.run.spec.agent, claim.run.scope)
    lineage = engine.store.lineage(key)
    if any(session.state is not SessionState.RETIRED for session in lineage):
        return lineage
    lost = missing(engine.store, key, driver, home, engine.copies, engine.session_lifetime_s)
    if not lost:
        return lineage
    for session in lost:
        engine.store.put_session(session)
    engine.store.record(claim, [SessionsRebuilt(sessions=tuple(session.id for session in lost))])
    return engine.store.lineage(key)


def _brought_here(engine: Engine, claim: Claim) -> Claim:
    """The claim, with the run's files on this host. A run that never began works where this host would have put it."""
    run = claim.run
    if why := engine.kept_from(run):
        raise NotStarted(Outcome(kind=OutcomeKind.WRITER_CONFLICT, detail=why))
    if engine.elsewhere(run):
        assert engine.publisher is not None
        try:
            return replace(claim, run=engine.publisher.fetch(claim))
        except LostLease:
            raise
        except (PerdureError, OSError) as error:
            detail = f"its workdir and conversation could not be brought here from {run.host_name}: {error}"
            raise NotStarted(Outcome(kind=OutcomeKind.WRITER_CONFLICT, detail=detail)) from error
    if engine.host.id and not run.host and run.workspace is not None:
        place = engine.workspaces.plan(run.spec, run.name, Path("/"))
        return replace(claim, run=replace(run, workspace=replace(place, base=run.workspace.base)))
    return claim


def reopen_attempt(engine: Engine, claim: Claim) -> Opened | None:
    """The attempt of a dead supervisor, with its process if one was started; None if it never began."""
    attempt = next(a for a in engine.store.attempts(claim.run.id) if a.number == claim.attempt)
    if attempt.continuation is None or not attempt.directory:
        return None
    run = claim.run
    assert run.workspace is not None
    driver = engine.driver(run.spec.agent)
    return Opened(
        claim=claim,
        attempt=attempt,
        driver=driver,
        workspace=run.workspace,
        home=driver.home({**engine.environ, **run.spec.env}),
        session=engine.store.session(SessionKey(run.spec.agent, run.scope)),
        process=process.find(Path(attempt.directory)),
        adopted=True,
    )


def _begin(
    engine: Engine,
    claim: Claim,
    driver: AgentDriver,
    program: Program,
    home: Path,
    asked: Continuation,
    live: Session | None,
    lifetime_s: float,
    *,
    fresh: bool,
) -> Opened:
    """Everything up to the launch. `lifetime_s`: of the scope's sessions, where it has one of its own; `fresh`: the workdir was made
    anew."""
    run = claim.run
    assert run.workspace is not None
    cwd = Path(run.workspace.path)
    key = SessionKey(run.spec.agent, run.scope)
    now = engine.store.now()
    directory = engine.attempt_directory(claim)
    records = engine.store.history(run.id, limit=HISTORY)
    ground = ground_of(engine, run, asked, records)
    if asked.rung in (Rung.COPY, Rung.CHECKPOINT):
        back = ground.checkpoint.conversation if ground.back and ground.checkpoint is not None else ()
        place = put_back(engine, run, driver, program, home, asked.session_id, directory / "restore", parts=back)
        engine.store.record(claim, [CopyRestored(session_id=asked.session_id, path=str(place))])
    if asked.rung is Rung.REPAIRED:
        place, aside = _put_mended(engine, claim, driver, program, home, asked.session_id)
        edits = [engine.redactor.text(edit) for edit in asked.edits]
        engine.store.record(claim, [TranscriptMended(session_id=asked.session_id, path=str(place), aside=aside, edits=edits)])
    own_id = asked.fork_id if asked.kind is Start.FORK else asked.session_id
    if live is not None and asked.expired:
        expired = SessionExpired(session_id=live.id, expired=asked.expired, continuation=str(asked.kind))
        engine.store.record(claim, [expired])
    if live is not None and asked.kind is not Start.RESUME and live.id != own_id:
        gone = rolled_over(engine, driver, run, live, asked.reason) if asked.rolls_over else []
        engine.store.record(claim, gone, replace(live, state=SessionState.RETIRED, cause=asked.reason, updated=now))
        live = None
    goes_on = asked.kind in (Start.RESUME, Start.FORK)
    before = snapshot(driver, locate(driver, home, asked.session_id, directory)) if goes_on else None
    if asked.kind is Start.FORK:
        engine.copies.take_line(driver, home, asked.session_id, directory)
    seen = drift(engine, run, ground, planned_since(records))
    if seen is not None:
        engine.store.record(claim, [seen])
    _place_files(engine, claim, fresh=fresh)
    records = [*records, *engine.store.history(run.id, after=records[-1].seq)]
    between, left = _turns_between(driver, live, before), _came_from(driver, home, asked, live)
    heard = _heard(driver, asked, before)
    story = story_of(engine, claim, asked, live, between, left, heard, records=records, ground=ground, drift=seen)
    text = prompt(asked, replace(story, map=map_for(engine, claim, driver, asked, story.contexts)))
    session = live
    if session is None and own_id:
        session = Session(
            key=key,
            id=own_id,
            state=SessionState.PINNED,
            created=now,
            updated=now,
            cwd=str(cwd),
            home=str(home),
            parent=parent_of(asked),
            total=total_of(driver, before) if asked.kind is Start.FORK else Usage(),
            lifetime_s=lifetime_s,
        )
    if session is not None:
        session = replace(session, prompts=(*session.prompts, fingerprint(text))).used(now, engine.session_lifetime_s)
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    (directory / "prompt.md").write_text(text, encoding="utf-8", errors="surrogatepass")
    attempt = engine.store.begin(
        claim,
        Begun(
            continuation=asked,
            directory=str(directory),
            prompt_sha256=hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest(),
            flags=flags_of(engine, claim, driver),
            agent_version=program.version,
            before=before,
            session=session,
            workspace=run.workspace,
        ),
    )
    return Opened(
        claim=claim,
        attempt=attempt,
        driver=driver,
        workspace=run.workspace,
        home=home,
        session=session,
        process=None,
        lifetime_s=lifetime_s,
    )


def _place_files(engine: Engine, claim: Claim, *, fresh: bool) -> None:
    """Brings the task's files into the workdir, if there are any. `fresh`: it was made anew."""
    run = claim.run
    assert run.workspace is not None
    contexts = [context for context in engine.store.contexts(run.id) if context.version <= run.context_version]
    if all(context.given == NOTHING_GIVEN for context in contexts):
        return
    records: list[Record] = []
    while page := engine.store.history(run.id, after=records[-1].seq if records else 0, limit=10_000):
        records += page
    at = Place(
        workdir=Path(run.workspace.path),
        backups=engine.state / "backups" / run.id,
        contents=Contents(engine.state),
        environ=engine.environ,
        token=run.id,
        fresh=fresh,
    )
    place(at, contexts, records, lambda events: engine.store.record(claim, events))


def parent_of(asked: Continuation) -> str:
    """The conversation that a new one comes from: forked, or stands in for."""
    return asked.session_id if asked.kind is Start.FORK else asked.lost_session_id


def total_of(driver: AgentDriver, before: Snapshot | None) -> Usage:
    """The CLI's running total as it was before the launch: what a fork begins with, where its count goes on from its parent's."""
    if before is None:
        return Usage()
    with Path(before.path).open("rb") as file:
        return driver.total(file.read(before.size))


def _heard(driver: AgentDriver, asked: Continuation, before: Snapshot | None) -> frozenset[str] | None:
    """The marks of the prompts in a transcript that was put in place of the agent's own; None where the own one goes on."""
    if before is None or asked.rung not in PUT_BACK:
        return None
    return frozenset(prompts_since(driver, Path(before.path), None))


def _came_from(driver: AgentDriver, home: Path, asked: Continuation, live: Session | None) -> str:
    """The directory in which the conversation that goes on was until now."""
    if asked.kind is Start.FORK:
        return next((found.cwd for found in driver.conversations(home, 1, asked.session_id)), "")
    return live.cwd if live is not None and asked.kind is Start.RESUME else ""


def _put_mended(engine: Engine, claim: Claim, driver: AgentDriver, program: Program, home: Path, session_id: str) -> tuple[Path, list[str]]:
    """Puts the mended copy where the agent looks. Returns the place, and where what lay there is now."""
    assert claim.run.workspace is not None
    directory = engine.attempt_directory(claim)
    mended = directory / MENDED
    content = mended.read_bytes()
    if driver.archive is None:
        put = engine.copies.put_mended(driver, session_id, home, Path(claim.run.workspace.path), content)
    else:
        take_in(engine, claim.run, driver, driver.archive.restore(program, session_id, content), directory / "restore")
        put = home, []
    mended.unlink()
    return put


def _turns_between(driver: AgentDriver, live: Session | None, before: Snapshot | None) -> int:
    """Prompts that somebody else put into the conversation since perdure last saw it."""
    if live is None or before is None or live.snapshot is None or not begins_with(driver, Path(before.path), live.snapshot):
        return 0
    return sum(mark not in live.prompts for mark in prompts_since(driver, Path(before.path), live.snapshot))
