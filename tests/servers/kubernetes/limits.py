"""A container's memory limit, as a control group of the kernel (cgroup v1 or v2). A container that
uses too much memory is killed as on any node.

If this machine cannot make control groups for memory, there is no limit.
"""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

from tests.servers.kubernetes.api import Object

KINDS = (
    (
        Path("/sys/fs/cgroup/memory"),
        {"memory.limit_in_bytes": "{0}", "memory.memsw.limit_in_bytes": "{0}"},
    ),
    (Path("/sys/fs/cgroup"), {"memory.max": "{0}", "memory.swap.max": "0"}),
)
"""For each version of control groups, the file that limits the memory, and the file that keeps
memory from being swapped out instead, if the kernel has it."""
UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}


def limited(directory: Path, uid: str, place: Path, container: Object) -> list[str]:
    """Return the control groups that a container has to join, or an empty list if it has no
    limit."""
    wanted = container.get("resources", {}).get("limits", {}).get("memory")
    if not wanted:
        return []
    for top, files in KINDS:
        group = _group(top, directory, uid, place)
        with suppress(OSError):
            group.parent.mkdir(exist_ok=True)
            for above in (top, group.parent):
                # Only in version 2 must a group allow limits for the groups below it.
                with suppress(OSError):
                    (above / "cgroup.subtree_control").write_text("+memory")
            group.mkdir(exist_ok=True)
            limit, swap = files
            if (group / limit).exists():
                (group / limit).write_text(files[limit].format(amount(wanted)))
                with suppress(OSError):
                    (group / swap).write_text(files[swap].format(amount(wanted)))
                return [str(group)]
        _remove(group)
    return []


def release(directory: Path, uid: str, place: Path) -> None:
    for top, _ in KINDS:
        _remove(_group(top, directory, uid, place))


def sweep(cluster: Path) -> None:
    """Remove the control groups that killed machines have left."""
    for top, _ in KINDS:
        for group in (top / cluster.name).glob("*"):
            _remove(group)
        _remove(top / cluster.name)


def amount(text: str) -> int:
    """Return a quantity of memory in bytes
    (kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity)."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([kMG]i?|Ki)?", text)
    assert found, text
    return int(float(found[1]) * UNITS[found[2] or ""])


def _group(top: Path, directory: Path, uid: str, place: Path) -> Path:
    return top / directory.parents[1].name / f"{uid}-{place.parent.name}-{place.name}"


def _remove(group: Path) -> None:
    with suppress(OSError):
        group.rmdir()
