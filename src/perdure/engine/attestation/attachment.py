"""Attaches envelopes with signed receipts to commits, as git notes (`refs/notes/perdure`), and
reads them from there.

If the setting `receipts` asks for it, `Attacher` attaches the receipt of each attempt when the
attempt ends. The forge comment about the run then contains the receipt as well. If a receipt cannot
be signed or attached, a warning is logged; the run is not affected.

The notes are in the run's repository. They change no branch, index or file, and git pushes them
only on request (`git push origin refs/notes/perdure`).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from perdure.engine.attestation import Statement, signatures, statement_of
from perdure.engine.report import report_of
from perdure.errors import NotFound, PerdureError
from perdure.host.git import Git
from perdure.model import TaskRun
from perdure.model.events import AttemptEnded, Record
from perdure.protocols import PostingStore, RunStore

REF = "refs/notes/perdure"
_IDENTITY = {
    "GIT_AUTHOR_NAME": "perdure",
    "GIT_AUTHOR_EMAIL": "perdure@localhost",
    "GIT_COMMITTER_NAME": "perdure",
    "GIT_COMMITTER_EMAIL": "perdure@localhost",
}


def attach(
    repository: Path, statement: Statement, content: bytes, environ: Mapping[str, str] = os.environ
) -> str:
    """Attach the envelope to the commit that was HEAD at the end of the attempt. An envelope that
    is already attached there is replaced. Return the commit. Raises GitFailed, and NotFound if the
    statement names no commit."""
    commit = next((s.digest["gitCommit"] for s in statement.subject if s.name == "HEAD"), "")
    if not commit:
        raise NotFound("the attempt left no commit to attach a note to")
    git = Git(cwd=repository, environ=environ)
    git.run(
        "notes", f"--ref={REF}", "add", "--force", "--file=-", commit, stdin=content, env=_IDENTITY
    )
    return commit


def attached(repository: Path, commit: str, environ: Mapping[str, str] = os.environ) -> bytes:
    """Return the envelope that is attached to a commit. Raises NotFound if there is none."""
    git = Git(cwd=repository, environ=environ)
    if not (oid := git.commit(commit)):
        raise NotFound(f"there is no commit {commit!r} here")
    found = git.run("notes", f"--ref={REF}", "show", oid, good=(0, 1))
    if found.code:
        raise NotFound(
            f"no receipt is attached to commit {oid[:12]}", f"git fetch origin {REF}:{REF}"
        )
    return found.stdout


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
            content = signatures.signed(statement, signatures.load(self.state))
            attach(repository_of(run), statement, content)
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
        return signatures.signed(statement_in(store, run), signatures.load(state)).decode()
    except PerdureError as error:
        _LOG.warning("the receipt of %s was not attached: %s", run.name, error)
        return ""
