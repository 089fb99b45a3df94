"""Checks an installed operator from outside: its account's rights, and the probes of its pods.

Called by `perdure operator --check`, which the pod of `helm test` runs with the operator's account
and flags. It changes nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import httpx2

from perdure.kubernetes import api as kinds
from perdure.kubernetes.api import Api, Away, Refused
from perdure.kubernetes.objects import KubernetesObject, is_being_deleted
from perdure.kubernetes.operator import ALL, Options
from perdure.kubernetes.status import safe_line
from perdure.kubernetes.wanted import GROUP

PROBES = ("/healthz", "/readyz")
WAIT_S = 60.0
"""Maximum wait in seconds until the probes of a new operator answer."""
LOOK_S = 1.0
PROBE_S = 5.0


class Right(NamedTuple):
    """A right of the operator: the verbs that it needs on one resource."""

    group: str
    resource: str
    verbs: tuple[str, ...]


RIGHTS = (
    Right(GROUP, "taskruns", ("get", "list", "watch", "patch", "delete")),
    Right(GROUP, "taskruns/finalizers", ("update",)),
    Right(GROUP, "taskruns/status", ("patch",)),
    Right("batch", "jobs", ("get", "list", "watch", "create", "delete")),
    Right("", "pods", ("list", "watch")),
    Right("", "events", ("list", "create")),
    Right("", "resourcequotas", ("list",)),
    Right("", "configmaps", ("get", "create", "patch")),
    Right("", "persistentvolumeclaims", ("get", "create", "patch", "delete")),
    Right("", "namespaces", ("get",)),
)
"""The rules of the chart's role (templates/rbac.yaml), without the rules that depend on the chart's
values."""
LOGS = Right("", "pods/log", ("get",))
POLICIES = Right("networking.k8s.io", "networkpolicies", ("get", "create", "patch"))
ACCOUNTS = Right("", "serviceaccounts", ("create",))


def rights(options: Options) -> Iterator[Right]:
    """Return the rights that an operator with these options needs."""
    yield from RIGHTS
    if options.read_logs:
        yield LOGS
    if options.policy:
        yield POLICIES
    if options.make_account:
        yield ACCOUNTS


async def check(
    api: Api, options: Options, namespace: str, selector: str, say: Callable[[str], None]
) -> bool:
    """Check the rights in the operator's namespaces, and the probes of the pods that `selector`
    selects in `namespace`. Report the result of each check with `say`. Return True if no right is
    missing and all probes answer."""
    may = [await _check_rights(api, options, each, say) for each in options.namespaces or (ALL,)]
    try:
        answers = await _check_probes(api, options.port, namespace, selector, say)
    except (Refused, Away) as error:
        say(f"no pod can be looked at: {safe_line(str(error), 300)}")
        answers = False
    return all(may) and answers


async def _check_rights(
    api: Api, options: Options, namespace: str, say: Callable[[str], None]
) -> bool:
    where = "all namespaces" if namespace == ALL else f"namespace {namespace}"
    missing, count = [], 0
    for right in rights(options):
        for verb in right.verbs:
            count += 1
            asked = "" if namespace == ALL else namespace
            if not await api.is_allowed(asked, verb, right.group, right.resource):
                missing.append(f"{verb} {right.resource}")
    if missing:
        say(f"rights in {where}: missing {', '.join(missing)}")
    else:
        say(f"rights in {where}: all {count}")
    return not missing


async def _check_probes(
    api: Api, port: int, namespace: str, selector: str, say: Callable[[str], None]
) -> bool:
    """Request the probes of every running pod that `selector` selects, until all answer 200 or
    `WAIT_S` is over. Report the result with `say`. Return whether all answered."""
    labels = dict(each.partition("=")[::2] for each in selector.split(","))
    end = time.monotonic() + WAIT_S
    while True:
        pods = await api.items(kinds.POD, namespace, labels)
        running = [each for each in pods if _runs(each)]
        failures: list[str] = []
        for pod in running:
            failures += await _failures(pod, port)
        if running and not failures:
            names = ", ".join(sorted(each["metadata"]["name"] for each in running))
            say(f"{names}: {' and '.join(PROBES)} answer")
            return True
        if time.monotonic() >= end:
            say("; ".join(failures) or f"no pod with {selector} is running in {namespace}")
            return False
        await asyncio.sleep(LOOK_S)


def _runs(pod: KubernetesObject) -> bool:
    status = pod.get("status") or {}
    running = status.get("phase") == "Running" and bool(status.get("podIP"))
    return running and not is_being_deleted(pod)


async def _failures(pod: KubernetesObject, port: int) -> list[str]:
    """Return one line for each probe of a pod that does not answer 200; nothing if both do."""
    address = str(pod["status"]["podIP"])
    if ":" in address:
        address = f"[{address}]"
    found = []
    async with httpx2.AsyncClient(timeout=PROBE_S, trust_env=False) as client:
        for path in PROBES:
            url = f"http://{address}:{port}{path}"
            try:
                answer = await client.get(url)
            except httpx2.HTTPError as error:
                found.append(f"{url}: {type(error).__name__}")
                continue
            if answer.status_code != 200:
                found.append(f"{url}: {answer.status_code} {safe_line(answer.text, 200)}")
    return found
