"""Limits the access of a pod to the checkpoint store. Used by the relay's `server`.

The pod may read and write the terms and manifests of its own run. It may read those of the run that
it continues. It may also read and write parts of files.

All runs of a store share its parts. A part's name is the digest of its content, so only a client
that knows the digest can read the part. A part is written only if its content has that digest. A
hostile agent can therefore neither damage nor read a checkpoint of another run.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Collection

from perdure.capsule import manifest as manifests
from perdure.capsule.container import LONGEST_FRAME, unfold
from perdure.capsule.manifest import LONGEST_MANIFEST, PART
from perdure.capsule.move import find
from perdure.capsule.objects import KEY, LONGEST_TERM, RUN, TERM, CheckpointStore, KeyNames
from perdure.errors import CapsuleError, NotFound

_PART = re.compile(r"members/([0-9a-f]{64})")
_RECORD = re.compile(rf"runs/({RUN.pattern})/(?:{KEY.pattern}|terms/{TERM.pattern})")
_RECORDS = re.compile(rf"runs/({RUN.pattern})(?:/terms)?")


class RelayRefused(Exception):
    """Raised for a request that the relay does not allow. The message gives the reason."""


class RunStoreAccess:
    """Access to a checkpoint store, limited to one run. `names` are the names that the run may
    have. `source_run` is the name or the id of another run whose conversation this run continues;
    empty for none."""

    def __init__(
        self, store: CheckpointStore, run: str, names: Collection[str], source_run: str = ""
    ) -> None:
        self.store, self.run, self._names = store, run, names
        self._source_run = source_run
        self._turn = threading.Lock()
        self._source_ids: frozenset[str] | None = None

    def names(self, prefix: str) -> KeyNames:
        """Return the names directly below a prefix. Raises RelayRefused if the pod may not read
        below this prefix."""
        if prefix == "runs":
            stored = self.store.objects.names(prefix)
            own = self._readable()
            return KeyNames(objects=[], prefixes=[each for each in stored.prefixes if each in own])
        found = _RECORDS.fullmatch(prefix)
        if found is None or not self._may_read(found[1]):
            raise RelayRefused("these objects do not belong to this run")
        return self.store.objects.names(prefix)

    def get(self, key: str) -> bytes:
        """Return the content of an object. Raises RelayRefused if the pod may not read it, and the
        errors of `Objects.get`."""
        self._check(key)
        return self.store.objects.get(key, _most(key))

    def has(self, key: str) -> bool:
        """Return whether an object exists. Raises RelayRefused if the pod may not read it."""
        self._check(key)
        return self.store.objects.has(key)

    def put(self, key: str, content: bytes) -> None:
        """Write a part. Raises RelayRefused if the content does not have the digest in the part's
        name."""
        part = _PART.fullmatch(key)
        if part is None:
            raise RelayRefused("only parts of files may be written again")
        if len(content) > longest(key):
            raise RelayRefused("the part is larger than it may be")
        try:
            unfolded = unfold(content, PART, "the part")
        except CapsuleError as error:
            raise RelayRefused(str(error)) from error
        if hashlib.sha256(unfolded).hexdigest() != part[1]:
            raise RelayRefused("the content of the part does not match its name")
        self.store.objects.put(key, content)

    def create(self, key: str, content: bytes) -> None:
        """Create a term or a manifest of the pod's own run. Raises RelayRefused if the key names
        anything else, and FileExistsError if the object exists already."""
        record = _RECORD.fullmatch(key)
        if record is None or record[1] != self.run:
            raise RelayRefused("it is not a term or a manifest of this run")
        if "/terms/" not in key:
            self._check_manifest(content)
        self.store.objects.create(key, content)

    def _check_manifest(self, content: bytes) -> None:
        """Raise RelayRefused if a manifest contains the id or the name of another run. The name is
        checked too, because runs are looked up by the names in their manifests."""
        try:
            found = manifests.read(content)
        except CapsuleError as error:
            raise RelayRefused(str(error)) from error
        if found.run != self.run or found.name not in self._names:
            raise RelayRefused("the manifest belongs to another run")

    def _check(self, key: str) -> None:
        """Raise RelayRefused if the pod may not read an object."""
        record = _RECORD.fullmatch(key)
        if _PART.fullmatch(key) or (record and self._may_read(record[1])):
            return
        raise RelayRefused("it does not belong to this run")

    def _may_read(self, run: str) -> bool:
        """Return whether the pod may read the records of a run. Records of its own run are allowed
        without a search of the store for the source run."""
        return run == self.run or run in self._readable()

    def _readable(self) -> frozenset[str]:
        """Return the ids of the runs that the pod may read. The source run is looked up at the
        first use, and again at each use until it is found."""
        if not self._source_run:
            return frozenset({self.run})
        with self._turn:
            if self._source_ids is None:
                try:
                    self._source_ids = frozenset({find(self.store, self._source_run)})
                except NotFound:
                    return frozenset({self.run})
            return self._source_ids | {self.run}


def longest(key: str) -> int:
    """Return the maximum size in bytes of the content to write under a key."""
    return LONGEST_FRAME if key.startswith("members/") else LONGEST_MANIFEST


def _most(key: str) -> int:
    if "/terms/" in key:
        return LONGEST_TERM
    return longest(key)
