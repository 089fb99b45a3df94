"""Claude Code's own files: where a conversation is stored, what it contains, and which processes
have it open.

Layout of 2.1.329: `{home}/projects/{slug of the cwd}/{session}.jsonl`, beside it a directory
`{session}` with the transcripts of subagents and with tool output that was too long for the
transcript; `{home}/sessions/{pid}.json` for each live process. Ids are checked before they become
part of a path.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from perdure.agents.shared import conversation_files, json_lines
from perdure.agents.shared.conversation_files import checked, is_id
from perdure.agents.shared.json_lines import Record
from perdure.host import system
from perdure.host.system.files import read_file
from perdure.model import Conversation, Fill, Reply, Usage
from perdure.protocols import Prompt, SpokenMessage

TELLING = ("PostToolBatch", "Stop")
"""Hook events through which a message can be given to the agent."""
_SLUG_LIMIT = 200
_FIRST = 500
_OWN_WORDS = (
    *(
        "<system-reminder>",
        "<task-notification>",
        "<local-command-",
        "<command-name>",
        "<command-message>",
        "<bash-",
        "Caveat: The messages below",
    ),
    *(
        "[Request interrupted by user",
        "Continue from where you left off.",
        "This session is being continued from a previous conversation",
    ),
)
"""Beginnings of the user lines that the CLI itself writes. Needed for versions that do not record
the source of a prompt."""


def transcript(home: Path, session_id: str) -> Path | None:
    """Return the conversation's file; None if the conversation has no file. If there are several
    files, return the one written last. The file may be empty or damaged."""
    return next(iter(remains(home, session_id)), None)


def remains(home: Path, session_id: str) -> Sequence[Path]:
    """Return all files of the conversation, newest first. A conversation that was continued in
    another working directory may have a file in the folder of each directory."""
    if is_id(session_id):
        found = [path for path in home.glob(f"projects/*/{session_id}.jsonl") if path.is_file()]
    else:
        found = []
    return sorted(found, key=_written, reverse=True)


def _written(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def place(home: Path, session_id: str, cwd: Path) -> Path:
    """Return the path of the conversation's file for a resume in the given directory. Every known
    version of the CLI searches the folder of that directory first."""
    return home / "projects" / slug(cwd) / f"{checked(session_id)}.jsonl"


def slug(cwd: Path) -> str:
    """Return the folder name for a working directory. Each UTF-16 unit that is not an ASCII letter
    or digit becomes a dash. Only a name of more than `_SLUG_LIMIT` units is cut, and a hash of the
    directory is appended to it."""
    real = str(cwd.resolve())
    units = real.encode("utf-16-le", "surrogatepass")
    codes = [units[at] | units[at + 1] << 8 for at in range(0, len(units), 2)]
    name = "".join(chr(code) if code < 128 and chr(code).isalnum() else "-" for code in codes)
    if len(name) <= _SLUG_LIMIT:
        return name
    number = 0
    for code in codes:
        number = (number * 31 + code) & 0xFFFFFFFF
    signed = number - (1 << 32) if number >> 31 else number
    return f"{name[:_SLUG_LIMIT]}-{_base36(abs(signed))}"


def _base36(number: int) -> str:
    digits = ""
    while number:
        number, digit = divmod(number, 36)
        digits = "0123456789abcdefghijklmnopqrstuvwxyz"[digit] + digits
    return digits or "0"


def sidecar_files(transcript: Path) -> Sequence[Path]:
    """Return the directory beside the transcript, as a sequence of one path. The directory holds
    the transcripts of subagents and long tool output. Empty if there is no such directory."""
    beside = transcript.with_suffix("")
    if beside != transcript and beside.is_dir():
        return (beside,)
    return ()


def sent(prompt: str) -> str:
    """Return the prompt as it is written to stdin. The CLI would take `/cost` for its own command,
    so a prompt that begins with a slash gets a space in front. A prompt that begins with spaces and
    a slash gets one more space, so that `as_given` always returns the original."""
    if re.match(r" */", prompt):
        return f" {prompt}"
    return prompt


def as_given(words: str) -> str:
    """Return a prompt without the space that `sent` added."""
    if re.match(r" +/", words):
        return words[1:]
    return words


def prompts(content: bytes) -> Iterator[Prompt]:
    """Yield the prompts of people and programs, in order. User lines that the CLI itself wrote and
    unreadable lines are skipped."""
    for line in content.split(b"\n"):
        told = b'"user"' in line or b'"queued_command"' in line
        if told and (entry := json_lines.read(line)) and (words := prompt_of(entry)):
            yield Prompt(as_given(words))


def answered(content: bytes, calls: Sequence[str]) -> bool:
    """Return whether every one of these calls has a result in the transcript."""
    left = set(calls)
    for line in content.split(b"\n"):
        entry = json_lines.read(line) if b'"tool_result"' in line else None
        blocks = json_lines.items(json_lines.part(entry, "message", "content"))
        left -= {str(block.get("tool_use_id")) for block in blocks}
    return not left


def messages(content: bytes) -> Iterator[str]:
    """Yield the texts that hooks added to the conversation, after tool calls and before the end of
    a turn (2.1.329)."""
    for line in content.split(b"\n"):
        entry = json_lines.read(line) if b'"hook_additional_context"' in line else None
        told = entry.get("attachment") if entry is not None else None
        if entry is None or entry.get("isSidechain") or not isinstance(told, dict):
            continue
        if told.get("type") == "hook_additional_context" and told.get("hookEvent") in TELLING:
            texts = told.get("content")
            if isinstance(texts, list):
                for each in texts:
                    if isinstance(each, str):
                        yield each


def prompt_of(entry: Record) -> str:
    """Return the text of a prompt; empty for all other lines. Two kinds of prompts are recorded as
    attachments (2.1.329): a prompt that arrived while the agent was running, and a prompt for a
    conversation with a parked call."""
    queued = entry.get("attachment") if entry.get("type") == "attachment" else None
    if json_lines.part(queued, "type") == "queued_command" and not entry.get("isSidechain"):
        words = json_lines.part(queued, "prompt")
        if json_lines.part(queued, "commandMode") == "prompt" and isinstance(words, str):
            return words
        return ""
    if entry.get("type") != "user" or any(
        map(entry.get, ("isMeta", "isSidechain", "isCompactSummary", "isVisibleInTranscriptOnly"))
    ):
        return ""
    content = json_lines.part(entry, "message", "content")
    if isinstance(content, str):
        words = content
    else:
        blocks = json_lines.items(content)
        if any(block.get("type") == "tool_result" for block in blocks):
            return ""
        words = "\n".join(json_lines.texts(filter(_is_text, blocks)))
    source = entry.get("promptSource")
    if source is not None:
        if source == "system":
            return ""
        return words
    if words.lstrip().startswith(_OWN_WORDS):
        return ""
    return words


def _is_text(block: Mapping[str, object]) -> bool:
    return block.get("type") == "text"


def conversations(home: Path, limit: int, only: str = "") -> Sequence[Conversation]:
    """Return at most `limit` conversations of all working directories. Files of subagents are in
    deeper folders and not matched. A file without a prompt is not a conversation yet. `only`:
    return only the conversation with this id."""
    if only and not is_id(only):
        return ()
    return conversation_files.newest(
        home.glob(f"projects/*/{only or '*'}.jsonl"), limit, _conversation
    )


def _conversation(path: Path, content: bytes, whole: bool, updated: int) -> Conversation | None:
    if is_id(path.stem):
        said = [prompt.text for prompt in prompts(content)]
    else:
        said = []
    if not said:
        return None
    return Conversation(
        id=path.stem,
        path=str(path),
        updated=updated,
        cwd=_cwd_of(content),
        first=json_lines.text(said[0], _FIRST),
        turns=len(said) if whole else 0,
    )


def _cwd_of(content: bytes) -> str:
    """Return the first working directory that the file names; empty if it names none."""
    for line in content.split(b"\n"):
        entry = json_lines.read(line) if b'"cwd"' in line else None
        if entry is not None and isinstance(entry.get("cwd"), str):
            return json_lines.text(entry["cwd"])
    return ""


def spoken(content: bytes) -> Iterator[SpokenMessage]:
    """Yield the prompts and the agent's texts, in order."""
    for line in content.split(b"\n"):
        if b'"user"' in line or b'"assistant"' in line:
            entry = json_lines.read(line)
        else:
            entry = None
        if entry is None:
            continue
        if words := prompt_of(entry):
            yield SpokenMessage(False, words)
        elif (
            entry.get("type") == "assistant"
            and not entry.get("isSidechain")
            and not entry.get("isApiErrorMessage")
        ):
            blocks = json_lines.items(json_lines.part(entry, "message", "content"))
            said = json_lines.joined_texts(list(filter(_is_text, blocks)))
            if said.strip():
                yield SpokenMessage(True, said)


