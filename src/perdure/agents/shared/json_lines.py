"""One line of an agent's JSON output, read without trust: what is not there, or of another type,
reads as empty.

Used by the parsers of all agents, and by the readers of transcripts.
"""

from __future__ import annotations

import json
import math
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import msgspec

from perdure.model.events import MAX_TEXT

COMMAND = 4096
"""Characters of a shell command that are kept: the effect ledger reads them."""
_CUT = 64
_DECODER = msgspec.json.Decoder()


def read(line: bytes) -> dict[str, Any] | None:
    """The object that stands on the line, or None. A line with broken characters in it is still
    read."""
    try:
        found = _DECODER.decode(line)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        try:
            found = json.loads(line.decode("utf-8", "replace"))
        except (ValueError, RecursionError):
            return None
    return found if isinstance(found, dict) else None


def part(value: Any, *path: str) -> Any:
    """What lies at the path of keys, or None."""
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def items(value: Any) -> list[dict[str, Any]]:
    """The objects in a list; everything else is passed over."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def text(value: Any, limit: int = MAX_TEXT) -> str:
    """A string that can be written as UTF-8, no longer than the limit (in characters); a cut is
    said."""
    if not isinstance(value, str):
        return ""
    kept = (
        value
        if len(value) <= limit
        else f"{value[: limit - _CUT]} [{len(value) - limit + _CUT} characters more]"
    )
    return kept.encode("utf-8", "replace").decode()


def whole(value: Any) -> int:
    """A count: never negative, 0 for what is not a number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return 0
    return min(max(int(value), 0), 1 << 53)


def exit_code(value: Any) -> int | None:
    """An exit code, or the negative number of a signal; None for what is none."""
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) > 0xFFFF:
        return None
    return value


def moment(value: Any) -> int:
    """A time as RFC 3339 writes it, in ms since 1970; 0 for what is none."""
    with suppress(TypeError, ValueError, OverflowError):
        at = datetime.fromisoformat(value)
        return max(0, int(at.replace(tzinfo=at.tzinfo or UTC).timestamp() * 1000))
    return 0


def dollars(value: Any) -> float:
    """An amount of money: never negative, 0.0 for what is not a number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return 0.0
    return round(min(max(float(value), 0.0), 1e9), 6)
