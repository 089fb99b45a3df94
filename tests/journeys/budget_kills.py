"""Whether a budget holds while everything is killed: random kills over Claude Code and Codex,
judged by the model server's own record. `make budget-kills N=200`.

One trial: a task of many replies, each at a price, under a budget that is spent before all replies
are given. After a random request something is killed with SIGKILL: the agent, its shim, the
supervisor, supervisor and agent, or everything. Then `perdure retry` follows, and the next kill.
The last attempt runs undisturbed. The campaign fails if the usage that the server reported in a
trial costs more, by list prices, than the budget plus the most expensive reply. It also fails if
perdure's figure for all trials of a CLI differs from the server's by more than 5 %. A single trial
is wrong if perdure's own figure exceeds that limit by more than 5 %. Requests that came while the
agent had no supervisor are allowed in addition; they are counted and shown.

The record counts every reply that the server began to send, in full: its input and all of its
output, even if the connection was cut after the first byte and the client never got a figure. The
usage grows as in a real conversation: each request contains the previous request, its reply, and
the output of the tool since.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from perdure.agents.rehearsal import Rehearsal
from perdure.model import Usage
from perdure.rules.pricing import cost, price_of
from tests.journeys.kills import VICTIMS, strike
from tests.journeys.stage import Done, Stage

MODELS = {"claude": "claude-opus-4-8", "codex": "gpt-5.5"}
REPLIES = 16
KILLS = 6
"""Maximum number of kills in one trial."""
REQUESTS, LATEST_S = 3, 1.0
"""Latest moment of a kill: this many requests after the previous kill, plus this many seconds.
Because requests are counted, kills hit the same places on a busy machine."""
CLOSE = 0.05
"""Maximum share by which perdure's figure may differ from the server's."""


@dataclass(frozen=True)
class Spent:
    """Usage according to a model server's record."""

    counts: dict[str, int]
    usd: float
    dearest: float
    """The price of the server's most expensive reply, in dollars."""
    cut: int = 0
    """Number of replies that the server began to send and could not finish."""


def spent(rehearsal: Rehearsal, *, in_full: bool = False) -> Spent:
    """Return the usage that the server reported, with its cost by list prices. `in_full`: count
    every answer that the server began to send as complete. Anthropic reports the cached part of the
    input separately."""
    total, prices = Usage(), [0.0]
    models = {request.number: (request.dialect, request.model) for request in rehearsal.everything}
    counted = rehearsal.begun if in_full else rehearsal.reported
    for number, tokens in counted.items():
        dialect, model = models[number]
        beside = tokens.cached if dialect == "anthropic" else 0
        used = Usage(tokens.input + beside, tokens.output, tokens.cached)
        price = price_of(model)
        prices.append(cost(used, price) if price else 0.0)
        total = total + used
    counts = {"input": total.input, "output": total.output, "cached": total.cached}
    cut = sum(rehearsal.reported.get(number) != tokens for number, tokens in counted.items())
    return Spent(counts, round(sum(prices), 6), max(prices), cut)


@dataclass
class Trial:
    """The result of one trial. `wrong` is empty when the budget held."""

    seed: int
    agent: str
    budget: float = 0.0
    kills: list[str] = field(default_factory=list)
    attempts: int = 0
    ended: str = ""
    by_server: float = 0.0
    by_perdure: float = 0.0
    dearest: float = 0.0
    unattended: int = 0
    """Requests that came while the agent had no supervisor."""
    cut: int = 0
    """Replies that the server began to send and could not finish."""
    wrong: list[str] = field(default_factory=list)

    @property
    def over(self) -> float:
        """The dollars spent beyond the budget, by the server's record."""
        return max(0.0, self.by_server - self.budget)

    @property
    def held(self) -> bool:
        """Whether the budget was exceeded by one reply at most, by the server's record."""
        return self.over <= self.dearest


QUICK_S, LONG_S = ("0.1", "0.4"), ("0.8", "1.2")
"""Durations of the agent's tools, in seconds. perdure has to end the agent during the tool call of
the reply that spends the budget. Quick tools measure how fast it is. Long ones leave enough time on
a busy machine."""


