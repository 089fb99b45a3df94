"""A payload of JSON, read as if somebody wished us ill: no field is there for certain, or of the
type that it should have.

Nothing here raises but `parsed` and its siblings, which raise ValueError for what is no JSON
object.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import datetime
from itertools import chain
from typing import Any, NoReturn

DEEPEST = 64
"""No forge nests deeper than 12."""
TEXT_MOST = 60_000
NAME_MOST = 255
LIST_MOST = 100

_REPOSITORY = re.compile(r"[\w.-]+(?:/[\w.-]+)+", re.ASCII)
_URL = re.compile(r"https?://[^\s\x00-\x20\x7f\"'<>\\^`{|}]+")
_ID = re.compile(r"[A-Za-z0-9][\w-]{0,99}", re.ASCII)
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def parsed(body: bytes, *, once: bool = False) -> Payload:
    """Return the object in a raw body. Raise ValueError, with a few words, for anything else: other
    JSON, NaN, no UTF-8, and (`once`) a key that is there twice.

    Else the last value of such a key counts, as for nearly every reader of JSON: GitLab has sent
    such webhooks, and four refusals in a row switch its hook off.
    """
    value = _loaded(body, once=once)
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    return Payload(value)


def parsed_list(body: bytes) -> list[Payload]:
    """The objects of the list in a raw body. Raises ValueError as `parsed` does, also for a key
    that is there twice."""
    value = _loaded(body, once=True)
    if not isinstance(value, list):
        raise ValueError("not a JSON list")
    return [Payload(each) for each in value]


def object_of(body: bytes) -> dict[str, Any]:
    """The object in a raw body as it is, for those who check each of its fields. Raises ValueError
    as `parsed` does, for a key that stands twice, and for half of a surrogate pair, which no
    database takes."""
    value = _loaded(body, once=True)
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError("half of a surrogate pair is no text") from None
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
        raise ValueError(f"no JSON: {error.msg} at {error.pos}") from None
    if _is_deep(value):
        raise ValueError("nested too deeply")
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return found


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number of JSON")


def _is_deep(value: object) -> bool:
    level: list[Any] = [value] if isinstance(value, dict | list) else []
    for _ in range(DEEPEST):
        inner = (each.values() if isinstance(each, dict) else each for each in level)
        level = [one for one in chain.from_iterable(inner) if isinstance(one, dict | list)]
        if not level:
            return False
    return True


class Payload:
    """An object of JSON. `at("issue", "user")` goes down and is an empty object where there is
    nothing."""

    def __init__(self, value: object) -> None:
        self._value: dict[str, Any] = value if isinstance(value, dict) else {}

    def __bool__(self) -> bool:
        return bool(self._value)

    def _get(self, keys: tuple[str, ...]) -> Any:
        value: Any = self._value
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        return value

    def value(self, *keys: str) -> object:
        """Whatever is there."""
        return self._get(keys)

    def at(self, *keys: str) -> Payload:
        """The object there."""
        return Payload(self._get(keys))

    def all(self, *keys: str) -> Iterator[Payload]:
        """The objects of the list there, the first `LIST_MOST`."""
        value = self._get(keys)
        return (Payload(each) for each in (value[:LIST_MOST] if isinstance(value, list) else ()))

    def text(self, *keys: str) -> str:
        """The text there, whole lines of prose: valid Unicode, without NUL; cut with a mark after
        `TEXT_MOST` characters."""
        value = self._get(keys)
        return _valid(cut(value)) if isinstance(value, str) else ""

    def name(self, *keys: str) -> str:
        """The short text there (a login, a label, a title, a branch): on one line, at most
        `NAME_MOST` characters."""
        value = self._get(keys)
        return (
            _CONTROL.sub(" ", _valid(value[:NAME_MOST])).strip() if isinstance(value, str) else ""
        )

    def names(self, *keys: str) -> tuple[str, ...]:
        """The short texts of the list there, the first `LIST_MOST`."""
        value = self._get(keys)
        found = (
            Payload({"": each}).name("")
            for each in (value[:LIST_MOST] if isinstance(value, list) else ())
        )
        return tuple(filter(None, found))

    def number(self, *keys: str) -> int:
        """The number there, from 1 to 2^53; else 0."""
        value = self._get(keys)
        return (
            value
            if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**53
            else 0
        )

    def id(self, *keys: str) -> str:
        """The forge's id there as a text: a number from 1 to 2^63, or one word of ASCII; else
        empty."""
        value = self._get(keys)
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value) if 0 < value < 2**63 else ""
        return value if isinstance(value, str) and _ID.fullmatch(value) else ""

    def time(self, *keys: str) -> int:
        """The time there (RFC 3339, with its zone) in ms since 1970; else 0."""
        try:
            found = datetime.fromisoformat(self.name(*keys))
            return max(0, int(found.timestamp() * 1000)) if found.tzinfo else 0
        except (ValueError, OverflowError):
            return 0

    def yes(self, *keys: str) -> bool:
        """Whether there is a `true`."""
        return self._get(keys) is True

    def repository(self, *keys: str) -> str:
        """`owner/name` there, or empty."""
        value = self.name(*keys)
        plain = _REPOSITORY.fullmatch(value) and not {".", ".."} & set(value.split("/"))
        return value if plain else ""

    def url(self, *keys: str) -> str:
        """The http(s) address there, without userinfo; else empty."""
        value = self._get(keys)
        if not isinstance(value, str) or len(value) > 2000 or not _URL.fullmatch(value):
            return ""
        return "" if "@" in value.split("/")[2] else _valid(value)


def cut(text: str, most: int = TEXT_MOST) -> str:
    """Return the text, or its first `most` characters with a mark that says how many are
    missing."""
    if len(text) <= most:
        return text
    return f"{text[:most]}\n[cut here: {len(text) - most} more characters]"


def _valid(text: str) -> str:
    return text.encode("utf-8", "replace").decode().replace("\x00", "\ufffd")
