"""What there is besides runs and conversations: plans, agents, deliveries; and a delivery read again."""

from __future__ import annotations

from typing import Any

from perdure.codec import plain
from perdure.drivers.installed import installed
from perdure.errors import StoreError
from perdure.forges import parsed, read
from perdure.model import RunState, TokenScope
from perdure.plans.telling import report_of, row_of
from perdure.web.api import forms
from perdure.web.api.verbs import Asked, Verb
from perdure.web.parts import Parts

PLANS = 1000


def agents(parts: Parts, asked: Asked) -> dict[str, Any]:
    environ = parts.engine.environ
    return {"agents": installed([row.agent for row in parts.store.find([RunState.RUNNING], 100_000)], environ, environ)}


def plans(parts: Parts, asked: Asked) -> dict[str, Any]:
    return {"plans": [row_of(parts.store, plan, parts.engine.host) for plan in parts.store.plans(PLANS)]}


def plan(parts: Parts, asked: Asked) -> dict[str, Any]:
    return report_of(parts.store, parts.store.plan(asked.at["plan"]), parts.engine.host)


def deliveries(parts: Parts, asked: Asked) -> dict[str, Any]:
    wanted = asked.query
    found = parts.store.inbox(wanted.state, wanted.source, wanted.limit + 1, wanted.before)
    shown = found[: wanted.limit]
    return {"deliveries": [plain(each) for each in shown], "next": shown[-1].number if len(found) > len(shown) else None}


def delivery(parts: Parts, asked: Asked) -> dict[str, Any]:
    found, body = parts.store.delivery(asked.at["delivery"])
    return {**plain(found), "body": body}


def replayed(parts: Parts, asked: Asked) -> dict[str, Any]:
    found, body = parts.store.delivery(asked.at["delivery"])
    if not body:
        raise StoreError(f"The body of delivery {found.number} was thinned out", "send it again from the forge")
    reading = read(found.forge, found.event, parsed(body.encode()))
    again: dict[str, Any] = plain(parts.engine.store.replay_delivery(found.number, reading))
    parts.dispatch()
    return again


VERBS = (
    Verb(method="GET", path="/agents", says="The agents: version, program, home, what they can, how many are at work.", does=agents,
         answer="Agents"),
    Verb(method="GET", path="/plans", says="Plans, newest first.", does=plans, answer="Plans"),
    Verb(method="GET", path="/plans/{plan}", says="How a plan stands, task by task.", does=plan, answer="Plan"),
    Verb(method="GET", path="/inbox", says="What forges delivered, newest first.", does=deliveries, answer="Deliveries",
         query=forms.InboxQuery),
    Verb(method="GET", path="/inbox/{delivery}", says="A delivery, with its body: what people wrote on a forge is hostile.", does=delivery,
         answer="Delivery"),
    Verb(method="POST", path="/inbox/{delivery}/replay", says="Reads the kept body again, as if it came now.", does=replayed,
         answer="Delivery", scope=TokenScope.DISPATCH, body=forms.Body),
)  # fmt: skip
