"""Sends a single request to a forge and handles every way in which it can fail. A request is sent
once, to one host, with limits of time and size. The answer is treated as hostile.

If GitHub or GitLab answers that the rate limit was reached, no request is sent until the time that
the forge named. GitHub may block clients that continue (GitHub's documentation). Redirects are
followed only for reads and within the same host, except for logs (`HttpClient.tail`).

The timeouts of httpx2 limit only the time without data, and start again with each byte. A forge
that sends a header now and then could therefore block a thread for days. So `ConnectionDeadline`
shuts down the connection of a request that takes too long. The client's other connections are shut
down too: they lead to the same forge, and their callers retry.
"""

from __future__ import annotations

import re
import socket
import ssl
import threading
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import parse_qsl, quote, urljoin, urlsplit

import httpx2
from msgspec import Struct

from perdure.errors import Conflict, ForgeDenied, ForgeRefused, ForgeUnavailable, NotFound
from perdure.forge.clients.tokens import ForgeToken
from perdure.forge.webhooks.payload import Payload, parsed, parsed_list
from perdure.host.git.servers import is_loopback


class ConnectionDeadline:
    """Tracks the connections of one client, so that they can be shut down. The client must pass the
    method `trace` with each of its requests (extension `trace` of httpx2 2.16)."""

    def __init__(self) -> None:
        self._streams: weakref.WeakSet[Any] = weakref.WeakSet()
        self._lock = threading.Lock()

    def trace(self, name: str, about: Mapping[str, Any]) -> None:
        """Register a connection when httpx2 reports that it was made."""
        if name.endswith((".connect_tcp.complete", ".start_tls.complete")):
            with self._lock:
                self._streams.add(about["return_value"])

    @contextmanager
    def after(self, seconds: float) -> Iterator[None]:
        """Shut down the client's connections if the `with` block still runs after `seconds`."""
        timer = threading.Timer(seconds, self._cut)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _cut(self) -> None:
        with self._lock:
            streams = list(self._streams)
        for stream in streams:
            with suppress(OSError):
                # Shut down the plain socket, because the shutdown of TLS would wait for the other
                # side.
                socket.socket.shutdown(stream.get_extra_info("socket"), socket.SHUT_RDWR)


CONNECT_S = 10.0
SILENT_S = 20.0
"""Maximum time without any data from the forge, in seconds."""
CALL_S = 45.0
"""Maximum duration of one request, in seconds."""
ANSWER_MOST = 16 * 1024 * 1024
LOG_MOST = 64 * 1024 * 1024
LOG_KEPT = 1024 * 1024
"""Maximum number of bytes kept of a log. The end is kept, because the failure is reported there."""
PAGES_MOST = 200
"""Maximum number of pages of one list. A longer list is refused, because its end may say something
else than its beginning: who set a label last, for example."""
NEWEST_MOST = 1000
"""Maximum number of entries to read from a list that is sorted by time, newest first, if older
entries do not matter."""
PAGES_S = 120.0
"""Maximum duration of fetching all pages of a list, in seconds."""
PAGE = 50
"""Number of items on a page. This is Gitea's default maximum (MAX_RESPONSE_ITEMS); GitHub and
GitLab allow 100."""
RETRY_S = 10.0
LIMITED_S = 60.0
LONGEST_WAIT_S = 3600.0
REDIRECTS_MOST = 3

_NEXT = re.compile(r'<([^<>]{1,4000})>\s*;\s*rel="?next"?')
_REPOSITORY = re.compile(r"[\w.-]+(?:/[\w.-]+)+", re.ASCII)


QueryValue = str | int | None
"""The value of a query's parameter. Parameters with an empty text or None are not sent."""


