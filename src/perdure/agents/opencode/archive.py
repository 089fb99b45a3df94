"""OpenCode's database: one SQLite file with the sessions of all directories. It is read, and never
written. `home` is that file.

Layout of 1.18.33: tables `session`, `message`, `part`, the latter two with their content as JSON. A
conversation is told in lines: one for the session, one for each message, one for each part, in the
order in which the CLI reads them, keys sorted. What the CLI changes afterwards in rows that are
complete (a summary of changes on a prompt, the mark of a pruned tool output) is left out, so lines
that were read once stay as they are while the conversation only goes on. A process that was killed
leaves rows that are not complete; no later one completes them. While a session is reverted, a last
line says to which place: its next prompt deletes what stands behind that.
"""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from perdure.agents.opencode.events import begun
from perdure.agents.shared import json_lines
from perdure.model import Command, Conversation, Fill, Program
from perdure.model.events import AgentEvent
from perdure.protocols import Prompt, Spoken

PATIENCE_S = 10.0
_FIRST = 500
_ID = re.compile(r"ses_[0-9A-Za-z]{10,64}")

_SESSION = "select id, directory, time_created from session where id = ?"
_REVERT = "select revert from session where id = ? and revert is not null"
_ROWS = """
select m.id, m.data, p.id, p.data from message m left join part p on p.message_id = m.id
where m.session_id = ? order by m.time_created, m.id, p.id
"""
_NEWEST = """
select id, directory, time_updated from session
where (? = '' or id = ?) and parent_id is null order by time_updated desc limit cast(? as integer)
"""
_PROMPTS = """
select count(*), p.data, min(p.id) from message m join part p on p.message_id = m.id
where m.session_id = ? and json_extract(m.data, '$.role') = 'user'
and json_extract(p.data, '$.type') = 'text'
and coalesce(json_extract(p.data, '$.synthetic'), 0) = 0
"""
_TITLED = "select id from session where title = ? order by time_created desc limit 1"


def is_id(session_id: str) -> bool:
    return _ID.fullmatch(session_id) is not None


def checked(session_id: str) -> str:
    """The id itself. Raises ValueError if it is none: the CLI takes an empty one for a wish to
    start anew."""
    if not is_id(session_id):
        raise ValueError(f"{session_id!r} is no session id of OpenCode")
    return session_id


def title(mark: str) -> str:
    """The session's title, by which it is found again. With a title given, the CLI asks no model
    for one."""
    return f"perdure {mark}"


def _rows(home: Path, question: str, *values: str) -> list[tuple[Any, ...]]:
    """What the database answers; nothing where it is not there or cannot be read."""
    try:
        with closing(
            sqlite3.connect(f"{home.absolute().as_uri()}?mode=ro", uri=True, timeout=PATIENCE_S)
        ) as found:
            return found.execute(question, values).fetchall()
    except sqlite3.Error:
        return []


def directory(home: Path, session_id: str) -> Path | None:
    """Where the session began, and where alone it can go on."""
    rows = _rows(home, _SESSION, session_id)
    return Path(rows[0][1]) if rows else None


