"""What one file exports and imports: the nouns of the project map. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Symbol:
    """One thing that a file offers to others."""

    name: str
    text: str
    """How it is declared, on one line, without its body: `def load(path: str) -> Order`. Of a class that is its head."""
    members: tuple[str, ...] = ()
    """The public methods and fields of a class, each as one line."""


@dataclass(frozen=True, slots=True)
class Import:
    """One name of a module, as the file writes it (`..money`, `./money`, `java.util`), and what is taken from it."""

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
