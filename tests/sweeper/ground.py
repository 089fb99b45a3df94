"""A machine for the tests of the sweeper: a repository, a root, a state directory, and runs that
have ended. The test sets the time."""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from perdure.config import Settings
from perdure.engine.attempt import Engine
from perdure.engine.sweeper import Moment, Row, Sweep, current_moment, rules_of, sweep
from perdure.model import TaskRun, Workspace
from perdure.wiring import open_engine
from tests.spread import apart
from tests.workspace.yard import Yard, make_yard

DAY_MS = 86_400_000


class Ground(Struct):
    """The machine. `passed`: the days since the test began, on both clocks."""

    yard: Yard
    engine: Engine
    settings: Settings
    passed: float = 0.0

    @property
    def state(self) -> Path:
        return self.settings.state

    @property
    def trash(self) -> Path:
        return self.yard.root / ".perdure/trash"

    def run(
        self, backend: str = "worktree", name: str = "task", **more: str
    ) -> tuple[TaskRun, Path]:
        """Make a cancelled run with a workdir as an attempt leaves it. Return the run."""
        spec = self.yard.spec(backend, **more)
        workspace = self.engine.workspaces.plan(spec, name, self.yard.repo)
        run = self.engine.store.add(spec, uuid.uuid4().hex, name, workspace)
        self.prepare(workspace)
        return self.engine.store.request_cancel(run.id), Path(workspace.path)

    def prepare(self, workspace: Workspace) -> None:
        fd = self.engine.workspaces.lock(workspace)
        try:
            self.engine.workspaces.prepare(workspace, "claude")
        finally:
            os.close(fd)

    @property
    def now(self) -> Moment:
        real = current_moment()
        return replace(
            real, wall=real.wall + int(self.passed * DAY_MS), boot=real.boot + self.passed * 86_400
        )

    def sweep(
        self, *, days: float = 0.0, dry: bool = False, many: bool = False, accept: bool = False
    ) -> Sweep:
        """Sweep a given number of days later, and return the report."""
        self.passed += days
        return sweep(
            self.engine.store,
            self.engine.workspaces,
            self.engine.state,
            rules_of(self.settings, many=many),
            now=self.now,
            dry=dry,
            accept=accept,
        )

    def row(self, swept: Sweep, path: Path) -> Row:
        """Return the report's row about one path."""
        (found,) = [row for row in swept.rows if row.path == str(path)]
        return found


def make_ground(top: Path) -> Ground:
    yard = make_yard(top)
    apart(top / "state")
    settings = Settings(root=yard.root, state=top / "state", disk_ballast=0)
    return Ground(yard, open_engine(settings, yard.environ), settings)


def hashes(*tops: Path) -> set[tuple[str, str]]:
    """Return the name and the hash of the content of every file below the directories, without
    git's own files."""
    return {
        (path.name, hashlib.sha256(path.read_bytes()).hexdigest())
        for top in tops
        for path in _files(top)
    }


def _files(top: Path) -> Iterator[Path]:
    for directory, folders, names in os.walk(top):
        folders[:] = [
            folder
            for folder in folders
            if not (folder == ".git" and Path(directory, folder, "index").exists())
        ]
        for name in names:
            path = Path(directory, name)
            if path.is_file() and not path.is_symlink() and name != ".git":
                yield path
