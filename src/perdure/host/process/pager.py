"""Shows long text in the user's own pager. Called by commands with long output, on a terminal
only."""

from __future__ import annotations

import contextlib
import signal
import subprocess
from collections.abc import Mapping

from perdure.host.privileges import dropped

DEFAULT = "less"
LESS = "FRX"
"""Value of LESS if the user has not set it; the same as git's default. It makes less exit if the
text fits on one screen, show colors, and leave the text on the screen."""


def page(text: str, environ: Mapping[str, str]) -> bool:
    """Show the text in the pager that PERDURE_PAGER or PAGER names, by default less. Returns when
    the user closes it. Return False if there is no pager.

    The text is shown unchanged, so the caller has to clean agents' output first. While the pager
    runs, Ctrl-C reaches only the pager.
    """
    pager = environ.get("PERDURE_PAGER", environ.get("PAGER", DEFAULT))
    if pager in ("", "cat"):
        return False
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        # A shell runs the pager, because the variable may contain arguments. git and man do the
        # same. The variable is set by the user, so it is trusted.
        shown = subprocess.Popen(
            ["/bin/sh", "-c", pager],
            stdin=subprocess.PIPE,
            env={"LESS": LESS, **environ},
            group=dropped(),
        )
        assert shown.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            shown.stdin.write(text.encode("utf-8", "replace"))
        with contextlib.suppress(BrokenPipeError):
            shown.stdin.close()
        return shown.wait() not in (126, 127)
    finally:
        signal.signal(signal.SIGINT, before)
