"""The settings of perdure. They are read once at each entry point and then passed on as one value.

`files` reads them from their sources, `values` validates them, and `passwords` removes the parts
that must not be shown.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct, field

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
    from perdure.model.notices import Channel
    from perdure.model.openid import OpenIdProvider

DAY = 86400.0


class Settings(Struct, frozen=True, kw_only=True):
    """All settings of perdure. Durations are in seconds. Where 0 is allowed, it means no limit,
    unless the setting says otherwise."""

    root: Path
    """Directory of the workdirs, in `{root}/{service}/.task/{task_id}/`, and of the cache clones,
    in `{root}/.perdure/`."""
    state: Path
    """Directory of the database, the attempts' logs and the copies of transcripts."""
    agent: str = "claude"
    model: str = ""
    permissions: Permissions = Permissions.EDIT
    continuity: ContinuityPolicy = ContinuityPolicy.DISCLOSE
    attempts: int = 3
    timeout: float = 3600.0
    stall: float = 600.0
    grace: float = 10.0
    """Time between SIGTERM and SIGKILL of an agent, in seconds."""
    checkpoint_every: float = 20.0
    """Minimum interval between two checkpoints while an agent is running, in seconds. 0:
    checkpoints are taken only at the end of a turn or an attempt."""
    checkpoint_ignored: str = "small"
    """Kind of git-ignored files that a checkpoint includes: `small`, `all` or `none`."""
    spare_workdirs: int = 0
    """Number of spare checkouts that a pool or server keeps for each repository."""
    budget_usd: float = 0.0
    cold_cache: ColdCache = ColdCache.RESUME
    """Action for a conversation that was idle for too long and is no longer in the service's prompt
    cache. To continue such a conversation, the model must read all of it again."""
    account_jobs: Mapping[str, int] = field(default_factory=dict)
    """Maximum number of concurrent runs on one account, by agent."""
    when_full: WhenFull = WhenFull.COMPACT
    """Action when a conversation has nearly filled its model's window."""
    full_at: float = 80.0
    """Percentage of the model's window that a conversation must fill before `when_full` applies."""
    on_denied: OnDenied = OnDenied.ASK
    """Action after a turn in which a tool call was denied."""
    last_word: str = "off"
    """Whether agents are asked to end with a last message in a fixed form: `off` or `on`."""
    on_leftover: OnLeftover = OnLeftover.END
    """Action for processes that an agent leaves running at the end of its turn."""
    windows: str = ""
    """Sizes of models' context windows in tokens, which override perdure's own values:
    `my-model*=32000, other=200000`."""
    backend: str = ""
    base: str = ""
    verify: str = ""
    verify_rounds: int = 3
    """Maximum number of times that the agent gets the output of a failed check and tries again."""
    verify_timeout: float = 1800.0
    map: MapWhen = MapWhen.FALLBACK
    """Policy that says which prompts contain the project map."""
    map_tokens: int = 2000
    """Maximum size of the project map, in tokens as estimated by `project_map.text.estimate`."""
    ca_file: Path | None = None
    """File of CA certificates for https connections to forges. It replaces the system's
    certificates."""
    git_ssh_key: Path | None = None
    """Private key for repositories over ssh. It replaces the user's own keys."""
    git_ssh_known_hosts: Path | None = None
    """File of server keys for repositories over ssh. It replaces the user's known_hosts file."""
    git_ssh_config: Path | None = None
    """File of ssh settings for repositories over ssh. It replaces the user's ssh configuration."""
    gc_workdirs: float = 14 * DAY
    """Age in seconds at which the sweeper may remove an unused workdir. The following settings are
    the ages for other classes of data."""
    gc_copies: float = 180 * DAY
    gc_logs: float = 90 * DAY
    gc_orphans: float = 7 * DAY
    gc_checkpoints: float = 30 * DAY
    gc_caches: float = 90 * DAY
    gc_scratch: float = 2 * DAY
    gc_trash: float = 7 * DAY
    """Time in seconds for which the trash keeps entries that are proven to be saved elsewhere."""
    gc_most: int = 200
    """Maximum number of entries of one class that one sweep removes."""
    disk_warn: float = 15.0
    """Free space of a volume below which perdure warns, in percent of the volume."""
    disk_refuse: float = 10.0
    disk_refuse_bytes: int = 2 * 1024**3
    """Free space of a volume in bytes. New work is refused only if there is less free space than
    this and also less than `disk_refuse` percent."""
    disk_ballast: int = 64 * 1024**2
    request_expiry: float = 7 * 86_400.0
    """Time in seconds that a run waits for a person to answer its agent's requests. 0: agents may
    not ask."""
    session_lifetime: float = 0.0
    """Time in seconds after which an unused session expires. 0: never."""
    session_expiry: OnExpiry = OnExpiry.RESUME
    """Action for an expired session whose transcript still exists."""
    session_cache: str = ""
    """Address of a Redis server that caches sessions for programs that look them up."""
    checkpoint_store: str = ""
    """URL to which every checkpoint is also uploaded, so that another machine can continue the run.
    For example `file:///directory` or `s3://bucket/prefix`."""
    checkpoint_secrets: str = "refuse"
    """Action for a checkpoint that contains a known secret: `refuse`, `leave-out` (which also
    redacts the conversation) or `allow`."""
    receipts: str = "off"
    """Where signed receipts are attached: `off` (nowhere), `note` (a git note of the commit),
    `comment` (the run's comment and pull request on its forge) or `both`."""
    database: str = ""
    """URL of a database that several hosts share (postgresql://USER@HOST:PORT/NAME). It is used
    instead of the database in the state directory."""
    lease: float = 60.0
    """Duration of a lease in seconds, for a shared database. If an attempt's lease is not renewed
    in time, another host takes the attempt over. All hosts need the same value."""
    warm: str = "plans"
    """Which agents are kept running between attempts, if they support it: `off`, `plans` (only
    those of plans) or `on` (all)."""
    warm_idle: float = 300.0
    """Idle time in seconds after which a kept agent is ended."""
    warm_turns: int = 50
    """Maximum number of attempts that one kept process serves."""
    warm_memory: int = 2 * 1024**3
    """Maximum resident memory of a kept agent and its descendants between attempts, in bytes. 0: no
    limit."""
    warm_most: int = 4
    """Maximum number of idle agents that one perdure process keeps."""
    gc_inbox: float = 30 * DAY
    """Time in seconds for which the body of a delivery is kept after the delivery was processed.
    The record of the delivery is kept for a year."""
    clone_hosts: tuple[str, ...] = ()
    """Servers that repositories may be fetched from, as `host` or `host:port`; empty: any. A pool
    that works for other people fetches from a private address only if this setting or a rule's
    `clone` names the server."""
    run_as: str = ""
    """Account and group under which agents run, in the form `USER:GROUP`. perdure itself also
    belongs to that group, and uses it to protect its files and processes from the agents."""
    serve_listen: str = "127.0.0.1:8420"
    serve_public_url: str = ""
    """Public URL of the dashboard, without a trailing slash, for links in forge postings."""
    serve_reconcile: float = 300.0
    """Interval in seconds at which perdure asks forges for deliveries that it missed. 0: never."""
    serve_proxies: tuple[str, ...] = ()
    """Addresses and networks of trusted proxies. Their `X-Forwarded-For` and `X-Forwarded-Proto`
    headers are believed."""
    serve_hosts: tuple[str, ...] = ()
    """Host names that `perdure serve` accepts in requests, besides those of the loopback interface.
    """
    serve_push_contact: str = ""
    """Mail address of the person who runs this server. It is sent to the push services that deliver
    messages to browsers. Empty: people cannot add their browsers."""
    serve_push_hosts: tuple[str, ...] = ()
    """Push services to which messages may be sent, as `host` or `host:port`. Empty: any push
    service with a public address."""
    webhooks: tuple[Source, ...] = ()
    agents: tuple[Rule, ...] = ()
    """Rules that assign agents to intents: see `model.forge.rules`."""
    notify: tuple[Channel, ...] = ()
    """Channels that notify people about runs: see `model.notices`."""
    openid: OpenIdProvider | None = None
    """The OpenID provider with which people sign in to the dashboard: see `model.openid`."""
    origin: Mapping[str, str] = field(default_factory=dict)
    """For each setting that was set anywhere, the source of its value. Settings that have their
    default value are not included."""
