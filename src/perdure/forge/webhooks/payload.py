"""Reads hostile JSON, in which any field may be missing or of the wrong type.

Only `parsed`, `parsed_list` and `object_of` raise an error: ValueError if the body is not a JSON
object, or, for `parsed_list`, not a JSON list.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from itertools import chain
from typing import Any, NoReturn

DEEPEST = 64
"""Maximum depth of nested JSON that is accepted. Payloads of the forges have a depth of at most 12.
"""
TEXT_MOST = 60_000
NAME_MOST = 255
LIST_MOST = 100

_REPOSITORY = re.compile(r"[\w.-]+(?:/[\w.-]+)+", re.ASCII)
_URL = re.compile(r"https?://[^\s\x00-\x20\x7f\"'<>\\^`{|}]+")
_ID = re.compile(r"[A-Za-z0-9][\w-]{0,99}", re.ASCII)
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def parsed(body: bytes, *, once: bool = False) -> Payload:
    """Return the object in a raw body. Raises ValueError with a short reason for anything else:
    other JSON, NaN, invalid UTF-8, and (if `once`) a duplicate key.

    Without `once`, the last value of a duplicate key is used, as in nearly every JSON parser.
    GitLab has sent payloads with duplicate keys, and it disables a webhook after four refusals in a
    row.
    """
    value = _loaded(body, once=once)
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    return Payload(value)


def parsed_list(body: bytes) -> list[Payload]:
    """Return the objects of the list in a raw body. Raises ValueError for anything else, as
    `parsed` does, and for a duplicate key."""
    value = _loaded(body, once=True)
    if not isinstance(value, list):
        raise ValueError("not a JSON list")
    return list(map(Payload, value))


def object_of(body: bytes) -> Mapping[str, object]:
    """Return the object in a raw body unchanged, for callers that validate each field. Raises
    ValueError as `parsed` does, also for a duplicate key. Half of a surrogate pair is an error too,
    because no database accepts it."""
    value = _loaded(body, once=True)
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError("half of a surrogate pair is not text") from None
    return value


def _loaded(body: bytes, *, once: bool = False) -> object:
    hook = _once if once else None
    try:
        value: object = json.loads(
            body.decode("utf-8"), object_pairs_hook=hook, parse_constant=_no_number
        )
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except UnicodeDecodeError:
        raise ValueError("not valid UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at {error.pos}") from None
    if _is_deep(value):
        raise ValueError("nested too deeply")
    return value


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("an object has a key twice")
    return found


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _is_deep(value: object) -> bool:
    level: list[Any] = [value] if isinstance(value, dict | list) else []
    for _ in range(DEEPEST):
        inner = (each.values() if isinstance(each, dict) else each for each in level)
        level = [one for one in chain.from_iterable(inner) if isinstance(one, dict | list)]
        if not level:
            return False
    return True


class Payload:
    """A JSON object. `at("issue", "user")` returns the nested object, or an empty `Payload`."""

    def __init__(self, value: object) -> None:
        self._value: Mapping[str, object] = value if isinstance(value, dict) else {}

    def __bool__(self) -> bool:
        return bool(self._value)

    def _get(self, keys: tuple[str, ...]) -> Any:
        value: Any = self._value
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        return value

    def value(self, *keys: str) -> object:
        """Return the raw value at the keys; None if it is missing."""
        return self._get(keys)

    def at(self, *keys: str) -> Payload:
        """Return the nested object; empty if it is missing."""
        return Payload(self._get(keys))

    def all(self, *keys: str) -> Iterator[Payload]:
        """Return the first `LIST_MOST` objects of the list at the keys; none if it is missing."""
        value = self._get(keys)
        return map(Payload, value[:LIST_MOST] if isinstance(value, list) else ())

    def text(self, *keys: str) -> str:
        """Return a text that may have several lines: valid Unicode without NUL. A text longer than
        `TEXT_MOST` characters is cut, with a note at the end. Empty if the text is missing."""
        value = self._get(keys)
        if isinstance(value, str):
            return _valid(cut(value))
        return ""

    def name(self, *keys: str) -> str:
        """Return a short text (a login, a label, a title, a branch) on one line, cut to `NAME_MOST`
        characters. Empty if the text is missing."""
        value = self._get(keys)
        if isinstance(value, str):
            return _CONTROL.sub(" ", _valid(value[:NAME_MOST])).strip()
        return ""

    def names(self, *keys: str) -> tuple[str, ...]:
        """Return the first `LIST_MOST` short texts of the list at the keys; empty if it is
        missing."""
        value = self._get(keys)
        found = []
        for each in value[:LIST_MOST] if isinstance(value, list) else ():
            found.append(Payload({"": each}).name(""))
        return tuple(filter(None, found))

    def all_names(self, list_: str, key: str) -> list[str]:
        """Return the short text at the key of each object in a list, as `name` does."""
        return [each.name(key) for each in self.all(list_)]

    def number(self, *keys: str) -> int:
        """Return a number from 1 to 2^53; 0 for anything else."""
        value = self._get(keys)
        if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**53:
            return value
        return 0

    def id(self, *keys: str) -> str:
        """Return an id as a text: a number from 1 to 2^63, or one ASCII word. Empty for anything
        else."""
        value = self._get(keys)
        if isinstance(value, int) and not isinstance(value, bool):
            if 0 < value < 2**63:
                return str(value)
            return ""
        if isinstance(value, str) and _ID.fullmatch(value):
            return value
        return ""

    def time(self, *keys: str) -> int:
        """Return a time in ms since 1970; 0 for anything but RFC 3339 with a zone or GitLab's
        `2017-12-10 16:41:28 UTC`."""
        text = self.name(*keys)
        if text.endswith(" UTC"):
            text = f"{text.removesuffix(' UTC')}Z"
        try:
            found = datetime.fromisoformat(text)
            if found.tzinfo:
                return max(0, int(found.timestamp() * 1000))
            return 0
        except (ValueError, OverflowError):
            return 0

    def yes(self, *keys: str) -> bool:
        """Return whether the value at the keys is `true`."""
        return self._get(keys) is True

    def repository(self, *keys: str) -> str:
        """Return `owner/name`; empty if the value is not a valid name of a repository."""
        value = self.name(*keys)
        plain = _REPOSITORY.fullmatch(value) and not {".", ".."} & set(value.split("/"))
        if plain:
            return value
        return ""

    def url(self, *keys: str) -> str:
        """Return an http(s) address without userinfo; empty for anything else."""
        value = self._get(keys)
        if not isinstance(value, str) or len(value) > 2000 or not _URL.fullmatch(value):
            return ""
        if "@" in value.split("/")[2]:
            return ""
        return _valid(value)


def cut(text: str, most: int = TEXT_MOST) -> str:
    """Return the text. If it is longer than `most` characters, cut it there, and add a note with
    the number of missing characters."""
    if len(text) <= most:
        return text
    return f"{text[:most]}\n[cut here: {len(text) - most} more characters]"


def _valid(text: str) -> str:
    return text.encode("utf-8", "replace").decode().replace("\x00", "\ufffd")
