"""Decides which files and settings of a capsule may be used on this machine. Called by `imports`
and `publication`.

`verified` unpacks the files of a capsule, and verifies all of them before anything is used. All
files go into a new directory that only its owner can enter. Their names there are numbers, and each
file is created with `O_EXCL | O_NOFOLLOW`. Every part is verified before it is written, and every
file when it is complete. If anything is wrong, the whole directory is deleted. Only `imports` uses
the names in the manifest, after everything is verified.

`limit_spec` decides which parts of an imported spec apply on this machine.

A capsule may come from a stranger. Without `--trust`, nothing in it may extend the rights of an
agent or of perdure itself on this machine:

- Permissions are lowered to this machine's own setting, and never raised.
- Arguments and variables for the agent are dropped.
- The check command is dropped, because perdure would run it in a shell. The importer may give its
  own.
- Time limits are raised or lowered to the permitted range.
- The name of a forge rule is dropped, because commits would get the git identity of that rule.
- Labels that name a forge's issue are dropped, because the run would count as a run about this
  issue.
- The policy `fresh-ok` is replaced by `disclose`, so the loss of a conversation is always reported.

These changes are reported, and recorded in the journal. A key or scope that the run shares with
other runs elsewhere is always dropped, which is reported too (`left_behind`).
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from perdure.capsule.container import CapsuleContents
from perdure.capsule.manifest import CapsuleFile, Manifest
from perdure.errors import CapsuleError
from perdure.model import ContinuityPolicy, Permissions, TaskSpec
from perdure.model.forge.postings import OWN_LABELS
from perdure.rules.run_titles import LONGEST, link_to
from perdure.rules.text import one_line

MOST_BYTES = 64 << 30
"""Maximum unpacked size of a capsule, in bytes."""
LEFT_FREE = 256 << 20
"""Minimum free space on the disk after unpacking, in bytes."""


class VerifiedCapsule(Struct, frozen=True):
    """The verified files of a capsule, unpacked into a directory of this machine."""

    directory: Path
    numbers: dict[int, int]

    def path(self, file: CapsuleFile) -> Path:
        """Return the path at which a file of the manifest was unpacked."""
        return self.directory / str(self.numbers[id(file)])


@contextmanager
def verified(
    manifest: Manifest, contents: CapsuleContents, near: Path
) -> Iterator[VerifiedCapsule]:
    """Unpack and verify the files of the capsule, and yield them. They are in a private directory
    below `near`, which is deleted when the block ends. Raises CapsuleError."""
    refuse_too_large(manifest, near)
    directory = Path(tempfile.mkdtemp(prefix=".import-", dir=near))
    try:
        found = VerifiedCapsule(
            directory, {id(file): number for number, file in enumerate(manifest.files())}
        )
        for file in manifest.files():
            _fetch_file(file, contents, found.path(file))
        yield found
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def refuse_too_large(manifest: Manifest, near: Path) -> None:
    """Raise CapsuleError if the capsule is larger than allowed, or does not fit on the disk."""
    size = manifest.size
    if size > MOST_BYTES:
        raise CapsuleError(
            f"the capsule would unpack to {size >> 30} GiB; at most {MOST_BYTES >> 30} GiB are "
            f"allowed",
            "nothing was imported",
        )
    free = shutil.disk_usage(near).free
    if 2 * size + LEFT_FREE > free:
        need, has = (2 * size + LEFT_FREE) >> 20, free >> 20
        raise CapsuleError(
            f"the disk under {near} has {has} MiB free; unpacking needs {need} MiB",
            "free some space, then try again",
        )


def _fetch_file(file: CapsuleFile, contents: CapsuleContents, place: Path) -> None:
    digest = hashlib.sha256()
    try:
        fd = os.open(
            place, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
        )
        with os.fdopen(fd, "wb") as target:
            for content in contents.parts(file):
                digest.update(content)
                target.write(content)
            size = target.tell()
    except OSError as error:
        raise CapsuleError(
            f"{file.name} could not be read from the capsule, or written below {place.parent}: "
            f"{error.strerror or error}",
            "perdure doctor",
        ) from error
    if size != file.size or digest.hexdigest() != file.sha256:
        raise CapsuleError(
            f"{file.name} differs from the manifest: it was changed or damaged",
            "get the capsule again",
        )


_WIDTH = list(Permissions)
MOST_S = 86_400.0


def limit_spec(
    spec: TaskSpec,
    name: str,
    ours: Permissions,
    *,
    trusted: bool,
    verify: str | None = None,
) -> tuple[TaskSpec, tuple[str, ...]]:
    """Return the spec with only those parts that apply on this machine. Also return a description
    of each part that was dropped or reduced. `verify`: the importer's own check command, which
    replaces the one in the capsule; None: the importer gave none."""
    spec = replace(
        spec,
        name=name,
        key="",
        scope="",
        forks="",
        fork_at=0,
        repo="",
        base="",
        branch="",
        here="",
        service="",
        task="",
        backend="",
        title=one_line(spec.title, LONGEST),
        link=link_to(spec.link),
    )
    if verify is not None:
        spec = replace(spec, verify="")
    if trusted:
        return replace(spec, verify=verify or spec.verify), ()
    dropped: list[str] = []
    if _WIDTH.index(spec.permissions) > _WIDTH.index(ours):
        dropped.append(f"permissions `{spec.permissions}`: this machine's setting is `{ours}`")
        spec = replace(spec, permissions=ours)
    for what, value in (
        ("arguments for the agent", spec.agent_args),
        ("variables for the agent", spec.env),
        ("variables passed on from the user's environment", spec.pass_env),
        ("the check command", spec.verify),
        ("the rule of a forge", spec.rule),
        ("labels of a forge's issue", tuple(sorted(OWN_LABELS & spec.labels.keys()))),
    ):
        if value:
            dropped.append(f"{what}: {_display_value(value)}")
    policy = spec.continuity
    if policy is ContinuityPolicy.FRESH_OK:
        policy = ContinuityPolicy.DISCLOSE
        dropped.append(f"continuity `{spec.continuity}`: set to `{policy}`")
    labels = {name: each for name, each in spec.labels.items() if name not in OWN_LABELS}
    timeout_s, stall_s = _limit(spec.timeout_s), _limit(spec.stall_s)
    for what, asked, limit in (
        ("timeout", spec.timeout_s, timeout_s),
        ("stall limit", spec.stall_s, stall_s),
    ):
        if asked != limit:
            dropped.append(f"{what} of {asked:.10g} seconds: set to {limit:.10g}")
    spec = replace(
        spec,
        agent_args=(),
        env={},
        pass_env=(),
        verify=verify or "",
        rule="",
        labels=labels,
        continuity=policy,
        timeout_s=timeout_s,
        stall_s=stall_s,
    )
    return spec, tuple(dropped)


def left_behind(spec: TaskSpec) -> tuple[str, ...]:
    """Return a note for each thing that the run shared with other runs on its former machine: its
    key and its scope. An import never restores them."""
    notes = []
    if spec.key:
        notes.append(
            f"the key `{spec.key}` was not imported: a run with this key here is a new one"
        )
    if spec.scope:
        notes.append(
            f"the scope `{spec.scope}` was not imported: the run here shares no conversation"
        )
    return tuple(notes)


def _limit(seconds: float) -> float:
    """Return a time limit in seconds, raised or lowered to the permitted range. 0 means no limit
    and is not changed."""
    if seconds:
        return min(max(seconds, 1.0), MOST_S)
    return 0.0


def _display_value(value: object) -> str:
    """Return the value of a dropped field as text. For environment variables, only the names are
    included."""
    if isinstance(value, dict | tuple):
        return ", ".join(value)
    return str(value)[:200]
