"""Results of earlier tests, recorded for each version of an agent in `known.json`.

A program is compared with its own version if that version is recorded, else with the newest
recorded version of its agent. `python -m perdure.agents.prove REPORT.json` records the results of
`perdure prove --json`.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TypeAlias

from msgspec import Struct

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
    """Return the recorded answers with which this version is compared: those of the same version
    or, if it is not recorded, those of the agent's newest recorded version. None if nothing is
    recorded for the agent.
    """
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
