"""Measures how full a conversation is, and decides what to do before it gets too long for its
model. Pure.

A conversation's *fill* is the size of its newest request: the input, including cached parts.
`attempt` reads it from the transcript before and after every attempt (`AgentDriver.fill`).
`window_of` returns the maximum size for the model, and `measure` decides what is done before the
next attempt. After that decision, call `can_compact`. If it is True, a continuation RESUME with
`compact=True` makes the CLI compact the conversation at its start, in the same process and
conversation::

    if can_compact(driver.abilities.compacts, fill, in_vain=False):
        continuation = replace(continuation, compact=True)

The CLIs also compact by themselves when a conversation reaches a certain size. Claude Code and
Codex get that size when they are launched; they append the result to the transcript. Gemini CLI and
OpenCode use a size of their own. The pages in docs/decisions describe how this behavior was
observed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

from msgspec import Struct
from msgspec.structs import replace

from perdure.model import CompactAt, ContinuityPolicy, Fill, Measure, WhenFull

WINDOWS: tuple[tuple[str, int], ...] = (
    # From modelUsage.contextWindow of Claude Code 2.1.329, one run for each model, 2026-11-21.
    ("*claude-haiku-4*", 200_000),
    ("*claude-opus-4*", 200_000),
    ("*claude-sonnet-4*", 200_000),
    ("*claude-*-5*", 1_000_000),
    # From the list of models in Codex 0.169.0, which uses 95 % of each window; 2026-11-21.
    ("*gpt-6.1-terra*", 500_000),
    ("*gpt-daybreak-red*", 372_000),
    ("*gpt-5*", 272_000),
    ("*gpt-6*", 272_000),
    # DEFAULT_TOKEN_LIMIT of Gemini CLI 0.61.0, for every model; 2026-11-21.
    ("*gemini-*", 1_048_576),
)
"""Maximum size of a conversation (window), in tokens, by pattern of a model's name. The first match
counts. Used only if the CLI does not report the window."""


class FillRules(Struct, frozen=True, kw_only=True):
    """The user's settings for long conversations. A conversation counts as full when it takes up
    `percent` of the model's window."""

    policy: WhenFull = WhenFull.COMPACT
    percent: int = 80
    windows: Mapping[str, int] | None = None
    """Windows in tokens by pattern of a model's name, as the user has set them. They take
    precedence over everything else."""

    def named(self, policy: str) -> FillRules:
        """Return a copy with the policy that a task sets. Return these rules unchanged if `policy`
        is empty."""
        if policy:
            return replace(self, policy=WhenFull(policy))
        return self


def window_of(model: str, told: int, rules: FillRules) -> tuple[int, str]:
    """Return the model's window in tokens, and the source of that number: `setting`, `agent` or
    `table`. Returns 0 and an empty string if the window is unknown. `told` is the window that the
    agent reported."""
    given = _window_in((rules.windows or {}).items(), model)
    if given:
        return given, "setting"
    if told:
        return told, "agent"
    known = _window_in(WINDOWS, model.lower())
    return known, "table" if known else ""


def _window_in(windows: Iterable[tuple[str, int]], model: str) -> int:
    """Return the window of the first pattern that fits the model; 0 if none does."""
    for pattern, size in windows:
        if fnmatchcase(model, pattern):
            return size
    return 0


def completed(found: Fill, known: Fill | None, model: str, rules: FillRules) -> Fill:
    """Return the fill found in a transcript, with missing fields filled in from `known` (an earlier
    fill of the conversation) and from the requested model."""
    model = found.model or (known.model if known is not None else "") or model
    said_before = known is not None and known.source == "agent" and known.model in ("", model)
    window, source = window_of(
        model, found.window or (known.window if known is not None and said_before else 0), rules
    )
    return replace(found, model=model, window=window, source=source)


def is_full(fill: Fill | None, rules: FillRules) -> bool:
    """Return whether the conversation takes up the configured percentage of the window. A
    conversation of unknown size counts as not full."""
    return fill is not None and fill.window > 0 and fill.tokens * 100 >= fill.window * rules.percent


def can_compact(compacts: bool, fill: Fill | None, *, in_vain: bool) -> bool:
    """Return whether the CLI can compact the conversation when perdure asks for it. `compacts`: the
    driver's ability. `in_vain`: the previous attempt compacted the conversation or tried to, and
    the conversation was still too long."""
    return compacts and not in_vain and fill is not None and fill.tokens > 0


def measure(
    rules: FillRules, fill: Fill | None, *, compacts: bool, exhausted: bool, in_vain: bool
) -> Measure:
    """Return the step that is needed before the conversation continues. `exhausted`: whether the
    conversation's newest request was refused as too long. `compacts` and `in_vain`: as in
    `can_compact`."""
    if not exhausted and (rules.policy is WhenFull.CLI or not is_full(fill, rules)):
        return Measure.NONE
    if rules.policy is WhenFull.STOP:
        return Measure.STOP
    if rules.policy is not WhenFull.ROLL_OVER and can_compact(compacts, fill, in_vain=in_vain):
        return Measure.COMPACT
    if rules.policy is WhenFull.COMPACT and not exhausted and not compacts:
        return Measure.NONE
    return Measure.ROLL_OVER


def asks_for_person(continuity: ContinuityPolicy, following: Measure) -> bool:
    """Return whether a conversation that is too long has to wait for a person. It has to wait if it
    may neither be compacted nor be replaced by a new one."""
    return following is Measure.STOP or (
        following is Measure.ROLL_OVER and continuity is ContinuityPolicy.STRICT
    )


def compact_at(rules: FillRules, fill: Fill | None, model: str, *, now: bool) -> CompactAt | None:
    """Return the size at which a launched CLI compacts its conversation. None means the CLI's own
    default. `now`: return a size below the current fill, so that the CLI compacts immediately."""
    if not now and rules.policy is not WhenFull.COMPACT:
        return None
    if fill is not None and fill.window:
        window, source = (fill.window, fill.source)
    else:
        window, source = window_of(model, 0, rules)
    tokens = window * rules.percent // 100
    if now and fill is not None:
        tokens = max(1, fill.tokens - 1 - fill.tokens // 50)
    return CompactAt(tokens=tokens, window=window, percent=rules.percent, given=source == "setting")


def describe_fill(fill: Fill) -> str:
    """Return the fill in words: `163,000 tokens of 200,000 (82 %)`."""
    if not fill.window:
        return f"{fill.tokens:,} tokens of an unknown window"
    return f"{fill.tokens:,} tokens of {fill.window:,} ({fill.tokens * 100 // fill.window} %)"


HANDOVER = (
    "This conversation has become too long and ends here; you will go on with the same work, in "
    "the same directory, in a new one that knows nothing of this one. Write down now what you will "
    "need there. Do not use any tool and do not work on: answer with the summary alone. Put in it: "
    "the task as it was given, word for word where the words matter; what is done and where it is; "
    "what is left to do, in order; what you decided and why; names, interfaces and values that "
    "later work must use exactly; commands that are needed; what failed and must not be tried "
    "again."
)
"""The last prompt of a conversation that is replaced by a new one. It asks for a summary."""
