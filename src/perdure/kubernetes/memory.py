"""The operator's memory of the cluster. It is filled by the watches and by the operator's own
writes, and read by the reconciler.

The memory may be out of date, and `step` allows for that. It is small: Jobs and pods are reduced
(`snapshot`), and of a TaskRun only the needed parts are kept, without long instructions. Of two
versions of an object the newer one is kept, regardless of the order in which they arrive.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

import msgspec

from perdure.kubernetes.admission import InLine, in_line
from perdure.kubernetes.snapshot import JobSeen, PodSeen, SessionAsked
from perdure.kubernetes.status import moment
from perdure.kubernetes.wanted import WantedRun, wanted

Key = tuple[str, str]
"""Namespace and name of a TaskRun."""
LONG = 2048
"""Longest instructions that are kept, in characters. Longer ones are read again when they are
needed."""
LEFT_OUT = "(left out)"


class RememberedRun(msgspec.Struct):
    """A TaskRun and the objects that belong to it."""

    body: bytes = b""
    version: int = 0
    jobs: dict[str, JobSeen] = {}
    pods: dict[str, PodSeen] = {}
    recorded: frozenset[int] | None = None
    notes: dict[str, str] = {}
    """Messages of events, by the uid of the object that they are about."""
    sessions: dict[str, SessionAsked] = {}
    """The conversations that the logs of running pods name, by the pod's uid."""
    line: InLine | None = None
    """Its place in line, as others see it."""


