"""The relay's HTTP server. It accepts requests of the agent's container on 127.0.0.1.

    GET  /{secret}/git/info/refs?service=git-upload-pack      refs of the repository
    POST /{secret}/git/git-upload-pack                        objects of the repository
    GET  /{secret}/names/{prefix}                             names in the checkpoint store
    GET, HEAD, PUT, POST /{secret}/objects/{key}              an object in the store

POST creates an object and never replaces one. PUT may replace one.

`{secret}` is a random text in the relay's address. Any other request gets 404 or 403. The client
is not trusted: sizes are limited, and no part of a request is used in an address or a file name
before it has matched a strict pattern.
"""

from __future__ import annotations

import hmac
import http
import re
import secrets
import socket
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import msgspec

from perdure.capsule.objects import TooLarge
from perdure.errors import PerdureError
from perdure.host.git.upload_pack import SERVICE
from perdure.host.relay import RelayAddress
from perdure.kubernetes.relay.forge import PIECE, ForgeAnswer, SshUpstream, Upstream, UpstreamError
from perdure.kubernetes.relay.store_access import RelayRefused, RunStoreAccess, longest
from perdure.rules.text import one_line, write_stderr

IDLE_S = 600.0
LONGEST_REQUEST = 1 << 30
"""Maximum size in bytes of a request of git. A request for a repository with many refs takes some
megabytes."""
LONGEST_LINE = 1_000
WORDS_MOST = 1_000


class RelayServer(ThreadingHTTPServer):
    """The relay's HTTP server in one pod. `forge` is None if the pod needs no credentials for the
    repository, and `store_access` is None if it needs none for the checkpoint store."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, forge: Upstream | SshUpstream | None, access: RunStoreAccess | None) -> None:
        self.forge, self.store_access = forge, access
        self.secret = secrets.token_urlsafe(24)
        super().__init__(("127.0.0.1", 0), _Requests)

    def address(self) -> RelayAddress:
        """Return the address that the agent's container needs."""
        return RelayAddress(
            port=self.server_port,
            secret=self.secret,
            repository=self.forge is not None,
            store=self.store_access.store.url if self.store_access is not None else "",
        )

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Report only the type of an unexpected error, because its details may contain a secret."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            write_stderr(f"perdure: relay: {type(error).__name__} in a request")


