"""`logs` and `attach` of `perdure --cluster`: print the logs of a TaskRun's pods, one attempt after
the other. `requests` uses this code for --follow.

A pod's log is deleted with the pod. The state on the task's claim also has the log of an
interrupted attempt. It can be read while no attempt uses the claim. Lines are not trusted and are
cleaned.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from perdure.cli.kubernetes.claim import output_of, run_ref
from perdure.cli.text import clean, one_line
from perdure.errors import Conflict, NotFound, PerdureError, StoreError
from perdure.kubernetes.objects import KubernetesObject
from perdure.kubernetes.view import (
    STATES,
    condition,
    count,
    has_open_attempt,
    is_over,
    last_outcome,
    phase,
    report_of,
    several,
    word,
)

if TYPE_CHECKING:
    from perdure.kubernetes.taskruns import TaskRuns

EVERY_S = 1.0
"""Poll interval of a TaskRun that is followed, in seconds."""


def logs_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="the TaskRun's name")
    parser.add_argument(
        "-f", "--follow", action="store_true", help="follow until the TaskRun has ended"
    )
    parser.add_argument("--attempt", type=int, default=0, help="only this attempt")


def logs_verb(taskruns: TaskRuns, arguments: argparse.Namespace) -> int:
    body = taskruns.get(arguments.name)
    numbers = [attempt.number for attempt in report_of(body).attempts]
    if arguments.attempt and arguments.attempt not in numbers:
        raise NotFound(
            f"{arguments.name} has no attempt {arguments.attempt}",
            f"kubectl perdure show {arguments.name}",
        )
    if not numbers and not arguments.follow:
        raise NotFound(
            f"{arguments.name} has had no attempt yet", f"kubectl perdure why {arguments.name}"
        )
    logs = PodLogs(taskruns, lambda line: print(line, flush=True), arguments.attempt)
    if arguments.follow:
        follow(taskruns, arguments.name, logs)
    else:
        logs.look(body, follow=False)
    return 0


def attach_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="the TaskRun's name")


def attach_verb(taskruns: TaskRuns, arguments: argparse.Namespace) -> int:
    """Print the logs of the running attempt and of later ones, until the TaskRun has ended. Return
    its exit code."""
    from perdure.engine.service import code_of

    body = taskruns.get(arguments.name)
    print(f"perdure: {arguments.name}: Ctrl-C leaves, and it continues", file=sys.stderr)
    before = count(body, "status.attempt") - has_open_attempt(body)
    logs = PodLogs(taskruns, lambda line: print(line, flush=True), after=before)
    body = follow(taskruns, arguments.name, logs)
    asks = bool(condition(body, "NeedsPerson"))
    return code_of(STATES.get(phase(body), STATES["Pending"]), last_outcome(body), asks)


def follow(
    taskruns: TaskRuns,
    name: str,
    logs: PodLogs | None = None,
    is_acted_on: Callable[[KubernetesObject], bool] = lambda body: True,
) -> KubernetesObject:
    """Wait until a TaskRun is over, and return it. The TaskRun's log is printed by `logs`, or not
    at all if `logs` is None.

    `is_acted_on` returns whether the operator has acted on the caller's request. Before that, the
    TaskRun does not count as over. Temporary errors of the API server are printed, and do not end
    the wait.
    """
    trouble = ""
    while True:
        try:
            body = taskruns.get(name)
            trouble = ""
            if logs is not None:
                logs.look(body, follow=True)
            if is_over(body) and is_acted_on(body):
                return body
        except StoreError as error:
            # The API server or the network may be restarting. The TaskRun continues even if this
            # command is disconnected, so try again.
            if not error.transient:
                raise
            if str(error) != trouble:
                print(f"perdure: {one_line(str(error), 300)}", file=sys.stderr, flush=True)
            trouble = str(error)
        time.sleep(EVERY_S)


class PodLogs:
    """Prints the logs of a TaskRun's attempts. Each line is printed once, even if the connection
    breaks and is made again."""

    def __init__(
        self, taskruns: TaskRuns, say: Callable[[str], None], only: int = 0, after: int = 0
    ) -> None:
        """Select the attempts whose logs are printed. `only` is the number of the only attempt; 0
        means all. Attempts up to the number `after` are skipped. `say` prints a line."""
        self.taskruns, self.say, self.only, self.after = taskruns, say, only, after
        self._lines: dict[str, int] = {}
        self._done: set[str] = set()

    def look(self, body: KubernetesObject, *, follow: bool) -> None:
        """Print the new lines of each selected attempt's pod. With `follow`, follow a running
        attempt to its end."""
        for attempt in several(body, "status.attempts"):
            pod, number = word(attempt, "pod"), count(attempt, "number")
            if (
                not pod
                or pod in self._done
                or number <= self.after
                or (self.only and number != self.only)
            ):
                continue
            ended = bool(word(attempt, "outcome"))
            try:
                self._read(pod, follow=follow and not ended)
            except NotFound:
                self._done.add(pod)
                self._kept(body, number, pod, look=not follow)
                continue
            except Conflict:  # the pod has not started yet
                continue
            if ended:
                self._done.add(pod)

    def _kept(self, body: KubernetesObject, number: int, pod: str, *, look: bool) -> None:
        """Print the log of an attempt whose pod no longer exists. The log is read from the state on
        the claim. If that is not possible, or if `look` is false, print the reason instead."""
        name = word(body, "metadata.name")
        gone = f"the log of attempt {number} is gone with its pod {one_line(pod, 253)}"
        why = (
            f"the state on its volume claim may have the log: kubectl perdure logs {name} "
            f"--attempt {number}"
        )
        if look:
            command = ("perdure", "logs", run_ref(body), "--attempt", str(number))
            try:
                code, lines = output_of(self.taskruns, name, command)
            except PerdureError as error:
                why = str(error)
            else:
                if not code:
                    for line in lines:
                        self.say(clean(line))
                    return
                why = " ".join(lines)
        print(f"perdure: {gone}; {one_line(why, 300)}", file=sys.stderr)

    def _read(self, pod: str, *, follow: bool) -> None:
        known = self._lines.get(pod, 0)
        for at, line in enumerate(self.taskruns.log(pod, follow=follow), 1):
            if at > known:
                self._lines[pod] = at
                self.say(clean(line))
