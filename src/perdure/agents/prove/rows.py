"""The questions of `perdure prove`: one row for each, with a rule for whether perdure relies on a
yes.

Read by `scenes` (which answers them), by the command line and by the documents. A row's id is
stable: it is used in JSON, in `known.json` and in docs/reference/prove.md. Pure.
"""

from __future__ import annotations

from collections.abc import Callable

from perdure.lateclass import dataclass
from perdure.protocols import Abilities


@dataclass(frozen=True, slots=True)
class ProveRow:
    """One question. `relied`: whether perdure relies on a yes, for an agent with these
    abilities."""

    id: str
    asks: str
    relied: Callable[[Abilities], bool]


@dataclass(frozen=True, slots=True)
class RowFinding:
    """One answer. The text of `seen` is the same in every run; that of `detail` may differ."""

    row: str
    holds: bool
    seen: str
    detail: str = ""


def _always(abilities: Abilities) -> bool:
    return True


def _never(abilities: Abilities) -> bool:
    return False


_ROWS = (
    ProveRow("start", "A first turn succeeds, and its prompt stands in the transcript.", _always),
    ProveRow(
        "own-id", "The caller's own id is taken for a new conversation.", lambda can: can.choose_id
    ),
    ProveRow("id-before-answer", "The id is known before the model's first answer.", _always),
    ProveRow(
        "resume",
        "A resume by id comes back with the same id, and the whole history reaches the model.",
        _always,
    ),
    ProveRow(
        "transcript-grows",
        "A resume appends to the transcript: what stood there before is its prefix, byte for byte.",
        _always,
    ),
    ProveRow("output-known", "The driver understands every line of the output.", _never),
    ProveRow(
        "usage",
        "Tokens are counted as the driver says: per run, or over the whole conversation.",
        _always,
    ),
    ProveRow(
        "resume-by-path",
        "A resume that names the transcript's file goes on in the same conversation.",
        lambda can: can.resume_by_path,
    ),
    ProveRow(
        "fork",
        "A fork has a new id and the whole history, and leaves its parent untouched.",
        lambda can: can.fork,
    ),
    ProveRow(
        "unknown-session",
        "A resume of an unknown id is an error that is told, and never a fresh start.",
        _always,
    ),
    ProveRow(
        "kill-in-first-reply",
        "Killed in the first reply, it goes on from the prompt, under the same id.",
        _always,
    ),
    ProveRow(
        "kill-in-reply",
        "Killed in a later reply, it goes on with the whole history and the interrupted prompt.",
        _always,
    ),
    ProveRow(
        "kill-in-tool",
        "Killed while a command runs, it goes on under the same id, with the prompt.",
        _always,
    ),
    ProveRow(
        "call-after-kill",
        "After that the model sees the call, and that it was interrupted.",
        _never,
    ),
    ProveRow("command-after-kill", "The command ends with the agent.", _never),
    ProveRow("nothing-left", "When perdure has ended an attempt, nothing of it lives.", _always),
    ProveRow(
        "stop-in-reply",
        "Asked to end (SIGTERM) in a reply, it ends by itself, and goes on afterwards.",
        _never,
    ),
    ProveRow("second-writer", "A second program on the same conversation is refused.", _never),
    ProveRow(
        "writer-seen",
        "While a program has the conversation open, the driver finds its process.",
        _never,
    ),
    ProveRow(
        "moved-directory",
        "A resume works after the workdir was moved.",
        lambda can: not can.cwd_bound,
    ),
    ProveRow(
        "moved-home",
        "A resume works after the agent's home was moved, with all that is in it.",
        _never,
    ),
    ProveRow(
        "own-copy",
        "perdure's own copy, put into an empty home, goes on with the whole history.",
        _always,
    ),
    ProveRow(
        "error-400",
        "A request that the service refuses (400) is a failure, and not tried again for ever.",
        _always,
    ),
    ProveRow("error-401", "A refused key (401) is told apart.", _always),
    ProveRow("error-429", "A rate limit (429) is told apart.", _always),
    ProveRow("error-500", "A failing service (500) is told apart.", _always),
    ProveRow("usage-limit", "A usage limit is told apart, with the time at which it ends.", _never),
    ProveRow("model-on-resume", "A model named on a resume is the one that is asked.", _always),
    ProveRow(
        "model-kept", "A resume without a word about the model asks the one of before.", _never
    ),
    ProveRow(
        "edit-allowed",
        "At the level `edit` a command changes the workdir without a question.",
        _always,
    ),
    ProveRow(
        "read-on-resume",
        "At the level `read`, set on a resume, the same command changes nothing.",
        _always,
    ),
    ProveRow(
        "permissions-kept", "A resume without a word about permissions has those of before.", _never
    ),
    ProveRow(
        "prompts",
        "Prompts of any shape arrive as they were sent, and stand so in the transcript.",
        _always,
    ),
)
ROWS = {row.id: row for row in _ROWS}
