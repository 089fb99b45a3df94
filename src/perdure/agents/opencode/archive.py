"""Reads OpenCode's database: one SQLite file with the sessions of all directories. `home` is the
path of that file. The file is never written.

Layout of 1.18.33: tables `session`, `message` and `part`; the latter two have their content as
JSON. A conversation is returned as lines with sorted keys: one for the session, one for each
message and one for each part, in the order in which the CLI reads them.

The lines of complete rows do not change while the conversation continues. The CLI does change two
things in complete rows, so both are left out of the lines: a prompt's summary of changed files, and
the mark of a tool output that is no longer sent to the model. A killed process leaves incomplete
rows, which no later process completes.

While a session is reverted, a last line names the message or part to which it is reverted. The next
prompt deletes everything from there on.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from perdure.agents.opencode import unfinished
from perdure.agents.opencode.events import begun, step_usage
from perdure.agents.shared import json_lines
from perdure.agents.shared.json_lines import Record
from perdure.host import system
from perdure.model import Command, Conversation, Fill, Program, Reply
from perdure.model.events import AgentEvent
from perdure.patterns import late_pattern
from perdure.protocols import Prompt, SpokenMessage

PATIENCE_S = 10.0
_FIRST = 500
_ID = late_pattern(r"ses_[0-9A-Za-z]{10,64}")

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
_CHILDREN = "select id from session where parent_id = ?"
_OF_SUBAGENTS = """
with recursive family(id) as (
select id from session where parent_id = ?
union select session.id from session join family on session.parent_id = family.id
)
select p.id, m.data, p.data from family join message m on m.session_id = family.id
join part p on p.message_id = m.id where json_extract(p.data, '$.type') = 'step-finish'
"""
_TITLED = "select id from session where title = ? order by time_created desc limit 1"


def is_id(session_id: str) -> bool:
    return _ID.fullmatch(session_id) is not None


def checked(session_id: str) -> str:
    """Return the id. Raise ValueError if it is not a session id. The check matters because the CLI
    would start a new session for an empty id."""
    if not is_id(session_id):
        raise ValueError(f"{session_id!r} is not a session id of OpenCode")
    return session_id


def title(mark: str) -> str:
    """Return the title that perdure gives a new session. The title contains the attempt's unique
    `mark`, so that the session can be found later. If a title is given, the CLI does not ask a
    model for one."""
    return f"perdure {mark}"


def _rows(home: Path, question: str, *values: str) -> list[tuple[Any, ...]]:
    """Return the rows of the SQL query `question`, whose parameters are `values`. Empty if the
    database is missing or cannot be read."""
    try:
        with closing(
            sqlite3.connect(f"{home.absolute().as_uri()}?mode=ro", uri=True, timeout=PATIENCE_S)
        ) as found:
            return found.execute(question, values).fetchall()
    except sqlite3.Error:
        return []


def directory(home: Path, session_id: str) -> Path | None:
    """Return the directory in which the session began. A session can be continued only in this
    directory. None if there is no such session."""
    rows = _rows(home, _SESSION, session_id)
    if rows:
        return Path(rows[0][1])
    return None


class OpenCodeArchive:
    """Implements `Archive` for OpenCode."""

    def read(self, home: Path, session_id: str) -> bytes | None:
        """Return the session's lines (see the module's docstring); None if there is no such
        session."""
        if is_id(session_id):
            head = _rows(home, _SESSION, session_id)
        else:
            head = []
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
            place = {}
            for name, key in _row(row).items():
                if name in ("messageID", "partID"):
                    place[name] = key
            told.append(
                _line(
                    {"type": "revert", "id": json_lines.text(place.get("messageID")), "data": place}
                )
            )
        return b"".join(told)

    def find(self, home: Path, mark: str) -> str:
        """Return the id of the newest session with the title that perdure made from this mark.
        Empty if there is none."""
        rows = _rows(home, _TITLED, title(mark))
        if rows:
            return str(rows[0][0])
        return ""

    def unreported_events(self, piece: bytes) -> Sequence[AgentEvent]:
        """Return start events for the tools that were running when the agent was killed. The CLI
        prints a tool only when it has ended, so the database is the only record of these tools.
        `piece`: lines of the session."""
        found = []
        for line in piece.split(b"\n"):
            entry = json_lines.read(line) if b'"tool"' in line else None
            if entry is None or entry.get("type") != "part":
                continue
            part = entry.get("data")
            if json_lines.part(part, "state", "status") in ("pending", "running"):
                found.append(begun(part))
        return tuple(found)

    def cut_off(self, content: bytes, since: int) -> Reply | None:
        """Return an estimate of the usage of an answer that a kill cut off. None if no answer was
        cut off. The CLI writes the token counts of an answer only when the answer's tools have
        ended, so the counts of such an answer are 0. Answers in the first `since` bytes are
        ignored."""
        return unfinished.estimate(content, since)

    def relocated(self, copy: bytes, directory: Path) -> bytes:
        """Return the copy as `read` would return it after a restore in this directory. The restore
        changes the directory that the session belongs to."""
        first, _, rest = copy.partition(b"\n")
        head = json_lines.read(first) or {}
        if head.get("type") == "session":
            return _line({**head, "directory": str(directory)}) + rest
        return copy

    def settled(self, row: Record) -> str:
        """Return the text of a row that neither the CLI nor an import will change any more. Empty
        if the row may still change or has no such text. The text is:

        - for a prompt or a finished answer: its words;
        - for a finished tool: its arguments and result, as JSON;
        - for a message that gets no more parts: its role.
        """
        part = row.get("data")
        kind, state = json_lines.part(part, "type"), json_lines.part(part, "state")
        if row.get("type") == "message":
            role = json_lines.text(json_lines.part(part, "role"))
            if role == "user" or json_lines.part(part, "time", "completed"):
                return role
            return ""
        if row.get("type") != "part":
            return ""
        if kind == "text" and (row.get("role") == "user" or json_lines.part(part, "time", "end")):
            return str(json_lines.part(part, "text"))
        if kind == "tool" and json_lines.part(state, "status") in ("completed", "error"):
            told = [json_lines.part(state, name) for name in ("input", "output", "error")]
            return json.dumps(told, sort_keys=True)
        return ""

    def removal(self, program: Program, home: Path, session_id: str) -> Command | None:
        """Return the command `opencode session delete`. It is needed before a restore, because an
        import changes no existing row. None for a session with subagents, because the command would
        delete their sessions too."""
        if _rows(home, _CHILDREN, checked(session_id)):
            return None
        return Command(argv=(program.path, "session", "delete", session_id), stdin=b"")

    def restore(self, program: Program, session_id: str, copy: bytes) -> Command:
        """Return the command `opencode import`. On stdin it gets the copy in the format of an
        export. The command adds missing rows and changes none. The session then belongs to the
        directory in which the command runs. Raise ValueError if the copy is of another session."""
        told = [entry for line in copy.split(b"\n") if (entry := json_lines.read(line))]
        head = next((entry for entry in told if entry.get("type") == "session"), {})
        if head.get("id") != checked(session_id):
            raise ValueError(f"the copy is not of the session {session_id}")
        export = {"info": _info(head, program), "messages": _messages(session_id, told)}
        return Command(
            argv=(program.path, "import", "/dev/stdin"), stdin=json.dumps(export).encode()
        )


def _info(head: Record, program: Program) -> dict[str, object]:
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


def _messages(session_id: str, told: Iterable[Record]) -> list[dict[str, object]]:
    """Return the messages in the format of an export: each with the rows of its parts."""
    messages: dict[str, tuple[Record, list[Record]]] = {}
    for entry in told:
        data = entry.get("data")
        if not isinstance(data, dict):
            data = {}
        content = {**data, "id": entry.get("id"), "sessionID": session_id}
        if entry.get("type") == "message":
            messages[json_lines.text(entry.get("id"))] = (content, [])
        elif entry.get("type") == "part" and (
            owner := messages.get(json_lines.text(entry.get("message")))
        ):
            owner[1].append({**content, "messageID": entry.get("message")})
    return [{"info": info, "parts": parts} for info, parts in messages.values()]


def _row(content: str | bytes | None) -> dict[str, object]:
    """Return the JSON object of a row. Text that is not JSON is returned under the key
    `unreadable`."""
    raw = content.encode() if isinstance(content, str) else bytes(content or b"")
    found = json_lines.read(raw)
    if found is not None:
        return found
    return {"unreadable": str(content)}


def _part(part: Record) -> Record:
    """Return the part without its field `compacted`. The field is the time at which the CLI stopped
    sending the output of an old tool call to the model."""
    if isinstance(time := json_lines.part(part, "state", "time"), dict):
        time.pop("compacted", None)
    return part


def _line(entry: Record) -> bytes:
    return json.dumps(entry, sort_keys=True, separators=(",", ":")).encode() + b"\n"


def prompts(content: bytes) -> Iterator[Prompt]:
    """Yield the prompts of people and programs, in order. Texts that the CLI itself added and
    unreadable lines are skipped."""
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


def subagent_replies(home: Path, session_id: str, since: int) -> Iterator[Reply]:
    """Yield the usage of each step of a session's subagents, and of their own subagents, from
    `since` (in ms since 1970) on. The CLI prints only the steps of the session itself."""
    for key, message_row, part_row in _rows(home, _OF_SUBAGENTS, session_id):
        message = _row(message_row)
        at = json_lines.whole(json_lines.part(message, "time", "created"))
        if at >= since:
            model = json_lines.text(message.get("modelID"), _FIRST)
            yield Reply(id=key, usage=step_usage(_row(part_row)), model=model, at=at)


def conversations(home: Path, limit: int, only: str = "") -> Sequence[Conversation]:
    """Return at most `limit` sessions that people and programs began, in any directory. Sessions of
    subagents (those with a parent) are left out. `only`: return only the conversation with this id.
    """
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


def spoken(content: bytes) -> Iterator[SpokenMessage]:
    """Yield the prompts and the agent's texts, in order."""
    for line in content.split(b"\n"):
        entry = json_lines.read(line) if b'"part"' in line else None
        if entry is not None and entry.get("type") == "part":
            part = entry.get("data")
        else:
            part = None
        words = json_lines.text(json_lines.part(part, "text"))
        if (
            entry is not None
            and json_lines.part(part, "type") == "text"
            and not json_lines.part(part, "synthetic")
            and words.strip()
        ):
            yield SpokenMessage(entry.get("role") == "assistant", words)


