"""The user's own pager, for text that is longer than the screen. Called by the verbs that show
much, on a terminal only."""

from __future__ import annotations

import contextlib
import signal
import subprocess
from collections.abc import Mapping

from perdure.host.privileges import dropped

DEFAULT = "less"
LESS = "FRX"
"""As git has it: leave if it fits on one screen, let colours through, do not clear the screen."""


def page(text: str, environ: Mapping[str, str]) -> bool:
    """Shows the text in PERDURE_PAGER, PAGER or less, and waits until it is closed. False if there
    is no pager to be had.

    The text is taken as it is: what agents wrote has to be cleaned before. Ctrl-C belongs to the
    pager meanwhile.
    """
    pager = environ.get("PERDURE_PAGER", environ.get("PAGER", DEFAULT))
    if pager in ("", "cat"):
        return False
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        # A shell, because the variable holds a command with arguments; it is the user's own, as for
        # git and man.
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
