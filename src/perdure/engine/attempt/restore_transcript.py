"""Puts perdure's own copy of a conversation where the agent looks for it. Called by `preparation`
for rungs that need it, and when a person restores a checkpoint.

If an agent keeps its conversations in files, files are written. If it keeps them in a database, the
agent's own program imports the copy. The caller must check afterwards that the agent will load this
content.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from perdure.agents.transcripts.copy_file import private, private_directories, sync
from perdure.engine.attempt.engine import Engine, agent_environment
from perdure.host import process
from perdure.model import Command, CopyPart, Program, TaskRun
from perdure.protocols import AgentDriver

RESTORE_S = 120.0
ASIDE = "conversation-aside-{}.jsonl"
"""File name for content that is removed from a database before an import. The file is in the same
directory as the directory with the records of the import."""


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
    the parts of the copy that a checkpoint names; without them, the newest copy is used.

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
