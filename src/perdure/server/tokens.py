"""The secrets of tokens: how one is made, and by what the store knows it."""

from __future__ import annotations

import hashlib
import secrets

BEGINS = "prd_"
"""So that a secret scanner knows one when it sees it."""
SECRET_BYTES = 32
LONGEST = 200


def new_token() -> tuple[str, str]:
    """A token's secret, and the digest that the store knows it by."""
    secret = BEGINS + secrets.token_urlsafe(SECRET_BYTES)
    return secret, digest(secret)


def new_cookie() -> tuple[str, str]:
    """The same for a browser that signs in."""
    secret = secrets.token_urlsafe(SECRET_BYTES)
    return secret, digest(secret)


def digest(secret: str) -> str:
    """SHA-256: the secret has 256 random bits, so that no slow hash is needed."""
    return hashlib.sha256(secret.encode("utf-8", "replace")).hexdigest()
