"""`run`, `fork`, `retry`, `update`, `stop`, `resume` of `perdure --cluster`: each creates or
changes a TaskRun, and the operator acts on the change.

An update never replaces an earlier one that the operator has not read. Until the operator has
recorded the newest instructions, no others are accepted.
"""

from __future__ import annotations

import argparse
import sys
import time
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING

from perdure.cli.arguments import (
    agent_flags,
    change_flags,
    check_flags,
    label_flag,
    limit_flags,
    pair_of,
    policy_flags,
    prompt_flags,
    read_prompt,
    variable_of,
)
from perdure.cli.kubernetes.inspection import EVERY_S, PodLogs, follow
from perdure.cli.kubernetes.verbs import printed
from perdure.cli.text import one_line
from perdure.errors import Conflict, PerdureError, UsageError
from perdure.kubernetes.objects import Dollars, KubernetesObject, MergePatch, camel_word, written
from perdure.kubernetes.view import (
    STATES,
    condition,
    count,
    has_open_attempt,
    last_outcome,
    part,
    phase,
    report_of,
    unrecorded,
    word,
)
from perdure.kubernetes.wanted import MOST_RETRIES, RETRY, RETRY_ATTEMPTS

if TYPE_CHECKING:
    from perdure.kubernetes.taskruns import TaskRuns

PATIENCE_S = 60.0
"""Maximum time in seconds that an update waits for the operator to record the previous update."""


class NotYet(PerdureError):
    """Raised if the operator does not become ready for a request in time. The same command may
    succeed later."""

    exit_code = 75


def run_arguments(parser: argparse.ArgumentParser) -> None:
    prompt_flags(parser)
    what = parser.add_argument_group("agent")
    what.add_argument("--name", help="the TaskRun's name (default: one is made up)")
    agent_flags(
        what,
        agent="claude (default), codex, gemini, opencode, or an ACP agent of the image",
        env="NAME=VALUE",
        variable="a variable for the agent, not a secret; repeatable",
    )
    what.add_argument(
        "--credentials", metavar="SECRET", help="a Secret whose keys are variables for the agent"
    )
    what.add_argument(
        "--session",
        metavar="ID",
        help="continue this conversation, which is in the task's state",
    )
    what.add_argument(
        "--session-of", metavar="NAME", help="the TaskRun whose state has that conversation"
    )
    what.add_argument(
        "--image", help="the image with perdure and the agent (default: the operator's)"
    )
    label_flag(what)
    where = parser.add_argument_group("where")
    where.add_argument("--service", help="the program that the task belongs to")
    where.add_argument("--task", help="the id of the task in that program")
    where.add_argument("--repo", metavar="URL", help="the repository to work in")
    where.add_argument("--base", help="the commit or branch to start from")
    where.add_argument("--branch", help="the branch to work on (default: perdure/NAME)")
    where.add_argument(
        "--repo-credentials",
        metavar="SECRET",
        help="a Secret with `token`, or `username` and `password`, for the repository's server; "
        "for ssh with `ssh-privatekey` and `known_hosts`",
    )
    where.add_argument(
        "--workspace",
        choices=["Claim", "Shared", "Checkpoints"],
        help="where state is kept between attempts (default: Claim)",
    )
    where.add_argument("--claim", metavar="NAME", help="the existing claim of --workspace Shared")
    where.add_argument(
        "--checkpoints", metavar="URL", help="a checkpoint store, such as s3://bucket/prefix"
    )
    where.add_argument(
        "--checkpoints-credentials",
        metavar="SECRET",
        help="a Secret whose keys are variables for the store's client",
    )
    where.add_argument(
        "--size", help="size of the claim that is made (default: the operator's, or 2Gi)"
    )
    where.add_argument(
        "--queue", metavar="NAME", help="the local queue of Kueue in which the TaskRun's Jobs wait"
    )
    limits = parser.add_argument_group("limits and checks")
    limit_flags(limits)
    policy_flags(limits)
    check_flags(limits)
    following(parser)


