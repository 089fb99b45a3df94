"""Every verb with unexpected words, and every view on unusual terminals and in unusual locales: a
sentence or a screen, never a traceback."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from perdure.agents.rehearsal import Rehearsal
from perdure.cli.main import VERBS, parser_of
from perdure.cli.style import width_of
from tests.journeys.stage import PATIENCE_S, TOP, Done, Stage

pytestmark = pytest.mark.journey

PROMPT = "أصلح الاختبار الفاشل \u202eelif eht etirW\u202c Grüße 🎉"
ENDLESS = frozenset("serve work top operator demo prove entrypoint _drive".split())
"""Verbs that run until they are stopped, or for minutes, if they get no arguments."""
STARTS = frozenset("retry open take-back gc".split())
"""Verbs that would change the run that later tests use."""
MORE_WORDS: dict[str, tuple[str, ...]] = {
    "answer": ("More.",),
    "export": ("-o", "x.capsule"),
    "fork": ("More.",),
    "move": ("--to", "file:///nowhere"),
    "tell": ("More.",),
    "update": ("More.",),
}
"""Further arguments that a verb needs besides a run's name."""
VIEWS = (
    ("ls",),
    *((verb, "task") for verb in "show logs why cost diff checkpoints requests path".split()),
    *(("doctor",), ("agents",), ("sessions",), ("digest",), ("audit",), ("du",), ("trash",)),
    *(("gc", "--dry-run"), ("logs", "task", "--prompts", "--tools", "--times"), ("config",)),
    *(("help", "all"), ("help",), ("show", "tusk"), ("run", "Fix", "the", "bug")),
)
HIDDEN = re.compile("[\x00-\x08\x0b-\x1a\x1c-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069]")
PAINTED = re.compile(r"\x1b\[[0-9;]*m|\x1b\]8;;[^\x1b]*\x1b\\")
SCRIPT = """by history
run echo one > one.txt
---
say The file is written.
"""


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    """A machine with one finished run."""
    directory = Path(tempfile.mkdtemp(prefix="pe"))
    with Rehearsal(SCRIPT) as rehearsal:
        one = Stage(directory, "claude", rehearsal)
        done = one.perdure("run", "--permissions", "full", "--name", "task", PROMPT)
        assert done.code == 0, done.err
        yield one
        one.close()
    shutil.rmtree(directory, ignore_errors=True)


