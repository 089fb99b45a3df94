"""Orders the files of a project, the most relevant for a prompt first. Pure. The order is:

1. Files that the prompt mentions: by path, by file name, or by a name that the file exports.

2. Files that the mentioned files import or that import them, nearest first (PageRank that starts at
the mentioned files, over imports in both directions).

3. Files that earlier tasks made, newest first.

4. All other files: the most imported first, then the most recently changed.
"""

from __future__ import annotations

import posixpath
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import chain

from msgspec import Struct

from perdure.engine.project_map.outline import OutlineFile, Project
from perdure.engine.project_map.resolver import Resolver

_WORD = re.compile(r"[\w./@-]+")
_SHAPED = re.compile(r"\w*(?:_|\d|[a-z][A-Z])\w*")
"""Pattern of a word that looks like an identifier. Words in backquotes, and capitalized words
within a sentence, also count as identifiers (`_CAPITAL`)."""
_CAPITAL = re.compile(r"(?:(?<=[a-z0-9,;:] )|(?<=`))([A-Z]\w+)|(?<=`)(\w+)(?=`)")
COMMON = 5
"""Maximum number of files that export a name, if the name is an ordinary word. If more files export
it, its occurrence in the prompt does not count as a mention of any of them."""
DAMPING, ROUNDS = 0.7, 20


class MapPlace(Struct, frozen=True):
    """A file at its position in the order of relevance, with the reason for the position."""

    file: OutlineFile
    why: str
    """Reason for the file's position in the order: `mentioned`, `near`, `made` or `rest`. These are
    the four groups in the module's docstring, in the same order."""
    imports: tuple[str, ...] = ()
    """Files of the project that this file imports."""
    others: tuple[str, ...] = ()
    """Modules from outside the project that this file imports."""
    made_by: str = ""


class Ranked(Struct, frozen=True):
    """All files of the project, the most relevant first."""

    places: tuple[MapPlace, ...]
    beyond: int = 0
    missing: frozenset[str] = frozenset()
    unparsed: int = 0


def rank(project: Project, prompt: str = "", made: Mapping[str, str] | None = None) -> Ranked:
    """Return the files in order of relevance. `made`: for each file that a task made, the name of
    that task; its entries begin with the files of the oldest task."""
    made = made or {}
    resolver = Resolver(project.files)
    links = {name: _links(resolver, file) for name, file in project.files.items()}
    edges = {name: inside for name, (inside, _) in links.items()}
    mentioned = _mentioned(project.files, prompt)
    near = _spread(edges, mentioned) if mentioned else {}
    wanted = Counter(chain.from_iterable(edges.values()))
    age = {name: number for number, name in enumerate(made)}

    def key(name: str) -> tuple[float, ...]:
        changed = -project.files[name].changed
        if name in mentioned:
            return 0, -mentioned[name], -near.get(name, 0.0), changed
        if near.get(name, 0.0) > 0:
            return 1, -near[name], changed
        if name in age:
            return 2, -age[name]
        return 3, -wanted[name], changed

    kinds = ("mentioned", "near", "made", "rest")
    ordered = sorted(project.files, key=lambda name: (key(name), name))
    places = tuple(
        MapPlace(project.files[name], kinds[int(key(name)[0])], *links[name], made.get(name, ""))
        for name in ordered
    )
    return Ranked(places, project.beyond, project.missing, project.unparsed)


def _links(resolver: Resolver, file: OutlineFile) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the files of the project that a file imports, and the modules that it imports from
    outside."""
    inside: dict[str, None] = {}
    others: dict[str, None] = {}
    for asked in file.outline.imports if file.outline is not None else ():
        found = resolver.resolve(file.name, asked)
        inside |= dict.fromkeys(found)
        others |= {} if found else {asked.module: None}
    return tuple(inside), tuple(others)


def _mentioned(files: Mapping[str, OutlineFile], prompt: str) -> dict[str, int]:
    """Return a score for each file that the prompt mentions. It is 3 if the prompt contains the
    file's path or name, and 2 if it contains an exported name that looks like an identifier. It is
    1 for an exported name that is an ordinary word, or for the file's name without its extension.
    """
    words = {word.strip("./-") for word in _WORD.findall(prompt)} - {""}
    parts = set(chain.from_iterable(re.split(r"[./@-]", word) for word in words))
    plain = {part.lower() for part in parts if len(part) > 2}
    exporters: dict[str, list[str]] = defaultdict(list)
    for name, file in files.items():
        for symbol in file.outline.exports if file.outline is not None else ():
            exporters[symbol.name].append(name)
    found: Counter[str] = Counter()
    for name in files:
        base = posixpath.basename(name)
        if (
            name in words
            or base in words
            or any("/" in word and f"/{name}".endswith(f"/{word}") for word in words)
        ):
            found[name] = 3
        elif base.partition(".")[0].lower() in plain:
            found[name] = 1
    meant = set(chain.from_iterable(_CAPITAL.findall(prompt)))
    for part in parts & exporters.keys():
        strength = 2 if part in meant or _SHAPED.fullmatch(part) else 1
        if len(part) > 2 and (strength == 2 or len(exporters[part]) <= COMMON):
            for name in exporters[part]:
                found[name] = max(found[name], strength)
    return dict(found)


def _spread(edges: Mapping[str, Sequence[str]], start: Mapping[str, int]) -> dict[str, float]:
    """Return the personalized PageRank of each file, which follows imports in both directions. It
    is 0 for files that cannot be reached from the files in `start`."""
    beside: dict[str, set[str]] = defaultdict(set)
    for name, targets in edges.items():
        for target in targets:
            beside[name].add(target)
            beside[target].add(name)
    total = sum(start.values())
    home = {name: strength / total for name, strength in start.items()}
    now = dict(home)
    for _ in range(ROUNDS):
        after: dict[str, float] = defaultdict(
            float, {name: share * (1 - DAMPING) for name, share in home.items()}
        )
        for name, share in now.items():
            around = beside.get(name) or home.keys()
            for other in around:
                after[other] += DAMPING * share / len(around)
        now = after
    return now
