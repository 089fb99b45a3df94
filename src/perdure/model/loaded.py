"""Compares the items of a conversation that perdure knows with the items that the model would be
shown after a resume.

A transcript can be complete and still be loaded without its newest turns: a person rewound it,
another program continued it on a branch of its own, or the CLI compacted it. So a driver reports
the items that its CLI would load (`AgentDriver.loads`), and `compare` compares them with the known
ones. Used by the engine for receipts, and by the drivers. Does no input or output.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from enum import StrEnum

from msgspec import Struct

SAID = 80
"""Maximum length of `Item.said`, in characters."""


class ItemKind(StrEnum):
    """The kind of an item of a conversation. The model's reasoning, and texts that a CLI adds to
    each request, are not items."""

    PROMPT = "prompt"
    ANSWER = "answer"
    CALL = "call"
    RESULT = "result"
    SUMMARY = "summary"
    """The text with which a CLI replaced items when it compacted the conversation."""


class Item(Struct, frozen=True):
    """One item of a conversation that the model is shown: a prompt, an answer, a tool call or its
    result."""

    kind: ItemKind
    key: str = ""
    """Id of the tool call. Only calls and results have one."""
    digest: str = ""
    """Hash of the text, the same in every copy of the conversation. Except in results, the amount
    of white space does not matter. Empty: the text is unknown, and any item with the same kind and
    key counts as equal."""
    said: str = ""
    """Beginning of the item's text, on one line. It is used for quotations."""
    made_up: bool = False
    """Whether the agent's CLI wrote this in place of something that was never recorded, such as a
    result "outcome unknown" or an answer that no model gave. Such an item proves nothing, so
    `compare` ignores it."""


class Loaded(Struct, frozen=True, kw_only=True):
    """The items that a resume would load from a transcript in its current state."""

    items: tuple[Item, ...] = ()
    """All items, in the order in which the model is shown them."""
    compactions: int = 0
    """Number of compactions of the loaded conversation."""
    condensed: tuple[Item, ...] = ()
    """Items that a summary replaces. They are still in the transcript, but the model is not shown
    them."""
    dropped: tuple[Item, ...] = ()
    """Items that are in the transcript but are not loaded: they were rewound or undone, or are on
    another branch."""


class Relation(StrEnum):
    """How the items that a resume loads relate to the items that perdure knows. If several values
    apply, the worst one counts."""

    WHOLE = "whole"
    """Every known item is shown, in the right order."""
    COMPACTED = "compacted"
    """A summary replaces some known items. All other known items are shown."""
    SHORTENED = "shortened"
    """The newest known items are not shown. All earlier ones are."""
    GAPS = "gaps"
    """Known items are missing in the middle, or have different content."""
    FOREIGN = "foreign"
    """None of the items that perdure knows is shown, because the transcript belongs to another
    conversation."""


class Comparison(Struct, frozen=True, kw_only=True):
    """The result of comparing the items that perdure knows with the items that a resume loads.
    Items that a CLI made up are not counted."""

    relation: Relation
    known: int = 0
    """Number of items that perdure knows."""
    shown: int = 0
    """Number of known items that a resume loads."""
    condensed: int = 0
    """Number of known items that a summary replaces."""
    missing: tuple[Item, ...] = ()
    """Known items that a resume does not load and that no summary replaces."""
    off_branch: int = 0
    """Number of missing items that are still in the transcript but are not loaded by the CLI."""
    altered: tuple[Item, ...] = ()
    """Known tool calls and results that differ in content from the loaded item with the same key.
    They also count as missing. The items in this field are the known versions."""
    inserted: tuple[Item, ...] = ()
    """Loaded items that perdure does not know, and that come before the last known item."""
    added: tuple[Item, ...] = ()
    """Loaded items that perdure does not know, and that come after the last known item."""

    @property
    def whole(self) -> bool:
        """Whether the model is shown all known items."""
        return self.relation is Relation.WHOLE

    @property
    def prompts_added(self) -> tuple[Item, ...]:
        """The loaded prompts that perdure does not know, in order. Somebody else sent them, unless
        the caller knows where they come from."""
        return tuple(item for item in (*self.inserted, *self.added) if item.kind is ItemKind.PROMPT)


def digest(text: str) -> str:
    """Return the hash of a text in which each run of white space is one space.
    `transcripts.fingerprint` returns the same hash for a prompt."""
    return _digest(" ".join(text.split()))


