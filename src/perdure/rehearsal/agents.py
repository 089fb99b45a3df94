"""What the real CLIs need so that they talk to the rehearsal, with a dummy key, and to no other network.

Observed on Claude Code 2.1.329 and Codex CLI 0.169.0. Nothing here starts anything.
"""

from __future__ import annotations

from pathlib import Path

from perdure.errors import UsageError

DUMMY = "dummy-key"


def environ(url: str, agent: str, home: Path | None = None, retries: int = 1, subscription: bool = False) -> dict[str, str]:
    """The agent's variables, to be put over an environment that has at least PATH, HOME and TMPDIR.

    `agent` is `claude` or `codex`; another name raises UsageError. `home`: the directory where the agent keeps its
    conversations, set by the agent's own variable; for Codex its `config.toml` is written there (see `write_codex_home`),
    and without a home the arguments of `codex_args` are needed. `retries`: how often the CLI itself asks again after a failure.
    `subscription`: Claude gets a subscriber's token in place of an API key; only then does it read when a usage limit ends.
    """
    if agent == "claude":
        own = {} if home is None else {"CLAUDE_CONFIG_DIR": str(home)}
        quiet = dict.fromkeys(
            ("DISABLE_TELEMETRY", "DISABLE_ERROR_REPORTING", "DISABLE_AUTOUPDATER", "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC"), "1"
        )
        key = "CLAUDE_CODE_OAUTH_TOKEN" if subscription else "ANTHROPIC_API_KEY"
        return {"ANTHROPIC_BASE_URL": url, key: DUMMY, **quiet, "CLAUDE_CODE_MAX_RETRIES": str(retries), **own}
    if agent == "codex":
        if home is None:
            return {"OPENAI_API_KEY": DUMMY}
        write_codex_home(url, home, retries)
        return {"OPENAI_API_KEY": DUMMY, "CODEX_HOME": str(home)}
    raise UsageError(f"The rehearsal has no agent named {agent!r}.", "One of: claude, codex.")


def codex_args(url: str, retries: int = 1) -> list[str]:
    """The same configuration as `write_codex_home`, as arguments to stand behind `codex` or `codex exec`."""
    return [part for name, value in _settings(url, retries).items() for part in ("-c", f"{name}={value}")]


def write_codex_home(url: str, home: Path, retries: int = 1) -> None:
    """Makes the directory and writes its `config.toml`, in place of one that is there."""
    home.mkdir(parents=True, exist_ok=True)
    lines = [f"{name} = {value}\n" for name, value in _settings(url, retries).items()]
    (home / "config.toml").write_text("".join(lines), encoding="utf-8")


def _settings(url: str, retries: int) -> dict[str, str]:
    """Dotted names and values of TOML. Without `plugins = false` every run looks up hosts on the internet; without the second
    feature switch Codex waits for ever when the server does not answer."""
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
