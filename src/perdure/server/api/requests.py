"""Verbs for requests of agents to people: list them, answer one."""

from __future__ import annotations

from msgspec.structs import asdict

from perdure.engine import service
from perdure.model import TokenScope
from perdure.model.reports import RunReport
from perdure.model.requests import AgentRequest, AnswerKind
from perdure.server.api import forms
from perdure.server.api.runs import RUN, ready
from perdure.server.api.shapes import RequestOfRun, Requests
from perdure.server.api.verbs import ApiCall, Verb
from perdure.server.context import Parts
from perdure.server.limits import Reach
from perdure.server.problems import Problem


def _shown(parts: Parts, request: AgentRequest) -> RequestOfRun:
    return RequestOfRun(name=parts.store.get(request.run).name, **asdict(request))


def opened(parts: Parts, asked: ApiCall) -> Requests:
    found = parts.store.open_requests()
    return Requests(schema_version=1, requests=[_shown(parts, each) for each in found])


def of_run(parts: Parts, asked: ApiCall) -> Requests:
    found = service.requests(parts.store, asked.at["run"])
    return Requests(schema_version=1, requests=[_shown(parts, each) for each in found])


def answered(parts: Parts, asked: ApiCall) -> RunReport:
    """Store the answer to a request, wake the pools, and return the run's report. Raises Problem
    with 403 if the answer allows a tool call and the client is not an admin."""
    said = asked.body
    if said.answer is AnswerKind.ALLOW and not asked.who.may(TokenScope.ADMIN):
        raise Problem(
            403,
            "This needs the scope admin: a call that the agent may not make by itself",
            "create a token: perdure token new NAME --scope admin",
        )
    run, _ = service.answer(parts.engine, asked.at["run"], said.request, said.answer, said.words)
    return ready(parts, run)


VERBS = (
    Verb(
        method="GET",
        path="/requests",
        says="What agents ask people: open requests, the one that expires next first.",
        does=opened,
        answer="Requests",
        reach=Reach.LIST,
    ),
    Verb(
        method="GET",
        path=f"{RUN}/requests",
        says="All requests of a run, oldest first: what agents wrote is hostile.",
        does=of_run,
        answer="Requests",
    ),
    Verb(
        method="POST",
        path=f"{RUN}/answer",
        says="Answers a request. The first answer counts; `allow` needs the scope admin.",
        does=answered,
        answer="Run",
        scope=TokenScope.ANSWER,
        body=forms.RequestAnswerForm,
    ),
)
