"""Two machines that share nothing but a directory. Each has a user and namespaces of its own:
network, mounts, processes, IPC and host name.

`test_capsules` opens a `machine` with a scene. The machine's disk is a file system in memory that
only it sees, and that vanishes with it. Its network is a loopback of its own, with a rehearsal of
its own; its user has a uid of its own. This works as root, and for an ordinary user who may make
user namespaces. As a program (`-m tests.journeys.machines`), this module plays the scene inside the
machine.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from perdure.agents.rehearsal import Rehearsal
from tests.finding import first_file
from tests.journeys.stage import TOP, Stage, said
from tests.spread import SWITCH

PROMPT = "Write one.txt. The magic word is quercus."
TWO_TOOLS = """by history
run echo one > one.txt; git add one.txt; echo two > one.txt; printf 'x\\0\\377' > new.bin; chmod +x new.bin; ln -s one.txt link
---
run echo begun > begun.txt; test -e go.txt || sleep 98; echo late > late.txt
---
say It is done.
---
say It is done again.
"""
_SPACES = [
    "--user",
    "--map-root-user",
    "--net",
    "--mount",
    "--pid",
    "--ipc",
    "--uts",
    "--fork",
    "--kill-child",
    "--mount-proc",
]
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1
"""linux/sockios.h and linux/if.h"""


# --- what stories do on a machine
# ----------------------------------------------------------------------------------


def begin(one: Stage, *words: str) -> subprocess.Popen[str]:
    return one.start("run", "--name", "task", "--json", "--agent", one.agent, *words, PROMPT)


def in_second_tool(one: Stage) -> Path:
    """Wait until the first tool call is checkpointed and the second one runs. Return the
    workdir."""
    found: Path = one.until(lambda: first_file(one.home, "begun.txt"), "the second tool runs")
    one.until(
        lambda: "checkpoint_taken" in one.perdure("logs", "task", "--json").out,
        "a checkpoint is published",
    )
    return found.parent


def prints(directory: Path) -> dict[str, list[object]]:
    """Return mode and content of every file below the directory, or mode and target of a link, by
    path. git's own files are left out."""
    return {
        str(path.relative_to(directory)): [
            path.lstat().st_mode,
            str(path.readlink()) if path.is_symlink() else path.read_bytes().hex(),
        ]
        for path in sorted(directory.rglob("*"))
        if ".git" not in path.relative_to(directory).parts and (path.is_symlink() or path.is_file())
    }


def git(directory: Path, one: Stage, *words: str) -> str:
    return subprocess.run(
        ["git", *words], cwd=directory, env=one.environ, capture_output=True, text=True, check=True
    ).stdout


def manifests(one: Stage) -> list[Path]:
    """Return the manifests in the machine's checkpoint store."""
    place = Path(one.environ["PERDURE_CHECKPOINT_STORE"].removeprefix("file://"))
    return sorted(place.glob("runs/*/*.json"))


# --- outside
# -------------------------------------------------------------------------------------------------------


@contextmanager
def machine(
    scene: str, directory: Path, agent: str, store: Path, *, uid: int
) -> Iterator[subprocess.Popen[str]]:
    """Open a machine on which the scene plays. `directory` is where its disk is mounted; to
    everybody else that directory is empty."""
    words = [scene, str(directory), agent, store.as_uri(), str(uid)]
    command = [
        "unshare",
        *_SPACES,
        sys.executable,
        "-m",
        "tests.journeys.machines",
        "enter",
        *words,
    ]
    # The machine's disk is a separate file system already. The tests' division of the disk does not
    # work in its namespace.
    environ = {name: value for name, value in os.environ.items() if name != SWITCH}
    with subprocess.Popen(
        command, cwd=TOP, env=environ, text=True, stdout=subprocess.PIPE
    ) as opened:
        try:
            yield opened
        finally:
            if opened.poll() is None:
                power_cut(opened)


