"""`entrypoint`: the first process of a container. It checks the volume, links the homes to it, and
runs the command under an init.

    ENTRYPOINT ["perdure", "entrypoint", "--volume", "/data", "--"]

perdure's own state and workdirs are on the volume too, unless PERDURE_STATE and PERDURE_ROOT name
other directories. So a new container has everything that the previous one had. If the volume is not
the expected one, nothing is started.

By default the homes are replaced by links at their usual paths. A variable would reach only COMMAND
and its children, so an agent in a second shell (`docker exec`) would not find its conversations.
perdure never tries to detect a container. It links homes only for this verb and for `perdure home`.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from perdure.cli.data.home import agents_of
from perdure.cli.text import clean
from perdure.errors import PerdureError

if TYPE_CHECKING:
    from perdure.host.homes.volume import Volume

VOLUME = Path("/data")
POLL_S = 0.2
NEIGHBOUR_S = 30.0
"""Maximum time in seconds to wait while another container is starting on the same volume."""
Result = TypeVar("Result")


def entrypoint_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--volume",
        type=Path,
        default=VOLUME,
        metavar="DIR",
        help="where the volume is mounted (default: /data)",
    )
    parser.add_argument(
        "--volume-id",
        default="",
        metavar="ID",
        help="accept only the volume with this id, which `perdure home status` shows",
    )
    parser.add_argument(
        "--new",
        action="store_true",
        help="create a volume in a directory that is not a mount point",
    )
    parser.add_argument(
        "--wait",
        type=float,
        default=0.0,
        metavar="SECONDS",
        help="maximum wait for the volume (default: 0)",
    )
    parser.add_argument(
        "--grace",
        type=float,
        default=8.0,
        metavar="SECONDS",
        help="time that remaining processes get to exit after COMMAND has ended",
    )
    way = parser.add_mutually_exclusive_group()
    way.add_argument(
        "--symlink",
        action="store_true",
        help="put symlinks at the homes' usual places, where a second shell finds them (default)",
    )
    way.add_argument(
        "--variable",
        action="store_true",
        help="set the agents' variables for COMMAND; symlinks only for agents without a variable",
    )
    parser.add_argument(
        "--agent",
        action="append",
        default=[],
        metavar="AGENT",
        help="link only this agent's home; repeatable",
    )
    parser.add_argument(
        "command", nargs=argparse.REMAINDER, metavar="COMMAND", help="the command to run, after --"
    )


def entrypoint_verb(arguments: argparse.Namespace) -> int:
    from perdure.errors import UsageError
    from perdure.host.process.init import run_as_init

    if arguments.command[:1] == ["--"]:
        command = arguments.command[1:]
    else:
        command = arguments.command
    if not command:
        raise UsageError(
            "missing the command to run",
            "perdure entrypoint --volume DIR -- COMMAND",
        )
    from perdure.cli.kubernetes.pod import REST_S, is_pod, report_entrypoint_error

    if os.getpid() == 1:
        # The kernel drops a signal for which PID 1 has no handler. While SIGTERM is blocked it
        # stays pending instead, and later reaches the command.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        environ = _linked(arguments)
    except Exception as error:
        code = report_entrypoint_error(command, error)
        if code is None:
            raise
        return code
    return run_as_init(
        command, environ, min(arguments.grace, REST_S) if is_pod(command) else arguments.grace
    )


def _linked(arguments: argparse.Namespace) -> dict[str, str]:
    """Link the homes to the volume. Return the environment for the command."""
    from perdure.agents.shared.homes import home_of
    from perdure.config.files import load
    from perdure.errors import Conflict
    from perdure.host.homes.link import Linking
    from perdure.host.homes.linked_homes import HomeEnvironment

    volume = _volume(arguments)
    own = {
        "PERDURE_STATE": str(volume.path / "perdure/state"),
        "PERDURE_ROOT": str(volume.path / "perdure/root"),
        **os.environ,
    }
    state = load(own, Path.cwd()).state
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    call = Linking(volume=volume, state=state, environ=own, symlink=not arguments.variable)
    for agent in agents_of(arguments.agent):
        for moved in _patiently(
            partial(call.link, agent, home_of(agent)), Conflict, max(arguments.wait, NEIGHBOUR_S)
        ):
            for name in moved.taken.conflicts:
                print(clean(f"perdure: {agent}: two versions are kept: {name}"), file=sys.stderr)
    return dict(HomeEnvironment(state, own))


def _volume(arguments: argparse.Namespace) -> Volume:
    """Wait for the volume, and return it. Raises WorkspaceError if it is not there in time."""
    from perdure.errors import WorkspaceError
    from perdure.host.homes.volume import volume_at

    look = partial(
        volume_at, arguments.volume, wanted=arguments.volume_id, make=True, new=arguments.new
    )
    return _patiently(look, WorkspaceError, arguments.wait)


def _patiently(
    act: Callable[[], Result], obstacle: type[PerdureError], patience_s: float
) -> Result:
    """Call `act`, and return its result. While it raises `obstacle`, call it again, for up to
    `patience_s` seconds. Then raise the last error."""
    until = time.monotonic() + patience_s
    while True:
        try:
            return act()
        except obstacle:
            if time.monotonic() >= until:
                raise
        time.sleep(POLL_S)
