"""`perdure demo`: the first command of a newcomer."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from perdure.agents import registry
from perdure.agents.rehearsal import Rehearsal
from perdure.agents.shared.logins import missing
from perdure.cli.runs.demo import KEYS, PACKAGES, Scene
from perdure.errors import AgentMissing
from perdure.host.process import npm
from tests.journeys.stage import PATIENCE_S, TOP, native

pytestmark = pytest.mark.journey


def demo(tmp_path: Path, *words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    for name in ("home", "t"):
        (tmp_path / name).mkdir(exist_ok=True)
    own = {"HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path / "t"), "LANG": "C.UTF-8"}
    return subprocess.run(
        [sys.executable, "-m", "perdure", "demo", *words],
        cwd=tmp_path,
        env={"PATH": "/usr/local/bin:/usr/bin:/bin", **own, **environ},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )


@pytest.mark.parametrize("agent", ["claude", pytest.param("codex", marks=pytest.mark.slow)])
def test_a_newcomer_sees_a_killed_agent_continue(tmp_path: Path, agent: str) -> None:
    """The agent is killed in its command and continues natively. Afterwards nothing of the demo is
    left, and the user's home is unchanged. The current directory need not be a repository."""
    done = demo(tmp_path, "--agent", agent, **{f"PERDURE_{agent.upper()}": str(native(agent))})
    assert done.returncode == 0, done.stderr + done.stdout
    for words in (
        "=== 2. kill -9",
        "attempt 1: failed (killed by SIGKILL)",
        "attempt 2: succeeded; receipt native (continued)",
        "FILES.txt: 3",
        "LINES.txt: 7",
        "the last one's receipt: native",
    ):
        assert words in done.stdout, done.stdout
    assert done.stderr.splitlines()[-1].startswith("✓ demo · 2 attempts")
    assert not [*(tmp_path / "home").iterdir(), *(tmp_path / "t").iterdir()]


def test_without_what_it_needs_it_says_so(tmp_path: Path) -> None:
    """Without an agent and npm, or without a key for the real model, the demo ends with one
    sentence and a hint, and makes nothing."""
    for name in ("git", "sh"):
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / name).symlink_to(str(shutil.which(name)))
    done = demo(tmp_path, PATH=str(tmp_path / "bin"))
    assert (done.returncode, done.stdout) == (5, ""), done.stderr
    assert (
        "npm, which could install one, is missing" in done.stderr and "Traceback" not in done.stderr
    )
    for agent, key in KEYS.items():
        program = {f"PERDURE_{agent.upper()}": str(native(agent))}
        done = demo(tmp_path, "--agent", agent, "--real", **program)
        assert done.returncode == 2 and key in done.stderr, done.stderr
    assert not list((tmp_path / "t").iterdir())


@pytest.mark.parametrize("agent", KEYS)
def test_the_real_demo_gives_the_agent_its_key(
    agent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The demo with the real model asks for a key that the agent reads, and passes it to the agent.
    The agent does not get the user's own home."""
    monkeypatch.setenv(KEYS[agent], "a key")
    monkeypatch.setenv("CODEX_HOME", "/home/ada/.codex")
    environ = Scene(tmp_path, agent, "/usr/bin/true", True).environ(Rehearsal("say Hello."))
    assert environ[KEYS[agent]] == "a key" and "CODEX_HOME" not in environ
    driver = registry.load(agent)
    said = "Not logged in" if agent == "codex" else ""
    assert missing(agent, driver.home(environ), environ, 1, said) is None


def test_what_it_installs_is_what_the_tests_run() -> None:
    """The demo installs the versions of agents/package.json."""
    pins = json.loads((TOP / "agents/package.json").read_text())["dependencies"]
    for package, _ in PACKAGES.values():
        name, _, version = package.rpartition("@")
        assert pins[name] == version


def test_npm_installs_whole_or_not_at_all(tmp_path: Path) -> None:
    """A package's directory exists only if the package is complete. Its scripts are not run. A
    failed installation leaves nothing behind and says why."""
    package = tmp_path / "agent"
    package.mkdir()
    about = {"name": "agent", "version": "1.0.0", "scripts": {"install": "touch ran"}}
    (package / "package.json").write_text(json.dumps(about))
    place = tmp_path / "cache/agent-1.0.0"
    environ = {**os.environ, "npm_config_cache": str(tmp_path / "npm"), "npm_config_offline": "1"}
    for _ in range(2):
        npm.install(f"file:{package}", place, environ)
        assert (place / "node_modules/agent/package.json").exists()
    assert not (package / "ran").exists()
    with pytest.raises(AgentMissing, match="npm could not install"):
        npm.install(f"file:{tmp_path / 'none'}", tmp_path / "cache/none", environ)
    assert [each.name for each in place.parent.iterdir()] == [place.name]
