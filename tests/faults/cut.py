"""Power cuts: the machine's disk is an ext4 file system in a file; at a random moment everything stops, the file is copied, and what
the copy holds is what a machine finds that lost its power then.

What was acknowledged must be in it: every record that another process had already read from the journal (the accepted task, the
conversation's id, the attempt's outcome), and every checkpoint with all its objects. On the copy a plain `retry` must do. Needs root.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from contextlib import closing, suppress
from pathlib import Path
from sqlite3 import connect

from tests.faults.scene import DATABASE, RUN, Trial, goes_on, play
from tests.journeys.stage import Stage

SIZE_MB = 192
LATEST_S = 6.0


def trial(number: int, count: int) -> Trial:
    """One cut, at a moment from the start of the task to a little after its usual end."""
    return play(number, "power cut", _cut, prepare=_disk)


def _disk(directory: Path) -> None:
    image = Path(f"{directory}.img")
    with image.open("wb") as file:
        file.truncate(SIZE_MB << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], check=True)
    _mount(image, directory)


def _mount(image: Path, where: Path) -> None:
    subprocess.run(["mount", "-o", "loop", str(image), str(where)], check=True)


def _cut(stage: Stage, dice: random.Random, found: Trial) -> None:
    image, after = Path(f"{stage.directory}.img"), Path(f"{stage.directory}.after")
    acks = Path(f"{stage.directory}.acks")
    try:
        subprocess.run(["sync", "-f", str(stage.directory)], check=True)
        supervisor = stage.start(*RUN)
        with acks.open("wb") as file:
            reader = _reader(stage, file.fileno())
            time.sleep(dice.uniform(0.5, LATEST_S))
            victims = [supervisor.pid, *stage.marked()]
            _signal(victims, signal.SIGSTOP)
            reader.kill()
            reader.wait()
            subprocess.run(["cp", "--sparse=always", str(image), str(after)], check=True)
        found.struck = supervisor.poll() is None
        stage.lose_machine(supervisor)
        subprocess.run(["umount", "--lazy", str(stage.directory)], check=True)
        _mount(after, stage.directory)
        stage.running.clear()
        told = _acknowledged(stage, found, acks.read_bytes())
        goes_on(stage, found, file=told)
    finally:
        stage.close()
        subprocess.run(["umount", "--lazy", str(stage.directory)], check=False)
        for path in (image, after, acks):
            path.unlink(missing_ok=True)


def _reader(stage: Stage, out: int) -> subprocess.Popen[bytes]:
    """Another process that prints each record as soon as it can be read: from then on somebody knows of it."""
    loop = "until perdure logs -f --json task 2>/dev/null; do :; done"
    environ = {**stage.environ, "PATH": stage.environ["PATH"]}
    return subprocess.Popen(["sh", "-c", loop], cwd=stage.repo, env=environ, stdout=out, start_new_session=True)


def _signal(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def _acknowledged(stage: Stage, found: Trial, printed: bytes) -> bool:
    """Every record that was read before the cut stands in the journal after it. Returns whether success was told: an agent's file
    that nobody was told of may be gone, as a program's own are that it does not make durable."""
    acked = [json.loads(line) for line in printed.split(b"\n")[:-1]]
    if not (stage.state / DATABASE).exists():
        if acked:
            found.wrong.append(f"the database is gone, with {len(acked)} records that were read")
        return False
    with closing(connect(stage.state / DATABASE)) as database:
        # A making of the database that was cut off has some of its tables, and nothing was accepted yet.
        tables = {row[0] for row in database.execute("SELECT name FROM sqlite_master")}
        stored = {row[0]: json.loads(row[1]) for row in database.execute("SELECT seq, event FROM records")} if "records" in tables else {}
        checkpoints = [json.loads(row[0]) for row in database.execute("SELECT body FROM checkpoints")] if "checkpoints" in tables else []
    lost = [record for record in acked if stored.get(record["seq"]) != record["event"]]
    if lost:
        found.wrong.append(f"{len(lost)} of {len(acked)} acknowledged records are gone, the first: {json.dumps(lost[0])[:200]}")
    for each in checkpoints:
        saved = each["workdir"]
        words = ["git", "--git-dir", saved["git_dir"], "rev-list", "--objects", "--quiet", saved["commit"]]
        done = subprocess.run(words, env=stage.environ, capture_output=True, text=True)
        if done.returncode:
            found.wrong.append(f"checkpoint {each['number']} cannot be read: {done.stderr[:200]}")
    found.what += f" ({'checkpoints' if checkpoints else 'records' if acked else 'nothing yet'})"
    return any(record["event"]["kind"] == "attempt_ended" and record["event"]["outcome"]["kind"] == "succeeded" for record in acked)
