"""Decodes a TaskRun from the API server: its `spec`, its `status`, and the names of its objects.
Pure.

The API server checks the resource's schema, but a cluster may have an older or newer version of
that schema. For a spec that does not match, `WantedRun.invalid` describes the error with the
field's name. The operator reports it as a condition.
"""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec

from perdure.kubernetes.objects import (
    KubernetesObject,
    UntrustedObject,
    annotations_of,
    is_being_deleted,
    labels_of,
    with_plain_words,
)
from perdure.kubernetes.requests import ANSWERS, GivenAnswer, given_answers
from perdure.kubernetes.spec import Invalid, Spec, SpecSource, check
from perdure.kubernetes.status import TaskRunStatus, safe_line, status_of
from perdure.model.codec import resolved

GROUP, VERSION, KIND, PLURAL = "perdure.dev", "v1alpha1", "TaskRun", "taskruns"
FINALIZER = f"{GROUP}/unsaved-work"
RETRY, ABANDON = f"{GROUP}/retry", f"{GROUP}/abandon"
RETRY_ATTEMPTS = f"{GROUP}/retry-attempts"
MOST_RETRIES = 1000
QUEUE_LABELS = ("kueue.x-k8s.io/queue-name", "kueue.x-k8s.io/priority-class")


class WantedRun(msgspec.Struct, frozen=True, kw_only=True):
    """A decoded TaskRun."""

    namespace: str
    name: str
    uid: str
    version: str
    """The `metadata.resourceVersion`. A write to the status names it and is refused if the TaskRun
    has changed since."""
    generation: int
    deleting: bool
    finalizers: tuple[str, ...]
    labels: dict[str, str]
    retry: str
    retry_attempts: int
    """Number of further attempts that the requested retry allows."""
    abandoned: bool
    """Whether a person allowed the deletion of the TaskRun although its work is not saved."""
    answers: tuple[GivenAnswer, ...] = ()
    """Answers to requests of the agent, from the annotation `ANSWERS`."""
    spec: Spec
    invalid: str
    """Description of an error in the spec; empty if the spec is valid."""
    status: TaskRunStatus
    raw_status: UntrustedObject

    @property
    def key(self) -> tuple[str, str]:
        return self.namespace, self.name

    @property
    def has_finalizer(self) -> bool:
        return FINALIZER in self.finalizers

    @property
    def hash(self) -> str:
        return hashlib.sha256(self.uid.encode()).hexdigest()[:8]

    @property
    def object_name(self) -> str:
        """Return the name of the TaskRun's ConfigMap. The name of a Job is this name with the
        attempt's number. A claim has this name too, unless TaskRuns of one task can share it."""
        return f"{self.name[:40].rstrip('-.')}-{self.hash}"

    @property
    def secrets(self) -> dict[int, SpecSource]:
        """For each known version of the instructions that is in a Secret, return the name and key
        of that Secret, by version."""
        newest = (self.spec.secret,) if self.spec.secret is not None else ()
        return {each.version: each for each in (*self.status.instructions_from, *newest)}

    def job(self, attempt: int) -> str:
        return f"{self.object_name}-{attempt}"

    @property
    def claim(self) -> str:
        """Return the name of the TaskRun's volume claim, which is used if `spec.workspace.mode` is
        `Claim`. TaskRuns with the same service, task and agent share a claim. A TaskRun without
        `spec.task` has a claim of its own."""
        spec = self.spec
        if not spec.task:
            return self.object_name
        whole = "/".join((self.namespace, spec.service, spec.task, spec.agent))
        readable = _plain(f"{spec.service}-{spec.task}")[:48].rstrip("-")
        return f"{readable}-{hashlib.sha256(whole.encode()).hexdigest()[:8]}"

    def may_use_claim(self, claim: str, maker: str) -> bool:
        """Return whether this TaskRun may have work on a volume claim. `maker` is the name of the
        TaskRun with which the claim is to be deleted. Return True if the spec is invalid, because
        the answer is then unknown."""
        return (
            bool(self.invalid)
            or claim in (self.claim, self.status.workspace.claim_name)
            or self.spec.resume.from_ == maker
        )


def wanted(body: KubernetesObject) -> WantedRun:
    """Decode a TaskRun from an object of the API server. Contents of `spec` or `status` never raise
    an error; an invalid spec is reported in `invalid`."""
    meta = body["metadata"]
    annotations, labels = annotations_of(body), labels_of(body)
    spec, invalid = Spec(), ""
    try:
        spec = msgspec.convert(with_plain_words(body.get("spec") or {}), resolved(Spec))
        check(spec, meta["uid"])
    except (msgspec.ValidationError, Invalid) as error:
        invalid = safe_line(f"spec: {error}".replace("$.", ""))
    raw = body.get("status") or {}
    return WantedRun(
        namespace=meta["namespace"],
        name=meta["name"],
        uid=meta["uid"],
        version=meta.get("resourceVersion", ""),
        generation=meta.get("generation", 1),
        deleting=is_being_deleted(body),
        finalizers=tuple(meta.get("finalizers") or ()),
        labels={name: labels[name] for name in QUEUE_LABELS if name in labels},
        retry=str(annotations.get(RETRY, ""))[:253],
        retry_attempts=_number(annotations.get(RETRY_ATTEMPTS, "")),
        abandoned=annotations.get(ABANDON) == "true",
        answers=given_answers(annotations.get(ANSWERS)),
        spec=spec,
        invalid=invalid,
        status=status_of(raw),
        raw_status=raw,
    )


def _number(text: Any) -> int:
    """Return the number of attempts that an annotation asks for; 1 if the annotation is missing or
    not valid."""
    word = str(text)
    valid = word.isascii() and word.isdecimal() and len(word) < 5
    if valid:
        return min(max(int(word), 1), MOST_RETRIES)
    return 1


def _plain(text: str) -> str:
    plain = ""
    for letter in text.lower():
        plain += letter if letter.isascii() and letter.isalnum() else "-"
    return plain.strip("-") or "task"
