"""Forgejo (16): Gitea's payloads under its own header names. It also sends the headers of Gitea,
Gogs and GitHub."""

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
    """Return whether one of the secrets signed the body. Forgejo's own header decides if it is
    present."""
    given = headers.get("x-forgejo-signature", headers.get("x-gitea-signature", ""))
    return by_hmac(secrets, body, given)


def translate(event: str, payload: Payload) -> PayloadReading:
    """Translate an event to an intent."""
    return gitea.translate(event, payload, Forge.FORGEJO)
