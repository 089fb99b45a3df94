"""Determines how an attempt with Claude Code ended. Pure. Every message matched below was printed
by 2.1.329.

Neither the exit code nor the result's `subtype` is reliable alone: SIGINT ends with code 0, and an
API error has `subtype: success`. An attempt succeeded if all of this is true: its last result has
no error, at least one turn and no sign that the turn was cut short; no other turn began after that
result; and the exit code is 0.
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
from perdure.model.events import (
    AgentEvent,
    LimitSeen,
    RetrySeen,
    SessionSeen,
    TurnEnded,
    TurnStarted,
)
from perdure.patterns import late_pattern

_K = OutcomeKind

_FACTS = {
    ("startup_failure_reason", "config_file_invalid"): _K.CONFIG_ERROR,
    ("subtype", "error_max_turns"): _K.MAX_TURNS,
    ("terminal_reason", "max_turns"): _K.MAX_TURNS,
    ("subtype", "error_max_budget_usd"): _K.BUDGET_SPENT,
    ("terminal_reason", "budget_exhausted"): _K.BUDGET_SPENT,
    ("terminal_reason", "aborted_streaming"): _K.CANCELLED,
    ("terminal_reason", "aborted_tools"): _K.CANCELLED,
    ("terminal_reason", "prompt_too_long"): _K.CONTEXT_EXHAUSTED,
    ("terminal_reason", "blocking_limit"): _K.CONTEXT_EXHAUSTED,
    ("terminal_reason", "rapid_refill_breaker"): _K.CONTEXT_EXHAUSTED,
    ("stop_reason", "refusal"): _K.REFUSED,
    ("stop_reason", "max_tokens"): _K.TRUNCATED,
    ("stop_reason", "model_context_window_exceeded"): _K.CONTEXT_EXHAUSTED,
    ("api_error", "max_output_tokens"): _K.TRUNCATED,
    ("terminal_reason", "malformed_tool_use_exhausted"): _K.TRUNCATED,
    ("terminal_reason", "hook_stopped"): _K.CONFIG_ERROR,
    ("terminal_reason", "stop_hook_prevented"): _K.CONFIG_ERROR,
    ("api_error", "tool_history_mismatch"): _K.SESSION_BROKEN,
    ("api_error", "usage_limit_reached"): _K.RATE_LIMITED,
    ("api_error", "connection_failed"): _K.OVERLOADED,
}
"""Outcome for each pair of field and value in a result line. Each of these values determines the
outcome without looking at the other fields."""

_WORDS = (
    rule(_K.SESSION_MISSING, r"No conversation found"),
    rule(
        _K.WRITER_CONFLICT,
        r"Session ID \S+ is already in use",
        r"session is already running",
        r"held by (a|the) background",
    ),
    rule(
        _K.CONFIG_ERROR,
        r"cannot be used with root/sudo privileges",
        r"(configuration file at .* is corrupted|Configuration error in )",
        r"unknown option|argument missing|is invalid\. Allowed choices|Invalid session ID|requires "
        r"a valid session ID",
        r"Settings file not found|Invalid MCP configuration|requires --verbose|needs "
        r"--fork-session|exceeds 10MB",
        r"There's an issue with the selected model",
        r"Input must be provided|Input contained only whitespace",
    ),
    rule(
        _K.CONTEXT_EXHAUSTED,
        r"prompt is too long",
        r"Request too large",
        r"Autocompact is thrashing",
        r"exceed context limit",
    ),
    rule(
        _K.SESSION_BROKEN,
        r"\btool_use\b|\btool_result\b|tool use concurrency",
        r"(signature|thinking).{0,40}(block|signature)|redacted_thinking",
        r"text content blocks must be non-empty|image (base64 size .{0,20} )?exceeds|surrogate",
    ),
    rule(
        _K.AUTH_FAILED,
        r"Not logged in|Please run /login|Invalid API key|Failed to authenticate|OAuth token (has "
        r"expired|revoked)|authentication_failed",
        r"Credit balance is too low|organization has been disabled",
    ),
    rule(_K.RATE_LIMITED, r"hit your (\w+ )?limit|usage limit reached|rate limit|\b429\b"),
    rule(
        _K.OVERLOADED,
        r"API Error: (5\d\d|Repeated 529)|Overloaded|Connection "
        r"(refused|error|closed|reset)|ECONN\w+|ENOTFOUND|ETIMEDOUT|EAI_AGAIN",
        r"Unable to connect|timed out|empty or malformed response|stream (ended|truncated)|socket "
        r"hang up|fetch failed",
    ),
)
"""Outcome rules for the CLI's messages, the most specific first."""

_STATUS = {
    401: _K.AUTH_FAILED,
    403: _K.AUTH_FAILED,
    404: _K.CONFIG_ERROR,
    413: _K.CONTEXT_EXHAUSTED,
    429: _K.RATE_LIMITED,
    408: _K.OVERLOADED,
}

