"""A model of an API server, a Job controller and a kubelet around the real `next_step`. Two
operators, whose caches may be of any age, are killed between any two writes, in a cluster where
anything may happen."""

from __future__ import annotations

import copy
import random
import uuid
from typing import Any

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from perdure.kubernetes import status_moves
from perdure.kubernetes import step as steps
from perdure.kubernetes.admission import Room
from perdure.kubernetes.outcomes import Obstacle
from perdure.kubernetes.snapshot import JobSeen, PodSeen, SessionAsked, job_seen, pod_seen
from perdure.kubernetes.status import FINAL
from perdure.kubernetes.wanted import FINALIZER, wanted
from perdure.model import OutcomeKind
from perdure.rules.lifecycle import FREE_LIMIT
from tests.kubernetes import making

START = 1_795_000_000_000
KINDS = [
    OutcomeKind.SUCCEEDED,
    OutcomeKind.FAILED,
    OutcomeKind.LOST,
    OutcomeKind.RATE_LIMITED,
    OutcomeKind.AUTH_FAILED,
    OutcomeKind.VERIFY_FAILED,
]


class Cluster:
    """The objects of an API server, and all objects that were ever created in it."""

    def __init__(self, **spec: Any) -> None:
        self.run: dict[str, Any] | None = making.taskrun(**spec)
        self.jobs: dict[int, dict[str, Any]] = {}
        self.pods: dict[str, dict[str, Any]] = {}
        self.copies: list[dict[str, Any]] = []
        """Pods of other owners that have an attempt's labels."""
        self.contexts: set[int] = set()
        self.version = 1
        self.now = START
        self.made: list[int] = []
        self.removed: set[int] = set()
        """Attempts whose Job was deleted by another program."""
        self.began: list[int] = []
        """Numbers of the attempts whose agent was started, in this order, as the pods' own store
        has them."""
        self.outcomes: dict[int, str] = {}
        self.asked = True
        """Whether a person has asked for something since the run was in a final state."""

    def touch(self, body: dict[str, Any]) -> None:
        self.version += 1
        body["metadata"]["resourceVersion"] = str(self.version)


