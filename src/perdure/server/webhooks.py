"""Accepts webhooks at `POST /webhooks/{name}` and stores them in the inbox.

The answer is 202 when the delivery is durable, even if it had arrived before. A delivery that is
ignored is also answered with 202, because a forge disables a webhook that answers 4xx (GitLab
permanently). Only requests that are wrong in themselves get a 4xx: an unknown name, a wrong
signature, a body that cannot be read. The answer 503 means that the delivery was not stored and
should be sent again.
"""

from __future__ import annotations

import asyncio
import ctypes
import time
from collections.abc import Callable, Mapping
from functools import partial

from anyio import CapacityLimiter, to_thread
from msgspec import Struct
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from perdure.errors import PerdureError
from perdure.forge.webhooks import DeliveryRefused, check_type, receive, too_large
from perdure.forge.webhooks.intake import BODY_MOST
from perdure.model.forge.deliveries import Arrived
from perdure.model.forge.sources import Source
from perdure.server.batches import Writer

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
        """Schedule a `malloc_trim` shortly after a large delivery. glibc does not return freed
        memory to the system if it is between blocks in use."""
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
