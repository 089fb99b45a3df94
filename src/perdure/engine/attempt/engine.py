"""What an attempt works with: wired together once, in the composition root, and handed down."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import field
from fnmatch import fnmatchcase
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar, cast

from perdure.agents.transcripts import Copies
from perdure.engine.attempt.warm_agents import WarmAgents
from perdure.host.homes.remembered import Remembered
from perdure.host.redaction import NO_SECRETS, Redactor
from perdure.host.volumes import Volumes
from perdure.lateclass import dataclass
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
    BoardStore,
    CountingStore,
    InboxStore,
    PlanStore,
    PostingStore,
    Publisher,
    RunStore,
    SessionStore,
    TokenStore,
)
from perdure.rules.context_window import FillRules
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
"""What any program needs of the user's environment; the agent's own variables come from its
driver."""

HISTORY = 100_000
"""So many records of a run are looked through."""
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
    CountingStore,
    BoardStore,
    Protocol,
):
    """Runs, sessions, plans, the inbox, what is answered and the tokens, and counts of them."""


def _keep_on() -> bool:
    return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """The replaceable parts, and the few numbers that they go by."""

    store: EngineStore
    workspaces: Workspaces
    driver: Callable[[str], AgentDriver]
    copies: Copies
    state: Path
    environ: Mapping[str, str]
    """The user's, with where homes are that were linked to a volume; it may change while a
    supervisor lives."""
    worker: str
    homes: Remembered
    prove: Callable[[AgentDriver, str, bytes, str, Path], str] | None = None
    """Whether the agent goes on from a mended transcript (see `perdure.agents.proof`); None: no
    transcript is mended."""
    redactor: Redactor = NO_SECRETS
    volumes: Volumes = NO_LIMITS
    host: Host = NOWHERE
    """Who this is among the hosts that share the database; `NOWHERE` where it is not shared."""
    lease_s: float = 60.0
    grace_s: float = 10.0
    checkpoint_every_s: float = 20.0
    """At least so long between two checkpoints while an agent works; 0: only at the ends of turns
    and attempts."""
    checkpoint_ignored: str = "small"
    """Which ignored files a checkpoint has: `small`, `all` or `none`."""
    session_lifetime_s: float = 0.0
    """A session expires when it was not used for so long; 0: never."""
    on_expiry: OnExpiry = OnExpiry.RESUME
    on_denied: OnDenied = OnDenied.ASK
    """Where the task does not say, as the next one."""
    on_leftover: OnLeftover = OnLeftover.END
    last_word: str = "off"
    """Whether an agent is asked for its last word in a fixed form."""
    map_when: MapWhen = MapWhen.FALLBACK
    """Which prompts get the project map, where the task does not say."""
    map_tokens: int = 2000
    cold_cache: ColdCache = ColdCache.RESUME
    account_jobs: Mapping[str, int] = field(default_factory=dict)
    """How many runs may be at work on one account, by agent; `*` for those that are not named."""
    rules: Mapping[str, Rule] = field(default_factory=dict)
    """What is configured for the agents of a team, by the name that it gives them
    (`TaskSpec.rule`)."""
    context: FillRules = AS_USUAL
    """What happens before a conversation is too long for its model."""
    warm: WarmAgents | None = None
    """The agents that are kept between attempts, where any may be."""
    publisher: Publisher | None = None
    """Where checkpoints go besides, where a checkpoint store is set."""
    stopping: Callable[[], bool] = _keep_on
    """True as soon as the supervisor was asked to end: the attempt is stopped in good order."""
    leaving: str = ""
    """Why an attempt is `lost` that was stopped because its supervisor was asked to end; empty: it
    is `cancelled`, as by a person."""

    def attempt_directory(self, claim: Claim) -> Path:
        """Where the attempt's logs and the marks of its process lie."""
        return self.state / "runs" / claim.run.id / str(claim.attempt)

    def elsewhere(self, run: TaskRun) -> bool:
        """Whether the run's workdir and conversation lie on another host."""
        return bool(self.host.id) and run.host not in ("", self.host.id)

    def kept_from(self, run: TaskRun) -> str:
        """Why the run cannot go on here, because its files lie on another host; empty if it can."""
        if not self.elsewhere(run):
            return ""
        there = f"its workdir and conversation lie on {run.host_name}"
        if self.publisher is None:
            return f"{there}, and no checkpoint store is set that would bring them here"
        why = self.publisher.available(run)
        return f"{there}, and cannot be brought here: {why}" if why else ""

    def writers(
        self, driver: AgentDriver, home: Path, session_id: str, *, but: str = ""
    ) -> Sequence[int]:
        """Live processes of others on a conversation. An agent that is only kept on it is ended
        first, save in the workdir `but`."""
        if self.warm is not None:
            self.warm.end_on(session_id, self.workspaces.lock, but)
        return driver.writers(home, session_id)

    def committer(self, run: TaskRun) -> dict[str, str]:
        """Who the run's commits are by, as its rule says; empty where none does."""
        rule = self.rules.get(run.spec.rule)
        if rule is None or not rule.git_name:
            return {}
        pairs = product(("AUTHOR", "COMMITTER"), rule.git_identity.items())
        return {f"GIT_{role}_{part}": text for role, (part, text) in pairs}

    def moved_to(self, run_id: str) -> Path:
        """A file that says to which checkpoint store a run was let go; there is none for a run that
        is here."""
        return self.state / "moved" / run_id

    def agent_environment(self, driver: AgentDriver, run: TaskRun) -> dict[str, str]:
        """What reaches the agent: the ordinary variables, its own documented ones, and those that
        the task names."""
        passed = {
            name: value
            for name, value in self.environ.items()
            if is_passed(name, (*ORDINARY, *driver.variables))
        }
        named = {name: self.environ[name] for name in run.spec.pass_env if name in self.environ}
        return {**passed, **named, **run.spec.env}


def leftover_policy(engine: Engine, run: TaskRun) -> OnLeftover:
    """What becomes of processes that the run's agent leaves running."""
    return OnLeftover(run.spec.on_leftover or engine.on_leftover)


def redacted(event: EventT, redactor: Redactor) -> EventT:
    """The event without secrets."""
    text = encode(event)
    clean = redactor.text(text)
    return event if clean == text else cast(EventT, decode_event(clean))


def is_passed(name: str, patterns: tuple[str, ...]) -> bool:
    """Whether a variable matches; a pattern with `!` before it takes names out again. perdure's own
    never pass."""
    if name.startswith("PERDURE_"):
        return False
    if any(fnmatchcase(name, pattern[1:]) for pattern in patterns if pattern.startswith("!")):
        return False
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def mark_of(attempt: Attempt) -> str:
    """The mark that all processes of an attempt carry in their environment."""
    return mark_of_number(attempt.run, attempt.number)


def mark_of_number(run_id: str, number: int) -> str:
    """The same, before the attempt has begun."""
    return f"{run_id}.{number}"
