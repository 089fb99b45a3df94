"""A task on its way: the run, where it works, who has it, and what is decided after an attempt."""

from __future__ import annotations

from perdure.lateclass import dataclass
from perdure.model.choices import Backend, RunState
from perdure.model.tasks import TaskSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """Something true of a run that a person should know: `needs_person`, `collision`, `drift`,
    `open`, `unsaved`."""

    type: str
    message: str
    at: int


UNSAVED = "unsaved"
"""Type of the condition of a run whose work is over and whose workdir holds what is nowhere
else."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workspace:
    """A working directory. `id` and `path` are a pure function of its identity, and of nothing
    else."""

    id: str
    path: str
    backend: Backend
    repo: str = ""
    branch: str = ""
    base: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRun:
    """A task on its way. `attempt` is the number of the latest attempt, 0 before the first."""

    id: str
    name: str
    spec: TaskSpec
    state: RunState
    created: int
    updated: int
    context_version: int = 1
    attempt: int = 0
    attempts_allowed: int = 3
    """The cap of attempts that count; a person's retry raises it by one."""
    run_after: int = 0
    reason: str = ""
    workspace: Workspace | None = None
    conditions: tuple[Condition, ...] = ()
    cancel_requested: bool = False
    worker: str = ""
    lease_until: int = 0
    finished: int | None = None
    origin: str = ""
    """The run's id on the machine that it came from; empty for one that began here."""
    host: str = ""
    """In a shared database: the id of the host on which its workdir and conversation lie; empty
    where any may begin."""
    host_name: str = ""
    account: str = ""
    """Whose limits its newest attempt drew on; empty where nobody has said so."""

    @property
    def scope(self) -> str:
        """The conversation's scope: as asked, else the service's task, else this run alone."""
        if self.spec.scope:
            return self.spec.scope
        if self.spec.service and self.spec.task:
            return f"task:{self.spec.service}/{self.spec.task}"
        return f"run:{self.id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """A place among the runs that may be at work on one account."""

    account: str
    """Agent and credentials, as far as they can be told apart without reading a secret; see
    `engine.attempt.accounts`."""
    agent: str
    model: str = ""
    jobs: int = 0
    """So many runs of the account may be at work at once; 0: any number."""
    rule: str = ""
    rule_jobs: int = 0
    """So many runs under the rule may be at work at once; 0: any number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parking:
    """Nothing is launched on `what` (an account, or an agent) before `until`. `model`: only for
    runs of this model; empty: for all."""

    what: str
    until: int
    reason: str
    model: str = ""
    since: int = 0


@dataclass(frozen=True, slots=True)
class Host:
    """One of several that share a database: whoever works with one state directory, on one
    machine."""

    id: str
    name: str
    patience_s: float | None = None
    """How long it leaves a run that is due to the host that has its files; None, for ever, where it
    could not bring them here."""

    @property
    def label(self) -> str:
        return f"{self.name}/{self.id[:8]}"


NOWHERE = Host("", "")
"""Where the database is nobody else's."""


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to work on one attempt of a run, until the lease lapses."""

    run: TaskRun
    attempt: int
    worker: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What follows an attempt: the run's next state and, where it goes on, when and why."""

    state: RunState
    run_after: int = 0
    reason: str = ""
    condition: Condition | None = None
