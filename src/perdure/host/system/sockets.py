"""Local sockets for messages with descriptors between an owner and its keeper. Also finds out which
process is at the other end of a socket.

macOS has neither SOCK_SEQPACKET for local sockets nor SO_PEERCRED. So the portable variant uses a
stream, with the length before each message.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import tempfile
from array import array
from collections.abc import Collection, Iterator
from pathlib import Path

from perdure.host import system

MESSAGE = 1 << 16
"""Maximum size of a message, in bytes."""
_HEAD = 4
_MOST_DESCRIPTORS = 2
_LONGEST = 80
"""Maximum length of a directory's path, in bytes. Longer paths leave no room for a file name in a
socket's address."""
_SOL_LOCAL, _LOCAL_PEERPID = 0, 2
"""Level and option of getsockopt(2) on macOS (sys/un.h)."""


class OwnerChannel:
    """One end of a connection that preserves message boundaries and passes descriptors."""

    def __init__(self, end: socket.socket) -> None:
        self.socket = end
        self._framed = end.type != socket.SOCK_SEQPACKET
        self._read = b""
        self._descriptors: list[int] = []
        self._is_over = False

    @classmethod
    def pair(cls) -> tuple[OwnerChannel, OwnerChannel]:
        if system.IS_PORTABLE:
            kind = socket.SOCK_STREAM
        else:
            kind = socket.SOCK_SEQPACKET
        one, other = socket.socketpair(socket.AF_UNIX, kind)
        return cls(one), cls(other)

    def send(self, message: bytes, descriptors: Collection[int] = ()) -> None:
        """Send a message and descriptors. Raises OSError."""
        if self._framed:
            framed = len(message).to_bytes(_HEAD, "big") + message
        else:
            framed = message
        if descriptors:
            socket.send_fds(self.socket, [framed], list(descriptors))
        else:
            self.socket.send(framed)

    def receive(self) -> tuple[bytes, list[int]]:
        """Return the next message and its descriptors, without waiting. The message is b"" if the
        other end has closed the connection. Raises BlockingIOError if no message has arrived, and
        OSError if the connection is broken."""
        if not self._framed:
            return self._receive()
        while not self._is_over and not self._is_whole():
            piece, descriptors = self._receive()
            self._read += piece
            self._descriptors += descriptors
            self._is_over = not piece
        if not self._is_whole():
            return b"", []
        end = _HEAD + int.from_bytes(self._read[:_HEAD], "big")
        message, self._read = self._read[_HEAD:end], self._read[end:]
        # Descriptors never arrive before the first byte of their message. A sender also waits for
        # an answer after each message with descriptors. So all descriptors that have arrived belong
        # to this message.
        passed, self._descriptors = self._descriptors, []
        return message, passed

    def _receive(self) -> tuple[bytes, list[int]]:
        # recvmsg is called directly, because socket.recv_fds of Python 3.11 passes no flags to it.
        room = socket.CMSG_LEN(_MOST_DESCRIPTORS * array("i").itemsize)
        piece, ancillary, _, _ = self.socket.recvmsg(MESSAGE, room, socket.MSG_DONTWAIT)
        found = array("i")
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                found.frombytes(content[: len(content) - len(content) % found.itemsize])
        return piece, list(found)

    def is_pending(self) -> bool:
        """Return whether another whole message has already been read from the socket. poll(2) does
        not report such a message."""
        return self._framed and self._is_whole()

    def _is_whole(self) -> bool:
        head = self._read[:_HEAD]
        return len(head) == _HEAD and len(self._read) >= _HEAD + int.from_bytes(head, "big")

    def fileno(self) -> int:
        return self.socket.fileno()

    def close(self) -> None:
        self.socket.close()


def peer(client: socket.socket) -> tuple[int, int]:
    """Return the process id and user id of the other end of a local socket. Raises OSError."""
    if hasattr(socket, "SO_PEERCRED"):
        credentials = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        pid, uid, _ = struct.unpack("3i", credentials)
        return pid, uid
    pid = client.getsockopt(_SOL_LOCAL, _LOCAL_PEERPID)
    return pid, system.user(pid)


@contextlib.contextmanager
def short_path(directory: Path) -> Iterator[str]:
    """Yield a path of the directory that is short enough for a socket's address. The limit is 108
    bytes on Linux and 104 on macOS."""
    if not system.IS_PORTABLE:
        # This path is valid only in this process. It contains no directory name, so no other
        # process can redirect it.
        fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield f"/proc/self/fd/{fd}"
        finally:
            os.close(fd)
        return
    if len(os.fsencode(directory)) <= _LONGEST:
        yield str(directory)
        return
    with tempfile.TemporaryDirectory(prefix="pd-", dir="/tmp") as above:
        link = Path(above, "d")
        link.symlink_to(directory.absolute())
        yield str(link)
