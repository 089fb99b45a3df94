"""Kills at random moments of a two-turn task with the real CLIs, and the result of each: `make
kills N=200`.

One trial: a task of two turns (the second one by `update`). At a random moment of a random turn
something is killed with SIGKILL: the agent, its shim, the supervisor, supervisor and agent, or
everything. Then `perdure retry` is repeated until it succeeds. The faults that a trial looks for: a
`native` receipt although the model was not shown the conversation; a fresh start although there was
a transcript with the task; a process left alive; a file that is gone or changed. A failed trial is
repeated by its seed.

In most of the trials the conversation is harmed as well (`tests.journeys.harm`), and the receipts
are judged item by item: every item that was shown to the model before, by the model server's
record, must be shown again, or the receipt must say that it is not.

With `--warm` (Claude Code, Codex) one program makes both turns and keeps the agent between them.
The kill may come at any moment of both.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from perdure.agents.rehearsal import Rehearsal
from perdure.rules.receipt import UNANSWERED
from tests.journeys.harm import HARMS, apply, judge_items, told_of_loss
from tests.journeys.stage import Done, Stage, said
from tests.patience import PATIENCE_S

FIRST = "Write one.txt. The magic word is quercus."
SECOND = "Now write two.txt. The second word is fagus."
SCRIPT = """by history
summary A task with the magic word quercus.
run echo one > one.txt; sleep 0.2
---
slow 0.3
say The first file is written.
---
run echo two > two.txt; sleep 0.2
---
slow 0.3
say The second file is written.
"""
VICTIMS = ("agent", "shim", "supervisor", "supervisor and agent", "everything")
LATEST_S = {"claude": 2.0, "codex": 1.6, "gemini": 3.0, "opencode": 6.0}
"""Latest moment of a kill after the start: about the usual end of a turn. A kill that comes too
late is not counted."""
TRIES = 6
HARMED = 0.7
"""Share of the trials in which the conversation is harmed."""
WARM_LATEST_S = {"claude": 5.0, "codex": 3.0}
KEPT = tuple(WARM_LATEST_S)
TWO_TURNS = """
import sys, perdure
with perdure.open() as runner:
    if runner.run(sys.argv[1], name="task", agent=sys.argv[3], permissions="full", attempts=1).state == "succeeded":
        runner.update("task", sys.argv[2])
