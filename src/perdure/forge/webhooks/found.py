"""Deliveries for changes that perdure found on a forge by itself. They are kept in the inbox like
any other, with a body of perdure's own: unique, durable, and replayable. Pure."""

from __future__ import annotations

import hashlib

import msgspec

from perdure.forge.webhooks.payload import Payload
from perdure.model.codec import encode, resolved
from perdure.model.forge.deliveries import Arrived, Forge, Intent, PayloadReading

FOUND = "perdure:found"
"""Event name of such a delivery. No forge can send it: if a header has this name, it is
replaced."""


def delivery_of(source: str, forge: Forge, intent: Intent, which: str) -> Arrived:
    """Make a delivery of a found intent. `which` distinguishes several finds of the same intent:
    the same value gives the same delivery."""
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
    """Return the intent in the stored body of a delivery that perdure found itself."""
    try:
        return PayloadReading(msgspec.convert(payload.value("intent"), resolved(Intent)))
    except msgspec.ValidationError:
        return PayloadReading(None, "nothing follows from what was found")
