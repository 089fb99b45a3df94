"""Asks the forge for data that an event leaves out. Gitea and Forgejo send a review without its
comments on lines, and a failed check without its branch (Gitea 1.26.4, modules/structs/hook.go;
`tests/forges/recorded/gitea-1.26` has examples of both).

GitHub and GitLab send a delivery for each comment on a line, and name the branch of a failed check.
For a comment on a pull request, GitHub does not name the pull request's branch. For a comment on a
line, GitLab leaves out the diff. Without a token, nothing is added.
"""

from __future__ import annotations

from msgspec.structs import replace

from perdure.errors import ForgeRefused, NotFound
from perdure.forge.webhooks.hunks import end_of
from perdure.forge.webhooks.payload import cut
from perdure.model.forge.deliveries import Delivery, Forge, Intent, IntentKind
from perdure.model.forge.state import CheckVerdict, Comment, CommentKind, IssueRef, Pull
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
    """Add the comments on lines to a review, and return the intent. Each comment is a paragraph
    `path:line: text`. Raises ForgeError, NotFound."""
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
    """Add to a comment on a line the part of the diff that the comment is about, because GitLab
    does not send this part. Returns the intent. Raises ForgeError."""
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
    """Return the text of a comment on a line of the diff, preceded by `path:line` and the end of
    the diff. Other texts are returned unchanged."""
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
