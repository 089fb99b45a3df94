"""Stops loops in which no person takes part, such as two agents that answer each other, or a check
that keeps failing. After the limit, only a person's comment continues the work."""

from __future__ import annotations

from collections.abc import Sequence

from perdure.forge.dispatch.order import LOOKED_AT
from perdure.forge.dispatch.selection import RuleChoice, takes_from
from perdure.model import Context
from perdure.model.forge.deliveries import Delivery, DeliveryState, Intent, IntentKind
from perdure.model.forge.rules import Rule, issue_of
from perdure.protocols import InboxStore

UPDATES_MOST = 10
"""Maximum number of consecutive updates that no person caused."""


def unattended(
    store: InboxStore,
    updates: Sequence[Context],
    rules: Sequence[Rule],
    delivery: Delivery,
    choice: RuleChoice,
    intent: Intent,
) -> str:
    """Return the reason why the run is not continued, if agents and checks alone have caused too
    many updates in a row (`UPDATES_MOST`). Otherwise return an empty text. `updates` has all
    updates that the run has received."""
    logins = set()
    for rule in rules:
        if rule.login and takes_from(rule, delivery):
            logins.add(rule.login.casefold())
    if choice.run is None or not _is_of_no_person(intent, logins):
        return ""
    told = store.inbox(DeliveryState.HANDLED, source=delivery.source, limit=LOOKED_AT)
    since = 0
    for each in told:
        if each.intent is None or _is_of_no_person(each.intent, logins):
            continue
        about = (each.intent.repository, issue_of(choice.rule, each.intent))
        if about == (intent.repository, choice.number):
            since = max(since, each.updated)
    # The first update since the last comment of a person contains that comment, so this update is
    # not counted.
    if sum(each.at >= since for each in updates) - bool(since) < UPDATES_MOST:
        return ""
    return (
        f"agents and checks alone have started {choice.run.name} {UPDATES_MOST} times; a comment "
        f"by a person continues it"
    )


def _is_of_no_person(intent: Intent, logins: set[str]) -> bool:
    return intent.kind is IntentKind.CI_FAILED or intent.author.casefold() in logins
