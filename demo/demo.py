"""`make demo`: a real agent CLI is killed in the middle of a tool call, and goes on in the same
conversation.

The agent is the pinned Claude Code (or `AGENT=codex`); the model behind it is perdure's rehearsal
on 127.0.0.1, so that no key, no network and no tokens are needed, and so that the messages which
reached the model can be printed as proof. `make demo REAL=1` uses the real model with the key in
your environment (ANTHROPIC_API_KEY or OPENAI_API_KEY). Everything happens in a scratch directory:
your repository, home and agent settings are not touched.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from perdure.rehearsal import Rehearsal

TOP = Path(__file__).resolve().parents[1]
PROGRAMS = {
    "claude": "@anthropic-ai/claude-code-linux-*/claude",
    "codex": "@openai/codex-linux-*/vendor/*/bin/codex",
}
KEYS = {"claude": "ANTHROPIC_API_KEY", "codex": "OPENAI_API_KEY"}

TASK = (
    "Measure this repository. First run exactly this: `git ls-files | wc -l > FILES.txt`. Then run "
    "exactly this, it takes a while: `echo counting > STARTED.txt; test -e SEEN.txt || sleep 60; "
    "git ls-files '*.py' | xargs cat | wc -l > LINES.txt`. Then say in one sentence how many files "
    "and lines there are."
)
SCRIPT = """by history
say I count the files first.
run git ls-files | wc -l > FILES.txt
---
say Now the lines; this takes a while.
run echo counting > STARTED.txt; test -e SEEN.txt || sleep 60; git ls-files '*.py' | xargs cat | wc -l > LINES.txt
---
say Both files are written: FILES.txt and LINES.txt hold the counts.
"""


def main() -> int:
    agent = os.environ.get("AGENT") or "claude"
    if agent not in PROGRAMS:
        return fail(f"AGENT must be one of {', '.join(PROGRAMS)}")
    real = os.environ.get("REAL") == "1"
    if real and not os.environ.get(KEYS[agent]):
        return fail(f"REAL=1 needs {KEYS[agent]} in the environment")
    scratch = Path(tempfile.mkdtemp(prefix="perdure-demo-"))
    with Rehearsal(SCRIPT) as rehearsal:
        try:
            return play(agent, real, scratch, rehearsal)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def play(agent: str, real: bool, scratch: Path, rehearsal: Rehearsal) -> int:
    repo, environ = prepare(agent, real, scratch, rehearsal)
    model = "the real model" if real else f"a rehearsed model on {rehearsal.url}"
    title(f"1. A task for {agent} on a clone of this repository, with {model}")
    run = perdure(
        environ,
        repo,
        "run",
        "--agent",
        agent,
        "--name",
        "demo",
        "--permissions",
        "edit",
        "--attempts",
        "2",
        TASK,
    )
    marker = wait_for(scratch, "STARTED.txt", run)
    if marker is None:
        return fail("the agent ended before its long command ran")
    pid = json.loads(next(scratch.rglob("runs/*/1/agent.json")).read_text())["pid"]
    title(f"2. kill -9 {pid}: the agent dies in the middle of its command")
    marker.with_name("SEEN.txt").touch()
    os.kill(pid, signal.SIGKILL)
    code = run.wait()
    title("3. Why can it be trusted? perdure why demo")
    perdure(environ, repo, "why", "demo").wait()
    if not real:
        title("4. What reached the model in its last request")
        for message in rehearsal.last.messages:
            print(f"  {message.role:11} {' '.join(message.text.split())[:150]}")
    shown = json.loads(
        subprocess.run(
            command("show", "demo", "--json"),
            cwd=repo,
            env=environ,
            capture_output=True,
            check=True,
        ).stdout
    )
    workdir = Path(shown["workspace"]["path"])
    title("The result in the task's own worktree")
    for name in ("FILES.txt", "LINES.txt"):
        print(
            f"  {name}: "
            f"{(workdir / name).read_text().strip() if (workdir / name).exists() else 'missing'}"
        )
    receipt = shown["attempts"][-1]["receipt"]
    print(
        f"  attempts: {len(shown['attempts'])}, the last one's receipt: "
        f"{receipt['verdict'] if receipt else 'none'}"
    )
    return code


def prepare(
    agent: str, real: bool, scratch: Path, rehearsal: Rehearsal
) -> tuple[Path, dict[str, str]]:
    """A clone of this checkout (or, outside git, a copy of the sources in a new repository) and a
    scratch environment."""
    home, repo, tmp = scratch / "home", scratch / "perdure", scratch / "tmp"
    for path in (home, tmp):
        path.mkdir()
    own = {
        name: os.environ[name]
        for name in ("LANG", "TERM", "HTTPS_PROXY", "NO_PROXY", "SSL_CERT_FILE")
        if name in os.environ
    }
    environ = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(home),
        "TMPDIR": str(tmp),
        **own,
    }
    if subprocess.run(
        ["git", "clone", "-q", "--local", str(TOP), str(repo)], env=environ, capture_output=True
    ).returncode:
        shutil.copytree(TOP / "src", repo / "src")
        for words in (
            ["init", "-q"],
            ["add", "."],
            [
                "-c",
                "user.name=demo",
                "-c",
                "user.email=demo@example.invalid",
                "commit",
                "-qm",
                "demo",
            ],
        ):
            subprocess.run(["git", *words], cwd=repo, env=environ, check=True)
    program = next(iter((TOP / "agents/node_modules").glob(PROGRAMS[agent])))
    environ[f"PERDURE_{agent.upper()}"] = str(program)
    if real:
        environ |= {
            name: value
            for name, value in os.environ.items()
            if name.startswith(("ANTHROPIC_", "OPENAI_"))
        }
    else:
        environ |= rehearsal.environ(agent, home=home / f".{agent}")
    return repo, environ


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "perdure", *words]


def perdure(environ: dict[str, str], cwd: Path, *words: str) -> subprocess.Popen[bytes]:
    print(
        "$ perdure "
        f"{' '.join(word if ' ' not in word else repr(word[:60] + '...') for word in words)}",
        flush=True,
    )
    return subprocess.Popen(command(*words), cwd=cwd, env=environ, stdin=subprocess.DEVNULL)


def wait_for(scratch: Path, name: str, run: subprocess.Popen[bytes]) -> Path | None:
    while run.poll() is None:
        for path in scratch.glob(f"home/.local/share/perdure/.perdure/work/*/{name}"):
            time.sleep(0.5)
            return path
        time.sleep(0.05)
    return None


def title(text: str) -> None:
    print(f"\n=== {text}", flush=True)


def fail(text: str) -> int:
    print(f"demo: {text}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
