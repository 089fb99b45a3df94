"""`serve`: runs the web server (webhooks, health, API) and the local worker pool in one process.

The first SIGTERM or Ctrl-C drains: nothing new is started, and deliveries are still accepted until
the running attempts have ended. Then the server ends. The second signal stops the agents
gracefully.

After a kill, everything that was acknowledged is still in the database, and the next start takes
over the attempts that are still running.
"""

from __future__ import annotations

import argparse
import os
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from itertools import chain
from typing import TYPE_CHECKING

from msgspec.structs import replace

from perdure.cli.compose import open_to_read, settings
from perdure.cli.runs.pool import StopSignals, notifier, notifies, open_pool, say
from perdure.config.tasks import task_defaults
from perdure.errors import PerdureError, UsageError
from perdure.host.extras import install_command
from perdure.host.redaction import wipe_variables

if TYPE_CHECKING:
    from perdure.config import Settings
    from perdure.engine.attempt import Engine
    from perdure.engine.attempt.engine import EngineStore
    from perdure.forge.clients.connections import Forges
    from perdure.host.volumes import Volumes
    from perdure.model import TaskRun
    from perdure.protocols import InboxStore
    from perdure.server.context import ServiceCheck

LOOK_S = 0.5


def serve_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--listen",
        default="",
        metavar="HOST:PORT",
        help="address to listen on (default: the setting serve_listen); port 0: any free port",
    )
    parser.add_argument(
        "-j",
        "--jobs",
        type=_jobs,
        default=min(4, os.cpu_count() or 1),
        help="maximum number of attempts at once (default: one per core, at most 4); 0: none",
    )


def _jobs(text: str) -> int:
    if not text.isdecimal() or int(text) > 256:
        raise argparse.ArgumentTypeError("expected a whole number from 0 to 256")
    return int(text)


def serve_verb(arguments: argparse.Namespace) -> int:
    try:
        import perdure.forge.clients.connections  # noqa: F401 - is it installed?
        from perdure.server.sockets import address, bound, is_public
        from perdure.server.webhooks import secrets_of
    except ModuleNotFoundError as error:
        raise UsageError(
            f"perdure serve needs {error.name}, which is not installed", install_command("serve")
        ) from error
    chosen = settings()
    secrets = secrets_of(chosen.webhooks, os.environ)
    try:
        host, port = address(arguments.listen or chosen.serve_listen)
    except ValueError as error:
        raise UsageError(f"{error}, not {arguments.listen!r}") from None
    sockets = bound(host, port)
    try:
        if is_public(sockets) and not secrets and not _any_token(chosen):
            raise UsageError(
                f"{host} can be reached from outside, and there is neither a token nor a webhook "
                "with a secret",
                "perdure token new NAME, add a [webhooks.NAME], or listen on 127.0.0.1",
            )
        return _serve(chosen, secrets, sockets, arguments.jobs)
    finally:
        for each in sockets:
            each.close()


def _any_token(chosen: Settings) -> bool:
    with closing(open_to_read(chosen)) as store:
        return _has_token(store)


def _has_token(store: EngineStore) -> bool:
    """Return whether the store has a token that is valid now."""
    now = store.now()
    return any(not token.expires or token.expires > now for token in store.tokens())


def _serve(
    chosen: Settings,
    secrets: Mapping[str, tuple[str, ...]],
    sockets: list[socket.socket],
    jobs: int,
) -> int:
    from perdure.cli.data.housekeeping import Housekeeping
    from perdure.cli.server import doctor
    from perdure.engine.plans.server import PlanDriver
    from perdure.forge.clients.connections import forges
    from perdure.server.application import application, routes
    from perdure.server.context import Parts
    from perdure.server.journal import Journal
    from perdure.server.principal import Principals
    from perdure.server.proxies import Proxies
    from perdure.server.sockets import RunningServer, notify
    from perdure.server.webhooks import WebhookIntake, Writer

    signals = StopSignals()
    with ExitStack() as stack:
        # Create the clients before the engine. Creating them, and calling `wipe_variables`, removes
        # the service's secrets from the environment. The engine then gets an environment without
        # secrets.
        clients = stack.enter_context(
            forges(chosen.webhooks, chosen.agents, os.environ, chosen.ca_file)
        )
        wipe_variables(secret_variables(chosen))
        held = [*clients.held(), *chain.from_iterable(secrets.values()), *_of_openid(chosen)]
        engine = open_pool(chosen, signals, guarded=True, secrets=held)
        stack.callback(engine.store.close)
        engine.workspaces.add_credentials(clients.login_at)
        stack.enter_context(Housekeeping(engine, chosen, say))
        if notifies(chosen):
            stack.enter_context(notifier(engine, chosen))
        if chosen.agents:
            _posting(stack, engine, chosen, clients)
        if chosen.agents:
            kept = _dispatching(stack, engine, chosen, clients)
        else:
            kept = None
        writer = stack.enter_context(Writer(engine.store.accept, kept or (lambda: None)))
        sources = {source.name: (source, secrets[source.name]) for source in chosen.webhooks}
        desk = WebhookIntake(sources, writer, say)
        plans = stack.enter_context(
            PlanDriver(replace(engine, stopping=lambda: signals.draining), say)
        )
        reading = open_to_read(chosen)
        stack.callback(reading.close)
        # The callers of the API are identified with a separate connection. A slow query on the main
        # connection then delays no other request.
        knowing = open_to_read(chosen)
        stack.callback(knowing.close)
        principals, journal = Principals(knowing, engine.store, say), Journal(reading, say)
        parts = Parts(
            engine=engine,
            store=reading,
            settings=chosen,
            principals=principals,
            journal=journal,
            seed=task_defaults(chosen),
            say=say,
            checks=lambda: _checks(chosen),
            dispatch=kept or (lambda: None),
            drive_plans=plans.wake,
            stop_plan=plans.stop,
            retry_plan=plans.retry,
        )
        proxies = Proxies(chosen.serve_proxies)
        served = application(
            desk,
            lambda: _problems(engine.store, engine.volumes, signals),
            _hosts(chosen),
            parts.principals,
            routes(parts),
            proxies,
        )
        web = stack.enter_context(RunningServer(served, sockets, proxies))
        # ExitStack closes the journal before the server, because the journal is entered later.
        # Closing it disconnects its listeners; otherwise the server would wait for them.
        stack.enter_context(journal)
        names = ", ".join(f"/webhooks/{name}" for name in sources) or "no webhooks"
        for each in sockets:
            say(f"listening on http://{_shown(each)} ({names})")
        for line in doctor.exposure_sentences(chosen, held):
            say(line)
        if not _has_token(engine.store):
            say(
                "the dashboard and the API need a token, and there is none: perdure token new NAME "
                "--scope admin"
            )
        notify(os.environ, "READY=1")
        stack.callback(notify, os.environ, "STOPPING=1")
        if jobs:
            from perdure.engine.worker import work

            work(engine, jobs, draining=lambda: signals.draining or not web.alive, patient=True)
        while not signals.draining and web.alive:
            time.sleep(LOOK_S)
        if web.broken is not None:
            raise PerdureError(
                f"The web server ended: {web.broken}",
                "start it again; every acknowledged delivery is kept",
            )
    return 0


