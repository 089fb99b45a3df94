"""Counts the usage of a running attempt, from its agent's output and its transcript. Used by
`supervision` and `finish`.

An agent reports its final figure at the end of a turn, if it gets that far. Until then each reply
of the model is counted separately. Claude Code prints the usage of a reply when the reply begins
and when it ends. Codex and Gemini CLI write it only into their transcripts.

A reply is reported several times and is identified by its id. Reading it again changes nothing, so
a supervisor that takes over gets the same count. Replies that were in the transcript before the
attempt, or that a fork copied into it, are not counted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from os import SEEK_END
from pathlib import Path

from msgspec import Struct, field

from perdure.engine.attempt.event_totals import EventTotals, cost_of
from perdure.engine.attempt.live_attempt import LiveAttempt
from perdure.engine.attempt.preparation import total_of
from perdure.engine.prompt_file import prompt_path
from perdure.host.process import boottime
from perdure.host.system.files import read_file, regular_files
from perdure.model import CutCost, Reply, ReplyCosts, Start, Usage
from perdure.protocols import CountsSubagents, OpenRequest, TellsRequests
from perdure.rules.pricing import priced

SEEK_S = 0.5
"""Minimum interval between two searches for a transcript that does not exist yet, in seconds."""
PIECE = 8 * 1024**2
"""Maximum number of bytes that are read from a transcript at once."""


class Meter(Struct):
    """Counts the usage of one attempt. A call of `look` is cheap if the transcript has not
    changed."""

    opened: LiveAttempt
    model: str = ""
    """The model that was reported last. It is assumed for replies that name no model."""
    before: Usage = field(default_factory=Usage)
    """The conversation's total usage at the start of the attempt. Zero for agents that report no
    such total."""
    session_id: str = ""
    path: Path | None = None
    sought: float = 0.0
    offset: int = 0
    since: int = 0
    """Size of the transcript at the start of the attempt, in bytes."""
    earlier: set[str] = field(default_factory=set)
    """Ids of the replies that a fork copied from its parent."""

    def begin(self) -> None:
        """Read the state from before the attempt: the model, the conversation's total usage, and
        the replies that a fork copied."""
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
            # The transcript was moved or lost after the start of the attempt. The total in the
            # session's record is the next best source.
            self.before = session.total if session is not None else Usage()

    def look(self, reading: EventTotals, *, last: bool = False) -> None:
        """Count the new replies in the transcript. `last`: whether the agent has ended. If so, the
        usage of its subagents is read as well."""
        if last:
            self._count_subagents(reading)
        path = self._transcript(last=last)
        if path is None:
            return
        try:
            self._read(path, reading)
            if last:
                self._read_subagents(path, reading)
        except OSError:
            # The transcript disappears if somebody moves the agent's home. The counts so far are
            # kept.
            self.path = None

    def usage(self, reading: EventTotals) -> Usage:
        """Return the usage of the attempt so far, including its cost."""
        return reading.usage(self.before, self.model)

    def final_usage(self, reading: EventTotals, *, killed: bool) -> tuple[Usage, ReplyCosts]:
        """Return the usage of the attempt, including an estimate for replies that were cut off, and
        the costs of its replies. `killed`: whether the agent ended without being asked by perdure.
        An agent that perdure asked to end may have announced a request without sending it."""
        used, found = self.usage(reading), None
        # A request that the service refused costs nothing. If the agent has only announced that it
        # will repeat such a request, there is no open request to count.
        if not reading.repeating and not reading.turn_over:
            found = self._open_request()
            if found is None and killed and reading.asking:
                found = OpenRequest()
        if found is None and not any(reply.cut for reply in reading.replies.values()):
            return used, ReplyCosts(dearest=self.dearest(reading))
        added = None if found is None else found.added
        model = self.model or (found.model if found is not None else "") or reading.model
        earlier, charged = self._earlier_replies(), list[CutCost]()
        for cut in reading.cut_off(earlier, added):
            missing = priced(cut.missing, model)
            used = used + missing
            seen = cost_of(cut.seen, model) if cut.seen is not None else 0.0
            most = seen + priced(cut.most, model).cost_usd
            charged.append(CutCost(round(seen + missing.cost_usd, 6), round(most, 6)))
        return used, ReplyCosts(cut=tuple(charged), dearest=reading.dearest(model, earlier))

    def dearest(self, reading: EventTotals) -> float:
        """Return the cost of the attempt's most expensive reply so far, in dollars."""
        return reading.dearest(self.model or reading.model)

    def _open_request(self) -> OpenRequest | None:
        """Return the request that was under way when the agent ended; None if there was none. Only
        for agents whose transcript shows such a request."""
        driver = self.opened.driver
        if not isinstance(driver, TellsRequests):
            return None
        try:
            path = self._transcript(last=True)
            if path is not None:
                return driver.open_request(_end_of(path, self.since))
            return None
        except OSError:
            return None

    def _earlier_replies(self) -> Sequence[Reply]:
        """Return the newest replies of the conversation before this attempt. If they cannot be
        read, return a single reply whose input has the size of the conversation."""
        opened, found = self.opened, list[Reply]()
        before, session = opened.attempt.before, opened.session
        fill = session.fill if session is not None else None
        try:
            if before is not None:
                newest = _end_of(Path(before.path), 0, before.size)
                found = list(opened.driver.replies(newest))
        except OSError:
            pass
        if not found and fill is not None and fill.tokens:
            found = [Reply(id="held", usage=Usage(input=fill.tokens))]
        return found

    def _transcript(self, *, last: bool) -> Path | None:
        """Return the path of the agent's transcript; None if it is unknown. Agents with an archive
        have no such file, and print the usage of every reply. `last`: search even if the interval
        has not passed."""
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
            self.since = self.offset
        return self.path

    def _read(self, path: Path, reading: EventTotals) -> None:
        size = path.stat().st_size
        if size < self.offset:
            # The file was rewritten and is shorter now. Everything in it was either counted already
            # or written before the attempt, so reading continues at its end.
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
        """Count the replies in the transcripts of subagents. Each subagent has a file of its own,
        which may be older than the attempt."""
        began, model = self._began(), self.model
        for found in self._belonging(path):
            if found.stat().st_mtime * 1000 >= began:
                self._count(read_file(found, follow=False), reading, began)
        self.model = model

    def _count_subagents(self, reading: EventTotals) -> None:
        """Count the replies to subagents that the agent's own figures leave out."""
        driver, session = self.opened.driver, self.opened.session
        if not isinstance(driver, CountsSubagents) or session is None:
            return
        with suppress(OSError):
            for reply in driver.subagent_replies(self.opened.home, session.id, self._began()):
                reading.subagents[reply.id] = reply

    def _began(self) -> int:
        """Return the time at which the attempt began, in ms. Raises OSError."""
        return int(prompt_path(self.opened.directory).stat().st_mtime * 1000)

    def _belonging(self, path: Path) -> Iterator[Path]:
        for directory in self.opened.driver.sidecar_files(path):
            files = regular_files(directory)
            yield from sorted(each for each in files if each.suffix == ".jsonl")


def _end_of(path: Path, since: int, until: int | None = None) -> bytes:
    """Return the bytes of a file from `since` to `until`, but at most the last `PIECE` of them.
    `until`: None means the end of the file. The result is empty if the file has become shorter than
    `since`. Raises OSError."""
    with path.open("rb") as file:
        end = file.seek(0, SEEK_END) if until is None else until
        file.seek(max(since, end - PIECE))
        return file.read(max(0, end - file.tell()))
