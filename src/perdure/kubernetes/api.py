"""The API server, as the reconciling part of the operator uses it: plain objects in and out, over
lightkube.

What time mends (a server that restarts, 429, 5xx, a lost connection) is tried again a few times at
once, with growing and random delays, then raised as `Away`; what the server refuses is `Refused`. A
write may have been carried out although its answer was lost: every write here can be made twice (a
name that is its own, a version that it follows, an end).
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable
from typing import Any

import httpx2
import stamina
from lightkube import AsyncClient, operators
from lightkube.config.kubeconfig import SingleConfig
from lightkube.core.exceptions import ApiError
from lightkube.generic_resource import GenericNamespacedResource, create_namespaced_resource
from lightkube.types import PatchType

from perdure.kubernetes.snapshot import UID_LABEL
from perdure.kubernetes.wanted import GROUP, KIND, VERSION

RUN, JOB, POD, MAP, CLAIM, EVENT = (
    "taskruns",
    "jobs",
    "pods",
    "configmaps",
    "persistentvolumeclaims",
    "events",
)
_KINDS = {
    RUN: (GROUP, VERSION, KIND),
    JOB: ("batch", "v1", "Job"),
    POD: ("", "v1", "Pod"),
    MAP: ("", "v1", "ConfigMap"),
    CLAIM: ("", "v1", "PersistentVolumeClaim"),
    EVENT: ("", "v1", "Event"),
}
TIMEOUT_S = 15.0
TRIES = 4
AGENT = "perdure-operator"


class Refused(Exception):
    """The API server understood and said no."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.code, self.reason = code, reason


class Away(Exception):
    """The API server did not answer, or not now."""


class Api:
    """One client. `counted` is how many requests were sent, by verb and kind."""

    def __init__(self, config: SingleConfig) -> None:
        self._client = AsyncClient(
            config, timeout=httpx2.Timeout(TIMEOUT_S), trust_env=False, field_manager=AGENT
        )
        self._kinds = {plural: _resource(*kind, plural) for plural, kind in _KINDS.items()}
        self.counted: Counter[tuple[str, str]] = Counter()
        self.retried = 0

    async def get(self, kind: str, namespace: str, name: str) -> dict[str, Any] | None:
        """The object; None where there is none."""
        try:
            found: dict[str, Any] = await self._send(
                "get", kind, lambda: self._client.get(self._kinds[kind], name, namespace=namespace)
            )
            return found
        except Refused as error:
            if error.code == 404:
                return None
            raise

    async def items(
        self, kind: str, namespace: str, labels: dict[str, Any] | None = None, fields: str = ""
    ) -> list[dict[str, Any]]:
        """All objects with these labels."""
        selector: Any = (
            {part.split("=")[0]: part.split("=")[1] for part in fields.split(",")}
            if fields
            else None
        )

        async def read() -> list[dict[str, Any]]:
            listed = self._client.list(
                self._kinds[kind], namespace=namespace, labels=labels, fields=selector
            )
            return [_plain(each) async for each in listed]

        found: list[dict[str, Any]] = await self._send("list", kind, read)
        return found

    async def ours(self, kind: str, namespace: str) -> list[dict[str, Any]]:
        """All objects that were made for TaskRuns."""
        return await self.items(kind, namespace, {UID_LABEL: operators.exists()})

    async def probe(self, kind: str, namespace: str) -> None:
        """Asks for one object. Raises Refused where that is not allowed, or the kind is not
        known."""

        async def read() -> None:
            async for _ in self._client.list(self._kinds[kind], namespace=namespace, chunk_size=1):
                return

        await self._send("list", kind, read)

    async def create(self, kind: str, body: dict[str, Any]) -> dict[str, Any]:
        """In the namespace that its metadata names. What is there already is refused with 409;
        where others were in the way, as at a quota that many count on (409 too, with reason
        Conflict), nothing was made, and it is `Away`."""
        try:
            found: dict[str, Any] = await self._send(
                "create", kind, lambda: self._client.create(self._kinds[kind].from_dict(body))
            )
        except Refused as error:
            if error.code == 409 and error.reason == "Conflict":
                raise Away(str(error)) from error
            raise
        return found

    async def patch(
        self, kind: str, namespace: str, name: str, body: dict[str, Any], *, status: bool = False
    ) -> dict[str, Any]:
        """A merge patch; with `metadata.resourceVersion` in it, it is refused (409) where the
        object is another by now."""
        resource: Any = self._kinds[kind].Status if status else self._kinds[kind]
        found: dict[str, Any] = await self._send(
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
        """Exactly this object, in this version if one is named; another of its name is refused
        (409). In the background: what it owns goes after it. What is gone already is no error."""
        # lightkube 1.0's own `delete` takes no preconditions; the API server reads them from the
        # query too (apimachinery, conversion.go).
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
                    return found if isinstance(found, list) or found is None else _plain(found)
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
    """Whether time may mend it."""
    if isinstance(error, ApiError):
        return (error.status.code or 0) >= 500 or error.status.code == 429
    if isinstance(error, httpx2.HTTPStatusError):
        return error.response.status_code >= 500 or error.response.status_code == 429
    return isinstance(error, httpx2.TransportError)


@functools.cache
def _resource(group: str, version: str, kind: str, plural: str) -> type[GenericNamespacedResource]:
    """A kind as plain dicts: what a newer cluster's objects have and lightkube's models lack stays
    in them."""
    return create_namespaced_resource(group, version, kind, plural)


def _plain(found: Any) -> dict[str, Any]:
    plain: dict[str, Any] = found if type(found) is dict else found.to_dict()
    return plain
