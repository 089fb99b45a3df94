"""How it stands on the forge now: what follows from an event follows from that, not from the order in which events came.

Where perdure has a token it asks the forge. Where it has none, a newer event of the same issue in the inbox says so, by the forge's own
times. Each answer is why nothing is to be done, in words, or empty.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from perdure.dispatching.choosing import Choice
from perdure.errors import NotFound
from perdure.forges import Delivery, Intent, IntentKind
from perdure.forges.standing import Issue, IssueRef, Pull
from perdure.protocols import ForgeApi, InboxStore

ENDING = frozenset({IntentKind.CLOSED, IntentKind.MERGED, IntentKind.BRANCH_DELETED})
"""After these the work is over."""
QUIET = frozenset({"commented", "line_commented", "ci_failed"})
"""Triggers that wake nobody whose work is over."""
LOOKED_AT = 1000
"""So many of the newest deliveries of a source are compared."""

ForgeOf = Callable[[str, str], ForgeApi | None]
"""Who speaks to the forge of a source, as this agent."""


def no_forge(source: str, rule: str) -> ForgeApi | None:
    return None


def not_over(forge: ForgeApi | None, store: InboxStore, delivery: Delivery, intent: Intent) -> str:
    """Why what ended is not over."""
    if forge is None:
        return _newer(store, delivery, intent, {IntentKind.REOPENED})
    if intent.kind is IntentKind.BRANCH_DELETED:
        try:
            return f"the branch {intent.branch} is there again" if forge.branch(intent.repository, intent.branch) else ""
        except NotFound:
            return ""
    found = _read(forge, intent)
    return "it is open again" if found is not None and found.open else ""


def holds_no_more(forge: ForgeApi | None, store: InboxStore, delivery: Delivery, intent: Intent, choice: Choice) -> tuple[str, Intent]:
    """Why what somebody wanted is to be done no more; else the intent, with what the issue says now."""
    if forge is None:
        why = _newer(store, delivery, intent, {IntentKind.CLOSED, IntentKind.MERGED}) if choice.trigger == "reopened" else ""
        return why, intent
    if not intent.number:
        return "", intent
    found = _read(forge, intent)
    if found is None:
        return "it is not there any more", intent
    login = choice.rule.login.casefold()
    assigned = {each.casefold() for each in found.assignees}
    asked = {each.casefold() for each in found.reviewers} if isinstance(found, Pull) else set()
    now = replace(intent, title=found.title, description=found.text)
    match choice.trigger:
        case "assigned" if login not in assigned:
            return f"it is not assigned to {choice.rule.login} any more", now
        case "labelled" if not set(choice.rule.labels) & set(found.labels):
            return "its label was taken off", now
        case "review_requested" if login not in asked:
            return f"{choice.rule.login} is not asked for a review any more", now
    quiet = choice.run is None or choice.trigger in QUIET or choice.trigger == "reopened"
    return ("it is closed" if quiet and not found.open else ""), now


def _read(forge: ForgeApi, intent: Intent) -> Issue | None:
    try:
        if intent.pull:
            return forge.pull(intent.repository, intent.number)
        return forge.issue(IssueRef(intent.repository, intent.number))
    except NotFound:
        return None


def _newer(store: InboxStore, delivery: Delivery, intent: Intent, kinds: set[IntentKind]) -> str:
    """A later event of the same issue that says otherwise. Without times, the one that came later counts."""
    for each in store.inbox(source=delivery.source, limit=LOOKED_AT):
        other = each.intent
        if other is None or other.kind not in kinds or (other.repository, other.number, other.pull) != _whose(intent):
            continue
        later = other.at > intent.at if other.at and intent.at else each.number > delivery.number
        if later and each.number != delivery.number:
            return f"it was {other.kind} since (delivery {each.number})"
    return ""


def _whose(intent: Intent) -> tuple[str, int, bool]:
    return intent.repository, intent.number, intent.pull
