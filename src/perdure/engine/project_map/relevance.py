"""Puts the files of a project in order, the most relevant for a prompt first. Pure.

1. What the prompt mentions: a path, a file's name, a name that a file exports.
2. What those import or are imported by, near ones first (PageRank that starts at what was
   mentioned, over imports in both directions).
3. What earlier tasks made, the newest first.
4. The rest: what much else imports first, then what was changed last.
"""

from __future__ import annotations

import posixpath
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import chain

from perdure.engine.project_map.outline import OutlineFile, Project
from perdure.engine.project_map.resolver import Resolver
from perdure.lateclass import dataclass

_WORD = re.compile(r"[\w./@-]+")
_SHAPED = re.compile(r"\w*(?:_|\d|[a-z][A-Z])\w*")
"""A word that nobody writes but who means a name in a program; so does a capital letter within a
sentence, and a backquote."""
_CAPITAL = re.compile(r"(?:(?<=[a-z0-9,;:] )|(?<=`))([A-Z]\w+)|(?<=`)(\w+)(?=`)")
COMMON = 5
"""A plain word that more files export says nothing of any of them."""
DAMPING, ROUNDS = 0.7, 20


@dataclass(frozen=True, slots=True)
class MapPlace:
    """One file in its place."""

    file: OutlineFile
    why: str
    """`mentioned`, `near`, `made` or `rest`."""
    imports: tuple[str, ...] = ()
    """The files of the project that it imports."""
    others: tuple[str, ...] = ()
    """Modules from elsewhere."""
    made_by: str = ""


@dataclass(frozen=True, slots=True)
class Ranked:
    """All files of the project, the most relevant first."""

    places: tuple[MapPlace, ...]
    beyond: int = 0
    missing: frozenset[str] = frozenset()


def rank(project: Project, prompt: str = "", made: Mapping[str, str] | None = None) -> Ranked:
    """`made`: which task made a file, the earliest task's files first."""
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
    return Ranked(places, project.beyond, project.missing)


def _links(resolver: Resolver, file: OutlineFile) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The files of the project that a file imports, and the modules from elsewhere."""
    inside: dict[str, None] = {}
    others: dict[str, None] = {}
    for asked in file.outline.imports if file.outline is not None else ():
        found = resolver.meant(file.name, asked)
        inside |= dict.fromkeys(found)
        others |= {} if found else {asked.module: None}
    return tuple(inside), tuple(others)


def _mentioned(files: Mapping[str, OutlineFile], prompt: str) -> dict[str, int]:
    """How strongly the prompt means each file: 3 by its path or name, 2 by a name that can only be
    a program's, 1 by a plain word."""
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
    """Personalised PageRank over imports in both directions; 0 where no way leads."""
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
