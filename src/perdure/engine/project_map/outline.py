"""The data types of the project map: files with their exports and imports. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct, field


class Symbol(Struct, frozen=True):
    """One thing that a file exports."""

    name: str
    text: str
    """The declaration as one line without its body, such as `def load(path: str) -> Order`. For
    a class, it is only the first line."""
    members: tuple[str, ...] = ()
    """The public methods and fields of a class, each as one line."""


class Import(Struct, frozen=True):
    """One imported module, and the names imported from it. The module is named as in the file:
    `..money`, `./money`, `java.util`."""

    module: str
    names: tuple[str, ...] = ()


class Outline(Struct, frozen=True):
    """The exports and imports of one file."""

    exports: tuple[Symbol, ...] = ()
    imports: tuple[Import, ...] = ()
    package: str = ""
    """The package that the file declares (Java, Go)."""


NO_OUTLINE = Outline()


class OutlineFile(Struct, frozen=True):
    """One file of the project. `outline` is None if the file was not parsed. `changed`: time of the
    file's last modification, in ns since 1970."""

    name: str
    outline: Outline | None = None
    changed: int = 0


class Project(Struct, frozen=True, kw_only=True):
    """The files of a directory, by their paths relative to the directory."""

    files: Mapping[str, OutlineFile]
    beyond: int = 0
    """Number of files that were skipped because the project has more than the maximum number of
    files."""
    missing: frozenset[str] = field(default_factory=frozenset)
    """Languages that occur in the project, but whose grammar is not installed."""
    unparsed: int = 0
    """Number of files that were not parsed because the parser's process had died too often."""
