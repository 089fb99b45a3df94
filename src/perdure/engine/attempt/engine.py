"""The components that an attempt works with: wired together once, in the composition root, and
passed down."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar, cast

from msgspec import Struct, field

from perdure.agents.transcripts import Copies
from perdure.engine.attempt.warm_agents import WarmAgents
from perdure.errors import Conflict
from perdure.host.homes.remembered import LinkedHomes
from perdure.host.redaction import NO_SECRETS, Redactor
from perdure.host.volumes import Volumes
from perdure.model import (
    NOWHERE,
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
from perdure.model.events import AnyEvent
from perdure.protocols import (
    AgentDriver,
    AuditStore,
    BoardStore,
    CountingStore,
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
"""Variables of the user's environment that any program needs; the agent's own variables come from
its driver."""

HISTORY = 100_000
"""Maximum number of records of a run that are read."""
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
    AuditStore,
    CountingStore,
    BoardStore,
    RequestStore,
    Protocol,
):
    """All parts of the store together: runs, sessions, plans, the inbox, postings, tokens,
    notices, the audit trail, counts and the board."""


def _keep_on() -> bool:
    return False


class Engine(Struct, frozen=True, kw_only=True):
    """The replaceable parts with which attempts work, and the few numbers that control them."""

    store: EngineStore
    workspaces: Workspaces
    driver: Callable[[str], AgentDriver]
    copies: Copies
    state: Path
    environ: Mapping[str, str]
    """The user's environment, with the locations of homes that were linked to a volume; it may
    change while a supervisor lives."""
    worker: str
    homes: LinkedHomes
    prove: Callable[[AgentDriver, str, bytes, str, Path], str] | None = None
    """Tests whether the agent goes on from a repaired transcript, and returns why not (see
    `perdure.agents.proof`); None: no transcript is repaired."""
    redactor: Redactor = NO_SECRETS
    volumes: Volumes = NO_LIMITS
    host: Host = NOWHERE
    """This host among the hosts that share the database; `NOWHERE` if it is not shared."""
    lease_s: float = 60.0
    grace_s: float = 10.0
    checkpoint_every_s: float = 20.0
    """Minimum interval between two checkpoints while an agent runs, in seconds; 0: only at the ends
    of turns and attempts."""
    checkpoint_ignored: str = "small"
    """Sort of ignored files that a checkpoint includes: `small`, `all` or `none`."""
    session_lifetime_s: float = 0.0
    """Time in seconds after which an unused session expires; 0: never."""
    on_expiry: OnExpiry = OnExpiry.RESUME
    on_denied: OnDenied = OnDenied.ASK
    """Action after a denied call, for tasks that do not set one."""
    request_expiry_s: float = 0.0
    """Time in seconds for which a run waits for a person's answers to its agent; 0: no agent may
    ask."""
    on_leftover: OnLeftover = OnLeftover.END
    """Action on leftover processes, for tasks that do not set one."""
    last_word: str = "off"
    """Whether an agent is asked to end with a last message in a fixed form: `on` or `off`."""
    map_when: MapWhen = MapWhen.FALLBACK
    """When a prompt gets the project map, for tasks that do not set it."""
    map_tokens: int = 2000
    cold_cache: ColdCache = ColdCache.RESUME
    account_jobs: Mapping[str, int] = field(default_factory=dict)
    """Maximum number of concurrent runs on one account, by agent; `*` for those that are not
    named."""
    rules: Mapping[str, Rule] = field(default_factory=dict)
    """Configured rules (`[agents.NAME]`), by name (`TaskSpec.rule`)."""
    context: FillRules = AS_USUAL
    """Rules for a conversation that becomes too long for its model."""
    warm: WarmAgents | None = None
    """The agents kept between attempts; None if none may be kept."""
    publisher: Publisher | None = None
    """Uploads checkpoints to the checkpoint store; None if none is set."""
    stopping: Callable[[], bool] = _keep_on
    """Returns True once the supervisor was asked to end: the attempt is then stopped gracefully."""
    leaving: str = ""
    """Reason for an attempt that ended because its supervisor was asked to end. With a reason it
    counts as `lost`, without one as `cancelled`, as if a person had stopped it."""

    def attempt_directory(self, claim: Claim) -> Path:
        """Return the directory of the attempt's logs and process marks."""
        return self.state / "runs" / claim.run.id / str(claim.attempt)

    def elsewhere(self, run: TaskRun) -> bool:
        """Return whether the run's workdir and conversation are on another host."""
        return bool(self.host.id) and run.host not in ("", self.host.id)

    def require_here(self, run: TaskRun, so: str) -> None:
        """Raise Conflict if the run's workdir and conversation are on another host. `so` says what
        cannot be done."""
        if self.elsewhere(run):
            raise Conflict(
                f"The workdir and conversation of {run.name} are on {run.host_name}, so {so} here",
                f"do it on {run.host_name}",
            )

    def kept_from(self, run: TaskRun) -> str:
        """Return why the run cannot go on here because its files are on another host; empty if it
        can."""
        if not self.elsewhere(run):
            return ""
        there = f"its workdir and conversation are on {run.host_name}"
        if self.publisher is None:
            return f"{there}, and no checkpoint store is set to fetch them from"
        why = self.publisher.available(run)
        if why:
            return f"{there}, and cannot be fetched: {why}"
        return ""

    def writers(
        self, driver: AgentDriver, home: Path, session_id: str, *, but: str = ""
    ) -> Sequence[int]:
        """Return the live processes of other programs that use a conversation. First end an idle
        kept agent that uses it, unless it is in the workdir `but`."""
        if self.warm is not None:
            self.warm.end_on(session_id, self.workspaces.lock, but)
        return driver.writers(home, session_id)

    def committer(self, run: TaskRun) -> dict[str, str]:
        """Return the git identity of the run's commits as environment variables, as its rule says.
        If the rule names none, the author is called after the role: `reviewer (claude)`."""
        rule, role = self.rules.get(run.spec.rule), role_of_run(run)
        if rule is None or not rule.git_name:
            if role:
                return {"GIT_AUTHOR_NAME": worker_of(role, run.spec.agent)}
            return {}
        pairs = product(("AUTHOR", "COMMITTER"), rule.git_identity.items())
        return {f"GIT_{role}_{part}": text for role, (part, text) in pairs}

    def moved_to(self, run_id: str) -> Path:
        """Return the file that names the checkpoint store to which a run was moved; it does not
        exist for a run that is here."""
        return self.state / "moved" / run_id

    def agent_environment(self, driver: AgentDriver, run: TaskRun) -> dict[str, str]:
        """Return the agent's environment: the ordinary variables, its own documented ones, and
        those that the task names."""
        passed = {
            name: value
            for name, value in self.environ.items()
            if is_passed(name, (*ORDINARY, *driver.variables))
        }
        named = {name: self.environ[name] for name in run.spec.pass_env if name in self.environ}
        return {**passed, **named, **run.spec.env}


