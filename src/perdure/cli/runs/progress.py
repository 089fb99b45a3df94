"""Shows a run's progress on standard error, for `run`, `retry`, `update` and `attach`.

`Progress` prints the records of the run's journal as lines. On a terminal there is also a status
line below them. `say_summary` prints the last line: the run's state, time, cost and changes.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perdure.cli.style import STATES, SYMBOLS, fitted, paint, wrapped
from perdure.cli.text import clean, clock, columns, dollars, one_line, shown_path, tokens
from perdure.errors import PerdureError
from perdure.host.volumes import was_changed_since
from perdure.model import (
    SAFETY_REASONS,
    Backend,
    ContinuityPolicy,
    OutcomeKind,
    TaskRun,
    Usage,
    Workspace,
)
from perdure.model.events import (
    AttemptEnded,
    AttemptStarted,
    CheckpointMissed,
    CollisionSeen,
    ContextSeen,
    CopyMissed,
    LimitSeen,
    Record,
    RetrySeen,
    RunFinished,
    Said,
    ToolEnded,
    ToolStarted,
    TurnEnded,
    UsageCounted,
    VerifyEnded,
    WritesLost,
)
from perdure.patterns import late_pattern
from perdure.rules.log_line import line_of
from perdure.rules.requests import WAITING
from perdure.rules.text import VERDICTS, span

if TYPE_CHECKING:
    from rich.live import Live

    from perdure.engine.attempt import Engine
    from perdure.model.reports import PlanResult, RunReport, WorkspaceOfRun
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
            found = _STAT.search(
                service.diff(engine.store, engine.workspaces, engine.host, report.id, stat=80)
            )
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
    if _converts(first.files, place):
        return None
    for file in first.files:
        if not _is_plain(file, attempts[0].directory, Path(place.path)):
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
    named += [admin / "info/attributes" for admin in filter(None, admins)]
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
    return f"{SYMBOLS.get(state, '')} {' · '.join(filter(None, parts))}"


def say_summary(report: RunReport, changes: str = "") -> None:
    """Print the summary on standard error, with the state in its color."""
    line = fitted(wrapped(summary(report, changes), columns(sys.stderr)), sys.stderr)
    with suppress(OSError):
        print(paint(line, STATES.get(report.state, ""), sys.stderr), file=sys.stderr, flush=True)


SHOWN = 600
CAUGHT_UP = 20


def _changes_needed(report: RunReport) -> str:
    """Return a flag to add to the command for a retry. Without this flag, the retry would end like
    the last attempt. Return an empty string if no such flag is known."""
    outcomes = [each.outcome for each in report.attempts if each.outcome]
    kind = outcomes[-1].kind if outcomes else ""
    if kind == OutcomeKind.CONTINUITY_LOST and report.policy == ContinuityPolicy.STRICT:
        return " --continuity disclose"
    if kind == OutcomeKind.BUDGET_SPENT:
        return " --budget-usd DOLLARS"
    return ""


def apply_commands(name: str, place: WorkspaceOfRun | PlanResult, head: str) -> str:
    """Return the commands that apply a run's changes to the user's checkout, as text. The text
    includes `git merge` only if the branch is in the user's repository and has new commits."""
    moved = place.backend == Backend.WORKTREE and head not in ("", place.base)
    merge = f", or git merge {clean(place.branch)}" if moved else ""
    return f"perdure apply {name}{merge}"


def style_of(record: Record) -> str:
    """Return the style of a record's line. Failures are red, and minor notes are dim."""
    match record.event:
        case AttemptStarted():
            return "strong"
        case AttemptEnded(outcome=outcome):
            if outcome.kind is OutcomeKind.SUCCEEDED:
                return "good"
            return "bad"
        case RunFinished(state=state):
            return STATES.get(state, "")
        case Said():
            return ""
        case ToolStarted():
            return "busy"
        case ToolEnded() | CollisionSeen() | CheckpointMissed() | CopyMissed() | WritesLost():
            return "bad"
        case RetrySeen() | LimitSeen():
            return "warn"
        case VerifyEnded(code=code):
            if code == 0:
                return "good"
            return "bad"
        case _:
            return "dim"


