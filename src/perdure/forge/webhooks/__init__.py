"""Translates a forge's webhooks: checks that a delivery is authentic, and determines its intent.

Pure. `server` calls `receive` for each webhook. The modules: `intake` (determines the forge, checks
authenticity), `signatures`, `payload` (reads hostile JSON safely), `deliveries` (the types), and
one for each forge: `github`, `gitea`, `forgejo`, `gitlab`. A payload with a valid signature may
still contain any text that somebody wrote into an issue. So every field is limited in length and
checked. A payload never causes any error but `DeliveryRefused`.
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