def following(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-f",
        "--follow",
        action="store_true",
        help="wait until the TaskRun has ended, and print its log; the exit code is the TaskRun's",
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="print no log")
    parser.add_argument("--json", action="store_true", help="print the TaskRun as JSON at the end")


def run_verb(taskruns: TaskRuns, arguments: argparse.Namespace) -> int:
    from perdure.rules.run_names import suggest

    spec = spec_of(arguments)
    if arguments.queue:
        labels = {"kueue.x-k8s.io/queue-name": arguments.queue}
    else:
        labels = {}
    tries = 0
    while True:
        name = arguments.name or suggest(tries)
        try:
            made = taskruns.create(
                {"metadata": {"name": name, **({"labels": labels} if labels else {})}, "spec": spec}
            )
        except Conflict:
            tries += 1
            if arguments.name or tries > 20:
                raise
        else:
            return print_and_follow(taskruns, made, arguments, "created")


def spec_of(arguments: argparse.Namespace) -> dict[str, object]:
    """Return the spec of a TaskRun from the flags. The API server fills in defaults for flags that
    are not given. Raises UsageError."""
    policy = {
        "attempts": arguments.attempts,
        "timeoutSeconds": _whole(arguments.timeout),
        "stallSeconds": _whole(arguments.stall),
        "budgetUSD": _amount(arguments.budget_usd),
        "continuity": _choice(arguments.continuity),
        "whenFull": _choice(arguments.when_full),
        **_endings(arguments),
        "verify": arguments.verify,
        "verifyRounds": arguments.verify_rounds,
        "verifyTimeoutSeconds": _whole(arguments.verify_timeout),
    }
    return _given(
        {
            "prompt": read_prompt(arguments),
            "service": arguments.service,
            "task": arguments.task,
            "agent": arguments.agent,
            "model": arguments.model,
            "permissions": _choice(arguments.permissions),
            "agentArgs": arguments.agent_arg,
            "env": list(map(_with_value, arguments.env)),
            "credentialsSecretRef": {"name": arguments.credentials},
            "repository": {
                "url": arguments.repo,
                "base": arguments.base,
                "branch": arguments.branch,
                "credentialsSecretRef": {"name": arguments.repo_credentials},
            },
            "resume": {
                "mode": "Session" if arguments.session else None,
                "sessionId": arguments.session,
                "from": arguments.session_of,
            },
            "workspace": {
                "mode": arguments.workspace,
                "claimName": arguments.claim,
                "checkpoints": arguments.checkpoints,
                "checkpointsSecretRef": {"name": arguments.checkpoints_credentials},
                "size": arguments.size,
            },
            "policy": policy,
            "labels": dict(pair_of(text, "--label") for text in arguments.label),
            "pod": {"image": arguments.image},
        }
    )


def _given(found: dict[str, object]) -> dict[str, object]:
    """Return a copy of the object without fields that are None or empty, at any depth."""
    pruned = {}
    for name, value in found.items():
        kept = _given(value) if isinstance(value, dict) else value
        if kept is not None and kept not in ({}, []):
            pruned[name] = kept
    return pruned


def _endings(arguments: argparse.Namespace) -> dict[str, object]:
    """Return the fields of a TaskRun's spec that are set by the flags about denied calls, leftover
    processes and the last message."""
    return {
        "onDenied": _choice(arguments.on_denied),
        "onLeftover": _choice(arguments.on_leftover),
        "lastWord": None if arguments.last_word is None else arguments.last_word == "on",
    }


def _with_value(text: str) -> dict[str, str]:
    if "=" not in text:
        raise UsageError(
            f"--env {variable_of(text)} has no value, and a pod does not see your own variables",
            "--env NAME=VALUE, or --credentials",
        )
    name, value = pair_of(text, "--env")
    return {"name": name, "value": value}


def _whole(seconds: float | None) -> int | None:
    if seconds is None:
        return None
    return round(seconds)


