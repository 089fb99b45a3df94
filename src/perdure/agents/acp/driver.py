"""The driver for agents that speak ACP: `acp-NAME`. Written against version 1 of the protocol and
`agent-client-protocol` 0.12.1.

Loaded by `perdure.agents.registry.load`. The driver starts `acp_bridge`, which starts the agent,
runs one turn with it and prints the turn as lines. The agent's command is the one in `KNOWN`, or
the value of the variable PERDURE_ACP_NAME.

Messages of the protocol do not prove that a conversation was stored. But the agent stores the
conversation under the same id as when it is used on the command line. So the agent's native driver
handles transcripts, copies, prompts, writers and error messages. An agent without a native driver
is driven by `any_agent`.

Permissions are set again for every turn:

- Codex has modes. Each mode has its own sandbox, and a request to go beyond it is refused.
- OpenCode and Gemini CLI are restricted as on their command lines.
- Claude Code does not restrict itself over ACP. It requests permissions for some calls, and the
  bridge grants those that the level allows. Other calls run without a request, so a launch with
  `read` is refused.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct, field
from msgspec.structs import replace

from perdure.agents.acp import events as acp_events
from perdure.agents.acp import events as acp_requests
from perdure.agents.acp import outcome
from perdure.agents.codex import driver
from perdure.agents.gemini import transcript as gemini_files
from perdure.agents.shared import json_lines, programs
from perdure.errors import AgentMissing
from perdure.host import system
from perdure.host.extras import install_command
from perdure.model import (
    Command,
    Continuation,
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
from perdure.patterns import late_pattern
from perdure.protocols import (
    Abilities,
    AgentDriver,
    Archive,
    CountsSubagents,
    OpenRequest,
    Prompt,
    ReadsDenials,
    Retention,
    SpokenMessage,
    TellsRequests,
    Warm,
)
from perdure.rules.transcript_repair import RepairResult

if TYPE_CHECKING:
    from perdure.agents.acp.acp_bridge import AcpOrder

BRIDGE = Path(__file__).with_name("acp_bridge.py")
LABEL = "Prompt: "
_NAME = late_pattern(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_COMMAND = late_pattern(rf"\s*(?:{LABEL}\s*)*/")
"""Pattern of a prompt that needs LABEL in front. Agents take a prompt that begins with `/word` for
one of their own commands. A prompt that has such labels already matches too, so that removing one
label always gives the original prompt."""
_OWN = {Permissions.READ: "nothing", Permissions.EDIT: "nothing", Permissions.FULL: "anything"}


class KnownAgent(Struct, frozen=True):
    """How a known agent is started and restricted.

    `command`: the program that speaks ACP. Empty if the agent's native program speaks ACP itself.
    """

    command: str = ""
    words: tuple[str, ...] = ()
    install: str = ""
    variable: str = ""
    """Name of the environment variable that gives the ACP program the path of the agent's native
    program. Empty if the ACP program needs no such variable."""
    modes: Mapping[Permissions, str] = field(default_factory=dict)
    allow: Mapping[Permissions, str] = field(default_factory=lambda: _OWN)
    """Value of the order's field `allow` for each permissions level. A level that is missing is
    refused."""
    fork: bool = False
    retries: int = 0
    keeps_rejected: bool = True
    """Whether a call that the client rejects stays in the conversation. If not, the agent keeps the
    call's result without the call."""
    notices: bool = False
    """Whether the agent's warnings and errors arrive as messages of the model. Unlike real answers,
    they have no message id."""


KNOWN = {
    "codex": KnownAgent(
        command="codex-acp",
        install="npm install -g @agentclientprotocol/codex-acp",
        variable="CODEX_PATH",
        modes={
            Permissions.READ: "read-only",
            Permissions.EDIT: "workspace-write",
            Permissions.FULL: "agent-full-access",
        },
        fork=True,
        notices=True,
    ),
    "opencode": KnownAgent(words=("acp",), fork=True, retries=5),
    "gemini": KnownAgent(words=("--acp",), keeps_rejected=False),
    "claude": KnownAgent(
        command="claude-agent-acp",
        install="npm install -g @agentclientprotocol/claude-agent-acp (it needs Node 22)",
        modes={Permissions.EDIT: "default", Permissions.FULL: "bypassPermissions"},
        allow={Permissions.EDIT: "work", Permissions.FULL: "anything"},
        fork=True,
    ),
}
"""Known ACP agents by name. Written against codex-acp 2.6.0, OpenCode 1.18.33 and Gemini CLI
0.61.0. The entry for claude-agent-acp follows the documentation of 0.100.0; the tests do not run
it."""


