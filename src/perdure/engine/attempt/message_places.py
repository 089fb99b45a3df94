"""Where the messages for a running attempt are, so that the agent's CLI finds them.

`service.tell` stores a message as a version of the run's instructions and places it at once;
`messages` places what is missing (told on another host, or by a process that was killed) and
follows each message into the conversation. Files in the attempt's directory of messages, which
exists only if the turn takes messages:

- `N.json`: the words of version N. It is written once, and is complete as soon as it exists;
- `armed`: exists if there is any. Without it the agent's hook starts no Python;
- `taken-N`: the hook gave version N to the CLI; its content says when in the turn. It is created
  exclusively, so a message is given at most once.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterable
from pathlib import Path

from perdure.model import Context


def directory_of(attempt_directory: Path) -> Path:
    """Return the attempt's directory of messages."""
    return attempt_directory / "messages"


def place_messages(
    attempt_directory: Path, contexts: Iterable[Context], known: int
) -> tuple[int, ...]:
    """Put the messages after the version `known` where the turn takes them, and return their
    versions. Any number of processes and threads may do it at once."""
    # A start of an agent needs no rules of messages.
    from perdure.rules.messages import pending, words

    directory = directory_of(attempt_directory)
    if not directory.is_dir():
        return ()
    found = pending(contexts, known)
    for each in found:
        path = directory / f"{each.version}.json"
        if path.exists():
            continue
        draft = directory / f".{each.version}-{os.getpid()}-{threading.get_ident()}"
        draft.write_text(json.dumps(words(each)), encoding="utf-8")
        draft.replace(path)
    if found:
        (directory / "armed").touch()
    return tuple(each.version for each in found)
