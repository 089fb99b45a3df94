"""Puts perdure's own copy of a conversation back where the agent looks for it.

Called when an attempt opens on a rung that needs it, and by a restore. If an agent keeps
conversations in files, files are put in place; if it keeps them in a database, the agent's own
program imports the copy. The caller must check afterwards that the result is what the agent will
load.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from perdure.agents.transcripts.copy_file import private, private_directories, sync
from perdure.engine.attempt.engine import Engine
from perdure.host import process
from perdure.model import Command, CopyPart, Program, TaskRun
from perdure.protocols import AgentDriver

RESTORE_S = 120.0
ASIDE = "conversation-aside-{}.jsonl"
"""Name of the file for content that was removed from a database to make room. It is beside the log
of the removal."""


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
    """Put back the newest copy, or the parts that a checkpoint names, and return where it went.
    `directory` is for the process's marks, and must be new. Raises WorkspaceError, ValueError."""
    assert run.workspace is not None
    cwd = Path(run.workspace.path)
    if driver.archive is None:
        return engine.copies.put_back(driver, session_id, home, cwd, parts, exactly=exactly)
    copy = engine.copies.content(driver.name, session_id, parts)
    there = driver.archive.read(home, session_id)
    # A row that is not in the copy may be the one that the agent refuses, so the archive is cleared
    # first. An exact restore leaves rows that came after its checkpoint, and reports them.
    if there is not None and there != copy and not (exactly and there.startswith(copy)):
        removal = driver.archive.removal(program, home, session_id)
        if removal is not None:
            make_room(engine, run, driver, removal, there, directory)
    run_import(engine, run, driver, driver.archive.restore(program, session_id, copy), directory)
    return home


def make_room(
    engine: Engine,
    run: TaskRun,
    driver: AgentDriver,
    removal: Command,
    there: bytes,
    directory: Path,
) -> None:
    """Remove a conversation from an archive by the command that does so, and keep its rows aside:
    an import changes no row that is there. `there`: the rows; `directory`: that of the import."""
    _keep_aside(there, directory)
    run_import(engine, run, driver, removal, directory.with_name(f"{directory.name}-removal"))


def _keep_aside(content: bytes, directory: Path) -> None:
    """Keep the content of an archive that is removed, durably, because it is complete nowhere else.
    A file of an earlier restore is not overwritten."""
    aside = directory.with_name(ASIDE.format(directory.name))
    private_directories(aside.parent)
    with open(aside, "wb", opener=private) as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    sync(aside.parent)


def run_import(
    engine: Engine, run: TaskRun, driver: AgentDriver, command: Command, directory: Path
) -> None:
    """Run the command that imports a conversation into an archive, to its end."""
    assert run.workspace is not None
    restoring = process.start(
        command,
        directory=directory,
        cwd=Path(run.workspace.path),
        env=engine.agent_environment(driver, run),
        mark=f"{run.id}.{directory.parent.name}.{directory.name}",
        deadline_s=RESTORE_S,
    )
    restoring.wait()
