"""Keeps the signing key of this host, and the public keys that this host trusts, as files in the
state directory.

The private key is an ed25519 key in PEM format. Only its owner can read the file, and the key is
never printed or copied. A host has one key, created on request.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from perdure.engine.attestation.envelope import key_id, require
from perdure.errors import Conflict, NotFound, StoreError, UsageError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (
        Ed25519PrivateKey,
        Ed25519PublicKey,
    )

FOLDER = "keys"
PRIVATE = "host.pem"
TRUSTED = "trusted"
LONGEST = 64 << 10
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
    """Return the private key of this host. Raises NotFound if the host has none, StoreError if
    other users can read its file."""
    serialization = require()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    path = state / FOLDER / PRIVATE
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
            mode = os.fstat(file.fileno()).st_mode & 0o777
            content = file.read(LONGEST)
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
            content = file.read(LONGEST)
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
