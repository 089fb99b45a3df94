"""Decides whether a TaskRun may be deleted, and whether its claim is deleted with it. Pure. Called
by `step`.

The finalizer keeps a TaskRun from being deleted as long as that could lose work. A TaskRun whose
work stays on a claim that is kept gets no finalizer. With `workspace.reclaim: Delete` the finalizer
stays until the claim is deleted.
"""

from __future__ import annotations

from perdure.kubernetes.status import TaskRunStatus
from perdure.kubernetes.wanted import GROUP, WantedRun


def safe(run: WantedRun, status: TaskRunStatus) -> bool:
    """Return whether no work is lost if the TaskRun is deleted. That is so if all work is saved
    elsewhere, or stays on a claim that is kept, or if no attempt began.

    An attempt that began but has no Job may still have done work: its Job may have come and gone
    while no operator was running.
    """
    return kept(run) or status.workspace.saved or not status.attempt


def kept(run: WantedRun) -> bool:
    """Return whether all work remains on its volume when the TaskRun is deleted. Such a TaskRun
    needs no finalizer. Return False if the spec is invalid, because the volume is then unknown."""
    volume = run.spec.workspace
    if run.invalid:
        return False
    return volume.mode == "Shared" or (volume.mode == "Claim" and volume.reclaim == "Keep")


def claim_to_go(run: WantedRun) -> str:
    """Return the name of the claim to delete with the TaskRun; empty if the claim is kept."""
    volume = run.spec.workspace
    if volume.mode == "Claim" and volume.reclaim == "Delete":
        return run.status.workspace.claim_name or run.claim
    return ""


def gives_up(run: WantedRun, claim: str) -> bool:
    """Return whether a TaskRun is being deleted and no longer needs the claim. It must be a TaskRun
    that deletes the claim itself, and its work must be saved or abandoned. Without this rule, two
    TaskRuns that share a claim and are deleted together would each keep it for the other."""
    if not run.deleting or run.invalid or claim_to_go(run) != claim:
        return False
    return run.abandoned or (run.status.open is None and safe(run, run.status))


def unsaved(run: WantedRun, status: TaskRunStatus) -> str:
    """Return a message about work that would be lost if the TaskRun were deleted. The message says
    where the work is, and which commands keep or abandon it."""
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
    """Return advice that contains a command. Once the command has been run, the TaskRun can be
    deleted and its claim is kept. Empty if the TaskRun has no claim."""
    if run.spec.workspace.mode != "Claim":
        return ""
    patch = '{"spec":{"workspace":{"reclaim":"Keep"}}}'
    return (
        f" to keep the claim: kubectl patch taskruns.perdure.dev {run.name} --type merge -p "
        f"'{patch}';"
    )
