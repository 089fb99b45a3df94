"""An object store that speaks S3 on 127.0.0.1, as far as perdure uses it: objects in memory,
listings, conditional writes.

A test that needs a cloud's object store makes a `Bucket`, and obstore uses it with `environ()`. The
server does not check signatures, but it refuses a request without credentials, so that a test sees
whether credentials were passed on.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

WHEN = ("Sat, 21 Nov 2026 12:00:00 GMT", "2026-11-21T12:00:00.000Z")

KEY_ID = "AKIAQ7W2N5T8V1X4B6KD"
"""A value that occurs nowhere else. It must be unique because known secrets are redacted in every
checkpoint."""


class Bucket(ThreadingHTTPServer):
    """One server with one bucket, `tasks`. It accepts connections as soon as the object exists."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.lose = 0
        """Number of the next conditional writes that take effect although the client gets the error
        503."""
        self.lock = threading.Lock()
        super().__init__(("127.0.0.1", 0), _Request)
        threading.Thread(target=self.serve_forever, args=(0.05,), name="s3", daemon=True).start()

    @property
    def url(self) -> str:
        return "s3://tasks"

    def environ(self) -> dict[str, str]:
        """Return the environment variables with which a client finds the bucket."""
        endpoint = f"http://127.0.0.1:{self.server_address[1]}"
        keys = {
            "AWS_ACCESS_KEY_ID": KEY_ID,
            "AWS_SECRET_ACCESS_KEY": "nD4Zq7mTn2Wc8Ks5vXb1Gh6Jy3Lp9Rf0",
        }
        return {
            **keys,
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ALLOW_HTTP": "true",
            "AWS_REGION": "us-east-1",
        }

    def names(self, prefix: str = "") -> list[str]:
        with self.lock:
            return sorted(name for name in self.objects if name.startswith(prefix))

    def stop(self) -> None:
        self.shutdown()
        self.server_close()


@contextmanager
def bucket() -> Iterator[Bucket]:
    """Run a bucket inside the block."""
    made = Bucket()
    try:
        yield made
    finally:
        made.stop()


class _Request(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Bucket

    def log_message(self, format: str, *args: object) -> None:
        """Write no log."""

    def _name(self) -> str:
        return unquote(urlsplit(self.path).path).lstrip("/").partition("/")[2]

    def _refused(self) -> bool:
        if KEY_ID in self.headers.get("authorization", ""):
            return False
        self._tell(
            403, b"<Error><Code>AccessDenied</Code><Message>no credentials</Message></Error>"
        )
        return True

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        if self._refused():
            return
        with self.server.lock:
            taken = self.headers.get("if-none-match") == "*" and self._name() in self.server.objects
            if not taken:
                self.server.objects[self._name()] = body
            lost = self.server.lose > 0 and "if-none-match" in self.headers
            self.server.lose -= lost
        if lost:
            self._tell(
                503,
                b"<Error><Code>ServiceUnavailable</Code><Message>no answer from "
                b"behind</Message></Error>",
            )
        elif taken:
            self._tell(
                412, b"<Error><Code>PreconditionFailed</Code><Message>it exists</Message></Error>"
            )
        else:
            self._tell(200, b"", ETag=_tag(body))

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        if self._refused():
            return
        asked = parse_qs(urlsplit(self.path).query, keep_blank_values=True)
        if "list-type" in asked:
            self._tell(
                200,
                _listing(
                    self.server, asked.get("prefix", [""])[0], asked.get("delimiter", [""])[0]
                ),
            )
            return
        with self.server.lock:
            body = self.server.objects.get(self._name())
        if body is None:
            self._tell(
                404, b"<Error><Code>NoSuchKey</Code><Message>there is none</Message></Error>"
            )
            return
        if (span := self.headers.get("range", "")).startswith("bytes="):
            first, _, last = span[6:].partition("-")
            end = min(int(last) + 1 if last else len(body), len(body))
            where = f"bytes {first}-{end - 1}/{len(body)}"
            self._tell(
                206,
                body[int(first) : end],
                **{"ETag": _tag(body), "Content-Range": where, "Last-Modified": WHEN[0]},
            )
            return
        self._tell(200, body, **{"ETag": _tag(body), "Last-Modified": WHEN[0]})

    def _tell(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _tag(body: bytes) -> str:
    return f'"{hashlib.sha256(body).hexdigest()[:32]}"'


def _listing(server: Bucket, prefix: str, delimiter: str) -> bytes:
    """Return the complete listing in one page."""
    found: dict[str, str] = {}
    with server.lock:
        for name in sorted(server.objects):
            if not name.startswith(prefix):
                continue
            head, mark, _ = (
                name[len(prefix) :].partition(delimiter) if delimiter else (name, "", "")
            )
            if mark:
                common = prefix + head + mark
                found[common] = (
                    f"<CommonPrefixes><Prefix>{escape(common)}</Prefix></CommonPrefixes>"
                )
            else:
                body = server.objects[name]
                of = f"<Size>{len(body)}</Size><ETag>{escape(_tag(body))}</ETag><LastModified>{WHEN[1]}</LastModified>"
                found[name] = f"<Contents><Key>{escape(name)}</Key>{of}</Contents>"
    head = f"<Name>tasks</Name><Prefix>{escape(prefix)}</Prefix><KeyCount>{len(found)}</KeyCount><IsTruncated>false</IsTruncated>"
    return f'<?xml version="1.0" encoding="UTF-8"?><ListBucketResult>{head}{"".join(found.values())}</ListBucketResult>'.encode()
