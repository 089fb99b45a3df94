"""`attach` and `wait`: follow a run that another process supervises, with its progress or silently.

Ctrl-C ends the verb, and the run continues. Both verbs are read-only, with one exception: on a
terminal, `attach` accepts the answer to a request and then continues the run.
"""

from __future__ import annotations

import argparse
import sys
import time
from functools import partial
from typing import TYPE_CHECKING

from perdure.cli.arguments import seconds_of
from perdure.cli.compose import Stopper, open_to_read, probe, settings
from perdure.cli.parser import optional_name
from perdure.cli.runs.look import UNATTENDED, UnclaimedCheck
from perdure.model import Liveness, RunState, TaskRun

if TYPE_CHECKING:
    from perdure.cli.runs.progress import Progress
    from perdure.protocols import RunStore

NAP_S = 0.2


def attach_arguments(parser: argparse.ArgumentParser) -> None:
    optional_name(parser)


def wait_arguments(parser: argparse.ArgumentParser) -> None:
    optional_name(parser)
    parser.add_argument(
        "--timeout",
        type=seconds_of,
        default=0.0,
        help="give up after this time, such as 90s, 30m or 2h, with exit code 75 (default: never)",
    )


def wait_verb(arguments: argparse.Namespace) -> int:
    from perdure.cli.runs.progress import say_summary
    from perdure.cli.runs.run import warn
    from perdure.engine.report import report_of
    from perdure.engine.worker import waits_for_person
    from perdure.rules.lifecycle import FINAL

    store = open_to_read(settings())
    run = store.get(arguments.name)
    is_unclaimed = UnclaimedCheck(settings(), store)
    if arguments.timeout:
        end = time.monotonic() + arguments.timeout
    else:
        end = float("inf")
    while run.state not in FINAL and not waits_for_person(run, store.now()):
        if _is_unattended(run, store, is_unclaimed):
            print(f"{run.name} has no supervisor: perdure retry {run.name}", file=sys.stderr)
            return UNATTENDED
        if time.monotonic() > end:
            print(f"{run.name} is still {run.state}", file=sys.stderr)
            return UNATTENDED
        time.sleep(NAP_S)
        run = store.get(run.id)
    report = report_of(store, run)
    say_summary(report)
    warn(report)
    return _exit_code(store, run)


def attach_verb(arguments: argparse.Namespace) -> int:
    from perdure.cli.runs.progress import Progress
    from perdure.cli.runs.run import answered_here, warn
    from perdure.engine.report import report_of
    from perdure.engine.worker import waits_for_person
    from perdure.rules.lifecycle import FINAL
    from perdure.rules.requests import WAITING

    store = open_to_read(settings())
    run = store.get(arguments.name)
    # Stopper sets a flag. A KeyboardInterrupt would be lost if it was raised inside a callback of C
    # code.
    with Stopper() as stopper, Progress() as progress:
        run = _follow(store, run, progress, stopper)
        if stopper.asked:
            progress.print_line(
                f"detached; {run.name} continues: perdure attach {run.name}, perdure stop "
                f"{run.name}"
            )
            return 0
        if run.state not in FINAL and not waits_for_person(run, store.now()):
            progress.print_line(
                f"{run.name} has no supervisor: perdure retry {run.name} continues where it stopped"
            )
            return UNATTENDED
        report = report_of(store, run)
    progress.conclude(report)
    warn(report)
    code = _exit_code(store, run)
    if any(each.type == WAITING for each in run.conditions):
        return answered_here(settings(), run, code)
    return code


def _exit_code(store: RunStore, run: TaskRun) -> int:
    from perdure.engine import service

    ended = [each.outcome.kind for each in store.attempts(run.id) if each.outcome is not None]
    return service.exit_code(run, ended[-1] if ended else None)


def _follow(store: RunStore, run: TaskRun, progress: Progress, stopper: Stopper) -> TaskRun:
    """Show past and new records until the run is over, waits for a person, or has no process
    working on it, or until Ctrl-C. Return the run as it is then."""
    from perdure.engine.worker import waits_for_person
    from perdure.rules.lifecycle import FINAL

    progress.introduce(run)
    attempts = store.attempts(run.id)
    records = store.history(run.id, limit=1_000_000)
    progress.catch_up(records, attempts[-1].started if attempts else run.created, store.now())
    seen = records[-1].seq if records else 0
    is_unclaimed = UnclaimedCheck(settings(), store)
    while True:
        run = store.get(run.id)
        for record in store.history(run.id, after=seen):
            seen = record.seq
            progress(record)
        if (
            stopper.asked
            or run.state in FINAL
            or waits_for_person(run, store.now())
            or _is_unattended(run, store, is_unclaimed)
        ):
            return run
        time.sleep(NAP_S)


def _is_unattended(run: TaskRun, store: RunStore, is_unclaimed: UnclaimedCheck) -> bool:
    """Return whether no process works on the run, and none is expected to. Either its supervisor
    died, or the run is due and no worker has claimed it in time."""
    if run.state is RunState.RUNNING:
        again = partial(store.get, run.id)
        found = probe(settings()).liveness(run, store.now(), again)
        return found not in (None, Liveness.ATTENDED)
    return is_unclaimed(run)
