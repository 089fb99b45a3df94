"""Keeps agents running between attempts. One process serves several attempts in a row, each as one
turn, as long as a new process would have the same settings and conversation.

Called by `opening_steps` to get the idle agent of a workdir, by `launch` to start one, and by
`turns` to keep one after its turn. Code that is about to change a workdir or a conversation ends
the idle agents there first. Guarantees:

- Only the process that owns an `Idle` gives it turns, while it holds the workdir's lock.
- Any other process that takes the lock ends the agent first.
- An agent gets a turn only if a new process would have the same settings and conversation.
- The conversation must contain nothing that the agent's process has not seen.
- A turn is over when the agent reports it, nothing runs any more, and the transcript has all of it.
- If any of these conditions is not met, the process is ended; the next attempt then starts a new
  one.
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
"""Prefix of the scopes that belong to plans. The runs of one scope use one conversation, one after
the other."""


class Keep(Struct, frozen=True, kw_only=True):
    """Limits for kept agents. `policy` says which are kept: `off` (none), `plans` (those of plans)
    or `on` (all)."""

    policy: str = "plans"
    idle_s: float = 300.0
    turns: int = 50
    memory: int = 2 * 1024**3
    """Maximum resident memory of an agent and its descendants between two turns, in bytes. 0: no
    limit."""
    most: int = 4
    """Maximum number of idle agents that one perdure process keeps."""


class Idle(Struct, kw_only=True):
    """A kept agent, which is idle or in a turn."""

    kept: process.Kept
    workspace: Workspace
    like: str = ""
    """Digest of the settings with which the agent's process was started. All of its turns need the
    same settings."""
    session_id: str = ""
    seen: Snapshot | None = None
    """Snapshot of the conversation at the end of the agent's last turn. The agent's process knows
    the conversation up to that point."""
    since: float = field(default_factory=process.boottime)


class WarmAgents:
    """The kept agents of this process, by workdir. Files in `directory` register the agents of all
    processes of this host, so that this class can also end agents of other processes."""

    def __init__(self, directory: Path, keep: Keep, grace_s: float) -> None:
        self.directory, self.keep, self.grace_s = directory, keep, grace_s
        self._idle: dict[str, Idle] = {}
        self._guard = threading.Lock()

    def wanted(self, driver: AgentDriver, run: TaskRun) -> bool:
        """Return whether the settings ask for keeping the run's agent and its driver supports
        this."""
        policy = self.keep.policy
        return driver.warm is not None and (
            policy == "on" or (policy == "plans" and run.scope.startswith(PLAN))
        )

    def borrow(self, workspace: Workspace, session_id: str) -> Idle | None:
        """Return the idle agent of the workdir, if this process owns it and it has this
        conversation. Otherwise end the workdir's idle agent and return None. The caller holds the
        workdir's lock. Raises Conflict if the idle agent runs on another machine."""
        with self._guard:
            idle = self._idle.pop(workspace.id, None)
        if idle is not None and session_id and idle.session_id == session_id and idle.kept.alive():
            return idle
        self._end(workspace, idle)
        return None

    def end_in(self, workspace: Workspace) -> None:
        """End the idle agent of the workdir, whichever process owns it. The caller holds the
        workdir's lock. Raises Conflict if the agent runs on another machine."""
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
        """End the idle agents of a conversation. Agents that are in a turn are left alone. `lock`:
        function that takes a workdir's lock, which ends the idle agent there. `but`: id of a
        workdir whose idle agent is not ended."""
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
        """Start an agent that will be kept, and return it before its first turn. The caller holds
        the workdir's lock, and has ended any idle agent there."""
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
        """Keep the agent for its next turn. If there are too many idle agents, end those that have
        been idle longest."""
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
            with contextlib.suppress(Conflict):  # another attempt is just giving it a turn
                os.close(lock(each.workspace, "perdure"))

    def _register(self, idle: Idle) -> None:
        about = {
            "session": idle.session_id,
            "path": idle.workspace.path,
            "backend": str(idle.workspace.backend),
            "host": os.uname().nodename,
        }
        with contextlib.suppress(FileNotFoundError):  # the agent has already ended
            write(idle.kept.directory / "about.json", json.dumps(about).encode(), whole=True)

    def close(self) -> None:
        """End all agents that this process owns."""
        with self._guard:
            idle, self._idle = list(self._idle.values()), {}
        for each in idle:
            each.kept.end()


def compatibility_digest(
    driver: AgentDriver, launch: Launch, env: Mapping[str, str], session_id: str
) -> tuple[str, Command | None]:
    """Return a digest of the settings that a process for this turn needs, and the command of the
    turn. The command is None if the agent cannot be kept for this launch."""
    assert driver.warm is not None
    asked = Continuation(kind=Start.RESUME, session_id=session_id)
    command = driver.warm.command(replace(launch, continuation=asked, mark="", compact_at=None))
    if command is None:
        return "", None
    # The digest contains the user's setting, not the resulting number of tokens. That number is
    # known exactly only after the agent has reported its context window.
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
