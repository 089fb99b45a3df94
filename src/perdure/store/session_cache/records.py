"""The format of a session in Redis: `revision time signature body`. A record without a valid
signature by the store's secret is rejected.

The revision comes first, so that a script in Redis can compare it. The signature covers everything
else and the key, so that a record cannot be moved to another key.
"""

from __future__ import annotations

import hashlib
import hmac

from msgspec import Struct

from perdure.model import Session, SessionKey

LARGEST = 256 * 1024
"""Maximum size of a record that is fetched, in bytes. A session usually has a few hundred bytes."""
SURE_S = 600.0
"""Maximum time in seconds for which a record is used after it was read from the store. Using a
record does not extend this time."""


class SessionRecords(Struct, frozen=True):
    """The names and the encoding of one store's sessions in Redis."""

    store: str
    """Id of the store. It is part of every name in Redis, because several stores may share one
    Redis."""
    secret: bytes

    def name(self, key: SessionKey) -> str:
        """Return the name in Redis of the session with this key. It is a hash, because agent and
        scope may contain any characters."""
        told = f"{len(key.agent)}:{key.agent}{key.scope}".encode("utf-8", "surrogatepass")
        return f"perdure:{self.store}:session:{hashlib.sha256(told).hexdigest()[:32]}"

    @property
    def channel(self) -> str:
        """Name of the channel on which the names of written records are published."""
        return f"perdure:{self.store}:written"

    def write(self, session: Session, at: int) -> bytes:
        """Encode a session that was read from the store at the time `at` (ms)."""
        from perdure.model.codec import encode

        body = encode(session).encode()
        head = f"{session.revision} {at}"
        return f"{head} {self._sign(session.key, head, body)} ".encode() + body

    def read(self, key: SessionKey, content: bytes, now: int) -> Session | None:
        """Decode a record, and return the session, live or retired; None if the record is too old.
        Raises ValueError for a record that this store did not write."""
        from msgspec import MsgspecError

        from perdure.model.codec import decode

        try:
            revision, at, signature, body = content.split(b" ", 3)
            head = f"{int(revision)} {int(at)}"
            if not hmac.compare_digest(signature, self._sign(key, head, body).encode()):
                raise ValueError("it is not signed by this store")
            session = decode(body, Session)
        except MsgspecError as error:
            raise ValueError("it is not a session") from error
        if session.key != key or session.revision != int(revision):
            raise ValueError("it is another session")
        if abs(now - int(at)) <= SURE_S * 1000:
            return session
        return None

    def _sign(self, key: SessionKey, head: str, body: bytes) -> str:
        told = f"{self.name(key)} {head} ".encode() + body
        return hashlib.blake2b(told, key=self.secret, digest_size=20).hexdigest()
