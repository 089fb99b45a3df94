"""Rebuilds lost session records. The ids and states of the conversations are taken from the
attempts and the journal of runs.

Called by an attempt that finds no session although earlier attempts had one, and by
`Sessions.rebuild`. This module only reads and decides; the caller stores the records. A rebuilt
record only means that the conversation existed. As for every session, the next attempt checks
whether the agent's transcript or perdure's copy can be used.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from msgspec import Struct, field
from msgspec.structs import replace

from perdure.agents.transcripts import Copies
from perdure.engine.prompt_file import kept_prompt_fingerprint
from perdure.model import RESET, Attempt, Session, SessionKey, SessionState, Start, TaskRun, Verdict
from perdure.model.events import (
    CheckpointRestored,
    Record,
    RunReset,
    RunResetUndone,
    SessionRetired,
)
from perdure.protocols import AgentDriver, RunStore, SessionStore

HISTORY = 1_000_000
TAKEN_IN = "session:"
"""Prefix of the scope of a run that continues a conversation begun without perdure. It is followed
by the conversation's id."""


class RebuildStore(RunStore, SessionStore, Protocol):
    """The store methods that rebuilding needs: those for runs and those for sessions."""


def missing(
    store: RebuildStore,
    key: SessionKey,
    driver: AgentDriver,
    home: Path,
    copies: Copies,
    usual_s: float = 0.0,
) -> tuple[Session, ...]:
    """Return, without storing them, the session records of the key that are missing in the store,
    retired ones first. `usual_s`: default lifetime of a session, in seconds."""
    there = store.lineage(key)
    known = {session.id for session in there}
    told = _SessionHistory(key, str(home))
    for run in store.runs_of(key):
        attempts = []
        for attempt in store.attempts(run.id):
            if attempt.flags.get("agent", key.agent) == key.agent:
                attempts.append(attempt)
        used = {attempt.session_id for attempt in attempts} - {""}
        if used <= known and not key.scope.startswith(TAKEN_IN):
            continue
        told.run(run, attempts, store.history(run.id, limit=HISTORY))
        restored = []
        for record in store.history(run.id, limit=HISTORY):
            if isinstance(record.event, CheckpointRestored):
                restored.append(record.event)
        if restored and not restored[-1].files_only and restored[-1].attempts >= run.attempt:
            checkpoints = {each.number: each for each in reversed(store.checkpoints(run.id))}
            checkpoint = checkpoints.get(restored[-1].number)
            told.reopen_session(checkpoint.session_id if checkpoint is not None else "")
    lost = [session for session in told.sessions.values() if session.id not in known]
    live = [session for session in there if session.state is not SessionState.RETIRED]
    if lost and not live and told.live == lost[-1].id:
        last = lost[-1].id
    else:
        last = ""
    found = []
    for session in lost:
        if session.id == last:
            found.append(_measured(session, driver, copies).used(session.updated, usual_s))
        else:
            found.append(_left(session, told.causes.get(session.id, "")))
    return tuple(found)


def _left(session: Session, cause: str) -> Session:
    return replace(
        session, state=SessionState.RETIRED, cause=cause or "another conversation replaced it"
    )


def _measured(session: Session, driver: AgentDriver, copies: Copies) -> Session:
    """Return the session with the total number of tokens that the CLI has counted. It is read from
    perdure's copy of the transcript; without a copy, the session is returned unchanged."""
    try:
        return replace(session, total=driver.total(copies.of(driver.name, session.id).read_bytes()))
    except OSError:
        return session


class _SessionHistory(Struct):
    """Collects what the attempts and journals of a key's runs contain about its conversations. The
    runs are added oldest first."""

    key: SessionKey
    home: str
    sessions: dict[str, Session] = field(default_factory=dict)
    """Sessions found so far, by id. The one used last is at the end."""
    causes: dict[str, str] = field(default_factory=dict)
    live: str = ""

    def run(self, run: TaskRun, attempts: Sequence[Attempt], records: Sequence[Record]) -> None:
        """Add one run: first its attempts, then the records in its journal about sessions that were
        retired, reset or restored."""
        if self.key.scope.startswith(TAKEN_IN) and not self.sessions:
            self._seen(self.key.scope.removeprefix(TAKEN_IN), run.created, SessionState.CONFIRMED)
        counted: set[str] = set()
        for attempt in attempts:
            if attempt.session_id:
                self._attempt(run, attempt, counted)
        for record in records:
            match record.event:
                case SessionRetired(session_id=left, cause=cause):
                    self._retire(left, cause)
                case RunReset(sessions=ids):
                    for each in ids:
                        self._retire(each, RESET)
                case RunResetUndone(sessions=ids):
                    for each in ids:
                        self.causes.pop(each, None)
                        self.live = each
                case _:
                    pass

    def reopen_session(self, session_id: str) -> None:
        """Make this session the live one again. Called if a person restored a checkpoint that
        contains the session's conversation."""
        if session_id in self.sessions:
            self.causes.pop(session_id, None)
            self.live = session_id
            self.sessions[session_id] = replace(self.sessions.pop(session_id), snapshot=None)

    def _retire(self, session_id: str, cause: str) -> None:
        self.causes[session_id] = cause
        self.live = "" if self.live == session_id else self.live

    def _seen(self, session_id: str, at: int, state: SessionState) -> Session:
        self.live = session_id
        found = self.sessions.pop(session_id, None)
        found = found or Session(
            key=self.key, id=session_id, state=state, created=at, updated=at, home=self.home
        )
        self.sessions[session_id] = found
        return found

    def _attempt(self, run: TaskRun, attempt: Attempt, counted: set[str]) -> None:
        session, asked = (
            self._seen(attempt.session_id, attempt.started, SessionState.PINNED),
            attempt.continuation,
        )
        if attempt.receipt is not None:
            seen = attempt.receipt.evidence
        else:
            seen = None
        heard = bool(seen and seen.prompt_found)
        broken = attempt.receipt is not None and attempt.receipt.verdict is Verdict.BROKEN
        if asked is not None:
            if asked.kind is Start.FORK:
                parent = asked.session_id
            else:
                parent = asked.lost_session_id
        else:
            parent = ""
        workdir = run.workspace.path if run.workspace else ""
        self.sessions[session.id] = replace(
            session,
            state=SessionState.CONFIRMED if heard else session.state,
            updated=attempt.ended or attempt.started,
            cwd=workdir if heard else session.cwd,
            parent=session.parent or (parent if parent != session.id else ""),
            context_version=attempt.context_version if heard else session.context_version,
            attempts=session.attempts + bool(seen and seen.answered),
            total=session.total + attempt.usage,
            snapshot=(seen.after if seen is not None and not broken else None) or session.snapshot,
            fill=attempt.fill or session.fill,
            prompts=(*session.prompts, *filter(None, [kept_prompt_fingerprint(attempt)])),
            tasks=session.tasks + (heard and session.id not in counted),
        )
        counted |= {session.id} if heard else set()
