"""The errors of perdure itself.

If an agent's work fails, this is recorded as an `Outcome` and is never an exception. The errors
here are failures of everything around the agent. Each has a sentence for a person (what went wrong,
and where) and, in `hint`, what to do next. Every interface maps them in one place: the command line
to `exit_code`, the HTTP API to a status, the operator to a condition.
"""

from __future__ import annotations

import re

_TRANSIENT = (
    r"could not resolve|failed to connect|timed out|connection (?:reset|refused|closed)|early "
    r"eof|rpc failed|too slow|error: (?:429|5\d\d)|"
    r"no route to host|is unreachable|empty reply|transfer closed|non-properly terminated|pull "
    r"function|ssl_error_syscall|unexpected eof"
)
"""Pattern of git's error messages about a failed connection to a server. It is compiled on first
use, because most commands see no such error."""


class PerdureError(Exception):
    """The base class of perdure's errors. `str(error)` is the message. `hint` names the command or
    step that may help, or is empty."""

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class UsageError(PerdureError):
    """The request is invalid: a bad name, an empty prompt, flags that exclude each other."""

    exit_code = 2


class ConfigError(PerdureError):
    """The configuration has problems. `problems` lists all of them, each with the place where it
    was found."""

    exit_code = 2

    def __init__(self, problems: list[str], hint: str = "") -> None:
        super().__init__("; ".join(problems), hint)
        self.problems = problems


class AgentMissing(PerdureError):
    """The agent is unknown, or its program is not installed."""

    exit_code = 5


class NotFound(PerdureError):
    """The run, session, repository or base does not exist."""

    exit_code = 5


class Conflict(PerdureError):
    """Another process or task is using the run or the workdir, or the same key was used before with
    another spec."""

    exit_code = 6


class InUse(Conflict):
    """Another program is using the workdir. If `brief` is true, that program will probably release
    the workdir within moments."""

    def __init__(self, message: str, hint: str = "", *, brief: bool = False) -> None:
        super().__init__(message, hint)
        self.brief = brief


class Diverged(Conflict):
    """A branch was also changed elsewhere. The agent or a person has to merge the two sides."""


class LostLease(Conflict):
    """This worker no longer holds the attempt: another one took it over. This worker must not write
    anything more."""


class WorkspaceError(PerdureError):
    """A working directory could not be made, found or kept."""

    exit_code = 7


class GitFailed(WorkspaceError):
    """git ended with an error. `argv` is the command line, `code` the exit code, and `stderr` git's
    error output."""

    def __init__(
        self,
        message: str,
        *,
        argv: tuple[str, ...] = (),
        code: int = 0,
        stderr: str = "",
        hint: str = "",
    ) -> None:
        super().__init__(message, hint)
        self.argv, self.code, self.stderr = argv, code, stderr

    @property
    def transient(self) -> bool:
        """Whether the command may succeed later, because the failure was one of the network or the
        forge."""
        return bool(re.search(_TRANSIENT, self.stderr, re.IGNORECASE))


class GitSaidTooMuch(GitFailed):
    """git was stopped because its output was larger than the caller accepts."""


class StoreError(PerdureError):
    """The state directory or the database cannot be used: read-only, full, corrupt, on a network
    file system.

    If `transient` is true, trying again later may help. Examples are a lock held by another
    process, a server that restarts, and a full disk.
    """

    exit_code = 7

    def __init__(self, message: str, hint: str = "", *, transient: bool = True) -> None:
        super().__init__(message, hint)
        self.transient = transient


class DiskFull(StoreError):
    """There is too little free space to start anything new."""


class DriverError(PerdureError):
    """A driver of another package could not be loaded, or broke its contract."""

    exit_code = 7


class CapsuleError(PerdureError):
    """A capsule cannot be written, or the given file cannot be trusted or used as one."""

    exit_code = 7


class NotVerified(PerdureError):
    """A signed receipt did not pass verification: it was changed or truncated, signed by another
    key, or is about another run or commit."""

    exit_code = 8


class StoreAway(CapsuleError):
    """The checkpoint store does not answer, or denies access, so its contents are unknown. Trying
    again later may help, or the owner has to act."""


class ForgeError(PerdureError):
    """A forge did not carry out a request to its API. The subclass says how to react: wait, ask a
    person, or give up."""

    exit_code = 1


class ForgeUnavailable(ForgeError):
    """The forge is temporarily unavailable: no answer, an error on its side, or too many requests.
    Wait at least `retry_s` seconds before asking again."""

    exit_code = 75

    def __init__(self, message: str, hint: str = "", *, retry_s: float = 30.0) -> None:
        super().__init__(message, hint)
        self.retry_s = retry_s


class ForgeDenied(ForgeError):
    """The forge did not accept the token, or the token does not allow this. A person has to act;
    asking again does not help.

    If `everywhere` is true, the forge would refuse every request with this token, not only this
    one.
    """

    exit_code = 4

    def __init__(self, message: str, hint: str = "", *, everywhere: bool = False) -> None:
        super().__init__(message, hint)
        self.everywhere = everywhere


class ForgeRefused(ForgeError):
    """The forge understood the request and refused it. The same request will always be refused."""