"""


@dataclass
class Trial:
    """The result of one trial. `wrong` is empty if all promises held."""

    seed: int
    agent: str
    victim: str = ""
    turn: int = 0
    after_s: float = 0.0
    warm: bool = False
    harm: str = ""
    """Damage that was done to the conversation after the kill, or an empty string."""
    copied: bool = False
    """Whether perdure had a copy of the conversation when it was harmed."""
    harm_times: tuple[int, int] = (0, 0)
    """Begin and end of the damage. A request between them belongs to no attempt."""
    unwritten: list[int] = field(default_factory=list)
    """Numbers of the attempts before which no transcript had the task."""
    kept_on: bool | None = None
    """Whether the attempt after the damage continued the conversation."""
    behind: bool = False
    """Whether the killed attempt had done its turn, and the damage may have removed replies of that
    turn. The scripted model then gives these replies again, and does not write the second file."""
    kept: int = 0
    """Number of attempts that were the second turn of a process."""
    struck: bool = False
    wrong: list[str] = field(default_factory=list)
    verdicts: list[str] = field(default_factory=list)
    remarkable: list[str] = field(default_factory=list)
    """Attempts that neither began nor continued the conversation, and why."""
    transcript_was_there: int = 0
    native_of_those: int = 0


def trial(
    seed: int, agent: str, *, warm: bool = False, harms: Sequence[str] = (), late: float = 1.0
) -> Trial:
    """Make one trial in its own scratch directory, and return its result. `harms`: the only kinds
    of damage to choose from; one is then done in every trial of an agent to which it applies.
    `late`: factor for the latest moment of a kill."""
    dice = random.Random(seed)
    result = Trial(
        seed,
        agent,
        dice.choice(VICTIMS),
        dice.choice((1, 2)),
        dice.uniform(0.0, LATEST_S[agent] * late),
        warm,
    )
    if warm:
        result.turn, result.after_s = 0, dice.uniform(0.0, WARM_LATEST_S[agent])
    elif dice.random() < HARMED or harms:
        # Damage stands for the loss of a whole machine, so everything is killed.
        chosen = [each for each in HARMS[agent] if each in harms]
        result.victim, result.harm = "everything", dice.choice(chosen or HARMS[agent])
    directory = Path(tempfile.mkdtemp(prefix="pk"))
    with Rehearsal(SCRIPT) as rehearsal:
        extra = {"PERDURE_WARM": "on"} if warm else {"PERDURE_CHECKPOINT_EVERY": "0.05s"}
        stage = Stage(directory, agent, rehearsal, extra=extra)
        try:
            _play(stage, result)
        except (AssertionError, subprocess.TimeoutExpired) as error:
            result.wrong.append(f"{type(error).__name__}: {error}"[:600])
        finally:
            stage.close()
    if not result.wrong or not os.environ.get("PERDURE_KEEP_TRIALS"):
        shutil.rmtree(directory, ignore_errors=True)
    return result


def _play(stage: Stage, result: Trial) -> None:
    words = ("--json", "--attempts", "1")
    run = ("run", "--name", "task", "--permissions", "full", "--agent", stage.agent, *words, FIRST)
    begun = _kept_turns(stage, result) if result.warm else 0
    if begun < 2:
        if begun == 0 or not _succeeded(stage, 1):
            _turn(stage, result, 1, run if begun == 0 else ("retry", "task", "--json"))
        if result.turn == 1 and not result.struck:
            return  # The kill came too late, and the trial is not counted.
        if not result.wrong:
            _turn(stage, result, 2, ("update", "task", SECOND, "--json"))
    elif not _succeeded(stage, 2):
        _turn(stage, result, 2, ("retry", "task", "--json"))
    if result.wrong:
        return
    report = stage.show()
    records = [
        json.loads(line)["event"]
        for line in stage.perdure("logs", "task", "--json").out.splitlines()
    ]
    result.kept = sum(
        event["kind"] == "agent_launched" and event.get("turn", 1) > 1 for event in records
    )
    _judge(stage, result, report)
    workdir = Path(report["workspace"]["path"])
    # If the agent had ended before the loss, no attempt follows, and the run itself says what is
    # missing.
    said_so = "does not exist" in report["missed_checkpoint"]
    told = result.harm == "workdir lost" and (said_so or told_of_loss(stage))
    for name, text in (("one.txt", "one\n"), ("two.txt", "two\n")):
        if (told or (result.behind and name == "two.txt")) and not (workdir / name).exists():
            continue
        if not (workdir / name).exists() or (workdir / name).read_text() != text:
            result.wrong.append(f"lost file: {name} is not what the agent wrote")
    left = stage.marked()
    if left:
        result.wrong.append(f"orphans: {left}")


def _kept_turns(stage: Stage, result: Trial) -> int:
    """Play both turns in one program, with the kill. Return how many turns perdure has accepted."""
    words = [sys.executable, "-c", TWO_TURNS, FIRST, SECOND, stage.agent]
    pipe = subprocess.PIPE
    started = subprocess.Popen(
        words, cwd=stage.repo, env=stage.environ, text=True, stdout=pipe, stderr=pipe
    )
    stage.running.append(started)
    time.sleep(result.after_s)
    result.struck = started.poll() is None
    strike(stage, result.victim, started)
    stage.finish(started)
    # Claude Code asks the model up to 50 ms before it writes the prompt into the transcript.
    _note_unwritten(stage, result, _attempts(stage))
    shown = stage.perdure("show", "task", "--json")
    return int(shown.json["context_version"]) if shown.code == 0 else 0


def _turn(stage: Stage, result: Trial, turn: int, words: tuple[str, ...]) -> None:
    """Play one turn, with the kill if it belongs to this turn, and retry until the turn is done."""
    started = stage.start(*words)
    if result.turn == turn:
        time.sleep(result.after_s)
        result.struck = started.poll() is None
        strike(stage, result.victim, started)
    done = stage.finish(started)
    harmed = result.turn == turn and result.harm and result.struck
    if harmed and turn == 2 and _succeeded(stage, turn):
        # The kill came after the last result, so no attempt follows that could notice the damage.
        harmed, result.harm = False, ""
    if harmed:
        attempts = _attempts(stage)
        _note_unwritten(stage, result, attempts)
        began = time.time_ns() // 1_000_000
        result.harm, result.copied = apply(stage, result.harm, random.Random(result.seed))
        result.harm_times = (
            (began, time.time_ns() // 1_000_000) if result.harm != "two retries" else (0, 0)
        )
        harmed = bool(result.harm)
    for _ in range(TRIES):
        if _succeeded(stage, turn):
            return
        if harmed:
            harmed = False
            done = _again(stage, words)
            result.behind = _succeeded(stage, turn) and _attempts(stage) == attempts
            _went_on(stage, result, attempts)
            continue
        files = _files(stage)
        attempts = _attempts(stage)
        there = _note_unwritten(stage, result, attempts)
        done = _again(stage, words)
        _compare(result, files, _files(stage))
        _expect_native(stage, result, there, attempts)
    result.wrong.append(
        f"turn {turn} was not done after {TRIES} retries: exit {done.code}: {done.err[-300:]}"
    )


def _again(stage: Stage, words: tuple[str, ...]) -> Done:
    """Do as a person would: retry, or repeat the command if perdure had not accepted it yet."""
    done = stage.perdure("retry", "task", "--json")
    accepted = done.code != 5 and "nothing to retry" not in done.err
    return done if accepted else stage.perdure(*words)


def _recorded_run(stage: Stage) -> tuple[str, int, int]:
    """Return the run's state, the version of its instructions and its number of attempts. They are
    read from the database, because a trial needs them often, and each `perdure show` takes as long
    as a turn of an agent."""
    database = stage.state / "perdure.db"
    if not database.exists():
        return "", 0, 0
    # A kill may leave a journal, which a connection that only reads cannot roll back.
    link = sqlite3.connect(f"{database.as_uri()}?mode=rw", uri=True, timeout=PATIENCE_S)
    with contextlib.closing(link):
        # A kill may have come before the tables were made.
        if not link.execute("select 1 from sqlite_master where name = 'attempts'").fetchone():
            return "", 0, 0
        row = link.execute(
            "select state, context_version, (select count(*) from attempts where run = runs.id) "
            "from runs where name = 'task'"
        ).fetchone()
    return row or ("", 0, 0)


def _succeeded(stage: Stage, turn: int) -> bool:
    return _recorded_run(stage)[:2] == ("succeeded", turn)


def _attempts(stage: Stage) -> int:
    return _recorded_run(stage)[2]


def strike(stage: Stage, victim: str, supervisor: subprocess.Popen[str]) -> None:
    """Send SIGKILL to every process of the victim that exists at this moment."""
    if victim == "everything":
        supervisor.kill()
        for _ in range(50):
            pids = stage.marked()
            for pid in pids:
                _kill(pid)
            if not pids:
                return
        return
    if victim.startswith("supervisor"):
        supervisor.kill()
    if victim != "supervisor":
        name = "shim.json" if victim == "shim" else "agent.json"
        files = sorted(stage.state.glob(f"runs/*/*/{name}"), key=lambda path: int(path.parent.name))
        if files:
            _kill(json.loads(files[-1].read_text())["pid"])


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _files(stage: Stage) -> dict[str, str]:
    found = {}
    for path in stage.home.glob(".local/share/perdure/.perdure/work/*/*.txt"):
        found[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def _compare(result: Trial, before: dict[str, str], after: dict[str, str]) -> None:
    """Record files that are gone or changed. A file that was empty at the kill, because it was
    being written, may have content now."""
    empty = hashlib.sha256(b"").hexdigest()
    for name, digest in before.items():
        if after.get(name) != digest and digest != empty:
            result.wrong.append(f"lost file: {name}")


def _transcript_has(stage: Stage, word: str) -> bool:
    """Return whether a transcript of the agent has the word in a prompt."""
    from perdure.agents import registry

    driver = registry.load(stage.agent)
    return any(
        word in prompt.text
        for content in stage.conversations().values()
        for prompt in driver.prompts(content)
    )


def _note_unwritten(stage: Stage, result: Trial, attempts: int) -> bool:
    """Return whether a transcript has the task. If none has, record the number of the attempt that
    begins now."""
    there = _transcript_has(stage, "quercus")
    if not there:
        result.unwritten.append(attempts + 1)
    return there


def _expect_native(stage: Stage, result: Trial, there: bool, attempts_before: int) -> None:
    """Check that every new attempt continued natively if there was a transcript with the task."""
    shown = stage.perdure("show", "task", "--json")
    if shown.code != 0:
        return
    for attempt in shown.json["attempts"][attempts_before:]:
        if there:
            result.transcript_was_there += 1
            verdict = (attempt["receipt"] or {}).get("verdict")
            result.native_of_those += verdict == "native"
            if attempt["continuation"] in ("fresh", "rebuild"):
                result.wrong.append(
                    f"silent fresh start: attempt {attempt['number']} although the transcript was "
                    f"there: {attempt['why']}"
                )


KEPT_ON = ("native", "repaired", "shortened", "compacted")
"""Verdicts on a conversation that was continued."""


def _went_on(stage: Stage, result: Trial, attempts_before: int) -> None:
    """Record whether the first attempt after the damage that has a receipt continued the
    conversation."""
    shown = stage.perdure("show", "task", "--json")
    if shown.code != 0:
        return
    later = [each for each in shown.json["attempts"][attempts_before:] if each["receipt"]]
    if later:
        result.kept_on = later[0]["receipt"]["verdict"] in KEPT_ON


def _judge(stage: Stage, result: Trial, report: dict[str, Any]) -> None:
    """Compare every receipt with the messages that the model got during the attempt."""
    requests = [
        r
        for r in stage.rehearsal.requests
        if not result.harm_times[0] <= r.time <= result.harm_times[1]
    ]
    result.wrong += judge_items(stage, report, result.harm, result.harm_times, result.unwritten)
    for attempt in report["attempts"]:
        verdict = (attempt["receipt"] or {}).get("verdict", "none")
        result.verdicts.append(verdict)
        if verdict not in ("native", "fresh", "none"):
            result.remarkable.append(
                f"attempt {attempt['number']} {verdict}: {attempt['receipt']['reasons']}"
            )
        shown = [
            r for r in requests if attempt["started"] <= r.time <= (attempt["ended"] or 1 << 62)
        ]
        for request in shown:
            text = said(request.messages)
            # For items that are left out by a summary or after removed turns, the receipt itself
            # says so.
            if "quercus" not in text and verdict not in ("compacted", "shortened"):
                result.wrong.append(
                    f"silent fresh start: attempt {attempt['number']} ({verdict}) asked the model "
                    "without the task"
                )
            if (
                verdict == "native"
                and not result.harm
                and attempt["context_version"] == 2
                and "The first file is written." not in text
            ):
                result.wrong.append(
                    f"false native: attempt {attempt['number']} was not shown the first turn's "
                    "answer"
                )
        if verdict == "native" and not shown and UNANSWERED not in attempt["receipt"]["reasons"]:
            result.wrong.append(
                f"false native: attempt {attempt['number']} never reached the model"
            )
    sessions = {
        attempt["session_id"]
        for attempt in report["attempts"]
        if (attempt["receipt"] or {}).get("verdict") == "native"
    }
    known = {request.session for request in requests} - {
        ""
    }  # Gemini CLI names no conversation in its requests
    if known and not sessions <= known:
        result.wrong.append("false native: a conversation that the model never saw")


def campaign(
    number: int,
    agents: tuple[str, ...],
    seed: int,
    jobs: int,
    *,
    warm: bool = False,
    harms: Sequence[str] = (),
    late: float = 1.0,
    record: Path | None = None,
) -> list[Trial]:
    """Run trials until this number of kills has hit a live task, spread over the agents. Progress
    goes to standard error.

    If there is a record, each trial is a line of JSON in that file, and an interrupted campaign
    continues after its last line.
    """
    done = _recorded(record)
    with ThreadPoolExecutor(jobs) as pool:
        while (left := number - sum(t.struck for t in done)) > 0:
            seen = {each.seed - seed for each in done}
            start = max(seen, default=-1) + 1
            numbers = [*({*range(start)} - seen), *range(start, start + max(left, jobs))]
            for result in pool.map(
                lambda n: trial(
                    seed + n, agents[n % len(agents)], warm=warm, harms=harms, late=late
                ),
                numbers,
            ):
                done.append(result)
                if record is not None:
                    with record.open("a") as file:
                        file.write(json.dumps(asdict(result)) + "\n")
                mark = "F" if result.wrong else "." if result.struck else "-"
                print(
                    mark,
                    end="" if len(done) % 50 else f" {len(done)}\n",
                    file=sys.stderr,
                    flush=True,
                )
                for wrong in result.wrong:
                    print(f"\n{told(result)}: {wrong}", file=sys.stderr, flush=True)
    return done


def _recorded(record: Path | None) -> list[Trial]:
    if record is None or not record.exists():
        return []
    return [Trial(**json.loads(line)) for line in record.read_text().splitlines()]


def told(t: Trial) -> str:
    """Return the name of the trial, by which it can be repeated."""
    how = ", warm" if t.warm else ""
    harm = f", {t.harm}" if t.harm else ""
    return f"seed {t.seed} ({t.agent}{how}, {t.victim}{harm}, turn {t.turn}, {t.after_s:.2f} s)"


def table(trials: list[Trial]) -> str:
    """Return the counts, and every failed trial with its seed."""
    kinds = ("false native", "false repaired", "untrue", "silent fresh", "orphans", "lost file")
    lines = [
        f"{'':22}{'trials':>7}{'kills':>8}"
        + "".join(f"{kind:>14}" for kind in kinds)
        + f"{'other':>8}"
    ]
    for agent in sorted({t.agent for t in trials}):
        for victim in VICTIMS:
            mine = [t for t in trials if (t.agent, t.victim) == (agent, victim)]
            wrong = [w for t in mine for w in t.wrong]
            counts = [sum(w.startswith(kind) for w in wrong) for kind in kinds]
            line = f"{agent + ': ' + victim:22}{len(mine):>7}{sum(t.struck for t in mine):>8}"
            lines.append(
                line
                + "".join(f"{count:>14}" for count in counts)
                + f"{len(wrong) - sum(counts):>8}"
            )
    there, native = (
        sum(t.transcript_was_there for t in trials),
        sum(t.native_of_those for t in trials),
    )
    if any(t.warm for t in trials):
        lines.append(
            f"attempts that were a later turn of a kept agent: {sum(t.kept for t in trials)}"
        )
    lines += _harm_table(trials)
    verdicts = collections.Counter(verdict for t in trials for verdict in t.verdicts)
    lines.append(
        f"\n{sum(t.struck for t in trials)} kills; attempts with a transcript to go on from: "
        f"{there}, of them native: {native}"
    )
    lines.append(
        "receipts: " + ", ".join(f"{count} {verdict}" for verdict, count in verdicts.most_common())
    )
    for t in trials:
        lines += [f"{told(t)}: {note}" for note in (*t.remarkable, *t.wrong)]
    return "\n".join(lines)


def _harm_table(trials: list[Trial]) -> list[str]:
    """Return the lines about the damage that was done, and how often the conversation continued if
    perdure had a copy of it."""
    harmed = [t for t in trials if t.struck and t.harm]
    if not harmed:
        return []
    lines = [f"\n{'harm':22}{'trials':>7}{'with a copy':>13}{'went on':>9}"]
    for harm in sorted({t.harm for t in harmed}):
        mine = [t for t in harmed if t.harm == harm]
        judged = [t for t in mine if t.copied and t.kept_on is not None]
        lines.append(
            f"{harm:22}{len(mine):>7}{len(judged):>13}{sum(bool(t.kept_on) for t in judged):>9}"
        )
    judged = [t for t in harmed if t.copied and t.kept_on is not None]
    lines.append(
        f"{'all':22}{len(harmed):>7}{len(judged):>13}{sum(bool(t.kept_on) for t in judged):>9}"
    )
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(prog="kills", description=__doc__)
    parser.add_argument("number", type=int, nargs="?", default=200)
    parser.add_argument("--agent", action="append", choices=[*LATEST_S])
    parser.add_argument(
        "--harm", action="append", choices=sorted({*chain.from_iterable(HARMS.values())})
    )
    parser.add_argument("--seed", type=int, default=20_261_121)
    parser.add_argument(
        "--late", type=float, default=1.0, help="factor for the latest moment of a kill"
    )
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument(
        "--warm", action="store_true", help="Claude Code and Codex, kept between the turns"
    )
    parser.add_argument(
        "--record", type=Path, help="keep every trial in this file, and go on from it"
    )
    arguments = parser.parse_args()
    agents = tuple(arguments.agent or (KEPT if arguments.warm else LATEST_S))
    trials = campaign(
        arguments.number,
        agents,
        arguments.seed,
        arguments.jobs,
        warm=arguments.warm,
        harms=tuple(arguments.harm or ()),
        late=arguments.late,
        record=arguments.record,
    )
    print(table(trials))
    return 1 if any(t.wrong for t in trials) else 0


if __name__ == "__main__":
    raise SystemExit(main())
