"""Orders the files of a project, the most relevant for a prompt first (`rank`), and finds the files
to which an import refers (`Resolver`). Pure. The order is:

1. Files that the prompt mentions: by path, by file name, or by a name that the file exports.

2. Files that the mentioned files import or that import them, nearest first (PageRank that starts at
the mentioned files, over imports in both directions).

3. Files that earlier tasks made, newest first.

4. All other files: the most imported first, then the most recently changed.

`Resolver` follows the rules of each language as far as file names allow, without reading build
configuration. If several files match, the one nearest to the importing file is chosen. If none
matches, the import is an external package.
"""

from __future__ import annotations

import posixpath
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice

from msgspec import Struct

from perdure.engine.project_map.languages import language_of
from perdure.engine.project_map.outline import Import, OutlineFile, Project

_SCRIPTS = ("ts", "tsx", "mts", "cts", "d.ts", "js", "jsx", "mjs", "cjs")
_LEAD = ("@/", "~/", "#/")
"""Prefixes of import paths that usually stand for the top source directory."""
MOST_OF_A_PACKAGE = 20
DEPTH = 8
"""Maximum number of path components, from the end of the path, by which a file can be found."""


class Resolver:
    """Finds files of a project by the last components of their paths."""

    def __init__(self, files: Mapping[str, OutlineFile]) -> None:
        self.files = files
        self.ends: dict[str, list[str]] = defaultdict(list)
        self.directories: dict[str, list[str]] = defaultdict(list)
        self.asked: dict[tuple[str, str], str] = {}
        for name in files:
            parts = name.split("/")
            for first in range(max(0, len(parts) - DEPTH), len(parts)):
                self.ends["/".join(parts[first:])].append(name)
            self.directories[posixpath.dirname(name)].append(name)

    def resolve(self, importer: str, asked: Import) -> tuple[str, ...]:
        """Return the files that an import refers to. There are several files if the import names
        several modules of a package."""
        match language_of(importer):
            case "python":
                found = self._python(importer, asked)
            case "javascript" | "typescript" | "tsx":
                found = self._script(importer, asked.module)
            case "go":
                found = self._go(importer, asked.module)
            case "rust":
                found = self._rust(importer, asked.module)
            case "java":
                found = self._java(importer, asked)
            case _:
                found = iter(())
        return tuple(dict.fromkeys(name for name in found if name and name != importer))

    def _python(self, importer: str, asked: Import) -> Iterator[str]:
        dots = len(asked.module) - len(asked.module.lstrip("."))
        path = asked.module[dots:].replace(".", "/")
        if dots:
            start = posixpath.dirname(importer)
            for _ in range(dots - 1):
                start = posixpath.dirname(start)
            path = posixpath.join(start, path) if path else start
            modules = [self._at(_python_files(path))]
            modules += [self._at(_python_files(posixpath.join(path, name))) for name in asked.names]
        else:
            modules = [self._ending(importer, _python_files(path))]
            for name in asked.names:
                modules.append(self._ending(importer, _python_files(f"{path}/{name}")))
        yield from modules

    def _script(self, importer: str, module: str) -> Iterator[str]:
        if module.startswith("."):
            yield self._at(
                _script_files(
                    posixpath.normpath(posixpath.join(posixpath.dirname(importer), module))
                )
            )
        else:
            path = module[2:] if module.startswith(_LEAD) else module
            yield (
                self._ending(importer, _script_files(path)) if "/" in path or path != module else ""
            )

    def _go(self, importer: str, module: str) -> Iterator[str]:
        """Yield the files of the imported package. Its directory is the one whose path is the
        longest possible end of the import path."""
        parts = module.split("/")
        for first in range(len(parts)):
            there = self.directories.get("/".join(parts[first:]), [])
            files = []
            for name in there:
                if name.endswith(".go") and not name.endswith("_test.go"):
                    files.append(name)
            if files:
                yield from files[:MOST_OF_A_PACKAGE]
                return

    def _rust(self, importer: str, module: str) -> Iterator[str]:
        for path in _rust_paths(module):
            parts = [part for part in path.split("::") if part not in ("crate", "self", "super")]
            for last in range(len(parts), 0, -1):
                tail = "/".join(parts[:last])
                if found := self._ending(importer, (f"{tail}.rs", f"{tail}/mod.rs")):
                    yield found
                    break

    def _java(self, importer: str, asked: Import) -> Iterator[str]:
        path = asked.module.replace(".", "/")
        if "*" in asked.names:
            for directory, names in self.directories.items():
                if f"/{directory}".endswith(f"/{path}"):
                    sources = (name for name in names if name.endswith(".java"))
                    yield from islice(sources, MOST_OF_A_PACKAGE)
        else:
            # In a static import, the last part of the path may be a member of the class instead of
            # the class itself.
            yield self._ending(importer, (f"{path}.java",)) or self._ending(
                importer, (f"{posixpath.dirname(path)}.java",)
            )

    def _at(self, candidates: Iterable[str]) -> str:
        return next((name for name in candidates if name in self.files), "")

    def _ending(self, importer: str, candidates: Sequence[str]) -> str:
        """Return the file whose path ends with one of the candidates, compared by whole components;
        empty if there is none. If several files match, the one nearest to `importer` is returned.
        """
        asked = posixpath.dirname(importer), candidates[0]
        if asked not in self.asked:
            self.asked[asked] = self._nearest(importer, candidates)
        return self.asked[asked]

    def _nearest(self, importer: str, candidates: Sequence[str]) -> str:
        for candidate in candidates:
            if found := self.ends.get(candidate):
                if len(found) == 1:
                    return found[0]
                return min(
                    found, key=lambda name: (-_common(importer, name), name.count("/"), name)
                )
        return ""


