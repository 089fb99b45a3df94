"""A client of the Kubernetes API server, built on lightkube. Objects are plain dicts. The operator
uses it for everything except the watches.

Transient failures (a server that restarts, 429, 5xx, a lost connection) are retried a few times
with growing, random delays, and then raised as `Away`. A request that the server rejects raises
`Refused`. A write may have been carried out although its answer was lost, so every write is safe to
repeat: it has a unique name, or names the version that it replaces, or is a deletion.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import httpx2
import stamina
from lightkube import AsyncClient, operators
from lightkube.config.kubeconfig import SingleConfig
from lightkube.core.exceptions import ApiError
from lightkube.generic_resource import (
    GenericNamespacedResource,
    create_global_resource,
    create_namespaced_resource,
)
from lightkube.resources import core_v1
from lightkube.types import PatchType

from perdure.kubernetes.objects import KubernetesObject, Manifest, MergePatch, is_being_deleted
from perdure.kubernetes.snapshot import UID_LABEL
from perdure.kubernetes.wanted import GROUP, KIND, VERSION

RUN, JOB, POD, MAP, CLAIM, EVENT, QUOTA = (
    "taskruns",
    "jobs",
    "pods",
    "configmaps",
    "persistentvolumeclaims",
    "events",
    "resourcequotas",
)
POLICY, ACCOUNT = "networkpolicies", "serviceaccounts"
_KINDS = {
    RUN: (GROUP, VERSION, KIND),
    JOB: ("batch", "v1", "Job"),
    POD: ("", "v1", "Pod"),
    MAP: ("", "v1", "ConfigMap"),
    CLAIM: ("", "v1", "PersistentVolumeClaim"),
    EVENT: ("", "v1", "Event"),
    QUOTA: ("", "v1", "ResourceQuota"),
    POLICY: ("networking.k8s.io", "v1", "NetworkPolicy"),
    ACCOUNT: ("", "v1", "ServiceAccount"),
}
_NAMESPACE = create_global_resource("", "v1", "Namespace", "namespaces")
_REVIEW = create_global_resource(
    "authorization.k8s.io", "v1", "SelfSubjectAccessReview", "selfsubjectaccessreviews"
)
TIMEOUT_S = 15.0
TRIES = 4
PAGE = 500
"""Maximum number of objects in one answer to a list request."""
AGENT = "perdure-operator"
Made = TypeVar("Made")
LabelValue = str | operators.UnaryOperator
"""The value that a label of a listed object must have, or `operators.exists()` for any value."""


class Refused(Exception):
    """Raised when the API server understood the request and rejected it."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.code, self.reason = code, reason


class Away(Exception):
    """Raised when the API server did not answer, or is temporarily unable to answer."""


