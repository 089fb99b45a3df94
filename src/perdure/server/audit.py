"""Finds runs for the audit trail in the API and the dashboard."""

from __future__ import annotations

from perdure.engine.attempt.engine import EngineStore
from perdure.errors import NotFound


def run_id_of(store: EngineStore, ref: str) -> str:
    """Return the id of a run; empty if `ref` is empty. A removed run can only be named by its full
    id. Raises NotFound."""
    if not ref:
        return ""
    try:
        return store.get(ref).id
    except NotFound:
        if any(run.id == ref for run in store.placed()):
            return ref
        raise
