"""The nouns and events as JSON, and back: the one place that knows how they are written down.

Used by the stores and by every `--json` output. Reading is strict in types and tolerant of unknown
fields, so that an older perdure can read what a newer one wrote.

msgspec looks through a type when it first reads one, and keeps what it found at the class before it
is whole. Another thread that reads the same type meanwhile takes half of it, and the process ends
with SIGSEGV (msgspec 0.22.0). So whoever reads a type with msgspec, here or in another room, names
it by `resolved`.
"""

from __future__ import annotations

import threading
from typing import Any, TypeVar

import msgspec

from perdure.model.events import AnyEvent

T = TypeVar("T")


def encode(value: Any) -> str:
    """Any noun or event as compact JSON text."""
    return msgspec.json.encode(value).decode()


def decode(text: str | bytes, kind: type[T]) -> T:
    """JSON text as a noun of the given kind. Raises msgspec.ValidationError where it does not
    fit."""
    return msgspec.json.decode(text, type=resolved(kind))


def resolved(kind: T) -> T:
    """The type itself (anything that msgspec reads, hashable), as soon as msgspec knows all of it:
    one thread at a time looks."""
    if kind not in _known:
        with _looking:
            msgspec.json.Decoder(kind)
            _known.add(kind)
    return kind


def decode_event(text: str | bytes) -> AnyEvent:
    """JSON text as an event. An event of a newer perdure is an error for the caller to show as
    unrecognised."""
    event: AnyEvent = _EVENT.decode(text)
    return event


def plain(value: Any) -> Any:
    """Any noun or event as dicts, lists, strings and numbers, for output that mixes several."""
    return msgspec.json.decode(msgspec.json.encode(value))


_looking = threading.RLock()
_known: set[Any] = set()
_EVENT: msgspec.json.Decoder[Any] = msgspec.json.Decoder(resolved(AnyEvent))
