"""The checkpoint store: capsules' parts as objects, in a directory, S3, Google Cloud or Azure, by
obstore.

    members/{sha256}                       a part of a file, as a zstd frame
    runs/{run}/{term}-{number}.json        a manifest, written last: what it names is all there
    runs/{run}/terms/{term}.json           who may publish from then on

Nothing is ever changed or deleted here. Who publishes holds the newest *term*: taking a run over is
one object that did not exist before, so of two machines one wins, on any store with conditional
writes. A client that got no answer writes again, and finds its own object there: so a term has a
word that only its writer knows, and what is there already is compared. Manifests bear their term in
their names, so a late one of a machine that lost its place never hides what the next one did.
Credentials come from the environment alone, never from the URL.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec

from perdure.capsule import manifest as manifests
from perdure.capsule.container import LONGEST_FRAME
from perdure.capsule.frames import unframe
from perdure.capsule.manifest import CapsuleFile, Manifest, Part
from perdure.errors import CapsuleError, Conflict, NotFound, StoreAway, UsageError
from perdure.host.extras import install_command
from perdure.lateclass import dataclass
from perdure.model.codec import resolved

SCHEMES = ("file", "s3", "gs", "az", "azure", "abfs", "abfss", "memory")
_RUN = re.compile(r"[0-9a-f]{32}")
_KEY = re.compile(r"(\d{6})-(\d{8})\.json")
_TERM = re.compile(r"(\d{6})\.json")
_LONGEST_TERM = 64 << 10
_AGAIN = "is the store reachable, and are its credentials in the environment?"


class Term(msgspec.Struct, frozen=True, kw_only=True):
    """The right to publish a run's checkpoints, until there is a newer one."""

    format: int = 1
    number: int
    owner: str
    """The machine's own id; empty where the run was let go, for whoever takes it."""
    host: str = ""
    """A name for a person."""
    at: int


class _Begun(Term, frozen=True, kw_only=True):
    """A term as it is written."""

    token: str
    """Random: two writers never write the same."""