def told(opened: subprocess.Popen[str]) -> dict[str, Any]:
    """Return the line that the scene prints when it has reached its point."""
    assert opened.stdout is not None
    line = opened.stdout.readline()
    assert line, "the machine ended without a word; what went wrong stands above"
    heard: dict[str, Any] = json.loads(line)
    return heard


def power_cut(opened: subprocess.Popen[str]) -> None:
    """Kill the machine's first process. The kernel then kills everything in the machine at once,
    and its disk vanishes."""
    for first in Path(f"/proc/{opened.pid}/task/{opened.pid}/children").read_text().split():
        os.kill(int(first), signal.SIGKILL)
    opened.wait()


# --- inside
# --------------------------------------------------------------------------------------------------------


def enter(scene: str, directory: str, agent: str, store: str, uid: str) -> None:
    """Set the machine up with all rights, then play the scene as a user without rights."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=0700", "machine", directory], check=True)
    socket.sethostname({"at_work": "a-machine"}.get(scene, "b-machine"))
    with socket.socket() as asked:
        flags = fcntl.ioctl(asked, _SIOCGIFFLAGS, struct.pack("16sH14x", b"lo", 0))
        fcntl.ioctl(
            asked,
            _SIOCSIFFLAGS,
            struct.pack("16sH14x", b"lo", struct.unpack("16sH14x", flags)[1] | _IFF_UP),
        )
    again = [sys.executable, "-m", "tests.journeys.machines", scene, directory, agent, store, uid]
    os.execvp("unshare", ["unshare", "--user", f"--map-user={uid}", f"--map-group={uid}", *again])


def at_work(one: Stage) -> None:
    """Start a task, and wait until it is in its second tool call and the store has a checkpoint.
    Print the state, and wait for the end."""
    begin(one)
    workdir = in_second_tool(one)
    one.until(lambda: manifests(one), "the checkpoint is in the store")
    session = one.show()["attempts"][0]["session_id"]
    tell(
        uid=os.getuid(),
        session=session,
        files=prints(workdir),
        staged=git(workdir, one, "ls-files", "--stage"),
    )
    signal.pause()


def takes_over(two: Stage) -> None:
    """Check that a machine can take over the task only with `--take-over`, and then finishes it."""
    here = two.home / "work"
    words = ("move", "task", "--from", "--into", str(here))
    early = two.perdure(*words)
    refused = [early.code, early.err, here.exists()]
    done = two.perdure(*words, "--take-over", "--json")
    assert done.code == 0, done.err
    files, staged = prints(here), git(here, two, "ls-files", "--stage")
    (here / "go.txt").write_text("")
    again = two.perdure("retry", "task", "--json")
    assert again.code == 0, again.err
    tell(
        uid=os.getuid(), early=refused, files=files, staged=staged, attempts=again.json["attempts"],
        messages=said(two.rehearsal.requests[-1].messages), late=(here / "late.txt").read_text(),
        there=two.perdure("move", "--from", "--json").json["runs"],
    )  # fmt: skip
    two.nothing_survives()


def tell(**heard: Any) -> None:
    print(json.dumps(heard), flush=True)


SCENES: dict[str, Callable[[Stage], None]] = {"at_work": at_work, "takes_over": takes_over}


def main(scene: str, directory: str, agent: str, store: str, uid: str) -> None:
    extra = {
        "PERDURE_PERMISSIONS": "full",
        "PERDURE_CHECKPOINT_EVERY": "0.01s",
        "PERDURE_CHECKPOINT_STORE": store,
    }
    # Paths differ from machine to machine, also below the home.
    place = Path(directory) / scene.replace("_", "/")
    place.mkdir(parents=True)
    stage = Stage(place, agent, Rehearsal(TWO_TOOLS).start(), extra=extra)
    try:
        SCENES[scene](stage)
    finally:
        stage.close()
        stage.rehearsal.stop()


if __name__ == "__main__":
    if sys.argv[1] == "enter":
        enter(*sys.argv[2:])
    else:
        main(*sys.argv[1:])
