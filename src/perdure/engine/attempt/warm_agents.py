"""Agents that are kept between attempts: one process has one turn after the other, as long as each
is what a new process would have had.

Called by `opening_steps` (who idles in this workdir, can it have this turn), `supervision` (is the
turn over, and saved) and by everybody who is about to touch a workdir or a conversation. What it
guarantees:

- The process that owns an `Idle` alone gives it turns, holding the workdir's lock. Whoever else
  takes that lock ends it first.
- A turn is given only where program, arguments, environment, directory and conversation are the
  same, the conversation has nothing in it that the process has not seen, and the attempt would be
  resumed by its own id. Else the process is ended, and one is started.
- A turn is over when the agent says so, nothing of it runs, and all of it stands in the transcript:
  the evidence is that of any attempt.
- What is not as it should be ends the process, and costs a start.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import threading
import uuid
from collections.abc import Callable, Mapping
from dataclasses import field, replace
from pathlib import Path

from perdure.errors import Conflict
from perdure.host import process
from perdure.host.process.child import read_json, write
from perdure.lateclass import dataclass
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
"""How the scopes begin whose runs follow each other in one conversation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Keep:
    """Which agents are kept, and for how long. `policy`: `off`, `plans` or `on`."""

    policy: str = "plans"
    idle_s: float = 300.0
    turns: int = 50
    memory: int = 2 * 1024**3
    """Bytes resident, of an agent and all below it, between two turns; 0: no limit."""
    most: int = 4
    """Agents that idle at once."""


@dataclass(slots=True, kw_only=True)
class Idle:
    """An agent that is kept: between two turns, or in one of them."""

    kept: process.Kept
    workspace: Workspace
    like: str = ""
    """What every turn of it has in common, as a digest."""
    session_id: str = ""
    seen: Snapshot | None = None
    """The conversation when it came to rest: what its process knows."""
    since: float = field(default_factory=process.boottime)


class WarmAgents:
    """The kept agents of this process, by workdir; and the way to those of others, which are
    registered in `directory`."""

    def __init__(self, directory: Path, keep: Keep, grace_s: float) -> None:
        self.directory, self.keep, self.grace_s = directory, keep, grace_s
        self._idle: dict[str, Idle] = {}
        self._guard = threading.Lock()

    def wanted(self, driver: AgentDriver, run: TaskRun) -> bool:
        """Whether the agent of this run is to be kept, where it can be."""
        policy = self.keep.policy
        return driver.warm is not None and (
            policy == "on" or (policy == "plans" and run.scope.startswith(PLAN))
        )

    def borrow(self, workspace: Workspace, session_id: str) -> Idle | None:
        """This process's own idle agent of the workdir, if it is on this conversation; whatever
        else idles there is ended. The caller holds the workdir's lock. Raises Conflict."""
        with self._guard:
            idle = self._idle.pop(workspace.id, None)
        if idle is not None and session_id and idle.session_id == session_id and idle.kept.alive():
            return idle
        self._end(workspace, idle)
        return None

    def end_in(self, workspace: Workspace) -> None:
        """Ends what idles in the workdir, whoever keeps it. The caller holds the workdir's lock.
        Raises Conflict where that cannot be done from here."""
        with self._guard:
            idle = self._idle.pop(workspace.id, None)
        self._end(workspace, idle)

    def _end(self, workspace: Workspace, idle: Idle | None) -> None:
        if idle is not None:
            idle.kept.end()
        there = self.directory / workspace.id
        if not there.exists():
            return
        host = read_json(there / "about.json").get("host", socket.gethostname())
        if host != socket.gethostname():
            raise Conflict(
                f"An agent idles in {workspace.path}, which perdure on {host} keeps warm.",
                "It ends by itself; perdure stop, or the end of that plan or pool, ends it at "
                "once.",
            )
        process.end_kept(there, self.grace_s)

    def end_on(self, session_id: str, lock: Callable[[Workspace, str], int], but: str = "") -> None:
        """Ends what idles on a conversation, in any workdir but `but`. What is at work is left
        alone."""
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
        """A new agent to be kept, which has had no turn yet. The caller holds the workdir's lock,
        and has ended what was there."""
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
        """It waits for its next turn from now on; one that has waited longer has to go if there are
        too many."""
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
            "host": socket.gethostname(),
        }
        with contextlib.suppress(FileNotFoundError):  # it has ended already
            write(idle.kept.directory / "about.json", json.dumps(about).encode(), whole=True)

    def close(self) -> None:
        """Ends all that this process keeps."""
        with self._guard:
            idle, self._idle = list(self._idle.values()), {}
        for each in idle:
            each.kept.end()


def likeness(
    driver: AgentDriver, launch: Launch, env: Mapping[str, str], session_id: str
) -> tuple[str, Command | None]:
    """What a process must have been started with to have this turn on this conversation, as a
    digest; and what it is given."""
    assert driver.warm is not None
    asked = Continuation(kind=Start.RESUME, session_id=session_id)
    command = driver.warm.command(replace(launch, continuation=asked, mark="", compact_at=None))
    if command is None:
        return "", None
    # The rule counts: the level in tokens is only known better once the agent has named its window.
    level = (
        (launch.compact_at.percent, launch.compact_at.given)
        if launch.compact_at is not None
        else None
    )
    whole = (
        level,
        command.argv,
        sorted({**command.env, **env}.items()),
        launch.cwd,
        launch.home,
        launch.program.version,
    )
    return hashlib.sha256(repr(whole).encode("utf-8", "surrogateescape")).hexdigest(), command