class AcpArchive(Struct, frozen=True):
    """Delegates to the native driver's `Archive`. The commands that this class returns run the
    agent's program without the arguments that make the program speak ACP."""

    native: Archive
    words: tuple[str, ...]

    def read(self, home: Path, session_id: str) -> bytes | None:
        return self.native.read(home, session_id)

    def find(self, home: Path, mark: str) -> str:
        """Return an empty string. A conversation that began over ACP has no title by which it could
        be found. No search is needed, because the bridge prints the id before it sends the prompt.
        """
        return ""

    def unreported_events(self, piece: bytes) -> Sequence[AgentEvent]:
        """Return an empty sequence, because the bridge prints every tool call that begins."""
        return ()

    def cut_off(self, content: bytes, since: int) -> Reply | None:
        return self.native.cut_off(content, since)

    def relocated(self, copy: bytes, directory: Path) -> bytes:
        return self.native.relocated(copy, directory)

    def settled(self, row: json_lines.Record) -> str:
        return self.native.settled(row)

    def removal(self, program: Program, home: Path, session_id: str) -> Command | None:
        command = self.native.removal(program, home, session_id)
        if command is not None:
            return self._own(program, command)
        return None

    def restore(self, program: Program, session_id: str, copy: bytes) -> Command:
        return self._own(program, self.native.restore(program, session_id, copy))

    def _own(self, program: Program, command: Command) -> Command:
        """Return the native driver's command, changed to run the agent's program. The arguments
        that make the program speak ACP are left out."""
        given = shlex.split(program.path)
        if tuple(given[-len(self.words) :]) == self.words:
            own = given[: -len(self.words)]
        else:
            own = given[:1]
        return replace(command, argv=(*own, *command.argv[1:]))


