"""Gemini CLI's own files: where a conversation lies, what stands in it, and who works on it.

Layout of 0.61.0: `{home}/tmp/{project}/chats/session-{minute}-{first 8 of the id}.jsonl`;
`{home}/projects.json` gives the project's name for a directory, and
`{home}/tmp/{project}/.project_root` the directory for a name. Records are only ever appended, but a
record may replace or rewind all messages before it, so what is still in the conversation follows
from the whole file.

A resume leaves an empty file of the same id behind (or, within the same minute, writes an empty
list of messages into the conversation's own file, followed at once by the full one). Of several
files the CLI takes the one with messages in it that was written to last, and so does `transcript`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

from perdure.agents.shared import json_lines, listing_order
from perdure.agents.shared.ids import checked, is_id
from perdure.model import Conversation, Fill, Reply, Usage
from perdure.protocols import Prompt, Spoken

_FIRST = 500
_STARTED = re.compile(r"(\d{4}-\d{2}-\d{2}T\d{2}):(\d{2})")
_LABEL = "Prompt: "
_COMMAND = re.compile(rf"\s*(?:{_LABEL}\s*)*(?:[/?]|<session_context>|<hook_context>)")
"""How a prompt begins that gets the label before it: like what a resume throws away, or like the
label and that."""
_IGNORED = re.compile(r"\s*(?:[/?]|<session_context>|<hook_context>)")
_ACKNOWLEDGED = "Got it. Thanks for the additional context!"
_FLAGS = (b"--resume", b"-r", b"--session-id")


def sent(prompt: str) -> str:
    """The prompt as it is written to stdin, with a word before what would be lost on the next
    resume."""
    return f"{_LABEL}{prompt}" if _COMMAND.match(prompt) else prompt


def transcript(home: Path, session_id: str) -> Path | None:
    """The conversation's file; of several, the one that a resume takes. It may hold no prompt."""
    if not is_id(session_id):
        return None
    found = [
        path
        for path in home.glob(f"tmp/*/chats/session-*-{session_id[:8]}.jsonl")
        if _id_of(path) == session_id
    ]
    return max(found, key=_rank, default=None)


def remains(home: Path, session_id: str) -> Sequence[Path]:
    """Its files, the one that a resume takes first, also those whose first line does not tell whose
    they are; not the empty ones that each resume leaves behind."""
    named = home.glob(f"tmp/*/chats/session-*-{session_id[:8]}.jsonl") if is_id(session_id) else ()
    ids = {path: _id_of(path) for path in named if path.is_file()}
    own = [path for path, each in ids.items() if each == session_id or not each]
    found = transcript(home, session_id)
    begun = [path for path in own if path == found or _rank(path)[0]]
    return sorted(begun, key=lambda path: (path == found, _rank(path)), reverse=True)