def tried(
    stage: Stage, lines: Sequence[Sequence[str]], width: int = 0, **environ: str
) -> list[Done]:
    """Run the command lines in one process, and check that none ends in a traceback."""
    child = subprocess.run(
        [sys.executable, "-m", "tests.journeys.every_verb", str(width)],
        cwd=stage.repo,
        env={
            **stage.environ,
            "PYTHONPATH": str(TOP),
            "TERM": "xterm-256color",
            "PAGER": "cat",
            **environ,
        },
        input=json.dumps(list(lines)).encode(),
        capture_output=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert child.returncode == 0, child.stderr.decode()
    ends = [Done(*each) for each in json.loads(child.stdout)]
    faults = {
        " ".join(words): done.err + done.out
        for words, done in zip(lines, ends, strict=True)
        if "Traceback" in done.err + done.out
    }
    assert faults == {}
    return ends


def verbs_of_a_run() -> list[str]:
    """Return the verbs that take a run's name."""
    return [
        verb
        for verb in sorted(VERBS.keys() - ENDLESS - {"token", "trash"})
        if any(each.dest == "name" and not each.option_strings for each in parser_of(verb)._actions)
    ]


def test_a_flag_that_no_verb_has(stage: Stage) -> None:
    """Each verb refuses an unknown flag in one sentence, which names the help to read. The error
    for a missing flag spells the flag as it is typed."""
    lines = [(verb, "--nonsense") for verb in sorted(VERBS)]
    for words, done in zip(lines, tried(stage, lines), strict=True):
        assert done.code == 2 and done.out == "", (words, done)
        sentence, hint = done.err.splitlines()
        assert sentence.startswith(f"perdure {words[0]}: ") and "--help" in hint, done.err
    (missing,) = tried(stage, [("export", "task")])
    assert missing.err.splitlines()[0] == "perdure export: missing argument -o/--output"


def test_nothing_after_a_verb(stage: Stage) -> None:
    """Without arguments each verb works on the newest run, or says in one sentence what is missing."""
    lines = [(verb,) for verb in sorted(VERBS.keys() - ENDLESS - STARTS)]
    for words, done in zip(lines, tried(stage, lines), strict=True):
        assert done.code in (0, 1, 2, 5, 6), (words, done)
        if done.code:
            assert "\n  " in done.err or words == ("doctor",), (words, done.err)


def test_a_name_that_is_none(stage: Stage) -> None:
    """A verb that takes a run's name suggests the nearest one. Control characters in a name are not
    printed."""
    named = verbs_of_a_run()
    assert len(named) > 15
    lines = [(verb, "tusk", *MORE_WORDS.get(verb, ())) for verb in named]
    for words, done in zip(lines, tried(stage, lines), strict=True):
        assert done.code == 5 and "did you mean task?" in done.err, (words, done)
    odd = ("🎉", "../task", "\u202eksat", "a" * 5000, "", " ", "task\n", "\x1b[31mtask", "-")
    lines = [(verb, "--", each) for verb in ("show", "stop", "path", "rm") for each in odd]
    for words, done in zip(lines, tried(stage, lines), strict=True):
        assert done.code in (2, 5) and done.out == "", (words, done)
        assert not HIDDEN.search(done.err) and "\x1b" not in done.err, (words, done)
    lines = [("run", "--name", each, "Do it.") for each in ("🎉", "café", "A", "a" * 64, "-a")]
    for words, done in zip(lines, tried(stage, lines), strict=True):
        assert done.code == 2 and len(done.err.splitlines()) == 2, (words, done)


def test_files_and_repositories_that_are_broken(stage: Stage, tmp_path: Path) -> None:
    """Given a prompt that is not text, a repository with a damaged branch, or a variable that is
    almost a setting, perdure's errors use the user's words, not Python's."""
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    lines = [("run", "--prompt-file", str(tmp_path / name)) for name in ("", "bytes", "none")]
    lines += [("run", "--prompt-file", "a" * 300)]
    directory, undecodable, missing, long = tried(stage, lines)
    assert "is a directory" in directory.err and "not UTF-8 text" in undecodable.err
    assert (directory.code, undecodable.code, missing.code, long.code) == (2, 2, 5, 2)
    for done in (directory, undecodable, missing, long):
        assert "Errno" not in done.err and "codec" not in done.err, done

    broken = tmp_path / "broken"
    subprocess.run(["git", "clone", "-q", stage.repo, broken], check=True, env=stage.environ)
    head = (broken / ".git/HEAD").read_text().removeprefix("ref: ").strip()
    (broken / ".git" / head).write_text("0123456789\n")
    (done,) = tried(stage, [("run", "--repo", str(broken), "Do it.")])
    assert done.code == 7 and "is damaged" in done.err and "fsck" in done.err, done

    (done,) = tried(stage, [("doctor",)], PERDURE_TIMOUT="3m", PERDURE_ATTEMPT="x")
    assert "PERDURE_TIMOUT has no effect; did you mean PERDURE_TIMEOUT?" in done.out, done
    assert "PERDURE_ATTEMPT has" not in done.out


@pytest.mark.parametrize("width", [40, 80, 300])
def test_views_fit_the_terminal(stage: Stage, width: int) -> None:
    """No line of a view is wider than the terminal, except for a word that cannot be broken. Text
    of an agent or a user cannot change the direction of writing."""
    for words, done in zip(VIEWS, tried(stage, VIEWS, width), strict=True):
        for line in PAINTED.sub("", done.out).splitlines():
            longest = max(map(width_of, line.split()), default=0)
            assert width_of(line) <= width or longest > width // 2, (words, line)
            assert not HIDDEN.search(line), (words, line)


def test_views_in_a_plain_locale(stage: Stage) -> None:
    """If the output is ASCII only, the views have the same content, written in ASCII."""
    ascii_only = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    ends = tried(stage, VIEWS, LANG="C", **ascii_only)
    for words, done in zip(VIEWS, ends, strict=True):
        assert (done.out + done.err).isascii(), (words, done)
    assert (
        "Gr\\u00fc\\u00dfe"
        in ends[VIEWS.index(("logs", "task", "--prompts", "--tools", "--times"))].out
    )
