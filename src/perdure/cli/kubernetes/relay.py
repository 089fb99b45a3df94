"""`work --as-relay`: the relay of an attempt's pod, in a container of its own.

It reads the order and the Secrets of repository and checkpoint store, writes its address for the
agent's container, and answers until the kubelet ends it, which is after the agent's container has
ended. If a Secret is not valid, the address file says so, and the attempt ends with that reason.
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
    from perdure.kubernetes.relay.forge import Upstream
    from perdure.kubernetes.relay.server import RelayServer
    from perdure.kubernetes.relay.shelf import RunShelf
    from perdure.kubernetes.relay.ssh import SshUpstream


def relay_verb(arguments: argparse.Namespace) -> int:
    """Answer until a signal asks to end. Return 0."""
    if arguments.order is None:
        raise UsageError(
            "--as-relay needs --order DIR",
            "the operator writes it; its format: docs/reference/pod.md",
        )
    over = threading.Event()

    def end(number: int, frame: FrameType | None) -> None:
        over.set()

    # The first process of a container ignores signals for which it has no handler.
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
    """Return the relay, listening. Raises UsageError for an invalid order or Secret."""
    from perdure.kubernetes.relay.server import RelayServer

    with (directory / orders.FILE).open("rb") as file:
        order = orders.decode(file.read(orders.LONGEST + 1))
    secrets = given.read(secrets_at, order.spec.repo)
    return RelayServer(_forge(order, secrets), _shelf(order, secrets))


def _forge(order: Order, secrets: given.Secrets) -> Upstream | SshUpstream | None:
    """Return the server of the order's repository; None if there is no Secret for it."""
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
    """Return the server, with key and known hosts as files of the relay's own. Raises
    UsageError."""
    import tempfile

    from perdure.host.git.ssh import Ssh
    from perdure.kubernetes.relay.ssh import SshUpstream
    from perdure.workspace.identity import parse_remote

    remote = parse_remote(order.spec.repo, order.transports)
    directory = Path(tempfile.mkdtemp(prefix="perdure-"))
    files = {name: directory / name for name in secrets.ssh}
    for name, file in files.items():
        file.touch(mode=0o600)
        # ssh cannot read a key without a line break at its end.
        file.write_text(secrets.ssh[name] + "\n")
    ssh = Ssh(
        key=files[given.SSH_KEY], known_hosts=files[given.KNOWN_HOSTS], config=Path(os.devnull)
    )
    ssh.check(os.environ)
    return SshUpstream(url=remote.url, ssh=ssh, environ=dict(os.environ))


def _shelf(order: Order, secrets: given.Secrets) -> RunShelf | None:
    """Return the run's part of the checkpoint store; None if there is no Secret for it."""
    if not secrets.store or not order.checkpoints:
        return None
    from perdure.capsule.objects import open_store
    from perdure.kubernetes.relay.shelf import RunShelf

    # The store's client reads these from the process.
    os.environ.update(secrets.store)
    store = open_store(order.checkpoints)
    return RunShelf(store, order.run_id, order.run_names, order.resume.from_)


def through_relay(order: Order, directory: Path | None) -> tuple[Order, bool]:
    """Return the order with the checkpoint store that the relay of this pod offers, and whether
    the relay fetches the repository. Raises UsageError if a Secret is not valid, and StoreAway if
    the relay does not start."""
    if directory is None:
        return order, False
    address = relay.wait(directory)
    if address.store:
        order = replace(order, checkpoints=f"relay://{directory}")
    return order, address.repository
