"""Asks the forge for the present state before a delivery is acted on. An event describes a past
moment, and may arrive late, out of order, or twice. Without a token, only the event is known.

Also asks whether the author may use the agent. The author of a failed check is not checked, because
on all forges only users with write permission can set a status. Instead, the commit must be the
head of the branch, because anybody can make a check fail in a fork.

Also asks for data that an event leaves out. Gitea and Forgejo send a review without its comments on
lines, and a failed check without its branch (Gitea 1.26.4, modules/structs/hook.go;
`tests/forges/recorded/gitea-1.26` has examples of both). For a comment on a pull request, GitHub
does not name the pull request's branch. For a comment on a line, GitLab leaves out the diff. Called
by `dispatcher`, `checks` and `comments`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from msgspec import Struct
from msgspec.structs import replace

from perdure.errors import ForgeDenied, ForgeError, ForgeRefused, ForgeUnavailable, NotFound
from perdure.forge.webhooks.hunks import end_of
from perdure.forge.webhooks.payload import cut
from perdure.model.forge.deliveries import Delivery, Forge, Intent, IntentKind
from perdure.model.forge.rules import OWN_CHECK, Rule, is_for
from perdure.model.forge.state import (
    Access,
    CheckState,
    CheckVerdict,
    Comment,
    CommentKind,
    Issue,
    IssueRef,
    Pull,
)
from perdure.protocols import ForgeApi

VERDICTS = {
    IntentKind.CHANGES_REQUESTED: CheckVerdict.CHANGES_REQUESTED,
    IntentKind.LINE_COMMENTED: CheckVerdict.COMMENTED,
    IntentKind.APPROVED: CheckVerdict.APPROVED,
}
BEFORE_MS = 3_600_000
"""Maximum time by which a review may be older than its delivery, in milliseconds. The clocks of the
forge and this machine may differ, and the delivery may have been delayed."""


def is_placeless(intent: Intent) -> bool:
    """Return whether the intent is a failed check that names only its commit: no branch, and no
    number of a pull request."""
    return (
        intent.kind is IntentKind.CI_FAILED
        and bool(intent.commit)
        and not (intent.branch or intent.number)
    )


def is_headless(intent: Intent) -> bool:
    """Return whether the intent is a comment on a pull request whose event names no branch. GitHub
    sends such events."""
    return (
        intent.forge is Forge.GITHUB
        and intent.kind in (IntentKind.COMMENTED, IntentKind.COMMENT_EDITED)
        and intent.pull
        and bool(intent.number)
        and not intent.branch
    )


def with_branch(api: ForgeApi, intent: Intent) -> Intent:
    """Add the branch of the pull request to a comment whose event names no branch, and return the
    intent. To a failed check that names only its commit, add the pull request and its branch. A
    branch in another repository is not added. Raises ForgeError."""
    if is_placeless(intent):
        found = api.pull_at(intent.repository, intent.commit)
    elif is_headless(intent):
        found = _pull(api, intent)
    else:
        found = None
    if found is None:
        return intent
    own = found.head_repository.casefold() == intent.repository.casefold()
    return replace(
        intent,
        number=found.ref.number,
        pull=True,
        title=found.title,
        branch=found.head if own else "",
    )


def _pull(api: ForgeApi, intent: Intent) -> Pull | None:
    try:
        return api.pull(intent.repository, intent.number)
    except NotFound:
        return None


def with_lines(api: ForgeApi, delivery: Delivery, intent: Intent) -> Intent:
    """Add the comments on lines to a review of Gitea or Forgejo, and return the intent. Each
    comment is a paragraph `path:line: text`. Other intents are returned unchanged. Raises
    ForgeError, NotFound."""
    if intent.forge not in (Forge.GITEA, Forge.FORGEJO) or intent.kind not in VERDICTS:
        return intent
    since = min(filter(None, (delivery.received, intent.at))) - BEFORE_MS
    said = api.comments(IssueRef(intent.repository, intent.number, True), since=max(0, since))
    meant = [each for each in said if _is_meant(each, intent)]
    if not meant:
        return intent
    # The event has no review id. If several reviews have the same text, take the one whose time is
    # nearest to the delivery's arrival.
    review = min(meant, key=lambda each: abs(each.created - delivery.received))
    lines = [located(each, each.text) for each in said if each.review == review.id]
    return replace(intent, text=cut("\n\n".join(filter(None, [intent.text.strip(), *lines]))))


def with_hunk(api: ForgeApi, intent: Intent) -> Intent:
    """Add to a comment on a line the part of the diff that the comment is about, and return the
    intent. Only GitLab does not send this part, so intents of other forges are returned unchanged.
    Raises ForgeError."""
    if intent.forge is not Forge.GITLAB or not intent.path or intent.hunk or not intent.pull:
        return intent
    try:
        hunk = api.hunk(
            intent.repository, intent.number, intent.path, intent.line, removed=intent.removed
        )
    except (NotFound, ForgeRefused):
        return intent
    return replace(intent, hunk=hunk)


def located(said: Intent | Comment, text: str) -> str:
    """Return the text of a comment on a line of the diff, preceded by `path:line` and the part of
    the diff that ends with this line. Other texts are returned unchanged."""
    if not said.path:
        return text
    place = f"{said.path}:{said.line}" if said.line else said.path
    place += " (as it was before the change)" if said.removed and said.line else ""
    # Each line of the diff is quoted, because the diff may contain any text.
    quoted = "\n".join(f"> {line}".rstrip() for line in end_of(said.hunk).splitlines())
    return "\n".join(filter(None, [f"{place}:", quoted, text.strip()]))


def _is_meant(each: Comment, intent: Intent) -> bool:
    return (
        each.kind is CommentKind.REVIEW
        and each.verdict is VERDICTS[intent.kind]
        and each.author.casefold() == intent.author.casefold()
        and each.text.strip() == intent.text.strip()
    )


KEPT_S = 30.0
EARLIER_MOST = 50
DENIED_S = 60.0
"""Pause in seconds after a forge rejected the token, or denied access to a repository. The forge
may block a token that it has rejected repeatedly."""
TURN_S = 10.0
"""Additional pause in seconds after the forge did not answer a request about an issue or branch. It
follows the pause that the error asks for (`retry_s`). During the additional pause, requests about
other issues are sent. Each further failure doubles the additional pause, up to `TURNS` times this
value."""
TURNS = 16
T = TypeVar("T")
Answer = tuple[Intent | str, Sequence[Rule]]
OVER = frozenset({IntentKind.CLOSED, IntentKind.MERGED})


def current(api: ForgeApi, intent: Intent, *, closed: bool = False) -> Intent | str:
    """Return the intent updated to the present state, or the reason why it is obsolete. With
    `closed`, the intent does not become obsolete merely because the issue is closed. Raises
    ForgeError."""
    if intent.kind is IntentKind.BRANCH_DELETED:
        there = api.branch(intent.repository, intent.branch)
        if there is None:
            return intent
        return f"the branch {intent.branch} exists"
    if intent.kind is IntentKind.CI_FAILED:
        return _failed(api, intent)
    try:
        # The event may report a comment on a pull request as a comment on an issue. Only GitLab
        # numbers issues and pull requests separately, and its events always report the right kind.
        found = api.issue(IssueRef(intent.repository, intent.number, intent.pull))
        if found.ref.pull:
            pull = api.pull(intent.repository, intent.number)
        else:
            pull = None
    except NotFound:
        if intent.kind in OVER:
            return intent
        return f"{intent.repository}#{intent.number} no longer exists"
    return _now(intent, found, pull, closed=closed)


def _now(intent: Intent, found: Issue, pull: Pull | None, *, closed: bool) -> Intent | str:
    if found.open is (intent.kind in OVER) and not closed:
        state = "open" if found.open else "closed"
        return f"{found.ref} is now {state}"
    if intent.kind in OVER and pull is not None:
        intent = replace(intent, kind=IntentKind.MERGED if pull.merged else IntentKind.CLOSED)
    if pull is not None and intent.kind is IntentKind.REVIEW_REQUESTED:
        asked = pull.reviewers
    else:
        asked = found.assignees
    own = pull is None or pull.head_repository.casefold() == intent.repository.casefold()
    there = set()
    for each in (*found.assignees, *(pull.reviewers if pull is not None else ())):
        there.add(each.casefold())
    return replace(
        intent,
        pull=pull is not None,
        title=found.title,
        description=found.text,
        whom=_still_reported(intent.whom, asked),
        labels=_still_reported(intent.labels, found.labels),
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
        return f"{intent.branch} is not at the commit that failed"
    if _is_own_pipeline(api, intent):
        return "no check has failed but perdure's own"
    return intent


def _is_own_pipeline(api: ForgeApi, intent: Intent) -> bool:
    """Return whether the failed checks of a GitLab pipeline are all perdure's own. GitLab combines
    the statuses of a commit into a pipeline, and the event of the pipeline does not name them.
    Without this test, perdure's own failed status would start attempts endlessly. The other forges
    name the failed check, so `model.forge.rules` recognizes perdure's own."""
    if intent.forge is not Forge.GITLAB:
        return False
    broken = []
    for each in api.checks(intent.repository, intent.commit):
        if each.state in (CheckState.FAILURE, CheckState.ERROR):
            broken.append(each.name)
    return bool(broken) and all(name.startswith(OWN_CHECK) for name in broken)


