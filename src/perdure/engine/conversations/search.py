"""Finds every conversation that can be continued: those that perdure has records of, and those on
disk that were begun without perdure. Only reads.

`ConversationIndex` is used by `perdure sessions`, by the picker of `perdure resume`, and to find a
conversation by its id. `live_key` finds the session record that a person names, and `report`
renders it, for `perdure sessions create | extend | close` and the API. The operations on the record
are in `perdure.engine.sessions`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct
from msgspec.structs import replace

from perdure.agents.transcripts import Copies
from perdure.engine.attempt.engine import EngineStore
from perdure.engine.sessions.service import Sessions
from perdure.errors import Conflict, NotFound, UsageError
from perdure.model import Conversation, Session, SessionKey, SessionState, TaskRun, Usage
from perdure.model.durations import duration
from perdure.model.session_reports import SessionRecord
from perdure.protocols import AgentDriver, SessionStore, SpokenMessage
from perdure.rules.run_titles import role_of_run, title_of, title_of_run

if TYPE_CHECKING:
    from perdure.model.session_reports import SessionOfList

LOOKED_THROUGH = 500
PREFIX = 4
"""Minimum length of an id's beginning with which a person may name a conversation, in
characters."""
TAIL = 512 * 1024
"""Number of bytes that are read from the end of a transcript for a preview."""


class ConversationEntry(Struct, frozen=True, kw_only=True):
    """A conversation as a list shows it. It has the conversation on disk, perdure's session record,
    or both."""

    agent: str
    id: str
    updated: int
    conversation: Conversation | None = None
    reader: str = ""
    """Name of the agent whose driver found the conversation on disk; empty if it is not on disk. It
    differs from `agent` if the conversation was begun over ACP."""
    session: Session | None = None
    run: TaskRun | None = None
    """Newest run that used the conversation."""
    cost_usd: float = 0.0
    """Cost of those attempts of `run` that used this conversation, in dollars."""
    cost_estimated: bool = False
    """Whether part of `cost_usd` is an estimate."""

    @property
    def cwd(self) -> str:
        """Return the directory in which the conversation would continue; empty if unknown."""
        if self.run is not None and self.run.workspace is not None:
            return self.run.workspace.path
        if self.conversation is not None and self.conversation.cwd:
            return self.conversation.cwd
        if self.session is not None:
            return self.session.cwd
        return ""

    @property
    def first(self) -> str:
        """Return the first prompt of the conversation. If the conversation is a fork that a run
        made, return the first prompt after the fork."""
        if self.run is not None and self.run.spec.forks:
            return self.run.spec.prompt
        if self.conversation is not None and self.conversation.first:
            return self.conversation.first
        if self.run is not None:
            return self.run.spec.prompt
        return ""

    @property
    def title(self) -> str:
        """Return a title of one line for lists: the title of the run or, without one, the beginning
        of the first prompt."""
        if self.run is not None and (self.run.spec.title or not self.first):
            return title_of_run(self.run)
        key = self.run.spec.key if self.run is not None else ""
        scope = self.session.key.scope if self.session is not None else ""
        return title_of("", self.first, key, scope)

    @property
    def role(self) -> str:
        if self.run is not None:
            return role_of_run(self.run)
        return ""

    @property
    def turns(self) -> int:
        """Return the number of prompts in the conversation; 0 if it is unknown."""
        if self.conversation is not None:
            return self.conversation.turns
        if self.session is not None and self.session.snapshot is not None:
            return self.session.snapshot.turns
        return 0

    @property
    def parent(self) -> str:
        """Return the id of the conversation from which this one was forked, or which this one
        replaced; empty if there is none."""
        if self.session is not None and self.session.parent:
            return self.session.parent
        if self.conversation is not None:
            return self.conversation.parent
        return ""

    @property
    def state(self) -> str:
        """Return the state of the session: `pinned`, `confirmed` or `retired`. Return `by hand` if
        perdure has no record of the conversation."""
        if self.session:
            return str(self.session.state)
        return "by hand"

    @property
    def on_disk(self) -> bool:
        return self.conversation is not None

    def report(self) -> SessionOfList:
        """Return the entry in the form that `--json` shows."""
        from perdure.model.session_reports import SessionOfList

        report = SessionOfList(
            id=self.id,
            agent=self.agent,
            state=self.state,
            cause="",
            parent=self.parent,
            run=None,
            run_state=None,
            scope=None,
            cwd=self.cwd,
            on_disk=self.on_disk,
            path="",
            turns=self.turns or None,
            first=self.first,
            title=self.title,
            link="",
            role=self.role,
            updated=self.updated,
            cost_usd=self.cost_usd,
            cost_estimated=self.cost_estimated,
        )
        if self.session is not None:
            report.cause = self.session.cause
            report.scope = self.session.key.scope
        if self.run is not None:
            report.run = self.run.name
            report.run_state = self.run.state
            report.link = self.run.spec.link
        if self.conversation is not None:
            report.path = self.conversation.path
        return report


class ConversationIndex(Struct, frozen=True):
    """Searches for conversations in the store and in the homes of the given agents."""

    store: EngineStore
    drivers: Mapping[str, AgentDriver]
    environ: Mapping[str, str]
    only: frozenset[str] = frozenset()
    """Names of the agents whose conversations are searched; if empty, those of all agents."""

    def entries(self, limit: int = 50, below: Path | None = None) -> list[ConversationEntry]:
        """Return the conversations, newest first. `below`: return only conversations whose
        directory, or whose run's repository, is this directory or inside it."""
        known = {session.id: session for session in reversed(_by_weight(self.store.sessions()))}
        found: dict[str, tuple[str, Conversation]] = {}
        for name, driver in self.drivers.items():
            listed = driver.conversations(self.home(name), LOOKED_THROUGH)
            found |= {each.id: (name, each) for each in listed}
        entries = [self._entry(key, found.get(key), known.get(key)) for key in {**found, **known}]
        wanted = []
        for entry in entries:
            if self._is_wanted(entry) and (below is None or _belongs(entry, below)):
                wanted.append(entry)
        wanted.sort(key=lambda entry: -entry.updated)
        return list(map(self._priced, wanted[:limit]))

    def find(self, ref: str) -> ConversationEntry:
        """Return the conversation that `ref` identifies. `ref`: its id, a unique prefix of the id,
        or the name of a run, which means the run's newest conversation. Raises NotFound, and
        UsageError if several match."""
        exact = self._exact(ref)
        if exact is not None and self._is_wanted(exact):
            return self._priced(exact)
        entries = self.entries(LOOKED_THROUGH * 4)
        if len(ref) >= PREFIX:
            near = [entry for entry in entries if entry.id.startswith(ref)]
        else:
            near = []
        if len(near) > 1:
            raise UsageError(
                f"{ref!r} is the beginning of several conversations",
                "one of: " + ", ".join(entry.id for entry in near[:5]),
            )
        near += [entry for entry in entries if entry.run is not None and entry.run.name == ref]
        if near:
            return near[0]
        raise NotFound(
            f"There is no conversation and no run {ref!r}", "perdure sessions, perdure ls"
        )

    def lineage(self, entry: ConversationEntry) -> list[ConversationEntry]:
        """Return the ancestors of a conversation, nearest first: its parent, the parent's parent,
        and so on. A conversation's parent is the one from which it was forked, or which it
        replaced."""
        line: list[ConversationEntry] = []
        while entry.parent and entry.parent not in [each.id for each in line]:
            found = self._exact(entry.parent)
            if found is None:
                break
            line.append(found)
            entry = found
        return line

    def home(self, agent: str) -> Path:
        return self.drivers[agent].home(self.environ)

    def spoken(self, entry: ConversationEntry, tail: int = TAIL) -> Sequence[SpokenMessage]:
        """Return the last messages of a conversation, read from the last `tail` bytes of its
        transcript; empty if the transcript does not exist. Of a conversation in an archive, return
        all messages."""
        if entry.reader not in self.drivers:
            return ()
        driver, home = self.drivers[entry.reader], self.home(entry.reader)
        if driver.archive is not None:
            return driver.messages_of(driver.archive.read(home, entry.id) or b"")
        path = driver.transcript(home, entry.id)
        try:
            with (path or Path("/nonexistent")).open("rb") as file:
                size = file.seek(0, 2)
                file.seek(max(0, size - tail))
                return driver.messages_of(file.read())
        except OSError:
            return ()

    def _exact(self, session_id: str) -> ConversationEntry | None:
        if session_id:
            sessions = _by_weight(self.store.sessions(session_id))
        else:
            sessions = []
        there = self._first(session_id) if session_id else None
        if sessions or there:
            return self._entry(session_id, there, sessions[0] if sessions else None)
        return None

    def _first(self, session_id: str) -> tuple[str, Conversation] | None:
        """Return the name of the agent that lists a conversation with this id, and the
        conversation; None if no agent lists it."""
        for name, driver in self.drivers.items():
            for each in driver.conversations(self.home(name), 1, session_id):
                return name, each
        return None

    def _is_wanted(self, entry: ConversationEntry) -> bool:
        return not self.only or entry.agent in self.only

    def _entry(
        self, session_id: str, found: tuple[str, Conversation] | None, session: Session | None
    ) -> ConversationEntry:
        reader, conversation = found or ("", None)
        updated = max(
            conversation.updated if conversation else 0, session.updated if session else 0
        )
        return ConversationEntry(
            agent=session.key.agent if session else reader,
            id=session_id,
            updated=updated,
            conversation=conversation,
            reader=reader,
            session=session,
            run=self.store.run_of(session.key) if session is not None else None,
        )

    def _priced(self, entry: ConversationEntry) -> ConversationEntry:
        if entry.run is None:
            return entry
        spent = Usage()
        for attempt in self.store.attempts(entry.run.id):
            if attempt.session_id == entry.id:
                spent += attempt.usage
        return replace(entry, cost_usd=spent.cost_usd, cost_estimated=spent.estimated)


