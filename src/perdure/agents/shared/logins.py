"""Finds out, without a network, whether an agent's CLI is logged in. Called by `doctor`, which also
runs the command that `question` returns. No process is started here.

Observed with an empty home and no network:

- `claude auth status` (2.1.329) prints JSON and exits with 1.
- `codex login status` (0.169.0) prints `Not logged in` and exits with 1. `codex exec` uses
  CODEX_API_KEY. OPENAI_API_KEY is used only by a provider in config.toml that names it.
- Gemini CLI (0.61.0) has no such command. It exits with 41 if no login method is chosen and none of
  its variables is set.
- OpenCode (1.18.33) lists its credentials, and has models that need no credentials.
"""

from __future__ import annotations

import contextlib
import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

from msgspec import Struct

from perdure.agents.shared import json_lines
from perdure.model import Program

_GEMINI_VARIABLES = (
    "GEMINI_API_KEY",
    "GOOGLE_API_KEY",
    "GOOGLE_GENAI_USE_VERTEXAI",
    "GOOGLE_GENAI_USE_GCA",
    "CLOUD_SHELL",
)


class Missing(Struct, frozen=True):
    """A missing prerequisite of the agent, with its remedy. `certain` tells whether every run would
    fail without the prerequisite."""

    sentence: str
    remedy: str
    certain: bool = True


def question(agent: str, program: Program) -> tuple[str, ...]:
    """Return the command that reports whether the CLI is logged in. Empty if the CLI has no such
    command."""
    words = {"claude": ("auth", "status"), "codex": ("login", "status")}.get(agent)
    if words:
        return (program.path, *words)
    return ()


def missing(
    agent: str, home: Path, environ: Mapping[str, str], code: int = 0, said: str = ""
) -> Missing | None:
    """Return the login or key that the agent lacks. None if the agent is logged in, or if that
    cannot be determined. `code` and `said` are the exit code and the output of the command from
    `question`."""
    if agent == "claude":
        return _claude(said)
    if agent == "codex":
        return _codex(home, environ, code, said)
    if agent == "gemini":
        return _gemini(home, environ)
    if agent == "opencode":
        return _opencode(home, environ)
    return None


def _claude(said: str) -> Missing | None:
    answer = json_lines.read(said[said.find("{") : said.rfind("}") + 1].encode())
    if json_lines.part(answer, "loggedIn") is not False:
        return None
    return Missing("it is not logged in, and no ANTHROPIC_API_KEY is set", "claude auth login")


def _codex(home: Path, environ: Mapping[str, str], code: int, said: str) -> Missing | None:
    settings: Mapping[str, object] = {}
    with contextlib.suppress(OSError, ValueError):
        settings = tomllib.loads((home / "config.toml").read_text(encoding="utf-8"))
    profile = _table(_table(settings, "profiles"), str(settings.get("profile", "")))
    name = str(profile.get("model_provider") or settings.get("model_provider") or "openai")
    provider = _table(_table(settings, "model_providers"), name)
    variable = str(provider.get("env_key") or "")
    if variable and not environ.get(variable):
        return Missing(
            f"its provider {name} needs the variable {variable}, which is not set",
            f"export {variable}=...",
        )
    if variable or (name != "openai" and not provider.get("requires_openai_auth")):
        return None
    if code == 0 or "Not logged in" not in said or environ.get("CODEX_API_KEY"):
        return None
    if environ.get("OPENAI_API_KEY"):
        also = " (it does not read OPENAI_API_KEY)"
    else:
        also = ""
    return Missing(f"it is not logged in, and no CODEX_API_KEY is set{also}", "codex login")


def _gemini(home: Path, environ: Mapping[str, str]) -> Missing | None:
    if any(map(environ.get, _GEMINI_VARIABLES)):
        return None
    for file in (home / ".env", home.parent / ".env"):
        with contextlib.suppress(OSError):
            text = file.read_text(encoding="utf-8", errors="replace")
            if any(name in text for name in _GEMINI_VARIABLES):
                return None
    chosen = ""
    with contextlib.suppress(OSError):
        chosen = (home / "settings.json").read_text(encoding="utf-8", errors="replace")
    if '"selectedType"' not in chosen:
        return Missing(
            "no way to log in was chosen, and no GEMINI_API_KEY is set",
            "start gemini once and choose one",
        )
    if "oauth-personal" in chosen and not (home / "oauth_creds.json").exists():
        return Missing(
            "it is not logged in, and no GEMINI_API_KEY is set", "start gemini once and log in"
        )
    return None


def _opencode(home: Path, environ: Mapping[str, str]) -> Missing | None:
    endings = ("_API_KEY", "_TOKEN", "_CONFIG", "_CONFIG_CONTENT", "_AUTH_CONTENT")
    for name, value in environ.items():
        if value and name.endswith(endings):
            return None
    with contextlib.suppress(OSError, ValueError):
        if json.loads((home.parent / "auth.json").read_text(encoding="utf-8")):
            return None
    config = Path(
        environ.get("XDG_CONFIG_HOME") or Path(environ.get("HOME") or "/", ".config"), "opencode"
    )
    if any((config / name).exists() for name in ("opencode.json", "opencode.jsonc", "config.json")):
        return None
    return Missing(
        "no provider is logged in, so only models that need no login can be used",
        "opencode auth login",
        certain=False,
    )


def _table(value: Mapping[str, object], name: str) -> Mapping[str, object]:
    found = value.get(name)
    if isinstance(found, dict):
        return found
    return {}


def native_name(agent: str, known: Sequence[str]) -> str:
    """Return the name of the CLI whose login an agent uses: `codex` for `acp-codex`."""
    inner = agent.removeprefix("acp-")
    if inner in known:
        return inner
    return agent