class OpenCodeArchive:
    """An `Archive`."""

    def read(self, home: Path, session_id: str) -> bytes | None:
        """The session's lines. See the module's story."""
        head = _rows(home, _SESSION, session_id) if is_id(session_id) else []
        if not head:
            return None
        told = [
            _line(
                {
                    "type": "session",
                    "id": head[0][0],
                    "directory": head[0][1],
                    "created": head[0][2],
                }
            )
        ]
        message, role = "", ""
        for message_id, message_row, part_id, part_row in _rows(home, _ROWS, session_id):
            if message_id != message:
                message, info = message_id, _row(message_row)
                role = json_lines.text(info.get("role"))
                if role == "user":
                    info.pop("summary", None)
                told.append(_line({"type": "message", "id": message, "data": info}))
            if part_id is not None:
                told.append(
                    _line(
                        {
                            "type": "part",
                            "id": part_id,
                            "message": message,
                            "role": role,
                            "data": _part(_row(part_row)),
                        }
                    )
                )
        for (row,) in _rows(home, _REVERT, session_id):
            place = {
                name: key for name, key in _row(row).items() if name in ("messageID", "partID")
            }
            told.append(
                _line(
                    {"type": "revert", "id": json_lines.text(place.get("messageID")), "data": place}
                )
            )
        return b"".join(told)

    def find(self, home: Path, mark: str) -> str:
        """By the title that the launch gave it."""
        rows = _rows(home, _TITLED, title(mark))
        return str(rows[0][0]) if rows else ""

    def unheard(self, piece: bytes) -> Sequence[AgentEvent]:
        """The CLI prints a tool when it has ended: one that was running at a kill stands in its row
        alone."""
        told = (
            entry
            for line in piece.split(b"\n")
            if b'"tool"' in line and (entry := json_lines.read(line))
        )
        parts = [entry.get("data") for entry in told if entry.get("type") == "part"]
        return tuple(
            begun(part)
            for part in parts
            if json_lines.part(part, "state", "status") in ("pending", "running")
        )

    def moved(self, copy: bytes, directory: Path) -> bytes:
        """The copy as it reads when it was restored in this directory, to which the session belongs
        then."""
        first, _, rest = copy.partition(b"\n")
        head = json_lines.read(first) or {}
        return (
            _line({**head, "directory": str(directory)}) + rest
            if head.get("type") == "session"
            else copy
        )

    def restore(self, program: Program, session_id: str, copy: bytes) -> Command:
        """`opencode import` of the copy, in the form of an export. It adds rows that are missing
        and changes none; the session then belongs to the directory in which this runs."""
        told = [entry for line in copy.split(b"\n") if (entry := json_lines.read(line))]
        head = next((entry for entry in told if entry.get("type") == "session"), {})
        if head.get("id") != checked(session_id):
            raise ValueError(f"the copy is not of the session {session_id}")
        export = {"info": _info(head, program), "messages": _messages(session_id, told)}
        return Command(
            argv=(program.path, "import", "/dev/stdin"), stdin=json.dumps(export).encode()
        )


def _info(head: dict[str, Any], program: Program) -> dict[str, Any]:
    created = json_lines.whole(head.get("created"))
    where = json_lines.text(head.get("directory"))
    names = {
        "slug": "restored",
        "title": "restored by perdure",
        "version": program.version or "0",
        "projectID": "global",
    }
    return {
        "id": head["id"],
        **names,
        "directory": where,
        "time": {"created": created, "updated": created},
    }


