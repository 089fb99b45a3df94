"""Finds the run for a verb without NAME: the newest run of the current repository."""

from __future__ import annotations

import os
import sys
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from perdure.cli.compose import open_to_read, settings
from perdure.cli.text import clean
from perdure.errors import NotFound, UsageError
from perdure.model import RunState

if TYPE_CHECKING:
    from collections.abc import Iterator

    from perdure.model import TaskRun
    from perdure.protocols import RunStore

LOOKED_AT = 500
"""Maximum number of the newest runs that are searched."""
ACTIVE = (RunState.RUNNING, RunState.QUEUED)
WANTED: dict[str, tuple[RunState, ...]] = {
    "stop": ACTIVE,
    "retry": (RunState.FAILED, RunState.CANCELLED, *ACTIVE),
    "apply": (RunState.SUCCEEDED, RunState.FAILED, RunState.CANCELLED),
}
"""The states in which a run can be used by a verb. A verb that is not listed accepts any state."""
ONLY_ONE = ("stop", "retry", "apply", "open")
"""Verbs that never choose among several possible runs by themselves. On a terminal, a person
chooses the run. Without a terminal, NAME is then required."""
PICKED = 200
"""Maximum number of runs, besides the newest two, that a person can choose from."""


def newest_here(verb: str) -> str:
    """Return the name of the newest run of the repository that contains the current directory.

    If the verb is in ONLY_ONE and several runs are possible, a person chooses one on a terminal.
    Raises NotFound if there is no run, and UsageError if several are possible and none was chosen.
    """
    store, here = open_to_read(settings()), Path.cwd()
    found = _runs_of(store, here, WANTED.get(verb, ()))
    run = next(found, None)
    if run is None:
        what = " or ".join(WANTED.get(verb, ()))
        kind = f"{what} " if what else ""
        raise NotFound(
            f"there is no {kind}run of {here} to {verb}",
            f"perdure ls, then perdure {verb} NAME (perdure {verb} --help)",
        )
    more = next(found, None) if verb in ONLY_ONE else None
    if more is not None:
        chosen = None
        if sys.stdin.isatty() and sys.stderr.isatty():
            from perdure.cli.runs.run_picker import pick_run

            chosen = pick_run(verb, [run, more, *islice(found, PICKED)], store.now())
        if chosen is not None:
            return chosen.name
        raise UsageError(
            f"{verb} could mean several runs: {run.name}, {more.name}",
            f"perdure {verb} {run.name}",
        )
    print(f"perdure: {verb} {clean(run.name)}", file=sys.stderr)
    return run.name


def _runs_of(store: RunStore, here: Path, states: tuple[RunState, ...]) -> Iterator[TaskRun]:
    top = repository_of(here)
    for row in store.last_changed(states, LOOKED_AT):
        run = store.get(row.id)
        place = run.workspace
        if place is None:
            continue
        is_inside = Path(place.path) in (here, *here.parents)
        if is_inside or (top is not None and place.repo == str(top)):
            yield run


def repository_of(here: Path) -> Path | None:
    """Return the top directory of the repository that contains a directory, or None if there is
    none. If the directory is in a linked worktree, return the top directory of the main worktree.
    """
    for place in (here, *here.parents):
        mark = place / ".git"
        # Unlike the methods of Path, os.path does not raise for a directory that cannot be read.
        if os.path.isdir(mark):  # noqa: PTH112
            return place
        if os.path.isfile(mark):  # noqa: PTH113
            text = mark.read_text(encoding="utf-8", errors="replace").strip()
            directory = Path(text.removeprefix("gitdir:").strip())
            # The .git file of a linked worktree names REPOSITORY/.git/worktrees/NAME.
            linked = directory.parent.name == "worktrees"
            if linked:
                return directory.parents[2]
            return place
    return None
