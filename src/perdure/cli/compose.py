"""The composition root: the only place that wires stores, drivers, workspaces and copies together."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from perdure.config import Settings, load

if TYPE_CHECKING:
    from perdure.attempt import Engine
    from perdure.protocols import Observer
    from perdure.stores.sql import SqlStore

DATABASE = "perdure.db"


def settings() -> Settings:
    """The settings of this invocation. Raises ConfigError."""
    return load(os.environ, Path.cwd())


def open_to_read(chosen: Settings) -> SqlStore:
    """The store for verbs that only look; nothing is made or written."""
    from perdure import stores

    return stores.open(chosen.state / DATABASE, read_only=True)


def open_engine(chosen: Settings, observers: Sequence[Observer] = ()) -> Engine:
    """Everything wired, for verbs that act."""
    from perdure import drivers, stores
    from perdure.attempt import Engine
    from perdure.process import worker_identity
    from perdure.redaction import Redactor
    from perdure.transcripts import Copies
    from perdure.workspace import Workspaces

    redactor = Redactor.of(os.environ)
    return Engine(
        store=stores.open(chosen.state / DATABASE, observers=observers),
        workspaces=Workspaces(chosen.root, credentials=_credentials(os.environ)),
        driver=drivers.load,
        copies=Copies(chosen.state / "transcripts", redactor),
        redactor=redactor,
        state=chosen.state,
        environ=dict(os.environ),
        worker=worker_identity(),
        grace_s=chosen.grace,
    )


def _credentials(environ: Mapping[str, str]):  # type: ignore[no-untyped-def]
    """Who may ask for what: PERDURE_GIT_TOKEN is given for the one host named in PERDURE_GIT_TOKEN_HOST."""
    token, host = environ.get("PERDURE_GIT_TOKEN", ""), environ.get("PERDURE_GIT_TOKEN_HOST", "")

    def answer(url: str) -> tuple[str, str] | None:
        from urllib.parse import urlsplit

        return ("x-access-token", token) if token and host and urlsplit(url).hostname == host else None

    return answer


class Stopper:
    """Turns the first SIGINT or SIGTERM into a wish that the attempt sees; a lost terminal (SIGHUP) is no reason to end."""

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