class AcpDriver:
    """Implements `AgentDriver` over ACP, with the help of the agent's native driver."""

    def __init__(self, name: str, native: AgentDriver) -> None:
        self.name, self.native, self.known = f"acp-{name}", native, KNOWN[name]
        self.archive: Archive | None = (
            AcpArchive(native.archive, self.known.words) if native.archive else None
        )
        self.warm: Warm | None = None
        self.variables = native.variables
        self.abilities: Abilities = replace(
            native.abilities,
            choose_id=False,
            fork=self.known.fork,
            resume_by_path=False,
            fork_at=False,
            cumulative_usage=False,
            compacts=native.abilities.compacts and name == "claude",
            retries_in_a_row=self.known.retries,
        )

    def locate(self, environ: Mapping[str, str]) -> Program:
        """Return the agent's command, quoted for a shell, with its version. Raise AgentMissing if
        the program is not found or the library is not installed."""
        if find_spec("acp") is None:
            raise AgentMissing(
                f"{self.name} needs the library agent-client-protocol.",
                install_command("acp"),
            )
        path = environ.get("PATH", os.defpath)
        if given := environ.get(f"PERDURE_{self.name.replace('-', '_').upper()}"):
            words = shlex.split(given)
            if not words or shutil.which(words[0], path=path) is None:
                raise AgentMissing(f"{self.name} cannot be started: there is no program {given!r}.")
            return Program(
                path=shlex.join(words),
                version=programs.version(Path(shutil.which(words[-1], path=path) or words[0])),
            )
        if not self.known.command:
            own = self.native.locate(environ)
            return Program(path=shlex.join([own.path, *self.known.words]), version=own.version)
        found = shutil.which(self.known.command, path=path)
        if found is None:
            raise AgentMissing(
                f"{self.known.command} is not installed: it is not on PATH.", self.known.install
            )
        words = [found, *self.known.words]
        if self.known.variable and self.known.variable not in environ:
            words = ["env", f"{self.known.variable}={self.native.locate(environ).path}", *words]
        return Program(path=shlex.join(words), version=programs.version(Path(found)))

    def home(self, environ: Mapping[str, str]) -> Path:
        return self.native.home(environ)

    def refuse(self, launch: Launch) -> str:
        """Return why the launch is refused; empty if it is not refused. A launch is refused if
        nothing can enforce its permissions level, or if the native driver refuses the launch."""
        if launch.spec.permissions not in self.known.allow:
            return (
                f"{self.name} cannot be restricted to the level {launch.spec.permissions}: it "
                "asks before some calls only, and nothing else restricts it."
            )
        return self.native.refuse(launch)

    def command(self, launch: Launch) -> Command:
        """Return the command that starts the bridge, with the order (JSON) as its argument. Raise
        ValueError for an invalid id, a resume by path, and a continuation that starts nothing."""
        asked, level = launch.continuation, launch.spec.permissions
        if asked.rung is Rung.PATH or asked.kind not in (
            Start.FRESH,
            Start.REBUILD,
            Start.RESUME,
            Start.FORK,
        ):
            raise ValueError(f"ACP has no continuation {asked.kind} by {asked.rung}")
        goes_on = asked.kind in (Start.RESUME, Start.FORK)
        order: AcpOrder = {
            "command": [*shlex.split(launch.program.path), *self._arguments(launch)],
            "cwd": launch.cwd,
            "directories": list(map(str, self._directories(launch))),
            "start": str(asked.kind) if goes_on else "new",
            "session": self._checked(asked.session_id, launch) if goes_on else "",
            "mode": self.known.modes.get(level, ""),
            "allow": self.known.allow[level],
            "model": "" if self.native.name == "gemini" else launch.spec.model,
            "notices": self.known.notices,
            "keeps_rejected": self.known.keeps_rejected,
            "again": bool(self.known.retries),
            "home": launch.home,
            "hold": self._hold(launch) if goes_on else "",
            "requests": launch.requests if launch.answers else "",
        }
        argv = (sys.executable, "-P", str(BRIDGE), json.dumps(order))
        return Command(
            argv=argv, stdin=self._sent(launch.prompt).encode(), env=self._fresh(launch).env
        )

    def _fresh(self, launch: Launch) -> Command:
        """Return the native driver's command for a new conversation. Over ACP, the agents need the
        same environment variables as on the command line. Gemini CLI also accepts the same flags.
        """
        fresh = replace(launch, continuation=Continuation(kind=Start.FRESH), answers=False)
        return self.native.command(fresh)

    def _checked(self, session_id: str, launch: Launch) -> str:
        """Return the conversation's id. Raise ValueError if the native driver does not accept the
        id."""
        asked = Continuation(kind=Start.RESUME, session_id=session_id)
        self.native.command(replace(launch, continuation=asked))
        return session_id

    def _arguments(self, launch: Launch) -> list[str]:
        """Return the agent's arguments. Over ACP, Gemini CLI gets the same flags as on its command
        line. The other agents get only the user's arguments."""
        if self.native.name != "gemini":
            return list(launch.spec.agent_args)
        found = []
        for word in self._fresh(launch).argv[1:]:
            if word != "--output-format=stream-json":
                found.append(word)
        return found

    def _directories(self, launch: Launch) -> Sequence[Path]:
        """Return the directories outside of the workdir that Codex must write to for a commit.
        Empty for other agents."""
        commits = (
            self.native.name == "codex"
            and launch.spec.permissions is Permissions.EDIT
            and not launch.spec.here
        )
        if commits:
            return driver.git_roots(Path(launch.cwd))
        return ()

    def _hold(self, launch: Launch) -> str:
        """Return a pattern for the name of a chat file of Gemini CLI 0.61.0; empty for other
        agents. The bridge replaces the pattern's `strftime` fields by the current minute. While a
        file with that name exists, the bridge waits, because Gemini would empty a file that it
        loads twice within one minute."""
        if self.native.name != "gemini":
            return ""
        return gemini_files.chat_of_this_minute(launch.continuation.session_id)

    def parse(self, line: bytes) -> Sequence[AgentEvent]:
        return acp_events.parse(line)

    def outcome(self, exit: Exit, events: Sequence[AgentEvent]) -> Outcome:
        return outcome.outcome(exit, events, self.native.outcome)

    def transcript(self, home: Path, session_id: str) -> Path | None:
        return self.native.transcript(home, session_id)

    def place(self, home: Path, session_id: str, cwd: Path, copy: Path) -> Path:
        return self.native.place(home, session_id, cwd, copy)

    def sidecar_files(self, transcript: Path) -> Sequence[Path]:
        return self.native.sidecar_files(transcript)

    def prompts(self, transcript: bytes) -> Sequence[Prompt]:
        found = []
        for prompt in self.native.prompts(transcript):
            found.append(Prompt(self._original(prompt.text)))
        return tuple(found)

    def _sent(self, prompt: str) -> str:
        """Return the prompt as it is sent. If the agent would take the prompt for a command, put a
        label in front. For Gemini, the native driver's function does this, because Gemini takes
        more prompts for commands than `_COMMAND` matches."""
        if self.native.name == "gemini":
            return gemini_files.sent(prompt)
        if _COMMAND.match(prompt):
            return f"{LABEL}{prompt}"
        return prompt

    def _original(self, words: str) -> str:
        """Return the prompt without the label that `_sent` added. For Gemini nothing is left to do,
        because its native driver has already removed the label."""
        if self.native.name != "gemini" and _COMMAND.match(words):
            return words.removeprefix(LABEL)
        return words

    def conversations(self, home: Path, limit: int, only: str = "") -> Sequence[Conversation]:
        return self.native.conversations(home, limit, only)

    def messages_of(self, transcript: bytes) -> Sequence[SpokenMessage]:
        return self.native.messages_of(transcript)

    def parent(self, transcript: bytes) -> str:
        return self.native.parent(transcript)

    def loads(self, transcript: bytes, bases: Sequence[bytes] = ()) -> Loaded | None:
        return self.native.loads(transcript, bases)

    def damaged(self, transcript: bytes) -> Sequence[tuple[int, int]]:
        return self.native.damaged(transcript)

    def bases(self, home: Path, transcript: bytes) -> Sequence[Path]:
        return self.native.bases(home, transcript)

    def repair(
        self, copy: bytes, session_id: str, name: str = "", complaint: str = ""
    ) -> RepairResult:
        return self.native.repair(copy, session_id, name, complaint)

    def files_of(self, home: Path, session_id: str) -> Sequence[Path]:
        return self.native.files_of(home, session_id)

    def retention(self, home: Path) -> Retention | None:
        return self.native.retention(home)

    def fill(self, transcript: bytes) -> Fill:
        return self.native.fill(transcript)

    def replies(self, transcript: bytes) -> Sequence[Reply]:
        return self.native.replies(transcript)

    def total(self, transcript: bytes) -> Usage:
        """Return a `Usage` of zero. Over ACP, usage is reported for each turn and not for the whole
        conversation."""
        return Usage()

    def open_request(self, content: bytes) -> OpenRequest | None:
        if isinstance(self.native, TellsRequests):
            return self.native.open_request(content)
        return None

    def subagent_replies(self, home: Path, session_id: str, since: int) -> Sequence[Reply]:
        if isinstance(self.native, CountsSubagents):
            return self.native.subagent_replies(home, session_id, since)
        return ()

    def denials_in_transcript(self, content: bytes) -> Sequence[AgentEvent]:
        if isinstance(self.native, ReadsDenials):
            return self.native.denials_in_transcript(content)
        return ()

    def may_ask(self, spec: TaskSpec, version: str) -> bool:
        return acp_requests.may_ask(spec.permissions, self.known.allow[spec.permissions])

    def open_calls(self, output: bytes, directory: Path, transcript: bytes) -> Sequence[OpenCall]:
        return acp_requests.open_calls(output)

    def interactive_command(self, launch: Launch) -> Command:
        """Return the command that opens the conversation in the agent's interactive native program.
        The command names the program without a path."""
        return self.native.interactive_command(
            replace(launch, program=Program(path=self.native.name))
        )

    def writers(self, home: Path, session_id: str) -> Sequence[int]:
        """Return the ids of the processes that write to the conversation: those that the native
        driver finds and, except for Codex, the bridges whose order names the conversation."""
        own = self.native.writers(home, session_id)
        if self.native.name == "codex":
            return own
        return sorted({*own, *_bridges(home, session_id)})


def _bridges(home: Path, session_id: str) -> Iterator[int]:
    """Yield the process ids of the bridges whose order names this conversation. Reads the command
    lines of all visible processes."""
    for pid in system.pids() if session_id else ():
        with suppress(OSError):
            words = system.command(pid).split(b"\0")
            if len(words) > 3 and words[2].endswith(b"/acp_bridge.py"):
                order = json_lines.read(words[3])
            else:
                order = None
            if order and order.get("session") == session_id and order.get("home") == str(home):
                yield pid
