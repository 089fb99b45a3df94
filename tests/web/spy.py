"""A program that an agent runs in the tests. It searches the other processes of this machine, and
files, for words that begin with a given text.

`python3 spy.py REPORT SPARED WORD [FILE ...]` writes its findings to REPORT as JSON, a line for
each place. SPARED: ids of processes that have such words for the test's own purpose, separated by
commas. WORD is the text, given in two halves with a `+` between them, so that no copy of the
command line contains it.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

CHUNK = 1 << 22


def places(process: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the names and contents of the parts of a process that may have a secret, as far as this
    process may read them."""
    for name in ("environ", "cmdline"):
        yield name, read(process / name)
    for fd in listed(process / "fd"):
        if "memfd" in target(fd) or "/secret" in target(fd):
            yield f"fd {target(fd)}", read(fd)
    try:
        maps = (process / "maps").read_text()
        with (process / "mem").open("rb", buffering=0) as memory:
            for line in re.finditer(
                r"^([0-9a-f]+)-([0-9a-f]+) rw.. \S+ \S+ \S+(.*)$", maps, re.MULTILINE
            ):
                yield from pieces(memory, int(line[1], 16), int(line[2], 16), line[3].strip())
    except OSError:
        return


def pieces(memory: object, start: int, end: int, name: str) -> Iterator[tuple[str, bytes]]:
    for at in range(start, end, CHUNK):
        try:
            memory.seek(at)  # type: ignore[attr-defined]
            yield f"mem {name}", memory.read(min(CHUNK, end - at))  # type: ignore[attr-defined]
        except (OSError, OverflowError, ValueError):
            continue


def read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def listed(path: Path) -> list[Path]:
    try:
        return list(path.iterdir())
    except OSError:
        return []


def target(path: Path) -> str:
    try:
        return str(path.readlink())
    except OSError:
        return ""


def main() -> None:
    report, spared, word, *files = sys.argv[1:]
    wanted = re.compile("".join(word.split("+")).encode() + rb"[a-z0-9-]*")
    skipped = {os.getpid(), os.getppid(), *map(int, spared.split(","))}
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        if int(process.name) not in skipped:
            line = read(process / "cmdline").replace(b"\0", b" ").decode(errors="replace")
            if "tests/web/spy.py" in line:  # another test's spy, which has the words to search for
                continue
            command = line[:60]
            for place, content in places(process):
                found |= {
                    (process.name, command, place, each.decode())
                    for each in wanted.findall(content)
                }
    for file in files:
        found |= {("", "", file, each.decode()) for each in wanted.findall(read(Path(file)))}
    readable = [file for file in files if os.access(file, os.R_OK) or os.access(file, os.W_OK)]
    report_of = {
        "found": sorted(found),
        "open": readable,
        "uid": os.getuid(),
        "groups": os.getgroups(),
        "gids": os.getresgid(),
        "regained": regained(),
    }
    Path(report).write_text(json.dumps(report_of))


def regained() -> bool:
    """Return whether this process can get the group of the perdure process above it."""
    above = os.getppid()
    while above > 1:
        status = (Path("/proc") / str(above) / "status").read_text()
        group = int(re.search(r"^Gid:\t\d+\t(\d+)", status, re.MULTILINE)[1])  # type: ignore[index]
        if group != os.getgid():
            try:
                os.setresgid(group, group, group)
            except PermissionError:
                return False
            return True
        above = int(re.search(r"^PPid:\t(\d+)", status, re.MULTILINE)[1])  # type: ignore[index]
    return False


if __name__ == "__main__":
    main()
