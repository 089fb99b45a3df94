"""A machine with one run that has worked, and helpers to make others. No agent is started."""

from __future__ import annotations

import os
import subprocess
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from perdure import wiring
from perdure.config.files import load
from perdure.engine.attempt import Engine
from perdure.model import (
    Checkpoint,
    Continuation,
    Decision,
    Outcome,
    OutcomeKind,
    Permissions,
    RunState,
    Session,
    SessionKey,
    SessionState,
    Start,
    TaskRun,
    TaskSpec,
)
from perdure.model.events import Said
from perdure.protocols import Begun, Ending

SESSION = "01234567-89ab-cdef-0123-456789abcdef"
TALK = (
    b'{"type":"user","message":{"role":"user","content":"do it"},"uuid":"a"}\n'
    b'{"type":"assistant","message":{"role":"assistant","content":[{"type":"text","text":"done"}]},"uuid":"b"}\n'
)

Machine = Callable[..., Engine]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """Make machines: an engine with directories and an environment of its own."""

    def make(name: str, **environ: str) -> Engine:
        home = tmp_path / name
        home.mkdir(exist_ok=True)
        own = {
            "HOME": str(home),
            "PATH": os.environ["PATH"],
            "TMPDIR": os.environ["TMPDIR"],
            **environ,
        }
        return wiring.open_engine(load(own, home), own)

    return make


def git(directory: Path, *words: str) -> str:
    who = ["-c", "user.name=Ada", "-c", "user.email=ada@example.invalid"]
    return subprocess.run(
        ["git", *who, *words], cwd=directory, capture_output=True, text=True, check=True
    ).stdout


def worked(
    engine: Engine,
    repository: Path,
    home: Path,
    *,
    talk: bytes = TALK,
    change: Callable[[Path], None] | None = None,
    backend: str = "",
) -> TaskRun:
    """Make a run that has changed files, has a conversation, and has ended, with one checkpoint."""
    spec = TaskSpec(
        prompt="do it", name="task", repo=str(repository), permissions=Permissions.FULL, verify="touch /tmp/verified", agent_args=("--x",),
        env={"COLOUR": "red"}, pass_env=("LANG",), key="k", scope="shared", backend=backend,
    )  # fmt: skip
    place = engine.workspaces.plan(spec, "task", repository)
    run = engine.store.add(spec, uuid.uuid4().hex, "task", place)
    claim = engine.store.claim("worker", 60.0, run.id)
    assert claim is not None
    engine.workspaces.prepare(place, "claude")
    workdir = Path(place.path)
    (change or _changes)(workdir)
    driver = engine.driver("claude")
    transcript = home / "projects/x" / f"{SESSION}.jsonl"
    (transcript.with_suffix("") / "tool-results").mkdir(parents=True)
    (transcript.with_suffix("") / "tool-results/a b.txt").write_bytes(b"spilled\n" * 9)
    (transcript.with_suffix("") / "settings.json").write_text('{"hooks": {}}')
    transcript.write_bytes(talk)
    engine.copies.take(driver, SESSION, transcript)
    session = Session(
        key=SessionKey("claude", run.scope),
        id=SESSION,
        state=SessionState.CONFIRMED,
        created=1,
        updated=2,
        cwd=str(workdir),
        attempts=1,
    )
    asked = Continuation(kind=Start.FRESH, session_id=SESSION, reason="started a new conversation")
    engine.store.begin(
        claim,
        Begun(
            continuation=asked, directory=str(home / "attempt"), prompt_sha256="0" * 64, flags={"agent": "claude"}, agent_version="2.1.329",
            before=None, session=session, workspace=place,
        ),
    )  # fmt: skip
    engine.store.record(claim, [Said("I did it")])
    checkpoint = Checkpoint(
        run=run.id, number=1, attempt=1, at=5, why="end", workdir=engine.workspaces.checkpoints.save(place, 1), session_id=SESSION,
        conversation=engine.copies.parts(driver, SESSION), context_version=1, agent="claude", agent_version="2.1.329",
    )  # fmt: skip
    engine.store.add_checkpoint(checkpoint, claim)
    ending = Ending(
        outcome=Outcome(kind=OutcomeKind.FAILED, detail="it broke"),
        decision=Decision(state=RunState.FAILED, reason="it broke"),
        sessions=(replace(session, context_version=1),),
    )
    return engine.store.finish(claim, ending)


def _changes(workdir: Path) -> None:
    """Make one change of each kind: staged, unstaged, new, committed, executable, a link, an
    ignored file."""
    (workdir / "committed.txt").write_text("by the agent\n")
    git(workdir, "add", "committed.txt")
    git(workdir, "commit", "-q", "-m", "the agent's")
    (workdir / "greet.py").write_text("staged\n")
    git(workdir, "add", "greet.py")
    (workdir / "greet.py").write_text("unstaged\n")
    (workdir / "new.bin").write_bytes(b"x\0\xff")
    (workdir / "new.bin").chmod(0o755)
    (workdir / "link").symlink_to("greet.py")
    (workdir / "trace.log").write_text("ignored\n")


def prints(directory: Path) -> dict[str, tuple[int, str]]:
    """Return mode and content of every file below the directory, or mode and target of a link, by
    path. git's own files are left out."""
    return {
        str(path.relative_to(directory)): (
            path.lstat().st_mode,
            str(path.readlink()) if path.is_symlink() else path.read_bytes().hex(),
        )
        for path in sorted(directory.rglob("*"))
        if ".git" not in path.relative_to(directory).parts and (path.is_symlink() or path.is_file())
    }
