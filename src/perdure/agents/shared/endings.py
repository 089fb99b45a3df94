"""What the end of a process says by itself, before and after the agent's own word is heard. Shared
by the classifiers.

`by_supervisor` comes first: who was stopped by perdure did not fail. `by_process` comes last: no
word of the agent explains it.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence
from dataclasses import replace

from perdure.agents.shared import json_lines
from perdure.model import Exit, Outcome, OutcomeKind

DETAIL = 600
"""Characters of an agent's words that an outcome carries."""

Rules = Sequence[tuple[OutcomeKind, re.Pattern[str]]]

_CAUSES = {
    "deadline": (OutcomeKind.TIMED_OUT, "it took longer than it was allowed to, and was ended"),
    "stalled": (OutcomeKind.STALLED, "it was silent for too long, and was ended"),
    "stopped": (OutcomeKind.CANCELLED, "it was stopped on request"),
    "retrying": (
        OutcomeKind.OVERLOADED,
        "it asked its service again and again without a whole answer, and was ended",
    ),
    "budget": (OutcomeKind.BUDGET_SPENT, "the budget was spent while it worked, and it was ended"),
    "flooded": (OutcomeKind.FAILED, "it wrote more output than is kept, and was ended"),
    "lapsed": (
        OutcomeKind.LOST,
        "nobody had renewed its time to work: its supervisor was gone, or had lost the shared "
        "database for too long",
    ),
    "lost": (OutcomeKind.LOST, "the process disappeared"),
}


_NOT_STARTED = (126, 127)


def rule(kind: OutcomeKind, *patterns: str) -> tuple[OutcomeKind, re.Pattern[str]]:
    """One line of a table: the kind that any of the patterns means, in any case of letters."""
    return kind, re.compile("|".join(patterns), re.IGNORECASE)


def judge(words: str, rules: Rules) -> OutcomeKind | None:
    """The kind of the first rule that fits."""
    return next((kind for kind, pattern in rules if pattern.search(words)), None)


def by_supervisor(exit: Exit) -> Outcome | None:
    """The outcome if perdure itself ended the process, or nobody saw the end."""
    found = _CAUSES.get(exit.cause)
    return ending(found[0], found[1], exit) if found else None


def by_process(exit: Exit, silent: str) -> Outcome:
    """The outcome where the agent said nothing of use; `silent` is the sentence for an end by
    itself."""
    number = exit.signal or (exit.code - 128 if exit.code and 128 < exit.code < 160 else 0)
    if number == signal.SIGINT:
        return ending(OutcomeKind.CANCELLED, "it was interrupted (SIGINT)", exit)
    if number:
        return ending(OutcomeKind.FAILED, f"killed by {_name(number)}", exit)
    said = last_line(exit.stderr_tail)
    if exit.code in _NOT_STARTED:
        # What a shell, env(1) and perdure's shim answer where a program is missing or cannot be
        # run: so would the next attempt end.
        return ending(
            OutcomeKind.CONFIG_ERROR,
            f"the agent could not be started (exit code {exit.code}): {said}".rstrip(": "),
            exit,
        )
    words = f": {said}" if said else ""
    return ending(OutcomeKind.FAILED, f"{silent} (exit code {exit.code}){words}", exit)


def ending(kind: OutcomeKind, detail: str, exit: Exit, until: int | None = None) -> Outcome:
    """An outcome with the exit's numbers in it."""
    return Outcome(
        kind=kind,
        detail=json_lines.text(" ".join(detail.split()), DETAIL),
        until=until,
        code=exit.code,
        signal=exit.signal,
    )


def explained(outcome: Outcome, sentence: str) -> Outcome:
    """The same outcome with what to do said before the agent's own words."""
    return replace(outcome, detail=json_lines.text(f"{sentence} ({outcome.detail})", DETAIL))


def last_line(words: str) -> str:
    """The last line that is not blank."""
    return next((line.strip() for line in reversed(words.splitlines()) if line.strip()), "")


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
