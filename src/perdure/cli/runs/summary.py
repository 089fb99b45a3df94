"""The last line that `run`, `retry`, `update` and `attach` print: the state of the run, its time,
its cost and its changes."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from perdure.cli.style import STATES, SYMBOLS, fitted, paint, wrapped
from perdure.cli.text import columns, dollars
from perdure.errors import PerdureError
from perdure.host.volumes import was_changed_since
from perdure.model import SAFETY_REASONS, Backend, Workspace
from perdure.patterns import late_pattern
from perdure.rules.text import VERDICTS, span

if TYPE_CHECKING:
    from perdure.engine.attempt import Engine
    from perdure.model.reports import RunReport
    from perdure.model.work import FileOfWork
    from perdure.protocols import RunStore

_STAT = late_pattern(
    rb"(\d+) files? changed(?:, (\d+) insertions?\(\+\))?(?:, (\d+) deletions?\(-\))?\s*\Z"
)

DOUBTS = ("incomplete", "blocked", "refused")
"""Verdicts of the work report that are shown even if the run succeeded."""


def changes_of(engine: Engine, report: RunReport) -> str:
    """Return a summary of what a run changed in its workdir, such as `3 files +41 −7`. Return an
    empty string if nothing was changed or if git fails."""
    from perdure.engine import service

    place = engine.store.get(report.id).workspace
    if place is None or place.backend is Backend.HERE:
        return ""  # Changes in the user's own directory may not be the agent's.
    with suppress(PerdureError, OSError):
        counted = _recorded(engine.store, report, place)
        if counted is None:
            found = _STAT.search(service.diff(engine, report.id, stat=80))
            if found:
                counted = tuple(int(each or 0) for each in found.groups())
            else:
                counted = (0, 0, 0)
        count, more, less = counted
        files = "file" if count == 1 else "files"
        if count:
            return f"{count} {files} +{more} −{less}"
        return ""
    return ""


def _recorded(store: RunStore, report: RunReport, place: Workspace) -> tuple[int, ...] | None:
    """Return the numbers of changed files, added lines and removed lines from the records of the
    attempts, which is faster than asking git. Return None if only git can tell.

    The last checkpoint shows whether anything is changed. The work report of the first attempt
    compares the workdir with the commit at which the run began. Its numbers are valid for the run
    if that commit is still HEAD and nothing else wrote to the workdir.
    """
    attempts = report.attempts
    checkpoints = store.checkpoints(report.id)
    last = max(checkpoints, key=lambda each: each.number, default=None)
    if last is None or not attempts or (last.why, last.attempt) != ("end", attempts[-1].number):
        return None
    saved = last.workdir
    if not saved.head or saved.head != place.base or not saved.whole:
        return None
    if not (saved.changed or saved.untracked):
        return 0, 0, 0
    first, *later = [each.work for each in attempts]
    others = any(each.drift or each.files for each in attempts)
    if others or any(each.why in SAFETY_REASONS for each in checkpoints):
        return None
    if any(not each.observed or each.file_count for each in later):
        return None
    if first.against != f"commit {place.base[:12]}" or len(first.files) != first.file_count:
        return None
    if _converts(first.files, place) or not all(
        _is_plain(each, attempts[0].directory, Path(place.path)) for each in first.files
    ):
        return None
    return first.file_count, first.lines_added, first.lines_removed


def _converts(files: tuple[FileOfWork, ...], place: Workspace) -> bool:
    """Return whether git attributes may apply to one of these files. If they do, git may convert
    line endings before it counts the lines, or count no lines at all."""
    from perdure.workspace.worktree import common_directory, git_directory

    top = Path(place.path)
    common = common_directory(place.repo) if place.repo else None
    admins = [top / ".git", git_directory(top), common]
    above = set[Path]()
    for file in files:
        above.update((top / file.name).parents)
    named = [parent / ".gitattributes" for parent in above if parent.is_relative_to(top)]
    named += [admin / "info/attributes" for admin in admins if admin is not None]
    return any(path.is_file() and path.stat().st_size for path in named)


def _is_plain(file: FileOfWork, directory: str, top: Path) -> bool:
    """Return whether git counts the lines of a file as the work report does.

    The two differ in these cases. git counts a deleted and an added file as one renamed file. git
    does not count files in repositories inside the workdir. git also does not count a file that
    differs from its commit only because of a filter of the repository. Such a file was last changed
    before the attempt began, so the result is False for every file of that age. `directory`: the
    attempt's own directory, whose `prompt.md` has the time when the attempt began.
    """
    parts = file.name.split("/")
    if file.state not in ("added", "changed") or ".git" in parts or ".gitmodules" in parts:
        return False
    try:
        return was_changed_since(top / file.name, Path(directory) / "prompt.md") is True
    except (OSError, ValueError):
        return False  # The file is gone, or its name is not UTF-8.


def summary(report: RunReport, changes: str = "") -> str:
    """Return a run's state on one line, such as `✓ greeting · 2m14s · $0.42 · 3 files +41 −7 ·
    continued ✓`."""
    attempts, used, state = report.attempts, report.usage, report.state
    worked = sum((each.ended or each.started) - each.started for each in attempts)
    receipt = attempts[-1].receipt if attempts else None
    words = ""
    if receipt:
        words = VERDICTS.get(receipt.verdict, receipt.verdict)
        words += " ✓" if receipt.verdict == "native" else ""
    doubted = state == "succeeded" and report.verdict in DOUBTS
    parts = [
        report.name,
        "" if state == "succeeded" else state,
        f"{len(attempts)} attempts" if len(attempts) > 1 else "",
        span(worked // 1000) if attempts else "",
        dollars(used.cost_usd, estimated=used.estimated) if attempts else "",
        changes,
        words,
        f"work {report.verdict}" if doubted else "",
    ]
    return f"{SYMBOLS.get(state, '')} {' · '.join(part for part in parts if part)}"


def say_summary(report: RunReport, changes: str = "") -> None:
    """Print the summary on standard error, with the state in its color."""
    line = fitted(wrapped(summary(report, changes), columns(sys.stderr)), sys.stderr)
    with suppress(OSError):
        print(paint(line, STATES.get(report.state, ""), sys.stderr), file=sys.stderr, flush=True)
