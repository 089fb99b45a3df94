"""Signs statements, verifies envelopes that come from other machines (DSSE with ed25519), and keeps
the keys for both. `signed` and `opened` are pure.

An envelope has exactly one valid form: fields in a fixed order, no blanks, canonical base64, one
newline at the end. Any other form is refused, so no byte can be changed unnoticed. The signature
covers DSSE's own encoding of the payload, so other tools can verify it.

The signing key of this host and the public keys that it trusts are files in the state directory.
The private key is an ed25519 key in PEM format, in a file that only perdure's own user can read.
The key is never printed or copied. A host has one key, created on request.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from perdure.engine.attestation import PREDICATE, STATEMENT, Statement
from perdure.errors import ConfigError, Conflict, NotFound, NotVerified, StoreError, UsageError
from perdure.host.extras import install_command
from perdure.model.codec import resolved

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (
        Ed25519PrivateKey,
        Ed25519PublicKey,
    )

PAYLOAD = "application/vnd.in-toto+json"
LONGEST_ENVELOPE = 16 << 20
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
    if len(content) > LONGEST_ENVELOPE:
        raise NotVerified(f"the receipt is larger than {LONGEST_ENVELOPE >> 20} MiB")
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


FOLDER = "keys"
PRIVATE = "host.pem"
TRUSTED = "trusted"
LONGEST_KEY_FILE = 64 << 10
"""Maximum number of bytes read from a key file."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


def make(state: Path) -> Ed25519PublicKey:
    """Create the key of this host and return its public part. Raises StoreError, and Conflict if
    this host already has a key."""
    serialization = require()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    content = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    folder = state / FOLDER
    path = folder / PRIVATE
    fresh = folder / f".{PRIVATE}.{os.getpid()}"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        fresh.unlink(missing_ok=True)
        with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        # os.link fails if the target exists. If two processes make a key at the same time, only one
        # of them succeeds.
        os.link(fresh, path)
    except FileExistsError:
        raise Conflict(
            "this host already has a key; with a new one, the receipts that it has signed would "
            "not verify",
            "perdure key show",
        ) from None
    except OSError as error:
        raise StoreError(f"the key of this host cannot be written: {error.strerror}") from None
    finally:
        with suppress(OSError):
            fresh.unlink(missing_ok=True)
    return key.public_key()


def load(state: Path) -> Ed25519PrivateKey:
    """Return the private key of this host. Raises NotFound if the host has none, and StoreError if
    the key's file cannot be read or can be read by other users."""
    serialization = require()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    path = state / FOLDER / PRIVATE
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
            mode = os.fstat(file.fileno()).st_mode & 0o777
            content = file.read(LONGEST_KEY_FILE)
    except FileNotFoundError:
        raise NotFound("this host has no signing key", "perdure key make") from None
    except OSError as error:
        raise StoreError(f"the key of this host cannot be read: {error.strerror}") from None
    if mode & 0o077:
        raise StoreError(
            f"the key of this host can be read by others (mode {mode:o})", f"chmod 600 {path}"
        )
    try:
        key = serialization.load_pem_private_key(content, password=None)
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise StoreError(f"{path} does not hold an ed25519 key", transient=False)
    return key


def parse(content: bytes, where: str) -> Ed25519PublicKey:
    """Return the public key in a PEM text. Raises UsageError if the text contains none."""
    serialization = require()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    if b"PRIVATE KEY" in content:
        raise UsageError(f"{where} holds a private key; expected a public one", "perdure key show")
    try:
        key = serialization.load_pem_public_key(content)
    except (ValueError, TypeError):
        key = None
    except Exception as error:
        # For an unsupported kind of key, cryptography raises UnsupportedAlgorithm, which is not a
        # ValueError.
        raise UsageError(f"{where} does not hold an ed25519 public key: {error}") from None
    if not isinstance(key, Ed25519PublicKey):
        raise UsageError(f"{where} does not hold an ed25519 public key in PEM", "perdure key show")
    return key


def read(path: Path) -> Ed25519PublicKey:
    """Return the public key in a file. Raises UsageError."""
    try:
        with path.open("rb") as file:
            content = file.read(LONGEST_KEY_FILE)
    except OSError as error:
        raise UsageError(f"the key {path} cannot be read: {error.strerror}") from None
    return parse(content, str(path))


def written(key: Ed25519PublicKey) -> str:
    """Return a public key as PEM."""
    serialization = require()
    pem: bytes = key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return pem.decode()


def trust(state: Path, key: Ed25519PublicKey, name: str) -> None:
    """Store a public key as trusted. Raises Conflict if the name belongs to another key, UsageError
    for an invalid name."""
    if not _NAME.fullmatch(name):
        raise UsageError("a key's name has at most 63 letters, digits, `.`, `_` and `-`")
    folder = state / FOLDER / TRUSTED
    path = folder / f"{name}.pem"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with path.open("x", encoding="ascii") as file:
            file.write(written(key))
    except FileExistsError:
        if key_id(read(path)) != key_id(key):
            raise Conflict(f"another key is trusted as {name} already", f"rm {path}") from None
    except OSError as error:
        raise StoreError(f"the key cannot be kept: {error.strerror}") from None


def trusted(state: Path) -> dict[str, tuple[str, Ed25519PublicKey]]:
    """Return the trusted keys by id, each with the name under which it is stored. This host's own
    key is included."""
    found = {}
    for path in sorted((state / FOLDER / TRUSTED).glob("*.pem")):
        key = read(path)
        found[key_id(key)] = (path.stem, key)
    with suppress(NotFound):
        own = load(state).public_key()
        found[key_id(own)] = ("this host", own)
    return found
