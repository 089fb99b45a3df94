"""Gemini CLI's own files: where a conversation is stored, what it contains, and which processes use
it.

Layout of 0.61.0: `{home}/tmp/{project}/chats/session-{minute}-{first 8 of the id}.jsonl`;
`{home}/projects.json` gives the project's name for a directory, and
`{home}/tmp/{project}/.project_root` the directory for a name. Records are only appended, but a
record may replace or rewind all messages before it. So the whole file must be read to know what is
still in the conversation.

A resume leaves an empty file with the same id behind. A resume in the minute in which the
conversation began writes into the conversation's own file instead: an empty list of messages, and
immediately after it the full list. If there are several files, the CLI takes the file with messages
that was written last, and so does `transcript`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import TypeAlias

from perdure.agents.shared import conversation_files, json_lines
from perdure.agents.shared.conversation_files import checked, is_id
from perdure.host import system
from perdure.host.system.files import open_file, read_file
from perdure.model import Conversation, Fill, Reply, Usage
from perdure.patterns import late_pattern
from perdure.protocols import Prompt, SpokenMessage

_FIRST = 500
_STARTED = late_pattern(r"(\d{4}-\d{2}-\d{2}T\d{2}):(\d{2})")
_LABEL = "Prompt: "
_COMMAND = late_pattern(rf"\s*(?:{_LABEL}\s*)*(?:[/?]|<session_context>|<hook_context>)")
"""Pattern of a prompt that needs the label in front, because a resume would drop the prompt. The
pattern also matches if the label is already there. Such a prompt gets a second label, so that
`as_given` can always remove one."""
_IGNORED = late_pattern(r"\s*(?:[/?]|<session_context>|<hook_context>)")
_ACKNOWLEDGED = "Got it. Thanks for the additional context!"
_FLAGS = (b"--resume", b"-r", b"--session-id")

Message: TypeAlias = Mapping[str, object]
"""One message of a chat file. It is a record of its own, or in the list of a `$set` record."""


def sent(prompt: str) -> str:
    """Return the prompt as it is written to stdin. A prompt that the next resume would drop gets a
    label in front."""
    if _COMMAND.match(prompt):
        return f"{_LABEL}{prompt}"
    return prompt


def transcript(home: Path, session_id: str) -> Path | None:
    """Return the conversation's file, or None if there is none. If there are several files, return
    the one that the CLI would resume. The file may contain no prompt."""
    if not is_id(session_id):
        return None
    found = []
    for path in home.glob(f"tmp/*/chats/session-*-{session_id[:8]}.jsonl"):
        if _id_of(path) == session_id:
            found.append(path)
    return max(found, key=_rank, default=None)


def chat_of_this_minute(session_id: str) -> str:
    """Return the pattern (for `strftime`, then `glob`) of a chat file that began in the current
    minute. While there is such a file, the conversation must not be loaded over ACP: Gemini CLI
    0.61.0 would empty the file."""
    return f"tmp/*/chats/session-%Y-%m-%dT%H-%M-{session_id[:8]}.jsonl"


def has_tool_hooks(home: Path, cwd: Path) -> bool:
    """Return whether the user, an extension, the workdir or the machine has settings with hooks for
    tools. The files are only searched for the names of these hooks, so a name that is merely
    mentioned counts too."""
    named = (os.environ.get(f"GEMINI_CLI_SYSTEM_{each}_PATH") for each in ("SETTINGS", "DEFAULTS"))
    places = [
        home / "settings.json",
        cwd / ".gemini" / "settings.json",
        *home.glob("extensions/*/hooks/hooks.json"),
        *(Path(each) for each in named if each),
        Path("/etc/gemini-cli/settings.json"),
        Path("/etc/gemini-cli/system-defaults.json"),
    ]
    for place in places:
        with suppress(OSError):
            content = place.read_bytes()
            if b'"BeforeTool"' in content or b'"AfterTool"' in content:
                return True
    return False


def remains(home: Path, session_id: str) -> Sequence[Path]:
    """Return the conversation's files, first the one that the CLI would resume. Files whose first
    line has no id are included. The empty files that each resume leaves behind are left out."""
    named = home.glob(f"tmp/*/chats/session-*-{session_id[:8]}.jsonl") if is_id(session_id) else ()
    ids = {path: _id_of(path) for path in named if path.is_file()}
    own = [path for path, each in ids.items() if each == session_id or not each]
    found = transcript(home, session_id)
    begun = [path for path in own if path == found or not ids[path] or _rank(path)[0]]
    return sorted(begun, key=lambda path: (path == found, _rank(path)), reverse=True)


def _id_of(path: Path) -> str:
    try:
        with open_file(path) as file:
            return json_lines.text(json_lines.part(json_lines.read(file.readline()), "sessionId"))
    except OSError:
        return ""


def _rank(path: Path) -> tuple[bool, float, str]:
    try:
        content = read_file(path)
        begun = b'"type":"gemini"' in content or any(True for _ in prompts(content))
        return begun, path.stat().st_mtime, path.name
    except OSError:
        return False, 0.0, path.name


def place(home: Path, session_id: str, cwd: Path, copy: Path) -> Path:
    """Return the path of the conversation's file for a resume in the given directory. The file is
    in the folder of the directory's project, and its name has the minute in which the conversation
    began. Raise ValueError if the copy is not the conversation with this id."""
    checked(session_id)
    with copy.open("rb") as file:
        head = json_lines.read(file.readline())
    began = _STARTED.match(json_lines.text(json_lines.part(head, "startTime")))
    if began is None or json_lines.part(head, "sessionId") != session_id:
        raise ValueError(f"{copy} is not the conversation {session_id}")
    return (
        home
        / "tmp"
        / project(home, cwd)
        / "chats"
        / f"session-{began[1]}-{began[2]}-{session_id[:8]}.jsonl"
    )


def project(home: Path, cwd: Path) -> str:
    """Return the project name that the CLI has chosen for a directory, or would choose. Reads the
    file system."""
    root = str(cwd.resolve())
    try:
        known = json_lines.part(json_lines.read(read_file(home / "projects.json")), "projects")
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
    """Return the directory to which a project name belongs; empty if the name is free."""
    try:
        return read_file(home / "tmp" / name / ".project_root").decode().strip()
    except (OSError, ValueError):
        return ""


def sidecar_files(transcript: Path) -> Sequence[Path]:
    """Return the directory that holds the subagents' conversations, as a sequence of one path.
    Empty if there is no such directory, or if the transcript names no valid id."""
    own = _id_of(transcript)
    beside = transcript.parent / own
    if is_id(own) and beside.is_dir():
        return (beside,)
    return ()


def prompts(content: bytes) -> Iterator[Prompt]:
    """Yield the prompts that the conversation contains after the last record of the file, in order.
    Prompts that were rolled back are skipped. Prompts that the CLI condensed into a summary are
    included, because the conversation continued from them."""
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
            now = {}
            for message in given:
                if (key := _key(message)) and (words := words_of(message)):
                    now[key] = words
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


def _key(message: Message) -> str:
    if message.get("type") == "user":
        return json_lines.text(message.get("id"))
    return ""


def words_of(message: Message) -> str:
    """Return the text of a prompt or of an answer. Empty for tool results, for text that the CLI
    itself added, and for prompts that a resume drops.

    A prompt that names a file with `@` is recorded with the file's content. The field
    `displayContent` has the prompt without that content.
    """
    parts = parts_of(message.get("content"))
    if any("functionResponse" in part for part in parts):
        return ""
    words = text_of(parts)
    if not words.strip() or _IGNORED.match(words):
        return ""
    return text_of(parts_of(message.get("displayContent"))) or words


def parts_of(content: object) -> list[dict[str, object]]:
    """Return the parts of a message's content. Content that is a text becomes one part."""
    if isinstance(content, str):
        return [{"text": content}]
    return json_lines.items(content)


