"""Creates the objects that an attempt's pod needs. Called by `reconciler`.

`record` stores the text of new instructions in the TaskRun's ConfigMap. `launch` adds the order to
the ConfigMap and creates the claim and the Job. Both are safe to repeat: the stored text of a
version of the instructions is never overwritten, and an existing object that belongs to the TaskRun
counts as created. If the API server refuses (quota, permissions, an invalid pod) or something is
missing, they return `Obstacle`. The reconciler reports the obstacle as a condition of the TaskRun
and retries for a limited time.

`NamespaceSetup` creates the network policy and the service account of the attempts in a namespace,
because the chart creates both in the operator's own namespace only. Without the policy, agents
could be reached from anywhere and could reach everything. Objects of the same name that somebody
else created are not changed.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping

from msgspec import Struct, field

from perdure.errors import UsageError
from perdure.kubernetes import api as kinds
from perdure.kubernetes import manifests
from perdure.kubernetes.api import Api, Refused
from perdure.kubernetes.claims import claimed
from perdure.kubernetes.manifests import MADE_BY
from perdure.kubernetes.memory import LEFT_OUT, CachedRun, ClusterCache
from perdure.kubernetes.objects import KubernetesObject, labels_of
from perdure.kubernetes.outcomes import Obstacle, of_words
from perdure.kubernetes.ownership import owned
from perdure.kubernetes.snapshot import job_seen
from perdure.kubernetes.status import AttemptStatus, safe_line
from perdure.kubernetes.wanted import WantedRun, wanted

LONGEST_TEXT = 131_072 * 4
LONGEST_TEXTS = 900_000
"""Maximum size in bytes of all versions of the instructions together. A ConfigMap holds 1 MiB and
also contains the orders."""
_VERSION = re.compile(r"context-([1-9][0-9]{0,9})")


async def record(
    api: Api, memory: ClusterCache, run: WantedRun, known: CachedRun
) -> Obstacle | None:
    """Store the text of the newest instructions in the ConfigMap, if it is not there yet. Return
    None if it is stored, or Obstacle if that fails."""
    if run.spec.prompt == LEFT_OUT:
        body = await api.get(kinds.RUN, run.namespace, run.name)
        if body is None:
            memory.forget(run.key, run.uid)
            return None
        memory.keep(body)
        run = wanted(body)
    text = await _text(api, run)
    if isinstance(text, Obstacle):
        return text
    name = f"context-{run.spec.context_version}"
    if known.recorded is None:
        made = await _made(api, run, {name: text})
        if isinstance(made, Obstacle):
            return made
        known.recorded = _versions(made)
        if run.spec.context_version in known.recorded:
            return None
    kept = await _kept(api, run)
    if kept is None or isinstance(kept, Obstacle):
        known.recorded = None
        return kept
    data = kept.get("data") or {}
    if name not in data:
        if sum(len(each.encode()) for each in data.values()) + len(text.encode()) > LONGEST_TEXTS:
            return Obstacle(
                "TooLong",
                "all versions of the instructions together are longer than a ConfigMap holds: make "
                "another TaskRun",
            )
        patch = {
            "metadata": {"resourceVersion": kept["metadata"]["resourceVersion"]},
            "data": {name: text},
        }
        kept = await api.patch(kinds.MAP, run.namespace, run.object_name, patch)
    known.recorded = _versions(kept)
    return None


async def launch(
    api: Api,
    memory: ClusterCache,
    run: WantedRun,
    known: CachedRun,
    attempt: AttemptStatus,
    cluster: manifests.Cluster,
) -> Obstacle | None:
    """Create the objects that the open attempt's pod needs, and then the attempt's Job. Return
    Obstacle if that fails."""
    try:
        contexts = await _ordered(api, run, known, attempt)
        if isinstance(contexts, Obstacle):
            return contexts
        claim = await claimed(api, memory, run)
        if isinstance(claim, Obstacle):
            return claim
        wanted_job = manifests.job(run, attempt, contexts, claim, cluster)
        body = await api.create_or_get(kinds.JOB, wanted_job)
        job = job_seen(body) if body else None
        if body and (job is None or job.run != run.uid):
            return Obstacle(
                "NameTaken", f"there is a Job {attempt.job} that is not of this TaskRun: delete it"
            )
        if job is not None:
            memory.keep_job(job)
        return None
    except UsageError as error:
        return Obstacle("InvalidSpec", safe_line(str(error)))
    except Refused as error:
        return _refused(error)


async def _text(api: Api, run: WantedRun) -> str | Obstacle:
    source = run.spec.prompt_from
    if source is None:
        return run.spec.prompt
    ref = source.config_map_key_ref
    assert ref is not None, "only the pod reads Secrets"
    where = f"the instructions are in key {ref.key} of ConfigMap {ref.name}"
    try:
        body = await api.get(kinds.MAP, run.namespace, ref.name)
    except Refused as error:
        return Obstacle(
            "Forbidden", f"{where}, which perdure may not read: {safe_line(str(error), 300)}"
        )
    if body is None:
        return Obstacle(
            "ConfigMapMissing",
            f"{where}, which does not exist: create it, perdure looks for it again",
        )
    found = (body.get("data") or {}).get(ref.key)
    if found is None:
        return Obstacle(
            "ConfigMapMissing",
            f"{where}, which has no such key: add it, perdure looks for it again",
        )
    text = str(found)
    if not text.strip() or "\x00" in text or len(text.encode()) > LONGEST_TEXT:
        return Obstacle(
            "InvalidSpec",
            f"{where}; they are empty, contain a NUL or are longer than {LONGEST_TEXT:,} bytes",
        )
    return text


async def _made(api: Api, run: WantedRun, texts: dict[str, str]) -> KubernetesObject | Obstacle:
    """Create the TaskRun's ConfigMap with these texts and return it. If it exists already, return
    it unchanged. Return Obstacle if it cannot be created or used."""
    try:
        body = await api.create_or_get(kinds.MAP, manifests.config_map(run, texts))
    except Refused as error:
        return _refused(error)
    return _checked(body, run) or {}


async def _kept(api: Api, run: WantedRun) -> KubernetesObject | Obstacle | None:
    """Return the TaskRun's ConfigMap; None if it does not exist. Return Obstacle if somebody else
    created it. Such a ConfigMap is not trusted, because the agent's instructions are read from it.
    """
    return _checked(await api.get(kinds.MAP, run.namespace, run.object_name), run)


def _checked(body: KubernetesObject | None, run: WantedRun) -> KubernetesObject | Obstacle | None:
    """Return the ConfigMap `body` (or None) unchanged. Return Obstacle if it belongs to something
    other than the TaskRun."""
    if body is not None and not owned(body, run):
        return Obstacle(
            "NameTaken",
            f"there is a ConfigMap {run.object_name} that is not of this TaskRun: delete it",
        )
    return body


async def _ordered(
    api: Api, run: WantedRun, known: CachedRun, attempt: AttemptStatus
) -> tuple[int, ...] | Obstacle:
    """Write the attempt's order into the ConfigMap. Return the version numbers of the instructions
    that the order lists, or Obstacle if that fails."""
    kept = await _kept(api, run)
    if isinstance(kept, Obstacle):
        return kept
    known.recorded = _versions(kept or {})
    there = known.recorded | run.secrets.keys()
    contexts = _up_to(attempt, there)
    if kept is None or attempt.context_version not in contexts:
        return await _lost(api, run, known, attempt)
    texts = _without_earlier_order(attempt)
    texts[f"order-{attempt.number}"] = manifests.order(
        run, attempt, contexts, _gone(run, len(there))
    ).decode()
    try:
        await api.patch(kinds.MAP, run.namespace, run.object_name, {"data": texts})
    except Refused as error:
        if error.code != 404:
            raise
        return await _lost(api, run, known, attempt)
    return contexts


async def _lost(
    api: Api, run: WantedRun, known: CachedRun, attempt: AttemptStatus
) -> tuple[int, ...] | Obstacle:
    """Write the order and the newest instructions into the ConfigMap, and create it if it does not
    exist. It does not exist yet if all instructions are in Secrets, or somebody deleted it or the
    instructions in it. Return the version numbers of the instructions that the order lists, or
    Obstacle if the ConfigMap cannot be created or used.

    The newest text is still in the TaskRun. Older texts are not needed, because the agent got them
    in earlier attempts.
    """
    texts, contexts = {}, _up_to(attempt, run.secrets.keys())
    if attempt.context_version not in contexts:
        body = await api.get(kinds.RUN, run.namespace, run.name)
        if body is None or (now := wanted(body)).spec.context_version != attempt.context_version:
            return Obstacle(
                "ContextMissing",
                f"the instructions in ConfigMap {run.object_name} are gone: give them again with a "
                f"greater contextVersion",
            )
        text = await _text(api, now)
        if isinstance(text, Obstacle):
            return text
        texts, contexts = (
            {f"context-{attempt.context_version}": text},
            (*contexts, attempt.context_version),
        )
    there = {*run.secrets, *contexts}
    order = manifests.order(run, attempt, contexts, _gone(run, len(there))).decode()
    texts[f"order-{attempt.number}"] = order
    made = await _made(api, run, texts)
    if isinstance(made, Obstacle):
        return made
    if not texts.items() <= (made.get("data") or {}).items():
        # It existed already.
        changes = texts | _without_earlier_order(attempt)
        made = await api.patch(kinds.MAP, run.namespace, run.object_name, {"data": changes})
    known.recorded = _versions(made)
    return contexts


def _without_earlier_order(attempt: AttemptStatus) -> dict[str, str | None]:
    """Return the change of a ConfigMap's data that removes the order of the attempt before this
    one."""
    if attempt.number == 1:
        return {}
    return {f"order-{attempt.number - 1}": None}


def _gone(run: WantedRun, there: int) -> int:
    """Return how many earlier versions of the instructions no longer exist. `there` is the number
    of versions that exist. The pod needs the result to number the existing versions correctly."""
    return max(0, run.status.contexts - there)


def _up_to(attempt: AttemptStatus, versions: Iterable[int]) -> tuple[int, ...]:
    return tuple(sorted(version for version in versions if version <= attempt.context_version))


def _refused(error: Refused) -> Obstacle:
    """Convert the API server's refusal to an Obstacle, which has the reason and message for a
    condition."""
    held = of_words(str(error))
    reason = {403: "Forbidden", 422: "InvalidPod", 400: "InvalidPod", 404: "NamespaceLeaving"}.get(
        error.code, "Refused"
    )
    return held or Obstacle(reason, f"the API server refuses: {safe_line(str(error), 600)}")


def _versions(body: KubernetesObject) -> frozenset[int]:
    names = body.get("data") or {}
    return frozenset(int(found[1]) for found in map(_VERSION.fullmatch, names) if found)


NAME = "perdure-attempts"
"""Name of the network policy in each namespace."""
KNOWN_S = 60.0
"""Time in seconds for which a successful check of a namespace counts. After that, its objects are
checked again."""


class NamespaceSetup(Struct):
    """The objects to create in each namespace. An empty `policy` or `account` is not created."""

    policy: Mapping[str, object]
    """The spec of the network policy."""
    account: str
    known: dict[str, float] = field(default_factory=dict)
    """Time of the last successful check, by namespace (monotonic clock, in seconds)."""

    async def prepare(self, api: Api, namespace: str) -> Obstacle | None:
        """Create the objects that are missing in a namespace. Return None if all exist now, or
        Obstacle if the API server refuses."""
        if time.monotonic() - self.known.get(namespace, -KNOWN_S) < KNOWN_S:
            return None
        try:
            if self.account:
                await self._account(api, namespace)
            if self.policy:
                await self._policy(api, namespace)
        except Refused as error:
            return Obstacle(
                "Forbidden",
                "the namespace lacks the attempts' network policy or account, and the operator may "
                f"not make them: {safe_line(str(error), 300)}; allow it, or make the NetworkPolicy "
                f"{NAME} and the ServiceAccount",
            )
        self.known[namespace] = time.monotonic()
        return None

    async def _account(self, api: Api, namespace: str) -> None:
        meta = {"name": self.account, "namespace": namespace, "labels": dict([MADE_BY])}
        body = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta}
        try:
            await api.create(kinds.ACCOUNT, {**body, "automountServiceAccountToken": False})
        except Refused as error:
            if error.code != 409:
                raise

    async def _policy(self, api: Api, namespace: str) -> None:
        there = await api.get(kinds.POLICY, namespace, NAME)
        if there is None:
            meta = {"name": NAME, "namespace": namespace, "labels": dict([MADE_BY])}
            kind = {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy"}
            await api.create(kinds.POLICY, {**kind, "metadata": meta, "spec": self.policy})
            return
        ours = labels_of(there).get(MADE_BY[0]) == MADE_BY[1]
        if ours and there.get("spec") != self.policy:
            await api.patch(kinds.POLICY, namespace, NAME, {"spec": self.policy})
