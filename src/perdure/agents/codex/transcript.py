"""Codex's own files: where a thread is stored, what it contains, and which processes have it open.

Layout of 0.169.0: `{home}/sessions/YYYY/MM/DD/rollout-<time>-<thread>.jsonl`. If the file was begun
by going back in the thread, its name has `_` and an id of the file itself after the thread's id.
`{home}/thread-writer-locks/<thread>.lock` is locked with flock while a process writes. A fork's
file holds only the records after the fork and names its parent (`forked_from_id`).
"""

from __future__ import annotations

import os
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path

from perdure.agents.shared import conversation_files, json_lines
from perdure.agents.shared.conversation_files import checked, is_id
from perdure.host import system
from perdure.host.system.files import open_file, read_file
from perdure.model import Conversation, Fill, Reply, Usage
from perdure.model.tasks import MESSAGE_START
from perdure.patterns import late_pattern
from perdure.protocols import OpenRequest, Prompt, SpokenMessage

_NAME = late_pattern(r"rollout-(\d{4})-(\d{2})-(\d{2})T[\d-]{8}-(.+)\.jsonl")
_TIME = late_pattern(r"(\d{4})-(\d{2})-(\d{2})T(\d{2}):(\d{2}):(\d{2})")
_FIRST = 500
_BACK_MOST = 20
"""Maximum number of earlier files of a thread that are read for a list of conversations."""
_TOLD = (b'"token_count"', b'"compacted"', b'"turn_context"')
_COUNTED = (b'"token_count"', b'"token_usage_record"', b'"turn_context"')
_REPLIED = (*_COUNTED, b'_call"')
_ASKED = (*_COUNTED, b'"response_item"', b'"compacted"', b'"task_complete"', b'"turn_aborted"')
_CALLS = frozenset({"function_call", "custom_tool_call", "local_shell_call"})
"""Types of calls that the CLI itself runs, so their results come from the CLI. All other calls are
run by the model's service."""
_RESULTS = frozenset(f"{name}_output" for name in _CALLS)
BYTES_A_TOKEN = 4
"""Assumed number of bytes of text for each token."""
_OWN_WORDS = (
    *(
        "<environment_context>",
        "<user_instructions>",
        "# AGENTS.md instructions",
        "<turn_aborted>",
        "<skill>",
        "<user_shell_command>",
    ),
    *("<subagent_notification>", "<model_switch>", "<recommended_plugins>", "<goal_context>"),
)
"""Beginnings of the user messages that Codex itself writes. Needed for versions that do not record
the source of a message."""


def transcript(home: Path, session_id: str) -> Path | None:
    """Return the thread's rollout; None if there is none. If the thread has several rollouts,
    return the one with the newest date in its name."""
    return next(iter(remains(home, session_id)), None)


def remains(home: Path, session_id: str) -> Sequence[Path]:
    """Return all files of the thread, newest first by the date in their names. Going back in a
    thread begins another file (0.169.0)."""
    found = _rollouts(home, f"-{session_id}") if is_id(session_id) else ()
    found = (path for path in found if path.stem.partition(session_id)[2][:1] in ("", "_"))
    return sorted(filter(Path.is_file, found), key=lambda path: path.name, reverse=True)


def _rollouts(home: Path, part: str) -> Iterator[Path]:
    """Yield the rollouts whose names contain the text `part`. The rollouts are in directories by
    year, month and day. `Path.glob` is not used, because it would take three times as long and an
    attempt needs about ten searches."""
    directories = [str(home / "sessions")]
    for _ in range(3):
        within = chain.from_iterable(map(_entries, directories))
        directories = [entry.path for entry in within if entry.is_dir()]
    for entry in chain.from_iterable(map(_entries, directories)):
        name = entry.name
        if part in name and name.startswith("rollout-") and name.endswith(".jsonl"):
            yield Path(entry.path)


