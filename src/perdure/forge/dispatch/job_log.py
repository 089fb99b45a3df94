"""The log of a failed job as an agent reads it: without escapes and the forge's own marks, cut
behind the error. Pure; called by `checks`, with the end of the log that a forge gave."""

from __future__ import annotations

import re

from perdure.rules.excerpt import excerpt
from perdure.rules.text import clean

MOST = 4000
"""Characters of one job's excerpt."""
BEHIND = 2
"""Lines that are kept behind the last error: what follows on GitHub is the clean-up of the
runner."""

# GitHub and Gitea begin each line with the time; GitLab does since 17, and adds `00O`, `01E`.
_TIME = re.compile(r"^\ufeff?\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?Z(?: [0-9a-f]{2}[OE][+ ]?)? ?")
# GitLab folds its log at `section_start:1700000000:name[collapsed=true]`, which ends with a CR.
_SECTION = re.compile(r"section_(?:start|end):\d+:[\w.-]+(?:\[[^\]\n]*\])?\r?")
_COMMAND = re.compile(r"^##\[(\w+)\]")
_ERROR = "##[error]"


def job_excerpt(log: str, most: int = MOST) -> str:
    """Return at most `most` characters of the log: the error, and what stands around it."""
    lines = [_TIME.sub("", line) for line in _SECTION.sub("", log).split("\n")]
    errors = [at for at, line in enumerate(lines) if line.startswith(_ERROR)]
    if errors:
        lines = lines[: errors[-1] + 1 + BEHIND]
    shown = [_COMMAND.sub(_named, clean(_last_drawn(line))) for line in lines]
    return excerpt("\n".join(shown), most)


def _last_drawn(line: str) -> str:
    """A line that was drawn over itself, as a terminal shows it at its end."""
    drawn = [piece for piece in line.split("\r") if piece.strip()]
    return drawn[-1] if drawn else ""


def _named(found: re.Match[str]) -> str:
    """`##[error]` and `##[warning]` say something; the other marks of GitHub fold its log."""
    return f"{found[1]}: " if found[1] in ("error", "warning") else ""
