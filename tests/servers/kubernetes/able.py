"""Checks whether this machine can run a cluster. If it cannot, `python -m
tests.servers.kubernetes.able` prints the reason and exits with 1.

`make test-kubernetes` runs this check before it builds anything, so that a machine without
namespaces gets one sentence.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.servers.kubernetes.limits import KINDS

TRY = (
    "mount --make-rprivate / && mount -t tmpfs none /mnt && mkdir /mnt/proc /mnt/usr && mount -t "
    "proc proc /mnt/proc && mount --rbind /usr /mnt/usr && unshare --pid --mount --uts --ipc "
    "--fork --mount-proc true"
)


def why_not() -> str:
    """Return the reason why this machine cannot run a cluster, or an empty string if it can."""
    if os.geteuid() != 0:
        return "only root can make its machines"
    made = subprocess.run(
        ["unshare", "--pid", "--mount", "--fork", "--kill-child", "sh", "-c", TRY],
        capture_output=True,
        text=True,
    )
    if made.returncode != 0:
        return (
            f"its machines are namespaces, and none can be made here: {made.stderr.strip()[-200:]}"
        )
    if not any(
        _groups(top, limit) for top, (limit, *_) in ((top, tuple(files)) for top, files in KINDS)
    ):
        return "its pods have memory limits, and no memory group can be made here"
    return ""


def _groups(top: Path, limit: str) -> bool:
    """Return whether a control group with such a limit can be made below the directory."""
    group = top / f"perdure-able-{os.getpid()}"
    try:
        group.mkdir()
    except OSError:
        return False
    try:
        return (group / limit).exists()
    finally:
        group.rmdir()


if __name__ == "__main__":
    found = why_not()
    print(found or "able")
    sys.exit(1 if found else 0)
