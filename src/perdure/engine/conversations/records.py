"""Finds the session record that a person names, and renders it for display.

Called by `perdure sessions create | extend | close` and by the API. The operations themselves are
in `perdure.engine.sessions`.
"""

from __future__ import annotations

from perdure.engine.attempt import Engine
from perdure.engine.conversations.search import ConversationIndex
from perdure.engine.sessions import Sessions
from perdure.errors import Conflict, NotFound, UsageError
from perdure.model import Session, SessionKey
from perdure.model.durations import duration
from perdure.model.session_reports import SessionRecord
from perdure.protocols import SessionStore


def records_of(engine: Engine) -> Sessions:
    """Return the session service for an engine's store and settings."""
    return Sessions(
        store=engine.store,
        driver=engine.driver,
        home=lambda driver: driver.home(engine.environ),
        copies=engine.copies,
        lifetime_s=engine.session_lifetime_s,
    )


def live_key(store: SessionStore, index: ConversationIndex, ref: str) -> SessionKey:
    """Return the key of the live session that `ref` identifies. `ref`: a scope, a conversation's id
    or a prefix of it, or the name of a run.

    Raises NotFound, and Conflict if several sessions match, or if the conversation is not the live
    one of its scope.
    """
    scoped = [
        key for agent in index.drivers if store.session(key := SessionKey(agent, ref)) is not None
    ]
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
