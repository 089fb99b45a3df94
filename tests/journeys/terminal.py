"""A real terminal for a command: a pty of a given size, and everything that was written to it."""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
import sys
import termios

from tests.journeys.stage import PATIENCE_S, Stage


def on_terminal(stage: Stage, *words: str, columns: int = 80, **environ: str) -> tuple[int, str]:
    """Runs perdure on a terminal of that width: its exit code, and what stood on the screen, raw."""
    master, slave = os.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    env = {**stage.environ, "TERM": "xterm-256color", **environ}
    command = [sys.executable, "-m", "perdure", *words]
    with subprocess.Popen(command, cwd=stage.repo, env=env, stdin=slave, stdout=slave, stderr=slave, start_new_session=True) as started:
        os.close(slave)
        seen = bytearray()
        try:
            while piece := os.read(master, 1 << 16):
                seen += piece
        except OSError:
            pass  # Linux says so when the last one has closed the other side
        finally:
            os.close(master)
        code = started.wait(PATIENCE_S)
    return code, seen.decode("utf-8", "replace").replace("\r\n", "\n")
