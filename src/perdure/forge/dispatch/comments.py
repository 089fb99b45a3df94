"""Handles two kinds of comments that do not become instructions at once. Called by `dispatcher`.

`RequestReplies` handles comments that answer a request of an agent. Only people for whom the rule
works may answer. A comment answers at most one request, and only once, even if it is delivered
several times: the store keeps the id of the comment with the request. An edited comment answers
nothing, because people other than its author can edit a comment.

`UnreadComments` handles comments that were written before their issue was closed, but that the
agent had not read by then. Such a comment starts no work. But it is not lost: a reply on the forge
informs its author, and the agent gets the comment if the run continues.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from functools import partial

from msgspec import Struct

from perdure.capsule.secret_search import without_secrets
from perdure.engine import service
from perdure.engine.attempt import Engine
from perdure.engine.attempt.engine import EngineStore
from perdure.errors import Conflict, ForgeDenied, ForgeRefused, NotFound, UsageError
from perdure.forge.dispatch.current import Current
from perdure.forge.dispatch.selection import ENDING, scope_of, takes_from
from perdure.forge.dispatch.withdrawal import SPOKEN
from perdure.forge.webhooks.author_text import LOGIN, CommentAnswer, answer_in, how_to, is_command
from perdure.model import TaskRun
from perdure.model.forge.deliveries import Delivery, DeliveryState, Intent, IntentKind
from perdure.model.forge.rules import Rule, is_for, issue_of
from perdure.model.forge.state import IssueRef
from perdure.model.requests import AgentRequest, AnswerKind, RequestKind, RequestState
from perdure.protocols import ForgeApi, InboxStore
from perdure.rules.lifecycle import FINAL
from perdure.rules.requests import is_shown_whole, late, short_id

_ROBOT = re.compile(r"\[bot\]$|^(project|group)_\d+_bot")
COMMENTS = frozenset({IntentKind.COMMENTED, IntentKind.LINE_COMMENTED, IntentKind.COMMENT_EDITED})


class ReplyResult(Struct, frozen=True):
    """The final state of a delivery whose comment answers a request, and the reason for that
    state."""

    state: DeliveryState
    reason: str


class _MatchingRequest(Struct, frozen=True):
    """A request that the comment may answer, with its run and rule."""

    rule: Rule
    run: TaskRun
    request: AgentRequest


class RequestReplies:
    """Handles answers that arrive as comments on a forge."""

    def __init__(self, engine: Engine, current: Current) -> None:
        self._engine, self._current = engine, current

    def reply(
        self, delivery: Delivery, intent: Intent, rules: Sequence[Rule], busy: Collection[str]
    ) -> ReplyResult | None:
        """Store the answer if the comment answers a request. Returns None if the comment is to be
        handled like any other. `busy`: the ids of runs with earlier deliveries that are not
        processed yet. Raises Conflict or ForgeError if the comment has to wait."""
        if intent.kind not in COMMENTS or not (said := answer_in(intent.text)):
            return None
        if is_program(intent.author, rules):
            if said.command:
                return ReplyResult(DeliveryState.IGNORED, "only a person can answer a request")
            return None
        able = [rule for rule in rules if _may_hear(rule, delivery, intent)]
        intent = self._placed(delivery, intent, able)
        asked = self._asked(delivery, intent, able)
        if not asked:
            return None
        known = [each for each in asked if each.request.via == _via(delivery, intent)]
        if intent.comment and known:
            number, name = known[0].request.number, known[0].run.name
            return ReplyResult(DeliveryState.HANDLED, f"it answered request {number} of {name}")
        if intent.kind is IntentKind.COMMENT_EDITED:
            if said.command or is_command(intent.before):
                return ReplyResult(
                    DeliveryState.IGNORED, "an edited comment cannot answer a request"
                )
            return None
        return self._judged(delivery, intent, said, asked, busy)

    def _judged(
        self,
        delivery: Delivery,
        intent: Intent,
        said: CommentAnswer,
        asked: Sequence[_MatchingRequest],
        busy: Collection[str],
    ) -> ReplyResult | None:
        opened = [each for each in asked if each.request.state is RequestState.OPEN]
        meant = _matching_requests(said, intent, opened)
        if not said.command and not (meant and intent.kind is IntentKind.COMMENTED):
            return None
        now, able = self._current.of(delivery, intent, _rules(asked))
        if isinstance(now, str) or not able:
            # A plain reply is left to the dispatcher. The dispatcher stores the reason why the
            # reply is not accepted, and does not pass the reply to a run.
            if said.command:
                return ReplyResult(DeliveryState.IGNORED, str(now))
            return None
        names = {rule.name for rule in able}
        meant = [each for each in meant if each.rule.name in names]
        before = [each for each in meant if _is_before(each.request, delivery, intent, said)]
        if not said.command and before:
            return None
        if waits := [each.run.name for each in meant if each.run.id in busy]:
            raise Conflict(
                f"an earlier delivery for {waits[0]} is not processed yet; this one follows it",
                f"perdure logs -f {waits[0]}",
            )
        problem = said.problem
        if not problem and len(meant) != 1:
            problem = _unclear(said, asked, meant)
        if not problem and before:
            problem = "The comment is older than the request, so it has to name it."
        if not problem:
            problem = self._answered(delivery, intent, said, meant[0])
            if not problem:
                number, name = meant[0].request.number, meant[0].run.name
                return ReplyResult(DeliveryState.HANDLED, f"answers request {number} of {name}")
        left = [each for each in opened if each.rule.name in names]
        self._refuse(delivery, intent, able[0], problem, left)
        return ReplyResult(DeliveryState.IGNORED, problem)

    def _answered(
        self, delivery: Delivery, intent: Intent, said: CommentAnswer, asked: _MatchingRequest
    ) -> str:
        """Store the answer. Returns the reason as a sentence if the answer is not accepted;
        otherwise an empty text."""
        clean = partial(without_secrets, self._engine.redactor)
        if said.answer is AnswerKind.ALLOW and not is_shown_whole(asked.request, clean):
            return (
                "The call is too long to be shown here whole, or holds what looks like a secret: "
                "it can only be allowed on the dashboard, or on the machine where it runs."
            )
        try:
            service.answer(
                self._engine,
                asked.run.id,
                asked.request.number,
                said.answer,
                said.words,
                via=_via(delivery, intent),
            )
        except (UsageError, Conflict) as error:
            return f"{error}."
        return ""

    def _refuse(
        self,
        delivery: Delivery,
        intent: Intent,
        rule: Rule,
        problem: str,
        opened: Sequence[_MatchingRequest],
    ) -> None:
        """Post a comment that says why the answer does not count, and which requests are open. It
        is posted only once, because it contains a marker that is computed from the answering
        comment."""
        cause = f"{_via(delivery, intent)}\n{intent.repository}\n{intent.number}"
        marker = _marker(self._engine.store, "reply", cause)
        ref = IssueRef(intent.repository, intent.number, intent.pull)

        clean = partial(without_secrets, self._engine.redactor)

        def say(api: ForgeApi) -> bool:
            if api.find_comment(ref, marker) is None:
                text = refusal(intent.author, problem, opened, api.command_prefix, clean)
                api.comment(ref, f"{marker}\n\n{text}")
            return True

        self._current.asked(delivery, intent, rule, say)

    def _placed(self, delivery: Delivery, intent: Intent, rules: Sequence[Rule]) -> Intent:
        """Return a comment's intent with the branch of its pull request. GitHub's event of a
        comment has no branch, and without the branch the run of the pull request is not found. If
        no run of these rules has an open request, return the intent unchanged, without asking the
        forge."""
        if not intent.pull or intent.branch or not rules:
            return intent
        names = {rule.name for rule in rules}
        store = self._engine.store
        runs = {each.run for each in store.open_requests()}
        if not any(store.get(run).spec.rule in names for run in runs):
            return intent
        now, _ = self._current.of(delivery, intent, rules)
        if isinstance(now, Intent):
            return now
        return intent

    def _asked(
        self, delivery: Delivery, intent: Intent, rules: Sequence[Rule]
    ) -> list[_MatchingRequest]:
        found = []
        for rule in rules:
            number = issue_of(rule, intent)
            scope = scope_of(rule, delivery, intent, number)
            if number:
                run = self._engine.store.run_under(rule.name, scope)
            else:
                run = None
            if run is not None:
                requests = self._engine.store.requests(run.id)
                found += [_MatchingRequest(rule, run, each) for each in requests]
        return found


def refusal(
    login: str,
    problem: str,
    opened: Sequence[_MatchingRequest],
    prefix: str,
    clean: Callable[[str], str],
) -> str:
    """Return the text of a comment that says why an answer does not count, with a list of the open
    requests."""
    head = f"@{login} {problem}" if LOGIN.fullmatch(login) else problem
    if not opened:
        return head
    lines = []
    for each in opened:
        lines.append(
            f"- **{each.rule.name}**, request {each.request.number}: "
            + how_to(each.request, prefix, clean)
        )
    return "\n".join((head, "", "Open requests:", "", *lines))


def _marker(store: EngineStore, kind: str, cause: str) -> str:
    """Return a marker for a comment of perdure's own. It is computed from `cause` with a secret of
    the store, so the comment can be found again, and nobody else can write a comment with it."""
    _, secret = store.identity()
    digest = hmac.new(secret, cause.encode(), hashlib.sha256).hexdigest()[:32]
    return f"<!-- perdure:{kind}={digest} -->"


def is_program(author: str, rules: Sequence[Rule]) -> bool:
    """Return whether the author is an agent's login or a bot. GitHub's bots are named `NAME[bot]`,
    and GitLab's access tokens write as `project_1_bot_…`."""
    logins = {rule.login.casefold() for rule in rules if rule.login}
    return author.casefold() in logins or _ROBOT.search(author) is not None


