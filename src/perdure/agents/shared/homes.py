"""The directories and files of each agent's home, and the environment variables that relocate them.
Used by `perdure home` and `perdure entrypoint`.

Observed with Claude Code 2.1.329, Codex 0.169.0, Gemini CLI 0.61.0 and OpenCode 1.18.33:

- Claude Code keeps `.claude.json` beside its directory (in `~`), but inside the directory if
  CLAUDE_CONFIG_DIR is set.
- Codex keeps an index (`state_5.sqlite`) of the absolute paths of its rollouts. If the index is
  moved with the directory, it has the old paths and Codex finds no conversation. If the index is
  missing, Codex rebuilds it from the rollouts.
- OpenCode has no variable of its own. XDG_DATA_HOME would also relocate the files of every program
  that OpenCode starts.
"""

from __future__ import annotations

from perdure.errors import NotFound
from perdure.protocols import Folder, Home

HOMES = {
    "claude": Home(
        programs=("claude",),
        folders=(
            Folder(
                name="claude",
                variable="CLAUDE_CONFIG_DIR",
                usual=".claude",
                extra_files=(".claude.json",),
                excluded=("sessions/*.json",),
            ),
        ),
    ),
    "codex": Home(
        programs=("codex",),
        folders=(
            Folder(
                name="codex",
                variable="CODEX_HOME",
                usual=".codex",
                excluded=("thread-writer-locks/*",),
                index=("state_[0-9]*.sqlite", "state_[0-9]*.sqlite-*"),
            ),
        ),
    ),
    "gemini": Home(
        programs=("gemini", "gemini.js"),
        folders=(Folder(name="gemini", variable="GEMINI_CLI_HOME", usual="", inner=".gemini"),),
    ),
    "opencode": Home(
        programs=("opencode",),
        folders=(
            Folder(
                name="opencode/data",
                variable="XDG_DATA_HOME",
                usual=".local/share",
                inner="opencode",
                own=False,
            ),
            Folder(
                name="opencode/config",
                variable="XDG_CONFIG_HOME",
                usual=".config",
                inner="opencode",
                own=False,
            ),
        ),
    ),
}


def home_of(agent: str) -> Home:
    """Return the agent's home. For an agent over ACP, return the home of its native agent. Raise
    NotFound for a third-party driver."""
    found = HOMES.get(agent.removeprefix("acp-"))
    if found is None:
        raise NotFound(
            f"perdure does not know the files in the home of {agent!r}.",
            f"One of: {', '.join(HOMES)}.",
        )
    return found
