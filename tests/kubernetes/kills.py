"""The operator is killed at random moments of many runs, and every run is checked: `make
operator-kills N=100`.

The pods are scripted (`scripted/attempt.py`), because the subject is the operator, and a real agent
would only slow it down. Two runs are played at a time. They have attempts that fail and are
repeated, an attempt that is killed, new instructions in the middle, a stop and a resumption.
Meanwhile the operator is killed with SIGKILL again and again, each time at a random one of its
requests to the API server (before the request arrives, or after it was carried out), or at a random
moment in between. Then it is restarted.

For every run: each attempt has one Job, one pod and one outcome; no attempt began twice, and no two
worked at the same time; there is one conversation; and the run ends as its pods were told to end.
"""

from __future__ import annotations

import argparse
import collections
import json
import random
import sys
import threading
import time
from dataclasses import dataclass, field

from tests.kubernetes.operators import install
from tests.kubernetes.place import Place, place
from tests.kubernetes.run import Run
from tests.servers.kubernetes.cluster import Cluster, running
from tests.servers.kubernetes.proxy import Proxy
from tests.servers.s3 import bucket

RUNS = 20
AT_ONCE = 2
LATEST_REQUEST = 30
LATEST_S = 2.0


@dataclass
class Campaign:
    """The kills of a campaign, and the results of its runs."""

    kills: int = 0
    points: collections.Counter[str] = field(default_factory=collections.Counter)
    runs: int = 0
    attempts: int = 0
    wrong: list[str] = field(default_factory=list)


def play(cluster: Cluster, number: int, seed: int, runs: int = RUNS) -> Campaign:
    """Kill the operator this many times, over at least `runs` runs, and return the results. The
    seed repeats a campaign's choices, but not their exact moments."""
    done = Campaign()
    dice = random.Random(seed)
    with bucket() as store, Proxy(cluster) as proxy, place(cluster, store, via=proxy.url) as here:
        over = threading.Event()
        players = [
            threading.Thread(target=_player, args=(here, done, over, runs, at, seed), daemon=True)
            for at in range(AT_ONCE)
        ]
        for each in players:
            each.start()
        while done.kills < number and not done.wrong:
            _kill_once(here, proxy, done, dice)
        over.set()
        here.operator.start()
        for each in players:
            each.join()
    return done


def _kill_once(here: Place, proxy: Proxy, done: Campaign, dice: random.Random) -> None:
    """Let the operator work until a random moment, kill it, and start it again."""
    here.operator.start() if here.operator.process is None else None
    way, struck = dice.choice(("before a request", "after a request", "between")), threading.Event()
    left = dice.randint(1, LATEST_REQUEST)
    count = threading.Lock()
    point = ["at rest"]

    def look(method: str, path: str, when: str) -> None:
        nonlocal left
        if f"{when} a request" != way:
            return
        with count:
            left -= 1
            if left == 0:
                point[0] = f"{when} {method} {_kind(path)}"
                assert here.operator.process is not None
                here.operator.process.kill()
                struck.set()

    if way == "between":
        here.operator.ready()
        struck.wait(dice.uniform(0.0, LATEST_S))
    else:
        proxy.on_request = look
        struck.wait(60.0)
        proxy.on_request = None
    here.operator.kill()
    done.kills += 1
    done.points[point[0]] += 1


def _kind(path: str) -> str:
    parts = path.partition("?")[0].strip("/").split("/")
    return "/".join(each for each in parts if each in KINDS) or "others"


KINDS = (
    "taskruns",
    "status",
    "jobs",
    "pods",
    "configmaps",
    "persistentvolumeclaims",
    "events",
    "secrets",
)


def _player(
    here: Place, done: Campaign, over: threading.Event, runs: int, at: int, seed: int
) -> None:
    number = 0
    while not over.is_set() or number * AT_ONCE + at < runs:
        dice = random.Random(seed * 1000 + number * AT_ONCE + at)
        name = f"run-{at}-{number}"
        try:
            had = _one(here, name, dice, done.wrong)
            done.attempts += had
        except AssertionError as error:
            done.wrong.append(f"{name}: {error}"[:3000])
        done.runs += 1
        number += 1
        print(".", end="", file=sys.stderr, flush=True)


def _one(here: Place, name: str, dice: random.Random, wrong: list[str]) -> int:
    """Play one run with a person's actions on it, and add its faults to `wrong`. Return how many
    attempts it had."""
    fails = dice.randint(0, 2)
    run = here.scripted(
        name,
        f"{dice.choice(('fails', 'eats'))} {fails} {dice.uniform(0.1, 1.0):.1f}",
        policy={"attempts": 3},
    )
    if dice.random() < 0.3:
        time.sleep(dice.uniform(0.0, 2.0))
        run.patch(spec={"suspend": True})
        run.until(lambda: run.status().get("phase") in ("Suspended", "Succeeded"), "it stops")
        run.patch(spec={"suspend": False})
    elif dice.random() < 0.4:
        time.sleep(dice.uniform(0.0, 3.0))
        # New instructions cause at least one more attempt. So they must not make attempts fail,
        # because the earlier ones may have used up the limit.
        run.update("works 0.3")
    run.settled()
    wrong += [f"{name}: {each}" for each in (*run.wrong(), *book(here, run))]
    return len(run.attempts())


def book(here: Place, run: Run) -> list[str]:
    """Return the faults in the conversation on a run's claim."""
    lines = conversation(here, run)
    found = [
        f"attempt {line['attempt']} worked beside another" for line in lines if not line["alone"]
    ]
    found += [f"attempt {line['attempt']} began twice" for line in lines if line["again"]]
    if len({line["session"] for line in lines}) > 1:
        found.append("there are two conversations")
    begun = {line["attempt"] for line in lines}
    status = run.status()
    for each in status["attempts"]:
        verdict = (each.get("receipt") or {}).get("verdict")
        if verdict == "fresh" and any(number < each["number"] for number in begun):
            found.append(f"attempt {each['number']} began a new conversation")
        if each["outcome"] == "succeeded" and each["number"] not in begun:
            found.append(f"attempt {each['number']} succeeded and never began")
    return found


def conversation(here: Place, run: Run) -> list[dict[str, object]]:
    """Return the lines that a run's attempts have left on its claim."""
    claim = run.status().get("workspace", {}).get("claimName")
    if not claim:
        return []
    path = here.volume_of(claim) / "conversation"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def table(done: Campaign) -> str:
    lines = [
        f"{done.kills} kills of the operator over {done.runs} runs with {done.attempts} attempts; "
        f"wrong: {len(done.wrong)}"
    ]
    lines += [f"{count:>5}  {point}" for point, count in done.points.most_common()]
    return "\n".join([*lines, *done.wrong])


def main() -> int:
    parser = argparse.ArgumentParser(prog="kills", description=__doc__)
    parser.add_argument("number", type=int, nargs="?", default=100)
    parser.add_argument("--seed", type=int, default=20_261_121)
    arguments = parser.parse_args()
    with running() as cluster:
        install(cluster)
        done = play(cluster, arguments.number, arguments.seed)
    print(f"\n{table(done)}")
    return 1 if done.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
