"""Whether the real CLIs are logged in, as `perdure doctor` finds out in a scratch home, without a
key or a network."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import NO_BALLAST
from tests.journeys.stage import native

AGENTS = ("claude", "codex", "gemini", "opencode")


class Desk:
    """A user's scratch home, in which `perdure doctor` runs."""

    def __init__(self, top: Path) -> None:
        self.home = top / "home"
        self.home.mkdir()
        (top / "tmp").mkdir()
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self.environ = {
            "PATH": path,
            "HOME": str(self.home),
            "TMPDIR": str(top / "tmp"),
            "LANG": "C.UTF-8",
            **NO_BALLAST,
        }
        self.environ |= {f"PERDURE_{agent.upper()}": str(native(agent)) for agent in AGENTS}

    def doctor(self, *words: str, **more: str) -> tuple[int, list[dict[str, Any]]]:
        command = [sys.executable, "-m", "perdure", "doctor", "--json", *words]
        done = subprocess.run(
            command,
            cwd=self.home,
            env=self.environ | more,
            capture_output=True,
            text=True,
            check=False,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode, json.loads(done.stdout)["findings"]

    def said(self, agent: str, **more: str) -> tuple[int, str]:
        """Return the exit code of `perdure doctor` and the problem that it names, or an empty
        string if there is none."""
        code, findings = self.doctor("--agent", agent, **more)
        lacks = [f["message"] for f in findings if f["topic"] == agent and f["state"] == "bad"]
        return code, "".join(lacks)


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def test_claude(desk: Desk) -> None:
    """Without a login, the check fails with exit code 1 and the command that logs in. The check
    creates no home. A key counts as a login."""
    code, lacks = desk.said("claude")
    assert code == 1 and "not logged in" in lacks and "claude auth login" in lacks
    assert list(desk.home.iterdir()) == []
    assert desk.said("claude", ANTHROPIC_API_KEY="sk-x") == (0, "")
    (desk.home / ".claude").mkdir()
    (desk.home / ".claude/settings.json").write_text('{"env": {"ANTHROPIC_API_KEY": "sk-x"}}')
    assert desk.said("claude") == (0, "")


def test_codex(desk: Desk) -> None:
    """A login or CODEX_API_KEY counts, OPENAI_API_KEY does not. A provider from the user's settings
    counts if the variable that it names is set."""
    code, lacks = desk.said("codex", OPENAI_API_KEY="x")
    assert (
        code == 1
        and "not logged in" in lacks
        and "codex login" in lacks
        and "does not read OPENAI_API_KEY" in lacks
    )
    assert desk.said("codex", CODEX_API_KEY="x") == (0, "")
    (desk.home / ".codex").mkdir()
    (desk.home / ".codex/auth.json").write_text('{"OPENAI_API_KEY": "sk-x"}')
    assert desk.said("codex") == (0, "")
    (desk.home / ".codex/auth.json").unlink()
    (desk.home / ".codex/config.toml").write_text(
        'model_provider = "own"\n[model_providers.own]\nname = "own"\nbase_url = '
        '"http://127.0.0.1:9"\nenv_key = "OWN_KEY"\n'
    )
    code, lacks = desk.said("codex")
    assert code == 1 and "OWN_KEY" in lacks
    (desk.home / ".codex/config.toml").write_text(
        'model_provider = "own"\n[model_providers.own]\nname = "own"\nbase_url = '
        '"http://127.0.0.1:9"\n'
    )
    assert desk.said("codex") == (0, "")


def test_gemini(desk: Desk) -> None:
    """Gemini needs a chosen method of authentication and a key. A key in the environment or in
    Gemini's .env file, or a login, is enough."""
    code, lacks = desk.said("gemini")
    assert code == 1 and "GEMINI_API_KEY" in lacks
    assert desk.said("gemini", GEMINI_API_KEY="x") == (0, "")
    own = desk.home / ".gemini"
    own.mkdir()
    (own / "settings.json").write_text('{"security": {"auth": {"selectedType": "oauth-personal"}}}')
    code, lacks = desk.said("gemini")
    assert code == 1 and "not logged in" in lacks
    (own / "oauth_creds.json").write_text("{}")
    assert desk.said("gemini") == (0, "")
    (own / "oauth_creds.json").unlink()
    (own / ".env").write_text("GEMINI_API_KEY=x\n")
    assert desk.said("gemini") == (0, "")


def test_opencode(desk: Desk) -> None:
    """Some of OpenCode's models need no login, so a missing login is only a warning. With a key or
    a login there is no warning."""
    _, findings = desk.doctor("--agent", "opencode")
    assert [f["state"] for f in findings if "opencode auth login" in f["message"]] == ["warn"]
    _, findings = desk.doctor("--agent", "opencode", ANTHROPIC_API_KEY="x")
    assert not [f for f in findings if "opencode auth login" in f["message"]]


def test_an_agent_that_nobody_uses_is_a_warning(desk: Desk) -> None:
    """`doctor` reports that an agent other than the default one is not logged in, but does not exit
    with 1 because of it."""
    code, findings = desk.doctor(ANTHROPIC_API_KEY="sk-x")
    assert code == 0
    assert {f["topic"] for f in findings if f["state"] == "warn" and ("log" in f["message"])} >= {
        "codex",
        "gemini",
    }


def test_a_cli_that_does_not_answer(desk: Desk, tmp_path: Path) -> None:
    """If the CLI gives an unknown answer, as another version may, no login is reported as
    missing."""
    script = tmp_path / "claude"
    script.write_text("#!/bin/sh\necho \"error: unknown command 'auth'\"\nexit 1\n")
    script.chmod(0o755)
    assert desk.said("claude", PERDURE_CLAUDE=str(script)) == (0, "")
