"""The keeper's program (see the docstring of the package). It is started by its path (`python -I
-S`), so site-packages is not on the module path."""

# ruff: noqa: PTH100, PTH106, PTH108, PTH120, PTH123, PTH208 (pathlib would double the start-up
# time)
from __future__ import annotations

import os
import signal
import sys

CONTROL_FD = 4


def main(directory: str) -> None:
    import socket

    from perdure.host import shim, system
    from perdure.host.keeper.keeper import Keeper
    from perdure.host.system.sockets import OwnerChannel

    signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())
    os.chdir(directory)
    with open(shim.LAUNCH_FD, "rb", closefd=False) as file:
        launch = file.read().split(b"\0")
    os.set_inheritable(shim.LAUNCH_FD, False)
    os.set_inheritable(CONTROL_FD, False)
    shim.prepare(launch[4], True)
    woken, wake = system.pipe()
    for fd in (woken, wake):
        os.set_blocking(fd, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGCHLD})
    with open("shim.json", encoding="ascii") as file:
        me = file.read().replace("{", '{"warm": true, ', 1)
    Keeper(OwnerChannel(socket.socket(fileno=CONTROL_FD)), launch, me).run(woken)
    for name in os.listdir("."):
        os.unlink(name)
    os.rmdir(directory)


if __name__ == "__main__":
    sys.path.append(
        os.path.dirname(
            os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
        )
    )
    # This process has the agent's environment. The agent's PERDURE_HOST must not choose the back
    # end of the keeper.
    os.environ.pop("PERDURE_HOST", None)
    if len(sys.argv) > 2:
        # The second argument is the directory of psutil. It is passed only for the portable back
        # end. The agent does not get this PERDURE_HOST (see `system.environment`).
        sys.path.append(sys.argv[2])
        os.environ["PERDURE_HOST"] = "portable"
    main(sys.argv[1])
    os._exit(0)
