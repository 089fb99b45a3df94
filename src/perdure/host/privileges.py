"""Gives agents a user account of their own: the setting `run_as`, `USER:GROUP`.

`settings()` of the command line calls `adopt` before a command does anything. After that, perdure
runs as the agents' user, with the service's group as its effective group. All files that agents
must not see are in directories that belong to root and to that group. A process that perdure starts
for an agent loses the group permanently. Guarantees, on Linux: without the group, no path leads to
those directories. The kernel also refuses to show or trace a process that has the group (ptrace(2):
all user and group ids must be equal). Processes of one user can still send each other signals.

The real group remains the agents' group, so that a process can drop the service's group without
special rights. The shim and the keeper start the agent with its effective ids reset (`shim.spawn`).
All other code that starts a process for an agent gives it the group that `dropped` returns.
"""

from __future__ import annotations

import grp
import os
import pwd
import stat
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from msgspec import Struct

from perdure.errors import UsageError
from perdure.host import system

HOW = "docs: how-to/separate-user"


class AgentIdentity(Struct, frozen=True, kw_only=True):
    """The user and group ids that `run_as` names. `group` is the agents' own group. `service` is
    the group that can read the files that agents must not see. `home` is empty if the system has no
    account for the user."""

    user: int
    group: int
    service: int
    name: str
    home: str

    @property
    def is_in_force(self) -> bool:
        """Whether this process already runs with these user and group ids."""
        return (os.getresuid(), os.getresgid()[:2]) == (
            (self.user,) * 3,
            (self.group, self.service),
        )


def identity(run_as: str) -> AgentIdentity:
    """Return the ids that `USER:GROUP` names. Both parts may be names or numbers. Raises
    UsageError."""
    # The guarantees rely on setresgid(2) of Linux.
    if system.IS_PORTABLE:
        raise UsageError("run_as needs Linux", "unset run_as (docs: reference/platforms)")
    user, _, group = run_as.partition(":")
    try:
        if user.isdecimal():
            entry = pwd.getpwuid(int(user))
        else:
            entry = pwd.getpwnam(user)
    except KeyError:
        entry = None
    if entry is None and not user.isdecimal():
        raise UsageError(f"run_as names the user {user!r}, which this system does not have", HOW)
    try:
        if group.isdecimal():
            service = int(group)
        else:
            service = grp.getgrnam(group).gr_gid
    except KeyError:
        raise UsageError(
            f"run_as names the group {group!r}, which this system does not have", HOW
        ) from None
    found = AgentIdentity(
        user=entry.pw_uid if entry else int(user),
        group=entry.pw_gid if entry else int(user),
        service=service,
        name=entry.pw_name if entry else user,
        home=entry.pw_dir if entry else "",
    )
    if 0 in (found.user, found.group, found.service):
        raise UsageError("run_as needs an ordinary user and an ordinary group, and not root's", HOW)
    # If the agents' user were a member of the service's group, an agent could get the group back
    # with newgrp(1).
    if entry:
        groups = os.getgrouplist(found.name, found.group)
    else:
        groups = [found.group]
    if found.service in groups:
        raise UsageError(
            f"run_as: the user {found.name} must not be a member of the group {group}",
            "name a group that only perdure has",
        )
    return found


