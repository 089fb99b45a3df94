"""`work --as-relay`: the relay of an attempt's pod, in its own container.

It reads the order and the Secrets of repository and checkpoint store. It writes its address into a
file for the agent's container, and serves requests until the kubelet ends it, after the agent's
container has ended. If a Secret is not valid, the address file contains the error, and the attempt
ends with that reason.
"""

from __future__ import annotations

import argparse
import os
import signal
import threading
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from msgspec.structs import replace

from perdure.errors import PerdureError, UsageError
from perdure.host import relay
from perdure.kubernetes import order as orders
from perdure.kubernetes import secrets as given
from perdure.kubernetes.order import Order
from perdure.rules.text import write_stderr

if TYPE_CHECKING:
    from perdure.kubernetes.relay.forge import SshUpstream, Upstream
    from perdure.kubernetes.relay.server import RelayServer
    from perdure.kubernetes.relay.store_access import RunStoreAccess


def relay_verb(arguments: argparse.Namespace) -> int:
    """Serve requests until SIGTERM or SIGINT. Return 0."""
    if arguments.order is None:
        raise UsageError(
            "--as-relay needs --order DIR",
            "the operator writes it; its format: docs/reference/pod.md",
        )
    over = threading.Event()

    def end(number: int, frame: FrameType | None) -> None:
        over.set()

    # The kernel drops signals for which PID 1, the first process of a container, has no handler.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    server = None
    try:
        server = _server(arguments.order, arguments.secrets or arguments.order.parent / "secrets")
        address = server.address()
        threading.Thread(target=server.serve_forever, name="relay", daemon=True).start()
    except (PerdureError, OSError) as error:
        address = relay.RelayAddress(error=str(error), hint=getattr(error, "hint", ""))
        write_stderr(f"perdure: relay: {error}")
    relay.write(arguments.as_relay, address)
    over.wait()
    if server is not None:
        server.shutdown()
        server.server_close()
    return 0


def _server(directory: Path, secrets_at: Path) -> RelayServer:
    """Start the relay's server, and return it. Raises UsageError if the order or a Secret is not
    valid."""
    from perdure.kubernetes.relay.server import RelayServer

    with (directory / orders.FILE).open("rb") as file:
        order = orders.decode(file.read(orders.LONGEST + 1))
    secrets = given.read(secrets_at, order.spec.repo)
    return RelayServer(_forge(order, secrets), _run_store(order, secrets))


def _forge(order: Order, secrets: given.Secrets) -> Upstream | SshUpstream | None:
    """Return the object through which the relay reaches the server of the order's repository.
    Return None if there is no Secret for the repository."""
    if secrets.ssh:
        return _by_ssh(order, secrets)
    if not secrets.git:
        return None
    from perdure import wiring
    from perdure.config.files import load
    from perdure.kubernetes.relay.forge import Upstream
    from perdure.workspace.identity import parse_remote

    remote = parse_remote(order.spec.repo, order.transports)
    return Upstream(
        url=remote.url,
        login=wiring.forge_token(secrets.git)(remote.url),
        environ=dict(os.environ),
        ca_file=load(os.environ, Path("/")).ca_file,
    )


def _by_ssh(order: Order, secrets: given.Secrets) -> SshUpstream:
    """Return the access to the repository's server by ssh. The key and the known hosts are written
    to private files of the relay. Raises UsageError."""
    import tempfile

    from perdure.host.git.environment import Ssh
    from perdure.kubernetes.relay.forge import SshUpstream
    from perdure.workspace.identity import parse_remote

    remote = parse_remote(order.spec.repo, order.transports)
    directory = Path(tempfile.mkdtemp(prefix="perdure-"))
    files = {name: directory / name for name in secrets.ssh}
    for name, file in files.items():
        file.touch(mode=0o600)
        # ssh cannot read a key without a newline at its end.
        file.write_text(secrets.ssh[name] + "\n")
    ssh = Ssh(
        key=files[given.SSH_KEY], known_hosts=files[given.KNOWN_HOSTS], config=Path(os.devnull)
    )
    ssh.check(os.environ)
    return SshUpstream(url=remote.url, ssh=ssh, environ=dict(os.environ))


def _run_store(order: Order, secrets: given.Secrets) -> RunStoreAccess | None:
    """Return the access to this run's objects in the checkpoint store. Return None if the order
    names no store, or if there is no Secret for it."""
    if not secrets.store or not order.checkpoints:
        return None
    from perdure.capsule.objects import open_store
    from perdure.kubernetes.relay.store_access import RunStoreAccess

    # The store's client reads its credentials from the environment of this process.
    os.environ.update(secrets.store)
    store = open_store(order.checkpoints)
    return RunStoreAccess(store, order.run_id, order.run_names, order.resume.from_)


def through_relay(order: Order, directory: Path | None) -> tuple[Order, bool]:
    """Wait for the relay of this pod. Return the order and whether the relay serves the repository.
    If the relay serves a checkpoint store, the returned order names the relay as its store.

    Raises UsageError if a Secret is not valid, and StoreAway if the relay does not start.
    """
    if directory is None:
        return order, False
    address = relay.wait(directory)
    if address.store:
        order = replace(order, checkpoints=f"relay://{directory}")
    return order, address.repository
