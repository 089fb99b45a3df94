"""What a resume would show to the model, and how that compares with what the model was shown
before.

A transcript that still has all its bytes can be loaded without its newest turns: a person went back
(rewind), another program wrote a branch of its own, the agent's CLI compacted it. So a driver says
what its CLI would load (`AgentDriver.loads`) as a row of items, and `compare` holds that against
what perdure knows. Pure; used by the engine for receipts, and by the drivers.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from enum import StrEnum

from perdure.lateclass import dataclass

SAID = 80
"""Number of characters of an item that are kept to be quoted."""


class ItemKind(StrEnum):
    """What one item of a conversation is. Thoughts of the model and what a CLI adds to each request
    are no items."""

    PROMPT = "prompt"
    ANSWER = "answer"
    CALL = "call"
    RESULT = "result"
    SUMMARY = "summary"
    """The text that stands for what a CLI compacted."""


@dataclass(frozen=True, slots=True)
class Item:
    """One thing that the model is shown."""

    kind: ItemKind
    key: str = ""
    """The id of the tool call, of calls and results."""
    digest: str = ""
    """Of the text, the same in every copy of the conversation; white space counts in results only,
    which may be long. Empty: the text is not known, and any item of this kind and key is the same
    one."""
    said: str = ""
    """The beginning of the text on one line, to be quoted."""
    made_up: bool = False
    """The agent's CLI wrote it in place of something that was never recorded: a result "outcome
    unknown", an answer that no model gave. It proves nothing, so `compare` passes over it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """What a resume would load from a transcript as it is now."""

    items: tuple[Item, ...] = ()
    """In the order in which the model is shown them."""
    compactions: int = 0
    """Number of compactions that the loaded conversation has behind it."""
    condensed: tuple[Item, ...] = ()
    """Items that the model is not shown because a summary stands for them; they are still in the
    transcript."""
    dropped: tuple[Item, ...] = ()
    """Items that are in the transcript and are not loaded: rewound, undone, or on another
    branch."""


class Relation(StrEnum):
    """How what is loaded relates to what was known, the worst that applies."""

    WHOLE = "whole"
    """Everything known is shown, in its order."""
    COMPACTED = "compacted"
    """A summary stands for some known items; all others are shown."""
    SHORTENED = "shortened"
    """The newest known items are not shown; what came before them is."""
    GAPS = "gaps"
    """Known items are missing in the middle, or a known item has another content."""
    FOREIGN = "foreign"
    """Nothing that was known is shown: it is another conversation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Known items held against loaded ones. Items that a CLI made up are in none of these."""

    relation: Relation
    known: int = 0
    """Number of known items."""
    shown: int = 0
    """Number of known items that are loaded."""
    condensed: int = 0
    """Number of known items for which a summary stands."""
    missing: tuple[Item, ...] = ()
    """Known items that are neither loaded nor in a summary."""
    off_branch: int = 0
    """Number of the missing ones that are still in the transcript, where the CLI does not load
    them."""
    altered: tuple[Item, ...] = ()
    """The missing ones among calls and results whose key is loaded with another content, as they
    were known."""
    inserted: tuple[Item, ...] = ()
    """Loaded items that were not known and stand before the last known one that is loaded."""
    added: tuple[Item, ...] = ()
    """Loaded items that were not known and stand behind it."""

    @property
    def whole(self) -> bool:
        """The model is shown everything that is known of the conversation."""
        return self.relation is Relation.WHOLE

    @property
    def prompts_added(self) -> tuple[Item, ...]:
        """Prompts that were not known, in their order: of somebody else, unless the caller knows
        better."""
        return tuple(item for item in (*self.inserted, *self.added) if item.kind is ItemKind.PROMPT)


def digest(text: str) -> str:
    """Return the mark of a text, the same however it is wrapped. Equal to `transcripts.fingerprint`
    of a prompt."""
    return _digest(" ".join(text.split()))


def _digest(text: str) -> str:
    from hashlib import sha256  # the cheapest verbs import the nouns, and never need this

    return sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def item(kind: ItemKind, text: str, key: str = "", *, made_up: bool = False) -> Item:
    """Return the item for a text, as the drivers make it from a transcript."""
    mark = _digest(text.strip()) if kind is ItemKind.RESULT else digest(text)
    return Item(kind, key, mark, " ".join(text[: 4 * SAID].split())[:SAID], made_up)


def call(key: str, name: str, given: object, said: str = "") -> Item:
    """Return the item for a tool call with its arguments; `said` is the argument that a person
    would quote."""
    from json import dumps

    arguments = dumps(given, sort_keys=True, separators=(",", ":"), default=str)
    quoted = " ".join(f"{name} {said or arguments}"[: 4 * SAID].split())[:SAID]
    return Item(ItemKind.CALL, key, digest(f"{name} {arguments}"), quoted)


def compare(known: Iterable[Item], loaded: Loaded) -> Comparison:
    """Return what became of the known items in what a resume would load now."""
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
    """Return one clause for a receipt: what the model is shown of what was known."""
    match found.relation:
        case Relation.WHOLE:
            return f"the model is shown all {found.known} known items of the conversation"
        case Relation.COMPACTED:
            shown = f"{found.shown} of {found.known} known items are shown"
            return f"{shown}, a summary of the agent's stands for the other {found.condensed}"
        case Relation.FOREIGN:
            return f"none of the {found.known} known items is shown: it is another conversation"
        case _:
            return _lacking(found)


def _lacking(found: Comparison) -> str:
    where = "at its end" if found.relation is Relation.SHORTENED else "in its middle"
    count, first = len(found.missing), found.missing[0]
    condensed = f", {found.condensed} are in a summary" if found.condensed else ""
    shown = (
        f"the model is shown {found.shown} of {found.known} known items{condensed}, {count} "
        f"{where} are missing"
    )
    still = (
        f"; {found.off_branch} of them are in the transcript, on a branch that is not loaded"
        if found.off_branch
        else ""
    )
    return f"{shown}, the first of them the {quote(first)}{still}"


def quote(each: Item) -> str:
    """Return an item in words: its kind, and the beginning of its text or its id."""
    if each.said:
        return f'{each.kind.value} "{each.said}"'
    return f"{each.kind.value} {each.key}".rstrip()


def _relation(known: int, missing: Sequence[int], *, condensed: bool, foreign: bool) -> Relation:
    if not missing:
        return Relation.COMPACTED if condensed else Relation.WHOLE
    if foreign and len(missing) == known:
        return Relation.FOREIGN
    # The missing ones are a tail if nothing that is known comes behind the first of them.
    return Relation.SHORTENED if len(missing) == known - missing[0] else Relation.GAPS


def _found(ours: Sequence[Item], places: Sequence[int], among: Sequence[Item]) -> set[int]:
    """Those of the known items at these places that are in another row, in its order."""
    if not among:
        return set()
    there = _aligned([ours[at] for at in places], [each for each in among if not each.made_up])
    return {at for at, place in zip(places, there, strict=True) if place is not None}


def _aligned(ours: Sequence[Item], theirs: Sequence[Item]) -> list[int | None]:
    """For each known item its place in the other row, in rising order; None where it is missing.

    A common beginning is taken first. Then items that stand once on either side hold the rest
    together (a patience diff), so that an "OK." which is said in every turn is not taken for one
    that is missing; between them the first that fits is taken, where it stands beside something
    else that was found.
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
    """Take back what was found of texts that are said more than once, unless an item beside it was
    found beside it too."""
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
    """What tells an item from others: its key where it has one, else its text."""
    return (each.kind, each.key or each.digest)


def _anchors(
    ours: Sequence[Item], start: int, where: dict[tuple[str, str], list[int]]
) -> list[tuple[int, int]]:
    """Places of items that stand once on either side: the longest row of pairs that rises on both
    (patience sorting)."""
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
