"""Decides whether a TaskRun may open one more attempt. Pure. `reconciler` calls it before `step`
opens an attempt.

An attempt may begin if the namespace's quotas have room for it and no other attempt uses the task's
volume claim. Kubernetes itself enforces these conditions, so a wrong decision only affects the
order of the TaskRuns. Without this check all TaskRuns would open an attempt at once. The Job
controller would then start their pods in any order, with growing delays. With the check, the oldest
waiting TaskRun goes first.

A limit that is too small even for a single attempt is ignored, because waiting would not help; the
Job's own Events report that problem. Quotas with scopes are ignored too. Kubernetes enforces both.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from decimal import Decimal, InvalidOperation

import msgspec

from perdure.kubernetes.objects import KubernetesObject
from perdure.kubernetes.outcomes import Obstacle
from perdure.kubernetes.spec import Resources
from perdure.kubernetes.status import FINAL, moment
from perdure.kubernetes.wanted import WantedRun

PODS = frozenset({"pods", "count/pods"})
COMPUTE = {
    "cpu": ("requests", "cpu"),
    "memory": ("requests", "memory"),
    "requests.cpu": ("requests", "cpu"),
    "requests.memory": ("requests", "memory"),
    "limits.cpu": ("limits", "cpu"),
    "limits.memory": ("limits", "memory"),
}
"""For each name of a quota entry, the field of a container's `resources` that the entry limits, as
section and key."""
LOOK_AGAIN_MS = 3_000
"""Delay in milliseconds before a waiting TaskRun checks the quota again, if no other TaskRun is
ahead of it. Each TaskRun ahead adds the same delay."""
MOST_LOOK_AGAIN_MS = 60_000
SUFFIXES = {
    "": Decimal(1),
    "n": Decimal("1e-9"),
    "u": Decimal("1e-6"),
    "m": Decimal("1e-3"),
    "k": Decimal(10) ** 3,
    "M": Decimal(10) ** 6,
    "G": Decimal(10) ** 9,
    "T": Decimal(10) ** 12,
    "P": Decimal(10) ** 15,
    "E": Decimal(10) ** 18,
    "Ki": Decimal(2) ** 10,
    "Mi": Decimal(2) ** 20,
    "Gi": Decimal(2) ** 30,
    "Ti": Decimal(2) ** 40,
    "Pi": Decimal(2) ** 50,
    "Ei": Decimal(2) ** 60,
}


class InLine(msgspec.Struct, frozen=True, kw_only=True):
    """The facts about one TaskRun that decide when it and the TaskRuns behind it may open an
    attempt."""

    namespace: str
    name: str
    created: int
    agent: str = ""
    phase: str = ""
    claim: str
    """Name of the volume claim that the TaskRun uses; empty if `spec.workspace.mode` is not
    `Claim`."""
    waits: bool
    """Whether the TaskRun is ready to open an attempt, or waits only for the quota or its start
    time."""
    due: int
    """Earliest start of the next attempt, in milliseconds since 1970."""
    attempt: int
    """Number of the TaskRun's newest attempt; 0 before the first."""
    open: bool
    """Whether the newest attempt has begun and has no outcome yet."""
    podless: bool = False
    """Whether the newest attempt is open, has no pod yet, and does not wait for a quota. The
    quota's current use does not include the pod of such an attempt yet, so `room` adds it.
    (`in_line` does not know the pods. `ClusterCache.line` sets the value to False if there is one.)
    """

    @property
    def age(self) -> tuple[int, str]:
        return self.created, self.name


class Room(msgspec.Struct, frozen=True, kw_only=True):
    """The decision of `room`. `obstacle` is the reason why no attempt may begin now; None if an
    attempt may begin."""

    obstacle: Obstacle | None = None
    ahead: int = 0
    """Number of TaskRuns that may open an attempt before this one."""

    @property
    def again_ms(self) -> int:
        return min(LOOK_AGAIN_MS * (1 + self.ahead), MOST_LOOK_AGAIN_MS)


