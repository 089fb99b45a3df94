"""Wakes a worker pool when work becomes due, so that it does not have to poll the store at short
intervals.

Every pool of a state directory has a bell: a datagram socket below `bells/`. A process that submits
work rings all of them. The message contains no data and may be lost, because each pool also checks
the store once a second.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
from collections.abc import Iterator
from pathlib import Path


class Bell:
    """The bell of one worker pool. `ring` may be called from any thread and from a signal
    handler."""

    def __init__(self, state: Path) -> None:
        directory = _directory(state)
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._path = directory / str(os.getpid())
        self._path.unlink(missing_ok=True)
        from perdure.host.system.sockets import short_path

        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        with short_path(directory) as short:
            self._socket.bind(f"{short}/{self._path.name}")
        self._own_end, self._own = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        for end in (self._socket, self._own_end, self._own):
            end.setblocking(False)

    def ring(self) -> None:
        """Wake this pool."""
        _kick(self._own)

    def wait(self, timeout_s: float) -> None:
        """Wait until the bell rings, or until `timeout_s` has passed. Returns at once if the bell
        rang before the call."""
        # poll is used, because select fails for descriptors above 1023, which a busy server has.
        ready = select.poll()
        for end in (self._socket, self._own_end):
            ready.register(end, select.POLLIN)
        ready.poll(1 + int(timeout_s * 1000))
        for end in (self._socket, self._own_end):
            with contextlib.suppress(BlockingIOError):
                while end.recv(16):
                    pass

    def close(self) -> None:
        self._path.unlink(missing_ok=True)
        for end in (self._socket, self._own_end, self._own):
            end.close()


def ring(state: Path) -> None:
    """Ring all bells of a state directory, because a run has become due that no pool works on yet.
    Never raises."""
    for bell in _bells(state):
        try:
            with _connected(bell) as end:
                _kick(end)
        except ConnectionRefusedError:
            # Nothing listens on this socket: its pool was killed.
            bell.unlink(missing_ok=True)
        except OSError:
            continue


def has_pool(state: Path) -> bool:
    """Return whether a living worker pool takes its runs from this state directory. Changes
    nothing, and never raises."""
    for bell in _bells(state):
        with contextlib.suppress(OSError), _connected(bell):
            return True
    return False


def _bells(state: Path) -> list[Path]:
    try:
        return list(_directory(state).iterdir())
    except OSError:
        return []


@contextlib.contextmanager
def _connected(bell: Path) -> Iterator[socket.socket]:
    """Yield a socket that is connected to a bell. Raises OSError."""
    from perdure.host.system.sockets import short_path

    with (
        short_path(bell.parent) as short,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end,
    ):
        end.setblocking(False)
        end.connect(f"{short}/{bell.name}")
        yield end


def _directory(state: Path) -> Path:
    return state / "bells"


def _kick(end: socket.socket) -> None:
    with contextlib.suppress(BlockingIOError):
        end.send(b"!")
