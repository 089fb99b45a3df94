"""What one file exports and imports: the nouns of the project map. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field

from perdure.lateclass import dataclass


@dataclass(frozen=True, slots=True)
class Symbol:
    """One thing that a file offers to others."""

    name: str
    text: str
    """How it is declared, on one line, without its body: `def load(path: str) -> Order`. Of a class
    that is its head."""
    members: tuple[str, ...] = ()
    """The public methods and fields of a class, each as one line."""


@dataclass(frozen=True, slots=True)
class Import:
    """One name of a module, as the file writes it (`..money`, `./money`, `java.util`), and what is
    taken from it."""

    module: str
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Outline:
    """One file, read."""

    exports: tuple[Symbol, ...] = ()
    imports: tuple[Import, ...] = ()
    package: str = ""
    """The package that the file says it belongs to (Java, Go)."""


NO_OUTLINE = Outline()


@dataclass(frozen=True, slots=True)
class OutlineFile:
    """One file of the project. `outline` is None where it was not read; `changed` are
    nanoseconds."""

    name: str
    outline: Outline | None = None
    changed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Project:
    """The files, by their names relative to the directory."""

    files: Mapping[str, OutlineFile]
    beyond: int = 0
    """So many files were not even looked at: there are more than are read."""
    missing: frozenset[str] = field(default_factory=frozenset)
    """Languages of files whose grammar is not installed."""
