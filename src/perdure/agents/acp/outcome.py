"""Determines how a turn over ACP ended. Pure.

A turn succeeded if the bridge's exit code is 0 and the stop reason is `end_turn`, or `cancelled`
after a denied call. Most failures are reported as a JSON-RPC error with the agent's own message.
The native driver's classifier (`native`) reads the message, because the agent prints the same
messages on its command line. Messages that were observed only over ACP are listed here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from perdure.agents.shared.outcomes import by_process, by_supervisor, ending, judge, last_turn, rule
from perdure.model import Exit, Outcome, OutcomeKind
from perdure.model.events import AgentEvent, TurnEnded

_K = OutcomeKind

AUTH_REQUIRED = "-32000"
NOT_FOUND = "-32002"
"""JSON-RPC error code with which an ACP agent reports that a resource is missing. The constant
AUTH_REQUIRED is the code for a missing login."""
NOT_INSTALLED = 3
STOPPED = 143

_GONE = rule(
    _K.SESSION_MISSING,
    r"no rollout found|thread not found|Invalid session identifier|No previous sessions "
    r"found|Resource not found",
)
"""Rule for the messages that report a lost conversation. codex-acp 2.6.0 first reports success when
it resumes a thread whose file is gone. The message `thread not found` follows after the prompt."""
_WORDS = (
    rule(
        _K.CONTEXT_EXHAUSTED, r"context.?length|context window|prompt is too long|maximum context"
    ),
    rule(_K.AUTH_FAILED, r"api.?key|unauthori[sz]ed|authentication"),
    rule(_K.RATE_LIMITED, r"usage limit|rate.?limit|too many requests|quota"),
    rule(
        _K.OVERLOADED,
        r"overloaded|high demand|timed? ?out|connection (closed|reset|refused)|unavailable",
    ),
)
_STOPS = {
    "max_turn_requests": _K.MAX_TURNS,
    "refusal": _K.REFUSED,
    "max_tokens": _K.TRUNCATED,
    "cancelled": _K.CANCELLED,
}

Native = Callable[[Exit, Sequence[AgentEvent]], Outcome]


def outcome(exit: Exit, events: Sequence[AgentEvent], native: Native | None) -> Outcome:
    """Return the outcome of the attempt, from the exit of its process and the events of its output.
    `native`: the classifier of the agent's native driver; None if the agent has no native driver.
    """
    if stopped := by_supervisor(exit):
        return stopped
    ended = last_turn(events)
    if ended is None:
        kind = _K.CONFIG_ERROR if exit.code == NOT_INSTALLED else None
        if kind:
            return ending(kind, exit.stderr_tail, exit)
        return by_process(exit, "it ended without a result")
    if ended.ok:
        if exit.code == 0:
            return ending(_K.SUCCEEDED, "", exit)
        return by_process(exit, "it completed the turn, yet failed")
    kind = _by_protocol(ended)
    if kind is not None:
        return ending(kind, ended.text, exit)
    if native:
        found = native(exit, events)
    else:
        found = ending(_K.FAILED, ended.text, exit)
    if found.kind is _K.FAILED and (kind := judge(ended.text, _WORDS)):
        return ending(kind, ended.text, exit)
    return found


def refused_to_open(ended: TurnEnded) -> bool:
    """Return whether the agent answered `session/load` or `session/resume` with an error. False if
    the agent ended without an answer; the bridge then reports the error code 0."""
    answered = ended.facts.get("code", "0") != "0"
    return not ended.ok and answered and ended.facts.get("stage") == "resume"


def _by_protocol(ended: TurnEnded) -> OutcomeKind | None:
    """Return the kind of outcome that follows from the stage, error code and stop reason of the
    turn. None if these do not determine the outcome. A failure to open a conversation does not
    prove that the conversation is lost."""
    stage, code = ended.facts.get("stage", ""), ended.facts.get("code", "")
    if stop := ended.facts.get("stop"):
        return _STOPS.get(stop, _K.FAILED)
    if "lacking" in ended.facts:
        return _K.SESSION_BROKEN
    if stage in ("resume", "fork") and (code == NOT_FOUND or "missing" in ended.facts):
        return _K.SESSION_MISSING
    if stage in ("resume", "fork", "settings", "prompt") and judge(ended.text, (_GONE,)):
        return _K.SESSION_MISSING
    if code == AUTH_REQUIRED:
        return _K.AUTH_FAILED
    if stage in ("start", "settings"):
        return _K.CONFIG_ERROR
    return None