def leftover_policy(on_leftover: OnLeftover, run: TaskRun) -> OnLeftover:
    """Return the policy for processes that the run's agent leaves running."""
    return OnLeftover(run.spec.on_leftover or on_leftover)


def redacted(event: EventT, redactor: Redactor) -> EventT:
    """Return the event without secrets."""
    text = encode(event)
    clean = redactor.text(text)
    if clean == text:
        return event
    return cast(EventT, decode_event(clean))


@lru_cache(4096)
def is_passed(name: str, patterns: tuple[str, ...]) -> bool:
    """Return whether a variable matches one of the patterns; a pattern that begins with `!`
    excludes names. perdure's own variables never match."""
    if name.startswith("PERDURE_"):
        return False
    if any(_matches(name, pattern[1:]) for pattern in patterns if pattern.startswith("!")):
        return False
    return any(_matches(name, pattern) for pattern in patterns)


def _matches(name: str, pattern: str) -> bool:
    """Return what `fnmatchcase` returns. `fnmatchcase` compiles each pattern, so it is called only
    for patterns with more than one `*`."""
    before, star, after = pattern.partition("*")
    if "*" in after or "?" in pattern or "[" in pattern:
        return fnmatchcase(name, pattern)
    if not star:
        return name == pattern
    fits = len(name) >= len(before) + len(after)
    return fits and name.startswith(before) and name.endswith(after)


def mark_of(attempt: Attempt) -> str:
    """Return the mark that all processes of an attempt carry in their environment."""
    return mark_of_number(attempt.run, attempt.number)


def mark_of_number(run_id: str, number: int) -> str:
    """Return the mark of the attempt with this number, which need not have begun."""
    return f"{run_id}.{number}"
