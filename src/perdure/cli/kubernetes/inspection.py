"""`logs`, `attach`, `sessions`, `diff`, `debug` and `cp` of `perdure --cluster`: print the logs of
a TaskRun's pods, and show the task's state on its volume claim.

`PodLogs` prints the logs, one attempt after the other; `requests` uses it for --follow. A pod's log
is deleted with the pod. The log of an interrupted attempt is then still in the state on the claim.

A claim's volume can be mounted by one pod at a time. Between two attempts, the other verbs create a
pod with that volume. The pod is made from the newest attempt's Job: it has the same image, account
and security settings, but none of the attempt's Secrets. `sessions` and `diff` run the verb of the
same name in the pod. In the pod of `cp`, a script prints a file or a directory to the pod's log, as
an encoded tar archive, so no permission to execute commands in pods is needed. These pods are
deleted at the end. The pod of `debug` stays, for `kubectl exec`. All four verbs need the
permissions to read Jobs and to create and delete pods.

Output of pods is not trusted. Lines are cleaned, and an archive with a path outside the destination
is refused.
"""

from __future__ import annotations

import argparse
import base64
import binascii
import copy
import hashlib
import io
import sys
import tarfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import filterfalse
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from perdure.cli.text import clean, one_line
from perdure.errors import Conflict, NotFound, PerdureError, StoreError, UsageError
from perdure.kubernetes.manifests import MADE_BY
from perdure.kubernetes.objects import KubernetesObject, Manifest, PodSpec, UntrustedObject
from perdure.kubernetes.snapshot import UID_LABEL
from perdure.kubernetes.view import (
    STATES,
    condition,
    count,
    has_open_attempt,
    is_over,
    last_outcome,
    part,
    phase,
    report_of,
    several,
    word,
)

if TYPE_CHECKING:
    from perdure.kubernetes.taskruns import TaskRuns

POD_POLL_S = 0.5
PATIENCE_S = 180.0
"""Maximum time that a pod on the claim may take to start, in seconds."""
LONGEST_S = 4 * 3600
"""Maximum lifetime of a pod on the claim, in seconds. Then Kubernetes ends the pod, even if the
command that created it no longer exists."""
KEPT = frozenset({"perdure-data", "perdure-tmp", "perdure-home"})
"""Names of the volumes that are taken over from an attempt's pod. They contain neither Secrets nor
the order."""
OVER = ("Succeeded", "Failed")


def sessions_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="the TaskRun's name")
    parser.add_argument("--json", action="store_true", help="print JSON")


def sessions_verb(taskruns: TaskRuns, arguments: argparse.Namespace) -> int:
    more = ("--json",) if arguments.json else ()
    return _printed(taskruns, arguments.name, ("perdure", "sessions", "--all", *more))


def diff_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="the TaskRun's name")


def diff_verb(taskruns: TaskRuns, arguments: argparse.Namespace) -> int:
    run = run_ref(taskruns.get(arguments.name))
    return _printed(taskruns, arguments.name, ("perdure", "diff", run))


def debug_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="the TaskRun's name")


def debug_verb(taskruns: TaskRuns, arguments: argparse.Namespace) -> int:
    made = taskruns.create_pod(
        pod_of(taskruns, taskruns.get(arguments.name), ("sleep", str(LONGEST_S)))
    )
    name = str(made["metadata"]["name"])
    try:
        _wait(taskruns, name, ("Running", *OVER))
    except BaseException:
        taskruns.delete_pod(name)
        raise
    place = f"{name} -n {taskruns.namespace}"
    print(
        f"pod/{name} has the state of {arguments.name} at /data, for {LONGEST_S // 3600} hours at "
        "most; no attempt begins meanwhile\n"
        f"  kubectl exec -it {place} -- perdure entrypoint --volume /data -- perdure resume\n"
        f"  kubectl delete pod {place}"
    )
    return 0


def run_ref(body: KubernetesObject) -> str:
    """Return the id that a TaskRun's run has in the state on its claim. The run's name is not used:
    if an earlier TaskRun of the same name used the claim, the run has another name there."""
    return word(body, "metadata.uid").replace("-", "")