def fill(content: bytes) -> Fill:
    """Return how full the conversation is: the request size of the newest answer, or the size that
    a later compaction reported, in tokens. A transcript does not contain the size of the window."""
    tokens, model, compactions, held, left = 0, "", 0, 0, 0
    for line in content.split(b"\n"):
        if b'"usage"' in line or b'"compact_boundary"' in line:
            entry = json_lines.read(line)
        else:
            entry = None
        if entry is None or entry.get("isSidechain") or entry.get("isApiErrorMessage"):
            continue
        if entry.get("type") == "system" and entry.get("subtype") == "compact_boundary":
            told = entry.get("compactMetadata")
            held, left = (
                json_lines.whole(json_lines.part(told, "preTokens")),
                json_lines.whole(json_lines.part(told, "postTokens")),
            )
            tokens, compactions = left or tokens, compactions + 1
        elif entry.get("type") == "assistant" and (carried := carried_by(entry)):
            tokens, model = carried, json_lines.text(json_lines.part(entry, "message", "model"))
    return Fill(tokens=tokens, model=model, compactions=compactions, held=held, left=left)


def carried_by(entry: Record) -> int:
    """Return the number of input tokens of the request that an answer belongs to. The answer's
    record contains this number; it is 0 if the CLI itself wrote the answer."""
    used = json_lines.part(entry, "message", "usage")
    names = ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")
    return sum(json_lines.whole(json_lines.part(used, name)) for name in names)


