"""Counts what an attempt spends while it works, from its agent's output and from the transcript.
Used by `supervision`.

An agent tells its final figure at the end of a turn, if it lives so long. Until then every reply of
the model is counted by itself: Claude Code prints what a reply uses when it begins and when it
ends, Codex and Gemini CLI write it into their transcripts alone. A reply is known by its id and
told several times, so reading the same again changes nothing; a supervisor that takes over counts
the same. What stood in the transcript before the attempt, or was copied into it by a fork, belongs
to other attempts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import field
from pathlib import Path

from perdure.engine.attempt.event_totals import EventTotals
from perdure.engine.attempt.live_attempt import Opened
from perdure.engine.attempt.preparation import total_of
from perdure.host.process import boottime
from perdure.lateclass import dataclass
from perdure.model import Start, Usage

SEEK_S = 0.5
"""A transcript that is not there yet is looked for at most so often."""
PIECE = 8 * 1024**2
"""Bytes of a transcript that are read at once."""


@dataclass(slots=True)
class Meter:
    """One attempt's. `look` is cheap where nothing was written."""

    opened: Opened
    model: str = ""
    """The newest that was told, for replies that name none."""
    before: Usage = field(default_factory=Usage)
    """The conversation's total when the attempt began, where the agent counts over all of it."""
    session_id: str = ""
    path: Path | None = None
    sought: float = 0.0
    offset: int = 0
    earlier: set[str] = field(default_factory=set)
    """Ids of replies that a fork brought along."""

    def begin(self) -> None:
        """Reads what was there before the attempt."""
        opened = self.opened
        session, before, driver = opened.session, opened.attempt.before, opened.driver
        self.model = (
            session.fill.model if session is not None and session.fill is not None else ""
        ) or opened.claim.run.spec.model
        try:
            self.before = total_of(driver, before)
            if before is not None and opened.asked.kind is Start.FORK:
                with Path(before.path).open("rb") as file:
                    self.earlier = {reply.id for reply in driver.replies(file.read(before.size))}
        except OSError:
            # The transcript was moved or lost since: what the session's record says is the next
            # best.
            self.before = session.total if session is not None else Usage()

    def look(self, reading: EventTotals, *, last: bool = False) -> None:
        """Counts what the transcript tells that is new. `last`: the agent has ended, and its
        subagents' transcripts are read as well."""
        path = self._transcript(last=last)
        if path is None:
            return
        try:
            self._read(path, reading)
            if last:
                self._read_subagents(path, reading)
        except OSError:
            # It may be moved at any moment, by whoever moves the agent's home. What was counted
            # stays.
            self.path = None

    def usage(self, reading: EventTotals) -> Usage:
        """Return what the attempt has used so far, priced."""
        return reading.usage(self.before, self.model)

    def _transcript(self, *, last: bool) -> Path | None:
        """The agent's own file; an archive has none, and its agent prints all that it writes."""
        session, opened = self.opened.session, self.opened
        if session is None or opened.driver.archive is not None:
            return None
        if session.id != self.session_id or (
            self.path is None and (last or boottime() - self.sought >= SEEK_S)
        ):
            self.session_id, self.sought = session.id, boottime()
            self.path = opened.driver.transcript(opened.home, session.id)
            before = opened.attempt.before
            same = before is not None and self.path is not None and Path(before.path) == self.path
            self.offset = before.size if before is not None and same else 0
        return self.path

    def _read(self, path: Path, reading: EventTotals) -> None:
        size = path.stat().st_size
        if size < self.offset:
            # It was written anew: what stands in it now was counted, or is older than the attempt.
            self.offset = size
        while size > self.offset:
            with path.open("rb") as file:
                file.seek(self.offset)
                piece = file.read(PIECE)
            whole, newline, _ = piece.rpartition(b"\n")
            if not newline and len(piece) < PIECE:
                return
            self.offset += len(whole) + 1 if newline else len(piece)
            self._count(whole, reading)

    def _count(self, piece: bytes, reading: EventTotals, since: int = 0) -> None:
        for reply in self.opened.driver.replies(piece):
            self.model = reply.model or self.model
            if reply.id not in self.earlier and reply.at >= since:
                reading.count(reply)

    def _read_subagents(self, path: Path, reading: EventTotals) -> None:
        """A subagent's transcript is its own file, which may be older than the attempt."""
        began = int((self.opened.directory / "prompt.md").stat().st_mtime * 1000)
        model = self.model
        for found in self._belonging(path):
            if found.stat().st_mtime * 1000 >= began:
                self._count(found.read_bytes(), reading, began)
        self.model = model

    def _belonging(self, path: Path) -> Iterator[Path]:
        for directory in self.opened.driver.belongings(path):
            yield from sorted(directory.rglob("*.jsonl"))
