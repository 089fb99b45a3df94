"""Fetches the repository of the order for the agent's container: the two requests of git's protocol
over HTTP that read, with the credentials added.

The address comes from the order alone, and a push is a request that does not exist here. Redirects
are not followed, because the next server must not get the credentials. Bodies pass through
unchanged, in pieces.
"""

from __future__ import annotations

import base64
import http.client
import re
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

import msgspec

from perdure.host.git.servers import PORTS, proxy_of
from perdure.host.git.upload_pack import SERVICE, SILENT_S

CONNECT_S = 30.0
PIECE = 64 << 10
_PROTOCOL = re.compile(r"version=[0-9](:[a-z0-9=:-]{0,100})?")
_ENCODINGS = ("gzip", "deflate")
REQUEST = f"application/x-{SERVICE}-request"


class ForgeTrouble(Exception):
    """The server gave no answer that can be passed on. `status` is the relay's answer, and the
    message is a sentence about the reason."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class ForgeAnswer(msgspec.Struct, frozen=True):
    """The server's answer. `pieces` yields its content, while the connection is open."""

    kind: str
    pieces: Iterator[bytes]


class Upstream(msgspec.Struct, frozen=True):
    """The server of one repository. `login` is (user, secret), or None for a public one."""

    url: str
    login: tuple[str, str] | None
    environ: Mapping[str, str]
    ca_file: Path | None = None

    @contextmanager
    def refs(self, headers: Mapping[str, str]) -> Iterator[ForgeAnswer]:
        """Ask for the refs. Raises ForgeTrouble."""
        with self._asked("GET", f"/info/refs?service={SERVICE}", headers, None) as answer:
            yield answer

    @contextmanager
    def pack(self, headers: Mapping[str, str], body: Iterator[bytes]) -> Iterator[ForgeAnswer]:
        """Ask for objects. Raises ForgeTrouble."""
        with self._asked("POST", f"/{SERVICE}", headers, body) as answer:
            yield answer

    @contextmanager
    def _asked(
        self, verb: str, path: str, headers: Mapping[str, str], body: Iterator[bytes] | None
    ) -> Iterator[ForgeAnswer]:
        parts = urlsplit(self.url)
        line = self._line(parts.scheme, parts.hostname or "", parts.port)
        try:
            told = self._headers(headers, body is not None)
            line.request(verb, parts.path + path, body, told, encode_chunked=body is not None)
            if line.sock is not None:
                line.sock.settimeout(SILENT_S)
            answer = line.getresponse()
            _check(answer.status)
            kind = answer.getheader("Content-Type", "application/octet-stream")
            yield ForgeAnswer(kind, _pieces(answer))
        except ssl.SSLCertVerificationError as error:
            raise ForgeTrouble(
                http.HTTPStatus.FORBIDDEN,
                f"the certificate of {parts.hostname} is not valid: {error.verify_message}",
            ) from error
        except (OSError, http.client.HTTPException) as error:
            raise ForgeTrouble(
                http.HTTPStatus.BAD_GATEWAY,
                f"{parts.hostname} cannot be reached: {_words(error)}",
            ) from error
        finally:
            line.close()

    def _line(self, scheme: str, host: str, port: int | None) -> http.client.HTTPConnection:
        """Return a connection to the server, or to the proxy that the environment sets for it."""
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
        """Return the address of the proxy for a server; None without one."""
        proxy = proxy_of(scheme, host, self.environ)
        if not proxy:
            return None
        if "://" not in proxy:
            proxy = f"http://{proxy}"
        return urlsplit(proxy)

    def _headers(self, asked: Mapping[str, str], with_body: bool) -> dict[str, str]:
        """Return the headers for the server. Of git's own, only those pass that this protocol
        has."""
        told = {"User-Agent": "git/perdure-relay", "Accept": "*/*"}
        protocol = asked.get("Git-Protocol") or ""
        if _PROTOCOL.fullmatch(protocol):
            told["Git-Protocol"] = protocol
        if with_body:
            told |= {"Content-Type": REQUEST, "Transfer-Encoding": "chunked"}
            told["Accept"] = f"application/x-{SERVICE}-result"
            encoding = asked.get("Content-Encoding") or ""
            if encoding in _ENCODINGS:
                told["Content-Encoding"] = encoding
        if self.login is not None:
            told["Authorization"] = _basic(*self.login)
        return told


def _check(status: int) -> None:
    """Raise ForgeTrouble for an answer that is not the repository's content."""
    match status:
        case 200:
            return
        case 401 | 403:
            # git would ask for a login after a 401, and nobody here has one.
            raise ForgeTrouble(http.HTTPStatus.FORBIDDEN, "the server refused the credentials")
        case 404 | 410:
            raise ForgeTrouble(http.HTTPStatus.NOT_FOUND, "the server has no such repository")
        case 429 | 500 | 502 | 503 | 504:
            raise ForgeTrouble(status, f"the server answered with status {status}")
        case status if 300 <= status < 400:
            raise ForgeTrouble(
                http.HTTPStatus.FORBIDDEN,
                "the address redirects; give the repository's final address",
            )
        case _:
            raise ForgeTrouble(
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
