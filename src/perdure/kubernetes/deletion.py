"""Whether a TaskRun may go, and what goes with it. Pure; asked by `step`.

The finalizer holds it while work may be lost with it, and, where its claim is to go with it
(`workspace.reclaim: Delete`), until it is deleted.
"""

from __future__ import annotations

from perdure.kubernetes.status import TaskRunStatus
from perdure.kubernetes.wanted import GROUP, WantedRun


def safe(run: WantedRun, status: TaskRunStatus) -> bool:
    """Whether nothing would be lost with the TaskRun: all is saved elsewhere, or stays on a claim
    that is kept, or no attempt began.

    Of an attempt without a Job it is not known that it did nothing: its Job may have come and gone
    while no operator looked."""
    volume = run.spec.workspace
    kept = volume.mode == "Shared" or (volume.mode == "Claim" and volume.reclaim == "Keep")
    return kept or status.workspace.saved or not status.attempt


def claim_to_go(run: WantedRun) -> str:
    """The claim that goes with the TaskRun; empty where it stays."""
    volume = run.spec.workspace
    return run.claim if volume.mode == "Claim" and volume.reclaim == "Delete" else ""


def unsaved(run: WantedRun, status: TaskRunStatus) -> str:
    """Where work lies that would be lost with the TaskRun, and what to do."""
    where = f"lies only on the claim {status.workspace.claim_name or run.claim}"
    if run.spec.workspace.mode != "Claim":
        where = "was done in a pod after its newest checkpoint"
    if status.attempts and not status.attempts[-1].pod:
        where = "may have been done in a pod that nobody saw"
    return (
        f"work of attempt {status.attempt} {where} and would be lost with the TaskRun; to delete "
        f"it all the same: kubectl annotate taskruns.perdure.dev {run.name} {GROUP}/abandon=true"
    )
