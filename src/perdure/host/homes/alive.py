"""Finds processes that use a home. If an agent still used a home after the home was moved, the
agent would write to the old directory, and what it wrote would be lost.

A process counts as a user in two cases. It has a file of the home open (Codex's locks and
databases, OpenCode's database, a transcript). Or it is the agent, and its environment names this
home (Claude Code and Gemini CLI keep no file open between turns). Processes of other users and on
other machines cannot be seen.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

from perdure.errors import Conflict
from perdure.host import system
from perdure.protocols import Folder, Home

INTERPRETERS = ("node", "bun", "deno")


def require_unused(home: Home, folder: Folder, places: Sequence[Path]) -> None:
    """Raise Conflict, with a list of the processes, if any process uses the home."""
    if found := sorted(set(users(home, folder, places))):
        raise Conflict(
            f"This home is in use: {'; '.join(found[:5])}.",
            "Stop it (perdure stop), then try again.",
        )


def users(home: Home, folder: Folder, places: Sequence[Path]) -> Iterator[str]:
    """For each live process that uses a home, yield a sentence that says how it uses the home.
    `places`: all paths by which the home can be reached."""
    tops = set(chain.from_iterable((str(place), str(place.resolve())) for place in places))
    for pid in system.pids():
        if pid != os.getpid():
            if opened := _opened(pid, tops):
                yield f"process {pid} has {opened} open"
            elif _is_agent(pid, home) and _home_of(pid, folder) in tops:
                yield f"process {pid} is {home.programs[0]}"


def _opened(pid: int, tops: set[str]) -> str:
    """Return the path of a file that the process has open and that is below one of the directories
    `tops`. Return "" if there is none."""
    try:
        for path in system.open_files(pid):
            if any(path.startswith(f"{top}/") for top in tops):
                return path
    except OSError:
        pass  # The process belongs to another user, or has ended.
    return ""


def _is_agent(pid: int, home: Home) -> bool:
    """Return whether a process is the agent that the home belongs to. The name of its program
    decides; for an interpreter, the name of the script that it runs."""
    known = system.stat(pid)
    try:
        words = [os.fsdecode(word) for word in system.command(pid).split(b"\0") if word]
    except OSError:
        return False
    if known is None or known[0] in "ZX":
        return False
    if words and Path(words[0]).name in INTERPRETERS:
        words = [word for word in words[1:] if not word.startswith("-")]
    return bool(words) and Path(words[0]).name in home.programs


def _home_of(pid: int, folder: Folder) -> str:
    """Return the path of the home that a process uses; "" if its environment cannot be read."""
    try:
        environ = {}
        for pair in system.variables(pid).split(b"\0"):
            name, sign, value = pair.partition(b"=")
            if sign:
                environ[os.fsdecode(name)] = os.fsdecode(value)
    except OSError:
        return ""
    return os.path.realpath(folder.at(environ))
