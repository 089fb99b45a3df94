"""Writes and finds the log line that names the conversation of an attempt. Pure.

A pod has no access to the API server, and its result comes only at its end. It therefore prints the
conversation's id as soon as the agent has reported it, and the operator reads the beginning of the
log. Only the first such line counts. The agent's output is printed later, so an agent cannot forge
the line. Until the result confirms the id, the operator only displays it.
"""

from __future__ import annotations

import re

from perdure.kubernetes.order import SESSION_ID

BEGINNING = 65_536
"""Number of bytes at the beginning of a log that are searched for the line."""
_LINE = re.compile(rf"attempt ([0-9]{{1,7}}): conversation ({SESSION_ID.pattern})")


def session_line(attempt: int, session_id: str) -> str:
    """Return the log line that names the conversation of an attempt."""
    return f"attempt {attempt}: conversation {session_id}"


def session_in(log: str, attempt: int) -> str:
    """Return the id of the conversation that the beginning of an attempt's log names; empty if
    there is none."""
    for line in log.splitlines():
        found = _LINE.fullmatch(line)
        if found is not None:
            return found[2] if int(found[1]) == attempt else ""
    return ""
