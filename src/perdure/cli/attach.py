"""`attach`: follows a run at work as if one had started it here. Looks only: Ctrl-C leaves, and the run goes on."""

from __future__ import annotations

import argparse
import time

from perdure.cli.compose import open_to_read, settings
from perdure.model import RunState, TaskRun

NAP_S = 0.2


def attach_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="the run's name, id or key")


def attach_verb(arguments: argparse.Namespace) -> int:
    from perdure import service
    from perdure.cli.progress import Progress
    from perdure.lifecycle import FINAL
    from perdure.report import report_of

    store = open_to_read(settings())
    run = store.get(arguments.name)
    attempts = store.attempts(run.id)
    with Progress() as progress:
        progress.introduce(run)
        records = store.history(run.id, limit=1_000_000)
        progress.catch_up(records, attempts[-1].started if attempts else run.created, store.now())
        seen = records[-1].seq if records else 0
        try:
            while (run := store.get(run.id)).state not in FINAL and not _is_left_alone(run, store.now()):
                for record in store.history(run.id, after=seen):
                    seen = record.seq
                    progress(record)
                time.sleep(NAP_S)
        except KeyboardInterrupt:
            progress.part(f"left; {run.name} goes on: perdure attach {run.name}, perdure stop {run.name}")
            return 0
        for record in store.history(run.id, after=seen):
            progress(record)
        if run.state not in FINAL:
            progress.part(f"nobody works on {run.name}: perdure retry {run.name} goes on where it stopped")
            return 75
        report = report_of(store, run)
    progress.conclude(report)
    ended = [attempt.outcome.kind for attempt in store.attempts(run.id) if attempt.outcome is not None]
    return service.exit_code(run, ended[-1] if ended else None)


def _is_left_alone(run: TaskRun, now: int) -> bool:
    """Whether nobody works on the run, nor is going to: its supervisor died, or it is due and none takes it."""
    from perdure.process import worker_alive
    from perdure.worker import LEFT_ALONE_MS

    if run.state is RunState.RUNNING:
        alive = worker_alive(run.worker)
        return run.lease_until < now if alive is None else not alive
    return now - max(run.run_after, run.updated) > LEFT_ALONE_MS
