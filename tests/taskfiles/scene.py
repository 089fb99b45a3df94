"""A workdir, a journal and a person's task files, without a run."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from perdure.model import Context, FileChange, Given, OnEdit, TaskFile
from perdure.model.events import AnyEvent, FilesPlaced, FilesPlanned, Record
from perdure.workspace.task_files import Contents, FilePlace, place


@dataclass
class Scene:
    """The scene. `give` appends a version of the instructions; `place` does what an attempt does
    before its agent starts."""

    directory: Path
    contexts: list[Context] = field(default_factory=list)
    journal: list[Record] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.work, self.state = self.directory / "work", self.directory / "state"
        for each in (self.work, self.state):
            each.mkdir(exist_ok=True)
        self.contents = Contents(self.state)

    def give(
        self,
        files: dict[str, bytes],
        on_edit: OnEdit = OnEdit.MERGE,
        *,
        whole: bool = False,
        executable: Sequence[str] = (),
    ) -> None:
        kept = tuple(
            TaskFile(name, self.contents.put(text), len(text), name in executable)
            for name, text in sorted(files.items())
        )
        self.contexts.append(
            Context(len(self.contexts) + 1, "do it", 0, Given(kept, whole=whole, on_edit=on_edit))
        )

    def record(self, events: list[AnyEvent]) -> None:
        self.journal += [
            Record("r", len(self.journal) + number, 1, 0, event)
            for number, event in enumerate(events, 1)
        ]

    def place(
        self, *, fresh: bool = False, after: Callable[[], None] = lambda: None
    ) -> dict[str, FileChange]:
        """Place the files, and return what was planned this time, by name. `after` is called after
        each record."""

        def record(events: list[AnyEvent]) -> None:
            self.record(events)
            after()

        seen = len(self.journal)
        at = FilePlace(
            workdir=self.work,
            backups=self.state / "backups",
            contents=self.contents,
            environ=os.environ,
            token="run",
            fresh=fresh,
        )
        place(at, self.contexts, list(self.journal), record)
        new = [record.event for record in self.journal[seen:]]
        return {
            change.name: change
            for event in new
            if isinstance(event, FilesPlanned)
            for change in event.files
        }

    def left(self) -> tuple[str, ...]:
        return next(
            record.event.left
            for record in reversed(self.journal)
            if isinstance(record.event, FilesPlaced)
        )

    def write(self, name: str, content: bytes) -> None:
        path = self.work / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    def read(self, name: str) -> bytes | None:
        path = self.work / name
        return path.read_bytes() if path.is_file() else None

    def backups(self) -> list[bytes]:
        return [path.read_bytes() for path in self.state.glob("backups/**/*") if path.is_file()]

    def strays(self) -> list[str]:
        """Return files of perdure that are left beside the task files."""
        return [path.name for path in self.work.rglob(".perdure-*")]
