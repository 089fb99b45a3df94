"""Forgejo (16): Gitea's payloads under names of its own; it sends Gitea's, Gogs' and GitHub's
headers beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from perdure.forge.webhooks import gitea
from perdure.forge.webhooks.payload import Payload
from perdure.forge.webhooks.signatures import by_hmac
from perdure.model.forge.deliveries import Forge, PayloadReading

EVENT = ("x-forgejo-event-type", "x-forgejo-event", *gitea.EVENT)
DELIVERY = ("x-forgejo-delivery", *gitea.DELIVERY)


def authentic(
    headers: Mapping[str, str], body: bytes, secrets: Sequence[str], now_s: float
) -> bool:
    """Whether the body is signed by one of the secrets: Forgejo's own header decides, where there
    is one."""
    given = headers.get("x-forgejo-signature", headers.get("x-gitea-signature", ""))
    return by_hmac(secrets, body, given)


def translate(event: str, payload: Payload) -> PayloadReading:
    """What the event comes to."""
    return gitea.translate(event, payload, Forge.FORGEJO)