class Api:
    """A connection to the API server. `counted` has the number of requests sent so far, by verb and
    kind."""

    def __init__(self, config: SingleConfig) -> None:
        self._client = AsyncClient(
            config, timeout=httpx2.Timeout(TIMEOUT_S), trust_env=False, field_manager=AGENT
        )
        self._kinds = {plural: resource(*kind, plural) for plural, kind in _KINDS.items()}
        self.counted: Counter[tuple[str, str]] = Counter()
        self.retried = 0

    async def get(self, kind: str, namespace: str, name: str) -> KubernetesObject | None:
        """Return the object, or None if it does not exist."""
        try:
            found: KubernetesObject = await self._send(
                "get", kind, lambda: self._client.get(self._kinds[kind], name, namespace=namespace)
            )
            return found
        except Refused as error:
            if error.code == 404:
                return None
            raise

    async def is_leaving(self, namespace: str) -> bool:
        """Return whether a namespace is gone or being deleted. Return False if the account may not
        read namespaces."""
        try:
            body = await self._send(
                "get", "namespaces", lambda: self._client.get(_NAMESPACE, namespace)
            )
        except Refused as error:
            return error.code == 404
        return is_being_deleted(body)

    async def is_allowed(self, namespace: str, verb: str, group: str, resource: str) -> bool:
        """Return whether this client's account has the right `verb` (such as `list`) on `resource`
        in a namespace. An empty namespace means all namespaces. `resource` may name a subresource,
        such as `pods/log`."""
        name, _, part = resource.partition("/")
        what = {"namespace": namespace, "verb": verb, "group": group, "resource": name}
        if part:
            what["subresource"] = part
        review = _REVIEW.from_dict({"spec": {"resourceAttributes": what}})
        answer = await self._send("create", "reviews", lambda: self._client.create(review))
        return bool((answer.get("status") or {}).get("allowed"))

    async def items(
        self,
        kind: str,
        namespace: str,
        labels: Mapping[str, LabelValue] | None = None,
        fields: str = "",
    ) -> list[KubernetesObject]:
        """Return all objects of a kind in a namespace, filtered by labels and fields if they are
        given."""
        return await self.reduced(kind, namespace, dict, labels, fields)

    async def reduced(
        self,
        kind: str,
        namespace: str,
        make: Callable[[KubernetesObject], Made],
        labels: Mapping[str, LabelValue] | None = None,
        fields: str = "",
    ) -> list[Made]:
        """Return what `make` returns for each of the objects that `items` would return.

        The objects are read in pages, and `make` is called for all objects of a page before the
        next page is requested. So only one page of whole objects is in memory. If the list has to
        begin again, `make` is called again for the same objects.
        """
        selector: Any = None
        if fields:
            selector = dict(part.split("=") for part in fields.split(","))

        async def read() -> list[Made]:
            listed = self._client.list(
                self._kinds[kind],
                namespace=namespace,
                labels=dict(labels or {}),
                fields=selector,
                chunk_size=PAGE,
            )
            found: list[Made] = []
            async for each in listed:
                if found and len(found) % PAGE == 0:
                    self.counted["list", kind] += 1
                found.append(make(_plain(each)))
            return found

        for _ in range(TRIES):
            try:
                read_all: list[Made] = await self._send("list", kind, read)
                return read_all
            except Refused as error:
                # The token of the next page names a version of the list. The API server forgets
                # versions after some minutes (etcd is compacted) and then answers 410.
                if error.code != 410:
                    raise
                expired = str(error)
        raise Away(expired)

    async def ours(
        self, kind: str, namespace: str, make: Callable[[KubernetesObject], Made]
    ) -> list[Made]:
        """Return what `make` returns for each object of a kind that perdure created for
        TaskRuns."""
        return await self.reduced(kind, namespace, make, {UID_LABEL: operators.exists()})

    async def probe(self, kind: str, namespace: str) -> None:
        """Check that the account may list a kind, by reading at most one object. Raises Refused if
        the account may not, or if the cluster does not know the kind."""

        async def read() -> None:
            async for _ in self._client.list(self._kinds[kind], namespace=namespace, chunk_size=1):
                return

        await self._send("list", kind, read)

    async def log(self, namespace: str, pod: str, container: str, most: int) -> str:
        """Return the beginning of a container's log, at most `most` bytes. Raises Refused if there
        is no log yet."""
        # lightkube 1.0 has a `log` method, but without a size limit. The request is therefore sent
        # directly.
        client: Any = self._client._client
        params = {"container": container, "limitBytes": most}

        async def read() -> dict[str, str]:
            request = client.prepare_request(
                "get", core_v1.PodLog, name=pod, namespace=namespace, params=params
            )
            answer = await client.send(client.build_adapter_request(request))
            client.raise_for_status(answer)
            return {"log": answer.text}

        found: dict[str, str] = await self._send("get", "pods/log", read)
        return found["log"]

    async def create(self, kind: str, body: Manifest) -> KubernetesObject:
        """Create the object in the namespace that its metadata names. Return the object that the
        server stored.

        Raises Refused with code 409 if it exists already. A 409 with the reason Conflict means that
        concurrent requests collided, for example on a quota. Then nothing was created, and `Away`
        is raised.
        """
        try:
            found: KubernetesObject = await self._send(
                "create", kind, lambda: self._client.create(self._kinds[kind].from_dict(body))
            )
        except Refused as error:
            if error.code == 409 and error.reason == "Conflict":
                raise Away(str(error)) from error
            raise
        return found

    async def create_or_get(self, kind: str, body: Manifest) -> KubernetesObject | None:
        """Create the object, or return the existing object of its name. Return None if that object
        was deleted in the meantime. Raises Refused if there is no such object and none can be
        created.

        The API server checks quotas before names. If a quota is full, it therefore answers 403 even
        if the object exists.
        """
        try:
            return await self.create(kind, body)
        except Refused as error:
            if error.code not in (403, 409):
                raise
            meta = body["metadata"]
            found = await self.get(kind, meta["namespace"], meta["name"])
            if found is None and error.code == 403:
                raise
            return found

    async def patch(
        self, kind: str, namespace: str, name: str, body: MergePatch, *, status: bool = False
    ) -> KubernetesObject:
        """Apply a merge patch to an object and return the changed object. If the patch contains
        `metadata.resourceVersion` and the object has changed since that version, the server refuses
        the patch (409)."""
        resource: Any = self._kinds[kind].Status if status else self._kinds[kind]
        found: KubernetesObject = await self._send(
            "patch",
            f"{kind}/status" if status else kind,
            lambda: self._client.patch(
                resource, name, body, namespace=namespace, patch_type=PatchType.MERGE
            ),
        )
        return found

    async def delete(
        self, kind: str, namespace: str, name: str, *, uid: str, version: str = ""
    ) -> None:
        """Delete the object, and in the background the objects that belong to it. The server
        refuses the request (409) if the object has another uid or, if `version` is given, has
        changed since that version. If the object is already gone, that is no error."""
        # The `delete` method of lightkube 1.0 takes no preconditions. The API server also accepts
        # preconditions as query parameters (apimachinery, conversion.go).
        params = {"propagationPolicy": "Background", "uid": uid, "resourceVersion": version or None}

        async def send() -> Any:
            await self._client._client.request(
                "delete", res=self._kinds[kind], name=name, namespace=namespace, params=params
            )

        try:
            await self._send("delete", kind, send)
        except Refused as error:
            if error.code != 404:
                raise

    async def close(self) -> None:
        await self._client.close()

    async def _send(self, verb: str, kind: str, request: Callable[[], Any]) -> Any:
        try:
            async for attempt in stamina.retry_context(
                on=_passing,
                attempts=TRIES,
                timeout=None,
                wait_initial=0.1,
                wait_max=2.0,
                wait_jitter=0.3,
            ):
                with attempt:
                    self.counted[verb, kind] += 1
                    self.retried += attempt.num > 1
                    found = await request()
                    if isinstance(found, list) or found is None:
                        return found
                    return _plain(found)
        except ApiError as error:
            if _passing(error):
                raise Away(str(error)) from error
            raise Refused(
                error.status.code or 0,
                error.status.reason or "",
                error.status.message or str(error),
            ) from error
        except httpx2.HTTPStatusError as error:
            raise Refused(error.response.status_code, "", str(error)) from error
        except (httpx2.HTTPError, OSError) as error:
            raise Away(f"{type(error).__name__}: {error}") from error


def _passing(error: Exception) -> bool:
    """Return whether the error may be transient, so that a retry may succeed."""
    if isinstance(error, ApiError):
        return (error.status.code or 0) >= 500 or error.status.code == 429
    if isinstance(error, httpx2.HTTPStatusError):
        return error.response.status_code >= 500 or error.response.status_code == 429
    return isinstance(error, httpx2.TransportError)


@functools.cache
def resource(group: str, version: str, kind: str, plural: str) -> type[GenericNamespacedResource]:
    """Return a resource class whose objects are plain dicts. Unlike lightkube's models, dicts keep
    the fields that newer clusters add. lightkube accepts only one class for each kind, so all
    callers must get it from this function."""
    return create_namespaced_resource(group, version, kind, plural)


def _plain(found: Any) -> KubernetesObject:
    plain: KubernetesObject = found if type(found) is dict else found.to_dict()
    return plain
