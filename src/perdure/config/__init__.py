"""Settings: read once at the door, passed on as a value, never looked up again.

`files` finds them where they are set, `values` says what each may be, and `passwords` what of
them may be shown.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING

from perdure.lateclass import dataclass
from perdure.model import (
    ColdCache,
    ContinuityPolicy,
    MapWhen,
    OnDenied,
    OnExpiry,
    OnLeftover,
    Permissions,
    WhenFull,
)

if TYPE_CHECKING:
    from perdure.model.forge.rules import Rule
    from perdure.model.forge.sources import Source

DAY = 86400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What perdure goes by. Durations in seconds; 0 means no limit."""

    root: Path
    """Where workdirs and cache clones lie: `{root}/{service}/.task/{task_id}/`,
    `{root}/.perdure/`."""
    state: Path
    """Where the database, the attempts' logs and the transcripts' copies lie."""
    agent: str = "claude"
    model: str = ""
    permissions: Permissions = Permissions.EDIT
    continuity: ContinuityPolicy = ContinuityPolicy.DISCLOSE
    attempts: int = 3
    timeout: float = 3600.0
    stall: float = 600.0
    grace: float = 10.0
    """Between the polite and the final end of an agent."""
    checkpoint_every: float = 20.0
    """At least so long between two checkpoints while an agent works."""
    checkpoint_ignored: str = "small"
    """Which ignored files a checkpoint has."""
    budget_usd: float = 0.0
    cold_cache: ColdCache = ColdCache.RESUME
    """What follows when a conversation was left alone for so long that all of it has to be read
    anew."""
    account_jobs: Mapping[str, int] = field(default_factory=dict)
    """How many runs may be at work on one account at once, by agent."""
    when_full: WhenFull = WhenFull.COMPACT
    """What happens when a conversation is nearly too long for its model."""
    full_at: float = 80.0
    """Percent of the model's window at which it is."""
    on_denied: OnDenied = OnDenied.ASK
    """What a turn is worth in which a call of a tool was denied."""
    last_word: str = "off"
    """Whether agents are asked for their last word in a fixed form."""
    on_leftover: OnLeftover = OnLeftover.END
    """What becomes of processes that an agent leaves running when its turn is over."""
    windows: str = ""
    """What models take, in tokens, where perdure is to know better: `my-model*=32000,
    other=200000`."""
    backend: str = ""
    base: str = ""
    verify: str = ""
    verify_rounds: int = 3
    """So often a failed check goes back to the agent."""
    verify_timeout: float = 1800.0
    map: MapWhen = MapWhen.FALLBACK
    """Which prompts get the project map."""
    map_tokens: int = 2000
    """The most that it takes, by the estimate of `projectmap.estimate`."""
    ca_file: Path | None = None
    """Certificates that the forge's https is checked against, instead of the system's."""
    git_ssh_key: Path | None = None
    """The private key for repositories by ssh, instead of the user's own."""
    git_ssh_known_hosts: Path | None = None
    """The servers' keys for repositories by ssh, instead of the user's known_hosts."""
    git_ssh_config: Path | None = None
    """The configuration of ssh for repositories by ssh, instead of the user's."""
    gc_workdirs: float = 14 * DAY
    """How long something must have been left alone before the sweeper takes it; one age for each
    class."""
    gc_copies: float = 180 * DAY
    gc_logs: float = 90 * DAY
    gc_orphans: float = 7 * DAY
    gc_checkpoints: float = 30 * DAY
    gc_caches: float = 90 * DAY
    gc_scratch: float = 2 * DAY
    gc_trash: float = 7 * DAY
    """The grace in the trash, of what was proven to be saved elsewhere."""
    gc_most: int = 200
    """Of one class, at once."""
    disk_warn: float = 15.0
    """Percent of a volume that are free."""
    disk_refuse: float = 10.0
    disk_refuse_bytes: int = 2 * 1024**3
    """New work is refused when less than both of these is free."""
    disk_ballast: int = 64 * 1024**2
    session_lifetime: float = 0.0
    """A session expires when it was not used for so long."""
    session_expiry: OnExpiry = OnExpiry.RESUME
    """What follows then, where the transcript is there."""
    session_cache: str = ""
    """A Redis in front of the sessions' table, for those who look them up."""
    checkpoint_store: str = ""
    """Where every checkpoint is brought as well (file:///…, s3://…, gs://…, az://…), so that
    another machine can go on."""
    checkpoint_secrets: str = "refuse"
    receipts: str = "off"
    """What happens to a checkpoint with a known secret in it: `refuse`, `leave-out` (and replace
    what was said), or `allow`."""
    database: str = ""
    """postgresql://USER@HOST:PORT/NAME: runs and conversations are kept there, for several hosts,
    and not in the state directory."""
    lease: float = 60.0
    """How long a host that is not heard of keeps an attempt, where the database is shared. All
    hosts need the same."""
    warm: str = "plans"
    """Which agents are kept between attempts, where they can be: `off`, `plans` (those of plans) or
    `on` (all)."""
    warm_idle: float = 300.0
    """A kept agent is ended when it has waited so long."""
    warm_turns: int = 50
    """Attempts that one process serves at most."""
    warm_memory: int = 2 * 1024**3
    """Bytes resident, of the agent and all below it, between two attempts; 0 is no limit."""
    warm_most: int = 4
    """Agents that one perdure keeps waiting at once."""
    gc_inbox: float = 30 * DAY
    """How long the body of a settled delivery is kept; that it was here, a year."""
    clone_hosts: tuple[str, ...] = ()
    """Servers that repositories may be fetched from, as `host` or `host:port`: only these; empty is
    any. A pool that works for others fetches from private addresses only where this, or a rule's
    `clone`, names the server."""
    run_as: str = ""
    """`USER:GROUP`: the account that agents run as, and the group that perdure has beside it to
    keep its files and processes from them."""
    serve_listen: str = "127.0.0.1:8420"
    serve_public_url: str = ""
    """Where people open the dashboard, for links in what is told on a forge; no slash at its
    end."""
    serve_reconcile: float = 300.0
    """So often forges are asked what was missed; 0: never."""
    serve_proxies: tuple[str, ...] = ()
    """Addresses and networks of the proxies whose `X-Forwarded-For` and `X-Forwarded-Proto` are
    believed."""
    serve_hosts: tuple[str, ...] = ()
    """Names under which `perdure serve` is asked, besides those of loopback."""
    webhooks: tuple[Source, ...] = ()
    agents: tuple[Rule, ...] = ()
    """Who works on what, for whom: see `model.forge.rules`."""
    origin: Mapping[str, str] = field(default_factory=dict)
    """Where each setting that is not a default came from."""
