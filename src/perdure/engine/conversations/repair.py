"""Diagnoses a conversation on disk, and replaces it with a repaired copy: `perdure sessions check`
and `repair`.

A diagnosis only reads. A replacement must meet stricter conditions than a repair during an attempt:
no process may be using the conversation, and the installed agent must be able to resume the
repaired copy. The replaced file is moved elsewhere and kept unchanged.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from perdure.agents.transcripts import snapshot
from perdure.engine.attempt import Engine
from perdure.engine.conversations.search import ConversationEntry, ConversationIndex
from perdure.errors import Conflict, NotFound, PerdureError
from perdure.model import RunState, SessionState
from perdure.model.reports import Shape
from perdure.protocols import AgentDriver
from perdure.rules.transcript_repair import Edit, Finding, Harm, RepairResult, Trouble


class Unproven(PerdureError):
    """Raised if the agent could not continue from the repaired copy. The transcript was not
    replaced."""


class DiagnosisReport(Shape):
    """A diagnosis as `--json` shows it. `moved_aside` are the paths of older files of the
    conversation. `mendable` says whether there is something to repair."""

    id: str
    agent: str
    path: str
    harm: Harm
    findings: tuple[Finding, ...]
    edits: tuple[Edit, ...]
    moved_aside: list[str]
    refusal: str
    mendable: bool


class Diagnosis(Struct, frozen=True, kw_only=True):
    """The diagnosis of one conversation."""

    agent: str
    id: str
    path: Path | None
    """Path of the transcript; None if the transcript does not exist or is in a database."""
    before: bytes
    mended: RepairResult
    duplicates: tuple[Path, ...] = ()
    """Older files of the same conversation. Each contains only the beginning of the file in use, so
    a repair moves it aside."""
    entry: ConversationEntry | None = None

    @property
    def changes(self) -> bool:
        """Return whether there is something to repair."""
        return self.mended.content is not None or (
            bool(self.duplicates) and not self.mended.refusal
        )

    def report(self) -> DiagnosisReport:
        """Return the diagnosis in the form that `--json` shows."""
        return DiagnosisReport(
            id=self.id,
            agent=self.agent,
            path=str(self.path or ""),
            harm=self.mended.harm,
            findings=self.mended.findings,
            edits=self.mended.edits,
            moved_aside=list(map(str, self.duplicates)),
            refusal=self.mended.refusal,
            mendable=self.changes,
        )


def diagnose(index: ConversationIndex, ref: str) -> Diagnosis:
    """Return the diagnosis of the conversation whose id is `ref` or begins with `ref`. A complete
    id finds even a conversation whose file is too damaged to be listed. Raises NotFound, and
    UsageError if several ids begin with `ref`."""
    try:
        return diagnosis(index, index.find(ref))
    except NotFound:
        for name, driver in index.drivers.items():
            if driver.files_of(index.home(name), ref):
                return _diagnose_file(index, name, driver, ref, None)
        raise


def diagnosis(index: ConversationIndex, entry: ConversationEntry) -> Diagnosis:
    """Return the diagnosis of a listed conversation."""
    name = entry.reader or entry.agent
    return _diagnose_file(index, name, index.drivers[name], entry.id, entry)


def _diagnose_file(
    index: ConversationIndex,
    agent: str,
    driver: AgentDriver,
    session_id: str,
    entry: ConversationEntry | None,
) -> Diagnosis:
    home = index.home(agent)
    if driver.archive is not None:
        content = driver.archive.read(home, session_id)
        if content is None:
            return _diagnose_missing(agent, session_id, entry)
        mended = driver.repair(content, session_id)
        if mended.content is not None:
            refusal = (
                "it is in the agent's database: perdure does not write to it, and the agent's "
                "import does not replace records"
            )
            mended = replace(mended, content=None, edits=(), refusal=refusal)
        return Diagnosis(
            agent=agent, id=session_id, path=None, before=content, mended=mended, entry=entry
        )
    remains = driver.files_of(home, session_id)
    if not remains:
        return _diagnose_missing(agent, session_id, entry)
    content = remains[0].read_bytes()
    mended = driver.repair(content, session_id, remains[0].name)
    duplicates, findings, refusal = _compare_duplicates(content, remains[1:])
    refusal = mended.refusal or refusal
    mended = replace(
        mended,
        findings=(*findings, *mended.findings),
        refusal=refusal,
        content=None if refusal else mended.content,
    )
    return Diagnosis(
        agent=agent,
        id=session_id,
        path=remains[0],
        before=content,
        mended=mended,
        duplicates=() if refusal else duplicates,
        entry=entry,
    )


def _diagnose_missing(agent: str, session_id: str, entry: ConversationEntry | None) -> Diagnosis:
    findings: tuple[Finding, ...] = ()
    if (
        entry is not None
        and entry.session is not None
        and entry.session.state is not SessionState.RETIRED
    ):
        what = (
            "its transcript is gone from the agent's home; the next attempt restores perdure's "
            "copy, if there is one"
        )
        findings = (Finding(Trouble.EMPTY, Harm.LOSS, 0, what),)
    return Diagnosis(
        agent=agent,
        id=session_id,
        path=None,
        before=b"",
        mended=RepairResult(findings=findings),
        entry=entry,
    )


def _compare_duplicates(
    content: bytes, others: Sequence[Path]
) -> tuple[tuple[Path, ...], tuple[Finding, ...], str]:
    """Compare the conversation's file with other files that have the same id. Return the files that
    are only older copies, the findings, and the reason why the conversation cannot be repaired
    (empty if it can)."""
    duplicates = tuple(path for path in others if content.startswith(path.read_bytes()))
    if len(duplicates) < len(others):
        what = (
            f"{len(others) + 1} files have this id and differ: the directory decides which one "
            f"the agent uses"
        )
        refusal = "two files of the same conversation differ, and a person must choose one"
        return (), (Finding(Trouble.TWO_PLACES, Harm.REFUSED, 0, what),), refusal
    if duplicates:
        what = (
            f"{len(others) + 1} files have this id; from some directories the agent uses none, or "
            f"not the newest"
        )
        return duplicates, (Finding(Trouble.TWO_PLACES, Harm.REFUSED, 0, what),), ""
    return (), (), ""


def replace_transcript(engine: Engine, index: ConversationIndex, found: Diagnosis) -> list[str]:
    """Test the repaired copy, and replace the transcript with it. Return the paths to which the
    replaced files were moved. Raises Conflict while the conversation is in use, Unproven,
    WorkspaceError."""
    driver, home = index.drivers[found.agent], index.home(found.agent)
    _check_not_running(found)
    if others := engine.writers(driver, home, found.id):
        who = ", ".join(map(str, others))
        raise Conflict(
            f"The conversation {found.id} is open in another program (process {who})",
            "end that program first",
        )
    assert found.path is not None
    if found.mended.content is not None:
        content = found.mended.content
    else:
        content = found.before
    if engine.prove is not None and (
        why := engine.prove(driver, found.id, content, found.path.name, home)
    ):
        raise Unproven(
            f"The repaired copy of {found.id} is not trusted: {why}",
            "nothing was changed; perdure sessions check",
        )
    if found.path.read_bytes() != found.before:
        raise Conflict(
            f"The conversation {found.id} was written to in the meantime",
            "perdure sessions repair again",
        )
    if found.mended.content is None:
        return engine.copies.move_aside(found.duplicates)
    _, aside = engine.copies.put_repaired(
        driver, found.id, home, found.path.parent, content, found.path
    )
    session = found.entry.session if found.entry is not None else None
    if session is not None:
        # The session's snapshot must describe the repaired file. Otherwise the next attempt would
        # report that the transcript was changed.
        engine.store.put_session(
            replace(session, snapshot=snapshot(driver, found.path), updated=engine.store.now())
        )
        engine.copies.take(driver, found.id, found.path, replace=True)
    return aside


def _check_not_running(found: Diagnosis) -> None:
    run = found.entry.run if found.entry is not None else None
    if run is not None and run.state is RunState.RUNNING:
        raise Conflict(f"The run {run.name} is using this conversation", f"perdure stop {run.name}")
