"""perdure's pool, compared with task queues that a Python program would use instead: Huey and DBOS,
both on SQLite.

They do not do the same work. perdure's task is an attempt with a workdir, a shim, a transcript and
a receipt; theirs is a function that starts one process. The rows show what that costs. Needs the
extra `bench`.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import perdure
from bench.measure import Row, ms

AGENT = """#!/bin/sh
read -r prompt
date +%s%N > "$STARTED/$prompt"
for word; do [ "$before" = --session-id ] && id=$word; before=$word; done
place="$CLAUDE_CONFIG_DIR/projects/bench"
mkdir -p "$place"
printf '{"type":"user","uuid":"1","sessionId":"%s","message":{"role":"user","content":"%s"}}\\n' "$id" "$prompt" > "$place/$id.jsonl"
printf '{"type":"assistant","uuid":"2","parentUuid":"1","sessionId":"%s","message":{"role":"assistant"}}\\n' "$id" >> "$place/$id.jsonl"
printf '{"type":"system","subtype":"init","session_id":"%s"}\\n' "$id"
printf '{"type":"result","subtype":"success","is_error":false,"result":"done","num_turns":1,"session_id":"%s"}\\n' "$id"
"""

HUEY = """
import os, subprocess, sys
from huey import SqliteHuey
queue = SqliteHuey(filename=os.path.join(os.environ["STARTED"], "..", "huey.db"), fsync=True)
@queue.task()
def task(name):
    subprocess.run(["/bin/sh", "-c", f'date +%s%N > "$STARTED/{name}"'], check=True)
"""

HUEY_CLIENT = """
import sys, time, tasks
for line in sys.stdin:
    begun = time.time_ns()
    tasks.task(line.strip())
    print(begun, flush=True)
"""

DBOS_WORKER = """
import os, subprocess, sys, time
from dbos import DBOS, DBOSConfig
DBOS(config=DBOSConfig(name="bench", system_database_url="sqlite:///" + sys.argv[1], run_admin_server=False))
@DBOS.step()
def step(name):
    subprocess.run(["/bin/sh", "-c", f'date +%s%N > "$STARTED/{name}"'], check=True)
@DBOS.workflow()
def task(name):
    step(name)
DBOS.launch()
DBOS.register_queue("bench", worker_concurrency=4)
print("ready", flush=True)
time.sleep(600)
"""

DBOS_CLIENT = """
import sys, time
from dbos import DBOSClient
client = DBOSClient(system_database_url="sqlite:///" + sys.argv[1])
for line in sys.stdin:
    begun = time.time_ns()
    client.enqueue({"queue_name": "bench", "workflow_name": "task"}, line.strip())
    print(begun, flush=True)
