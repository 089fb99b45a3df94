"""The secrets of tokens: their creation, and the digest that the store keeps."""

from __future__ import annotations

import hashlib
import secrets

BEGINS = "prd_"
"""Prefix by which a secret scanner recognizes a token."""
SECRET_BYTES = 32
LONGEST = 200


def new_token() -> tuple[str, str]:
    """Return a new token's secret, and the digest for the store."""
    secret = BEGINS + secrets.token_urlsafe(SECRET_BYTES)
    return secret, digest(secret)


def new_cookie() -> tuple[str, str]:
    """Return a new cookie for a browser that signs in, and its digest."""
    secret = secrets.token_urlsafe(SECRET_BYTES)
    return secret, digest(secret)


def digest(secret: str) -> str:
    """Return the SHA-256. The secret has 256 random bits, so no slow hash is needed."""
    return hashlib.sha256(secret.encode("utf-8", "replace")).hexdigest()
