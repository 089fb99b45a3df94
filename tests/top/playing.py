"""A board that Textual's pilot controls, with real keys and a real store, and the content of its
screen."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from textual.pilot import Pilot

from perdure.cli.top.app import AnswerRequest, Board
from perdure.cli.top.view import ViewStore
from perdure.host.process import Probe
from perdure.model.requests import AnswerKind
from tests.patience import PATIENCE_S

Story = Callable[["Play"], Awaitable[None]]


def nothing(run_id: str) -> str:
    raise AssertionError("nobody asked for this")


def no_answer(run_id: str, number: int, verdict: AnswerKind, words: str) -> str:
    raise AssertionError("nobody answered")


class Play:
    """The board, controlled by a pilot."""

    def __init__(self, app: Board, pilot: Pilot[None]) -> None:
        self.app, self.pilot = app, pilot

    def screen(self) -> list[str]:
        """Return the lines on the screen, as a person reads them."""
        size = self.app.size
        strips = self.app.screen._compositor.render_strips()
        return ["".join(segment.text for segment in strip).rstrip() for strip in strips][
            : size.height
        ]

    async def press(self, *keys: str) -> None:
        await self.pilot.press(*keys)

    async def until(self, met: Callable[[], Any], what: str) -> None:
        """Wait until the condition is true."""
        end = time.monotonic() + PATIENCE_S
        while not met():
            assert time.monotonic() < end, f"not on the screen: {what}\n" + "\n".join(self.screen())
            await self.pilot.pause(0.02)

    async def shows(self, *texts: str) -> None:
        """Wait until all of these texts are on the screen."""
        for text in texts:
            await self.until(lambda text=text: any(text in line for line in self.screen()), text)

    async def hides(self, text: str) -> None:
        await self.until(
            lambda: not any(text in line for line in self.screen()), f"(no more) {text}"
        )

    async def chooses(self, run_id: str) -> None:
        """Move the cursor down to a run."""
        await self.until(lambda: self.app.chosen, "a chosen run")
        while self.app.chosen != run_id:
            await self.press("j")


def play(
    store: ViewStore,
    story: Story,
    *,
    retry: Callable[[str], str] = nothing,
    stop: Callable[[str], str] = nothing,
    answer: AnswerRequest = no_answer,
    size: tuple[int, int] = (120, 40),
) -> None:
    """Play a story with a board that reads the store five times a second."""

    async def go() -> None:
        probe = Probe(Path("/nonexistent"))
        app = Board(store, probe, retry, stop, look_s=0.2, answer=answer)
        async with app.run_test(size=size) as pilot:
            await story(Play(app, pilot))

    asyncio.run(go())
