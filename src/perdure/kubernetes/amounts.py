"""Dollar amounts and choices (words such as `fresh-ok`), in the form that a TaskRun uses. Pure.

By Kubernetes' conventions a resource has no floats, because not every client keeps them unchanged,
and choices are written as in `FreshOk`. perdure counts in floats and writes `fresh-ok`. The floats
and lower-case words that an earlier version wrote are read as well.
"""

from __future__ import annotations

import re
from typing import Any

Dollars = int | float | str
"""An amount as it is in a TaskRun: a whole number, or a decimal number as text."""
PLACES = 6
"""Number of decimals of an amount that is written: millionths of a dollar."""
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
"""Paths of the choices in a TaskRun's spec, whose words perdure writes in another form."""


def dollars(amount: Dollars) -> float:
    """Return an amount as a number. Raises ValueError if it is not a number, or is negative."""
    if isinstance(amount, bool):
        raise ValueError("not an amount of dollars")
    if isinstance(amount, str):
        if not _AMOUNT.fullmatch(amount):
            raise ValueError("not an amount of dollars")
        return float(amount)
    if not 0 <= amount < 2**53:
        raise ValueError("not an amount of dollars")
    return float(amount)


def dollars_or_none(amount: Any) -> float:
    """Return an untrusted amount as a number; 0 if it is not a valid amount."""
    try:
        return dollars(amount) if isinstance(amount, int | float | str) else 0.0
    except ValueError:
        return 0.0


def written(amount: float) -> Dollars:
    """Return an amount as a TaskRun has it: a whole number as it is, any other as text."""
    if amount == int(amount):
        return int(amount)
    return f"{amount:.{PLACES}f}".rstrip("0").rstrip(".")


def camel_word(word: str) -> str:
    """Return a choice such as `fresh-ok` as a TaskRun has it: `FreshOk`."""
    return "".join(part[:1].upper() + part[1:] for part in word.split("-"))


def plain_word(word: str) -> str:
    """Return a choice such as `FreshOk` as perdure has it: `fresh-ok`."""
    return _HUMP.sub("-", word).lower()


def with_plain_words(spec: Any) -> Any:
    """Return a TaskRun's spec with the words of its choices as perdure has them."""
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