def fork_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="the TaskRun to copy the conversation and files of")
    parser.add_argument(
        "prompt",
        nargs="?",
        help="prompt of the fork; `-` reads standard input (default: finish the task)",
    )
    parser.add_argument(
        "--prompt-file", metavar="FILE", help="read the prompt from a file (`-`: standard input)"
    )
    parser.add_argument(
        "--as",
        dest="new_name",
        default="",
        metavar="NAME",
        help="the new TaskRun's name (default: one is made up)",
    )
    parser.add_argument("--branch", help="the branch to work on (default: perdure/NAME)")
    following(parser)


FORKED = (
    "service",
    "agent",
    "model",
    "permissions",
    "agentArgs",
    "env",
    "credentialsSecretRef",
    "credentialsSecretName",
    "policy",
    "labels",
    "pod",
)
"""Fields of a TaskRun's spec that are copied to its fork."""


def fork_verb(taskruns: TaskRuns, arguments: argparse.Namespace) -> int:
    from perdure.engine.conversations.forks import GO_ON
    from perdure.rules.run_names import suggest

    body = taskruns.get(arguments.name)
    spec, place = part(body, "spec"), part(body, "spec.workspace")
    if place.get("mode") != "Claim":
        raise UsageError(
            f"{arguments.name} has no claim of its own, so it cannot be forked on the cluster",
            "perdure fork, on a machine that fetched its checkpoint",
        )
    given = arguments.prompt is not None or arguments.prompt_file is not None
    name = arguments.new_name or suggest(0)
    wanted: dict[str, object] = {key: spec[key] for key in FORKED if key in spec}
    wanted["prompt"] = read_prompt(arguments) if given else GO_ON
    wanted["resume"] = {"mode": "Fork", "from": arguments.name}
    kept = ("mode", "reclaim", "checkpoints", "checkpointsSecretRef", "checkpointsSecretName")
    wanted["workspace"] = {key: place[key] for key in kept if key in place}
    if "repository" in spec:
        source = dict(part(spec, "repository"))
        source.pop("branch", None)
        if arguments.branch:
            source["branch"] = arguments.branch
        wanted["repository"] = source
    if "service" in spec:
        wanted["task"] = name
    made = taskruns.create({"metadata": {"name": name}, "spec": wanted})
    return print_and_follow(taskruns, made, arguments, f"starts as a fork of {arguments.name}")


def _choice(word: str | None) -> str | None:
    if word is None:
        return None
    return camel_word(word)


def _amount(dollars: float | None) -> Dollars | None:
    if dollars is None:
        return None
    return written(dollars)


def retry_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="the TaskRun's name")
    change_flags(parser)
    following(parser)


def retry_verb(taskruns: TaskRuns, arguments: argparse.Namespace) -> int:
    body = taskruns.get(arguments.name)
    name, now = arguments.name, phase(body)
    if part(body, "spec").get("suspend") is True:
        raise Conflict(f"{name} is stopped", f"kubectl perdure resume {name}")
    if now == "Running" or has_open_attempt(body):
        if now == "Running":
            doing = "is already running"
        else:
            doing = "is already waiting to start"
        raise Conflict(
            f"{name} {doing} (attempt {count(body, 'status.attempt')})",
            f"kubectl perdure logs -f {name}",
        )
    if now == "Succeeded":
        raise Conflict(
            f"{name} has succeeded: there is nothing to retry",
            f'kubectl perdure update {name} "new instructions"',
        )
    if (arguments.attempts or 1) > MOST_RETRIES:
        raise UsageError(f"--attempts: expected at most {MOST_RETRIES}, got {arguments.attempts}")
    retry_name = uuid.uuid4().hex
    changes = _given(
        {
            "model": arguments.model,
            "policy": {
                "continuity": _choice(arguments.continuity),
                "budgetUSD": _amount(arguments.budget_usd),
                "timeoutSeconds": _whole(arguments.timeout),
                **_endings(arguments),
            },
        }
    )
    more = str(arguments.attempts) if arguments.attempts else None
    wanted: MergePatch = {"metadata": {"annotations": {RETRY: retry_name, RETRY_ATTEMPTS: more}}}
    if changes:
        wanted["spec"] = changes
    asked = taskruns.patch(name, wanted, seen=body)

    def is_acted_on(now: KubernetesObject) -> bool:
        return word(now, "status.retried") == retry_name

    return print_and_follow(taskruns, asked, arguments, "gets one more attempt", is_acted_on)


