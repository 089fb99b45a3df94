"""The log of a failed job as an agent reads it: without escape sequences and the forge's own marks,
and cut after the error. Pure. Called by `checks`, with the end of the log from the forge."""

from __future__ import annotations

import re

from perdure.rules.excerpt import excerpt
from perdure.rules.text import clean

MOST = 4000
"""Maximum length of one job's excerpt, in characters."""
BEHIND = 2
"""Number of lines kept after the last error. On GitHub, the rest is the output of the runner's
clean-up."""

# GitHub and Gitea begin each line with the time. GitLab does so since version 17, and adds marks
# such as `00O` and `01E`.
_TIME = re.compile(r"^\ufeff?\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?Z(?: [0-9a-f]{2}[OE][+ ]?)? ?")
# GitLab folds its log at `section_start:1700000000:name[collapsed=true]`, ended by a CR.
_SECTION = re.compile(r"section_(?:start|end):\d+:[\w.-]+(?:\[[^\]\n]*\])?\r?")
_COMMAND = re.compile(r"^##\[(\w+)\]")
_ERROR = "##[error]"


def job_excerpt(log: str, most: int = MOST) -> str:
    """Return at most `most` characters of the log: the error and its context."""
    lines = [_TIME.sub("", line) for line in _SECTION.sub("", log).split("\n")]
    errors = [at for at, line in enumerate(lines) if line.startswith(_ERROR)]
    if errors:
        lines = lines[: errors[-1] + 1 + BEHIND]
    shown = [_COMMAND.sub(_named, clean(_last_drawn(line))) for line in lines]
    return excerpt("\n".join(shown), most)


def _last_drawn(line: str) -> str:
    """Return the final state of a line that was redrawn, as a terminal shows it."""
    drawn = [piece for piece in line.split("\r") if piece.strip()]
    if drawn:
        return drawn[-1]
    return ""


def _named(found: re.Match[str]) -> str:
    """Keep the text behind `##[error]` and `##[warning]`. GitHub's other marks only fold the
    log."""
    if found[1] in ("error", "warning"):
        return f"{found[1]}: "
    return ""
