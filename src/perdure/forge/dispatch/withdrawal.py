"""Detects work that is taken back on the forge: the agent is unassigned, the label that began the
work is removed, or somebody tells the agent to stop. The run is stopped gracefully and keeps its
conversation. Later comments do not restart the run. The run gets them when the work is given to the
agent again. Called by `dispatcher`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from msgspec.structs import replace

from perdure.errors import Conflict, NotFound
from perdure.forge.dispatch.order import LOOKED_AT
from perdure.model import Condition, TaskRun
from perdure.model.forge.deliveries import Delivery, DeliveryState, Forge, Intent, IntentKind
from perdure.model.forge.rules import BEGINNING, Rule, is_for, wants
from perdure.protocols import InboxStore

WITHDRAWN = "withdrawn"
"""Type of the condition of a run whose work was taken back. It is removed when the run is queued
again."""
UNASSIGNED = "unassigned"
"""First word of the reason if the work was taken back by unassigning the agent."""
TOLD_WHOLE = frozenset({Forge.GITEA, Forge.FORGEJO})
"""Forges that report all labels and assignees whenever one of them changes, without saying which
one."""
ASSIGNEES = frozenset({IntentKind.OPENED, IntentKind.ASSIGNED, IntentKind.UNASSIGNED})
LABELS = frozenset({IntentKind.OPENED, IntentKind.LABELLED, IntentKind.UNLABELLED})
SPOKEN = frozenset(
    {
        IntentKind.COMMENTED,
        IntentKind.LINE_COMMENTED,
        IntentKind.CHANGES_REQUESTED,
        IntentKind.APPROVED,
        IntentKind.COMMENT_EDITED,
    }
)
"""Kinds of intents with a text from a person, in which a command to stop may occur."""


def may_withdraw(intent: Intent) -> bool:
    """Return whether the intent may take back work from an agent. The answer does not depend on a
    rule or a run."""
    told_whole = (
        intent.forge in TOLD_WHOLE
        and intent.kind in ASSIGNEES | LABELS
        and intent.kind is not IntentKind.OPENED
    )
    return told_whole or bool(intent.unassigned or intent.unlabelled or intent.stops)


def with_changes(store: InboxStore, delivery: Delivery, intent: Intent, run: TaskRun) -> Intent:
    """Return the intent with the removed assignees and labels. Some forges report only the present
    names; these are compared with the previous report of that forge."""
    if intent.forge not in TOLD_WHOLE or intent.unassigned:
        return intent
    if intent.kind in (IntentKind.ASSIGNED, IntentKind.UNASSIGNED):
        before = _previous_intent(store, delivery, intent, run, ASSIGNEES)
        return replace(
            intent, unassigned=_removed_names(before.whom if before else (), intent.whom)
        )
    if intent.kind in (IntentKind.LABELLED, IntentKind.UNLABELLED):
        before = _previous_intent(store, delivery, intent, run, LABELS)
        return replace(
            intent, unlabelled=_removed_names(before.labels if before else (), intent.labels)
        )
    return intent


def is_given_again(
    store: InboxStore, delivery: Delivery, intent: Intent, run: TaskRun, rule: Rule, trigger: str
) -> bool:
    """Return whether the trigger gives the agent the work again after it was taken back. Some
    forges report all labels and assignees whenever one of them changes. On these, the label or
    login counts only if it was missing from the previous report."""
    if trigger not in BEGINNING:
        return False
    if intent.forge not in TOLD_WHOLE or trigger not in ("assigned", "labelled"):
        return True
    before = _previous_intent(
        store, delivery, intent, run, ASSIGNEES if trigger == "assigned" else LABELS
    )
    if before is None:
        return True
    if trigger == "assigned":
        return rule.login.casefold() not in set(map(str.casefold, before.whom))
    return any(label not in before.labels for label in rule.labels if label in intent.labels)


def _removed_names(before: Sequence[str], now: Sequence[str]) -> tuple[str, ...]:
    there = set(map(str.casefold, now))
    return tuple(each for each in before if each.casefold() not in there)


def _previous_intent(
    store: InboxStore,
    delivery: Delivery,
    intent: Intent,
    run: TaskRun | None,
    kinds: frozenset[IntentKind],
) -> Intent | None:
    """Return the previous report about the same issue or, if there is none, the intent that began
    the run; None if neither is in the inbox."""
    for each in store.inbox(source=delivery.source, limit=LOOKED_AT, before=delivery.number):
        other = each.intent
        if other is None or other.kind not in kinds:
            continue
        if _subject_of(other) == _subject_of(intent):
            return other
    return _first_intent(store, run)


def _subject_of(intent: Intent) -> tuple[str, int, bool]:
    return intent.repository, intent.number, intent.pull


def _first_intent(store: InboxStore, run: TaskRun | None) -> Intent | None:
    """Return the intent that began the run. Returns None if its delivery is not in the inbox."""
    number = run.spec.labels.get("delivery", "") if run is not None else ""
    try:
        if number.isdecimal():
            return store.delivery(number)[0].intent
        return None
    except (NotFound, Conflict):
        return None


def is_told_to_stop(rule: Rule, intent: Intent) -> bool:
    """Return whether a comment tells the rule's agent to stop, and was written by a person whose
    requests the rule accepts."""
    stops = set(map(str.casefold, intent.stops))
    return (
        intent.kind in SPOKEN
        and bool(rule.login)
        and rule.login.casefold() in stops
        and is_for(rule, intent)
    )


def taken_back(store: InboxStore, rule: Rule, run: TaskRun, intent: Intent) -> str:
    """Return how the work was taken back, in words; empty if it was not. Anyone who may unassign or
    remove labels on the forge may take back work. Only actions of the agent itself are ignored."""
    login, author = rule.login.casefold(), intent.author.casefold()
    if author and author == login:
        return ""
    by = f" by {intent.author}" if intent.author else ""
    if login and login in set(map(str.casefold, intent.unassigned)):
        return f"{UNASSIGNED}{by}"
    gone = [label for label in rule.labels if label in intent.unlabelled]
    if gone and _began_by_label(store, rule, run):
        return f"the label {gone[0]} removed{by}"
    return ""


def _began_by_label(store: InboxStore, rule: Rule, run: TaskRun) -> bool:
    return began_by(store, rule, run) in ("labelled", "")


def began_by(store: InboxStore, rule: Rule, run: TaskRun) -> str:
    """Return the trigger that began the run; empty if its delivery is not in the inbox."""
    first = _first_intent(store, run)
    if first is not None:
        return wants(rule, first)
    return ""


def message(rule: Rule, why: str) -> str:
    """Return the message for a run whose work was taken back. The message says how to continue the
    run."""
    if rule.login:
        again = f"assign it to {rule.login} again, or mention it"
    else:
        again = f"put the label {(*rule.labels, 'on')[0]} on again"
    return f"{why}; to continue, {again}"


def withdrawn(run: TaskRun) -> Condition | None:
    """Return the run's condition `withdrawn`; None if the run's work was not taken back."""
    for each in run.conditions:
        if each.type == WITHDRAWN:
            return each
    return None


def ignored_reason(run: TaskRun) -> str:
    """Return why a run whose work was taken back does not get a comment now."""
    return f"{run.name} no longer works on it: it gets the comment when it continues"


def missed_comments(
    store: InboxStore, run: TaskRun, sources: Sequence[str]
) -> Iterator[tuple[Delivery, Intent]]:
    """Yield, in order, the comments that arrived since the work was taken back."""
    condition = withdrawn(run)
    if condition is None:
        return
    for source in sources:
        told = store.inbox(DeliveryState.IGNORED, source=source, limit=LOOKED_AT)
        for each in reversed(told):
            if (
                each.reason != ignored_reason(run)
                or each.updated < condition.at
                or each.intent is None
            ):
                continue
            # A failed check is skipped, because others may have repaired the cause meanwhile.
            if each.intent.kind is not IntentKind.CI_FAILED:
                yield each, each.intent
