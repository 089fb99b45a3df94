"""What perdure found on a forge by itself, because no delivery told it. It is kept in the inbox
like one, by a body of perdure's own: there once, durable, and to be replayed. Pure.
"""

from __future__ import annotations

import hashlib

import msgspec

from perdure.forge.webhooks.payload import Payload
from perdure.model.codec import encode, resolved
from perdure.model.forge.deliveries import Arrived, Forge, Intent, PayloadReading

FOUND = "perdure:found"
"""The event of such a delivery. No forge's event has this name: it comes in no header that is
taken."""


def found(source: str, forge: Forge, intent: Intent, which: str) -> Arrived:
    """A delivery of what was found. `which` tells apart what may be found twice: the same is the
    same delivery."""
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


def found_again(payload: Payload) -> PayloadReading:
    """The intent in such a body."""
    try:
        return PayloadReading(msgspec.convert(payload.value("intent"), resolved(Intent)))
    except msgspec.ValidationError:
        return PayloadReading(None, "nothing follows from what was found")
