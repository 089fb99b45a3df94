"""Repositories inside a workdir that comes from another machine: their files come along, what would
run by them does not.

Whoever runs git inside such a repository runs what its hooks and its configuration name. So
`files` asks here, for a checkpoint from outside: hooks are left out (but the samples, which never
run), a configuration that says more than a plain clone's becomes `config.imported` with a plain one
in its place, and what leads git elsewhere (`.git` as a file or a link, `commondir`) gets that
ending, too. Each is named.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from perdure.errors import GitFailed
from perdure.workspace.snapshot.shelf import Shelf

ASIDE = ".imported"
_LARGEST = 1 << 20
_PLAIN = re.compile(
    r"core\.(repositoryformatversion|bare|filemode|logallrefupdates|ignorecase|symlinks"
    r"|precomposeunicode)|extensions\.objectformat"
    r"|remote\..*\.(fetch|tagopt|prune)|branch\..*\.(remote|merge|rebase)|user\.(name|email)"
    r"|init\.defaultbranch|gc\.auto"
)
_URL = re.compile(
    r"(https?|ssh|git)://[^-\s][^\s]*"
    r"|[A-Za-z0-9_][A-Za-z0-9_.-]*@[A-Za-z0-9][A-Za-z0-9.-]*:[^-\s:][^\s:]*"
)


def kind(parts: Sequence[str]) -> str:
    """What a file below the workdir is to a repository inside it: `hook`, `config`, `pointer`, or
    nothing of that (empty)."""
    places = [place for place, part in enumerate(parts) if part == ".git"]
    if not places:
        return ""
    inner = parts[places[-1] + 1 :]
    if not inner or inner[-1] == "commondir":
        return "pointer"
    if inner[0] in ("objects", "refs", "logs"):
        return ""
    if "hooks" in inner:
        return "" if inner[-1].endswith(".sample") and inner[-1] != ".sample" else "hook"
    # `modules/NAME/config` and `worktrees/NAME/config.worktree` are those of further git
    # directories.
    return "config" if inner[-1] in ("config", "config.worktree") else ""


def plain(shelf: Shelf, content: bytes | Path, link: bool) -> bytes | None:
    """A configuration with only what is harmless in it; None if it has nothing else, and can stay
    as it is."""
    if link or isinstance(content, Path) or len(content) > _LARGEST:
        return _written([])
    try:
        said = shelf.run(
            "config", "--file", "-", "--no-includes", "--null", "--list", stdin=content
        ).stdout
    except GitFailed:
        return _written([])
    entries = [
        entry.partition("\n")
        for entry in said.decode("utf-8", "surrogateescape").split("\0")
        if entry
    ]
    harmless = [(key, value) for key, equals, value in entries if equals and _is_plain(key, value)]
    return None if len(harmless) == len(entries) else _written(harmless)


def _is_plain(key: str, value: str) -> bool:
    if re.fullmatch(r"remote\..*\.(url|pushurl)", key, re.DOTALL):
        return _URL.fullmatch(value) is not None or value.startswith("/")
    return _PLAIN.fullmatch(key) is not None


def _written(entries: Sequence[tuple[str, str]]) -> bytes:
    lines = (
        []
        if any(key == "core.repositoryformatversion" for key, _ in entries)
        else ["[core]\n\trepositoryformatversion = 0\n"]
    )
    for key, value in entries:
        section, _, rest = key.partition(".")
        subsection, _, name = rest.rpartition(".")
        inner = f' "{_escaped(subsection)}"' if subsection else ""
        lines.append(f'[{section}{inner}]\n\t{name} = "{_quoted(value)}"\n')
    return "".join(lines).encode("utf-8", "surrogateescape")


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')


def _quoted(text: str) -> str:
    return _escaped(text).replace("\n", "\\n").replace("\t", "\\t")