_NO_ANSWER = late_pattern(r"\s*(Prompt is too long\b|API Error: \d{3}\b|Credit balance is too low)")
"""Pattern of errors that the CLI reports as if they were the agent's answer. They were observed in
results that claim success. If the `terminal_reason` of the result is in `_ENDED`, a matching text
is the agent's own answer. For an error, Claude Code 2.1.329 sets `terminal_reason` to `api_error`.
"""

_ENDED = frozenset({"completed", "tool_deferred"})
"""Values of `terminal_reason` that mean that the turn was completed. They include `tool_deferred`,
because a deferred call is reported by its own event."""

_HOOK = (
    "a hook of the repository or of the user ended the turn: check .claude/settings.json and the "
    "user's own settings"
)

_ROOT = (
    "Claude Code does not take full permissions as root: run as another user, or set IS_SANDBOX=1 "
    "inside a real sandbox"
)


def outcome(exit: Exit, events: Sequence[AgentEvent]) -> Outcome:
    """Return the outcome of the attempt, from the exit of its process and the events of its
    output."""
    if stopped := by_supervisor(exit):
        return stopped
    ended = _last_turn(events)
    if ended is None:
        return _without_result(exit, events)
    completed = ended.facts.get("terminal_reason") in _ENDED
    if ended.ok and (completed or not _NO_ANSWER.match(ended.text)):
        if not exit.clean:
            return by_process(exit, "it reported success, yet failed")
        if not ended.turns:
            return ending(
                _K.FAILED,
                "it ended without a turn of the model: the prompt was taken for a command of the "
                "CLI",
                exit,
            )
        return _reported(ended, exit)
    words = ended.text or last_line(exit.stderr_tail)
    kind = (
        _by_facts(ended.facts)
        or _by_status(ended.facts)
        or judge(words, _WORDS)
        or judge(exit.stderr_tail, _WORDS)
    )
    if kind is None and (exit.signal or exit.code not in (0, 1)):
        return by_process(exit, words or "it failed")
    return _final(kind or _K.FAILED, words or "the turn ended with an error", exit, events)


def _reported(ended: TurnEnded, exit: Exit) -> Outcome:
    """Return the outcome of a result without an error. Its other fields may still show that the
    turn was cut short."""
    kind = _by_facts(ended.facts)
    reason = ended.facts.get("terminal_reason", "")
    if kind is _K.CONFIG_ERROR:
        return ending(kind, f"{_HOOK} ({reason})", exit)
    if kind is not None:
        return ending(kind, ended.text or f"the turn ended early ({reason})", exit)
    if reason and reason not in _ENDED:
        return ending(_K.TRUNCATED, f"the turn ended early ({reason})", exit)
    return ending(_K.SUCCEEDED, "", exit)


def _last_turn(events: Sequence[AgentEvent]) -> TurnEnded | None:
    """Return the end of the last turn. None if no turn ended, or if another turn began after that
    end and did not finish."""
    for event in reversed(events):
        if isinstance(event, TurnEnded):
            return event
        if isinstance(event, (SessionSeen, TurnStarted)):
            return None
    return None


def _without_result(exit: Exit, events: Sequence[AgentEvent]) -> Outcome:
    """Return the outcome of a process that ended without a result, because it was killed or failed
    before its first reply. Its stderr may tell the reason."""
    kind = judge(exit.stderr_tail, _WORDS)
    if kind and exit.code not in (None, 0) and not exit.signal:
        said = exit.stderr_tail
        for line in exit.stderr_tail.splitlines():
            if judge(line, _WORDS) is kind:
                said = line.strip()
                break
        return _final(kind, said, exit, events)
    return by_process(exit, "it ended without a result")


def _by_facts(facts: dict[str, str]) -> OutcomeKind | None:
    for (name, value), kind in _FACTS.items():
        if facts.get(name) == value:
            return kind
    return None


def _by_status(facts: dict[str, str]) -> OutcomeKind | None:
    if facts.get("api_error_status", "").isdigit():
        status = int(facts["api_error_status"])
    else:
        status = 0
    if 500 <= status < 600:
        return _K.OVERLOADED
    return _STATUS.get(status)


def _final(kind: OutcomeKind, words: str, exit: Exit, events: Sequence[AgentEvent]) -> Outcome:
    """Return an outcome of this kind. For a usage limit, add the time at which the limit ends. If
    the CLI's message would not help a person, put an explanation in front of it."""
    if kind is _K.RATE_LIMITED:
        return ending(kind, words, exit, _until(words, exit, events))
    found = ending(kind, words, exit)
    if kind is _K.CANCELLED:
        return explained(found, "it was interrupted")
    if "root/sudo" in words:
        return explained(found, _ROOT)
    if kind is _K.OVERLOADED and (tries := sum(isinstance(event, RetrySeen) for event in events)):
        return explained(
            found, f"the model's service did not answer, also not after {tries} more tries"
        )
    return found


def _until(words: str, exit: Exit, events: Sequence[AgentEvent]) -> int | None:
    """Return when the usage limit ends, in milliseconds since 1970; None if unknown. The time in a
    limit event is exact, so it is preferred to the time in the CLI's message (`words`)."""
    for event in reversed(events):
        if isinstance(event, LimitSeen) and event.until:
            return event.until
    return resets_at(words, exit.at) if exit.at else None
