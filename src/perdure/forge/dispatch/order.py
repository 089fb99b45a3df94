"""Closed, and opened again: which of them was last, where there is no forge to ask. By the times
that the events themselves bear; where they bear none, the one that came later counts.
"""

from __future__ import annotations

from perdure.model.forge.deliveries import Delivery, Intent, IntentKind
from perdure.protocols import InboxStore

ENDING = frozenset({IntentKind.CLOSED, IntentKind.MERGED, IntentKind.BRANCH_DELETED})
"""After these the work is over."""
LOOKED_AT = 1000
"""So many of the newest deliveries of a source are compared."""


def overtaken(store: InboxStore, delivery: Delivery, intent: Intent) -> str:
    """Why an end or a new beginning does not count any more: a later event of the same issue says
    otherwise. Else empty."""
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
            return f"it was {other.kind} since (delivery {each.number})"
    return ""
