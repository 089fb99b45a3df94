"""Groups failures by agent, outcome and message. Numbers, names and paths in messages are ignored.
Pure."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

from msgspec import Struct, field

from perdure.model import OutcomeKind, RunState
from perdure.protocols import FailedAttempt
from perdure.rules.lifecycle import NEEDS_PERSON
from perdure.rules.text import one_line

VARYING = (
    (re.compile(r"https?://[^\s\"'<>]+"), "<url>"),
    (
        re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.IGNORECASE),
        "<id>",
    ),
    (re.compile(r"(?<![\w.])(?:~|\.{1,2})?/[\w.@+~-]+(?:/[\w.@+~-]+)*"), "<path>"),
    (re.compile(r"\b(?=[0-9a-f]*[0-9])(?=[0-9a-f]*[a-f])[0-9a-f]{7,64}\b", re.IGNORECASE), "<id>"),
    (re.compile(r"\d+(?:[.,:]\d+)*"), "<n>"),
)
RUNS = 8
"""Maximum number of runs that a group of failures names."""
SUGGESTED = {
    **NEEDS_PERSON,
    OutcomeKind.RATE_LIMITED: (
        "it waits for the end of the limit by itself; account_jobs limits the agents that run on "
        "one account"
    ),
    OutcomeKind.OVERLOADED: "the model's service was overloaded; it is tried again by itself",
    OutcomeKind.LOST: (
        "the supervisor or the machine died; the next attempt continues where it stopped"
    ),
    OutcomeKind.TIMED_OUT: "give it more time (timeout), or a smaller task",
    OutcomeKind.STALLED: (
        "see what it waited for: perdure logs; raise stall for tools with long silences"
    ),
    OutcomeKind.VERIFY_FAILED: (
        "the task's own check fails: look at its output in the run's timeline"
    ),
    OutcomeKind.SESSION_MISSING: (
        "the agent's own clean-up may remove conversations: perdure doctor shows how to turn it off"
    ),
    OutcomeKind.SESSION_BROKEN: (
        "perdure sessions check shows the damage of the transcript and its repair"
    ),
    OutcomeKind.CONTINUITY_LOST: (
        "perdure why shows where the conversation went; the policy disclose continues with a brief"
    ),
    OutcomeKind.CONTEXT_EXHAUSTED: ("set when_full to compact or roll-over, to avoid this"),
    OutcomeKind.WRITER_CONFLICT: "another program has the conversation open: end it there",
    OutcomeKind.DENIED: "allow the tool (permissions, or the agent's own settings), then retry",
    OutcomeKind.REFUSED: "rephrase it (perdure update), or choose another model",
    OutcomeKind.TRUNCATED: "the model's answer was cut off or empty; the run continues by itself",
    OutcomeKind.MAX_TURNS: "the agent's own limit of turns was reached: raise it, or retry",
}
"""Advice by kind of outcome. Kinds that are not listed have none."""


class Failure(Struct):
    """A group of failed attempts. `runs` has the state of the group's runs. `resolved` is the
    number of runs that have succeeded since they failed."""

    id: str
    agent: str
    kind: OutcomeKind
    message: str
    first: int
    last: int
    count: int = 0
    runs: dict[str, RunState] = field(default_factory=dict)
    resolved: int = 0

    @property
    def suggestion(self) -> str:
        return SUGGESTED.get(self.kind, "")


def normal(message: str) -> str:
    """Return a message with its varying parts (numbers, ids, paths) replaced by placeholders such
    as `<n>`."""
    text = one_line(message, 300)
    for pattern, word in VARYING:
        text = pattern.sub(word, text)
    return text


def grouped(failed: Sequence[FailedAttempt]) -> list[Failure]:
    """Return the attempts in groups, the group with the newest failure first. Attempts that a
    person stopped do not count as failures."""
    groups: dict[str, Failure] = {}
    seen: dict[str, set[str]] = {}
    for each in failed:
        outcome = each.attempt.outcome
        if outcome is None or outcome.kind is OutcomeKind.CANCELLED:
            continue
        message = normal(outcome.detail)
        key = hashlib.sha256(f"{each.agent}\0{outcome.kind}\0{message}".encode()).hexdigest()[:12]
        at = each.attempt.ended or each.attempt.started
        group = groups.setdefault(key, Failure(key, each.agent, outcome.kind, message, at, at))
        group.first, group.last, group.count = (
            min(group.first, at),
            max(group.last, at),
            group.count + 1,
        )
        if each.attempt.run not in seen.setdefault(key, set()):
            seen[key].add(each.attempt.run)
            group.resolved += each.state is RunState.SUCCEEDED
            if each.name and len(group.runs) < RUNS:
                group.runs[each.name] = each.state
    return sorted(groups.values(), key=lambda group: -group.last)
