"""A person's first commands: with aliases, without a name, with wrong words; and the lists that
follow."""

from __future__ import annotations

import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from perdure.agents.rehearsal import Rehearsal
from perdure.cli.main import ALIASES, GROUPS, GUESSES, VERBS, usage
from perdure.cli.style import width_of
from tests.journeys.stage import Stage
from tests.journeys.terminal import on_terminal

pytestmark = pytest.mark.journey

SCRIPT = """by history
run echo one > one.txt
---
say The file is written.
"""
ARABIC = "أصلح الاختبار الفاشل"


@pytest.fixture
def stage() -> Iterator[Stage]:
    directory = Path(tempfile.mkdtemp(prefix="pf"))
    with Rehearsal(SCRIPT) as rehearsal:
        one = Stage(directory, "claude", rehearsal)
        yield one
        one.close()
    shutil.rmtree(directory, ignore_errors=True)


def test_every_verb_is_in_one_group() -> None:
    """The overview shows about twenty verbs in 80 columns, and `help all` shows every verb. An
    alias is not listed, but runs its verb."""
    grouped = [verb for _, first, rest in GROUPS for verb in (*first.split(), *rest.split())]
    assert sorted(grouped) == sorted(verb for verb, (_, text) in VERBS.items() if text)
    assert len([verb for _, first, _ in GROUPS for verb in first.split()]) <= 23
    assert max(map(len, usage().split("\n"))) <= 80
    assert max(map(len, usage(whole=True).split("\n"))) <= 80
    assert not {*ALIASES, *GUESSES} & set(VERBS) and set(ALIASES.values()) <= set(VERBS)


def test_wrong_words_get_a_hint(stage: Stage) -> None:
    """For a misspelt flag, verb, agent or choice the nearest one is suggested. Forgotten quotes get
    a hint, and a sentence in place of a verb gets the right command. Each error has two lines and
    exit code 2 (for an agent: 5)."""
    words = {
        ("run", "--agnet", "claude", "x"): "Did you mean --agent?",
        ("run", "Fix", "the", "bug"): "Put the prompt in quotes",
        ("run", "--permissions", "edti", "x"): "Did you mean edit?",
        ("run", "--agent", "cluade", "x"): "Did you mean 'claude'?",
        ("stauts",): "perdure status",
        ("upgrade",): "pipx upgrade perdure",
        ("Fix the bug",): 'perdure run "Fix the bug"',
        ("rm",): "missing argument NAME",
        ("show", "a", "b"): "unexpected words: b",
        ("cost", "--by", "week"): "label:team",
        ("ls", "--json", "name,nosuch"): "no field 'nosuch'",
        ("ls", "--since", "soon"): "--since",
        ("ls", "--watch"): "needs a terminal",
        ("ls", "--limit", "x"): "--limit: expected a positive integer, got 'x'",
        ("sessions", "--limit", "0"): "--limit: expected a positive integer, got '0'",
        ("logs", "--tail", "x"): "--tail: expected an integer, got 'x'",
    }
    for typed, hint in words.items():
        done = stage.perdure(*typed)
        assert done.code == (5 if "cluade" in typed else 2), (typed, done)
        assert hint in done.err and len(done.err.splitlines()) == 2, (typed, done.err)
        assert done.out == "" and "Traceback" not in done.err