class _Requests(BaseHTTPRequestHandler):
    """Handles one connection from the agent's container."""

    protocol_version = "HTTP/1.1"
    timeout = IDLE_S
    server: RelayServer

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing, because the paths contain the relay's secret."""

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_PUT = do_POST = do_GET  # noqa: N815

    def _answer(self) -> None:
        # Close the connection after each request. Otherwise an unread body would be parsed as the
        # next request.
        self.close_connection = True
        _, secret, room, path = [*self.path.split("/", 3), "", "", ""][:4]
        if not hmac.compare_digest(secret.encode(), self.server.secret.encode()):
            self._say(http.HTTPStatus.NOT_FOUND, "not found")
            return
        try:
            match room:
                case "git" if self.server.forge is not None:
                    self._git(self.server.forge, path)
                case "names" if self.server.store_access is not None and self.command == "GET":
                    found = self.server.store_access.names(path)
                    self._say(http.HTTPStatus.OK, msgspec.json.encode(found))
                case "objects" if self.server.store_access is not None:
                    self._object(self.server.store_access, path)
                case _:
                    raise RelayRefused("this relay has nothing of that name")
        except RelayRefused as error:
            write_stderr(one_line(f"perdure: relay: refused: {self.command} {room}/{path}", 200))
            self._say(http.HTTPStatus.FORBIDDEN, str(error))
        except UpstreamError as error:
            write_stderr(one_line(f"perdure: relay: {error}", 300))
            self._say(error.status, f"perdure: {error}")
        except FileNotFoundError:
            self._say(http.HTTPStatus.NOT_FOUND, "not found")
        except FileExistsError:
            self._say(http.HTTPStatus.CONFLICT, "it exists already")
        except TooLarge:
            self._say(http.HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "it is too large")
        except (ConnectionError, TimeoutError):
            raise
        except Exception as error:  # obstore raises errors of its own classes, not of perdure.
            words = str(error) if isinstance(error, PerdureError) else _first(error)
            write_stderr(one_line(f"perdure: relay: {words}", 300))
            self._say(http.HTTPStatus.SERVICE_UNAVAILABLE, words)

    def _git(self, forge: Upstream | SshUpstream, path: str) -> None:
        headers = dict(self.headers.items())
        if (self.command, path) == ("GET", f"info/refs?service={SERVICE}"):
            self._pass(forge.refs(headers))
        elif (self.command, path) == ("POST", SERVICE):
            self._pass(forge.pack(headers, self._body(LONGEST_REQUEST)))
        else:
            raise RelayRefused("this relay only fetches")

    def _pass(self, asked: AbstractContextManager[ForgeAnswer]) -> None:
        """Send the answer of the repository's server to the client. If an error occurs after the
        first byte, close the connection, which git reports as an error."""
        with asked as answer:
            self.send_response(http.HTTPStatus.OK)
            self.send_header("Content-Type", one_line(answer.kind, 100))
            self.send_header("Cache-Control", "no-cache")
            self.send_header("Transfer-Encoding", "chunked")
            self.send_header("Connection", "close")
            self.end_headers()
            try:
                for piece in answer.pieces:
                    self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
                self.wfile.write(b"0\r\n\r\n")
            except Exception as error:
                write_stderr(one_line(f"perdure: relay: broken off: {type(error).__name__}", 300))
                with suppress(OSError):
                    self.connection.shutdown(socket.SHUT_RDWR)

    def _object(self, access: RunStoreAccess, key: str) -> None:
        match self.command:
            case "GET":
                self._say(http.HTTPStatus.OK, access.get(key))
            case "HEAD":
                if not access.has(key):
                    raise FileNotFoundError(key)
                self._say(http.HTTPStatus.OK, b"")
            case "PUT":
                access.put(key, b"".join(self._body(longest(key))))
                self._say(http.HTTPStatus.OK, b"")
            case _:
                access.create(key, b"".join(self._body(longest(key))))
                self._say(http.HTTPStatus.OK, b"")

    def _body(self, most: int) -> Iterator[bytes]:
        """Yield the body of the request. Raises TooLarge if it has more than `most` bytes."""
        if (self.headers.get("Transfer-Encoding") or "").lower() == "chunked":
            yield from self._chunks(most)
            return
        length = self.headers.get("Content-Length") or "0"
        if not re.fullmatch("[0-9]{1,15}", length) or int(length) > most:
            raise TooLarge
        left = int(length)
        while left:
            piece = self.rfile.read(min(left, PIECE))
            if not piece:
                raise ConnectionAbortedError
            left -= len(piece)
            yield piece

    def _chunks(self, most: int) -> Iterator[bytes]:
        """Yield the content of a chunked body (RFC 9112, 7.1). Raises TooLarge if it has more than
        `most` bytes."""
        left = most
        while size := self._size():
            left -= size
            if left < 0:
                raise TooLarge
            while size:
                piece = self.rfile.read(min(size, PIECE))
                if not piece:
                    raise ConnectionAbortedError
                size -= len(piece)
                yield piece
            self.rfile.readline(LONGEST_LINE)

    def _size(self) -> int:
        line = self.rfile.readline(LONGEST_LINE).partition(b";")[0].strip()
        if not re.fullmatch(rb"[0-9A-Fa-f]{1,15}", line):
            raise ConnectionAbortedError
        return int(line, 16)

    def _say(self, status: int, content: bytes | str) -> None:
        if isinstance(content, str):
            kind, content = "text/plain", one_line(content, WORDS_MOST).encode()
        else:
            kind = "application/octet-stream"
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _first(error: Exception) -> str:
    return f"the checkpoint store cannot be used: {str(error).partition(chr(10))[0][:300]}"
