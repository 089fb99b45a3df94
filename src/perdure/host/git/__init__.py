"""Runs git. No other module starts a git process.

Most of its callers are in `workspace`. Every call gets an environment of its own. Variables whose
names begin with GIT_ are not inherited (a leaked GIT_DIR overrides `-C`), and the configuration of
the system and the user is not read. The settings of `environment` are passed as environment
configuration, which overrides anything that an agent wrote into a repository. So hooks, fsmonitor,
external diffs, signing programs, credential helpers and automatic maintenance do not run, and no
transport is allowed unless the call asks for it. One gap remains: git still runs the filters that a
repository's own configuration names (see docs/reference/trust.md).

Each call is limited. Its stdin is empty or comes from the caller, its output has a maximum size,
and at its deadline the whole process group is killed. git and its children inherit the descriptors
in `keep`. So a lock of a killed supervisor stays held until its last git process has ended.
"""

from __future__ import annotations

import contextlib
import os
import re
import selectors
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import IO

from msgspec import Struct, field
from msgspec.structs import replace

from perdure.errors import GitFailed, GitSaidTooMuch, WorkspaceError
from perdure.host.git import environment as hardening
from perdure.host.git import on_disk
from perdure.host.git.output import (
    GitStatus,
    Worktree,
    failure,
    parse_status,
    parse_worktrees,
    unreachable,
)
from perdure.host.privileges import kept

__all__ = [
    "OLDEST",
    "Git",
    "GitResult",
    "GitStatus",
    "Worktree",
    "parse_status",
    "parse_worktrees",
    "require",
    "run_as_user",
    "unreachable",
]

OLDEST = (2, 38)
"""The oldest supported git version. safe.bareRepository came with git 2.38, configuration by
environment (GIT_CONFIG_COUNT) with 2.31. An older git would silently ignore the settings of
`environment`."""

_CAP = 64 << 20
_STDERR_KEPT = 64 << 10
_TRIES = 5
_READS = frozenset({"diff", "diff-files", "ls-files", "status"})
"""git commands that only read when they get the arguments that perdure passes. They can safely be
repeated."""


class GitResult(Struct, frozen=True):
    """The result of a git process: its exit code and its two outputs as bytes. Of stderr, only the
    last 64 KiB are kept."""

    code: int
    stdout: bytes
    stderr: bytes

    @property
    def text(self) -> str:
        """The standard output as text, without the newline at its end. Decoded with
        `os.fsdecode`."""
        return os.fsdecode(self.stdout).removesuffix("\n")


