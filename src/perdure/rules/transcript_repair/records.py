"""Reads a transcript as lines, each with its record. Used for all CLIs that write JSON lines.

Nothing here trusts the file. A line that is not a record may contain one after the remains of
another, if a line was cut off and then continued. It may also contain several records, if line ends
were lost. Such lines are searched for records, because the CLIs read none of them. The result is a
`Draft`: the lines, with the findings and edits so far. The module of each CLI may change it
further.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable
from typing import Any, TypeAlias

from msgspec import Struct, field

from perdure.patterns import late_pattern
from perdure.rules.transcript_repair.findings import Edit, Finding, Harm, RepairResult, Trouble

TRIES = 400
"""Maximum number of attempts to find a record in one line. The limit is needed because a malicious
line could otherwise take very long."""
_SURROGATE = late_pattern(r"[\ud800-\udfff]")
_BLANK = b" \t\r\n\0"

Record: TypeAlias = dict[str, Any]
"""One record of a transcript, which a repair may change. None of its fields is certain."""


class TranscriptLine(Struct, eq=False):
    """One line of a transcript. Two lines are never equal, even with the same content. `record` is
    None if the line cannot be read. `raw` is written to the new file unless the record was changed.
    """

    number: int
    """Number of the line in the original, counted from 1."""
    raw: bytes
    record: Record | None
    changed: bool = False
    dropped: bool = False


class Habits(Struct, kw_only=True):
    """How one CLI handles damaged lines."""

    opening: str
    """Regular expression that matches the beginning of this CLI's records. It is used to find
    records inside a line."""
    is_record: Callable[[Record], bool]
    headed: bool
    """Whether the CLI refuses a conversation whose first line is not a record."""
    keeps_unicode: bool
    """Whether the CLI can read lone surrogates and invalid characters. If not, it skips the whole
    line."""
    ends_torn_line: bool
    """Whether the CLI begins a new line before it appends to an incomplete one. If not, its next
    record is lost with the incomplete line."""


class Draft(Struct):
    """A transcript that is being repaired."""

    lines: list[TranscriptLine] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    edits: list[Edit] = field(default_factory=list)
    refusal: str = ""

    def find(self, trouble: Trouble, harm: Harm, line: int, what: str) -> None:
        self.findings.append(Finding(trouble, harm, line, what))

    def records(self) -> list[tuple[TranscriptLine, Record]]:
        """Return the lines with a record, except dropped lines."""
        found = []
        for line in self.lines:
            if line.record is not None and not line.dropped:
                found.append((line, line.record))
        return found

    def change(self, line: TranscriptLine, what: str, why: str) -> None:
        """Mark a line as changed and add an edit that describes the change. The caller itself
        changes the line's record."""
        line.changed = True
        self.edits.append(Edit(line.number, what, why))

    def drop(self, line: TranscriptLine, what: str, why: str) -> None:
        line.dropped = True
        self.edits.append(Edit(line.number, what, why))

    def insert(self, after: TranscriptLine | None, record: Record, what: str, why: str) -> None:
        """Insert a record made by perdure after a line, or at the beginning if `after` is None."""
        at = self.lines.index(after) + 1 if after is not None else 0
        number = after.number if after is not None else 1
        self.lines.insert(at, TranscriptLine(number, b"", record, changed=True))
        self.edits.append(Edit(number, what, why))

    def move(self, line: TranscriptLine, after: TranscriptLine, what: str, why: str) -> None:
        """Move a line to the place right after another line."""
        self.lines.remove(line)
        self.lines.insert(self.lines.index(after) + 1, line)
        self.edited(line.number, what, why)

    def edited(self, line: int, what: str, why: str) -> None:
        """Add an edit for a change that the caller has already made."""
        self.edits.append(Edit(line, what, why))

    def result(self) -> RepairResult:
        """Return the result. It has new bytes only if something was changed and the transcript as a
        whole can be repaired."""
        findings = tuple(sorted(self.findings, key=lambda finding: finding.line))
        if self.refusal or not self.edits:
            return RepairResult(findings=findings, refusal=self.refusal)
        return RepairResult(
            findings=findings,
            edits=tuple(sorted(self.edits, key=lambda edit: edit.line)),
            content=self.content(),
        )

    def content(self) -> bytes:
        kept = []
        for line in self.lines:
            if not line.dropped:
                kept.append(_dumped(line.record) if line.changed else line.raw)
                kept.append(b"\n")
        return b"".join(kept)


