"""Moves a run to this host: fetches its workdir and conversation from a checkpoint store. Used if
several hosts share the database.

The run itself (spec, instructions, attempts, journal) is taken from the database. Only files are
taken from the store, and are verified like those of a capsule (`verification`). Files that were
already in the workdir are saved first, as by a restore.

The caller holds a claim, so no other process works on the run. The last transaction records in the
database that the files are on this host. After a kill before that transaction, the next process
that claims the run fetches everything again.
"""

from __future__ import annotations

import os
from pathlib import Path

from msgspec.structs import replace

from perdure.capsule.imports import (
    all_copies_of,
    checkpoint_of,
    keep_given,
    make_workdir,
    plan_on_this_host,
)
from perdure.capsule.manifest import Manifest
from perdure.capsule.objects import CheckpointStore
from perdure.capsule.verification import verified
from perdure.engine.attempt import Engine
from perdure.engine.checkpoints import restore_transcript, sessions_of
from perdure.errors import CapsuleError
from perdure.model import Claim, TaskRun
from perdure.model.events import CheckpointRestored

WHY = "fetch"


def fetch(engine: Engine, claim: Claim, store: CheckpointStore, manifest: Manifest) -> TaskRun:
    """Fetch the files of the checkpoint to this host. Return the run with its new workspace on this
    host. Raises CapsuleError, Conflict, LostLease, NotFound, WorkspaceError."""
    run = claim.run
    driver = engine.driver(run.spec.agent)
    if manifest.agent != run.spec.agent:
        raise CapsuleError(
            f"the published checkpoint of {run.name} was made with the agent {manifest.agent}, but "
            f"the run has the agent {run.spec.agent}",
            f"perdure show {run.name}",
        )
    home = driver.home({**engine.environ, **run.spec.env})
    engine.state.mkdir(parents=True, exist_ok=True, mode=0o700)
    with verified(manifest, store, engine.state) as files:
        place = plan_on_this_host(engine.workspaces, engine.state, run)
        fd = engine.workspaces.lock(place, f"perdure fetches {run.name}")
        try:
            number, saved, _ = make_workdir(
                engine.store,
                engine.workspaces,
                manifest,
                files,
                place,
                run.spec.agent,
                run.id,
            )
            parts = all_copies_of(
                engine.driver, engine.copies, manifest, files, Path(place.path), []
            )
            keep_given(engine.state, manifest, files)
            here = replace(run, workspace=place)
            checkpoint = replace(
                checkpoint_of(engine.store, manifest, here, parts, number, saved), why=WHY
            )
            transcript = restore_transcript(engine, here, driver, home, checkpoint)
            sessions = sessions_of(engine, here, checkpoint, transcript, home)
            event = CheckpointRestored(
                number=number,
                attempt=manifest.attempt,
                attempts=run.attempt - 1,
                moved_from=run.host_name or "?",
            )
            return engine.store.fetched(claim, place, sessions, checkpoint, event)
        finally:
            os.close(fd)