def update_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="the TaskRun's name")
    parser.add_argument("prompt", nargs="?", help="new instructions; `-` reads standard input")
    parser.add_argument(
        "--prompt-file",
        metavar="FILE",
        help="read the new instructions from a file (`-`: standard input)",
    )
    following(parser)


def update_verb(taskruns: TaskRuns, arguments: argparse.Namespace) -> int:
    text, name = read_prompt(arguments), arguments.name
    end = time.monotonic() + PATIENCE_S
    while True:
        body = taskruns.get(name)
        version = count(body, "spec.contextVersion")
        if not unrecorded(body):
            try:
                change = {"prompt": text, "promptFrom": None, "contextVersion": version + 1}
                asked = taskruns.patch(name, {"spec": change}, seen=body)
                return print_and_follow(
                    taskruns, asked, arguments, f"has version {version + 1} of its instructions"
                )
            except Conflict:
                pass  # Another client changed the TaskRun in the meantime: read it again.
        if time.monotonic() > end:
            raise NotYet(
                f"version {version} of {name}'s instructions is not recorded yet, and your update "
                f"would replace it",
                "check that the operator runs: kubectl get pods -A -l "
                "app.kubernetes.io/component=operator",
            )
        time.sleep(EVERY_S)


def stop_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="the TaskRun's name")
    following(parser)


def stop_verb(taskruns: TaskRuns, arguments: argparse.Namespace) -> int:
    body = taskruns.get(arguments.name)
    if phase(body) in ("Succeeded", "Failed", "Cancelled") and not unrecorded(body):
        raise Conflict(
            f"{arguments.name} is not running: its phase is {phase(body)}",
            f"kubectl perdure show {arguments.name}",
        )
    asked = taskruns.patch(arguments.name, {"spec": {"suspend": True}})
    return print_and_follow(taskruns, asked, arguments, "is stopping; its work is saved first")


def resume_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="the TaskRun's name")
    following(parser)


def resume_verb(taskruns: TaskRuns, arguments: argparse.Namespace) -> int:
    body = taskruns.get(arguments.name)
    if part(body, "spec").get("suspend") is not True:
        raise Conflict(
            f"{arguments.name} is not stopped: it is {phase(body).lower()}",
            f"kubectl perdure retry {arguments.name}",
        )
    asked = taskruns.patch(arguments.name, {"spec": {"suspend": False}})
    return print_and_follow(taskruns, asked, arguments, "goes on")


def print_and_follow(
    taskruns: TaskRuns,
    body: KubernetesObject,
    arguments: argparse.Namespace,
    what: str,
    is_acted_on: Callable[[KubernetesObject], bool] = lambda body: True,
) -> int:
    """Print that the TaskRun was created or changed; `what` says which. With --follow, wait until
    the TaskRun has ended, or waits for an answer. Return the exit code.

    `is_acted_on` returns whether the operator has acted on the change, for example on a retry.
    Before that, the TaskRun does not count as ended.
    """
    from perdure.engine.service import code_of

    name, code = body["metadata"]["name"], 0
    if not arguments.json:
        print(f"taskrun.perdure.dev/{name} {what}")
    if arguments.follow:
        print(f"perdure: {one_line(name, 63)}: Ctrl-C leaves, and it continues", file=sys.stderr)
        before = count(body, "status.attempt") - has_open_attempt(body)
        if arguments.quiet:
            logs = None
        else:
            logs = PodLogs(
                taskruns, lambda line: print(line, file=sys.stderr, flush=True), after=before
            )
        body = follow(taskruns, name, logs, is_acted_on)
        asks = bool(condition(body, "NeedsPerson"))
        code = code_of(STATES.get(phase(body), STATES["Pending"]), last_outcome(body), asks)
    if arguments.json:
        printed(report_of(body))
    return code