def adopt(run_as: str, root: Path, state: Path, config: Path | None) -> None:
    """Switch this process permanently to the user and group of `run_as`, and set its environment to
    match.

    `config`: the user's settings file, if there is one. Does nothing if the process already has
    these ids. Raises UsageError if the switch is impossible, or if agents could still read
    perdure's files after it.
    """
    wanted = identity(run_as)
    if wanted.is_in_force:
        return
    if os.geteuid() != 0:
        raise UsageError(
            f"run_as = {run_as!r} needs perdure to be started as root; it then gives up root's "
            f"rights",
            "start it as root, also for reading: sudo perdure ls",
        )
    home = wanted.home or os.environ.get("HOME", "")
    if not home or not Path(home).is_dir() or Path(home).stat().st_uid != wanted.user:
        raise UsageError(
            f"run_as: {home or 'HOME'} is not a home of user {wanted.name}",
            "make the directory and give it to the user; if the system has no account for the "
            "user, set HOME to the directory",
        )
    kept = [state] if config is None else [state, config]
    problems = list(chain.from_iterable(_openings(path, wanted) for path in kept))
    if problems:
        raise UsageError(f"run_as would protect nothing from agents: {problems[0]}", HOW)
    if not state.exists():
        state.mkdir(parents=True, mode=0o700)
        state.chmod(0o770)
        os.chown(state, 0, wanted.service)
    os.setgroups([])
    os.setresgid(wanted.group, wanted.service, wanted.service)
    os.setresuid(wanted.user, wanted.user, wanted.user)
    _make_root(wanted, root)
    if config is not None and not os.access(config, os.R_OK, effective_ids=True):
        raise UsageError(
            f"run_as: the group {wanted.service} cannot read {config}",
            f"chgrp {wanted.service} {config} && chmod 0640 {config}",
        )
    if config is not None:
        os.environ["XDG_CONFIG_HOME"] = str(config.parents[1])
    os.environ |= {
        "HOME": home,
        "USER": wanted.name,
        "LOGNAME": wanted.name,
        "PERDURE_STATE": str(state),
        "PERDURE_ROOT": str(root),
    }


def require(run_as: str) -> None:
    """Raise UsageError if `run_as` is set but this process does not have its ids. Without this
    check, agents would run with all rights of perdure."""
    if run_as and not identity(run_as).is_in_force:
        raise UsageError(
            f"run_as = {run_as!r} works only with the commands perdure serve, work, run and plan",
            "unset run_as here, or start runs by the command perdure",
        )


def _make_root(wanted: AgentIdentity, root: Path) -> None:
    """Create `root`, the parent directory of all workdirs. Call this as the agents' user: the
    superuser would follow a link that an agent put in the path. The setgid bit of `root` gives the
    directories that perdure creates in it the agents' group instead of the service's."""
    if root.exists():
        return
    os.setegid(wanted.group)
    try:
        root.mkdir(parents=True, mode=0o700)
        root.chmod(0o2700)
    except PermissionError as error:
        raise UsageError(
            f"run_as: user {wanted.name} cannot make {root}",
            f"install -d -o {wanted.user} -g {wanted.group} -m 2700 {root}",
        ) from error
    finally:
        os.setegid(wanted.service)


def _openings(path: Path, wanted: AgentIdentity) -> Iterator[str]:
    """Yield a sentence for each permission of `path`, or of a directory above it, that would give
    agents access to `path`."""
    own = path.stat() if path.exists() else None
    if own and (own.st_mode & 0o007 or wanted.group == own.st_gid or wanted.user == own.st_uid):
        yield (
            f"{path} must belong to root and the group {wanted.service}, and be closed to others: "
            f"chown root:{wanted.service} {path} && chmod o-rwx {path}"
        )
    for each in path.parents:
        if not each.exists():
            continue
        found = each.stat()
        if found.st_uid == wanted.user:
            yield f"{each}, above {path}, belongs to the agents' user"
        everybody = found.st_mode & stat.S_IWOTH and not found.st_mode & stat.S_ISVTX
        if everybody or (found.st_gid == wanted.group and found.st_mode & stat.S_IWGRP):
            yield f"{each}, above {path}, can be written by agents"


def is_separate() -> bool:
    """Return whether this process has a group that its agents do not get."""
    return os.getgid() != os.getegid()


def dropped() -> int | None:
    """Return the group for a child that must not have the service's group, as an argument for
    `Popen(group=)`. Return None if there is no group to drop."""
    if is_separate():
        return os.getgid()
    return None


def kept() -> int | None:
    """Return the service's group for a child that works only for the service, such as git. Return
    None if there is no such group. The group becomes the child's real group too. So children with
    this group may inspect each other, and a shell does not drop the group."""
    if is_separate():
        return os.getegid()
    return None


def drop() -> None:
    """Give up the service's group in this process, before it executes another program."""
    if is_separate():
        os.setresgid(os.getgid(), os.getgid(), os.getgid())