def _digest(text: str) -> str:
    # imported late: simple commands import this module but never call this function
    from hashlib import sha256

    return sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def item(kind: ItemKind, text: str, key: str = "", *, made_up: bool = False) -> Item:
    """Return an item for a text from a transcript. Called by the drivers."""
    if kind is ItemKind.RESULT:
        mark = _digest(text.strip())
    else:
        mark = digest(text)
    return Item(kind, key, mark, " ".join(text[: 4 * SAID].split())[:SAID], made_up)


def call(key: str, name: str, given: object, said: str = "") -> Item:
    """Return an item for a tool call. `given`: its arguments. `said`: the argument to use in a
    quotation."""
    from json import dumps

    arguments = dumps(given, sort_keys=True, separators=(",", ":"), default=str)
    quoted = " ".join(f"{name} {said or arguments}"[: 4 * SAID].split())[:SAID]
    return Item(ItemKind.CALL, key, digest(f"{name} {arguments}"), quoted)


def compare(known: Iterable[Item], loaded: Loaded) -> Comparison:
    """Compare the known items with the items that a resume would load now. Return the result."""
    ours = [each for each in known if not each.made_up]
    theirs = [each for each in loaded.items if not each.made_up]
    places = _aligned(ours, theirs)
    taken = {place for place in places if place is not None}
    last = max(taken, default=-1)
    left = []
    for at, place in enumerate(places):
        if place is None:
            left.append(at)
    in_summary = _found(ours, left, loaded.condensed)
    missing = [at for at in left if at not in in_summary]
    keys = set()
    for each in theirs:
        if each.key:
            keys.add((each.kind, each.key))
    unknown = [at for at in range(len(theirs)) if at not in taken]
    altered = []
    for at in missing:
        if ours[at].key and (ours[at].kind, ours[at].key) in keys:
            altered.append(ours[at])
    return Comparison(
        relation=_relation(
            len(ours), missing, condensed=bool(in_summary), foreign=bool(unknown) and not taken
        ),
        known=len(ours),
        shown=len(taken),
        condensed=len(in_summary),
        missing=tuple(ours[at] for at in missing),
        off_branch=len(_found(ours, missing, loaded.dropped)),
        altered=tuple(altered),
        inserted=tuple(theirs[at] for at in unknown if at < last),
        added=tuple(theirs[at] for at in unknown if at > last),
    )


def describe(found: Comparison) -> str:
    """Describe how much of the known conversation is shown to the model. Return a clause that fits
    into a receipt."""
    match found.relation:
        case Relation.WHOLE:
            return f"the model is shown all {found.known} known items of the conversation"
        case Relation.COMPACTED:
            shown = f"{found.shown} of {found.known} known items are shown"
            return f"{shown}, a summary by the agent replaces the other {found.condensed}"
        case Relation.FOREIGN:
            return f"none of the {found.known} known items is shown: it is another conversation"
        case _:
            return _missing_items(found)


def _missing_items(found: Comparison) -> str:
    if found.relation is Relation.SHORTENED:
        where = "at its end"
    else:
        where = "in its middle"
    count, first = len(found.missing), found.missing[0]
    if found.condensed:
        condensed = f", {found.condensed} are in a summary"
    else:
        condensed = ""
    shown = (
        f"the model is shown {found.shown} of {found.known} known items{condensed}, {count} "
        f"{where} are missing"
    )
    if found.off_branch:
        still = (
            f"; {found.off_branch} of them are in the transcript, on a branch that is not loaded"
        )
    else:
        still = ""
    return f"{shown}, the first of them the {quote(first)}{still}"


def quote(each: Item) -> str:
    """Return a short description of an item: its kind, and the beginning of its text or else its
    id."""
    if each.said:
        return f'{each.kind.value} "{each.said}"'
    return f"{each.kind.value} {each.key}".rstrip()


def _relation(known: int, missing: Sequence[int], *, condensed: bool, foreign: bool) -> Relation:
    if not missing:
        if condensed:
            return Relation.COMPACTED
        return Relation.WHOLE
    if foreign and len(missing) == known:
        return Relation.FOREIGN
    # If all known items after the first missing one are missing too, only the newest are missing.
    if len(missing) == known - missing[0]:
        return Relation.SHORTENED
    return Relation.GAPS


