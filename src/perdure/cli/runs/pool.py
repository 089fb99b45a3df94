"""`work`: the local worker pool. It runs queued attempts, and takes over runs whose supervisor
died.

The first SIGTERM or Ctrl-C drains the pool: it starts nothing new, and exits when the running
attempts have ended. The second one stops the agents gracefully, as `perdure stop` would, so that a
retry continues where they stopped.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from msgspec.structs import replace

from perdure.cli.compose import open_engine, settings
from perdure.cli.text import one_line
from perdure.host.actors import PERDURE
from perdure.model.events import (
    AttemptAdopted,
    AttemptEnded,
    AttemptStarted,
    Record,
    RunFinished,
    RunQueued,
)
from perdure.rules.log_line import line_of
from perdure.rules.text import write_stderr

if TYPE_CHECKING:
    from perdure.config import Settings
    from perdure.engine.attempt import Engine
    from perdure.engine.attempt.engine import EngineStore
    from perdure.engine.notices import Notifier
    from perdure.engine.notices.push import Devices

TOLD = (AttemptStarted, AttemptAdopted, AttemptEnded, RunQueued, RunFinished)


def work_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-j",
        "--jobs",
        type=jobs_of,
        default=min(4, os.cpu_count() or 1),
        help="maximum number of attempts at once (default: one per core, at most 4)",
    )
    parser.add_argument("--once", action="store_true", help="exit when the queue is empty")
    parser.add_argument(
        "--run",
        action="store_true",
        help="run one attempt of a TaskRun in its pod, as the files of --order say",
    )
    parser.add_argument(
        "--order",
        type=Path,
        metavar="DIR",
        help="with --run: the directory with the files that describe the attempt",
    )
    parser.add_argument(
        "--result",
        type=Path,
        metavar="FILE",
        help="with --run: file for the result (default: /dev/termination-log)",
    )
    parser.add_argument(
        "--secrets",
        type=Path,
        metavar="DIR",
        help="with --run: the secrets' directory (default: beside the order)",
    )
    parser.add_argument(
        "--relay",
        type=Path,
        metavar="DIR",
        help="with --run: the directory with the address of the pod's relay",
    )
    parser.add_argument(
        "--as-relay",
        type=Path,
        metavar="DIR",
        help="run as the relay of a pod: it has the Secrets that the agent must not see; its "
        "address is written to DIR",
    )
    parser.add_argument(
        "--grace",
        type=float,
        default=30.0,
        metavar="SECONDS",
        help="with --run: the pod's grace period (default: 30)",
    )


def jobs_of(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 256:
        raise argparse.ArgumentTypeError("expected a whole number from 1 to 256")
    return int(text)


def say(text: str) -> None:
    write_stderr(f"perdure: {one_line(text, 300)}")


class StopSignals:
    """Counts the signals that ask a pool to end. The first one drains the pool, the second one
    stops its agents."""

    def __init__(self) -> None:
        self.asked = 0
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._ask)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    @property
    def draining(self) -> bool:
        return self.asked > 0

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked += 1
        # os.write is used because the signal may have interrupted a print, which is not reentrant.
        os.write(
            2,
            b"perdure: draining; once more stops the agents\n"
            if self.asked == 1
            else b"perdure: stopping the agents\n",
        )


def open_pool(
    chosen: Settings, signals: StopSignals, *, guarded: bool = False, secrets: Sequence[str] = ()
) -> Engine:
    """Return the engine of a pool. It prints the progress of its attempts on standard error, and
    stops its agents after a second signal.

    `guarded` is true if people who are not at this terminal may request work. If webhooks or rules
    for agents are configured, the engine is guarded in any case.
    """
    names: dict[str, str] = {}

    def tell(record: Record) -> None:
        if isinstance(record.event, TOLD):
            names.setdefault(record.run, engine.store.get(record.run).name)
            print(
                f"{names[record.run]}: {one_line(line_of(record), 200)}",
                file=sys.stderr,
                flush=True,
            )

    guarded = guarded or bool(chosen.webhooks or chosen.agents)
    opened = open_engine(chosen, observers=[tell], actor=PERDURE, guarded=guarded, secrets=secrets)
    engine = replace(opened, stopping=lambda: signals.asked > 1)
    return engine


def notifier(engine: Engine, chosen: Settings) -> Notifier:
    """Return the notifier for the runs of this pool. Raises ConfigError if a channel needs a
    library that is not installed."""
    from perdure.cli.server.notify import check_libraries, check_push_libraries
    from perdure.engine.notices import Notifier
    from perdure.engine.notices.links import linking

    check_libraries(chosen.notify)
    check_push_libraries(chosen)
    public = chosen.serve_public_url
    return Notifier(
        engine,
        chosen.notify,
        say,
        lambda name: f"{public}/runs/{name}" if public else "",
        linked=linking(engine.store, engine.state, engine.redactor, public),
        devices=devices_of(engine.store, chosen),
    )


def notifies(chosen: Settings) -> bool:
    """Return whether a pool has to send messages to people."""
    return bool(chosen.notify or chosen.serve_push_contact)


def devices_of(store: EngineStore, chosen: Settings) -> Devices | None:
    """Return the object that reads people's registered browsers from the store and sends notices to
    these browsers. Return None if push messages are off. Raises StoreError if the key that signs
    messages cannot be used."""
    if not chosen.serve_push_contact:
        return None
    from perdure.engine.notices.push import Devices, sender_of

    sender = sender_of(chosen)
    # Creates the key if there is none. If the key cannot be used, this fails now and not when the
    # first message is sent.
    sender.server_key()
    return Devices(store, sender)


def work_verb(arguments: argparse.Namespace) -> int:
    if arguments.run:
        from perdure.cli.kubernetes.pod import pod_verb

        return pod_verb(arguments)
    if arguments.as_relay is not None:
        from perdure.cli.kubernetes.relay import relay_verb

        return relay_verb(arguments)
    from perdure.cli.data.housekeeping import Housekeeping
    from perdure.engine.worker import work

    chosen = settings()
    signals = StopSignals()
    engine = open_pool(chosen, signals)
    with ExitStack() as stack:
        stack.enter_context(Housekeeping(engine, chosen, say))
        if notifies(chosen):
            stack.enter_context(notifier(engine, chosen))
        done = work(engine, arguments.jobs, once=arguments.once, draining=lambda: signals.draining)
    write_stderr(f"perdure: {done} attempt(s) done")
    return 0
