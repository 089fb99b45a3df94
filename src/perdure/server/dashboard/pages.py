"""Renders the templates. The value of every expression in a template is cleaned and escaped, so
pages can safely show texts from agents, repositories and forges.

The policy in `CSP` forbids inline styles and scripts, so pages have none. Bars, and the rows of
attempts (`timelines.thread`), are therefore drawn as SVG.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from starlette.responses import HTMLResponse, Response
from starlette.staticfiles import StaticFiles

from perdure.rules.run_titles import worker_of
from perdure.rules.text import age, clean, clock, filled, one_line, tokens

HERE = Path(__file__).parent
CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "manifest-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
WORKER = "push-worker.js"
"""Name of the script that shows push messages when no page is open."""
HEADERS = {
    "content-security-policy": CSP,
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}


def _harmless(value: Any) -> Any:
    """Return the value of a template expression without harmful characters. Called for every value
    before it is escaped."""
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    return clean(value)


def size(count: int) -> str:
    """Format a size in bytes: `12 kB`, `3.4 GB`."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            if unit in ("B", "kB") or value >= 100:
                return f"{value:.0f} {unit}"
            return f"{value:.1f} {unit}"
        value /= 1000
    raise AssertionError


def lasted(milliseconds: int) -> str:
    """Format a duration: `850 ms`, `12 s`, `3 m 05 s`, `2 h 10 m`, `3 d 4 h`."""
    seconds = max(0, milliseconds) // 1000
    if milliseconds < 1000:
        return f"{max(0, milliseconds)} ms"
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} m {seconds % 60:02} s"
    if seconds < 86_400:
        return f"{seconds // 3600} h {seconds % 3600 // 60:02} m"
    return f"{seconds // 86_400} d {seconds % 86_400 // 3600} h"


def money(dollars: float, estimated: bool = False) -> str:
    """Format dollars: `$0.42`, or `≈$0.42` for an estimate. Amounts below half a cent get four
    decimals."""
    mark = "≈" if estimated else ""
    if dollars >= 0.005 or dollars == 0:
        return f"{mark}${dollars:.2f}"
    return f"{mark}${dollars:.4f}"


def href(url: str) -> str:
    """Return the URL if it is http or https; otherwise an empty string, because a `javascript:` URL
    must not become a link."""
    if url.startswith(("https://", "http://")):
        return url
    return ""


PAGES = Environment(
    loader=FileSystemLoader(HERE / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    finalize=_harmless,
    trim_blocks=True,
    lstrip_blocks=True,
    auto_reload=False,
)
PAGES.globals["worker_of"] = worker_of
PAGES.filters |= {
    "age": age,
    "clock": clock,
    "filled": filled,
    "href": href,
    "lasted": lasted,
    "money": money,
    "one_line": one_line,
    "quoted": partial(quote, safe=""),
    "size": size,
    "tokens": tokens,
}


class Static(StaticFiles):
    """Serves scripts and styles. A file with a version in its name is cached by the browser for a
    year. For other files the browser asks the server each time whether they have changed."""

    def file_response(self, full_path: Any, *rest: Any, **more: Any) -> Response:
        answer = super().file_response(full_path, *rest, **more)
        kept = any(letter.isdigit() for letter in Path(full_path).name)
        if Path(full_path).name == WORKER:
            # These headers let the service worker in this directory receive messages for all pages,
            # and forbid the worker to load anything.
            answer.headers["service-worker-allowed"] = "/"
            answer.headers["content-security-policy"] = "default-src 'none'"
        answer.headers["cache-control"] = "max-age=31536000, immutable" if kept else "no-cache"
        return answer


def page(
    template: str, status: int = 200, headers: Mapping[str, str] = HEADERS, **values: Any
) -> HTMLResponse:
    """Render a template and return it as a response."""
    return HTMLResponse(PAGES.get_template(template).render(values), status, headers)


def part(template: str, macro: str, *values: Any) -> str:
    """Render one macro of a template and return the resulting HTML."""
    return str(getattr(PAGES.get_template(template).module, macro)(*values))
