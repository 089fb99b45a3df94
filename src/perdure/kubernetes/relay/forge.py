"""Fetches the repository of the order for the agent's container, and adds the credentials. Called
by the relay's `server`, to which the agent's container talks in git's protocol over HTTP.

`Upstream` fetches over HTTP. It sends only the two read requests of git's protocol, so a push is
impossible. The address comes only from the order. Redirects are not followed, because the next
server must not get the credentials. Bodies are passed on unchanged, in pieces.

`SshUpstream` fetches by ssh. Each request opens a new ssh connection
(`perdure.host.git.upload_pack`). ssh uses the key and the known hosts of the Secret, and no
configuration file. The command on the server is `git-upload-pack` with the path of the repository
in the order. This command can only read.
"""

from __future__ import annotations

import base64
import http
import http.client
import re
import ssl
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

import msgspec

from perdure.errors import GitFailed, UsageError
from perdure.host.git.environment import Ssh
from perdure.host.git.output import unreachable
from perdure.host.git.servers import PORTS, host_of, proxy_of
from perdure.host.git.upload_pack import SERVICE, SILENT_S, VERSION, UploadPack, connected

CONNECT_S = 30.0
PIECE = 64 << 10
_PROTOCOL = re.compile(r"version=[0-9](:[a-z0-9=:-]{0,100})?")
_ENCODINGS = ("gzip", "deflate")
REQUEST = f"application/x-{SERVICE}-request"


class UpstreamError(Exception):
    """Raised when the repository's server gave no usable answer. `status` is the HTTP status that
    the relay returns; the message gives the reason."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class ForgeAnswer(msgspec.Struct, frozen=True):
    """The answer of the repository's server. `kind` is the content type. `pieces` yields the
    content, and may be read only while the connection is open."""

    kind: str
    pieces: Iterator[bytes]


class Upstream(msgspec.Struct, frozen=True):
    """The HTTP server of one repository. `login` is a pair of user and secret; None for a public
    repository."""

    url: str
    login: tuple[str, str] | None
    environ: Mapping[str, str]
    ca_file: Path | None = None

    @contextmanager
    def refs(self, headers: Mapping[str, str]) -> Iterator[ForgeAnswer]:
        """Request the list of refs, and yield the answer. Raises UpstreamError."""
        with self._asked("GET", f"/info/refs?service={SERVICE}", headers, None) as answer:
            yield answer

    @contextmanager
    def pack(self, headers: Mapping[str, str], body: Iterator[bytes]) -> Iterator[ForgeAnswer]:
        """Request objects, and yield the answer. Raises UpstreamError."""
        with self._asked("POST", f"/{SERVICE}", headers, body) as answer:
            yield answer

    @contextmanager
    def _asked(
        self, verb: str, path: str, headers: Mapping[str, str], body: Iterator[bytes] | None
    ) -> Iterator[ForgeAnswer]:
        parts = urlsplit(self.url)
        line = self._line(parts.scheme, parts.hostname or "", parts.port)
        try:
            sent = self._headers(headers, body is not None)
            line.request(verb, parts.path + path, body, sent, encode_chunked=body is not None)
            if line.sock is not None:
                line.sock.settimeout(SILENT_S)
            answer = line.getresponse()
            _check(answer.status)
            kind = answer.getheader("Content-Type", "application/octet-stream")
            yield ForgeAnswer(kind, _pieces(answer))
        except ssl.SSLCertVerificationError as error:
            raise UpstreamError(
                http.HTTPStatus.FORBIDDEN,
                f"the certificate of {parts.hostname} is not valid: {error.verify_message}",
            ) from error
        except (OSError, http.client.HTTPException) as error:
            raise UpstreamError(
                http.HTTPStatus.BAD_GATEWAY,
                f"{parts.hostname} cannot be reached: {_words(error)}",
            ) from error
        finally:
            line.close()

    def _line(self, scheme: str, host: str, port: int | None) -> http.client.HTTPConnection:
        """Return a connection to the server. It goes through the proxy that the environment sets
        for the server, if any."""
        place, via = (host, port or PORTS[scheme]), self._proxy(scheme, host)
        first = place
        if via is not None:
            first = (via.hostname or "", via.port or PORTS["http"])
        line: http.client.HTTPConnection
        if scheme == "https":
            context = ssl.create_default_context(cafile=self.ca_file)
            line = http.client.HTTPSConnection(*first, timeout=CONNECT_S, context=context)
        else:
            line = http.client.HTTPConnection(*first, timeout=CONNECT_S)
        if via is not None:
            line.set_tunnel(*place, _proxy_login(via.username, via.password))
        return line

    def _proxy(self, scheme: str, host: str) -> SplitResult | None:
        """Return the address of the proxy for a server; None if the environment sets none."""
        proxy = proxy_of(scheme, host, self.environ)
        if not proxy:
            return None
        if "://" not in proxy:
            proxy = f"http://{proxy}"
        return urlsplit(proxy)

    def _headers(self, asked: Mapping[str, str], with_body: bool) -> dict[str, str]:
        """Return the headers for the server. Of the client's headers only Git-Protocol and
        Content-Encoding are passed on, and only with known values."""
        sent = {"User-Agent": "git/perdure-relay", "Accept": "*/*"}
        protocol = asked.get("Git-Protocol") or ""
        if _PROTOCOL.fullmatch(protocol):
            sent["Git-Protocol"] = protocol
        if with_body:
            sent |= {"Content-Type": REQUEST, "Transfer-Encoding": "chunked"}
            sent["Accept"] = f"application/x-{SERVICE}-result"
            encoding = asked.get("Content-Encoding") or ""
            if encoding in _ENCODINGS:
                sent["Content-Encoding"] = encoding
        if self.login is not None:
            sent["Authorization"] = _basic(*self.login)
        return sent


def _check(status: int) -> None:
    """Raise UpstreamError for a status that does not mean success."""
    match status:
        case 200:
            return
        case 401 | 403:
            # A 401 would make git in the agent's container ask for a login, and nobody there could
            # give one. So the relay answers 403.
            raise UpstreamError(http.HTTPStatus.FORBIDDEN, "the server refused the credentials")
        case 404 | 410:
            raise UpstreamError(http.HTTPStatus.NOT_FOUND, "the server has no such repository")
        case 429 | 500 | 502 | 503 | 504:
            raise UpstreamError(status, f"the server answered with status {status}")
        case status if 300 <= status < 400:
            raise UpstreamError(
                http.HTTPStatus.FORBIDDEN,
                "the address redirects; give the repository's final address",
            )
        case _:
            raise UpstreamError(
                http.HTTPStatus.FORBIDDEN, f"the server answered with status {status}"
            )


def _pieces(answer: http.client.HTTPResponse) -> Iterator[bytes]:
    while piece := answer.read1(PIECE):
        yield piece


def _basic(user: str, secret: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{secret}".encode()).decode()


def _proxy_login(user: str | None, secret: str | None) -> dict[str, str]:
    if not user:
        return {}
    return {"Proxy-Authorization": _basic(unquote(user), unquote(secret or ""))}


def _words(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error or type(error).__name__)[:300]


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
            yield ForgeAnswer(f"application/x-{SERVICE}-result", _pack_pieces(first, line))

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


def _pack_pieces(first: bytes, line: UploadPack) -> Iterator[bytes]:
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
    if encoding not in _ENCODINGS:
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
