"""The nouns and events as JSON, and back: the one place that knows how they are written down.

Used by the stores and by every `--json` output. Reading is strict in types and tolerant of unknown fields, so that an
older perdure can read what a newer one wrote.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from perdure.events import AnyEvent

T = TypeVar("T")


def encode(value: Any) -> str:
    """Any noun or event as compact JSON text."""
    return msgspec.json.encode(value).decode()


def decode(text: str | bytes, kind: type[T]) -> T:
    """JSON text as a noun of the given kind. Raises msgspec.ValidationError where it does not fit."""
    return msgspec.json.decode(text, type=kind)


def decode_event(text: str | bytes) -> AnyEvent:
    """JSON text as an event. An event of a newer perdure is an error for the caller to show as unrecognised."""
    event: AnyEvent = _EVENT.decode(text)
    return event


def plain(value: Any) -> Any:
    """Any noun or event as dicts, lists, strings and numbers, for output that mixes several."""
    return msgspec.json.decode(msgspec.json.encode(value))


_EVENT: msgspec.json.Decoder[Any] = msgspec.json.Decoder(AnyEvent)
