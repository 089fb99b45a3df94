"""What every verb begins with: the settings, the wired engine, and a first Ctrl-C that ends things
in good order."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from perdure import wiring
from perdure.config import Settings
from perdure.config.files import load, user_settings
from perdure.wiring import DATABASE, open_to_read, probe, this_host

if TYPE_CHECKING:
    from perdure.engine.attempt import Engine
    from perdure.protocols import Observer

__all__ = [
    "DATABASE",
    "Stopper",
    "environment",
    "open_engine",
    "open_to_read",
    "probe",
    "settings",
    "this_host",
]


def settings() -> Settings:
    """The settings of this invocation, which from here on has the account of `run_as`. Raises
    ConfigError, UsageError."""
    chosen = load(os.environ, Path.cwd())
    if chosen.run_as:
        from perdure.host.privileges import adopt

        file = user_settings(os.environ)
        adopt(chosen.run_as, chosen.root, chosen.state, file if file.exists() else None)
    return chosen


def environment(chosen: Settings) -> Mapping[str, str]:
    """The user's environment, with where homes are that were linked to a volume: what a driver is
    to be asked with."""
    from perdure.host.homes import remembered

    return remembered.environment(chosen.state, os.environ)


def open_engine(
    chosen: Settings,
    observers: Sequence[Observer] = (),
    *,
    guarded: bool = False,
    secrets: Sequence[str] = (),
) -> Engine:
    """Everything wired, for verbs that act; see `wiring`."""
    return wiring.open_engine(chosen, os.environ, observers, guarded=guarded, secrets=secrets)


class Stopper:
    """Turns the first SIGINT or SIGTERM into a wish that the attempt sees; a lost terminal (SIGHUP)
    is no reason to end."""

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> Stopper:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._ask)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        return self

    def __exit__(self, *_: object) -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True

    def attach(self, engine: Engine) -> Engine:
        """The engine, which now listens."""
        return replace(engine, stopping=lambda: self.asked)
