"""Creates the secrets of tokens and cookies, and the digests that the store keeps."""

from __future__ import annotations

import hashlib
import secrets

BEGINS = "prd_"
"""Prefix of every token. Secret scanners recognize tokens by this prefix."""
SECRET_BYTES = 32
LONGEST = 200


def new_token() -> tuple[str, str]:
    """Return the secret of a new token, and its digest for the store."""
    secret = BEGINS + secrets.token_urlsafe(SECRET_BYTES)
    return secret, digest(secret)


def new_cookie() -> tuple[str, str]:
    """Return the value of a new sign-in cookie, and its digest for the store."""
    secret = secrets.token_urlsafe(SECRET_BYTES)
    return secret, digest(secret)


def digest(secret: str) -> str:
    """Return the SHA-256 of a secret. The secret has 256 random bits, so a slow hash is not
    needed."""
    return hashlib.sha256(secret.encode("utf-8", "replace")).hexdigest()
