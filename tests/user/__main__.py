"""Runs the suite, or a part of it, as a user who is not root: `python -m tests.user [OPTION...]`.

Options are those of `tests.suite`. Called by root it has two steps: first the namespaces, then,
with `INSIDE` as its first argument, everything inside them. Any other user runs the suite as it is.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.user import NAME, SWITCH, USER

INSIDE = "--inside="
"""The first argument of the second step begins with this. The path of the scratch directory
follows."""
TOP = Path(__file__).parents[2]
PLACE = Path("/mnt")
"""Path at which the user finds the scratch directory. The directory itself is often below /dev/shm,
where Codex's tools could not use it: Codex 0.169.0 gives a tool its own /dev, in which a user who
is not root cannot write below /dev/shm."""


def main(words: list[str]) -> None:
    """Replace this process by the suite, or first by the step that makes its environment."""
    command = [sys.executable, "-m", "tests.suite", *words]
    if os.geteuid() == 0 and words and words[0].startswith(INSIDE):
        scratch = Path(words[0].removeprefix(INSIDE))
        enclose(scratch)
        command = as_user(words[1:])
    elif os.geteuid() == 0:
        scratch = Path(tempfile.mkdtemp(prefix="u"))
        spaces = ["--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        step = [sys.executable, "-m", "tests.user", f"{INSIDE}{scratch}", *words]
        command = ["unshare", *spaces, *step]
    os.execvp(command[0], command)


def enclose(scratch: Path) -> None:
    """Make the user's account and scratch directory, make the files readable that the tests need,
    and make the root file system read-only."""
    # The sandbox of Codex 0.169.0 makes /tmp/.codex, whatever TMPDIR is.
    mount("--bind", "/tmp", "/tmp")
    mount("--bind", scratch, PLACE)
    # A directory in which every user may write, but not a tool in Codex's sandbox.
    mount("-t", "tmpfs", "-o", "mode=1777", "perdure-test", "/var/tmp")
    accounts = PLACE / "passwd"
    entry = f"{NAME}:x:{USER}:{USER}::{PLACE / 'h'}:/bin/sh\n"
    accounts.write_text(Path("/etc/passwd").read_text() + entry)
    mount("--bind", accounts, "/etc/passwd")
    for each in (PLACE, PLACE / "h"):
        each.mkdir(mode=0o700, exist_ok=True)
        os.chown(each, USER, USER)
    needed = {TOP, Path(sys.base_prefix), (TOP / "agents" / "node_modules").resolve()}
    for closed in {closed_top(path) for path in needed} - {None}:
        open_below(closed, [path for path in needed if path.is_relative_to(closed)])
    mount("-o", "remount,bind,ro", "/")


def closed_top(path: Path) -> Path | None:
    """Return the outermost directory above `path` that only its owner may enter, or None."""
    way = reversed([path, *path.parents])
    return next((each for each in way if not each.stat().st_mode & 0o001), None)


def open_below(closed: Path, needed: list[Path]) -> None:
    """Replace a closed directory by an empty one, and put only what is needed into it."""
    held = [Path(tempfile.mkdtemp()) for _ in needed]
    for path, aside in zip(needed, held, strict=True):
        mount("--bind", path, aside)
    mount("-t", "tmpfs", "-o", "mode=0755", "perdure-test", closed)
    for path, aside in zip(needed, held, strict=True):
        path.mkdir(parents=True, exist_ok=True)
        mount("--move", aside, path)
        aside.rmdir()


def as_user(words: list[str]) -> list[str]:
    """Return the command that runs the suite as the user, whose home is in the scratch
    directory."""
    who = [f"--reuid={USER}", f"--regid={USER}", "--clear-groups"]
    nothing = ["--inh-caps=-all", "--bounding-set=-all", "--no-new-privs"]
    places = [f"HOME={PLACE / 'h'}", f"TMPDIR={PLACE}", f"{SWITCH}=1"]
    suite = [sys.executable, "-m", "tests.suite", "-p", "no:cacheprovider", *words]
    return ["setpriv", *who, *nothing, "env", *places, *suite, f"--basetemp={PLACE}/t"]


def mount(*words: str | Path) -> None:
    subprocess.run(["mount", *map(str, words)], check=True)


if __name__ == "__main__":
    main(sys.argv[1:])
