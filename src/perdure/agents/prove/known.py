"""What is known of the agents' versions: the answers that each gave when it was proven, in
`known.json`.

A program is compared with its own version where that is known, else with the newest known one of
its agent. `python -m perdure.agents.prove REPORT.json` takes over the answers of a `perdure prove
--json`.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TypeAlias

from perdure.lateclass import dataclass

FILE = Path(__file__).with_name("known.json")
Answers: TypeAlias = dict[str, list[str]]
"""By row: the result and what was seen."""


@dataclass(frozen=True, slots=True)
class KnownAnswers:
    """One version's answers."""

    version: str
    answers: Answers

    def change(self, row: str, result: str, seen: str) -> list[str] | None:
        """The known answer, if this one is another."""
        before = self.answers.get(row)
        return before if before and before != [result, seen] else None


def known(agent: str, version: str, file: Path = FILE) -> KnownAnswers | None:
    """What to compare with, or None if nothing is known of the agent."""
    versions = read(file).get(agent, {})
    if not versions:
        return None
    nearest = version if version in versions else max(versions, key=_order)
    return KnownAnswers(nearest, versions[nearest])


def read(file: Path = FILE) -> dict[str, dict[str, Answers]]:
    """By agent and version."""
    agents: dict[str, dict[str, Answers]] = (
        json.loads(file.read_text(encoding="utf-8"))["agents"] if file.exists() else {}
    )
    return agents


def _order(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)]


def take_over(report: Path, file: Path = FILE) -> None:
    """Writes the report's answers into the file, in place of those of the same agents and
    versions."""
    agents = read(file)
    for proof in json.loads(report.read_text(encoding="utf-8"))["agents"]:
        answers = {check["id"]: [check["result"], check["seen"]] for check in proof["checks"]}
        agents.setdefault(proof["agent"], {})[proof["version"]] = answers
    versions = []
    for agent in sorted(agents):
        proofs = []
        for version in sorted(agents[agent], key=_order):
            lines = [
                f"   {json.dumps(row)}: {json.dumps(answer, ensure_ascii=False)}"
                for row, answer in agents[agent][version].items()
            ]
            proofs.append(f"  {json.dumps(version)}: {{\n" + ",\n".join(lines) + "\n  }")
        versions.append(f" {json.dumps(agent)}: {{\n" + ",\n".join(proofs) + "\n }")
    file.write_text(
        '{"schema_version": 1, "agents": {\n' + ",\n".join(versions) + "\n}}\n", encoding="utf-8"
    )
