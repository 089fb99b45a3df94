"""The operator's cache of the cluster's objects. The watches and the operator's own writes fill it;
the reconciler reads it.

The cache may be out of date, and `step` allows for that. It stays small: Jobs and pods are reduced
to the needed facts (`snapshot`), and long instructions are left out of TaskRuns. If two versions of
an object arrive, the newer one is kept, whichever came first.
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
"""Maximum length in characters of instructions that are cached. Longer ones are read from the API
server when they are needed."""
LEFT_OUT = "(left out)"


class CachedRun(msgspec.Struct):
    """A TaskRun and the objects that belong to it."""

    body: bytes = b""
    version: int = 0
    jobs: dict[str, JobSeen] = {}
    pods: dict[str, PodSeen] = {}
    recorded: frozenset[int] | None = None
    sessions: dict[str, SessionAsked] = {}
    """Result of the last search for a conversation in the log of each running pod, by the pod's
    uid."""
    line: InLine | None = None
    """The facts about the TaskRun that `admission` needs; None until the TaskRun itself is known.
    """


class ClusterCache:
    """All TaskRuns that the operator is responsible for."""

    def __init__(self) -> None:
        self._runs: dict[str, CachedRun] = {}
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

    def of(self, key: Key) -> tuple[WantedRun, CachedRun] | None:
        """Return a TaskRun and its cached objects; None if the key is unknown."""
        uid = self._names.get(key, "")
        run = self._runs.get(uid)
        if run is not None and run.body:
            return (wanted(msgspec.json.decode(run.body)), run)
        return None

    def keep(self, body: dict[str, Any]) -> Key:
        """Cache a TaskRun and return its key."""
        key, uid = _key(body), sys.intern(body["metadata"]["uid"])
        version = _number(body["metadata"].get("resourceVersion", ""))
        was = self._names.get(key, uid)
        if was != uid and was in self._runs:
            if version < self._runs[was].version:
                # An old copy of a deleted TaskRun may arrive late. It must not remove a newer
                # TaskRun with the same name.
                return key
            del self._runs[was]
        run = self._runs.setdefault(uid, CachedRun())
        if version >= run.version:
            less = _less(body)
            run.body, run.version = msgspec.json.encode(less), version
            created = moment(body["metadata"].get("creationTimestamp") or "")
            run.line = in_line(wanted(less), created or (run.line.created if run.line else 0))
        self._names[key] = uid
        return key

    def forget(self, key: Key, uid: str) -> None:
        """Remove a TaskRun and everything that belongs to it from the cache."""
        self._runs.pop(uid, None)
        if self._names.get(key) == uid:
            del self._names[key]

    def line(self, namespace: str, but: str = "") -> list[InLine]:
        """Return the facts that decide the order of attempts, for each TaskRun in a namespace,
        oldest TaskRun first. `but` is the uid of a TaskRun to leave out."""
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
        """Replace all cached Jobs and pods by these complete lists."""
        for uid in {*(job.run for job in jobs), *(pod.run for pod in pods)}:
            self._runs.setdefault(sys.intern(uid), CachedRun())
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
        run = self._runs.setdefault(sys.intern(job.run), CachedRun())
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
        """Cache a pod. The last known state of a deleted pod is kept until its attempt is closed.
        Return the key of the TaskRun to which the pod belongs; None if the TaskRun is unknown."""
        if pod.gone and pod.run not in self._runs:
            return None
        run = self._runs.setdefault(sys.intern(pod.run), CachedRun())
        known = run.pods.get(pod.uid)
        if known is None or (
            not known.gone and (pod.gone or _number(pod.version) >= _number(known.version))
        ):
            run.pods[pod.uid] = pod
        return self.key(pod.run)

    def replace(self, run: CachedRun, jobs: list[JobSeen], pods: list[PodSeen]) -> None:
        """Replace the cached Jobs and pods of one TaskRun by those just read. Pods that no longer
        exist stay in their last known state and are marked as gone."""
        run.jobs = {job.name: job for job in jobs}
        there = {pod.uid: pod for pod in pods}
        missing = {
            uid: msgspec.structs.replace(pod, gone=True)
            for uid, pod in run.pods.items()
            if uid not in there
        }
        run.pods = missing | there

    def tidy(self, run: CachedRun, closed: int) -> None:
        """Remove deleted pods of all attempts up to number `closed` from the cache. The findings
        from pods' logs are removed too."""
        if any(pod.gone and pod.attempt <= closed for pod in run.pods.values()):
            run.pods = {
                uid: pod
                for uid, pod in run.pods.items()
                if not (pod.gone and pod.attempt <= closed)
            }
        run.sessions = {}


def _key(body: dict[str, Any]) -> Key:
    return sys.intern(body["metadata"]["namespace"]), body["metadata"]["name"]


def _number(version: str) -> int:
    """Return a resource version as a number; 0 if it is not a number. Resource versions of one kind
    are increasing numbers (guaranteed since Kubernetes 1.35; etcd has always done so)."""
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
