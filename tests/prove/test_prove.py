"""`perdure prove`, the real command with the real agents: rows that hold, rows that a bad agent
breaks, and differences from the known answers."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from perdure.agents.prove import ROWS, SCENES, ProveResult, RowCheck, candidates, prove
from perdure.agents.prove.rows import read, record_answers, recorded_answers
from perdure.cli.prove import table, verdict
from tests.drivers import acp_proxy
from tests.journeys.stage import native
from tests.patience import PATIENCE_S

TOP = Path(__file__).parents[2]


@pytest.fixture
def scratch() -> Iterator[Path]:
    """Make a directory with a short path, because the path of a socket has at most 108 bytes."""
    directory = Path(tempfile.mkdtemp(prefix="pv"))
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


def environ(scratch: Path) -> dict[str, str]:
    """Return a user's environment: a home with a key that no agent may read, and the pinned
    agents."""
    for name in ("home", "tmp"):
        (scratch / name).mkdir(exist_ok=True)
    return {
        "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
        "HOME": str(scratch / "home"),
        "TMPDIR": str(scratch / "tmp"),
        "LANG": "C.UTF-8",
        "PERDURE_CLAUDE": str(native("claude")),
        "PERDURE_CODEX": str(native("codex")),
        "ANTHROPIC_API_KEY": "the user's own",
        "ANTHROPIC_BASE_URL": "http://127.0.0.1:9",
    }


def command(scratch: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run `perdure prove` to its end, and return its result."""
    argv = [sys.executable, "-m", "perdure", "prove", *words]
    return subprocess.run(
        argv, env=environ(scratch), cwd=scratch, text=True, capture_output=True, timeout=PATIENCE_S
    )


def bad(scratch: Path) -> Path:
    """Make an agent that claims to be Claude Code, and starts a new conversation on every resume."""
    program = scratch / "claude-bad"
    program.write_text(
        f"#!/bin/sh\nexec {sys.executable} {Path(__file__).with_name('fresh.py')} "
        f'{native("claude")} "$@"\n'
    )
    program.chmod(0o755)
    return program


