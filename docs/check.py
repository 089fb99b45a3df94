"""Compares the documentation with the code and with itself. `make check` runs it; it needs only
perdure's own environment.

Every difference is printed as one line, `file:line: what is wrong`. If there is any, the exit code
is 1. Each function `check_...` checks one promise.
"""

from __future__ import annotations

import ast
import json
import re
import shlex
import sys
import tomllib
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr
from dataclasses import dataclass
from functools import cached_property
from io import StringIO
from pathlib import Path

import generate

from perdure.agents import registry
from perdure.cli import main
from perdure.cli.kubernetes import verbs
from perdure.config.files import flat
from perdure.config.values import READERS
from perdure.engine import service
from perdure.model import ContinuityPolicy, Outcome, OutcomeKind, RunState, Start, Verdict
from perdure.rules import lifecycle

TOP = generate.DOCS.parent
STATES, CONTINUITY, REFERENCE = (
    "docs/state_machine.md",
    "docs/discussions/continuity.md",
    "docs/reference/cli.md",
)
ROOMS = "docs/discussions/architecture.md"
KUBERNETES = "docs/how-to/kubernetes.md"
README_LINES = 150

LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"#{1,6}\s+(.*?)\s*#*$")
FENCE = re.compile(r"\s*(```+|~~~+)\s*(\w*)")
MACHINE = re.compile(
    # In every container, the image's user has the home /home/perdure.
    r"(?<![\w.~$}/-])/(?!home/perdure\b)(?:"
    + "|".join(("root", "work", "home", "Users", "workspace", "workspaces"))
    + r")/[\w.-]+"
)
EXAMPLE = re.compile(r"<!-- (examples/\w+\.py) -->")
ARROW = re.compile(r"(\w+) --> (\w+)\s*:\s*(.+)")


@dataclass
class Page:
    """One Markdown file, as lines. `blocks` has its fenced blocks: language, number of the first
    line, text."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.relative_to(TOP).as_posix()

    @cached_property
    def lines(self) -> list[str]:
        return self.path.read_text(encoding="utf-8").split("\n")

    @cached_property
    def parts(self) -> tuple[list[tuple[int, str]], list[tuple[str, int, str]]]:
        prose, blocks = [], []
        mark, language, first, held = "", "", 0, list[str]()
        for number, line in enumerate(self.lines, 1):
            fence = FENCE.match(line)
            if not mark and fence:
                mark, language, first, held = fence[1], fence[2], number + 1, []
            elif mark and line.strip() == mark:
                blocks.append((language, first, "\n".join(held)))
                mark = ""
            elif mark:
                held.append(line)
            else:
                prose.append((number, line))
        return prose, blocks

    @property
    def prose(self) -> list[tuple[int, str]]:
        return self.parts[0]

    @property
    def blocks(self) -> list[tuple[str, int, str]]:
        return self.parts[1]

    @property
    def links(self) -> Iterator[tuple[int, str]]:
        """Yield the target of each link, with the number of the line where the link begins. A
        link's text may span several lines."""
        numbers = [number for number, _ in self.prose]
        text = re.sub(r"`[^`\n]*`", "", "\n".join(line for _, line in self.prose))
        for link in LINK.finditer(text):
            yield numbers[text.count("\n", 0, link.start())], link[1]

    @cached_property
    def anchors(self) -> set[str]:
        """Return the anchors of the headings, in the form that GitHub gives them."""
        found: set[str] = set()
        for _, line in self.prose:
            if heading := HEADING.match(line):
                text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading[1]).replace("`", "").lower()
                slug = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
                repeats = sum(
                    other == slug or re.fullmatch(rf"{re.escape(slug)}-\d+", other) is not None
                    for other in found
                )
                found.add(f"{slug}-{repeats}" if repeats else slug)
        return found

    def rows(self, *head: str) -> Iterator[tuple[int, list[str]]]:
        """Yield the rows of the table that has exactly these words in its head, each with its line
        number. Code marks are removed."""
        inside = False
        for number, line in self.prose:
            cells = (
                [cell.strip().replace("`", "") for cell in line.strip().strip("|").split("|")]
                if line.startswith("|")
                else []
            )
            if tuple(cells) == head:
                inside = True
            elif inside and not cells:
                return
            elif inside and not set(line) <= set("|-: "):
                yield number, cells


def pages() -> dict[str, Page]:
    """Return all documents of the project, by their path from its top."""
    paths = [*sorted(TOP.glob("*.md")), *sorted(generate.DOCS.rglob("*.md"))]
    return {page.name: page for page in map(Page, paths)}


