"""Merges the edits of a text into one event before they are reported to a run. A text that was
edited twice is reported once, with its newest content. Also recognizes a comment that two
deliveries report. Called by `dispatcher`.

`difference` computes the changes of an edited text, as removed and added lines. The texts may be
hostile. The common beginning and end are removed first, and only a short remainder is compared line
by line. So the cost stays linear.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from difflib import SequenceMatcher

from msgspec.structs import replace

from perdure.forge.webhooks.author_text import mentioned, stop_commands
from perdure.model.forge.deliveries import Delivery, DeliveryState, Intent, IntentKind
from perdure.protocols import InboxStore

AROUND = 2
"""Number of unchanged lines that are shown before and after each change."""
COMPARED_MOST = 300
"""Maximum number of lines of each text that are compared line by line."""


def difference(before: str, now: str) -> str:
    """Return the lines that differ, marked `- ` and `+ `, with a few unchanged lines around them.
    Empty if no lines differ."""
    old, new = _lines(before), _lines(now)
    start = 0
    while start < min(len(old), len(new)) and old[start] == new[start]:
        start += 1
    end = 0
    while end < min(len(old), len(new)) - start and old[-1 - end] == new[-1 - end]:
        end += 1
    gone, come = old[start : len(old) - end], new[start : len(new) - end]
    if not gone and not come:
        return ""
    above = [f"  {line}" for line in old[max(0, start - AROUND) : start]]
    below = [f"  {line}" for line in old[len(old) - end : len(old) - end + AROUND]]
    return "\n".join([*above, *_compared(gone, come), *below])


def _lines(text: str) -> list[str]:
    """Return the lines of the text without trailing spaces, because a forge's editor may change
    these."""
    return [line.rstrip() for line in text.strip().splitlines()]


def _compared(gone: Sequence[str], come: Sequence[str]) -> list[str]:
    if max(len(gone), len(come)) > COMPARED_MOST:
        return [*(f"- {line}" for line in gone), *(f"+ {line}" for line in come)]
    found: list[str] = []
    for what, i, k, m, n in SequenceMatcher(None, gone, come, autojunk=False).get_opcodes():
        if what == "equal":
            found += _shortened(gone[i:k])
        else:
            found += [*(f"- {line}" for line in gone[i:k]), *(f"+ {line}" for line in come[m:n])]
    return found


def _shortened(lines: Sequence[str]) -> list[str]:
    """Return the unchanged lines between two changes. Leaves out the middle if there are many."""
    shown = [f"  {line}" for line in lines]
    if len(shown) <= 2 * AROUND + 1:
        return shown
    left_out = f"  [{len(shown) - 2 * AROUND} unchanged lines]"
    return [*shown[:AROUND], left_out, *shown[-AROUND:]]


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
    text. A comment gets its edited text, and two edits become one."""
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
    """Return the intent of an edited comment with the text before the edit, which GitLab does not
    send. That text is in the inbox if the comment itself was delivered. If it was not, return the
    intent without its mentions. Other intents are returned unchanged."""
    if intent.kind is not IntentKind.COMMENT_EDITED or intent.before or not intent.comment:
        return intent
    for each in store.deliveries_about(delivery.source, intent, before=delivery.number):
        other = each.intent
        if other is not None and _key(other) == _key(intent):
            mentions = _only_new(intent.mentions, mentioned(other.text))
            stops = _only_new(intent.stops, stop_commands(other.text))
            return replace(intent, before=other.text, mentions=mentions, stops=stops)
    # Without the earlier text, new mentions cannot be distinguished from old ones. So all mentions
    # are removed, and none of them starts an agent.
    return replace(intent, mentions=())


def _only_new(logins: Sequence[str], before: Container[str]) -> tuple[str, ...]:
    return tuple(login for login in logins if login not in before)


def told_before(
    store: InboxStore, delivery: Delivery, intent: Intent, queued: Sequence[Told]
) -> str:
    """Return the reason not to pass a comment to its run: another delivery of the same comment was
    handled or is in `queued`. Return an empty text if there is no such delivery. perdure may find a
    comment by asking the forge before the webhook of the comment arrives."""
    if intent.kind not in SAID or not intent.comment:
        return ""
    about = store.deliveries_about(delivery.source, intent)
    handled = [each for each in about if each.state is DeliveryState.HANDLED]
    for each in [*(each for each, _ in queued), *handled]:
        other = each.intent
        if other is None or each.source != delivery.source or each.number == delivery.number:
            continue
        is_same = other.kind is intent.kind and other.text.strip() == intent.text.strip()
        if is_same and _key(other) == _key(intent):
            return f"it was told by delivery {each.number}"
    return ""


def is_unchanged(intent: Intent) -> bool:
    """Return whether an edit left the visible text unchanged."""
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
    """Return a key that identifies the edited text: a comment (by its id) or an issue's
    description. Returns None for an event about anything else."""
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
