"""Verifies that the sender of a body knows the secret. Signatures are computed over the raw body
and compared in constant time. A missing signature counts as wrong."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Sequence
from itertools import product

TOLERANCE_S = 300
"""Maximum age of a signature's timestamp, in seconds. A timestamp may also be this far in the
future. The value is that of the Standard Webhooks specification (1.0.0)."""
SIGNING = "whsec_"


def by_hmac(secrets: Sequence[str], body: bytes, given: str) -> bool:
    """Return whether the signature is the HMAC-SHA256 of the body, in hexadecimal, with one of the
    secrets."""
    said = _bytes(given)
    found = []
    for secret in secrets:
        found.append(hmac.compare_digest(_hmac(secret.encode(), body).hex().encode(), said))
    return bool(given) and any(found)


def by_token(secrets: Sequence[str], given: str) -> bool:
    """Return whether the given text is itself one of the secrets. GitLab's older webhooks send the
    secret instead of a signature. Signing secrets (`whsec_`) do not count."""
    said = _bytes(given)
    found = []
    for secret in secrets:
        if not secret.startswith(SIGNING):
            found.append(hmac.compare_digest(secret.encode(), said))
    return bool(given) and any(found)


def by_standard(
    secrets: Sequence[str], id: str, at: str, body: bytes, given: str, now_s: float
) -> bool:
    """Return whether one of the signatures is valid by Standard Webhooks 1.0.0. Each is `v1,BASE64`
    over `id.timestamp.body`; several are separated by spaces. The timestamp `at` must be within
    `TOLERANCE_S` of `now_s`."""
    if (
        not (id and at.isascii() and at.isdigit() and len(at) < 15)
        or abs(now_s - int(at)) > TOLERANCE_S
    ):
        return False
    signed = _bytes(f"{id}.{at}.") + body
    right = []
    for key in map(_key, secrets):
        if key:
            right.append(base64.b64encode(_hmac(key, signed)))
    said = []
    for part in given.split()[:10]:
        if part.startswith("v1,"):
            said.append(_bytes(part.removeprefix("v1,")))
    # All signatures are compared, even after a match, so that the duration reveals nothing about
    # the secret.
    matches = [hmac.compare_digest(one, other) for one, other in product(right, said)]
    return any(matches)


def _key(secret: str) -> bytes:
    if not secret.startswith(SIGNING):
        return b""
    try:
        return base64.b64decode(secret.removeprefix(SIGNING), validate=True)
    except (binascii.Error, ValueError):
        return b""


def _hmac(key: bytes, body: bytes) -> bytes:
    return hmac.new(key, body, hashlib.sha256).digest()


def _bytes(header: str) -> bytes:
    return header.encode("utf-8", "surrogatepass")
