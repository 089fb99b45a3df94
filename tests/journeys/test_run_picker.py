"""Verbs without a name on a terminal: a person chooses among the runs that the verb could mean."""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import unquote

import pytest

import perdure
from tests.journeys.stage import Stage
from tests.journeys.terminal import Terminal, on_terminal

pytestmark = pytest.mark.journey


@pytest.mark.parametrize("agent", ["claude"], indirect=True)
def test_a_run_is_chosen_at_a_terminal(stage: Callable[..., Stage]) -> None:
    """With two runs that `stop` could mean, a terminal shows both and asks. If the person chooses
    none, no run is stopped. Paths are links at a terminal, and plain in a pipe."""
    one = stage("say Never.\n")
    with perdure.open(cwd=one.repo, environ=one.environ) as runner:
        for name in ("first", "second"):
            run = runner.submit(f"Do the {name}.", name=name, backend="worktree")
    shown = Terminal(one, 80)
    try:
        shown.type("python3 -m perdure stop; PS1='left> '", "Enter")
        lines = shown.shows("Which run to stop? (2 of 2)")
        assert any(line.startswith("> second") for line in lines)
        shown.type("Escape")
        shown.shows("stop could mean several runs")
        shown.shows("left>")
        shown.type("clear; python3 -m perdure stop", "Enter")
        shown.shows("Which run to stop?")
        shown.type("first")
        shown.shows("(1 of 2)")
        shown.type("Enter")
        shown.shows("first is cancelled")
    finally:
        shown.tmux("kill-server")
    states = {name: one.show(name)["state"] for name in ("first", "second")}
    assert states == {"first": "cancelled", "second": "queued"}
    shown = Terminal(one, 110)

    def refused() -> list[str]:
        return [line for line in shown.screen() if "the workdir of second is not here" in line]

    try:
        shown.type("python3 -m perdure top", "Enter")
        shown.shows("waiting  1")
        shown.type("d")
        shown.shows("Enter returns to the board")
        shown.type("Enter")
        shown.shows("waiting  1")
        shown.type("a")
        shown.shows("Copy its changes into this checkout?")
        shown.type("Enter")
        shown.shows("Enter returns to the board")
        assert len(refused()) == 1  # what `d` has printed above
        shown.type("Enter")
        shown.shows("waiting  1")
        shown.type("a")
        shown.shows("Copy its changes into this checkout?")
        shown.type("y", "Enter")
        one.until(lambda: len(refused()) == 2, "apply says that there is no workdir")
        shown.shows("Enter returns to the board")
        shown.type("Enter")
        shown.shows("waiting  1")
        shown.type("u")
        shown.shows("New instructions")
        shown.type("Leave the tests alone.", "Enter")
        shown.shows("Enter returns to the board")
        shown.type("Enter")
        shown.shows("peek")
        shown.type("q")
        shown.shows("ready> ")
    finally:
        shown.tmux("kill-server")
    texts = [each["text"] for each in one.show("second")["contexts"]]
    assert texts == ["Do the second.", "Leave the tests alone."]
    one.perdure("stop", "second")
    code, raw = on_terminal(one, "show", "second", columns=60)
    assert code == 0 and run.workspace is not None
    links = [part.partition("\x1b\\")[0] for part in raw.split("\x1b]8;;file://")[1:]]
    assert [unquote(link).partition("/")[2] for link in links] == [run.workspace.path[1:]]
    assert "\x1b" not in one.perdure("show", "second").out
