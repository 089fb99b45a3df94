"""Determines how an attempt with the Gemini CLI ended. Pure. Every message matched below was
printed by 0.61.0.

An attempt succeeded if its result has `status: success`, no error came before it, and the exit code
is 0. After SIGTERM and SIGINT the code is 0, but there is no result. After a failed request the
code is the HTTP status modulo 256 (429 becomes 173). After any other failure without a result, the
code is a small number that the CLI defines.
"""

from __future__ import annotations

from collections.abc import Sequence

from perdure.agents.shared.outcomes import (
    by_process,
    by_supervisor,
    ending,
    explained,
    judge,
    last_line,
    resets_at,
    rule,
)
from perdure.model import Exit, Outcome, OutcomeKind
from perdure.model.events import AgentEvent, TurnEnded
from perdure.patterns import late_pattern

_K = OutcomeKind

_WORDS = (
    rule(_K.TRUNCATED, r"model returned an empty response"),
    rule(
        _K.SESSION_MISSING,
        r"Invalid session identifier|No previous sessions found for this project",
    ),
    rule(_K.WRITER_CONFLICT, r"Session ID \S+ already exists"),
    rule(
        _K.SESSION_BROKEN,
        r"Failed to load session|function (call|response) (turn|parts)|thought_?signature",
    ),
    rule(_K.MAX_TURNS, r"max(imum)? session turns"),
    rule(
        _K.CONTEXT_EXHAUSTED,
        r"input token count .{0,40}exceeds the maximum|exceeds? the (model's )?context",
    ),
    rule(
        _K.CONFIG_ERROR,
        r"not running in a trusted directory|Unknown arguments?:|Invalid values:|mutually "
        r"exclusive|-h, --help +Show help",
        r"is not found for API version|Model not found|Please fix the configuration file|No input "
        r"provided via stdin",
    ),
    rule(
        _K.AUTH_FAILED,
        r'"code": ?(401|403)\b|UNAUTHENTICATED|PERMISSION_DENIED|API key not valid|API_KEY_INVALID',
        r"Invalid auth method selected|set an Auth method|must specify the GEMINI_API_KEY|limit: "
        r"?0\b",
    ),
    rule(
        _K.RATE_LIMITED,
        r'"code": ?429\b|RESOURCE_EXHAUSTED|exhausted|exceeded your current quota|rate '
        r"limit|Suggested retry after",
    ),
    rule(
        _K.OVERLOADED,
        r'"code": ?(408|5\d\d)\b|overloaded|high demand|UNAVAILABLE|fetch failed|terminated|other '
        r"side closed|socket hang up",
        r"ECONN\w+|ENOTFOUND|ETIMEDOUT|EAI_AGAIN|timed? ?out|stream ended without|empty response",
    ),
)
"""Outcome rules for the CLI's messages, the most specific first."""

_USAGE = (
    "Gemini CLI does not know an argument, or does not take its value, and printed its long usage"
)

_COLOUR = late_pattern(r"\x1b\[[\d;]*m")

_CODES = {
    41: _K.AUTH_FAILED,
    44: _K.CONFIG_ERROR,
    52: _K.CONFIG_ERROR,
    53: _K.MAX_TURNS,
    55: _K.CONFIG_ERROR,
    130: _K.CANCELLED,
}
"""Outcomes by exit code, for codes that the CLI itself defines. Two such codes are left out because
they do not determine an outcome: 42 (invalid input or session) and 54 (a tool)."""

_STATUS = {
    401: _K.AUTH_FAILED,
    403: _K.AUTH_FAILED,
    429: _K.RATE_LIMITED,
    500: _K.OVERLOADED,
    503: _K.OVERLOADED,
}


def outcome(exit: Exit, events: Sequence[AgentEvent]) -> Outcome:
    """Return the outcome of the attempt, from the exit of its process and the events of its
    output."""
    if stopped := by_supervisor(exit):
        return stopped
    turns = [event for event in events if isinstance(event, TurnEnded)]
    ended = next((event for event in turns if not event.ok), turns[-1] if turns else None)
    if ended is not None and ended.ok:
        if exit.code == 0:
            return ending(_K.SUCCEEDED, "", exit)
        return by_process(exit, "it completed the turn, yet failed")
    if ended is not None:
        words = ended.text or _said(exit) or "the turn ended with an error"
        return _final(
            judge(words, _WORDS) or _by_code(exit) or judge(exit.stderr_tail, _WORDS) or _K.FAILED,
            words,
            exit,
        )
    if exit.signal or exit.code in (None, 0):
        return by_process(exit, "it ended without a result")
    kind = judge(exit.stderr_tail, _WORDS) or _by_code(exit)
    if kind:
        return _final(kind, _said(exit), exit)
    return by_process(exit, "it ended without a result")


def _by_code(exit: Exit) -> OutcomeKind | None:
    if exit.code in _CODES:
        return _CODES[exit.code]
    for status, kind in _STATUS.items():
        if status % 256 == exit.code:
            return kind
    return None


def _said(exit: Exit) -> str:
    """Return the first line of stderr that matches an outcome rule. If no line matches, return the
    last line."""
    plain = _COLOUR.sub("", exit.stderr_tail)
    for line in plain.splitlines():
        if judge(line, _WORDS):
            return line.strip()
    return last_line(plain)


def _final(kind: OutcomeKind, words: str, exit: Exit) -> Outcome:
    if kind is _K.RATE_LIMITED and exit.at:
        until = resets_at(words, exit.at)
    else:
        until = None
    found = ending(kind, words, exit, until)
    if words.startswith("-h, --help"):
        return explained(found, _USAGE)
    return found