class Operator:
    """One operator: its cache of the cluster, and the steps that it makes."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.forget()

    def forget(self) -> None:
        self.run: dict[str, Any] | None = None
        self.jobs: dict[int, JobSeen] = {}
        self.pods: dict[str, PodSeen] = {}
        self.recorded: frozenset[int] | None = None
        self.full = False

    def hear(self, what: str) -> None:
        """Update the operator's cache of one kind of object (`run`, `jobs` or pods) from the
        cluster."""
        there = self.cluster
        if what == "run":
            self.run = copy.deepcopy(there.run)
        elif what == "jobs":
            self.jobs = {n: seen for n, body in there.jobs.items() if (seen := job_seen(body))}
        else:
            self.pods = {
                seen.name: seen
                for body in (*there.pods.values(), *there.copies)
                if (seen := pod_seen(body))
            }

    def work(self, writes: int) -> bool:
        """Make steps until there is nothing to do, or until the operator dies after this many
        writes. Return whether there is nothing to do."""
        fresh, trouble, room, leaving = False, None, None, None
        sessions: dict[str, SessionAsked] = {}
        for _ in range(60):
            if self.run is None:
                return True
            seen = steps.TaskRunFacts(
                run=wanted(self.run), jobs=list(self.jobs.values()), pods=list(self.pods.values()), fresh=fresh, recorded=self.recorded,
                trouble=trouble, room=room, leaving=leaving, sessions=sessions, notes={each.uid: "" for each in (*self.jobs.values(), *self.pods.values())},
            )  # fmt: skip
            step = steps.next_step(seen, self.cluster.now, 0.5)
            if isinstance(step, steps.ReadSession):
                assert step.pod.uid not in sessions, "it is read once for a while"
                sessions[step.pod.uid] = SessionAsked(
                    id="one" if step.pod.attempt % 2 else "",
                    again=step.now + step.wait,
                    wait=step.wait,
                )
                continue
            if isinstance(step, steps.Wait):
                return True
            assert not isinstance(step, steps.DeleteExpired)
            if isinstance(step, steps.CheckNamespace):
                assert leaving is None, "it is asked once"
                leaving = False
                continue
            if isinstance(step, steps.CheckRoom):
                assert room is None, "it is asked once"
                room = Room(obstacle=Obstacle("QuotaExceeded", "no room") if self.full else None)
                continue
            if isinstance(step, steps.LookAgain):
                assert not fresh, "a fresh look is enough"
                self.hear("jobs"), self.hear("pods"), self.hear("run")
                fresh = True
                continue
            if writes == 0:
                return False
            writes -= 1
            trouble, room = self.do(step), None
        raise AssertionError(f"it does not come to rest: {step}")

    def do(self, step: steps.Step) -> Obstacle | None:
        there = self.cluster
        if isinstance(step, steps.RecordContext):
            assert self.run is not None
            there.contexts.add(self.run["spec"]["contextVersion"])
            self.recorded = frozenset(there.contexts)
        elif isinstance(step, steps.LaunchPod):
            if step.record.number not in there.jobs and there.run is not None:
                there.jobs[step.record.number] = making.job(
                    there.run,
                    step.record.number,
                    uid=str(uuid.UUID(int=there.version << 32 | len(there.made))),
                )
                there.made.append(step.record.number)
            self.hear("jobs")
        elif isinstance(step, steps.StopPod):
            body = there.jobs.pop(step.job.attempt, None)
            assert body is None or body["metadata"]["uid"] == step.job.uid
            records = ((there.run or {}).get("status") or {}).get("attempts", [])
            open_now = [each["number"] for each in records if not each.get("outcome")]
            ends = (
                there.run is None
                or there.run["spec"].get("suspend")
                or there.run["metadata"].get("deletionTimestamp")
                or there.asked
            )
            assert ends or step.job.attempt not in open_now, (
                "the Job of an attempt at work is stopped, and nobody asked for it"
            )
            there.removed.add(step.job.attempt)
            for pod in there.pods.values():
                if pod["metadata"]["labels"]["perdure.dev/attempt"] == str(step.job.attempt):
                    pod["metadata"]["deletionTimestamp"] = "2030-01-01T00:00:00Z"
            self.hear("jobs")
        elif (
            there.run is None
            or self.run is None
            or self.run["metadata"]["resourceVersion"] != there.run["metadata"]["resourceVersion"]
        ):
            self.hear("run")  # 409 or 404: read again, decide again
        elif isinstance(step, steps.WriteStatus):
            patch = status_moves.patch(there.run.get("status") or {}, step.status)
            assert patch, "nothing is written that changes nothing"
            self.check(there.run.get("status") or {}, step)
            there.run["status"] = {
                k: v for k, v in ((there.run.get("status") or {}) | patch).items() if v is not None
            }
            there.touch(there.run)
            self.hear("run")
        elif isinstance(step, steps.HoldFinalizer):
            there.run["metadata"]["finalizers"] = [FINALIZER]
            there.touch(there.run)
            self.hear("run")
        elif isinstance(step, steps.Release):
            there.run["metadata"]["finalizers"] = []
            there.touch(there.run)
            if there.run["metadata"].get("deletionTimestamp"):
                assert not [
                    1 for pod in there.pods.values() if pod["status"]["phase"] == "Running"
                ], "a pod was at work"
                there.run = None
            self.hear("run")
        return None

    def check(self, was: dict[str, Any], step: steps.WriteStatus) -> None:
        there = self.cluster
        assert step.status.attempt >= was.get("attempt", 0)
        numbers = [record.number for record in step.status.attempts]
        assert numbers == sorted(set(numbers))
        for record in step.status.attempts:
            if record.outcome:
                if (
                    record.number not in there.outcomes
                    and record.outcome != OutcomeKind.CONFIG_ERROR
                ):
                    pod = there.pods.get(f"pod-{record.number}", {"status": {"phase": ""}})
                    assert pod["status"]["phase"] != "Running", (
                        f"it is at work, and is said to be {record.outcome}: {record.detail}"
                    )
                assert there.outcomes.setdefault(record.number, record.outcome) == record.outcome, (
                    "an attempt has one outcome"
                )
        assert sum(not record.outcome for record in step.status.attempts) <= 1
        if was.get("phase") in FINAL and step.status.phase not in FINAL:
            assert there.asked, f"{was['phase']} was left by itself"
        # If a final state sets the condition, that does not answer a request that a person made
        # since.
        if step.status.phase in FINAL and was.get("phase") not in FINAL:
            there.asked = False


class Chaos(RuleBasedStateMachine):
    """Any events that can happen to one TaskRun."""

    def __init__(self) -> None:
        super().__init__()
        self.there = Cluster()
        self.operators = [Operator(self.there), Operator(self.there)]

    @initialize(mode=st.sampled_from(["Keep", "Delete", "Checkpoints"]))
    def a_taskrun_is_made(self, mode: str) -> None:
        """Create the TaskRun. Depending on `mode`, it has no finalizer, always has one, or has one
        as long as work may be lost."""
        where = {"mode": "Claim", "reclaim": mode}
        if mode == "Checkpoints":
            where = {"mode": mode, "checkpoints": "s3://bucket/prefix"}
        self.there = Cluster(workspace=where)
        self.operators = [Operator(self.there), Operator(self.there)]

    @rule(
        which=st.integers(0, 1),
        deaf=st.sets(st.sampled_from(["run", "jobs", "pods"]), max_size=2),
        writes=st.sampled_from([99, 99, 0, 1, 2, 3, 4]),
        dies=st.booleans(),
        full=st.sampled_from([False, False, True]),
    )
    def an_operator_works(
        self, which: int, deaf: set[str], writes: int, dies: bool, full: bool
    ) -> None:
        self.operators[which].full = full
        for what in {"run", "jobs", "pods"} - deaf:
            self.operators[which].hear(what)
        rested = self.operators[which].work(writes)
        if dies or not rested:
            self.operators[which].forget()

    @rule(
        data=st.data(),
        what=st.sampled_from(["made", "begins", "begins", "ends", "ends", "ends", "goes", "job"]),
    )
    def the_cluster_moves(self, data: st.DataObject, what: str) -> None:
        if what in ("made", "begins", "ends"):
            self.a_pod_is_made(data)
        if what in ("begins", "ends"):
            self.an_agent_begins(data)
        if what == "ends":
            how = data.draw(st.sampled_from(["told", "killed", "oom", "evicted", "forged"]))
            self.a_pod_ends(data, data.draw(st.sampled_from(KINDS)), how)
        elif what == "goes":
            self.a_pod_goes(data)
        elif what == "job":
            self.a_job_ends_or_goes(data, data.draw(st.booleans()))

    @rule(
        attempt=st.integers(1, 4),
        phase=st.sampled_from(["Running", "Succeeded", "Failed"]),
        comes=st.booleans(),
    )
    def somebody_copies_a_pod(self, attempt: int, phase: str, comes: bool) -> None:
        """Create a pod of another owner with an attempt's labels and result, or remove it."""
        self.there.copies.clear()
        if comes and self.there.run is not None:
            kind = OutcomeKind.SUCCEEDED if phase == "Succeeded" else OutcomeKind.AUTH_FAILED
            word, meta = making.told(attempt, kind), {"name": "copy", "ownerReferences": []}
            self.there.copies.append(
                making.pod(self.there.run, attempt, phase=phase, state=word, metadata=meta)
            )

    @rule(seconds=st.sampled_from([1, 20, 400, 4000]))
    def time_passes(self, seconds: int) -> None:
        self.there.now += seconds * 1000

    def a_pod_is_made(self, data: st.DataObject) -> None:
        if not self.there.jobs:
            return
        attempt = data.draw(st.sampled_from(sorted(self.there.jobs)))
        if (
            f"pod-{attempt}" not in self.there.pods
            and not self.there.jobs[attempt]["status"]["conditions"]
            and self.there.run is not None
        ):
            self.there.pods[f"pod-{attempt}"] = self.a_pod(attempt, phase="Pending")

    def a_pod(self, attempt: int, **more: Any) -> dict[str, Any]:
        """Return a pod of the attempt's Job."""
        assert self.there.run is not None
        return making.pod(
            self.there.run, attempt, job=self.there.jobs[attempt]["metadata"]["uid"], **more
        )

    def _pod(self, data: st.DataObject, *phases: str) -> tuple[str, dict[str, Any], int] | None:
        names = sorted(
            name for name, pod in self.there.pods.items() if pod["status"]["phase"] in phases
        )
        if not names:
            return None
        name = data.draw(st.sampled_from(names))
        return name, self.there.pods[name], int(name.removeprefix("pod-"))

    def an_agent_begins(self, data: st.DataObject) -> None:
        found = self._pod(data, "Pending")
        if found is None or any(
            pod["status"]["phase"] == "Running" for pod in self.there.pods.values()
        ):  # only one pod may have the claim at a time
            return
        _, pod, attempt = found
        state = {"running": {"startedAt": "2026-11-21T10:00:00Z"}}
        if attempt in self.there.began:
            state = making.told(attempt, OutcomeKind.LOST, "it has begun before")
        else:
            assert (
                attempt not in self.there.outcomes
                or self.there.run is None
                or attempt in self.there.removed
                or (self.there.outcomes[attempt] == OutcomeKind.CONFIG_ERROR)
            ), (
                "no agent begins for an attempt that has ended, but one that was given up at this "
                "moment"
            )
            self.there.began.append(attempt)
        pod["status"]["phase"] = "Failed" if "terminated" in state else "Running"
        pod["status"]["containerStatuses"][0]["state"] = state

    def a_pod_ends(self, data: st.DataObject, kind: OutcomeKind, how: str) -> None:
        found = self._pod(data, "Running")
        if found is None:
            return
        _, pod, attempt = found
        state = {
            "told": making.told(attempt, kind), "killed": making.ended(137), "oom": making.ended(137, reason="OOMKilled"),
            "evicted": making.ended(143), "forged": making.ended(1, '{"attempt": 1'),
        }[how]  # fmt: skip
        if how == "evicted":
            pod["status"]["reason"] = "Evicted"
        pod["status"]["phase"] = "Succeeded" if state["terminated"]["exitCode"] == 0 else "Failed"
        pod["status"]["containerStatuses"][0]["state"] = state

    def a_pod_goes(self, data: st.DataObject) -> None:
        found = self._pod(data, "Pending", "Succeeded", "Failed")
        if found is not None:
            del self.there.pods[found[0]]

    def a_job_ends_or_goes(self, data: st.DataObject, finish: bool) -> None:
        if not self.there.jobs:
            return
        attempt = data.draw(st.sampled_from(sorted(self.there.jobs)))
        pod = self.there.pods.get(f"pod-{attempt}")
        phase = pod["status"]["phase"] if pod else ""
        if finish and phase in ("Succeeded", "Failed"):
            kind = "Complete" if phase == "Succeeded" else "Failed"
            self.there.jobs[attempt]["status"]["conditions"] = [
                {"type": kind, "status": "True", "reason": "BackoffLimitExceeded"}
            ]
        elif not finish and phase != "Running":
            del self.there.jobs[attempt]
            self.there.removed.add(attempt)
            self.there.pods.pop(f"pod-{attempt}", None)

    @precondition(lambda self: self.there.run is not None)
    @rule(what=st.sampled_from(["retry", "update", "suspend", "go on"]))
    def a_person_asks(self, what: str) -> None:
        run = self.there.run
        assert run is not None
        if what == "retry":
            run["metadata"].setdefault("annotations", {})["perdure.dev/retry"] = str(
                self.there.version
            )
        elif what == "update":
            run["spec"]["contextVersion"] += 1
            run["metadata"]["generation"] += 1
        else:
            run["spec"]["suspend"] = what == "suspend"
            run["metadata"]["generation"] += 1
        self.there.asked = True
        self.there.touch(run)

    @precondition(lambda self: self.there.run is not None)
    @rule(really=st.integers(0, 5))
    def a_person_deletes(self, really: int) -> None:
        run = self.there.run
        assert run is not None
        if really == 5:
            run["metadata"]["deletionTimestamp"] = "2026-11-21T10:00:00Z"
            self.there.touch(run)
            if not run["metadata"].get("finalizers"):
                self.there.run = None
                self.there.jobs.clear()

    @invariant()
    def one_job_and_one_agent_for_each_attempt(self) -> None:
        """Each attempt had one Job, unless another program deleted it. Each agent was started once,
        in the order of the attempts' numbers."""
        for attempt in set(self.there.made) - self.there.removed:
            assert self.there.made.count(attempt) == 1
        assert self.there.began == sorted(set(self.there.began))

    def teardown(self) -> None:
        """Check that the run ends if there are no further events and each agent fails in some
        way."""
        there, operator = self.there, self.operators[0]
        if there.run is None:
            return
        there.run["spec"]["suspend"] = False
        there.run["metadata"]["generation"] += 1
        there.asked = True
        there.copies.clear()
        there.touch(there.run)
        always = there.version % 3
        dice = random.Random(always)
        for _ in range(3 * FREE_LIMIT):
            operator.hear("run"), operator.hear("jobs"), operator.hear("pods")
            operator.full = False
            operator.work(99)
            if there.run is None:
                return
            status = there.run.get("status") or {}
            over = {
                n
                for n in there.jobs
                if there.pods.get(f"pod-{n}", {"status": {"phase": ""}})["status"]["phase"]
                in ("Succeeded", "Failed")
            }
            over |= {each["number"] for each in status.get("attempts", []) if "exitCode" in each}
            at_work = [
                n
                for n, body in there.jobs.items()
                if not body["status"]["conditions"] and n not in over
            ]
            assert set(at_work) <= {
                each["number"] for each in status.get("attempts", []) if "outcome" not in each
            }, "a Job is left over"
            if status.get("phase") in FINAL:
                return
            told = [each for each in status.get("conditions", []) if each["type"] == "UnsavedWork"]
            if there.run["metadata"].get("deletionTimestamp") and told:
                assert not at_work, "a deletion waits for a person, and an agent works"
                return
            there.now += 1_000_000
            for attempt in sorted(there.jobs):
                state = (
                    making.told(attempt, OutcomeKind.FAILED)
                    if dice.random() < always / 2
                    else making.ended(137)
                )
                there.pods[f"pod-{attempt}"] = self.a_pod(attempt, phase="Failed", state=state)
                there.jobs[attempt]["status"]["conditions"] = [
                    {"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded"}
                ]
            for name in [
                name for name in there.pods if int(name.removeprefix("pod-")) not in there.jobs
            ]:
                del there.pods[name]
        raise AssertionError(f"it has no end: {there.run['status']}")


Chaos.TestCase.settings = settings(
    max_examples=100,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


class TestAnyOrder(Chaos.TestCase):
    """In any order of events each attempt has one Job, one agent and one outcome, and the run
    ends."""

    def runTest(self) -> None:
        """Run random events, and check that each attempt has one Job, one agent and one outcome,
        that numbers grow, that final states stay final, and that the run ends."""
        super().runTest()
