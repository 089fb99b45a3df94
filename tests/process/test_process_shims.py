"""The compiled shim and the one in Python do the same. Both run on the same input, which may be
hostile, and what they leave in the attempt's directory is compared byte for byte.

Where perdure was installed without a compiler, there is only the shim in Python. Then it runs alone
here.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from perdure.host import system
from perdure.host.process import Process, end_all, launch, run_quick, start, survivors
from perdure.host.process.orphans import COMPILED, SHIM
from perdure.host.system import boottime, namespace, stat
from perdure.model import Command, OnLeftover
from tests.process.agents import content, until
from tests.process.conftest import SHIMS

Files = Mapping[str, bytes | Callable[[], bytes]]
Act = Callable[[Process], object]


@pytest.fixture
def compare(
    tmp_path: Path, env: dict[str, str], mark: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., dict[str, Any]]]:
    """Yield a function that runs an agent under each shim and compares what they leave. It returns
    the content of `exit.json`."""

    programs: list[str] = []
    spawn = launch.spawn

    def recording(*words: Any) -> int:
        programs.append(words[-1][0])
        return spawn(*words)

    monkeypatch.setattr(launch, "spawn", recording)

    def one(
        which: str, argv: tuple[str, ...], files: Files, act: Act, options: dict[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        monkeypatch.setenv(system.VARIABLE, "python" if which == "python" else "")
        top = tmp_path / "top"
        directory = top / "attempt"
        directory.mkdir(parents=True)
        (top / "work").mkdir()
        for name, text in files.items():
            (directory / name).write_bytes(text() if callable(text) else text)
        for name in options.pop("directories", []):
            (directory / name / "in the way").mkdir(parents=True)
        given = {"cwd": top / "work", "env": env, "deadline_s": 60.0, "grace_s": 5.0} | options
        command = Command(argv=argv, stdin=b"input")
        process = start(command, directory=directory, mark=mark, **given)
        assert programs.pop().startswith(COMPILED) == (which == "compiled")
        act(process)
        assert process.wait() is not None
        seen = left_in(directory)
        end = json.loads((directory / "exit.json").read_bytes() or b"{}")
        end_all(mark, 0)
        shutil.rmtree(top)
        return seen, end

    def compared(
        agent: str | tuple[str, ...],
        files: Files | None = None,
        act: Act = lambda process: None,
        **options: Any,
    ) -> dict[str, Any]:
        argv = ("/bin/sh", "-c", agent) if isinstance(agent, str) else agent
        seen = [one(which, argv, files or {}, act, {**options}) for which in SHIMS]
        assert seen[0][0] == seen[-1][0]
        return seen[0][1]

    yield compared
    end_all(mark, 0)


def left_in(directory: Path) -> dict[str, Any]:
    """Return name, mode and content of the files of an attempt, without pids and times."""
    known: dict[str, Any] = {}
    for file in sorted(directory.iterdir()):
        mode = file.stat().st_mode
        text = file.read_bytes() if file.is_file() else b""
        if ".json" in file.name:
            text = re.sub(rb'"(pid|starttime|leader_ended)": \d+', rb'"\1": 0', text)
            text = re.sub(rb'"age_s": \d+\.\d(?=[,}])', rb'"age_s": 0.0', text)
        known[file.name] = (oct(mode), text)
    return known


def stop_when_ready(process: Process) -> None:
    until(lambda: content(process.stdout))
    process.stop()


@pytest.mark.parametrize(
    "agent",
    [
        "echo out; echo err >&2; cat; exit 0",
        "exit 255",
        *(f"kill -{number} $$" for number in (1, 6, 9, 11, 15, 34)),
        ("env", "-0"),
        "ulimit -a; umask; grep -E 'SigBlk|SigCgt|Groups|NoNewPrivs|CapEff' /proc/self/status",
        "ls -l /proc/self/fd | wc -l; pwd; cat /proc/self/limits",
    ],
)
def test_an_end_by_itself(compare: Callable[..., Any], agent: str | tuple[str, ...]) -> None:
    """Exit codes, signals, and everything that an agent inherits."""
    odd = {"LC_ALL": "C", "TMPDIR": "/x", "A": "", "B": "=", "é": "\udcff", "LD_BIND_NOT": "1"}
    end = compare(agent, env={"PATH": os.environ["PATH"], **odd})
    assert end["cause"] == "exited"


PROGRAMS = {
    "missing": ("/nowhere/agent",),
    "missing in PATH": ("no-such-program-anywhere",),
    "not executable": ("/etc/passwd",),
    "a directory": ("/usr",),
    "in no directory": ("/etc/passwd/x",),
    "a loop": ("{top}/loop",),
    "too long": ("x" * 300,),
    "too long a path": ("/" + "x/" * 3000,),
    "no format": ("{top}/no-format",),
    "not executable in PATH": ("plain",),
    "in the second directory": ("program", "a b", "", "é\udcff"),
    "in the current directory": ("./here",),
    "too long arguments": ("/bin/echo", "x" * 200_000),
}


@pytest.mark.parametrize("path", ["{top}/not:/etc/passwd::{top}/one:{top}/two", "", None])
@pytest.mark.parametrize("program", PROGRAMS)
def test_programs(
    compare: Callable[..., Any], tmp_path: Path, program: str, path: str | None
) -> None:
    """A program is found, or not, and the reason is the same sentence."""
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name, mode in (("no-format", 0o755), ("one/plain", 0o644), ("two/program", 0o755)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        begin = "" if name == "no-format" else "#!/bin/sh\n"
        (tmp_path / name).write_text(f'{begin}printf "%s|" "$@"\n')
        (tmp_path / name).chmod(mode)
    argv = tuple(word.replace("{top}", str(tmp_path)) for word in PROGRAMS[program])
    env = {} if path is None else {"PATH": path.replace("{top}", str(tmp_path))}
    end = compare(argv, env=env)
    assert end["code"] in (0, 126, 127)


@pytest.mark.parametrize("cwd", ["missing", "file", "forbidden/in", "loop"])
def test_directories(compare: Callable[..., Any], tmp_path: Path, cwd: str) -> None:
    """A workdir that cannot be entered ends the attempt with the reason."""
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert compare("true", cwd=tmp_path / cwd)["code"] == 126


def a_lease(until_s: float, end_s: float, more: str = "") -> bytes:
    return f"{boottime() + until_s:.3f} {boottime() + end_s:.3f}{more}\n".encode()


def this_process() -> str:
    known = stat("self")
    assert known is not None
    return f" {os.getpid()} {known[3]}"


LEASES = {
    "empty": (b"", "exited"),
    "one word": (b"5", "exited"),
    "no numbers": (b"x y", "exited"),
    "hexadecimal": (b"0x1 0x1", "exited"),
    "nan": (b"nan nan", "exited"),
    "text after nan": (b"nan(1) 0", "exited"),
    "infinite": (b"inf Infinity", "exited"),
    "huge": (b"1e3000 1e3000", "exited"),
    "tiny": (b"-1e3000 -1e3000", "lapsed"),
    "zero": (b"0 0", "lapsed"),
    "signs": (b"+0.0 -.5e1", "lapsed"),
    "white space": (b"\x0b\t0\r\x0c0\n\n", "lapsed"),
    "a NUL": (b"0\0 0", "exited"),
    "invalid": (b"\xff\xfe 0", "exited"),
    "underscores": (b"1_0 -1_0", "lapsed"),
    "other underscores": (b"1__0 _1", "exited"),
    "long": (b"0" * 200 + b" 0", "exited"),
    "cut": (b"0 " + b"0" * 126 + b"9999999999999", "lapsed"),
    "two more words": (b"9e9 9e9 1 2", "exited"),
    "four more words": (b"9e9 9e9 1 2 {namespace} x", "exited"),
    "of another namespace": (b"9e9 9e9 1 2 x", "exited"),
    "of an invalid namespace": (b"0 0 1 2 \xff", "exited"),
    "of a replacement character": (b"0 0 1 2 \xef\xbf\xbd", "lapsed"),
    "of nobody": (b"9e9 9e9 1 2 {namespace}", "lapsed"),
    "of no process": (b"9e9 9e9 -1 2 {namespace}", "lapsed"),
    "of a huge pid": (b"9e9 9e9 99999999999999999999999 2 {namespace}", "lapsed"),
    "of a word": (b"0 0 x 2 {namespace}", "exited"),
    "of a half number": (b"0 0 1 2x {namespace}", "exited"),
    "of this process": (b"9e9 9e9{this} {namespace}", "exited"),
    "of this process, lapsed": (b"0 0{this} {namespace}", "lapsed"),
}


@pytest.mark.parametrize("lease", LEASES)
def test_leases(compare: Callable[..., Any], lease: str) -> None:
    """Both shims read the same from a lease, also from an invalid one."""
    text, cause = LEASES[lease]
    text = text.replace(b"{namespace}", namespace().encode())
    text = text.replace(b"{this}", this_process().encode())
    agent = "exec sleep 600" if cause == "lapsed" else "sleep 0.4"
    assert compare(agent, {"lease": text})["cause"] == cause


@pytest.mark.parametrize("deaf", [True, False])
def test_a_lease_with_a_grace(compare: Callable[..., Any], deaf: bool) -> None:
    """At the end of a lease the agent gets TERM, and KILL at its second time."""
    agent = f"trap '{'' if deaf else 'exit 3'}' TERM; echo ready; while :; do :; done"

    def remove(process: Process) -> None:
        process.wait()
        (process.directory / "lease").unlink()

    end = compare(agent, {"lease": lambda: a_lease(0.5, 1.5)}, remove)
    assert (end["cause"], end["signal"] or end["code"]) == ("lapsed", 9 if deaf else 3)


CAUSES = {
    **dict.fromkeys((b"over", b"stalled\n", b"_x1", b"exited", b"lapsed", b"deadline"), ""),
    **dict.fromkeys((b"\x1f\x1c abc \x1d\n", b"a" * 64, b"a" * 65, b"a" * 200), ""),
    **dict.fromkeys((b"", b"a b", b"1abc", b"\xc3\xa9", b'"', b"a\0b", b"\\u0061", b"\x80a"), ""),
}


@pytest.mark.parametrize("cause", CAUSES)
def test_causes(compare: Callable[..., Any], cause: bytes) -> None:
    """The word of the supervisor is the cause if it is a name; every other text is ignored."""

    def stop(process: Process) -> None:
        until(lambda: content(process.stdout))
        (process.directory / "cause").write_bytes(cause)
        assert process.shim is not None
        process.shim.send(signal.SIGTERM)

    compare("trap 'exit 4' TERM; sleep 600 & echo ready; wait", act=stop)


@pytest.mark.parametrize(
    "kept",
    [
        *(b"", b" \n", b"1", b"0", b"-5", b"+3", b"99999999999999999999999999", b"1 2 3\n"),
        *(b"x", b"1 x", b"1\0", b"\xff", b"1.5", b"4194304 4194303", b"- 1", b"7 " * 50_000),
    ],
)
def test_kept_processes(compare: Callable[..., Any], kept: bytes) -> None:
    """If processes are to be kept, the agent gets KILL at a stop, else TERM."""
    agent = "trap 'exit 4' TERM; echo ready; while :; do :; done"
    compare(agent, {"kept": kept}, stop_when_ready)


def test_a_kept_process_lives_on(compare: Callable[..., Any]) -> None:
    """A process that is named in `kept` is left alone, and everything else ends."""

    def release(process: Process) -> None:
        pid = int(until(lambda: content(process.stdout)))
        process.release([pid])
        assert process.wait() is not None
        assert pid in survivors(process.mark)
        (process.directory / "kept").unlink()
        process.stdout.write_bytes(b"")

    end = compare("sleep 600 & echo $!; sleep 600 & wait", act=release)
    assert (end["cause"], end["survivors_killed"]) == ("over", 1)


@pytest.mark.parametrize(
    "policy", [*OnLeftover, b" keep\n", b"waiting", b"\xff", b"wait" + b" " * 20]
)
def test_leftovers(compare: Callable[..., Any], policy: OnLeftover | bytes) -> None:
    """Processes that outlive the agent are described, and ended, kept or waited for."""
    words = policy if isinstance(policy, bytes) else policy.encode()
    agent = "sleep 0.7 & sh -c 'sleep 0.6; :' & exit 0"
    end = compare(agent, {"leftover": words})
    assert end["cause"] == "exited"


WORDS = [
    b"plain",
    b"quote \" ' back \\ slash / \x7f",
    bytes(range(1, 32)),
    b"\xff\xfe\x80\xc0\xaf\xc1\xbf",
    b"\xe0\x80\x80\xe0\xa0\xed\xa0\x80\xed\x9f\xbf",
    b"\xf0\x80\x80\x80\xf0\x90\x80\xf4\x90\x80\x80\xf5\xf8\x88",
    "\U0001f600 \U0010ffff é ߿ ࠀ \uffff \ufffd".encode(),
    "\u2028\u2029\x85\xa0\u3000 inside \u1680 \u200a\x1c".encode(),
    b"\xc3",
    b"\xe2\x82",
    b"\xf0\x9f\x98",
    b"a" * 499 + "é€".encode(),
    b"b" * 5000,
    b"c" * 1998 + "\U0001f600".encode(),
    "\U0001f600".encode() * 600,
    b" " * 1000 + b"d",
    b" " * 3000,
    b"</script>&<>",
]
STRANGE = """
import os, sys
read, write = os.pipe()
os.set_inheritable(write, True)
for words in sys.stdin.buffer.read().split(b"\\n\\n\\n"):
    files = [(os.POSIX_SPAWN_DUP2, read, 0)]
    os.posix_spawn("/bin/cat", [words], os.environ, file_actions=files)
    os.posix_spawn("/bin/sh", [b"sh", b"-c", b"read x; :", words, b"", words], os.environ, file_actions=files)
