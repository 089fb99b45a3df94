"""Prepares the log of a failed job for an agent. Removes escape sequences and the forge's own
markers, and cuts the log after the error. Pure. `checks` calls it with the end of the log."""

from __future__ import annotations

import re

from perdure.rules.excerpt import excerpt
from perdure.rules.text import clean

MOST = 4000
"""Maximum length of one job's excerpt, in characters."""
BEHIND = 2
"""Number of lines kept after the last error. On GitHub, later lines come from the runner's
clean-up."""

# GitHub and Gitea begin each line with the time. GitLab has done so since version 17, with added
# markers such as `00O` and `01E`.
_TIME = re.compile(r"^\ufeff?\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?Z(?: [0-9a-f]{2}[OE][+ ]?)? ?")
# GitLab marks a collapsible section by `section_start:1700000000:name[collapsed=true]`, followed by
# a CR.
_SECTION = re.compile(r"section_(?:start|end):\d+:[\w.-]+(?:\[[^\]\n]*\])?\r?")
_COMMAND = re.compile(r"^##\[(\w+)\]")
_ERROR = "##[error]"


def job_excerpt(log: str, most: int = MOST) -> str:
    """Return an excerpt of the log with the error and its context, at most `most` characters."""
    lines = [_TIME.sub("", line) for line in _SECTION.sub("", log).split("\n")]
    errors = [at for at, line in enumerate(lines) if line.startswith(_ERROR)]
    if errors:
        lines = lines[: errors[-1] + 1 + BEHIND]
    shown = [_COMMAND.sub(_named, clean(_last_drawn(line))) for line in lines]
    return excerpt("\n".join(shown), most)


def _last_drawn(line: str) -> str:
    """Return the part of a line that remains visible in a terminal. A progress bar overwrites its
    line after each carriage return."""
    drawn = [piece for piece in line.split("\r") if piece.strip()]
    if drawn:
        return drawn[-1]
    return ""


def _named(found: re.Match[str]) -> str:
    """Return the text that replaces one of GitHub's markers. It is `error: ` for the marker of an
    error and `warning: ` for that of a warning. It is empty for the other markers, which only make
    parts of the log collapsible."""
    if found[1] in ("error", "warning"):
        return f"{found[1]}: "
    return ""
