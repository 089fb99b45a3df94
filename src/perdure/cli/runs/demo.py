"""`demo`: kills a real agent in the middle of a tool call, and lets it continue in the same
conversation, in a scratch directory. The agent's model server is perdure's scripted one on
127.0.0.1, so the demonstration needs no key, no network and no checkout."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct

from perdure.cli.style import fitted, paint, wrapped
from perdure.cli.text import clean, columns, one_line, shown_path
from perdure.errors import AgentMissing, UsageError
from perdure.model import Permissions, RunState, TaskSpec, Verdict
from perdure.rules.log_line import line_of

if TYPE_CHECKING:
    from perdure.agents.rehearsal import Rehearsal
    from perdure.model.events import Record

PACKAGES = {
    "claude": ("@anthropic-ai/claude-code@2.1.329", "@anthropic-ai/claude-code-linux-*/claude"),
    "codex": ("@openai/codex@0.169.0", "@openai/codex-linux-*/vendor/*/bin/codex"),
}
"""For each agent, its npm package and the path of the native program in that package. A package is
installed only if no agent is installed."""
KEYS = {"claude": "ANTHROPIC_API_KEY", "codex": "CODEX_API_KEY"}
"""For each agent, the name of the environment variable that contains its API key. Codex 0.169.0
does not read OPENAI_API_KEY."""
OWN = ("LANG", "LC_ALL", "TERM", "HTTPS_PROXY", "NO_PROXY", "SSL_CERT_FILE", "IS_SANDBOX")
"""Environment variables of the user that are passed to the agent."""
FILES = {
    "shop.py": "def total(prices):\n    return sum(prices)\n",
    "test_shop.py": (
        "from shop import total\n\n\ndef test_total():\n    assert total([1, 2]) == 3\n"
    ),
    "README.md": "# shop\nA small repository for a demonstration.\n",
}
TASK = (
    "Measure this repository. First run exactly this: `git ls-files | wc -l > FILES.txt`. Then "
    "run exactly this, it takes a while: `echo counting > STARTED.txt; test -e SEEN.txt || sleep "
    "60; "
    "cat *.py | wc -l > LINES.txt`. Then say in one sentence how many files and lines there are."
)
SCRIPT = """by history
say I count the files first.
run git ls-files | wc -l > FILES.txt
---
say Now the lines; this takes a while.
run echo counting > STARTED.txt; test -e SEEN.txt || sleep 60; cat *.py | wc -l > LINES.txt
---
say Both files are written: FILES.txt and LINES.txt hold the counts.
"""
LOOK_S = 0.05


def demo_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--agent",
        choices=sorted(PACKAGES),
        help="the agent to use (default: the first that is installed; if none is, Claude Code is "
        "installed into perdure's cache with npm)",
    )
    parser.add_argument(
        "--real", action="store_true", help="use the real model, and the key in your environment"
    )


def demo_verb(arguments: argparse.Namespace) -> int:
    from perdure.agents.rehearsal import Rehearsal

    agent, program = find_agent(arguments.agent, os.environ)
    if arguments.real and not os.environ.get(KEYS[agent]):
        raise UsageError(f"--real needs {KEYS[agent]} in the environment", "perdure demo")
    scratch = Path(tempfile.mkdtemp(prefix="perdure-demo-"))
    try:
        with Rehearsal(SCRIPT) as rehearsal:
            return play(Scene(scratch, agent, program, arguments.real), rehearsal)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def find_agent(wanted: str | None, environ: Mapping[str, str]) -> tuple[str, str]:
    """Return the name of an agent and the path of its program. If no agent is installed, install
    one into perdure's cache first. Raises AgentMissing."""
    from perdure.agents import registry
    from perdure.host.process import npm

    names = [wanted] if wanted else list(PACKAGES)
    for name in names:
        with suppress(AgentMissing):
            return name, registry.load(name).locate(environ).path
    package, pattern = PACKAGES[names[0]]
    given = environ.get("XDG_CACHE_HOME", "")
    if given.startswith("/"):
        cache = Path(given)
    else:
        cache = Path.home() / ".cache"
    directory = cache / "perdure/agents" / f"{names[0]}-{package.rpartition('@')[2]}"
    if not directory.is_dir():
        print(f"no agent is installed: npm installs {package} into {directory}", file=sys.stderr)
        npm.install(package, directory, environ)
    found = [path for path in directory.glob(f"node_modules/{pattern}") if _fits(path)]
    if not found:
        raise AgentMissing(
            f"{package} has no program for this machine below {directory}.",
            f"npm install -g {package}",
        )
    return names[0], str(found[0])


def _fits(path: Path) -> bool:
    """Return whether to use this program of an npm package. The package of Codex has one program,
    built with musl. The package of Claude Code has several; only the ones for glibc are used."""
    return "claude" not in path.name or "musl" not in path.parent.name


