"""Dispatches tasks again and again while everything around them fails: `make redispatches N=1000`.

A line is one run of a real agent on one machine: a first dispatch and then updates, all in one
conversation. Before or during each update there may be a fault: the agent, its shim, the supervisor
or everything is killed at a random moment; PostgreSQL or Redis is killed and started again; Redis
is emptied or stalled; the session's rows are deleted; the agent's transcript is lost or torn; both
transcript and own copy are lost. In some lines every session has expired when it is used again.
Every receipt is compared with the messages that reached the model.

Each re-dispatch counts. If the transcript or perdure's own copy was there, its verdict must be
`native` or `repaired`. If neither was there, the new conversation must name the one that it
replaces, and must begin with a brief. `WRONG` lists what must never happen. A line is repeated by
its seed.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import perdure
from perdure.agents import registry
from perdure.agents.rehearsal import Rehearsal
from perdure.model import SessionState
from perdure.rules.receipt import UNANSWERED
from tests.journeys.kills import LATEST_S, TRIES, VICTIMS, strike
from tests.journeys.stage import Stage, said
from tests.servers import postgres, redis

AGENTS = ("claude", "codex")
DATABASES = ("sqlite", "postgresql")
LENGTH = 10
"""Re-dispatches in a line."""
FIRST = "Keep a log in log.txt. The magic word is quercus."
SCRIPT = (
    "by history\n"
    + "\n---\n".join(
        f"run echo {n} >> log.txt\n---\nsay Turn {n} is done." for n in range(1, 40 * LENGTH)
    )
    + "\n"
)
FAULTS = {
    "kill": 36,
    "redis": 12,
    "postgresql": 12,
    "none": 14,
    "rows lost": 6,
    "transcript lost": 8,
    "transcript torn": 6,
    "all lost": 6,
}
"""Frequency of each fault. On SQLite, the fault `postgresql` is a kill."""
LAUNCHED = 0.75
"""Share of the faults during an update that come after the agent's launch. The others come while
perdure prepares the launch."""
EXPIRED = (2, 5)
"""Share of the lines in which every session expires."""
LEFT = 0.1
"""Share of the re-dispatches in these lines that ask for a new conversation."""
WRONG = ("silent fresh", "false receipt", "not disclosed", "forgotten", "not done", "orphans")


@dataclass
class Dispatch:
    """One re-dispatch and its result."""

    fault: str
    there: bool
    """Whether a transcript or a copy with the task existed."""
    left: bool
    """Whether a new conversation was asked for, because the session had expired."""
    verdict: str = ""
    """The verdict of the attempt that succeeded."""
    struck: bool = False
    attempts: int = 0
    expired: bool = False


@dataclass
class Line:
    """One run with its re-dispatches. `wrong` is empty if all promises held."""

    seed: int
    agent: str
    database: str
    expired: bool
    dispatches: list[Dispatch] = field(default_factory=list)
    lookups: int = 0
    late: int = 0
    wrong: list[str] = field(default_factory=list)


@dataclass
class Ground:
    """The servers that all lines share. A server is restarted in the thread that started it,
    because it ends together with that thread."""

    postgresql: postgres.Server | None
    redis: redis.RedisServer
    faults: ThreadPoolExecutor

    def strike_redis(self, dice: random.Random) -> Future[None]:
        """Kill Redis and start it again, empty it, or stop it from answering for a second."""
        kind = dice.choice(("restart", "flush", "stall"))

        def act() -> None:
            if kind == "restart":
                self.redis.restart()
            elif kind == "flush":
                with self.redis.client() as client:
                    client.flushall()
            else:
                self.redis.stall()
                time.sleep(1.0)
                self.redis.wake()

        return self.faults.submit(act)

    def strike_postgresql(self) -> Future[None]:
        """Kill PostgreSQL with all its processes, and start it again."""
        server = self.postgresql
        assert server is not None

        def act() -> None:
            server.kill()
            server.start()

        return self.faults.submit(act)


def line(
    seed: int, agent: str, database: str, length: int, ground: Ground, faults: Sequence[str] = ()
) -> Line:
    """Play one line (one run and its dispatches) in its own scratch directory. `faults`: cause
    these faults in this order, instead of random ones."""
    dice = random.Random(seed)
    told = Line(seed, agent, database, seed % EXPIRED[1] < EXPIRED[0])
    directory = Path(tempfile.mkdtemp(prefix="pd"))
    extra = {
        "PERDURE_SESSION_CACHE": ground.redis.url,
        "PERDURE_SESSION_LIFETIME": "0.001s" if told.expired else "1h",
    }
    if database == "postgresql":
        assert ground.postgresql is not None
        extra["PERDURE_DATABASE"] = ground.faults.submit(ground.postgresql.database).result()
    with Rehearsal(SCRIPT) as rehearsal:
        stage = Stage(directory, agent, rehearsal, extra)
        try:
            _Play(stage, told, dice, ground, length, faults).play()
        except (AssertionError, subprocess.TimeoutExpired, perdure.PerdureError) as error:
            told.wrong.append(f"not done: {type(error).__name__}: {error}"[:600])
        finally:
            stage.close()
    if not told.wrong or not os.environ.get("PERDURE_KEEP_TRIALS"):
        shutil.rmtree(directory, ignore_errors=True)
    return told


@dataclass
class _Play:
    stage: Stage
    told: Line
    dice: random.Random
    ground: Ground
    length: int
    faults: Sequence[str]
    version: int = 1
    said: list[str] = field(default_factory=list)
    """The prompts that a continued conversation must contain: all since it began."""

    def play(self) -> None:
        words = (
            "run",
            "--name",
            "task",
            "--permissions",
            "full",
            "--agent",
            self.stage.agent,
            "--attempts",
            "2",
            "--json",
            FIRST,
        )
        done = self.stage.perdure(*words)
        assert done.code == 0, done.err
        self.said = ["quercus"]
        with perdure.open(cwd=self.stage.repo, environ=self.stage.environ) as runner:
            for number in range(1, self.length + 1):
                if self.told.wrong:
                    return
                self._dispatch(f"Step {number}: the word is w{number:03}q.", number)
                self._look_up(runner)
        if left := self.stage.marked():
            self.told.wrong.append(f"orphans: {left}")

    def _dispatch(self, prompt: str, number: int) -> None:
        """Do one update, with its fault, and retry until it is done."""
        fault = (
            self.faults[number - 1]
            if self.faults
            else self.dice.choices([*FAULTS], [*FAULTS.values()])[0]
        )
        if fault == "postgresql" and self.told.database == "sqlite":
            fault = "kill"
        self._before(fault)
        asked = self.told.expired and self.dice.random() < LEFT
        self.stage.environ["PERDURE_SESSION_EXPIRY"] = "rebuild" if asked else "resume"
        now = Dispatch(fault, self._is_there(), asked)
        self.told.dispatches.append(now)
        known = len(self._report()["attempts"])
        words = ("update", "task", prompt, "--json")
        started = self.stage.start(*words)
        pending = self._during(fault, started, now)
        done = self.stage.finish(started)
        if pending is not None:
            pending.result()
        self.version += 1
        report = self._report()
        for _ in range(TRIES):
            if report["state"] == "succeeded" and report["context_version"] == self.version:
                break
            accepted = report["context_version"] == self.version
            done = self.stage.perdure(*(("retry", "task", "--json") if accepted else words))
            report = self._report()
        else:
            self.told.wrong.append(
                f"not done: step {number} after {TRIES} retries, exit {done.code}: "
                f"{done.err[-300:]}"
            )
            return
        self._judge(report["attempts"][known:], now, number)

    def _before(self, fault: str) -> None:
        transcripts = self.stage.transcripts()
        if fault == "rows lost":
            self._delete_rows()
        elif fault == "transcript torn":
            for path in transcripts:
                with path.open("ab") as file:
                    file.write(b'{"type":"user","mess')
        elif fault in ("transcript lost", "all lost"):
            for path in transcripts:
                path.unlink()
        if fault == "all lost":
            shutil.rmtree(self.stage.state / "transcripts")

    def _during(
        self, fault: str, started: subprocess.Popen[str], now: Dispatch
    ) -> Future[None] | None:
        if fault not in ("kill", "redis", "postgresql"):
            return None
        if self.dice.random() < LAUNCHED:
            self._until_launched(started)
        time.sleep(self.dice.uniform(0.0, LATEST_S[self.stage.agent]))
        now.struck = started.poll() is None
        if fault == "kill":
            strike(self.stage, self.dice.choice(VICTIMS), started)
            return None
        return (
            self.ground.strike_redis(self.dice)
            if fault == "redis"
            else self.ground.strike_postgresql()
        )

    def _until_launched(self, started: subprocess.Popen[str]) -> None:
        """Wait until the update's agent runs. On a busy machine that may take longer than the
        chosen moment of the fault."""
        before = self._launches()
        self.stage.until(
            lambda: self._launches() > before or started.poll() is not None, "the agent is launched"
        )

    def _launches(self) -> int:
        return len(list(self.stage.state.glob("runs/*/*/agent.json")))

    def _delete_rows(self) -> None:
        address = self.stage.environ.get("PERDURE_DATABASE")
        if address and self.ground.postgresql is not None:
            server = self.ground.postgresql
            self.ground.faults.submit(server.ask, "DELETE FROM sessions", address).result()
            return
        import sqlite3

        with closing(
            sqlite3.connect(self.stage.state / "perdure.db", isolation_level=None, timeout=60)
        ) as database:
            database.execute("DELETE FROM sessions")

    def _is_there(self) -> bool:
        """Return whether a transcript, or a copy of one, contains the task's first prompt."""
        driver = registry.load(self.stage.agent)
        found = [
            *self.stage.conversations().values(),
            *(path.read_bytes() for path in self.stage.copies()),
        ]
        return any(
            "quercus" in prompt.text for content in found for prompt in driver.prompts(content)
        )

    def _report(self) -> dict[str, Any]:
        for _ in range(TRIES):
            shown = self.stage.perdure("show", "task", "--json")
            if shown.code == 0:
                return shown.json
        raise AssertionError(f"show: {shown.err}")

    def _judge(self, attempts: list[dict[str, Any]], now: Dispatch, number: int) -> None:
        """Compare the attempts of one re-dispatch with the messages that the model got in that
        time."""
        now.attempts = len(attempts)
        last = attempts[-1]
        now.verdict = (last["receipt"] or {}).get("verdict", "none")
        now.expired = any(attempt["expired"] for attempt in attempts)
        for attempt in attempts:
            verdict = (attempt["receipt"] or {}).get("verdict", "none")
            name = (
                f"step {number} ({now.fault}), attempt {attempt['number']} ({verdict}, "
                f"{attempt['rung']})"
            )
            began_anew = attempt["continuation"] in ("fresh", "rebuild")
            if began_anew and not attempt["lost_session_id"]:
                self.told.wrong.append(f"silent fresh: {name}: {attempt['why']}")
            if began_anew:
                self.said = ["quercus"]
            # Only conversations in which a prompt reached the agent are checked for the earlier
            # prompts.
            shown = [
                r
                for r in self.stage.rehearsal.requests
                if attempt["started"] <= r.time <= (attempt["ended"] or 1 << 62)
            ]
            texts = [said(request.messages) for request in shown]
            texts = [text for text in texts if f"w{number:03}q" in text or "quercus" in text]
            if shown and not texts:
                self.told.wrong.append(
                    f"silent fresh: {name}: the model was asked without the task"
                )
            if began_anew and texts and "This is what is known of it" not in texts[0]:
                self.told.wrong.append(f"not disclosed: {name}: no brief")
            if verdict in ("native", "repaired"):
                if not shown and UNANSWERED not in attempt["receipt"]["reasons"]:
                    self.told.wrong.append(f"false receipt: {name}: it never reached the model")
                missing = [word for word in self.said if texts and word not in texts[-1]]
                if missing:
                    self.told.wrong.append(
                        f"false receipt: {name}: the model was not shown {missing}"
                    )
        self.said.append(f"w{number:03}q")
        if (
            self.told.expired
            and not now.expired
            and not any(a["rung"] == "fresh" for a in attempts)
        ):
            self.told.wrong.append(
                f"not disclosed: step {number} ({now.fault}): the session had expired, and nothing "
                "says so"
            )
        if now.there and not now.left and now.verdict not in ("native", "repaired"):
            self.told.wrong.append(
                f"not gone on: step {number} ({now.fault}) is {now.verdict}: {last['why']}"
            )
        if (not now.there or now.left) and not any(
            attempt["lost_session_id"] for attempt in attempts
        ):
            self.told.wrong.append(
                f"not disclosed: step {number} ({now.fault}) is {now.verdict}: {last['why']}"
            )

    def _look_up(self, runner: perdure.Runner) -> None:
        """Look a session up through the cache and compare it with the database. The cache may be
        out of date for a moment, but it must find every session and must not return a retired
        one."""
        (key,) = {session.key for session in runner._engine.store.sessions()}
        truth, found = runner._engine.store.session(key), runner.sessions.get(key.agent, key.scope)
        self.told.lookups += 1
        if (truth is None) != (found is None):
            self.told.wrong.append(
                f"forgotten: a lookup of {key.scope} gave {found and found.id} for "
                f"{truth and truth.id}"
            )
        elif truth is not None and found is not None:
            self.told.late += found.revision != truth.revision
            ids = {session.id for session in runner.sessions.lineage(key.agent, key.scope)}
            if found.state is SessionState.RETIRED or found.id not in ids:
                self.told.wrong.append(
                    f"forgotten: a lookup of {key.scope} gave {found.id} ({found.state})"
                )


