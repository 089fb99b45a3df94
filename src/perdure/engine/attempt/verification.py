"""Checks the result of an attempt after the agent reports that it is done: the files that the task
requires, and then the task's own check, a shell command in the workdir. Called by `finish`; plans
use the check of files.

Required files must exist, and other named files must not contain conflict marks any more. Otherwise
the attempt fails, and the next attempt tells the agent, in the same conversation, which files are
missing or still marked. Files are only read. For a link, only the existence of its target is
checked.

The task's own check is started as an agent is, under a shim and with a directory and a log of its
own. None of its processes survives the end of the check, a stop, or the death of the supervisor. An
interrupted check does not count and is run again from its beginning. Every check gets the agent's
environment without the agent's credentials. The output of a check is limited in length and
redacted; the agent gets an excerpt.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from msgspec import Struct

from perdure.engine.attempt.engine import Engine, agent_environment, is_passed, process_tag
from perdure.engine.attempt.live_attempt import LiveAttempt
from perdure.errors import PerdureError
from perdure.host import process
from perdure.host.redaction import TELLING, Redactor
from perdure.model import Attempt, Command, Exit, Outcome, OutcomeKind, TaskRun, TaskSpec
from perdure.model.events import AnyEvent, VerifyEnded, VerifyStarted
from perdure.patterns import late_pattern
from perdure.protocols import AgentDriver
from perdure.rules.excerpt import excerpt, telling_line

LOG_CAP = 64 * 1024**2
"""Maximum output of a check, in bytes. A check that writes more is ended and counts as failed."""
LOOKED_AT = 2 * 1024**2
"""Number of bytes that are read from a long log: one quarter from its beginning, three quarters
from its end."""
TRIES = 3
"""Maximum number of times that a check is started. A check whose shim was killed is started again,
because the result of the check is then unknown."""
GRACE_S = 5.0
NO_TOOL = (126, 127)
"""Exit codes of a shell for a command that it cannot run or cannot find."""
TOO_LONG, TOO_MUCH = 124, 125


class _Checked(Struct, frozen=True):
    """The result of a check: how it ended, its output, and its duration in seconds."""

    end: Exit
    said: str
    seconds: float

    @property
    def code(self) -> int:
        if self.end.cause in ("deadline", "flooded"):
            if self.end.cause == "deadline":
                return TOO_LONG
            return TOO_MUCH
        if self.end.code is not None:
            return self.end.code
        return 128 + (self.end.signal or 0)


def verify(engine: Engine, opened: LiveAttempt) -> tuple[Outcome, list[AnyEvent]]:
    """Run the check until it ends. Return the attempt's outcome, and the events for the journal.

    A stop ends the check, whether a person requested it or perdure itself is ending. The attempt is
    then cancelled and the check has no result. Raises LostLease.
    """
    run = opened.claim.run
    command = engine.redactor.text(run.spec.verify)
    for _ in range(TRIES):
        directory = _directory(opened)
        log = directory / "stdout"
        engine.store.record(opened.claim, [VerifyStarted(command=command, log=str(log))])
        try:
            checked = _run(engine, opened, directory)
        except (OSError, PerdureError) as error:
            if not (directory / "shim.json").exists():
                return Outcome(
                    kind=OutcomeKind.CONFIG_ERROR, detail=f"the check cannot be started: {error}"
                ), []
            raise
        if checked.end.cause != "lost":
            break
    else:
        return Outcome(
            kind=OutcomeKind.LOST, detail=f"the end of the check was not observed, {TRIES} times"
        ), []
    if checked.end.cause == "stopped":
        return Outcome(
            kind=OutcomeKind.CANCELLED,
            detail="it was stopped on request while its work was checked",
        ), []
    if checked.end.cause == "lapsed":
        return Outcome(
            kind=OutcomeKind.LOST,
            detail="its host had lost the shared database for too long while its work was checked",
        ), []
    outcome = _outcome_of(run.spec.verify, checked)
    failed = outcome.kind is OutcomeKind.VERIFY_FAILED
    earlier = []
    for attempt in engine.store.attempts(run.id):
        if attempt.number < opened.claim.attempt:
            earlier.append(attempt)
    ended = VerifyEnded(
        code=checked.code,
        output=excerpt(checked.said),
        command=command,
        round=failed_checks(earlier, run.context_version) + 1 if failed else 0,
        rounds=run.spec.verify_rounds,
        seconds=round(checked.seconds, 1),
        log=str(log),
    )
    return outcome, [ended]


def failed_checks(attempts: Sequence[Attempt], context_version: int) -> int:
    """Return the number of failed checks for this version of the instructions."""
    kinds = []
    for attempt in attempts:
        if attempt.outcome is not None and attempt.context_version == context_version:
            kinds.append(attempt.outcome.kind)
    return kinds.count(OutcomeKind.VERIFY_FAILED)


def _outcome_of(command: str, checked: _Checked) -> Outcome:
    """Return the outcome of the attempt that follows from the result of the check."""
    short = " ".join(command.split())[:120]
    if checked.code == 0:
        return Outcome(kind=OutcomeKind.SUCCEEDED, detail=f"verified by `{short}`", code=0)
    said = telling_line(checked.said)
    words = f": {said}" if said else ""
    if checked.code in NO_TOOL:
        detail = f"the check `{short}` cannot be run (exit code {checked.code}){words}"
        return Outcome(kind=OutcomeKind.CONFIG_ERROR, detail=detail, code=checked.code)
    if checked.code == TOO_LONG and checked.end.cause == "deadline":
        how = f"took longer than {checked.seconds:.0f} s and was ended"
    elif checked.code == TOO_MUCH and checked.end.cause == "flooded":
        how = f"wrote more than {LOG_CAP >> 20} MiB and was ended"
    else:
        how = f"failed with exit code {checked.code}"
    return Outcome(
        kind=OutcomeKind.VERIFY_FAILED, detail=f"`{short}` {how}{words}", code=checked.code
    )


def _run(engine: Engine, opened: LiveAttempt, directory: Path) -> _Checked:
    spec = opened.claim.run.spec
    began = process.boottime()
    running = process.start(
        Command(
            argv=("/bin/sh", "-c", 'exec 2>&1; exec /bin/sh -c "$1"', "sh", spec.verify), stdin=b""
        ),
        directory=directory,
        cwd=Path(opened.workspace.path),
        env=check_environment(engine.environ, opened.claim.run, opened.driver),
        mark=process_tag(opened.attempt),
        deadline_s=spec.verify_timeout_s,
        grace_s=min(engine.grace_s, GRACE_S),
        lock_fd=opened.lock_fd,
        output_cap=LOG_CAP,
    )
    end, _ = engine.heartbeat(opened.claim).wait(running, engine.stopping)
    return _Checked(end, said_in(engine.redactor, directory, end), process.boottime() - began)


def check_environment(
    environ: Mapping[str, str], run: TaskRun, driver: AgentDriver
) -> dict[str, str]:
    """Return the agent's environment without the agent's own credentials. Variables that the task
    names (`--env`) are kept, because they are meant for all programs of the task."""
    whole = agent_environment(environ, driver, run)
    named = {*run.spec.pass_env, *run.spec.env}
    found = {}
    for name, value in whole.items():
        if name in named or not (is_passed(name, driver.variables) and TELLING.search(name)):
            found[name] = value
    return found


def _directory(opened: LiveAttempt) -> Path:
    """Return the path of a new directory for a check. Checks that a dead supervisor had started are
    killed first."""
    number = 1
    while (directory := opened.directory / f"verify-{number}").exists():
        begun = process.find(directory)
        if begun is not None:
            begun.kill()
        number += 1
    return directory


def said_in(redactor: Redactor, directory: Path, end: Exit) -> str:
    """Return the output of a command that has ended, with secrets and control characters removed.
    Secrets are redacted in the log file and again in the returned text, because an escape sequence
    inside a secret hides the secret in the file."""
    for name in ("stdout", "stderr"):
        redactor.file(directory / name)
    return redactor.text(_read(directory / "stdout") or end.stderr_tail)


def _read(log: Path) -> str:
    """Return the log as text without control characters. Of a long log only the beginning and the
    end are returned."""
    try:
        with log.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            if size <= LOOKED_AT:
                return _plain(file.read(LOOKED_AT))
            head = file.read(LOOKED_AT // 4)
            file.seek(size - LOOKED_AT * 3 // 4)
            tail = file.read(LOOKED_AT * 3 // 4)
    except OSError:
        return ""
    return f"{_plain(head)}\n[... {size - LOOKED_AT} bytes are not looked at ...]\n{_plain(tail)}"


def _plain(output: bytes) -> str:
    """Return the output as text without escape sequences and control characters. If a line was
    overwritten (carriage return), only its last version is returned."""
    return process.plain(b"\n".join(map(_last_version, output.split(b"\n"))))


def _last_version(line: bytes) -> bytes:
    for piece in reversed(line.split(b"\r")):
        if piece.strip():
            return piece
    return b""


MARK = late_pattern(rb"^(<{7}|>{7}) .*$|^={7}\r?$", re.MULTILINE)
LARGEST = 64 << 20
SHOWN = 20


def missing_files_sentence(spec: TaskSpec, workdir: Path) -> str:
    """Return a sentence that tells the agent which files are missing or still have conflict marks;
    empty if there are none."""
    missing = [name for name in spec.files if not _is_there(workdir / name)]
    marked = [name for name in spec.conflicts if _is_marked(workdir / name)]
    if missing:
        said = [f"the task was to create {_listed(missing)}, which does not exist"]
    else:
        said = []
    said += [f"conflict marks of a merge are still in {_listed(marked)}"] if marked else []
    return "; ".join(said)


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        return False


def _is_marked(path: Path) -> bool:
    """Return whether the file has all three marks of a conflict. The separator alone may be the
    underline of a heading."""
    try:
        if path.is_symlink() or not path.is_file():
            return False
        with path.open("rb") as file:
            found = {mark[0][:1] for mark in MARK.finditer(file.read(LARGEST))}
    except OSError:
        return False
    return found >= {b"<", b"=", b">"}


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(map(repr, names[:SHOWN])) + more