def _dumped(record: Record | None) -> bytes:
    return json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def draft(content: bytes, habits: Habits) -> Draft:
    """Return the transcript's lines as a draft. Damage that can be repaired without knowing what
    the CLI's records mean is already repaired."""
    made = Draft()
    content = _plain(content, habits, made)
    pieces = content.split(b"\n")
    torn = pieces.pop()
    for number, raw in enumerate(pieces, 1):
        _take(made, number, raw, habits)
    if torn.strip(_BLANK):
        _take_tail(made, len(pieces) + 1, torn, habits)
    elif torn:
        made.find(
            Trouble.TORN,
            Harm.NONE,
            len(pieces) + 1,
            f"{len(torn)} meaningless bytes at the end",
        )
        if not habits.ends_torn_line:
            made.edits.append(
                Edit(len(pieces) + 1, "left out", "the agent's next record would be lost with it")
            )
        else:
            made.lines.append(TranscriptLine(len(pieces) + 1, torn, None))
    return made


def _plain(content: bytes, habits: Habits, made: Draft) -> bytes:
    """Return the content as UTF-8 without a byte order mark, as every CLI writes it."""
    harm = Harm.REFUSED if habits.headed else Harm.NONE
    for mark, name in ((codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be")):
        if content.startswith(mark):
            made.find(
                Trouble.ENCODING,
                Harm.REFUSED,
                0,
                "it was stored as UTF-16, which the agent does not read",
            )
            made.edits.append(Edit(1, "stored as UTF-8 again", "the agent reads nothing else"))
            return content[2:].decode(name, "replace").encode("utf-8", "replace")
    if content.startswith(codecs.BOM_UTF8):
        made.find(Trouble.ENCODING, harm, 1, "there is a byte order mark before the first line")
        if habits.headed:
            made.edited(
                1, "byte order mark removed", "the agent does not read the first line with it"
            )
        return content.removeprefix(codecs.BOM_UTF8)
    return content


def _take(made: Draft, number: int, raw: bytes, habits: Habits) -> None:
    if not raw.strip(_BLANK):
        if not made.lines and habits.headed:
            made.find(Trouble.HEAD, Harm.REFUSED, number, "the first line is blank")
            made.edits.append(
                Edit(
                    number,
                    "blank line left out",
                    "the first line must name the conversation",
                )
            )
        else:
            made.lines.append(TranscriptLine(number, raw, None))
        return
    record, clean = read(raw)
    if record is not None and (clean or habits.keeps_unicode):
        made.lines.append(TranscriptLine(number, raw, record))
        return
    if record is not None:
        made.find(
            Trouble.UNREADABLE,
            Harm.LOSS,
            number,
            "broken characters make the agent skip the whole line",
        )
        made.lines.append(line := TranscriptLine(number, raw, record))
        made.change(
            line, "broken characters replaced", "the agent skips a line with broken characters"
        )
        return
    _search(made, number, raw, habits)


def _take_tail(made: Draft, number: int, torn: bytes, habits: Habits) -> None:
    """Handle the text after the last line end. It is either a complete record without its line end,
    or the beginning of a record."""
    record, _ = read(torn)
    if record is not None:
        made.lines.append(TranscriptLine(number, torn, record))
        if not habits.ends_torn_line:
            made.find(
                Trouble.TORN,
                Harm.LOSS,
                number,
                "the last line has no end, and the agent's next record would be glued to it",
            )
            made.edits.append(
                Edit(number, "line end added", "the agent's next record would be lost")
            )
        return
    before = len(made.findings)
    _search(made, number, torn, habits)
    if any(finding.trouble is Trouble.GLUED for finding in made.findings[before:]):
        return
    del made.findings[before:]
    what = f"the last record breaks off after {len(torn)} bytes"
    made.find(Trouble.TORN, Harm.NONE if habits.ends_torn_line else Harm.LOSS, number, what)
    if not habits.ends_torn_line:
        made.drop(
            made.lines[-1], "torn record left out", "the agent's next record would be lost with it"
        )


def _search(made: Draft, number: int, raw: bytes, habits: Habits) -> None:
    """Handle a line that is not a record: put each record found inside it on a line of its own."""
    found = _records_in(raw, habits)
    if not found:
        if habits.headed and not made.lines:
            harm = Harm.REFUSED
        else:
            harm = Harm.LOSS
        made.find(
            Trouble.UNREADABLE,
            harm,
            number,
            f"{len(raw)} bytes that are not a record; the agent skips them",
        )
        made.lines.append(TranscriptLine(number, raw, None))
        return
    if len(found) > 1:
        count = f"{len(found)} records that the agent does not read"
    else:
        count = "a record that the agent does not read"
    made.find(Trouble.GLUED, Harm.LOSS, number, f"{count}: they share a line")
    for record in found:
        made.lines.append(TranscriptLine(number, b"", record, changed=True))
    made.edits.append(
        Edit(
            number,
            f"{len(found)} record(s) put on separate lines",
            "the agent reads one record a line",
        )
    )


def _records_in(raw: bytes, habits: Habits) -> list[Record]:
    text = raw.decode("utf-8", "replace")
    decoder, opening = json.JSONDecoder(), re.compile(habits.opening)
    found: list[Record] = []
    at = 0
    for _ in range(TRIES):
        opened = opening.search(text, at)
        if opened is None:
            break
        try:
            record, end = decoder.raw_decode(text, opened.start())
        except (ValueError, RecursionError):
            at = opened.start() + 1
            continue
        at = end
        if isinstance(record, dict) and habits.is_record(record):
            found.append(_scrubbed(record))
    return found


def read(raw: bytes) -> tuple[Record | None, bool]:
    """Return the JSON object on the line (None if there is none), and whether all characters of the
    line are valid."""
    try:
        text = raw.decode("utf-8")
        clean = True
    except UnicodeDecodeError:
        text, clean = raw.decode("utf-8", "replace"), False
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None, clean
    if not isinstance(found, dict):
        return None, clean
    if clean and "\\ud" in text.lower() and _has_surrogate(found):
        return _scrubbed(found), False
    return found, clean


def _has_surrogate(value: Any) -> bool:
    return _SURROGATE.search(json.dumps(value, ensure_ascii=False)) is not None


def _scrubbed(record: Record) -> Record:
    """Return the record with lone surrogates replaced, because UTF-8 cannot represent them."""
    if not _has_surrogate(record):
        return record
    cleaned: Record = json.loads(_SURROGATE.sub("\ufffd", json.dumps(record, ensure_ascii=False)))
    return cleaned


def part(value: Any, *path: str) -> Any:
    """Return the value at this path of keys; None if there is none."""
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def objects(value: Any) -> list[Record]:
    """Return the objects in a list. Other items are skipped."""
    if isinstance(value, list):
        return [item for item in value if isinstance(item, dict)]
    return []


def text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return ""


def named(words: str, most: int = 60) -> str:
    """Return untrusted text reduced to a few plain characters, for use in a sentence."""
    plain = "".join(letter if letter.isprintable() else " " for letter in words)
    return repr(" ".join(plain.split())[:most])