"""


def starts(directory: Path) -> Iterator[Row]:
    """Measure the time from the submission in one process to the agent's start in another, for
    single tasks, and the rate of a burst with four at a time."""
    ours, ours_burst = _perdure(directory / "perdure")
    alone, most = _least(directory / "least")
    yield Row(
        "submitted -> agent started, p50 in ms",
        ms(ours),
        "its shim alone",
        ms(alone),
        ours * 1000,
        12,
        note="Python that starts and starts the agent, once an attempt",
        limit=alone * 1000,
    )
    yield Row(
        "a burst of 40, four at a time, starts a second",
        f"{ours_burst:.0f}/s",
        "its shims alone",
        f"{most:.0f}/s",
        ours_burst,
        150,
        least=True,
        note="the same, four at a time",
        limit=most,
    )
    for name, rival, goal, goal_burst in (
        ("Huey, SQLite", _huey, 1 / 6, 1.2),
        ("DBOS, SQLite", _dbos, 1 / 300, 6.0),
    ):
        theirs, burst = rival(directory / name.partition(",")[0])
        yield Row(
            "submitted -> agent started, p50", ms(ours), name, ms(theirs), ours / theirs, goal
        )
        yield Row(
            "a burst of 40, four at a time",
            f"{ours_burst:.0f}/s",
            name,
            f"{burst:.0f}/s",
            ours_burst / burst,
            goal_burst,
            least=True,
        )


ONE_BY_ONE, BURST = 15, 40
SHIM = "import os, subprocess; subprocess.run([os.environ['AGENT']], stdin=0, check=True)"
"""The least that a shim written in Python has to do."""


def _least(directory: Path) -> tuple[float, float]:
    """Return the median time until a Python process has started the agent, in seconds, and how many
    such processes four threads start and end in a second."""
    started, environ = _scene(directory)
    agent = directory / "agent"
    agent.write_text(AGENT)
    agent.chmod(0o755)
    environ |= {"AGENT": str(agent), "CLAUDE_CONFIG_DIR": str(directory / "claude")}

    def start(name: str) -> float:
        begun = time.time_ns()
        subprocess.run(
            [sys.executable, "-I", "-S", "-c", SHIM],
            env=environ,
            input=name.encode(),
            capture_output=True,
            check=True,
        )
        return (_until(started / name) - begun) / 1e9

    waits = [start(f"one{number}") for number in range(ONE_BY_ONE)]
    begun = time.perf_counter()
    with ThreadPoolExecutor(4) as four:
        list(four.map(start, [f"burst{number}" for number in range(BURST)]))
    return statistics.median(waits), BURST / (time.perf_counter() - begun)


def _scene(directory: Path) -> tuple[Path, dict[str, str]]:
    started = directory / "started"
    started.mkdir(parents=True)
    return started, {
        "PATH": os.environ["PATH"],
        "HOME": str(directory),
        "STARTED": str(started),
        "LANG": "C.UTF-8",
    }


def _until(path: Path) -> int:
    """Wait until the task has started, and return the time of its start, in nanoseconds since
    1970."""
    while not path.exists() or not (text := path.read_text()).strip():
        time.sleep(0.0005)
    return int(text)


def _times(started: Path, submit: object, one_by_one: int = ONE_BY_ONE) -> tuple[float, float]:
    assert callable(submit)
    waits = []
    for number in range(one_by_one):
        begun = submit(f"one{number}")
        waits.append((_until(started / f"one{number}") - begun) / 1e9)
    begun = min(submit(f"burst{number}") for number in range(BURST))
    last = max(_until(started / f"burst{number}") for number in range(BURST))
    return statistics.median(waits), BURST / ((last - begun) / 1e9)


def _perdure(directory: Path) -> tuple[float, float]:
    started, environ = _scene(directory)
    agent = directory / "agent"
    agent.write_text(AGENT)
    agent.chmod(0o755)
    environ |= {"PERDURE_CLAUDE": str(agent), "CLAUDE_CONFIG_DIR": str(directory / "claude")}
    pool = subprocess.Popen(
        [sys.executable, "-m", "perdure", "work", "--jobs", "4"],
        env=environ,
        cwd=directory,
        stderr=subprocess.DEVNULL,
    )
    try:
        with perdure.open(directory, environ) as runner:

            def submit(name: str) -> int:
                begun = time.time_ns()
                runner.submit(
                    name,
                    name=name,
                    agent="claude",
                    service="bench",
                    env={"STARTED": str(started)},
                    attempts=1,
                )
                return begun

            submit("warm")
            _until(started / "warm")
            return _times(started, submit)
    finally:
        pool.terminate()
        pool.wait()


def _huey(directory: Path) -> tuple[float, float]:
    started, environ = _scene(directory)
    (directory / "tasks.py").write_text(HUEY)
    environ["PYTHONPATH"] = str(directory)
    consumer = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "huey.bin.huey_consumer",
            "tasks.queue",
            "-w",
            "4",
            "-k",
            "thread",
            "-q",
        ],
        env=environ,
        cwd=directory,
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    return _by_client(started, [sys.executable, "-c", HUEY_CLIENT], environ, directory, consumer)


def _dbos(directory: Path) -> tuple[float, float]:
    started, environ = _scene(directory)
    database = str(directory / "dbos.db")
    worker = subprocess.Popen(
        [sys.executable, "-c", DBOS_WORKER, database],
        env=environ,
        cwd=directory,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert worker.stdout is not None
    worker.stdout.readline()
    return _by_client(
        started, [sys.executable, "-c", DBOS_CLIENT, database], environ, directory, worker
    )


def _by_client(
    started: Path,
    words: list[str],
    environ: dict[str, str],
    directory: Path,
    worker: subprocess.Popen[bytes],
) -> tuple[float, float]:
    client = subprocess.Popen(
        words,
        env=environ,
        cwd=directory,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert client.stdin is not None
    assert client.stdout is not None

    def submit(name: str) -> int:
        assert client.stdin is not None
        assert client.stdout is not None
        client.stdin.write(f"{name}\n".encode())
        client.stdin.flush()
        return int(json.loads(client.stdout.readline()))

    try:
        submit("warm")
        _until(started / "warm")
        return _times(started, submit)
    finally:
        for process in (client, worker):
            process.kill()
            process.communicate()
