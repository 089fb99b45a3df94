"""One session as it is kept in Redis: `revision at signature body`. Reading one believes nothing
that the store's secret did not sign.

The revision stands first, so that a script in Redis can compare it; the signature covers all the
rest and the key, so that a record cannot be moved to another key either.
"""

from __future__ import annotations

import hashlib
import hmac

from perdure.lateclass import dataclass
from perdure.model import Session, SessionKey

LARGEST = 256 * 1024
"""Bytes of a record that is fetched at all; a session's is a few hundred."""
SURE_S = 600.0
"""A record that was read from the store longer ago is not believed, however often it is used."""


@dataclass(frozen=True, slots=True)
class SessionRecords:
    """How sessions of one store are named and written in Redis."""

    store: str
    """The store's identity: several may share one Redis."""
    secret: bytes

    def name(self, key: SessionKey) -> str:
        """The key in Redis. Agents and scopes are any text, hence the hash."""
        told = f"{len(key.agent)}:{key.agent}{key.scope}".encode("utf-8", "surrogatepass")
        return f"perdure:{self.store}:session:{hashlib.sha256(told).hexdigest()[:32]}"

    @property
    def channel(self) -> str:
        """Where it is told which names were written."""
        return f"perdure:{self.store}:written"

    def write(self, session: Session, at: int) -> bytes:
        """The record of a session that was read from the store at this time (ms)."""
        from perdure.model.codec import encode

        body = encode(session).encode()
        head = f"{session.revision} {at}"
        return f"{head} {self._sign(session.key, head, body)} ".encode() + body

    def read(self, key: SessionKey, content: bytes, now: int) -> Session | None:
        """The session, live or retired; None where the record is too old. Raises ValueError for
        what this store never wrote."""
        from msgspec import MsgspecError

        from perdure.model.codec import decode

        try:
            revision, at, signature, body = content.split(b" ", 3)
            head = f"{int(revision)} {int(at)}"
            if not hmac.compare_digest(signature, self._sign(key, head, body).encode()):
                raise ValueError("it is not signed by this store")
            session = decode(body, Session)
        except MsgspecError as error:
            raise ValueError("it is no session") from error
        if session.key != key or session.revision != int(revision):
            raise ValueError("it is another session")
        return session if abs(now - int(at)) <= SURE_S * 1000 else None

    def _sign(self, key: SessionKey, head: str, body: bytes) -> str:
        told = f"{self.name(key)} {head} ".encode() + body
        return hashlib.blake2b(told, key=self.secret, digest_size=20).hexdigest()
