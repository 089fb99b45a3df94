"""The work report: what perdure knows about an attempt's work, declared once for every surface.

`work_report` makes one from the journal. `show --json`, the API, the dashboard, the forge comment
and the TaskRun's status show it. Import it by its full name, so that `perdure ls` does not load it.
The names, commands and texts in it come from an agent: they are hostile, and have to be cleaned
where they are shown.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

FILES = 100
"""Number of changed files that are listed."""
COMMITS = 20
"""Number of commits that are listed."""
NAME = 300
"""Number of characters of a file's name or a commit's subject."""


class WorkVerdict(StrEnum):
    """The verdict on an attempt's work, based on evidence. The rules are in
    docs/reference/work_report.md."""

    DONE = "done"
    NOTHING_TO_DO = "nothing_to_do"
    INCOMPLETE = "incomplete"
    BLOCKED = "blocked"
    REFUSED = "refused"
    UNVERIFIED = "unverified"


class WorkPart(msgspec.Struct, frozen=True, kw_only=True):
    """The base class of the parts of a work report."""


class FileOfWork(WorkPart, frozen=True):
    """A file that differs from what it was when the attempt began."""

    name: str
    state: str
    """`added`, `changed` or `deleted`."""
    added: int | None = None
    """Number of lines; None for a binary file."""
    removed: int | None = None


class CommitOfWork(WorkPart, frozen=True):
    """A commit that was not there when the attempt began."""

    id: str
    subject: str


class CheckOfWork(WorkPart, frozen=True):
    """A check that was run: the task's own, or a test command of the agent."""

    command: str
    by: str
    """`verify` or `agent`."""
    code: int | None = None
    passed: bool | None = None
    """Whether the check passed. None: the exit code is not the check's own (as in a pipe), or the
    check's end was not seen."""


class DeniedCall(WorkPart, frozen=True):
    """A tool call that was denied, with its main argument."""

    name: str
    input: str
    count: int = 1


class LeftProcess(WorkPart, frozen=True):
    """A process that the agent left running when its turn ended."""

    command: str
    age_s: float
    became: str
    """Its fate: `ended`, `kept` or `unknown`."""


class EffectOfWork(WorkPart, frozen=True):
    """An effect outside the workdir. `ok` is None if its end was not seen."""

    kind: str
    command: str
    ok: bool | None = None
    possible: bool = False
    """Whether the effect is only possible, because the command is not known to be local."""


class LastWordOfWork(WorkPart, frozen=True):
    """The agent's own account, in the form that was requested (`last_word`). It is never
    evidence."""

    status: str
    """`done`, `nothing_to_do`, `incomplete` or `blocked`."""
    summary: str
    questions: tuple[str, ...] = ()
    follow_ups: tuple[str, ...] = ()


class WorkReport(msgspec.Struct, frozen=True, kw_only=True):
    """The work of one attempt, and the verdict on it."""

    verdict: WorkVerdict | None = None
    """Null while the attempt is running."""
    reasons: tuple[str, ...] = ()
    """The reasons for the verdict, in sentences."""
    observed: bool = False
    """Whether the workdir was compared after the attempt. If not, files and commits are unknown."""
    against: str = ""
    """The base of the file comparison, such as `checkpoint 3` or `commit 1a2b3c4d5e6f`."""
    files: tuple[FileOfWork, ...] = ()
    """The first `FILES` changed files."""
    file_count: int = 0
    lines_added: int = 0
    lines_removed: int = 0
    commits: tuple[CommitOfWork, ...] = ()
    """The newest `COMMITS` commits, newest first."""
    commit_count: int = 0
    pushed: bool | None = None
    """Whether the last commit is on a server, as far as is known here; null if there is no
    commit."""
    uncommitted: int = 0
    """Number of files that differ from the last commit."""
    checks: tuple[CheckOfWork, ...] = ()
    denied: tuple[DeniedCall, ...] = ()
    ruled: tuple[str, ...] = ()
    """The saved rules that decided about the agent's calls instead of a person, in words."""
    question: str = ""
    left: tuple[LeftProcess, ...] = ()
    effects: tuple[EffectOfWork, ...] = ()
    last_message: str = ""
    """The beginning of the agent's last words. The attempt's `result` has all of them."""
    last_word: LastWordOfWork | None = None
    """The agent's account in a fixed form; null if none was requested or given."""
    contradictions: tuple[str, ...] = ()
    """Claims of the agent that the facts contradict, in sentences."""
