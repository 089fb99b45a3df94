"""F18: faults that can happen to an operator, in trials by kind: `make kubernetes-faults N=100`.

Trials of one kind share a namespace and its operator, and run at the same time. The faults are
those of the operator, the API server and the cluster, so pods are scripted (`scripted/attempt.py`).
They keep a conversation on their claim, and record when two attempts run at once. `test_journeys`
tests the same ends with the real agents.

The promises: every run has the end that its pods were given; each attempt has one Job, one pod and
one outcome; nothing is repeated without end; no attempt runs beside another or begins twice; each
later attempt continues the same conversation; a deletion waits for work that is saved nowhere else.
A trial counts only if its fault happened.
"""

from __future__ import annotations

import argparse
import random
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field

import httpx2

from tests.kubernetes.kills import book, conversation
from tests.kubernetes.operators import install
from tests.kubernetes.place import Place, place
from tests.kubernetes.run import Run
from tests.servers.kubernetes import faults
from tests.servers.kubernetes.api import Object
from tests.servers.kubernetes.cluster import Cluster, running
from tests.servers.kubernetes.proxy import Proxy
from tests.servers.s3 import Bucket, bucket

MOST_ATTEMPTS = 6
WRITES = ("POST", "PUT", "PATCH", "DELETE")


@dataclass
class Trial:
    """One run with one fault. `wrong` is empty if every promise was kept."""

    kind: str
    seed: int
    fired: bool = False
    attempts: int = 0
    wrong: list[str] = field(default_factory=list)


Strike = Callable[["Scene", Run, random.Random], bool]
"""A function that makes the fault happen to a run. It returns whether the fault happened."""


@dataclass
class Scene:
    """The namespace in which the trials of one kind run."""

    cluster: Cluster
    place: Place
    proxy: Proxy


# --- faults of the way to the API server
# -------------------------------------------------------------------------------


def answered(*what: int | str, writes: bool = True, share: float = 0.3) -> Strike:
    """Give these answers to a share of the operator's requests, until the run has had its second
    attempt or some time has passed."""

    def strike(scene: Scene, run: Run, dice: random.Random) -> bool:
        before = scene.proxy.faults
        lock = threading.Lock()

        def fault(method: str, path: str) -> int | str | None:
            with lock:
                struck = dice.random() < share
            wanted = method in WRITES if writes else True
            return dice.choice(what) if struck and wanted else None

        scene.proxy.fault = fault
        time.sleep(dice.uniform(3.0, 8.0))
        scene.proxy.fault = None
        scene.proxy.heal()
        return scene.proxy.faults > before

    return strike


def watches_gone(scene: Scene, run: Run, dice: random.Random) -> bool:
    """Answer every watch with 410 for a while, and cut the open ones."""
    before = scene.proxy.faults
    scene.proxy.fault = lambda method, path: 410 if "watch=" in path else None
    scene.proxy.cut()
    time.sleep(dice.uniform(1.0, 4.0))
    scene.proxy.fault = None
    return scene.proxy.faults > before


def half_open(scene: Scene, run: Run, dice: random.Random) -> bool:
    """Let the connections that are open deliver nothing more. New connections work."""
    time.sleep(dice.uniform(0.0, 2.0))
    return scene.proxy.silence() > 0


def restarted(scene: Scene, run: Run, dice: random.Random) -> bool:
    """Kill the API server and start it again."""
    time.sleep(dice.uniform(0.0, 2.0))
    scene.cluster.restart()
    for _ in range(50):  # for connections of the test to the previous server
        with suppress(httpx2.HTTPError):
            scene.cluster.api.get("/version")
    return True


# --- faults of the operator
# ------------------------------------------------------------------------------------------------


def touched(scene: Scene, run: Run, dice: random.Random) -> bool:
    """Change the TaskRun again and again, so that the operator processes it each time."""
    for at in range(60):
        run.annotate("touched", str(at))
        time.sleep(dice.uniform(0.0, 0.1))
    return True


def doubled(scene: Scene, run: Run, dice: random.Random) -> bool:
    """Start a second operator, and end it later."""
    with scene.place.another_operator() as other:
        other.ready()
        time.sleep(dice.uniform(3.0, 8.0))
    return True


def killed(scene: Scene, run: Run, dice: random.Random) -> bool:
    """Kill the operator and start it again, three times."""
    for _ in range(3):
        time.sleep(dice.uniform(0.2, 3.0))
        scene.place.operator.kill()
        scene.place.operator.start()
    return True


# --- faults of pods and nodes
# ----------------------------------------------------------------------------------------------


def at_work(scene: Scene, run: Run) -> Object:
    """Wait until the pod has recorded that it began, and return the running pod. A pod that was
    ended before that would do the work of its first attempt again."""
    pod = run.pod()
    run.until(lambda: conversation(scene.place, run), "it has begun its work")
    return pod


def pod_deleted(scene: Scene, run: Run, dice: random.Random) -> bool:
    pod = at_work(scene, run)
    time.sleep(dice.uniform(0.0, 1.0))
    scene.place.api.delete(scene.place.of("v1", "pods", pod["metadata"]["name"]))
    return True


