"""The driver for the Gemini CLI: how the CLI is started, and what its output and files mean.
Written against 0.61.0.

Loaded by `perdure.agents.registry.load`. Other modules of this package handle events, outcomes and
chat files.

Three things are set for every launch, because a conversation would be lost without them:

- `gemini_keep.mjs` is loaded into the process. Without it, the CLI's clean-up at the start deletes
  every conversation that was ever resumed, including live ones. The clean-up can be switched off
  only in the user's own settings, or in a file that belongs to root. The script also prints why the
  model's last answer ended, which the CLI does not report.
- GEMINI_CLI_NO_RELAUNCH is set. Without it, the CLI is two processes: the first one ignores
  SIGTERM, and the second one keeps running when the first one is killed.
- A prompt that begins like a command (`/`, `?`) gets a label in front, because a resume drops such
  prompts from the history.

Permissions:

- `read` denies shell and writing tools by a policy of the highest tier.
- `edit` allows the editing tools and every shell command, because the agent could not run tests or
  git otherwise.
- `full` is the CLI's mode `yolo`.

The workdir is trusted, as if a person had started the CLI there.

Without a terminal, the CLI denies every call that needs a permission. An attempt that is given
people's answers to such calls is therefore run by `gemini_bridge`, over the Agent Client Protocol.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from perdure.agents.gemini import transcript as gemini_files
from perdure.agents.shared import conversation_files, programs
from perdure.agents.shared.conversation_files import checked
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
    from perdure.agents.gemini.gemini_bridge import GeminiOrder
    from perdure.rules.transcript_repair import RepairResult

PACKAGE = programs.Package("gemini", "PERDURE_GEMINI", "@google", "gemini-cli", "")

MAX_PROMPT_BYTES = 8 * 1024 * 1024
"""Maximum length of a prompt, in bytes. The CLI truncates a longer one without a message on stdout.
"""

KEEP = Path(__file__).with_name("gemini_keep.mjs")
READ = Path(__file__).with_name("gemini_read.toml")
BRIDGE = Path(__file__).with_name("gemini_bridge.py")

_PERMISSIONS = {
    Permissions.READ: ("--approval-mode=default", f"--admin-policy={READ}"),
    Permissions.EDIT: ("--approval-mode=auto_edit", "--allowed-tools=run_shell_command"),
    Permissions.FULL: ("--approval-mode=yolo",),
}

_RESERVED = frozenset(
    {
        "-r",
        "--resume",
        "--session-id",
        "--session-file",
        "--list-sessions",
        "-l",
        "--list-extensions",
        "--delete-session",
    }
    | {
        "-p",
        "--prompt",
        "-i",
        "--prompt-interactive",
        "-o",
        "--output-format",
        "-w",
        "--worktree",
        "--acp",
        "--experimental-acp",
    }
    | {"-y", "--yolo", "--approval-mode", "--admin-policy", "-h", "--help", "-v", "--version", "--"}
)


class GeminiDriver:
    """Implements `AgentDriver` for the Gemini CLI."""

    name = "gemini"
    abilities = Abilities(
        choose_id=True,
        fork=True,
        resume_by_path=False,
        cwd_bound=True,
        cumulative_usage=False,
        max_prompt_bytes=MAX_PROMPT_BYTES,
        rewinds=True,
    )
    variables = (
        *("GEMINI_*", "GOOGLE_*", "CLOUD_SHELL"),
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
            "!GEMINI_CLI",
            "!GEMINI_CLI_IDE_*",
            "!GEMINI_CLI_ACTIVITY_LOG_TARGET",
            "!GEMINI_CLI_WORKTREE_HANDLED",
            "!GEMINI_PTY_INFO",
        ),
    )
    """Patterns of the variables that are passed to the agent. `!pattern` excludes the variables
    that a running Gemini CLI, or the editor around it, sets for its children."""

    archive = None
    warm = None

    def locate(self, environ: Mapping[str, str]) -> Program:
        """Return the program that PERDURE_GEMINI names, else the first `gemini` on PATH. A link is
        resolved to the script that node runs. Raise AgentMissing if no program is found."""
        return programs.locate(PACKAGE, environ)

    def home(self, environ: Mapping[str, str]) -> Path:
        """Return the directory `.gemini` in GEMINI_CLI_HOME, else in the user's home."""
        return Path(environ.get("GEMINI_CLI_HOME") or user_home(environ)) / ".gemini"

    def refuse(self, launch: Launch) -> str:
        """Return why the launch is refused: its prompt or arguments cannot work. Return an empty
        string if the launch is not refused."""
        if len(gemini_files.sent(launch.prompt).encode("utf-8", "replace")) > MAX_PROMPT_BYTES:
            return (
                f"The prompt is longer than the {MAX_PROMPT_BYTES // 1024 // 1024} MB that Gemini "
                "CLI takes; put it into a file."
            )
        return programs.prompt(launch) or programs.arguments(launch, _RESERVED)

    def command(self, launch: Launch) -> Command:
        """Return the command line, with the prompt on stdin, so that no part of it is read as a
        flag. If the launch carries people's answers to requests, return the bridge's command
        instead. Raise ValueError for an invalid id, or for a fork of a conversation that does not
        exist."""
        conversation = _conversation(launch)
        level = list(_PERMISSIONS[launch.spec.permissions])
        if launch.spec.model:
            level.append(f"--model={launch.spec.model}")
        given = [launch.program.path, *launch.spec.agent_args]
        if _is_bridged(launch):
            order = _order(launch, [*given, "--acp", *level])
            argv = [sys.executable, "-I", "-S", str(BRIDGE), json.dumps(order)]
        else:
            argv = [*given, "--output-format=stream-json", *conversation, *level]
        return Command(
            argv=tuple(argv),
            stdin=gemini_files.sent(launch.prompt).encode(),
            env=_environ(launch.spec.env),
        )

    def parse(self, line: bytes) -> Sequence[AgentEvent]:
        # Imported only here, because an agent is started without this module. The same applies to
        # the other late imports below.
        from perdure.agents.gemini import events

        return events.parse(line)

    def outcome(self, exit: Exit, events: Sequence[AgentEvent]) -> Outcome:
        from perdure.agents.gemini import outcome

        return outcome.outcome(exit, events)

    def transcript(self, home: Path, session_id: str) -> Path | None:
        return gemini_files.transcript(home, session_id)

    def place(self, home: Path, session_id: str, cwd: Path, copy: Path) -> Path:
        return gemini_files.place(home, session_id, cwd, copy)

    def sidecar_files(self, transcript: Path) -> Sequence[Path]:
        return gemini_files.sidecar_files(transcript)

    def prompts(self, transcript: bytes) -> Sequence[Prompt]:
        return tuple(gemini_files.prompts(transcript))

    def conversations(self, home: Path, limit: int, only: str = "") -> Sequence[Conversation]:
        return gemini_files.conversations(home, limit, only)

    def messages_of(self, transcript: bytes) -> Sequence[SpokenMessage]:
        return tuple(gemini_files.spoken(transcript))

    def parent(self, transcript: bytes) -> str:
        return ""

    def repair(
        self, copy: bytes, session_id: str, name: str = "", complaint: str = ""
    ) -> RepairResult:
        from perdure.rules.transcript_repair import gemini as mending

        return mending.repair(copy, session_id, complaint)

    def files_of(self, home: Path, session_id: str) -> Sequence[Path]:
        return gemini_files.remains(home, session_id)

    def retention(self, home: Path) -> Retention | None:
        return conversation_files.gemini(home)

    def fill(self, transcript: bytes) -> Fill:
        return gemini_files.fill(transcript)

    def replies(self, transcript: bytes) -> Sequence[Reply]:
        return tuple(gemini_files.replies(transcript))

    def total(self, transcript: bytes) -> Usage:
        return Usage()

    def loads(self, transcript: bytes, bases: Sequence[bytes] = ()) -> Loaded | None:
        from perdure.agents.gemini import loads

        return loads.loads(transcript)

    def damaged(self, transcript: bytes) -> Sequence[tuple[int, int]]:
        from perdure.agents.gemini import loads

        return loads.damaged(transcript)

    def bases(self, home: Path, transcript: bytes) -> Sequence[Path]:
        return ()

    def may_ask(self, spec: TaskSpec, version: str) -> bool:
        return spec.permissions is not Permissions.READ

    def open_calls(self, output: bytes, directory: Path, transcript: bytes) -> Sequence[OpenCall]:
        from perdure.agents.gemini import events

        return events.denied_calls(output)

    def interactive_command(self, launch: Launch) -> Command:
        """Return the command that opens the conversation in the interactive program. Like the
        command of an attempt, it loads the script that switches off the CLI's clean-up."""
        argv = [launch.program.path, f"--resume={checked(launch.continuation.session_id)}"]
        argv += [f"--model={launch.spec.model}"] if launch.spec.model else []
        keep = {"NODE_OPTIONS": f"--import={KEEP.as_uri()}", "GEMINI_CLI_NO_RELAUNCH": "true"}
        return Command(
            argv=tuple(argv),
            stdin=b"",
            env={"GEMINI_CLI_HOME": str(Path(launch.home).parent), **keep},
        )

    def writers(self, home: Path, session_id: str) -> Sequence[int]:
        return gemini_files.writers(home, session_id)


