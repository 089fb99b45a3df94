"""`python -m tests.suite` on a small project with tests that fail, crash, hang or cannot be
collected."""

from __future__ import annotations

import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import TOP, Scratch

PASSING = "def test_passing():\n    pass\n"
FLAKY = """
from pathlib import Path

def test_flaky():
    mark = Path(__file__).with_name("mark")
    print("mark is there:", mark.exists())
    if not mark.exists():
        mark.touch()
        raise AssertionError("only the first time")
"""
BROKEN = "def test_broken():\n    raise AssertionError('every time')\n"
CRASHING = "import os\n\ndef test_crashing():\n    os._exit(3)\n"
SLOW = "import time\n\ndef test_slow():\n    time.sleep(1)\n"


@dataclass(frozen=True)
class Project:
    """A directory with tests, and an environment in which `tests.suite` runs them."""

    path: Path
    environ: dict[str, str]

    def add(self, **sources: str) -> None:
        for name, source in sources.items():
            (self.path / f"test_{name}.py").write_text(source)

    def run(self, *options: str) -> tuple[int, str]:
        words = [sys.executable, "-m", "tests.suite", *options]
        done = subprocess.run(
            words,
            cwd=self.path,
            env=self.environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        return done.returncode, done.stdout


@pytest.fixture
def project(tmp_path: Path, scratch: Scratch) -> Project:
    (tmp_path / "pytest.ini").touch()
    # Plugins of the suite that these tests do not need, and that cost a second at each start.
    plugins = {
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "PYTEST_PLUGINS": "xdist.plugin,pytest_timeout",
    }
    return Project(tmp_path, {**scratch.environ, **plugins, "PYTHONPATH": str(TOP)})


def last(output: str) -> str:
    return output.rstrip().rpartition("\n")[2]


WORKERS = pytest.mark.parametrize(
    "options", [(), ("-n", "2", "--dist", "worksteal")], ids=["alone", "xdist"]
)


@WORKERS
def test_all_pass(project: Project, options: tuple[str, ...]) -> None:
    """If nothing fails, the last line is pytest's own and nothing is rerun."""
    project.add(passing=PASSING)
    code, output = project.run(*options)
    assert code == 0 and "1 passed in" in last(output) and "rerunning" not in output


@WORKERS
def test_a_part(project: Project, options: tuple[str, ...]) -> None:
    """A part of the suite that has no conftest.py runs together with one that has."""
    project.add(flaky=FLAKY)
    (project.path / "other").mkdir()
    (project.path / "other/conftest.py").touch()
    (project.path / "other/test_passing.py").write_text(PASSING)
    code, output = project.run(*options, "test_flaky.py", "other")
    assert (code, last(output)) == (0, "2 passed, 0 failed")
    assert "1 passed" in output.partition("\n  alone:\n")[2], "the part was rerun"


@WORKERS
def test_unstable(project: Project, options: tuple[str, ...]) -> None:
    """A test that passes when it runs alone is listed with both outputs, and the suite passes."""
    project.add(passing=PASSING, flaky=FLAKY)
    code, output = project.run(*options)
    assert (code, last(output)) == (0, "2 passed, 0 failed")
    listing = output.partition("===== unstable: ")[2]
    assert "test_flaky.py::test_flaky" in listing
    first, _, second = listing.partition("\n  alone:\n")
    assert "only the first time" in first and "mark is there: False" in first
    assert "mark is there: True" in second and "1 passed" in second


@WORKERS
def test_failed_again(project: Project, options: tuple[str, ...]) -> None:
    """A test that also fails when it runs alone makes the suite fail, with both outputs, even if
    another test is unstable."""
    project.add(passing=PASSING, flaky=FLAKY, broken=BROKEN)
    code, output = project.run(*options)
    assert (code, last(output)) == (1, "2 passed, 1 failed")
    listing = output.partition("===== failed in the suite and alone")[2]
    assert listing.count("AssertionError: every time") >= 2 and "test_flaky" not in listing


def test_an_error_of_a_fixture(project: Project) -> None:
    """A test that passes and whose fixture then fails is rerun, and counted once."""
    fixture = FLAKY.replace(
        "def test_flaky():", "import pytest\n@pytest.fixture\ndef f():\n    yield"
    )
    project.add(passing=PASSING, late=fixture + "\ndef test_late(f):\n    pass\n")
    code, output = project.run()
    assert (code, last(output)) == (0, "2 passed, 0 failed")


def test_a_crashed_worker(project: Project) -> None:
    """If a worker crashed, the suite fails and nothing is rerun."""
    project.add(passing=PASSING, flaky=FLAKY, crashing=CRASHING)
    code, output = project.run("-n", "2")
    assert (code, last(output)) == (1, "1 passed, 2 failed")
    assert "nothing was rerun: a worker crashed" in output and "rerunning" not in output


def test_a_crash_without_workers(project: Project) -> None:
    """Without workers, a test that ends the whole process makes the suite end with an exit code
    that is not 0."""
    project.add(crashing=CRASHING)
    assert project.run()[0] == 3


@WORKERS
def test_a_session_timeout(project: Project, options: tuple[str, ...]) -> None:
    """If the session's time is over, the suite fails and reports how many tests did not run."""
    tests = "".join(f"\ndef test_{number}():\n    time.sleep(1)\n" for number in range(8))
    project.add(aaa=BROKEN, slow=SLOW + tests)
    code, output = project.run(*options, "--session-timeout=1")
    assert code != 0 and "nothing was rerun: session-timeout: 1" in output, output
    assert last(output).endswith(" not run")


@WORKERS
def test_a_collection_error(project: Project, options: tuple[str, ...]) -> None:
    """If a module cannot be imported, the suite fails."""
    project.add(passing=PASSING, odd="import nothing_of_that_name\n")
    code, output = project.run(*options)
    assert code != 0 and "nothing was rerun: test_odd.py could not be collected" in output


def test_too_many(project: Project) -> None:
    """If there are more failures than the limit, none is rerun."""
    project.add(flaky=FLAKY, broken=BROKEN)
    code, output = project.run("--reruns", "1")
    assert (code, last(output)) == (1, "0 passed, 2 failed")
    assert "nothing was rerun: 2 tests failed, and at most 1" in output


def test_no_reruns(project: Project) -> None:
    """With `--reruns 0`, which the nightly run uses, an unstable test makes the suite fail."""
    project.add(flaky=FLAKY)
    assert project.run("--reruns", "0")[0] == 1


def test_a_rerun_that_takes_too_long(project: Project) -> None:
    """A rerun that does not end in time counts as failed, and so do all later ones. The rerun is
    interrupted even if SIGINT was ignored before, as in a shell's background command."""
    hanging = FLAKY.replace(
        "if not mark.exists():",
        "if mark.exists():\n        import time; time.sleep(3600)\n    else:",
    )
    project.add(aaa=hanging, flaky=FLAKY.replace('"mark"', '"other"'))
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        code, output = project.run("--rerun-s", "8")
    finally:
        signal.signal(signal.SIGINT, handler)
    assert (code, last(output)) == (1, "0 passed, 2 failed")
    assert "KeyboardInterrupt" in output and "not rerun: the time limit" in output


def test_a_skipped_rerun(project: Project) -> None:
    """A test that is skipped when it runs alone does not count as passed."""
    skipped = FLAKY.replace(
        "if not mark.exists():",
        "if mark.exists():\n        import pytest; pytest.skip()\n    else:",
    )
    project.add(flaky=skipped)
    assert project.run()[0] == 1


def test_options_reach_the_rerun(project: Project) -> None:
    """A rerun gets the options of the suite, so that a marked test is still selected."""
    (project.path / "pytest.ini").write_text("[pytest]\nmarkers = odd\n")
    project.add(
        flaky="import pytest\n"
        + FLAKY.replace("def test_flaky", "@pytest.mark.odd\ndef test_flaky")
    )
    code, output = project.run("-m", "odd and not slow", "-n", "2")
    assert (code, last(output)) == (0, "1 passed, 0 failed")