def _last_message(content: bytes) -> object:
    """Return the data of the session's last message; None if the session has no message."""
    for line in reversed(content.split(b"\n")):
        entry = json_lines.read(line) if b'"message"' in line else None
        if entry is not None and entry.get("type") == "message":
            return entry.get("data")
    return None


def will_continue(content: bytes) -> bool:
    """Return whether the session ends with a message that the CLI will still answer. If an answer
    fills the window, 1.18.33 first reports the end of the turn. Then it asks the model for a
    summary on its own and continues with the summary."""
    last = _last_message(content)
    if json_lines.part(last, "role") == "user":
        return True
    completed = json_lines.part(last, "time", "completed") is not None
    return last is not None and not completed


def fill(content: bytes) -> Fill:
    """Return how full the conversation is, in tokens. The number comes from the newest answer with
    a token count. If that answer is the summary of a compaction, the number is the length of the
    summary. The database does not contain the size of the window."""
    tokens, model, compactions, held, left = 0, "", 0, 0, 0
    for line in content.split(b"\n"):
        if b'"tokens"' in line and b'"message"' in line:
            entry = json_lines.read(line)
        else:
            entry = None
        if entry is None or entry.get("type") != "message":
            continue
        said = entry.get("data")
        used, summary = json_lines.part(said, "tokens"), json_lines.part(said, "summary") is True
        cached = json_lines.whole(json_lines.part(used, "cache", "read")) + json_lines.whole(
            json_lines.part(used, "cache", "write")
        )
        if summary:
            carried = json_lines.whole(json_lines.part(used, "output"))
        else:
            carried = json_lines.whole(json_lines.part(used, "input")) + cached
        if summary:
            compactions, held, left = compactions + 1, tokens, carried
        if carried:
            tokens, model = carried, json_lines.text(json_lines.part(said, "modelID")) or model
    return Fill(tokens=tokens, model=model, compactions=compactions, held=held, left=left)


def writers(home: Path, session_id: str) -> Sequence[int]:
    """Return the ids of the live processes whose command line names this session. The CLI keeps no
    list of its processes. So a process that opened the session in another way is not found here; it
    is noticed only when it writes."""
    found = []
    for pid in system.pids() if is_id(session_id) else ():
        try:
            words = system.command(pid).decode("utf-8", "replace").split("\0")
            named = any(word == session_id or word.endswith(f"={session_id}") for word in words)
            if named and "--fork" not in words and _has_open(pid, home):
                found.append(pid)
        except OSError:
            continue
    return sorted(found)


def _has_open(pid: int, database: Path) -> bool:
    """Return whether the process has this database open; True if its file descriptors may not be
    read."""
    wanted = database.resolve()
    try:
        # The names of pipes and sockets, such as `pipe:[1]`, are not paths.
        for path in system.open_files(pid):
            if path.startswith("/") and Path(path).resolve() == wanted:
                return True
        return False
    except PermissionError:
        return True


ARCHIVE = OpenCodeArchive()
