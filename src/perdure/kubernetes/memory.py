"""The operator's cache of the cluster's objects. The watches and the operator's own writes fill it;
the reconciler reads it.

The cache may be out of date, and `step` allows for that. It stays small: Jobs and pods are reduced
to the needed facts (`snapshot`), and long instructions are left out of TaskRuns. If two versions of
an object arrive, the newer one is kept, whichever came first.
"""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

import msgspec

from perdure.kubernetes.admission import InLine, in_line
from perdure.kubernetes.objects import KubernetesObject
from perdure.kubernetes.snapshot import JobSeen, PodSeen, SessionAsked
from perdure.kubernetes.status import moment
from perdure.kubernetes.wanted import WantedRun, wanted

Key = tuple[str, str]
"""Namespace and name of a TaskRun."""
Before = dict[str, JobSeen | PodSeen]
"""The Jobs and pods that were cached when a listing of them began, by their uids."""
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

    def keep(self, body: KubernetesObject) -> Key:
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

    def before(self, namespace: str = "") -> Before:
        """Return the cached Jobs and pods of a namespace, or of all namespaces if it is empty. Call
        it before these objects are listed, and pass the result to `keep_all`."""
        found: Before = {}
        for run in self._runs.values():
            for job in run.jobs.values():
                if namespace in ("", job.namespace):
                    found[job.uid] = job
            for pod in run.pods.values():
                if namespace in ("", pod.namespace):
                    found[pod.uid] = pod
        return found

    def keep_all(self, before: Before, jobs: Sequence[JobSeen], pods: Sequence[PodSeen]) -> None:
        """Update the cache from complete lists of Jobs and pods, as `refresh` does for one TaskRun.
        An object that the lists lack counts as missing only if it is in `before`."""
        jobs_of, pods_of = defaultdict(list), defaultdict(list)
        for job in jobs:
            jobs_of[job.run].append(job)
        for pod in pods:
            pods_of[pod.run].append(pod)
        for uid in {*jobs_of, *pods_of}:
            self._runs.setdefault(sys.intern(uid), CachedRun())
        for uid, run in list(self._runs.items()):
            self.refresh(run, before, jobs_of[uid], pods_of[uid])
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
        newer = known is None or _number(pod.version) >= _number(known.version)
        # A list may have marked the pod as gone before the watch reports the pod's last state.
        if known is None or (pod.gone and (newer or not known.gone)) or (newer and not known.gone):
            run.pods[pod.uid] = pod
        return self.key(pod.run)

    def refresh(
        self,
        run: CachedRun,
        before: Before,
        jobs: Sequence[JobSeen],
        pods: Sequence[PodSeen],
    ) -> None:
        """Update the cached Jobs and pods of one TaskRun from complete lists. Pods that no longer
        exist stay in their last known state and are marked as gone.

        `before` has the objects that were cached when the listing began. If a watch has reported an
        object since, its report is kept unless the list has a newer version. An object that was
        cached only after the listing began is kept even if the list does not have it.
        """
        listed = {job.uid for job in jobs} | {pod.uid for pod in pods}
        for old in list(run.jobs.values()):
            if before.get(old.uid) is old and old.uid not in listed:
                del run.jobs[old.name]
        for uid, last in list(run.pods.items()):
            if before.get(uid) is last and uid not in listed:
                run.pods[uid] = msgspec.structs.replace(last, gone=True)
        for job in jobs:
            if _replaces(job, run.jobs.get(job.name), before):
                run.jobs[job.name] = job
        for pod in pods:
            if _replaces(pod, run.pods.get(pod.uid), before):
                run.pods[pod.uid] = pod

    def tidy(self, run: CachedRun, closed: int) -> None:
        """Remove deleted pods of all attempts up to number `closed` from the cache. The findings
        from pods' logs are removed too."""
        if any(pod.gone and pod.attempt <= closed for pod in run.pods.values()):
            kept = {}
            for uid, pod in run.pods.items():
                if not (pod.gone and pod.attempt <= closed):
                    kept[uid] = pod
            run.pods = kept
        run.sessions = {}


def _key(body: KubernetesObject) -> Key:
    return sys.intern(body["metadata"]["namespace"]), body["metadata"]["name"]


def _replaces(listed: JobSeen | PodSeen, cached: JobSeen | PodSeen | None, before: Before) -> bool:
    """Return whether an object that was listed replaces the cached one of the same name."""
    if cached is None:
        # If the object was cached when the listing began, it has been deleted since then, so the
        # listed copy is outdated.
        return listed.uid not in before
    if before.get(cached.uid) is cached:
        return True
    if isinstance(cached, PodSeen) and cached.gone:
        return False
    return _number(listed.version) > _number(cached.version)


def _number(version: str) -> int:
    """Return a resource version as a number; 0 if it is not a number. Resource versions of one kind
    are increasing numbers (guaranteed since Kubernetes 1.35; etcd has always done so)."""
    if version.isdecimal():
        return int(version)
    return 0


def _less(body: KubernetesObject) -> KubernetesObject:
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
        own = {}
        for name, value in meta["annotations"].items():
            if name.startswith("perdure.dev/"):
                own[name] = value
        meta["annotations"] = own
    spec = body.get("spec") or {}
    if isinstance(spec.get("prompt"), str) and len(spec["prompt"]) > LONG:
        spec = spec | {"prompt": LEFT_OUT}
    return {"metadata": meta, "spec": spec, "status": body.get("status") or {}}