def _may_hear(rule: Rule, delivery: Delivery, intent: Intent) -> bool:
    public = rule.confidential or not intent.confidential
    return takes_from(rule, delivery) and is_for(rule, intent) and public


def _via(delivery: Delivery, intent: Intent) -> str:
    return f"{delivery.source}/{intent.comment or f'delivery {delivery.number}'}"


def _rules(asked: Sequence[_MatchingRequest]) -> list[Rule]:
    return list({each.rule.name: each.rule for each in asked}.values())


def _matching_requests(
    said: CommentAnswer, intent: Intent, opened: Sequence[_MatchingRequest]
) -> list[_MatchingRequest]:
    """Return the open requests that the comment may answer."""
    if said.request:
        return [each for each in opened if short_id(each.request) == said.request]
    mentions = set(map(str.casefold, intent.mentions))
    named = [each for each in opened if each.rule.login.casefold() in mentions]
    if mentions and not said.command:
        # A plain reply that mentions only other users is not an answer.
        opened = named
    question = said.answer is AnswerKind.TEXT
    return [each for each in opened if (each.request.kind is RequestKind.QUESTION) is question]


def _is_before(
    request: AgentRequest, delivery: Delivery, intent: Intent, said: CommentAnswer
) -> bool:
    """Return whether the comment was written before the agent made the request, and does not name
    the request. The author of such a comment cannot have seen the request, so the comment is not an
    answer."""
    written = min(filter(None, (intent.at, delivery.received)))
    return not said.request and written < request.asked


