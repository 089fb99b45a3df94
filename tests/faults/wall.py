"""Observes and causes ENOSPC with strace: which program met a full disk, and a full disk for only
one kind of program.

`seen` returns words to put before a command. Every call that got no space is recorded, of the
command and of all its descendants. `Injected` makes the calls of one of `PROGRAMS` fail from some
call on. The program is the supervisor with all its threads, each git, the shim, or the agent with
its children. A program below the supervisor is replaced by a script that runs the real program
under strace. strace detaches itself, so that pids, descriptors and parents stay the same.
"""

from __future__ import annotations

import os
import random
import re
import shlex
import shutil
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from perdure.host.process.launch import compiled_shim
from tests.journeys.stage import Stage, native

PROGRAMS = ("supervisor", "git", "shim", "agent")
CALLS = (
    "pwrite64,fsync,fdatasync,syncfs,mkdir,mkdirat,rename,renameat,renameat2,link,linkat,symlink,symlinkat,ftruncate,fallocate,"
    "copy_file_range"
)
"""Calls that may fail for lack of space, and that never write to another process. git and the shim
write only to files and a pipe, so `write` is included for them."""
SEEN = f"{CALLS},write,writev,pwritev,openat,open,creat,setxattr,sendfile"
DEEP = {"supervisor": 40, "git": 6, "shim": 8, "agent": 12}
"""The highest number of the call from which there is no space, by program. At least some trials
make that many calls of one kind."""
GITS = 25
"""Approximate number of git processes that are started before and after an agent's turn."""
STAND_IN = """#!/bin/sh
{when}
exec strace -D -f -qq -o {log}.$$ -e trace={calls} -e inject={calls}:error=ENOSPC:when={first}+ {program} "$@"
"""


def seen(log: Path) -> list[str]:
    """Return the words to put before a command. strace follows the command, its threads and its
    children to their end."""
    return [
        "strace",
        "-f",
        "--seccomp-bpf",
        "-qq",
        "-Y",
        "-Z",
        "-o",
        str(log),
        "-e",
        f"trace={SEEN}",
    ]


def met(log: Path) -> Counter[str]:
    """Return for each program how many of its calls got no space. Threads count by their own
    names."""
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    return Counter(
        found[1]
        for line in lines
        if " ENOSPC " in line and (found := re.match(r"\d+<([^>]*)>", line))
    )


@dataclass(frozen=True)
class Injected:
    """Makes one program get no space from call `first` of a kind on. For git this applies to
    process `gits` and all later ones."""

    program: str
    first: int
    gits: int
    log: Path

    @classmethod
    def draw(cls, program: str, dice: random.Random, log: Path) -> Injected:
        return cls(program, dice.randint(1, DEEP[program]), dice.randint(1, GITS), log)

    def put(self, stage: Stage) -> list[str]:
        """Install the script that replaces the program. Return the words that start perdure."""
        perdure = ["-m", "perdure"]
        if self.program == "supervisor":
            # With `-b execve` strace detaches from the programs that the supervisor starts, but
            # follows its threads.
            trace = [
                "strace",
                "-f",
                "-b",
                "execve",
                "-qq",
                "-o",
                f"{self.log}.0",
                "-e",
                f"trace={CALLS}",
            ]
            return [
                *trace,
                "-e",
                f"inject={CALLS}:error=ENOSPC:when={self.first}+",
                sys.executable,
                *perdure,
            ]
        if self.program == "agent":
            stage.environ[f"PERDURE_{stage.agent.upper()}"] = str(
                self._stand_in(stage, "codex", str(native(stage.agent)), CALLS)
            )
            return [sys.executable, *perdure]
        if self.program == "git":
            real, count = (
                shutil.which("git", path=stage.environ["PATH"]),
                shlex.quote(f"{self.log}.count"),
            )
            when = f'echo >> {count}\n[ "$(wc -l < {count})" -ge {self.gits} ] || exec {real} "$@"'
            place = self._stand_in(stage, "git", str(real), f"{CALLS},write", when)
            stage.environ["PATH"] = f"{place.parent}:{stage.environ['PATH']}"
            return [sys.executable, *perdure]
        return [sys.executable, "-c", self._with_shim(stage)]

    def _with_shim(self, stage: Stage) -> str:
        """Return a Python program that is perdure with a replaced shim: the compiled one if there
        is one here, else the one in Python."""
        compiled, calls = compiled_shim(), f"{CALLS},write"
        if compiled is not None:
            place = self._stand_in(stage, compiled.name, str(compiled), calls)
            change = (
                "from pathlib import Path; from perdure.host.process import launch; "
                f"launch.compiled_shim = lambda: Path({str(place)!r})"
            )
        else:
            other = f'case "$*" in *shim.py*) ;; *) exec {sys.executable} "$@";; esac'
            place = self._stand_in(stage, "python", sys.executable, calls, other)
            change = f"import sys; sys.executable = {str(place)!r}"
        return f"{change}; import sys; from perdure.cli.main import main; sys.exit(main())"

    def fired(self) -> int:
        """Return how many calls failed for lack of space."""
        return sum(
            log.read_text(errors="replace").count("(INJECTED)")
            for log in self.log.parent.glob(f"{self.log.name}.*")
        )

    def _stand_in(self, stage: Stage, name: str, program: str, calls: str, when: str = "") -> Path:
        place = stage.directory / "stand-in" / name
        place.parent.mkdir(exist_ok=True)
        values = {
            "log": shlex.quote(str(self.log)),
            "calls": calls,
            "first": self.first,
            "program": shlex.quote(program),
            "when": when,
        }
        place.write_text(STAND_IN.format(**values))
        os.chmod(place, 0o755)  # noqa: PTH101
        return place
