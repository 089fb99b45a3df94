"""Runs many command lines of `perdure` in one process, which is faster than a start for each.

`python -m tests.journeys.every_verb WIDTH` reads the command lines from standard input, as JSON.
For each it prints the exit code, standard output and standard error. If WIDTH is above 0, both
streams are a terminal of that width, and the content of the screen is printed as standard output.
"""

from __future__ import annotations

import fcntl
import io
import json
import os
import struct
import sys
import termios
import threading
import traceback
from typing import TextIO

from perdure.cli.main import main

PLAIN = sys.stdout.encoding


def ended(words: list[str], out: TextIO, err: TextIO) -> int | str:
    """Run one command line. Return its exit code. The traceback of an unexpected error is written
    to `err`."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = out, err
    try:
        return main(words)
    except SystemExit as end:
        return end.code or 0
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        out.flush()
        err.flush()
        sys.stdout, sys.stderr = before


def piped(words: list[str]) -> tuple[int | str, str, str]:
    """Run one command line with its output in two pipes. Return the exit code, stdout and stderr,
    decoded by the locale's encoding."""
    raw = io.BytesIO(), io.BytesIO()
    out, err = (io.TextIOWrapper(each, encoding=PLAIN) for each in raw)
    code = ended(words, out, err)
    return code, raw[0].getvalue().decode(PLAIN), raw[1].getvalue().decode(PLAIN)


def on_terminal(words: list[str], width: int) -> tuple[int | str, str, str]:
    """Run one command line on a terminal. Return the exit code, the content of the screen and an
    empty stderr."""
    master, slave = os.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    seen = bytearray()

    def read() -> None:
        while piece := os.read(master, 1 << 16):
            seen.extend(piece)
            if seen.endswith(b"\0"):
                return

    reader = threading.Thread(target=read)
    reader.start()
    for stream in (1, 2):
        os.dup2(slave, stream)  # a pager needs the real descriptors
    with os.fdopen(slave, "w", encoding="utf-8") as screen:
        code = ended(words, screen, screen)
        screen.write("\0")
    for stream in (1, 2):
        os.dup2(0, stream)
    reader.join()
    os.close(master)
    return code, seen.decode().rstrip("\0").replace("\r\n", "\n"), ""


if __name__ == "__main__":
    WIDTH = int(sys.argv[1])
    LINES = json.loads(sys.stdin.buffer.read())
    result = os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    ends = [on_terminal(words, WIDTH) if WIDTH else piped(words) for words in LINES]
    with os.fdopen(result, "w") as file:
        file.write(json.dumps(ends))
