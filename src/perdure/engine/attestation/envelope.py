"""Signs statements, and verifies envelopes that come from other machines: DSSE with ed25519. Pure.

An envelope has exactly one valid form: fields in a fixed order, no blanks, canonical base64, one
newline at the end. Any other form is refused, so no byte can be changed unnoticed. The signature
covers DSSE's own encoding of the payload, so other tools can verify it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from typing import TYPE_CHECKING, Any

import msgspec

from perdure.engine.attestation import PREDICATE, STATEMENT, Statement
from perdure.errors import ConfigError, NotVerified
from perdure.host.extras import install_command
from perdure.model.codec import resolved

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (
        Ed25519PrivateKey,
        Ed25519PublicKey,
    )

PAYLOAD = "application/vnd.in-toto+json"
LONGEST = 16 << 20
"""Maximum size of an envelope, in bytes."""


class Signature(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One signature: the id of its key, and the signature in base64."""

    keyid: str
    sig: str


class Envelope(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A DSSE envelope: a payload and its signatures."""

    payload_type: str = msgspec.field(name="payloadType")
    payload: str
    signatures: tuple[Signature, ...]


def signed(statement: Statement, key: Ed25519PrivateKey) -> bytes:
    """Return the statement in an envelope that is signed with the key."""
    payload = msgspec.json.encode(statement)
    signature = Signature(
        key_id(key.public_key()), _base64(key.sign(_authenticated(PAYLOAD, payload)))
    )
    return _written(Envelope(PAYLOAD, _base64(payload), (signature,)))


def opened(content: bytes, keys: dict[str, Ed25519PublicKey]) -> Statement:
    """Return the statement in an envelope. `keys`: the trusted keys by id. Raises NotVerified if
    the envelope is damaged or was not signed by a trusted key."""
    from cryptography.exceptions import InvalidSignature

    envelope = _read(content)
    payload, given = _bytes(envelope.payload), envelope.signatures[0]
    if given.keyid not in keys:
        if any(each[:16] == given.keyid[:16] for each in keys):
            raise NotVerified(
                "the receipt was changed: its key id has the beginning of a known key's id, "
                f"{given.keyid[:16]!r}, and another end"
            )
        if len(keys) == 1:
            known = "the given key is"
        else:
            known = "the trusted keys are"
        names = ", ".join(each[:16] for each in keys) or "none"
        raise NotVerified(
            f"the receipt names key {given.keyid[:16]!r} as its signer; {known} {names}",
            "perdure key show, on the machine that signed it, prints its public key",
        )
    try:
        keys[given.keyid].verify(_bytes(given.sig), _authenticated(envelope.payload_type, payload))
    except InvalidSignature:
        raise NotVerified(
            "the signature does not match: the receipt was changed after it was signed"
        ) from None
    return _statement(payload)


def _read(content: bytes) -> Envelope:
    if len(content) > LONGEST:
        raise NotVerified(f"the receipt is larger than {LONGEST >> 20} MiB")
    try:
        envelope = msgspec.json.decode(content, type=resolved(Envelope))
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        if not content.endswith(b"}\n"):
            broken = "it is truncated"
        else:
            broken = "it is damaged"
        raise NotVerified(f"this is not a signed receipt of perdure: {broken}") from None
    if len(envelope.signatures) != 1:
        raise NotVerified(f"one signature was expected, not {len(envelope.signatures)}")
    if _written(envelope) != content:
        raise NotVerified("the receipt was changed: its bytes are not as perdure writes them")
    return envelope


def _statement(payload: bytes) -> Statement:
    try:
        statement = msgspec.json.decode(payload, type=resolved(Statement))
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        raise NotVerified("the signed content is not an in-toto statement") from None
    if (statement.type, statement.predicate_type) != (STATEMENT, PREDICATE):
        raise NotVerified(
            f"the signed statement is of the type {statement.predicate_type!r}; expected "
            f"{PREDICATE}"
        )
    return statement


def _authenticated(kind: str, payload: bytes) -> bytes:
    """Return the bytes that DSSE signs (its pre-authentication encoding)."""
    name = kind.encode()
    return b"DSSEv1 %d %b %d %b" % (len(name), name, len(payload), payload)


def _written(envelope: Envelope) -> bytes:
    return msgspec.json.encode(envelope) + b"\n"


def _base64(content: bytes) -> str:
    return base64.standard_b64encode(content).decode()


def _bytes(text: str) -> bytes:
    try:
        content = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        content = b""
    # Several base64 texts decode to the same bytes. Only the canonical one is accepted.
    if not content or _base64(content) != text:
        raise NotVerified("the receipt was changed: it is not valid base64")
    return content


def key_id(key: Ed25519PublicKey) -> str:
    """Return the id of a key: the SHA-256 of its public part in DER, as sigstore names keys."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    der = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(der).hexdigest()


def require() -> Any:
    """Return the serialization module of the library `cryptography`. Raises ConfigError if the
    library is not installed."""
    try:
        from cryptography.hazmat.primitives import serialization
    except ImportError:
        raise ConfigError(
            ["signed receipts need the library cryptography, which is not installed"],
            install_command("sign"),
        ) from None
    return serialization