def text_of(parts: Iterable[Mapping[str, object]]) -> str:
    """Return the texts of these parts, each on a line of its own."""
    return "\n".join(json_lines.texts(parts))


def as_given(words: str) -> str:
    """Return a prompt without the label that `sent` added."""
    if _COMMAND.match(words):
        return words.removeprefix(_LABEL)
    return words


def summary_of(messages: Sequence[Message]) -> str | None:
    """Return the id of the message that contains the CLI's summary of earlier messages, or None.
    The summary is recognized by the fixed answer that the CLI writes after it."""
    for message, answer in pairwise(messages):
        if answer.get("type") == "gemini" and _ACKNOWLEDGED in str(answer.get("content"))[:200]:
            return json_lines.text(message.get("id"))
    return None


def conversations(home: Path, limit: int, only: str = "") -> Sequence[Conversation]:
    """Return at most `limit` conversations of all projects. The empty files that a resume leaves
    behind are skipped. `only`: return only the conversation with this id."""
    if only and not is_id(only):
        return ()
    found = conversation_files.newest(
        home.glob(f"tmp/*/chats/session-*-{only[:8] or '*'}.jsonl"), limit, _conversation
    )
    return [conversation for conversation in found if only in ("", conversation.id)]


def _conversation(path: Path, content: bytes, whole: bool, updated: int) -> Conversation | None:
    own = json_lines.text(
        json_lines.part(json_lines.read(content.partition(b"\n")[0]), "sessionId")
    )
    if is_id(own):
        said = [prompt.text for prompt in prompts(content)]
    else:
        said = []
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