class ClusterMemory:
    """All TaskRuns that the operator is responsible for."""

    def __init__(self) -> None:
        self._runs: dict[str, RememberedRun] = {}
        self._names: dict[Key, str] = {}

    def __len__(self) -> int:
        return len(self._names)

    def __iter__(self) -> Iterator[Key]:
        return iter(list(self._names))

    def key(self, uid: str) -> Key | None:
        """Return the key of the TaskRun with this uid; None if it is not known."""
        run = self._runs.get(uid)
        if run is not None and run.body:
            return _key(msgspec.json.decode(run.body))
        return None

    def of(self, key: Key) -> tuple[WantedRun, RememberedRun] | None:
        """Return a TaskRun by its key; None if it is not known."""
        uid = self._names.get(key, "")
        run = self._runs.get(uid)
        if run is not None and run.body:
            return (wanted(msgspec.json.decode(run.body)), run)
        return None

    def keep(self, body: dict[str, Any]) -> Key:
        """Remember a TaskRun. Return its key."""
        key, uid = _key(body), sys.intern(body["metadata"]["uid"])
        version = _number(body["metadata"].get("resourceVersion", ""))
        was = self._names.get(key, uid)
        if was != uid and was in self._runs:
            if version < self._runs[was].version:
                # A late answer about a deleted TaskRun must not remove the new one of that name.
                return key
            del self._runs[was]
        run = self._runs.setdefault(uid, RememberedRun())
        if version >= run.version:
            less = _less(body)
            run.body, run.version = msgspec.json.encode(less), version
            created = moment(body["metadata"].get("creationTimestamp") or "")
            run.line = in_line(wanted(less), created or (run.line.created if run.line else 0))
        self._names[key] = uid
        return key

    def forget(self, key: Key, uid: str) -> None:
        """Forget a TaskRun and everything that belongs to it."""
        self._runs.pop(uid, None)
        if self._names.get(key) == uid:
            del self._names[key]

    def line(self, namespace: str, but: str = "") -> list[InLine]:
        """Return the TaskRuns of a namespace as they are in line, the oldest first, without the one
        with the uid `but`."""
        found = []
        for uid, run in self._runs.items():
            if run.line is None or run.line.namespace != namespace or uid == but:
                continue
            placed = any(pod.attempt == run.line.attempt for pod in run.pods.values())
            podless = run.line.podless and not placed
            found.append(msgspec.structs.replace(run.line, podless=podless))
        return sorted(found, key=lambda each: each.age)

    def phases(self) -> Counter[tuple[str, str, str]]:
        """Return the number of TaskRuns by namespace, agent and phase."""
        lines = [run.line for run in self._runs.values() if run.line is not None]
        return Counter((each.namespace, each.agent, each.phase) for each in lines)

    def uid(self, key: Key) -> str:
        return self._names.get(key, "")

    def keep_all(self, jobs: list[JobSeen], pods: list[PodSeen]) -> None:
        """Replace all Jobs and pods by this complete list."""
        for uid in {*(job.run for job in jobs), *(pod.run for pod in pods)}:
            self._runs.setdefault(sys.intern(uid), RememberedRun())
        for uid, run in list(self._runs.items()):
            self.replace(
                run,
                [job for job in jobs if job.run == uid],
                [pod for pod in pods if pod.run == uid],
            )
            if not (run.body or run.jobs or run.pods):
                del self._runs[uid]

    def keep_job(self, job: JobSeen, gone: bool = False) -> Key | None:
        if gone and job.run not in self._runs:
            return None
        run = self._runs.setdefault(sys.intern(job.run), RememberedRun())
        known = run.jobs.get(job.name)
        if gone:
            if known is not None and known.uid == job.uid:
                del run.jobs[job.name]
        elif (
            known is None or known.uid != job.uid or _number(job.version) >= _number(known.version)
        ):
            run.jobs[job.name] = job
        return self.key(job.run)

    def keep_pod(self, pod: PodSeen) -> Key | None:
        """Remember a pod. A pod that is gone is kept as it was last seen, until its attempt is
        closed."""
        if pod.gone and pod.run not in self._runs:
            return None
        run = self._runs.setdefault(sys.intern(pod.run), RememberedRun())
        known = run.pods.get(pod.uid)
        if known is None or (
            not known.gone and (pod.gone or _number(pod.version) >= _number(known.version))
        ):
            run.pods[pod.uid] = pod
        return self.key(pod.run)

    def replace(self, run: RememberedRun, jobs: list[JobSeen], pods: list[PodSeen]) -> None:
        """Replace a TaskRun's Jobs and pods by those just read. Pods that are gone stay as they
        were last seen."""
        run.jobs = {job.name: job for job in jobs}
        there = {pod.uid: pod for pod in pods}
        missing = {
            uid: msgspec.structs.replace(pod, gone=True)
            for uid, pod in run.pods.items()
            if uid not in there
        }
        run.pods = missing | there

    def tidy(self, run: RememberedRun, closed: int) -> None:
        """Forget pods that are gone and belong to attempts that have ended."""
        if any(pod.gone and pod.attempt <= closed for pod in run.pods.values()):
            run.pods = {
                uid: pod
                for uid, pod in run.pods.items()
                if not (pod.gone and pod.attempt <= closed)
            }
        run.notes, run.sessions = {}, {}


def _key(body: dict[str, Any]) -> Key:
    return sys.intern(body["metadata"]["namespace"]), body["metadata"]["name"]


def _number(version: str) -> int:
    """Return a resource version as a number. Resource versions of one kind are growing numbers
    (guaranteed since Kubernetes 1.35; etcd has always done so)."""
    if version.isdecimal():
        return int(version)
    return 0


def _less(body: dict[str, Any]) -> dict[str, Any]:
    names = (
        "name",
        "namespace",
        "uid",
        "resourceVersion",
        "generation",
        "deletionTimestamp",
        "finalizers",
        "labels",
        "annotations",
    )
    meta = {name: value for name, value in body["metadata"].items() if name in names and value}
    if "annotations" in meta:
        meta["annotations"] = {
            name: value
            for name, value in meta["annotations"].items()
            if name.startswith("perdure.dev/")
        }
    spec = body.get("spec") or {}
    if isinstance(spec.get("prompt"), str) and len(spec["prompt"]) > LONG:
        spec = spec | {"prompt": LEFT_OUT}
    return {"metadata": meta, "spec": spec, "status": body.get("status") or {}}
