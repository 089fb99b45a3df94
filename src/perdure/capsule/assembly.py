"""Assembles a checkpoint of a run in a directory: the manifest, and the files as compressed frames.
Called by `export` for a file and by `publication` for a checkpoint store.

Every stream is searched for secrets while it is read. Conversations are taken from perdure's own
copies, up to the length that the checkpoint records. The workdir is taken as a git pack of the
changes since the run began. Nothing else in an agent's home is read, so no credentials, settings,
hooks or MCP servers can be included.
"""

from __future__ import annotations

import hashlib
import io
import struct
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.metadata import version
from itertools import count
from pathlib import Path
from typing import Protocol

from msgspec import Struct, field

from perdure.agents.transcripts import Copies
from perdure.capsule import story as stories
from perdure.capsule.container import frame, part_of
from perdure.capsule.manifest import (
    FORMAT,
    PART,
    CapsuleConversation,
    CapsuleFile,
    CapsuleWorkdir,
    Manifest,
    Part,
    check_path,
)
from perdure.capsule.secret_search import Readable, Scan, SecretFinding
from perdure.engine.attempt import Engine
from perdure.errors import CapsuleError
from perdure.model import Checkpoint, CopyPart, SessionKey, TaskRun
from perdure.protocols import RunStore
from perdure.rules.placement import digest_of, expected_files, placement_of
from perdure.workspace.task_files import Contents

GROWING = 256 << 10
"""Size in bytes of a part of a file that grows: a conversation or the journal. Between two
checkpoints of a run, usually only the last part of such a file changes."""
AHEAD = 4
_LENGTH = struct.Struct(">I")


class Packs(Protocol):
    """A function that writes the workdir of a checkpoint as git packs. `export.Packing` implements
    it."""

    left_out: tuple[str, ...]
    """Files that are in the checkpoint but were not packed, because each of them contains a secret.
    """
    findings: list[SecretFinding]
    """Secrets found in files of the workdir."""

    def __call__(self, gathering: FrameCollector) -> CapsuleWorkdir: ...


class FrameCollector(Struct):
    """Collects the files of a checkpoint and compresses them into frames. `known` contains the
    SHA-256 of each part that the receiver already has. The frame of such a part is empty."""

    directory: Path
    scan: Scan
    known: Collection[str] = frozenset()
    _places: dict[str, Path] = field(default_factory=dict)
    _numbers: Iterator[int] = field(default_factory=count)

    def add(
        self, name: str, source: Readable, *, place: str = "", size: int = GROWING
    ) -> CapsuleFile:
        """Add a stream under a name, and return it as a CapsuleFile.

        If `place` is given, the stream is searched for secrets, and `place` names the stream in the
        findings. Secrets are redacted, unless the scan is set to keep them. `size`: the size of a
        part, in bytes.
        """
        if place:
            pieces = self.scan.over(place, source)
        else:
            pieces = iter(lambda: source.read(PART), b"")
        target = self.directory / str(next(self._numbers))
        whole, length = hashlib.sha256(), 0
        parts: list[Part] = []
        with target.open("xb") as file, ThreadPoolExecutor(1, thread_name_prefix="frame") as beside:
            waiting: deque[Future[tuple[Part, bytes]]] = deque()

            def settle() -> None:
                part, packed = waiting.popleft().result()
                parts.append(part)
                file.write(_LENGTH.pack(len(packed)) + packed)

            # One thread compresses while this one reads and searches. Only a few parts are in
            # memory at a time.
            for content in _fixed_size_pieces(pieces, size):
                waiting.append(beside.submit(self._frame, content, whole))
                length += len(content)
                if len(waiting) > AHEAD:
                    settle()
            while waiting:
                settle()
        made = CapsuleFile(name, length, whole.hexdigest(), tuple(parts))
        self._places[_address(made)] = target
        return made

    def _frame(self, content: bytes, whole: hashlib._Hash) -> tuple[Part, bytes]:
        whole.update(content)
        part = part_of(content)
        return part, b"" if part.sha256 in self.known else frame(content)

    def frames(self, file: CapsuleFile) -> Iterator[bytes]:
        """Yield the frame of each part of a file that was added. The frame of a part that the
        receiver already has is empty."""
        with self._places[_address(file)].open("rb") as source:
            for _ in file.parts:
                yield source.read(_LENGTH.unpack(source.read(_LENGTH.size))[0])

    def fresh(self, manifest: Manifest) -> Iterator[tuple[Part, bytes]]:
        """Yield every part in the manifest that the receiver does not have yet, with its frame."""
        for file in manifest.files():
            if _address(file) in self._places:
                for part, packed in zip(file.parts, self.frames(file), strict=True):
                    if packed:
                        yield part, packed


def _address(file: CapsuleFile) -> str:
    return f"{file.sha256}/{len(file.parts)}"


def _fixed_size_pieces(pieces: Iterator[bytes], size: int) -> Iterator[bytes]:
    """Yield the stream in pieces of `size` bytes. The last piece may be shorter."""
    held = bytearray()
    for piece in pieces:
        held += piece
        while len(held) >= size:
            yield bytes(held[:size])
            del held[:size]
    if held:
        yield bytes(held)


