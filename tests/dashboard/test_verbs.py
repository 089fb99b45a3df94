"""A person's actions in the browser, with a real agent: begin, watch, instruct, fork, retry, stop,
reset, remove, restore."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.dashboard.browsing import Looking
from tests.journeys.stage import Stage
from tests.web.serving import PATIENCE_S, Serving

Working = tuple[Stage, Serving, str]
expect.set_options(timeout=PATIENCE_S * 1000)


def begin(window: Looking, stage: Stage, name: str, prompt: str) -> Page:
    """Begin a new task by the form."""
    page = window.open("/new")
    page.fill("[name=prompt]", prompt)
    page.fill("[name=repo]", str(stage.repo))
    page.fill("[name=name]", name)
    page.click("text=Begin")
    page.wait_for_url(f"**/runs/{name}?done=begun")
    return page


def stands(page: Page, state: str) -> None:
    """Wait until the run's page shows the state, without a reload."""
    expect(page.locator(f"#head h1 .glyph.s-{state}")).to_be_visible()


def runs(stage: Stage) -> dict[str, dict[str, Any]]:
    return {each["name"]: each for each in json.loads(stage.perdure("ls", "--json").out)["runs"]}


def test_begun_watched_instructed_and_forked(
    working: Working, look: Callable[..., Looking]
) -> None:
    """A form starts a task. The open page shows its log and its end without a reload. New
    instructions continue the same conversation, and the diff shows the changes. A fork has both
    conversation and files, and its parent is unchanged."""
    stage, serving, token = working
    window = look(serving, token)
    page = begin(window, stage, "first", "Make one.txt")
    expect(page.locator("#log")).to_contain_text("One is there.")
    stands(page, "succeeded")
    expect(page.locator(".try .outcome")).to_have_text(["succeeded"])
    page.click("text=Instruct")
    page.fill("[name=prompt]", "Make two.txt too")
    page.click("text=Send")
    page.wait_for_url("**/runs/first?done=updated")
    expect(page.locator(".try .outcome")).to_have_text(["succeeded", "succeeded"])
    expect(page.locator(".try .chip[title^=receipt]")).to_have_text(["fresh", "native"])
    page.click("text=Diff")
    expect(page.locator(".files .name")).to_have_text(["one.txt", "two.txt"])
    expect(page.locator(".file .d-add td:last-child")).to_have_text(["one", "two"])
    page.click("text=Timeline")
    page.click("text=Fork")
    page.fill("[name=prompt]", "Make three.txt too")
    page.fill("[name=name]", "second")
    page.click("button:has-text('Fork')")
    page.wait_for_url("**/runs/second?done=forked")
    expect(page.locator(".try .chip[title^=receipt]")).to_have_text(["forked"])
    stands(page, "succeeded")
    fork, parent = (Path(stage.show(name)["workspace"]["path"]) for name in ("second", "first"))
    assert {"one.txt", "two.txt", "three.txt"} <= {each.name for each in fork.iterdir()}
    assert not (parent / "three.txt").exists()


def test_a_session_is_found_and_gone_on_with(
    working: Working, look: Callable[..., Looking]
) -> None:
    """A conversation is found by its text, its page shows it, and it can be continued from
    there."""
    stage, serving, token = working
    window = look(serving, token)
    page = begin(window, stage, "talk", "What is a quercus?")
    stands(page, "succeeded")
    page = window.open("/sessions")
    page.fill("[data-search]", "quercus")
    page.keyboard.press("Enter")
    expect(page.locator(".row")).to_have_count(1)
    page.click(".row")
    expect(page.locator(".talk .agent").first).to_contain_text("an oak.")
    page.click("text=Resume")
    page.fill("[name=prompt]", "And its fruit?")
    page.click("button:has-text('Resume')")
    page.wait_for_url("**/runs/talk?done=resumed")
    expect(page.locator(".try .chip[title^=receipt]")).to_have_text(["fresh", "native"])