def pod_deleted_at_once(scene: Scene, run: Run, dice: random.Random) -> bool:
    pod = at_work(scene, run)
    time.sleep(dice.uniform(0.0, 1.0))
    scene.place.api.delete(
        scene.place.of("v1", "pods", pod["metadata"]["name"]), gracePeriodSeconds=0
    )
    return True


def pod_evicted(scene: Scene, run: Run, dice: random.Random) -> bool:
    scene.place.evict(at_work(scene, run))
    return True


def pod_pressed(scene: Scene, run: Run, dice: random.Random) -> bool:
    """Let the node run out of memory, so that it ends the pod."""
    faults.press(scene.cluster, scene.place.namespace, at_work(scene, run)["metadata"]["name"])
    return True


def pod_killed(scene: Scene, run: Run, dice: random.Random) -> bool:
    scene.place.kill_pod(at_work(scene, run))
    return True


def job_deleted(scene: Scene, run: Run, dice: random.Random) -> bool:
    at_work(scene, run)
    name = run.jobs()[0]["metadata"]["name"]
    scene.place.api.delete(scene.place.of("batch/v1", "jobs", name), propagationPolicy="Background")
    return True


def memory_eaten(scene: Scene, run: Run, dice: random.Random) -> bool:
    first = run.until(
        lambda: next((each for each in run.attempts() if each.get("outcome")), None),
        "its first attempt has ended",
    )
    return "memory" in str(first.get("detail", ""))


def node_lost(scene: Scene, run: Run, dice: random.Random) -> bool:
    """Cut the power of the run's node and declare the node lost. This happens at once for all
    trials of this kind."""
    at_work(scene, run)
    return True


def claim_pending(scene: Scene, run: Run, dice: random.Random) -> bool:
    run.waits_for("ClaimPending")
    scene.place.volume(run.name)
    return True


def deleted(scene: Scene, run: Run, dice: random.Random) -> bool:
    """Delete the TaskRun while it works on something that is saved nowhere else. Return whether the
    deletion waited until the work was given up."""
    at_work(scene, run)
    run.delete()
    told = run.until(lambda: run.condition("UnsavedWork"), "it says that there is unsaved work")
    held = bool(conversation(scene.place, run)) and "abandon" in told["message"]
    run.annotate("abandon", "true")
    run.gone()
    return held


def deleted_and_saved(scene: Scene, run: Run, dice: random.Random) -> bool:
    """Delete the TaskRun while it works, with all work saved. Return whether it was deleted
    together with its pod."""
    at_work(scene, run)
    run.delete()
    run.gone()
    run.until(lambda: not run.processes(), "nothing of it lives")
    return True


DELETING = {"workspace": {"mode": "Claim", "size": "1Gi", "reclaim": "Delete"}}
SMALL = {"pod": {"resources": {"limits": {"memory": "96Mi"}}}}


@dataclass(frozen=True)
class Kind:
    """A kind of fault. `does`: the instructions of the pods; `share`: the number of trials of this
    kind in a hundred; `gone`: whether the TaskRun is deleted."""

    strike: Strike
    does: str
    share: int
    spec: dict[str, object] = field(default_factory=dict)
    gone: bool = False
    own_class: bool = False
    alone: bool = False
    """Whether the trials run one after the other, because the fault affects all runs at once. They
    run in this thread, because processes that a thread starts end with it."""


AGAIN, HELD = "fails 1 1.0", "hangs 1 0.3"
LOST = "node is lost"
KINDS: dict[str, Kind] = {
    "API server answers 409": Kind(answered(409), AGAIN, 6),
    "API server answers 500": Kind(answered(500, writes=False), AGAIN, 6),
    "API server answers 429 or 503": Kind(answered(429, 503, writes=False), AGAIN, 4),
    "API server does not answer": Kind(answered("hang", share=0.1, writes=False), AGAIN, 4),
    "connections are cut": Kind(answered("cut", writes=False), AGAIN, 6),
    "answers are lost": Kind(answered("lose"), AGAIN, 8),
    "watches answer 410": Kind(watches_gone, AGAIN, 4),
    "watches fall silent": Kind(half_open, AGAIN, 4),
    "API server restarts": Kind(restarted, AGAIN, 4, alone=True),
    "reconciled all the time": Kind(touched, AGAIN, 4),
    "two operators": Kind(doubled, AGAIN, 6),
    "operator is killed": Kind(killed, AGAIN, 6),
    "pod is deleted": Kind(pod_deleted, HELD, 5),
    "pod is deleted at once": Kind(pod_deleted_at_once, HELD, 4),
    "pod is evicted": Kind(pod_evicted, HELD, 5),
    "pod is evicted by its node": Kind(pod_pressed, HELD, 4),
    "pod is killed": Kind(pod_killed, HELD, 4),
    "pod runs out of memory": Kind(memory_eaten, "eats 1 0.3", 4, SMALL),
    "Job is deleted": Kind(job_deleted, HELD, 4),
    LOST: Kind(node_lost, HELD, 4),
    "claim is pending": Kind(claim_pending, "works 0.3", 4, own_class=True),
    "TaskRun is deleted, unsaved": Kind(deleted, "hangs 9 0.3", 4, DELETING, gone=True),
    "TaskRun is deleted, saved": Kind(
        deleted_and_saved, "hangs 9 0.3 saved", 3, DELETING, gone=True
    ),
}


