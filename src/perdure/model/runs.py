"""A run with its workdir, host and claim, and the decision after an attempt."""

from __future__ import annotations

from msgspec import Struct

from perdure.model.choices import Backend, RunState
from perdure.model.tasks import TaskSpec


class Condition(Struct, frozen=True, kw_only=True):
    """Something about a run that a person should know: `needs_person`, `collision`, `drift`,
    `open`, `unsaved`."""

    type: str
    message: str
    at: int


UNSAVED = "unsaved"
"""Type of the condition of a run whose work is over and whose workdir contains work that is saved
nowhere else."""


class Workspace(Struct, frozen=True, kw_only=True):
    """A working directory. `id` and `path` depend only on its identity."""

    id: str
    path: str
    backend: Backend
    repo: str = ""
    branch: str = ""
    base: str = ""


class TaskRun(Struct, frozen=True, kw_only=True):
    """A task with its state and attempts. `attempt` is the number of the latest attempt, 0 before
    the first."""

    id: str
    name: str
    spec: TaskSpec
    state: RunState
    created: int
    updated: int
    context_version: int = 1
    attempt: int = 0
    attempts_allowed: int = 3
    """Maximum number of attempts that count; a person's retry raises it by one."""
    run_after: int = 0
    reason: str = ""
    workspace: Workspace | None = None
    conditions: tuple[Condition, ...] = ()
    cancel_requested: bool = False
    worker: str = ""
    lease_until: int = 0
    finished: int | None = None
    origin: str = ""
    """The run's id on the machine that it came from; empty for a run that began here."""
    host: str = ""
    """In a shared database: the id of the host that has the run's workdir and conversation. Empty
    if any host may begin."""
    host_name: str = ""
    account: str = ""
    """The account whose limits the newest attempt used; empty if unknown."""

    @property
    def scope(self) -> str:
        """The scope of the conversation: the requested one, else the service's task, else this run
        alone."""
        if self.spec.scope:
            return self.spec.scope
        if self.spec.service and self.spec.task:
            return f"task:{self.spec.service}/{self.spec.task}"
        return f"run:{self.id}"


class Seat(Struct, frozen=True, kw_only=True):
    """A place among the runs that may use one account at the same time."""

    account: str
    """Agent and credentials, as far as they can be told apart without reading a secret. See
    `engine.attempt.accounts`."""
    agent: str
    model: str = ""
    jobs: int = 0
    """Maximum number of runs of the account at the same time; 0: no limit."""
    rule: str = ""
    rule_jobs: int = 0
    """Maximum number of runs under the rule at the same time; 0: no limit."""


class Parking(Struct, frozen=True, kw_only=True):
    """A time before which nothing is launched on an account, or on an agent (`what`). `model`: only
    runs of this model are affected; empty: all."""

    what: str
    until: int
    reason: str
    model: str = ""
    since: int = 0


class Host(Struct, frozen=True):
    """One of several installations that share a database. A host is one state directory on one
    machine."""

    id: str
    name: str
    patience_s: float | None = None
    """Time, in seconds, for which this host leaves a due run to the host that has the run's files.
    None: for ever, because this host could not fetch the files."""

    @property
    def label(self) -> str:
        return f"{self.name}/{self.id[:8]}"


NOWHERE = Host("", "")
"""The host of a database that is not shared."""


class Claim(Struct, frozen=True):
    """The right to work on one attempt of a run, until the lease expires."""

    run: TaskRun
    attempt: int
    worker: str


class Decision(Struct, frozen=True, kw_only=True):
    """The decision after an attempt: the run's next state and, if it goes on, when and why."""

    state: RunState
    run_after: int = 0
    reason: str = ""
    condition: Condition | None = None
