"""Decides which runs a token may see, if the token is limited to some repositories or labels. Pure;
the server and the command that makes tokens call it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from itertools import product
from urllib.parse import urlsplit

import msgspec

_SCP = re.compile(r"(?:[^/@:]+@)?(?P<host>[^/@:]+):(?P<path>(?!//).*)")
_WILD = re.compile(r"[*?\[]")
_UNPLAIN = re.compile(r"%|//|(?:^|/)\.{1,2}(?:/|$)|[\\\x00-\x20\x7f]")
"""Pattern of an unsafe part of a path, such as `..` or `%`. Because of it, a server or git could
open another path than the one that was written."""


class AccessLimits(msgspec.Struct, frozen=True):
    """The limits of a token. If both fields are empty, the token sees everything.

    Each of `repositories` is a pattern for `owner/name`, for `host/owner/name`, or for an absolute
    path on the server. `*` also matches slashes, as in the rules of `[agents.NAME]`. Patterns are
    case-sensitive, except for the host. `labels` are pairs of a name and a pattern of the value. A
    run must match one of the repositories and all of the labels.
    """

    repositories: tuple[str, ...] = ()
    labels: tuple[tuple[str, str], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.repositories or self.labels)

    def see(self, repo: str, labels: Mapping[str, str]) -> bool:
        """Return whether the token may see a run with these labels in this repository (an address
        or a path)."""
        return self.has_repository(repo) and self.has_labels(labels)

    def has_repository(self, repo: str) -> bool:
        if not self.repositories:
            return True
        names = names_of(repo)
        pairs = product(names, self.repositories)
        return any(fnmatchcase(name, pattern) for name, pattern in pairs)

    def has_labels(self, labels: Mapping[str, str]) -> bool:
        for name, pattern in self.labels:
            if name not in labels or not fnmatchcase(labels[name], pattern):
                return False
        return True

    @property
    def own_labels(self) -> dict[str, str]:
        """Return the labels for which the limits allow only one value. A task that the token
        creates gets these labels."""
        found = {}
        for name, value in self.labels:
            if not _WILD.search(value):
                found[name] = value
        return found

    def __str__(self) -> str:
        parts = []
        if self.repositories:
            parts.append(f"repositories {', '.join(self.repositories)}")
        if self.labels:
            labels = ", ".join(f"{name}={pattern}" for name, pattern in self.labels)
            parts.append(f"labels {labels}")
        return " and ".join(parts) or "everything"


def limits_of(repositories: Sequence[str], labels: Sequence[str]) -> AccessLimits:
    """Return the limits that these patterns describe. Each of `labels` is NAME=PATTERN, or NAME for
    any value. Raises ValueError for an invalid pattern."""
    pairs = []
    for each in labels:
        name, equals, pattern = each.partition("=")
        if not name.strip():
            raise ValueError(f"expected a label as NAME=PATTERN, got {each!r}")
        pairs.append((name, pattern if equals else "*"))
    for each in repositories:
        if not each or "://" in each or not each.isprintable():
            raise ValueError(f"expected a pattern such as 'shop/*', got {each!r}")
    return AccessLimits(tuple(repositories), tuple(pairs))


def names_of(repo: str) -> tuple[str, ...]:
    """Return the names under which a pattern can match a repository: `owner/name` and
    `host/owner/name`, or the path. Empty for an address whose meaning is not certain."""
    if repo.startswith("/"):
        path = repo.rstrip("/").removesuffix(".git")
        return () if _UNPLAIN.search(path) else (path,)
    host, path = _parts(repo)
    path = path.strip("/").removesuffix(".git")
    if not host or not path or _UNPLAIN.search(path):
        return ()
    whole = f"{host.lower()}/{path}"
    # The path of an address can begin with the name of another host:
    # `https://evil/git.example.com/x`. Without the real host, the rest would match a pattern for
    # that other host. So the name without the real host is left out.
    return (whole,) if "." in path.partition("/")[0] else (path, whole)


def _parts(repo: str) -> tuple[str, str]:
    """Return host and path of an address; both are empty if the text is not an address."""
    if "://" in repo:
        try:
            parts = urlsplit(repo)
        except ValueError:
            return "", ""
        if parts.scheme.lower() not in ("https", "http", "ssh") or parts.query or parts.fragment:
            return "", ""
        return parts.hostname or "", parts.path
    found = _SCP.fullmatch(repo)
    if found is None:
        return "", ""
    return found["host"], found["path"]
