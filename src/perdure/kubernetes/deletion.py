"""Decides whether a TaskRun may be deleted, and what is deleted with it. Pure; called by `step`.

The finalizer keeps the TaskRun while its deletion could lose work. It is not set if no work could
be lost: on a claim that is kept, all work stays. If its claim is to be deleted with it
(`workspace.reclaim: Delete`), the finalizer keeps it until the claim is deleted.
"""

from __future__ import annotations

from perdure.kubernetes.status import TaskRunStatus
from perdure.kubernetes.wanted import GROUP, WantedRun


def safe(run: WantedRun, status: TaskRunStatus) -> bool:
    """Return whether deleting the TaskRun would lose no work: all work is saved elsewhere, or stays
    on a claim that is kept, or no attempt began.

    An attempt without a Job may still have done something: its Job may have come and gone while no
    operator was watching.
    """
    return kept(run) or status.workspace.saved or not status.attempt


def kept(run: WantedRun) -> bool:
    """Return whether all work stays where it is when the TaskRun is deleted, so that the finalizer
    would protect nothing. If the spec cannot be read, this is unknown, and the answer is False."""
    volume = run.spec.workspace
    if run.invalid:
        return False
    return volume.mode == "Shared" or (volume.mode == "Claim" and volume.reclaim == "Keep")


def claim_to_go(run: WantedRun) -> str:
    """Return the claim that is deleted with the TaskRun; empty if the claim stays."""
    volume = run.spec.workspace
    if volume.mode == "Claim" and volume.reclaim == "Delete":
        return run.claim
    return ""


def unsaved(run: WantedRun, status: TaskRunStatus) -> str:
    """Return a sentence about work that would be lost with the TaskRun: where it is, and what to
    do."""
    where = f"is only on the claim {status.workspace.claim_name or run.claim}"
    if run.spec.workspace.mode != "Claim":
        where = "was done in a pod after its newest checkpoint"
    if status.attempts and not status.attempts[-1].pod:
        where = "may have been done in a pod that was not observed"
    return (
        f"work of attempt {status.attempt} {where} and would be lost with the TaskRun;{_keep(run)} "
        f"to delete it anyway: kubectl annotate taskruns.perdure.dev {run.name} "
        f"{GROUP}/abandon=true"
    )


def _keep(run: WantedRun) -> str:
    """Return the command that keeps the claim so that the TaskRun can be deleted; empty if there is
    no claim."""
    if run.spec.workspace.mode != "Claim":
        return ""
    patch = '{"spec":{"workspace":{"reclaim":"Keep"}}}'
    return (
        f" to keep the claim: kubectl patch taskruns.perdure.dev {run.name} --type merge -p "
        f"'{patch}';"
    )