def _by_weight(sessions: Sequence[Session]) -> list[Session]:
    """Return the sessions with the live ones before the retired ones. Within each of these groups
    the order does not change."""
    return sorted(sessions, key=lambda session: session.state is SessionState.RETIRED)


def _belongs(entry: ConversationEntry, below: Path) -> bool:
    place = entry.run.workspace if entry.run is not None else None
    of = [
        entry.cwd,
        entry.conversation.cwd if entry.conversation else "",
        place.repo if place else "",
    ]
    return any(Path(each) == below or below in Path(each).parents for each in of if each)


def records_of(
    store: EngineStore,
    driver: Callable[[str], AgentDriver],
    copies: Copies,
    environ: Mapping[str, str],
    session_lifetime_s: float,
) -> Sessions:
    """Return the session service for an engine's store and settings."""
    return Sessions(
        store=store,
        driver=driver,
        home=lambda driver: driver.home(environ),
        copies=copies,
        lifetime_s=session_lifetime_s,
    )


def live_key(store: SessionStore, index: ConversationIndex, ref: str) -> SessionKey:
    """Return the key of the live session that `ref` identifies. `ref`: a scope, a conversation's id
    or a prefix of it, or the name of a run.

    Raises NotFound, and Conflict if several sessions match, or if the conversation is not the live
    one of its scope.
    """
    scoped = []
    for agent in index.drivers:
        if store.session(key := SessionKey(agent, ref)) is not None:
            scoped.append(key)
    if len(scoped) > 1:
        agents = ", ".join(key.agent for key in scoped)
        raise Conflict(
            f"Several agents have a conversation in the scope {ref!r}: {agents}", "say which agent"
        )
    if scoped:
        return scoped[0]
    session = index.find(ref).session
    if session is None:
        raise NotFound(
            f"perdure has no record of {ref}: it was started manually",
            "perdure resume makes a run of it",
        )
    live = store.session(session.key)
    if live is None or live.id != session.id:
        raise Conflict(
            f"The conversation {session.id} is retired: "
            f"{session.cause or 'another one replaced it'}",
            "perdure sessions",
        )
    return session.key


def lifetime(text: str) -> float | None:
    """Return a lifetime in seconds from text that a person wrote; None for an empty text. Raises
    UsageError."""
    try:
        if text:
            return duration(text)
        return None
    except ValueError as error:
        raise UsageError(
            f"the lifetime {text!r}: {error}", "90s, 2h, 7d; 0: it never expires"
        ) from None


def report(session: Session) -> SessionRecord:
    """Return a session record in the form that `--json` and the API show."""
    return SessionRecord(
        schema_version=1,
        id=session.id,
        agent=session.key.agent,
        scope=session.key.scope,
        state=session.state,
        cause=session.cause,
        created=session.created,
        updated=session.updated,
        lifetime_s=session.lifetime_s,
        expires=session.expires or None,
        tasks=session.tasks,
    )