class HttpAnswer(Struct, frozen=True):
    """A response whose status and body have not been checked yet."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class HttpClient:
    """Sends requests to one API address (`https://git.example.com/api/v1`), with one token.
    `scheme` precedes the token in the Authorization header."""

    def __init__(
        self, api: str, token: ForgeToken, scheme: str, accept: str, ca_file: Path | None
    ) -> None:
        self.api, self.token = api, token
        self._scheme = scheme
        local = is_loopback(urlsplit(api).hostname or "")
        # Plain http needs no certificates, and loading them takes a tenth of a second.
        if api.startswith("http:"):
            plain = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        else:
            plain = None
        verify = plain or (ssl.create_default_context(cafile=ca_file) if ca_file else True)
        self._client = httpx2.Client(
            headers={"accept": accept, "accept-encoding": "identity", "user-agent": "perdure"},
            timeout=httpx2.Timeout(SILENT_S, connect=CONNECT_S),
            follow_redirects=False,
            verify=verify,
            trust_env=not local,
        )
        self._lock = threading.Lock()
        self._again = 0.0
        self._cutting = ConnectionDeadline()

    def close(self) -> None:
        self._client.close()

    def get(self, path: str, **query: QueryValue) -> Payload:
        """Fetch and return an object. This method and all methods below raise the errors that
        `ForgeApi` documents."""
        return self._object(self.send("GET", path, query=query))

    def pages(self, path: str, *, size: str, **query: QueryValue) -> Iterator[Payload]:
        """Yield the objects of a list. A page is fetched when its first object is needed. `size` is
        the name of this forge's query parameter for the number of items on a page; empty if it has
        none. Raises ForgeRefused after the objects of `PAGES_MOST` pages if there are more."""
        query = {**query, size: PAGE} if size else query
        until = time.monotonic() + PAGES_S
        for _ in range(PAGES_MOST):
            if time.monotonic() > until:
                raise self._down(f"took longer than {PAGES_S:g} s for one list")
            answer = self.send("GET", path, query=query)
            yield from self._list(answer)
            following = _NEXT.search(answer.headers.get("link", "")[:20_000])
            if following is None:
                return
            # Only the query of the link to the next page is used. The link's host name may be
            # wrong: Gitea takes it from its own configuration.
            try:
                query = dict(parse_qsl(urlsplit(following[1]).query, max_num_fields=50))
            except ValueError as error:
                self._unread(answer, error)
        raise ForgeRefused(
            f"the list {path} of {self.api} has more than {PAGES_MOST} pages",
            "perdure reads no part of a list that it cannot read to its end",
        )

    def tail(self, path: str, hosts: Sequence[str] = ()) -> str:
        """Return the end of a log, at most `LOG_KEPT` bytes.

        GitHub keeps logs on another host, and redirects to it. Such a redirect is followed without
        the token, and only to the given `hosts`: each is a host name with a port, or a suffix of
        host names if it begins with a dot. Raises the errors that `ForgeApi` documents.
        """
        self._wait_not()
        url, query, is_ours = f"{self.api}/{path}", None, True
        for _ in range(REDIRECTS_MOST + 1):
            answer = self._once("GET", url, query, None, keep=LOG_KEPT, token=is_ours)
            if answer.status not in (301, 302, 303, 307, 308):
                break
            url, is_ours = self._log_at(url, answer, hosts, is_ours)
        else:
            raise ForgeRefused(f"too many redirects from {self.api}: {REDIRECTS_MOST}")
        if not 200 <= answer.status < 300:
            if not is_ours:
                raise ForgeRefused(f"{urlsplit(url).hostname} answers {answer.status} for a log")
            self._refused("GET", path, answer)
        return answer.body.decode("utf-8", "replace")

    def _log_at(
        self, url: str, answer: HttpAnswer, hosts: Sequence[str], is_ours: bool
    ) -> tuple[str, bool]:
        """Return the URL to which the forge redirects the request for a log, and whether this URL
        is on the forge itself. Raises ForgeRefused if the redirect must not be followed."""
        try:
            target = urljoin(url, answer.headers.get("location", "")[:8000])
            new, own = urlsplit(target), urlsplit(self.api)
        except ValueError as error:
            self._unread(answer, error)
        if is_ours and (new.scheme, new.netloc) == (own.scheme, own.netloc):
            return target, True
        below = tuple(host for host in hosts if host[0] == ".")
        known = new.netloc in hosts or new.netloc.endswith(below)
        if not known or (new.scheme != "https" and not is_loopback(new.hostname or "")):
            said = _one_line(f"{new.scheme}://{new.hostname}")
            raise ForgeRefused(
                f"{self.api} redirects a log to {said}, which perdure does not follow"
            )
        return target, False

    def put(self, method: str, path: str, body: Mapping[str, object]) -> Payload:
        """Send an object by POST, PATCH or PUT. Returns the object in the answer; empty if the
        answer has none."""
        answer = self.send(method, path, body=body)
        if answer.body.strip():
            return self._object(answer)
        return Payload(None)

    def send(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, QueryValue] | None = None,
        body: Mapping[str, object] | None = None,
    ) -> HttpAnswer:
        """Send one request, follow its redirects, and return the answer, whose status is 2xx."""
        self._wait_not()
        url = f"{self.api}/{path}"
        for _ in range(REDIRECTS_MOST + 1):
            answer = self._once(method, url, query, body)
            if answer.status not in (301, 302, 303, 307, 308):
                break
            url, query = self._elsewhere(method, url, answer), None
        else:
            raise ForgeRefused(
                f"too many redirects from {self.api}: {REDIRECTS_MOST}",
                "correct the url in your configuration",
            )
        if not 200 <= answer.status < 300:
            self._refused(method, path, answer)
        return answer

    def _once(
        self,
        method: str,
        url: str,
        query: Mapping[str, QueryValue] | None,
        body: Mapping[str, object] | None,
        *,
        keep: int = 0,
        token: bool = True,
    ) -> HttpAnswer:
        """Send one request without following redirects, and return the answer. With `keep`, only
        the last `keep` bytes of the answer are returned, and a larger answer is accepted."""
        if token:
            headers = {"authorization": f"{self._scheme} {self.token.value()}"}
        else:
            headers = {}
        size, most = 0, LOG_MOST if keep else ANSWER_MOST
        given = {name: value for name, value in (query or {}).items() if value not in ("", None)}
        until, seen = time.monotonic() + CALL_S, {"trace": self._cutting.trace}
        try:
            with (
                self._cutting.after(CALL_S),
                self._client.stream(
                    method, url, params=given or None, json=body, headers=headers, extensions=seen
                ) as response,
            ):
                found = bytearray()
                if response.headers.get("content-encoding", "identity").lower() not in (
                    "",
                    "identity",
                ):
                    raise ForgeUnavailable(
                        f"{self.api} answers compressed, though it was asked not to",
                        "check the proxy in front of it",
                    )
                for part in response.iter_raw():
                    found += part
                    size += len(part)
                    if size > most:
                        raise ForgeRefused(
                            f"{self.api} answers with more than {most // 1024**2} MiB to "
                            f"{_path(url)}"
                        )
                    if keep and len(found) > 2 * keep:
                        del found[:-keep]
                    if time.monotonic() > until:
                        raise self._down(f"took longer than {CALL_S:g} s for one answer")
                headers = {name.lower(): value for name, value in response.headers.items()}
                return HttpAnswer(response.status_code, headers, bytes(found[-keep:]))
        except (httpx2.TransportError, httpx2.StreamError, httpx2.DecodingError) as error:
            if time.monotonic() >= until:
                raise self._down(f"took longer than {CALL_S:g} s for one answer") from error
            raise self._down(
                f"does not answer: {_one_line(str(error)) or type(error).__name__}"
            ) from error
        except httpx2.InvalidURL as error:
            raise NotFound(f"{self.api} has no such address: {_one_line(str(error))}") from error

    def _elsewhere(self, method: str, url: str, answer: HttpAnswer) -> str:
        """Return the target of a redirect. Raises ForgeRefused if the target is missing or on
        another host, or if the request was not a GET."""
        try:
            target = urljoin(url, answer.headers.get("location", "")[:4000])
            old, new = urlsplit(url), urlsplit(target)
        except ValueError as error:
            self._unread(answer, error)
        if (
            method != "GET"
            or (old.scheme, old.netloc) != (new.scheme, new.netloc)
            or not answer.headers.get("location")
        ):
            said = _one_line(f"{new.scheme}://{new.hostname}")
            raise ForgeRefused(
                f"{self.api} redirects a {method} to {said}, which perdure does not follow",
                "the repository may have been renamed, or the forge moved: correct the names and "
                "the url in your configuration",
            )
        return target

    def _wait_not(self) -> None:
        left = self._again - time.monotonic()
        if left > 0:
            raise ForgeUnavailable(
                f"{self.api} had too many requests; the next one is in {left:.0f} s",
                retry_s=left,
            )

    def _down(self, why: str, wait: float = 0.0) -> ForgeUnavailable:
        return ForgeUnavailable(
            f"{self.api} {why}", "perdure retries by itself", retry_s=wait or RETRY_S
        )

    def _limited(self, wait: float) -> ForgeUnavailable:
        with self._lock:
            self._again = max(self._again, time.monotonic() + wait)
        return ForgeUnavailable(
            f"{self.api} had too many requests, and accepts none for {wait:.0f} s", retry_s=wait
        )

    def _refused(self, method: str, path: str, answer: HttpAnswer) -> NoReturn:
        said = self._said(answer.body)
        what = f"{method} {path}: {said}" if said else f"{method} {path}"
        limited = answer.status == 429 or (answer.status == 403 and _is_limit(answer.headers, said))
        if limited:
            raise self._limited(_retry_s(answer.headers) or LIMITED_S)
        if answer.status >= 500 or answer.status in (408, 425):
            raise self._down(f"answers {answer.status} to {what}", _retry_s(answer.headers))
        if answer.status == 401:
            raise ForgeDenied(
                f"{self.api} rejects the token in {self.token}: it has expired or was revoked",
                "make a new one on the forge and put it there"
                + ("" if self.token.path else ", then restart perdure"),
                everywhere=True,
            )
        if answer.status == 403:
            raise ForgeDenied(
                f"{self.api} does not allow {what}",
                f"give the token in {self.token} more rights, or give its login more access to the "
                "repository",
            )
        if answer.status in (404, 410):
            raise NotFound(
                f"{self.api} has nothing at {path}, or does not show it to the login of "
                f"{self.token}"
            )
        if answer.status == 409:
            raise Conflict(f"{self.api} answers {answer.status} to {what}")
        raise ForgeRefused(f"{self.api} answers {answer.status} to {what}")

    def _said(self, body: bytes) -> str:
        """Return the forge's own error message on one line. The token is masked, because the
        message may repeat it."""
        try:
            said = parsed(body[:100_000])
        except ValueError:
            return ""
        found = said.name("message") or said.name("error") or said.name("error_description")
        more = "; ".join(filter(None, said.all_names("errors", "message")))
        return _one_line((f"{found}: {more}" if more else found).replace(self.token.value(), "***"))

    def _object(self, answer: HttpAnswer) -> Payload:
        try:
            return parsed(answer.body, once=True)
        except ValueError as error:
            self._unread(answer, error)

    def _list(self, answer: HttpAnswer) -> list[Payload]:
        try:
            return parsed_list(answer.body)
        except ValueError as error:
            self._unread(answer, error)

    def _unread(self, answer: HttpAnswer, error: ValueError) -> NoReturn:
        raise ForgeUnavailable(
            f"{self.api} answers {answer.status}, but not as its API does: {_one_line(str(error))}",
            "check the url of the forge, and whether a proxy is in front of it",
            retry_s=RETRY_S,
        ) from error


def part(text: str) -> str:
    """Quote a name as a single path segment. Raises NotFound for a name that is empty or would
    change the path."""
    if (
        not text
        or text in (".", "..")
        or len(text) > 255
        or any(each < " " or each == "\x7f" for each in text)
    ):
        raise NotFound(f"{text[:100]!r} is not a valid name on a forge")
    return quote(text.encode("utf-8", "replace"), safe="")


def checked(repository: str) -> str:
    """Return the repository's name unchanged. Raises NotFound if the name is invalid."""
    if (
        not _REPOSITORY.fullmatch(repository)
        or len(repository) > 255
        or {".", ".."} & set(repository.split("/"))
    ):
        raise NotFound(f"{repository[:100]!r} is not a repository: expected owner/name")
    return repository


