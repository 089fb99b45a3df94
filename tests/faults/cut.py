"""Power cuts. The machine's disk is an ext4 file system in a file. At some moment of a task
everything stops and the file is copied: the copy is what the machine finds after the power cut.

The moments are chosen around acknowledgements (the accepted task, the conversation's id, a
checkpoint, the outcome), and spread over the whole run. A cut counts only if a supervisor was
alive. Everything that was acknowledged must be in the copy: every record that another process had
read from the journal, and every published checkpoint, with all its objects and its part of the
conversation. A `retry` on the copy must succeed, and the checkpoint must be restorable. Needs root.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from tests.faults.scene import DATABASE, RUN, Trial, goes_on, play
from tests.journeys.stage import PATIENCE_S, Stage

SIZE_MB = 192
AROUND = ("run_submitted", "session_pinned", "checkpoint_taken", "attempt_ended", "")
"""The acknowledgements around which the power is cut, in turn. An empty string means any record of
the run."""
RECORDS = 18
"""Approximate number of records that a run writes while its supervisor is alive."""
LATE_S = 0.08
"""Longest time from the record to the cut, in seconds. Every other cut comes without delay."""
DRAWS = 5
Acks = dict[int, Any]


def trial(number: int, count: int) -> Trial:
    """Cut the power until a cut hits a live run. Return that trial."""
    kind = AROUND[number % len(AROUND)]
    for draw in range(DRAWS):
        found = play(
            number + draw * 10_000,
            f"cut at {kind or 'any record'}",
            lambda stage, dice, found: _cut(stage, dice, found, kind),
            _disk,
        )
        if found.struck or found.wrong:
            break
    return found


def _disk(directory: Path) -> None:
    image = Path(f"{directory}.img")
    with image.open("wb") as file:
        file.truncate(SIZE_MB << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], check=True)
    _mount(image, directory)


def _mount(image: Path, where: Path) -> None:
    subprocess.run(["mount", "-o", "loop", str(image), str(where)], check=True)


def _cut(stage: Stage, dice: random.Random, found: Trial, kind: str) -> None:
    image, after = Path(f"{stage.directory}.img"), Path(f"{stage.directory}.after")
    late = dice.choice((0.0, dice.uniform(0, LATE_S)))
    which = dice.randint(1, RECORDS)
    try:
        subprocess.run(["sync", "-f", str(stage.directory)], check=True)
        supervisor = stage.start(*RUN)
        _watch(
            stage,
            lambda acks: (
                len(acks) >= which
                if not kind
                else any(_kind(event) == kind for event in acks.values())
            ),
            supervisor,
        )
        time.sleep(late)
        for pid in [supervisor.pid, *stage.marked()]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        found.struck = supervisor.poll() is None
        # The journal is read just before the copy. What can be read then has been committed,
        # because any other process could have read it.
        acks, published = _read(stage)
        subprocess.run(["cp", "--sparse=always", str(image), str(after)], check=True)
        stage.lose_machine(supervisor)
        subprocess.run(["umount", "--lazy", str(stage.directory)], check=True)
        _mount(after, stage.directory)
        stage.running.clear()
        found.met.update({_kind(event) for event in acks.values()} & {*AROUND})
        saved = _acknowledged(stage, found, acks, published)
        told = any(
            _kind(event) == "attempt_ended" and event["outcome"]["kind"] == "succeeded"
            for event in acks.values()
        )
        goes_on(stage, found, file=told)
        if saved and not found.wrong:
            _restorable(stage, found, saved)
    finally:
        stage.close()
        subprocess.run(["umount", "--lazy", str(stage.directory)], check=False)
        for path in (image, after):
            path.unlink(missing_ok=True)


def _kind(event: Any) -> str:
    return str(event["kind"])


def _watch(stage: Stage, met: Callable[[Acks], bool], supervisor: subprocess.Popen[str]) -> None:
    """Read the journal from another process while the run writes it, until the condition is met or
    the command has ended."""
    end = time.monotonic() + PATIENCE_S
    while supervisor.poll() is None and time.monotonic() < end and not met(_read(stage)[0]):
        time.sleep(0.001)


def _read(stage: Stage) -> tuple[Acks, list[Any]]:
    """Return the journal's records by number, and the checkpoints. Both are empty if the database
    does not exist yet."""
    if not (stage.state / DATABASE).exists():
        return {}, []
    try:
        with closing(
            sqlite3.connect(
                f"{(stage.state / DATABASE).as_uri()}?mode=ro", uri=True, timeout=PATIENCE_S
            )
        ) as database:
            records = {
                row[0]: json.loads(row[1])
                for row in database.execute("SELECT seq, event FROM records")
            }
            return records, [
                json.loads(row[0]) for row in database.execute("SELECT body FROM checkpoints")
            ]
    except sqlite3.OperationalError:
        return {}, []


def _acknowledged(stage: Stage, found: Trial, acks: Acks, published: list[Any]) -> Any:
    """Check that everything that could be read before the cut is still there. Return the newest
    checkpoint that contains the file which the agent wrote."""
    stored, checkpoints = _read(stage)
    lost = [event for seq, event in acks.items() if stored.get(seq) != event]
    if lost:
        found.wrong.append(
            f"{len(lost)} of {len(acks)} acknowledged records are gone, the first: "
            f"{json.dumps(lost[0])[:200]}"
        )
    gone = {each["number"] for each in published} - {each["number"] for each in checkpoints}
    if gone:
        found.wrong.append(f"the published checkpoints {sorted(gone)} are gone")
    holds = None
    for each in checkpoints:
        saved = each["workdir"]
        git = ["git", "--git-dir", saved["git_dir"]]
        done = subprocess.run(
            [*git, "rev-list", "--objects", "--quiet", saved["commit"]],
            env=stage.environ,
            capture_output=True,
            text=True,
        )
        named = subprocess.run(
            [*git, "rev-parse", saved["ref"]], env=stage.environ, capture_output=True, text=True
        ).stdout.strip()
        if done.returncode or named != saved["commit"]:
            found.wrong.append(
                f"checkpoint {each['number']} cannot be read: {named} {done.stderr[:200]}"
            )
        for part in each.get("conversation", []):
            if not _is_there(stage, part):
                found.wrong.append(
                    f"checkpoint {each['number']}: its part of the conversation ({part['name']}) "
                    "is gone"
                )
        words = [*git, "cat-file", "blob", f"{saved['commit']}:worktree/one.txt"]
        if subprocess.run(words, env=stage.environ, capture_output=True).stdout == b"precious\n":
            holds = each
    return holds


def _is_there(stage: Stage, part: dict[str, Any]) -> bool:
    copies = (path for path in stage.state.glob(f"transcripts/*/*/{part['name']}*"))
    return any(
        hashlib.sha256(path.read_bytes()[: part["size"]]).hexdigest() == part["sha256"]
        for path in copies
    )


def _restorable(stage: Stage, found: Trial, saved: Any) -> None:
    """Check that the checkpoint from before the cut restores the agent's file."""
    path = Path(stage.show()["workspace"]["path"]) / "one.txt"
    path.unlink(missing_ok=True)
    done = stage.perdure("restore", "task", "--at", str(saved["number"]))
    if done.code or not path.exists() or path.read_text() != "precious\n":
        found.wrong.append(
            f"checkpoint {saved['number']} is not restored ({done.code}): {done.err[-300:]}"
        )
    found.met["restored"] += 1
