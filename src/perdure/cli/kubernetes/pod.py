"""`work --run`: performs the attempt of one pod, according to its order. The outcome goes into the
container's termination message and the exit code.

SIGTERM ends the agent gracefully, as `perdure stop` would. But the attempt is then `lost` ("its pod
was asked to end") and not cancelled, so that the operator continues it elsewhere. After a second
SIGTERM, or shortly before the grace period ends, perdure exits immediately with the state that is
saved by then.
"""

from __future__ import annotations

import argparse
import os
import select
import signal
import stat
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from msgspec.structs import replace

from perdure.cli.kubernetes.relay import through_relay
from perdure.errors import PerdureError, UsageError
from perdure.kubernetes import order as orders
from perdure.kubernetes import secrets as given
from perdure.kubernetes.order import Order
from perdure.kubernetes.result import AttemptResult, encode, exit_code
from perdure.model import Outcome, OutcomeKind

if TYPE_CHECKING:
    from perdure.engine.attempt import Engine

MESSAGE = Path("/dev/termination-log")
"""Default file of a container's termination message, which the kubelet reads."""
ASKED = "its pod was asked to end"
NOT_IN_TIME = "its pod was asked to end, and the agent did not end within the grace period"
LAST_S = 3.0
"""Time between perdure's exit and the end of the grace period, in seconds. perdure exits then even
if the agent has not ended. Only the state that was saved before is kept."""
REST_S = 2.0
"""Time in seconds that leftover processes have to end. The pod's first process must exit before the
kubelet kills it, because the operator does not trust the result of a killed pod."""
ASKING = (signal.SIGINT, signal.SIGTERM)
OFTEN_S = 1.0
"""Maximum interval between checkpoints in a pod without a volume, in seconds. Such a pod loses all
work that is not in the checkpoint store. The engine's `SHARE` (`engine.attempt.checkpoints`) limits
the part of the time that checkpoints take."""
WIDTH = 2_000


class ResultWriter:
    """Writes the attempt's result exactly once: when it is known, or when the grace period is
    almost over.

    A separate thread waits for signals. The main thread handles no signal while it waits inside the
    client library of the checkpoint store.
    """

    def __init__(self, place: Path | None, grace_s: float) -> None:
        self.place, self.grace_s, self.attempt = place, grace_s, 0
        self.asked = 0
        self._code: int | None = None
        self._turn = threading.Lock()
        self._signals, wakeup = os.pipe()
        os.set_blocking(wakeup, False)
        signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
        for number in ASKING:
            signal.signal(number, _ignore_signal)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        threading.Thread(target=self._watch, name="farewell", daemon=True).start()

    def write(self, result: AttemptResult) -> int:
        """Write the result, unless another result was written before. Return the exit code of the
        first result.

        If the result cannot be written, only the exit code reports the outcome.
        """
        with self._turn:
            if self._code is None:
                try:
                    self._write(encode(result))
                except OSError as error:
                    with suppress(OSError):
                        _tell(f"perdure: the result cannot be written: {error}")
                self._code = exit_code(result)
            return self._code

    def _write(self, message: bytes) -> None:
        if self.place is None:
            sys.stdout.buffer.write(message + b"\n")
            sys.stdout.flush()
        else:
            write(self.place, message)

    def _watch(self) -> None:
        """Wait for a signal. Then exit the process if the main thread does not end in time."""
        self._listen(None)
        until = time.monotonic() + max(self.grace_s - LAST_S, self.grace_s / 2)
        with suppress(OSError):
            os.write(2, b"perdure: asked to end: the agent is stopped, and what it did is saved\n")
        while self.asked < 2 and (left := until - time.monotonic()) > 0:
            self._listen(left)
        os._exit(
            self.write(
                AttemptResult(
                    attempt=self.attempt, outcome=Outcome(kind=OutcomeKind.LOST, detail=NOT_IN_TIME)
                )
            )
        )

    def _listen(self, longest_s: float | None) -> None:
        """Wait for the next SIGINT or SIGTERM. Return after at most `longest_s` seconds, even if
        there was no signal; None means no limit."""
        before = self.asked
        while self.asked == before and select.select([self._signals], [], [], longest_s)[0]:
            self.asked += sum(number in ASKING for number in os.read(self._signals, 64))


def _ignore_signal(number: int, frame: FrameType | None) -> None:
    """Do nothing. `set_wakeup_fd` reports a signal only if Python has a handler for it."""


def write(place: Path, message: bytes) -> None:
    """Write the message into the file that the kubelet reads. The existing file is written in
    place, because it is a mount and cannot be replaced."""
    fd = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    try:
        if stat.S_ISREG(os.fstat(fd).st_mode):
            os.ftruncate(fd, 0)
        os.write(fd, message)
        with suppress(OSError):
            os.fsync(fd)
    finally:
        os.close(fd)


def is_pod(command: Sequence[str]) -> bool:
    """Return whether the command is `work --run`."""
    return "work" in command and "--run" in command


def report_entrypoint_error(command: Sequence[str], error: Exception) -> int | None:
    """Write an error of the container's entrypoint as the attempt's result. This is only done if
    the command is `work --run`, which cannot start after such an error.

    Return the exit code of that result, or None for any other command.
    """
    if not is_pod(command):
        return None
    from perdure.cli.main import parser_of

    arguments = parser_of("work").parse_args(list(command[command.index("work") + 1 :]))
    place = arguments.result or (MESSAGE if MESSAGE.is_file() else None)
    result = _failed_result(0, error, given.Secrets())
    if place is not None:
        with suppress(OSError):
            write(place, encode(result))
    _tell(f"perdure: {result.outcome.detail}")
    return exit_code(result)


