"""The setup that every verb needs: the settings, the engine, and the handling of Ctrl-C, which
stops agents gracefully."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import perdure.cli.light_msgspec  # noqa: F401 - before every other import of msgspec

# isort: split
from msgspec.structs import replace

from perdure import wiring
from perdure.config import Settings
from perdure.config.files import load, user_settings
from perdure.host.actors import local_person
from perdure.wiring import DATABASE, open_to_read, probe, this_host

if TYPE_CHECKING:
    from perdure.engine.attempt import Engine
    from perdure.engine.attempt.engine import EngineStore
    from perdure.engine.conversations import ConversationIndex
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
    """Return the settings of this command. If the setting `run_as` names a user, also change this
    process to that user. Raises ConfigError or UsageError."""
    try:
        here = Path.cwd()
    except FileNotFoundError:
        from perdure.errors import UsageError

        raise UsageError(
            "the current directory does not exist any more", "cd to another one"
        ) from None
    chosen = load(os.environ, here)
    if chosen.run_as:
        from perdure.host.privileges import adopt

        # Remember the user who called perdure, before the process changes to the user of `run_as`.
        local_person()
        file = user_settings(os.environ)
        adopt(chosen.run_as, chosen.root, chosen.state, file if file.exists() else None)
    return chosen


def environment(chosen: Settings) -> Mapping[str, str]:
    """Return the user's environment for drivers. For each home that is linked to a volume, the
    variable that names the home's directory is added, unless the user has set it."""
    from perdure.host.homes import linked_homes

    return linked_homes.HomeEnvironment(chosen.state, os.environ)


def open_engine(
    chosen: Settings,
    observers: Sequence[Observer] = (),
    *,
    actor: str = "",
    guarded: bool = False,
    secrets: Sequence[str] = (),
) -> Engine:
    """Return the engine for verbs that change something; see `wiring.open_engine`. `actor` is
    recorded as the originator of the requests. The default is the user of this process."""
    return wiring.open_engine(
        chosen,
        os.environ,
        observers,
        actor=actor or local_person(),
        guarded=guarded,
        secrets=secrets,
    )


class Stopper:
    """Turns SIGINT and SIGTERM into a request to stop. The attempt polls for this request and ends
    gracefully. If the terminal is lost (SIGHUP), the command continues."""

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
        """Return a copy of the engine whose attempts end gracefully after one of these signals."""
        return replace(engine, stopping=lambda: self.asked)


def conversation_index(store: EngineStore, only: Sequence[str] = ()) -> ConversationIndex:
    """Return the index of this user's conversations. `only`: names of the agents to search. Raises
    AgentMissing for an unknown agent."""
    from perdure.agents import registry
    from perdure.engine.conversations import ConversationIndex
    from perdure.errors import PerdureError

    found = {}
    for name in only or registry.names():
        try:
            found[name] = registry.load(name)
        except PerdureError:
            if only:
                raise
    return ConversationIndex(store, found, environment(settings()), frozenset(only))
