"""Data types for a run: its workdir, host and claim, and the decision after an attempt."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct

from perdure.model.choices import Backend, RunState
from perdure.model.tasks import TaskSpec


class Condition(Struct, frozen=True, kw_only=True):
    """Something about a run that a person should know: `needs_person`, `collision`, `drift`,
    `open`, `unsaved`."""

    type: str
    message: str
    at: int


def condition_of(conditions: Iterable[Condition], kind: str) -> Condition | None:
    """Return the first condition of this type; None if there is none."""
    for condition in conditions:
        if condition.type == kind:
            return condition
    return None


UNSAVED = "unsaved"
"""Type of the condition of a finished run whose workdir contains work that is saved nowhere
else."""


class Workspace(Struct, frozen=True, kw_only=True):
    """The record of a workdir. `id` and `path` depend only on the workdir's identity. The identity
    is one of: repository, agent and branch; service and task; path."""

    id: str
    path: str
    backend: Backend
    repo: str = ""
    branch: str = ""
    base: str = ""


class TaskRun(Struct, frozen=True, kw_only=True):
    """A task together with its state and attempts. `attempt` is the number of the latest attempt; 0
    before the first one."""

    id: str
    name: str
    spec: TaskSpec
    state: RunState
    created: int
    updated: int
    context_version: int = 1
    attempt: int = 0
    attempts_allowed: int = 3
    """Maximum number of attempts. Some outcomes do not count (see `rules.lifecycle.UNCOUNTED`). A
    retry or an update by a person raises the maximum if too few attempts are left."""
    run_after: int = 0
    reason: str = ""
    workspace: Workspace | None = None
    conditions: tuple[Condition, ...] = ()
    cancel_requested: bool = False
    worker: str = ""
    lease_until: int = 0
    finished: int | None = None
    origin: str = ""
    """Id of the run on the machine that it came from; empty if it began on this machine."""
    host: str = ""
    """In a shared database: id of the host that has the run's workdir and conversation. Empty if
    any host may start the run."""
    host_name: str = ""
    account: str = ""
    """Account whose limits the newest attempt used; empty if unknown."""

    @property
    def scope(self) -> str:
        """Scope of the run's conversation: the requested scope, else the name of the service's
        task, else the run itself. Runs of one agent with the same scope share a conversation."""
        if self.spec.scope:
            return self.spec.scope
        if self.spec.service and self.spec.task:
            return f"task:{self.spec.service}/{self.spec.task}"
        return f"run:{self.id}"


USUAL_MODEL = "(usual)"
"""Model of a slot or a pause for runs that name no model and use the agent's own default."""


class AccountSlot(Struct, frozen=True, kw_only=True):
    """The account and the rule that a run uses. A run may start only if both have a free slot: each
    may limit its number of concurrent runs."""

    account: str
    """Name of the account: the agent and its credentials. Credentials are distinguished as far as
    that is possible without reading a secret (see `engine.attempt.accounts`)."""
    agent: str
    model: str = ""
    jobs: int = 0
    """Maximum number of concurrent runs of the account; 0: no limit."""
    rule: str = ""
    rule_jobs: int = 0
    """Maximum number of concurrent runs under the rule; 0: no limit."""


class Parking(Struct, frozen=True, kw_only=True):
    """A time until which nothing is launched with an account or an agent (`what`). `model`: only
    runs with this model are affected (`USUAL_MODEL`: those that name none); empty: all."""

    what: str
    until: int
    reason: str
    model: str = ""
    since: int = 0

    @property
    def affected(self) -> str:
        """The affected runs as a clause to be appended to a sentence; empty if all runs are
        affected."""
        if self.model == USUAL_MODEL:
            return " for runs without --model"
        if self.model:
            return f" for model {self.model}"
        return ""


class Host(Struct, frozen=True):
    """One of several installations of perdure that share a database. A host is one state directory
    on one machine."""

    id: str
    name: str
    patience_s: float | None = None
    """How long, in seconds, this host leaves a due run to the host that has the run's files. None
    means forever: this host could not fetch the files."""

    @property
    def label(self) -> str:
        return f"{self.name}/{self.id[:8]}"

    def elsewhere(self, run: TaskRun) -> bool:
        """Return whether the run's workdir and conversation are on another host than this one."""
        return bool(self.id) and run.host not in ("", self.id)


UNSHARED_HOST = Host("", "")
"""The host value for a database that is not shared."""


class Claim(Struct, frozen=True):
    """The right to work on one attempt of a run, until the lease expires."""

    run: TaskRun
    attempt: int
    worker: str


class Decision(Struct, frozen=True, kw_only=True):
    """The decision after an attempt: the run's next state and, if it continues, when and why."""

    state: RunState
    run_after: int = 0
    reason: str = ""
    condition: Condition | None = None