def _found(ours: Sequence[Item], places: Sequence[int], among: Sequence[Item]) -> set[int]:
    """`places` are indexes of `ours`. Return those whose items also occur in `among`, in the same
    order."""
    if not among:
        return set()
    there = _aligned([ours[at] for at in places], [each for each in among if not each.made_up])
    found = set()
    for at, place in zip(places, there, strict=True):
        if place is not None:
            found.add(at)
    return found


def _aligned(ours: Sequence[Item], theirs: Sequence[Item]) -> list[int | None]:
    """Return, for each item of `ours`, its index in `theirs`, or None if it is missing there. The
    indexes increase.

    First, a common beginning is matched. Then items that occur exactly once on each side become
    anchors (a patience diff). They keep a repeated text, such as "OK." in every turn, from being
    matched with the wrong occurrence. Between two anchors, each item is matched with the first
    equal item. Such a match is undone if the text occurs more than once and no neighboring item was
    matched.
    """
    start = 0
    while start < len(ours) and start < len(theirs) and _same(ours[start], theirs[start]):
        start += 1
    places: list[int | None] = [*range(start), *([None] * (len(ours) - start))]
    if start == len(ours):
        return places
    where: dict[tuple[str, str], list[int]] = {}
    for place in range(start, len(theirs)):
        where.setdefault(_mark(theirs[place]), []).append(place)
    at, there = start, start
    for our_end, their_end in [*_anchors(ours, start, where), (len(ours), len(theirs))]:
        for each in range(at, our_end):
            candidates = where.get(_mark(ours[each]), [])
            first = bisect_left(candidates, there)
            if (
                first < len(candidates)
                and candidates[first] < their_end
                and _same(ours[each], theirs[candidates[first]])
            ):
                places[each], there = candidates[first], candidates[first] + 1
        if our_end < len(ours) and _same(ours[our_end], theirs[their_end]):
            places[our_end] = their_end
        at, there = our_end + 1, their_end + 1
    _drop_chance_finds(places, ours, where, start)
    return places


def _drop_chance_finds(
    places: list[int | None],
    ours: Sequence[Item],
    where: dict[tuple[str, str], list[int]],
    start: int,
) -> None:
    """Undo each match in `places` of a text that occurs more than once, unless the item before or
    after it is matched with the adjacent item of the other list."""
    count = Counter(map(_mark, ours))
    proven = [place is not None for place in places]
    for at in range(start, len(ours)):
        mark = _mark(ours[at])
        if not ours[at].key and (count[mark] > 1 or len(where.get(mark, ())) > 1):
            before = places[at - 1] if at and proven[at - 1] else None
            proven[at] = before is not None and places[at] == before + 1
    for at in range(len(ours) - 2, start - 1, -1):
        place = places[at]
        if place is not None and not proven[at]:
            proven[at] = proven[at + 1] and places[at + 1] == place + 1
    for at in range(start, len(ours)):
        if not proven[at]:
            places[at] = None


def _same(one: Item, other: Item) -> bool:
    alike = one.kind is other.kind and one.key == other.key
    return alike and (one.digest == other.digest or not one.digest or not other.digest)


def _mark(each: Item) -> tuple[str, str]:
    """Return the values that identify an item: its kind, and its key or else the hash of its
    text."""
    return (each.kind, each.key or each.digest)


def _anchors(
    ours: Sequence[Item], start: int, where: dict[tuple[str, str], list[int]]
) -> list[tuple[int, int]]:
    """Return the index pairs of items that occur exactly once on each side. Of these, the longest
    sequence that increases on both sides is chosen (patience sorting)."""
    count = Counter(map(_mark, ours[start:]))
    marks = ((at, _mark(ours[at])) for at in range(start, len(ours)))
    pairs = []
    for at, mark in marks:
        if count[mark] == 1 and len(where.get(mark, ())) == 1:
            pairs.append((at, where[mark][0]))
    ends: list[int] = []
    tails: list[int] = []
    before: list[int] = []
    for at, (_, there) in enumerate(pairs):
        pile = bisect_left(ends, there)
        before.append(tails[pile - 1] if pile else -1)
        ends[pile : pile + 1] = [there]
        tails[pile : pile + 1] = [at]
    found: deque[tuple[int, int]] = deque()
    newest = tails[-1] if tails else -1
    while newest >= 0:
        found.appendleft(pairs[newest])
        newest = before[newest]
    return list(found)
