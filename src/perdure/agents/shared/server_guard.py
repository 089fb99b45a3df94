"""Ends an agent's server when the program that started it is gone. Used by `codex_bridge`,
`opencode_bridge` and `gemini_bridge`: `ServerGuard` on systems other than Linux, `die_with` (which
uses prctl(2)) on Linux. `codex_bridge` has its own `die_with`, because it does not import this
module on Linux.

This module uses only the standard library, because the bridges run with `python -I -S`.
"""

from __future__ import annotations

import contextlib
import os
import signal

PR_SET_PDEATHSIG = 1


def die_with(parent: int) -> None:
    """Let the kernel kill the calling process as soon as its parent ends. Called in the new process
    that becomes the server."""
    import ctypes

    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


class ServerGuard:
    """A child process that waits until its parent, the bridge, is gone and then kills a server with
    SIGKILL.

    If the guard is created with the process id of the server, the child process also holds the
    pipes to the server open. Otherwise the server would notice the loss of its client before the
    child process kills it. If the guard is created before the server, the server's process must
    call `adopt` before it runs the server's program. Then no server is left running, no matter when
    the bridge is killed.
    """

    def __init__(self, server: int = 0) -> None:
        waiting, self._releasing = os.pipe()
        self._child = os.fork()
        if self._child == 0:
            os.close(self._releasing)
            told = b"%d " % server if server else b""
            while piece := os.read(waiting, 64):
                told += piece
            if told and not told.endswith(b"."):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(told), signal.SIGKILL)
            os._exit(0)
        os.close(waiting)

    def adopt(self) -> None:
        """Tell the child process to guard the calling process. The server's process calls this as
        its `preexec_fn`."""
        os.write(self._releasing, b"%d " % os.getpid())

    def release(self) -> None:
        """End the child process, but not the server. Call it once, before the server ends."""
        with contextlib.suppress(OSError):
            os.write(self._releasing, b".")
        os.close(self._releasing)
        os.waitpid(self._child, 0)
