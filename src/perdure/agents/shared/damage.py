"""Finds lines of a transcript that its CLI cannot have written. A disk or a file system may leave
such lines after a power failure.

A driver passes the words that its CLI uses, and a function that recognizes the CLI's records. A
changed text in an otherwise complete record is not found, because only a comparison with a copy
shows it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache

from perdure.agents.shared import json_lines
from perdure.agents.shared.json_lines import Record

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
    entry = json_lines.read(line)
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
                left += [value] if isinstance(value, dict) else json_lines.items(value)


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
