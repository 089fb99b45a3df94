"""The driver for the Codex CLI: how the CLI is started, and what its output and files mean. Written
against 0.169.0.

Loaded by `perdure.agents.registry.load`. Other modules of this package handle events, outcomes and
rollouts.

Permissions use the CLI's own sandbox. The CLI forgets the sandbox on resume, so it is set in every
launch:

- `read` is read-only.
- `edit` is workspace-write: the workdir and temporary directories are writable, and there is no
  network.
- `full` has no sandbox.

Codex keeps the git directory read-only in the sandbox. For `edit`, the parts that a commit needs
are made writable, except in the user's own checkout (`here`). In a linked worktree, the
repository's hooks and configuration stay read-only.

`{home}/state_5.sqlite` is Codex's index of its threads. It holds the absolute path of every
rollout. After the home was moved, Codex finds none of its threads ("no rollout found") although
their files are there. After the home was copied, Codex continues in the old files. If the index was
moved aside, other data in it would be lost. So `separate_index` gives such a thread an index of its
own (`CODEX_SQLITE_HOME`), which Codex fills from the rollouts of its home.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from perdure.agents.codex import transcript as codex_files
from perdure.agents.codex.warm import SANDBOX, CodexWarm, is_bridged
from perdure.agents.shared import programs
from perdure.agents.shared.calls import LAST_WORD
from perdure.agents.shared.conversation_files import checked
from perdure.config.home import user_home
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
from perdure.protocols import Abilities, OpenRequest, Prompt, Retention, SpokenMessage, Warm

if TYPE_CHECKING:
    from perdure.rules.transcript_repair import RepairResult

VARIABLE = "CODEX_SQLITE_HOME"
SETTING = "sqlite_home"
"""Name of a setting in Codex's configuration. It has the same effect as the variable
CODEX_SQLITE_HOME."""
_OWN = "perdure-index"
_ROLLOUT = "select rollout_path from threads where id = ?"
PATIENCE_S = 2.0


def separate_index(home: Path, session_id: str) -> Path | None:
    """Return the directory for a separate index, in which this thread has its right path. None if
    no separate index is needed: the thread has no file, or the home's index has no wrong path for
    the thread. Only reads files."""
    there = codex_files.remains(home, session_id)
    told = _indexed_path(home, session_id)
    if not there or told is None or any(_same(told, path) for path in there):
        return None
    return home / _OWN


def _indexed_path(home: Path, session_id: str) -> Path | None:
    """Return the path of the thread's file according to the newest index; None if the thread is not
    in the index."""
    indexes = sorted(home.glob("state_*.sqlite"), key=lambda path: (len(path.name), path.name))
    if not indexes:
        return None
    try:
        with closing(
            sqlite3.connect(
                f"{indexes[-1].absolute().as_uri()}?mode=ro", uri=True, timeout=PATIENCE_S
            )
        ) as index:
            row = index.execute(_ROLLOUT, (session_id,)).fetchone()
    except sqlite3.Error:
        return None
    if row and isinstance(row[0], str) and row[0]:
        return Path(row[0])
    return None


def _same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return False


PACKAGE = programs.Package("codex", "PERDURE_CODEX", "@openai", "codex", "vendor/*/bin/codex")

MAX_PROMPT_CHARACTERS = 1 << 20
"""Maximum length of a prompt, in characters. The CLI refuses a longer one: `Input exceeds the
maximum length of 1048576 characters`."""

_ALWAYS = (
    "--disable=plugins",
    "--disable=unbounded_connection_retries",
    "-c",
    "check_for_update_on_startup=false",
)
"""Arguments of every launch. They disable plugins, which would contact other hosts. They also
disable unbounded retries, which would make a run without a network wait forever."""

COMPACT_AT = "model_auto_compact_token_limit"

_RESERVED = frozenset(
    {
        "--last",
        "--all",
        "--ephemeral",
        "--worktree",
        "--json",
        "-C",
        "--cd",
        "resume",
        "fork",
        "review",
        "-",
        "--",
        "-h",
        "--help",
        "-V",
        "--version",
    }
)


class CodexDriver:
    """Implements `AgentDriver` for the Codex CLI."""

    name = "codex"
    archive = None
    warm: Warm | None
    abilities = Abilities(
        choose_id=False,
        fork=True,
        resume_by_path=False,
        cwd_bound=False,
        cumulative_usage=True,
        max_prompt_bytes=4 * MAX_PROMPT_CHARACTERS,
        compacts=True,
        tells_call_ids=False,
        # Codex's sandbox stores files of its own in the directory for temporary files (0.169.0).
        temporary_files=(Permissions.READ, Permissions.EDIT),
        # Codex's sandbox hides `private_directory` from the commands that it runs. If the directory
        # does not exist, the sandbox creates it; if that fails, every command fails (0.169.0).
        private_directory="/tmp/codex-daemon-{uid}",
    )
    variables = (
        *("OPENAI_*", "CODEX_*", "AZURE_OPENAI_*", "RUST_LOG"),
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
            "!CODEX_THREAD_ID",
            "!CODEX_SESSION_ID",
            "!CODEX_TOOL_CALL_ID",
            "!CODEX_CI",
            "!CODEX_VERSION",
            "!CODEX_PERMISSION_PROFILE",
        ),
        *("!CODEX_SANDBOX*", "!CODEX_MANAGED_*", "!CODEX_APPLY_PATCH_*"),
    )
    """Patterns of the variables that are passed to the agent. `!pattern` excludes the variables
    that a running Codex sets for its children."""

    def __init__(self) -> None:
        self.warm = _SERVER

    def locate(self, environ: Mapping[str, str]) -> Program:
        """Return the program that PERDURE_CODEX names, else the first `codex` on PATH. An npm
        wrapper is resolved to the native program. Raise AgentMissing if no program is found."""
        return programs.locate(PACKAGE, environ)

    def home(self, environ: Mapping[str, str]) -> Path:
        """Return CODEX_HOME, else `~/.codex`."""
        return Path(environ.get("CODEX_HOME") or user_home(environ) / ".codex")

    def refuse(self, launch: Launch) -> str:
        """Return the reason why the launch is refused: Codex cannot take the launch's prompt or
        arguments. Return an empty string if the launch is not refused."""
        if len(launch.prompt) > MAX_PROMPT_CHARACTERS:
            return (
                f"The prompt is longer than the {MAX_PROMPT_CHARACTERS} characters that Codex "
                "takes; put it into a file."
            )
        return programs.prompt(launch) or programs.arguments(launch, _RESERVED)

    def command(self, launch: Launch) -> Command:
        """Return the command line.

        All flags are placed before `resume`, which accepts few of them. The last flag before the
        subcommand is perdure's, so that no argument of the user takes the subcommand as its value.
        If the launch carries people's answers to requests, return the bridge's command instead,
        because `exec` never asks for an approval. Raise ValueError for an invalid id, because with
        such an id Codex would silently start a new conversation.
        """
        if launch.answers and launch.requests and (answering := _SERVER.bridged(launch)):
            return answering
        argv = [
            launch.program.path,
            "exec",
            *launch.spec.agent_args,
            "--json",
            "--skip-git-repo-check",
            *_sandbox(launch),
        ]
        if launch.spec.model:
            argv.append(f"--model={launch.spec.model}")
        if launch.last_word:
            argv.append(f"--output-schema={LAST_WORD}")
        return Command(
            argv=(*argv, *_settings(launch), *_conversation(launch), "-"),
            stdin=launch.prompt.encode(),
        )

    def parse(self, line: bytes) -> Sequence[AgentEvent]:
        # Imported only here, because an agent is started without this module. The same applies to
        # the other late imports below.
        from perdure.agents.codex import events

        return events.parse(line)

    def outcome(self, exit: Exit, events: Sequence[AgentEvent]) -> Outcome:
        from perdure.agents.codex import outcome

        return outcome.outcome(exit, events)

    def transcript(self, home: Path, session_id: str) -> Path | None:
        return codex_files.transcript(home, session_id)

    def place(self, home: Path, session_id: str, cwd: Path, copy: Path) -> Path:
        return codex_files.place(home, session_id, copy)

    def sidecar_files(self, transcript: Path) -> Sequence[Path]:
        return ()

    def prompts(self, transcript: bytes) -> Sequence[Prompt]:
        return tuple(codex_files.prompts(transcript))

    def conversations(self, home: Path, limit: int, only: str = "") -> Sequence[Conversation]:
        return codex_files.conversations(home, limit, only)

    def messages_of(self, transcript: bytes) -> Sequence[SpokenMessage]:
        return tuple(codex_files.spoken(transcript))

    def messages(self, content: bytes) -> Sequence[str]:
        return tuple(codex_files.messages(content))

    def parent(self, transcript: bytes) -> str:
        return codex_files.parent(transcript)

    def repair(
        self, copy: bytes, session_id: str, name: str = "", complaint: str = ""
    ) -> RepairResult:
        from perdure.rules.transcript_repair import codex as mending

        return mending.repair(copy, session_id, name, complaint)

    def files_of(self, home: Path, session_id: str) -> Sequence[Path]:
        return codex_files.remains(home, session_id)

    def retention(self, home: Path) -> Retention | None:
        return None

    def fill(self, transcript: bytes) -> Fill:
        return codex_files.fill(transcript)

    def subagent_replies(self, home: Path, session_id: str, since: int) -> Sequence[Reply]:
        return tuple(codex_files.subagent_replies(home, session_id, since))

    def replies(self, transcript: bytes) -> Sequence[Reply]:
        return tuple(codex_files.replies(transcript))

    def total(self, transcript: bytes) -> Usage:
        return codex_files.total(transcript)

    def loads(self, transcript: bytes, bases: Sequence[bytes] = ()) -> Loaded | None:
        from perdure.agents.codex import loads

        return loads.loads(transcript, bases)

    def damaged(self, transcript: bytes) -> Sequence[tuple[int, int]]:
        from perdure.agents.codex import loads

        return loads.damaged(transcript)

    def bases(self, home: Path, transcript: bytes) -> Sequence[Path]:
        return codex_files.bases(home, transcript)

    def open_request(self, content: bytes) -> OpenRequest | None:
        return codex_files.open_request(content)

    def denials_in_transcript(self, content: bytes) -> Sequence[AgentEvent]:
        from perdure.agents.codex import unprinted_calls

        return unprinted_calls.unprinted(content)

    def may_ask(self, spec: TaskSpec, version: str) -> bool:
        """Return whether a person can allow denied calls of this run later. This is possible only
        at the level `edit` and with the app server: `codex exec` never asks for an approval."""
        return spec.permissions is Permissions.EDIT and is_bridged(spec.agent_args, version)

    def open_calls(self, output: bytes, directory: Path, transcript: bytes) -> Sequence[OpenCall]:
        from perdure.agents.codex import requests

        return requests.open_calls(transcript)

    def interactive_command(self, launch: Launch) -> Command:
        """Return the command that opens the thread in the interactive program. The program runs
        without Codex's background server, which would lock the thread for a minute after the
        program has ended."""
        argv = [
            launch.program.path,
            "resume",
            "--no-daemon",
            checked(launch.continuation.session_id),
        ]
        argv += [f"--model={launch.spec.model}"] if launch.spec.model else []
        own = separate_index(Path(launch.home), launch.continuation.session_id)
        index = {VARIABLE: str(own)} if own is not None else {}
        return Command(argv=tuple(argv), stdin=b"", env={"CODEX_HOME": launch.home, **index})

    def writers(self, home: Path, session_id: str) -> Sequence[int]:
        return codex_files.writers(home, session_id)


def _conversation(launch: Launch) -> list[str]:
    """Return the arguments that select the thread: `resume` or `fork` with an id, or none for a new
    thread. Raise ValueError for an invalid id."""
    asked = launch.continuation
    match asked.kind:
        case Start.FRESH | Start.REBUILD:
            return []
        case Start.RESUME if asked.rung is not Rung.PATH:
            return ["resume", checked(asked.session_id)]
        case Start.FORK:
            return ["fork", checked(asked.session_id)]
        case _:
            raise ValueError(f"Codex has no continuation {asked.kind} by {asked.rung}")


def _compact(launch: Launch) -> list[str]:
    """Return the setting for the token count at which the CLI compacts by itself. Empty if the
    user's arguments contain this setting. The CLI checks the token count before every request,
    including the first one of a turn."""
    at = launch.compact_at
    if (
        at is None
        or not at.tokens
        or any(COMPACT_AT in argument for argument in launch.spec.agent_args)
    ):
        return []
    return ["-c", f"{COMPACT_AT}={at.tokens}"]


def _sandbox(launch: Launch) -> list[str]:
    if launch.spec.permissions is Permissions.FULL:
        return ["--dangerously-bypass-approvals-and-sandbox"]
    return [f"--sandbox={SANDBOX[launch.spec.permissions]}"]


def _settings(launch: Launch) -> list[str]:
    """Return the settings that apply both to `codex exec` and to a kept app server."""
    return [*_ALWAYS, *_roots(launch), *_compact(launch), *_index(launch)]


def _index(launch: Launch) -> list[str]:
    """Return the setting that gives the thread a separate index, if the index in Codex's home
    has a wrong path for the thread. Empty for a new thread, if the index is right, or if the user's
    arguments name an index. Reads the file system."""
    asked = launch.continuation
    goes_on = asked.kind in (Start.RESUME, Start.FORK) and asked.session_id
    if not goes_on or any(SETTING in argument for argument in launch.spec.agent_args):
        return []
    own = separate_index(Path(launch.home), asked.session_id)
    if own is not None:
        return ["-c", f"{SETTING}={json.dumps(str(own), ensure_ascii=False)}"]
    return []


def _roots(launch: Launch) -> list[str]:
    """Return the settings that name the directories outside of the workdir which the sandbox makes
    writable. Empty unless the permissions level is `edit`."""
    if launch.spec.permissions is not Permissions.EDIT:
        return []
    if launch.spec.here:
        roots = []
    else:
        roots = list(map(str, git_roots(Path(launch.cwd))))
    listed = json.dumps(roots, ensure_ascii=False)
    settings = ["-c", f"sandbox_workspace_write.writable_roots={listed}"]
    if not os.access("/tmp", os.W_OK | os.X_OK):
        # 0.169.0 tries to create a directory `.codex` in each writable directory, and by default
        # /tmp is one of them. If the directory cannot be created, every command fails.
        settings += ["-c", "sandbox_workspace_write.exclude_slash_tmp=true"]
    return settings


def git_roots(cwd: Path) -> list[Path]:
    """Return the paths that the sandbox protects although a commit from this directory must write
    to them. Empty if the `.git` file cannot be trusted. Reads the file system.

    A linked worktree is trusted only if its repository refers back to it, because an agent could
    have written any path into the `.git` file.
    """
    mark = cwd / ".git"
    if mark.is_symlink():
        return []
    if mark.is_dir():
        return [mark]
    try:
        own = (cwd / mark.read_text().removeprefix("gitdir:").strip()).resolve(strict=True)
        back = (own / (own / "gitdir").read_text().strip()).resolve()
        shared = (own / (own / "commondir").read_text().strip()).resolve(strict=True)
    except (OSError, ValueError):
        return []
    if back != mark.resolve() or own.parent != shared / "worktrees":
        return []
    parts = [shared / name for name in ("objects", "refs", "logs", "reftable")]
    return [own, *filter(Path.is_dir, parts)]


_SERVER = CodexWarm(_settings)
DRIVER = CodexDriver()
