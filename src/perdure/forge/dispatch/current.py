"""How things stand on the forge now, asked before anything is done: an event tells of a moment that
is over, and may come late, out of order, or again. Where no token is configured, the event is all
there is.

Who may have an agent at work is asked too. That a check has failed is told by whoever may judge
commits, which on all forges takes the permission to write: what is asked there is whether the
commit is the one that the branch stands at, as anybody can let a check fail in a fork.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from perdure.errors import ForgeDenied, ForgeError, ForgeUnavailable, NotFound
from perdure.forge.dispatch.omissions import is_placeless, with_branch, with_hunk, with_lines
from perdure.lateclass import dataclass
from perdure.model.forge.deliveries import Delivery, Forge, Intent, IntentKind
from perdure.model.forge.rules import OWN_CHECK, Rule, is_for
from perdure.model.forge.state import Access, CheckState, Comment, Issue, IssueRef, Pull
from perdure.protocols import ForgeApi

KEPT_S = 30.0
EARLIER_MOST = 50
DENIED_S = 60.0
"""So long nothing is asked of a forge that did not take the token (who asks on may be locked out),
or of a repository out of its reach."""
TURN_S = 10.0
"""What the forge could not be asked about lets the others go first for so long, then for twice as
long, up to `TURNS` times that."""
TURNS = 16
T = TypeVar("T")
Answer = tuple[Intent | str, Sequence[Rule]]
OVER = frozenset({IntentKind.CLOSED, IntentKind.MERGED})


def current(api: ForgeApi, intent: Intent) -> Intent | str:
    """The intent as it is meant now, or why nothing follows from it any more. Raises ForgeError."""
    if intent.kind is IntentKind.BRANCH_DELETED:
        there = api.branch(intent.repository, intent.branch)
        return intent if there is None else f"the branch {intent.branch} is there"
    if intent.kind is IntentKind.CI_FAILED:
        return _failed(api, intent)
    try:
        # A comment on a pull request may come as one on an issue; GitLab alone counts them apart,
        # and says which it is.
        found = api.issue(IssueRef(intent.repository, intent.number, intent.pull))
        pull = api.pull(intent.repository, intent.number) if found.ref.pull else None
    except NotFound:
        return (
            intent
            if intent.kind in OVER
            else f"{intent.repository}#{intent.number} is not there any more"
        )
    return _now(intent, found, pull)


def _now(intent: Intent, found: Issue, pull: Pull | None) -> Intent | str:
    if found.open is (intent.kind in OVER):
        state = "open" if found.open else "closed"
        return f"{found.ref} is {state} by now"
    if intent.kind in OVER and pull is not None:
        intent = replace(intent, kind=IntentKind.MERGED if pull.merged else IntentKind.CLOSED)
    asked = (
        pull.reviewers
        if pull is not None and intent.kind is IntentKind.REVIEW_REQUESTED
        else found.assignees
    )
    own = pull is None or pull.head_repository.casefold() == intent.repository.casefold()
    there = {
        each.casefold()
        for each in (*found.assignees, *(pull.reviewers if pull is not None else ()))
    }
    return replace(
        intent,
        pull=pull is not None,
        title=found.title,
        description=found.text,
        whom=_both(intent.whom, asked),
        labels=_both(intent.labels, found.labels),
        branch=pull.head if pull is not None and own else "",
        commit=pull.head_commit if pull is not None else intent.commit,
        confidential=intent.confidential or found.confidential,
        unassigned=tuple(each for each in intent.unassigned if each.casefold() not in there),
        unlabelled=tuple(each for each in intent.unlabelled if each not in found.labels),
    )


def _failed(api: ForgeApi, intent: Intent) -> Intent | str:
    if not intent.branch:
        return "it names no branch"
    there = api.branch(intent.repository, intent.branch)
    if there is None or there.commit != intent.commit:
        return f"{intent.branch} does not stand at the commit that has failed"
    return "no check has failed but perdure's own" if _is_own_pipeline(api, intent) else intent


def _is_own_pipeline(api: ForgeApi, intent: Intent) -> bool:
    """GitLab makes a pipeline of statuses, and does not tell of which: one of perdure's own that
    failed, answered with another attempt, would never end. The others name what failed, which
    `model.forge.rules` knows."""
    if intent.forge is not Forge.GITLAB:
        return False
    broken = [
        each.name
        for each in api.checks(intent.repository, intent.commit)
        if each.state in (CheckState.FAILURE, CheckState.ERROR)
    ]
    return bool(broken) and all(name.startswith(OWN_CHECK) for name in broken)


@dataclass(frozen=True, slots=True)
class _Wait:
    """Nothing is asked before `until` (monotonic)."""

    until: float
    error: ForgeError
    turns: int = 1


class Current:
    """Asks, and keeps an answer for `KEPT_S`: a delivery is looked at every few seconds while it
    waits. `forge` gives who speaks to the forge of a source as a rule's agent, if anybody does."""

    def __init__(self, forge: Callable[[str, str], ForgeApi | None]) -> None:
        self._forge = forge
        self._kept: dict[tuple[int, tuple[str, ...] | None], tuple[float, Answer]] = {}
        self._waits: dict[tuple[str, ...], _Wait] = {}

    def of(
        self, delivery: Delivery, intent: Intent, rules: Sequence[Rule]
    ) -> tuple[Intent | str, Sequence[Rule]]:
        """The intent as it is meant now, or why nothing follows from it, and those of the rules
        that work for its author; all of them where there is nobody to ask and none of them needs
        it. Raises ForgeUnavailable and ForgeDenied: it has to wait."""
        return self._once(
            delivery,
            intent,
            tuple(rule.name for rule in rules),
            lambda: self._asked(delivery, intent, rules),
        )

    def placed(self, delivery: Delivery, intent: Intent, rules: Sequence[Rule]) -> Intent:
        """A failed check that names nothing but its commit, with the branch that stands there.
        Raises as `of` does."""
        api = next(filter(None, (self._forge(delivery.source, rule.name) for rule in rules)), None)
        if api is None or not is_placeless(intent):
            return intent
        found, _ = self._once(delivery, intent, None, lambda: (with_branch(api, intent), ()))
        return found if isinstance(found, Intent) else intent

    def earlier(self, delivery: Delivery, intent: Intent, rule: Rule) -> list[Comment]:
        """What was said before, oldest first, by those whom the rule works for; the newest
        `EARLIER_MOST`. Raises as `of` does."""
        api = self._forge(delivery.source, rule.name)
        if api is None or not intent.number:
            return []
        return self._guarded(delivery, intent, lambda: self._earlier(api, intent, rule))

    def _earlier(self, api: ForgeApi, intent: Intent, rule: Rule) -> list[Comment]:
        may: dict[str, bool] = {}
        found: list[Comment] = []
        for each in reversed(api.comments(IssueRef(intent.repository, intent.number, intent.pull))):
            said = replace(
                intent, kind=IntentKind.COMMENTED, author=each.author, text=each.text, mentions=()
            )
            if (
                len(found) == EARLIER_MOST
                or not each.text.strip()
                or each.text.strip() == intent.text.strip()
                or not is_for(rule, said)
            ):
                continue
            if each.confidential and not rule.confidential:
                continue
            if each.author not in may:
                may[each.author] = not refused(api, rule, said)
            if may[each.author]:
                found.append(each)
        return found[::-1]

    def asked(
        self, delivery: Delivery, intent: Intent, rule: Rule, ask: Callable[[ForgeApi], T]
    ) -> T | None:
        """Return what the forge answers; None where there is nobody to ask. Raises as `of` does."""
        api = self._forge(delivery.source, rule.name)
        return None if api is None else self._guarded(delivery, intent, lambda: ask(api))

    def knows(self, delivery: Delivery, rule: Rule) -> bool:
        """Whether there is somebody to ask."""
        return self._forge(delivery.source, rule.name) is not None

    def _once(
        self,
        delivery: Delivery,
        intent: Intent,
        what: tuple[str, ...] | None,
        ask: Callable[[], Answer],
    ) -> Answer:
        now, key = time.monotonic(), (delivery.number, what)
        self._kept = {key: kept for key, kept in self._kept.items() if now < kept[0]}
        if key not in self._kept:
            self._kept[key] = (now + KEPT_S, self._guarded(delivery, intent, ask))
        return self._kept[key][1]

    def _guarded(self, delivery: Delivery, intent: Intent, ask: Callable[[], T]) -> T:
        """Asks, unless that has to wait. What one repository or one issue is the matter with holds
        up no other for long."""
        source, repository = (delivery.source,), (delivery.source, intent.repository)
        thing = (*repository, f"{intent.number} {intent.branch or intent.commit}")
        now = time.monotonic()
        self._waits = {
            key: wait
            for key, wait in self._waits.items()
            if now < wait.until + DENIED_S + TURN_S * TURNS
        }
        for key in (source, repository, thing):
            if key in self._waits and now < self._waits[key].until:
                raise self._waits[key].error
        try:
            found = ask()
        except ForgeUnavailable as error:
            now, turns = time.monotonic(), self._waits[thing].turns if thing in self._waits else 1
            self._waits[source] = _Wait(now + error.retry_s, error)
            self._waits[thing] = _Wait(
                now + error.retry_s + TURN_S * turns, error, min(TURNS, 2 * turns)
            )
            raise
        except ForgeDenied as error:
            self._waits[source if error.everywhere else repository] = _Wait(
                time.monotonic() + DENIED_S, error
            )
            raise
        self._waits.pop(thing, None)
        return found

    def _asked(
        self, delivery: Delivery, intent: Intent, rules: Sequence[Rule]
    ) -> tuple[Intent | str, Sequence[Rule]]:
        speakers = [
            api for rule in rules if (api := self._forge(delivery.source, rule.name)) is not None
        ]
        found = current(speakers[0], intent) if speakers else intent
        if isinstance(found, str):
            return found, ()
        found = with_lines(speakers[0], delivery, found) if speakers else found
        found = with_hunk(speakers[0], found) if speakers else found
        whys = {
            rule.name: refused(self._forge(delivery.source, rule.name), rule, found)
            for rule in rules
        }
        able = [rule for rule in rules if not whys[rule.name]]
        return (found, able) if able or not rules else (whys[rules[0].name], ())


def refused(api: ForgeApi | None, rule: Rule, intent: Intent) -> str:
    """Why the rule does not work for the author of the intent, or empty; `model.forge.rules.wants`
    has looked at the names. Raises ForgeError."""
    if not rule.least or intent.kind in (IntentKind.CI_FAILED, IntentKind.BRANCH_DELETED, *OVER):
        return ""
    if api is None:
        return (
            f"{rule.name} works for who may {rule.least}, and there is no token to ask the forge "
            "with"
        )
    least = Access(rule.least)
    if api.permission(intent.repository, intent.author).reaches(least):
        return ""
    return (
        f"{intent.author} may not {least} in {intent.repository}"
        if least is Access.WRITE
        else f"{intent.author} is no administrator"
    )


def _both(told: tuple[str, ...], there: tuple[str, ...]) -> tuple[str, ...]:
    """What an event told, as far as it is still so."""
    known = {each.casefold() for each in there}
    return tuple(each for each in told if each.casefold() in known)
