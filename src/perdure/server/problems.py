"""Converts errors to HTTP answers: `application/problem+json` (RFC 9457), with one status for each
kind of error.

`detail` is the message that the command line prints, and `hint` is its advice.
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus

from starlette.responses import JSONResponse, Response

from perdure.errors import (
    AgentMissing,
    ConfigError,
    Conflict,
    DiskFull,
    GitFailed,
    NotFound,
    PerdureError,
    StoreError,
    UsageError,
    WorkspaceError,
)
from perdure.rules.plan import PlanError

STATUSES: tuple[tuple[type[PerdureError], int], ...] = (
    (UsageError, 422),
    (AgentMissing, 422),
    (PlanError, 422),
    (NotFound, 404),
    (Conflict, 409),
    (GitFailed, 502),
    (WorkspaceError, 409),
    (DiskFull, 507),
    (StoreError, 503),
    (PerdureError, 500),
)
"""HTTP status by class of error. The first matching class is used, so subclasses come before their
base classes."""

AGAIN = {429: "60", 502: "10", 503: "10", 507: "60"}
"""Seconds after which the client may retry, by HTTP status (header Retry-After)."""

UNREAD = frozenset({401, 403, 408, 413, 415, 429})
"""Statuses of requests that are refused before their body was read. The connection is then closed,
because otherwise the server would have to receive the rest of the body."""


class Problem(PerdureError):
    """An error with its own HTTP `status` and `headers`."""

    def __init__(
        self, status: int, message: str, hint: str = "", headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message, hint)
        self.status, self.headers = status, dict(headers or {})


def status_of(error: PerdureError) -> int:
    """Return the HTTP status for an error of perdure. No other code assigns statuses to errors."""
    if isinstance(error, Problem):
        return error.status
    return next(status for kind, status in STATUSES if isinstance(error, kind))


def problem(error: PerdureError) -> Response:
    """Return the HTTP answer for an error."""
    status = status_of(error)
    said: dict[str, object] = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": str(error),
    }
    said |= {"hint": error.hint} if error.hint else {}
    said |= {"problems": error.problems} if isinstance(error, ConfigError) else {}
    headers = {"retry-after": AGAIN[status]} if status in AGAIN else {}
    headers |= {"connection": "close"} if status in UNREAD else {}
    headers |= error.headers if isinstance(error, Problem) else {}
    return JSONResponse(said, status, headers, media_type="application/problem+json")