def by_id(proof: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {check["id"]: check for check in proof["checks"]}


@pytest.mark.parametrize(
    ("scene", "code", "seen"),
    [
        ("honest", 0, "same id, whole history, and replayed"),
        ("resumes", 0, "same id, whole history, and only claimed"),
        ("lies", 1, "ends as session_broken, no request"),
        ("unable", 1, "offers neither to load nor to resume"),
    ],
)
def test_an_agent_known_by_its_protocol_alone(
    scratch: Path, scene: str, code: int, seen: str
) -> None:
    """codex-acp is proven as an unknown agent. The row `resume` shows what the agent claims to
    support, and whether the claim is true."""
    adapter = native("codex").parents[5] / "@agentclientprotocol/codex-acp/dist/index.js"
    mine = (
        f"{sys.executable} {acp_proxy.__file__} {scene} env CODEX_PATH={native('codex')} node "
        f"{adapter}"
    )
    argv = [sys.executable, "-m", "perdure", "prove", "acp-mine", "--json"]
    env = {**environ(scratch), "PERDURE_ACP_MINE": mine}
    done = subprocess.run(
        argv, env=env, cwd=scratch, text=True, capture_output=True, timeout=PATIENCE_S
    )
    assert done.returncode == code, done.stdout + done.stderr
    checks = by_id(json.loads(done.stdout)["agents"][0])
    assert list(checks) == ["start", "resume", "unknown-session"]
    assert (checks["start"]["result"], checks["resume"]["seen"]) == ("holds", seen)


@pytest.mark.parametrize("agent", ["claude", "codex"])
def test_all_that_perdure_relies_on_holds(scratch: Path, agent: str) -> None:
    """Every row has the known answer for the pinned version. The user's home stays empty, and no
    process is left."""
    done = command(scratch, agent, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout)
    assert (told["schema_version"], told["ok"]) == (1, True)
    [proof] = told["agents"]
    checks = by_id(proof)
    assert list(checks) == list(ROWS)
    assert [
        check["id"] for check in proof["checks"] if check["relied"] and check["result"] != "holds"
    ] == []
    assert [check["id"] for check in proof["checks"] if check["changed"]] == []
    assert list((scratch / "home").iterdir()) == []
    assert [path.name for path in (scratch / "tmp").iterdir() if path.name.startswith("pp")] == []


def test_an_agent_that_starts_afresh_is_found_out(scratch: Path) -> None:
    """The rows of an agent that starts a new conversation are broken: the model's requests count,
    not the agent's own claims. The other rows hold, and the exit code is 1."""
    only = ("resume", "unknown-session", "kill-in-reply", "fork")
    done = command(
        scratch,
        "--program",
        f"claude={bad(scratch)}",
        "--json",
        *(word for row in only for word in ("--only", row)),
    )
    assert done.returncode == 1, done.stdout + done.stderr
    [proof] = json.loads(done.stdout)["agents"]
    checks = by_id(proof)
    assert {row for row, check in checks.items() if check["result"] == "broken"} == {
        *only,
        "transcript-grows",
    }
    assert checks["resume"]["seen"] == "succeeds, history missing"
    assert checks["unknown-session"]["seen"] == "starts afresh"
    assert checks["start"]["result"] == checks["usage"]["result"] == "holds"
    assert checks["resume"]["known"] == {
        "version": proof["version"],
        "result": "holds",
        "seen": "same id, whole history",
    }


def test_quick_answers_the_most_important_ones(scratch: Path) -> None:
    """`--quick` prints a table with the rows for resume and kills, and without the slow rows. The
    last line is the verdict."""
    done = command(scratch, "codex", "--quick")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = {line.split()[0] for line in done.stdout.splitlines() if line.startswith("  ")}
    assert {"resume", "unknown-session", "kill-in-reply", "own-copy"} <= rows
    assert not {"error-401", "prompts", "fork"} & rows
    assert done.stdout.splitlines()[-1].startswith("All ")
    assert "\x1b" not in done.stdout + done.stderr


def test_what_cannot_be_meant_is_refused(scratch: Path) -> None:
    """An unknown agent, a missing program, an unknown check, and an incomplete option are each
    refused with one sentence, and nothing is run."""
    for words, code in (
        (("nobody",), 5),
        (("--program", f"claude={scratch}/none"), 5),
        (("codex", "--only", "nothing"), 2),
        (("--program", "claude"), 2),
    ):
        done = command(scratch, *words)
        assert (done.returncode, done.stdout) == (code, ""), words
        assert done.stderr.startswith("perdure: "), done.stderr
        assert "Traceback" not in done.stderr


def test_an_interrupt_ends_everything(scratch: Path) -> None:
    """SIGTERM to `perdure prove` also ends the agents, and removes the scratch directories."""
    argv = [sys.executable, "-m", "perdure", "prove", "codex"]
    with subprocess.Popen(
        argv, env=environ(scratch), cwd=scratch, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as running:
        until(lambda: agents_of(scratch))
        running.send_signal(signal.SIGTERM)
        running.communicate(timeout=PATIENCE_S)
    assert running.returncode == 130
    assert agents_of(scratch) == []
    assert [path.name for path in (scratch / "tmp").iterdir() if path.name.startswith("pp")] == []


def agents_of(scratch: Path) -> list[int]:
    """Return the live processes with the scratch directory in their environment, except for perdure
    itself."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            env = (entry / "environ").read_bytes()
        except OSError:
            continue
        if b"PERDURE_ATTEMPT=prove-" in env and os.fsencode(scratch) in env:
            found.append(int(entry.name))
    return found


def until(met: Any) -> None:
    end = time.monotonic() + PATIENCE_S
    while not met():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.02)


def proof(checks: Sequence[RowCheck] = (), known_of: str = "1.0.0") -> ProveResult:
    return ProveResult(
        agent="claude", version="1.1.0", program="/opt/claude", known=known_of, checks=tuple(checks)
    )


RESUME = RowCheck(
    id="resume",
    asks="A resume goes on.",
    relied=True,
    result="holds",
    seen="same id",
    detail="",
    seconds=1.0,
)


def test_what_is_known_is_compared(scratch: Path) -> None:
    """A known version is compared with its own known answers, any other version with the newest
    ones. A changed answer is marked, and an unchanged one is not."""
    file, report = scratch / "known.json", scratch / "report.json"
    for version, seen in (("1.9.0", "nine"), ("1.10.0", "ten")):
        checks = [{"id": "resume", "result": "holds", "seen": seen}]
        report.write_text(
            json.dumps({"agents": [{"agent": "claude", "version": version, "checks": checks}]})
        )
        record_answers(report, file)
    for version, nearest, seen in (
        ("1.9.0", "1.9.0", "nine"),
        ("1.11.0", "1.10.0", "ten"),
        ("1.8.0", "1.10.0", "ten"),
    ):
        before = recorded_answers("claude", version, file)
        assert before is not None
        assert before.version == nearest
        assert before.change("resume", "holds", seen) is None
        assert before.change("resume", "broken", seen) == ["holds", seen]
        assert before.change("a new row", "holds", "x") is None
    assert recorded_answers("codex", "1.0", file) is None
    changed = replace(RESUME, result="broken", seen="another id", known=("holds", "same id"))
    shown = table(proof([changed]), 0)
    assert (
        "differs from what is known of claude 1.0.0: holds (same id), now broken (another id)"
        in shown
    )
    assert verdict([proof([changed])]) == (
        "perdure cannot rely on claude 1.1.0: resume. 1 answer differs from what is known."
    )
    assert (
        verdict([proof([RESUME])]) == "All 1 checks that perdure relies on hold for claude 1.1.0."
    )


def test_a_change_in_the_real_thing_is_pointed_out(scratch: Path) -> None:
    """If the file of known answers differs from the program's answer, the row is marked as
    changed."""
    file = scratch / "known.json"
    [codex], _ = candidates(["codex"], [], environ(scratch))
    version = codex.program.version
    file.write_text(
        json.dumps(
            {
                "schema_version": 1,
                "agents": {"codex": {version: {"fork": ["broken", "cannot fork"]}}},
            }
        )
    )
    [found] = prove([codex], only=["fork"], environ=environ(scratch), known_file=file)
    assert [(check.id, check.known) for check in found.changed] == [
        ("fork", ("broken", "cannot fork"))
    ]


@pytest.mark.parametrize("width", [80, 200])
def test_the_table_fits_the_terminal(width: int) -> None:
    """No line is wider than the terminal, and no word is lost."""
    long = replace(
        RESUME,
        result="broken",
        seen="word " * 60,
        detail="\x1b[31mred " * 30,
        known=("holds", "same id"),
    )
    lines = table(replace(proof([long, RESUME]), program="/opt/claude"), width).splitlines()
    assert max(map(len, lines)) <= width
    assert "\x1b" not in "".join(lines)
    assert " ".join(lines).count("word") >= 120


def test_the_rows_are_complete() -> None:
    """Each row is answered by one scene and explained in the documentation. Its answers are known
    for two versions of each agent, as the page says."""
    answered = [row for scene in SCENES for row in scene.rows]
    assert sorted(answered) == sorted(ROWS)
    page = (TOP / "docs" / "reference" / "prove.md").read_text()
    assert [row for row in ROWS if f"`{row}`" not in page] == []
    assert [row.asks for row in ROWS.values() if row.asks not in page] == []
    for agent, versions in read().items():
        assert len(versions) >= 2, agent
        for version, answers in versions.items():
            assert list(answers) == list(ROWS), (agent, version)
            shown = page.partition(f"{agent} {version}\n")[2].partition("```")[0].splitlines()
            told = [line.split(maxsplit=3) for line in shown if line.strip()][1:]
            assert told == [
                [row, result, told[at][2], seen]
                for at, (row, (result, seen)) in enumerate(answers.items())
            ], (agent, version)
