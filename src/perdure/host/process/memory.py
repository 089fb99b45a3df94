"""The user's own pager, for text that is longer than the screen. Called by verbs with long output,
on a terminal only."""

from __future__ import annotations

import contextlib
import signal
import subprocess
from collections.abc import Mapping

from perdure.host.privileges import dropped

DEFAULT = "less"
LESS = "FRX"
"""The same default as git's: exit if the text fits on one screen, show colors, keep the screen."""


def page(text: str, environ: Mapping[str, str]) -> bool:
    """Show the text in PERDURE_PAGER, PAGER or less, and wait until it is closed. Return False if
    there is no pager.

    The text is shown unchanged: the caller has to clean agents' output first. Ctrl-C goes to the
    pager meanwhile.
    """
    pager = environ.get("PERDURE_PAGER", environ.get("PAGER", DEFAULT))
    if pager in ("", "cat"):
        return False
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        # Run by a shell, because the variable holds a command with arguments, as for git and man.
        # It is the user's own.
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
