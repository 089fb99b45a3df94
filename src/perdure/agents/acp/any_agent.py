"""The driver for ACP agents without a native driver: `acp-NAME`, where the environment variable
PERDURE_ACP_NAME holds the agent's command. Created by `acp.make`.

perdure does not know where such an agent stores its conversations, so it cannot prove from files
that a conversation continued. Three cases:

- An agent that can load a conversation replays all of it. The bridge compares the replay with
  perdure's own record before the prompt is sent.
- For an agent that can only resume a conversation, perdure relies on the agent's response.
- With any other agent, each attempt begins a new conversation and is given the project map.

With `--env`, the user names further environment variables that the agent gets.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from perdure.agents.acp import events as acp_events
from perdure.agents.acp import outcome
from perdure.agents.acp.driver import BRIDGE
from perdure.agents.shared import programs
from perdure.errors import AgentMissing
from perdure.host.extras import install_command
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
    Start,
    TaskSpec,
    Usage,
)
from perdure.model.events import AgentEvent, TurnEnded
from perdure.model.requests import OpenCall
from perdure.protocols import Abilities, Archive, Prompt, Retention, SpokenMessage, Warm
from perdure.rules.transcript_repair import RepairResult

if TYPE_CHECKING:
    from perdure.agents.acp.acp_bridge import AcpOrder

ALLOW = {Permissions.EDIT: "work", Permissions.FULL: "anything"}
"""Value of the order's field `allow` for each permissions level. The level `read` is missing.
Nothing but this field restricts the agent, and an agent may request permissions for some calls
only. So a launch with `read` is refused."""


class AnyAcpDriver:
    """Implements `AgentDriver` for an ACP agent without a native driver."""

    archive: Archive | None = None
    warm: Warm | None = None
    variables: tuple[str, ...] = ()
    abilities = Abilities(
        choose_id=False,
        fork=False,
        resume_by_path=False,
        cwd_bound=False,
        cumulative_usage=False,
        max_prompt_bytes=0,
        transcripts=False,
    )

    def __init__(self, name: str) -> None:
        self.name = f"acp-{name}"
        self.variable = f"PERDURE_ACP_{name.replace('-', '_').upper()}"

    def locate(self, environ: Mapping[str, str]) -> Program:
        """Return the agent's command, quoted for a shell, with its version. Raise AgentMissing if
        the command is not set, its program is not found, or the library is not installed."""
        if find_spec("acp") is None:
            raise AgentMissing(
                f"{self.name} needs the library agent-client-protocol.",
                install_command("acp"),
            )
        given = environ.get(self.variable, "")
        words = shlex.split(given)
        if not words:
            raise AgentMissing(
                f"There is no agent named {self.name!r}.",
                f"For an agent of your own that speaks ACP: {self.variable}=COMMAND",
            )
        found = shutil.which(words[0], path=environ.get("PATH", os.defpath))
        if found is None:
            raise AgentMissing(f"{self.name} cannot be started: there is no program {given!r}.")
        return Program(path=shlex.join(words), version=programs.version(Path(found)))

    def home(self, environ: Mapping[str, str]) -> Path:
        """Return the user's home directory, because perdure does not know where the agent stores
        its files."""
        return Path(environ.get("HOME") or "/")

    def refuse(self, launch: Launch) -> str:
        if launch.spec.permissions not in ALLOW:
            return (
                f"{self.name} cannot be restricted to the level {launch.spec.permissions}: it "
                "asks before some calls only, and nothing else restricts it."
            )
        return ""

    def command(self, launch: Launch) -> Command:
        """Return the command that starts the bridge, with the order (JSON) as its argument. Raise
        ValueError if the continuation is a fork, or if it starts nothing."""
        asked = launch.continuation
        if asked.kind not in (Start.FRESH, Start.REBUILD, Start.RESUME):
            raise ValueError(f"{self.name} has no continuation {asked.kind}")
        goes_on = asked.kind is Start.RESUME
        order: AcpOrder = {
            "command": [*shlex.split(launch.program.path), *launch.spec.agent_args],
            "cwd": launch.cwd,
            "directories": [],
            "start": "resume" if goes_on else "new",
            "session": asked.session_id if goes_on else "",
            "known": list(launch.marks),
            "mode": "",
            "allow": ALLOW[launch.spec.permissions],
            "model": launch.spec.model,
            "notices": False,
            "requests": launch.requests if launch.answers else "",
            "again": False,
            "home": launch.home,
            "hold": "",
        }
        return Command(
            argv=(sys.executable, "-P", str(BRIDGE), json.dumps(order)),
            stdin=launch.prompt.encode("utf-8", "replace"),
        )

    def parse(self, line: bytes) -> Sequence[AgentEvent]:
        return acp_events.parse(line)

    def outcome(self, exit: Exit, events: Sequence[AgentEvent]) -> Outcome:
        return outcome.outcome(exit, events, None)

    def refused_to_open(self, ended: TurnEnded) -> bool:
        return outcome.refused_to_open(ended)

    def may_ask(self, spec: TaskSpec, version: str) -> bool:
        return acp_events.may_ask(spec.permissions, ALLOW[spec.permissions])

    def open_calls(self, output: bytes, directory: Path, transcript: bytes) -> Sequence[OpenCall]:
        return acp_events.open_calls(output)

    def interactive_command(self, launch: Launch) -> Command:
        """Return the command that starts the agent's program without a conversation. perdure does
        not know how to continue a conversation in that program."""
        return Command(argv=tuple(shlex.split(launch.program.path)), stdin=b"")

    # The methods below find nothing, because the place and the format of the agent's conversations
    # are not known.

    def transcript(self, home: Path, session_id: str) -> Path | None:
        return None

    def place(self, home: Path, session_id: str, cwd: Path, copy: Path) -> Path:
        raise ValueError(f"where {self.name} keeps its conversations is not known")

    def sidecar_files(self, transcript: Path) -> Sequence[Path]:
        return ()

    def prompts(self, transcript: bytes) -> Sequence[Prompt]:
        return ()

    def conversations(self, home: Path, limit: int, only: str = "") -> Sequence[Conversation]:
        return ()

    def messages_of(self, transcript: bytes) -> Sequence[SpokenMessage]:
        return ()

    def parent(self, transcript: bytes) -> str:
        return ""

    def loads(self, transcript: bytes, bases: Sequence[bytes] = ()) -> Loaded | None:
        return None

    def damaged(self, transcript: bytes) -> Sequence[tuple[int, int]]:
        return ()

    def bases(self, home: Path, transcript: bytes) -> Sequence[Path]:
        return ()

    def repair(
        self, copy: bytes, session_id: str, name: str = "", complaint: str = ""
    ) -> RepairResult:
        return RepairResult(refusal=f"what {self.name} writes is not known")

    def files_of(self, home: Path, session_id: str) -> Sequence[Path]:
        return ()

    def retention(self, home: Path) -> Retention | None:
        return None

    def replies(self, transcript: bytes) -> Sequence[Reply]:
        return ()

    def total(self, transcript: bytes) -> Usage:
        return Usage()

    def fill(self, transcript: bytes) -> Fill:
        return Fill()

    def writers(self, home: Path, session_id: str) -> Sequence[int]:
        return ()
