"""`stop`: stops a run's agent gracefully."""

from __future__ import annotations

import argparse
import time

from perdure.cli.compose import open_engine, settings
from perdure.cli.parser import optional_name
from perdure.model import RunState

PATIENCE_S = 30.0


def stop_arguments(parser: argparse.ArgumentParser) -> None:
    optional_name(parser, ask=True)


def stop_verb(arguments: argparse.Namespace) -> int:
    from perdure.engine import service

    engine = open_engine(settings())
    run = service.stop(engine, arguments.name)
    give_up = time.monotonic() + PATIENCE_S
    while run.state is RunState.RUNNING and time.monotonic() < give_up:
        time.sleep(0.1)
        run = engine.store.get(run.id)
    if run.state is RunState.RUNNING:
        print(f"{run.name} is still stopping: perdure show {run.name}")
        return 75
    print(f"{run.name} is {run.state}; perdure retry {run.name} continues where it stopped")
    return 0
