"""Writes `docs/reference/effects.md` (the table of programs, and how well the effect ledger does on
its corpus) and `catalog.json` (the form of `catalog.toml` that perdure reads). `generate` calls
it."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from perdure.rules.effects import effects_of
from perdure.rules.effects.catalog import LOCAL, KnownProgram, catalog, of_tool

DOCS = Path(__file__).resolve().parent
TARGET = DOCS / "reference" / "effects.md"
CORPUS = DOCS.parent / "tests" / "effects" / "corpus.toml"
CATALOG = DOCS.parent / "src" / "perdure" / "rules" / "effects" / "catalog.toml"
Table = Callable[[tuple[str, ...], Any], Iterator[str]]

TOP = """# The effect ledger

<!-- Made by docs/ledger.py from the code and the corpus. Do not edit: change them, then run docs/generate.py. -->

A workdir can be restored and a conversation resumed; a push, a published package or a changed database cannot be taken back by
perdure. Every tool call of an agent is therefore looked at, and what reaches out of the workdir is listed by attempt: in
`perdure why`, in `show --json` (`attempts[].effects`) and in the API. The next attempt is told of it.

- **Shell commands are parsed**, not searched: pipes, lists, subshells, loops, substitutions, here-documents, `bash -c`, `ssh`,
  `xargs`, `find -exec`, and programs that start others (`sudo`, `env`, `timeout`, `npx`, `uv run`, `docker exec`) are looked through.
- **What is not known to be local is a possible effect** (`possible: true`): an unknown program, an unknown target of `make` or
  `npm run`, a script whose name says `deploy`, a tool of an MCP server. A tool that its agent or server marks as one that only reads
  or edits files is not listed (today only agents over ACP pass such a mark on; Claude Code 2.1.329 names a tool and
  its server in its output, and leaves the annotations of MCP out).
- **An intent and an outcome.** A call is recorded when it begins, before anything else of it is seen. Its end gives the outcome: `done`,
  `failed`, `denied` (the call was denied and did not run), or `unknown` where nothing tells: the attempt was killed, the command went on in the background, or it runs several programs and its exit code does not
  speak for this one (`git push; true`). The next attempt is told to verify whether an unknown one happened before it repeats it.
  OpenCode prints a tool only when it has ended; what it began is read from its database after a crash.

Not seen: what a script of the agent's own, or of the repository, does, where its name does not say it; what a program does beside its
purpose; commands beyond 4,096 characters (listed as a possible effect of the kind `command`). Writes to files outside the workdir are
not listed.
"""


def page(table: Table) -> str:
    """Return the whole page."""
    known = sorted(catalog().programs, key=lambda each: each.names[0])
    rows = [(", ".join(f"`{name}`" for name in each.names), _kinds(each)) for each in known]
    return "\n".join(
        [TOP, *_figures(table), "## Programs", "", *table(("Program", "Effects"), rows)]
    )


def _kinds(program: KnownProgram) -> str:
    kinds = [rule.kind for rule in program.rules if rule.kind != LOCAL]
    return ", ".join(dict.fromkeys([*kinds, program.default or "program"]))


def _figures(table: Table) -> Iterator[str]:
    """Yield the lines that say how many calls of the corpus are judged correctly."""
    corpus = tomllib.loads(CORPUS.read_text(encoding="utf-8"))
    rows = []
    for name, half in corpus.items():
        tools = half["tools"]
        found = [bool(effects_of(each)) for each in half["effects"]]
        found += [_listed(each) for each in tools if each["effect"]]
        wrong = [bool(effects_of(each)) for each in half["local"]]
        wrong += [_listed(each) for each in tools if not each["effect"]]
        rows.append((name, f"{sum(found)} of {len(found)}", f"{sum(wrong)} of {len(wrong)}"))
    yield from ("## How well it does", "")
    yield (
        "The corpus is `tests/effects/corpus.toml`. Its first half was written before the table "
        "below, its second half after it. When it was first tried, the ledger before this one "
        "found 17 of the 40 commands of the first half and listed 1 of 35 local ones; this one, "
        "when it first saw the second half, found 53 of its 54 commands and listed none of 65 "
        "local ones. Now:"
    )
    yield ""
    yield from table(("Half", "Effects found", "Local calls listed"), rows)


def _listed(tool: dict[str, Any]) -> bool:
    return bool(of_tool(tool["name"], "", tool.get("hint", "")))


def catalog_as_json() -> str:
    """Return the table of the catalog as JSON."""
    table = tomllib.loads(CATALOG.read_text(encoding="utf-8"))
    return json.dumps(table, indent=1, ensure_ascii=False) + "\n"


def problem(table: Table) -> str:
    """Return one sentence if a file on disk differs from the one made from the code, else an empty
    string."""
    for path, content in _wanted(table):
        there = path.read_text(encoding="utf-8") if path.exists() else ""
        if there != content():
            return f"{path.relative_to(DOCS.parent)} is not up to date: run docs/generate.py"
    return ""


def write(table: Table) -> None:
    """Write both files. The page is written second, because it is made from the catalog."""
    for path, content in _wanted(table):
        path.write_text(content(), encoding="utf-8")


def _wanted(table: Table) -> tuple[tuple[Path, Callable[[], str]], ...]:
    catalog_file = CATALOG.with_suffix(".json")
    return (catalog_file, catalog_as_json), (TARGET, lambda: page(table))
