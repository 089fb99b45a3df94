"""Verbs for conversations: list them, show one with its lineage, compute statistics, continue
one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from msgspec import UNSET
from msgspec.structs import asdict

from perdure.agents import registry
from perdure.engine.conversations import (
    ConversationEntry,
    ConversationIndex,
    ResumeRequest,
    resume,
    search,
)
from perdure.engine.sessions.statistics import statistics
from perdure.errors import PerdureError, UsageError
from perdure.model import Attempt, SessionKey, TokenScope
from perdure.model.durations import duration
from perdure.model.reports import RunReport
from perdure.model.session_reports import SessionList, SessionRecord, StatisticsReport
from perdure.rules.specification import with_defaults
from perdure.server.api import forms
from perdure.server.api.runs import ready, refuse_widening
from perdure.server.api.shapes import SpokenOfSession, SpokenShape
from perdure.server.api.verbs import ApiCall, Verb
from perdure.server.context import Parts
from perdure.workspace.identity import is_remote


def conversation_index(parts: Parts, only: tuple[str, ...] = ()) -> ConversationIndex:
    """Return an index of the conversations of the agents in `only`, or of all agents if `only` is
    empty. Raises AgentMissing for an unknown agent in `only`."""
    found = {}
    for name in only or registry.names():
        try:
            found[name] = parts.engine.driver(name)
        except PerdureError:
            if only:
                raise
    return ConversationIndex(parts.store, found, parts.engine.environ, frozenset(only))


def listed(parts: Parts, asked: ApiCall) -> SessionList:
    found = conversation_index(parts, asked.query.agent).entries(asked.query.limit)
    return SessionList(schema_version=1, sessions=[entry.report() for entry in found])


def shown(parts: Parts, asked: ApiCall) -> Mapping[str, object]:
    there = conversation_index(parts)
    entry = there.find(asked.at["session"])
    lineage = [each.report() for each in there.lineage(entry)]
    return {**asdict(entry.report()), "lineage": lineage}


def spoken(parts: Parts, asked: ApiCall) -> SpokenShape:
    there = conversation_index(parts)
    entry = there.find(asked.at["session"])
    messages = []
    for each in there.spoken(entry):
        messages.append(SpokenOfSession(by_agent=each.by_agent, text=each.text))
    return SpokenShape(schema_version=1, session=entry.id, spoken=messages)


def added_up(parts: Parts, asked: ApiCall) -> StatisticsReport:
    wanted, now = asked.query, parts.store.now()
    try:
        if wanted.since:
            begin = now - int(duration(wanted.since) * 1000)
        else:
            begin = 0
    except ValueError as error:
        raise UsageError(f"since: {error}") from None
    ended: list[tuple[SessionKey, Attempt]] = []
    for agent in wanted.agent or ("",):
        ended += parts.store.ended(begin, now + 1, agent, wanted.scope)
    return statistics(ended).report()


def resumed_run(parts: Parts, asked: ApiCall) -> RunReport:
    run = parts.store.get(asked.at["run"])
    session = parts.store.session(SessionKey(run.spec.agent, run.scope))
    entry = ConversationEntry(
        agent=run.spec.agent,
        id=session.id if session else "",
        updated=run.updated,
        session=session,
        run=run,
    )
    return _resumed(parts, asked, entry)


def resumed(parts: Parts, asked: ApiCall) -> RunReport:
    return _resumed(parts, asked, conversation_index(parts).find(asked.at["session"]))


def _resumed(parts: Parts, asked: ApiCall, entry: ConversationEntry) -> RunReport:
    said, chosen = asked.body, parts.settings
    if said.permissions is UNSET:
        permissions = chosen.permissions
    else:
        permissions = said.permissions
    if not asked.who.may_widen:
        # A conversation without a run would continue in the directory where it began. That may be
        # any directory, so it counts like the field `here`, which only an admin may set.
        if entry.run is None and not said.repo:
            here = "its own directory"
        else:
            here = ""
        refuse_widening({"permissions": permissions, "repo": said.repo, "here": here}, chosen)
    if said.repo and not is_remote(said.repo) and not Path(said.repo).is_absolute():
        raise UsageError("A repository on the server's disk needs an absolute path")
    given = {
        "prompt": said.prompt,
        "name": said.name,
        "model": said.model,
        "permissions": permissions,
    }
    spec = with_defaults(parts.seed, given)
    return ready(
        parts,
        resume(parts.engine, entry, ResumeRequest(spec=spec, repo=said.repo, branch=said.branch)),
    )


def created(parts: Parts, asked: ApiCall) -> SessionRecord:
    said = asked.body
    return search.report(
        search.records_of(
            parts.engine.store,
            parts.engine.driver,
            parts.engine.copies,
            parts.engine.environ,
            parts.engine.session_lifetime_s,
        ).create(said.agent, said.scope, lifetime_s=search.lifetime(said.lifetime))
    )


def extended(parts: Parts, asked: ApiCall) -> SessionRecord:
    key = search.live_key(parts.engine.store, conversation_index(parts), asked.at["session"])
    session = search.records_of(
        parts.engine.store,
        parts.engine.driver,
        parts.engine.copies,
        parts.engine.environ,
        parts.engine.session_lifetime_s,
    ).extend(key.agent, key.scope, search.lifetime(asked.body.lifetime))
    return search.report(session)


def closed(parts: Parts, asked: ApiCall) -> SessionRecord:
    key = search.live_key(parts.engine.store, conversation_index(parts), asked.at["session"])
    lineage = search.records_of(
        parts.engine.store,
        parts.engine.driver,
        parts.engine.copies,
        parts.engine.environ,
        parts.engine.session_lifetime_s,
    )
    lineage.close(key.agent, key.scope, asked.body.cause)
    return search.report(lineage.lineage(key.agent, key.scope)[-1])


VERBS = (
    Verb(
        method="GET",
        path="/sessions",
        says="Conversations, newest first, also those started manually.",
        does=listed,
        answer="Sessions",
        query=forms.SessionsQuery,
    ),
    Verb(
        method="GET",
        path="/sessions/stats",
        says="How often conversations continued, and why some did not.",
        does=added_up,
        answer="Statistics",
        query=forms.StatsQuery,
    ),
    Verb(
        method="GET",
        path="/sessions/{session}",
        says="A conversation and its ancestors.",
        does=shown,
        answer="Session",
    ),
    Verb(
        method="GET",
        path="/sessions/{session}/spoken",
        says="The last messages of a conversation: hostile text.",
        does=spoken,
        answer="Spoken",
    ),
    Verb(
        method="POST",
        path="/sessions/{session}/resume",
        says="Continues a conversation, also one started manually.",
        does=resumed,
        answer="Run",
        scope=TokenScope.DISPATCH,
        body=forms.Resume,
    ),
    Verb(
        method="POST",
        path="/sessions",
        says="Creates a conversation's record: the first run of its scope starts it.",
        does=created,
        answer="SessionRecord",
        scope=TokenScope.DISPATCH,
        body=forms.NewSession,
        status=201,
    ),
    Verb(
        method="POST",
        path="/sessions/{session}/extend",
        says="Restarts a conversation's lifetime.",
        does=extended,
        answer="SessionRecord",
        scope=TokenScope.DISPATCH,
        body=forms.ExtendedSession,
    ),
    Verb(
        method="POST",
        path="/sessions/{session}/close",
        says="Retires a conversation: the next run of its scope starts a new one.",
        does=closed,
        answer="SessionRecord",
        scope=TokenScope.DISPATCH,
        body=forms.ClosedSession,
    ),
    Verb(
        method="POST",
        path="/runs/{run}/resume",
        says="Continues the conversation of a run.",
        does=resumed_run,
        answer="Run",
        scope=TokenScope.DISPATCH,
        body=forms.Resume,
    ),
)
