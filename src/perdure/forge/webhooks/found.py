"""Makes deliveries for changes that perdure found on a forge without a webhook. They are kept in
the inbox like any other delivery, with a body written by perdure: unique, durable, and replayable.
Pure."""

from __future__ import annotations

import hashlib

import msgspec

from perdure.forge.webhooks.payload import Payload
from perdure.model.codec import encode, resolved
from perdure.model.forge.deliveries import Arrived, Forge, Intent, PayloadReading

FOUND = "perdure:found"
"""Event name of the deliveries that this module makes. No forge can use it: if a webhook's header
has this name, the name is replaced."""


def delivery_of(source: str, forge: Forge, intent: Intent, which: str) -> Arrived:
    """Make a delivery of an intent that perdure found. `which` identifies what was found: two
    deliveries of a source with the same `which` count as the same delivery."""
    body = encode({"which": which, "intent": intent})
    digest = hashlib.sha256(f"{source}\n{which}".encode()).hexdigest()
    return Arrived(
        source=source,
        id=f"found:{digest[:32]}",
        forge=forge,
        event=FOUND,
        sha256=digest,
        body=body,
        reading=PayloadReading(intent),
    )


def repeated_delivery(payload: Payload) -> PayloadReading:
    """Return the intent from the stored body of a delivery that `delivery_of` made."""
    try:
        return PayloadReading(msgspec.convert(payload.value("intent"), resolved(Intent)))
    except msgspec.ValidationError:
        return PayloadReading(None, "no action for what was found")