def test_stopped_reset_and_removed(working: Working, look: Callable[..., Looking]) -> None:
    """A run is stopped after a confirmation, and Retry continues it in the same conversation. It is
    stopped again, reset after a page has listed the effects, and removed from the list. Its file is
    in the trash."""
    stage, serving, token = working
    window = look(serving, token)
    page = begin(window, stage, "long", "LASTS for ever")
    expect(page.locator("#log")).to_contain_text("I look around.")
    place = Path(stage.show("long")["workspace"]["path"])
    stage.until((place / "begun.txt").exists, "the agent has done what it said")
    for outcomes in (["cancelled"], ["cancelled", "cancelled"]):
        page.click(".verbs a:has-text('Stop')")
        expect(page.locator("h1")).to_have_text("Stop long?")
        page.click("button:has-text('Stop it')")
        stands(page, "cancelled")
        expect(page.locator(".try .outcome")).to_have_text(outcomes)
        if len(outcomes) == 1:
            page.click("button:has-text('Retry')")
            page.wait_for_url("**/runs/long?done=retried")
            stands(page, "running")
            stage.until(
                lambda: stage.show("long")["attempts"][-1]["session_id"],
                "the second attempt has its conversation",
            )
    attempts = stage.show("long")["attempts"]
    assert (
        attempts[1]["continuation"] == "resume"
        and attempts[0]["session_id"] == attempts[1]["session_id"]
    )
    assert (place / "begun.txt").exists()
    page.click("a:has-text('Reset')")
    expect(page.locator("h1")).to_have_text("Reset long?")
    assert "goes to the trash" in page.inner_text(".ask")
    assert place.exists(), "asking changes nothing"
    page.click("button:has-text('Reset')")
    page.wait_for_url("**/runs/long?done=reset")
    assert not place.exists()
    kept = [each for each in stage.directory.rglob("begun.txt") if "trash" in str(each)]
    assert [each.read_text() for each in kept] == ["begun\n"]
    page.click("a:has-text('Remove')")
    expect(page.locator("h1")).to_have_text("Remove long?")
    page.click("button:has-text('Remove')")
    page.wait_for_url("**/?done=removed")
    assert "long" not in runs(stage)


def test_taken_back_to_a_checkpoint(working: Working, look: Callable[..., Looking]) -> None:
    """A checkpoint is restored after a confirmation, and the earlier state becomes a checkpoint
    too."""
    stage, serving, token = working
    window = look(serving, token)
    page = begin(window, stage, "back", "Make one.txt")
    stands(page, "succeeded")
    page.click("text=Checkpoints")
    expect(page.locator("[data-tab][aria-current]")).to_have_text("Checkpoints")
    first = page.locator("tbody tr").last.locator("b").inner_text()
    before = page.locator("tbody tr").count()
    page.locator("tbody tr").last.locator("text=Restore").click()
    expect(page.locator("h1")).to_have_text(f"Restore back to checkpoint {first}?")
    page.click("button:has-text('Restore')")
    page.wait_for_url("**/runs/back/checkpoints?done=restored")
    expect(page.locator("tbody tr")).to_have_count(before + 1)


def test_what_an_agent_writes_is_a_text(working: Working, look: Callable[..., Looking]) -> None:
    """A real agent prints markup, and makes files with markup in their names. No page of its run
    has any of it as markup."""
    stage, serving, token = working
    window = look(serving, token)
    page = begin(window, stage, "hostile", "HOSTILE <script>alert(1)</script>")
    stands(page, "succeeded")
    assert window.nodes() == []
    for tab in ("log", "diff", "checkpoints", "instructions"):
        page = window.open(f"/runs/hostile/{tab}")
        assert window.nodes() == []
    assert "<img src=x onerror=alert(1)>.html" in window.open("/runs/hostile/diff").inner_text(
        ".files"
    )
    found = runs(stage)["hostile"]
    session = stage.show(found["name"])["attempts"][0]["session_id"]
    assert "<script>alert(1)</script>" in window.open(f"/sessions/{session}").inner_text(".talk")
    assert window.nodes() == []


@pytest.mark.parametrize(("scope", "verbs"), [("read", set()), ("dispatch", {"Instruct", "Fork"})])
def test_a_token_has_its_own_verbs(
    working: Working, look: Callable[..., Looking], scope: str, verbs: set[str]
) -> None:
    """A visitor who may only read sees no actions, and cannot trigger one by requesting its
    address. A reset needs an admin."""
    stage, serving, token = working
    begun = begin(look(serving, token), stage, f"for-{scope}", "Make one.txt")
    stands(begun, "succeeded")
    window = look(serving, serving.token(scope))
    page = window.open(f"/runs/for-{scope}")
    assert {each.strip() for each in page.locator(".verbs > *").all_text_contents()} == verbs
    page = window.open(f"/runs/for-{scope}/reset", 403)
    assert "needs the scope admin" in page.inner_text("h1")