def script(dice: random.Random, tools_s: Sequence[str] = QUICK_S) -> str:
    """Write a task whose replies all call a tool, with texts that take some time to send."""
    replies = []
    held = dice.randrange(12_000, 30_000)
    for number in range(REPLIES):
        output, printed = dice.randrange(300, 4000), dice.randrange(100, 4000)
        counts = f"usage in={held} out={output} cached={dice.randrange(0, held // 3)}"
        held += output + printed
        act = (
            f"run echo {number} >> work.txt; head -c {4 * printed} /dev/zero | tr '\\0' x; "
            f"sleep {dice.choice(tools_s)}"
            if number < REPLIES - 1
            else "say All of it is done."
        )
        replies.append(f"{counts}\nslow {dice.choice(('0.5', '1.5'))}\nsay Step {number}.\n{act}")
    return "by history\n" + "\n---\n".join(replies) + "\n"


def trial(seed: int, agent: str, tools_s: Sequence[str] = QUICK_S) -> Trial:
    """Make one trial in its own scratch directory, and return its result."""
    dice = random.Random(seed)
    result = Trial(seed, agent, budget=round(dice.uniform(0.8, 2.5), 2))
    directory = Path(tempfile.mkdtemp(prefix="pb"))
    with Rehearsal(script(dice, tools_s)) as rehearsal:
        stage = Stage(directory, agent, rehearsal)
        try:
            _play(stage, result, dice)
        except (AssertionError, subprocess.TimeoutExpired) as error:
            result.wrong.append(f"{type(error).__name__}: {error}"[:600])
        finally:
            stage.close()
        recorded_spending = spent(rehearsal, in_full=True)
    result.by_server, result.dearest = recorded_spending.usd, recorded_spending.dearest
    result.cut = recorded_spending.cut
    allowed = result.budget + result.dearest * (1 + result.unattended)
    # perdure counts a reply that a kill interrupted as a long one, so its figure is rather too
    # high.
    if result.by_perdure > allowed * (1 + CLOSE):
        result.wrong.append(f"overspent knowingly: {sums(result)}")
    shutil.rmtree(directory, ignore_errors=True)
    return result


def _play(stage: Stage, result: Trial, dice: random.Random) -> None:
    words = (
        "--json",
        "--attempts",
        "1",
        "--budget-usd",
        str(result.budget),
        "--model",
        MODELS[stage.agent],
    )
    begin = (
        "run",
        "--name",
        "task",
        "--permissions",
        "full",
        "--agent",
        stage.agent,
        *words,
        "Do all of it.",
    )
    killed: list[int] = []
    for number in range(KILLS + 1):
        accepted = result.attempts > 0 or stage.perdure("show", "task", "--json").code == 0
        started = stage.start(*(("retry", "task", "--json") if accepted else begin))
        if number < KILLS:
            victim, requests, after_s = (
                dice.choice(VICTIMS),
                dice.randint(0, REQUESTS),
                dice.uniform(0.0, LATEST_S),
            )
            wanted = len(stage.rehearsal.requests) + requests
            stage.until(
                lambda started=started, wanted=wanted: (
                    started.poll() is not None or len(stage.rehearsal.requests) >= wanted
                ),
                "the moment of the kill",
            )
            time.sleep(after_s)
            if started.poll() is None:
                strike(stage, victim, started)
                result.kills.append(victim)
                killed.append(int(time.time() * 1000))
        done = stage.finish(started)
        if _is_over(stage, result):
            result.unattended = _unattended(stage, killed)
            return
    result.wrong.append(f"it did not end: exit {done.code}: {_last(done)}")


def _unattended(stage: Stage, killed: list[int]) -> int:
    """Return how many requests came between a kill and the moment when a supervisor followed the
    agent again."""
    if stage.agent == "claude":
        return 0
    records = [
        json.loads(line) for line in stage.perdure("logs", "task", "--json").out.splitlines()
    ]
    adopted = [record["at"] for record in records if record["event"]["kind"] == "attempt_adopted"]
    gaps = [(at, next((each for each in adopted if each > at), at)) for at in killed]
    return sum(
        any(begin < request.time < end for begin, end in gaps)
        for request in stage.rehearsal.requests
    )


def _is_over(stage: Stage, result: Trial) -> bool:
    shown = stage.perdure("show", "task", "--json")
    if shown.code != 0:
        return False
    report = shown.json
    result.attempts, result.by_perdure = len(report["attempts"]), report["usage"]["cost_usd"]
    spent_it = any("budget" in condition["message"] for condition in report["conditions"])
    result.ended = "budget spent" if spent_it else report["state"]
    return spent_it or report["state"] == "succeeded"


def _last(done: Done) -> str:
    return done.err.strip()[-300:]


