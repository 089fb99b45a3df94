"""The address of a pod's relay. The relay is the process that holds credentials that the agent must
not have.

The relay (`perdure.kubernetes.relay`) runs in a container of its own. It listens on 127.0.0.1,
which all containers of a pod share, and writes its address to a directory that the agent's
container can only read. `workspace` fetches repositories through the relay, and `capsule` reads and
writes checkpoints through it. The file is read before each use, because the relay has another port
after a restart.
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
"""Timeout for the start of the relay at the beginning of an attempt, in seconds."""
POLL_S = 0.05
LONGEST = 64 << 10
"""Maximum size of the address file, in bytes."""
HINT = "see the log of the container relay of this pod"


class RelayAddress(msgspec.Struct, frozen=True, kw_only=True):
    """The address of a relay (port and secret path), and the services that it offers."""

    port: int = 0
    secret: str = msgspec.field(default="", name="word")
    """Random text in the URL that authenticates requests; the relay answers no request without
    it."""
    repository: bool = False
    """Whether the agent's container fetches the repository through the relay."""
    store: str = ""
    """URL of the checkpoint store that the relay reads and writes; empty for none."""
    error: str = ""
    """Sentence that says why the relay offers no service (for example, an invalid Secret). Empty if
    it offers one."""
    hint: str = ""

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}/{self.secret}/{path}"


def read(directory: Path) -> RelayAddress:
    """Return the address of the relay from a directory. Raises FileNotFoundError if there is none
    yet. Raises UsageError if the file is invalid, or if the relay reports an error in it."""
    with (directory / FILE).open("rb") as file:
        content = file.read(LONGEST)
    try:
        found = msgspec.json.decode(content, type=resolved(RelayAddress))
    except msgspec.DecodeError as error:  # DecodeError is the base class of ValidationError
        raise UsageError(f"the address of this pod's relay is not valid: {error}", HINT) from error
    if found.error:
        raise UsageError(found.error, found.hint)
    return found


def wait(directory: Path, patience_s: float = PATIENCE_S) -> RelayAddress:
    """Wait until the relay has written its address, and return it. Raises StoreAway after
    `patience_s` seconds, and UsageError like `read`."""
    until = time.monotonic() + patience_s
    while True:
        try:
            return read(directory)
        except OSError as error:
            if time.monotonic() >= until:
                raise StoreAway("the relay of this pod did not start", HINT) from error
        time.sleep(POLL_S)


def write(directory: Path, address: RelayAddress) -> None:
    """Write the address to the file in one step. A reader finds either the whole file or none."""
    new = directory / f".{FILE}"
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o640)
    with os.fdopen(fd, "wb") as file:
        file.write(msgspec.json.encode(address))
    new.replace(directory / FILE)
