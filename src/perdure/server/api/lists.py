"""Verbs for plans, agents and deliveries, including the replay of a delivery."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from msgspec.structs import asdict, replace

from perdure.agents.installed import installed
from perdure.engine.plan_file import plan_defaults, read_object, seed_of
from perdure.engine.plans.report import report_of, row_of
from perdure.engine.plans.server import take
from perdure.engine.service import probe_of
from perdure.errors import Conflict, StoreError, UsageError
from perdure.forge.webhooks import parsed, read
from perdure.model import RunState, TokenScope
from perdure.model.reports import PlanReport
from perdure.server.api import forms
from perdure.server.api.runs import refuse_widening
from perdure.server.api.shapes import Deliveries, DeliveryOfList, PlansShape
from perdure.server.api.verbs import ApiCall, Verb, page_of
from perdure.server.context import Parts
from perdure.workspace.identity import is_remote

PLANS = 1000
NO_PLANS = "This process drives no plans"


def agents(parts: Parts, asked: ApiCall) -> Mapping[str, object]:
    environ = parts.engine.environ
    return {
        "agents": installed(
            [row.agent for row in parts.store.find([RunState.RUNNING], 100_000)], environ, environ
        )
    }


def plans(parts: Parts, asked: ApiCall) -> PlansShape:
    found = parts.store.plans(PLANS)
    rows = [row_of(parts.store, plan, parts.engine.host) for plan in found]
    return PlansShape(schema_version=1, plans=rows)


def submit_plan(parts: Parts, asked: ApiCall) -> PlanReport:
    """Store and start the given plan, and return its report. Raises Problem with 403 if only an
    admin may start such a plan. Also raises PlanError, UsageError, Conflict."""
    said, chosen = asked.body, parts.settings
    wanted = read_object(said.plan, plan_defaults(chosen))
    wanted = replace(wanted, repo=said.repo or wanted.repo)
    if not wanted.repo:
        raise UsageError("missing the repository of the plan", "give repo (an https address)")
    if not is_remote(wanted.repo) and not Path(wanted.repo).is_absolute():
        raise UsageError("A repository on the server's disk needs an absolute path")
    if not asked.who.may_widen:
        refuse_widening({"repo": wanted.repo, "verify": wanted.verify}, chosen)
        for task in wanted.tasks:
            names = ("permissions", "verify", "timeout_s", "attempts")
            refuse_widening({name: getattr(task, name) for name in names}, chosen)
    taken = take(parts.engine, wanted, seed_of(chosen, Path("/")))
    parts.drive_plans()
    return report_of(
        parts.store,
        parts.engine.store.plan(taken.id),
        probe_of(parts.engine.state, parts.engine.host),
    )


def plan(parts: Parts, asked: ApiCall) -> PlanReport:
    return report_of(
        parts.store,
        parts.store.plan(asked.at["plan"]),
        probe_of(parts.engine.state, parts.engine.host),
    )


def plan_stopped(parts: Parts, asked: ApiCall) -> PlanReport:
    if parts.stop_plan is None:
        raise Conflict(NO_PLANS)
    found = parts.stop_plan(asked.at["plan"])
    return report_of(parts.store, found, probe_of(parts.engine.state, parts.engine.host))


def plan_retried(parts: Parts, asked: ApiCall) -> PlanReport:
    if parts.retry_plan is None:
        raise Conflict(NO_PLANS)
    found = parts.retry_plan(asked.at["plan"], asked.body.task)
    return report_of(parts.store, found, probe_of(parts.engine.state, parts.engine.host))


def deliveries(parts: Parts, asked: ApiCall) -> Deliveries:
    wanted = asked.query
    found = parts.store.inbox(wanted.state, wanted.source, wanted.limit + 1, wanted.before)
    shown, last = page_of(found, wanted.limit)
    return Deliveries(
        schema_version=1,
        deliveries=[DeliveryOfList(**asdict(each)) for each in shown],
        next=last.number if last is not None else None,
    )


def delivery(parts: Parts, asked: ApiCall) -> Mapping[str, object]:
    found, body = parts.store.delivery(asked.at["delivery"])
    return {**asdict(found), "body": body}


def replayed(parts: Parts, asked: ApiCall) -> Mapping[str, object]:
    found, body = parts.store.delivery(asked.at["delivery"])
    if not body:
        raise StoreError(
            f"The body of delivery {found.number} was deleted after its retention time",
            "have the forge send it again",
        )
    reading = read(found.forge, found.event, parsed(body.encode()))
    again = parts.engine.store.replay_delivery(found.number, reading)
    parts.dispatch()
    return asdict(again)


VERBS = (
    Verb(
        method="GET",
        path="/agents",
        says="The agents: version, program, home, abilities, number of running attempts.",
        does=agents,
        answer="Agents",
    ),
    Verb(method="GET", path="/plans", says="Plans, newest first.", does=plans, answer="Plans"),
    Verb(
        method="POST",
        path="/plans",
        says=("Starts a plan in the worker pool. The name makes it idempotent."),
        does=submit_plan,
        answer="Plan",
        scope=TokenScope.DISPATCH,
        body=forms.NewPlan,
        status=201,
    ),
    Verb(
        method="GET",
        path="/plans/{plan}",
        says="The state of a plan, task by task.",
        does=plan,
        answer="Plan",
    ),
    Verb(
        method="POST",
        path="/plans/{plan}/stop",
        says="Stops the running tasks of a plan and begins no further one; a retry goes on later.",
        does=plan_stopped,
        answer="Plan",
        scope=TokenScope.DISPATCH,
        body=forms.Body,
    ),
    Verb(
        method="POST",
        path="/plans/{plan}/retry",
        says="Goes on with a plan that was stopped or has failed, or with one task of it.",
        does=plan_retried,
        answer="Plan",
        scope=TokenScope.DISPATCH,
        body=forms.PlanRetry,
    ),
    Verb(
        method="GET",
        path="/inbox",
        says="Deliveries of forges, newest first.",
        does=deliveries,
        answer="Deliveries",
        query=forms.InboxQuery,
    ),
    Verb(
        method="GET",
        path="/inbox/{delivery}",
        says="A delivery, with its body: what people wrote on a forge is hostile.",
        does=delivery,
        answer="Delivery",
    ),
    Verb(
        method="POST",
        path="/inbox/{delivery}/replay",
        says="Processes the kept body again, as if it arrived now.",
        does=replayed,
        answer="Delivery",
        scope=TokenScope.DISPATCH,
        body=forms.Body,
    ),
)
