"""Compares the items that a resume would show to the model with those that the model was shown
before.

A transcript can have all its bytes and still be loaded without its newest turns: a person rewound
it, another program wrote its own branch, or the CLI compacted it. A driver therefore reports the
items that its CLI would load (`AgentDriver.loads`), and `compare` compares them with the known
ones. Pure. Used by the engine for receipts, and by the drivers.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from enum import StrEnum

from msgspec import Struct

SAID = 80
"""Maximum number of characters of an item that are kept for quoting."""


class ItemKind(StrEnum):
    """The kind of an item of a conversation. The model's thoughts, and what a CLI adds to each
    request, are not items."""

    PROMPT = "prompt"
    ANSWER = "answer"
    CALL = "call"
    RESULT = "result"
    SUMMARY = "summary"
    """The text that replaces the items that a CLI compacted."""


class Item(Struct, frozen=True):
    """One item that the model is shown: a prompt, an answer, a call or its result."""

    kind: ItemKind
    key: str = ""
    """The id of the tool call; only calls and results have one."""
    digest: str = ""
    """Hash of the text, the same in every copy of the conversation. White space counts only in
    results, which may be long. Empty: the text is unknown, and any item of this kind and key is
    taken as equal."""
    said: str = ""
    """The beginning of the text on one line, for quoting."""
    made_up: bool = False
    """Whether the agent's CLI wrote this in place of something that was never recorded: a result
    "outcome unknown", or an answer that no model gave. Such an item proves nothing, so `compare`
    ignores it."""


class Loaded(Struct, frozen=True, kw_only=True):
    """The items that a resume would load from a transcript as it is now."""

    items: tuple[Item, ...] = ()
    """All items, in the order in which the model is shown them."""
    compactions: int = 0
    """Number of times that the loaded conversation was compacted."""
    condensed: tuple[Item, ...] = ()
    """Items that the model is not shown because a summary replaces them. They are still in the
    transcript."""
    dropped: tuple[Item, ...] = ()
    """Items that are in the transcript but are not loaded: rewound, undone, or on another
    branch."""


class Relation(StrEnum):
    """How the loaded items relate to the known ones. If several relations apply, this is the
    worst."""

    WHOLE = "whole"
    """Every known item is shown, in order."""
    COMPACTED = "compacted"
    """A summary replaces some known items; all others are shown."""
    SHORTENED = "shortened"
    """The newest known items are not shown, but all before them are."""
    GAPS = "gaps"
    """Known items are missing in the middle, or have other content."""
    FOREIGN = "foreign"
    """No known item is shown, because the transcript is that of another conversation."""


class Comparison(Struct, frozen=True, kw_only=True):
    """The result of comparing known items with loaded ones. Items that a CLI made up are not
    counted."""

    relation: Relation
    known: int = 0
    """Number of known items."""
    shown: int = 0
    """Number of known items that are loaded."""
    condensed: int = 0
    """Number of known items that a summary replaces."""
    missing: tuple[Item, ...] = ()
    """Known items that are neither loaded nor covered by a summary."""
    off_branch: int = 0
    """Number of missing items that are still in the transcript although the CLI does not load
    them."""
    altered: tuple[Item, ...] = ()
    """The missing calls and results whose key is loaded, but with other content. These are the
    known versions."""
    inserted: tuple[Item, ...] = ()
    """Loaded items that are not among the known items, and come before the last known item that is
    loaded."""
    added: tuple[Item, ...] = ()
    """Loaded items that are not among the known items, and come after the last known item that is
    loaded."""

    @property
    def whole(self) -> bool:
        """Whether the model is shown everything that is known of the conversation."""
        return self.relation is Relation.WHOLE

    @property
    def prompts_added(self) -> tuple[Item, ...]:
        """The prompts that were not known, in order. Somebody else sent them, unless the caller
        knows their origin."""
        return tuple(item for item in (*self.inserted, *self.added) if item.kind is ItemKind.PROMPT)


def digest(text: str) -> str:
    """Return the hash of a text, independent of line breaks and spaces. Equal to
    `transcripts.fingerprint` of a prompt."""
    return _digest(" ".join(text.split()))


def _digest(text: str) -> str:
    from hashlib import sha256  # the cheapest commands import the nouns, but never need this

    return sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def item(kind: ItemKind, text: str, key: str = "", *, made_up: bool = False) -> Item:
    """Return the item for a text, as the drivers make it from a transcript."""
    if kind is ItemKind.RESULT:
        mark = _digest(text.strip())
    else:
        mark = digest(text)
    return Item(kind, key, mark, " ".join(text[: 4 * SAID].split())[:SAID], made_up)


def call(key: str, name: str, given: object, said: str = "") -> Item:
    """Return the item for a tool call with its arguments; `said` is the argument that a person
    would quote."""
    from json import dumps

    arguments = dumps(given, sort_keys=True, separators=(",", ":"), default=str)
    quoted = " ".join(f"{name} {said or arguments}"[: 4 * SAID].split())[:SAID]
    return Item(ItemKind.CALL, key, digest(f"{name} {arguments}"), quoted)


def compare(known: Iterable[Item], loaded: Loaded) -> Comparison:
    """Compare the known items with the items that a resume would load now."""
    ours = [each for each in known if not each.made_up]
    theirs = [each for each in loaded.items if not each.made_up]
    places = _aligned(ours, theirs)
    taken = {place for place in places if place is not None}
    last = max(taken, default=-1)
    left = [at for at, place in enumerate(places) if place is None]
    in_summary = _found(ours, left, loaded.condensed)
    missing = [at for at in left if at not in in_summary]
    keys = {(each.kind, each.key) for each in theirs if each.key}
    unknown = [at for at in range(len(theirs)) if at not in taken]
    return Comparison(
        relation=_relation(
            len(ours), missing, condensed=bool(in_summary), foreign=bool(unknown) and not taken
        ),
        known=len(ours),
        shown=len(taken),
        condensed=len(in_summary),
        missing=tuple(ours[at] for at in missing),
        off_branch=len(_found(ours, missing, loaded.dropped)),
        altered=tuple(
            ours[at] for at in missing if ours[at].key and (ours[at].kind, ours[at].key) in keys
        ),
        inserted=tuple(theirs[at] for at in unknown if at < last),
        added=tuple(theirs[at] for at in unknown if at > last),
    )


def describe(found: Comparison) -> str:
    """Return one clause for a receipt: how much of the known conversation the model is shown."""
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
    """Return an item in words: its kind, and the beginning of its text, or else its id."""
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
    # The missing items are a tail if no known item after the first missing one was found.
    if len(missing) == known - missing[0]:
        return Relation.SHORTENED
    return Relation.GAPS


def _found(ours: Sequence[Item], places: Sequence[int], among: Sequence[Item]) -> set[int]:
    """Return the indexes from `places` whose items in `ours` were also found in `among`, in the
    same order."""
    if not among:
        return set()
    there = _aligned([ours[at] for at in places], [each for each in among if not each.made_up])
    return {at for at, place in zip(places, there, strict=True) if place is not None}


def _aligned(ours: Sequence[Item], theirs: Sequence[Item]) -> list[int | None]:
    """Return for each item of `ours` its index in `theirs`, in rising order; None if the item is
    missing there.

    A common beginning is matched first. After that, items that occur once on each side are the
    anchors (a patience diff), so that an "OK." that is said in every turn is not matched with the
    wrong one. Between two anchors the first fitting item is taken, but only if an item beside it
    was also matched.
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
    """Undo matches of texts that occur more than once, unless a neighboring item was matched to a
    neighboring place."""
    count = Counter(_mark(each) for each in ours)
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
    """Return the part of an item that distinguishes it from others: its key if it has one, else its
    text."""
    return (each.kind, each.key or each.digest)


def _anchors(
    ours: Sequence[Item], start: int, where: dict[tuple[str, str], list[int]]
) -> list[tuple[int, int]]:
    """Return the places of items that occur once on each side: the longest sequence of pairs that
    rises on both sides (patience sorting)."""
    count = Counter(_mark(each) for each in ours[start:])
    marks = ((at, _mark(ours[at])) for at in range(start, len(ours)))
    pairs = [
        (at, where[mark][0])
        for at, mark in marks
        if count[mark] == 1 and len(where.get(mark, ())) == 1
    ]
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