def _checks(chosen: Settings) -> list[ServiceCheck]:
    """Run the checks of `perdure doctor` for the dashboard, and return their results."""
    from perdure.cli.doctor import examine
    from perdure.server.context import ServiceCheck

    found = []
    for each in examine(chosen, [], serving=True):
        found.append(ServiceCheck(each.topic, each.state, each.message))
    return found


def secret_variables(chosen: Settings) -> frozenset[str]:
    """Return the names of the environment variables that contain the service's secrets."""
    found = {rule.token_env for rule in chosen.agents}
    for source in chosen.webhooks:
        found.update(source.variables, [source.token_env])
    return frozenset(found - {""})


def _of_openid(chosen: Settings) -> list[str]:
    """Return the client secret for the OpenID provider, or an empty list. Raises ConfigError."""
    if chosen.openid is None:
        return []
    from perdure.server.openid import ready, secret_in

    ready(chosen.openid, chosen.serve_public_url)
    if not chosen.openid.secret_file:
        return []
    return [secret_in(chosen.openid.secret_file)]


def _dispatching(
    stack: ExitStack, engine: Engine, chosen: Settings, clients: Forges
) -> Callable[[], None]:
    """Start the thread that dispatches deliveries to agents. Return a function that wakes it."""
    from perdure.forge.dispatch import Dispatcher, Reconciler

    wake = stack.enter_context(
        Dispatcher(engine, chosen.agents, task_defaults(chosen), say, clients.of)
    ).wake
    if chosen.serve_reconcile:
        stack.enter_context(
            Reconciler(
                engine,
                chosen.webhooks,
                chosen.agents,
                clients.of,
                chosen.serve_reconcile,
                wake,
                say,
            )
        )
    return wake


def _posting(stack: ExitStack, engine: Engine, chosen: Settings, clients: Forges) -> None:
    """Start the thread that posts the results of runs to their forges."""
    from perdure.forge.replies import Poster, PostingUpdater

    def login(source: str, rule: str) -> Callable[[str], tuple[str, str] | None]:
        return lambda url: clients.login(source, rule, url)

    answering = PostingUpdater(
        engine=engine,
        rules={rule.name: rule for rule in chosen.agents},
        forge=clients.of,
        credentials=login,
        page=lambda name: (
            f"{chosen.serve_public_url}/runs/{name}" if chosen.serve_public_url else ""
        ),
        receipt=lambda run: _receipt(engine.store, chosen, run),
    )
    stack.enter_context(Poster(answering, say))


def _receipt(store: EngineStore, chosen: Settings, run: TaskRun) -> str:
    """Return a run's signed receipt, to be added to the comment on its forge. Return an empty
    string if the settings do not ask for receipts in comments."""
    if chosen.receipts not in ("comment", "both"):
        return ""
    from perdure.engine.attestation.attachment import signed_receipt

    return signed_receipt(store, run, chosen.state)


def _problems(store: InboxStore, volumes: Volumes, signals: StopSignals) -> list[str]:
    """Return the reasons why no new work is accepted. The list is empty if new work is accepted."""
    found = ["perdure is shutting down"] if signals.draining else []
    try:
        store.inbox(limit=1)
    except PerdureError as error:
        found.append(str(error))
    if why := volumes.crowded():
        found.append(why)
    return found


def _hosts(chosen: Settings) -> list[str]:
    """Return the host names under which the server answers, besides those of loopback. The host of
    `public_url` is one of them: perdure itself sends people there."""
    from urllib.parse import urlsplit

    found = list(chosen.serve_hosts)
    public = urlsplit(chosen.serve_public_url).hostname
    if public:
        found.append(f"[{public}]" if ":" in public else public)
    return found


def _shown(each: socket.socket) -> str:
    host, port = each.getsockname()[:2]
    if ":" in host:
        return f"[{host}]:{port}"
    return f"{host}:{port}"
