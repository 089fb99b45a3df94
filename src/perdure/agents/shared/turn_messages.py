"""Takes people's messages for a running turn from the attempt's directory of messages. Used by the
bridges between perdure and an agent, so it needs only the standard library. The files are described
in `perdure.engine.attempt.message_places`."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path


def take_new(directory: str) -> Iterator[tuple[int, str]]:
    """Yield number and text of the messages that no process has taken yet, in order. Each is marked
    as taken before it is yielded, so it is yielded at most once."""
    numbers = []
    for path in Path(directory).iterdir():
        if path.suffix == ".json":
            numbers.append(path.stem)
    for number in sorted(int(each) for each in numbers if each.isdecimal()):
        if _take(f"{directory}/taken-{number}"):
            yield number, json.loads(Path(directory, f"{number}.json").read_text("utf-8"))


def _take(path: str) -> bool:
    """Create the file that marks a message as given to the turn. Return False if the file already
    existed."""
    try:
        file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    except FileExistsError:
        return False
    os.write(file, b"turn")
    os.close(file)
    return True
