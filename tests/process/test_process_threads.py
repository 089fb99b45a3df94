"""Several threads of one process use the files of one attempt, and those of one machine."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

from perdure.host.process import hold, machine


def at_once(count: int, go: Callable[[], object]) -> list[object]:
    """Return the results of several threads that begin at the same moment. An exception counts as a
    result."""
    gate, got = threading.Barrier(count), list[object]()

    def one() -> None:
        gate.wait()
        try:
            got.append(go())
        except Exception as error:
            got.append(error)

    threads = [threading.Thread(target=one) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return got


def test_a_lease_that_two_threads_renew(tmp_path: Path) -> None:
    """The heartbeat thread and the thread that follows the agent renew one lease at the same
    moment. Neither fails, and the shim never reads an incomplete record."""
    torn: list[bytes] = []

    def renew() -> None:
        for number in range(300):
            hold(tmp_path, float(number), 1e9)
            if len((said := (tmp_path / "lease").read_bytes()).split()) != 2:
                torn.append(said)

    assert at_once(3, renew) == [None] * 3
    assert torn == []
    assert [path.name for path in tmp_path.iterdir()] == ["lease"]


def test_a_machine_that_several_ask_for_its_id_first(tmp_path: Path) -> None:
    """All threads get the same machine id, also those that ask while it is being made, or after a
    process was killed before it had written the id."""
    for number in range(100):
        state = tmp_path / f"{number}" / "state"
        if number % 2:
            state.mkdir(parents=True)
            (state / "machine").touch()
        got = at_once(4, partial(machine, state))
        assert set(got) == {(state / "machine").read_text()} and len(str(got[0])) == 32, got


MANY = """
import os, pathlib, resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (1300, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
held = [os.open("/dev/null", os.O_RDONLY) for _ in range(1100)]
from perdure.host.wakeup import Bell
from perdure.host.process import ChildProcess, Identity, Kept
from perdure.host.system.sockets import OwnerChannel
bell = Bell(pathlib.Path(sys.argv[1]))
bell.ring()
bell.wait(3600)
ours, theirs = OwnerChannel.pair()
theirs.send(b"resting 5")
assert Kept(pathlib.Path("x"), Identity.of(os.getpid()), "mark", ours, 1.0).is_ready()
with ChildProcess("builtins:bytes") as asking:
    assert asking.ask(b"word") == b"word"
print("all heard")
"""


def test_a_process_with_more_descriptors_than_select_knows(tmp_path: Path) -> None:
    """A server with a thousand connections and agents has descriptors above 1023. A pool's bell, a
    kept agent and a child that answers questions still work with them."""
    done = subprocess.run(
        [sys.executable, "-c", MANY, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.stdout == "all heard\n", done.stderr