def _environ(given: Mapping[str, str]) -> dict[str, str]:
    """Return the environment variables of a launch. They keep the CLI in a single process (no
    relaunch), make it trust the workdir and load perdure's script. The script is appended to the
    NODE_OPTIONS that the task sets."""
    options = f"{given.get('NODE_OPTIONS', '')} --import={KEEP.as_uri()}".strip()
    return {
        "NODE_OPTIONS": options,
        "GEMINI_CLI_NO_RELAUNCH": "true",
        "GEMINI_CLI_TRUST_WORKSPACE": "true",
    }


def _conversation(launch: Launch) -> list[str]:
    """Return the flag that selects the conversation: a chosen id for a new one, the id to resume,
    or the file of the parent for a fork. Raise ValueError for an invalid id or a missing parent."""
    asked = launch.continuation
    match asked.kind:
        case Start.FRESH | Start.REBUILD:
            if asked.session_id:
                return [f"--session-id={checked(asked.session_id)}"]
            return []
        case Start.RESUME if asked.rung is not Rung.PATH:
            return [f"--resume={checked(asked.session_id)}"]
        case Start.FORK:
            parent = gemini_files.transcript(Path(launch.home), checked(asked.session_id))
            if parent is None:
                raise ValueError(f"there is no conversation {asked.session_id} to fork from")
            return [f"--session-file={parent}"]
        case _:
            raise ValueError(f"Gemini CLI has no continuation {asked.kind} by {asked.rung}")


def _is_bridged(launch: Launch) -> bool:
    """Return whether `gemini_bridge` runs the launch: the launch must carry people's answers to
    requests, must not be a fork, and the user must have no hooks for tools. Over the Agent Client
    Protocol, the CLI cannot fork a conversation and runs no hooks for tools. A user's hooks must
    not be skipped."""
    return (
        launch.answers
        and bool(launch.requests)
        and launch.continuation.kind is not Start.FORK
        and not gemini_files.has_tool_hooks(Path(launch.home), Path(launch.cwd))
    )


def _order(launch: Launch, command: list[str]) -> GeminiOrder:
    """Return the order for `gemini_bridge`: how to start the CLI, which conversation to use, and
    where the directory of requests is."""
    resumes = launch.continuation.kind is Start.RESUME
    session = launch.continuation.session_id if resumes else ""
    return {
        "cwd": launch.cwd,
        "session": session,
        "home": launch.home,
        "hold": gemini_files.chat_of_this_minute(session),
        "model": launch.spec.model,
        "requests": launch.requests,
        "portable": system.IS_PORTABLE,
        "command": command,
    }


DRIVER = GeminiDriver()
