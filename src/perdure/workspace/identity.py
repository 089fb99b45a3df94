"""Checks names of services, tasks, runs, agents and branches, and chooses their paths on disk.
Pure: reads nothing, runs nothing.

Names come from people, forges and agents. Each kind of name has a grammar, and an invalid name is
refused with a sentence. Even valid names can collide or have a special meaning as file names, so
paths contain a hash of the identity. A workdir's name begins with readable words, reduced to
characters that every file system accepts. Only the two names in `{root}/{service}/.task/{task}` are
used unchanged; their grammar is narrow enough.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import unicodedata
from pathlib import Path
from urllib.parse import unquote, urlsplit

from msgspec import Struct

from perdure.errors import UsageError
from perdure.host.git.servers import PORTS
from perdure.patterns import late_pattern

_NAME = late_pattern(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_BRANCH = late_pattern(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,199}")
_SAVED_BRANCH = late_pattern(r"[^\x00-\x20\x7f~^:?*\[\\]{1,1000}")
_NO_REF = late_pattern(r"\A[-/.]|\.\.|@\{|//|/\.|\.lock(/|\Z)|[/.]\Z|\AHEAD\Z")
"""Pattern of the strings that git allows in no branch name (git-check-ref-format(1))."""
_BASE = late_pattern(r"[A-Za-z0-9@][A-Za-z0-9._/@{}~^+-]{0,199}")
_OID = late_pattern(r"[0-9a-f]{40}|[0-9a-f]{64}")
_SCP = late_pattern(
    r"(?:(?P<user>[^@:/\s]*)@)?(?P<host>[^@:/\s]{2,}):(?P<path>(?!//)[^:].*)", re.DOTALL
)
"""Pattern of `user@host:path`, and of `host:path` with a host from the user's ssh configuration. A
single letter is not a host, because `C:path` is a drive on other systems."""
_HOST = late_pattern(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?")
_PATH = late_pattern(r"(/[A-Za-z0-9~_+-][A-Za-z0-9._~+-]*)+/?")
_REPOSITORY_CHARS, _TASK_CHARS = 16, 24
"""Maximum lengths, in characters, of the readable parts of a workdir's name: the repository's part,
and the task's part."""
_LOOPBACK = frozenset({"127.0.0.1", "localhost"})
"""Hosts for which http is allowed, because requests to them do not leave this machine."""


class Places(Struct, frozen=True):
    """All paths below the root. No other module composes such a path."""

    root: Path

    @property
    def own(self) -> Path:
        return self.root / ".perdure"

    def task(self, service: str, task: str) -> Path:
        return self.root / service / ".task" / task

    def work(self, name: str) -> Path:
        return self.own / "work" / name

    def owner(self, name: str) -> Path:
        """Return the file that records which workspace owns the workdir name `name`. The file
        contains the workspace's identity."""
        return self.own / "locks" / f"{name}.owner"

    def stage(self, workspace: str) -> Path:
        """Return the directory in which a workdir is built, before it is renamed to its final
        path."""
        return self.own / "work" / f".stage-{workspace}"

    def cache(self, repository: str) -> Path:
        return self.own / "repos" / f"{repository}.git"

    def view(self, workspace: str) -> Path:
        """Return perdure's own git directory for inspecting a workdir whose git directory belongs
        to an agent."""
        return self.own / "views" / f"{workspace}.git"

    def checkpoint_repository(self, workspace: str) -> Path:
        """Return perdure's own git directory for the checkpoints of a workdir."""
        return self.own / "shelves" / f"{workspace}.git"

    @property
    def spares(self) -> Path:
        """Return the directory of the spare checkouts (see `spares`)."""
        return self.own / "spares"

    def lock(self, name: str) -> Path:
        return self.own / "locks" / f"{name}.lock"

    @property
    def warm(self) -> Path:
        """Return the directory that registers the agents that wait in a workdir for their next
        turn."""
        return self.own / "warm"

    @property
    def git(self) -> Path:
        """Return the file that records which git program was already checked and is new enough."""
        return self.own / "git"

    def making(self, name: str) -> Path:
        """Return the path of a mark file. The mark file exists while the workdir or cache `name` is
        being made. If it still exists later, that work was interrupted."""
        return self.own / "locks" / f"{name}.making"

    def checkout(self, workspace: str) -> Path:
        """Return the file that describes the kept git index of a new worktree (see
        `snapshot.checkout`). The file exists until the first checkpoint."""
        return self.own / "locks" / f"{workspace}.checkout"

    def trash(self, name: str) -> Path:
        return self.own / "trash" / name

    @property
    def scratch(self) -> Path:
        return self.own / "tmp"