def trials(cluster: Cluster, store: Bucket, kind: str, number: int, seed: int) -> list[Trial]:
    """Run a given number of trials of one kind, at the same time."""
    made = [Trial(kind, seed + at) for at in range(number)]
    whole = KINDS[kind]
    with (
        Proxy(cluster) as proxy,
        place(cluster, store, via=proxy.url) as here,
        ThreadPoolExecutor(number) as pool,
    ):
        here.operator.ready()
        scene = Scene(cluster, here, proxy)
        runs = (
            [_run(here, whole, at) for at in range(number)]
            if kind != LOST
            else _on_one_node(scene, whole, number)
        )
        with here.lost("one") if kind == LOST else nullcontext():
            if kind == LOST:
                _told_of(scene, runs)
            several = map if whole.alone else pool.map
            for trial, outcome in zip(
                made, several(_tried, [scene] * number, runs, made, [whole] * number), strict=True
            ):
                trial.wrong += outcome
    return made


def _run(here: Place, kind: Kind, at: int) -> Run:
    spec = dict(kind.spec)
    if kind.own_class:
        spec["workspace"] = {"mode": "Claim", "size": "1Gi", "storageClassName": f"run-{at}"}
    return here.scripted(f"run-{at}", kind.does, policy={"attempts": 2}, **spec)


def _tried(scene: Scene, run: Run, trial: Trial, kind: Kind) -> list[str]:
    dice = random.Random(trial.seed)
    try:
        trial.fired = kind.strike(scene, run, dice)
        if kind.gone:
            return [] if trial.fired else ["what should hold it did not"]
        run.settled()
        trial.attempts = len(run.attempts())
        found = [*run.wrong(), *book(scene.place, run)]
        if trial.attempts > MOST_ATTEMPTS:
            found.append(f"it took {trial.attempts} attempts")
        return found
    except AssertionError as error:
        return [str(error)[:4000]]


def _on_one_node(scene: Scene, kind: Kind, number: int) -> list[Run]:
    """Start the runs on one node: cordon the other node until all of them are running. Return the
    runs."""
    with scene.place.cordoned("two"):
        runs = [_run(scene.place, kind, at) for at in range(number)]
        for run in runs:
            at_work(scene, run)
    return runs


def _told_of(scene: Scene, runs: list[Run]) -> None:
    """Wait until the runs say that they wait for their lost node, then declare that the node does
    not come back."""
    for run in runs:
        run.waits_for("NodeLost")
    scene.place.declare_lost("one")


def campaign(
    cluster: Cluster, number: int, seed: int, kinds: tuple[str, ...] = tuple(KINDS)
) -> list[Trial]:
    """Make about this many trials, spread over the kinds, with at least one of each. Return
    them."""
    whole = sum(KINDS[kind].share for kind in kinds)
    done: list[Trial] = []
    with bucket() as store:
        for kind in kinds:
            made = trials(
                cluster,
                store,
                kind,
                max(1, round(number * KINDS[kind].share / whole)),
                seed + 1000 * len(done),
            )
            done += made
            marks = "".join("F" if each.wrong else "." if each.fired else "-" for each in made)
            print(f"{kind:<32}{marks}", file=sys.stderr, flush=True)
            cluster.mend()
    return done


def table(done: list[Trial]) -> str:
    lines = [f"{'':<32}{'trials':>7}{'fired':>7}{'attempts':>10}{'wrong':>7}"]
    for kind in dict.fromkeys(each.kind for each in done):
        mine = [each for each in done if each.kind == kind]
        counts = (
            len(mine),
            sum(each.fired for each in mine),
            sum(each.attempts for each in mine),
            sum(bool(each.wrong) for each in mine),
        )
        lines.append(f"{kind:<32}{counts[0]:>7}{counts[1]:>7}{counts[2]:>10}{counts[3]:>7}")
    lines.append(
        f"{'all':<32}{len(done):>7}{sum(each.fired for each in done):>7}{'':>10}{sum(bool(each.wrong) for each in done):>7}"
    )
    return "\n".join(
        [
            *lines,
            *(f"{each.kind}, seed {each.seed}: {wrong}" for each in done for wrong in each.wrong),
        ]
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="trials", description=__doc__)
    parser.add_argument("number", type=int, nargs="?", default=100)
    parser.add_argument("--kind", action="append", choices=[*KINDS])
    parser.add_argument("--seed", type=int, default=20_261_121)
    arguments = parser.parse_args()
    with running() as cluster:
        install(cluster)
        done = campaign(cluster, arguments.number, arguments.seed, tuple(arguments.kind or KINDS))
    print(table(done))
    return 1 if any(each.wrong for each in done) else 0


if __name__ == "__main__":
    sys.exit(main())
