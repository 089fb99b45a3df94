"""The checkpoint store: parts of capsules as objects in a directory, S3, Google Cloud or Azure.
`CheckpointStore` defines the keys of the objects:

    members/{sha256}                       a part of a file, as a zstd frame
    runs/{run}/{term}-{number}.json        a manifest, written after all parts that it names
    runs/{run}/terms/{term}.json           the machine that may publish in this term

No object is ever deleted here, or replaced by an object with other content. The machine that holds
the newest *term* may publish. To take a run over, a machine creates the object of the next term. On
any store with conditional writes, only one of two machines succeeds.

A client that got no answer repeats the write, and may then find the object that its first write
created. Therefore a term contains a random token of its writer, and an existing object is compared
with the new one. The name of a manifest begins with its term. So a late manifest, from a machine
that has lost its term, never counts as newer than the manifests of the next term. Credentials come
only from the environment, never from the URL.

An implementation of `Objects` reads and writes the objects by their keys.

`DirectBucket` accesses a directory or a cloud bucket, through the library obstore. `RelayedBucket`
asks the relay of a pod, which has the credentials that this process lacks.
"""

from __future__ import annotations

import http.client
import json
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import msgspec
from msgspec import Struct

from perdure.capsule import manifest as manifests
from perdure.capsule.container import LONGEST_FRAME, unframe
from perdure.capsule.manifest import CapsuleFile, Manifest, Part
from perdure.errors import (
    CapsuleError,
    Conflict,
    NotFound,
    PerdureError,
    StoreAway,
    UsageError,
)
from perdure.host import relay
from perdure.host.extras import install_command
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


SCHEMES = ("file", "s3", "gs", "az", "azure", "abfs", "abfss", "memory")
RUN = re.compile(r"[0-9a-f]{32}")
KEY = re.compile(r"(\d{6})-(\d{8})\.json")
TERM = re.compile(r"(\d{6})\.json")
LONGEST_TERM = 64 << 10
_AGAIN = "check that the store is reachable and that its credentials are in the environment"


class Term(msgspec.Struct, frozen=True, kw_only=True):
    """The right of one machine to publish a run's checkpoints. It is valid until a newer term
    begins."""

    format: int = 1
    number: int
    owner: str
    """The id of the machine that holds the term. It is empty if the run was released. Any machine
    may then take the run over."""
    host: str = ""
    """The machine's host name, to be shown to people."""
    at: int


class _StoredTerm(Term, frozen=True, kw_only=True):
    """A term as it is stored, with a random token."""

    token: str
    """A random token, so that two writers never store the same bytes."""