@dataclass(frozen=True, slots=True)
class CheckpointStore:
    """One place for the checkpoints of many runs. Every method may raise CapsuleError."""

    url: str
    store: Any

    def runs(self) -> list[str]:
        """The ids of the runs that are there."""
        with _in_words(self.url):
            import obstore

            found = obstore.list_with_delimiter(self.store, prefix="runs")
        names = [str(prefix).rstrip("/").rpartition("/")[2] for prefix in found["common_prefixes"]]
        return sorted(name for name in names if _RUN.fullmatch(name))

    def term(self, run: str) -> Term | None:
        """The newest term of a run."""
        numbers = [
            int(found[1])
            for name in self._names(f"runs/{run}/terms")
            if (found := _TERM.fullmatch(name))
        ]
        if not numbers:
            return None
        content = self._get(_term_key(run, max(numbers)), _LONGEST_TERM)
        try:
            return msgspec.convert(manifests.strict_json(content), resolved(Term))
        except msgspec.ValidationError as error:
            raise CapsuleError(
                f"the checkpoint store {self.url} holds a term that is none: {error}",
                "who else writes there?",
            ) from error

    def begin(self, run: str, term: Term) -> None:
        """Begins a term, which must be the next one. Raises Conflict if another machine was
        quicker."""
        begun = _Begun(**msgspec.structs.asdict(term), token=secrets.token_hex(16))
        self._create(_term_key(run, term.number), msgspec.json.encode(begun))

    def newest(self, run: str) -> tuple[str, Manifest]:
        """The newest manifest and its name. Raises NotFound."""
        names = [name for name in self._names(f"runs/{run}") if _KEY.fullmatch(name)]
        if not names:
            raise NotFound(
                f"the checkpoint store {self.url} has no checkpoint of the run {run}",
                f"perdure move --from {self.url}",
            )
        return max(names), self.manifest(run, max(names))

    def manifest(self, run: str, name: str) -> Manifest:
        """A manifest by its name, checked."""
        manifest = manifests.read(self._get(f"runs/{run}/{name}", manifests.LONGEST_MANIFEST))
        if manifest.run != run:
            raise CapsuleError(
                f"the checkpoint store {self.url} has another run's manifest at {run}",
                "who else writes there?",
            )
        return manifest

    def publish(self, run: str, term: int, number: int, manifest: Manifest) -> str:
        """Writes a manifest, whose parts are all there. Returns its name. Raises Conflict if that
        one exists."""
        name = f"{term:06}-{number:08}.json"
        self._create(f"runs/{run}/{name}", manifests.encode(manifest))
        return name

    def put(self, part: Part, packed: bytes) -> None:
        """Stores a part. What is there already has the same content."""
        with _in_words(self.url):
            import obstore

            obstore.put(self.store, f"members/{part.sha256}", packed)

    def has(self, part: Part) -> bool:
        """Whether a part is there."""
        with _in_words(self.url):
            import obstore

            try:
                obstore.head(self.store, f"members/{part.sha256}")
            except FileNotFoundError:
                return False
            return True

    def parts(self, file: CapsuleFile) -> Iterator[bytes]:
        """The contents of a file's parts, each checked: see `container.Contents`."""
        for part in file.parts:
            yield unframe(
                self._get(f"members/{part.sha256}", LONGEST_FRAME),
                part,
                f"{file.name} in {self.url}",
            )

    def _names(self, prefix: str) -> list[str]:
        with _in_words(self.url):
            import obstore

            found = obstore.list_with_delimiter(self.store, prefix=prefix)
        return [str(meta["path"]).rpartition("/")[2] for meta in found["objects"]]

    def _get(self, key: str, most: int) -> bytes:
        with _in_words(self.url):
            import obstore

            try:
                found = obstore.get(self.store, key)
                if found.meta["size"] > most:
                    raise CapsuleError(
                        f"{key} in {self.url} is larger than it may be", "who else writes there?"
                    )
                return bytes(found.bytes())
            except FileNotFoundError as error:
                raise CapsuleError(
                    f"{key} is missing in {self.url}", "was something deleted there?"
                ) from error

    def _create(self, key: str, content: bytes) -> None:
        """Writes an object that is not there. Raises Conflict where one is that is not exactly this
        one."""
        with _in_words(self.url):
            import obstore
            from obstore.exceptions import AlreadyExistsError, NotSupportedError, PreconditionError

            try:
                obstore.put(self.store, key, content, mode="create")
            except (AlreadyExistsError, PreconditionError) as error:
                # obstore repeats what was answered with 5xx, also where it had been done.
                if self._get(key, manifests.LONGEST_MANIFEST) != content:
                    raise Conflict(
                        f"another machine was quicker: {key} is there already",
                        "perdure why says what became of it",
                    ) from error
            except (NotSupportedError, NotImplementedError):
                # Without conditional writes a race of milliseconds is left open:
                # docs/reference/capsule.md.
                if key.rpartition("/")[2] in self._names(key.rpartition("/")[0]):
                    raise Conflict(
                        f"another machine was quicker: {key} is there already",
                        "perdure why says what became of it",
                    ) from None
                obstore.put(self.store, key, content)


def open_store(url: str) -> CheckpointStore:
    """The store at a URL: file:///directory, s3://bucket/prefix, gs://bucket/prefix,
    az://container/prefix.

    Raises UsageError for what is no such URL, or has a secret in it; CapsuleError without the
    library, or where it cannot be had.
    """
    scheme, _, rest = url.partition("://")
    if (
        scheme not in SCHEMES
        or (not rest and scheme != "memory")
        or any(character.isspace() or not character.isprintable() for character in url)
    ):
        raise UsageError(
            f"{url!r} is no checkpoint store",
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
    with _in_words(url):
        if scheme == "file":
            if not rest.startswith("/"):
                raise UsageError(f"{url!r} names no absolute directory", "file:///directory")
            from urllib.parse import unquote

            return CheckpointStore(url, LocalStore(unquote(rest), mkdir=True))
        return CheckpointStore(url, from_url(url))


def _term_key(run: str, number: int) -> str:
    return f"runs/{run}/terms/{number:06}.json"


@contextmanager
def _in_words(url: str) -> Iterator[None]:
    """obstore's errors, which run over many lines, as a sentence."""
    try:
        yield
    except (UsageError, CapsuleError, Conflict, NotFound):
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
