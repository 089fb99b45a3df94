"""The back end for other systems than Linux, selected on Linux by PERDURE_HOST=portable. The
process tests and the main journeys run with it. It must use neither /proc nor prctl.

Nothing here has run on a Mac: docs/reference/platforms.md.
"""

from __future__ import annotations

import inspect
import os
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import psutil
import pytest

from perdure.agents.rehearsal import Rehearsal
from perdure.host.system import VARIABLE, linux, portable
from tests.journeys.stage import Stage

TOP = Path(__file__).parents[2]
PROCESSES = [
    *("test_process_endings", "test_process_adoption", "test_process_keeping"),
    *("test_process_output", "test_process_probe", "test_process_threads"),
]
QUICK = {
    "test_process_endings": "normal_end or first_moment or deaf_to_term or gets_away or "
    "the_deadline",
    "test_process_adoption": "outlives_its or must_be_followed or shim_is_killed or "
    "everything_is or recycled",
}
JOURNEYS = """killed_in_a_reply killed_in_a_tool supervisor_is_killed_and everything_is_killed
while_nobody_watches verify_goes_back stranger_is_on_the_conversation""".split()


def conform(*words: str, timeout_s: float = 540.0) -> None:
    """Run tests with the portable back end. If they fail, fail with their output."""
    argv = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not linux"]
    done = subprocess.run(
        [*argv, *words],
        cwd=TOP,
        env={**os.environ, VARIABLE: "portable"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout_s,
    )
    assert done.returncode == 0, done.stdout[-8000:]
    assert " passed" in done.stdout


@pytest.mark.parametrize("module", QUICK)
def test_the_process_room_in_short(module: str) -> None:
    """An agent is started, ends and is adopted, and each of its parents is killed. These are a few
    of the process tests."""
    conform(f"tests/process/{module}.py", "-k", QUICK[module])


@pytest.mark.slow
@pytest.mark.parametrize("module", PROCESSES)
def test_the_process_room(module: str) -> None:
    """All process tests pass with the portable back end."""
    conform(f"tests/process/{module}.py")


@pytest.mark.slow
@pytest.mark.journey
@pytest.mark.parametrize("cli", ["claude", "codex"])
@pytest.mark.parametrize("journey", JOURNEYS)
def test_a_journey(journey: str, cli: str) -> None:
    """A task with a real CLI that is killed continues natively, and no process of it is left."""
    conform("tests/journeys/test_one_task.py", "-k", f"{journey} and {cli}")


@pytest.mark.slow
@pytest.mark.journey
@pytest.mark.parametrize("cli", ["claude", "codex"])
@pytest.mark.parametrize("how", ["random_point", "while_an_agent_is_kept"])
def test_random_kills(how: str, cli: str) -> None:
    """A sample of the random kills, of ordinary and of kept agents."""
    conform("tests/journeys/test_kills.py", "-k", f"{how} and {cli}")


def test_both_back_ends_offer_the_same() -> None:
    """Both back ends have the same names and parameters, so that callers need not know which one
    they use."""
    for name in linux.__all__:
        one, other = getattr(linux, name), getattr(portable, name)
        if inspect.isclass(one):
            methods = {each for each in vars(one) if not each.startswith("_")}
            assert methods == {each for each in vars(other) if not each.startswith("_")}, name
            for each in methods:
                assert inspect.signature(vars(one)[each]) == inspect.signature(vars(other)[each])
        elif callable(one):
            given, taken = inspect.signature(one), inspect.signature(other)
            assert list(given.parameters) == list(taken.parameters), name
            assert given.return_annotation == taken.return_annotation, name


CALL = re.compile(r"^(\d+) +(\w+)\((.*)$")
PROC = re.compile(r'^(?:AT_FDCWD, |\d+, )?"/proc[/"]')
"""The beginning of a system call whose first path is below /proc. Only the first path counts,
because the result of a call may contain another path."""


def own_calls(log: Path) -> list[str]:
    """Return the system calls of perdure's own processes from a log of strace. A process is
    perdure's own if it last executed this Python. Calls between fork and exec are left out, because
    they are made by the C library."""
    program: dict[str, bool] = {}
    found = []
    for line in log.read_text(errors="replace").splitlines():
        if not (call := CALL.match(line)):
            continue
        pid, name, rest = call.groups()
        if name == "execve" and rest.endswith(" = 0"):
            program[pid] = rest.startswith(f'"{sys.executable}"')
        elif name.startswith("clone") and "CLONE_THREAD" in rest and rest.rpartition("= ")[2]:
            program[rest.rpartition("= ")[2].split()[0]] = program.get(pid, False)
        elif program.get(pid):
            found.append(line)
    return found


def test_neither_proc_nor_prctl_is_asked(tmp_path: Path) -> None:
    """A task of Codex is run, followed and recorded, and no call of perdure's own names /proc,
    prctl, renameat2 or syncfs. The copy of psutil in this test uses `/./proc`, so that its calls
    can be told from perdure's."""
    copy = tmp_path / "library" / "psutil"
    shutil.copytree(
        Path(psutil.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__")
    )
    for path in copy.glob("*.py"):
        text = re.sub(r'(["\'])/proc', r"\1/./proc", path.read_text())
        text = text.replace("os.path.realpath(", "str(")
        # This link, and files of /proc that other processes have open, would lead to /proc without
        # a call by perdure.
        text = text.replace("'/etc/mtab'", "'/etc/none'")
        path.write_text(text.replace("= os.readlink(path)", "= '/.' + os.readlink(path)"))
    log = tmp_path / "calls"
    with Rehearsal("by history\nrun echo one > one.txt\n---\nsay Done.\n") as rehearsal:
        stage = Stage(tmp_path / "s", "codex", rehearsal, extra={VARIABLE: "portable"})
        traced = "trace=%file,%process,prctl,renameat2,syncfs,pidfd_open,memfd_create"
        perdure = [sys.executable, "-m", "perdure", "run", "--agent", "codex", "--json"]
        done = subprocess.run(
            ["strace", "-f", "-qq", "-s", "300", "-e", traced, "-o", str(log), *perdure, "Write."],
            cwd=stage.repo,
            env={**stage.environ, "PYTHONPATH": str(copy.parent)},
            capture_output=True,
            text=True,
        )
        stage.close()
    assert done.returncode == 0, done.stderr
    calls = own_calls(log)
    assert any("shim.json" in call for call in calls)
    assert any('"/./proc/' in call for call in calls)
    names = defaultdict(list)
    for call in calls:
        _, name, rest = CALL.match(call).groups()  # type: ignore[union-attr]
        if PROC.match(rest):
            names["/proc"].append(call)
        if name in ("prctl", "renameat2", "syncfs", "pidfd_open", "memfd_create"):
            names[name].append(call)
    assert not names, names


def test_the_doctor_says_what_will_not_work(tmp_path: Path) -> None:
    """On a system other than Linux, one sentence of `perdure doctor` says what is not promised. If
    psutil is missing, the sentence says how to install it."""
    env = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "PYTHONPATH": str(TOP / "src"),
        VARIABLE: "portable",
    }
    argv = [sys.executable, "-m", "perdure", "doctor", "--agent", "codex"]
    said = subprocess.run(argv, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert "Traceback" not in said.stderr
    text = " ".join(said.stdout.split())
    assert "perdure is untested on this system" in text
    assert "reference/platforms" in text
    # Instead of the site's packages, use a directory with links to all of them except psutil.
    site = tmp_path / "site"
    site.mkdir()
    for path in Path(psutil.__file__).parents[1].iterdir():
        if not path.name.startswith("psutil"):
            (site / path.name).symlink_to(path)
    env["PYTHONPATH"] += f":{site}"
    for words, status in ((["doctor"], 1), (["run", "--agent", "codex", "Go."], 7)):
        argv = [sys.executable, "-S", "-m", "perdure", *words]
        said = subprocess.run(argv, cwd=tmp_path, env=env, capture_output=True, text=True)
        text = " ".join((said.stdout + said.stderr).split())
        assert said.returncode == status, text
        assert "perdure needs the library psutil" in text
        assert "pip install psutil" in text
        assert "Traceback" not in text
