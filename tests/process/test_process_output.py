"""Output of any shape and amount: below the limits nothing is lost, nothing crashes, and memory
stays within its limit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perdure.host.process import Lines, boottime, plain, tail
from perdure.host.process.lines import CHUNK
from tests.process.agents import Launcher, content, until

pytestmark = pytest.mark.usefixtures("shim")


def drain(lines: Lines) -> list[bytes]:
    """Return all complete lines that are available."""
    found, before = [], -1
    while lines.offset != before:
        before = lines.offset
        found += lines.read()
    return found


def test_a_flood_of_100_mb(launch: Launcher) -> None:
    """Every line of a hundred megabytes on stdout, and of as many on stderr, arrives, while a
    reader reads."""
    process = launch(
        "yes 'a line of output, forty characters long' | head -c 100000000 | tee /dev/fd/2",
        deadline_s=120.0,
    )
    lines, count = Lines(process.stdout), 0
    while process.wait(0.01) is None:
        count += len(lines.read())
    count += len(drain(lines))
    end = process.wait()
    assert end is not None
    assert end.code == 0
    assert (process.stdout.stat().st_size, process.stderr.stat().st_size) == (
        100_000_000,
        100_000_000,
    )
    assert (count, lines.capped) == (100_000_000 // 40, 0)


def test_a_flood_without_end(launch: Launcher) -> None:
    """An agent that would fill the disk is ended at the limit, for stdout and stderr alike, and the
    Exit says so."""
    end = launch("exec yes >&2", output_cap=1_000_000, grace_s=600.0).wait()
    assert end is not None
    assert (end.signal, end.cause) == (9, "flooded")
    assert len(end.stderr_tail) == 4096


def test_a_flood_in_the_grace(launch: Launcher) -> None:
    """The limit also holds during the grace period of a stop."""
    process = launch(
        "trap 'exec yes' TERM; echo; while :; do sleep 0.02; done",
        output_cap=1_000_000,
        grace_s=600.0,
    )
    until(lambda: content(process.stdout))
    process.stop()
    end = process.wait()
    assert end is not None
    assert (end.signal, end.cause) == (9, "stopped")


def test_a_line_of_20_mb(launch: Launcher) -> None:
    """A tool result of twenty megabytes is one complete line."""
    process = launch("head -c 20000000 /dev/zero | tr '\\0' x; echo; echo next; printf torn")
    assert process.wait() is not None
    lines = Lines(process.stdout)
    assert drain(lines) == [b"x" * 20_000_000, b"next"]
    assert lines.rest() == b"torn"
    assert (lines.capped, lines.dropped) == (0, 0)


def test_any_bytes_pass_through(launch: Launcher) -> None:
    """NUL, invalid UTF-8 and all characters that only `splitlines` treats as a newline are part of
    the line."""
    process = launch(("printf", r"a\000b\377\n\302\205\342\200\250\r\034c\n\n"))
    assert process.wait() is not None
    assert drain(Lines(process.stdout)) == [b"a\x00b\xff", "\x85\u2028\r\x1cc".encode(), b""]


def test_a_growing_file(tmp_path: Path) -> None:
    """A line is returned once, when it is complete. Before the file exists, there is none."""
    lines = Lines(tmp_path / "log")
    assert lines.read() == []
    with (tmp_path / "log").open("ab", buffering=0) as log:
        log.write(b"one\ntw")
        assert lines.read() == [b"one"]
        assert lines.read() == []
        log.write(b"o\n\nthree")
        assert lines.read() == [b"two", b""]
    assert (lines.rest(), lines.rest()) == (b"three", b"")


def test_a_line_over_the_cap(tmp_path: Path) -> None:
    """A line over the limit is cut and counted once, and the next line is complete again. The same
    holds for an incomplete last line."""
    (tmp_path / "log").write_bytes(b"0123456789abc\nshort\n0123456789\n" + b"z" * 12)
    lines = Lines(tmp_path / "log", cap=10)
    assert drain(lines) == [b"0123456789", b"short", b"0123456789"]
    assert lines.rest() == b"z" * 10
    assert (lines.capped, lines.dropped) == (2, 5)


def test_a_file_that_became_shorter(tmp_path: Path) -> None:
    """If a tool truncated the log (`> /dev/stdout`), its output is read from the start of the
    file."""
    log = tmp_path / "log"
    log.write_bytes(b"a long first line\ntorn")
    lines = Lines(log)
    assert lines.read() == [b"a long first line"]
    log.write_bytes(b"new\n")
    assert drain(lines) == [b"new"]


@settings(max_examples=200, deadline=None)
@given(
    pieces=st.lists(
        st.binary(max_size=12) | st.sampled_from([b"\n", b"\r\n", b"x" * 30]), max_size=20
    ),
    cap=st.integers(1, 40),
    stop_at=st.integers(0, 20),
)
def test_lines_are_what_split_says(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[bytes], cap: int, stop_at: int
) -> None:
    """However a file grows and wherever a reader starts again, it returns the lines of `split`,
    each cut to the limit, and the counts add up."""
    path = tmp_path_factory.getbasetemp() / "growing"
    path.write_bytes(b"")
    lines, found, dropped = Lines(path, cap=cap), [], 0
    for number, piece in enumerate(pieces):
        with path.open("ab") as log:
            log.write(piece)
        found += lines.read()
        if number == stop_at:
            fresh = Lines(path, cap=cap, offset=lines.complete)
            assert fresh.read() == []
            begun = lines.offset - lines.complete
            dropped += lines.dropped - max(0, begun - cap)
            lines = fresh
    found += drain(lines)
    *ends, torn = b"".join(pieces).split(b"\n")
    assert found == [line[:cap] for line in ends]
    assert lines.rest() == torn[:cap]
    assert dropped + lines.dropped == sum(max(0, len(line) - cap) for line in (*ends, torn))


def test_memory_is_bounded(tmp_path: Path) -> None:
    """Reading a line of 400 MB takes no more memory than the limit on a line allows."""
    with (tmp_path / "log").open("wb") as log:
        log.truncate(400_000_000)
        log.seek(0, 2)
        log.write(b"\nnext\n")
    program = (
        "import sys; from pathlib import Path; from perdure.host.process import Lines\n"
        "lines, found, before = Lines(Path(sys.argv[1]), cap=8 * 1024**2), [], -1\n"
        "while lines.offset != before: before = lines.offset; found += lines.read()\n"
        "print([len(line) for line in found], lines.capped, lines.dropped)\n"
        "print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])\n"
    )
    source = str(Path(__file__).parents[2] / "src")
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "log")],
        env={"PYTHONPATH": source},
        capture_output=True,
        check=True,
    )
    sizes, rest = done.stdout.decode().split("]")
    capped, dropped, kilobytes = (int(word) for word in rest.split())
    assert sizes == f"[{8 * 1024**2}, 4"
    assert (capped, dropped) == (1, 400_000_000 - 8 * 1024**2)
    assert kilobytes < 100_000
    assert CHUNK <= 8 * 1024**2


@pytest.mark.parametrize(
    ("output", "shown"),
    [
        (b"caf\xc3\xa9 \xff", "café \\xff"),
        (b"\x1b[31mred\x1b[0m \x1b[2Jgone", "red gone"),
        (b"\x1b]52;c;c3RvbGVu\x07ok \x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "ok link"),
        (b"\x1bPq#0\x1b\\done \x1b(B\x1b7\x1bc", "done "),
        (b"\x1b]0;never closed", "0;never closed"),
        ("\x9b31mc1 \u202eesrever\u2069".encode(), "c1 esrever"),
        (b"a\rb\r\nc\td\x00\x07\x7f", "ab\nc\td"),
    ],
)
def test_what_a_person_sees(output: bytes, shown: str) -> None:
    """The agent's text is safe to print: no escapes, no control characters, no bidirectional marks,
    and invalid bytes as numbers."""
    assert plain(output) == shown


def test_a_tail_begins_at_a_character(tmp_path: Path) -> None:
    """If the tail of a file begins within a character, the whole character is left out, and no
    broken one is shown."""
    (tmp_path / "log").write_bytes("äöü€".encode() * 10)
    assert tail(tmp_path / "log", 6) == "ü€"
    assert tail(tmp_path / "none") == ""


def test_the_recorded_end_is_json(launch: Launcher) -> None:
    """exit.json is plain JSON that other programs can read."""
    process = launch("exit 1")
    end = process.wait()
    assert end is not None
    assert json.loads((process.directory / "exit.json").read_text()) == {
        "code": 1,
        "signal": None,
        "cause": "exited",
        "leader_ended": end.at,
        "survivors_killed": 0,
    }


def test_the_clock_counts_since_boot() -> None:
    """Deadlines and silence are measured on a clock that does not change when the date is set."""
    with Path("/proc/uptime").open() as file:
        assert abs(float(file.read().split()[0]) - boottime()) < 5
