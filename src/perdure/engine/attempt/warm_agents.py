"""Keeps agents between attempts: one process runs one turn after the other, as long as each turn is
the same as a new process would have run.

Called by `opening_steps` (which agent idles in this workdir, and can it have this turn), by
`supervision` (is the turn over, and saved), and by all code that is about to touch a workdir or a
conversation. Guarantees:

- Only the process that owns an `Idle` gives it turns, while it holds the workdir's lock. Any other
  process that takes that lock ends the agent first.
- An agent gets a turn only if program, arguments, environment, directory and conversation are the
  same, the conversation has nothing in it that the process has not seen, and the attempt would be
  resumed by its own id. Otherwise the process is ended, and a new one is started.
- A turn is over when the agent reports it, nothing of it is running, and all of it is in the
  transcript: the evidence is the same as for any attempt.
- Any deviation ends the process, and costs no more than a new start.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path

from msgspec import Struct, field
from msgspec.structs import replace

from perdure.errors import Conflict
from perdure.host import process
from perdure.host.process.child import read_json, write
from perdure.model import (
    Backend,
    Command,
    Continuation,
    Launch,
    Snapshot,
    Start,
    TaskRun,
    Workspace,
)
from perdure.protocols import AgentDriver

PLAN = "plan:"
"""Prefix of the scopes of plans, whose runs follow each other in one conversation."""


class Keep(Struct, frozen=True, kw_only=True):
    """Which agents are kept, and for how long. `policy`: `off`, `plans` or `on`."""

    policy: str = "plans"
    idle_s: float = 300.0
    turns: int = 50
    memory: int = 2 * 1024**3
    """Maximum resident memory of an agent and its descendants between two turns, in bytes; 0: no
    limit."""
    most: int = 4
    """Maximum number of idle agents."""


class Idle(Struct, kw_only=True):
    """A kept agent, between two turns or in one of them."""

    kept: process.Kept
    workspace: Workspace
    like: str = ""
    """Digest of the settings that all its turns share."""
    session_id: str = ""
    seen: Snapshot | None = None
    """Snapshot of the conversation when the agent became idle. The agent's process knows the
    conversation up to there."""
    since: float = field(default_factory=process.boottime)


class WarmAgents:
    """The kept agents of this process, by workdir, and access to those of other processes, which
    are registered in `directory`."""

    def __init__(self, directory: Path, keep: Keep, grace_s: float) -> None:
        self.directory, self.keep, self.grace_s = directory, keep, grace_s
        self._idle: dict[str, Idle] = {}
        self._guard = threading.Lock()

    def wanted(self, driver: AgentDriver, run: TaskRun) -> bool:
        """Return whether the agent of this run should be kept, if it can be."""
        policy = self.keep.policy
        return driver.warm is not None and (
            policy == "on" or (policy == "plans" and run.scope.startswith(PLAN))
        )

    def borrow(self, workspace: Workspace, session_id: str) -> Idle | None:
        """Return this process's own idle agent of the workdir, if it is on this conversation; any
        other agent that idles there is ended. The caller holds the workdir's lock. Raises
        Conflict."""
        with self._guard:
            idle = self._idle.pop(workspace.id, None)
        if idle is not None and session_id and idle.session_id == session_id and idle.kept.alive():
            return idle
        self._end(workspace, idle)
        return None

    def end_in(self, workspace: Workspace) -> None:
        """End the agent that idles in the workdir, whichever process keeps it. The caller holds the
        workdir's lock. Raises Conflict if that is not possible from this machine."""
        with self._guard:
            idle = self._idle.pop(workspace.id, None)
        self._end(workspace, idle)

    def _end(self, workspace: Workspace, idle: Idle | None) -> None:
        if idle is not None:
            idle.kept.end()
        there = self.directory / workspace.id
        if not there.exists():
            return
        host = read_json(there / "about.json").get("host", os.uname().nodename)
        if host != os.uname().nodename:
            raise Conflict(
                f"perdure on {host} keeps a warm agent in {workspace.path}.",
                "It ends by itself. To end it now: perdure stop, or end that plan or pool.",
            )
        process.end_kept(there, self.grace_s)

    def end_on(self, session_id: str, lock: Callable[[Workspace, str], int], but: str = "") -> None:
        """End the idle agents of a conversation, in any workdir but `but`. An agent that is in a
        turn is left alone."""
        for about in self.directory.glob("*/about.json"):
            known = read_json(about)
            if known.get("session") == session_id and about.parent.name != but:
                with contextlib.suppress(Conflict, KeyError, ValueError):
                    os.close(
                        lock(
                            Workspace(
                                id=about.parent.name,
                                path=known["path"],
                                backend=Backend(known["backend"]),
                            ),
                            "perdure",
                        )
                    )

    def start(self, command: Command, workspace: Workspace, env: Mapping[str, str]) -> Idle:
        """Start an agent to be kept, which has had no turn yet. The caller holds the workdir's
        lock, and has ended the agent that was idle there."""
        directory = self.directory / workspace.id
        if directory.exists():
            process.end_kept(directory, self.grace_s)
        kept = process.keep(
            command,
            directory=directory,
            cwd=Path(workspace.path),
            env=env,
            mark=f"warm.{uuid.uuid4().hex}",
            grace_s=self.grace_s,
            idle_s=self.keep.idle_s,
            memory=self.keep.memory,
        )
        idle = Idle(kept=kept, workspace=workspace)
        self._register(idle)
        return idle

    def give_back(self, idle: Idle, lock: Callable[[Workspace, str], int]) -> None:
        """Let the agent wait for its next turn. If there are too many, those that have waited
        longest are ended."""
        self._register(idle)
        idle.since = process.boottime()
        with self._guard:
            self._idle[idle.workspace.id] = idle
            others = sorted(
                (each for each in self._idle.values() if each is not idle),
                key=lambda each: each.since,
            )
            too_many = others[: max(0, len(self._idle) - self.keep.most)]
        for each in too_many:
            with contextlib.suppress(Conflict):  # it has its next turn just now
                os.close(lock(each.workspace, "perdure"))

    def _register(self, idle: Idle) -> None:
        about = {
            "session": idle.session_id,
            "path": idle.workspace.path,
            "backend": str(idle.workspace.backend),
            "host": os.uname().nodename,
        }
        with contextlib.suppress(FileNotFoundError):  # it has ended already
            write(idle.kept.directory / "about.json", json.dumps(about).encode(), whole=True)

    def close(self) -> None:
        """End all agents that this process keeps."""
        with self._guard:
            idle, self._idle = list(self._idle.values()), {}
        for each in idle:
            each.kept.end()


def compatibility_digest(
    driver: AgentDriver, launch: Launch, env: Mapping[str, str], session_id: str
) -> tuple[str, Command | None]:
    """Return a digest of the settings that a process must have been started with to run this turn
    on this conversation. Also return the command of the turn."""
    assert driver.warm is not None
    asked = Continuation(kind=Start.RESUME, session_id=session_id)
    command = driver.warm.command(replace(launch, continuation=asked, mark="", compact_at=None))
    if command is None:
        return "", None
    # The rule is compared instead of the level in tokens, because that is known exactly only after
    # the agent has reported its context window.
    if launch.compact_at is not None:
        level = (launch.compact_at.percent, launch.compact_at.given)
    else:
        level = None
    whole = (
        level,
        command.argv,
        sorted({**command.env, **env}.items()),
        launch.cwd,
        launch.home,
        launch.program.version,
    )
    return hashlib.sha256(repr(whole).encode("utf-8", "surrogateescape")).hexdigest(), command
