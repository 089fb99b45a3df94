"""A listener to the event stream of a real `perdure serve`."""

from __future__ import annotations

import contextlib
import http.client
import json
from collections.abc import Iterator
from typing import Any

from tests.web.serving import PATIENCE_S, Serving


class Stream:
    """An open stream. `next` returns (id, record). It raises StopIteration when the server ends the
    stream."""

    def __init__(
        self, connection: http.client.HTTPConnection, answer: http.client.HTTPResponse
    ) -> None:
        self.connection, self.answer = connection, answer
        self.status, self.headers = answer.status, dict(answer.getheaders())
        self._events = self._read()

    def _read(self) -> Iterator[tuple[int, dict[str, Any]]]:
        number = 0
        with contextlib.suppress(http.client.IncompleteRead, ConnectionResetError):
            while line := self.answer.readline().decode():
                if line.startswith("id: "):
                    number = int(line[4:])
                elif line.startswith("data: "):
                    yield number, json.loads(line[6:])

    def __iter__(self) -> Iterator[tuple[int, dict[str, Any]]]:
        return self._events

    def until(self, kind: str, run: str = "") -> list[tuple[int, dict[str, Any]]]:
        """Return all records up to the next one of a kind."""
        found = []
        for number, record in self._events:
            found.append((number, record))
            if record["event"]["kind"] == kind and run in ("", record["run"]):
                return found
        raise AssertionError(f"the stream ended before {kind}: {found[-3:]}")


@contextlib.contextmanager
def stream(serving: Serving, path: str, token: str, after: int | None = None) -> Iterator[Stream]:
    """Listen inside the block."""
    headers = {"authorization": f"Bearer {token}"} | (
        {} if after is None else {"last-event-id": str(after)}
    )
    with contextlib.closing(
        http.client.HTTPConnection("127.0.0.1", serving.port, timeout=PATIENCE_S)
    ) as connection:
        connection.request("GET", path, headers=headers)
        with contextlib.closing(connection.getresponse()) as answer:
            yield Stream(connection, answer)