class Progress:
    """Shows a run's progress to a person. No method raises an error if the terminal is lost."""

    def __init__(self) -> None:
        self._live: Live | None = None
        self._began = time.monotonic()
        self._name = ""
        self._attempt = 0
        self._turns = 0
        self._tool = ""
        self._used: dict[int, Usage] = {}
        self._held = 0
        self.stopping: Callable[[], bool] = lambda: False

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live

            self._live = Live(
                console=Console(stderr=True),
                refresh_per_second=4,
                transient=True,
                get_renderable=self._status,
            )
            self._live.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.__exit__(None, None, None)
            self._live = None

    def introduce(self, run: TaskRun) -> None:
        """Print the run's name, its agent and its workdir."""
        self._name, self._attempt = run.name, run.attempt
        if run.workspace:
            place = f" in {shown_path(run.workspace.path, sys.stderr)}"
        else:
            place = ""
        self._say(f"{run.name}: {run.spec.agent}{place}")

    def __call__(self, record: Record) -> None:
        self._count(record)
        self._show(record)

    def catch_up(self, records: Sequence[Record], began_ms: int, now_ms: int) -> None:
        """Process records that were written before this command started. All of them count in the
        totals, but only the last ones are shown."""
        self._began -= max(0, now_ms - began_ms) / 1000
        for record in records:
            self._count(record)
        for record in list(filter(line_of, records))[-CAUGHT_UP:]:
            self._show(record)

    def print_line(self, text: str) -> None:
        """Print a line that does not come from a record."""
        self._say(text)

    def conclude(self, report: RunReport, changes: str = "") -> None:
        """Print where the result is, or what to do next. Then print the summary. `changes`
        describes the changes in the workdir, or is empty."""
        self._advise(report)
        if report.state != "running":
            say_summary(report, changes)

    def _advise(self, report: RunReport) -> None:
        name, place = report.name, report.workspace
        if report.state == "succeeded":
            there = f" on {one_line(report.host, 100)}" if report.host else ""
            self._say(f"the result is in {shown_path(place.path, sys.stderr)}{there}")
            if place.branch:
                self._say(
                    f"look at it: perdure diff {name}; apply it: "
                    f"{apply_commands(name, place, place.head)}"
                )
        elif waiting := [each for each in report.conditions if each.type == WAITING]:
            self._say(one_line(waiting[0].message, 240))
        elif report.state == "queued":
            self._say(
                f"{name} waits until {clock(report.run_after)}; perdure retry {name} starts it "
                "at once"
            )
        elif report.state == "running":
            self._say(
                f"{name} is still running; perdure attach {name} follows it, perdure stop {name} "
                "ends it"
            )
        else:
            for condition in report.conditions:
                self._say(f"{condition.type}: {one_line(condition.message, 240)}")
            self._say(f"next: perdure why {name}, perdure retry {name}{_changes_needed(report)}")

    def _count(self, record: Record) -> None:
        self._attempt = record.attempt or self._attempt
        match record.event:
            case ToolStarted(name=name, summary=summary):
                self._tool = f"{name}: {summary}" if summary else name
            case ToolEnded() | Said():
                self._tool = ""
            case TurnEnded():
                self._turns += 1
                self._tool = ""
            case ContextSeen(tokens=held) if held:
                self._held = held
            case UsageCounted(usage=usage):
                self._used[record.attempt] = usage
            case _:
                pass

    def _show(self, record: Record) -> None:
        text = line_of(record)
        if text:
            self._say(text if len(text) <= SHOWN else f"{text[:SHOWN]} …", style_of(record))

    def _say(self, text: str, style: str = "") -> None:
        text = fitted(wrapped(text, columns(sys.stderr)), sys.stderr)
        painted = "\n".join(paint(line, style, sys.stderr) for line in text.split("\n"))
        try:
            if self._live is not None:
                from rich.text import Text

                self._live.console.print(Text.from_ansi(painted), soft_wrap=True)
            else:
                print(painted, file=sys.stderr, flush=True)
        except OSError:
            self._live = None

    def _status(self) -> Any:
        from rich.spinner import Spinner
        from rich.text import Text

        minutes, seconds = divmod(int(time.monotonic() - self._began), 60)
        parts = [
            self._name,
            "stopping…" if self.stopping() else f"attempt {self._attempt}",
            f"turn {self._turns + 1}",
            one_line(self._tool, 50),
        ]
        used = sum(self._used.values(), Usage())
        spent = dollars(used.cost_usd, estimated=used.estimated)
        parts += [
            f"{tokens(used.input)} in, {tokens(used.output)} out",
            spent,
            f"{minutes}:{seconds:02}",
        ]
        parts += [f"context {tokens(self._held)}"] if self._held else []
        if not hasattr(self, "_spinner"):
            self._spinner = Spinner("dots")
        line = fitted(" · ".join(filter(None, parts)), sys.stderr)
        self._spinner.update(text=Text(line, no_wrap=True, overflow="ellipsis"))
        return self._spinner
