"""Asks the forge for data that an event leaves out. Gitea and Forgejo send a review without its
comments on lines, and a failed check without its branch (Gitea 1.26.4, modules/structs/hook.go;
`tests/forges/recorded/gitea-1.26` has both).

GitHub and GitLab send a delivery for each comment on a line, and name the branch of a failed check.
GitLab leaves out the diff. If no token is configured, only the event is known.
"""

from __future__ import annotations

from msgspec.structs import replace

from perdure.errors import ForgeRefused, NotFound
from perdure.forge.webhooks.hunks import end_of
from perdure.forge.webhooks.payload import cut
from perdure.model.forge.deliveries import Delivery, Forge, Intent, IntentKind
from perdure.model.forge.state import CheckVerdict, Comment, CommentKind, IssueRef
from perdure.protocols import ForgeApi

VERDICTS = {
    IntentKind.CHANGES_REQUESTED: CheckVerdict.CHANGES_REQUESTED,
    IntentKind.LINE_COMMENTED: CheckVerdict.COMMENTED,
    IntentKind.APPROVED: CheckVerdict.APPROVED,
}
BEFORE_MS = 3_600_000
"""Longest time between a review and its delivery for which the review is still found, in
milliseconds. Clocks differ, and a delivery may have waited."""


def is_placeless(intent: Intent) -> bool:
    """Return whether a failed check names nothing but its commit."""
    return (
        intent.kind is IntentKind.CI_FAILED
        and bool(intent.commit)
        and not (intent.branch or intent.number)
    )


def with_branch(api: ForgeApi, intent: Intent) -> Intent:
    """Return a failed check with the pull request of its commit, and with the branch of the pull
    request if that is in the same repository. Raises ForgeError."""
    if is_placeless(intent):
        found = api.pull_at(intent.repository, intent.commit)
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


def with_lines(api: ForgeApi, delivery: Delivery, intent: Intent) -> Intent:
    """Return a review with its comments on lines: `path:line: text`, a paragraph each. Raises
    ForgeError, NotFound."""
    if intent.forge not in (Forge.GITEA, Forge.FORGEJO) or intent.kind not in VERDICTS:
        return intent
    since = min(filter(None, (delivery.received, intent.at))) - BEFORE_MS
    said = api.comments(IssueRef(intent.repository, intent.number, True), since=max(0, since))
    meant = [each for each in said if _is_meant(each, intent)]
    if not meant:
        return intent
    # The event does not identify the review among several with the same text.
    review = min(meant, key=lambda each: abs(each.created - delivery.received))
    lines = [located(each, each.text) for each in said if each.review == review.id]
    return replace(intent, text=cut("\n\n".join(filter(None, [intent.text.strip(), *lines]))))


def with_hunk(api: ForgeApi, intent: Intent) -> Intent:
    """Return a comment on a line with its part of the diff, which GitLab does not send. Raises
    ForgeError."""
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
    """Return a comment on a line, preceded by its place: `path:line` and the end of the diff."""
    if not said.path:
        return text
    place = f"{said.path}:{said.line}" if said.line else said.path
    place += " (as it was before the change)" if said.removed and said.line else ""
    # The diff is quoted line by line, because it may contain anything.
    quoted = "\n".join(f"> {line}".rstrip() for line in end_of(said.hunk).splitlines())
    return "\n".join(filter(None, [f"{place}:", quoted, text.strip()]))


def _is_meant(each: Comment, intent: Intent) -> bool:
    return (
        each.kind is CommentKind.REVIEW
        and each.verdict is VERDICTS[intent.kind]
        and each.author.casefold() == intent.author.casefold()
        and each.text.strip() == intent.text.strip()
    )
