"""Defines `Engine`, the parts and settings that every attempt uses. They are created once, in
`wiring`, and passed as one value."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar, cast

from msgspec import Struct, field

from perdure.agents.transcripts import Copies
from perdure.engine.attempt.heartbeat import Heartbeat
from perdure.engine.attempt.warm_agents import WarmAgents
from perdure.errors import Conflict
from perdure.host.homes.linked_homes import LinkedHomes
from perdure.host.redaction import NO_SECRETS, Redactor
from perdure.host.volumes import Volumes
from perdure.model import (
    UNSHARED_HOST,
    Attempt,
    Claim,
    ColdCache,
    Host,
    MapWhen,
    OnDenied,
    OnExpiry,
    OnLeftover,
    TaskRun,
)
from perdure.model.codec import decode_event, encode
from perdure.model.events import AnyEvent, Record
from perdure.protocols import (
    AgentDriver,
    AuditStore,
    BoardStore,
    CountingStore,
    DeviceStore,
    InboxStore,
    NoticeStore,
    PlanStore,
    PostingStore,
    Publisher,
    RequestStore,
    RunStore,
    SessionStore,
    TokenStore,
)
from perdure.rules.context_window import FillRules
from perdure.rules.run_titles import role_of_run, worker_of
from perdure.workspace import Workspaces

if TYPE_CHECKING:
    from perdure.model.forge.rules import Rule

ORDINARY = (
    *(
        "PATH",
        "HOME",
        "USER",
        "LOGNAME",
        "SHELL",
        "LANG",
        "LANGUAGE",
        "LC_*",
        "TZ",
        "TERM",
        "COLORTERM",
        "TMPDIR",
        "XDG_*_HOME",
    ),
    *(
        "VIRTUAL_ENV",
        "PYENV_*",
        "CONDA_*",
        "JAVA_HOME",
        "GOPATH",
        "GOROOT",
        "CARGO_HOME",
        "RUSTUP_HOME",
        "NVM_DIR",
        "NODE_PATH",
    ),
    *(
        "SSL_CERT_FILE",
        "SSL_CERT_DIR",
        "CURL_CA_BUNDLE",
        "REQUESTS_CA_BUNDLE",
        "NODE_EXTRA_CA_CERTS",
    ),
)
"""Variables of the user's environment that any program may need. Each driver lists further
variables for its agent."""

HISTORY = 100_000
"""Maximum number of a run's journal records that one query reads."""
NO_LIMITS = Volumes()
AS_USUAL = FillRules()

EventT = TypeVar("EventT", bound=AnyEvent)


class EngineStore(
    RunStore,
    SessionStore,
    PlanStore,
    InboxStore,
    PostingStore,
    TokenStore,
    NoticeStore,
    DeviceStore,
    AuditStore,
    CountingStore,
    BoardStore,
    RequestStore,
    Protocol,
):
    """The interface of the whole store: runs, sessions, plans, the inbox, postings, tokens,
    notices, devices, the audit trail, counts, the board and requests."""


def work_records(store: RunStore, attempt: Attempt) -> list[Record]:
    """Return the records from which `work_report` derives the report of this attempt, read from the
    store."""
    from perdure.rules.work_report import joined

    own = store.attempt_history(attempt.run, attempt.number)
    return joined(own, store.run_events(attempt.run), attempt.number)


def _keep_on() -> bool:
    return False


class Engine(Struct, frozen=True, kw_only=True):
    """The replaceable parts and the settings that every attempt uses."""

    store: EngineStore
    workspaces: Workspaces
    driver: Callable[[str], AgentDriver]
    copies: Copies
    state: Path
    environ: Mapping[str, str]
    """The user's environment, plus the variables with the paths of linked homes. The values may
    change while a supervisor runs."""
    worker: str
    homes: LinkedHomes
    prove: Callable[[AgentDriver, str, bytes, str, Path], str] | None = None
    """Function that tests whether the agent can continue from a repaired transcript, and returns
    the reason if it cannot (see `perdure.agents.proof`). None: no transcript is repaired."""
    redactor: Redactor = NO_SECRETS
    volumes: Volumes = NO_LIMITS
    host: Host = UNSHARED_HOST
    """This host's identity among the hosts that share a database; `UNSHARED_HOST` if the database
    is not shared."""
    lease_s: float = 60.0
    grace_s: float = 10.0
    checkpoint_every_s: float = 20.0
    """Minimum interval between two checkpoints while an agent runs, in seconds. 0: checkpoints are
    taken only at the end of a turn or an attempt."""
    session_lifetime_s: float = 0.0
    """Time in seconds after which an unused session expires; 0: never."""
    on_expiry: OnExpiry = OnExpiry.RESUME
    on_denied: OnDenied = OnDenied.ASK
    """Action after a denied tool call, for tasks that do not set one."""
    request_expiry_s: float = 0.0
    """Time in seconds that a run waits for a person to answer its agent's requests. 0: agents may
    not ask."""
    on_leftover: OnLeftover = OnLeftover.END
    """Policy for processes that an agent leaves running, for tasks that do not set one."""
    last_word: str = "off"
    """Whether an agent is asked to end with a last message in a fixed form: `on` or `off`."""
    map_when: MapWhen = MapWhen.FALLBACK
    """Policy on which prompts include the project map, for tasks that do not set one."""
    map_tokens: int = 2000
    cold_cache: ColdCache = ColdCache.RESUME
    account_jobs: Mapping[str, int] = field(default_factory=dict)
    """Maximum number of concurrent runs on one account, by agent. The key `*` applies to all agents
    that are not listed."""
    rules: Mapping[str, Rule] = field(default_factory=dict)
    """Configured rules (`[agents.NAME]`), by name (`TaskSpec.rule`)."""
    context: FillRules = AS_USUAL
    """Rules for a conversation that becomes too long for its model."""
    warm: WarmAgents | None = None
    """Agents that are kept between attempts; None if no agent may be kept."""
    publisher: Publisher | None = None
    """Uploader of checkpoints to the checkpoint store; None if no checkpoint store is configured.
    """
    stopping: Callable[[], bool] = _keep_on
    """Function that returns whether the supervisor was asked to end. If it returns True, the
    running attempt is stopped gracefully."""
    leaving: str = ""
    """Outcome detail of attempts that ended because the supervisor was asked to end. If it is set,
    such attempts count as `lost`. If it is empty, they count as `cancelled`, as if a person had
    stopped them."""

    def attempt_directory(self, claim: Claim) -> Path:
        """Return the directory with the attempt's logs and the records of its processes."""
        return self.state / "runs" / claim.run.id / str(claim.attempt)

    def heartbeat(self, claim: Claim) -> Heartbeat:
        """Return what renews the lease of the claimed attempt."""
        directory = self.attempt_directory(claim)
        return Heartbeat(self.store, self.host, self.lease_s, claim, directory)

    def writers(
        self, driver: AgentDriver, home: Path, session_id: str, *, but: str = ""
    ) -> Sequence[int]:
        """End the idle kept agents that use a conversation, then return the ids of the live
        processes that still use it. `but`: id of a workdir whose idle agent is not ended."""
        if self.warm is not None:
            self.warm.end_on(session_id, self.workspaces.lock, but)
        return driver.writers(home, session_id)

    def committer(self, run: TaskRun) -> dict[str, str]:
        """Return environment variables with the git identity for the run's commits, as configured
        by its rule. If the rule sets no identity, return only the author's name, such as `reviewer
        (claude)`; if the run has no role either, return no variables."""
        rule, role = self.rules.get(run.spec.rule), role_of_run(run)
        if rule is None or not rule.git_name:
            if role:
                return {"GIT_AUTHOR_NAME": worker_of(role, run.spec.agent)}
            return {}
        pairs = product(("AUTHOR", "COMMITTER"), rule.git_identity.items())
        return {f"GIT_{role}_{part}": text for role, (part, text) in pairs}