def check_links(all_pages: dict[str, Page]) -> Iterator[str]:
    """Every relative link leads to a file of the project, and every anchor to a heading of that
    file."""
    for page in all_pages.values():
        for number, target in page.links:
            if re.match(r"[a-z]+:", target):
                continue
            name, _, anchor = target.partition("#")
            place = (page.path.parent / name).resolve() if name else page.path
            if not place.exists() or TOP not in (place, *place.parents):
                yield f"{page.name}:{number}: the link {target} leads to nothing"
            elif anchor and place.suffix == ".md":
                there = all_pages[place.relative_to(TOP).as_posix()]
                if anchor not in there.anchors:
                    yield f"{page.name}:{number}: {there.name} has no heading for #{anchor}"


def check_generated(all_pages: dict[str, Page]) -> Iterator[str]:
    """Each generated page equals the one that is made from the code."""
    try:
        found = generate.problem()
    except SystemExit as error:
        found = str(error)
    if found:
        yield found


def check_words(all_pages: dict[str, Page]) -> Iterator[str]:
    """Every state, outcome, verdict, policy, setting and exit code is named on the page that
    explains it."""
    wanted = [
        *((STATES, word) for word in (*RunState, *OutcomeKind)),
        *((CONTINUITY, word) for word in (*Verdict, *ContinuityPolicy, *Start)),
        *((REFERENCE, word) for word in READERS),
    ]
    for name, word in wanted:
        if f"`{word}`" not in "\n".join(all_pages[name].lines):
            yield f"{name}: it says nothing of `{word}`"
    codes = {cells[0] for _, cells in all_pages[REFERENCE].rows(*HEAD_OF_CODES)}
    for code in sorted({str(code) for code in service.EXIT_CODES} - codes):
        yield f"{REFERENCE}: it says nothing of exit code {code}"


HEAD_OF_CODES = ("Code", "Meaning", "perdure's own error", "Last outcome of a run that has failed")


def check_states(all_pages: dict[str, Page]) -> Iterator[str]:
    """The table and the diagram of the states have exactly the transitions of `lifecycle.MOVES`."""
    page = all_pages[STATES]
    moves = {
        (str(state), str(trigger), str(to)) for (state, trigger), to in lifecycle.MOVES.items()
    }
    table = {
        (cells[0], cells[1], cells[2])
        for _, cells in page.rows("State", "Trigger", "Next state", "When")
        if len(cells) == 4
    }
    drawn = {
        (arrow[1], trigger.strip(), arrow[2])
        for language, _, text in page.blocks
        if language == "mermaid"
        for arrow in ARROW.finditer(text)
        for trigger in arrow[3].split(",")
    }
    for what, found in (("table", table), ("diagram", drawn)):
        for state, trigger, to in sorted(moves - found):
            yield f"{page.name}: the {what} lacks {state}, {trigger}, {to}"
        for state, trigger, to in sorted(found - moves):
            yield f"{page.name}: the {what} has {state}, {trigger}, {to}, and lifecycle.MOVES has not"


def check_outcomes(all_pages: dict[str, Page]) -> Iterator[str]:
    """The table's entry for each outcome is the answer of `lifecycle.decide`, with attempts
    left."""
    page = all_pages[STATES]
    tally = lifecycle.Tally(counted=1, free=1, allowed=3)
    rows = list(
        page.rows(
            "Outcome", "Counts", "disclose, fresh-ok", "strict", "What it means, and what follows"
        )
    )
    for kind in sorted({str(kind) for kind in OutcomeKind} - {cells[0] for _, cells in rows}):
        yield f"{page.name}: the table of outcomes lacks {kind}"
    for number, cells in rows:
        if cells[0] not in list(OutcomeKind):
            yield f"{page.name}:{number}: there is no outcome {cells[0]}"
            continue
        kind = OutcomeKind(cells[0])
        said = ["no" if kind in lifecycle.UNCOUNTED else "yes"]
        for policy in (ContinuityPolicy.DISCLOSE, ContinuityPolicy.STRICT):
            decision = lifecycle.decide(Outcome(kind=kind), tally, policy, now=0)
            said.append(str(decision.state) + (", needs_person" if decision.condition else ""))
        if cells[1:4] != said:
            yield f"{page.name}:{number}: for {kind} the code says {said}, the table {cells[1:4]}"


