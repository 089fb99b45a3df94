"""Reads and writes the objects of a checkpoint store. Used by `objects`.

The objects are in a directory or a cloud bucket (`DirectBucket`, by the library obstore), or behind
the relay of a pod (`RelayedBucket`). The relay has the credentials that this process lacks.
"""

from __future__ import annotations

import http.client
from pathlib import Path
from typing import Any, Protocol

import msgspec

from perdure.errors import CapsuleError, StoreAway
from perdure.host import relay
from perdure.model.codec import resolved

RELAY_S = 600.0
"""Timeout for an answer of the relay, in seconds. It is long, because the relay itself waits for
the checkpoint store."""
WORDS_MOST = 2_000


class TooLarge(Exception):
    """Raised for an object that is larger than the caller accepts."""


class KeyNames(msgspec.Struct, frozen=True, kw_only=True):
    """The names of the objects and prefixes directly below a prefix. A name is the last part of a
    key."""

    objects: list[str]
    prefixes: list[str]


class Objects(Protocol):
    """Reads and writes objects by key. No object is ever deleted. A DirectBucket raises the errors
    of obstore. A RelayedBucket raises StoreAway, CapsuleError or OSError."""

    def names(self, prefix: str) -> KeyNames:
        """Return the names directly below a prefix."""

    def get(self, key: str, most: int) -> bytes:
        """Return an object's content. Raises FileNotFoundError, or TooLarge if it has more than
        `most` bytes."""

    def has(self, key: str) -> bool:
        """Return whether an object exists."""

    def put(self, key: str, content: bytes) -> None:
        """Write an object. An existing object is replaced."""

    def create(self, key: str, content: bytes) -> None:
        """Write a new object. Raises FileExistsError if the key is in use."""


class DirectBucket(msgspec.Struct, frozen=True):
    """The objects of a directory or a cloud bucket. `store` is a store of the library obstore."""

    store: Any

    def names(self, prefix: str) -> KeyNames:
        import obstore

        found = obstore.list_with_delimiter(self.store, prefix=prefix)
        return KeyNames(
            objects=[_last(str(meta["path"])) for meta in found["objects"]],
            prefixes=[_last(str(each)) for each in found["common_prefixes"]],
        )

    def get(self, key: str, most: int) -> bytes:
        import obstore

        found = obstore.get(self.store, key)
        if found.meta["size"] > most:
            raise TooLarge(key)
        return bytes(found.bytes())

    def has(self, key: str) -> bool:
        import obstore

        try:
            obstore.head(self.store, key)
        except FileNotFoundError:
            return False
        return True

    def put(self, key: str, content: bytes) -> None:
        import obstore

        obstore.put(self.store, key, content)

    def create(self, key: str, content: bytes) -> None:
        import obstore
        from obstore.exceptions import AlreadyExistsError, NotSupportedError, PreconditionError

        try:
            obstore.put(self.store, key, content, mode="create")
        except (AlreadyExistsError, PreconditionError) as error:
            raise FileExistsError(key) from error
        except (NotSupportedError, NotImplementedError):
            # Without conditional writes, another writer may create the object between these two
            # calls: see docs/reference/capsule.md.
            if _last(key) in self.names(key.rpartition("/")[0]).objects:
                raise FileExistsError(key) from None
            obstore.put(self.store, key, content)


class RelayedBucket(msgspec.Struct, frozen=True):
    """The objects that the relay of a pod serves. A file in `directory` has the relay's address."""

    directory: Path

    def names(self, prefix: str) -> KeyNames:
        _, content = self._ask("GET", f"names/{prefix}", (200,))
        return msgspec.json.decode(content, type=resolved(KeyNames))

    def get(self, key: str, most: int) -> bytes:
        status, content = self._ask("GET", f"objects/{key}", (200, 404, 413), most)
        if status == http.HTTPStatus.NOT_FOUND:
            raise FileNotFoundError(key)
        if status == http.HTTPStatus.REQUEST_ENTITY_TOO_LARGE or len(content) > most:
            raise TooLarge(key)
        return content

    def has(self, key: str) -> bool:
        status, _ = self._ask("HEAD", f"objects/{key}", (200, 404))
        return status == http.HTTPStatus.OK

    def put(self, key: str, content: bytes) -> None:
        self._ask("PUT", f"objects/{key}", (200,), content=content)

    def create(self, key: str, content: bytes) -> None:
        status, _ = self._ask("POST", f"objects/{key}", (200, 409), content=content)
        if status == http.HTTPStatus.CONFLICT:
            raise FileExistsError(key)

    def _ask(
        self,
        verb: str,
        path: str,
        good: tuple[int, ...],
        most: int = 64 << 20,
        content: bytes | None = None,
    ) -> tuple[int, bytes]:
        """Send a request to the relay, and return the status and the content of its answer. Raises
        CapsuleError if the relay refuses the request, and StoreAway or OSError if the request fails
        in another way."""
        address = relay.read(self.directory)
        line = http.client.HTTPConnection("127.0.0.1", address.port, timeout=RELAY_S)
        try:
            line.request(verb, f"/{address.secret}/{path}", body=content)
            answer = line.getresponse()
            found = answer.read(most + 1)
        except http.client.HTTPException as error:
            raise StoreAway(
                f"the relay of this pod closed the connection too early: {type(error).__name__}",
                relay.HINT,
            ) from error
        finally:
            line.close()
        if answer.status in good:
            return answer.status, found
        words = found[:WORDS_MOST].decode("utf-8", "replace")
        if answer.status == http.HTTPStatus.SERVICE_UNAVAILABLE:
            raise StoreAway(words, relay.HINT)
        raise CapsuleError(f"the relay of this pod refuses {path}: {words}", relay.HINT)


def _last(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2]
