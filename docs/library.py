"""Writes `docs/reference/library.md` from the public names of the package: signatures and
docstrings. `generate` calls it; it is not a program."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any

import perdure
from perdure.library.options import PolicyOptions, RetryOptions

TARGET = Path(__file__).resolve().parent / "reference" / "library.md"

HEAD = """# The library

<!-- Made by docs/generate.py from the code. Do not edit: change the code, then run it. -->

Everything that `import perdure` offers. How to use it: [from Python](../how-to/python.md); three programs to begin with:
[the tutorial](../tutorial/python.md). All of it is typed (`py.typed`): mypy and pyright find a misspelled option.
`perdure.model.events` has [the kinds of events](cli.md#events), with the same fields.
"""
WIDTH = 64
"""Maximum length of a signature in one line, in characters. In a longer one each parameter has its
own line."""
DOORS = ("open", "connect", "plan_scope")


def page() -> str:
    """Return the whole page."""
    public = {name: getattr(perdure, name) for name in perdure.__all__}
    classes = {name: each for name, each in public.items() if inspect.isclass(each)}
    errors = {name: each for name, each in classes.items() if issubclass(each, Exception)}
    runners = ("Runner", "AsyncRunner")
    nouns = [name for name in classes if name not in (*errors, *runners, "TaskOptions")]
    lines = [HEAD, "## Doors", ""]
    for name in DOORS:
        lines += function(f"perdure.{name}", public[name], "###")
    lines += ["## Runner", "", words(perdure.Runner), ""]
    for name, method in methods(perdure.Runner):
        lines += function(f"Runner.{name}", method, "###")
    lines += ["## AsyncRunner", "", words(perdure.AsyncRunner), ""]
    own = [f"`{name}`" for name in vars(perdure.AsyncRunner) if not name.startswith("_")]
    lines += [f"Methods, as those of `Runner`: {', '.join(own)}.", ""]
    lines += ["## Options", ""]
    for options in (perdure.TaskOptions, RetryOptions, PolicyOptions):
        lines += table_of(options)
    lines += ["## Nouns", ""]
    for name in sorted(nouns):
        lines += noun(name, classes[name])
    lines += ["## Errors", "", "| Error | Meaning | Exit code of the command |", "|---|---|---|"]
    for name in sorted(errors):
        code = getattr(errors[name], "exit_code", "")
        lines.append(f"| `{name}` | {one_line(words(errors[name]))} | {code} |")
    return "\n".join(lines).rstrip() + "\n"


def words(thing: Any) -> str:
    """Return the docstring as paragraphs of the page."""
    return inspect.cleandoc(thing.__doc__ or "")


def one_line(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def signature(thing: Any) -> str:
    """Return the signature without `self`, as it is written in the code."""
    found = inspect.signature(thing)
    parts: list[str] = []
    for each in found.parameters.values():
        if each.name == "self":
            continue
        if each.kind is each.KEYWORD_ONLY and not any(part.startswith("*") for part in parts):
            parts.append("*")
        stars = {each.VAR_POSITIONAL: "*", each.VAR_KEYWORD: "**"}.get(each.kind, "")
        default = "" if each.default is each.empty else f" = {value(each.default)}"
        parts.append(f"{stars}{each.name}: {each.annotation}{default}")
    inside = ", ".join(parts)
    if len(inside) + len(str(found.return_annotation)) > WIDTH:
        inside = "\n" + "".join(f"    {part},\n" for part in parts)
    return f"({inside}) -> {found.return_annotation}: ..."


def value(default: Any) -> str:
    """Return a default value as it is written in the code."""
    if isinstance(default, Enum):
        return f"{type(default).__name__}.{default.name}"
    return json.dumps(default) if isinstance(default, str) else repr(default)


def function(name: str, thing: Any, mark: str) -> list[str]:
    return [
        f"{mark} `{name}`",
        "",
        "```python",
        f"def {name.rpartition('.')[2]}{signature(thing)}",
        "```",
        "",
        words(thing),
        "",
    ]


def methods(cls: type) -> Iterator[tuple[str, Any]]:
    """Yield the public methods, in the order of the code."""
    for name, each in vars(cls).items():
        if not name.startswith("_") and inspect.isfunction(each):
            yield name, each


def table_of(options: type) -> list[str]:
    """Return the lines about a class of options: a table of names and types."""
    lines = [f"### `{options.__name__}`", "", words(options), "", "| Field | Type |", "|---|---|"]
    for name, kind in options.__annotations__.items():
        written = getattr(kind, "__forward_arg__", str(kind)).replace("|", "\\|")
        lines.append(f"| `{name}` | `{written}` |")
    return [*lines, ""]


def noun(name: str, cls: type) -> list[str]:
    """Return the lines about a noun, with its fields or its values."""
    lines = [f"### `{name}`", ""]
    if cls.__doc__ and not cls.__doc__.startswith(f"{cls.__name__}("):
        lines += [words(cls), ""]
    if issubclass(cls, Enum):
        return [*lines, ", ".join(f"`{each.value}`" for each in cls), ""]
    fields = names_of(cls)
    if fields:
        lines += [f"Fields: {', '.join(f'`{each}`' for each in fields)}.", ""]
    return lines


def names_of(cls: Any) -> list[str]:
    """Return the public fields and properties of a class."""
    named = getattr(cls, "__struct_fields__", ())
    held = [name for name, each in vars(cls).items() if isinstance(each, property)]
    return [name for name in (*named, *held) if not name.startswith("_")]


def problem() -> str:
    """Return one sentence if the page on disk differs from the one made from the code, else an
    empty string."""
    there = TARGET.read_text(encoding="utf-8") if TARGET.exists() else ""
    if there == page():
        return ""
    return "docs/reference/library.md is not up to date: run docs/generate.py"


def write() -> None:
    TARGET.write_text(page(), encoding="utf-8")
