"""Connects by ssh to `git-upload-pack` on a server, and speaks version 2 of git's protocol.

The relay of a pod uses this module: the agent's container fetches from the relay by HTTP, and the
relay fetches from the server by ssh. In version 2, requests and responses are the same over HTTP
and ssh (gitprotocol-v2(5)), and each request can have a connection of its own. Versions 0 and 1
keep state across several requests, so they are refused.
"""

from __future__ import annotations

import os
import re
import select
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from perdure.errors import GitFailed, UsageError
from perdure.host.git.environment import Ssh
from perdure.host.git.output import failure
from perdure.host.git.servers import host_of, parts_of

SERVICE = "git-upload-pack"
VERSION = "version=2"
"""Value of the variable GIT_PROTOCOL, which requests version 2."""
SILENT_S = 300.0
"""Timeout for the next bytes from the server, in seconds. It is long because the server may first
have to pack a large repository."""
_PIECE = 64 << 10
_FLUSH = b"0000"
_LONGEST_GREETING = 64 << 10
_LONGEST_WORDS = 8 << 10
"""Maximum number of bytes of ssh's messages that are kept."""


@contextmanager
def connected(url: str, ssh: Ssh, environ: Mapping[str, str]) -> Iterator[UploadPack]:
    """Yield a connection to a repository, and close it after the block. `parse_remote` must have
    checked the URL. ssh gets only the variables PATH and GIT_PROTOCOL."""
    with subprocess.Popen(
        command(url, ssh),
        env={"PATH": environ.get("PATH", os.defpath), "GIT_PROTOCOL": VERSION},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        found = UploadPack(process, host_of(url))
        try:
            yield found
        finally:
            found.close()


def command(url: str, ssh: Ssh) -> list[str]:
    """Return the ssh command for a URL `ssh://user@host/path` or `user@host:path`."""
    parts = parts_of(url)
    path = parts.path
    if "://" not in url:
        path = url.partition(":")[2]
    elif path.startswith("/~"):
        path = path[1:]
    place = parts.hostname or ""
    if parts.username:
        place = f"{parts.username}@{place}"
    port = ["-p", str(parts.port)] if parts.port else []
    # git-shell requires single quotes around the path. `parse_remote` accepts no path that contains
    # one.
    return [*ssh.words(), "-oSendEnv=GIT_PROTOCOL", *port, "--", place, f"{SERVICE} '{path}'"]


class UploadPack:
    """A connection to a server. If it breaks, its methods raise GitFailed with the reason that ssh
    printed."""

    def __init__(self, process: subprocess.Popen[bytes], host: str) -> None:
        assert process.stdin is not None and process.stdout is not None
        self.process, self.host = process, host
        self._to, self._from = process.stdin, process.stdout
        self._words = b""
        self._reader = threading.Thread(target=self._listen, daemon=True)
        self._reader.start()

    def greeting(self) -> bytes:
        """Return the server's first message: the protocol version and its capabilities. Raises
        UsageError if the server does not use version 2."""
        found = b""
        while True:
            size = self._exactly(4)
            if not re.fullmatch(rb"[0-9a-f]{4}", size) or _FLUSH < size < b"0005":
                raise self._wrong_version()
            found += size + self._exactly(max(int(size, 16) - 4, 0))
            if not found[4:].startswith(b"version 2") or len(found) > _LONGEST_GREETING:
                raise self._wrong_version()
            if size == _FLUSH:
                return found

    def send(self, body: Iterator[bytes]) -> None:
        """Send a request and close the sending side of the connection. So each connection can be
        used for only one request."""
        for piece in body:
            try:
                self._to.write(piece)
            except OSError as error:
                raise self.trouble() from error
        try:
            self._to.close()
        except OSError as error:
            raise self.trouble() from error

    def read(self, size: int = _PIECE) -> bytes:
        """Return the next bytes of the response; empty at its end. Raises GitFailed if no bytes
        arrive within `SILENT_S`."""
        if select.select([self._from], [], [], SILENT_S)[0]:
            return os.read(self._from.fileno(), size)
        self._words = f"Timeout, server {self.host} not responding.".encode()
        self.process.kill()
        raise self.trouble()

    def trouble(self) -> GitFailed:
        """Wait for ssh to exit. Return an error with the reason that it printed."""
        code = self.process.wait()
        self._reader.join()
        return failure(("ssh",), ("ssh",), Path("/"), code, self._words)

    def close(self) -> None:
        self.process.kill()
        with suppress(OSError):
            self._to.close()

    def _exactly(self, size: int) -> bytes:
        found = b""
        while len(found) < size:
            piece = self.read(size - len(found))
            if not piece:
                raise self.trouble()
            found += piece
        return found

    def _listen(self) -> None:
        """Read ssh's messages until they end, so that ssh never blocks on a full pipe. Keep only
        the first `_LONGEST_WORDS` bytes."""
        assert self.process.stderr is not None
        with suppress(OSError, ValueError):
            while piece := os.read(self.process.stderr.fileno(), _PIECE):
                self._words = (self._words + piece)[:_LONGEST_WORDS]

    def _wrong_version(self) -> UsageError:
        return UsageError(
            f"{self.host} does not offer version 2 of git's protocol by ssh",
            "a plain sshd needs AcceptEnv GIT_PROTOCOL",
        )
