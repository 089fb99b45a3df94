"""The operating system's processes behind one interface, with two back ends: `linux`, and
`portable` for any other POSIX system.

Only this module sets `IS_PORTABLE`. The value depends on the platform, and on Linux also on the
variable PERDURE_HOST, which tests set. The back ends contain no policy; every decision is the
caller's. The shim and the keeper load this package too, so it needs only the standard library
(`portable` also psutil). They run with the agent's environment, so their supervisor tells them on
the command line which back end to use. `files` and `sockets` provide the same kind of interface for
files and local sockets.
"""

from __future__ import annotations

import os
import sys

VARIABLE = "PERDURE_HOST"
IS_PORTABLE = sys.platform != "linux" or os.environ.get(VARIABLE) == "portable"
"""Whether this process uses the portable back end, which needs only POSIX and psutil."""

TYPE_CHECKING = False
if TYPE_CHECKING or not IS_PORTABLE:
    from perdure.host.system.linux import *  # noqa: F403
else:
    from perdure.host.system.portable import *  # noqa: F403


def lives(pid: int, start: int) -> bool:
    """Return whether the process with this pid and start time (see `stat`) is alive."""
    known = stat(pid)  # noqa: F405 (from the back end)
    return known is not None and known[3] == start and not is_dead(known)  # noqa: F405
