"""Decides whether an issue is closed or open when the forge cannot be asked. The times in the
events decide. Without times, the event that arrived later counts."""

from __future__ import annotations

from perdure.model.forge.deliveries import Delivery, Intent, IntentKind
from perdure.protocols import InboxStore

ENDING = frozenset({IntentKind.CLOSED, IntentKind.MERGED, IntentKind.BRANCH_DELETED})
"""Kinds of intents after which the work is over."""
LOOKED_AT = 1000
"""Number of a source's newest deliveries that are searched for related events."""


def overtaken(store: InboxStore, delivery: Delivery, intent: Intent) -> str:
    """Return the reason why this event is outdated, if a later event of the same issue contradicts
    it: a reopening after the end, or an end after the reopening. Otherwise return an empty text."""
    if intent.kind is IntentKind.REOPENED:
        kinds = {IntentKind.CLOSED, IntentKind.MERGED}
    elif intent.kind in (IntentKind.CLOSED, IntentKind.MERGED):
        kinds = {IntentKind.REOPENED}
    else:
        return ""
    for each in store.inbox(source=delivery.source, limit=LOOKED_AT):
        other = each.intent
        if each.number == delivery.number or other is None or other.kind not in kinds:
            continue
        if (other.repository, other.number, other.pull) != (
            intent.repository,
            intent.number,
            intent.pull,
        ):
            continue
        if other.at > intent.at if other.at and intent.at else each.number > delivery.number:
            return f"it has been {other.kind} since (delivery {each.number})"
    return ""