def check_rooms(all_pages: dict[str, Page]) -> Iterator[str]:
    """The page on the architecture has every package, and the layers that are checked."""
    page = all_pages[ROOMS]
    named = {cells[0] for _, cells in page.rows("Package", "What it is for")}
    there = {
        path.stem
        for path in generate.SOURCE.iterdir()
        if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    for room in sorted(there - {"__init__", "__main__"} - named):
        yield f"{page.name}: it says nothing of the package {room}"
    for room in sorted(named - there):
        yield f"{page.name}: there is no package {room}"
    contracts = tomllib.loads((TOP / "pyproject.toml").read_text(encoding="utf-8"))["tool"][
        "importlinter"
    ]["contracts"]
    floors = "\n".join(
        next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    )
    if floors not in (text for language, _, text in page.blocks if language == "text"):
        yield f"{page.name}: the layers are not those of pyproject.toml"


def check_reasons(all_pages: dict[str, Page]) -> Iterator[str]:
    """The page on Kubernetes says what to do for each reason of a condition."""
    page = all_pages[KUBERNETES]
    told = {
        reason
        for _, cells in page.rows("Condition", "Reason", "What to do")
        for reason in cells[1].split(", ")
    }
    texts = "\n".join(
        path.read_text(encoding="utf-8")
        for path in sorted((generate.SOURCE / "kubernetes").glob("*.py"))
    )
    given = re.findall(r'Obstacle\("([A-Z]\w+)"', texts) + re.findall(
        r'^    \("[a-z ]+", "([A-Z]\w+)", ', texts, re.MULTILINE
    )
    given += re.findall(r'_of_notes\(notes, "([A-Z]\w+)"', texts)
    for reason in sorted(set(given) - told):
        yield f"{page.name}: it does not say what to do for {reason}"


def check_machine_paths(all_pages: dict[str, Page]) -> Iterator[str]:
    """No document has a path of somebody's machine."""
    for page in all_pages.values():
        for number, line in enumerate(page.lines, 1):
            if found := MACHINE.search(line):
                yield f"{page.name}:{number}: {found[0]} is a place on somebody's machine"


def check_blocks(all_pages: dict[str, Page]) -> Iterator[str]:
    """Fenced blocks of python, toml and json can be parsed. A toml block that is marked as a
    settings file has only known settings with valid values."""
    parsers: dict[str, Callable[[str], object]] = {
        "python": ast.parse,
        "toml": tomllib.loads,
        "json": json.loads,
    }
    for page in all_pages.values():
        for language, first, text in page.blocks:
            try:
                parsed = parsers[language](text) if language in parsers else None
                if (
                    language == "toml"
                    and isinstance(parsed, dict)
                    and re.match(r"# \S*(perdure|config)\.toml", text)
                ):
                    for key, value in flat(parsed):
                        READERS[key](value)
            except KeyError as error:
                yield f"{page.name}:{first}: there is no setting {error}"
            except ValueError as error:  # the errors of json and tomllib are ValueErrors
                yield f"{page.name}:{first}: this {language} is wrong: {error}"
            except SyntaxError as error:
                yield f"{page.name}:{first + (error.lineno or 1) - 1}: this python does not parse: {error.msg}"


def check_navigation(all_pages: dict[str, Page]) -> Iterator[str]:
    """Every page of the site is in its navigation once. The decisions are behind one page at the
    end. No script is published."""
    text = (TOP / "mkdocs.yml").read_text(encoding="utf-8")
    listed = re.findall(r"^ +- (?:.*: )?([\w/-]+\.md)$", text, re.MULTILINE)
    pages_of_site = {
        name.removeprefix("docs/")
        for name in all_pages
        if name.startswith("docs/") and not re.match(r"docs/decisions/\d", name)
    }
    for name in sorted(pages_of_site - set(listed)):
        yield f"mkdocs.yml: the navigation lacks {name}"
    for name in sorted({name for name in listed if listed.count(name) > 1}):
        yield f"mkdocs.yml: the navigation has {name} more than once"
    for name in sorted(set(listed) - pages_of_site):
        yield f"mkdocs.yml: there is no page {name}"
    if listed[-1:] != ["decisions/README.md"]:
        yield "mkdocs.yml: the decisions come last"
    if "\n  *.py\n" not in text:
        yield "mkdocs.yml: exclude_docs lacks *.py, so that scripts are published"


def check_errors(all_pages: dict[str, Page]) -> Iterator[str]:
    """Every exit code has a page, to which the table of exit codes links. Every outcome of an
    attempt has a heading on one of these pages."""
    table = all_pages["docs/errors/README.md"]
    headings: set[str] = set()
    for code in service.EXIT_CODES:
        name = f"docs/errors/exit-{code}.md"
        if code and name not in all_pages:
            yield f"{table.name}: there is no page for exit code {code}"
        elif code:
            headings |= all_pages[name].anchors
            if f"(exit-{code}.md)" not in "\n".join(table.lines):
                yield f"{table.name}: the table lacks a link to exit-{code}.md"
    for kind in OutcomeKind:
        if kind is not OutcomeKind.SUCCEEDED and str(kind) not in headings:
            yield f"docs/errors: no page has a heading for the outcome {kind}"


def check_examples(all_pages: dict[str, Page]) -> Iterator[str]:
    """Each program of `examples` is printed unchanged in the documentation."""
    printed: set[str] = set()
    for page in all_pages.values():
        for language, first, text in page.blocks:
            mark = EXAMPLE.fullmatch(page.lines[first - 3]) if first > 2 else None
            if language != "python" or mark is None:
                continue
            path = TOP / mark[1]
            printed.add(mark[1])
            if not path.exists():
                yield f"{page.name}:{first}: there is no {mark[1]}"
            elif path.read_text(encoding="utf-8").strip() != text.strip():
                yield f"{page.name}:{first}: this is not {mark[1]} as it is"
    for path in sorted((TOP / "examples").glob("*.py")):
        name = path.relative_to(TOP).as_posix()
        if name not in printed:
            yield f"docs: no page has {name}"


def check_commands(all_pages: dict[str, Page]) -> Iterator[str]:
    """The real parsers accept every `perdure` command in a fenced sh block."""
    for page in all_pages.values():
        for language, first, text in page.blocks:
            if language != "sh":
                continue
            for number, words in commands(first, text):
                if words[:1] == ["--cluster"]:
                    yield from (f"{page.name}:{number}: {each}" for each in on_a_cluster(words[1:]))
                elif words[:1] and words[0] not in main.VERBS:
                    if words[0] not in ("--help", "--version"):
                        yield f"{page.name}:{number}: there is no verb {words[0]!r}"
                elif words:
                    said = StringIO()
                    try:
                        with redirect_stderr(said):
                            main.parser_of(words[0]).parse_args(words[1:])
                    except SystemExit:
                        last = said.getvalue().partition("\n")[0]
                        if "--help" not in words:
                            yield f"{page.name}:{number}: {last}"


def on_a_cluster(words: list[str]) -> Iterator[str]:
    """Yield what is wrong with the words after `kubectl perdure`."""
    rest = verbs._where().parse_known_args(words)[1]
    if not rest or rest[0] not in verbs.VERBS:
        if rest[:1] not in ([], ["--help"]):
            yield f"there is no verb {rest[0]!r} for a cluster"
        return
    said = StringIO()
    try:
        with redirect_stderr(said):
            verbs.parser_of(rest[0]).parse_intermixed_args(rest[1:])
    except SystemExit:
        if "--help" not in rest:
            yield said.getvalue().partition("\n")[0]


def commands(first: int, text: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the words after each `perdure` in a shell text, with their line number. They end at a
    pipe, a list operator, a redirection or a comment."""
    joined, number = "", first
    for at, line in enumerate(text.split("\n"), first):
        joined, number = (joined + line, number) if joined else (line, at)
        if line.endswith("\\"):
            joined = joined[:-1]
            continue
        lexer = shlex.shlex(joined, posix=True, punctuation_chars="|&;<>()")
        lexer.whitespace_split = True
        joined = ""
        words: list[str] | None = None
        before = ""
        for token in [*lexer, ";"]:
            if set(token) <= set("|&;<>()"):
                if words is not None:
                    yield number, words
                words = None
            elif words is not None:
                words.append(token)
            elif token == "perdure" and before not in (
                "install",
                "--namespace",
            ):  # after these words it is the name of a release or a namespace
                words = ["--cluster"] if before == "kubectl" else []
            before = token


def check_readme(all_pages: dict[str, Page]) -> Iterator[str]:
    """The README stays a front page: it is short, has every agent, and has the place where the
    demo's output is shown."""
    page = all_pages["README.md"]
    for name in registry.BUILT_IN:
        if f"`{name}`" not in "\n".join(page.lines):
            yield f"README.md: it says nothing of the agent `{name}`"
    if len(page.lines) > README_LINES:
        yield f"README.md: it has {len(page.lines)} lines, more than {README_LINES}"
    for mark in ("<!-- demo -->", "<!-- /demo -->"):
        if mark not in page.lines:
            yield f"README.md: the mark {mark} is gone"


def run() -> int:
    all_pages = pages()
    checks = [check for name, check in globals().items() if name.startswith("check_")]
    problems = [problem for check in checks for problem in check(all_pages)]
    for problem in problems:
        print(problem, file=sys.stderr)
    if problems:
        print(f"docs: {len(problems)} problem(s) in {len(all_pages)} documents", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(run())
