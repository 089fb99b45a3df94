"""Updates the condition `unsaved` of a run. A run has this condition if a clean-up kept its workdir
because the workdir has changes that exist nowhere else.

`recheck` is called after an operation that may have saved or removed these changes, such as a
restore or an apply. The condition is also removed when the run is queued again; the next clean-up
then checks the workdir again.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

from msgspec.structs import replace

from perdure.errors import PerdureError
from perdure.model import UNSAVED, Checkpoint, Host, TaskRun

if TYPE_CHECKING:
    from perdure.engine.attempt.engine import EngineStore
    from perdure.workspace import Workspaces

WHAT = "it has changes that exist nowhere else: "


def recheck(
    store: EngineStore,
    workspaces: Workspaces,
    host: Host,
    run: TaskRun,
    checkpoint: Checkpoint | None = None,
) -> TaskRun:
    """Check the workdir of a run that has the condition `unsaved`, and return the run. If all
    changes are now saved elsewhere, the condition is removed. Otherwise the condition's message
    gets the current list of changes.

    `checkpoint`: a checkpoint that may contain these changes; by default the run's newest.
    """
    condition = next((each for each in run.conditions if each.type == UNSAVED), None)
    place = run.workspace
    if condition is None or place is None or host.elsewhere(run):
        return run
    lost: tuple[str, ...] = ()
    if os.path.lexists(place.path):
        newest = checkpoint or max(
            store.checkpoints(run.id), key=lambda each: each.number, default=None
        )
        if newest is not None:
            number, commit = (newest.number, newest.workdir.commit)
        else:
            number, commit = (0, "")
        proof = workspaces.check_removal(place, number, commit)
        lost = tuple(proof.lost)
    with suppress(PerdureError):
        if not lost:
            return store.record_outside_attempt(run.id, [], solved=UNSAVED)
        before, found, _ = condition.message.partition(WHAT)
        if found:
            message = f"{before}{WHAT}{'; '.join(lost)}"
        else:
            message = condition.message
        if message != condition.message:
            return store.record_outside_attempt(run.id, [], replace(condition, message=message))
    return run
