"""What a forge says, in perdure's own words: is a delivery authentic, and what does somebody want.

Pure. Called by `web` for each webhook; `receive` is the door. The rooms: `receiving` (which forge,
is it authentic), `signatures`, `payload` (hostile JSON, read without surprises), `intents` (the
nouns), and a module a forge: `github`, `gitea`, `forgejo`, `gitlab`. A payload that passed the
signature may still hold anything that somebody wrote into an issue: every field is bounded and
checked, and nothing but `Refused` is raised, whatever comes.
"""

from __future__ import annotations

from perdure.forges.intents import (
    Accepted,
    Arrived,
    Delivery,
    DeliveryState,
    Forge,
    Intent,
    IntentKind,
    Reading,
)
from perdure.forges.payload import parsed
from perdure.forges.receiving import Refused, check_type, detect, read, receive, too_large, verify

__all__ = [
    "Accepted",
    "Arrived",
    "Delivery",
    "DeliveryState",
    "Forge",
    "Intent",
    "IntentKind",
    "Reading",
    "Refused",
    "check_type",
    "detect",
    "parsed",
    "read",
    "receive",
    "too_large",
    "verify",
]
