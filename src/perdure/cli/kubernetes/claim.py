"""`sessions`, `diff` and `debug` of `perdure --cluster`: show a task's state on its volume claim.

The state of a TaskRun is on a volume to which one pod at a time can write. Between two attempts,
these verbs create a pod with that volume. The pod is made from the newest attempt's Job: it has the
same image, account and security settings, but none of the attempt's Secrets.

`sessions` and `diff` run the verb of the same name in the pod, and then delete the pod. The pod of
`debug` stays, for `kubectl exec`. All three need the permissions to read Jobs and to create and
delete pods.
"""

from __future__ import annotations

import argparse
import copy
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from perdure.cli.text import clean, one_line
from perdure.errors import Conflict, NotFound
from perdure.kubernetes.manifests import MADE_BY
from perdure.kubernetes.objects import KubernetesObject, Manifest, PodSpec, UntrustedObject
from perdure.kubernetes.snapshot import UID_LABEL
from perdure.kubernetes.view import has_open_attempt, part, phase, several, word

if TYPE_CHECKING:
    from perdure.kubernetes.taskruns import TaskRuns

EVERY_S = 0.5
PATIENCE_S = 180.0
"""Maximum time that the pod may take to start, in seconds."""
LONGEST_S = 4 * 3600
"""Maximum lifetime of the pod, in seconds. Then Kubernetes ends it, even if the command that
created it no longer exists."""
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
    container["volumeMounts"] = [
        each for each in container.get("volumeMounts", []) if each["name"] in KEPT
    ]
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
            conditions = several(body, "status.conditions")
            why = next((word(each, "message") for each in conditions if word(each, "message")), "")
            raise Conflict(
                f"the pod {name} does not start: {one_line(why, 300) or now}",
                "check for another running TaskRun of the task: kubectl perdure ls",
            )
        time.sleep(EVERY_S)
