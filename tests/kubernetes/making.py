"""Objects of an API server, as small as the operator needs them."""

from __future__ import annotations

import uuid
from typing import Any

import msgspec

from perdure.kubernetes import result
from perdure.model import Outcome, OutcomeKind

UID = "0b7f2f0c-1d1e-4c67-9d8e-3a5b7c9d1e2f"


def job_uid(attempt: int) -> str:
    """Return the uid of an attempt's Job that these objects have by default."""
    return str(uuid.UUID(int=attempt))


def taskrun(name: str = "fix", *, uid: str = UID, **spec: Any) -> dict[str, Any]:
    """Return a TaskRun of a service's task. The fields of `spec` are added to its spec."""
    return {
        "apiVersion": "perdure.dev/v1alpha1",
        "kind": "TaskRun",
        "metadata": {
            "name": name,
            "namespace": "default",
            "uid": uid,
            "resourceVersion": "1",
            "generation": 1,
        },
        "spec": {
            "service": "shop",
            "task": name,
            "agent": "claude",
            "prompt": "Mend the test.",
            "contextVersion": 1,
            **spec,
        },
    }


def job(
    run: dict[str, Any],
    attempt: int,
    *,
    uid: str = "",
    conditions: dict[str, str] | None = None,
    **spec: Any,
) -> dict[str, Any]:
    """Return the Job of an attempt. `conditions`: the types of its conditions that are true, with
    their reasons."""
    meta = run["metadata"]
    return {
        "metadata": {
            "name": f"job-{attempt}", "uid": uid or job_uid(attempt), "resourceVersion": "1", "creationTimestamp": "2026-11-21T10:00:00Z",
            "labels": {"perdure.dev/taskrun-uid": meta["uid"], "perdure.dev/attempt": str(attempt)},
            "ownerReferences": [{"kind": "TaskRun", "uid": meta["uid"], "controller": True}],
        },
        "spec": spec,
        "status": {"conditions": [{"type": each, "status": "True", "reason": why} for each, why in (conditions or {}).items()]},
    }  # fmt: skip


def pod(
    run: dict[str, Any],
    attempt: int,
    *,
    phase: str = "Running",
    state: dict[str, Any] | None = None,
    job: str = "",
    **status: Any,
) -> dict[str, Any]:
    """Return a pod of an attempt. `state`: its container's state; `job`: the uid of its Job;
    `metadata` in `status` is added to the pod's metadata."""
    meta = status.pop("metadata", {})
    return {
        "metadata": {
            "name": f"pod-{attempt}", "uid": str(uuid.uuid4()), "resourceVersion": "1", "creationTimestamp": "2026-11-21T10:00:00Z",
            "labels": {"perdure.dev/taskrun-uid": run["metadata"]["uid"], "perdure.dev/attempt": str(attempt)},
            "ownerReferences": [{"kind": "Job", "uid": job or job_uid(attempt), "controller": True}], **meta,
        },
        "spec": {"nodeName": "node-a"},
        "status": {"phase": phase, "containerStatuses": [{"name": "perdure", "state": state or {}}], **status},
    }  # fmt: skip


def ended(code: int, message: str = "", reason: str = "") -> dict[str, Any]:
    """Return the state of an ended container."""
    return {
        "terminated": {
            "exitCode": code,
            "reason": reason or ("Completed" if code == 0 else "Error"),
            "message": message,
        }
    }


def told(attempt: int, kind: OutcomeKind, detail: str = "", **more: Any) -> dict[str, Any]:
    """Return the state of a container that ended with a result."""
    found = result.AttemptResult(attempt=attempt, outcome=Outcome(kind=kind, detail=detail), **more)
    return ended(result.exit_code(found), msgspec.json.encode(found).decode())
