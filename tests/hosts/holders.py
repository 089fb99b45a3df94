"""F10: two hosts, and the one that holds the lease is stopped, killed, cut off from the database,
or stopped together with its shim.

The other host takes the attempt over when the lease has expired by the database's clock. By then no
process of the first host's agent may be alive, and every later write of the first host must be
refused. If the shim is stopped too, nothing ends the agent, and only the fence protects the run.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from perdure import store as stores
from perdure.config.files import load
from perdure.engine.attempt import take_over
from perdure.engine.worker import is_orphaned
from perdure.errors import LostLease
from perdure.host import process
from perdure.model import OutcomeKind, TaskSpec
from perdure.model.events import AttemptAdopted, Said
from perdure.testing.stores.samples import place
from perdure.wiring import open_engine
from tests.patience import PATIENCE_S
from tests.servers.postgres import Server
from tests.servers.proxy import Proxy

KINDS = (
    "supervisor stopped",
    "supervisor killed",
    "cut off",
    "supervisor and shim stopped",
    "shim killed, supervisor stopped",
)
FENCE_ONLY = ("supervisor and shim stopped", "shim killed, supervisor stopped")
"""Faults after which no process on the host can end the agent. Only the fencing token protects the
run."""
LEASE_S = 4
TOP = Path(__file__).parents[2]


def trial(server: Server, kind: str, seed: int) -> list[str]:
    """Make one trial. Return the promises that did not hold."""
    dice = random.Random(seed)
    url, proxy = server.database(migrated=True), Proxy(server.port)
    through = server.url(url.rpartition("/")[2], port=proxy.port) if kind == "cut off" else url
    with (
        tempfile.TemporaryDirectory(prefix="ph", ignore_cleanup_errors=True) as top,
        closing(proxy),
    ):
        run_id = uuid.uuid4().hex  # marks this trial's processes among those of other trials
        with closing(stores.open(url)) as store:
            store.add(TaskSpec(prompt="x"), run_id, "the-run", place("p"))
        holder = subprocess.Popen(
            [sys.executable, "-m", "tests.hosts.holder", through, f"{top}/one", f"{LEASE_S}s"],
            cwd=TOP, env={"PATH": os.environ["PATH"]}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert holder.stdout is not None
        held = holder.stdout.readline().split()
        if held[:1] != ["held"]:
            return [f"the holder did not begin: {holder.communicate()}"]
        mark, directory = held[2], Path(top, "one", "runs", run_id, held[1])
        shim = process.find(directory)
        try:
            time.sleep(dice.uniform(0, LEASE_S / 2))
            _trouble(kind, holder, shim, proxy)
            wrong = _overtaken(url, Path(top, "two"), kind, mark, directory)
            wrong += _refused(url, kind, holder)
        finally:
            holder.kill()
            holder.communicate()
            if shim is not None and shim.shim is not None:
                shim.shim.send(signal.SIGKILL)
            process.end_all(mark, 0)
        return wrong


def _trouble(
    kind: str, holder: subprocess.Popen[str], shim: process.Process | None, proxy: Proxy
) -> None:
    assert shim is not None and shim.shim is not None
    if kind == "cut off":
        proxy.stall()
    else:
        holder.send_signal(signal.SIGKILL if kind == "supervisor killed" else signal.SIGSTOP)
    if kind in FENCE_ONLY:
        shim.shim.send(signal.SIGSTOP if "and shim stopped" in kind else signal.SIGKILL)


def _overtaken(url: str, state: Path, kind: str, mark: str, directory: Path) -> list[str]:
    """Take the attempt over on the other host. Return the promises that did not hold."""
    environ = {
        "PERDURE_DATABASE": url,
        "PERDURE_STATE": str(state),
        "PERDURE_LEASE": f"{LEASE_S}s",
        "HOME": str(state),
    }
    own = {
        **environ,
        "PATH": os.environ["PATH"],
        "PERDURE_ROOT": f"{state}/root",
        "PERDURE_DISK_BALLAST": "0",
    }
    engine = open_engine(load(own, Path("/")), own)
    wrong = []
    with closing(engine.store):
        claim = engine.store.claims()[0]
        _until(
            lambda: is_orphaned(
                engine.store, engine.host, engine.lease_s, engine.store.claims()[0]
            ),
            "the lease runs out",
        )
        left = process.survivors(mark)
        claim = engine.store.claims()[0]
        if left and kind not in FENCE_ONLY:
            wrong.append(f"{len(left)} processes of the agent lived when it was taken over")
        if not left and kind == "supervisor and shim stopped":
            wrong.append("the agent was to live on, and did not: nothing was shown")
        if kind not in FENCE_ONLY and "asked" not in (directory / "stdout").read_text():
            wrong.append("the agent was not asked to end before the takeover")
        run = take_over(engine, claim)
        outcome = engine.store.attempts(claim.run.id)[-1].outcome
        if run.attempt != 1 or outcome is None or outcome.kind is not OutcomeKind.LOST:
            wrong.append(f"taken over, it is {run.state} after {outcome}")
        with suppress(LostLease):
            engine.store.record(claim, [Said(text="stale")])
            wrong.append("a stale claim could write")
    return wrong


def _refused(url: str, kind: str, holder: subprocess.Popen[str]) -> list[str]:
    """Let the late host continue. Return what is wrong: everything that it wrote before must be
    stored, and nothing that it writes now may be."""
    if holder.poll() is None and kind not in ("supervisor killed", "cut off"):
        holder.send_signal(signal.SIGCONT)
        out, err = holder.communicate(timeout=PATIENCE_S)
    else:
        holder.kill()
        out, err = holder.communicate()
    wrong = []
    if kind not in ("supervisor killed", "cut off") and not out.rstrip().endswith("refused"):
        wrong.append(f"the late host was not refused: {out[-200:]!r} {err[-500:]!r}")
    with closing(stores.open(url)) as store:
        records = store.history(store.get("the-run").id, limit=100_000)
    adopted = next(record.seq for record in records if isinstance(record.event, AttemptAdopted))
    if late := [
        record for record in records if record.seq > adopted and isinstance(record.event, Said)
    ]:
        wrong.append(f"{len(late)} events of the late host were stored after the takeover")
    said = {record.event.text for record in records if isinstance(record.event, Said)}
    if lost := {line.split()[1] for line in out.splitlines() if line.startswith("said")} - said:
        wrong.append(f"{len(lost)} acknowledged events are not there")
    return wrong


def _until(met: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not met():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)