def spoken(content: bytes) -> Iterator[SpokenMessage]:
    """Yield the prompts and the agent's texts in the order in which they were recorded. Texts that
    were rolled back later are included."""
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
            yield SpokenMessage(message.get("type") == "gemini", as_given(words))


def fill(content: bytes) -> Fill:
    """Return how full the conversation is, in tokens. The number comes from the newest answer with
    a token count. A transcript does not contain the size of the window."""
    tokens, model, condensed = 0, "", set()
    for line in content.split(b"\n"):
        if b'"tokens"' in line or b'"$set"' in line:
            record = json_lines.read(line)
        else:
            record = None
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
    """Yield the model's replies. A reply is recorded when it arrives and again when its tools have
    ended, so it is yielded several times."""
    for line in content.split(b"\n"):
        record = json_lines.read(line) if b'"tokens"' in line else None
        for message in (
            [record, *json_lines.items(json_lines.part(record, "$set", "messages"))]
            if record is not None
            else []
        ):
            if message.get("type") == "gemini":
                told = message.get("tokens")
            else:
                told = None
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
                    calls=bool(message.get("toolCalls")),
                )


def writers(home: Path, session_id: str) -> Sequence[int]:
    """Return the ids of the processes that were started with this conversation. The CLI keeps no
    list of its processes, so their command lines are read. A process is not found if it was started
    without this conversation, and the user switched to the conversation later."""
    if not is_id(session_id):
        return ()
    wanted = session_id.encode()
    found = []
    for pid in system.pids():
        with suppress(OSError):
            words = system.command(pid).split(b"\0")
            if _is_bridge(words, session_id, home):
                found.append(pid)
                continue
            if not any(word.rpartition(b"/")[2] in (b"gemini", b"gemini.js") for word in words[:6]):
                continue
            named = any(word == wanted and before in _FLAGS for before, word in pairwise(words))
            if (named or any(flag + b"=" + wanted in words for flag in _FLAGS)) and _same_home(
                pid, home
            ):
                found.append(pid)
    return sorted(found)


def _is_bridge(words: Sequence[bytes], session_id: str, home: Path) -> bool:
    """Return whether this is the command line of a `gemini_bridge` that runs a turn of this
    conversation."""
    if len(words) < 5 or not words[3].endswith(b"/gemini_bridge.py"):
        return False
    order = json_lines.read(words[4]) or {}
    return order.get("session") == session_id and order.get("home") == str(home)


def _same_home(pid: int, home: Path) -> bool:
    """Return whether the process uses this Gemini home; True if its environment cannot be read."""
    try:
        pairs = system.variables(pid).split(b"\0")
        environ = dict(pair.split(b"=", 1) for pair in pairs if b"=" in pair)
    except OSError:
        return True
    own = environ.get(b"GEMINI_CLI_HOME") or environ.get(b"HOME") or b""
    return Path(os.fsdecode(own), ".gemini").resolve() == home.resolve()
