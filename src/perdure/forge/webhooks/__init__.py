"""What a forge says, in perdure's own words: is a delivery authentic, and what does somebody want.

Pure. Called by `server` for each webhook; `receive` is the door. The rooms: `intake` (which forge,
is it authentic), `signatures`, `payload` (hostile JSON, read without surprises), `deliveries` (the
nouns), and a module a forge: `github`, `gitea`, `forgejo`, `gitlab`. A payload that passed the
signature may still hold anything that somebody wrote into an issue: every field is bounded and
checked, and nothing but `DeliveryRefused` is raised, whatever comes.
"""

from __future__ import annotations

from perdure.forge.webhooks.intake import (
    DeliveryRefused,
    check_type,
    detect,
    read,
    receive,
    too_large,
    verify,
)
from perdure.forge.webhooks.payload import parsed
from perdure.model.forge.deliveries import (
    Accepted,
    Arrived,
    Delivery,
    DeliveryState,
    Forge,
    Intent,
    IntentKind,
    PayloadReading,
)

__all__ = [
    "Accepted",
    "Arrived",
    "Delivery",
    "DeliveryRefused",
    "DeliveryState",
    "Forge",
    "Intent",
    "IntentKind",
    "PayloadReading",
    "check_type",
    "detect",
    "parsed",
    "read",
    "receive",
    "too_large",
    "verify",
]