class Remote(Struct, frozen=True):
    """A repository at a URL. All spellings of one address have the same `key`. `scheme` is the URL
    scheme, which names the transport."""

    url: str
    scheme: str
    key: str


def identify(*parts: str) -> str:
    """Return 26 lower-case letters and digits: 130 bits of SHA-256 over the parts. Lengths are
    hashed too, so `("ab", "c")` and `("a", "bc")` give different results."""
    packed = b""
    for part in parts:
        raw = part.encode("utf-8", "surrogateescape")
        packed += len(raw).to_bytes(4, "big") + raw
    return base64.b32encode(hashlib.sha256(packed).digest()).decode("ascii")[:26].lower()


def workdir_name(repo: str, branch: str, identity: str, chars: int) -> str:
    """Return the name of a workdir: repository, task, and the first `chars` characters of the
    identity, as in `shop--greeting-7j4okh`. It has only lower-case ASCII letters, digits and inner
    hyphens. So no file system changes it or confuses it with another name. Its length is limited.
    """
    repository = re.split(r"[/:]", repo.rstrip("/"))[-1].removesuffix(".git")
    words = (
        _plain(repository, _REPOSITORY_CHARS) or "repo",
        _plain(branch.removeprefix("perdure/"), _TASK_CHARS) or "task",
    )
    return f"{'--'.join(words)}-{identity[:chars]}"


def _plain(text: str, chars: int) -> str:
    """Return the text in lower case, reduced to ASCII letters, digits and single inner hyphens; at
    most `chars` characters."""
    letters = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", letters).strip("-")[:chars].rstrip("-")


