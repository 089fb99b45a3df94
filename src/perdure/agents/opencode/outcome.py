"""Determines how an attempt with OpenCode ended. Pure; written against 1.18.33.

An attempt succeeded if the last step has the reason `stop` and the exit code is 0. Exit code 0
alone is not enough: the CLI also exits with 0, and without a final message, after a rejected
permission. Failures of the model's service have an HTTP status; other failures are text on stderr.
"""

from __future__ import annotations

from collections.abc import Sequence

from perdure.agents.opencode.events import TOO_LONG
from perdure.agents.shared.outcomes import (
    by_process,
    by_supervisor,
    ending,
    explained,
    judge,
    last_line,
    last_line_of,
    last_turn,
    resets_at,
    rule,
)
from perdure.model import Exit, Outcome, OutcomeKind
from perdure.model.events import AgentEvent, RetrySeen, TurnEnded
from perdure.patterns import late_pattern

_K = OutcomeKind
_COLOURS = late_pattern(r"\x1b\[[0-9;]*m")

_WORDS = (
    rule(_K.REFUSED, r"ContentFilterError"),
    rule(_K.SESSION_MISSING, r"Session not found"),
    rule(
        _K.CONTEXT_EXHAUSTED,
        r"ContextOverflow|context.?length|context window|prompt is too long|maximum context",
    ),
    rule(
        _K.SESSION_BROKEN,
        r"tool_use.*tool_result|tool_call_id|JSON Parse error|SyntaxError",
        r"evaluating '\w+\.state\b|messages do not match the ModelMessage",
    ),
    rule(
        _K.AUTH_FAILED,
        r"ProviderAuthError|invalid.{0,10}api.?key|Incorrect API key|API key is "
        r"missing|insufficient_quota|unauthorized",
    ),
    rule(_K.RATE_LIMITED, r"usage limit|rate.?limit|too many requests"),
    rule(
        _K.CONFIG_ERROR,
        r"ModelNotFound|Model not found|ProviderInit|ConfigInvalid|ConfigJson|Configuration is "
        r"invalid|Unknown argument",
    ),
    rule(
        _K.CONFIG_ERROR,
        r"database disk image is malformed|file is not a database|You must provide a "
        r"message|Failed to change directory",
    ),
    rule(
        _K.OVERLOADED,
        r"Cannot connect to API|Unable to connect|overloaded|timed? ?out|connection "
        r"(closed|reset|refused)",
    ),
)
"""Outcome rules for the CLI's messages, the most specific first."""

_CAUSE = late_pattern(r'message=failed ref=\S+ error="((?:[^"\\]|\\.)*)"')
"""Pattern of the log line on stderr that names the cause of an `Unexpected server error`."""

_STATUS = {
    401: _K.AUTH_FAILED,
    402: _K.AUTH_FAILED,
    403: _K.AUTH_FAILED,
    404: _K.CONFIG_ERROR,
    408: _K.OVERLOADED,
    429: _K.RATE_LIMITED,
}

_CUT = {"length": _K.TRUNCATED, "content-filter": _K.REFUSED, "other": _K.TRUNCATED}

_HELP = "opencode run [message..]"
_REJECTED = "the agent asked for a permission that its level of --permissions does not give"


def _is_too_long(event: AgentEvent) -> bool:
    return isinstance(event, RetrySeen) and event.status == TOO_LONG


def outcome(exit: Exit, events: Sequence[AgentEvent]) -> Outcome:
    """Return the outcome of the attempt, from the exit of its process and the events of its
    output."""
    if exit.cause == "retrying" and any(map(_is_too_long, events)):
        return ending(
            _K.CONTEXT_EXHAUSTED,
            "it compacted the conversation again and again, and the service refused it as too long",
            exit,
        )
    if stopped := by_supervisor(exit):
        return stopped
    ended = last_turn(events)
    if ended is not None and ended.ok:
        if exit.code == 0:
            return ending(_K.SUCCEEDED, "", exit)
        return by_process(exit, "it completed the turn, yet failed")
    if ended is not None and (kind := _CUT.get(ended.facts.get("stop_reason", ""))):
        return ending(kind, ended.text, exit)
    if ended is not None:
        return _failed(ended, exit)
    said = _COLOURS.sub("", exit.stderr_tail)
    if "auto-rejecting" in said:
        return explained(ending(_K.NEEDS_INPUT, last_line(said), exit), _REJECTED)
    if _HELP in said:
        return ending(
            _K.CONFIG_ERROR,
            "OpenCode did not take its arguments, and printed its help: see --agent-arg",
            exit,
        )
    if exit.signal or exit.code in (None, 0):
        kind = None
    else:
        kind = judge(said, _WORDS)
    if kind is None:
        return by_process(exit, "it ended without a result")
    return ending(kind, last_line_of(kind, said, _WORDS), exit)


def _failed(ended: TurnEnded, exit: Exit) -> Outcome:
    """Return the outcome of a failed turn. It follows from the error text if the text is about the
    conversation or about a refusal. Otherwise the HTTP status decides. If the status does not
    determine an outcome either, the other rules for the text decide."""
    if "Unexpected server error" in ended.text:
        cause = _CAUSE.search(exit.stderr_tail)
    else:
        cause = None
    said = cause[1].replace('\\"', '"') if cause else ended.text
    words = f"{ended.facts.get('name', '')} {said}"
    if ended.facts.get("status", "").isdecimal():
        status = int(ended.facts["status"])
    else:
        status = 0
    kind = judge(words, _WORDS)
    if kind not in (_K.CONTEXT_EXHAUSTED, _K.SESSION_BROKEN, _K.REFUSED):
        kind = _STATUS.get(status) or (_K.OVERLOADED if status >= 500 else kind) or _K.FAILED
    if kind is _K.RATE_LIMITED and exit.at:
        until = resets_at(said, exit.at)
    else:
        until = None
    return ending(kind, said, exit, until)
