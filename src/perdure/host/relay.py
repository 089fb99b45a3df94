"""The address of a pod's relay: the process that holds credentials which the agent must not have.

The relay (`perdure.kubernetes.relay`) runs in a container of its own. It listens on 127.0.0.1,
which the containers of a pod share, and writes its address into a directory that the agent's
container can only read. `workspace` fetches through it, and `capsule` reads and writes checkpoints
through it. The file is read before each use, because a relay that was restarted has another port.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import msgspec

from perdure.errors import StoreAway, UsageError
from perdure.model.codec import resolved

FILE = "address.json"
PATIENCE_S = 60.0
"""Seconds to wait for the relay at the beginning of an attempt."""
POLL_S = 0.05
LONGEST = 64 << 10
"""Maximum size of the file in bytes."""
HINT = "see the log of the container relay of this pod"


class RelayAddress(msgspec.Struct, frozen=True, kw_only=True):
    """The address of a relay, and the services that it offers."""

    port: int = 0
    word: str = ""
    """A random word, without which the relay answers no request."""
    repository: bool = False
    """Whether it fetches the repository."""
    store: str = ""
    """URL of the checkpoint store that it reads and writes; empty for none."""
    error: str = ""
    """Why it offers nothing, as a sentence: a Secret is not valid."""
    hint: str = ""

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}/{self.word}/{path}"


def read(directory: Path) -> RelayAddress:
    """Return the address in a directory. Raises FileNotFoundError, and UsageError if the relay
    found its Secrets or its order invalid."""
    with (directory / FILE).open("rb") as file:
        content = file.read(LONGEST)
    try:
        found = msgspec.json.decode(content, type=resolved(RelayAddress))
    except msgspec.DecodeError as error:  # ValidationError is one
        raise UsageError(f"the address of this pod's relay is not valid: {error}", HINT) from error
    if found.error:
        raise UsageError(found.error, found.hint)
    return found


def wait(directory: Path, patience_s: float = PATIENCE_S) -> RelayAddress:
    """Return the address as soon as the relay has written it. Raises StoreAway when the time is
    over, and UsageError as `read` does."""
    until = time.monotonic() + patience_s
    while True:
        try:
            return read(directory)
        except OSError as error:
            if time.monotonic() >= until:
                raise StoreAway("the relay of this pod did not start", HINT) from error
        time.sleep(POLL_S)


def write(directory: Path, address: RelayAddress) -> None:
    """Write the address. A reader finds the whole file or none."""
    new = directory / f".{FILE}"
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o640)
    with os.fdopen(fd, "wb") as file:
        file.write(msgspec.json.encode(address))
    new.replace(directory / FILE)
