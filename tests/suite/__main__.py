"""Runs pytest; reruns each failed test once, alone. `make test` calls it, and so does CI.

    python -m tests.suite [--reruns N] [--rerun-s SECONDS] PYTEST-OPTION...

A test that passes when it runs alone is unstable: it is listed with the outputs of both runs, and
the exit code is 0. Nothing is rerun, and the exit code is not 0, after more than N failures, a
crashed worker, a session timeout, a collection error, or anything else that kept tests from
running. Whenever something went wrong, the last line is `N passed, N failed` with the counts after
the reruns; otherwise it is pytest's own.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from textwrap import indent

import pytest

RERUNS = 15
RERUN_S = 600.0
"""Time limit of all reruns together, in seconds."""
ENDING_S = 30.0
"""Time that an interrupted rerun has to clean up, in seconds."""


@dataclass(eq=False)
class Recorder:
    """A pytest plugin that records what the reruns depend on. With xdist it runs in the controller.
    It is hashable, because pytest requires that of a plugin if only a part of a suite runs."""

    passed: set[str] = field(default_factory=set)
    failures: dict[str, list[str]] = field(default_factory=dict)
    finished: set[str] = field(default_factory=set)
    obstacles: list[str] = field(default_factory=list)
    collected: int = 0
    paths: list[str] = field(default_factory=list)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.finished.add(report.nodeid)
        if report.failed:
            output = [f"{report.when}: {report.longreprtext}"]
            output += [f"-- {title} --\n{text}" for title, text in report.sections]
            self.failures.setdefault(report.nodeid, []).extend(output)
        elif report.passed and report.when == "call":
            self.passed.add(report.nodeid)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.obstacles.append(f"{report.nodeid} could not be collected")

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: object, error: object) -> None:
        if error:
            self.obstacles.append(f"a worker crashed: {error}")

    def pytest_keyboard_interrupt(self, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
        # With xdist a session timeout is reported here, and not in `session.shouldfail`.
        self.obstacles.append(str(excinfo.value) or excinfo.typename)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        self.collected = session.testscollected
        self.paths = list(session.config.option.file_or_dir)
        self.obstacles += [str(why) for why in (session.shouldfail, session.shouldstop) if why]


def why_no_rerun(recorder: Recorder, code: int, most: int) -> str:
    """Return the reason why the failures of a session are final, or an empty string if they may be
    rerun."""
    if recorder.obstacles:
        return "; ".join(dict.fromkeys(recorder.obstacles))
    if code != pytest.ExitCode.TESTS_FAILED:
        return f"pytest ended with exit code {code}"
    if len(recorder.finished) < recorder.collected:
        return "the suite was cut off"
    if not recorder.failures:
        return "no test failed, but the exit code is 1"
    if len(recorder.failures) > most:
        return f"{len(recorder.failures)} tests failed, and at most {most} are rerun"
    return ""


def accept_interrupts() -> None:
    """Restore the default for SIGINT in the child process. A shell makes commands that it starts
    with `&` ignore the signal, and then Python would not end a test by it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def alone(test: str, options: Sequence[str], seconds: float) -> tuple[bool, str]:
    """Run one test in a pytest process without xdist. Return whether it passed, and its output."""
    # The last `-n` is the one that counts. With -rP pytest shows the output of a test even if it
    # passed.
    words = [sys.executable, "-m", "pytest", *options, "-n", "0", "-rP", test]
    # The output goes to a file and not to a pipe, because a process that the test left behind would
    # keep the pipe open.
    with tempfile.TemporaryFile() as file:
        process = subprocess.Popen(
            words, stdout=file, stderr=subprocess.STDOUT, preexec_fn=accept_interrupts
        )
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            code = 1
            try:
                process.wait(ENDING_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        file.seek(0)
        output = file.read().decode(errors="replace")
    closing = output.rstrip().rpartition("\n")[2]
    return code == 0 and " passed" in closing and "failed" not in closing, output


def main(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser("python -m tests.suite", allow_abbrev=False)
    parser.add_argument("--reruns", type=int, default=RERUNS)
    parser.add_argument("--rerun-s", type=float, default=RERUN_S)
    chosen, options = parser.parse_known_args(words)

    recorder = Recorder()
    code = int(pytest.main(options, plugins=[recorder]))
    if code == 0:
        return 0
    passed = len(recorder.passed - recorder.failures.keys())
    why = why_no_rerun(recorder, code, chosen.reruns)
    if why:
        print(f"\nFAILED, nothing was rerun: {why}")
        not_run = recorder.collected - len(recorder.finished)
        rest = f", {not_run} not run" if not_run > 0 else ""
        print(f"{passed} passed, {len(recorder.failures)} failed{rest}")
        return code

    end = time.monotonic() + chosen.rerun_s
    # With the paths of a part among the options, a rerun would run all of that part.
    without_paths = [word for word in options if word not in recorder.paths]
    unstable, broken = dict[str, str](), dict[str, str]()
    for test in recorder.failures:
        print(f"rerunning {test} alone", flush=True)
        seconds = end - time.monotonic()
        if seconds <= 0:
            broken[test] = f"not rerun: the time limit of all reruns is {chosen.rerun_s:g} s"
            continue
        passed_alone, output = alone(test, without_paths, seconds)
        if passed_alone:
            unstable[test] = output
        else:
            broken[test] = output
    print_outputs("unstable: failed in the suite, passed alone", unstable, recorder)
    print_outputs("failed in the suite and alone", broken, recorder)
    print(f"{passed + len(unstable)} passed, {len(broken)} failed")
    return 1 if broken else 0


def print_outputs(heading: str, outputs: dict[str, str], recorder: Recorder) -> None:
    """Print the outputs of both runs of each test. They are indented, so that none of their lines
    looks like the last line of the suite."""
    if not outputs:
        return
    print(f"\n===== {heading} ({len(outputs)}) =====")
    for test, output in outputs.items():
        first = "\n".join(recorder.failures[test])
        print(f"{test}\n  in the suite:\n{indent(first, '    ')}")
        print(f"  alone:\n{indent(output.rstrip(), '    ')}")
    print()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
