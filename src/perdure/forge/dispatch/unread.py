"""Handles comments that were written before their issue was closed, but that the agent had not read
by then.

Such a comment starts no work, because the issue was closed after the comment was written. But it is
not lost: a reply on the forge informs its author, and the agent gets the comment if the run
continues. Called by `dispatcher`.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterator, Sequence
from contextlib import suppress

from msgspec import Struct

from perdure.engine.attempt import Engine
from perdure.errors import ForgeDenied, ForgeRefused, NotFound
from perdure.forge.dispatch.current import Current
from perdure.forge.dispatch.order import ENDING, LOOKED_AT
from perdure.forge.dispatch.request_replies import is_program
from perdure.forge.dispatch.selection import scope_of
from perdure.forge.dispatch.withdrawal import SPOKEN
from perdure.forge.webhooks.author_text import LOGIN
from perdure.model import TaskRun
from perdure.model.forge.deliveries import Delivery, DeliveryState, Intent, IntentKind
from perdure.model.forge.rules import Rule, issue_of
from perdure.model.forge.state import IssueRef
from perdure.protocols import ForgeApi, InboxStore
from perdure.rules.lifecycle import FINAL

Told = tuple[Delivery, Intent]


def unread_reason(run: TaskRun) -> str:
    """Return the reason that is stored with an `ignored` comment that was written before its issue
    was closed."""
    return f"closed before {run.name} had read it: it gets the comment if it continues"


def given_reason(run: TaskRun) -> str:
    """Return the reason that is stored with a delivery whose event became an instruction of the
    run. See `perdure.store.inbox`."""
    return f"given to {run.name}"


def unread_comments(store: InboxStore, run: TaskRun, sources: Sequence[str]) -> Iterator[Told]:
    """Yield, in order, the events that the run had not read when its issue was closed, and that
    were not given to it since."""
    for source in sources:
        handled = store.inbox(DeliveryState.HANDLED, source=source, limit=LOOKED_AT)
        given = given_reason(run)
        since = next((each.updated for each in handled if each.reason == given), 0)
        told = store.inbox(DeliveryState.IGNORED, source=source, limit=LOOKED_AT)
        for each in reversed(told):
            if each.intent is None or each.updated < since or each.reason != unread_reason(run):
                continue
            # A failed check is skipped, because others may have repaired the cause meanwhile.
            if each.intent.kind is not IntentKind.CI_FAILED:
                yield each, each.intent


class _End(Struct, frozen=True):
    """The delivery that reported the end of the work."""

    number: int
    at: int
    author: str


class UnreadComments:
    """Keeps the unread comments of a closed issue, and replies to their authors."""

    def __init__(self, engine: Engine, current: Current, rules: Sequence[Rule]) -> None:
        self._engine, self._current, self._rules = engine, current, rules

    def is_before_end(self, delivery: Delivery, intent: Intent, rule: Rule) -> bool:
        """Return whether a person wrote this comment before the issue was closed. As long as no
        delivery has reported the closing, every comment counts as written before it."""
        if intent.kind not in SPOKEN:
            return False
        end = self._end(delivery, intent, rule)
        if end is None:
            return True
        if end.at and intent.at and end.at != intent.at:
            return intent.at < end.at
        return delivery.number < end.number

    def keep(self, told: Sequence[Told], rule: Rule, run: TaskRun) -> None:
        """Reply to the authors of the events that the run has not read. Then store these events as
        `ignored`. Raises ForgeUnavailable."""
        self.reply(told, rule)
        for each, _ in told:
            self._engine.store.settle_delivery(
                each.number, DeliveryState.IGNORED, unread_reason(run)
            )

    def reply_about_queued(self, source: str, rule: Rule, run: TaskRun) -> None:
        """Reply to the authors of comments that are queued as instructions of the run, if no
        attempt has begun with these instructions yet. The reply changes nothing for the run: its
        next attempt, if there is one, gets these instructions. Raises ForgeUnavailable."""
        store = self._engine.store
        begun = max((each.context_version for each in store.attempts(run.id)), default=0)
        waiting = []
        for each in store.contexts(run.id):
            if each.version > max(begun, 1):
                waiting.append(each.at)
        if run.state in FINAL or not waiting:
            return
        told = store.inbox(DeliveryState.HANDLED, source=source, limit=LOOKED_AT)
        found: list[Told] = []
        for delivery in reversed(told):
            is_given = delivery.reason == given_reason(run) and delivery.updated >= waiting[0]
            if is_given and delivery.intent is not None:
                found.append((delivery, delivery.intent))
        self.reply(found, rule)

    def reply(self, told: Sequence[Told], rule: Rule) -> None:
        """Post a reply to the authors of these comments. Each comment is replied to only once: the
        reply contains a marker for the comment, by which it is found again. There is no reply if
        the rule reports nothing, or if the forge refuses it. Raises ForgeUnavailable."""
        groups: dict[IssueRef, list[Told]] = {}
        for delivery, intent in told:
            if rule.report and self._needs_reply(delivery, intent, rule):
                ref = IssueRef(intent.repository, intent.number, intent.pull)
                groups.setdefault(ref, []).append((delivery, intent))
        for ref, group in groups.items():
            self._reply_on(ref, group, rule)

    def _reply_on(self, ref: IssueRef, told: Sequence[Told], rule: Rule) -> None:
        marks = {delivery.number: self._marker(delivery) for delivery, _ in told}

        def say(api: ForgeApi) -> bool:
            left = [each for each in told if api.find_comment(ref, marks[each[0].number]) is None]
            if left:
                head = "\n".join(marks[delivery.number] for delivery, _ in left)
                authors = [intent.author for _, intent in left]
                api.comment(ref, f"{head}\n\n{reply_text(rule, ref, authors)}")
            return True

        # If the login is not permitted to comment there, the end of the work must still be
        # processed.
        with suppress(ForgeRefused, ForgeDenied, NotFound):
            self._current.asked(*told[-1], rule, say)

    def _needs_reply(self, delivery: Delivery, intent: Intent, rule: Rule) -> bool:
        """Return whether the author has to be told that the comment was not read. A person who
        writes a comment ("Thanks!") and then closes the issue expects no reply, unless the comment
        names the agent."""
        if intent.kind not in SPOKEN or is_program(intent.author, self._rules):
            return False
        end = self._end(delivery, intent, rule)
        if end is None or end.author.casefold() != intent.author.casefold():
            return True
        return rule.login.casefold() in set(map(str.casefold, intent.mentions))

    def _end(self, delivery: Delivery, intent: Intent, rule: Rule) -> _End | None:
        """Return the newest reported end of the work that this delivery belongs to. Return None if
        no end was reported."""
        work = scope_of(rule, delivery, intent, issue_of(rule, intent))
        for each in self._engine.store.inbox(source=delivery.source, limit=LOOKED_AT):
            other = each.intent
            if other is None or other.kind not in ENDING:
                continue
            if scope_of(rule, each, other, issue_of(rule, other)) == work:
                return _End(each.number, other.at, other.author)
        return None

    def _marker(self, delivery: Delivery) -> str:
        _, secret = self._engine.store.identity()
        cause = f"unread\n{delivery.source}\n{delivery.id}"
        digest = hmac.new(secret, cause.encode(), hashlib.sha256).hexdigest()[:32]
        return f"<!-- perdure:unread={digest} -->"


def reply_text(rule: Rule, ref: IssueRef, authors: Sequence[str]) -> str:
    """Return the text of the reply to the authors of unread comments."""
    names = [f"@{each}" for each in dict.fromkeys(authors) if LOGIN.fullmatch(each)]
    if len(authors) > 1:
        comment = "your comments"
    else:
        comment = "your comment"
    kind = "pull request" if ref.pull else "issue"
    again = f"open the {kind} again"
    if rule.login:
        again += f", or mention {rule.login}"
    return (
        f"{' '.join(names)} This {kind} was closed before **{rule.name}** had read {comment}, so "
        f"nothing was done about it. If you still want it, {again}: **{rule.name}** then gets "
        f"{comment}."
    ).strip()