def _messages(session_id: str, told: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    messages: dict[str, dict[str, Any]] = {}
    for entry in told:
        content = {**(entry.get("data") or {}), "id": entry.get("id"), "sessionID": session_id}
        if entry.get("type") == "message":
            messages[json_lines.text(entry.get("id"))] = {"info": content, "parts": []}
        elif entry.get("type") == "part" and (
            owner := messages.get(json_lines.text(entry.get("message")))
        ):
            owner["parts"].append({**content, "messageID": entry["message"]})
    return list(messages.values())


def _row(content: Any) -> dict[str, Any]:
    """A row's JSON; what cannot be read is kept as it stands."""
    found = json_lines.read(content.encode() if isinstance(content, str) else bytes(content or b""))
    return found if found is not None else {"unreadable": str(content)}


def _part(part: dict[str, Any]) -> dict[str, Any]:
    """Without the mark that a tool's old output is not sent any more."""
    if isinstance(time := json_lines.part(part, "state", "time"), dict):
        time.pop("compacted", None)
    return part


def _line(entry: dict[str, Any]) -> bytes:
    return json.dumps(entry, sort_keys=True, separators=(",", ":")).encode() + b"\n"


def prompts(content: bytes) -> Iterator[Prompt]:
    """The prompts of people and programs, in order; the CLI's own additions and unreadable lines
    are passed over."""
    for line in content.split(b"\n"):
        if (
            b'"user"' in line
            and (entry := json_lines.read(line))
            and (entry.get("type"), entry.get("role")) == ("part", "user")
        ):
            part = entry.get("data")
            words = json_lines.part(part, "text")
            if (
                json_lines.part(part, "type") == "text"
                and not json_lines.part(part, "synthetic")
                and isinstance(words, str)
                and words
            ):
                yield Prompt(words)


def conversations(home: Path, limit: int, only: str = "") -> Sequence[Conversation]:
    """The sessions that people and programs began, of all directories; those of subagents have a
    parent and are left out."""
    found = []
    for key, where, updated in _rows(home, _NEWEST, only, only, str(limit)):
        turns, first, _ = (_rows(home, _PROMPTS, key) or [(0, "", "")])[0]
        words = json_lines.text(json_lines.part(_row(first or b""), "text"), _FIRST)
        if turns:
            found.append(
                Conversation(
                    id=key,
                    path=str(home),
                    updated=json_lines.whole(updated),
                    cwd=where,
                    first=words,
                    turns=turns,
                )
            )
    return found


def spoken(content: bytes) -> Iterator[Spoken]:
    """Prompts, and the agent's text."""
    for line in content.split(b"\n"):
        entry = json_lines.read(line) if b'"part"' in line else None
        part = entry.get("data") if entry is not None and entry.get("type") == "part" else None
        words = json_lines.text(json_lines.part(part, "text"))
        if (
            entry is not None
            and json_lines.part(part, "type") == "text"
            and not json_lines.part(part, "synthetic")
            and words.strip()
        ):
            yield Spoken(entry.get("role") == "assistant", words)


def fill(content: bytes) -> Fill:
    """By the newest answer that has a count; right after a compaction by the length of its summary.
    The window stands in no row."""
    tokens, model, compactions, held, left = 0, "", 0, 0, 0
    for line in content.split(b"\n"):
        entry = json_lines.read(line) if b'"tokens"' in line and b'"message"' in line else None
        if entry is None or entry.get("type") != "message":
            continue
        said = entry.get("data")
        used, summary = json_lines.part(said, "tokens"), json_lines.part(said, "summary") is True
        cached = json_lines.whole(json_lines.part(used, "cache", "read")) + json_lines.whole(
            json_lines.part(used, "cache", "write")
        )
        carried = (
            json_lines.whole(json_lines.part(used, "output"))
            if summary
            else json_lines.whole(json_lines.part(used, "input")) + cached
        )
        if summary:
            compactions, held, left = compactions + 1, tokens, carried
        if carried:
            tokens, model = carried, json_lines.text(json_lines.part(said, "modelID")) or model
    return Fill(tokens=tokens, model=model, compactions=compactions, held=held, left=left)


def writers(home: Path, session_id: str) -> Sequence[int]:
    """Live processes that were told on their command line to go on with this session. The CLI has
    no register: one that opened the session in another way is not seen here, only by what it
    writes."""
    found = []
    for folder in Path("/proc").glob("[0-9]*") if is_id(session_id) else ():
        try:
            words = (folder / "cmdline").read_bytes().decode("utf-8", "replace").split("\0")
            named = any(word == session_id or word.endswith(f"={session_id}") for word in words)
            if named and "--fork" not in words and _has_open(folder, home):
                found.append(int(folder.name))
        except OSError:
            continue
    return sorted(found)


def _has_open(folder: Path, database: Path) -> bool:
    """Whether the process has this very database open. Where the kernel does not let us look, it
    may have."""
    try:
        return any(
            descriptor.resolve() == database.resolve() for descriptor in (folder / "fd").iterdir()
        )
    except PermissionError:
        return True


ARCHIVE = OpenCodeArchive()
