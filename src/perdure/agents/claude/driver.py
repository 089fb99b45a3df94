"""The driver for Claude Code: how the CLI is started, and what its output and files mean. Written
against 2.1.329.

Loaded by `perdure.agents.registry.load`. Other modules of this package handle events, outcomes and
transcripts.

Permissions, and the reasons for their flags:

- `read`: `dontAsk` denies every call that would need a permission. So only reading tools run, and
  shell commands that the CLI knows to be harmless. The editing tools are disallowed as well,
  because the user's own settings may allow them.
- `edit`: files in the workdir may be changed (`acceptEdits`). Any shell command runs (`Bash` is
  allowed), because the agent could not run tests or git otherwise. A shell command is not confined
  to the workdir. Every other call that would need a permission is denied.
- `full`: every call runs. As root the CLI refuses this mode unless IS_SANDBOX=1 is in the user's
  environment.

A word `@file` stays in the prompt, and the CLI adds the file to the request, as it does in
interactive use.

`ClaudeWarm` runs the CLI as one process for many turns (`--input-format stream-json`). Such a
process reads one line for each prompt and answers with an `init` and a `result`. After its input is
closed, it finishes its turn and exits with code 0. The line of an answer contains the id of the
answer's record in the transcript. The list of background tasks is printed whenever it changes. A
background task that ends starts a turn.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace

from perdure.agents.claude import transcript as claude_files
from perdure.agents.claude.settings import FLAG, HOOK, NEEDED, settings
from perdure.agents.shared import conversation_files, json_lines, programs
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
from perdure.protocols import Abilities, Prompt, Retention, SpokenMessage, TurnStatus, Warm

if TYPE_CHECKING:
    from perdure.model.requests import OpenCall
    from perdure.rules.transcript_repair import RepairResult

COUNTED = ("--max-turns", "--max-budget-usd")
"""Arguments that set a limit for the whole life of a process. They cannot limit a single turn, so
they require a separate process for each turn."""
_NOT_READ = b'{"type":"user"'
"""First bytes of the lines that hold tool results. These lines may be long, so they are skipped
without parsing. All other lines are parsed, because in a `result` line the type is not always the
first key."""


class ClaudeWarm:
    """Implements `Warm` (one process for many turns) for Claude Code. `command` is a function that
    returns the command of a process for a single prompt."""

    def __init__(self, command: Callable[[Launch], Command]) -> None:
        self._command = command

    def command(self, launch: Launch) -> Command | None:
        if (
            launch.budget_usd
            or launch.last_word
            or launch.answers
            or any(argument.startswith(COUNTED) for argument in launch.spec.agent_args)
        ):
            return None
        # A deferred call must end the process. This is not possible for a kept agent, so it gets no
        # directory of requests. It gets no directory of messages either, because such a directory
        # belongs to a single attempt.
        once = self._command(replace(launch, requests="", messages=""))
        prompt = {"type": "user", "message": {"role": "user", "content": once.stdin.decode()}}
        argv = (*once.argv[:2], "--input-format=stream-json", *once.argv[2:])
        return replace(once, argv=argv, stdin=json.dumps(prompt).encode() + b"\n")

    def update_status(self, line: bytes, so_far: TurnStatus) -> TurnStatus:
        if line.startswith(_NOT_READ):
            found = None
        else:
            found = json_lines.read(line)
        if found is None:
            return so_far
        match found.get("type"), found.get("subtype"):
            case "assistant", _:
                own = found.get("parent_tool_use_id") is None
                if own:
                    return replace(so_far, over=False, mark=json_lines.text(found.get("uuid"), 100))
                return so_far
            case "result", _:
                return replace(so_far, over=not json_lines.whole(found.get("queued_turn_count")))
            case "system", "init":
                return replace(so_far, over=False)
            case "system", "background_tasks_changed":
                return replace(so_far, busy=bool(found.get("tasks")))
            case _:
                return so_far


PACKAGE = programs.Package("claude", "PERDURE_CLAUDE", "@anthropic-ai", "claude-code", "claude")

MAX_PROMPT_BYTES = 10 * 1024 * 1024
"""Maximum length of a prompt, in bytes. The CLI refuses a longer one: `piped stdin input exceeds
10MB`."""

_PERMISSIONS = {
    Permissions.READ: ("--permission-mode=dontAsk", "--disallowedTools=Edit,Write,NotebookEdit"),
    Permissions.EDIT: ("--permission-mode=acceptEdits", "--allowedTools=Bash"),
    Permissions.FULL: ("--permission-mode=bypassPermissions",),
}

_UNATTENDED = {
    "DISABLE_AUTOUPDATER": "1",
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    "CLAUDE_CODE_MAX_RETRIES": "3",
}
"""Default environment variables of the agent. The user's own variables take precedence. The CLI
retries at most three times here: its default of ten retries takes minutes, and perdure schedules
retries itself."""

PROMPT_TOOL = "--permission-prompt-tool"
ANSWER = 20_000
"""Number of tokens of the window that 2.1.329 reserves for the answer. The threshold for compaction
is a percentage of the rest. For example, 50 % of a window of 1,000,000 tokens means that the CLI
compacts at 490,000 tokens."""

_RESERVED = frozenset(
    {
        "-c",
        "--continue",
        "-r",
        "--resume",
        "--session-id",
        "--fork-session",
        "--resume-session-at",
        "--no-session-persistence",
        "--from-pr",
    }
    | {"--resume-drops-turn", "-w", "--worktree", "--teleport", "--remote"}
    | {
        "-p",
        "--print",
        "--output-format",
        "--input-format",
        "--bg",
        "--background",
        "--cloud",
        "--desktop",
        "-h",
        "--help",
        "-v",
        "--version",
        "--",
    }
)


class ClaudeDriver:
    """Implements `AgentDriver` for Claude Code."""

    name = "claude"
    archive = None
    warm: Warm | None
    abilities = Abilities(
        choose_id=True,
        fork=True,
        resume_by_path=True,
        cwd_bound=False,
        cumulative_usage=False,
        max_prompt_bytes=MAX_PROMPT_BYTES,
        keeps_budget=True,
        name_fork=True,
        fork_at=True,
        compacts=True,
        # The level `read` is missing: it allows only the CLI's file tools, which need no temporary
        # files.
        temporary_files=(Permissions.EDIT, Permissions.FULL),
    )
    variables = (
        *(
            "ANTHROPIC_*",
            "CLAUDE_CONFIG_DIR",
            "CLAUDE_CODE_*",
            "DISABLE_*",
            "IS_SANDBOX",
            "API_TIMEOUT_MS",
            "BASH_*_TIMEOUT_MS",
            "MCP_*TIMEOUT",
        ),
        *(
            "MAX_THINKING_TOKENS",
            "MAX_MCP_OUTPUT_TOKENS",
            "ENABLE_TOOL_SEARCH",
            "USE_BUILTIN_RIPGREP",
        ),
        *(
            "AWS_*",
            "GOOGLE_APPLICATION_CREDENTIALS",
            "GOOGLE_CLOUD_PROJECT",
            "GCLOUD_PROJECT",
            "CLOUD_ML_REGION",
            "VERTEX_REGION_*",
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
            "!CLAUDE_CODE_SESSION_*",
            "!CLAUDE_CODE_CHILD_*",
            "!CLAUDE_CODE_MESSAGING_*",
            "!CLAUDE_CODE_ENTRYPOINT",
            "!CLAUDE_CODE_EXECPATH",
        ),
        *("!CLAUDE_CODE_SSE_PORT", "!CLAUDE_CODE_RESUME_*", "!CLAUDE_CODE_SKIP_PROMPT_HISTORY"),
    )
    """Patterns of the environment variables that are passed to the agent; `!pattern` excludes
    names. Two groups are excluded. Variables that a running Claude Code sets for its children would
    tie the agent to that session. Some settings would resume a conversation or prevent it from
    being saved."""

    def __init__(self) -> None:
        self.warm = ClaudeWarm(self.command)

    def locate(self, environ: Mapping[str, str]) -> Program:
        """Return the program that PERDURE_CLAUDE names, else the first `claude` on PATH. An npm
        wrapper is resolved to the native program. Raise AgentMissing if no program is found."""
        return programs.locate(PACKAGE, environ)

    def home(self, environ: Mapping[str, str]) -> Path:
        """Return CLAUDE_CONFIG_DIR unchanged (the CLI does not expand it), else `~/.claude`."""
        return Path(environ.get("CLAUDE_CONFIG_DIR") or user_home(environ) / ".claude")

    def refuse(self, launch: Launch) -> str:
        """Return why the launch is refused: its prompt, arguments or settings cannot work. Return
        an empty string if the launch is not refused."""
        if len(claude_files.sent(launch.prompt).encode("utf-8", "replace")) > MAX_PROMPT_BYTES:
            return (
                f"The prompt is longer than the {MAX_PROMPT_BYTES // 1024 // 1024} MB that Claude "
                "Code takes; put it into a file."
            )
        return (
            ("" if launch.parked else programs.prompt(launch))
            or programs.arguments(launch, _RESERVED)
            or settings(launch).problem
        )

    def command(self, launch: Launch) -> Command:
        """Return the command line, with the prompt on stdin. As an argument, the prompt could be
        taken for a flag or for the value of one. Raise ValueError for an invalid id."""
        argv = [
            launch.program.path,
            "-p",
            "--output-format=stream-json",
            "--verbose",
            *_conversation(launch),
        ]
        # Only partial messages report a reply's usage when the reply begins. Without them, the
        # usage of an agent that is killed during a reply would be unknown.
        argv.append("--include-partial-messages")
        own = settings(launch)
        argv += [own.argument, *_PERMISSIONS[launch.spec.permissions]]
        if launch.last_word:
            schema = json.dumps(json.loads(LAST_WORD.read_text(encoding="utf-8")))
            argv.append(f"--json-schema={schema}")
        # If the user's settings file sets variables, that file is passed on unchanged and `own`
        # lacks perdure's hooks. In this case, the flag below is not added.
        hooked = bool(launch.requests) and HOOK.name in own.argument
        if hooked and not any(PROMPT_TOOL in each for each in launch.spec.agent_args):
            # Without this flag, the CLI does not offer the tool AskUserQuestion to the model. The
            # value `stdio` means that permission prompts are answered on stdin. Here stdin is a
            # file, so nobody answers. The CLI runs the hooks first and then denies the call
            # ("Stream closed").
            argv.append(f"{PROMPT_TOOL}=stdio")
        if launch.spec.model:
            argv.append(f"--model={launch.spec.model}")
        given = launch.spec.agent_args
        has_budget = any(argument.startswith("--max-budget-usd") for argument in given)
        if launch.budget_usd and not has_budget:
            # The budget applies only to the cost of this process, also after a resume (2.1.329).
            # The CLI checks the cost after each reply.
            argv.append(f"--max-budget-usd={launch.budget_usd:.6f}")
        env = {}
        for name, value in {**_UNATTENDED, **_compact(launch)}.items():
            if name not in launch.spec.env:
                env[name] = value
        notes = (own.note,) if own.note else ()
        return Command(
            argv=(*argv, *own.rest),
            # A parked call runs on a resume without a prompt. A prompt would be sent right after
            # the call, and would cancel further calls that the agent parked.
            stdin=b"" if launch.parked else claude_files.sent(launch.prompt).encode(),
            env=env,
            notes=notes,
        )

    def parse(self, line: bytes) -> Sequence[AgentEvent]:
        # Imported only here, because an agent is started without this module. The same applies to
        # the other late imports below.
        from perdure.agents.claude import events

        return events.parse(line)

    def outcome(self, exit: Exit, events: Sequence[AgentEvent]) -> Outcome:
        from perdure.agents.claude import outcome

        return outcome.outcome(exit, events)

    def transcript(self, home: Path, session_id: str) -> Path | None:
        return claude_files.transcript(home, session_id)

    def place(self, home: Path, session_id: str, cwd: Path, copy: Path) -> Path:
        return claude_files.place(home, session_id, cwd)

    def sidecar_files(self, transcript: Path) -> Sequence[Path]:
        return claude_files.sidecar_files(transcript)

    def prompts(self, transcript: bytes) -> Sequence[Prompt]:
        return tuple(claude_files.prompts(transcript))

    def conversations(self, home: Path, limit: int, only: str = "") -> Sequence[Conversation]:
        return claude_files.conversations(home, limit, only)

    def fill(self, transcript: bytes) -> Fill:
        return claude_files.fill(transcript)

    def messages_of(self, transcript: bytes) -> Sequence[SpokenMessage]:
        return tuple(claude_files.spoken(transcript))

    def parent(self, transcript: bytes) -> str:
        return ""

    def repair(
        self, copy: bytes, session_id: str, name: str = "", complaint: str = ""
    ) -> RepairResult:
        from perdure.rules.transcript_repair import claude as mending

        return mending.repair(copy, session_id, complaint)

    def files_of(self, home: Path, session_id: str) -> Sequence[Path]:
        return claude_files.remains(home, session_id)

    def retention(self, home: Path) -> Retention | None:
        return conversation_files.claude(home)

    def replies(self, transcript: bytes) -> Sequence[Reply]:
        return tuple(claude_files.replies(transcript))

    def total(self, transcript: bytes) -> Usage:
        return Usage()

    def loads(self, transcript: bytes, bases: Sequence[bytes] = ()) -> Loaded | None:
        from perdure.agents.claude import loads

        return loads.loads(transcript)

    def damaged(self, transcript: bytes) -> Sequence[tuple[int, int]]:
        from perdure.agents.claude import loads

        return loads.damaged(transcript)

    def bases(self, home: Path, transcript: bytes) -> Sequence[Path]:
        return ()

    def may_ask(self, spec: TaskSpec, version: str) -> bool:
        return True

    def open_calls(self, output: bytes, directory: Path, transcript: bytes) -> Sequence[OpenCall]:
        from perdure.agents.claude import events

        return events.open_calls(output, directory)

    def answered(self, content: bytes, calls: Sequence[str]) -> bool:
        return claude_files.answered(content, calls)

    def messages(self, content: bytes) -> Sequence[str]:
        return tuple(claude_files.messages(content))

    def interactive_command(self, launch: Launch) -> Command:
        """Return the command that opens the conversation in the interactive program. Like the
        command of an attempt, it sets a retention, so that the CLI's clean-up deletes no
        conversations."""
        argv = [
            launch.program.path,
            "--resume",
            checked(launch.continuation.session_id),
            f"{FLAG}={json.dumps(NEEDED)}",
        ]
        argv += [f"--model={launch.spec.model}"] if launch.spec.model else []
        return Command(argv=tuple(argv), stdin=b"", env={"CLAUDE_CONFIG_DIR": launch.home})

    def writers(self, home: Path, session_id: str) -> Sequence[int]:
        return claude_files.writers(home, session_id)


def _conversation(launch: Launch) -> list[str]:
    """Return the flags that select the conversation: a chosen id for a new one, a resume by id or
    path, or a fork. Raise ValueError for an invalid id or path."""
    asked = launch.continuation
    match asked.kind:
        case Start.FRESH | Start.REBUILD:
            if asked.session_id:
                return [f"--session-id={checked(asked.session_id)}"]
            return []
        case Start.RESUME if asked.rung is Rung.PATH:
            path = Path(launch.transcript)
            if not path.is_absolute() or path.name != f"{checked(asked.session_id)}.jsonl":
                raise ValueError(
                    f"{launch.transcript!r} is not the transcript of {asked.session_id}: nothing "
                    "of the turn would be saved"
                )
            return [f"--resume={path}"]
        case Start.RESUME:
            return [f"--resume={checked(asked.session_id)}"]
        case Start.FORK:
            return [f"--resume={checked(asked.session_id)}", "--fork-session", *_fork(launch)]
        case _:
            raise ValueError(f"a continuation {asked.kind} starts nothing")


def _compact(launch: Launch) -> dict[str, str]:
    """Return the environment variables that set the threshold at which the CLI compacts by itself.
    The threshold is a percentage of the window, after ANSWER tokens are subtracted for the answer.
    Return an empty dict if the launch sets no threshold."""
    at = launch.compact_at
    if at is None:
        return {}
    used = at.window - ANSWER
    if at.tokens and used > 0:
        percent = at.tokens * 100 // used
    else:
        percent = at.percent
    if at.given:
        own = {"CLAUDE_CODE_AUTO_COMPACT_WINDOW": str(at.window)}
    else:
        own = {}
    return {"CLAUDE_AUTOCOMPACT_PCT_OVERRIDE": str(min(max(percent, 1), 100)), **own}


def _fork(launch: Launch) -> list[str]:
    """Return the flags that set the fork's id and the point where the fork begins. That point is a
    message of the parent conversation, so the parent's transcript is read."""
    asked = launch.continuation
    if asked.fork_id:
        named = [f"--session-id={checked(asked.fork_id)}"]
    else:
        named = []
    if not asked.fork_at:
        return named
    end = claude_files.end_of_turn(Path(launch.transcript).read_bytes(), asked.fork_at)
    return [*named, f"--resume-session-at={end}"]


DRIVER = ClaudeDriver()