def check_name(kind: str, name: str) -> str:
    """Return the name of a service, task, run or agent if it is valid. Raises UsageError."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} is not a valid {kind} name.",
            "Use up to 64 letters, digits, '.', '_' and '-', beginning with a letter or digit.",
        )
    return name


def _is_branch_part(part: str) -> bool:
    return bool(part) and not part.startswith((".", "-")) and not part.lower().endswith(".lock")


def check_branch(branch: str) -> str:
    """Return a short branch name if it is valid by the rules of `git check-ref-format --branch`.
    Raises UsageError."""
    parts = branch.split("/")
    bad = (
        not _BRANCH.fullmatch(branch)
        or ".." in branch
        or branch.endswith(".")
        or not all(map(_is_branch_part, parts))
        or parts[0].lower() in ("refs", "head")
        or _OID.fullmatch(branch) is not None
    )
    if bad:
        hint = (
            "Use up to 200 letters, digits, '.', '_', '-' and '/', without '..', '.lock', 'refs/' "
            "and empty parts."
        )
        raise UsageError(f"{branch!r} is not a valid branch name.", hint)
    return branch


def check_saved_branch(branch: str) -> str:
    """Return the name of the branch on which a checkpoint was taken, if git allows that name.
    Raises UsageError.

    An agent or a user may choose any name, such as `fix/#12`. perdure only uses it below
    `refs/heads/`, so it needs no narrower grammar.
    """
    if not _SAVED_BRANCH.fullmatch(branch) or _NO_REF.search(branch):
        raise UsageError(
            f"{branch[:60]!r} is not a valid branch name.", "See: git help check-ref-format"
        )
    try:
        os.fsencode(branch)
    except UnicodeEncodeError:
        raise UsageError(f"{branch[:60]!r} is not a valid branch name.") from None
    return branch


def check_base(base: str) -> str:
    """Return `base` if it has the form of a branch, tag or commit to start from. Raises
    UsageError."""
    if not _BASE.fullmatch(base):
        raise UsageError(f"{base!r} is not a valid base.", "Name a branch, a tag or a commit.")
    return base


def is_oid(text: str) -> bool:
    return _OID.fullmatch(text) is not None


def is_remote(repo: str) -> bool:
    """Return whether the text is the address of a repository. Any other text is a local
    directory."""
    return (
        "://" in repo
        or "::" in repo
        or (not repo.startswith(("/", ".", "~")) and _SCP.fullmatch(repo) is not None)
    )


def local_path(repo: str) -> str:
    """Return the path in a file URL of this machine; return any other text unchanged. Raises
    UsageError for a file URL of another machine."""
    if not repo.lower().startswith("file:"):
        return repo
    try:
        parts = urlsplit(repo)
    except ValueError as error:
        raise UsageError(
            f"{repo!r} is not a repository address: {error}.", "Give its path."
        ) from None
    path = unquote(parts.path)
    if (
        parts.netloc.lower() not in ("", "localhost")
        or not path.startswith("/")
        or parts.query
        or parts.fragment
        or "\0" in path
    ):
        raise UsageError(
            f"{repo!r} names no directory on this machine.",
            "Give its path, or file:///path/of/the/repository.",
        )
    return path


def parse_remote(repo: str, allowed: frozenset[str]) -> Remote:
    """Parse and check an address. `allowed`: the accepted URL schemes; http to this machine is
    always accepted. Raises UsageError whose text never contains a secret."""
    shown = re.sub(r"(?<=//)[^/]*@", "...@", repo)
    scp = _SCP.fullmatch(repo)
    if scp:
        login = "" if scp["user"] is None else f"{scp['user']}@"
        repo = f"ssh://{login}{scp['host']}/{scp['path'].removeprefix('/')}"
    try:
        parts = urlsplit(repo)
        port = parts.port
    except ValueError as error:
        raise UsageError(
            f"{shown!r} is not a repository address: {error}.",
            "Give it as https://host/owner/repository.",
        ) from None
    scheme, host = parts.scheme.lower(), (parts.hostname or "").lower()
    if scheme not in allowed and not (scheme == "http" and host in _LOOPBACK):
        raise UsageError(
            f"Repositories are not fetched by the scheme {scheme!r}: {shown!r}.",
            f"Use {' or '.join(sorted(allowed))}.",
        )
    if parts.password is not None or (parts.username is not None and scheme != "ssh"):
        raise UsageError(
            f"The address holds credentials: {shown!r}.",
            "Leave them out; configure a token for the repository instead.",
        )
    user = parts.username or ""
    plain = (
        _HOST.fullmatch(host)
        and ".." not in host
        and _PATH.fullmatch(parts.path)
        and (not user or _NAME.fullmatch(user))
    )
    if scp and scp["path"].startswith("-"):
        plain = None
    # urlsplit silently drops some of these characters, so the original text is checked.
    if not plain or re.search(r"[?#\x00-\x20\x7f]", repo):
        raise UsageError(
            f"{shown!r} is not a repository address.", "Give it as https://host/owner/repository."
        )
    place = host if port in (None, PORTS.get(scheme)) else f"{host}:{port}"
    path = parts.path.rstrip("/")
    at = f"{user}@" if user else ""
    start = f"{scheme}://{at}{place}"
    if scp and not scp["path"].startswith("/"):
        # A relative path in the form `host:path` starts at the user's home on the server, while
        # `ssh://host/path` starts at the root. Forges treat both alike, but other servers do not,
        # so the form is kept.
        start, path = f"{at}{place}:", path.removeprefix("/")
    return Remote(f"{start}{path}", scheme, f"{start}{path.removesuffix('.git')}")
