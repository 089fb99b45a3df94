"""Accepts webhooks at `POST /webhooks/{name}` and stores them in the inbox.

The answer is 202 when the delivery is durable, even if it had arrived before. A delivery that is
ignored is also answered with 202, because a forge disables a webhook that answers 4xx (GitLab
permanently). Only requests that are wrong in themselves get a 4xx: an unknown name, a wrong
signature, a body that cannot be read. The answer 503 means that the delivery was not stored and
should be sent again.

`Writer` stores the deliveries of many requests in few transactions. Deliveries that arrive during a
transaction are stored together in the next one. It writes in a thread of its own, so a slow disk
delays only webhooks. A request is answered only after the commit of its delivery.

`secrets_of` reads the webhook secrets of all sources from files, environment variables and systemd
credentials. The secrets are checked before the server listens, and never appear in an argument, log
or message.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import ctypes
import queue
import threading
import time
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import TracebackType

from anyio import CapacityLimiter, to_thread
from msgspec import Struct
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from perdure.errors import ConfigError, PerdureError, StoreError
from perdure.forge.clients.tokens import CREDENTIALS
from perdure.forge.webhooks import DeliveryRefused, check_type, receive, too_large
from perdure.forge.webhooks.intake import BODY_MOST
from perdure.model.forge.deliveries import Accepted, Arrived
from perdure.model.forge.sources import Source

MOST = 100
"""Maximum number of deliveries in a transaction. `MOST_BYTES` also limits a transaction."""
MOST_BYTES = 32 * 1024**2


class _Waiting(Struct, frozen=True):
    arrived: Arrived
    answer: asyncio.Future[Accepted]
    loop: asyncio.AbstractEventLoop


class Writer:
    """Writes deliveries to the store. As a context manager it starts its thread, and on exit writes
    what is pending. `kept` is called after each commit that stored a new delivery."""

    def __init__(
        self,
        accept: Callable[[Sequence[Arrived]], Sequence[Accepted]],
        kept: Callable[[], None] = lambda: None,
    ) -> None:
        self._accept, self._kept = accept, kept
        self._queue: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._go, name="inbox", daemon=True)

    def __enter__(self) -> Writer:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._queue.put(None)
        self._thread.join()

    async def keep(self, arrived: Arrived) -> Accepted:
        """Store a delivery and wait until it is durable. Return its number and whether it was new.
        Raises the same errors as the store."""
        loop = asyncio.get_running_loop()
        waiting = _Waiting(arrived, loop.create_future(), loop)
        self._queue.put(waiting)
        return await waiting.answer

    def _go(self) -> None:
        last = False
        while not last:
            batch, size = [], 0
            waiting = self._queue.get()
            while waiting is not None:
                batch.append(waiting)
                size += len(waiting.arrived.body)
                if len(batch) == MOST or size > MOST_BYTES:
                    break
                try:
                    waiting = self._queue.get_nowait()
                except queue.Empty:
                    break
            last = waiting is None
            if batch:
                self._write(batch)

    def _write(self, batch: list[_Waiting]) -> None:
        try:
            found = self._accept([each.arrived for each in batch])
        except Exception as error:
            if len(batch) > 1 and not isinstance(error, StoreError):
                # One delivery of the batch probably cannot be stored, so store each delivery
                # separately.
                for each in batch:
                    self._write([each])
                return
            _tell(batch, error)
            return
        _tell(batch, found)
        if any(each.new for each in found):
            self._kept()


def _tell(batch: list[_Waiting], found: Sequence[Accepted] | Exception) -> None:
    def tell() -> None:
        for at, each in enumerate(batch):
            if each.answer.done():
                continue  # The sender has disconnected and waits no longer.
            if isinstance(found, Exception):
                each.answer.set_exception(found)
            else:
                each.answer.set_result(found[at])

    # The event loop was closed during the transaction, so no request waits for an answer.
    with suppress(RuntimeError):
        batch[0].loop.call_soon_threadsafe(tell)


BODY_S = 30.0
"""Time limit in seconds for receiving the body of a request. Forges themselves give up after 5 to
30 s."""
HELD_MOST = 8 * BODY_MOST
"""Maximum size in bytes of all bodies that are in memory at the same time. A request that would
exceed this total gets a 503, so that its sender tries again later."""
LARGE = 1024 * 1024
"""Minimum size in bytes of a delivery that counts as large. Large deliveries are parsed in a
thread, and their memory is then returned to the system."""
TRIM_AFTER_S = 1.0
LINE_EVERY_S = 1.0


class WebhookIntake(Struct):
    """Accepts webhooks of all sources. `say` logs refusals, at most one line a second."""

    sources: Mapping[str, tuple[Source, tuple[str, ...]]]
    writer: Writer
    say: Callable[[str], None]
    body_s: float = BODY_S
    held: int = 0
    said: float = 0.0
    _large: CapacityLimiter | None = None
    _trim: asyncio.TimerHandle | None = None

    async def post(self, request: Request) -> Response:
        """Answer one webhook request: store its delivery, or refuse it."""
        name = request.path_params["name"]
        try:
            # Unlike an ignored delivery, a wrong address is a mistake in the forge's configuration.
            # A 4xx shows it in the forge's list of deliveries.
            if name not in self.sources:
                raise DeliveryRefused(
                    404,
                    "There is no such webhook: the address ends with a name of the configuration, "
                    "/webhooks/NAME",
                )
            return await self._take(request, *self.sources[name])
        except ClientDisconnect:
            return Response(status_code=400)
        except DeliveryRefused as refused:
            self._tell(f"webhook {name}: refused with {refused.status}: {refused}")
            return answer(refused.status, str(refused))
        except PerdureError as error:
            self._tell(f"webhook {name}: not stored: {error}")
            return answer(
                503, "The delivery could not be stored; send it again", {"retry-after": "10"}
            )

    async def _take(self, request: Request, source: Source, secrets: tuple[str, ...]) -> Response:
        headers = dict(reversed(request.headers.items()))
        check_type(headers)
        body = await self._body(request)
        size = len(body)
        try:
            arrived = await self._read(headers, body, source, secrets)
            accepted = await self.writer.keep(arrived)
        finally:
            self.held -= size
            if size > LARGE:
                self._trim_soon()
        return JSONResponse(
            {
                "delivery": accepted.number,
                "new": accepted.new,
                "of_interest": arrived.reading.intent is not None,
            },
            202,
        )

    async def _read(
        self, headers: dict[str, str], body: bytearray, source: Source, secrets: tuple[str, ...]
    ) -> Arrived:
        """Check and parse a delivery, and empty `body` to save memory.

        Large deliveries are parsed in a thread, one at a time. Parsed JSON takes ten times its size
        in memory, and other requests must not wait for the parser.
        """
        raw = bytes(body)
        body.clear()
        read = partial(
            receive,
            headers,
            raw,
            source=source.name,
            secrets=secrets,
            now_s=time.time(),
            expected=source.forge,
        )
        if len(raw) <= LARGE:
            return read()
        self._large = self._large or CapacityLimiter(1)
        return await to_thread.run_sync(read, limiter=self._large)

    def _trim_soon(self) -> None:
        """Schedule a `malloc_trim` shortly after a large delivery. Without it, glibc would keep
        freed memory that is between blocks in use, instead of returning it to the system."""
        if self._trim is None:
            self._trim = asyncio.get_running_loop().call_later(TRIM_AFTER_S, self._trim_now)

    def _trim_now(self) -> None:
        self._trim = None
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has no malloc_trim
        if trim is not None:
            asyncio.get_running_loop().run_in_executor(None, trim, 0)

    async def _body(self, request: Request) -> bytearray:
        """Return the raw body of a request. Its size is added to `held`; the caller must subtract
        it. Raises DeliveryRefused with 408, 413 or 503."""
        length = request.headers.get("content-length", "")
        if length.isdecimal() and int(length[:12]) > BODY_MOST:
            raise too_large()
        body = bytearray()
        try:
            async with asyncio.timeout(self.body_s):
                async for chunk in request.stream():
                    body += chunk
                    self.held += len(chunk)
                    if len(body) > BODY_MOST:
                        raise too_large()
                    if self.held > HELD_MOST:
                        raise DeliveryRefused(503, "Too much is being received now; send it again")
        except BaseException as error:
            self.held -= len(body)
            if isinstance(error, TimeoutError):
                raise DeliveryRefused(
                    408, f"The body took longer than {self.body_s:.0f} s"
                ) from None
            raise
        return body

    def _tell(self, line: str) -> None:
        now = time.monotonic()
        if now - self.said >= LINE_EVERY_S:
            self.said = now
            self.say(line)


def answer(status: int, sentence: str, headers: Mapping[str, str] | None = None) -> Response:
    """Return the answer to a refused request. The connection is closed, so that the rest of the
    body need not be received."""
    return JSONResponse({"error": sentence}, status, {"connection": "close", **(headers or {})})


SHORTEST = 16
"""Minimum length of a secret in characters. A shorter one could be guessed."""
LONGEST = 4096


def secrets_of(
    sources: Sequence[Source], environ: MutableMapping[str, str]
) -> Mapping[str, tuple[str, ...]]:
    """Return the webhook secrets, by the name of their source. Remove the environment variables
    that contain them from `environ`, so that no agent gets them. Raises ConfigError, which lists
    all problems."""
    problems: list[str] = []
    found = {source.name: tuple(_of_one(source, environ, problems)) for source in sources}
    for source in sources:
        for variable in source.variables:
            environ.pop(variable, None)
    if problems:
        raise ConfigError(
            problems,
            "create a secret with openssl rand -hex 32; put it into the file and into the forge's "
            "webhook",
        )
    return found


def _of_one(source: Source, environ: Mapping[str, str], problems: list[str]) -> list[str]:
    places = [(f"the file {path}", _read(path, problems)) for path in source.files]
    places += [(f"the variable {name}", environ.get(name, "")) for name in source.variables]
    for name in source.credentials:
        places.append((f"the credential {name}", _credential(name, environ, problems)))
    for place, secret in places:
        if secret is not None and (wrong := _wrong(secret)):
            problems.append(f"webhooks.{source.name}: {place} {wrong}")
    return [secret for _, secret in places if secret]


def _credential(name: str, environ: Mapping[str, str], problems: list[str]) -> str | None:
    directory = environ.get(CREDENTIALS, "")
    if not directory:
        problems.append(
            f"the credential {name} is missing: no {CREDENTIALS} is set; the unit of systemd needs "
            f"LoadCredential={name}:/path"
        )
        return None
    return _read(f"{directory}/{name}", problems)


def _read(path: str, problems: list[str]) -> str | None:
    try:
        with Path(path).open("rb") as file:
            return file.read(LONGEST + 1).decode().strip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        if isinstance(error, OSError):
            why = error.strerror
        else:
            why = "not a text"
        problems.append(f"the secret in {path} cannot be read: {why}")
        return None


def _wrong(secret: str) -> str:
    if not secret:
        return "is empty: anybody could send a webhook"
    if len(secret) < SHORTEST:
        return f"has fewer than {SHORTEST} characters, which can be guessed"
    if len(secret) > LONGEST or not secret.isprintable():
        return f"is not a secret of one line with at most {LONGEST} characters"
    if secret.startswith("whsec_"):
        try:
            base64.b64decode(secret.removeprefix("whsec_"), validate=True)
        except (binascii.Error, ValueError):
            return "is not a signing secret: expected base64 after whsec_"
    return ""
