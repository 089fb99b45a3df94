"""Restores and repairs the transcript of a conversation.

`repair_transcript` is for a conversation for which no better rung is left (the rung `repaired`). It
makes a repaired copy of the best remaining transcript and tests the copy with the agent. Called by
`start_facts`; a last resort, because each test starts the agent. The candidates are the agent's own
files and perdure's copies. Those with the most prompts are tested first. Nothing in the agent's
home is changed: `preparation` later puts the repaired copy in place and moves the replaced file
aside.

`place_transcript` puts perdure's own copy where the agent looks for it. Called by `preparation` for
rungs that need it, and when a person restores a checkpoint. If an agent keeps its conversations in
files, files are written. If it keeps them in a database, the agent's own program imports the copy.
The caller must check afterwards that the agent will load this content.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from msgspec import Struct

from perdure.agents.transcripts import Copies
from perdure.agents.transcripts.copy_file import private, private_directories, sync, versions
from perdure.engine.attempt.engine import Engine, agent_environment
from perdure.host import process
from perdure.model import Attempt, Claim, Command, CopyPart, Program, TaskRun
from perdure.protocols import AgentDriver
from perdure.rules.transcript_repair import RepairResult

REPAIRED_COPY = "conversation-mended.jsonl"
"""Name of the repaired and tested copy in the attempt's directory, until it is put in place. It may
contain secrets, as the agent's own file does."""
PROOF_S = 300.0
"""Duration of the lease while a copy is tested, in seconds. It is slightly more than twice the
timeout in `proof`."""
UNPROVEN = 3
"""Maximum number of copies that are tested in one attempt."""


class RepairCandidate(Struct, frozen=True):
    """A transcript on which a repair is tried."""

    path: Path
    content: bytes


def repair_transcript(
    engine: Engine,
    claim: Claim,
    driver: AgentDriver,
    home: Path,
    session_id: str,
    *,
    own: bool = True,
) -> RepairResult | None:
    """Repair copies of the conversation's transcripts and test them, the best first. Store the
    first that passes in the attempt's directory, and return the result of its repair. Return None
    if none passes. `own`: False if the agent's transcript is that of another conversation."""
    if engine.prove is None:
        return None
    complaint = _refusal_message(engine.store.attempts(claim.run.id), session_id)
    found: list[tuple[int, Path, RepairResult]] = []
    for each in _candidates(engine.copies, driver, home, session_id, own=own):
        mended = driver.repair(each.content, session_id, each.path.name, complaint)
        if mended.content is not None and (turns := len(driver.prompts(mended.content))):
            found.append((turns, each.path, mended))
    for _, path, mended in sorted(found, key=lambda one: -one[0])[:UNPROVEN]:
        assert mended.content is not None
        # No heartbeat renews the lease during the test, so it is extended beforehand.
        engine.store.renew(claim, max(engine.lease_s, PROOF_S))
        why_not = engine.prove(driver, session_id, mended.content, path.name, home)
        engine.store.renew(claim, engine.lease_s)
        if not why_not:
            directory = engine.attempt_directory(claim)
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            kept = directory / REPAIRED_COPY
            kept.write_bytes(mended.content)
            kept.chmod(0o600)
            return mended
    return None


def _candidates(
    copies: Copies, driver: AgentDriver, home: Path, session_id: str, *, own: bool
) -> Iterator[RepairCandidate]:
    """Yield the files in the agent's home, then perdure's newest copy and its older versions. For
    an agent with an archive, the archive's rows of the conversation come first. `own`: if False,
    yield only perdure's copies."""
    rows = driver.archive.read(home, session_id) if driver.archive is not None and own else None
    if rows is not None:
        yield RepairCandidate(Path(session_id), rows)
    remains = driver.files_of(home, session_id) if own else ()
    for path in [*remains, *versions(copies.of(driver.name, session_id))]:
        try:
            yield RepairCandidate(path, path.read_bytes())
        except OSError:
            continue


def _refusal_message(attempts: Sequence[Attempt], session_id: str) -> str:
    """Return the outcome message of the newest attempt that used the conversation; empty if there
    is none."""
    for attempt in reversed(attempts):
        if attempt.outcome is None or attempt.continuation is None:
            continue
        if attempt.continuation.session_id == session_id:
            return attempt.outcome.detail
    return ""


RESTORE_S = 120.0
ASIDE = "conversation-aside-{}.jsonl"
"""Name of the file that keeps content which is removed from a database before an import. The file
is next to the directory with the records of the import, whose name replaces `{}`."""


def place_transcript(
    engine: Engine,
    run: TaskRun,
    driver: AgentDriver,
    program: Program,
    home: Path,
    session_id: str,
    directory: Path,
    *,
    parts: Sequence[CopyPart] = (),
    exactly: bool = False,
) -> Path:
    """Put a copy of the conversation where the agent looks for it, and return the path. `parts`:
    the parts of the copy that a checkpoint names; without them, the newest copy is used. `exactly`:
    as in `Copies.put_back`.

    `directory`: a new directory for the records of the importing process. Raises WorkspaceError and
    ValueError.
    """
    assert run.workspace is not None
    cwd = Path(run.workspace.path)
    if driver.archive is None:
        return engine.copies.put_back(driver, session_id, home, cwd, parts, exactly=exactly)
    env = agent_environment(engine.environ, driver, run)
    copy = engine.copies.content(driver.name, session_id, parts)
    there = driver.archive.read(home, session_id)
    # The agent may refuse the conversation because of a row that is not in the copy, so the
    # conversation's rows are removed first. An exact restore (`exactly`) does not remove them if
    # the copy is the beginning of what the archive has.
    if there is not None and there != copy and not (exactly and there.startswith(copy)):
        removal = driver.archive.removal(program, home, session_id)
        if removal is not None:
            make_room(env, run, removal, there, directory)
    run_import(env, run, driver.archive.restore(program, session_id, copy), directory)
    return home


def make_room(
    env: Mapping[str, str], run: TaskRun, removal: Command, there: bytes, directory: Path
) -> None:
    """Remove a conversation from an archive, because an import does not change existing rows. Save
    the rows first. `env`: the agent's environment. `removal`: the command that removes the rows.
    `there`: the rows. `directory`: the directory for the records of the import."""
    _keep_aside(there, directory)
    run_import(env, run, removal, directory.with_name(f"{directory.name}-removal"))


def _keep_aside(content: bytes, directory: Path) -> None:
    """Save content that will be removed from an archive, and sync it to disk. The complete content
    may exist nowhere else, so each restore writes a separate file."""
    aside = directory.with_name(ASIDE.format(directory.name))
    private_directories(aside.parent)
    with open(aside, "wb", opener=private) as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    sync(aside.parent)


def run_import(env: Mapping[str, str], run: TaskRun, command: Command, directory: Path) -> None:
    """Run a command that imports a conversation into an archive, or removes one from it, in the
    agent's environment. Wait until it has ended."""
    assert run.workspace is not None
    restoring = process.start(
        command,
        directory=directory,
        cwd=Path(run.workspace.path),
        env=env,
        mark=f"{run.id}.{directory.parent.name}.{directory.name}",
        deadline_s=RESTORE_S,
    )
    restoring.wait()
