"""Fetches the repository of the order by ssh for the agent's container. The agent's container
itself talks to the relay in git's protocol over HTTP.

Each request opens a new ssh connection (`perdure.host.git.upload_pack`). ssh uses the key and the
known hosts of the Secret, and no configuration file. The command on the server is `git-upload-pack`
with the path of the repository in the order. This command can only read.
"""

from __future__ import annotations

import http
import re
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import msgspec

from perdure.errors import GitFailed, UsageError
from perdure.host.git.output import unreachable
from perdure.host.git.servers import host_of
from perdure.host.git.ssh import Ssh
from perdure.host.git.upload_pack import SERVICE, VERSION, UploadPack, connected
from perdure.kubernetes.relay.forge import PIECE, ForgeAnswer, UpstreamError

_ABSENT = re.compile(
    "does not appear to be a git repository|repository .*not found|does not exist", re.IGNORECASE
)


class SshUpstream(msgspec.Struct, frozen=True):
    """The ssh server of one repository. `url` is `ssh://user@host/path` or `user@host:path`."""

    url: str
    ssh: Ssh
    environ: Mapping[str, str]

    @contextmanager
    def refs(self, headers: Mapping[str, str]) -> Iterator[ForgeAnswer]:
        """Request the server's capabilities, and yield the answer. Raises UpstreamError."""
        with self._connected(headers) as line:
            kind = f"application/x-{SERVICE}-advertisement"
            yield ForgeAnswer(kind, iter([line.greeting()]))

    @contextmanager
    def pack(self, headers: Mapping[str, str], body: Iterator[bytes]) -> Iterator[ForgeAnswer]:
        """Send a request for refs or objects, and yield the answer. Raises UpstreamError."""
        with self._connected(headers) as line:
            line.greeting()
            line.send(_plain(body, headers.get("Content-Encoding") or ""))
            first = line.read()
            if not first:
                raise line.trouble()
            yield ForgeAnswer(f"application/x-{SERVICE}-result", _pieces(first, line))

    @contextmanager
    def _connected(self, headers: Mapping[str, str]) -> Iterator[UploadPack]:
        if VERSION not in (headers.get("Git-Protocol") or "").split(":"):
            raise UpstreamError(
                http.HTTPStatus.FORBIDDEN,
                "over ssh, only version 2 of git's protocol is supported",
            )
        try:
            with connected(self.url, self.ssh, self.environ) as line:
                yield line
        except UsageError as error:
            raise UpstreamError(http.HTTPStatus.FORBIDDEN, f"{error} ({error.hint})") from error
        except GitFailed as error:
            raise _trouble(host_of(self.url), error) from error


def _pieces(first: bytes, line: UploadPack) -> Iterator[bytes]:
    yield first
    while piece := line.read():
        yield piece


def _trouble(host: str, error: GitFailed) -> UpstreamError:
    said = error.stderr
    if "Host key verification failed" in said:
        words = f"the key of {host} is not in known_hosts of the Secret"
    elif re.search("Load key|invalid format|error in libcrypto", said):
        words = "ssh cannot read ssh-privatekey of the Secret; it needs one without a passphrase"
    elif "Permission denied (" in said:
        words = f"{host} refused the key of the Secret"
    elif _ABSENT.search(said):
        return UpstreamError(http.HTTPStatus.NOT_FOUND, "the server has no such repository")
    elif unreachable(error) or not said:
        words = f"{host} cannot be reached by ssh: {_last(said)}"
        return UpstreamError(http.HTTPStatus.BAD_GATEWAY, words)
    else:
        words = f"{host} refused by ssh: {_last(said)}"
    return UpstreamError(http.HTTPStatus.FORBIDDEN, words)


def _last(said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    if lines:
        return lines[-1][:300]
    return "the connection ended"


def _plain(body: Iterator[bytes], encoding: str) -> Iterator[bytes]:
    """Yield the body of a request, decompressed if git compressed it for HTTP. Raises UpstreamError
    if it cannot be decompressed."""
    if encoding not in ("gzip", "deflate"):
        yield from body
        return
    # Adding 32 makes zlib detect the header of either format, gzip or deflate.
    unpacked = zlib.decompressobj(32 + zlib.MAX_WBITS)
    try:
        for piece in body:
            left = piece
            while left:
                yield unpacked.decompress(left, PIECE)
                left = unpacked.unconsumed_tail
        yield unpacked.flush()
    except zlib.error as error:
        raise UpstreamError(
            http.HTTPStatus.BAD_REQUEST, f"the request is broken: {error}"
        ) from error
