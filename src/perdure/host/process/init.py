"""The first process of a container. It runs one command, forwards signals, returns the exit code,
and reaps orphans.

Called by `perdure entrypoint`. The kernel gives PID 1 no default signal actions, and PID 1 inherits
every orphan of the container. An unprepared program would ignore SIGTERM and accumulate zombies. If
this process is not PID 1, it makes itself a child subreaper and does the same.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Mapping, Sequence

from perdure.errors import UsageError
from perdure.host import system
from perdure.host.shim import reap, send
from perdure.host.system import boottime, children

HELD = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}
FAULTS = {
    signal.SIGSEGV,
    signal.SIGBUS,
    signal.SIGFPE,
    signal.SIGILL,
    signal.SIGTRAP,
    signal.SIGABRT,
}
"""Signals that the kernel sends to a process for a fault of its own, such as SIGSEGV. They are
never forwarded."""


def run_as_init(argv: Sequence[str], env: Mapping[str, str], grace_s: float = 10.0) -> int:
    """Run the command until it ends. Return its exit code, 128 + n if signal n ended it, or 126 or
    127 if it could not be started. Raises UsageError on systems other than Linux.

    Every signal that arrives is forwarded to the command. Processes that remain after it has ended
    (such as the shims of agents) get SIGTERM, and SIGKILL after the grace. Their number is printed
    to standard error.
    """
    if system.IS_PORTABLE:
        raise UsageError(
            "perdure entrypoint needs Linux, where a process can inherit its orphans",
            "start the command without it",
        )
    signal.pthread_sigmask(signal.SIG_BLOCK, HELD)
    if os.getpid() != 1:
        # A sandbox may forbid a process to become a subreaper. The command is run anyway.
        with contextlib.suppress(OSError):
            system.adopt_orphans()
    try:
        # The command gets a process group of its own. Ctrl-C in a terminal then reaches the command
        # once, and not this process too.
        child = os.posix_spawnp(
            argv[0], list(argv), dict(env), setpgroup=0, setsigmask=(), setsigdef=HELD
        )
    except OSError as error:
        print(f"perdure: cannot start {argv[0]}: {error.strerror}", file=sys.stderr)
        if isinstance(error, FileNotFoundError):
            return 127
        return 126
    if os.isatty(0):
        os.tcsetpgrp(0, child)
    status = _follow(child)
    if left := _end_the_rest(grace_s):
        print(f"perdure: ended {left} process(es) that {argv[0]} had left running", file=sys.stderr)
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return code
    return 128 - code


def _follow(child: int) -> int:
    """Forward signals and reap children until the command has ended. Return its wait status."""
    while True:
        status = reap(child)[1]
        if status is not None:
            return status
        got = signal.sigwaitinfo(HELD).si_signo
        if got != signal.SIGCHLD and got not in FAULTS:
            send(child, got)


def _end_the_rest(grace_s: float) -> int:
    """End every process that this one inherited: SIGTERM, then SIGKILL after the grace. SIGTERM or
    SIGINT to this process ends the grace early. Return the number of processes that got a signal.
    """
    kill_at, asked = boottime() + grace_s, set[int]()
    while reap(0)[0]:
        for pid in children():
            if boottime() >= kill_at:
                send(pid, signal.SIGKILL)
            elif pid not in asked:
                send(pid, signal.SIGTERM)
            asked.add(pid)
        got = signal.sigtimedwait(HELD, 0.05)
        if got is not None and got.si_signo in (signal.SIGTERM, signal.SIGINT):
            kill_at = boottime()
    return len(asked)