def campaign(
    number: int, agents: tuple[str, ...], seed: int, jobs: int, record: Path | None = None
) -> list[Trial]:
    """Make trials until there were this many kills, spread over the agents, or until Ctrl-C.
    Progress goes to standard error. If there is a record, each trial is a line of JSON in that
    file, and an interrupted campaign continues after its last line."""
    done = recorded(record)
    with suppress(KeyboardInterrupt), ThreadPoolExecutor(jobs) as pool:
        while sum(len(t.kills) for t in done) < number:
            numbers = range(len(done), len(done) + 2 * jobs)
            for result in pool.map(lambda n: trial(seed + n, agents[n % len(agents)]), numbers):
                done.append(result)
                if record is not None:
                    with record.open("a") as file:
                        file.write(json.dumps(asdict(result)) + "\n")
                print(
                    "F" if result.wrong or not result.held else ".",
                    end="",
                    file=sys.stderr,
                    flush=True,
                )
                for wrong in faults(result):
                    print(f"\n{told(result)}: {wrong}", file=sys.stderr, flush=True)
    return done


def faults(t: Trial) -> list[str]:
    """Return the faults that one trial showed."""
    return [*t.wrong, *([] if t.held else [f"beyond the budget and one reply: {sums(t)}"])]


def recorded(record: Path | None) -> list[Trial]:
    """Return the trials of a record file, or an empty list if it does not exist."""
    if record is None or not record.exists():
        return []
    return [Trial(**json.loads(line)) for line in record.read_text().splitlines()]


def told(t: Trial) -> str:
    """Return the name of the trial, by which it can be repeated."""
    return (
        f"seed {t.seed} ({t.agent}, ${t.budget:.2f}, {len(t.kills)} kills: "
        f"{', '.join(t.kills) or 'none'})"
    )


def sums(t: Trial) -> str:
    """Return what one trial spent, and on what."""
    return (
        f"${t.by_server:.2f} of ${t.budget:.2f} by the server, ${t.by_perdure:.2f} by perdure; the "
        f"dearest reply cost ${t.dearest:.2f}, {t.unattended} request(s) came unattended"
    )


def of_agent(trials: list[Trial], agent: str) -> list[Trial]:
    """Return the trials of one CLI."""
    return [t for t in trials if t.agent == agent]


def difference(trials: list[Trial]) -> float:
    """Return the share by which perdure's figure differs from what the server reported, over all
    trials."""
    by_server = sum(t.by_server for t in trials)
    return abs(by_server - sum(t.by_perdure for t in trials)) / by_server if by_server else 0.0


def table(trials: list[Trial]) -> str:
    """Return the sums, and every failed trial with its seed."""
    head = f"{'':8}{'runs':>6}{'kills':>7}{'attempts':>10}{'server $':>11}{'perdure $':>11}{'differ':>9}"
    lines = [f"{head}{'over, at most':>16}{'unattended':>12}{'wrong':>7}"]
    for agent in sorted({t.agent for t in trials}):
        mine = of_agent(trials, agent)
        kills, attempts = sum(len(t.kills) for t in mine), sum(t.attempts for t in mine)
        money = f"{sum(t.by_server for t in mine):>11.2f}{sum(t.by_perdure for t in mine):>11.2f}{difference(mine):>9.2%}"
        most = max((t.over / t.dearest for t in mine if t.dearest), default=0.0)
        last = f"{sum(t.unattended for t in mine):>12}{sum(bool(faults(t)) for t in mine):>7}"
        lines.append(
            f"{agent:8}{len(mine):>6}{kills:>7}{attempts:>10}{money}{f'{most:.2f} replies':>16}{last}"
        )
    lines.append(
        f"{sum(len(t.kills) for t in trials)} kills; perdure and the server differ by "
        f"{difference(trials):.2%}"
    )
    for t in trials:
        lines += [f"{told(t)}: {wrong}" for wrong in faults(t)]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="budget_kills", description=__doc__)
    parser.add_argument("number", type=int, nargs="?", default=200)
    parser.add_argument("--agent", action="append", choices=[*MODELS])
    parser.add_argument("--seed", type=int, default=20_261_122)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument(
        "--record", type=Path, help="keep every trial in this file, and go on from it"
    )
    arguments = parser.parse_args()
    agents = tuple(arguments.agent or MODELS)
    trials = campaign(arguments.number, agents, arguments.seed, arguments.jobs, arguments.record)
    print(table(trials))
    differs = [each for each in agents if difference(of_agent(trials, each)) > CLOSE]
    return 1 if any(map(faults, trials)) or differs else 0


if __name__ == "__main__":
    raise SystemExit(main())