def output_of(taskruns: TaskRuns, name: str, command: Sequence[str]) -> tuple[int, Sequence[str]]:
    """Run a command in a pod on the claim. Return its exit code and the lines of its output, which
    are not trusted. Raises Conflict and NotFound as `pod_of` does."""
    with _pod(taskruns, name, command) as pod:
        body = _wait(taskruns, pod, OVER)
        lines = list(taskruns.log(pod))
    states = several(body, "status.containerStatuses")
    ended = part(states[0], "state.terminated") if states else {}
    code = ended.get("exitCode")
    if isinstance(code, int):
        return code, lines
    return 1, lines


def _printed(taskruns: TaskRuns, name: str, command: Sequence[str]) -> int:
    """Run a command in a pod on the claim, and print its output. Return its exit code."""
    code, lines = output_of(taskruns, name, command)
    for line in lines:
        print(clean(line), flush=True)
    return code


@contextmanager
def _pod(taskruns: TaskRuns, name: str, command: Sequence[str]) -> Iterator[str]:
    """Create a pod on the claim, and yield its name. Delete the pod at the end."""
    made = taskruns.create_pod(pod_of(taskruns, taskruns.get(name), command))
    try:
        yield str(made["metadata"]["name"])
    finally:
        with suppress(NotFound):
            taskruns.delete_pod(str(made["metadata"]["name"]))


def pod_of(taskruns: TaskRuns, body: KubernetesObject, command: Sequence[str]) -> Manifest:
    """Return the manifest of a pod that mounts the claim of a TaskRun. Raises Conflict while an
    attempt is using the claim, and NotFound if there is no claim or no Job to copy."""
    name, claim = word(body, "metadata.name"), word(body, "status.workspace.claimName")
    if has_open_attempt(body):
        raise Conflict(
            f"an attempt of {name} is using the volume: {name} is {phase(body).lower()}",
            f"kubectl perdure logs -f {name}, or kubectl perdure stop {name}",
        )
    attempts = several(body, "status.attempts")
    if not claim or not attempts:
        raise NotFound(
            f"{name} has no volume claim that a pod could mount",
            f"kubectl perdure show {name} says where its state is",
        )
    job = _newest_job(taskruns, attempts)
    spec: PodSpec = copy.deepcopy(job["spec"]["template"]["spec"])
    spec.pop("initContainers", None)
    (container,) = spec["containers"]
    container["args"] = list(command)
    if command[0] == "sleep":
        container["command"] = list(container.pop("args"))
    mounts = container.get("volumeMounts", [])
    container["volumeMounts"] = [each for each in mounts if each["name"] in KEPT]
    spec["volumes"] = [each for each in spec["volumes"] if each["name"] in KEPT]
    for each in spec["volumes"]:
        if "persistentVolumeClaim" in each:
            each["persistentVolumeClaim"] = {"claimName": claim}
    spec["activeDeadlineSeconds"] = LONGEST_S
    spec["terminationGracePeriodSeconds"] = 5
    labels = {MADE_BY[0]: MADE_BY[1], UID_LABEL: word(body, "metadata.uid")}
    return {
        "metadata": {"name": f"{name[:40]}-look-{uuid.uuid4().hex[:8]}", "labels": labels},
        "spec": spec,
    }


def _newest_job(taskruns: TaskRuns, attempts: Sequence[UntrustedObject]) -> KubernetesObject:
    """Return the newest Job of these attempts that still exists. An attempt may have ended before
    its Job was created, and a Job may have been deleted. Raises NotFound if there is none."""
    for attempt in reversed(attempts[1:]):
        with suppress(NotFound):
            return taskruns.job(word(attempt, "job"))
    return taskruns.job(word(attempts[0], "job"))


def _wait(taskruns: TaskRuns, name: str, phases: Sequence[str]) -> KubernetesObject:
    """Wait until the pod is in one of these phases, and return the pod. Raises Conflict if it does
    not start in time."""
    end = time.monotonic() + PATIENCE_S
    while True:
        body = taskruns.pod(name)
        now = word(body, "status.phase")
        if now in phases:
            return body
        if now != "Running" and time.monotonic() > end:
            messages = [word(each, "message") for each in several(body, "status.conditions")]
            why = next(filter(None, messages), "")
            raise Conflict(
                f"the pod {name} does not start: {one_line(why, 300) or now}",
                "check for another running TaskRun of the task: kubectl perdure ls",
            )
        time.sleep(POD_POLL_S)


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


