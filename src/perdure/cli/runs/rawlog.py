"""`logs --raw`: prints the agent's own output: unchanged into a pipe or file, and cleaned of
harmful characters on a terminal."""

from __future__ import annotations

import codecs
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from perdure.cli.runs.look import UNATTENDED, LeftAlone
from perdure.cli.text import clean
from perdure.protocols import RunStore
from perdure.rules.lifecycle import FINAL

CHUNK = 1 << 16
NAP_S = 0.2


def raw_log(store: RunStore, run_id: str, only: int, follow: bool, left: LeftAlone) -> int:
    """Print the standard output of one attempt, or of all in order (`only` 0). With `follow`,
    continue until the run is over or unattended. Return the exit code."""
    number = only or 1
    while True:
        over = store.get(run_id).state in FINAL
        attempt = next(
            (attempt for attempt in store.attempts(run_id) if attempt.number == number), None
        )
        place = attempt.directory if attempt is not None else ""
        if place and not _copy(store, run_id, number, Path(place) / "stdout", follow, left):
            return UNATTENDED
        if attempt is not None and (attempt.directory or attempt.ended):
            if only:
                return 0
            number += 1
        elif not follow or over:
            return 0
        elif left(run_id):
            return UNATTENDED
        else:
            time.sleep(NAP_S)


def _copy(
    store: RunStore, run_id: str, number: int, path: Path, follow: bool, left: LeftAlone
) -> bool:
    """Print one attempt's output. Return False if it was followed and the run is unattended."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace") if sys.stdout.isatty() else None
    offset = 0
    while True:
        # Check for the end before reading the file, so that everything written before the end is
        # read.
        ended = not follow or any(
            attempt.number == number and attempt.ended for attempt in store.attempts(run_id)
        )
        for chunk in _chunks(path, offset):
            offset += len(chunk)
            if decoder is None:
                sys.stdout.buffer.write(chunk)
            else:
                sys.stdout.write(clean(decoder.decode(chunk)))
        sys.stdout.flush()
        if ended:
            return True
        if left(run_id):
            return False
        time.sleep(NAP_S)


def _chunks(path: Path, offset: int) -> Iterator[bytes]:
    if not path.is_file():
        return
    with path.open("rb") as file:
        file.seek(offset)
        while chunk := file.read(CHUNK):
            yield chunk
