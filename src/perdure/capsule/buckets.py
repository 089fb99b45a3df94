"""The objects of a checkpoint store.

They are in a directory or a cloud's bucket (`DirectBucket`, by obstore), or behind the relay of a
pod (`RelayedBucket`), which has the credentials that this process lacks.
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
"""Timeout for an answer of the relay in seconds: it waits for the store itself."""
WORDS_MOST = 2_000


class TooLarge(Exception):
    """Raised for an object that is larger than the caller accepts."""


class KeyNames(msgspec.Struct, frozen=True, kw_only=True):
    """The names directly below a prefix, by their last part."""

    objects: list[str]
    prefixes: list[str]


class Objects(Protocol):
    """Objects by key. An object is never deleted. Errors of the store are obstore's, or
    StoreAway."""

    def names(self, prefix: str) -> KeyNames:
        """Return the names directly below a prefix."""

    def get(self, key: str, most: int) -> bytes:
        """Return an object. Raises FileNotFoundError, and TooLarge for more than `most` bytes."""

    def has(self, key: str) -> bool:
        """Return whether an object exists."""

    def put(self, key: str, content: bytes) -> None:
        """Write an object."""

    def create(self, key: str, content: bytes) -> None:
        """Write an object that does not exist. Raises FileExistsError."""


class DirectBucket(msgspec.Struct, frozen=True):
    """A directory or a bucket, as a store of obstore's."""

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
            # Without conditional writes a race of some milliseconds remains:
            # docs/reference/capsule.md.
            if _last(key) in self.names(key.rpartition("/")[0]).objects:
                raise FileExistsError(key) from None
            obstore.put(self.store, key, content)


class RelayedBucket(msgspec.Struct, frozen=True):
    """The store behind the relay of a pod. `directory` has the relay's address."""

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
        """Return status and content of an answer. Raises CapsuleError for a request that the relay
        refuses, and StoreAway or OSError for one that it cannot fulfill."""
        address = relay.read(self.directory)
        line = http.client.HTTPConnection("127.0.0.1", address.port, timeout=RELAY_S)
        try:
            line.request(verb, f"/{address.word}/{path}", body=content)
            answer = line.getresponse()
            found = answer.read(most + 1)
        except http.client.HTTPException as error:
            raise StoreAway(
                f"the relay of this pod broke off: {type(error).__name__}", relay.HINT
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
