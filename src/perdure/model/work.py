"""The work report: everything that perdure knows about an attempt's work.

`work_report` makes one from the journal. `show --json`, the API, the dashboard, the forge comment
and the TaskRun's status show it. Import this module by its full name, so that `perdure ls` does not
load it. Names, commands and texts in a report come from an agent and are not trusted. Clean them
before they are shown.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

FILES = 100
"""Maximum number of changed files that a work report lists."""
COMMITS = 20
"""Maximum number of commits that a work report lists."""
NAME = 300
"""Maximum length of a file's name or a commit's subject in a work report, in characters."""


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
    """A file that differs from its state at the beginning of the attempt."""

    name: str
    state: str
    """Kind of the difference: `added`, `changed` or `deleted`."""
    added: int | None = None
    """Number of added lines; None for a binary file."""
    removed: int | None = None


class CommitOfWork(WorkPart, frozen=True):
    """A commit that did not exist when the attempt began."""

    id: str
    subject: str


class CheckOfWork(WorkPart, frozen=True):
    """A check that was run: the task's verify command, or a test command that the agent ran."""

    command: str
    by: str
    """The runner of the check: `verify` (perdure) or `agent`."""
    code: int | None = None
    passed: bool | None = None
    """Whether the check passed. None if the check's end was not seen, or if the exit code may be
    that of another command (as in a pipe)."""


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
    """State of the process after the turn: `ended`, `kept` or `unknown`."""


class EffectOfWork(WorkPart, frozen=True):
    """An effect outside the workdir. `ok` says whether the command succeeded; None if its end was
    not seen."""

    kind: str
    command: str
    ok: bool | None = None
    possible: bool = False
    """Whether the effect is only possible, because the command may have stayed local."""


class LastWordOfWork(WorkPart, frozen=True):
    """The agent's final report in the fixed form that was requested (`last_word`). It is never
    evidence."""

    status: str
    """The agent's status of its work: `done`, `nothing_to_do`, `incomplete` or `blocked`."""
    summary: str
    questions: tuple[str, ...] = ()
    follow_ups: tuple[str, ...] = ()


class WorkReport(msgspec.Struct, frozen=True, kw_only=True):
    """The work of one attempt, and the verdict on it."""

    verdict: WorkVerdict | None = None
    """Verdict on the work; null while the attempt is running."""
    reasons: tuple[str, ...] = ()
    """The reasons for the verdict, in sentences."""
    observed: bool = False
    """Whether perdure compared the workdir with its state at the beginning of the attempt. If not,
    the changed files and commits are unknown."""
    against: str = ""
    """State with which the files were compared, such as `checkpoint 3` or `commit 1a2b3c4d5e6f`."""
    files: tuple[FileOfWork, ...] = ()
    """The first `FILES` changed files."""
    file_count: int = 0
    lines_added: int = 0
    lines_removed: int = 0
    commits: tuple[CommitOfWork, ...] = ()
    """The newest `COMMITS` commits, newest first."""
    commit_count: int = 0
    pushed: bool | None = None
    """Whether the last commit was pushed to a server, as far as the local repository shows; null if
    there is no commit."""
    uncommitted: int = 0
    """Number of files with changes that are not committed."""
    checks: tuple[CheckOfWork, ...] = ()
    denied: tuple[DeniedCall, ...] = ()
    ruled: tuple[str, ...] = ()
    """Descriptions of the saved rules that decided about the agent's calls instead of a person."""
    question: str = ""
    left: tuple[LeftProcess, ...] = ()
    effects: tuple[EffectOfWork, ...] = ()
    last_message: str = ""
    """Beginning of the agent's last message. The attempt's `result` is the complete text."""
    last_word: LastWordOfWork | None = None
    """The agent's final report in a fixed form; null if none was requested or given."""
    contradictions: tuple[str, ...] = ()
    """Claims of the agent that the facts contradict, in sentences."""
