"""A host that holds the lease of an attempt, for F10. It starts an agent under its shim, renews the
lease, and writes events as fast as possible.

argv: URL, state directory, lease. Prints `held ATTEMPT MARK` when the agent runs, `said N` after
each event that the store acknowledged, and `refused` when the store refused an event because of the
fencing token. Then it ends.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from perdure.config.files import load
from perdure.errors import LostLease, StoreError
from perdure.host import process
from perdure.model import Command
from perdure.model.events import Said
from perdure.wiring import open_engine

AGENT = (
    "trap 'echo asked; exit 0' TERM; (trap '' TERM; while :; do sleep 0.05; done) & while :; do "
    "echo at work; sleep 0.05; done"
)
"""A program that ends when it gets SIGTERM, but leaves a child that ignores it."""


def main(url: str, state: str, lease: str) -> None:
    environ = {
        "PERDURE_DATABASE": url,
        "PERDURE_STATE": state,
        "PERDURE_LEASE": lease,
        "HOME": state,
        "PATH": os.environ["PATH"],
    }
    engine = open_engine(
        load({**environ, "PERDURE_DISK_BALLAST": "0", "PERDURE_ROOT": f"{state}/root"}, Path("/")),
        environ,
    )
    claim = engine.store.claim(engine.worker, engine.lease_s)
    assert claim is not None
    directory, mark = engine.attempt_directory(claim), f"{claim.run.id}.{claim.attempt}"
    try:
        with engine.heartbeat(claim).beating():
            engine.heartbeat(claim).beat()
            command = Command(argv=("sh", "-c", AGENT), stdin=b"")
            process.start(
                command,
                directory=directory,
                cwd=Path("/"),
                env=environ,
                mark=mark,
                deadline_s=0,
                grace_s=engine.grace_s,
            )
            tell(f"held {claim.attempt} {mark}")
            number = 0
            while True:
                number += 1
                try:
                    engine.store.record(claim, [Said(text=f"{number}")])
                except StoreError:
                    continue
                tell(f"said {number}")
                time.sleep(0.02)
    except LostLease:
        tell("refused")


def tell(what: str) -> None:
    os.write(1, f"{what}\n".encode())


if __name__ == "__main__":
    main(*sys.argv[1:])
