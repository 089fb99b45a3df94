"""Makes and verifies signed links that answer a request for approval without signing in. Pure.

A link is a text that only the holder of the key can make. It contains the number of the request,
the digest of the call that was shown, and the time at which it expires. So it does not fit another
request with the same number, for example after an import. It works only once, because the store
accepts only one answer to a request.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac

import msgspec

from perdure.model.codec import resolved
from perdure.model.requests import AgentRequest, AnswerKind

LONGEST = 600
"""Maximum length of a link that is verified, in characters."""
KINDS = (AnswerKind.ALLOW, AnswerKind.DENY)
"""The answers that a link can give."""
_PURPOSE = b"perdure answer link v1\n"
"""First bytes of the text that is signed. Because of them, a signature made with the same key for
another purpose is never valid for a link."""
_SIGNATURE = 32


class AnswerLink(msgspec.Struct, frozen=True, array_like=True):
    """An answer to one request, sent in a notice to one channel. `expires` is the time at which the
    link becomes invalid, in ms since 1970."""

    run: str
    number: int
    answer: AnswerKind
    digest: str
    expires: int
    channel: str


def link_to(request: AgentRequest, answer: AnswerKind, channel: str) -> AnswerLink:
    """Return the link that gives this answer to the request."""
    return AnswerLink(request.run, request.number, answer, request.sha256, request.expires, channel)


def matches_request(link: AnswerLink, request: AgentRequest) -> bool:
    """Return whether the link was made for exactly this request."""
    return (link.run, link.number, link.digest, link.expires) == (
        request.run,
        request.number,
        request.sha256,
        request.expires,
    )


def signed(link: AnswerLink, key: bytes) -> str:
    """Return the link with its signature, as text for a URL."""
    body = msgspec.json.encode(link)
    return _text(body + _signature(body, key))


def verified(text: str, key: bytes) -> AnswerLink | None:
    """Return the link in a text; None if it was not made with this key, or was changed."""
    if not text.isascii() or len(text) > LONGEST:
        return None
    try:
        found = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        return None
    body, signature = found[:-_SIGNATURE], found[-_SIGNATURE:]
    # A link must have only one spelling. base64 decoding ignores some bits of the last character,
    # so a changed last character could go unnoticed.
    if _text(found) != text or not hmac.compare_digest(_signature(body, key), signature):
        return None
    try:
        link = msgspec.json.decode(body, type=resolved(AnswerLink))
    except msgspec.MsgspecError:
        return None
    return link if link.answer in KINDS else None


def _signature(body: bytes, key: bytes) -> bytes:
    return hmac.digest(key, _PURPOSE + body, hashlib.sha256)


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")