class CheckpointStore(Struct, frozen=True):
    """A store of checkpoints of many runs. Every method may raise CapsuleError."""

    url: str
    objects: Objects

    def runs(self) -> list[str]:
        """Return the ids of all stored runs."""
        with _translated_errors(self.url):
            names = self.objects.names("runs").prefixes
        return sorted(name for name in names if RUN.fullmatch(name))

    def term(self, run: str) -> Term | None:
        """Return the newest term of a run. Return None if no machine has begun one."""
        numbers = []
        for name in self._names(f"runs/{run}/terms"):
            if found := TERM.fullmatch(name):
                numbers.append(int(found[1]))
        if not numbers:
            return None
        content = self._get(_term_key(run, max(numbers)), LONGEST_TERM)
        try:
            return msgspec.convert(manifests.strict_json(content), resolved(Term))
        except msgspec.ValidationError as error:
            raise CapsuleError(
                f"the checkpoint store {self.url} has an invalid term record: {error}",
                "check which other program writes there",
            ) from error

    def begin(self, run: str, term: Term) -> None:
        """Store the next term of a run. Raises Conflict if another machine has stored it first."""
        begun = _StoredTerm(**msgspec.structs.asdict(term), token=secrets.token_hex(16))
        self._create(_term_key(run, term.number), msgspec.json.encode(begun))

    def newest(self, run: str) -> tuple[str, Manifest]:
        """Return the name of a run's newest manifest, and the manifest itself. Raises NotFound if
        the store has none."""
        names = [name for name in self._names(f"runs/{run}") if KEY.fullmatch(name)]
        if not names:
            raise NotFound(
                f"the checkpoint store {self.url} has no checkpoint of the run {run}",
                f"perdure move --from {self.url}",
            )
        return max(names), self.manifest(run, max(names))

    def manifest(self, run: str, name: str) -> Manifest:
        """Return the manifest of this name. Raises CapsuleError if it is not valid or belongs to
        another run."""
        manifest = manifests.read(self._get(f"runs/{run}/{name}", manifests.LONGEST_MANIFEST))
        if manifest.run != run:
            raise CapsuleError(
                f"the checkpoint store {self.url} has another run's manifest at {run}",
                "check which other program writes there",
            )
        return manifest

    def publish(self, run: str, term: int, number: int, manifest: Manifest) -> str:
        """Store a manifest, and return its name. All parts that it lists must be stored before.
        Raises Conflict if another manifest has that name."""
        name = f"{term:06}-{number:08}.json"
        self._create(f"runs/{run}/{name}", manifests.encode(manifest))
        return name

    def put(self, part: Part, packed: bytes) -> None:
        """Store the frame `packed` of a part. An existing object is overwritten, but it has the
        same content, because its key is the digest of the content."""
        with _translated_errors(self.url):
            self.objects.put(f"members/{part.sha256}", packed)

    def has(self, part: Part) -> bool:
        """Return whether a part is stored."""
        with _translated_errors(self.url):
            return self.objects.has(f"members/{part.sha256}")

    def parts(self, file: CapsuleFile) -> Iterator[bytes]:
        """Yield the contents of a file's parts, each verified: see `container.CapsuleContents`."""
        for part in file.parts:
            yield unframe(
                self._get(f"members/{part.sha256}", LONGEST_FRAME),
                part,
                f"{file.name} in {self.url}",
            )

    def _names(self, prefix: str) -> list[str]:
        with _translated_errors(self.url):
            return self.objects.names(prefix).objects

    def _get(self, key: str, most: int) -> bytes:
        with _translated_errors(self.url):
            try:
                return self.objects.get(key, most)
            except TooLarge as error:
                raise CapsuleError(
                    f"{key} in {self.url} is larger than it may be",
                    "check which other program writes there",
                ) from error
            except FileNotFoundError as error:
                raise CapsuleError(
                    f"{key} is missing in {self.url}", "check whether something was deleted there"
                ) from error

    def _create(self, key: str, content: bytes) -> None:
        """Create an object. Raises Conflict if the key exists with other content."""
        with _translated_errors(self.url):
            try:
                self.objects.create(key, content)
            except FileExistsError as error:
                # obstore repeats a request after a 5xx answer, although the first request may have
                # succeeded. The existing object is then this machine's own and has the same
                # content.
                if self._get(key, manifests.LONGEST_MANIFEST) != content:
                    raise Conflict(
                        f"another machine was quicker: {key} is already there",
                        "perdure why NAME",
                    ) from error


def open_store(url: str) -> CheckpointStore:
    """Return the store at a URL: file:///directory, s3://bucket/prefix, gs://bucket/prefix,
    az://container/prefix, or relay:///directory for the store behind the relay whose address is in
    that directory.

    Raises UsageError if the URL is invalid or contains a secret, CapsuleError if the library is not
    installed or the store cannot be used.
    """
    scheme, _, rest = url.partition("://")
    if scheme == "relay":
        directory = Path(rest)
        return CheckpointStore(relay.wait(directory).store, RelayedBucket(directory))
    if (
        scheme not in SCHEMES
        or (not rest and scheme != "memory")
        or " " in url
        or not url.isprintable()
    ):
        raise UsageError(
            f"{url!r} is not a checkpoint store",
            "use file:///directory, s3://bucket/prefix, gs://bucket/prefix or "
            "az://container/prefix",
        )
    if "@" in rest.partition("/")[0] or "?" in rest:
        raise UsageError(
            "the checkpoint store's URL holds credentials",
            "leave them out, and set the variables of your cloud instead",
        )
    try:
        from obstore.store import LocalStore, from_url
    except ImportError:
        raise CapsuleError(
            "checkpoint stores need the library obstore, which is not installed",
            install_command("capsule"),
        ) from None
    with _translated_errors(url):
        if scheme == "file":
            if not rest.startswith("/"):
                raise UsageError(
                    f"{url!r} does not name an absolute directory", "file:///directory"
                )
            from urllib.parse import unquote

            return CheckpointStore(url, DirectBucket(LocalStore(unquote(rest), mkdir=True)))
        return CheckpointStore(url, DirectBucket(from_url(url)))


def _term_key(run: str, number: int) -> str:
    return f"runs/{run}/terms/{number:06}.json"


@contextmanager
def _translated_errors(url: str) -> Iterator[None]:
    """Convert OSErrors and the errors of obstore to StoreAway. Their messages are long, so only the
    first line is kept."""
    try:
        yield
    except PerdureError:
        raise
    except OSError as error:
        raise StoreAway(
            f"the checkpoint store {url} cannot be used: {_first(error)}", _AGAIN
        ) from error
    except Exception as error:
        if type(error).__module__.startswith("obstore"):
            raise StoreAway(
                f"the checkpoint store {url} cannot be used: {_first(error)}", _AGAIN
            ) from error
        raise


def _first(error: Exception) -> str:
    return json.dumps(str(error).partition("\n")[0][:300], ensure_ascii=False)[1:-1]