def _is_limit(headers: Mapping[str, str], said: str) -> bool:
    """Return whether a 403 means that GitHub's rate limit was exceeded. One sign is enough: no
    remaining requests, a `retry-after` header, or a message about the limit (docs.github.com, "Rate
    limits for the REST API")."""
    return (
        headers.get("x-ratelimit-remaining") == "0"
        or "retry-after" in headers
        or "rate limit" in said.lower()
    )


def _retry_s(headers: Mapping[str, str]) -> float:
    """Return the wait that the answer's headers ask for, from 1 to 3600 seconds. Returns 0 if they
    ask for none."""
    now = time.time()
    given = headers.get("retry-after", "").strip()
    found = 0.0
    if re.fullmatch(r"\d{1,9}", given):
        found = float(given)
    elif given:
        try:
            found = parsedate_to_datetime(given).timestamp() - now
        except (ValueError, OverflowError):
            found = 0.0
    elif headers.get("x-ratelimit-remaining", headers.get("ratelimit-remaining")) == "0":
        reset = headers.get("x-ratelimit-reset", headers.get("ratelimit-reset", ""))
        if re.fullmatch(r"\d{1,12}", reset):
            found = float(reset) - now
        else:
            found = 0.0
    if found or given:
        return min(max(found, 1.0), LONGEST_WAIT_S)
    return 0.0


def _path(url: str) -> str:
    return urlsplit(url).path


def _one_line(text: str) -> str:
    return re.sub("[\x00-\x1f\x7f-\x9f\u2028\u2029]+", " ", text)[:300].strip()
