"""Places messages for a running attempt in files, where a hook of the agent's CLI finds them. Used
by `steering` and `messages`.

`steering.tell` stores a message as a version of the run's instructions and places it at once.
`messages` places those that are missing, because they came from another host or the process that
stored them was killed. It also checks when each message reaches the conversation.

The files are in the attempt's directory of messages, which exists only if the turn takes messages:

- `N.json`: the text of version N. The file is written once, and is complete as soon as it exists.
- `armed`: exists if there are messages. Without it the agent's hook does not start Python.
- `taken-N`: the hook gave version N to the CLI. The content says when in the turn it did.

`taken-N` is created exclusively, so each message is given at most once.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterable
from pathlib import Path

from perdure.model import Context


def directory_of(attempt_directory: Path) -> Path:
    """Return the directory for the attempt's messages, which need not exist."""
    return attempt_directory / "messages"


def place_messages(
    attempt_directory: Path, contexts: Iterable[Context], known: int
) -> tuple[int, ...]:
    """Write a file for each message that is newer than version `known` of the instructions, and
    return the versions of these messages. Write none if the turn takes no messages. Processes and
    threads may call this concurrently."""
    # Imported late, because the start of an agent does not need it.
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
