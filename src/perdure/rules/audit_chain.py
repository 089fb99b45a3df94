"""The audit trail: lines that record who did what. Each line has a hash that covers the line
before.

Pure. The store appends lines (`store.audit`), `perdure audit` prints and checks them. Anybody can
check an exported trail without perdure: the hash of a line is the SHA-256 of its JSON without the
field `hash`, with sorted keys, no spaces, and only ASCII characters.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec

from perdure.model.codec import resolved

LINE_MOST = 64 * 1024
"""Maximum length of a line of an exported trail, in characters. A longer line counts as invalid."""


class AuditLine(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the trail. `sha256` is the digest of the journal record's event, so a change of
    that record can be detected too."""

    number: int
    """Position in the trail, counted from 1 without gaps."""
    at: int
    """Time in ms, by the store's clock."""
    actor: str
    kind: str
    """The kind of the journal event that the line is about. For an action without a journal record,
    the kind of that action, such as `token_added`."""
    run: str
    """The full id of the run; empty for an action that concerns no run."""
    attempt: int
    record: int
    """Number of the journal record that the line is about; 0 for an action without one."""
    about: str
    """Object of an action without a journal record, such as the name of a token. In a
    `person_needed` line, the message that says what a person has to do."""
    sha256: str
    previous: str
    """The hash of the previous line; empty for the first line."""
    hash: str


def hash_of(line: AuditLine) -> str:
    """Return the hash that the line must have, computed from its other fields."""
    fields = msgspec.structs.asdict(line)
    del fields["hash"]
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def sealed(line: AuditLine) -> AuditLine:
    """Return a copy of the line with its hash filled in."""
    return msgspec.structs.replace(line, hash=hash_of(line))


def digest(text: str) -> str:
    """Return the SHA-256 of an event's stored text."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def problems(lines: Iterable[AuditLine], *, whole: bool = False) -> Iterator[str]:
    """Yield a sentence for each line that was changed, and for each place where lines are missing
    or in the wrong order. `whole`: whether the first of these lines must also be the first line of
    the trail."""
    before: AuditLine | None = None
    for line in lines:
        if hash_of(line) != line.hash:
            yield f"line {line.number} was changed: {named(line)}"
        if before is None:
            if whole and line.number != 1:
                yield f"{_missing(0, line.number)} before line {line.number}"
            elif (line.number == 1) != (line.previous == ""):
                yield f"line {line.number} does not follow from the one before it"
        elif line.number != before.number + 1:
            yield f"{_missing(before.number, line.number)} before line {line.number}"
        elif line.previous != before.hash:
            yield f"line {line.number} does not follow from line {before.number}"
        before = line


def named(line: AuditLine) -> str:
    """Return a short summary of a line."""
    about = f" of {line.about}" if line.about else ""
    run = f" of run {line.run}" if line.run else about
    return f"{line.kind}{run} by {line.actor}"


def _missing(before: int, after: int) -> str:
    if after <= before:
        return f"the order is broken (line {after} follows line {before})"
    first, last = before + 1, after - 1
    if first == last:
        return f"line {first} is missing"
    return f"lines {first} to {last} are missing"


def read(text: str, number: int) -> AuditLine:
    """Parse one line of an exported trail. Raises ValueError with a sentence for invalid text.
    `number` is the line's position in the file, for that sentence."""
    if len(text) > LINE_MOST:
        raise ValueError(f"line {number} of the file is too long for an audit trail")
    try:
        found: Mapping[str, Any] = json.loads(text)
        known = {name: found[name] for name in AuditLine.__struct_fields__}
        return msgspec.convert(known, resolved(AuditLine))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"line {number} of the file is not a line of an audit trail") from error
