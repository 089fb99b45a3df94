"""Parses git's output: the status, the list of worktrees, and error messages.

The output contains text from repositories and servers, so it is not trusted. Lists are split only
at NUL bytes, and control characters are removed from error messages.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from msgspec import Struct

from perdure.errors import GitFailed
from perdure.patterns import late_pattern

_STEERING = late_pattern("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")

_UNREACHED = (
    "Could not resolve host|Could not resolve hostname|Failed to connect|Couldn't "
    "connect|Connection refused|Connection timed out|"
    "Connection reset|Network is unreachable|No route to host|Operation too slow|error: 50[234]|"
    # Messages of ssh if the server closes the connection before it identifies itself, or has too
    # many connections.
    "kex_exchange_identification|Connection closed by|Timeout, server .* not responding|"
    # Messages for https if the server closes the connection in the TLS handshake (GnuTLS and
    # OpenSSL) or during its response.
    "Empty reply from server|non-properly terminated|pull function|SSL_ERROR_SYSCALL|unexpected "
    "eof|transfer closed with"
)

_HINTS = (
    (
        r"terminal prompts disabled|could not read Username",
        "It asks for credentials. Set PERDURE_GIT_TOKEN and PERDURE_GIT_TOKEN_HOST, or give your "
        "own git a credential helper (gh auth setup-git), or use the ssh address.",
    ),
    (
        r"Authentication failed|HTTP Basic: Access denied|error: 403",
        "The credentials were refused. Check the token and its rights.",
    ),
    (
        "Host key verification failed",
        "ssh does not know this server's key. Connect once with ssh HOST and compare the key, or "
        "name a file with it in the setting git_ssh_known_hosts.",
    ),
    (
        r"Permission denied \([a-z,-]+\)",
        "The server accepts none of your ssh keys. Add one to your ssh agent (ssh-add), or name a "
        "key in the setting git_ssh_key.",
    ),
    (
        "UNPROTECTED PRIVATE KEY FILE",
        "ssh does not use a key that others can read: chmod 600 on its file.",
    ),
    (
        "No user exists for uid",
        "ssh needs a user that the system knows. Use an https address, or add the user.",
    ),
    (
        r"dubious ownership",
        "The repository belongs to another user. Run perdure as its owner, or change the owner.",
    ),
    (
        r"No space left on device",
        "The disk is full. Free some space and try again; nothing was lost.",
    ),
    (
        r"Read-only file system|Permission denied",
        "Check who owns the directory, and whether it can be written.",
    ),
    (_UNREACHED, "Check the network and try again."),
    (
        r"transport '.*' not allowed",
        "A partial clone lacks objects. Fetch them first: git fetch --refetch --no-filter",
    ),
    (
        r"certificate",
        "If the forge has certificates of its own, name their file: ca_file in your configuration, "
        "or PERDURE_CA_FILE.",
    ),
    (
        r"unable to update url base from redirection",
        "The address redirects. Give the repository's final URL.",
    ),
)


_SSH_FAILED = "Could not read from remote repository"
"""git's message for every failure of ssh. The reason is in the lines before it, which ssh wrote."""


class GitStatus(Struct, frozen=True):
    """The parsed output of `git status`. `head` is empty before the first commit. `branch` is empty
    on a detached HEAD."""

    head: str
    branch: str
    changed: tuple[str, ...]
    untracked: tuple[str, ...]


class Worktree(Struct, frozen=True):
    """One entry of `git worktree list`: its directory, and the full name of its branch or ""."""

    path: Path
    branch: str


def unreachable(error: GitFailed) -> bool:
    """Return whether git failed because it could not reach the server. Return False if the server
    was reached and refused the request."""
    return re.search(_UNREACHED, error.stderr) is not None


def wants_login(error: GitFailed) -> bool:
    """Return whether git failed because the server requires a login and git had none."""
    return (
        re.search("terminal prompts disabled|could not read (Username|Password)", error.stderr)
        is not None
    )


def parse_status(out: bytes) -> GitStatus:
    """Return the status in the output of `git status --porcelain=v2 --branch -z --no-renames`."""
    head = branch = ""
    changed: list[str] = []
    untracked: list[str] = []
    for line in os.fsdecode(out).split("\0"):
        if line.startswith("# branch.oid ") and not line.endswith("(initial)"):
            head = line[13:]
        elif line.startswith("# branch.head ") and not line.endswith("(detached)"):
            branch = line[14:]
        elif line.startswith("1 "):
            changed.append(line.split(" ", 8)[8])
        elif line.startswith("u "):
            changed.append(line.split(" ", 10)[10])
        elif line.startswith("? "):
            untracked.append(line[2:])
    return GitStatus(head, branch, tuple(changed), tuple(untracked))


def parse_worktrees(out: bytes) -> Iterator[Worktree]:
    """Yield the entries in the output of `git worktree list --porcelain -z`. Without -z, a newline
    in a path could forge entries."""
    for block in os.fsdecode(out).split("\0\0"):
        fields = dict(line.partition(" ")[::2] for line in block.split("\0") if line)
        if "worktree" in fields:
            yield Worktree(Path(fields["worktree"]), fields.get("branch", ""))


def failure(
    argv: Sequence[str], args: Sequence[str], cwd: Path, code: int, err: bytes
) -> GitFailed:
    """Return the error for a git call that exited with `code`. Its message contains the reason that
    git printed, without characters that would control a terminal."""
    # ssh ends the lines of its messages with CR LF.
    said = err.decode("utf-8", "replace").replace("\r\n", "\n")
    text = _STEERING.sub("?", said).strip()
    printed = text.split("\n")
    lines = [line for line in printed if line.startswith(("fatal:", "error:"))]
    line = lines[0] if lines else printed[-1]
    if line:
        cause = line.partition(": ")[2] or line
    elif code < 0:
        cause = f"ended by signal {-code}"
    else:
        cause = f"exit code {code}"
    if _SSH_FAILED in cause:
        said_by_ssh = []
        for line in text.partition(f"fatal: {_SSH_FAILED}")[0].split("\n"):
            if line.strip():
                said_by_ssh.append(line)
        cause = said_by_ssh[-1].strip() if said_by_ssh else cause
    hint = next((hint for pattern, hint in _HINTS if re.search(pattern, text)), "")
    return GitFailed(
        f"git {args[0]} failed in {cwd}: {cause.rstrip('.')}.",
        argv=tuple(argv),
        code=code,
        stderr=text,
        hint=hint,
    )


def split_names(out: bytes) -> list[str]:
    """Return the names in the output of a git command with -z."""
    return [part for part in os.fsdecode(out).split("\0") if part]


def join_names(names: Iterable[str]) -> bytes:
    """Return the names as input for a git command with -z --stdin."""
    return b"".join(os.fsencode(name) + b"\0" for name in names)


def one_a_line(words: Iterable[str]) -> str:
    """Return a text with one word on each line, as git reads it from its standard input."""
    return "".join(f"{word}\n" for word in words)


def excluded(commits: Iterable[str]) -> list[str]:
    """Return the arguments that exclude the history of these commits from git's list of commits."""
    return [f"^{commit}" for commit in commits]