"""


def test_command_lines(compare: Callable[..., Any], tmp_path: Path) -> None:
    """The command lines of processes that outlive the agent are the same JSON, whatever bytes are
    in them."""
    words = tmp_path / "words"
    words.write_bytes(b"\n\n\n".join(WORDS))
    agent = f'exec {sys.executable} -I -S -c "$0" < {words}'
    end = compare(("/bin/sh", "-c", agent, STRANGE))
    assert end["left_count"] == 2 * len(WORDS)
    assert end["left"][2]["command"] == "quote \" ' back \\ slash / \x7f"


def test_more_than_are_named(compare: Callable[..., Any]) -> None:
    """At most 50 of the processes that outlive an agent are named, and all are counted."""
    end = compare("for each in $(seq 60); do sleep 600 & done; (sleep 601; :) & sleep 0.5")
    assert (len(end["left"]), end["left_count"], end["survivors_killed"]) == (50, 61, 62)


@pytest.mark.parametrize("cap", [0, 1, 5000])
def test_floods(compare: Callable[..., Any], cap: int) -> None:
    """An agent whose output becomes too large is killed."""

    def cut(process: Process) -> None:
        process.wait()
        # Its size depends on when the shim looked. It has at least `cap` bytes.
        process.stdout.write_bytes(process.stdout.read_bytes()[: min(cap, 1)])

    agent = "trap 'echo term' TERM; while :; do echo x; done"
    assert compare(agent, act=cut, output_cap=cap)["cause"] == "flooded"


@pytest.mark.parametrize(("size", "cause"), [(4999, "deadline"), (5000, "flooded")])
def test_the_largest_output(compare: Callable[..., Any], size: int, cause: str) -> None:
    """An output that has reached the cap is too large, and one that lacks a byte is not."""
    agent = f"head -c {size} /dev/zero; exec sleep 600"
    assert compare(agent, output_cap=5000, deadline_s=1.5)["cause"] == cause


@pytest.mark.parametrize(
    ("deadline_s", "grace_s", "agent"),
    [
        (0.2, 5.0, "exec sleep 600"),
        (0.2, 0.2, "trap '' TERM; while :; do :; done"),
        (0.2, 0.0, "trap '' TERM; while :; do :; done"),
        (0.3, 5.0, "trap 'exit 5' TERM; sleep 600 & wait"),
        (0.0, 5.0, "sleep 0.1"),
        (1e300, 1e300, "sleep 0.1"),
    ],
)
def test_deadlines(
    compare: Callable[..., Any], deadline_s: float, grace_s: float, agent: str
) -> None:
    """Deadline and grace."""
    compare(agent, deadline_s=deadline_s, grace_s=grace_s)


@pytest.mark.parametrize("after_s", [0.0, 0.001, 0.003, 0.01, 0.03, 0.1])
def test_stops_at_any_time(compare: Callable[..., Any], after_s: float) -> None:
    """A stop has the same end whenever it comes."""

    def stop(process: Process) -> None:
        time.sleep(after_s)
        process.stop("stalled")

    end = compare("exec sleep 600", act=stop)
    assert (end["cause"], end["signal"]) == ("stalled", 15)


@pytest.mark.parametrize("cause", ["stopped", "over"])
def test_a_grace_that_nothing_heeds(compare: Callable[..., Any], cause: str) -> None:
    """Agent and children that ignore TERM are killed after the grace of their cause."""

    def stop(process: Process) -> None:
        until(lambda: content(process.stdout))
        process.stop(cause)

    agent = "trap '' TERM; sleep 600 & (sleep 600; :) & echo ready; while :; do :; done"
    end = compare(agent, act=stop, grace_s=1.2)
    assert (end["signal"], end["cause"]) == (9, cause)


@pytest.mark.parametrize("name", ["agent.json", "leftover", "lease", "kept", "cause"])
def test_directories_in_the_way(compare: Callable[..., Any], name: str) -> None:
    """A directory where a file should be has the same effect on both."""
    agent = "exec sleep 600" if name == "agent.json" else "sleep 0.2 & sleep 0.3; exit 3"
    end = compare(agent, directories=[name])
    assert (end["code"], end["signal"]) == ((None, 9) if name == "agent.json" else (3, None))


def test_times_of_the_ends(compare: Callable[..., Any]) -> None:
    """The recorded time is that of the agent's end, in milliseconds, not that of its children."""
    before = time.time_ns() // 1_000_000
    end = compare("trap '' TERM; sleep 600 & exit 0", grace_s=0.6)
    after = time.time_ns() // 1_000_000
    assert before < end["leader_ended"] < after - 1100


