"""What can go wrong with perdure itself.

The failure of an agent's work is an `Outcome`, never an exception. These are the failures of the
machine around it. Each carries one sentence for a person (what, where) and, in `hint`, what to do
next. Every door maps them once: the command line to `exit_code`, the HTTP API to a status, the
operator to a condition.
"""

from __future__ import annotations

import re

_TRANSIENT = re.compile(
    r"could not resolve|failed to connect|timed out|connection (?:reset|refused|closed)|early "
    r"eof|rpc failed|too slow|error: (?:429|5\d\d)|"
    r"no route to host|is unreachable|empty reply|transfer closed|non-properly terminated|pull "
    r"function|ssl_error_syscall|unexpected eof",
    re.IGNORECASE,
)


class PerdureError(Exception):
    """The root. `str(error)` is the sentence; `hint` is the next command or step, or empty."""

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


NO_PROC = (
    "perdure needs /proc, which is not mounted here: it tells by it which processes live",
    "Mount it: mount -t proc proc /proc",
)
"""What is wrong on a machine, in a chroot or a container without it, and what to do."""


class UsageError(PerdureError):
    """What was asked cannot be meant: a bad name, an empty prompt, flags that exclude each
    other."""

    exit_code = 2


class ConfigError(PerdureError):
    """The configuration has problems; `problems` lists all of them, each with its place."""

    exit_code = 2

    def __init__(self, problems: list[str], hint: str = "") -> None:
        super().__init__("; ".join(problems), hint)
        self.problems = problems


class AgentMissing(PerdureError):
    """The agent is unknown, or its program is not installed."""

    exit_code = 5


class NotFound(PerdureError):
    """No such run, session, repository or base."""

    exit_code = 5


class Conflict(PerdureError):
    """Somebody else is on it: a second perdure on the same task, the same key with another spec."""

    exit_code = 6


class InUse(Conflict):
    """Somebody is in the workdir; `brief`: for a moment only."""

    def __init__(self, message: str, hint: str = "", *, brief: bool = False) -> None:
        super().__init__(message, hint)
        self.brief = brief


class Diverged(Conflict):
    """A branch went on elsewhere: what is here and what is there have to be merged, by the agent or
    a person."""


class LostLease(Conflict):
    """This worker no longer holds the attempt: another one took it over. Nothing more may be
    written."""


class WorkspaceError(PerdureError):
    """A working directory could not be made, found or kept."""

    exit_code = 7


class GitFailed(WorkspaceError):
    """git ended with an error. `argv`, `code` and `stderr` say which call."""

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
        """Whether time may mend it: the network or the forge did not answer."""
        return bool(_TRANSIENT.search(self.stderr))


class GitSaidTooMuch(GitFailed):
    """git was ended because it said more than the caller has room for."""


class StoreError(PerdureError):
    """The state directory or the database cannot be used: read-only, full, corrupt, on a network
    file system.

    `transient`: whether time may mend it, as a lock that is held, a server that restarts, a full
    disk.
    """

    exit_code = 7

    def __init__(self, message: str, hint: str = "", *, transient: bool = True) -> None:
        super().__init__(message, hint)
        self.transient = transient


class DiskFull(StoreError):
    """There is too little room to begin anything new."""


class DriverError(PerdureError):
    """A driver from outside could not be loaded, or broke its contract."""

    exit_code = 7


class CapsuleError(PerdureError):
    """A capsule cannot be written, or what is given as one cannot be trusted or used."""

    exit_code = 7


class NotVerified(PerdureError):
    """A signed receipt is not what it is taken for: changed, cut, signed by another key, or about
    something else."""

    exit_code = 8


class StoreAway(CapsuleError):
    """The checkpoint store does not answer, or does not let perdure in: it is not known what lies
    there. Time or its owner may mend it."""


class ForgeError(PerdureError):
    """A forge did not do what its API was asked. The kinds say what follows: wait, a person is
    needed, or it can never be done."""

    exit_code = 1


class ForgeUnavailable(ForgeError):
    """Not now: no answer, a fault on its side, or too many requests. To be asked again in `retry_s`
    seconds, and not before."""

    exit_code = 75

    def __init__(self, message: str, hint: str = "", *, retry_s: float = 30.0) -> None:
        super().__init__(message, hint)
        self.retry_s = retry_s


class ForgeDenied(ForgeError):
    """The token is not taken, or does not reach so far. A person has to do something; asking again
    does not help.

    `everywhere`: nothing at all can be asked with this token."""

    exit_code = 4

    def __init__(self, message: str, hint: str = "", *, everywhere: bool = False) -> None:
        super().__init__(message, hint)
        self.everywhere = everywhere


class ForgeRefused(ForgeError):
    """The forge understood the request and will not do it."""
