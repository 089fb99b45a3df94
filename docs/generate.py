"""Writes `docs/reference/cli.md` from the argparse parsers and the code, so that the page cannot
become out of date. People and `check` call it.

    python docs/generate.py            write it
    python docs/generate.py --check    exit 1 if it is not up to date, and say so

It is an error if a flag, a setting, an exit code, a field of the JSON or a kind of event has no
description in `words.py` or in its docstring. A description of something that no longer exists is
an error, too.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import closing, redirect_stdout
from importlib import import_module
from io import StringIO
from pathlib import Path
from typing import Any, get_args

DOCS = Path(__file__).resolve().parent
SOURCE = DOCS.parent / "src" / "perdure"
TARGET = DOCS / "reference" / "cli.md"
DRIVERS = [("agents", each) for each in ("acp", "claude", "codex", "gemini", "opencode", "shared")]
sys.path[:0] = [str(DOCS), str(SOURCE.parent)]

import api  # noqa: E402
import ledger  # noqa: E402
import library  # noqa: E402
import manual  # noqa: E402
import taskrun  # noqa: E402
from words import BARE, BYTES, NOUNS, PERCENT, PLACES, REPORT, SETTINGS, VARIABLES  # noqa: E402

from perdure import config, errors, model  # noqa: E402
from perdure import store as stores  # noqa: E402
from perdure.agents import registry  # noqa: E402
from perdure.cli import main  # noqa: E402
from perdure.cli.runs import stop  # noqa: E402
from perdure.config.files import NOT_FOR_PROJECTS  # noqa: E402
from perdure.config.values import DURATIONS, READERS  # noqa: E402
from perdure.engine import report, service  # noqa: E402
from perdure.model import codec, events  # noqa: E402
from perdure.model.durations import written  # noqa: E402
from perdure.rules import effects  # noqa: E402


def page() -> str:
    """Return the whole page."""
    return "\n".join(
        [
            "# Commands, exit codes, settings, JSON",
            "",
            "<!-- Made by docs/generate.py from the code. Do not edit: change the code, then run "
            "it. -->",
            "",
            "[Verbs](#verbs) · [Exit codes](#exit-codes) · [Settings](#settings) · "
            "[Variables](#variables) · [Agents](#agents) · [The run as JSON](#the-run-as-json) · "
            "[Other JSON](#other-json) · [Events](#events)",
            "",
            *verbs(),
            *exit_codes(),
            *settings(),
            *agents(),
            *run_object(),
            *other_objects(),
            *kinds_of_events(),
        ]
    )


def verbs() -> Iterator[str]:
    yield from ("## Verbs", "")
    yield from (
        "A run is named by its name, its key, its id or a prefix of the id of at least 4 "
        "characters. Data goes to standard output, progress and errors to standard error. `run`, "
        "`retry`, `update`, `resume`, `fork`, `approve`, `deny` and `answer` print the agent's "
        "final message once the run has succeeded. Colors are for terminals: "
        "`NO_COLOR` turns them off, `CLICOLOR_FORCE=1` turns them on into a pipe. On a "
        "Kubernetes cluster it is `perdure --cluster VERB`, which is `kubectl perdure VERB`: see "
        "[the TaskRun resource](taskrun.md#kubectl-perdure).",
        "",
    )
    shown = {verb: text for verb, (_, text) in main.VERBS.items() if text}
    yield from table(
        ("Verb", "What it does"),
        ((f"[`{verb}`](#perdure-{verb})", text) for verb, text in shown.items()),
    )
    for verb, text in shown.items():
        parser = main.parser_of(verb)
        named = [action for action in parser._actions if not action.option_strings]
        words = [f"[{place(a)}]" if a.nargs == "?" else place(a) for a in named]
        yield from (f"### perdure {verb}", "", text[0].upper() + text[1:] + ".", "")
        yield from (f"`{' '.join(['perdure', verb, *words, '[options]'])}`", "")
        yield from table(
            ("Argument", "Meaning"),
            (
                row(verb, action)
                for action in parser._actions
                if action.dest != "help" and action.help != argparse.SUPPRESS
            ),
        )


def row(verb: str, action: argparse.Action) -> tuple[str, str]:
    names = ", ".join(f"`{name}`" for name in action.option_strings) or f"`{place(action)}`"
    if action.option_strings and action.nargs != 0:
        names += f" {code(place(action))}"
    meaning = action.help or next(
        (BARE[name] for name in action.option_strings if name in BARE), ""
    )
    if not meaning:
        raise SystemExit(f"docs/generate.py: {verb} {action.dest} has no help text")
    if action.choices and not action.help:
        meaning += ": " + ", ".join(f"`{choice}`" for choice in action.choices)
    return names, meaning


def place(action: argparse.Action) -> str:
    if action.choices:
        return "|".join(map(str, action.choices))
    return str(action.metavar or action.dest.upper())


def exit_codes() -> Iterator[str]:
    yield from ("## Exit codes", "")
    yield from (
        "`run`, `retry`, `update`, `resume`, `fork`, `approve`, `deny`, `answer`, `wait` and "
        "`attach` end with the code of the run that they followed; with `--detach` with 0 once it "
        "is accepted. `plan run` and `plan retry` end with the code of the plan. The other verbs "
        "end with 0, or with the code of perdure's own error, with these exceptions:",
        "",
        "- `doctor` ends with 1 if a run would fail here, `prove` if a promise does not hold, "
        "`demo` if the conversation did not continue, `sessions check` if a conversation is "
        "damaged, and `sessions repair` if it cannot be repaired.",
        "- `gc` ends with 3 if a person has to decide something, `sessions rebuild` with 6 if an "
        "attempt uses one of the conversations, `home verify` with 7 if a home is damaged, and "
        "`audit --check` with 8 if the trail was changed.",
        f"- `stop` ends with 75 if the agent has not ended within {stop.PATIENCE_S:g} s; "
        "`attach`, `wait` and `logs -f` if no process works on the run.",
        "",
        "What each code means, and what to do: [errors](../errors/README.md).",
        "",
    )
    rows = []
    for number, meaning in service.EXIT_CODES.items():
        classes = [
            name
            for name, kind in vars(errors).items()
            if inspect.isclass(kind) and getattr(kind, "exit_code", 1) == number
        ]
        classes = [name for name in classes if number != 1 and name != "PerdureError"]
        kinds = [
            str(kind)
            for kind in model.OutcomeKind
            if service.exit_code(failed_run(), kind) == number
        ]
        by = ", ".join(f"`{kind}`" for kind in kinds) if number != 1 else "all others"
        rows.append(
            (str(number), meaning, ", ".join(f"`{name}`" for name in classes), by if number else "")
        )
    head = ("Code", "Meaning", "perdure's own error", "Last outcome of a run that has `failed`")
    yield from table(head, rows)


def failed_run() -> model.TaskRun:
    spec = model.TaskSpec(prompt="x")
    return model.TaskRun(
        id="0", name="x", spec=spec, state=model.RunState.FAILED, created=0, updated=0
    )


def settings() -> Iterator[str]:
    same("settings", SETTINGS, READERS)
    yield from ("## Settings", "")
    yield from (
        "A flag goes before the environment, the environment before the project's `perdure.toml` "
        "(the nearest one from the current directory up to the top of the repository), that before "
        "your own `$XDG_CONFIG_HOME/perdure/config.toml` (`~/.config/perdure/config.toml`), that "
        "before the default. All problems are reported at once, each with its file and line. "
        "`perdure doctor` shows what is in force and where it came from. A duration is a number of "
        "seconds, or a number with `s`, `m`, `h` or `d`.",
        "",
    )
    given = config.Settings.__struct_defaults__
    names = config.Settings.__struct_fields__
    defaults = dict.fromkeys(names, "") | dict(zip(names[-len(given) :], given, strict=True))
    defaults["account_jobs"] = ""
    rows = []
    for name, meaning in SETTINGS.items():
        default = PLACES.get(name) or (shown(name, defaults[name]) if defaults[name] != "" else "")
        rows.append(
            (
                f"`{name}`",
                f"`PERDURE_{name.upper()}`",
                default,
                "no" if name in NOT_FOR_PROJECTS else "yes",
                meaning,
            )
        )
    yield from table(("Setting", "Variable", "Default", "In a project's file", "Meaning"), rows)
    yield from (
        "A project's file comes with the repository and is not trusted: it cannot widen "
        "permissions, weaken the policy, or move perdure's own state. Its `verify` is a command of "
        "the repository, and is run.",
        "",
        "```toml",
        "# perdure.toml",
        'agent = "codex"',
        'timeout = "30m"',
        "attempts = 5",
        'verify = "make test"',
        "```",
        "",
        "### Variables",
        "",
    )
    described = {**programs(), **VARIABLES}
    same("variables", described, variables_in_use())
    yield from table(
        ("Variable", "Meaning"), ((f"`{name}`", meaning) for name, meaning in described.items())
    )


def programs() -> dict[str, str]:
    """Return the variables that name the programs of the built-in agents, with their
    description."""
    packages = [
        import_module(place.partition(":")[0]).PACKAGE for place in registry.BUILT_IN.values()
    ]
    return {
        package.variable: (
            f"the program `{package.command}`; default: the first on PATH, followed from a wrapper "
            "to the native program"
        )
        for package in packages
    }


VARIABLE = re.compile(r"\b(?:PERDURE_[A-Z][A-Z_]*[A-Z]|NO_COLOR|CLICOLOR_FORCE)\b")


def variables_in_use() -> set[str]:
    """Return every PERDURE_ variable in the sources that is not a setting, and the variables that
    choose colors. Of drivers only the built-in ones count."""
    texts = (
        path.read_text(encoding="utf-8")
        for path in SOURCE.rglob("*.py")
        if path.relative_to(SOURCE).parts[:2] not in DRIVERS
    )
    found = {name for text in texts for name in VARIABLE.findall(text)}
    return (found | set(programs())) - {f"PERDURE_{name.upper()}" for name in READERS}


def shown(name: str, default: Any) -> str:
    if name in DURATIONS:
        return f"`{written(default)}`"
    if name in BYTES:
        size, unit = next(
            (size, unit) for size, unit in ((1024**3, "GB"), (1024**2, "MB")) if default % size == 0
        )
        return f"`{default // size}{unit}`"
    if name in PERCENT:
        return f"`{default:g}%`"
    if default is None or default == ():
        return ""
    return f"`{default:g}`" if isinstance(default, float) else f"`{default}`"


def agents() -> Iterator[str]:
    yield from ("## Agents", "")
    yield from (
        "Built in; others come by the entry point `perdure.drivers` ([write a "
        "driver](../how-to/write-a-driver.md)). `perdure doctor` shows which of them are installed "
        "here.",
        "",
    )
    rows = []
    for name, place in registry.BUILT_IN.items():
        driver = registry.load(name)
        version = re.search(
            r"Written\s+against ([\w.]+\w)", import_module(place.partition(":")[0]).__doc__ or ""
        )
        if version is None:
            raise SystemExit(
                f"docs/generate.py: the driver {name} does not say which version it was written "
                "against"
            )
        home = driver.home({"HOME": "~"}).as_posix()
        chosen = (
            "by perdure, before the launch"
            if driver.abilities.choose_id
            else "by the agent, read from its output"
        )
        bound = "yes" if driver.abilities.cwd_bound else "no"
        rows.append((f"`{name}`", version[1], f"`{home}`", chosen, bound))
    yield from table(
        (
            "Agent",
            "Written against",
            "Conversations in",
            "The conversation's id is chosen",
            "Only in its own directory",
        ),
        rows,
    )


def run_object() -> Iterator[str]:
    sample = sample_report()
    yield from ("## The run as JSON", "")
    yield from (
        "`show`, `run`, `retry` and `update` print this object with `--json`. Fields may be added "
        "without a new `schema_version`. Times are milliseconds since 1970 (UTC), durations "
        "seconds, money US dollars.",
        "",
        "```json",
        json.dumps(sample, indent=2, ensure_ascii=False),
        "```",
        "",
    )
    own = (
        set(sample)
        | {f"workspace.{key}" for key in sample["workspace"]}
        | {f"attempts[].{key}" for key in sample["attempts"][0]}
    )
    own |= {f"attempts[].effects[].{key}" for key in sample["attempts"][0]["effects"][0]}
    same("fields of the report", REPORT, own)
    rows = [(f"`{name}`", meaning) for name, meaning in REPORT.items()]
    nouns = {
        "contexts[]": "Context",
        "usage": "Usage",
        "attempts[].outcome": "Outcome",
        "attempts[].receipt": "Receipt",
        "attempts[].work": "WorkReport",
    }
    nouns |= {
        "attempts[].receipt.evidence": "Evidence",
        "….before, .after, .last_known": "Snapshot",
        "conditions[]": "Condition",
    }
    used = set()
    for where, noun in nouns.items():
        for field, doc in fields_of(noun):
            words = NOUNS.get(f"{noun}.{field}") or (doc[:1].lower() + doc[1:].rstrip(".")).replace(
                "None where", "null where"
            )
            used.add(f"{noun}.{field}")
            if not words:
                raise SystemExit(
                    f"docs/generate.py: {noun}.{field} has no words, in docs/words.py or the model"
                )
            rows.append((f"`{where}.{field}`", words))
    same("fields of the nouns", NOUNS, used & set(NOUNS))
    yield from table(("Field", "Meaning"), rows)


def sample_report() -> dict[str, Any]:
    """Return the report of an invented run, made by the code that makes real reports."""
    at, session = 1_790_000_000_000, "5f0c1c52-8d6e-4f5e-9a55-3b1f4d9c7e21"
    transcript = f"/srv/agent/.claude/projects/-srv-perdure-work/{session}.jsonl"
    before = model.Snapshot(transcript, 4096, "9f86d081884c7d65…", 1)
    after = model.Snapshot(transcript, 9216, "60303ae22b998861…", 2)
    evidence = model.Evidence(
        asked=session,
        returned=session,
        before=before,
        after=after,
        last_known=before,
        prefix_kept=True,
        known_kept=True,
        prompt_found=True,
        answered=True,
        cached_tokens=1800,
    )
    spec = model.TaskSpec(prompt="Fix the failing test", labels={"team": "billing"})
    attempt = model.Attempt(
        run="",
        number=2,
        context_version=1,
        worker="",
        started=at,
        ended=at + 61_000,
        directory="/srv/perdure/state/runs/4a1d…/2",
        continuation=model.Continuation(
            kind=model.Start.RESUME, session_id=session, reason="its transcript is on disk"
        ),
        session_id=session,
        agent_version="2.1.329",
        flags={
            "agent": "claude",
            "model": "",
            "permissions": "edit",
            "agent_args": "",
            "account": "80e030f1",
        },
        outcome=model.Outcome(kind=model.OutcomeKind.SUCCEEDED, code=0),
        usage=model.Usage(2100, 350, 1800, 200, 0.0213),
        receipt=model.Receipt(
            verdict=model.Verdict.NATIVE, reasons=(f"same id {session}", "…"), evidence=evidence
        ),
    )
    run = model.TaskRun(
        id="4a1d7c0be02f4f4c8d6f0d8b2f6f1c33",
        name="brisk-otter",
        spec=spec,
        state=model.RunState.SUCCEEDED,
        created=at - 90_000,
        updated=at + 61_000,
        finished=at + 61_000,
        attempt=2,
        workspace=model.Workspace(
            id="w",
            path="/srv/perdure/root/.perdure/work/shop--brisk-otter-k3v5q7",
            backend=model.Backend.WORKTREE,
            repo="/srv/shop",
            branch="perdure/brisk-otter",
            base="1c9f0e…",
        ),
        conditions=(
            model.Condition(
                type="collision",
                message="1 foreign prompt(s) came into the conversation …",
                at=at,
            ),
        ),
    )
    pushed = effects.Effect(
        2, "push", "git push origin perdure/brisk-otter", True, effects.DONE, reversible=True
    )
    found = report.run_report(
        run, [attempt], [model.Context(1, spec.prompt, at - 90_000)], [pushed]
    )
    loaded: dict[str, Any] = json.loads(codec.encode(found))
    return loaded


def fields_of(noun: str) -> Iterator[tuple[str, str]]:
    """Yield the fields of a noun of the model, each with the docstring below it."""
    trees = [
        ast.parse(path.read_text(encoding="utf-8"))
        for path in sorted((SOURCE / "model").glob("*.py"))
    ]
    body = next(
        node.body
        for tree in trees
        for node in tree.body
        if isinstance(node, ast.ClassDef) and node.name == noun
    )
    for at, node in enumerate(body):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            after = body[at + 1] if at + 1 < len(body) else None
            said = (
                after.value.value
                if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                else ""
            )
            yield node.target.id, " ".join(str(said).split())


def other_objects() -> Iterator[str]:
    yield from ("## Other JSON", "")
    printed = said_on_a_scratch_store("ls", "why NAME", "agents", "config show", "doctor")
    (row,), (attempt,), finding = (
        printed["ls"]["runs"],
        printed["why NAME"]["attempts"],
        printed["doctor"]["findings"][0],
    )
    inside = {
        "ls": f"; `runs`: {listed(row)}",
        "why NAME": f"; `attempts`: {listed(attempt)}",
        "agents": f"; `agents`: {listed(printed['agents']['agents'][0])}",
        "config show": (
            "; `settings`: by name, each with "
            f"{listed(next(iter(printed['config show']['settings'].values())))}"
        ),
        "doctor": f"; `findings`: {listed(finding)}",
    }
    rows = [
        (f"`{verb} --json`", f"one object with {listed(found)}{inside[verb]}")
        for verb, found in printed.items()
    ]
    rows.append(
        (
            "`logs NAME --json`",
            f"one object a line, with {listed(events.Record.__struct_fields__)}; see "
            "[events](#events)",
        )
    )
    yield from table(("Command", "What it prints"), rows)


def said_on_a_scratch_store(*verbs: str) -> dict[str, dict[str, Any]]:
    """Return the JSON output of each verb for one run that has just been claimed. Only a scratch
    directory is written."""
    before = dict(os.environ)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            os.environ.clear()
            os.environ.update(HOME=scratch, PATH=before.get("PATH", os.defpath))
            with closing(stores.open(Path(scratch, ".local/state/perdure/perdure.db"))) as store:
                place = model.Workspace(id="w", path=scratch, backend=model.Backend.HERE)
                store.add(model.TaskSpec(prompt="x"), "0" * 32, "NAME", place)
                store.claim("nobody", 60.0)
            found = {}
            for verb in verbs:
                with redirect_stdout(StringIO()) as out:
                    main.main([*verb.split(), "--json"])
                found[verb] = json.loads(out.getvalue())
            return found
    finally:
        os.environ.clear()
        os.environ.update(before)


def kinds_of_events() -> Iterator[str]:
    yield from ("## Events", "")
    yield from (
        "One journal a run, append-only: `perdure logs NAME --json`. `attempt` 0 means the run "
        "itself, `seq` grows by one with each record of a store. An event has a `kind` and these "
        "fields:",
        "",
    )
    rows = []
    for kind in (*get_args(events.AgentEvent), *get_args(events.RunEvent)):
        whose = "agent" if kind in get_args(events.AgentEvent) else "perdure"
        words = " ".join((kind.__doc__ or "").split())
        rows.append(
            (f"`{kind.__struct_config__.tag}`", whose, listed(kind.__struct_fields__), words)
        )
    yield from table(("Kind", "Whose", "Fields", "Meaning"), rows)


def listed(names: Any) -> str:
    return ", ".join(f"`{name}`" for name in names)


def code(text: str) -> str:
    return f"`{text}`".replace("|", "\\|")


def table(head: tuple[str, ...], rows: Any) -> Iterator[str]:
    yield "| " + " | ".join(head) + " |"
    yield "|" + "---|" * len(head)
    for cells in rows:
        yield "| " + " | ".join(cell.replace("\n", " ") for cell in cells) + " |"
    yield ""


def same(what: str, described: Mapping[str, str], there: Any) -> None:
    """End the program with a message if descriptions and code do not have the same names."""
    gone, missing = sorted(set(described) - set(there)), sorted(set(there) - set(described))
    if gone or missing:
        parts = [f"without words: {', '.join(missing)}"] * bool(missing) + [
            f"no longer in the code: {', '.join(gone)}"
        ] * bool(gone)
        raise SystemExit(f"docs/generate.py: {what}: {'; '.join(parts)}")


def problem() -> str:
    """Return one sentence if a page on disk differs from the one made from the code, else an empty
    string."""
    there = TARGET.read_text(encoding="utf-8") if TARGET.exists() else ""
    return (
        manual.problem()
        or api.problem()
        or library.problem()
        or ledger.problem(table)
        or taskrun.problem(table)
        if there == page()
        else f"{TARGET.relative_to(DOCS.parent)} is not up to date: run docs/generate.py"
    )


def run(words: list[str]) -> int:
    if words == ["--check"]:
        found = problem()
        if found:
            print(found, file=sys.stderr)
        return 1 if found else 0
    TARGET.write_text(page(), encoding="utf-8")
    manual.write()
    api.write()
    library.write()
    ledger.write(table)
    taskrun.write(table)
    return 0


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