class Git(Struct, frozen=True, kw_only=True):
    """Runs git commands in one directory. If `git_dir` is given, git does not search for a
    repository. Otherwise git searches in the parent directories, but stops below `ceiling`."""

    cwd: Path
    git_dir: Path | None = None
    work_tree: Path | None = None
    ceiling: Path | None = None
    keep: tuple[int, ...] = ()
    """Numbers of file descriptors that git and its children inherit."""
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)
    """Variables of the caller, from which PATH, TMPDIR and the proxies are taken."""
    memory: Path | None = None
    """Path of a cache file, which names the git program whose version was already checked; None: no
    cache."""

    def at(self, cwd: Path, git_dir: Path | None = None, work_tree: Path | None = None) -> Git:
        """Return a Git with the same settings for another directory."""
        return replace(self, cwd=cwd, git_dir=git_dir, work_tree=work_tree)

    def run(
        self,
        *args: str,
        stdin: bytes | IO[bytes] = b"",
        allow: Collection[str] = (),
        settings: Sequence[tuple[str, str]] = (),
        env: Mapping[str, str] | None = None,
        timeout_s: float = 120.0,
        cap: int = _CAP,
        good: Collection[int] = (0,),
    ) -> GitResult:
        """Run one git command and return its result.

        `allow`: transports that this call may use (`https`, `ssh`, `http`, `file`). Raises
        GitFailed for an exit code that is not in `good`, and for a call that exceeds its deadline
        or its output limit. Raises WorkspaceError if there is no usable git.

        If another process truncates a file that git has mapped, git dies of SIGBUS. The call is
        then repeated, but only if that is safe. It is safe for commands that only read, and for
        calls with an index file of perdure's own. The lock file of that index is removed first.
        """
        program = require(self.environ.get("PATH", os.defpath), self.memory)
        argv = [program]
        if self.git_dir is not None:
            argv.append(f"--git-dir={self.git_dir}")
        if self.work_tree is not None:
            argv.append(f"--work-tree={self.work_tree}")
        argv.extend(args)
        environment = hardening.environment(self.environ, self.ceiling, allow, settings) | dict(
            env or {}
        )
        index = (env or {}).get("GIT_INDEX_FILE")
        for _ in range(_TRIES if isinstance(stdin, bytes) and (index or args[0] in _READS) else 1):
            code, out, err = _spawn(argv, self.cwd, environment, stdin, self.keep, timeout_s, cap)
            if code != -signal.SIGBUS:
                break
            if index:
                Path(f"{index}.lock").unlink(missing_ok=True)
        if code not in good:
            raise failure(argv, args, self.cwd, code, err)
        return GitResult(code, out, err)

    def commit(self, revision: str) -> str:
        """Return the full id of the commit that `revision` names, or "" if there is none."""
        return self.run(
            "rev-parse",
            "--verify",
            "--quiet",
            "--end-of-options",
            revision + "^{commit}",
            good=(0, 1, 128),
        ).text

    def head(self) -> tuple[str, str]:
        """Return the commit id and the branch of HEAD. The branch is empty on a detached HEAD.
        Raises GitFailed before the first commit."""
        if self.git_dir is not None and (known := on_disk.head(self.git_dir)) is not None:
            return known
        oid, _, name = self.run("rev-parse", "HEAD", "--symbolic-full-name", "HEAD").text.partition(
            "\n"
        )
        return oid, name.removeprefix("refs/heads/") if name != "HEAD" else ""

    def refs(self, *patterns: str) -> dict[str, str]:
        """Return a dict that maps the full name of each ref to its object id. A ref is included if
        it matches a pattern, or if it is in the directory that a pattern names."""
        lines = self.run(
            "for-each-ref", "--format=%(objectname) %(refname)", "--", *patterns
        ).text.split("\n")
        found = {}
        for line in filter(None, lines):
            oid, _, name = line.partition(" ")
            found[name] = oid
        return found

    def ref(self, name: str) -> str:
        """Return the object id of the ref with this full name, or "" if there is none."""
        if self.git_dir is not None and (known := on_disk.refs(self.git_dir, name)) is not None:
            return known.get(name, "")
        return self.refs(name).get(name, "")

    def set_ref(self, name: str, oid: str, why: str, *, new: bool = False) -> None:
        """Set a ref, given by its full name, to `oid`. `new`: fail if the ref exists. `why` is the
        reflog message. Raises GitFailed."""
        self.run(
            "update-ref",
            "--create-reflog",
            "-m",
            why,
            "--",
            name,
            oid,
            *(["0" * len(oid)] if new else []),
        )

    def status(self, *, write_index: bool = False) -> GitStatus:
        """Return the files that differ from HEAD. Submodules and nested repositories are never
        entered. `write_index`: git may refresh the index file."""
        args = (
            "--porcelain=v2",
            "--branch",
            "-z",
            "--untracked-files=all",
            "--ignore-submodules=all",
            "--no-renames",
            "--no-ahead-behind",
        )
        return parse_status(
            self.run(
                "status", *args, env={"GIT_OPTIONAL_LOCKS": "1" if write_index else "0"}
            ).stdout
        )

    def worktrees(self) -> tuple[Worktree, ...]:
        """Return all working directories of the repository, the main one first."""
        return tuple(parse_worktrees(self.run("worktree", "list", "--porcelain", "-z").stdout))

    def user(self) -> dict[str, str]:
        """Return `user.name` and `user.email` from the configuration of the user and of this
        repository. The configuration is only read: no program that it names is run."""
        own = {}
        for name in ("HOME", "XDG_CONFIG_HOME"):
            if name in self.environ:
                own[name] = self.environ[name]
        config = _global_config(own) if own else None
        if self.git_dir is not None or (self.cwd == self.ceiling and on_disk.is_outside(self.cwd)):
            known = on_disk.user(self.git_dir, config)
            if known is not None:
                return known
        own["GIT_CONFIG_GLOBAL"] = str(config or "/dev/null")
        found = self.run(
            "config", "--null", "--get-regexp", r"^user\.(name|email)$", env=own, good=(0, 1)
        ).stdout
        user = {}
        for entry in os.fsdecode(found).split("\0"):
            name, newline, value = entry.partition("\n")
            if newline:
                user[name] = value
        return user


_CHECKED_PROGRAMS: dict[str, str] = {}
"""Cache of `require`: for each value of PATH, the path of a git program that is new enough."""


def require(path: str, memory: Path | None = None) -> str:
    """Return the path of the git program on this PATH.

    `memory`: a file that caches which program's version was checked. Raises WorkspaceError if git
    is missing or older than `OLDEST`.
    """
    if path not in _CHECKED_PROGRAMS:
        program = shutil.which("git", path=path)
        if program is None:
            raise WorkspaceError(
                "git is not installed.", f"Install git {OLDEST[0]}.{OLDEST[1]} or newer."
            )
        sign = _signature(program) if memory is not None else ""
        if memory is None or not sign or not _remembers(memory, sign):
            _check_version(program)
            if memory is not None and sign:
                _remember(memory, sign)
        _CHECKED_PROGRAMS[path] = program
    return _CHECKED_PROGRAMS[path]


