"""A program that only sends notices, and that tests kill at any moment. It uses the settings of the
environment."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

from perdure.cli.runs.pool import devices_of
from perdure.config.files import load
from perdure.engine.notices import Notifier
from perdure.engine.notices import notifier as module
from perdure.wiring import open_engine


def main() -> None:
    module.LOOK_S = 0.01
    settings = load(os.environ, Path("/"))
    engine = open_engine(settings, os.environ)
    devices = devices_of(engine.store, settings)
    say = lambda line: print(line, file=sys.stderr)  # noqa: E731
    with Notifier(engine, settings.notify, say, devices=devices):
        print("ready", flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
