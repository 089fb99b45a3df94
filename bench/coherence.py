"""`python -m bench.coherence [--agent claude|codex] [--files N]`: do later files use the names that
earlier ones really have?

A plan of 12 files, in Python and in TypeScript, is carried out by the real agent CLI five times:
each task in a new conversation, the same with the project map, by `perdure plan run` in one line
(one conversation), and by `perdure plan run` with the branches that the tasks' needs make (forks
and merges), where a task that merges gets the map, and where it does not.

The model is the rehearsal's, and a player of our own: it writes each file with a call of the
agent's shell tool; what a part is called (file, name, parameter) it makes up, one of four plausible
words; a part of another file it uses as it finds it in the messages of the request, and where it
does not stand there, it makes up a word again.

Then the result is judged by what really happens: each import of each Python file is carried out in
a process of its own and the file is run; TypeScript is checked by `tsc`. So this measures what
context reached the model, and not a model's skill: a real model looks around first, and pays for it
in turns and tokens.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import perdure
from perdure.agents.rehearsal import PlannedReply, Rehearsal
from perdure.agents.rehearsal.conversation import ChatMessage, ScriptedConversation
from perdure.agents.rehearsal.script import RunTool, Say
from tests.journeys.stage import Stage

TYPESCRIPT = "5.9.3"
ARMS = (
    "a conversation for each task",
    "the same, with the project map",
    "a plan, one line",
    "a plan with branches",
    'the same, with `map = "off"`',
)
MAPPED, LINE, BARE = 1, 2, 4
CHECK = Path(__file__).with_name("imports.py")


@dataclass(frozen=True)
class Part:
    """One file of the plan, with four words for each thing that can be called in more than one
    way."""

    what: str
    files: str
    names: str
    fields: str
    needs: tuple[str, ...] = ()
    function: bool = False


PLAN = """
money | an amount of money | money currency amounts cash | Money Amount Cash Sum | cents value units pence |
product | a product on sale | product article goods wares | Product Article Good Ware | price cost worth rate | money
stock | what is in stock | stock inventory depot warehouse | Stock Inventory Depot Warehouse | count pieces held left | product
customer | a customer | customer client buyer patron | Customer Client Buyer Patron | number ident key code |
cart | a cart | cart basket trolley bag | Cart Basket Trolley Bag | lines rows entries items | product money
discount | a discount | discount rebate reduction saving | discounted rebated reduced lowered | percent share part off | cart money
order | an order | order purchase deal sale | Order Purchase Deal Sale | total sum whole gross | customer cart
payment | a payment | payment settling charging billing | pay settle charge bill | due owed open claim | order money
shipment | a shipment | shipment delivery parcel dispatch | Shipment Delivery Parcel Dispatch | weight grams load mass | order stock
invoice | an invoice | invoice voucher receipt statement | Invoice Voucher Receipt Statement | serial page sheet note | order payment
report | a report | report summary digest overview | reported summarised digested overlooked | days span period weeks | order stock
app | the whole shop | app main shop program | run start launch begin | rounds turns times laps | invoice shipment report discount
"""
"""A part a line: key, what it is, its file, its name (small: a function), its parameter, the parts
that it needs."""


def _parts() -> Iterator[tuple[str, Part]]:
    for line in PLAN.strip().split("\n"):
        key, what, files, names, fields, needs = (cell.strip() for cell in line.split("|"))
        yield key, Part(what, files, names, fields, tuple(needs.split()), function=names.islower())


PARTS = dict(_parts())


@dataclass(frozen=True)
class Called:
    """A part as it is called somewhere."""

    file: str
    name: str
    field: str


@dataclass(frozen=True)
class Language:
    """How a file of it looks."""

    name: str
    ending: str
    folder: str

    def written(self, part: Part, own: Called, used: Sequence[tuple[Part, Called]]) -> str:
        return (
            self._python(part, own, used)
            if self.name == "Python"
            else self._typescript(part, own, used)
        )

    def _python(self, part: Part, own: Called, used: Sequence[tuple[Part, Called]]) -> str:
        imports = "".join(
            f"from {self.folder}.{each.file} import {each.name}\n" for _, each in used
        )
        values = [
            f"{each.name}({each.field}=1)" + ("" if need.function else f".{each.field}")
            for need, each in used
        ]
        body = (
            f"def {own.name}({own.field}: int) -> int:\n    return {own.field}\n"
            if part.function
            else f"class {own.name}:\n    def __init__(self, {own.field}: int) -> None:\n        self.{own.field} = {own.field}\n"
        )
        return f"{imports}\n\n{body}\n\nSAMPLE = {' + '.join(values) or '0'}\n"

    def _typescript(self, part: Part, own: Called, used: Sequence[tuple[Part, Called]]) -> str:
        imports = "".join(f'import {{ {each.name} }} from "./{each.file}";\n' for _, each in used)
        values = [
            f"{each.name}(1)" if need.function else f"new {each.name}(1).{each.field}"
            for need, each in used
        ]
        body = (
            f"export function {own.name}({own.field}: number): number {{\n  return "
            f"{own.field};\n}}\n"
            if part.function
            else f"export class {own.name} {{\n  constructor(readonly {own.field}: number) {{}}\n}}\n"
        )
        return f"{imports}\n{body}\nexport const SAMPLE: number = {' + '.join(values) or '0'};\n"


PYTHON = Language("Python", "py", "shop")
TYPESCRIPT_FILES = Language("TypeScript", "ts", "src")
_FILE = re.compile(r"([\w-]+)\.(?:py|ts)\b")
_FIELD = re.compile(
    r"__init__\(self, (\w+)|constructor\((?:readonly )?(\w+)|def (?!__init__)\w+\((\w+)|function "
    r"\w+\((\w+)"
)


class Coder:
    """The model: a `ReplySource`. `parts` are the tasks, as many as there are."""

    def __init__(self, parts: dict[str, Part], language: Language) -> None:
        self.parts, self.language = parts, language

    def prompt(self, key: str) -> str:
        """The task, as a plan would have it: it names no file and no name of another."""
        part = self.parts[key]
        needs = " and ".join(self.parts[need].what for need in part.needs)
        return f"Write the {self.language.name} file that models {part.what}." + (
            f" Use what was made for {needs}." if needs else ""
        )

    def next(self, conversation: ScriptedConversation) -> PlannedReply:
        asked = [
            (place, key)
            for place, message in enumerate(conversation.messages)
            for key in self.parts
            if message.role == "user" and self.prompt(key) in message.text
        ]
        if not asked:
            return PlannedReply()
        place, key = asked[-1]
        if any(message.role == "tool_call" for message in conversation.messages[place:]):
            return PlannedReply((Say("It is written."),), script=0)
        own = self.made_up(key, key)
        used = [
            (self.parts[need], self.known(need, conversation.messages) or self.made_up(need, key))
            for need in self.parts[key].needs
        ]
        path = f"{self.language.folder}/{own.file}.{self.language.ending}"
        content = self.language.written(self.parts[key], own, used)
        return PlannedReply(
            (RunTool(f"mkdir -p {self.language.folder} && cat > {path} <<'EOF'\n{content}EOF"),),
            script=0,
        )

    def summary(self, conversation: ScriptedConversation) -> str:
        return ""

    def made_up(self, key: str, by: str) -> Called:
        """Return the model's own name for a part, in the task `by`: always the same there, and
        another word in another task."""
        part = self.parts[key]

        def one(words: str, salt: str) -> str:
            digest = hashlib.sha256(f"{self.language.name} {by} {key} {salt}".encode()).digest()
            return words.split()[digest[0] % 4]

        return Called(one(part.files, "file"), one(part.names, "name"), one(part.fields, "field"))

    def known(self, key: str, messages: Sequence[ChatMessage]) -> Called | None:
        """The part as it is declared in the messages: the name, behind the last path of a file that
        was named before it."""
        part = self.parts[key]
        declared = re.compile(rf"\b(?:class|def|function) ({'|'.join(part.names.split())})\b")
        for message in messages:
            found = declared.search(message.text)
            files = (
                [
                    file
                    for file in _FILE.findall(message.text[: found.start()])
                    if file in part.files.split()
                ]
                if found
                else []
            )
            if found and files:
                field = _FIELD.search(message.text, found.start())
                return Called(
                    files[-1],
                    found[1],
                    next((name for name in field.groups() if name), "") if field else "",
                )
        return None


@dataclass(frozen=True)
class Result:
    """The result of one plan."""

    files: int
    missing: int
    """Imports of files that are not there."""
    wrong: int
    """Names that the file has not, or not with this parameter."""
    right: int
    """Files without an error of their own."""
    tokens: int = 0
    """Estimated tokens of the maps in all prompts together."""

    @property
    def errors(self) -> int:
        return self.missing + self.wrong


def played(
    directory: Path, agent: str, language: Language, arm: int, parts: dict[str, Part]
) -> Result:
    """One plan on one arm, carried out and judged."""
    coder = Coder(parts, language)
    with Rehearsal(coder) as rehearsal:
        stage = Stage(directory, agent, rehearsal)
        (stage.repo / "greet.py").unlink()
        with perdure.open(stage.repo, stage.environ) as runner:
            done = (
                _planned(runner, stage, coder, arm)
                if arm >= LINE
                else _one_by_one(runner, stage, coder, arm)
            )
            workdir = Path(done[-1]["workspace"]["path"])
            tokens = sum(
                (attempt["map"] or {"tokens": 0})["tokens"]
                for report in done
                for attempt in report["attempts"]
            )
            assert all(report["state"] == "succeeded" for report in done), [
                (report["name"], report["reason"]) for report in done
            ]
        files = sorted((workdir / language.folder).glob(f"*.{language.ending}"))
        errors = dict(
            python_errors(workdir, files)
            if language is PYTHON
            else typescript_errors(workdir, files)
        )
        stage.close()
    missing = sum(said.count("missing") for said in errors.values())
    wrong = sum(said.count("wrong") for said in errors.values())
    return Result(len(parts), missing, wrong, sum(not errors[file.name] for file in files), tokens)


def _one_by_one(
    runner: perdure.Runner, stage: Stage, coder: Coder, arm: int
) -> list[dict[str, Any]]:
    """The tasks as runs in one workdir, each with a conversation of its own."""
    done = []
    for key in coder.parts:
        run = runner.run(
            coder.prompt(key),
            agent=stage.agent,
            branch="plan",
            scope=f"task-{key}",
            map="first" if arm == MAPPED else "off",
        )
        done.append(runner.report(run.id))
    return done


def _planned(runner: perdure.Runner, stage: Stage, coder: Coder, arm: int) -> list[dict[str, Any]]:
    """`perdure plan run`: in a line, each task needs the one before it; else it needs what it
    uses."""
    keys = list(coder.parts)
    lines = ['name = "shop"', *(['map = "off"'] if arm == BARE else []), f'agent = "{stage.agent}"']
    for place, key in enumerate(keys):
        needs = keys[max(0, place - 1) : place] if arm == LINE else [*coder.parts[key].needs]
        lines += [
            "[[tasks]]",
            f'name = "{key}"',
            f"prompt = {json.dumps(coder.prompt(key))}",
            f"needs = {json.dumps(needs)}",
        ]
    file = stage.directory / "shop.toml"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    runner.plan_run(file)
    tasks = {task["name"]: task for task in runner.plan_report("shop")["tasks"]}
    return [runner.report(tasks[key]["run"]) for key in keys]


def python_errors(workdir: Path, files: Sequence[Path]) -> Iterator[tuple[str, list[str]]]:
    """By file: `missing` or `wrong` for each error of its own that really importing it raises."""
    for file in files:
        command = [sys.executable, "-P", str(CHECK), str(file.relative_to(workdir))]
        said = subprocess.run(
            command,
            cwd=workdir,
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONDONTWRITEBYTECODE": "1"},
        )
        yield file.name, json.loads(said.stdout)


def typescript_errors(workdir: Path, files: Sequence[Path]) -> Iterator[tuple[str, list[str]]]:
    """By file, as the compiler says: TS2307 is a module that is not there."""
    flags = (
        "--noEmit",
        "--strict",
        "--target",
        "es2022",
        "--module",
        "esnext",
        "--moduleResolution",
        "bundler",
        "--pretty",
        "false",
    )
    words = ["node", str(compiler()), *flags, *(str(file.relative_to(workdir)) for file in files)]
    said = subprocess.run(words, cwd=workdir, capture_output=True, text=True, check=False)
    lines = re.findall(r"^src/([\w.-]+)\(\d+,\d+\): error TS(\d+)", said.stdout, re.MULTILINE)
    assert lines or said.returncode == 0, said.stdout + said.stderr
    for file in files:
        yield (
            file.name,
            ["missing" if code == "2307" else "wrong" for name, code in lines if name == file.name],
        )


def compiler() -> Path:
    """The program of the TypeScript compiler, installed beside the agents where it is not there
    yet."""
    place = Path(__file__).parents[1] / "agents" / "typescript"
    program = place / "node_modules/typescript/bin/tsc"
    if not program.exists():
        place.mkdir(exist_ok=True)
        words = [
            "npm",
            "install",
            "--prefix",
            str(place),
            "--no-save",
            "--no-audit",
            "--no-fund",
            f"typescript@{TYPESCRIPT}",
        ]
        subprocess.run(words, check=True, capture_output=True)
    return program


def table(results: Sequence[tuple[str, str, int, Result]]) -> str:
    """As Markdown: agent, language, arm, result."""
    lines = [
        "| agent | language | | missing imports | wrong names | errors | fewer | files right |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    cold = {
        (agent, language): result.errors for agent, language, arm, result in results if arm == 0
    }
    for agent, language, arm, result in results:
        before = cold[agent, language]
        fewer = (
            ""
            if arm == 0
            else f"{100 * (before - result.errors) / before:.0f} %"
            if before
            else "-"
        )
        size = f" ({result.tokens // result.files} tokens a prompt)" if result.tokens else ""
        lines.append(
            f"| {agent} | {language} | {ARMS[arm]}{size} | {result.missing} | {result.wrong} | "
            f"{result.errors} | {fewer} | {result.right} of {result.files} |"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="bench.coherence",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--agent", choices=["claude", "codex"], action="append", help="default: both"
    )
    parser.add_argument(
        "--files", type=int, default=len(PARTS), help="only the first so many files of the plan"
    )
    arguments = parser.parse_args()
    parts = dict(list(PARTS.items())[: arguments.files])
    results: list[tuple[str, str, int, Result]] = []
    for agent in arguments.agent or ["claude", "codex"]:
        for language in (PYTHON, TYPESCRIPT_FILES):
            for arm in range(len(ARMS)):
                directory = Path(tempfile.mkdtemp(prefix="pc"))
                try:
                    results.append(
                        (agent, language.name, arm, played(directory, agent, language, arm, parts))
                    )
                finally:
                    shutil.rmtree(directory, ignore_errors=True)
                print(agent, language.name, ARMS[arm], results[-1][3], file=sys.stderr, flush=True)
    print(
        f"{os.uname().machine}, Python {sys.version.split()[0]}, TypeScript "
        f"{TYPESCRIPT}\n\n{table(results)}"
    )
    cold = {
        (agent, language): result.errors for agent, language, arm, result in results if arm == 0
    }
    missed = [
        arm
        for agent, language, arm, result in results
        if arm not in (0, BARE)
        and (result.right < 0.9 * result.files or result.errors > 0.2 * cold[agent, language])
    ]
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