def _entries(directory: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(directory) as entries:
            return list(entries)
    except OSError:
        return []


def bases(home: Path, content: bytes) -> Sequence[Path]:
    """Return the files that a rollout continues, the nearest first. A rollout identifies such a
    file by the last id in the file's name."""
    found: list[Path] = []
    head = content.partition(b"\n")[0]
    while (path := _base(home, head)) is not None and path not in found:
        found.append(path)
        head = _head(path)
    return found


def _base(home: Path, head: bytes) -> Path | None:
    """Return the file that a rollout's first line (`head`) names as its base, or None. If there are
    several, return the one with the newest date in its name."""
    named = json_lines.text(json_lines.part(meta_of(head), "history_base", "thread_id"))
    files = home.glob(f"sessions/*/*/*/rollout-*{named}.jsonl") if is_id(named) else ()
    fitting = [path for path in files if path.stem.endswith((f"-{named}", f"_{named}"))]
    return max(fitting, key=lambda path: path.name, default=None)


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.readline()
    except OSError:
        return b""


def place(home: Path, session_id: str, copy: Path) -> Path:
    """Return the path at which Codex finds the rollout. This is the path of the thread's existing
    file, if there is one. Else it is built from the copy's name, or from the date in the copy's
    first line.

    Raise ValueError if the copy is not a rollout of this thread.
    """
    checked(session_id)
    if there := transcript(home, session_id):
        return there
    if (named := _NAME.fullmatch(copy.name)) and named[4] == session_id:
        return home.joinpath("sessions", *named.group(1, 2, 3), copy.name)
    with copy.open("rb") as file:
        meta = json_lines.part(json_lines.read(file.readline()), "payload")
    began = _TIME.match(json_lines.text(json_lines.part(meta, "timestamp")))
    if json_lines.part(meta, "id") != session_id or began is None:
        raise ValueError(f"{copy} is not a rollout of the thread {session_id}")
    year, month, day, *clock = began.groups()
    return (
        home
        / "sessions"
        / year
        / month
        / day
        / f"rollout-{year}-{month}-{day}T{'-'.join(clock)}-{session_id}.jsonl"
    )


def prompts(content: bytes) -> Iterator[Prompt]:
    """Yield the prompts of people and programs, in order. User messages that Codex itself wrote,
    messages to a running turn, and unreadable lines are skipped."""
    for line in content.split(b"\n"):
        if (
            b'"user"' in line
            and (entry := json_lines.read(line))
            and entry.get("type") == "response_item"
        ):
            message = entry.get("payload")
            if (
                json_lines.part(message, "type") == "message"
                and json_lines.part(message, "role") == "user"
                and (words := prompt_of(message))
                and not words.startswith(MESSAGE_START)
            ):
                yield Prompt(words)


def messages(content: bytes) -> Iterator[str]:
    """Yield the messages that running turns got by `turn/steer`. The CLI writes such a message in
    the same form as a prompt, before it sends the message to the model (0.169.0)."""
    for each in spoken(content):
        if not each.by_agent and each.text.startswith(MESSAGE_START):
            yield each.text


def prompt_of(message: object) -> str:
    """Return the text of a prompt; empty for a message that Codex itself wrote."""
    texts = json_lines.texts(json_lines.items(json_lines.part(message, "content")))
    origins = json_lines.items(
        json_lines.part(
            message, "internal_chat_message_metadata_passthrough", "content_item_metadata"
        )
    )
    if origins:
        own = []
        for words, origin in zip(texts, origins, strict=False):
            if json_lines.part(origin, "provenance", "type") == "user":
                own.append(words)
        return "\n".join(own)
    return "\n".join(words for words in texts if not words.lstrip().startswith(_OWN_WORDS))


def conversations(home: Path, limit: int, only: str = "") -> Sequence[Conversation]:
    """Return at most `limit` threads that people and programs began. Threads of subagents are left
    out. `only`: return only the conversation with this id."""
    if only and not is_id(only):
        return ()
    return conversation_files.newest(_rollouts(home, f"-{only}"), limit, _conversation)


def _conversation(path: Path, content: bytes, whole: bool, updated: int) -> Conversation | None:
    meta = meta_of(content)
    thread = json_lines.text(meta.get("id"))
    if not is_id(thread) or isinstance(meta.get("source"), dict):
        return None
    _, found, rest = path.stem.partition(thread)
    if not found or rest[:1] not in ("", "_"):
        return None
    earlier = _kept_prompts(path, content, thread)
    said = [*(earlier or ()), *(prompt.text for prompt in prompts(content))]
    if not said and not parent(content):
        return None
    return Conversation(
        id=thread,
        path=str(path),
        updated=updated,
        cwd=json_lines.text(meta.get("cwd")),
        first=json_lines.text(said[0] if said else "", _FIRST),
        turns=len(said) if whole and earlier is not None else 0,
        parent=parent(content),
    )


def _kept_prompts(path: Path, content: bytes, thread: str) -> list[str] | None:
    """Return the prompts that the user kept when they went back in the thread, from the files that
    this rollout continues. Empty if it continues no file of the thread. Return None if one of the
    files is missing or too long to be read completely."""
    kept: list[str] = []
    home = path.parents[4]
    for _ in range(_BACK_MOST):
        base = json_lines.part(meta_of(content), "history_base")
        if base is None:
            return kept
        found = _base(home, content.partition(b"\n")[0])
        end = json_lines.whole(json_lines.part(base, "end_byte_offset"))
        if found is None or thread not in found.stem:
            return kept if parent(content) else None
        try:
            if found.stat().st_size > conversation_files.WHOLE:
                return None
            content = read_file(found)[:end]
        except OSError:
            return None
        kept[:0] = [prompt.text for prompt in prompts(content)]
    return None


def meta_of(content: bytes) -> Mapping[str, object]:
    """Return the thread's metadata from the first line of a rollout. Empty if that line contains no
    metadata."""
    head = json_lines.read(content.partition(b"\n")[0]) or {}
    if head.get("type") == "session_meta":
        meta = head.get("payload")
    else:
        meta = None
    if isinstance(meta, dict):
        return meta
    return {}


def parent(content: bytes) -> str:
    """Return the id of the thread that the rollout's thread was forked from; empty if the rollout's
    thread is not a fork. To resume a fork, Codex needs the parent's rollout too."""
    named = json_lines.text(meta_of(content).get("forked_from_id"))
    if is_id(named):
        return named
    return ""


def total(content: bytes) -> Usage:
    """Return the newest total usage of the thread, which accumulates over resumes and forks. The
    input includes its cached parts."""
    for line in reversed(content.split(b"\n")):
        if b'"token_count"' in line and (
            used := json_lines.part(json_lines.read(line), "payload", "info", "total_token_usage")
        ):
            return usage(used)
    return Usage()


def usage(told: object) -> Usage:
    """Return a token count of Codex as `Usage`. Codex's input count already includes the cached
    parts."""
    return Usage(
        input=json_lines.whole(json_lines.part(told, "input_tokens")),
        output=json_lines.whole(json_lines.part(told, "output_tokens")),
        cached=json_lines.whole(json_lines.part(told, "cached_input_tokens")),
        cache_write=json_lines.whole(json_lines.part(told, "cache_write_input_tokens")),
    )


def replies(content: bytes) -> Iterator[Reply]:
    """Yield the model's replies with their usage. The rollout contains the usage in two forms:

    - 0.169.0 writes a `token_usage_record` as soon as a reply has arrived. The records of the
      reply's calls come before this record.
    - All versions write the thread's total, but only when the reply's tools have ended. If Codex is
      killed before that, a resume continues from the older total. Versions before 0.169.0 write
      only the total.
    """
    model, calls = "", False
    for entry in json_lines.marked(content, _REPLIED):
        payload, at = entry.get("payload"), json_lines.moment(entry.get("timestamp"))
        if entry.get("type") == "turn_context":
            model = json_lines.text(json_lines.part(payload, "model"), _FIRST) or model
        elif entry.get("type") == "response_item":
            calls = calls or json_lines.text(json_lines.part(payload, "type")) in _CALLS
        elif entry.get("type") == "token_usage_record":
            key = json_lines.text(json_lines.part(payload, "response_id"), _FIRST)
            yield Reply(
                id=key or str(at),
                usage=usage(json_lines.part(payload, "usage")),
                model=model,
                at=at,
                calls=calls,
            )
            calls = False
        elif json_lines.part(payload, "type") == "token_count" and (
            info := json_lines.part(payload, "info")
        ):
            total = usage(json_lines.part(info, "total_token_usage"))
            key = f"{total.input} in, {total.output} out"
            yield Reply(
                id=key,
                usage=usage(json_lines.part(info, "last_token_usage")),
                model=model,
                at=at,
                unnamed=True,
            )


def subagent_replies(home: Path, thread: str, since: int) -> Iterator[Reply]:
    """Yield the model's replies to a thread's subagents, and to their own subagents, from `since`
    (in ms since 1970) on. Each subagent is a thread with a rollout of its own, which names its
    parent. The token counts of `thread` do not include its subagents. Only records of 0.169.0 and
    later are read."""
    family = {thread}
    # The sorted paths are in order of time, so a parent comes before the threads that it began.
    for path in sorted(home.glob("sessions/*/*/*/rollout-*.jsonl")):
        content = b""
        with suppress(OSError):
            content = _of_subagent(path, family, since)
        if content:
            family.add(json_lines.text(meta_of(content).get("id")))
            found = (reply for reply in replies(content) if not reply.unnamed)
            for reply in found:
                if reply.at >= since:
                    yield reply


def _of_subagent(path: Path, family: Container[str], since: int) -> bytes:
    """Return the content of a subagent's rollout. Empty if the file was last written before
    `since`, or if the subagent's parent is not in `family` (ids of threads). Raise OSError if the
    file cannot be read."""
    if path.stat().st_mtime * 1000 < since:
        return b""
    with open_file(path, follow=False) as file:
        head = file.readline()
        meta = meta_of(head)
        began = json_lines.part(meta, "source", "subagent") is not None
        if began and meta.get("parent_thread_id") in family:
            return head + file.read()
    return b""


def open_request(content: bytes) -> OpenRequest | None:
    """Return the model request whose answer was not recorded; None if there is none. The request is
    found by the order of the lines: 0.169.0 writes a prompt, or the result of a tool, before it
    sends a request, and a record of the usage as soon as the answer has arrived."""
    asking, added, model = False, 0, ""
    # Versions before 0.169.0 write no usage records. For these versions, a changed total shows that
    # an answer has arrived.
    recorded, known = b'"token_usage_record"' in content, Usage()
    calls: set[str] = set()
    for entry in json_lines.marked(content, _ASKED):
        payload = entry.get("payload")
        kind, key = json_lines.part(payload, "type"), json_lines.part(payload, "call_id")
        match entry.get("type"), kind:
            case ("turn_context", _):
                model = json_lines.text(json_lines.part(payload, "model"), _FIRST) or model
            case ("token_usage_record", _):
                asking, added = False, 0
            case ("event_msg", "task_complete" | "turn_aborted"):
                asking, added = False, 0
                calls.clear()
            case ("event_msg", "token_count") if not recorded:
                total = usage(json_lines.part(payload, "info", "total_token_usage"))
                if total not in (known, Usage()):
                    asking, added, known = False, 0, total
            case ("compacted", _):
                asking = True
            case ("response_item", "message") if words := _prompted(payload):
                asking, added = True, added + len(words) // BYTES_A_TOKEN
                calls.clear()
            case ("response_item", str() as name) if name in _CALLS:
                calls.add(str(key))
            case ("response_item", str() as name) if name in _RESULTS:
                calls.discard(str(key))
                asking = not calls
                added += len(_output(payload)) // BYTES_A_TOKEN
            case _:
                pass
    if asking:
        return OpenRequest(added=added, model=model)
    return None


def _prompted(message: object) -> str:
    """Return the text of a prompt; empty for any other message."""
    if json_lines.part(message, "role") == "user":
        return prompt_of(message)
    return ""


def _output(item: object) -> str:
    """Return the text of a tool's result."""
    output = json_lines.part(item, "output")
    if isinstance(output, str):
        return output
    return json_lines.joined_texts(output)


def fill(content: bytes) -> Fill:
    """Return how full the conversation is, in tokens. The number is the newest token count of a
    single request. After a compaction, or after a request that was refused as too long, this count
    is Codex's own estimate."""
    tokens, window, model, compactions, held, left = 0, 0, "", 0, 0, 0
    counts: list[int] = []
    for entry in json_lines.marked(content, _TOLD):
        if entry.get("type") == "compacted":
            # The newest count belongs to the request for the summary, which still includes the
            # conversation from before the compaction. `held` is the larger one of this count and
            # the count before it.
            compactions, held, left = compactions + 1, max(counts[-2:], default=0), 0
        elif entry.get("type") == "turn_context":
            model = json_lines.text(json_lines.part(entry, "payload", "model")) or model
        elif json_lines.part(entry, "payload", "type") == "token_count":
            last = json_lines.part(entry, "payload", "info", "last_token_usage")
            tokens = (
                json_lines.whole(json_lines.part(last, "input_tokens"))
                or json_lines.whole(json_lines.part(last, "total_tokens"))
                or tokens
            )
            counts.append(tokens)
            left = left or tokens
            window = (
                json_lines.whole(json_lines.part(entry, "payload", "info", "model_context_window"))
                or window
            )
    return Fill(
        tokens=tokens,
        window=window,
        model=model,
        compactions=compactions,
        held=held,
        left=left if compactions else 0,
    )


def spoken(content: bytes) -> Iterator[SpokenMessage]:
    """Yield the prompts and the agent's messages, in order."""
    for line in content.split(b"\n"):
        entry = json_lines.read(line) if b'"message"' in line else None
        if entry is None or entry.get("type") != "response_item":
            continue
        message = entry.get("payload")
        if not isinstance(message, dict) or message.get("type") != "message":
            continue
        if message.get("role") == "user" and (words := prompt_of(message)):
            yield SpokenMessage(False, words)
        elif message.get("role") == "assistant":
            said = json_lines.joined_texts(message.get("content"))
            if said.strip():
                yield SpokenMessage(True, said)


def writers(home: Path, session_id: str) -> Sequence[int]:
    """Return the ids of the processes that hold the thread's lock, according to the kernel. perdure
    does not try to take the lock itself, because a Codex that starts at that moment would fail."""
    lock = home / "thread-writer-locks" / f"{session_id}.lock"
    if is_id(session_id):
        return system.holders_of_lock(str(lock))
    return ()