def _python_files(path: str) -> tuple[str, ...]:
    if path:
        return (f"{path}.py", f"{path}/__init__.py", f"{path}.pyi", f"{path}/__init__.pyi")
    return ("__init__.py",)


def _script_files(path: str) -> tuple[str, ...]:
    """Return the paths that a module's file may have. An import may omit the file's extension. In
    TypeScript, it may have the extension of the compiled file."""
    stem, dot, ending = path.rpartition(".")
    if dot and ending in ("js", "mjs", "cjs", "jsx"):
        became = tuple(f"{stem}.{each}" for each in _SCRIPTS)
    else:
        became = ()
    return (
        path,
        *became,
        *(f"{path}.{each}" for each in _SCRIPTS),
        *(f"{path}/index.{each}" for each in _SCRIPTS),
    )


def _rust_paths(module: str) -> list[str]:
    """Return the paths that a `use` declaration names: `a::b` and `a::c::d` for `a::{b,c::d}`.
    Braces within braces are not supported: the paths of the names in them are wrong or incomplete.
    """
    head, brace, rest = module.partition("{")
    if brace:
        return [head + part.strip("{} ") for part in rest.split(",")][:100]
    return [module]


def _common(one: str, other: str) -> int:
    """Return the number of leading directories that two names share."""
    count = 0
    for left, right in zip(one.split("/")[:-1], other.split("/")[:-1], strict=False):
        if left != right:
            break
        count += 1
    return count


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
    places = []
    for name in ordered:
        kind = kinds[int(key(name)[0])]
        places.append(MapPlace(project.files[name], kind, *links[name], made.get(name, "")))
    return Ranked(tuple(places), project.beyond, project.missing, project.unparsed)


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
    paths = tuple(f"/{word}" for word in words if "/" in word)
    exporters: dict[str, list[str]] = defaultdict(list)
    for name, file in files.items():
        for symbol in file.outline.exports if file.outline is not None else ():
            exporters[symbol.name].append(name)
    found: Counter[str] = Counter()
    for name in files:
        base = posixpath.basename(name)
        if name in words or base in words or f"/{name}".endswith(paths):
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
