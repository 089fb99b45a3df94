"""The line of an attempt's log that names its conversation. Pure.

A pod has no access to the API server, and its result comes only at its end. So it prints the
conversation's id as soon as the agent has named it, and the operator reads the beginning of the
log. Only the first such line counts, and an agent's own words are printed later, so they cannot
replace it. Until the result confirms the id, it is only shown and no decision depends on it.
"""

from __future__ import annotations

import re

from perdure.kubernetes.order import SESSION_ID

BEGINNING = 65_536
"""Number of bytes of a log that are searched."""
_LINE = re.compile(rf"attempt ([0-9]{{1,7}}): conversation ({SESSION_ID.pattern})")


def session_line(attempt: int, session_id: str) -> str:
    """Return the line for the log."""
    return f"attempt {attempt}: conversation {session_id}"


def session_in(log: str, attempt: int) -> str:
    """Return the conversation that the beginning of an attempt's log names; empty if it names
    none."""
    for line in log.splitlines():
        found = _LINE.fullmatch(line)
        if found is not None:
            return found[2] if int(found[1]) == attempt else ""
    return ""
