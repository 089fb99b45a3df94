"""The composition root: the only place that connects stores, drivers, workspaces and copies.

Called by the command line (`perdure.cli`) and by `perdure.open`. Heavy modules are imported when
they are first needed.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace

from perdure.config import Settings
from perdure.config.passwords import password
from perdure.errors import WorkspaceError
from perdure.host import system
from perdure.host.actors import PERDURE
from perdure.host.privileges import is_separate, require
from perdure.rules.text import write_stderr

if TYPE_CHECKING:
    from perdure.agents.proof import Prove
    from perdure.engine.attempt import Engine
    from perdure.host.git.servers import Hosts
    from perdure.host.process import Probe
    from perdure.model import Host
    from perdure.protocols import AgentDriver, Observer
    from perdure.store.sql import SqlStore

DATABASE = "perdure.db"
TRANSPORTS = frozenset({"https", "ssh"})
"""URL schemes of repositories that may be fetched. The scheme http is also accepted, but only for a
server on this machine."""


def open_to_read(chosen: Settings) -> SqlStore:
    """Return the store, opened for reading only. Opening it may upgrade an older schema (see
    `perdure.store.open`). Nothing else is written."""
    from perdure import store as stores

    return stores.open(chosen.database or chosen.state / DATABASE, read_only=True)


def open_engine(
    chosen: Settings,
    environ: Mapping[str, str],
    observers: Sequence[Observer] = (),
    *,
    actor: str = PERDURE,
    guarded: bool = False,
    secrets: Sequence[str] = (),
    relay: Callable[[], str] = str,
    transports: frozenset[str] = TRANSPORTS,
) -> Engine:
    """Return an engine that is ready to run attempts.

    - `environ`: the user's environment variables; an agent gets only some of them.
    - `actor`: the name recorded as the originator of the caller's requests.
    - `guarded`: true if people without an account on this machine may name repositories. Then
      stricter rules apply to the servers of these repositories (see `Hosts`).
    - `secrets`: texts that are redacted in everything that perdure writes.
    - `relay`: returns the address to fetch repositories through; empty means directly.
    - `transports`: the URL schemes of repositories that may be fetched.
    """
    require(chosen.run_as)
    if problem := system.problem():
        raise WorkspaceError(*problem)
    from perdure import store as stores
    from perdure.agents import registry
    from perdure.agents.transcripts import Copies
    from perdure.config.values import sizes
    from perdure.engine.attempt import Engine
    from perdure.engine.attempt.warm_agents import Keep, WarmAgents
    from perdure.host.git.environment import Ssh
    from perdure.host.homes.linked_homes import HomeEnvironment, LinkedHomes
    from perdure.host.process import worker_identity
    from perdure.host.redaction import Redactor
    from perdure.host.volumes import Ballast, Volumes
    from perdure.rules.context_window import FillRules
    from perdure.telemetry import tracing
    from perdure.workspace import Workspaces
    from perdure.workspace.identity import Places

    ballast = Ballast(chosen.state, chosen.disk_ballast)
    host = this_host(chosen)
    passwords = {
        "DATABASE_PASSWORD": password(chosen.database),
        "CACHE_PASSWORD": password(chosen.session_cache),
    }
    numbered = {f"SECRET_{number}": each for number, each in enumerate(secrets)}
    redactor = Redactor.of({**environ, **passwords, **numbered})
    traces = tracing.tracer(environ, _tell)
    attacher = None
    if chosen.receipts in ("note", "both"):
        from perdure.engine.attestation.attachment import Attacher

        attacher = Attacher(chosen.state)
    own = [each for each in (traces, attacher) if each is not None]
    seen_by = [*observers, *own]
    store = stores.open(
        chosen.database or chosen.state / DATABASE, observers=seen_by, ballast=ballast, host=host
    )
    store.actor = actor
    if traces is not None:
        traces.store = store
    if attacher is not None:
        attacher.store = store
    if chosen.session_cache:
        from perdure.store import session_cache

        store.cache = session_cache.open(chosen.session_cache, store.identity(), _tell)
    warm = WarmAgents(
        Places(chosen.root.resolve()).warm,
        Keep(
            policy=chosen.warm,
            idle_s=chosen.warm_idle,
            turns=chosen.warm_turns,
            memory=chosen.warm_memory,
            most=chosen.warm_most,
        ),
        chosen.grace,
    )
    atexit.register(warm.close)
    engine = Engine(
        store=store,
        workspaces=Workspaces(
            chosen.root,
            environ=environ,
            credentials=forge_token(environ),
            helpers=helper_logins(chosen, environ, guarded),
            ca_file=chosen.ca_file,
            ssh=Ssh(
                key=chosen.git_ssh_key,
                known_hosts=chosen.git_ssh_known_hosts,
                config=chosen.git_ssh_config or _no_configuration(),
            ),
            hosts=hosts_of(chosen, guarded),
            relay=relay,
            transports=transports,
            end_waiting_agents=warm.end_in,
            checkpoint_ignored=chosen.checkpoint_ignored,
            spares=chosen.spare_workdirs,
        ),
        warm=warm,
        driver=registry.load,
        copies=Copies(chosen.state / "transcripts", redactor),
        redactor=redactor,
        prove=_prove(environ),
        state=chosen.state,
        environ=HomeEnvironment(chosen.state, dict(environ)),
        homes=LinkedHomes(chosen.state),
        worker=worker_identity(host),
        host=host,
        lease_s=chosen.lease,
        grace_s=chosen.grace,
        checkpoint_every_s=chosen.checkpoint_every,
        session_lifetime_s=chosen.session_lifetime,
        on_expiry=chosen.session_expiry,
        map_when=chosen.map,
        map_tokens=chosen.map_tokens,
        account_jobs=chosen.account_jobs,
        rules={rule.name: rule for rule in chosen.agents},
        context=FillRules(
            policy=chosen.when_full, percent=int(chosen.full_at), windows=sizes(chosen.windows)
        ),
        cold_cache=chosen.cold_cache,
        on_denied=chosen.on_denied,
        request_expiry_s=chosen.request_expiry,
        last_word=chosen.last_word,
        on_leftover=chosen.on_leftover,
        volumes=Volumes(
            places=(chosen.state, chosen.root),
            warn=chosen.disk_warn,
            refuse=chosen.disk_refuse,
            refuse_bytes=chosen.disk_refuse_bytes,
            ballast=ballast,
        ),
    )
    if not chosen.checkpoint_store:
        return engine
    from perdure.capsule.publication import CheckpointPublisher, SecretOptions

    leave, allow = chosen.checkpoint_secrets == "leave-out", chosen.checkpoint_secrets == "allow"
    return replace(
        engine,
        publisher=CheckpointPublisher(
            engine,
            chosen.checkpoint_store,
            SecretOptions(redact=leave, leave_out=leave, allow=allow),
        ),
    )


def _prove(environ: Mapping[str, str]) -> Prove:
    """Return a prover. The module that proves transcripts is imported only when the prover is first
    called."""

    def prove(driver: AgentDriver, session: str, content: bytes, name: str, home: Path) -> str:
        from perdure.agents.proof import prover

        return prover(environ)(driver, session, content, name, home)

    return prove


def hosts_of(chosen: Settings, guarded: bool) -> Hosts:
    """Return the rules for the servers that repositories may be fetched from. A server in the clone
    address of a rule (`[agents.NAME]`) may be in a private network, because the configuration names
    it."""
    from perdure.host.git.servers import Hosts, host_of

    named = {host_of(rule.clone) for rule in chosen.agents if not rule.clone.startswith("/")}
    return Hosts(only=frozenset(chosen.clone_hosts), named=frozenset(named), guarded=guarded)


def helper_logins(
    chosen: Settings, environ: Mapping[str, str], guarded: bool
) -> Callable[[str], tuple[str, str] | None]:
    """Return a function that asks the user's own git credential helpers for a login.

    If `guarded` is true, the function answers only for servers that the configuration names.
    Without this limit, a person without an account on this machine could name a repository that
    only the user may read.
    """
    hosts = hosts_of(chosen, guarded)

    def answer(url: str) -> tuple[str, str] | None:
        from perdure.host.git import helpers

        # With `run_as`, perdure and the agents share the user's git configuration, which names the
        # helpers. So an agent could add a helper of its own.
        if is_separate() or (guarded and not hosts.knows(url)):
            return None
        return helpers.login(url, environ)

    return answer


def _no_configuration() -> Path | None:
    """Return /dev/null as the configuration file of ssh if agents run as a separate user
    (`run_as`), because agents can write `~/.ssh/config`. Otherwise return None."""
    if is_separate():
        return Path(os.devnull)
    return None


def this_host(chosen: Settings) -> Host:
    """Return the identity of this host among the hosts that share the database.

    If the files of a run are on another host, this host waits some time for that host to continue
    the run. After that it takes the run over. Without a checkpoint store this host never takes over
    a run, because it cannot fetch the files.
    """
    from perdure.host import process
    from perdure.model import UNSHARED_HOST

    patience_s = chosen.lease * 1.25 if chosen.checkpoint_store else None
    if chosen.database:
        return process.this_host(chosen.state, patience_s)
    return UNSHARED_HOST


def probe(chosen: Settings) -> Probe:
    """Return a probe that checks whether a run stored as `running` is really running."""
    from perdure.host.process import Probe

    return Probe(chosen.state, this_host(chosen))


def _tell(what: str) -> None:
    write_stderr(f"perdure: {what}")


def forge_token(environ: Mapping[str, str]) -> Callable[[str], tuple[str, str] | None]:
    """Return a function that takes the URL of a repository. The function returns the user name and
    the token for fetching from it, or None.

    PERDURE_GIT_TOKEN is used only for URLs of the host in PERDURE_GIT_TOKEN_HOST. The user name is
    PERDURE_GIT_TOKEN_USER, or `x-access-token` if that is not set.
    """
    user = environ.get("PERDURE_GIT_TOKEN_USER", "") or "x-access-token"
    token, host = environ.get("PERDURE_GIT_TOKEN", ""), environ.get("PERDURE_GIT_TOKEN_HOST", "")

    def answer(url: str) -> tuple[str, str] | None:
        from urllib.parse import urlsplit

        if token and host and urlsplit(url).hostname == host:
            return (user, token)
        return None

    return answer
