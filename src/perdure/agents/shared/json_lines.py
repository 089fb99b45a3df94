"""Reads JSON lines of an agent, which are not trusted: a value that is missing or has the wrong
type is read as an empty one.

Used by the event parsers and the transcript readers of all agents.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import TypeAlias

import msgspec

from perdure.model.events import MAX_TEXT

COMMAND = 4096
"""Maximum length of a shell command, in characters. The limit is higher than that of other texts,
because the effect ledger needs the whole command."""
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
    """Return the value as a whole number that is never negative; 0 if it is not a number."""
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
    """Return the value between 0 and the largest number; 0 if it is not a number. The limit is
    applied to whole numbers first, because Python cannot convert one of 310 digits to a float."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return 0
    if isinstance(value, float) and not math.isfinite(value):
        return 0
    return min(max(value, 0), _MOST)


def joined_texts(value: object) -> str:
    """Return the texts of the objects in a list, each cut to `MAX_TEXT` characters, joined by
    newlines. An object without a text gives an empty line."""
    return "\n".join(text(item.get("text")) for item in items(value))
