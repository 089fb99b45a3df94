"""Translates a forge's webhooks: checks that a delivery is authentic, and determines its intent.

Pure. `server` calls `receive` for each webhook. The modules: `intake` (determines the forge, checks
authenticity), `signatures`, `payload` (reads hostile JSON safely), `author_text` (mentions and
commands in comments), `hunks` (parts of a diff), and one for each forge: `github`, `gitea`,
`forgejo`, `gitlab`. A payload with a valid signature may still contain any text that somebody wrote
into an issue. So every field is limited in length and checked. The only error that a payload can
cause is `DeliveryRefused`.
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