def usage(told: object) -> Usage:
    """Return the usage of a reply. The API counts the cached parts of the input separately. Here
    `input` includes them."""
    cached, written = (
        json_lines.whole(json_lines.part(told, "cache_read_input_tokens")),
        json_lines.whole(json_lines.part(told, "cache_creation_input_tokens")),
    )
    return Usage(
        input=json_lines.whole(json_lines.part(told, "input_tokens")) + cached + written,
        output=json_lines.whole(json_lines.part(told, "output_tokens")),
        cached=cached,
        cache_write=written,
    )


def reply(message: object, at: int = 0) -> Reply | None:
    """Return the reply, with its usage, that a message of the model or one of its stream events
    reports. None if there is no usage, as in a message that the CLI itself wrote. `at`: the time of
    the reply, in milliseconds since 1970; 0 if unknown."""
    used = json_lines.part(message, "usage")
    counted = usage(used)
    if not (counted.input or counted.output):
        return None
    return Reply(
        id=json_lines.text(json_lines.part(message, "id"), _FIRST),
        usage=counted,
        model=json_lines.text(json_lines.part(message, "model"), _FIRST),
        hour=json_lines.whole(json_lines.part(used, "cache_creation", "ephemeral_1h_input_tokens")),
        at=at,
    )


def replies(content: bytes) -> Iterator[Reply]:
    """Yield the model's replies. Each part of a reply has a line of its own, so a reply is yielded
    several times. A line may lack the final token count if it was written before the count was
    known."""
    for line in content.split(b"\n"):
        if b'"usage"' in line and b'"assistant"' in line:
            entry = json_lines.read(line)
        else:
            entry = None
        if entry is None or entry.get("type") != "assistant" or entry.get("isApiErrorMessage"):
            continue
        found = reply(entry.get("message"), json_lines.moment(entry.get("timestamp")))
        if found is not None and found.id:
            yield found


def end_of_turn(content: bytes, turn: int) -> str:
    """Return the id of the last message of a turn, for `--resume-session-at`. Raise ValueError if
    the conversation has no such turn or the turn has no answer."""
    at, last = 0, ""
    for line in content.split(b"\n"):
        entry = json_lines.read(line) if b'"uuid"' in line else None
        if entry is None or entry.get("isSidechain"):
            continue
        at += bool(prompt_of(entry))
        if at > turn:
            break
        if at == turn and entry.get("type") == "assistant":
            last = json_lines.text(entry.get("uuid"))
    if not is_id(last):
        raise ValueError(f"the conversation has no answer in turn {turn}")
    return last


def writers(home: Path, session_id: str) -> Sequence[int]:
    """Return the ids of the live processes that registered for this conversation. A killed process
    leaves its registration behind, so the start time is compared too."""
    found = []
    for path in sorted(home.glob("sessions/*.json")) if is_id(session_id) else ():
        try:
            entry = json_lines.read(read_file(path)) or {}
        except OSError:
            continue
        pid = json_lines.whole(entry.get("pid"))
        if pid and entry.get("sessionId") == session_id and _is_registered(pid, entry):
            found.append(pid)
    return found


def _is_registered(pid: int, entry: Record) -> bool:
    """Return whether the live process `pid` is the one that wrote this registration. Its start time
    must equal `procStart`, which is the start time that Linux reports."""
    known = system.stat(pid)
    if known is None or known[0] in "ZX":
        return False
    try:
        words = system.command(pid)
    except OSError:
        return False
    return system.is_started_with(known[3], json_lines.text(entry.get("procStart")), words)