def _unclear(
    said: CommentAnswer, asked: Sequence[_MatchingRequest], meant: Sequence[_MatchingRequest]
) -> str:
    """Return the reason why it is not clear which request the comment answers, as a sentence."""
    if said.request:
        over = [each.request for each in asked if short_id(each.request) == said.request]
        if over:
            return f"{late(over[0])}."
        return f"There is no request {said.request}."
    if meant:
        return f"There are {len(meant)} open requests: name the one that you mean."
    if said.answer is AnswerKind.TEXT:
        return "No question is open."
    return "No call waits for an answer."


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
    """Yield, in order, the events that the run had not read when its issue was closed, and that the
    run has not been given since."""
    for source in sources:
        given = store.deliveries_with_reason(source, given_reason(run), limit=1)
        since = next((each.updated for each in given), 0)
        for each in reversed(store.deliveries_with_reason(source, unread_reason(run))):
            if each.intent is None or each.updated < since:
                continue
            # A failed check is skipped, because others may have repaired the cause meanwhile.
            if each.intent.kind is not IntentKind.CI_FAILED:
                yield each, each.intent


class _End(Struct, frozen=True):
    """The delivery that reported that the issue was closed, merged, or lost its branch: its number,
    the time of the event (ms since 1970) and the author of the event."""

    number: int
    at: int
    author: str


class UnreadComments:
    """Keeps the unread comments of a closed issue, and replies to their authors."""

    def __init__(self, engine: Engine, current: Current, rules: Sequence[Rule]) -> None:
        self._engine, self._current, self._rules = engine, current, rules

    def is_before_end(self, delivery: Delivery, intent: Intent, rule: Rule) -> bool:
        """Return whether a person wrote this comment before the issue was closed. As long as no
        delivery has reported the closing, every comment of a person counts as written before the
        closing."""
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
        found: list[Told] = []
        for delivery in reversed(store.deliveries_with_reason(source, given_reason(run))):
            if delivery.updated >= waiting[0] and delivery.intent is not None:
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
        marks = {}
        for delivery, _ in told:
            cause = f"unread\n{delivery.source}\n{delivery.id}"
            marks[delivery.number] = _marker(self._engine.store, "unread", cause)

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
        """Return whether the author must be informed that the comment was not read. A person who
        writes a comment ("Thanks!") and then closes the issue expects no reply, unless the comment
        mentions the agent."""
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
        about = self._engine.store.deliveries_about(delivery.source, intent, whole_repository=True)
        for each in about:
            other = each.intent
            if other is None or other.kind not in ENDING:
                continue
            if scope_of(rule, each, other, issue_of(rule, other)) == work:
                return _End(each.number, other.at, other.author)
        return None


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
