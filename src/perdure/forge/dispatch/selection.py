"""Selects the rule that handles a delivery, and the conversation to which the delivery belongs.

A conversation is identified by its scope: source, rule, repository and issue. A pull request from
the agent's own branch has the scope of the agent's issue.

Two functions tell why a delivery that matches a rule is not handled after all. `overtaken` compares
it with other events of the issue, in case the forge cannot be asked whether the issue is open. The
times in the events decide; without times, the event that arrived later counts. `unattended` stops
loops in which no person takes part, such as two agents that answer each other, or a check that
keeps failing. After the limit, only a person's comment continues the work.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from msgspec import Struct

from perdure.model import Context, Permissions, TaskRun, TaskSpec
from perdure.model.forge.deliveries import Delivery, DeliveryState, Intent, IntentKind
from perdure.model.forge.postings import Origin, labels_of
from perdure.model.forge.rules import BEGINNING, Rule, branch_of, is_apart, is_own, issue_of, wants
from perdure.protocols import InboxStore
from perdure.rules.run_titles import link_to, title_of_thing
from perdure.rules.specification import with_defaults

NAMED = frozenset({"assigned", "mentioned", "review_requested"})
"""Triggers that name one particular agent."""


class RuleChoice(Struct, frozen=True):
    """A rule that matches a delivery. `run` is the run that already works for this rule on the same
    issue; None if there is none."""

    rule: Rule
    trigger: str
    number: int
    run: TaskRun | None


RunOf = Callable[[Rule, str], TaskRun | None]
"""Type of a function that returns the run of a rule in a scope, or None."""


def choose(
    rules: Sequence[Rule], delivery: Delivery, intent: Intent, run_of: RunOf
) -> RuleChoice | str:
    """Return the rule that handles the delivery, or the reason why none does. Among several
    matching rules, one whose agent is named comes first, then the one that owns the branch, then
    the others in their order."""
    wanted = []
    for rule in rules:
        if takes_from(rule, delivery):
            trigger = wants(rule, intent)
        else:
            trigger = None
        if trigger:
            number = issue_of(rule, intent)
            if number:
                run = run_of(rule, scope_of(rule, delivery, intent, number))
            else:
                run = None
            wanted.append(RuleChoice(rule, trigger, number, run))
    if intent.confidential:
        closed = [choice for choice in wanted if not choice.rule.confidential]
        wanted = [choice for choice in wanted if choice.rule.confidential]
        if closed and not wanted:
            name = closed[0].rule.name
            return (
                f"it is confidential, and the work of {name} may be public: confidential = "
                "true in its rule allows it"
            )
    able = list(filter(_can_work, wanted))
    if not able:
        if wanted:
            return f"{wanted[0].rule.name} has no run to continue"
        return "no rule matches"
    return min(
        able, key=lambda choice: (choice.trigger not in NAMED, not is_own(choice.rule, intent))
    )


def takes_from(rule: Rule, delivery: Delivery) -> bool:
    """Return whether the rule accepts deliveries of this source."""
    return not rule.sources or delivery.source in rule.sources


def scope_of(rule: Rule, delivery: Delivery, intent: Intent, number: int) -> str:
    """Return the scope of the conversation to which an intent belongs."""
    return scope_of_thing(
        delivery.source, rule, intent.repository, number, apart=is_apart(rule, intent, number)
    )


def scope_of_thing(source: str, rule: Rule, repository: str, number: int, *, apart: bool) -> str:
    """Return the scope of the conversation for an issue or pull request. With `apart`, the number
    is that of a GitLab merge request, which GitLab numbers separately from issues."""
    mark = "!" if apart else "#"
    return f"{source}:{rule.name}:{repository}{mark}{number}"[-200:]


def title_of(rule: Rule, intent: Intent, number: int) -> str:
    """Return the title of a run: number and title of the issue or pull request. The title is left
    out if the issue is confidential."""
    mark = "!" if is_apart(rule, intent, number) else "#"
    return title_of_thing(intent.title, number, mark=mark, confidential=intent.confidential)


def spec_of(
    seed: TaskSpec, rule: Rule, delivery: Delivery, intent: Intent, prompt: str
) -> TaskSpec:
    """Return the task for a delivery that begins a run. Values that the rule does not set are taken
    from `seed`. The task's key prevents a second run if the delivery is tried again."""
    number = issue_of(rule, intent)
    apart = is_apart(rule, intent, number)
    origin = Origin(
        source=delivery.source,
        rule=rule.name,
        repository=intent.repository,
        number=number,
        pull=intent.pull and number == intent.number,
    )
    given: dict[str, object] = {
        "prompt": prompt,
        "agent": rule.agent,
        "key": f"delivery:{delivery.number}:{delivery.sha256[:12]}",
        "repo": rule.clone.replace("{repository}", intent.repository),
        "branch": branch_of(rule, number, apart=apart),
        "scope": scope_of(rule, delivery, intent, number),
        "rule": rule.name,
        "title": title_of(rule, intent, number),
        "link": link_to(intent.url),
        "labels": labels_of(delivery.number, origin),
    }
    if intent.pull:
        given["base"] = intent.branch
    return with_defaults(seed, {**given, **_own_values(rule)})


def _own_values(rule: Rule) -> dict[str, object]:
    """Return the fields of a task that the rule itself sets."""
    values: dict[str, object] = {
        "model": rule.model,
        "budget_usd": rule.budget_usd,
        "timeout_s": rule.timeout,
        "attempts": rule.attempts,
        "verify": rule.verify,
    }
    if rule.permissions:
        values["permissions"] = Permissions(rule.permissions)
    return {name: value for name, value in values.items() if value}


def _can_work(choice: RuleChoice) -> bool:
    """Return whether the rule has a run to continue or can begin one."""
    return choice.run is not None or (choice.trigger in BEGINNING and bool(choice.number))


ENDING = frozenset({IntentKind.CLOSED, IntentKind.MERGED, IntentKind.BRANCH_DELETED})
"""Kinds of intents after which the work is over."""


def overtaken(store: InboxStore, delivery: Delivery, intent: Intent) -> str:
    """Return the reason why this event is outdated, if a later event of the same issue contradicts
    it: a reopening after the end, or an end after the reopening. Otherwise return an empty text."""
    if intent.kind is IntentKind.REOPENED:
        kinds = {IntentKind.CLOSED, IntentKind.MERGED}
    elif intent.kind in (IntentKind.CLOSED, IntentKind.MERGED):
        kinds = {IntentKind.REOPENED}
    else:
        return ""
    for each in store.deliveries_about(delivery.source, intent):
        other = each.intent
        if each.number == delivery.number or other is None or other.kind not in kinds:
            continue
        if other.at > intent.at if other.at and intent.at else each.number > delivery.number:
            return f"it has been {other.kind} since (delivery {each.number})"
    return ""


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
    since = 0
    for each in store.deliveries_about(delivery.source, intent, whole_repository=True):
        if each.state is not DeliveryState.HANDLED or each.intent is None:
            continue
        if _is_of_no_person(each.intent, logins):
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
