"""The pages of the webhook inbox: deliveries with their results, and the replay of a delivery."""

from __future__ import annotations

import json

from starlette.responses import Response

from perdure.errors import StoreError
from perdure.forge.webhooks import parsed, read
from perdure.model.codec import plain
from perdure.model.forge.deliveries import DeliveryState
from perdure.server.dashboard.visits import Visit, ask

PAGE = 100
BODY = 100_000
INDENTED_MOST = 1_000_000
"""Maximum length in characters of a delivery's body that is shown with indentation. A longer body
is shown unchanged."""


def inbox(visit: Visit) -> Response:
    """Show `/inbox`: deliveries, newest first, filtered by state and source."""
    state, before = visit.asked("state"), visit.asked("before")
    chosen = DeliveryState(state) if state in set(DeliveryState) else None
    number = int(before) if before.isdecimal() and len(before) < 18 else 0
    found = visit.desk.look.inbox(chosen, visit.asked("source"), PAGE, number)
    sources = [source.name for source in visit.desk.settings.webhooks]
    return visit.page(
        "inbox.html",
        deliveries=found,
        state=state if chosen else "",
        states=list(DeliveryState),
        sources=sources,
        source=visit.asked("source"),
        older=found[-1].number if len(found) == PAGE else 0,
    )


def delivery(visit: Visit) -> Response:
    """Show `/inbox/NUMBER`: one delivery, parsed and raw."""
    found, body = visit.desk.look.delivery(visit.named("number"))
    intent = []
    for name, value in plain(found.intent or {}).items():
        intent.append((name, ", ".join(map(str, value)) if isinstance(value, list) else str(value)))
    return visit.page(
        "delivery.html",
        delivery=found,
        intent=[(name, value) for name, value in intent if value and value != "0"],
        body=_indented(body)[:BODY],
        cut=len(body) > BODY,
    )


def _indented(body: str) -> str:
    try:
        if 0 < len(body) <= INDENTED_MOST:
            return json.dumps(json.loads(body), indent=2, ensure_ascii=False)
        return body
    except (ValueError, RecursionError):
        return body


def ask_replay(visit: Visit) -> Response:
    """Show `/inbox/NUMBER/replay`, which asks for confirmation."""
    found, _ = visit.desk.look.delivery(visit.named("number"))
    return ask(
        visit, f"Replay delivery {found.number}?", yes="Replay", back=f"/inbox/{found.number}",
        consequences=["It is processed as if it arrived now, for the agent whose rule matches."],
        lists=[("Already", [f"{found.state}: {found.reason}"] if found.reason else [])],
    )  # fmt: skip


def replay(visit: Visit) -> Response:
    found, body = visit.desk.look.delivery(visit.named("number"))
    if not body:
        raise StoreError(
            f"The body of delivery {found.number} was deleted after its retention time",
            "have the forge send it again",
        )
    visit.desk.engine.store.replay_delivery(
        found.number, read(found.forge, found.event, parsed(body.encode()))
    )
    visit.desk.dispatch()
    return visit.to(f"/inbox/{found.number}", "replayed")