class _Wait(Struct, frozen=True):
    """A pause during which the forge is not asked. `until` is a time of the monotonic clock.
    `turns` is the multiple of `TURN_S` to wait after the next failure."""

    until: float
    error: ForgeError
    turns: int = 1


class Current:
    """Asks the forge for the current state of a delivery's subject. Each answer is cached for
    `KEPT_S`, because a waiting delivery is checked every few seconds. `forge` returns the client
    for a source and a rule, or None."""

    def __init__(self, forge: Callable[[str, str], ForgeApi | None]) -> None:
        self._forge = forge
        self._kept: dict[tuple[int, tuple[str, ...] | None, bool], tuple[float, Answer]] = {}
        self._waits: dict[tuple[str, ...], _Wait] = {}

    def of(
        self, delivery: Delivery, intent: Intent, rules: Sequence[Rule], *, closed: bool = False
    ) -> tuple[Intent | str, Sequence[Rule]]:
        """Ask the forge. Return the intent updated to the present state, and the rules that work
        for its author. If the intent is obsolete, or if none of the rules works for the author,
        return the reason in place of the intent, and no rules. If there is no client, only rules
        that need none remain. For `closed` see `current`. Raises ForgeUnavailable or ForgeDenied if
        the delivery has to wait."""
        return self._once(
            delivery,
            intent,
            tuple(rule.name for rule in rules),
            lambda: self._asked(delivery, intent, rules, closed=closed),
            closed=closed,
        )

    def placed(self, delivery: Delivery, intent: Intent, rules: Sequence[Rule]) -> Intent:
        """Add the branch to an intent whose event leaves it out, and return the intent. Such an
        intent is a failed check that names only its commit, or a comment on a pull request. The
        forge is not asked about comments that no rule accepts. Other intents are returned
        unchanged. Raises the same errors as `of`."""
        if is_headless(intent):
            rules = [rule for rule in rules if is_for(rule, intent)]
        elif not is_placeless(intent):
            return intent
        api = next(filter(None, (self._forge(delivery.source, rule.name) for rule in rules)), None)
        if api is None:
            return intent
        found, _ = self._once(delivery, intent, None, lambda: (with_branch(api, intent), ()))
        if isinstance(found, Intent):
            return found
        return intent

    def earlier(self, delivery: Delivery, intent: Intent, rule: Rule) -> list[Comment]:
        """Return comments on the issue by people whom the rule works for: the newest
        `EARLIER_MOST`, oldest first. Empty if there is no client. Raises the same errors as `of`.
        """
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
        """Call `ask` with the client for the rule, and return the result of `ask`; None if there is
        no client. Raises the same errors as `of`."""
        api = self._forge(delivery.source, rule.name)
        if api is None:
            return None
        return self._guarded(delivery, intent, lambda: ask(api))

    def knows(self, delivery: Delivery, rule: Rule) -> bool:
        """Return whether there is a client for this source and rule."""
        return self._forge(delivery.source, rule.name) is not None

    def _once(
        self,
        delivery: Delivery,
        intent: Intent,
        what: tuple[str, ...] | None,
        ask: Callable[[], Answer],
        *,
        closed: bool = False,
    ) -> Answer:
        now, key = time.monotonic(), (delivery.number, what, closed)
        self._kept = {key: kept for key, kept in self._kept.items() if now < kept[0]}
        if key not in self._kept:
            self._kept[key] = (now + KEPT_S, self._guarded(delivery, intent, ask))
        return self._kept[key][1]

    def _guarded(self, delivery: Delivery, intent: Intent, ask: Callable[[], T]) -> T:
        """Call `ask` and return its result. After a failure, pause requests to this forge,
        repository or issue. During a pause, raise the error that caused it instead of calling
        `ask`."""
        source, repository = (delivery.source,), (delivery.source, intent.repository)
        thing = (*repository, f"{intent.number} {intent.branch or intent.commit}")
        now = time.monotonic()
        waits = {}
        for waiting, wait in self._waits.items():
            if now < wait.until + DENIED_S + TURN_S * TURNS:
                waits[waiting] = wait
        self._waits = waits
        for key in (source, repository, thing):
            if key in self._waits and now < self._waits[key].until:
                # Every raise adds to an error's traceback. The traceback is removed, because this
                # error may be raised many times.
                raise self._waits[key].error.with_traceback(None)
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
        self, delivery: Delivery, intent: Intent, rules: Sequence[Rule], *, closed: bool
    ) -> tuple[Intent | str, Sequence[Rule]]:
        clients = [self._forge(delivery.source, rule.name) for rule in rules]
        speakers = list(filter(None, clients))
        found = current(speakers[0], intent, closed=closed) if speakers else intent
        if isinstance(found, str):
            return found, ()
        if speakers:
            found = with_lines(speakers[0], delivery, found)
        found = with_hunk(speakers[0], found) if speakers else found
        whys = {}
        for rule in rules:
            whys[rule.name] = refused(self._forge(delivery.source, rule.name), rule, found)
        able = [rule for rule in rules if not whys[rule.name]]
        if able or not rules:
            return (found, able)
        return (whys[rules[0].name], ())


def refused(api: ForgeApi | None, rule: Rule, intent: Intent) -> str:
    """Return why the rule does not work for the author of the intent; empty if it does. Only the
    author's access level is checked here: `model.forge.rules.wants` has already compared the author
    with the rule's list. Raises ForgeError."""
    if not rule.least or intent.kind in (IntentKind.CI_FAILED, IntentKind.BRANCH_DELETED, *OVER):
        return ""
    if api is None:
        return (
            f"{rule.name} works for those who may {rule.least}, and there is no token to ask the "
            f"forge with"
        )
    least = Access(rule.least)
    if api.permission(intent.repository, intent.author).reaches(least):
        return ""
    if least is Access.WRITE:
        return f"{intent.author} may not {least} in {intent.repository}"
    return f"{intent.author} is not an administrator"


def _still_reported(told: tuple[str, ...], there: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names from the event that are still set on the forge, ignoring case."""
    known = set(map(str.casefold, there))
    return tuple(each for each in told if each.casefold() in known)
