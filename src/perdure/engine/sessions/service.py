"""Operations on session records, for programs that schedule tasks. Called by the library
(`Runner.sessions`) and by `perdure sessions`.

Every change requires that the record is still as it was read. If the record was changed meanwhile,
or an attempt is running in its scope, Conflict is raised and nothing changes. `get` may be answered
from the session cache, if there is one; every other method reads the store.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from perdure.agents.transcripts import Copies
from perdure.engine.sessions.rebuild import RebuildStore, missing
from perdure.engine.sessions.statistics import Statistics, statistics
from perdure.errors import Conflict, NotFound, UsageError
from perdure.model import Session, SessionKey, SessionState
from perdure.protocols import AgentDriver

RESERVED = "reserved-"
"""Prefix of a temporary session id. It is used until the agent has chosen the conversation's id."""
NO_END = 2**53


def plan_scope(plan: str, strand: str = "main") -> str:
    """Return the scope of one strand of a plan, that is, of the tasks that share one
    conversation."""
    return f"plan:{plan}/{strand}"


class Rebuilt(Struct, frozen=True):
    """The lost session records of one scope, rebuilt."""

    key: SessionKey
    sessions: tuple[Session, ...]
    problem: str = ""
    """Reason why the rebuilt records could not be stored, such as a running attempt in the scope;
    empty if they were stored."""


class Sessions(Struct, frozen=True, kw_only=True):
    """Reads and changes the session records of one store."""

    store: RebuildStore
    driver: Callable[[str], AgentDriver]
    home: Callable[[AgentDriver], Path]
    copies: Copies
    lifetime_s: float = 0.0
    """Default lifetime of new sessions, in seconds; 0 if they never expire."""

    def create(
        self, agent: str, scope: str, *, cwd: str = "", lifetime_s: float | None = None
    ) -> Session:
        """Create a session for future runs with this agent and scope, and return it. The first run
        begins the session's conversation. For a plan, the scope is `plan_scope(plan, strand)`.
        Raises UsageError for an empty scope, Conflict if the scope has a live session, AgentMissing
        for an unknown agent."""
        if not scope:
            raise UsageError(
                "a session needs a scope", "plan_scope(plan), or any text that its runs will share"
            )
        driver, now = self.driver(agent), self.store.now()
        own = str(uuid.uuid4())
        session = Session(
            key=SessionKey(agent, scope),
            id=own if driver.abilities.choose_id else RESERVED + own,
            state=SessionState.PINNED,
            created=now,
            updated=now,
            cwd=cwd,
            home=str(self.home(driver)),
            lifetime_s=_seconds(self.lifetime_s if lifetime_s is None else lifetime_s),
        )
        return self._store(session.used(now))

    def get(self, agent: str, scope: str) -> Session | None:
        """Return the live session of a scope, or None."""
        return self.store.look_up(SessionKey(agent, scope))

    def lineage(self, agent: str, scope: str) -> tuple[Session, ...]:
        """Return all sessions that a scope had, oldest first, including retired ones."""
        return tuple(self.store.lineage(SessionKey(agent, scope)))

    def update(self, agent: str, scope: str, native_id: str) -> Session:
        """Replace the session's id by the id that the agent's CLI chose, and return the session.
        The record of the old id is kept in the lineage as retired. Raises NotFound, and Conflict if
        the conversation with the old id has already begun."""
        session = self._live(agent, scope)
        if not native_id or native_id == session.id:
            return session
        if session.attempts:
            raise Conflict(
                f"The conversation {session.id} has started: its id cannot change",
                f"perdure sessions show {session.id}",
            )
        now = self.store.now()
        new = replace(session, id=native_id, revision=0, state=SessionState.PINNED).used(now)
        old = replace(
            session,
            state=SessionState.RETIRED,
            cause=f"the agent named it {native_id}",
            updated=now,
        )
        return self._store(old, new)

    def count_task(self, agent: str, scope: str) -> Session:
        """Count one more task for the session, and restart its lifetime. Meant for agents that
        perdure does not run itself, because attempts count their own tasks. Return the session.
        Raises NotFound, Conflict."""
        session = self._live(agent, scope)
        return self._store(replace(session, tasks=session.tasks + 1).used(self.store.now()))

    def extend(self, agent: str, scope: str, lifetime_s: float | None = None) -> Session:
        """Restart the session's lifetime, and return the session. `lifetime_s`: the new lifetime in
        seconds, where 0 means that the session never expires. Without it, the length of the
        lifetime does not change. Raises NotFound, Conflict."""
        session = self._live(agent, scope)
        if lifetime_s is None:
            length = session.lifetime_s
        else:
            length = _seconds(lifetime_s)
        return self._store(replace(session, lifetime_s=length).used(self.store.now()))

    def close(self, agent: str, scope: str, cause: str = "closed") -> Session:
        """Retire the session, and return it. The next run of the scope begins a new conversation,
        and reports that the retired one was closed. Raises NotFound, Conflict."""
        session = self._live(agent, scope)
        return self._store(
            replace(
                session,
                state=SessionState.RETIRED,
                cause=cause or "closed",
                updated=self.store.now(),
            )
        )

    def statistics(
        self, *, since: int = 0, until: int = NO_END, agent: str = "", scope: str = ""
    ) -> Statistics:
        """Return the statistics of the attempts that ended in a period, given in ms since 1970;
        `until` is not included. `agent`, `scope`: include only attempts with this agent or scope.
        """
        return statistics(self.store.ended(since, until, agent, scope))

    def rebuild(self) -> tuple[Rebuilt, ...]:
        """Rebuild lost session records from the attempts and perdure's transcript copies, store
        them, and return them by scope. Existing records are not changed."""
        done = []
        for key in dict.fromkeys(SessionKey(run.agent, run.scope) for run in self.store.placed()):
            driver = self.driver(key.agent)
            found = missing(
                self.store, key, driver, self.home(driver), self.copies, self.lifetime_s
            )
            if not found:
                continue
            try:
                self.store.amend_sessions(found)
                done.append(Rebuilt(key, found))
            except Conflict as busy:
                done.append(Rebuilt(key, (), str(busy)))
        return tuple(done)

    def _live(self, agent: str, scope: str) -> Session:
        found = self.store.session(SessionKey(agent, scope))
        if found is None:
            raise NotFound(f"{agent} has no session in the scope {scope!r}", "perdure sessions")
        return found

    def _store(self, *sessions: Session) -> Session:
        self.store.amend_sessions(sessions)
        stored = self.store.session(sessions[-1].key)
        if stored is not None:
            return stored
        return sessions[-1]


def _seconds(value: float) -> float:
    if not 0 <= value < NO_END / 1000:
        raise UsageError(f"a lifetime of {value} s is invalid", "seconds; 0: it never expires")
    return value
