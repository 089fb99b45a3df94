"""The rows of `perdure prove`. Each row is a statement about an agent. `perdure prove` tests
whether the statement is true, and a rule tells whether perdure relies on it.

Used by `scenes` (which answers the rows), by the command line and by the documents. A row's id is
stable: it is used in JSON, in `known.json` and in docs/reference/prove.md.

`known.json` holds the answers of earlier tests, for each version of an agent. A tested program is
compared with the recorded answers of its own version. If there are none, the program is compared
with the answers of the newest recorded version of the same agent. `python -m perdure.agents.prove
REPORT.json` records the results of `perdure prove --json`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from msgspec import Struct

from perdure.protocols import Abilities


class ProveRow(Struct, frozen=True):
    """One statement about an agent, which `perdure prove` tests. `relied` is a function of the
    agent's abilities; it returns whether perdure relies on the statement."""

    id: str
    asks: str
    relied: Callable[[Abilities], bool]


class RowFinding(Struct, frozen=True):
    """The answer to one row. The text `seen` describes the observed behavior and is the same in
    every run. The text `detail` may differ from run to run."""

    row: str
    holds: bool
    seen: str
    detail: str = ""


def _always(abilities: Abilities) -> bool:
    return True


def _never(abilities: Abilities) -> bool:
    return False


_ROWS = (
    ProveRow("start", "A first turn succeeds, and its prompt is in the transcript.", _always),
    ProveRow(
        "own-id", "A new conversation gets the id that the caller chose.", lambda can: can.choose_id
    ),
    ProveRow("id-before-answer", "The id is known before the model's first answer.", _always),
    ProveRow(
        "resume",
        "A resume by id returns the same id, and the whole history reaches the model.",
        _always,
    ),
    ProveRow(
        "transcript-grows",
        "A resume appends to the transcript: the old content is its prefix, byte for byte.",
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
        "A resume that names the transcript's file continues the same conversation.",
        lambda can: can.resume_by_path,
    ),
    ProveRow(
        "fork",
        "A fork has a new id and the whole history, and leaves its parent untouched.",
        lambda can: can.fork,
    ),
    ProveRow(
        "unknown-session",
        "A resume of an unknown id reports an error, and never starts a new conversation.",
        _always,
    ),
    ProveRow(
        "kill-in-first-reply",
        "Killed in the first reply, it continues from the prompt, under the same id.",
        _always,
    ),
    ProveRow(
        "kill-in-reply",
        "Killed in a later reply, it continues with the whole history and the interrupted prompt.",
        _always,
    ),
    ProveRow(
        "kill-in-tool",
        "Killed while a command runs, it continues under the same id, with the prompt.",
        _always,
    ),
    ProveRow(
        "call-after-kill",
        "After that the model sees the call, and that it was interrupted.",
        _never,
    ),
    ProveRow("command-after-kill", "The command ends with the agent.", _never),
    ProveRow(
        "nothing-left",
        "When perdure has ended an attempt, none of its processes is alive.",
        _always,
    ),
    ProveRow(
        "stop-in-reply",
        "Asked to end (SIGTERM) in a reply, it ends by itself, and continues afterwards.",
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
        "A resume works after the agent's home was moved with everything in it.",
        _never,
    ),
    ProveRow(
        "own-copy",
        "perdure's own copy, put into an empty home, continues with the whole history.",
        _always,
    ),
    ProveRow(
        "error-400",
        "A request that the service refuses (400) is a failure, and is not retried for ever.",
        _always,
    ),
    ProveRow("error-401", "A refused key (401) has its own outcome.", _always),
    ProveRow("error-429", "A rate limit (429) has its own outcome.", _always),
    ProveRow("error-500", "A failing service (500) has its own outcome.", _always),
    ProveRow(
        "usage-limit", "A usage limit has its own outcome, with the time at which it ends.", _never
    ),
    ProveRow("model-on-resume", "A resume that names a model uses that model.", _always),
    ProveRow("model-kept", "A resume that names no model uses the previous one.", _never),
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
        "permissions-kept", "A resume that names no permissions keeps the previous ones.", _never
    ),
    ProveRow(
        "prompts",
        "Prompts of any shape arrive unchanged, and are unchanged in the transcript.",
        _always,
    ),
)
ROWS = {row.id: row for row in _ROWS}

FILE = Path(__file__).with_name("known.json")
Answers: TypeAlias = dict[str, list[str]]
"""Recorded answers by row id. Each answer is a list of two texts: the result and the observed
behavior."""


class KnownAnswers(Struct, frozen=True):
    """The recorded answers of one version."""

    version: str
    answers: Answers

    def change(self, row: str, result: str, seen: str) -> list[str] | None:
        """Return the recorded answer to the row if it differs from the new one (`result`, `seen`).
        None if it is the same, or if no answer is recorded."""
        before = self.answers.get(row)
        if before and before != [result, seen]:
            return before
        return None


def recorded_answers(agent: str, version: str, file: Path = FILE) -> KnownAnswers | None:
    """Return the recorded answers with which this version is compared: the answers of the same
    version. If there are none, return the answers of the agent's newest recorded version. None if
    nothing is recorded for the agent."""
    versions = read(file).get(agent, {})
    if not versions:
        return None
    nearest = version if version in versions else max(versions, key=_order)
    return KnownAnswers(nearest, versions[nearest])


def read(file: Path = FILE) -> dict[str, dict[str, Answers]]:
    """Return all recorded answers, by agent and version. Empty if the file does not exist."""
    agents: dict[str, dict[str, Answers]] = (
        json.loads(file.read_text(encoding="utf-8"))["agents"] if file.exists() else {}
    )
    return agents


def _order(version: str) -> list[int]:
    return list(map(int, re.findall(r"\d+", version)))


def record_answers(report: Path, file: Path = FILE) -> None:
    """Write the answers of a JSON report into the file. Recorded answers of the same agents and
    versions are replaced."""
    agents = read(file)
    for proof in json.loads(report.read_text(encoding="utf-8"))["agents"]:
        answers = {check["id"]: [check["result"], check["seen"]] for check in proof["checks"]}
        agents.setdefault(proof["agent"], {})[proof["version"]] = answers
    versions = []
    for agent in sorted(agents):
        proofs = []
        for version in sorted(agents[agent], key=_order):
            lines = []
            for row, answer in agents[agent][version].items():
                lines.append(f"   {json.dumps(row)}: {json.dumps(answer, ensure_ascii=False)}")
            proofs.append(f"  {json.dumps(version)}: {{\n" + ",\n".join(lines) + "\n  }")
        versions.append(f" {json.dumps(agent)}: {{\n" + ",\n".join(proofs) + "\n }")
    file.write_text(
        '{"schema_version": 1, "agents": {\n' + ",\n".join(versions) + "\n}}\n", encoding="utf-8"
    )
