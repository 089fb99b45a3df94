"""`perdure prove`: tests the installed agents against the rehearsal, to find out whether they
behave as perdure expects.

Called by `cli.prove`. It needs no key, no network and no tokens. Every scene has a scratch home, an
empty workdir and its own model server on 127.0.0.1, and runs the real program through its driver.
Guarantees: the user's own homes are neither read nor written; no process and no file is left
behind, also after SIGINT or SIGTERM.
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

from msgspec import Struct

from perdure.agents import registry
from perdure.agents.prove import kills, scenes
from perdure.agents.prove.rows import FILE, ROWS, RowFinding, recorded_answers
from perdure.agents.prove.scenes import Failed, ProveScene
from perdure.agents.prove.stage import Interrupted, Stage, Unseen
from perdure.agents.rehearsal import Rehearsal, agents
from perdure.errors import AgentMissing, UsageError
from perdure.host import process
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


class ProveCandidate(Struct, frozen=True):
    """A program to test, with the driver of its agent."""

    driver: AgentDriver
    program: Program


class RowCheck(Struct, frozen=True, kw_only=True):
    """The result for one row.

    `known`: the recorded result and observation for the version `ProveResult.known`. None if they
    equal the new ones, or if none are recorded.
    """

    id: str
    asks: str
    relied: bool
    result: str
    """One of three values. `holds`: the row's statement is true. `differs`: it is not true, and
    perdure does not rely on it. `broken`: it is not true, and perdure relies on it."""
    seen: str
    detail: str
    seconds: float
    """Duration of the scene that tested this row, in seconds."""
    known: tuple[str, str] | None = None


class ProveResult(Struct, frozen=True, kw_only=True):
    """The results for one program, in the order of ROWS."""

    agent: str
    version: str
    program: str
    known: str
    """Version whose recorded answers these results were compared with. Empty if no answers are
    recorded for the agent."""
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
    """Return the programs to test, and a sentence for each agent that was skipped. The given
    programs and those of the wanted agents are tested. If there are neither given programs nor
    wanted agents, all installed agents are tested. Raise AgentMissing if a wanted agent is missing,
    or if no agent is installed."""
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
    )  # raises UsageError if the agent cannot be directed to the rehearsal
    return ProveCandidate(
        driver,
        program
        if program.version
        else Program(path=program.path, version=_reported_version(program.path, environ)),
    )


def _reported_version(path: str, environ: Mapping[str, str]) -> str:
    """Return the version that the program prints for `--version`; "unknown" if it prints none. For
    an agent over ACP, `path` is a whole command. This command is not run, and the result is
    "unknown"."""
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
    if number:
        return number[0]
    return "unknown"


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
    """Test each program in turn and yield its result.

    - `only`: ids of the rows to answer; empty for all rows. A scene that answers one of these rows
      runs completely, so the result may contain further rows.
    - `jobs`: number of scenes that run in parallel; 0 means the number of processors.

    Raise Interrupted when `stopping` returns true, UsageError for an unknown row.
    """
    if strangers := sorted(set(only) - set(ROWS)):
        raise UsageError(
            f"There is no check named {strangers[0]!r}.", f"One of: {', '.join(ROWS)}."
        )
    for candidate in programs:
        if candidate.driver.abilities.transcripts:
            there = SCENES
        else:
            there = scenes.UNREADABLE_SCENES
        played = []
        for scene in there:
            if (scene.quick or not quick) and (not only or set(only) & set(scene.rows)):
                played.append(scene)
        scratch = Path(tempfile.mkdtemp(prefix="pp"))
        try:
            done = 0
            with ThreadPoolExecutor(jobs or os.cpu_count() or 1) as pool:
                playing = []
                for number, scene in enumerate(played):
                    playing.append(
                        pool.submit(
                            _play, scene, candidate, scratch / str(number), environ, stopping
                        )
                    )
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
    """Run one scene. Return the answers to all its rows, each with the duration of the scene in
    seconds. If the scene did not reach a row, the answer to that row is negative and tells the
    reason. Raise Interrupted when `stopping` returns true."""
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
        except OSError as failure:  # the program may have ended, or a file may be gone
            missing = RowFinding("", False, "not seen", str(failure))
        finally:
            stage.close()
    seconds = round(time.monotonic() - began, 2)
    result = {}
    for row in scene.rows:
        result[row] = (
            found.get(row, RowFinding(row, False, missing.seen, missing.detail)),
            seconds,
        )
    return result


def _proof(
    candidate: ProveCandidate, answers: Mapping[str, tuple[RowFinding, float]], known_file: Path
) -> ProveResult:
    name, version = candidate.driver.name, candidate.program.version
    before = recorded_answers(name, version, known_file)
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
        if before:
            change = before.change(row.id, result, finding.seen)
        else:
            change = None
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