def _check_version(program: str) -> None:
    said = subprocess.run(
        [program, "version"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=30,
        check=False,
        env={"LC_ALL": "C"},
    )
    found = re.search(rb"(\d+)\.(\d+)", said.stdout)
    if found is None or (int(found[1]), int(found[2])) < OLDEST:
        has = os.fsdecode(said.stdout).strip() or "of unknown version"
        raise WorkspaceError(
            f"This git is too old to be run safely: {has}.",
            f"Install git {OLDEST[0]}.{OLDEST[1]} or newer.",
        )


def _signature(program: str) -> str:
    """Return a text that changes when the program file is replaced. Return "" if the program is a
    script, because a script may start a different git each time."""
    try:
        with Path(program).open("rb") as file:
            seen = os.fstat(file.fileno())
            if file.read(4) != b"\x7fELF":
                return ""
    except OSError:
        return ""
    times = f"{seen.st_mtime_ns} {seen.st_ctime_ns}"
    return f"{OLDEST[0]}.{OLDEST[1]} {seen.st_dev} {seen.st_ino} {seen.st_size} {times}\n"


def _remembers(memory: Path, sign: str) -> bool:
    try:
        return memory.read_text(encoding="ascii") == sign
    except (OSError, UnicodeError):
        return False


def _remember(memory: Path, sign: str) -> None:
    """Write the cache file, if its directory exists. Errors are ignored. Without the file, the next
    process checks the version again."""
    fresh = memory.with_name(f"{memory.name}.{os.getpid()}.{threading.get_ident()}")
    with contextlib.suppress(OSError):
        fresh.write_text(sign, encoding="ascii")
        fresh.replace(memory)


def run_as_user(
    *args: str, stdin: bytes, environ: Mapping[str, str], timeout_s: float
) -> GitResult:
    """Run git with the configuration of the system and the user, outside of any repository. Return
    the result. Raises GitFailed, and WorkspaceError if there is no usable git.

    GIT_DIR names a directory that does not exist, so that git does not search for a repository, not
    even in parent directories (git 2.39). GIT_ASKPASS is empty, so that git starts no program that
    opens a window.
    """
    own = {}
    for name, value in environ.items():
        if not name.startswith(("GIT_", "SSH_ASKPASS")):
            own[name] = value
    own |= {
        "GIT_DIR": "/nonexistent",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_ASKPASS": "",
        "GCM_INTERACTIVE": "never",
        "GH_PROMPT_DISABLED": "1",
    }
    argv = [require(environ.get("PATH", os.defpath)), *args]
    code, out, err = _spawn(argv, Path("/"), own, stdin, (), timeout_s, _CAP)
    if code:
        raise failure(argv, args, Path("/"), code, err)
    return GitResult(code, out, err)


def _global_config(own: Mapping[str, str]) -> Path:
    home = Path(own.get("HOME", "/nonexistent"))
    first = home / ".gitconfig"
    if first.exists():
        return first
    return Path(own.get("XDG_CONFIG_HOME") or home / ".config") / "git/config"


def _spawn(
    argv: Sequence[str],
    cwd: Path,
    env: Mapping[str, str],
    stdin: bytes | IO[bytes],
    keep: Sequence[int],
    timeout_s: float,
    cap: int,
) -> tuple[int, bytes, bytes]:
    with contextlib.ExitStack() as stack:
        source: int | IO[bytes] = subprocess.DEVNULL
        if not isinstance(stdin, bytes):
            source = stdin
        elif stdin:
            from perdure.host.system.files import scratch_file

            source = stack.enter_context(scratch_file())
            source.write(stdin)
            source.seek(0)
        try:
            process = subprocess.Popen(
                argv,
                cwd=cwd,
                env=env,
                stdin=source,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=keep,
                start_new_session=True,
                group=kept(),
            )
        except OSError as error:
            raise GitFailed(
                f"git could not be started in {cwd}: {error.strerror}.", argv=tuple(argv)
            ) from error
        stack.enter_context(process)
        try:
            out, err = _collect(process, argv, timeout_s, cap)
            return process.wait(), out, err
        finally:
            if process.poll() is None:
                _end(process)


def _collect(
    process: subprocess.Popen[bytes], argv: Sequence[str], timeout_s: float, cap: int
) -> tuple[bytes, bytes]:
    assert process.stdout is not None and process.stderr is not None
    out, err = bytearray(), bytearray()
    deadline = time.monotonic() + timeout_s
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ, out)
        selector.register(process.stderr, selectors.EVENT_READ, err)
        while selector.get_map():
            left = deadline - time.monotonic()
            ready = selector.select(left) if left > 0 else []
            if not ready and time.monotonic() >= deadline:
                raise GitFailed(
                    f"git did not end within {timeout_s:g} s and was ended.",
                    argv=tuple(argv),
                    code=-signal.SIGKILL,
                )
            for key, _ in ready:
                chunk = os.read(key.fd, 1 << 16)
                if not chunk:
                    selector.unregister(key.fileobj)
                key.data.extend(chunk)
            if len(out) > cap:
                raise GitSaidTooMuch(
                    f"git wrote more than {cap} bytes of output and was ended.",
                    argv=tuple(argv),
                    code=-signal.SIGKILL,
                )
            del err[:-_STDERR_KEPT]
    return bytes(out), bytes(err)


def _end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
