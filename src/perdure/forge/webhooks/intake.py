"""Turns the headers and the raw body of a webhook into a delivery: determines the forge, checks the
signature, reads the intent. Raises no error but `DeliveryRefused`. Pure.

Header names are lower-case. The order of detection is fixed, because Forgejo also sends Gitea's
headers, and both Gitea and Forgejo send GitHub's.

`delivery_of` makes a delivery for a change that perdure found on a forge without a webhook. perdure
writes the body of such a delivery, so the inbox keeps it like any other, and it can be replayed.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence

import msgspec

from perdure.errors import PerdureError
from perdure.forge.webhooks import forgejo, gitea, github, gitlab
from perdure.forge.webhooks.payload import Payload, parsed
from perdure.model.codec import encode, resolved
from perdure.model.forge.deliveries import Arrived, Forge, Intent, PayloadReading

FOUND = "perdure:found"
"""Event name of the deliveries that `delivery_of` makes. No forge can use it: if a webhook's header
contains this name, it is replaced."""


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


BODY_MOST = 25 * 1024 * 1024
"""Maximum size of a webhook's body, in bytes. GitHub sends nothing larger (docs.github.com,
"Webhook events and payloads")."""

IGNORED_MOST = 256 * 1024
"""Size in bytes up to which the body of an ignored webhook is kept, so that a newer perdure can
interpret it."""

MODULES = {Forge.FORGEJO: forgejo, Forge.GITEA: gitea, Forge.GITLAB: gitlab, Forge.GITHUB: github}
"""The module for each forge, in the order in which `detect` tries them."""

_ID = re.compile(r"[\x21-\x7e]{1,200}")


class DeliveryRefused(PerdureError):
    """Raised if a webhook is not accepted. `status` is the HTTP status of the answer."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def detect(headers: Mapping[str, str]) -> Forge | None:
    """Return the forge that sent a webhook, determined by the header that names the event; None if
    there is no such header."""
    for forge, module in MODULES.items():
        if any(name in headers for name in _own(forge, module.EVENT)):
            return forge
    return None


def verify(
    forge: Forge, headers: Mapping[str, str], body: bytes, secrets: Sequence[str], now_s: float
) -> bool:
    """Return whether the sender of the webhook knows one of the secrets. Returns False if no secret
    is configured."""
    return (
        bool(secrets)
        and all(secrets)
        and bool(MODULES[forge].authentic(headers, body, secrets, now_s))
    )


def receive(
    headers: Mapping[str, str],
    body: bytes,
    *,
    source: str,
    secrets: Sequence[str],
    now_s: float,
    expected: Forge | None = None,
) -> Arrived:
    """Return the delivery for a webhook. If `expected` is given, only that forge is accepted.
    Raises DeliveryRefused with 400, 401, 413 or 415."""
    check_type(headers)
    if len(body) > BODY_MOST:
        raise too_large()
    forge = detect(headers)
    if forge is None or expected not in (None, forge):
        raise DeliveryRefused(
            400,
            f"This is not a webhook of {expected or 'a forge that perdure knows'}: the header that "
            "names the event is missing",
        )
    if not verify(forge, headers, body, secrets, now_s):
        raise DeliveryRefused(
            401,
            f"The signature of this {forge} webhook is missing or wrong: check that the secret is "
            f"the same on both sides",
        )
    module = MODULES[forge]
    named = _first(headers, module.DELIVERY)
    sha256 = hashlib.sha256(body).hexdigest()
    # Older versions of GitLab send no id. The hash of the body then identifies the delivery.
    delivery = named if _ID.fullmatch(named) else f"sha256:{sha256}"
    event = _first(headers, module.EVENT)[:100].replace(FOUND, "?")
    try:
        payload = parsed(body)
    except ValueError as error:
        raise DeliveryRefused(
            400, f"The body is not the JSON of a webhook: {error}"[:300]
        ) from None
    reading = read(forge, event, payload)
    wanted = reading.intent is not None or len(body) <= IGNORED_MOST
    return Arrived(
        source=source, id=delivery, forge=forge, event=_plain(event), sha256=sha256, size=len(body),
        body=body.decode() if wanted else "", reading=reading,
    )  # fmt: skip


def read(forge: Forge, event: str, payload: Payload) -> PayloadReading:
    """Return the intent of a payload, or the reason why it has none."""
    reading: PayloadReading = (
        repeated_delivery(payload) if event == FOUND else MODULES[forge].translate(event, payload)
    )
    return reading


def check_type(headers: Mapping[str, str]) -> None:
    """Raise DeliveryRefused unless the headers announce uncompressed JSON. Called before the body
    is read."""
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/x-www-form-urlencoded":
        raise DeliveryRefused(
            415,
            "The webhook is sent as a form: set its content type to application/json on the forge",
        )
    if kind != "application/json":
        raise DeliveryRefused(415, "expected the content type application/json")
    if headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
        raise DeliveryRefused(415, "expected an uncompressed body")


def too_large() -> DeliveryRefused:
    """Return the error for a body of more than `BODY_MOST` bytes."""
    return DeliveryRefused(413, f"A webhook has at most {BODY_MOST // 1024**2} MiB")


def _own(forge: Forge, names: Sequence[str]) -> Sequence[str]:
    """Return the header names that contain the forge's own name."""
    return [name for name in names if forge.value in name]


def _first(headers: Mapping[str, str], names: Sequence[str]) -> str:
    for name in names:
        if headers.get(name):
            return headers[name]
    return ""


def _plain(text: str) -> str:
    return re.sub(r"[^\x20-\x7e]", "?", text)