def _id_of(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return json_lines.text(json_lines.part(json_lines.read(file.readline()), "sessionId"))
    except OSError:
        return ""


def _rank(path: Path) -> tuple[bool, float, str]:
    try:
        content = path.read_bytes()
        begun = b'"type":"gemini"' in content or any(True for _ in prompts(content))
        return begun, path.stat().st_mtime, path.name
    except OSError:
        return False, 0.0, path.name


def place(home: Path, session_id: str, cwd: Path, copy: Path) -> Path:
    """In the project's folder of the directory in which it is resumed, under the name of the minute
    in which it began.

    Raises ValueError if the copy is no conversation of this id.
    """
    checked(session_id)
    with copy.open("rb") as file:
        head = json_lines.read(file.readline())
    began = _STARTED.match(json_lines.text(json_lines.part(head, "startTime")))
    if began is None or json_lines.part(head, "sessionId") != session_id:
        raise ValueError(f"{copy} is no conversation {session_id}")
    return (
        home
        / "tmp"
        / project(home, cwd)
        / "chats"
        / f"session-{began[1]}-{began[2]}-{session_id[:8]}.jsonl"
    )


def project(home: Path, cwd: Path) -> str:
    """The name that the CLI has for a directory, or will give it. Reads the file system."""
    root = str(cwd.resolve())
    try:
        known = json_lines.part(json_lines.read((home / "projects.json").read_bytes()), "projects")
    except OSError:
        known = None
    names = known if isinstance(known, dict) else {}
    if isinstance(name := names.get(root), str) and _owner(home, name) in ("", root):
        return name
    for mark in sorted(home.glob("tmp/*/.project_root")):
        if _owner(home, mark.parent.name) == root:
            return mark.parent.name
    slug = (
        re.sub(
            r"^-|-$",
            "",
            re.sub(
                r"-+", "-", re.sub(r"[^a-z0-9]", "-", (cwd.resolve().name or "project").lower())
            ),
        )
        or "project"
    )
    number, name = 0, slug
    while name in names.values() or _owner(home, name) not in ("", root):
        number += 1
        name = f"{slug}-{number}"
    return name


def _owner(home: Path, name: str) -> str:
    """The directory to which a project's name belongs; empty if it is free."""
    try:
        return (home / "tmp" / name / ".project_root").read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return ""


def belongings(transcript: Path) -> Sequence[Path]:
    """The directory with the sub-agents' conversations, where there is one."""
    beside = transcript.parent / _id_of(transcript)
    return (beside,) if beside != transcript.parent and beside.is_dir() else ()


def prompts(content: bytes) -> Iterator[Prompt]:
    """The prompts that are in the conversation at the end of these records, in order; without those
    that were rolled back.

    What the CLI itself condensed into a summary stays: the conversation went on from it.
    """
    said: dict[str, str] = {}
    alive: set[str] = set()
    condensed: set[str] = set()
    for line in content.split(b"\n"):
        record = json_lines.read(line) if line.strip() else None
        if record is None:
            continue
        messages = json_lines.part(record, "$set", "messages")
        if isinstance(messages, list):
            given = json_lines.items(messages)
            now = {
                key: words
                for message in given
                if (key := _key(message)) and (words := words_of(message))
            }
            if (summary := summary_of(given)) is not None:
                condensed |= (alive - set(now)) | {summary}
                now |= {key: said[key] for key in condensed if key in said}
                now.pop(summary, None)
            said |= {key: words for key, words in now.items() if key not in said}
            alive = set(now)
        elif isinstance(last := record.get("$rewindTo"), str):
            order = list(said)
            alive -= set(order[order.index(last) :] if last in said else order)
        elif (key := _key(record)) and (words := words_of(record)):
            said[key] = words
            alive.add(key)
    for key, words in said.items():
        if key in alive:
            yield Prompt(as_given(words))


def _key(message: dict[str, Any]) -> str:
    return json_lines.text(message.get("id")) if message.get("type") == "user" else ""


def words_of(message: dict[str, Any]) -> str:
    """The words of a prompt; empty for tool results, for what the CLI put in itself, and for what a
    resume throws away.

    A prompt that names a file with `@` is recorded with the file's content; `displayContent` has it
    as it was given.
    """
    parts = _parts(message.get("content"))
    if any("functionResponse" in part for part in parts):
        return ""
    words = _joined(parts)
    if not words.strip() or _IGNORED.match(words):
        return ""
    return _joined(_parts(message.get("displayContent"))) or words


def _parts(content: Any) -> list[dict[str, Any]]:
    return [{"text": content}] if isinstance(content, str) else json_lines.items(content)


def _joined(parts: Sequence[dict[str, Any]]) -> str:
    return "\n".join(part["text"] for part in parts if isinstance(part.get("text"), str))


def as_given(words: str) -> str:
    """The prompt as it was before `sent`."""
    return words.removeprefix(_LABEL) if _COMMAND.match(words) else words


def summary_of(messages: Sequence[dict[str, Any]]) -> str | None:
    """The id of the message in which the CLI condensed what came before; it is followed by a fixed
    answer."""
    for message, answer in pairwise(messages):
        if answer.get("type") == "gemini" and _ACKNOWLEDGED in str(answer.get("content"))[:200]:
            return json_lines.text(message.get("id"))
    return None


def conversations(home: Path, limit: int, only: str = "") -> Sequence[Conversation]:
    """Those of all projects. The empty files that a resume leaves behind are passed over."""
    if only and not is_id(only):
        return ()
    found = listing_order.newest(
        home.glob(f"tmp/*/chats/session-*-{only[:8] or '*'}.jsonl"), limit, _conversation
    )
    return [conversation for conversation in found if only in ("", conversation.id)]


def _conversation(path: Path, content: bytes, whole: bool, updated: int) -> Conversation | None:
    own = json_lines.text(
        json_lines.part(json_lines.read(content.partition(b"\n")[0]), "sessionId")
    )
    said = [prompt.text for prompt in prompts(content)] if is_id(own) else []
    if not said:
        return None
    where = _owner(path.parents[2].parent, path.parents[1].name)
    return Conversation(
        id=own,
        path=str(path),
        updated=updated,
        cwd=where,
        first=json_lines.text(said[0], _FIRST),
        turns=len(said) if whole else 0,
    )


def spoken(content: bytes) -> Iterator[Spoken]:
    """Prompts, and the agent's text, as they were recorded: what was rolled back later is in it."""
    told: set[str] = set()
    for line in content.split(b"\n"):
        record = json_lines.read(line) if line.strip() else None
        for message in (
            [record, *json_lines.items(json_lines.part(record, "$set", "messages"))]
            if record is not None
            else []
        ):
            key, words = json_lines.text(message.get("id")), words_of(message)
            if key in told or not words.strip() or message.get("type") not in ("user", "gemini"):
                continue
            told.add(key)
            yield Spoken(message.get("type") == "gemini", as_given(words))


def fill(content: bytes) -> Fill:
    """By the newest answer that has a count. The window stands in no transcript."""
    tokens, model, condensed = 0, "", set()
    for line in content.split(b"\n"):
        record = json_lines.read(line) if b'"tokens"' in line or b'"$set"' in line else None
        given = json_lines.items(json_lines.part(record, "$set", "messages"))
        if (summary := summary_of(given)) is not None:
            condensed.add(summary)
        for message in [*given, *([record] if record is not None else [])]:
            if message.get("type") == "gemini" and (
                carried := json_lines.whole(json_lines.part(message, "tokens", "input"))
            ):
                tokens, model = carried, json_lines.text(message.get("model")) or model
    return Fill(tokens=tokens, model=model, compactions=len(condensed))


def replies(content: bytes) -> Iterator[Reply]:
    """The model's replies. One has a line when it has come, and more when its tools have ended."""
    for line in content.split(b"\n"):
        record = json_lines.read(line) if b'"tokens"' in line else None
        for message in (
            [record, *json_lines.items(json_lines.part(record, "$set", "messages"))]
            if record is not None
            else []
        ):
            told = message.get("tokens") if message.get("type") == "gemini" else None
            counted = Usage(
                input=json_lines.whole(json_lines.part(told, "input")),
                output=json_lines.whole(json_lines.part(told, "output"))
                + json_lines.whole(json_lines.part(told, "thoughts")),
                cached=json_lines.whole(json_lines.part(told, "cached")),
            )
            key = json_lines.text(message.get("id"), _FIRST)
            if key and (counted.input or counted.output):
                at = json_lines.moment(message.get("timestamp"))
                yield Reply(
                    id=key,
                    usage=counted,
                    model=json_lines.text(message.get("model"), _FIRST),
                    at=at,
                )


def writers(home: Path, session_id: str) -> Sequence[int]:
    """Processes of this user that were started on the conversation. The CLI has no register, so
    their command lines are read; who went to it from inside the program is not seen."""
    if not is_id(session_id):
        return ()
    wanted = session_id.encode()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        with suppress(OSError):
            words = (entry / "cmdline").read_bytes().split(b"\0")
            if not any(word.rpartition(b"/")[2] in (b"gemini", b"gemini.js") for word in words[:6]):
                continue
            named = any(word == wanted and before in _FLAGS for before, word in pairwise(words))
            if (named or any(flag + b"=" + wanted in words for flag in _FLAGS)) and _same_home(
                entry, home
            ):
                found.append(int(entry.name))
    return sorted(found)


def _same_home(process: Path, home: Path) -> bool:
    """Whether the process keeps its conversations here too; yes where its environment cannot be
    read."""
    try:
        environ = dict(
            pair.split(b"=", 1)
            for pair in (process / "environ").read_bytes().split(b"\0")
            if b"=" in pair
        )
    except OSError:
        return True
    own = environ.get(b"GEMINI_CLI_HOME") or environ.get(b"HOME") or b""
    return Path(os.fsdecode(own), ".gemini").resolve() == home.resolve()
