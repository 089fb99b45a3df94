"""`perdure prove`: the installed agents against the rehearsal. What of all that perdure relies on
holds for these very programs?

Called by `cli.prove`. It needs no key, no network and no tokens: every scene has a scratch home, an
empty workdir and a model server of its own on 127.0.0.1, and drives the real program through its
driver. Guarantees: the user's own homes are neither read nor written; nothing that was started is
left alive, and nothing that was written is left behind, also after SIGINT or SIGTERM.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from perdure.agents import registry
from perdure.agents.prove import kills, scenes
from perdure.agents.prove.known import FILE, known
from perdure.agents.prove.rows import ROWS, RowFinding
from perdure.agents.prove.scenes import Failed, ProveScene
from perdure.agents.prove.stage import Interrupted, Stage, Unseen
from perdure.agents.rehearsal import Rehearsal, agents
from perdure.errors import AgentMissing, UsageError
from perdure.host import process
from perdure.lateclass import dataclass
from perdure.model import Program
from perdure.protocols import AgentDriver

__all__ = [
    "ROWS",
    "SCENES",
    "Interrupted",
    "ProveCandidate",
    "ProveResult",
    "RowCheck",
    "candidates",
    "prove",
]

SCENES: tuple[ProveScene, ...] = (*scenes.SCENES, *kills.SCENES)
HOLDS, DIFFERS, BROKEN = "holds", "differs", "broken"


@dataclass(frozen=True, slots=True)
class ProveCandidate:
    """A program to be proven."""

    driver: AgentDriver
    program: Program


@dataclass(frozen=True, slots=True, kw_only=True)
class RowCheck:
    """One row's answer. `known` is what another result or other words were known of
    `ProveResult.known`."""

    id: str
    asks: str
    relied: bool
    result: str
    """`holds`; `differs`: it does not hold, and perdure does not rely on it; `broken`: it does not
    hold, and perdure does."""
    seen: str
    detail: str
    seconds: float
    """Of its whole scene."""
    known: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProveResult:
    """One program's answers, in the order of ROWS."""

    agent: str
    version: str
    program: str
    known: str
    """The version that it was compared with; empty if nothing is known of the agent."""
    checks: tuple[RowCheck, ...]

    @property
    def broken(self) -> list[RowCheck]:
        return [check for check in self.checks if check.result == BROKEN]

    @property
    def changed(self) -> list[RowCheck]:
        return [check for check in self.checks if check.known is not None]


def candidates(
    wanted: Sequence[str], programs: Sequence[tuple[str, str]], environ: Mapping[str, str]
) -> tuple[list[ProveCandidate], list[str]]:
    """The programs to be proven: those given by path, the wanted agents as the driver finds them,
    or else every agent that is installed; and a sentence for each that was passed over. Raises
    AgentMissing for a wanted one."""
    found: list[ProveCandidate] = []
    passed: list[str] = []
    for name, path in programs:
        found.append(_candidate(name, {**environ, f"PERDURE_{name.upper()}": path}))
    given = {name for name, _ in programs}
    for name in [name for name in wanted if name not in given]:
        found.append(_candidate(name, environ))
    if not wanted and not programs:
        for name in registry.names():
            try:
                found.append(_candidate(name, environ))
            except (AgentMissing, UsageError) as error:
                passed.append(str(error))
        if not found:
            raise AgentMissing(
                "No agent is installed: there is nothing to prove.", "perdure doctor"
            )
    return found, passed


def _candidate(name: str, environ: Mapping[str, str]) -> ProveCandidate:
    driver = registry.load(name)
    program = driver.locate(environ)
    agents.environ(
        "http://127.0.0.1", name
    )  # raises UsageError for an agent that the rehearsal cannot lead to itself
    return ProveCandidate(
        driver,
        program
        if program.version
        else Program(path=program.path, version=_told(program.path, environ)),
    )


def _told(path: str, environ: Mapping[str, str]) -> str:
    """The version that the program itself tells. Over ACP `path` is a whole command, which is not
    asked."""
    if not Path(path).exists():
        return "unknown"
    with tempfile.TemporaryDirectory(prefix="pp") as scratch:
        env = {
            "PATH": environ.get("PATH", os.defpath),
            "HOME": scratch,
            "TMPDIR": scratch,
            "LANG": "C.UTF-8",
        }
        _, said = process.run_quick(
            [path, "--version"],
            directory=Path(scratch, "v"),
            cwd=Path(scratch),
            env=env,
            timeout_s=20,
        )
    number = re.search(r"\d+\.\d+[\w.+-]*", said)
    return number[0] if number else "unknown"


