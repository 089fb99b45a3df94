"""Settings that make the real CLIs use the rehearsal, with a dummy key and no other network. No
process is started here. Observed with Claude Code 2.1.329, Codex CLI 0.169.0, Gemini CLI 0.61.0 and
OpenCode 1.18.33."""

from __future__ import annotations

import json
from pathlib import Path

from perdure.errors import UsageError

DUMMY = "dummy-key"
BUILT_IN = ("claude", "codex", "gemini", "opencode")


def environ(
    url: str, agent: str, home: Path | None = None, retries: int = 1, subscription: bool = False
) -> dict[str, str]:
    """Return the environment variables that make the agent use the rehearsal. The caller adds them
    to an environment that has at least PATH, HOME and TMPDIR. Raise UsageError for an unknown
    agent.

    - `agent`: a built-in agent, a built-in agent over ACP, or `acp-` and any other name. For such a
      name, the variables of all built-in agents are returned, because it is not known which ones
      the agent reads.
    - `home`: the directory where the agent stores its conversations. Codex's and Gemini's settings
      are written there (see `write_codex_home`, `write_gemini_home`). Codex without a home needs
      the arguments of `codex_args`.
    - `retries`: number of the CLI's own retries after a failure.
    - `subscription`: whether Claude Code gets a subscription's token in place of an API key.
      Without such a token, Claude Code does not read the time at which a usage limit ends.
    """
    if agent.startswith("acp-"):
        behind = agent.removeprefix("acp-")
        names = (behind,) if behind in BUILT_IN else BUILT_IN
        found: dict[str, str] = {"OPENAI_BASE_URL": f"{url}/v1"} if len(names) > 1 else {}
        for name in names:
            found |= environ(
                url,
                name,
                home / name if home is not None and len(names) > 1 else home,
                retries,
                subscription,
            )
        return found
    if agent == "claude":
        own = {} if home is None else {"CLAUDE_CONFIG_DIR": str(home)}
        quiet = dict.fromkeys(
            (
                "DISABLE_TELEMETRY",
                "DISABLE_ERROR_REPORTING",
                "DISABLE_AUTOUPDATER",
                "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC",
            ),
            "1",
        )
        if subscription:
            key = "CLAUDE_CODE_OAUTH_TOKEN"
        else:
            key = "ANTHROPIC_API_KEY"
        return {
            "ANTHROPIC_BASE_URL": url,
            key: DUMMY,
            **quiet,
            "CLAUDE_CODE_MAX_RETRIES": str(retries),
            **own,
        }
    if agent == "codex":
        if home is None:
            return {"OPENAI_API_KEY": DUMMY}
        write_codex_home(url, home, retries)
        return {"OPENAI_API_KEY": DUMMY, "CODEX_HOME": str(home)}
    if agent == "gemini":
        if home is not None:
            write_gemini_home(home, retries)
        own = {} if home is None else {"GEMINI_CLI_HOME": str(home)}
        quiet = {"GEMINI_CLI_NO_RELAUNCH": "true", "GEMINI_CLI_TRUST_WORKSPACE": "true"}
        return {"GOOGLE_GEMINI_BASE_URL": url, "GEMINI_API_KEY": DUMMY, **quiet, **own}
    if agent == "opencode":
        return {
            "OPENCODE_CONFIG_CONTENT": json.dumps(_opencode(url)),
            **_OPENCODE_QUIET,
            **_xdg(home),
        }
    raise UsageError(
        f"The rehearsal has no agent named {agent!r}.", "One of: claude, codex, gemini, opencode."
    )


def write_gemini_home(home: Path, retries: int = 1) -> None:
    """Write Gemini CLI's settings below `home` (GEMINI_CLI_HOME); existing ones are replaced. The
    settings name a model, so that the CLI makes no requests to choose one. They do not change the
    clean-up of old conversations, so that it can be tested too."""
    settings = {
        "security": {"auth": {"selectedType": "gemini-api-key"}},
        "model": {"name": "rehearsal"},
        "telemetry": {"enabled": False},
        "privacy": {"usageStatisticsEnabled": False},
        "general": {"enableAutoUpdate": False, "maxAttempts": retries + 1},
    }
    (home / ".gemini").mkdir(parents=True, exist_ok=True)
    (home / ".gemini" / "settings.json").write_text(
        json.dumps(settings, indent=1), encoding="utf-8"
    )


_OPENCODE_QUIET = dict.fromkeys(
    (
        "OPENCODE_DISABLE_AUTOUPDATE",
        "OPENCODE_DISABLE_MODELS_FETCH",
        "OPENCODE_DISABLE_DEFAULT_PLUGINS",
        "OPENCODE_DISABLE_LSP_DOWNLOAD",
    ),
    "1",
)
"""Variables that switch off OpenCode's own network access. Without
OPENCODE_DISABLE_DEFAULT_PLUGINS, every run contacts the package registry."""


def _opencode(url: str) -> dict[str, object]:
    """Return OpenCode's configuration. It uses a provider package that is built into OpenCode. The
    number of OpenCode's retries cannot be set: it sends a failing request six times in 73 s."""
    options = {"baseURL": f"{url}/v1", "apiKey": DUMMY}
    models = {}
    for name in ("rehearsal", "some-model"):
        models[name] = {"limit": {"context": 100_000, "output": 4_000}}
    provider = {
        "npm": "@ai-sdk/openai-compatible",
        "name": "Rehearsal",
        "options": options,
        "models": models,
    }
    names = {
        "model": "rehearsal/rehearsal",
        "small_model": "rehearsal/rehearsal",
        "enabled_providers": ["rehearsal"],
    }
    return {"autoupdate": False, "share": "disabled", **names, "provider": {"rehearsal": provider}}


def _xdg(home: Path | None) -> dict[str, str]:
    """Return the variables that place OpenCode's database in `home/opencode` and hide the user's
    configuration from OpenCode. Empty if there is no `home`."""
    if home is None:
        return {}
    return {
        "XDG_DATA_HOME": str(home),
        "XDG_CONFIG_HOME": str(home / "config"),
        "XDG_CACHE_HOME": str(home / "cache"),
    }


def codex_args(url: str, retries: int = 1) -> list[str]:
    """Return the configuration of `write_codex_home` as arguments for `codex` or `codex exec`."""
    found = []
    for name, value in _settings(url, retries).items():
        found += ["-c", f"{name}={value}"]
    return found


def write_codex_home(url: str, home: Path, retries: int = 1) -> None:
    """Create the directory and write `config.toml` into it; an existing file is replaced."""
    home.mkdir(parents=True, exist_ok=True)
    lines = [f"{name} = {value}\n" for name, value in _settings(url, retries).items()]
    (home / "config.toml").write_text("".join(lines), encoding="utf-8")


def _settings(url: str, retries: int) -> dict[str, str]:
    """Return Codex's settings as dotted names with TOML values. Two features are switched off. With
    plugins, every run contacts hosts on the internet. With unbounded retries, Codex waits forever
    if the server does not answer."""
    return {
        "model": '"rehearsal"',
        "model_provider": '"rehearsal"',
        "check_for_update_on_startup": "false",
        "analytics.enabled": "false",
        "features.plugins": "false",
        "features.unbounded_connection_retries": "false",
        "model_providers.rehearsal.name": '"rehearsal"',
        "model_providers.rehearsal.base_url": f'"{url}/v1"',
        "model_providers.rehearsal.env_key": '"OPENAI_API_KEY"',
        "model_providers.rehearsal.wire_api": '"responses"',
        "model_providers.rehearsal.request_max_retries": str(retries),
        "model_providers.rehearsal.stream_max_retries": str(retries),
    }
