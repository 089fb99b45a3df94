"""Every page in a real browser, with a store full of hostile content."""

from __future__ import annotations

import re
from collections.abc import Callable

from playwright.sync_api import expect

from perdure.rules.text import clean
from tests.dashboard.browsing import Looking
from tests.dashboard.hostile import PAYLOADS
from tests.web.serving import Serving

PAGES = (
    "/", "/?state=failed", "/?state=asking&q=alert", "/?q=%3Cscript%3E&agent=claude", "/runs/everything", "/runs/everything/log",
    "/runs/everything/instructions", "/runs/everything/checkpoints", "/sessions", "/sessions?q=alert", "/plans", "/plans/hostile",
    "/failures", "/failures?span=90d", "/continuity", "/disk", "/inbox", "/inbox?state=received&source=tea", "/checks", "/new",
    "/digest", "/digest?since=7d", "/audit", "/audit?actor=local&since=all",
    "/runs/everything/update", "/runs/everything/remove",
)  # fmt: skip
EACH = ("", "/log", "/checkpoints", "/instructions", "/update")


def test_every_page_is_harmless(full: tuple[Serving, str], look: Callable[..., Looking]) -> None:
    """Each page is shown without an error on the console, a request to elsewhere, or a node or
    handler that an agent wrote."""
    window = look(*full)
    for path in PAGES:
        page = window.open(path)
        assert page.title().endswith("perdure") and page.locator("main").is_visible(), path
        assert window.nodes() == [], path


def test_each_payload_is_a_text_and_nothing_else(
    full: tuple[Serving, str], look: Callable[..., Looking]
) -> None:
    """The log shows all payloads as text, without invisible characters. Each payload is in every
    field of some run, and none of them runs."""
    window = look(*full)
    page = window.open("/runs/everything/log")
    shown = [text.strip() for text in page.locator("#log li.l-said span").all_text_contents()]
    assert shown == [clean(payload.replace("\x00", "")).strip() for payload in PAYLOADS]
    for number in range(0, len(PAYLOADS), 4):
        window.open(f"/runs/r-{number}{EACH[number // 4 % len(EACH)]}")
        assert window.nodes() == []
    for number in range(1, len(PAYLOADS), 9):
        window.open(f"/inbox/{number}")
        assert window.nodes() == []


def test_the_page_of_a_run_shows_the_verdict_on_its_work(
    full: tuple[Serving, str], look: Callable[..., Looking]
) -> None:
    """The verdict is a mark beside the outcome, with the open question below it. The rest of the
    report is in its details."""
    page = look(*full).open("/runs/r-0")
    expect(page.locator(".try .w-blocked")).to_have_text("blocked")
    expect(page.locator(".try .detail", has_text="It asks:")).to_have_count(1)
    labels = page.locator(".whys dt").all_text_contents()
    assert {"work", "changes", "denied", "asks", "left", "says"} <= set(labels)


def test_a_page_is_read_without_a_script(
    full: tuple[Serving, str], look: Callable[..., Looking]
) -> None:
    """Without JavaScript a person finds a run, reads its timeline and its log, and is asked before
    it is removed."""
    window = look(*full, script=False)
    page = window.open("/")
    page.fill("[name=q]", "everything")
    page.click("text=Search")
    expect(page.locator(".row")).to_have_count(1)
    page.click(".row")
    expect(page).to_have_url(re.compile("/runs/everything$"))
    assert page.locator(".try").count() == 1 and page.locator("#log li").count() > 50
    page.click("text=Remove")
    expect(page.locator("h1")).to_have_text("Remove everything?")
    page.click("text=Cancel")
    expect(page).to_have_url(re.compile("/runs/everything$"))


def test_a_sign_in_that_is_over_while_one_looks(
    full: tuple[Serving, str], look: Callable[..., Looking]
) -> None:
    """When the sign-in ends, the open page goes to the sign-in form by itself, and from there back.
    The form does not appear inside the page."""
    window = look(*full)
    page = window.open("/plans/hostile")
    # `wait_for_function` can evaluate an expression only once, because the page's policy forbids
    # the later evaluations.
    listens = "Boolean(document.querySelector('#live')._htmx?.sse)"
    full[0].until(lambda: page.evaluate(listens), "the page listens")
    window.context.clear_cookies()
    window.expected.append("the part of the page")
    page.evaluate("htmx.trigger('#live', 'journal')")
    page.wait_for_url(re.compile(r"/sign-in\?next=/plans/hostile$"))
    page.fill("#i-token", full[1])
    page.click("button")
    page.wait_for_url(re.compile(r"/plans/hostile$"))


def test_keys(full: tuple[Serving, str], look: Callable[..., Looking]) -> None:
    """j and k select rows, Enter opens, u goes up, / searches, g and a letter open a page, and ?
    lists all keys."""
    window = look(*full)
    page = window.open("/")
    for key in ("j", "j", "k", "j"):
        page.keyboard.press(key)
    second = page.locator("[data-row]").nth(1)
    name = second.get_attribute("data-words")
    assert page.evaluate("document.activeElement.dataset.words") == name
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile(rf"/runs/{name}$"))
    page.keyboard.press("2")
    page.wait_for_url(re.compile(r"/log$"))
    page.keyboard.press("u")
    page.wait_for_url(re.compile(rf"/runs/{name}$"))
    page.keyboard.press("g")
    page.keyboard.press("f")
    page.wait_for_url(re.compile(r"/failures$"))
    page.keyboard.press("?")
    assert page.locator("dialog#keys").is_visible()
    page.keyboard.press("Escape")
    page.keyboard.press("u")
    page.wait_for_url(re.compile(r"/$"))
    page.keyboard.press("/")
    page.keyboard.type("everything j k ?")
    assert page.input_value("[data-search]") == "everything j k ?"


def test_a_phone_has_nothing_beside_its_edge(
    full: tuple[Serving, str], look: Callable[..., Looking]
) -> None:
    """At the width of a phone no page needs horizontal scrolling."""
    window = look(*full, width=390)
    for path in (
        "/",
        "/runs/everything",
        "/runs/r-4",
        "/sessions",
        "/failures",
        "/continuity",
        "/disk",
        "/inbox",
        "/checks",
        "/digest",
        "/audit?since=all",
        "/new",
    ):
        page = window.open(path)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, path