def pod_verb(arguments: argparse.Namespace) -> int:
    """Perform the attempt that the order describes. Return the exit code of its outcome."""
    if arguments.order is None:
        raise UsageError(
            "--run needs --order DIR", "the operator writes it; its format: docs/reference/pod.md"
        )
    if os.getpid() == 1:
        # PID 1 has to reap the orphans of agents, so run this verb as a child of an init.
        from perdure.host.process.init import run_as_init

        return run_as_init(
            [sys.executable, "-m", "perdure", *sys.argv[1:]], dict(os.environ), REST_S
        )
    writer = ResultWriter(
        arguments.result or (MESSAGE if MESSAGE.is_file() else None), arguments.grace
    )
    secrets = given.Secrets()
    try:
        order, texts = orders.read(lambda name: _file(arguments.order, name))
        writer.attempt = order.attempt
        secrets = given.read(
            arguments.secrets or arguments.order.parent / "secrets", order.spec.repo
        )
        order, is_relayed = through_relay(order, arguments.relay)
        files = arguments.order / orders.FILES
        relay = arguments.relay if is_relayed else None
        result = _performed(order, texts, files, secrets, writer, relay)
    # Write a result even for an unexpected error. Without one, nobody would learn why the pod
    # failed.
    except Exception as error:
        result = _failed_result(writer.attempt, error, secrets)
    code = writer.write(result)
    detail = f": {result.outcome.detail}" if result.outcome.detail else ""
    _tell(f"attempt {result.attempt}: {result.outcome.kind}{detail}")
    return code


def _failed_result(attempt: int, error: Exception, secrets: given.Secrets) -> AttemptResult:
    """Return the result of an attempt that this error ended. Log the traceback if the error is
    unexpected."""
    from perdure.kubernetes.pod import outcome_of

    redactor, outcome = secrets.redactor(), outcome_of(error)
    if not isinstance(error, PerdureError | OSError):
        import traceback

        for line in redactor.text("".join(traceback.format_exception(error))).splitlines():
            _tell(line)
    return AttemptResult(
        attempt=attempt, outcome=replace(outcome, detail=redactor.text(outcome.detail))
    )


def _performed(
    order: Order,
    texts: tuple[str | None, ...],
    files: Path,
    secrets: given.Secrets,
    writer: ResultWriter,
    relay: Path | None,
) -> AttemptResult:
    from perdure.kubernetes.pod import perform_order

    environ = {**os.environ, **secrets.git, **secrets.agent}
    # The checkpoint store's client reads its credentials from the environment of this process. The
    # agent does not get them: its variables come from `environ`.
    os.environ.update(secrets.store)
    engine = replace(
        _engine(order, environ, secrets, relay), stopping=lambda: writer.asked > 0, leaving=ASKED
    )
    return perform_order(engine, order, texts, sorted(secrets.agent), files)


def _engine(
    order: Order, environ: Mapping[str, str], secrets: given.Secrets, relay: Path | None
) -> Engine:
    """Return the engine of the pod. `relay` is the directory with the address of the relay that
    fetches the repository. If it is None, perdure fetches the repository itself."""
    from perdure import wiring
    from perdure.config.files import load
    from perdure.host.actors import actor
    from perdure.kubernetes.termination import session_line
    from perdure.model.events import Record, SessionSeen
    from perdure.rules.log_line import line_of

    # Do not load perdure.toml from the working directory. It may be on the volume, where agents can
    # write.
    chosen = load(environ, Path("/"))
    # A file that contains a secret is left out of the checkpoint and reported. With the setting
    # `refuse`, such a file would prevent every checkpoint of the run.
    if "PERDURE_CHECKPOINT_SECRETS" not in environ:
        chosen = replace(chosen, checkpoint_secrets="leave-out")
    chosen = replace(
        chosen,
        checkpoint_store=order.checkpoints,
        # If the order has no expiry, the agent cannot ask. The operator is then an older one, or
        # the pod has no volume, so requests could not be kept between two pods.
        request_expiry=0.0,
        checkpoint_every=min(chosen.checkpoint_every, OFTEN_S)
        if order.state == "checkpoints"
        else chosen.checkpoint_every,
        disk_ballast=0 if order.state == "checkpoints" else chosen.disk_ballast,
    )

    named: set[str] = set()

    def tell(record: Record) -> None:
        match record.event:
            case SessionSeen(session_id=name) if name and name not in named:
                named.add(name)
                _tell(session_line(record.attempt, name))
        if line := line_of(record):
            _tell(line)

    return wiring.open_engine(
        chosen,
        environ,
        [tell],
        actor=actor("operator", f"taskrun/{order.name}"),
        guarded=False,
        secrets=secrets.values(),
        relay=partial(_repository, relay),
        transports=order.transports,
    )


def _repository(relay: Path | None) -> str:
    """Return the URL at which the relay serves the repository; empty without a relay."""
    if relay is None:
        return ""
    from perdure.host.relay import read

    return read(relay).url("git")


def _tell(line: str) -> None:
    from perdure.rules.text import one_line, write_stderr

    write_stderr(one_line(line, WIDTH))


def _file(directory: Path, name: str) -> bytes:
    with (directory / name).open("rb") as file:
        return file.read(orders.LONGEST + 1)
