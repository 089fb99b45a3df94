"""Writes the nouns and events as JSON and reads them back. No other module knows the JSON form.

Used by the stores and by every `--json` output. Reading is strict about types and ignores unknown
fields, so that an older perdure can read what a newer one wrote.

msgspec inspects a type when it first reads one, and stores the result on the class before it is
complete. If another thread reads the same type meanwhile, the process crashes with SIGSEGV (msgspec
0.22.0). Every use of a type with msgspec, here or in another package, therefore passes it through
`resolved`.
"""

from __future__ import annotations

import json
import threading
from typing import Any, TypeVar

import msgspec

from perdure.model.events import AnyEvent

T = TypeVar("T")


def encode(value: Any) -> str:
    """Return any noun or event as compact JSON text."""
    return msgspec.json.encode(value).decode()


def decode(text: str | bytes, kind: type[T]) -> T:
    """Return the value of the given type in JSON text. Raises msgspec.ValidationError if it does
    not fit."""
    return msgspec.json.decode(text, type=resolved(kind))


def resolved(kind: T) -> T:
    """Return the type itself, after msgspec has inspected it. Only one thread at a time lets
    msgspec inspect a type. The type may be anything hashable that msgspec reads."""
    if kind not in _known:
        with _looking:
            msgspec.json.Decoder(kind)
            _known.add(kind)
    return kind


def decode_event(text: str | bytes) -> AnyEvent:
    """Return the event in JSON text. Raises msgspec.ValidationError for an event kind of a newer
    perdure; the caller shows it as unrecognised."""
    event: AnyEvent = _EVENT.decode(text)
    return event


def plain(value: Any) -> Any:
    """Return any noun or event as dicts, lists, strings and numbers, for output that mixes
    several."""
    return msgspec.json.decode(msgspec.json.encode(value))


def printed(value: Any) -> str:
    """Return a report, or an object that contains reports, as the JSON that `--json` prints:
    indented, and in plain text."""
    return json.dumps(builtins(value), indent=2, ensure_ascii=False)


def builtins(value: Any) -> Any:
    """Return the same as `plain`, but keep text that is not valid UTF-8, as a file name may be."""
    return msgspec.to_builtins(value)


_looking = threading.RLock()
_known: set[Any] = set()
_EVENT: msgspec.json.Decoder[Any] = msgspec.json.Decoder(resolved(AnyEvent))
