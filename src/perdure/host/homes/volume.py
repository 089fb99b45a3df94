"""The volume: a directory that outlives the container or the machine, identified by a file on it.

An empty directory where a volume should be mounted looks like a new volume, and everything written
there would be lost at the next start. So a directory without the identity file is accepted as a new
volume only if it is a mount point, or if the user confirms it (`--new`).

    .perdure/volume.json      the volume's id, and the path under which each home was last used
    .perdure/lock             locked while homes are moved
    .perdure/stage/           copies before they are put in place, named by the hash of their path
    .perdure/taking-*.json    files that a call of `home link` is copying
    homes/<agent>/            the homes
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from msgspec import Struct

from perdure.errors import WorkspaceError
from perdure.host import system
from perdure.host.homes import durable

OWN = ".perdure"
IDENTITY = "volume.json"
LOCK = "homes.lock"
"""Name of the lock file in the state directory. Its lock is held while homes are moved."""


class Volume(Struct, frozen=True):
    """A volume that exists, with its directory and its id."""

    path: Path
    id: str

    @property
    def own(self) -> Path:
        return self.path / OWN

    def home(self, name: str) -> Path:
        """Return the directory of a home on the volume. The agent's environment variable is set to
        this path."""
        return self.path / "homes" / name

    def last_used_as(self, name: str) -> str:
        """Return the path under which the home was last used; "" if it was never used."""
        places = _read(self.path).get("places")
        if isinstance(places, Mapping):
            return str(places.get(name, ""))
        return ""

    def note_use(self, name: str) -> None:
        """Record the path under which the home is used now. The path changes if the volume is
        mounted somewhere else."""
        known = _read(self.path)
        places = {**(known.get("places") or {}), name: str(self.home(name))}
        if places != known.get("places"):
            durable.write(self.own / IDENTITY, json.dumps({**known, "places": places}, indent=1))

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Prevent other processes from moving homes of this volume during the block. Raises
        Conflict if another process is moving them."""
        with durable.lock(
            self.own / "lock", f"homes on {self.path} are being moved by another perdure"
        ):
            yield


def volume_at(
    path: Path, *, wanted: str = "", make: bool = False, new: bool = False, dry_run: bool = False
) -> Volume:
    """Return the volume in this directory. Raises WorkspaceError if there is none.

    `wanted`: the id that the volume must have. `make`: create a volume if the directory is a mount
    point. `new`: with `make`, create one in any directory. `dry_run`: instead of creating a volume,
    return one without an id."""
    path = Path(os.path.normpath(path.absolute()))
    hint = f"Mount it at {path}, then try again."
    if not path.is_dir():
        raise WorkspaceError(f"The volume {path} is missing.", hint)
    found = str(_read(path).get("id", ""))
    if wanted and found != wanted:
        if found:
            what = f"another volume ({found}) is at {path}"
        else:
            what = f"the volume is not mounted at {path}: it has no identity file"
        raise WorkspaceError(f"The homes are on the volume {wanted}, but {what}.", hint)
    if found:
        return Volume(path, found)
    if not make or not (new or is_mount(path)):
        raise WorkspaceError(
            f"{path} is neither a known volume nor a mount point: data there may be lost.",
            "Mount the volume there. If this directory itself is permanent, run once: perdure home "
            f"link --new --volume {path}",
        )
    if dry_run:
        return Volume(path, "")
    try:
        (path / OWN).mkdir(mode=0o700, exist_ok=True)
        durable.write(
            path / OWN / IDENTITY,
            json.dumps({"format": 1, "id": str(uuid.uuid4()), "places": {}}, indent=1),
            replace=False,
        )
    except FileExistsError:
        pass  # Another process has just created the file: the id in it is used.
    except OSError as error:
        raise refused(error, path) from error
    return Volume(path, str(_read(path)["id"]))


def is_mount(path: Path) -> bool:
    """Return whether the path is a mount point. The kernel's list of mounts includes bind mounts
    from the same file system, which `Path.is_mount` does not recognize."""
    try:
        known = system.mounts()
    except OSError:
        return path.is_mount()
    return any(point == str(path.resolve()) for point, _ in known)


def refused(error: OSError, path: Path) -> WorkspaceError:
    """Return a WorkspaceError with a hint for an error of the file system."""
    where = error.filename or path
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return WorkspaceError(
            f"There is no space left for {where}. The old home was not changed.",
            "Free some space, then try again.",
        )
    if error.errno == errno.EROFS:
        return WorkspaceError(
            f"{where} cannot be written: the file system is read-only.",
            "Mount it for writing, then try again.",
        )
    return WorkspaceError(
        f"{where}: {error.strerror or error}.",
        f"Check the rights of user {os.getuid()} there, then try again.",
    )


def _read(path: Path) -> dict[str, Any]:
    """Return the content of the identity file; {} if there is none. Raises WorkspaceError if it
    cannot be read."""
    file = path / OWN / IDENTITY
    try:
        found = json.loads(file.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise WorkspaceError(
            f"The identity file {file} cannot be read: {error}.",
            "Check whether another volume is mounted there.",
        ) from error
    if (
        not isinstance(found, dict)
        or not isinstance(found.get("id"), str)
        or found.get("format") != 1
    ):
        raise WorkspaceError(
            f"{file} is not an identity file of this version of perdure.",
            "Update perdure, or choose another volume.",
        )
    return found


def locked(state: Path) -> contextlib.AbstractContextManager[None]:
    """Prevent homes of this state directory from being moved, and attempts from starting, during
    the block. Raises Conflict if others prevent this for 2 seconds."""
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    return durable.lock(
        state / LOCK,
        "homes are being moved by another perdure, or an attempt is just starting",
        patience_s=2.0,
    )
