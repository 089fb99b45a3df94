"""Carries out the steps that `step` decides for one TaskRun, until there is nothing left to do.
Called by the operator's queue, never twice at once for the same TaskRun.

Every write either names the version that it replaces or creates an object with a unique name. After
a 409 the object is read again, and `step` decides again. The parts of an attempt are written in
this order: the status (before anything else of the attempt exists), the order and the instructions
(ConfigMap), the claim, the Job. If the operator is killed between two writes, the next reconcile
continues with the missing one.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from contextlib import suppress

from msgspec import Struct, field
from msgspec.structs import replace

from perdure.kubernetes import admission, events, manifests, ownership, status_moves
from perdure.kubernetes import api as kinds
from perdure.kubernetes import step as steps
from perdure.kubernetes.api import Api, Away, Refused
from perdure.kubernetes.claims import drop, keep
from perdure.kubernetes.defaults import NO_DEFAULTS, AttemptDefaults, filled
from perdure.kubernetes.launch import NamespaceSetup, launch, record
from perdure.kubernetes.memory import Before, CachedRun, ClusterCache, Key
from perdure.kubernetes.objects import KubernetesObject
from perdure.kubernetes.outcomes import Obstacle
from perdure.kubernetes.snapshot import UID_LABEL, PodSeen, SessionAsked, job_seen, pod_seen
from perdure.kubernetes.status import AttemptStatus, TaskRunStatus, safe_line
from perdure.kubernetes.termination import BEGINNING, session_in
from perdure.kubernetes.transports import NONE_PERMITTED, Permitted, refusal
from perdure.kubernetes.wanted import FINALIZER, WantedRun

MOST_STEPS = 40
"""Maximum number of steps in one reconcile. If more are needed, another program is writing the same
objects. The reconcile then fails and is retried later."""
MOST_EVENTS = 5
NO_QUOTA_S = 10.0
"""Time in seconds for which a namespace is assumed to have no quotas after none were found in it.
"""


class TaskRunReconciler(Struct):
    """Reconciles TaskRuns. `began` and `ended` are called with the TaskRun and the record of each
    attempt that has begun or ended. `moved` is called after each write that was accepted."""

    api: Api
    memory: ClusterCache
    cluster: manifests.Cluster
    defaults: AttemptDefaults = NO_DEFAULTS
    permitted: Permitted = NONE_PERMITTED
    namespaces: NamespaceSetup | None = None
    read_logs: bool = False
    patience_ms: int = steps.PATIENCE_MS
    began: Callable[[WantedRun, AttemptStatus], None] = lambda run, attempt: None
    ended: Callable[[WantedRun, AttemptStatus], None] = lambda run, attempt: None
    moved: Callable[[Key], None] = lambda key: None
    now: Callable[[], int] = field(default=lambda: int(time.time() * 1000))
    free: dict[str, float] = field(default_factory=dict)
    """Time at which each namespace was last found to have no quotas (monotonic clock, in seconds).
    """

    async def reconcile(self, key: Key) -> int | None:
        """Carry out the steps of one TaskRun. Return the time of the next reconcile in milliseconds
        since 1970; None to wait for an event. Raises Away and Refused."""
        fresh, trouble, room, leaving = False, None, None, None
        notes: dict[str, str] = {}
        for _ in range(MOST_STEPS):
            found = self.memory.of(key)
            if found is None:
                return None
            run, known = filled(found[0], self.defaults), found[1]
            facts = steps.TaskRunFacts(
                run=run,
                jobs=list(known.jobs.values()),
                pods=list(known.pods.values()),
                fresh=fresh,
                recorded=known.recorded,
                trouble=trouble,
                room=room,
                leaving=leaving,
                notes=notes,
                sessions=known.sessions if self.read_logs else None,
                patience_ms=self.patience_ms,
                forbidden=refusal(run.spec, self.permitted),
            )
            step = steps.next_step(facts, self.now(), random.random())
            match step:
                case steps.Wait(until=until):
                    return until
                case steps.LookAgain():
                    await self._look(run, known)
                    fresh = True
                case steps.CheckRoom():
                    room = await self._room(run, known)
                case steps.CheckNamespace():
                    leaving = await self.api.is_leaving(run.namespace)
                case steps.ReadSession(pod=pod, now=now, wait=wait):
                    name = await self._session(run, pod)
                    asked = SessionAsked(id=name, again=now + wait, wait=wait)
                    known.sessions[pod.uid] = asked
                case steps.ReadEvents(uid=uid):
                    notes[uid] = await self._events(run, uid)
                case _:
                    trouble, room = await self._do(step, run, known), None
        raise Away(f"{run.namespace}/{run.name} does not settle: another program writes its status")

    async def _do(self, step: steps.Step, run: WantedRun, known: CachedRun) -> Obstacle | None:
        """Carry out one write to the cluster. If the write was not possible, return the obstacle
        that a condition has to report; otherwise return None."""
        obstacle = None
        try:
            match step:
                case steps.RecordContext():
                    obstacle = await record(self.api, self.memory, run, known)
                case steps.LaunchPod(record=attempt):
                    if self.namespaces is not None:
                        obstacle = await self.namespaces.prepare(self.api, run.namespace)
                    obstacle = obstacle or await launch(
                        self.api, self.memory, run, known, attempt, self.cluster
                    )
                case steps.StopPod(job=job):
                    await self.api.delete(kinds.JOB, run.namespace, job.name, uid=job.uid)
                    known.jobs[job.name] = replace(job, deleting=True)
                case steps.WriteStatus(status=status):
                    patch = {
                        "metadata": {"resourceVersion": run.version},
                        "status": status_moves.patch(run.raw_status, status),
                    }
                    self.memory.keep(
                        await self.api.patch(kinds.RUN, run.namespace, run.name, patch, status=True)
                    )
                    self._notice(run, status.attempts, known)
                    await self._tell(run, status)
                case steps.DeleteExpired():
                    await self.api.delete(
                        kinds.RUN, run.namespace, run.name, uid=run.uid, version=run.version
                    )
                    await self._again(run)
                case steps.HoldFinalizer():
                    await self._finalizers(run, [*run.finalizers, FINALIZER])
                case steps.Release(claim=claim):
                    if claim:
                        await drop(self.api, run, claim)
                    elif ownership.kept(run):
                        await keep(self.api, run)
                    others = [each for each in run.finalizers if each != FINALIZER]
                    await self._finalizers(run, others)
        except Refused as error:
            if error.code not in (404, 409):
                raise
            await (self._look(run, known) if isinstance(step, steps.StopPod) else self._again(run))
            return None
        if obstacle is None:
            self.moved(run.key)
        return obstacle

    async def _tell(self, run: WantedRun, status: TaskRunStatus) -> None:
        """Post Events about the changes of the status. An Event that cannot be posted is
        skipped."""
        for each in events.events_between(run.status, status):
            with suppress(Refused, Away):
                await self.api.create(kinds.EVENT, events.event(run, each, self.now()))

    def _notice(
        self, was: WantedRun, attempts: tuple[AttemptStatus, ...], known: CachedRun
    ) -> None:
        """Call `began` and `ended` for the attempts that began or ended with the last change of the
        status."""
        before = {each.number: each for each in was.status.attempts[-2:]}
        for each in attempts[-2:]:
            if each.number not in before:
                self.began(was, each)
            elif each.outcome and not before[each.number].outcome:
                self.memory.tidy(known, each.number)
                self.ended(was, each)

    async def _again(self, run: WantedRun) -> None:
        """Read the TaskRun from the API server and update the cache."""
        body = await self.api.get(kinds.RUN, run.namespace, run.name)
        if body is None or body["metadata"]["uid"] != run.uid:
            self.memory.forget(run.key, run.uid)
        if body is not None:
            self.memory.keep(body)

    async def _look(self, run: WantedRun, known: CachedRun) -> None:
        """Read the Jobs, the pods and then the TaskRun from the API server. The TaskRun is read
        last, so its status contains the attempt of every Job that was read."""
        mine = {UID_LABEL: run.uid}
        before: Before = {job.uid: job for job in known.jobs.values()} | known.pods
        jobs = await self.api.reduced(kinds.JOB, run.namespace, job_seen, mine)
        pods = await self.api.reduced(kinds.POD, run.namespace, pod_seen, mine)
        self.memory.refresh(
            known,
            before,
            list(filter(None, jobs)),
            list(filter(None, pods)),
        )
        await self._again(run)

    async def _room(self, run: WantedRun, known: CachedRun) -> admission.Room:
        """Decide whether there is room for one more attempt of the TaskRun. If there is, later
        decisions about other TaskRuns count this attempt as open."""
        quotas = await self._quotas(run.namespace)
        mine = known.line or admission.in_line(run, 0)
        others = self.memory.line(run.namespace, run.uid)
        found = admission.room(mine, run.spec.pod.resources, others, quotas, self.now())
        if found.obstacle is None:
            known.line = admission.admitted(mine)
        return found

    async def _quotas(self, namespace: str) -> list[KubernetesObject]:
        """Return the quotas of a namespace; an empty list if the account may not list them."""
        if time.monotonic() - self.free.get(namespace, -NO_QUOTA_S) < NO_QUOTA_S:
            return []
        try:
            found = await self.api.items(kinds.QUOTA, namespace)
        except Refused:
            found = []
        if not found:
            self.free[namespace] = time.monotonic()
        return found

    async def _events(self, run: WantedRun, uid: str) -> str:
        """Return the messages of the newest warning Events about an object, joined to one text;
        empty if there are none."""
        try:
            found = await self.api.items(
                kinds.EVENT, run.namespace, fields=f"involvedObject.uid={uid}"
            )
        except Refused:
            return ""
        messages = []
        for each in found:
            if each.get("type") == "Warning":
                messages.append(str(each.get("message", "")))
        return safe_line("; ".join(dict.fromkeys(messages[-MOST_EVENTS:])), 1000)

    async def _session(self, run: WantedRun, pod: PodSeen) -> str:
        """Return the id of the conversation that a pod's log names. Return an empty string if the
        log names none yet or cannot be read."""
        try:
            log = await self.api.log(run.namespace, pod.name, "perdure", BEGINNING)
        except (Refused, Away):
            return ""
        return session_in(log, pod.attempt)

    async def _finalizers(self, run: WantedRun, names: list[str]) -> None:
        patch = {"metadata": {"resourceVersion": run.version, "finalizers": names}}
        self.memory.keep(await self.api.patch(kinds.RUN, run.namespace, run.name, patch))
