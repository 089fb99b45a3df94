"""Writes the data types and events as JSON and reads them back. No other module knows the JSON
form.

Used by the stores and by every `--json` output. Reading is strict about types and ignores unknown
fields, so an older perdure can read what a newer one wrote.

When msgspec reads a type for the first time, it inspects the type, and stores the result on the
class before the result is complete. If another thread reads the same type at that moment, the
process crashes with SIGSEGV (msgspec 0.22.0). So all modules, in this package and in others, must
pass a type to `resolved` before msgspec reads it.
"""

from __future__ import annotations

import json
import threading
from typing import Any, TypeVar, get_args

import msgspec

from perdure.model.events import AnyEvent

T = TypeVar("T")


def encode(value: Any) -> str:
    """Return any value of a data type as compact JSON text."""
    return msgspec.json.encode(value).decode()


def decode(text: str | bytes, kind: type[T]) -> T:
    """Decode JSON text and return it as a value of the type `kind`. Raises msgspec.ValidationError
    if the text does not match the type."""
    return msgspec.json.decode(text, type=resolved(kind))


def resolved(kind: T) -> T:
    """Make msgspec inspect a type, and return the type. A lock makes sure that only one thread at a
    time does this. The type may be anything hashable that msgspec reads."""
    if kind not in _known:
        with _looking:
            msgspec.json.Decoder(kind)
            _known.add(kind)
    return kind


def decode_event(text: str | bytes) -> AnyEvent:
    """Decode JSON text and return the event. Raises msgspec.ValidationError for a kind of event
    that only a newer perdure knows. The caller then shows it as an unknown event.

    Every kind has its own decoder, which is made when its first event is read. A decoder for all
    kinds takes 4 ms to make, and an agent would start later by this time.
    """
    kind = _KIND.decode(text).kind
    decoder = _decoders.get(kind)
    if decoder is None:
        if kind not in _KINDS:
            raise msgspec.ValidationError(f"unknown kind of event: {kind!r}")
        decoder = _decoders[kind] = msgspec.json.Decoder(resolved(_KINDS[kind]))
    return decoder.decode(text)


def plain(value: Any) -> Any:
    """Return any value of a data type as dicts, lists, strings and numbers, so that it can be part
    of a larger JSON output."""
    return msgspec.json.decode(msgspec.json.encode(value))


def printed(value: Any) -> str:
    """Return a report, or an object that contains reports, as the JSON text that `--json` prints:
    indented and without escapes for non-ASCII characters."""
    return json.dumps(builtins(value), indent=2, ensure_ascii=False)


def builtins(value: Any) -> Any:
    """Return the same as `plain`, but keep text that is not valid UTF-8, such as a file name,
    unchanged."""
    return msgspec.to_builtins(value)


_looking = threading.RLock()
_known: set[Any] = set()


class _EventKind(msgspec.Struct):
    kind: str


_KIND = msgspec.json.Decoder(_EventKind)
_KINDS: dict[str, type[AnyEvent]] = {
    str(each.__struct_config__.tag): each for each in get_args(AnyEvent)
}
_decoders: dict[str, msgspec.json.Decoder[AnyEvent]] = {}
"""Decoders of the kinds of events that this process has read."""