def gather(
    engine: Engine, run: TaskRun, checkpoint: Checkpoint, gathering: FrameCollector, packs: Packs
) -> Manifest:
    """Add the files of one checkpoint to `gathering`, and return its manifest. Raises CapsuleError
    if the workdir or the conversation is lost."""
    with ThreadPoolExecutor(1, thread_name_prefix="pack") as beside:
        # git packs the workdir while this thread searches the conversation.
        packing = beside.submit(packs, gathering)
        return _gather(engine, run, checkpoint, gathering, packs, packing)


def _gather(
    engine: Engine,
    run: TaskRun,
    checkpoint: Checkpoint,
    gathering: FrameCollector,
    packs: Packs,
    packing: Future[CapsuleWorkdir],
) -> Manifest:
    name = checkpoint.agent or run.spec.agent
    sessions = tuple(engine.store.lineage(SessionKey(run.spec.agent, run.scope)))
    story = stories.CapsuleStory(
        run=run,
        contexts=tuple(engine.store.contexts(run.id)),
        attempts=tuple(engine.store.attempts(run.id)),
        sessions=sessions,
        requests=tuple(engine.store.requests(run.id)),
    )
    story_file = gathering.add(
        "run.json", io.BytesIO(stories.encode_story(story)), place="the run's story (run.json)"
    )
    with stories.journal(
        engine.store.history(run.id, limit=stories.MOST_RECORDS), str(gathering.directory)
    ) as lines:
        journal_file = gathering.add("journal.jsonl", lines, place="the run's journal")
    odd: list[str] = []
    conversations = tuple(
        _conversations(engine.copies, name, checkpoint.conversation, gathering, odd)
    )
    given = tuple(_task_files(engine.store, engine.state, run, story, gathering))
    workdir = packing.result()
    gathering.scan.findings += packs.findings
    return Manifest(
        format=FORMAT,
        perdure=version("perdure"),
        run=run.origin or run.id,
        name=run.name,
        agent=run.spec.agent,
        agent_version=checkpoint.agent_version,
        number=checkpoint.number,
        attempt=checkpoint.attempt,
        at=checkpoint.at,
        context_version=checkpoint.context_version,
        story=story_file,
        journal=journal_file,
        conversations=conversations,
        given=given,
        workdir=workdir,
        redacted=0
        if gathering.scan.keep
        else sum(not finding.file for finding in gathering.scan.findings),
        left_out=(*odd, *packs.left_out),
    )


def _task_files(
    store: RunStore,
    state: Path,
    run: TaskRun,
    story: stories.CapsuleStory,
    gathering: FrameCollector,
) -> Iterator[CapsuleFile]:
    """Add the task files that a later attempt or update needs, and yield them.

    The name of a task file is the digest of its original content. If a secret in the content is
    redacted, the content no longer has that digest. The receiver then ignores the file.
    """
    contents = Contents(state)
    newest = [each.file.sha256 for each in expected_files(story.contexts).values()]
    if newest:
        placement = placement_of(store.run_events(run.id))
        placed = list(map(digest_of, placement.marks.values()))
    else:
        placed = []
    for digest in dict.fromkeys([*newest, *placed]):
        if content := contents.get(digest):
            yield gathering.add(digest, io.BytesIO(content), place=f"task file {digest[:12]}")


def _conversations(
    copies: Copies, agent: str, parts: Sequence[CopyPart], gathering: FrameCollector, odd: list[str]
) -> Iterator[CapsuleConversation]:
    """Yield each conversation with its additional files. Raises CapsuleError if a transcript is
    missing.

    Agents choose the names of the additional files. If a receiver would refuse a name, the file is
    left out, and its name is added to `odd`.
    """
    by_session: dict[str, list[CopyPart]] = {}
    for part in parts:
        by_session.setdefault(part.session_id, []).append(part)
    for session_id, own in by_session.items():
        main = next((part for part in own if part.name == "main"), None)
        if main is None:
            raise CapsuleError(
                f"the checkpoint has files of conversation {session_id}, but not the conversation",
                "choose another --at",
            )
        copied = _copy(copies, agent, main, gathering)
        beside = []
        for part in own:
            if part is main:
                continue
            if is_path(part.name):
                beside.append(_copy(copies, agent, part, gathering))
            else:
                odd.append(part.name)
        yield CapsuleConversation(agent=agent, id=session_id, main=copied, beside=tuple(beside))


def is_path(name: str) -> bool:
    """Return whether a receiver would accept a file of this name. The name must be a plain relative
    path. It must not be the path of an agent's credentials, settings or hooks."""
    try:
        check_path(name)
    except CapsuleError:
        return False
    return True


def _copy(copies: Copies, agent: str, part: CopyPart, gathering: FrameCollector) -> CapsuleFile:
    path = copies.find(agent, part)
    if path is None:
        raise CapsuleError(
            f"the copy of conversation {part.session_id} lacks a part that the checkpoint needs",
            "choose another --at",
        )
    what = "conversation" if part.name == "main" else part.name
    with path.open("rb") as source:
        return gathering.add(
            part.name, LimitedReader(source, part.size), place=f"{what} {part.session_id}"
        )


class LimitedReader(Struct):
    """A readable stream of the next `left` bytes of another stream."""

    source: Readable
    left: int

    def read(self, size: int, /) -> bytes:
        content = self.source.read(min(size, self.left))
        self.left -= len(content)
        return content
