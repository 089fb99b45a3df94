"""Checks a task's specification when it is received from the library, the API, a plan file, a forge
or a TaskRun, and decides which settings apply to it. Pure.

Python does not enforce the types of `TaskSpec`. Without this check a wrong type would only be
detected when the stored run is read.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any, get_type_hints

import msgspec
from msgspec.structs import asdict, replace

from perdure.errors import UsageError
from perdure.model import (
    ContinuityPolicy,
    MapWhen,
    OnDenied,
    OnLeftover,
    Permissions,
    TaskSpec,
    WhenFull,
)
from perdure.model.codec import resolved

_RANGES: Mapping[str, tuple[float, float, str]] = {
    "attempts": (1, 1000, "a whole number from 1 to 1000"),
    "verify_rounds": (0, 1000, "a whole number from 0 to 1000"),
    "fork_at": (0, math.inf, "a whole number, 0 or more"),
    "timeout_s": (0, 1e9, "a number of seconds, 0 or more"),
    "stall_s": (0, 1e9, "a number of seconds, 0 or more"),
    "verify_timeout_s": (0, 1e9, "a number of seconds, 0 or more"),
    "budget_usd": (0, 1e9, "an amount of dollars, 0 or more"),
}
_CHOICES: Mapping[str, tuple[str, ...]] = {
    "map": tuple(MapWhen),
    "when_full": tuple(WhenFull),
    "on_denied": tuple(OnDenied),
    "last_word": ("off", "on"),
    "on_leftover": tuple(OnLeftover),
}
_WORDS: Mapping[Any, str] = {
    str: "a text",
    int: "a whole number",
    float: "a number",
    tuple[str, ...]: "a list of texts",
    dict[str, str]: "a table of texts by name",
}


def fitting(usual: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a task: the given ones, and the usual ones that fit them.

    A usual model is meant for the usual agent. A usual check is not run for a read-only task,
    because the command may be part of the repository. A usual backend and base do not fit a
    directory or a service."""
    unfit: set[str] = set()
    if given.get("agent", usual["agent"]) != usual["agent"]:
        unfit.add("model")
    if given.get("permissions", usual["permissions"]) == Permissions.READ:
        unfit.add("verify")
    if given.get("here") or given.get("service"):
        unfit |= {"backend", "base"}
    fit = {name: value for name, value in usual.items() if name not in unfit}
    return {**fit, **given}


def with_defaults(usual: TaskSpec, given: Mapping[str, Any]) -> TaskSpec:
    """Return the task with the given fields, and the fields of `usual` that fit them."""
    return TaskSpec(**fitting(asdict(usual), given))


def check(spec: TaskSpec) -> TaskSpec:
    """Return the task with every field converted to its type: a path to text, a list to a tuple, a
    word to an enum value.

    Raises UsageError, which names the first invalid field and the accepted values. The error shows
    the field's value, except for a prompt.
    """
    kinds = get_type_hints(TaskSpec)
    fields = {}
    for name in TaskSpec.__struct_fields__:
        fields[name] = _field(name, getattr(spec, name), kinds[name])
    return replace(spec, **fields)


def _field(name: str, value: Any, kind: Any) -> Any:
    choices = _CHOICES.get(name, ())
    if kind in (Permissions, ContinuityPolicy):
        choices = tuple(kind)
    if choices:
        expected = f"one of {', '.join(choices)}"
    else:
        expected = _WORDS.get(kind, "")
    if name in _RANGES:
        expected = _RANGES[name][2]
    if kind is str and isinstance(value, os.PathLike):
        value = os.fspath(value)
    try:
        found = msgspec.convert(value, resolved(kind), strict=True)
    except msgspec.ValidationError:
        raise _refusal(name, value, expected) from None
    if name in _RANGES and not _RANGES[name][0] <= found <= _RANGES[name][1]:
        raise _refusal(name, value, expected)
    if name in _CHOICES and found and found not in choices:
        raise _refusal(name, value, expected)
    for text in _texts(found):
        _check_text(name, text)
    return found


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [*value.keys(), *value.values()]
    if isinstance(value, tuple):
        return list(value)
    return []


def _check_text(name: str, text: str) -> None:
    if "\x00" in text:
        raise UsageError(
            f"the task's field {name} contains a NUL character",
            "remove it: programs accept no NUL in arguments and names",
        )
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UsageError(
            f"the task's field {name} is not valid Unicode text", "give it as UTF-8"
        ) from None


def _refusal(name: str, value: Any, expected: str) -> UsageError:
    if isinstance(value, str | int | float | None) and name != "prompt":
        shown = repr(value)
    else:
        shown = f"a {type(value).__name__}"
    return UsageError(f"the task's field {name} cannot be {shown[:80]}", f"expected {expected}")
