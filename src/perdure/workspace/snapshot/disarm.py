"""Makes repositories inside a workdir from another machine harmless. Their files are restored, but
nothing in them can run.

git runs the programs that a repository's hooks and configuration name. So `files` asks this module
about each file of a checkpoint from another machine. Hooks are left out, except samples, which
never run. The state of a rebase or another operation in progress is left out too, because it may
contain commands. A configuration with more than a plain clone's settings is renamed to
`config.imported` and replaced by a plain one. Files that point git to another directory (`.git` as
a file or a link, `commondir`) also get the ending `.imported`. Each of these files is named in a
note.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from perdure.errors import GitFailed
from perdure.patterns import late_pattern
from perdure.workspace.snapshot.checkpoint_repository import CheckpointRepository
from perdure.workspace.snapshot.index import may_run
from perdure.workspace.snapshot.trees import folded

ASIDE = ".imported"
OPERATION = "a rebase or other operation in progress, from another machine, may run commands"
_LARGEST = 1 << 20
_PLAIN = late_pattern(
    r"core\.(repositoryformatversion|bare|filemode|logallrefupdates|ignorecase|symlinks"
    r"|precomposeunicode)|extensions\.objectformat"
    r"|remote\..*\.(fetch|tagopt|prune)|branch\..*\.(remote|merge|rebase)|user\.(name|email)"
    r"|init\.defaultbranch|gc\.auto"
)
_URL = late_pattern(
    r"(https?|ssh|git)://[^-\s][^\s]*"
    r"|[A-Za-z0-9_][A-Za-z0-9_.-]*@[A-Za-z0-9][A-Za-z0-9.-]*:[^-\s:][^\s:]*"
)


def kind(parts: Sequence[str]) -> str:
    """Return the role of a file in a repository inside the workdir: `hook`, `config`, `pointer`,
    `operation` (state of an operation in progress), or an empty string for any other.

    Names are compared as on a file system that ignores case, because on such a file system git also
    uses `.GIT`.
    """
    names = list(map(folded, parts))
    places = [place for place, name in enumerate(names) if name == ".git"]
    if not places:
        return ""
    inner = names[places[-1] + 1 :]
    if not inner or inner[-1] == "commondir":
        return "pointer"
    if inner[0] in ("objects", "refs", "logs"):
        return ""
    if "hooks" in inner:
        if inner[-1].endswith(".sample") and inner[-1] != ".sample":
            return ""
        return "hook"
    if any(map(may_run, inner)):
        return "operation"
    # `modules/NAME/config` and `worktrees/NAME/config.worktree` belong to the git directories of
    # submodules and worktrees.
    if inner[-1] in ("config", "config.worktree"):
        return "config"
    return ""


def plain(repo: CheckpointRepository, content: bytes | Path, link: bool) -> bytes | None:
    """Return a configuration reduced to its harmless settings. None if all of its settings are
    harmless; the file then stays as it is."""
    if link or isinstance(content, Path) or len(content) > _LARGEST:
        return _written([])
    try:
        said = repo.run(
            "config", "--file", "-", "--no-includes", "--null", "--list", stdin=content
        ).stdout
    except GitFailed:
        return _written([])
    entries = []
    for entry in said.decode("utf-8", "surrogateescape").split("\0"):
        if entry:
            entries.append(entry.partition("\n"))
    harmless = []
    for key, equals, value in entries:
        if equals and _is_plain(key, value):
            harmless.append((key, value))
    if len(harmless) == len(entries):
        return None
    return _written(harmless)


def _is_plain(key: str, value: str) -> bool:
    if re.fullmatch(r"remote\..*\.(url|pushurl)", key, re.DOTALL):
        return _URL.fullmatch(value) is not None or value.startswith("/")
    return _PLAIN.fullmatch(key) is not None


def _written(entries: Sequence[tuple[str, str]]) -> bytes:
    if any(key == "core.repositoryformatversion" for key, _ in entries):
        lines = []
    else:
        lines = ["[core]\n\trepositoryformatversion = 0\n"]
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