LONGEST = 6 << 20
"""Maximum size of the archive, in bytes. A kubelet rotates a log at 10 MiB, and base64 makes the
archive a third larger."""
BEGIN, END = "perdure-copy-begin", "perdure-copy-end"
SCRIPT = f"""set -eu
cd "$(perdure path "$1")"
tar -cf /tmp/copy.tar -- "$2"
size=$(wc -c < /tmp/copy.tar)
if [ "$size" -gt {LONGEST} ]; then echo "{END} $size"; exit 0; fi
echo {BEGIN}
base64 -w 76 /tmp/copy.tar
echo "{END} $size $(sha256sum < /tmp/copy.tar | cut -c 1-64)"
"""


def cp_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="NAME:PATH", help="a path below the workdir of a TaskRun")
    parser.add_argument(
        "destination",
        nargs="?",
        type=Path,
        default=Path(),
        metavar="DESTINATION",
        help="the new file or directory, or a directory to put it into (default: .)",
    )


def cp_verb(taskruns: TaskRuns, arguments: argparse.Namespace) -> int:
    name, _, path = arguments.source.partition(":")
    parts = PurePosixPath(path).parts
    if not name or not path or path.startswith("/") or ".." in parts:
        raise UsageError(
            f"expected a TaskRun and a path below its workdir, got {arguments.source!r}",
            "kubectl perdure cp NAME:src/report.md .",
        )
    command = ("sh", "-c", SCRIPT, "copy", run_ref(taskruns.get(name)), path)
    code, lines = output_of(taskruns, name, command)
    if code or not any(map(_is_end, lines)):
        why = one_line(" ".join(lines), 300) or f"the pod ended with exit code {code}"
        raise NotFound(f"{path} of {name} cannot be copied: {why}", f"kubectl perdure diff {name}")
    archive = _archive(lines, name, path)
    target = arguments.destination
    if target.is_dir():
        target /= parts[-1] if parts else name
    _unpack(archive, path, target)
    print(target)
    return 0


def _is_end(line: str) -> bool:
    return line.startswith(f"{END} ")


def _archive(lines: Sequence[str], name: str, path: str) -> bytes:
    """Return the archive from the lines of a pod's log. Raises UsageError if it is too large, and
    StoreError if it is incomplete."""
    words = next(filter(_is_end, lines)).split()
    if len(words) == 2:
        raise UsageError(
            f"{path} has {words[1]} bytes; this command copies at most {LONGEST:,}",
            f"kubectl perdure debug {name}, then kubectl cp from its pod",
        )
    begin = lines.index(BEGIN) + 1 if BEGIN in lines else len(lines)
    inside = filterfalse(_is_end, lines[begin:])
    try:
        found = base64.b64decode("".join(inside), validate=True)
    except binascii.Error:
        found = b""
    if hashlib.sha256(found).hexdigest() != words[-1]:
        raise StoreError(f"{path} of {name} arrived incomplete", "try again in a moment")
    return found


def _unpack(archive: bytes, path: str, target: Path) -> None:
    """Extract the file or directory `path` from the archive to the target. Raises UsageError."""
    try:
        with tarfile.open(fileobj=io.BytesIO(archive), mode="r:") as tar:
            for member in tar:
                inner = PurePosixPath(member.name).relative_to(PurePosixPath(path))
                if str(inner) == "." and member.isfile():
                    content = tar.extractfile(member)
                    assert content is not None
                    target.write_bytes(content.read())
                    target.chmod(0o644 | member.mode & 0o111)
                    return
                tar.extract(member.replace(name=str(inner), deep=False), target, filter="data")
    except (tarfile.TarError, OSError, ValueError) as error:
        raise UsageError(
            f"{one_line(path, 200)} cannot be written to {target}: {one_line(str(error), 300)}"
        ) from None
