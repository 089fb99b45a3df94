"""Moving a run: its export and import, compared with tar and zstd of the same files and
conversation."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

from bench.measure import Row, interleaved, ms
from bench.rooms import git, make_repository
from perdure import wiring
from perdure.capsule.container import open_capsule
from perdure.capsule.export import ExportRequest, export
from perdure.capsule.imports import ImportRequest, import_run
from perdure.config.files import load
from perdure.engine.attempt import Engine
from perdure.model import Checkpoint, TaskRun, TaskSpec

SESSION = "01234567-89ab-cdef-0123-456789abcdef"


def _engine(home: Path) -> Engine:
    home.mkdir(parents=True, exist_ok=True)
    own = {"HOME": str(home), "PATH": os.environ["PATH"]}
    return wiring.open_engine(load(own, home), own)


def _talk(size: int) -> bytes:
    """Return a transcript like an agent's: text and tool output, a few kilobytes a line."""
    words = [f"word{number}" for number in range(5000)]
    source = random.Random(7)
    line = '{"type":"user","message":{"role":"user","content":"%s"},"uuid":"%d"}\n'
    lines, made = list[str](), 0
    while made < size:
        lines.append(line % (" ".join(source.choices(words, k=300)), len(lines)))
        made += len(lines[-1])
    return "".join(lines).encode()


def _run(engine: Engine, repo: Path, talk: bytes, home: Path) -> TaskRun:
    spec = TaskSpec(prompt="do it", name="task", repo=str(repo))
    place = engine.workspaces.plan(spec, "task", repo)
    run = engine.store.add(spec, uuid.uuid4().hex, "task", place)
    engine.workspaces.prepare(place, "claude")
    for number in range(10):
        (Path(place.path) / f"new{number}.txt").write_text(f"{number}\n" * 50)
    transcript = home / "projects/x" / f"{SESSION}.jsonl"
    transcript.parent.mkdir(parents=True)
    transcript.write_bytes(talk)
    driver = engine.driver("claude")
    engine.copies.take(driver, SESSION, transcript)
    saved = engine.workspaces.checkpoints.save(place, 1)
    parts = engine.copies.parts(driver, SESSION)
    engine.store.add_checkpoint(
        Checkpoint(
            run=run.id,
            number=1,
            attempt=0,
            at=1,
            why="turn",
            workdir=saved,
            session_id=SESSION,
            conversation=parts,
            agent="claude",
        )
    )
    engine.store.request_cancel(run.id)
    return engine.store.get(run.id)


def rows(directory: Path, files: int, megabytes: int) -> Iterator[Row]:
    """Measure export and import of one workdir and one conversation, compared with `tar | zstd` and
    its reverse."""
    top = directory / "capsules"
    repo = make_repository(top / "repo", files)
    one = _engine(top / "one")
    run = _run(one, repo, _talk(megabytes << 20), top / "agent")
    assert run.workspace is not None
    workdir, talk = Path(run.workspace.path), top / "agent/projects"
    capsule, archive = top / "task.capsule", top / "task.tar.zst"
    numbers = iter(range(1_000_000))

    def ours() -> None:
        capsule.unlink(missing_ok=True)
        export(one, "task", ExportRequest(target=capsule))

    def other() -> None:
        packed = (
            f"tar -C {workdir.parent} --exclude=.git -c {workdir.name} -C {talk.parent} "
            f"{talk.name} | zstd -3 -q -f -o {archive}"
        )
        subprocess.run(["bash", "-o", "pipefail", "-c", packed], check=True)

    here, there = interleaved(5, ours, other)
    what = f"{files:,} files and {megabytes} MB of conversation"
    yield Row(f"export of {what}", ms(here), "tar, zstd", ms(there), here / there, 1.5)
    yield Row("the capsule's size", f"{capsule.stat().st_size >> 10} KiB", "tar, zstd", f"{archive.stat().st_size >> 10} KiB",
              capsule.stat().st_size / archive.stat().st_size, 1.5)  # fmt: skip
    two = _engine(top / "two")

    def bring() -> None:
        name = f"task-{next(numbers)}"
        with capsule.open("rb") as file, open_capsule("it", file) as read:
            import_run(
                two,
                read.manifest,
                read,
                ImportRequest(source="it", into=top / "in" / name, name=name),
            )

    def unpack() -> None:
        into = top / "out" / str(next(numbers))
        into.mkdir(parents=True)
        subprocess.run(
            ["bash", "-o", "pipefail", "-c", f"zstd -q -d -c {archive} | tar -C {into} -x"],
            check=True,
        )

    def proven() -> None:
        unpack()
        fresh = top / "out" / str(next(numbers) - 1) / workdir.name
        git(fresh, "init", "-q")
        git(fresh, "add", "--all")
        git(fresh, "write-tree")

    (top / "in").mkdir()
    here, there, least = interleaved(5, bring, unpack, proven)
    yield Row(
        f"import of {what}",
        ms(here),
        "zstd, tar",
        ms(there),
        here / there,
        2,
        note="the same, and git add and write-tree, which prove the files",
        limit=least / there,
    )
    shutil.rmtree(top)


if __name__ == "__main__":
    import tempfile

    from bench.measure import table

    with tempfile.TemporaryDirectory(
        dir="/dev/shm" if Path("/dev/shm").is_dir() else None
    ) as scratch:
        print(table(list(rows(Path(scratch), 3_000, 20))))
