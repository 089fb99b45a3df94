"""Creates the network policy and the service account that attempts need in a namespace. Called by
`reconciler` before an attempt starts, if the operator watches several namespaces.

The chart creates both in the operator's own namespace only. Without the policy in the other
namespaces, agents could be reached from anywhere and could reach everything. Objects of the same
name that somebody else created are left alone.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from msgspec import Struct, field

from perdure.kubernetes import api as kinds
from perdure.kubernetes.api import Api, Refused
from perdure.kubernetes.manifests import MADE_BY
from perdure.kubernetes.objects import labels_of
from perdure.kubernetes.outcomes import Obstacle
from perdure.kubernetes.status import safe_line

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
