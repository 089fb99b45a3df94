"""Describes an attempt as an in-toto statement that can be verified on another machine.

`statement_of` makes a statement from a run's report. `signatures` signs statements, opens envelopes
(DSSE, ed25519) and keeps this host's key. `attachment` attaches an envelope to a commit. Used by
the commands `perdure receipt` and `perdure key`, and at the end of an attempt.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from perdure.errors import NotFound
from perdure.model import Checkpoint, Context
from perdure.model.codec import builtins
from perdure.model.reports import RunReport

STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://perdure.dev/attestation/attempt/v1"
OF_ATTEMPT = (
    *("number", "context_version", "continuation", "rung", "why", "session_id"),
    *("lost_session_id", "agent_version", "outcome", "usage", "started", "ended"),
)
"""Names of the fields that are copied from an attempt's report into the statement about it."""


class Subject(msgspec.Struct, frozen=True):
    """One thing that a statement is about, usually a commit. It is identified by a digest."""

    name: str
    digest: dict[str, str]


class Statement(msgspec.Struct, frozen=True, kw_only=True):
    """An in-toto statement, version 1."""

    type: str = msgspec.field(name="_type", default=STATEMENT)
    subject: tuple[Subject, ...]
    predicate_type: str = msgspec.field(name="predicateType", default=PREDICATE)
    predicate: dict[str, Any]

    @property
    def run(self) -> tuple[str, str]:
        """The id and name of the run; empty if the statement does not have them."""
        found = self.predicate.get("run")
        run = found if isinstance(found, dict) else {}
        return str(run.get("id", "")), str(run.get("name", ""))

    @property
    def attempt(self) -> int:
        """The number of the attempt; 0 if the statement does not have it."""
        found = self.predicate.get("attempt")
        number = found.get("number") if isinstance(found, dict) else 0
        if isinstance(number, int):
            return number
        return 0


def statement_of(
    report: RunReport,
    checkpoints: Sequence[Checkpoint],
    number: int,
    permissions: str,
) -> Statement:
    """Return the statement about an attempt (`number` 0: the newest). It contains only facts that
    never change, so a second call for the same attempt returns the same content. Raises NotFound if
    there is no such attempt, or if it has not ended."""
    attempts = report.attempts
    wanted = number or (attempts[-1].number if attempts else 0)
    found = next((each for each in attempts if each.number == wanted), None)
    if found is None:
        missing = f"attempt {wanted}" if wanted else "attempt yet"
        raise NotFound(f"{report.name} has no {missing}")
    if found.outcome is None:
        raise NotFound(f"attempt {wanted} of {report.name} has not ended, and has no receipt yet")
    place = report.workspace
    instructions = []
    for each in report.contexts:
        if each.version <= found.context_version:
            instructions.append(_instruction(each))
    facts = {
        "run": {
            "id": report.id,
            "name": report.name,
            "agent": report.agent,
            "host": report.host,
            "repository": place.repo,
            "branch": place.branch,
            "policy": report.policy,
            "instructions": instructions,
        },
        "attempt": {key: getattr(found, key) for key in OF_ATTEMPT},
        "continuity": found.receipt,
        "work": found.work,
        "checks": found.checks,
        "effects": found.effects,
        "allowed": {"permissions": permissions, "flags": found.flags},
    }
    predicate = _encodable(builtins(facts))
    subject = _subjects(checkpoints, wanted, report.id, predicate)
    return Statement(subject=subject, predicate=predicate)


def _encodable(value: Any) -> Any:
    """Return a copy of the value in which all text can be encoded as UTF-8. File names may contain
    any bytes, so characters that cannot be encoded become `?`."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, Mapping):
        return {str(key): _encodable(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return list(map(_encodable, value))
    return value


def _instruction(context: Context) -> dict[str, int | str]:
    """Return the version and digest of instructions. The text is left out because a prompt may be
    confidential."""
    digest = hashlib.sha256(context.text.encode("utf-8", "replace")).hexdigest()
    return {"version": context.version, "sha256": digest}


def _subjects(
    checkpoints: Sequence[Checkpoint], number: int, run: str, predicate: Mapping[str, Any]
) -> tuple[Subject, ...]:
    """Return the subjects of a statement: the HEAD commit of the workdir, and the commit of the
    attempt's newest checkpoint, which includes all files. If the attempt has no checkpoint, the
    subject is a digest of the predicate."""
    own = [each for each in checkpoints if each.attempt == number]
    if not own:
        text = json.dumps(predicate, sort_keys=True, separators=(",", ":")).encode()
        digest = {"sha256": hashlib.sha256(text).hexdigest()}
        return (Subject(f"run {run}, attempt {number}", digest),)
    newest = own[-1]
    found = [Subject(f"checkpoint {newest.number}", {"gitCommit": newest.workdir.commit})]
    if newest.workdir.head:
        found.insert(0, Subject("HEAD", {"gitCommit": newest.workdir.head}))
    return tuple(found)
