"""Estimates the usage of an answer that a kill cut off. Pure. Observed with OpenCode 1.18.33.

The row of an answer has `tokens` of 0 until all of its tools have ended. The estimate counts what
the request for the answer contained at least: the input and output of the previous answer, and
everything that was added since. The result depends only on the lines of
`OpenCodeArchive.read`."""

from __future__ import annotations

from msgspec import Struct
from msgspec.structs import replace

from perdure.agents.opencode.events import step_usage
from perdure.agents.shared import json_lines
from perdure.agents.shared.json_lines import Record
from perdure.model import Reply, Usage

BYTES_A_TOKEN = 3
"""Assumed number of bytes of text for each token. Prose has about 4 bytes for each token, source
code between 3 and 4. With 3, an estimate tends to be too high, so that a run may be stopped
slightly before it has used up its budget. An estimate that is too low would let the run spend more
than its budget."""
_STOPPED = "MessageAbortedError"


class _ConversationSize(Struct):
    """Size of the conversation, counted from the lines that were read so far."""

    before: Usage = Usage()
    """Usage of the newest answer whose row has token counts."""
    context_tokens: int = 0
    """Number of tokens of the conversation up to the newest answer with token counts. The next
    request contains all of them."""
    added_bytes: int = 0
    """Size of the text that was added after the newest answer with token counts, in bytes. The text
    of the newest answer itself is counted in `answer_bytes`."""
    answer_bytes: int = 0
    newest: str = ""
    cut_off: bool = False

    def message(self, key: str, data: object) -> None:
        if json_lines.part(data, "role") != "assistant":
            return
        # The next request contains the text of the previous answer even if the row of that answer
        # has no token counts.
        self.added_bytes, self.answer_bytes = self.added_bytes + self.answer_bytes, 0
        self.newest, usage = key, step_usage(data)
        self.cut_off = _is_cut_off(data)
        if usage.input or usage.output:
            is_summary = json_lines.part(data, "summary") is True
            self.before, self.added_bytes = usage, 0
            if is_summary:
                self.context_tokens = usage.output
            else:
                self.context_tokens = usage.input + usage.output

    def part(self, owner: str, data: object) -> None:
        state = json_lines.part(data, "state")
        result = json_lines.part(state, "output") or json_lines.part(state, "error")
        words = json_lines.part(data, "text") or json_lines.part(state, "input")
        if owner != self.newest:
            self.added_bytes += _size(words)
        elif self.cut_off:
            self.answer_bytes += _size(words)
        self.added_bytes += _size(result)


def estimate(content: bytes, since: int) -> Reply | None:
    """Return the newest answer if a kill cut it off. Its usage is estimated. Return None if the
    newest answer was not cut off, if its row has token counts, or if its request failed. Also
    return None if the row begins within the first `since` bytes, because the answer is then older
    than the attempt."""
    lines = content.split(b"\n")
    newest = next((entry for line in reversed(lines) if (entry := _message(line))), {})
    if not _is_cut_off(newest.get("data")):
        return None
    conversation, answers, at = _ConversationSize(), 0, 0
    for line in lines:
        entry = json_lines.read(line) if line else None
        key = json_lines.text(entry.get("id")) if entry is not None else ""
        if entry is not None and entry.get("type") == "message":
            conversation.message(key, entry.get("data"))
            answers = at if conversation.newest == key else answers
        elif entry is not None and entry.get("type") == "part":
            conversation.part(json_lines.text(entry.get("message")), entry.get("data"))
        at += len(line) + 1
    if answers < since:
        return None
    return Reply(id=conversation.newest, usage=_guess(conversation))


def _message(line: bytes) -> Record | None:
    entry = json_lines.read(line) if b'"message"' in line else None
    if entry is not None and entry.get("type") == "message":
        return entry
    return None


def _is_cut_off(data: object) -> bool:
    """Return whether a row is an answer that was interrupted before its token counts were
    written."""
    usage, error = step_usage(data), json_lines.part(data, "error", "name")
    asked = json_lines.part(data, "time", "completed") is None or error == _STOPPED
    is_answer = json_lines.part(data, "role") == "assistant"
    return is_answer and asked and not (usage.input or usage.output)


def _guess(conversation: _ConversationSize) -> Usage:
    last = conversation.before
    asked = conversation.context_tokens + _tokens(conversation.added_bytes)
    guess = Usage(
        input=asked,
        output=_tokens(conversation.answer_bytes),
        cached=min(asked, last.input),
        estimated=True,
    )
    # The estimated cost is the reported cost of the previous answer, scaled by the number of
    # tokens.
    if last.input:
        share = (asked + guess.output) / (last.input + last.output)
    else:
        share = 0.0
    return replace(guess, cost_usd=round(last.cost_usd * share, 6))


def _size(words: object) -> int:
    """Return the length of a text in bytes. For the input of a call, return the sum for its
    texts."""
    if isinstance(words, dict):
        return sum(map(_size, words.values()))
    if isinstance(words, str):
        return len(words.encode("utf-8", "surrogatepass"))
    return 0


def _tokens(size: int) -> int:
    return -(-size // BYTES_A_TOKEN)
