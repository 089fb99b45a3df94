"""Records which homes are on a volume, in the file `homes.json` of the state directory.

Code that asks a driver for the location of a home passes a `HomeEnvironment`: the user's
environment, plus the variables of linked homes that the user has not set. The file is checked at
every access, so a long-running supervisor notices when a home moves."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

import msgspec
from msgspec import Struct, field
from msgspec.structs import replace

from perdure.errors import StoreError, WorkspaceError
from perdure.host.homes import durable
from perdure.host.homes.volume import LOCK, volume_at
from perdure.model.codec import decode

FILE = "homes.json"
PATIENCE_S = 600.0
VARIABLE, LINK = "variable", "symlink"


class Linked(Struct, frozen=True, kw_only=True):
    """The record of one directory of an agent's home that is kept on a volume."""

    agent: str
    name: str
    volume: str
    """Directory of the volume."""
    volume_id: str
    target: str
    """Directory on the volume that contains the files."""
    place: str
    """Original directory, to which `unlink` returns the files."""
    way: str
    """How the agent finds the new location: `variable` (environment variable) or `symlink`."""
    variable: str
    value: str
    """Value to which attempts set the environment variable `variable`."""
    was: str
    """Directory that the environment variable named before the move. If the variable was not set,
    the agent's default directory."""
    beside: tuple[str, ...] = ()
    """Original paths of files of the home that were next to the directory, not in it."""
    leaving: bool = False
    """Whether `unlink` has begun to move the files back. All files are back when `place` is a
    directory again."""

    @property
    def is_linked(self) -> bool:
        """Whether `place` is a link to `target`."""
        place = Path(self.place)
        return (
            place.is_symlink() and os.path.normpath(place.parent / place.readlink()) == self.target
        )

    @property
    def is_home_again(self) -> bool:
        return self.leaving and Path(self.place).is_dir() and not Path(self.place).is_symlink()


class _Note(Struct, frozen=True):
    format: int = 1
    homes: list[Linked] = field(default_factory=list)


class LinkedHomes:
    """The file `homes.json` of a state directory. If the file does not exist, no home is linked."""

    def __init__(self, state: Path) -> None:
        self.file = state / FILE
        self._read: tuple[int, int, int] = (0, 0, 0)
        self._homes: tuple[Linked, ...] = ()

    def all(self) -> tuple[Linked, ...]:
        """Return all linked homes. Raises StoreError if the file cannot be read, because the
        location of the conversations is then unknown."""
        try:
            state = self.file.stat()
            version = (state.st_ino, state.st_mtime_ns, state.st_size)
            if version != self._read:
                note = decode(self.file.read_bytes(), _Note)
                if note.format != 1:
                    raise ValueError(f"format {note.format} is unknown")
                self._read, self._homes = version, tuple(note.homes)
        except (FileNotFoundError, NotADirectoryError):
            self._read, self._homes = (0, 0, 0), ()
        except (OSError, ValueError, msgspec.MsgspecError) as error:
            raise StoreError(
                f"{self.file}, which says where the agents' homes are, cannot be read: {error}.",
                "perdure home status",
                transient=False,
            ) from error
        return self._homes

    def of(self, agent: str) -> tuple[Linked, ...]:
        """Return the linked directories of an agent. An agent that is used over ACP has the same
        home as the agent itself."""
        return tuple(home for home in self.all() if home.agent == agent.removeprefix("acp-"))

    def one(self, name: str) -> Linked | None:
        for home in self.all():
            if home.name == name:
                return home
        return None

    def put(self, home: Linked) -> None:
        self._write([*(other for other in self.all() if other.name != home.name), home])

    def leaving(self, home: Linked) -> Linked:
        marked = replace(home, leaving=True)
        self.put(marked)
        return marked

    def forget(self, name: str) -> None:
        self._write([home for home in self.all() if home.name != name])

    def _write(self, homes: list[Linked]) -> None:
        durable.write(
            self.file,
            msgspec.json.format(
                msgspec.json.encode(_Note(homes=sorted(homes, key=lambda home: home.name)))
            ).decode(),
        )

    def still(self) -> AbstractContextManager[None]:
        """Prevent homes from being moved during the block. Used by callers that look up a home and
        then start the agent. Waits until a move in progress has ended. Raises Conflict if the move
        takes longer than `PATIENCE_S` seconds."""
        self.file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return durable.lock(
            self.file.with_name(LOCK),
            "homes are being moved to a volume",
            shared=True,
            patience_s=PATIENCE_S,
        )

    def check(self, agent: str) -> None:
        """Raise WorkspaceError if the volume of the agent's home is missing or cannot be written
        to. Without this check, the agent could start with an empty directory, or report success
        without saving anything."""
        for home in self.of(agent):
            if home.is_home_again:
                continue
            volume_at(Path(home.volume), wanted=home.volume_id)
            if home.way == LINK and not home.is_linked:
                again = f"perdure home link --symlink --volume {home.volume} {home.agent}"
                raise WorkspaceError(f"{home.place} is not a link to the volume.", again)
            if not os.access(home.target, os.W_OK | os.X_OK):
                raise WorkspaceError(
                    f"The home of {home.agent}, {home.target}, is not there or cannot be written.",
                    "perdure home verify",
                )


class _Listed(threading.local):
    """The variables that this thread has listed in `HomeEnvironment.__iter__` but has not read yet,
    with their values."""

    def __init__(self) -> None:
        self.found: dict[str, str] = {}


class HomeEnvironment(Mapping[str, str]):
    """The user's environment, plus the variables of linked homes. A variable that the user has set
    to another directory keeps the user's value.

    A copy (`{**environ}`) first lists the names and then reads each value. If a home is unlinked in
    between, its variable keeps the value that it had when the names were listed.
    """

    def __init__(self, state: Path, own: Mapping[str, str]) -> None:
        self._own = own
        self._note = LinkedHomes(state)
        self._listed = _Listed()

    def _set(self) -> dict[str, str]:
        found = {}
        for home in self._note.all():
            given = self._own.get(home.variable)
            if (
                home.way == VARIABLE
                and not home.is_home_again
                and (not given or os.path.normpath(given) == home.was)
            ):
                found[home.variable] = home.value
        return found

    def __getitem__(self, name: str) -> str:
        listed, found = self._listed.found.pop(name, None), self._set()
        if name in found:
            return found[name]
        if listed is None or name in self._own:
            return self._own[name]
        return listed

    def __iter__(self) -> Iterator[str]:
        self._listed.found = self._set()
        return iter({**self._own, **self._listed.found})

    def __len__(self) -> int:
        return len({**self._own, **self._set()})