def test_one_run_in_all_its_views(stage: Stage) -> None:
    """Without a name a verb uses the newest run of the repository, from any directory of the
    repository or the workdir, and the output says which run that is. If two runs fit, a verb that
    changes something does not guess. Lists, logs and costs show what their flags ask for, on any
    terminal."""
    none = stage.perdure("show")
    assert none.code == 5 and "no run of" in none.err
    done = stage.perdure(
        *("run", "--permissions", "full", "--name", "task", "--label", "team=blue"),
        f"Write one file. {ARABIC} 🎉",
    )
    assert done.code == 0, done.err

    shown = stage.perdure("show", "--json")
    assert shown.json["name"] == "task" and shown.err == "perdure: show task\n"
    workdir = stage.perdure("path", "task").out.rstrip("\n")
    assert workdir == shown.json["workspace"]["path"] and Path(workdir).is_dir()
    inside = Path(workdir) / "deep"
    inside.mkdir()
    for place in (inside, stage.repo):
        said = subprocess.run(
            [sys.executable, "-m", "perdure", "path"],
            cwd=place,
            env=stage.environ,
            capture_output=True,
            text=True,
        )
        assert said.stdout.rstrip("\n") == workdir, said.stderr
    assert stage.perdure("status", "-q").out == "task\n"
    assert stage.perdure("wait").code == 0
    assert stage.perdure("cancel").code == 5  # nothing is running here

    # --- ls
    (row,) = stage.perdure("ls", "--json").json["runs"]
    assert (row["repo"], row["branch"]) == (str(stage.repo), "perdure/task")
    assert row["labels"] == {"team": "blue"} and row["prompt"].endswith(f"{ARABIC} 🎉")
    config = stage.home / ".config/perdure/config.toml"
    config.parent.mkdir(parents=True)
    config.write_text(f'state = "{stage.state}"\n')
    assert stage.perdure("ls", "--json").json["runs"] == [row]  # the long form
    config.unlink()
    found = [
        ("--agent", "claude"),
        ("--repo", "."),
        ("--repo", "repo"),
        ("--label", "team"),
        ("--label", "team=blue"),
        ("--since", "1h"),
        ("--state", "succeeded"),
    ]
    for flags in found:
        assert stage.perdure("ls", "-q", *flags).out == "task\n", flags
    for flags in (("--agent", "codex"), ("--repo", "other"), ("--label", "team=red")):
        assert stage.perdure("ls", "-q", *flags).out == "", flags
    assert stage.perdure("ls", "--plan", "shop", "-q").out == ""
    assert stage.perdure("ls", "--json", "name,state").json["runs"] == [
        {"name": "task", "state": "succeeded"}
    ]
    assert stage.perdure("ls", "--format", "{name}: {state}!").out == "task: succeeded!\n"
    head, line = stage.perdure("ls").out.splitlines()
    assert head.split() == "NAME STATE AGENT ATTEMPT AGE COST REPO BRANCH ABOUT".split()
    assert "perdure/task" in line and "Write one file." in line and "\x1b" not in line
    for columns in (40, 80, 300):
        code, screen = on_terminal(stage, "ls", columns=columns)
        assert code == 0 and "\x1b[32m✓ succeeded" in screen, screen
        assert all(width_of(each) <= columns for each in screen.splitlines()), screen
    assert "ok succeeded" in on_terminal(stage, "ls", PYTHONIOENCODING="latin-1")[1]
    assert "task" in on_terminal(stage, "ls", LANG="C", LC_ALL="C")[1]

    # --- logs
    plain = stage.perdure("logs", "task").out.splitlines()
    assert stage.perdure("logs", "-n", "2").out.splitlines() == plain[-2:]
    assert stage.perdure("logs", "-n", "0").out == ""
    assert stage.perdure("logs", "--since", "1h").out.splitlines() == plain
    assert f"  | Write one file. {ARABIC} 🎉" in stage.perdure("logs", "--prompts").out
    timed = stage.perdure("logs", "--times").out.splitlines()
    assert re.match(r"\d\d:\d\d:\d\d ", timed[0]) and len(timed) == len(plain)

    # --- cost
    by_run = stage.perdure("cost", "--json").json
    assert [(each["key"], each["attempts"]) for each in by_run["rows"]] == [("task", 1)]
    assert by_run["total"]["input"] == shown.json["usage"]["input"] > 0
    keys = {
        by: [each["key"] for each in stage.perdure("cost", "--by", by, "--json").json["rows"]]
        for by in ("agent", "repo", "label:team", "label:none")
    }
    assert keys == {
        "agent": ["claude"],
        "repo": [str(stage.repo)],
        "label:team": ["blue"],
        "label:none": ["-"],
    }
    assert stage.perdure("cost", "task").out.splitlines()[-1].startswith("total")

    # --- ten thousand runs, and two runs that a name could mean
    with closing(sqlite3.connect(stage.state / "perdure.db")) as database, database:
        names = [each[1] for each in database.execute("PRAGMA table_info(runs)")]
        changed = {
            "ordinal": "NULL",
            "id": "printf('%032x', value)",
            "name": "'run-' || value",
            "state": "'queued'",
            "attempt": "0",
            "finished": "NULL",
            "workspace_id": "'w' || value",
            "scope": "'s' || value",
        }
        values = ", ".join(changed.get(name, name) for name in names)
        database.execute(
            f"WITH RECURSIVE n(value) AS (SELECT 1 UNION ALL SELECT value + 1 FROM n LIMIT 10000) "
            f"INSERT INTO runs ({', '.join(names)}) SELECT {values} FROM runs, n "
            "WHERE name = 'task'"
        )
    assert len(stage.perdure("ls").out.splitlines()) == 51
    assert len(stage.perdure("ls", "-n", "20000", "-q").out.splitlines()) == 10_001
    assert stage.perdure("ls", "--label", "team=red").out == ""
    several = stage.perdure("stop")
    assert several.code == 2 and "stop could mean several runs" in several.err
    with subprocess.Popen(
        [sys.executable, "-m", "perdure", "ls", "-n", "20000"],
        cwd=stage.repo,
        env=stage.environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as started:
        assert started.stdout is not None and started.stderr is not None
        os.read(started.stdout.fileno(), 10)
        started.stdout.close()
        assert (started.wait(60), started.stderr.read()) == (0, b"")
    assert json.loads(stage.perdure("ls", "-n", "3", "--json").out)["runs"]
