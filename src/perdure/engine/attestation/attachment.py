"""Attaches signed receipts automatically if the setting `receipts` asks for it. When an attempt
ends, its receipt is attached to the commit as a git note. The forge comment about the run contains
the receipt as well.

If a receipt cannot be signed or attached, a warning is logged; the run is not affected.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Protocol

from perdure.engine.attestation import Statement, envelope, hostkey, notes, statement_of
from perdure.engine.report import report_of
from perdure.errors import PerdureError
from perdure.model import TaskRun
from perdure.model.events import AttemptEnded, Record
from perdure.protocols import PostingStore, RunStore

_LOG = logging.getLogger("perdure")
NOTE, COMMENT, BOTH = "note", "comment", "both"


class AttestedStore(RunStore, PostingStore, Protocol):
    """The store methods that are needed to build a statement."""


class Attacher:
    """An observer of the store. When an attempt ends, it attaches the attempt's receipt to the
    commit as a git note."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.store: AttestedStore | None = None

    def __call__(self, record: Record, /) -> None:
        if self.store is None or not isinstance(record.event, AttemptEnded):
            return
        try:
            run = self.store.get(record.run)
            statement = statement_in(self.store, run, record.attempt)
            content = envelope.signed(statement, hostkey.load(self.state))
            notes.attach(repository_of(run), statement, content)
        except PerdureError as error:
            _LOG.warning("the receipt of %s was not attached: %s", record.run, error)


def statement_in(store: AttestedStore, run: TaskRun, number: int = 0) -> Statement:
    """Return the statement about an attempt (`number` 0: the newest), read from the store. Raises
    NotFound."""
    return statement_of(
        report_of(store, run), store.checkpoints(run.id), number, str(run.spec.permissions)
    )


def repository_of(run: TaskRun) -> Path:
    """Return the path of a repository that has the run's commits. This is the run's workdir or, if
    the workdir no longer exists, the repository from which it was made."""
    place = run.workspace
    if place is None:
        return Path()
    if Path(place.path).is_dir():
        return Path(place.path)
    return Path(place.repo)


def signed_receipt(store: AttestedStore, run: TaskRun, state: Path) -> str:
    """Return the signed receipt of the newest attempt. If it cannot be made or signed, log a
    warning and return an empty text."""
    try:
        return envelope.signed(statement_in(store, run), hostkey.load(state)).decode()
    except PerdureError as error:
        _LOG.warning("the receipt of %s was not attached: %s", run.name, error)
        return ""
