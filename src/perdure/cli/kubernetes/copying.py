"""`cp` of `perdure --cluster`: copies a file or a directory out of a task's workdir.

A pod on the task's claim prints the file or directory to its log, as an encoded tar archive. So no
permission to execute commands in pods is needed. The archive is written by the agent's container
and is not trusted: an entry with a path outside the destination is refused.
"""

from __future__ import annotations

import argparse
import base64
import binascii
import hashlib
import io
import tarfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from perdure.cli.kubernetes.claim import output_of, run_ref
from perdure.cli.text import one_line
from perdure.errors import NotFound, StoreError, UsageError

if TYPE_CHECKING:
    from perdure.kubernetes.taskruns import TaskRuns

LONGEST = 6 << 20
"""Maximum size of the archive, in bytes. A kubelet rotates a log at 10 MiB, and base64 makes the
archive a third larger."""
BEGIN, END = "perdure-copy-begin", "perdure-copy-end"
SCRIPT = f"""set -eu
cd "$(perdure path "$1")"
tar -cf /tmp/copy.tar -- "$2"
size=$(wc -c < /tmp/copy.tar)
if [ "$size" -gt {LONGEST} ]; then echo "{END} $size"; exit 0; fi
echo {BEGIN}
base64 -w 76 /tmp/copy.tar
echo "{END} $size $(sha256sum < /tmp/copy.tar | cut -c 1-64)"
"""


def cp_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="NAME:PATH", help="a path below the workdir of a TaskRun")
    parser.add_argument(
        "destination",
        nargs="?",
        type=Path,
        default=Path(),
        metavar="DESTINATION",
        help="the new file or directory, or a directory to put it into (default: .)",
    )


def cp_verb(taskruns: TaskRuns, arguments: argparse.Namespace) -> int:
    name, _, path = arguments.source.partition(":")
    parts = PurePosixPath(path).parts
    if not name or not path or path.startswith("/") or ".." in parts:
        raise UsageError(
            f"expected a TaskRun and a path below its workdir, got {arguments.source!r}",
            "kubectl perdure cp NAME:src/report.md .",
        )
    command = ("sh", "-c", SCRIPT, "copy", run_ref(taskruns.get(name)), path)
    code, lines = output_of(taskruns, name, command)
    if code or not any(line.startswith(f"{END} ") for line in lines):
        why = one_line(" ".join(lines), 300) or f"the pod ended with exit code {code}"
        raise NotFound(f"{path} of {name} cannot be copied: {why}", f"kubectl perdure diff {name}")
    archive = _archive(lines, name, path)
    target = arguments.destination
    if target.is_dir():
        target /= parts[-1] if parts else name
    _unpack(archive, path, target)
    print(target)
    return 0


def _archive(lines: Sequence[str], name: str, path: str) -> bytes:
    """Return the archive from the lines of a pod's log. Raises UsageError if it is too large, and
    StoreError if it is incomplete."""
    words = next(line for line in lines if line.startswith(f"{END} ")).split()
    if len(words) == 2:
        raise UsageError(
            f"{path} has {words[1]} bytes; this command copies at most {LONGEST:,}",
            f"kubectl perdure debug {name}, then kubectl cp from its pod",
        )
    begin = lines.index(BEGIN) + 1 if BEGIN in lines else len(lines)
    inside = [line for line in lines[begin:] if not line.startswith(f"{END} ")]
    try:
        found = base64.b64decode("".join(inside), validate=True)
    except binascii.Error:
        found = b""
    if hashlib.sha256(found).hexdigest() != words[-1]:
        raise StoreError(f"{path} of {name} arrived incomplete", "try again in a moment")
    return found


def _unpack(archive: bytes, path: str, target: Path) -> None:
    """Extract the file or directory `path` from the archive to the target. Raises UsageError."""
    try:
        with tarfile.open(fileobj=io.BytesIO(archive), mode="r:") as tar:
            for member in tar:
                inner = PurePosixPath(member.name).relative_to(PurePosixPath(path))
                if str(inner) == "." and member.isfile():
                    content = tar.extractfile(member)
                    assert content is not None
                    target.write_bytes(content.read())
                    target.chmod(0o644 | member.mode & 0o111)
                    return
                tar.extract(member.replace(name=str(inner), deep=False), target, filter="data")
    except (tarfile.TarError, OSError, ValueError) as error:
        raise UsageError(
            f"{one_line(path, 200)} cannot be written to {target}: {one_line(str(error), 300)}"
        ) from None
