"""One container: a process as PID 1 of its own namespaces. Its root has an image and volumes and
nothing else of the host.

The node agent starts this program with a complete description in a file (`Plan`). From then the
program is independent. If the node agent is killed, as a kubelet may be, the containers continue,
and the next agent reads their results from `exit.json`. If this program is killed, its container
ends. It uses only the smallest part of the standard library, because a container should start in 50
ms.

Beside the description there are `init.pid` (the process id on the machine), `exit.json` (written
last and completely) and `root`.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
from typing import Any, NoReturn

# linux/mount.h, linux/sched.h, linux/prctl.h
MS_RDONLY, MS_NOSUID, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 32, 4096, 16384, 1 << 18
CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC, CLONE_NEWPID = 0x20000, 0x4000000, 0x8000000, 0x20000000
MNT_DETACH = 2
PR_SET_PDEATHSIG, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 1, 24, 38
SYS_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}[os.uname().machine]
DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
START_ERROR = 128
"""Exit code that containerd gives for a command that cannot be started (with the reason
StartError)."""

_libc = ctypes.CDLL(None, use_errno=True)


def main(place: str) -> None:
    with open(f"{place}/plan.json") as file:  # noqa: PTH123 - pathlib is slow to import
        plan = json.load(file)
    began = time.time()
    _must(_libc.unshare(CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWPID), "unshare")
    said, say = os.pipe()
    init = os.fork()
    if init == 0:
        os.close(said)
        _become(place, plan, say)
    os.close(say)
    _write(f"{place}/init.pid", str(init))
    _, status = os.waitpid(init, 0)
    with os.fdopen(said) as pipe:
        trouble = pipe.read()
    code = START_ERROR if trouble else os.waitstatus_to_exitcode(status)
    ended = {
        "code": 128 - code if code < 0 else code,
        "began": began,
        "ended": time.time(),
        "trouble": trouble,
        "oom": _oom(plan),
    }
    _write(f"{place}/exit.json", json.dumps(ended))


def _become(place: str, plan: dict[str, Any], say: int) -> NoReturn:
    """Turn this process into the container's process."""
    try:
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        os.setsid()
        for group in plan["cgroups"]:
            _write(f"{group}/cgroup.procs", "0")
        name = plan["hostname"].encode()
        _must(_libc.sethostname(name, len(name)), "sethostname")
        # This must not happen before the fork, because the parent process writes files in the
        # machine's own mounts until the end.
        _must(_libc.unshare(CLONE_NEWNS), "unshare")
        _enter(f"{place}/root", plan)
        log = os.open("/dev/null", os.O_RDONLY)
        os.dup2(log, 0)
        os.umask(0o022)
        os.chdir(plan["directory"])
        if plan["no_new_privileges"]:
            _must(_libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
        for number in plan["drop"]:
            _libc.prctl(PR_CAPBSET_DROP, number, 0, 0, 0)
        os.setgroups(plan["groups"])
        os.setgid(plan["gid"])
        os.setuid(plan["uid"])
        # This is set here because a change of the user resets it.
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        os.execvpe(plan["command"][0], plan["command"], plan["environ"])
    except BaseException as error:
        os.write(say, f"{plan['command'][0]}: {error}".encode())
    os._exit(START_ERROR)


def _enter(root: str, plan: dict[str, Any]) -> None:
    """Mount the container's root, and leave the host's."""
    _mount("none", "/", "", MS_REC | MS_PRIVATE)
    _mount(root, root, "", MS_BIND | MS_REC)
    _directory(f"{root}/proc")
    _mount("proc", f"{root}/proc", "proc", MS_NOSUID)
    _devices(root)
    os.chmod(root, 0o755)  # noqa: PTH101
    _directory(f"{root}/tmp")
    os.chmod(f"{root}/tmp", 0o1777)  # noqa: PTH101
    # A mount point must exist before mounts inside of it.
    for each in sorted(plan["mounts"], key=lambda one: one["target"].count("/")):
        target = _inside(root, each["target"])
        if os.path.isdir(each["source"]):  # noqa: PTH112
            _directory(target)
        else:
            _directory(os.path.dirname(target))  # noqa: PTH120
            os.close(os.open(target, os.O_CREAT | os.O_RDONLY, 0o644))
        _mount(each["source"], target, "", MS_BIND | MS_REC)
        if each["readonly"]:
            _mount("none", target, "", MS_BIND | MS_REMOUNT | MS_RDONLY)
    if plan["readonly"]:
        _mount("none", root, "", MS_BIND | MS_REMOUNT | MS_RDONLY)
    os.chdir(root)
    _must(_libc.syscall(SYS_PIVOT_ROOT, b".", b"."), "pivot_root")
    _must(_libc.umount2(b".", MNT_DETACH), "umount")
    os.chdir("/")


def _devices(root: str) -> None:
    _directory(f"{root}/dev")
    _mount("tmpfs", f"{root}/dev", "tmpfs", MS_NOSUID, "mode=755,size=64m")
    for name in DEVICES:
        os.close(os.open(f"{root}/dev/{name}", os.O_CREAT))
        _mount(f"/dev/{name}", f"{root}/dev/{name}", "", MS_BIND)
    for name, target in {"fd": "", "stdin": "/0", "stdout": "/1", "stderr": "/2"}.items():
        os.symlink(f"/proc/self/fd{target}", f"{root}/dev/{name}")  # noqa: PTH211
    _directory(f"{root}/dev/pts")
    _mount("devpts", f"{root}/dev/pts", "devpts", MS_NOSUID, "newinstance,ptmxmode=0666,mode=0620")
    os.symlink("pts/ptmx", f"{root}/dev/ptmx")  # noqa: PTH211
    _directory(f"{root}/dev/shm")
    os.chmod(f"{root}/dev/shm", 0o1777)  # noqa: PTH101


def _inside(root: str, target: str) -> str:
    """Return a path below the root. No symbolic link leads out of the root."""
    found = root
    for part in target.split("/"):
        if part in ("", "."):
            continue
        found = f"{found}/{part}"
        if part == ".." or os.path.islink(found):  # noqa: PTH114
            raise ValueError(f"not a place to mount on: {target}")
    return found


def _directory(path: str) -> None:
    os.makedirs(path, exist_ok=True)  # noqa: PTH103


def _mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    answer = _libc.mount(source.encode(), target.encode(), kind.encode(), flags, options.encode())
    _must(answer, f"mount of {source} on {target}")


def _must(answer: int, what: str) -> None:
    if answer < 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")


def _oom(plan: dict[str, Any]) -> bool:
    """Return whether the kernel killed a process of the container because of its memory limit
    (cgroup v1, v2)."""
    for group in plan["cgroups"]:
        for name in ("memory.oom_control", "memory.events"):
            try:
                with open(f"{group}/{name}") as file:  # noqa: PTH123
                    counts = dict(line.split() for line in file)
            except OSError:
                continue
            if int(counts.get("oom_kill", 0)):
                return True
    return False


def _write(path: str, text: str) -> None:
    if path.endswith("cgroup.procs"):
        with open(path, "w") as file:  # noqa: PTH123
            file.write(text)
        return
    with open(f"{path}.new", "w") as file:  # noqa: PTH123
        file.write(text)
    os.replace(f"{path}.new", path)  # noqa: PTH105


if __name__ == "__main__":
    main(sys.argv[1])
