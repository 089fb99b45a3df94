"""A window of a real browser, signed in, which records everything that must not happen."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from playwright.sync_api import Browser, Page

from tests.web.serving import PATIENCE_S, Serving

FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
"""Flags by which the browser can reach only this machine."""

NODES = """() => {
  const bad = [];
  for (const each of document.querySelectorAll("*")) {
    const name = each.tagName.toLowerCase();
    const own = /^\\/static\\/[a-z0-9.-]+\\.js$/.test(each.getAttribute("src") || "");
    if (name === "script" && !own) bad.push(each.outerHTML.slice(0, 200));
    const active = /^(iframe|object|embed|base|portal|template|video|audio|img|image|animate|math|style|marquee|foreignobject)$/;
    if (active.test(name)) bad.push(name);
    for (const { name: attribute, value } of each.attributes) {
      if (/^on/i.test(attribute) || attribute === "style") bad.push(`${name} ${attribute}=${value}`);
      if (/^(data-)?hx-on/i.test(attribute) || /^(data-)?hx-vals/i.test(attribute)) bad.push(`${name} ${attribute}`);
      const address = /^(href|src|action|formaction|data|xlink:href|srcset|poster|(data-)?hx-(get|post|put|delete|sse:connect))$/i;
      const elsewhere = /^\\s*(javascript|data|vbscript):|^\\s*\\/\\/|^\\s*https?:(?!\\/\\/tea\\.example\\/)/i;
      if (address.test(attribute) && elsewhere.test(value)) bad.push(`${name} ${attribute}=${value}`);
    }
  }
  if (window.xss) bad.push("it ran");
  return bad;
}"""
"""A script that finds elements and attributes which perdure's own pages do not have, so an agent
must have added them."""


class Looking:
    """A browser window. If `script` is False, it runs no JavaScript."""

    def __init__(
        self,
        browser: Browser,
        serving: Serving,
        token: str,
        *,
        script: bool = True,
        width: int = 1280,
    ) -> None:
        self.base = f"http://127.0.0.1:{serving.port}"
        self.bad: list[str] = []
        self.expected: list[str] = []
        self.context = browser.new_context(
            base_url=self.base, java_script_enabled=script, viewport={"width": width, "height": 800}
        )
        self.context.set_default_timeout(PATIENCE_S * 1000)
        self.page = self.context.new_page()
        self._watch(self.page)
        self.page.goto("/sign-in")
        self.page.fill("#i-token", token)
        self.page.click("button")
        self.page.wait_for_url(f"{self.base}/")

    def _watch(self, page: Page) -> None:
        page.on(
            "console",
            lambda message: (
                self.bad.append(f"console: {message.text}")
                if message.type in ("error", "warning")
                else None
            ),
        )
        page.on("pageerror", lambda error: self.bad.append(f"error: {error}"))
        page.on(
            "dialog",
            lambda dialog: (self.bad.append(f"dialog: {dialog.message}"), dialog.dismiss()),
        )
        page.on("request", lambda request: self._asked(request.url))

    def _asked(self, url: str) -> None:
        if urlsplit(url).netloc != urlsplit(self.base).netloc:
            self.bad.append(f"request to {url}")

    def open(self, path: str, status: int = 200) -> Page:
        answer = self.page.goto(path)
        assert answer is not None and answer.status == status, f"{path}: {answer and answer.status}"
        if status >= 400:
            self.expected.append(path)
        return self.page

    def nodes(self) -> list[Any]:
        """Return the elements that an agent has put into the page. The list is empty if there are
        none."""
        found: list[Any] = self.page.evaluate(NODES)
        return found

    def close(self) -> None:
        self.context.close()

    def harmless(self) -> None:
        """Check that there was no dialog, no request to another host, and no error on the console.
        An error for an address that was expected to fail is allowed."""
        left = [
            each
            for each in self.bad
            if not (self.expected and "the server responded with a status of" in each)
        ]
        assert left == []