def prove(
    programs: Sequence[ProveCandidate],
    *,
    quick: bool = False,
    only: Sequence[str] = (),
    jobs: int = 0,
    environ: Mapping[str, str] = os.environ,
    progress: Callable[[ProveCandidate, int, int], None] = lambda candidate, done, of: None,
    stopping: Callable[[], bool] = lambda: False,
    known_file: Path = FILE,
) -> Iterator[ProveResult]:
    """Proves each program in turn. `only`: the rows to answer, by id (with them come those of the
    same scenes). `jobs`: scenes at once; 0: as many as processors. Raises Interrupted when
    `stopping` becomes true, UsageError for an unknown row."""
    if strangers := sorted(set(only) - set(ROWS)):
        raise UsageError(
            f"There is no check named {strangers[0]!r}.", f"One of: {', '.join(ROWS)}."
        )
    for candidate in programs:
        there = SCENES if candidate.driver.abilities.transcripts else scenes.BY_ITS_WORD
        played = [
            scene
            for scene in there
            if (scene.quick or not quick) and (not only or set(only) & set(scene.rows))
        ]
        scratch = Path(tempfile.mkdtemp(prefix="pp"))
        try:
            done = 0
            with ThreadPoolExecutor(jobs or os.cpu_count() or 1) as pool:
                playing = [
                    pool.submit(_play, scene, candidate, scratch / str(number), environ, stopping)
                    for number, scene in enumerate(played)
                ]
                answers: dict[str, tuple[RowFinding, float]] = {}
                for each in playing:
                    progress(candidate, done, len(played))
                    answers |= each.result()
                    done += 1
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        yield _proof(candidate, answers, known_file)


def _play(
    scene: ProveScene,
    candidate: ProveCandidate,
    directory: Path,
    environ: Mapping[str, str],
    stopping: Callable[[], bool],
) -> dict[str, tuple[RowFinding, float]]:
    """All answers of one scene, with the seconds that it took."""
    began = time.monotonic()
    found: dict[str, RowFinding] = {}
    missing = RowFinding("", False, "not seen")
    if stopping():
        raise Interrupted
    with Rehearsal(scene.script) as rehearsal:
        stage = Stage(
            directory,
            candidate.driver,
            candidate.program,
            rehearsal,
            environ,
            scene.subscription,
            stopping,
        )
        try:
            for finding in scene.play(stage):
                found[finding.row] = finding
        except Failed as failure:
            missing = RowFinding("", False, str(failure), failure.detail)
        except Unseen as failure:
            missing = RowFinding("", False, str(failure))
        except ValueError as failure:
            missing = RowFinding("", False, "the driver refuses it", str(failure))
        except (
            OSError
        ) as failure:  # a program that ended a moment before it was killed, a file that went away
            missing = RowFinding("", False, "not seen", str(failure))
        finally:
            stage.close()
    seconds = round(time.monotonic() - began, 2)
    return {
        row: (found.get(row, RowFinding(row, False, missing.seen, missing.detail)), seconds)
        for row in scene.rows
    }


def _proof(
    candidate: ProveCandidate, answers: Mapping[str, tuple[RowFinding, float]], known_file: Path
) -> ProveResult:
    name, version = candidate.driver.name, candidate.program.version
    before = known(name, version, known_file)
    checks = []
    for row in ROWS.values():
        if row.id not in answers:
            continue
        finding, seconds = answers[row.id]
        relied = row.relied(candidate.driver.abilities)
        if finding.holds:
            result = HOLDS
        elif relied:
            result = BROKEN
        else:
            result = DIFFERS
        change = before.change(row.id, result, finding.seen) if before else None
        checks.append(
            RowCheck(
                id=row.id,
                asks=row.asks,
                relied=relied,
                result=result,
                seen=finding.seen,
                detail=finding.detail,
                seconds=seconds,
                known=(change[0], change[1]) if change else None,
            )
        )
    where = candidate.program.path
    return ProveResult(
        agent=name,
        version=version,
        program=where,
        known=before.version if before else "",
        checks=tuple(checks),
    )