def in_line(run: WantedRun, created: int) -> InLine:
    """Return the facts about a TaskRun that `room` needs. `created` is its creation time in
    milliseconds since 1970."""
    status, spec = run.status, run.spec
    waiting = status.condition("Waiting")
    reason = waiting.reason if waiting is not None else ""
    opened = status.open
    asked = run.retry != status.retried or run.generation != status.observed_generation
    idle = spec.suspend or run.deleting or bool(run.invalid) or opened is not None or status.asks
    return InLine(
        namespace=run.namespace,
        name=run.name,
        created=created,
        agent=spec.agent,
        phase=status.phase or "Pending",
        claim=(status.workspace.claim_name or run.claim) if spec.workspace.mode == "Claim" else "",
        waits=not idle and (status.phase not in FINAL or asked) and reason in ("", "QuotaExceeded"),
        due=moment(status.run_after),
        attempt=status.attempt,
        open=opened is not None,
        podless=opened is not None and reason != "QuotaExceeded",
    )


def admitted(mine: InLine) -> InLine:
    """Return the facts about a TaskRun as they will be when its next attempt is open."""
    return msgspec.structs.replace(
        mine, open=True, podless=True, waits=False, attempt=mine.attempt + 1
    )


def room(
    mine: InLine,
    resources: Resources,
    others: Iterable[InLine],
    quotas: Sequence[KubernetesObject],
    now: int,
) -> Room:
    """Decide whether the TaskRun `mine` may open an attempt that requests these resources. If it
    may not, the result has the reason and the number of TaskRuns ahead."""
    beside = [each for each in others if each.namespace == mine.namespace]
    writer = next(
        (each for each in beside if each.open and mine.claim and each.claim == mine.claim), None
    )
    if writer is not None:
        return Room(
            obstacle=Obstacle(
                "ClaimInUse",
                f"TaskRun {writer.name} is running this task: one attempt at a time writes to "
                f"the claim {mine.claim}",
            )
        )
    ahead = sum(each.waits and each.due <= now and each.age < mine.age for each in beside)
    coming = sum(each.podless for each in beside)
    for quota in quotas:
        short = _short(quota, resources, ahead + coming + 1)
        if short:
            return Room(
                obstacle=Obstacle(
                    "QuotaExceeded",
                    f"the quota {_name(quota)} of the namespace {short}, and they are in use: the "
                    "attempt begins when there is room",
                ),
                ahead=ahead,
            )
    return Room()


def _short(quota: KubernetesObject, resources: Resources, count: int) -> str:
    """Return a message that names the first limit of a quota that `count` more attempts together
    would exceed; empty if there is none. A quota with scopes is ignored, and so is a limit that a
    single attempt would exceed on its own."""
    spec, status = quota.get("spec") or {}, quota.get("status") or {}
    if spec.get("scopes") or spec.get("scopeSelector"):
        return ""
    hard, used = status.get("hard") or {}, status.get("used") or {}
    for name, most in hard.items():
        each = _asked(name, resources)
        limit, taken = quantity(most), quantity(used.get(name, "0"))
        if each is None or limit is None or taken is None or each > limit:
            continue
        if taken + count * each > limit:
            return f"allows {most} {name}"
    return ""


def _asked(name: str, resources: Resources) -> Decimal | None:
    """Return the amount of the quota entry `name` that one attempt uses; None if it is unknown."""
    if name in PODS:
        return Decimal(1)
    if name not in COMPUTE:
        return None
    part, kind = COMPUTE[name]
    named = resources.get(part) or {}
    # If no request is given, Kubernetes uses the container's limit as its request.
    value = named.get(kind, (resources.get("limits") or {}).get(kind))
    if value is None:
        return None
    return quantity(value)


def quantity(value: object) -> Decimal | None:
    """Parse a Kubernetes quantity such as `500m` or `2Gi`. Return None if it is not valid."""
    text = str(value).strip()
    number = text.rstrip("numkMGTPEi")
    try:
        return Decimal(number) * SUFFIXES[text[len(number) :]]
    except (InvalidOperation, KeyError):
        return None


def _name(quota: KubernetesObject) -> str:
    return str((quota.get("metadata") or {}).get("name", ""))