@pytest.mark.linux
def test_a_program_of_another_source_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The compiled shim is used only if its name has the hash of the installed source."""
    source = SHIM.with_suffix(".c").read_bytes()
    monkeypatch.setattr(launch, "SHIM", tmp_path / "shim.py")
    monkeypatch.setattr(launch, "COMPILED", f"{tmp_path}/shim-")
    (tmp_path / "shim.c").write_bytes(source)
    found = launch._built_shim.__wrapped__
    assert found() is None
    program = Path(f"{tmp_path}/shim-{launch.source_hash(source)}")
    program.write_bytes(b"")
    assert found() is None
    program.chmod(0o755)
    assert found() == program
    (tmp_path / "shim.c").write_bytes(source + b"\n")
    assert found() is None
    (tmp_path / "shim.c").unlink()
    assert found() is None


@pytest.mark.linux
@pytest.mark.parametrize("text", [b"\x7fELF of another processor", None])
def test_a_program_that_cannot_be_executed(
    directory: Path,
    tmp_path: Path,
    env: dict[str, str],
    mark: str,
    text: bytes | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """If the compiled shim is for another processor, or has disappeared, the one in Python is
    used."""
    program = tmp_path / "shim-of-another-machine"
    if text is not None:
        program.write_bytes(text)
        program.chmod(0o755)
    monkeypatch.setattr(launch, "compiled_shim", lambda: program)
    done = run_quick("echo x", directory=directory, cwd=tmp_path, env=env, mark=mark, timeout_s=60)
    assert done == (0, "x\n")
