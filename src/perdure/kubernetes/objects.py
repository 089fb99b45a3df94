"""Type names for the JSON that perdure exchanges with the API server, functions for the parts of
`metadata` that several modules read, and conversions of the values in a TaskRun. Pure.

Dollar amounts and choices (words such as `fresh-ok`) have another form in a TaskRun than in
perdure. By Kubernetes' conventions a resource contains no floats, because some clients change them,
and choices are written like `FreshOk`. perdure itself uses floats and writes `fresh-ok`. TaskRuns
written by an earlier version contain floats and lower-case words, which are still accepted.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

KubernetesObject = dict[str, Any]
"""An object that the API server returned. The API server checks `metadata`, and the rest of an
object of a built-in kind. Anyone with permission can write anything into a TaskRun's status."""
Manifest = dict[str, Any]
"""An object that perdure builds and asks the API server to create."""
MergePatch = dict[str, Any]
"""The fields of an object to change, as a JSON merge patch. Null removes a field."""
PodSpec = dict[str, Any]
"""The `spec` of a pod."""
Container = dict[str, Any]
"""An entry of the `containers` or `initContainers` of a pod's spec."""
UntrustedObject = Mapping[str, object]
"""An object that the API server returned, or a part of one, of which each value is checked before
it is used."""


def labels_of(body: KubernetesObject) -> dict[str, str]:
    """Return the labels of an object."""
    found: dict[str, str] = body["metadata"].get("labels") or {}
    return found


def annotations_of(body: KubernetesObject) -> dict[str, str]:
    """Return the annotations of an object."""
    found: dict[str, str] = body["metadata"].get("annotations") or {}
    return found


def is_being_deleted(body: KubernetesObject) -> bool:
    """Return whether the deletion of an object was requested. Until the deletion is complete, the
    object still exists, for example because of a finalizer."""
    return bool(body["metadata"].get("deletionTimestamp"))


Dollars = int | float | str
"""A dollar amount as a TaskRun contains it: a whole number, or a decimal number as text."""
PLACES = 6
"""Number of decimals to which an amount is rounded when it is written (millionths of a dollar)."""
_AMOUNT = re.compile(r"[0-9]{1,12}([.][0-9]{1,12})?")
_HUMP = re.compile(r"(?<=[a-z])(?=[A-Z])")
CHOICES = (
    ("permissions",),
    ("onEdit",),
    ("policy", "continuity"),
    ("policy", "whenFull"),
    ("policy", "onDenied"),
    ("policy", "onLeftover"),
)
"""Paths of the fields in a TaskRun's spec whose value is a choice."""


def dollars(amount: Dollars) -> float:
    """Convert an amount to a number of dollars. Raises ValueError if it is not a number, or is
    negative."""
    if isinstance(amount, bool):
        raise ValueError("not an amount of dollars")
    if isinstance(amount, str):
        if not _AMOUNT.fullmatch(amount):
            raise ValueError("not an amount of dollars")
        return float(amount)
    if not 0 <= amount < 2**53:
        raise ValueError("not an amount of dollars")
    return float(amount)


def dollars_or_zero(amount: Any) -> float:
    """Convert an untrusted amount to a number of dollars. Return 0 if it is not a valid amount."""
    try:
        return dollars(amount) if isinstance(amount, int | float | str) else 0.0
    except ValueError:
        return 0.0


def written(amount: float) -> Dollars:
    """Convert an amount to the form that a TaskRun contains: a whole number stays a number, any
    other becomes text."""
    if amount == int(amount):
        return int(amount)
    return f"{amount:.{PLACES}f}".rstrip("0").rstrip(".")


def camel_word(word: str) -> str:
    """Convert a choice to the form that a TaskRun contains: `fresh-ok` becomes `FreshOk`."""
    return "".join(part[:1].upper() + part[1:] for part in word.split("-"))


def plain_word(word: str) -> str:
    """Convert a choice to perdure's own form: `FreshOk` becomes `fresh-ok`."""
    return _HUMP.sub("-", word).lower()


def with_plain_words(spec: Any) -> Any:
    """Return a copy of a TaskRun's spec with all choices in perdure's own form."""
    if not isinstance(spec, dict):
        return spec
    changed = dict(spec)
    for first, *rest in CHOICES:
        value = changed.get(first)
        if not rest and isinstance(value, str):
            changed[first] = plain_word(value)
        elif rest and isinstance(value, dict) and isinstance(value.get(rest[0]), str):
            changed[first] = {**value, rest[0]: plain_word(value[rest[0]])}
    return changed