class Scene(Struct, frozen=True):
    """The directories and the agent of the demonstration."""

    scratch: Path
    agent: str
    program: str
    real: bool

    @property
    def repo(self) -> Path:
        return self.scratch / "shop"

    def environ(self, rehearsal: Rehearsal) -> dict[str, str]:
        """Return the environment of the run. It contains none of the user's own homes and settings.
        The user's API keys are included only if `real` is true."""
        home = self.scratch / "home"
        environ = {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": str(home),
            "TMPDIR": str(self.scratch / "tmp"),
            "PERDURE_DISK_BALLAST": "0",
            f"PERDURE_{self.agent.upper()}": self.program,
            **{name: os.environ[name] for name in OWN if name in os.environ},
        }
        if not self.real:
            return environ | rehearsal.environ(self.agent, home=home / f".{self.agent}")
        keys = ("ANTHROPIC_", "OPENAI_", "CODEX_API_KEY")
        return environ | {name: os.environ[name] for name in os.environ if name.startswith(keys)}

    def build(self, environ: Mapping[str, str]) -> None:
        """Create the directories, and a small repository with one commit."""
        from perdure.host.git import Git

        for name in ("home", "tmp", "shop"):
            # For Codex, the rehearsal has made the home already, with the agent's directory in it.
            (self.scratch / name).mkdir(exist_ok=True)
        for name, text in FILES.items():
            (self.repo / name).write_text(text, encoding="utf-8")
        who = {}
        for role in ("AUTHOR", "COMMITTER"):
            who[f"GIT_{role}_NAME"] = "demo"
            who[f"GIT_{role}_EMAIL"] = "demo@example.invalid"
        git = Git(cwd=self.repo, environ=environ)
        git.run("init", "-q", "-b", "main")
        git.run("add", ".")
        git.run("commit", "-q", "-m", "demo", env=who)


def play(scene: Scene, rehearsal: Rehearsal) -> int:
    """Run the task, kill its agent, let it continue, and print the proof that it continued. Return
    the exit code."""
    from perdure import wiring
    from perdure.cli.compose import Stopper
    from perdure.cli.runs.progress import changes_of, say_summary
    from perdure.config.files import load
    from perdure.engine import service
    from perdure.engine.worker import drive
    from perdure.rules.explanation import explained

    began = time.monotonic()
    environ = scene.environ(rehearsal)
    scene.build(environ)
    if scene.real:
        model = "the real model"
    else:
        model = f"a rehearsed model on {rehearsal.url}"
    title(f"1. perdure run: a task for {scene.agent}, with {model}")
    chosen = load(environ, scene.repo)
    with Stopper() as stopper:
        engine = stopper.attach(wiring.open_engine(chosen, environ, [narrate]))
        spec = TaskSpec(
            prompt=TASK,
            agent=scene.agent,
            name="demo",
            repo=str(scene.repo),
            permissions=Permissions.EDIT,
            attempts=2,
        )
        run = service.submit(engine, spec, scene.repo, None)
        assert run.workspace is not None
        over = threading.Event()
        killer = threading.Thread(
            target=kill_in_its_tool, args=(Path(run.workspace.path), chosen.state, over)
        )
        killer.start()
        try:
            run = drive(engine, run.id)
        finally:
            over.set()
            killer.join()
        report = service.describe(engine.store, engine.state, engine.host, run.id)
        changes = changes_of(engine, report)
    title("3. perdure why: how can it be trusted?")
    previous = None
    for attempt in report.attempts:
        say(f"attempt {attempt.number}", "strong")
        for label, text in explained(attempt, previous):
            say(f"  {label:9} {text}")
        previous = attempt
    if not scene.real and rehearsal.requests:
        title("4. What reached the model in its last request")
        for message in rehearsal.last.messages:
            say(f"  {message.role:11} {one_line(message.text, 150)}")
    title(f"The result, in {time.monotonic() - began:.0f} s")
    for name in ("FILES.txt", "LINES.txt"):
        path = Path(report.workspace.path) / name
        if path.is_file():
            content = clean(path.read_text()).strip()
        else:
            content = "missing"
        say(f"  {name}: {content}")
    if report.attempts:
        receipt = report.attempts[-1].receipt
    else:
        receipt = None
    verdict = receipt.verdict if receipt else "none"
    say(f"  attempts: {len(report.attempts)}, the last one's receipt: {verdict}")
    sys.stdout.flush()
    say_summary(report, changes)
    if stopper.asked:
        return 130
    if run.state is RunState.SUCCEEDED and verdict == Verdict.NATIVE:
        return 0
    return 1


def kill_in_its_tool(workdir: Path, state: Path, over: threading.Event) -> None:
    """Wait until the agent's long command has started, then kill the agent. Return early if the run
    has ended, which sets `over`."""
    while not (workdir / "STARTED.txt").exists():
        if over.wait(LOOK_S):
            return
    marks = next(state.glob("runs/*/1/agent.json"), None)
    if marks is None:
        return
    pid = json.loads(marks.read_text())["pid"]
    title(f"2. kill -9 {pid}: the agent dies in the middle of its command")
    (workdir / "SEEN.txt").touch()
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def narrate(record: Record) -> None:
    """Print a record of the run, as `perdure run` does."""
    from perdure.cli.runs.progress import style_of

    text = line_of(record)
    if text:
        say(text, style_of(record))


def title(text: str) -> None:
    say(f"\n=== {shown_path(text, sys.stdout)}", "strong")


def say(text: str, style: str = "") -> None:
    for line in wrapped(text, columns(sys.stdout)).split("\n"):
        print(paint(fitted(line, sys.stdout), style, sys.stdout), flush=True)
