"""Finds the file of the project that an import refers to. Pure. Called by `relevance`.

It follows the rules of each language as far as file names allow, without reading build
configuration. If several files match, the one nearest to the importing file is chosen. If none
matches, the import is an external package.
"""

from __future__ import annotations

import posixpath
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

from perdure.engine.project_map.languages import language_of
from perdure.engine.project_map.outline import Import, OutlineFile

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
            modules += [
                self._ending(importer, _python_files(f"{path}/{name}")) for name in asked.names
            ]
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
            if files := [
                name for name in there if name.endswith(".go") and not name.endswith("_test.go")
            ]:
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
                    yield from [name for name in names if name.endswith(".java")][
                        :MOST_OF_A_PACKAGE
                    ]
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