@contextmanager
def grounds(databases: tuple[str, ...]) -> Iterator[Ground]:
    """Run the servers for a campaign. They end with the thread that starts them."""
    with ExitStack() as stack:
        faults = stack.enter_context(ThreadPoolExecutor(1))
        cache = faults.submit(redis.RedisServer).result()
        stack.callback(lambda: faults.submit(cache.remove).result())
        server: postgres.Server | None = None
        if "postgresql" in databases:
            server = faults.submit(lambda: postgres.Server(**postgres.DURABLE)).result()
            made = server
            stack.callback(lambda: faults.submit(made.remove).result())
            faults.submit(made.start).result()
        yield Ground(server, cache, faults)


def campaign(
    number: int,
    seed: int,
    jobs: int,
    agents: tuple[str, ...],
    databases: tuple[str, ...],
    length: int = LENGTH,
) -> list[Line]:
    """Play lines until there were at least this many re-dispatches. Progress goes to standard
    error."""
    turn, done = threading.Lock(), [0]

    def one(n: int) -> Line:
        found = line(
            seed + n,
            agents[n % len(agents)],
            databases[n // len(agents) % len(databases)],
            length,
            ground,
        )
        with turn:
            done[0] += len(found.dispatches)
            print(f"{'F' if found.wrong else '.'} {done[0]}", end=" ", file=sys.stderr, flush=True)
            for wrong in found.wrong:
                print(f"\n{name_of(found)}: {wrong}", file=sys.stderr, flush=True)
        return found

    with grounds(databases) as ground, ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(one, range(-(-number // length))))


def name_of(each: Line) -> str:
    """Return the name of the line, by which it can be repeated."""
    return f"seed {each.seed} ({each.agent}, {each.database}{', expired' if each.expired else ''})"


def table(lines: list[Line]) -> str:
    """Return the counts, and every line that failed."""
    every = [dispatch for each in lines for dispatch in each.dispatches if dispatch.verdict]
    there = [d for d in every if d.there and not d.left]
    rest = [d for d in every if not d.there or d.left]
    went_on = sum(d.verdict in ("native", "repaired") for d in there)
    disclosed = len(rest) - sum(
        wrong.startswith("not disclosed") for each in lines for wrong in each.wrong
    )
    out = [
        f"{'fault':18}{'dispatches':>11}{'struck':>8}{'attempts':>10}{'native':>8}{'repaired':>10}{'rebuilt':>9}{'other':>7}"
    ]
    for fault in FAULTS:
        mine = [d for d in every if d.fault == fault]
        kinds = Counter(d.verdict for d in mine)
        known = [kinds[name] for name in ("native", "repaired", "rebuilt")]
        counts = f"{known[0]:>8}{known[1]:>10}{known[2]:>9}{len(mine) - sum(known):>7}"
        out.append(
            f"{fault:18}{len(mine):>11}{sum(d.struck for d in mine):>8}{sum(d.attempts for d in mine):>10}{counts}"
        )
    rate = f"{went_on / len(there):.2%}" if there else "-"
    out.append(
        f"\n{len(every)} re-dispatches in {len(lines)} lines, {sum(d.expired for d in every)} of "
        "them after their session had expired"
    )
    out.append(
        f"where the transcript was there: {len(there)}, native or repaired: {went_on} ({rate})"
    )
    out.append(
        f"the rest: {len(rest)} ({sum(d.left for d in rest)} asked to start over), disclosed: "
        f"{disclosed}"
    )
    out.append(
        f"lookups through Redis: {sum(e.lookups for e in lines)}, late: "
        f"{sum(e.late for e in lines)}"
    )
    wrongs = [(each, wrong) for each in lines for wrong in each.wrong]
    out.append(
        ", ".join(
            f"{kind}: {sum(wrong.startswith(kind) for _, wrong in wrongs)}"
            for kind in ("not gone on", *WRONG)
        )
    )
    out += [f"{name_of(each)}: {wrong}" for each, wrong in wrongs]
    return "\n".join(out)


def main() -> int:
    parser = argparse.ArgumentParser(prog="redispatches", description=__doc__)
    parser.add_argument("number", type=int, nargs="?", default=100)
    parser.add_argument("--seed", type=int, default=20_261_121)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--agent", action="append", choices=AGENTS)
    parser.add_argument("--database", action="append", choices=DATABASES)
    parser.add_argument("--length", type=int, default=LENGTH, help="re-dispatches in a line")
    given = parser.parse_args()
    lines = campaign(
        given.number,
        given.seed,
        given.jobs,
        tuple(given.agent or AGENTS),
        tuple(given.database or DATABASES),
        given.length,
    )
    print(table(lines))
    return 1 if any(each.wrong for each in lines) else 0


if __name__ == "__main__":
    raise SystemExit(main())