def require_here(host: Host, run: TaskRun, so: str) -> None:
    """Raise Conflict if the run's workdir and conversation are on another host than `host`. `so`:
    the part of the message that says what is impossible, such as "it cannot be moved"."""
    if host.elsewhere(run):
        raise Conflict(
            f"The workdir and conversation of {run.name} are on {run.host_name}, so {so} here",
            f"run this command on {run.host_name}",
        )


def unavailable_reason(host: Host, publisher: Publisher | None, run: TaskRun) -> str:
    """Return the reason why the run cannot continue on this host; empty if the run's files are here
    or can be fetched."""
    if not host.elsewhere(run):
        return ""
    there = f"its workdir and conversation are on {run.host_name}"
    if publisher is None:
        return f"{there}, and no checkpoint store is set to fetch them from"
    why = publisher.available(run)
    if why:
        return f"{there}, and cannot be fetched: {why}"
    return ""


def moved_to(state: Path, run_id: str) -> Path:
    """Return the path of a file with the URL of the checkpoint store to which the run was moved.
    The file does not exist for a run that was not moved."""
    return state / "moved" / run_id


def agent_environment(
    environ: Mapping[str, str], driver: AgentDriver, run: TaskRun
) -> dict[str, str]:
    """Return the agent's environment: the variables of `ORDINARY`, those that its driver lists, and
    those that the task names or sets. `environ`: the user's environment."""
    passed = {}
    for name, value in environ.items():
        if is_passed(name, (*ORDINARY, *driver.variables)):
            passed[name] = value
    named = {}
    for name in run.spec.pass_env:
        if name in environ:
            named[name] = environ[name]
    return {**passed, **named, **run.spec.env}


def leftover_policy(on_leftover: OnLeftover, run: TaskRun) -> OnLeftover:
    """Return the policy for processes that the agent leaves running: the task's, else
    `on_leftover`."""
    return OnLeftover(run.spec.on_leftover or on_leftover)


def redacted(event: EventT, redactor: Redactor) -> EventT:
    """Return the event with secrets replaced."""
    text = encode(event)
    clean = redactor.text(text)
    if clean == text:
        return event
    return cast(EventT, decode_event(clean))


@lru_cache(4096)
def is_passed(name: str, patterns: tuple[str, ...]) -> bool:
    """Return whether a variable matches one of the patterns. A pattern that begins with `!`
    excludes names. Variables of perdure itself (`PERDURE_*`) never match."""
    if name.startswith("PERDURE_"):
        return False
    if any(_matches(name, pattern[1:]) for pattern in patterns if pattern.startswith("!")):
        return False
    return any(_matches(name, pattern) for pattern in patterns)


def _matches(name: str, pattern: str) -> bool:
    """Return whether the name matches the pattern. Equivalent to `fnmatchcase`, but faster:
    patterns with a single `*` need no regular expression."""
    before, star, after = pattern.partition("*")
    if "*" in after or "?" in pattern or "[" in pattern:
        return fnmatchcase(name, pattern)
    if not star:
        return name == pattern
    fits = len(name) >= len(before) + len(after)
    return fits and name.startswith(before) and name.endswith(after)


def process_tag(attempt: Attempt) -> str:
    """Return the value of PERDURE_ATTEMPT in the environment of all processes of an attempt."""
    return process_tag_of(attempt.run, attempt.number)


def process_tag_of(run_id: str, number: int) -> str:
    """Return the value of PERDURE_ATTEMPT for the attempt with this number. The attempt need not
    exist yet."""
    return f"{run_id}.{number}"
