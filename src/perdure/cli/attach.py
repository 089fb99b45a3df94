"""`attach`: follows a run at work as if one had started it here. Looks only: Ctrl-C leaves, and the
run goes on."""

from __future__ import annotations

import argparse
import time
from functools import partial
from typing import TYPE_CHECKING

from perdure.cli.compose import Stopper, open_to_read, settings
from perdure.cli.look import UNATTENDED
from perdure.liveness import Liveness
from perdure.model import RunState, TaskRun

if TYPE_CHECKING:
    from collections.abc import Callable

    from perdure.cli.progress import Progress
    from perdure.protocols import RunStore

NAP_S = 0.2


def attach_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="the run's name, id or key")


def attach_verb(arguments: argparse.Namespace) -> int:
    from perdure import service
    from perdure.cli.progress import Progress
    from perdure.cli.run import warn
    from perdure.lifecycle import FINAL
    from perdure.report import report_of

    store = open_to_read(settings())
    run = store.get(arguments.name)
    # A flag, and no KeyboardInterrupt: one that is raised inside a callback of C code is lost.
    with Stopper() as stopper, Progress() as progress:
        run = _follow(store, run, progress, stopper)
        if stopper.asked:
            progress.part(
                f"left; {run.name} goes on: perdure attach {run.name}, perdure stop {run.name}"
            )
            return 0
        if run.state not in FINAL:
            progress.part(
                f"nobody works on {run.name}: perdure retry {run.name} goes on where it stopped"
            )
            return UNATTENDED
        report = report_of(store, run)
    progress.conclude(report)
    warn(report)
    ended = [
        attempt.outcome.kind for attempt in store.attempts(run.id) if attempt.outcome is not None
    ]
    return service.exit_code(run, ended[-1] if ended else None)


def _follow(store: RunStore, run: TaskRun, progress: Progress, stopper: Stopper) -> TaskRun:
    """Shows what was and what comes, until the run is over, nobody works on it, or one is asked to
    leave. Returns it as it is then."""
    from perdure.lifecycle import FINAL

    progress.introduce(run)
    attempts = store.attempts(run.id)
    records = store.history(run.id, limit=1_000_000)
    progress.catch_up(records, attempts[-1].started if attempts else run.created, store.now())
    seen = records[-1].seq if records else 0
    while True:
        run = store.get(run.id)
        for record in store.history(run.id, after=seen):
            seen = record.seq
            progress(record)
        if (
            stopper.asked
            or run.state in FINAL
            or _is_left_alone(run, store.now(), partial(store.get, run.id))
        ):
            return run
        time.sleep(NAP_S)


def _is_left_alone(run: TaskRun, now: int, again: Callable[[], TaskRun]) -> bool:
    """Whether nobody works on the run, nor is going to: its supervisor died, or it is due and none
    takes it."""
    from perdure.cli.compose import probe, settings
    from perdure.worker import LEFT_ALONE_MS

    if run.state is RunState.RUNNING:
        return probe(settings()).liveness(run, now, again) not in (None, Liveness.ATTENDED)
    return now - max(run.run_after, run.updated) > LEFT_ALONE_MS
