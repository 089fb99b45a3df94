"""Templates, and what they may say. Whatever comes from an agent, a repository or a forge is
cleaned and escaped on its way out, each expression of each template alike: no page has to think of
it.

No style and no script stands in a page: the policy in `CSP` forbids it, so bars and threads are
drawn as SVG.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from starlette.responses import HTMLResponse, Response
from starlette.staticfiles import StaticFiles

from perdure.rules.text import age, clean, clock, filled, one_line, tokens

HERE = Path(__file__).parent
CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
HEADERS = {
    "content-security-policy": CSP,
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}


def _harmless(value: Any) -> Any:
    """Every expression passes here, before it is escaped."""
    return value if isinstance(value, Markup) or not isinstance(value, str) else clean(value)


def size(count: int) -> str:
    """`12 kB`, `3.4 GB`."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            return (
                f"{value:.0f} {unit}"
                if unit in ("B", "kB") or value >= 100
                else f"{value:.1f} {unit}"
            )
        value /= 1000
    raise AssertionError


def lasted(milliseconds: int) -> str:
    """`850 ms`, `12 s`, `3 m 05 s`, `2 h 10 m`, `3 d 4 h`."""
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
    """`$0.42`, `≈$0.42` for an estimate; fractions of a cent are not hidden."""
    mark = "≈" if estimated else ""
    return f"{mark}${dollars:.2f}" if dollars >= 0.005 or dollars == 0 else f"{mark}${dollars:.4f}"


def href(url: str) -> str:
    """The address if it is one of the web; else nothing, so that no `javascript:` becomes a
    link."""
    return url if url.startswith(("https://", "http://")) else ""


PAGES = Environment(
    loader=FileSystemLoader(HERE / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    finalize=_harmless,
    trim_blocks=True,
    lstrip_blocks=True,
    auto_reload=False,
)
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
    """Scripts and styles. What has its version in its name is kept by the browser; what is
    perdure's own is asked after each time."""

    def file_response(self, full_path: Any, *rest: Any, **more: Any) -> Response:
        answer = super().file_response(full_path, *rest, **more)
        kept = any(letter.isdigit() for letter in Path(full_path).name)
        answer.headers["cache-control"] = "max-age=31536000, immutable" if kept else "no-cache"
        return answer


def page(template: str, status: int = 200, **values: Any) -> HTMLResponse:
    """A template as an answer."""
    return HTMLResponse(PAGES.get_template(template).render(values), status, HEADERS)


def part(template: str, macro: str, *values: Any) -> str:
    """What one macro of a template makes of these values."""
    return str(getattr(PAGES.get_template(template).module, macro)(*values))
