"""Reads an agent's JSON lines. Used by the event parsers and the transcript readers of all agents.

The lines are not trusted. If a value is missing or has the wrong type, the functions return an
empty value.

`damaged` finds the lines of a transcript that its CLI cannot have written. A disk or a file system
may leave such lines after a power failure. A changed text in an otherwise complete record is not
found, because only a comparison with a copy shows it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from functools import lru_cache
from typing import TypeAlias

import msgspec

from perdure.model.events import MAX_TEXT

COMMAND = 4096
"""Maximum length of a shell command, in characters. The limit is higher than that of the other
arguments of tool calls, because the effect ledger needs the whole command."""
_MOST = 1 << 53
"""Largest whole number that is returned. Larger ones have no exact value as a float."""
_CUT = 64
_DECODER = msgspec.json.Decoder()

OutputLine: TypeAlias = Mapping[str, object]
"""One line that a CLI or a bridge printed. The type of a value is known only after a check."""
Record: TypeAlias = Mapping[str, object]
"""One record of a transcript. The type of a value is known only after a check."""


def read(line: bytes) -> dict[str, object] | None:
    """Return the JSON object on the line; None if there is none. Invalid UTF-8 is replaced."""
    try:
        found = _DECODER.decode(line)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        try:
            found = json.loads(line.decode("utf-8", "replace"))
        except (ValueError, RecursionError):
            return None
    if isinstance(found, dict):
        return found
    return None


def marked(content: bytes, marks: Collection[bytes]) -> Iterator[Record]:
    """Yield the JSON objects of the lines that contain at least one of `marks`. To save time, all
    other lines are skipped without parsing."""
    for line in content.split(b"\n"):
        if any(mark in line for mark in marks) and (entry := read(line)) is not None:
            yield entry


def part(value: object, *path: str) -> object:
    """Return the value at the end of a path of keys through nested objects. None if the path leads
    to no value."""
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def items(value: object) -> list[dict[str, object]]:
    """Return the objects in a list. Other values in the list are left out. Empty if the value is
    not a list."""
    if isinstance(value, list):
        return [item for item in value if isinstance(item, dict)]
    return []


def texts(objects: Iterable[Mapping[str, object]]) -> list[str]:
    """Return the field `text` of each object, uncut. Objects without such a text are left out."""
    found = []
    for each in objects:
        words = each.get("text")
        if isinstance(words, str):
            found.append(words)
    return found


def text(value: object, limit: int = MAX_TEXT) -> str:
    """Return the value as valid UTF-8 text of at most `limit` characters; empty if it is not a
    string. A text that is cut ends with the number of missing characters."""
    if not isinstance(value, str):
        return ""
    if len(value) <= limit:
        kept = value
    else:
        kept = f"{value[: limit - _CUT]} [{len(value) - limit + _CUT} characters more]"
    return kept.encode("utf-8", "replace").decode()


def whole(value: object) -> int:
    """Return the value as a whole number between 0 and `_MOST`; 0 if it is not a number."""
    return int(_limited(value))


def exit_code(value: object) -> int | None:
    """Return the value as an exit code, or as a negative signal number. None if the value is
    neither."""
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) > 0xFFFF:
        return None
    return value


def moment(value: object) -> int:
    """Return the time of an RFC 3339 string in milliseconds since 1970; 0 if the value is not such
    a string."""
    if not isinstance(value, str):
        return 0
    with suppress(ValueError, OverflowError):
        at = datetime.fromisoformat(value)
        return max(0, int(at.replace(tzinfo=at.tzinfo or UTC).timestamp() * 1000))
    return 0


def dollars(value: object) -> float:
    """Return the value as an amount in dollars that is never negative; 0.0 if it is not a
    number."""
    return round(min(float(_limited(value)), 1e9), 6)


def _limited(value: object) -> int | float:
    """Return the value, limited to the range from 0 to `_MOST`; 0 if it is not a number. The limit
    is applied before a conversion to float, because Python cannot convert a whole number of 310
    digits."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return 0
    if isinstance(value, float) and not math.isfinite(value):
        return 0
    return min(max(value, 0), _MOST)


def joined_texts(value: object) -> str:
    """Return the texts of the objects in a list, each cut to `MAX_TEXT` characters, joined by
    newlines. An object without a text gives an empty line."""
    return "\n".join(text(item.get("text")) for item in items(value))


Span = tuple[int, int]
"""Byte range of a line without its line end: the offset of its first byte, and the offset after its
last byte."""

_INSIDE = ("message", "payload", "content", "state", "toolCalls")
"""Keys whose values have a structure that the CLI determines. The values of other keys may come
from a tool or from a user, so their inner keys can be any words."""


def damaged(
    content: bytes, is_record: Callable[[Record], bool], words: frozenset[str]
) -> tuple[Span, ...]:
    """Return the byte ranges of damaged lines, in order.

    - `is_record`: returns whether an object has the form of this CLI's records.
    - `words`: keys and types of the records. A word that differs from one of them in a single bit
      counts as damage.

    The text after the last line end may be a record that is being written, or one that a kill cut
    off. It counts as damaged only if it has zero bytes, which a file system puts in place of a lost
    page.
    """
    found: list[Span] = []
    start = 0
    *lines, torn = content.split(b"\n")
    for line in lines:
        end = start + len(line)
        if line.strip() and not _is_sound(line, is_record, words):
            found.append((start, end))
        start = end + 1
    if b"\0" in torn:
        found.append((start, len(content)))
    return tuple(found)


def _is_sound(line: bytes, is_record: Callable[[Record], bool], words: frozenset[str]) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    entry = read(line)
    if entry is None or not is_record(entry):
        return False
    return not any(_is_misspelled(word, words) for word in _words(entry))


def _words(entry: Record) -> Iterator[str]:
    """Yield the words of a record to check: the keys of the record and of its inner objects, and
    the values that name a type or a role."""
    left = [entry]
    while left:
        for key, value in left.pop().items():
            yield key
            if key in ("type", "role") and isinstance(value, str):
                yield value
            if key in _INSIDE:
                left += [value] if isinstance(value, dict) else items(value)


@lru_cache(maxsize=4096)
def _is_misspelled(word: str, words: frozenset[str]) -> bool:
    """Return whether the word differs from a known word in exactly one bit, as after a disk error.
    A new word of a later CLI version would differ in more bits."""
    if word in words:
        return False
    return any(len(word) == len(known) and _is_one_bit(word, known) for known in words)


def _is_one_bit(one: str, other: str) -> bool:
    changed = [ord(a) ^ ord(b) for a, b in zip(one, other, strict=True) if a != b]
    return len(changed) == 1 and changed[0].bit_count() == 1
