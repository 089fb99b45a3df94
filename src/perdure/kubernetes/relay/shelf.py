"""The part of the checkpoint store that the relay lets a pod read and write.

That is: the terms and manifests of its own run, those of the run that it continues (to read), and
parts of files by their content.

Parts are shared by all runs of a store. A part can be read by one that knows the digest of its
content, and is written only if its content has that digest. So a hostile agent can damage or read
no checkpoint of another run.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Collection

from perdure.capsule import manifest as manifests
from perdure.capsule.buckets import KeyNames
from perdure.capsule.container import LONGEST_FRAME
from perdure.capsule.frames import unfold
from perdure.capsule.manifest import LONGEST_MANIFEST, PART
from perdure.capsule.move import find
from perdure.capsule.objects import KEY, LONGEST_TERM, RUN, TERM, CheckpointStore
from perdure.errors import CapsuleError, NotFound

_PART = re.compile(r"members/([0-9a-f]{64})")
_RECORD = re.compile(rf"runs/({RUN.pattern})/(?:{KEY.pattern}|terms/{TERM.pattern})")
_RECORDS = re.compile(rf"runs/({RUN.pattern})(?:/terms)?")


class RelayRefused(Exception):
    """Raised for a request that the relay does not fulfill; the message says why."""


class RunShelf:
    """The part of a checkpoint store that belongs to one run. `names`: the names that the run may
    have. `lender`: the name or the id of the run whose conversation it continues; empty for
    none."""

    def __init__(
        self, store: CheckpointStore, run: str, names: Collection[str], lender: str = ""
    ) -> None:
        self.store, self.run, self._names = store, run, names
        self._lender = lender
        self._turn = threading.Lock()
        self._lent: frozenset[str] | None = None

    def names(self, prefix: str) -> KeyNames:
        """Return the names directly below a prefix. Raises RelayRefused."""
        if prefix == "runs":
            stored = self.store.objects.names(prefix)
            own = self._readable()
            return KeyNames(objects=[], prefixes=[each for each in stored.prefixes if each in own])
        found = _RECORDS.fullmatch(prefix)
        if found is None or not self._may_read(found[1]):
            raise RelayRefused("the names there are not this run's")
        return self.store.objects.names(prefix)

    def get(self, key: str) -> bytes:
        """Return an object. Raises RelayRefused, and what `Objects.get` raises."""
        self._check(key)
        return self.store.objects.get(key, _most(key))

    def has(self, key: str) -> bool:
        """Return whether an object exists. Raises RelayRefused."""
        self._check(key)
        return self.store.objects.has(key)

    def put(self, key: str, content: bytes) -> None:
        """Write a part. Raises RelayRefused if it is not the content that its name says."""
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
            raise RelayRefused("the content of the part is not the one that its name says")
        self.store.objects.put(key, content)

    def create(self, key: str, content: bytes) -> None:
        """Write a term or a manifest. Raises RelayRefused, and FileExistsError."""
        record = _RECORD.fullmatch(key)
        if record is None or record[1] != self.run:
            raise RelayRefused("it is not a term or a manifest of this run")
        if "/terms/" not in key:
            self._check_manifest(content)
        self.store.objects.create(key, content)

    def _check_manifest(self, content: bytes) -> None:
        """Raise RelayRefused for a manifest of another run. Runs are found by the names in their
        manifests, so a name is as good as the run that it belongs to."""
        try:
            found = manifests.read(content)
        except CapsuleError as error:
            raise RelayRefused(str(error)) from error
        if found.run != self.run or found.name not in self._names:
            raise RelayRefused("the manifest is that of another run")

    def _check(self, key: str) -> None:
        """Raise RelayRefused if an object may not be read."""
        record = _RECORD.fullmatch(key)
        if _PART.fullmatch(key) or (record and self._may_read(record[1])):
            return
        raise RelayRefused("it is not this run's")

    def _may_read(self, run: str) -> bool:
        """Return whether a run's records may be read. The run's own need no search of the store."""
        return run == self.run or run in self._readable()

    def _readable(self) -> frozenset[str]:
        """Return the ids of the runs that may be read. The lender is looked up when it is first
        needed, and again as long as it is not found."""
        if not self._lender:
            return frozenset({self.run})
        with self._turn:
            if self._lent is None:
                try:
                    self._lent = frozenset({find(self.store, self._lender)})
                except NotFound:
                    return frozenset({self.run})
            return self._lent | {self.run}


def longest(key: str) -> int:
    """Return the maximum size of the content that may be written to a key, in bytes."""
    return LONGEST_FRAME if key.startswith("members/") else LONGEST_MANIFEST


def _most(key: str) -> int:
    if "/terms/" in key:
        return LONGEST_TERM
    return longest(key)
