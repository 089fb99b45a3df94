"""A TaskRun from the API server: its `spec`, its `status`, and the names of its objects. Pure.

The API server checks the schema of the resource, but a cluster may have another version of that
schema. A spec that does not fit is `Invalid`, with the field's name, and becomes a condition.
"""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec

from perdure.kubernetes.amounts import with_plain_words
from perdure.kubernetes.spec import Invalid, Spec, SpecSource, check
from perdure.kubernetes.status import TaskRunStatus, said, status_of
from perdure.model.codec import resolved

GROUP, VERSION, KIND, PLURAL = "perdure.dev", "v1alpha1", "TaskRun", "taskruns"
FINALIZER = f"{GROUP}/unsaved-work"
RETRY, ABANDON = f"{GROUP}/retry", f"{GROUP}/abandon"
RETRY_ATTEMPTS = f"{GROUP}/retry-attempts"
MOST_RETRIES = 1000
QUEUE_LABELS = ("kueue.x-k8s.io/queue-name", "kueue.x-k8s.io/priority-class")


class WantedRun(msgspec.Struct, frozen=True, kw_only=True):
    """A TaskRun: the task that is wanted, and its state."""

    namespace: str
    name: str
    uid: str
    version: str
    """`metadata.resourceVersion`. Every write to the status requires that this version is still the
    current one."""
    generation: int
    deleting: bool
    finalizers: tuple[str, ...]
    labels: dict[str, str]
    retry: str
    retry_attempts: int
    """Number of further attempts that a retry allows."""
    abandoned: bool
    spec: Spec
    invalid: str
    """Why the spec cannot be used; empty if it can."""
    status: TaskRunStatus
    raw_status: dict[str, Any]

    @property
    def key(self) -> tuple[str, str]:
        return self.namespace, self.name

    @property
    def held(self) -> bool:
        return FINALIZER in self.finalizers

    @property
    def hash(self) -> str:
        return hashlib.sha256(self.uid.encode()).hexdigest()[:8]

    @property
    def named(self) -> str:
        """The name of the TaskRun's objects, except the claim and the Jobs."""
        return f"{self.name[:40].rstrip('-.')}-{self.hash}"

    @property
    def secrets(self) -> dict[int, SpecSource]:
        """The versions of the instructions that are in Secrets, as far as known."""
        newest = (self.spec.secret,) if self.spec.secret is not None else ()
        return {each.version: each for each in (*self.status.instructions_from, *newest)}

    def job(self, attempt: int) -> str:
        return f"{self.named}-{attempt}"

    @property
    def claim(self) -> str:
        """The name of the claim in mode Claim. All TaskRuns of one task and agent share it."""
        spec = self.spec
        if not spec.task:
            return self.named
        whole = "/".join((self.namespace, spec.service, spec.task, spec.agent))
        told = _plain(f"{spec.service}-{spec.task}")[:48].rstrip("-")
        return f"{told}-{hashlib.sha256(whole.encode()).hexdigest()[:8]}"

    def lies_on(self, claim: str, maker: str) -> bool:
        """Return whether work of this TaskRun may be on a volume claim that the TaskRun `maker`
        created. The answer is True if the spec of this TaskRun is not valid."""
        return (
            bool(self.invalid)
            or claim in (self.claim, self.status.workspace.claim_name)
            or self.spec.resume.from_ == maker
        )


def wanted(body: dict[str, Any]) -> WantedRun:
    """Return the TaskRun in an object of the API server. Never raises because of the contents of
    `spec` or `status`."""
    meta = body["metadata"]
    annotations, labels = meta.get("annotations") or {}, meta.get("labels") or {}
    spec, invalid = Spec(), ""
    try:
        spec = msgspec.convert(with_plain_words(body.get("spec") or {}), resolved(Spec))
        check(spec, meta["uid"])
    except (msgspec.ValidationError, Invalid) as error:
        invalid = said(f"spec: {error}".replace("$.", ""))
    raw = body.get("status") or {}
    return WantedRun(
        namespace=meta["namespace"],
        name=meta["name"],
        uid=meta["uid"],
        version=meta.get("resourceVersion", ""),
        generation=meta.get("generation", 1),
        deleting=bool(meta.get("deletionTimestamp")),
        finalizers=tuple(meta.get("finalizers") or ()),
        labels={name: labels[name] for name in QUEUE_LABELS if name in labels},
        retry=str(annotations.get(RETRY, ""))[:253],
        retry_attempts=_number(annotations.get(RETRY_ATTEMPTS, "")),
        abandoned=annotations.get(ABANDON) == "true",
        spec=spec,
        invalid=invalid,
        status=status_of(raw),
        raw_status=raw,
    )


def _number(text: Any) -> int:
    """Return the number of attempts in an annotation; 1 if it is not valid."""
    word = str(text)
    valid = word.isascii() and word.isdecimal() and len(word) < 5
    if valid:
        return min(max(int(word), 1), MOST_RETRIES)
    return 1


def _plain(text: str) -> str:
    return (
        "".join(
            letter if letter.isascii() and letter.isalnum() else "-" for letter in text.lower()
        ).strip("-")
        or "task"
    )
