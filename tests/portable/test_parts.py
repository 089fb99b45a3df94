"""Parts of the portable back end that are hard to test from outside: the processes below a shim,
messages in a stream, the end of a process."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

import pytest

from perdure.host.system import linux, portable
from perdure.host.system.sockets import OwnerChannel
from tests.process.agents import content, gone, until

HIDDEN = """
import os, sys, time
os.setsid()
if os.fork():
    time.sleep(600)
open(sys.argv[1], "w").write(str(os.getpid()))
time.sleep(600)
"""


@contextmanager
def shell(script: str, **options: object) -> Iterator[subprocess.Popen[bytes]]:
    started = subprocess.Popen(["/bin/sh", "-c", script], **options)  # type: ignore[call-overload]
    try:
        yield started
    finally:
        started.kill()
        started.wait()


def test_a_hidden_process_that_was_seen_is_found(tmp_path: Path) -> None:
    """A process without mark, parent and environment, in its own session, is found if it ran below
    the agent when the shim looked. A process that was not seen there is not found."""
    pid_file = tmp_path / "pid"
    family = portable.MarkedOffspring(f"test-{uuid4().hex}")
    hidden = f"env -i {sys.executable} -I -S -c '{HIDDEN}' {pid_file} & wait"
    with shell(hidden) as agent:
        pid = int(until(lambda: content(pid_file)))
        leader = os.getsid(pid)
        try:
            family.note()
            agent.kill()
            agent.wait()
            assert pid in family.left(False)[1]
            os.kill(leader, signal.SIGKILL)
            until(lambda: gone(leader))
            assert pid in family.left(False)[1]
            assert pid not in family.left(False, spared=[pid])[1]
            stranger = portable.MarkedOffspring(f"test-{uuid4().hex}")
            assert pid not in stranger.left(False)[1]
        finally:
            for each in (leader, pid):
                with suppress(ProcessLookupError):
                    os.kill(each, signal.SIGKILL)
        until(lambda: gone(pid))
        assert pid not in family.left(False)[1]


def test_a_marked_process_is_found_anywhere(tmp_path: Path) -> None:
    """A process is found if the mark is in its environment."""
    mark, pid_file = f"test-{uuid4().hex}", tmp_path / "pid"
    away = f"setsid sh -c 'echo $$ > {pid_file}; exec sleep 600' & exit 0"
    with shell(away, env={"PATH": os.environ["PATH"], "PERDURE_ATTEMPT": mark}) as agent:
        agent.wait()
        pid = int(until(lambda: content(pid_file)))
        try:
            # This test's process may have other children, such as a browser, which are found as
            # well.
            some_left, family = portable.MarkedOffspring(mark).left(False)
            assert some_left and pid in family
            assert pid not in portable.MarkedOffspring(mark + "0").left(False)[1]
        finally:
            os.kill(pid, signal.SIGKILL)


def test_messages_in_a_stream_stay_apart(tmp_path: Path) -> None:
    """Several messages at once, a message in two pieces, descriptors, and the end of the stream are
    read correctly."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    owner, keeper = OwnerChannel(ours), OwnerChannel(theirs)
    with pytest.raises(BlockingIOError):
        keeper.receive()
    (tmp_path / "file").write_text("content")
    with (tmp_path / "file").open() as file:
        owner.send(b"turn\0one\n", [file.fileno()])
    message, (passed,) = keeper.receive()
    assert message == b"turn\0one\n"
    with os.fdopen(passed) as file:
        assert file.read() == "content"
    owner.send(b"rest")
    owner.send(b"end")
    assert keeper.receive() == (b"rest", [])
    assert keeper.is_pending()
    assert keeper.receive() == (b"end", [])
    assert not keeper.is_pending()
    ours.send(b"\0\0\0\5he")
    with pytest.raises(BlockingIOError):
        keeper.receive()
    ours.send(b"llo")
    assert keeper.receive() == (b"hello", [])
    owner.send(b"last")
    owner.close()
    assert keeper.receive() == (b"last", [])
    assert keeper.receive() == (b"", [])
    keeper.close()


def test_a_process_is_told_as_linux_tells_it() -> None:
    """Start time, parent, end and signals of a process are reported the same by both back ends."""
    with shell("exec sleep 600") as child:
        known = linux.stat(child.pid)
        found = portable.stat(child.pid)
        assert known is not None and found is not None
        assert found[1:] == known[1:]
        assert abs(portable.age(found[3]) - linux.age(known[3])) < 1
        assert portable.program(child.pid) == linux.program(child.pid)
        assert portable.current_directory(child.pid) == linux.current_directory(child.pid)
        assert portable.user(child.pid) == linux.user(child.pid)
        assert portable.command(child.pid) == linux.command(child.pid)
        assert set(portable.variables(child.pid).split(b"\0")) == set(
            linux.variables(child.pid).split(b"\0")
        )
        handle = portable.open_process(child.pid)
        assert handle is not None
        assert not handle.wait(0)
        handle.send(signal.SIGKILL)
        assert handle.wait(None)
        # The process has ended and waits to be reaped, so it gets no more signals.
        with pytest.raises(ProcessLookupError):
            handle.send(signal.SIGKILL)
        assert portable.is_dead(portable.stat(child.pid) or ("?", 0, 9, 0))
    assert portable.stat(child.pid) is None
    assert portable.open_process(child.pid) is None
