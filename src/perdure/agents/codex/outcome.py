"""Determines how an attempt with Codex ended. Pure. Every message matched below was printed by
0.169.0.

An attempt succeeded if there is a `turn.completed` and the exit code is 0. All other outcomes
follow from the text of `turn.failed` if there is one, else from stderr. After SIGINT, Codex exits
with code 1 and without a message. So SIGINT is recognized only if perdure sent the signal.
"""

from __future__ import annotations

from collections.abc import Sequence

from perdure.agents.shared.outcomes import (
    by_process,
    by_supervisor,
    ending,
    explained,
    judge,
    last_line_of,
    last_turn,
    resets_at,
    rule,
)
from perdure.model import Exit, Outcome, OutcomeKind
from perdure.model.events import AgentEvent

_K = OutcomeKind

_WORDS = (
    rule(_K.REFUSED, r"reason: content_filter"),
    rule(_K.TRUNCATED, r"reason: max_output_tokens"),
    rule(_K.SESSION_MISSING, r"no rollout found for thread id"),
    rule(_K.WRITER_CONFLICT, r"already has an active writer"),
    rule(
        _K.SESSION_BROKEN,
        r"failed to read session metadata|rollout at .* is empty|does not start with session "
        r"metadata",
        r"No tool output found for|No tool call found for|encrypted "
        r"content|invalid_encrypted_content",
        r"without its required (following|preceding) item|Duplicate item found",
    ),
    rule(
        _K.CONTEXT_EXHAUSTED, r"ran out of room in the model|context window|context_length_exceeded"
    ),
    rule(
        _K.RATE_LIMITED,
        r"hit your usage limit|status:? 429|429 Too Many Requests|rate limit reached",
    ),
    rule(
        _K.AUTH_FAILED,
        r"status:? (401|403)|Missing environment variable|Not logged in|codex login|Incorrect API "
        r"key|access token could not be refreshed",
        r"Quota exceeded|upgrade to Plus|insufficient_quota",
    ),
    rule(
        _K.CONFIG_ERROR,
        r"does not exist or you do not have access|status:? 404|model is not supported",
        r"Error loading config|Model provider .* not found|Error finding codex home|Not inside a "
        r"trusted directory",
        r"unexpected argument|invalid value|cannot be used with|cannot be used multiple "
        r"times|unrecognized subcommand|Unknown feature flag",
        r"Input exceeds the maximum length|not valid UTF-8|No prompt provided",
        r"file is not a database|list_turns is not supported yet|database disk image is malformed",
    ),
    rule(
        _K.OVERLOADED,
        r"experiencing high demand|at capacity|status:? 5\d\d|stream disconnected|Connection "
        r"failed|error sending request",
        r"waiting for network|timed? ?out|connection (closed|reset|refused)",
    ),
    # Catches every other refusal to resume. No turn has begun, so another copy of the transcript
    # may be tried.
    rule(_K.SESSION_BROKEN, r"thread/resume"),
)
"""Outcome rules for the CLI's messages, the most specific first."""

_INDEX = (
    "Codex's own index is damaged: move state_5.sqlite and thread_history_1.sqlite out of its "
    "home, it recreates them"
)


def outcome(exit: Exit, events: Sequence[AgentEvent]) -> Outcome:
    """Return the outcome of the attempt, from the exit of its process and the events of its
    output."""
    if stopped := by_supervisor(exit):
        return stopped
    ended = last_turn(events)
    if ended is not None and ended.ok:
        if exit.clean:
            return ending(_K.SUCCEEDED, "", exit)
        return by_process(exit, "it completed the turn, yet failed")
    if ended is not None:
        return _final(judge(ended.text, _WORDS) or _K.FAILED, ended.text or "the turn failed", exit)
    if exit.signal or exit.code in (None, 0):
        return by_process(exit, "it ended without a result")
    kind = judge(exit.stderr_tail, _WORDS) or (_K.CONFIG_ERROR if exit.code == 2 else None)
    if kind is None:
        return by_process(exit, "it ended without a result")
    return _final(kind, last_line_of(kind, exit.stderr_tail, _WORDS), exit)


def _final(kind: OutcomeKind, words: str, exit: Exit) -> Outcome:
    if kind is _K.RATE_LIMITED:
        return ending(kind, words, exit, resets_at(words, exit.at) if exit.at else None)
    found = ending(kind, words, exit)
    if "database" in words or "list_turns" in words:
        return explained(found, _INDEX)
    return found
