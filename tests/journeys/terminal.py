"""A real terminal for a command: a pty of a given size that records all output, or a screen with
keys, in tmux."""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

from tests.journeys.stage import PATIENCE_S, Stage


def on_terminal(stage: Stage, *words: str, columns: int = 80, **environ: str) -> tuple[int, str]:
    """Run perdure on a terminal of that width. Return its exit code, and its raw output."""
    master, slave = os.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    env = {**stage.environ, "TERM": "xterm-256color", **environ}
    command = [sys.executable, "-m", "perdure", *words]
    with subprocess.Popen(
        command,
        cwd=stage.repo,
        env=env,
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
    ) as started:
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


class Terminal:
    """A shell in tmux, on a terminal of the given size."""

    def __init__(self, one: Stage, columns: int, **environ: str) -> None:
        self.socket = str(one.directory / "tmux")
        self.environ = {**one.environ, "TERM": "xterm-256color", **environ}
        start = one.directory / "bashrc"
        start.write_text("PS1='ready> '\n")
        self.tmux(
            "-f",
            "/dev/null",
            "new-session",
            "-d",
            "-x",
            str(columns),
            "-y",
            "24",
            "-c",
            str(one.repo),
            f"bash --rcfile {start}",
        )
        self.shows("ready>")  # from here on the terminal is in the modes in which the shell waits

    def tmux(self, *words: str) -> str:
        done = subprocess.run(
            ["tmux", "-S", self.socket, *words],
            env=self.environ,
            capture_output=True,
            text=True,
            check=False,
        )
        return done.stdout

    def screen(self) -> list[str]:
        return self.tmux("capture-pane", "-p").split("\n")

    def shows(self, what: str) -> list[str]:
        """Wait until the text is on the screen. Return the lines of the screen."""
        end = time.monotonic() + PATIENCE_S
        while what not in "\n".join(lines := self.screen()):
            assert time.monotonic() < end, f"not on the screen: {what}\n" + "\n".join(lines)
            time.sleep(0.05)
        return lines

    def type(self, *keys: str) -> None:
        for key in keys:
            self.tmux("send-keys", key)

    def foreground(self) -> int:
        """Return the process group of the command that the shell is running. It is found without
        the command's environment, which perdure lets only root read."""
        shell = self.tmux("display-message", "-p", "#{pane_pid}").strip()
        fields = Path(f"/proc/{shell}/stat").read_text().rpartition(")")[2].split()
        return int(fields[5])

    def modes(self) -> str:
        """Return the terminal's settings, and whether its alternate screen and hidden cursor are in
        use."""
        flags = self.tmux("display-message", "-p", "#{alternate_on} #{cursor_flag}")
        tty = self.tmux("display-message", "-p", "#{pane_tty}").strip()
        return (
            flags
            + subprocess.run(
                ["stty", "-F", tty, "-a"], capture_output=True, text=True, check=True
            ).stdout
        )
