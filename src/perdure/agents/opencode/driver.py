"""The driver for OpenCode: how the CLI is started, and what its output and database mean. Written
against 1.18.33.

Loaded by `perdure.agents.registry.load`. Other modules of this package handle events, outcomes and
the archive.

Permissions: the CLI has no sandbox. It rejects every call that needs a permission, and then ends
with exit code 0 and without a message. So perdure decides each call in advance: it always sets
`OPENCODE_PERMISSION`, which overrides every configuration.

- `read`: only reading tools are allowed. The project's configuration is not read, because it could
  define an agent with more permissions. The project's AGENTS.md is then not read, either.
- `edit`: everything is allowed except paths outside of the workdir. A shell command is not confined
  to the workdir.
- `full`: everything is allowed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from perdure.agents.opencode import archive as opencode_archive
from perdure.agents.opencode.archive import checked
from perdure.agents.shared import programs
from perdure.config.home import user_home
from perdure.host import system
from perdure.model import (
    Command,
    Conversation,
    Exit,
    Fill,
    Launch,
    Loaded,
    Outcome,
    Permissions,
    Program,
    Reply,
    Rung,
    Start,
    TaskSpec,
    Usage,
)
from perdure.model.events import AgentEvent
from perdure.model.requests import OpenCall
from perdure.protocols import Abilities, Prompt, Retention, SpokenMessage

if TYPE_CHECKING:
    from perdure.agents.opencode.opencode_bridge import OpenCodeOrder
    from perdure.rules.transcript_repair import RepairResult

PACKAGE = programs.Package(
    "opencode",
    "PERDURE_OPENCODE",
    "node_modules",
    "opencode-ai",
    "bin/opencode",
    platform="opencode",
)

BRIDGE = Path(__file__).with_name("opencode_bridge.py")

RETRIES_IN_A_ROW = 5
"""Maximum number of retries in a row. If a stream breaks off, the CLI itself would repeat the
request immediately and without limit (617 times in 80 s were observed)."""

_LOOKING = (
    "read",
    "glob",
    "grep",
    "list",
    "lsp",
    "skill",
    "todoread",
    "todowrite",
    "webfetch",
    "websearch",
    "codesearch",
)
_CHANGING = ("bash", "edit", "task", "external_directory", "question", "doom_loop")
_PERMISSIONS: dict[Permissions, dict[str, str]] = {
    Permissions.READ: {
        "*": "deny",
        **dict.fromkeys(_CHANGING, "deny"),
        **dict.fromkeys(_LOOKING, "allow"),
    },
    Permissions.EDIT: {
        "*": "allow",
        "doom_loop": "allow",
        "external_directory": "deny",
        "question": "deny",
    },
    Permissions.FULL: {
        "*": "allow",
        "doom_loop": "allow",
        "external_directory": "allow",
        "question": "deny",
    },
}

_LOGS = ("--print-logs", "--log-level=ERROR")
"""Flags that print errors on stderr. Without these flags, the cause of many failures is only in a
log file. stderr then has no more than `Unexpected server error. Check server logs for details.`"""

_RESERVED = frozenset(
    {
        "-c",
        "--continue",
        "-s",
        "--session",
        "--fork",
        "--title",
        "--dir",
        "--format",
        "--command",
        "--attach",
        "--share",
        "--port",
    }
    | {
        "-i",
        "--interactive",
        "--auto",
        "--print-logs",
        "--log-level",
        "-h",
        "--help",
        "-v",
        "--version",
        "--",
    }
)


class OpenCodeDriver:
    """Implements `AgentDriver` for OpenCode."""

    name = "opencode"
    archive = opencode_archive.ARCHIVE
    warm = None
    abilities = Abilities(
        choose_id=False,
        fork=True,
        fork_bound=True,
        resume_by_path=False,
        cwd_bound=True,
        cumulative_usage=False,
        saves_prompt_first=True,
        max_prompt_bytes=0,
        retries_in_a_row=RETRIES_IN_A_ROW,
    )
    variables = (
        *(
            "OPENCODE_*",
            "ANTHROPIC_*",
            "OPENAI_*",
            "OPENROUTER_*",
            "GEMINI_*",
            "GOOGLE_*",
            "VERTEX_*",
            "AWS_*",
            "AZURE_*",
            "CLOUDFLARE_*",
        ),
        *(
            "GROQ_*",
            "MISTRAL_*",
            "XAI_*",
            "DEEPSEEK_*",
            "CEREBRAS_*",
            "FIREWORKS_*",
            "TOGETHER_*",
            "DEEPINFRA_*",
            "MOONSHOT_*",
            "ZHIPU_*",
        ),
        *(
            "HTTP_PROXY",
            "HTTPS_PROXY",
            "NO_PROXY",
            "ALL_PROXY",
            "http_proxy",
            "https_proxy",
            "no_proxy",
            "all_proxy",
        ),
        *("NODE_EXTRA_CA_CERTS", "SSL_CERT_FILE", "SSL_CERT_DIR"),
        *(
            "!OPENCODE_PERMISSION",
            "!OPENCODE_PID",
            "!OPENCODE_CLIENT",
            "!OPENCODE_SERVER_*",
            "!OPENCODE_WORKSPACE_ID",
            "!OPENCODE_AUTO_SHARE",
        ),
    )
    """Patterns of the variables that are passed to the agent; `!pattern` excludes names. The CLI
    supports a hundred providers, and each has its own variable for the key. A variable that is not
    listed here must be named by the user with `--env`."""

    def locate(self, environ: Mapping[str, str]) -> Program:
        """Return the program that PERDURE_OPENCODE names, else the first `opencode` on PATH. An npm
        wrapper is resolved to the native program. Raise AgentMissing if no program is found."""
        return programs.locate(PACKAGE, environ)

    def home(self, environ: Mapping[str, str]) -> Path:
        """Return the path of the database. Its name is OPENCODE_DB (default: `opencode.db`), and
        its directory is `opencode` below XDG_DATA_HOME, else below `~/.local/share`."""
        shared = Path(environ.get("XDG_DATA_HOME") or user_home(environ) / ".local/share")
        return shared / "opencode" / (environ.get("OPENCODE_DB") or "opencode.db")

    def refuse(self, launch: Launch) -> str:
        """Return why the launch is refused; empty if it is not refused. The reason may be the
        prompt, the arguments, or a conversation that belongs to another directory. OpenCode would
        run a turn of such a conversation, print nothing and never end. Reads the database."""
        asked = launch.continuation
        if asked.kind in (Start.RESUME, Start.FORK) and asked.session_id:
            began = opencode_archive.directory(Path(launch.home), asked.session_id)
            if began is not None and began.resolve() != Path(launch.cwd).resolve():
                return (
                    f"The conversation {asked.session_id} started in {began}, and OpenCode can "
                    "continue it only there."
                )
        return programs.prompt(launch) or programs.arguments(launch, _RESERVED)

    def command(self, launch: Launch) -> Command:
        """Return the command line, with the prompt on stdin, because as an argument it would arrive
        in quotes. If the launch carries people's answers to requests, return the bridge's command
        instead, because `run` rejects every call that needs a permission. Raise ValueError for an
        invalid id, because with an empty id OpenCode would silently start a new session."""
        argv = [
            launch.program.path,
            "run",
            "--format=json",
            *_LOGS,
            f"--dir={launch.cwd}",
            *_conversation(launch),
        ]
        if launch.spec.model:
            argv.append(f"--model={launch.spec.model}")
        permissions = _PERMISSIONS[launch.spec.permissions]
        if launch.requests:
            # With the rule `ask`, `opencode run` rejects a call outside of the workdir and ends the
            # turn. A person can then allow the call. In the next attempt, the bridge applies the
            # person's decision to the same call.
            permissions = {**permissions, "external_directory": "ask"}
        env = {
            "OPENCODE_PERMISSION": json.dumps(permissions),
            "OPENCODE_DISABLE_AUTOUPDATE": "1",
        }
        if launch.spec.permissions is Permissions.READ:
            env["OPENCODE_DISABLE_PROJECT_CONFIG"] = "1"
        if launch.answers and launch.requests:
            argv = [sys.executable, "-I", "-S", str(BRIDGE), json.dumps(_order(launch))]
        else:
            argv += launch.spec.agent_args
        return Command(argv=tuple(argv), stdin=launch.prompt.encode(), env=env)

    def parse(self, line: bytes) -> Sequence[AgentEvent]:
        # Imported only here, because an agent is started without this module. The same applies to
        # the other late imports below.
        from perdure.agents.opencode import events

        return events.parse(line)

    def outcome(self, exit: Exit, events: Sequence[AgentEvent]) -> Outcome:
        from perdure.agents.opencode import outcome

        return outcome.outcome(exit, events)

    def transcript(self, home: Path, session_id: str) -> Path | None:
        """Return None, because conversations are in a database and not in files of their own; see
        `archive`."""
        return None

    def place(self, home: Path, session_id: str, cwd: Path, copy: Path) -> Path:
        """Raise ValueError, because a copy is restored with `archive.restore` and not as a file."""
        raise ValueError(f"OpenCode keeps {session_id!r} in its database, not in a file")

    def sidecar_files(self, transcript: Path) -> Sequence[Path]:
        return ()

    def prompts(self, transcript: bytes) -> Sequence[Prompt]:
        return tuple(opencode_archive.prompts(transcript))

    def conversations(self, home: Path, limit: int, only: str = "") -> Sequence[Conversation]:
        return opencode_archive.conversations(home, limit, only)

    def messages_of(self, transcript: bytes) -> Sequence[SpokenMessage]:
        return tuple(opencode_archive.spoken(transcript))

    def parent(self, transcript: bytes) -> str:
        return ""

    def repair(
        self, copy: bytes, session_id: str, name: str = "", complaint: str = ""
    ) -> RepairResult:
        from perdure.rules.transcript_repair import opencode as mending

        return mending.repair(copy, session_id, complaint)

    def files_of(self, home: Path, session_id: str) -> Sequence[Path]:
        return ()

    def retention(self, home: Path) -> Retention | None:
        return None

    def will_continue(self, content: bytes) -> bool:
        return opencode_archive.will_continue(content)

    def fill(self, transcript: bytes) -> Fill:
        return opencode_archive.fill(transcript)

    def replies(self, transcript: bytes) -> Sequence[Reply]:
        """Return an empty sequence. The CLI prints the usage of a step when it stores this usage,
        so the database contains no usage that was not printed."""
        return ()

    def subagent_replies(self, home: Path, session_id: str, since: int) -> Sequence[Reply]:
        return tuple(opencode_archive.subagent_replies(home, session_id, since))

    def total(self, transcript: bytes) -> Usage:
        return Usage()

    def loads(self, transcript: bytes, bases: Sequence[bytes] = ()) -> Loaded | None:
        from perdure.agents.opencode import loads

        return loads.loads(transcript)

    def damaged(self, transcript: bytes) -> Sequence[tuple[int, int]]:
        from perdure.agents.opencode import loads

        return loads.damaged(transcript)

    def bases(self, home: Path, transcript: bytes) -> Sequence[Path]:
        return ()

    def may_ask(self, spec: TaskSpec, version: str) -> bool:
        """Return whether a person can allow rejected calls of this run later. True only at the
        level `edit`, and only if the user passed no extra arguments. Such arguments are for
        `opencode run`, and the bridge cannot apply them."""
        return spec.permissions is Permissions.EDIT and not spec.agent_args

    def open_calls(self, output: bytes, directory: Path, transcript: bytes) -> Sequence[OpenCall]:
        from perdure.agents.opencode import events

        return events.rejected_calls(output)

    def interactive_command(self, launch: Launch) -> Command:
        argv = [launch.program.path, f"--session={checked(launch.continuation.session_id)}"]
        argv += [f"--model={launch.spec.model}"] if launch.spec.model else []
        return Command(
            argv=tuple(argv), stdin=b"", env={"XDG_DATA_HOME": str(Path(launch.home).parents[1])}
        )

    def writers(self, home: Path, session_id: str) -> Sequence[int]:
        return opencode_archive.writers(home, session_id)


def _conversation(launch: Launch) -> list[str]:
    """Return the flags that select the session. A new session gets a title that contains the
    attempt's unique `mark`. A resume or fork names the id of the session. Raise ValueError for an
    invalid id."""
    asked = launch.continuation
    match asked.kind:
        case Start.FRESH | Start.REBUILD:
            if launch.mark:
                return [f"--title={opencode_archive.title(launch.mark)}"]
            return []
        case Start.RESUME if asked.rung is not Rung.PATH:
            return [f"--session={checked(asked.session_id)}"]
        case Start.FORK:
            return [f"--session={checked(asked.session_id)}", "--fork"]
        case _:
            raise ValueError(f"OpenCode has no continuation {asked.kind} by {asked.rung}")


def _order(launch: Launch) -> OpenCodeOrder:
    """Return the order for `opencode_bridge`: which server to start, which session to use, and
    where the directory of requests is."""
    asked = launch.continuation
    goes_on = asked.kind in (Start.RESUME, Start.FORK)
    return {
        "command": [launch.program.path, "serve", "--hostname=127.0.0.1", "--port=0", *_LOGS],
        "cwd": launch.cwd,
        "session": asked.session_id if goes_on else "",
        "fork": asked.kind is Start.FORK,
        "title": opencode_archive.title(launch.mark),
        "model": launch.spec.model,
        "requests": launch.requests,
        "portable": system.IS_PORTABLE,
    }


DRIVER = OpenCodeDriver()
