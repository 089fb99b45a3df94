"""Combines several events of one update: a text that was edited twice is reported once, with its
newest content. Called by `dispatcher`."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec.structs import replace

from perdure.forge.dispatch.difference import difference
from perdure.forge.dispatch.order import LOOKED_AT
from perdure.forge.webhooks.speech import mentioned, stopped
from perdure.model.forge.deliveries import Delivery, Intent, IntentKind
from perdure.protocols import InboxStore

Told = tuple[Delivery, Intent]
SAID = frozenset(
    {
        IntentKind.COMMENTED,
        IntentKind.LINE_COMMENTED,
        IntentKind.CHANGES_REQUESTED,
        IntentKind.APPROVED,
    }
)
Key = tuple[str, str, int, bool, str]


def merged(told: Iterable[Told]) -> list[Told]:
    """Return the events in order, with each edit merged into the previous event about the same
    text. So a comment has the text after its edits, and two edits become one."""
    found: dict[int, Told] = {}
    places: dict[Key, int] = {}
    for at, (delivery, intent) in enumerate(told):
        key = _key(intent)
        if key is None or key not in places or intent.kind in SAID:
            found[at] = (delivery, intent)
            if key is not None:
                places[key] = at
            continue
        earlier, first = found[places[key]]
        found[places[key]] = (earlier, _with_edit(first, intent))
    return [found[at] for at in sorted(found)]


def with_before(store: InboxStore, delivery: Delivery, intent: Intent) -> Intent:
    """Return an edited comment with its earlier text. GitLab does not send that text; the inbox has
    it if the comment itself was delivered."""
    if intent.kind is not IntentKind.COMMENT_EDITED or intent.before or not intent.comment:
        return intent
    for each in store.inbox(source=delivery.source, limit=LOOKED_AT, before=delivery.number):
        other = each.intent
        if other is not None and _key(other) == _key(intent):
            mentions = tuple(
                login for login in intent.mentions if login not in mentioned(other.text)
            )
            stops = tuple(login for login in intent.stops if login not in stopped(other.text))
            return replace(intent, before=other.text, mentions=mentions, stops=stops)
    # The earlier mentions are unknown, so an edit alone does not call an agent.
    return replace(intent, mentions=())


def is_unchanged(intent: Intent) -> bool:
    """Return whether an edit changed nothing visible."""
    if intent.kind is IntentKind.EDITED:
        return intent.title == intent.title_before and not difference(
            intent.before, intent.description
        )
    return (
        intent.kind is IntentKind.COMMENT_EDITED
        and bool(intent.before)
        and not difference(intent.before, intent.text)
    )


def _key(intent: Intent) -> Key | None:
    """Return the key of the text that an event edits: a comment by its id, or an issue's
    description."""
    thing = (intent.repository, intent.number, intent.pull)
    if intent.kind is IntentKind.EDITED:
        return "issue", *thing, ""
    if intent.comment and intent.kind in SAID | {IntentKind.COMMENT_EDITED}:
        return "comment", *thing, intent.comment
    return None


def _with_edit(first: Intent, edit: Intent) -> Intent:
    if first.kind is IntentKind.EDITED:
        return replace(first, title=edit.title, description=edit.description, author=edit.author)
    return replace(first, text=edit.text)
