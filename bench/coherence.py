"""`python -m bench.coherence [--agent claude|codex] [--files N]`: measures whether later files use
the names that earlier files really have.

The real agent CLI executes a plan of 12 files, in Python and in TypeScript, in five ways (arms):
each task in a new conversation; the same with the project map; by `perdure plan run` with all tasks
in one conversation; and twice by `perdure plan run` with forks and merges, as the tasks' needs
require. In the first of these two, a task that merges gets the map; in the second it does not.

The model is the rehearsal's, with replies that this program chooses. It writes each file by a call
of the agent's shell tool. It makes up the names of the file's own parts (file, name, parameter),
one of four plausible words for each. For a part of another file it uses the names that are in the
messages of the request, and if they are not there, it makes up others.

Then the result is judged by what really happens. Each import of each Python file is executed in a
separate process, and the file is run; TypeScript is checked by `tsc`. So this measures which
context reached the model, and not the skill of a model: a real model would search the files first,
which costs turns and tokens.
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
    """One file of the plan, with four possible words for its file, its name and its parameter."""

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
"""One part a line: key, description, files, names (in lower case for a function), parameters, and
the keys of the parts that it needs."""


def _parts() -> Iterator[tuple[str, Part]]:
    for line in PLAN.strip().split("\n"):
        key, what, files, names, fields, needs = (cell.strip() for cell in line.split("|"))
        yield key, Part(what, files, names, fields, tuple(needs.split()), function=names.islower())


PARTS = dict(_parts())


@dataclass(frozen=True)
class Called:
    """The names that one task uses for a part."""

    file: str
    name: str
    field: str


@dataclass(frozen=True)
class Language:
    """How a file in one language is written."""

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
    """The model, as a `ReplySource`. `parts` are the parts whose tasks are played, by key."""

    def __init__(self, parts: dict[str, Part], language: Language) -> None:
        self.parts, self.language = parts, language

    def prompt(self, key: str) -> str:
        """Return the prompt of a part's task as a plan would have it, without the name of a file or
        of another part."""
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
        """Return the names that the model makes up for a part in the task `by`. They are always the
        same in that task, and others in another task."""
        part = self.parts[key]

        def one(words: str, salt: str) -> str:
            digest = hashlib.sha256(f"{self.language.name} {by} {key} {salt}".encode()).digest()
            return words.split()[digest[0] % 4]

        return Called(one(part.files, "file"), one(part.names, "name"), one(part.fields, "field"))

    def known(self, key: str, messages: Sequence[ChatMessage]) -> Called | None:
        """Return the names of a part as they are declared in the messages: the name itself, and the
        last path of one of its files before it. Return None if no message declares it."""
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
    """Number of imports of files that do not exist."""
    wrong: int
    """Number of names that a file does not have, or that do not have this parameter."""
    right: int
    """Number of files without an error of their own."""
    tokens: int = 0
    """Estimated number of tokens of the project maps in all prompts together."""

    @property
    def errors(self) -> int:
        return self.missing + self.wrong


def played(
    directory: Path, agent: str, language: Language, arm: int, parts: dict[str, Part]
) -> Result:
    """Execute one plan on one arm, judge the files, and return the result."""
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
    """Run the tasks as runs in one workdir, each in a new conversation. Return their reports."""
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
    """Run the plan by `perdure plan run`, and return the tasks' reports. On the arm `LINE` each
    task needs the previous one, else it needs the tasks of the parts that it uses."""
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
    """Yield for each file its own errors (`missing` or `wrong`), found by executing its imports."""
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
    """Yield for each file its errors as the compiler reports them. TS2307 means that a module does
    not exist."""
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
    """Return the path of the TypeScript compiler. It is installed beside the agents if it is
    missing."""
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
    """Return the results as a Markdown table: agent, language, arm, result."""
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
