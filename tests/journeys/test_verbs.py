"""The verbs for the work around a run: inspect it, apply its result, clean up, follow it, or let a
pool run it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import perdure
from perdure.agents.rehearsal import Rehearsal
from perdure.cli import choices
from perdure.cli.runs.ls import STATES
from perdure.model import ContinuityPolicy, MapWhen, OnEdit, Permissions, RunState, WhenFull
from tests.journeys.stage import Done, Stage
from tests.journeys.terminal import on_terminal

pytestmark = pytest.mark.journey

WRITES = """by history
run echo one > one.txt; sed -i s/Hello/Hi/ greet.py
---
say The files are written.
"""
SLOW = """by history
run echo one > one.txt; while ! test -e go.txt; do sleep 0.1; done
---
say The files are written.
"""
RUN = ("run", "--agent", "claude", "--permissions", "full", "--name")
HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff]")

MakeStage = Callable[[str], Stage]


@pytest.fixture
def stage() -> Iterator[MakeStage]:
    """Make a machine with Claude Code for a script."""
    directory = Path(tempfile.mkdtemp(prefix="pv"))
    made: list[Stage] = []

    def make(script: str) -> Stage:
        made.append(Stage(directory, "claude", Rehearsal(script).start()))
        return made[-1]

    yield make
    for each in made:
        each.close()
        each.rehearsal.stop()
    shutil.rmtree(directory, ignore_errors=True)


def ran(stage: Stage, name: str = "task") -> Path:
    """Make a run that succeeded. Return its workdir."""
    done = stage.perdure(*RUN, name, "--json", "Write the files.")
    assert done.code == 0, done.err
    return Path(done.json["workspace"]["path"])


def written(stage: Stage, count: int = 1) -> Path:
    """Wait until this number of agents wait in a tool call. Return the workdir of the first."""
    work = stage.home / ".local/share/perdure/.perdure/work"
    return Path(
        stage.until(
            lambda: (found := list(work.glob("*/one.txt"))) and len(found) == count and found[0],
            "the tool runs",
        )
    ).parent


def detached(stage: Stage, name: str = "task") -> Path:
    """Start a run whose agent waits in a tool. Return its workdir; `go.txt` in it lets the agent
    continue."""
    assert stage.perdure(*RUN, name, "--detach", "Write the files.").code == 0
    return written(stage)


def refused(done: Done, code: int, *words: str) -> None:
    """Check that a command was refused with one sentence on stderr that has these words, and with
    nothing on stdout."""
    assert done.code == code, done.err
    assert done.out == "" and "Traceback" not in done.err
    assert len([line for line in done.err.splitlines() if line.startswith("perdure")]) == 1, (
        done.err
    )
    for word in words:
        assert word in done.err, done.err


def git(stage: Stage, *words: str) -> str:
    who = ("-c", "user.name=Ada", "-c", "user.email=ada@example.invalid")
    return subprocess.run(
        ["git", *who, *words],
        cwd=stage.repo,
        env=stage.environ,
        check=True,
        capture_output=True,
        text=True,
    ).stdout


# --- look
# ----------------------------------------------------------------------------------------------------------

HOSTILE = {
    "title.txt": b"\x1b]0;owned\x07\x1b[2J\x1b[31mred\n",
    "clipboard.txt": b"\x1b]52;c;cm0gLXJmIC8K\x07\n",
    "device.txt": b"\x1bP+q544e\x1b\\\x9b31m\xc2\x9b31m\n",
    "overwrites.txt": b"good line\rbad line\x08\x08\n",
    "trojan.py": "if level != 'user\u202e \u2066// admin\u2069 \u2066':\n    pass\n".encode(),
    "invisible.txt": "a\u200bb\ufeffc\n".encode(),
    "latin.txt": b"caf\xe9 \xff\xfe\n",
    "e\x1b[31mscape\n.txt": b"named\n",
    "\u202etxt.exe": b"named\n",
}


def test_a_hostile_diff_is_shown_without_its_effects(stage: MakeStage) -> None:
    """Escapes, carriage returns and direction overrides in files and names are made visible, in a
    pipe and on a terminal. `--raw` prints the patch byte for byte, so that git can apply it."""
    one = stage(WRITES)
    top = ran(one)
    for name, content in HOSTILE.items():
        (top / name).write_bytes(content)
    (top / "binary").write_bytes(bytes(range(256)) * 4)
    shown = one.perdure("diff", "task")
    assert shown.code == 0, shown.err
    assert not HIDDEN.search(shown.out)
    for piece in (
        "^[]0;owned^G^[[2J^[[31mred",
        "good line^Mbad line^H^H",
        "user<U+202E> <U+2066>// admin",
        "a<U+200B>b<U+FEFF>c",
        "+    return 'Hi '",
    ):
        assert piece in shown.out
    assert not HIDDEN.search(one.perdure("diff", "task", "--stat").out)
    code, screen = on_terminal(one, "diff", "task", PAGER="cat")
    assert code == 0
    assert set(re.findall(r"\x1b[^m]*m", screen)) == {
        f"\x1b[{code}m" for code in ("", "1", "31", "32", "36")
    }
    assert not HIDDEN.search(re.sub(r"\x1b\[\d*m", "", screen))
    assert "\x1b" not in on_terminal(one, "diff", "task", PAGER="cat", NO_COLOR="1")[1]
    raw = subprocess.run(
        [sys.executable, "-m", "perdure", "diff", "task", "--raw"],
        cwd=one.repo,
        env=one.environ,
        capture_output=True,
    )
    subprocess.run(["git", "apply"], cwd=one.repo, env=one.environ, input=raw.stdout, check=True)
    assert all((one.repo / name).read_bytes() == content for name, content in HOSTILE.items())


def test_the_pager_is_the_users_own(stage: MakeStage) -> None:
    """On a terminal the diff goes through PAGER. A missing pager, or one that ends early, is no
    error. Into a pipe no pager is used."""
    one = stage(WRITES)
    ran(one)
    code, screen = on_terminal(one, "diff", "task", PAGER="sed s/^/paged:/")
    assert code == 0 and "paged:" in screen
    assert "Hi" in on_terminal(one, "diff", "task", PAGER="no-such-pager")[1]
    assert on_terminal(one, "diff", "task", PAGER="true")[0] == 0
    one.environ["PAGER"] = "sed s/^/paged:/"
    assert "paged" not in one.perdure("diff", "task").out


def test_a_list_keeps_to_the_terminal(stage: MakeStage) -> None:
    """No line of `ls` is wider than the terminal, with long names, reasons and wide characters; a
    pipe gets the lines unshortened."""
    one = stage("say Done.")
    long = "a-name-of-sixty-characters-that-is-longer-than-most-of-them-are"
    for name in (long, "short"):
        assert (
            one.perdure(
                *RUN,
                name,
                "--verify",
                "echo 界界界界界界界界界界界界界界界界界界界界界界界界界界界界界 >&2; exit 1",
                "--verify-rounds",
                "0",
                "Do it.",
            ).code
            == 1
        )
    for columns in (80, 40, 200):
        code, screen = on_terminal(one, "ls", columns=columns, NO_COLOR="1")
        lines = screen.splitlines()
        assert code == 0 and len(lines) == 3, screen
        assert all(
            sum(1 + (unicodedata.east_asian_width(each) in "WF") for each in line) <= columns
            for line in lines
        )
        assert all("failed" in line for line in lines[1:] if columns > 40)
        assert lines[1].startswith("short ") and lines[2].startswith(long[:15]), (
            "a name is what the next command needs"
        )
    assert long in one.perdure("ls").out


def test_what_is_empty_is_told_on_a_terminal(stage: MakeStage) -> None:
    """If there is nothing to list, a terminal gets one sentence and a pipe gets nothing. An update
    without instructions says how to give them."""
    one = stage("say Done.")
    words = {
        "ls": "no runs yet",
        "trash": "the trash is empty",
        "inbox": "no deliveries yet",
        "plan ls": "no plans yet",
    }
    for verb, sentence in words.items():
        code, screen = on_terminal(one, *verb.split())
        assert code == 0 and screen.startswith(sentence) and len(screen.splitlines()) == 1, screen
        assert one.perdure(*verb.split()) == Done(0, "", "")
    assert one.perdure("run", "--name", "task", "Say something.").code == 0
    code, screen = on_terminal(one, "update", "task")
    assert code == 2 and 'perdure update task "new instructions"' in screen


def test_raw_logs_are_the_agents_own_output(stage: MakeStage) -> None:
    """`logs --raw` prints the agent's own output: into a pipe byte for byte, on a terminal without
    escapes. `--attempt` selects an attempt, and `-f` follows the run to its end. While it runs,
    `show` names its process."""
    one = stage(SLOW)
    top = detached(one)
    assert f"  process   {one.agent_pid()}\n" in one.perdure("show").out
    following = one.start("logs", "task", "--raw", "-f")
    (top / "go.txt").touch()
    whole = one.finish(following)
    own = (one.attempt_directory(1) / "stdout").read_text()
    assert (whole.code, whole.out) == (0, own)
    assert one.perdure("logs", "task", "--raw", "--attempt", "1").out == own
    refused(one.perdure("logs", "task", "--raw", "--attempt", "7"), 5, "attempt 7")
    with (one.attempt_directory(1) / "stdout").open("ab") as file:
        file.write(b"\x1b[2Jgone\xff\n")
    assert "\x1b" not in on_terminal(one, "logs", "task", "--raw")[1]
    assert one.perdure("logs", "task", "--raw", "--json").code == 2


# --- take over
# -----------------------------------------------------------------------------------------------------


def test_changes_come_home(stage: MakeStage) -> None:
    """`apply` leaves the run's changes uncommitted in the checkout. If files are in the way, they
    are named, and nothing is changed."""
    one = stage(WRITES)
    ran(one)
    (one.repo / "one.txt").write_text("mine\n")
    done = one.perdure("apply", "task")
    refused(done, 6, "one.txt", "nothing was changed")
    assert (one.repo / "one.txt").read_text() == "mine\n" and "Hello" in (
        one.repo / "greet.py"
    ).read_text()
    (one.repo / "one.txt").unlink()
    done = one.perdure("apply", "task")
    assert (done.code, done.out.split()) == (0, ["greet.py", "one.txt"]), done.err
    assert git(one, "status", "--porcelain").split() == ["M", "greet.py", "??", "one.txt"]
    again = one.perdure("apply", "task")
    assert again.code == 0 and "already" in again.err


def test_changes_come_home_as_a_commit_and_the_rest_goes(stage: MakeStage) -> None:
    """`apply --commit` works in another checkout of the repository. Afterwards nothing of the
    workdir is unsaved, and `rm` removes it."""
    one = stage(WRITES)
    top = ran(one)
    git(one, "branch", "feature")
    git(one, "worktree", "add", "-q", "../feature", "feature")
    refused(one.perdure("rm", "task"), 7, "one.txt", "greet.py", "--force")
    done = one.perdure("apply", "task", "--commit", "--to", "../feature")
    assert done.code == 0, done.err
    assert (
        git(one, "log", "-1", "--format=%an|%cn|%s", "feature")
        == "claude (perdure)|claude (perdure)|Write the files.\n"
    )
    assert git(one, "-C", "../feature", "status", "--porcelain") == ""
    removed = one.perdure("rm", "task")
    assert removed.code == 0, removed.err
    assert not top.exists() and one.perdure("ls", "--json").json["runs"] == []


def test_nothing_to_take_over(stage: MakeStage) -> None:
    """`apply` ends with one sentence if the run worked in the checkout itself or without a
    repository, or if --to is in no repository."""
    one = stage("run echo one > one.txt\n---\nsay Done.\n===\nmatch elsewhere\nsay Done.")
    assert one.perdure(*RUN, "here", "--here", "Do it.").code == 0
    assert one.perdure(*RUN, "plain", "--service", "billing", "Do it.").code == 0
    refused(one.perdure("apply", "here"), 2, "already there")
    assert "one.txt" in one.perdure("diff", "here").out
    refused(one.perdure("diff", "plain"), 2, "nothing to compare")
    refused(one.perdure("apply", "plain"), 2, "nothing to compare")
    ran(one)
    refused(one.perdure("apply", "task", "--to", str(one.tmp)), 5, "not in a git repository")


# --- clean up
# ------------------------------------------------------------------------------------------------------


def test_rm_keeps_everything(stage: MakeStage) -> None:
    """After `rm --force` the whole workdir is in the trash. Branch, journal and copies stay. The
    run's name and key can be used again."""
    one = stage(WRITES)
    top = ran(one)
    run = one.show()
    rows = one.perdure("gc", "--dry-run", "--all", "--json").json["rows"]
    assert [row["name"] for row in rows if row["class"] == "unknown"] == [], (
        "what perdure makes itself is known to it"
    )
    copies = [path.read_bytes() for path in one.copies()]
    done = one.perdure("rm", "--force", "task")
    assert done.code == 0, done.err
    (trash,) = one.home.glob(".local/share/perdure/.perdure/trash/*")
    assert (trash / "workdir/one.txt").read_text() == "one\n" and trash.name in done.out
    assert not top.exists()
    assert "perdure/task" in git(one, "branch") and "perdure" not in git(one, "worktree", "list")
    assert [path.read_bytes() for path in one.copies()] == copies
    assert (one.state / "runs" / run["id"] / "1/stdout").exists()
    for verb in ("show", "logs", "retry", "diff", "rm"):
        refused(one.perdure(verb, "task"), 5, "task")
    assert ran(one) == top


def test_rm_leaves_what_is_in_use(stage: MakeStage) -> None:
    """`rm` refuses a running run. It does not remove a workdir that another run uses, nor a
    directory of the user."""
    one = stage(SLOW)
    top = detached(one)
    refused(one.perdure("rm", "--force", "task"), 6, "running")
    refused(one.perdure("apply", "task"), 6, "running")
    assert "one.txt" in one.perdure("diff", "task").out
    (top / "go.txt").touch()
    assert one.perdure("attach", "task").code == 0
    second = one.perdure(*RUN, "second", "--branch", "perdure/task", "Go on.")
    assert second.code == 0, second.err
    done = one.perdure("rm", "task")
    assert done.code == 0 and "second also works there" in done.out
    assert (top / "one.txt").exists()
    (one.repo / "go.txt").touch()
    assert one.perdure(*RUN, "here", "--here", "Do it.").code == 0
    assert "your own directory" in one.perdure("rm", "here").out
    assert (one.repo / "one.txt").exists()


# --- follow
# --------------------------------------------------------------------------------------------------------


def test_attach_leaves_without_stopping(stage: MakeStage) -> None:
    """Ctrl-C leaves `attach`, and the agent continues. A second `attach` sees the end, with the
    run's own exit code."""
    one = stage(SLOW)
    top = detached(one)
    first = one.start("attach", "task")
    assert first.stderr is not None
    seen = first.stderr.readline() + first.stderr.readline()
    assert "task: claude" in seen and "fresh" in seen
    first.send_signal(signal.SIGINT)
    left = one.finish(first)
    assert left.code == 0 and "continues" in left.err
    assert one.show()["state"] == "running"
    second = one.start("attach", "task")
    (top / "go.txt").touch()
    done = one.finish(second)
    assert done.code == 0, done.err
    assert "The files are written." in done.err and "succeeded" in done.err
    assert one.perdure("attach", "task").code == 0


def test_attach_says_when_nobody_works(stage: MakeStage) -> None:
    """If the supervisor was killed, `attach` does not wait forever, but says how to continue the
    run."""
    one = stage(SLOW)
    started = one.start(*RUN, "task", "Write the files.")
    written(one)
    started.kill()
    one.finish(started)
    done = one.perdure("attach", "task")
    assert done.code == 75 and "perdure retry task" in done.err


# --- the pool
# ------------------------------------------------------------------------------------------------------


def submit(stage: Stage, *names: str, **fields: Any) -> None:
    """Submit runs, and start none."""
    with perdure.open(stage.repo, stage.environ) as runner:
        for name in names:
            runner.submit(
                f"Write the files of {name}.",
                name=name,
                repo=str(stage.repo),
                agent="claude",
                permissions=Permissions.FULL,
                **fields,
            )


def states(stage: Stage) -> dict[str, str]:
    return {run["name"]: run["state"] for run in stage.perdure("ls", "--json").json["runs"]}


def test_the_pool_does_what_is_due(stage: MakeStage) -> None:
    """`work --once` runs all queued runs, two at a time and one attempt each, and ends. Then no run
    is queued."""
    one = stage(WRITES)
    submit(one, "a", "b", "c", "d", "e")
    done = one.perdure("work", "--once", "--jobs", "2")
    assert done.code == 0, done.err
    assert set(states(one).values()) == {"succeeded"}
    assert all(len(one.show(name)["attempts"]) == 1 for name in "abcde")
    assert "5 attempt(s)" in done.err and "0 attempt(s)" in one.perdure("work", "--once").err
    one.nothing_survives()


def test_the_pool_drains(stage: MakeStage) -> None:
    """After the first SIGTERM, running attempts continue to their end, and no new one begins."""
    one = stage(SLOW)
    submit(one, "first", "second")
    pool = one.start("work", "--jobs", "1")
    top = written(one)
    pool.send_signal(signal.SIGTERM)
    assert pool.stderr is not None
    while "draining" not in pool.stderr.readline():
        pass
    (top / "go.txt").touch()
    assert one.finish(pool).code == 0
    assert states(one) == {"first": "succeeded", "second": "queued"}


def test_the_pool_stops_in_good_order(stage: MakeStage) -> None:
    """The second SIGTERM ends the agents. Each run is recorded, no process survives, and a retry
    continues natively."""
    one = stage(SLOW)
    submit(one, "first", "second")
    pool = one.start("work", "--jobs", "2")
    written(one, 2)
    one.until(
        lambda: all(one.show(name)["attempts"][0]["session_id"] for name in ("first", "second")),
        "both are pinned",
    )
    pool.send_signal(signal.SIGTERM)
    pool.send_signal(signal.SIGINT)
    done = one.finish(pool)
    assert done.code == 0, done.err
    assert states(one) == {"first": "cancelled", "second": "cancelled"}
    one.nothing_survives()
    Path(one.show("first")["workspace"]["path"], "go.txt").touch()
    again = one.perdure("retry", "first", "--json")
    assert again.json["attempts"][1]["receipt"]["verdict"] == "native", again.err


def test_the_pool_takes_over_from_the_dead(stage: MakeStage) -> None:
    """A supervisor is killed while its agent works, and so is the pool that took over. The next
    pool adopts the same attempt and completes it."""
    one = stage(SLOW)
    started = one.start(*RUN, "task", "Write the files.")
    top = written(one)
    agent = one.agent_pid()
    started.kill()
    one.finish(started)
    pool = one.start("work")
    assert pool.stderr is not None
    assert "following the attempt again" in pool.stderr.readline()
    pool.kill()
    one.finish(pool)
    os.kill(agent, 0)
    (top / "go.txt").touch()
    done = one.perdure("work", "--once")
    assert done.code == 0, done.err
    report = one.show()
    assert (report["state"], len(report["attempts"])) == ("succeeded", 1)
    one.nothing_survives()


def test_a_run_beside_a_pool(stage: MakeStage) -> None:
    """Whether the pool or the command claims the run first, the command follows it to the end, and
    each run has one attempt."""
    one = stage(WRITES)
    pool = one.start("work", "--jobs", "2")
    started = [
        one.start(*RUN, f"task-{number}", "--quiet", "Write the files.") for number in range(4)
    ]
    for each in started:
        done = one.finish(each)
        assert done.code == 0, done.err
    pool.send_signal(signal.SIGTERM)
    assert one.finish(pool).code == 0
    assert [len(one.show(f"task-{number}")["attempts"]) for number in range(4)] == [1, 1, 1, 1]


# --- what there is
# -------------------------------------------------------------------------------------------------


def test_agents_are_listed(stage: MakeStage) -> None:
    """Every known agent is listed, installed or not, with how to install it and the number of its
    running runs."""
    one = stage(SLOW)
    top = detached(one)
    found = {agent["name"]: agent for agent in one.perdure("agents", "--json").json["agents"]}
    assert {"claude", "codex", "gemini", "opencode"} <= found.keys()
    claude = found["claude"]
    assert (
        claude["installed"] and claude["running"] == 1 and claude["abilities"]["choose_id"] is True
    )
    assert (
        claude["program"] == one.environ["PERDURE_CLAUDE"]
        and claude["version"]
        and claude["home"] == str(one.agent_home)
    )
    assert not found["codex"]["installed"] and "npm install" in found["codex"]["problem"]
    text = one.perdure("agents").out
    assert "running" in text and "not installed" in text
    (top / "go.txt").touch()
    assert one.perdure("attach", "task").code == 0


def test_settings_are_shown_with_their_origin(stage: MakeStage) -> None:
    """Each setting is shown with its value and its origin: a file and line, a variable, or the
    default. Invalid settings are reported."""
    one = stage("say Done.")
    (one.repo / "perdure.toml").write_text('\nattempts = 5\nverify = "make \\u001b[31mtest"\n')
    shown = one.perdure("config", "show", "--origin", "--json").json["settings"]
    assert shown["attempts"] == {"value": 5, "origin": f"{one.repo}/perdure.toml:2"}
    assert shown["grace"]["origin"] == "PERDURE_GRACE" and shown["timeout"] == {
        "value": 3600.0,
        "origin": "default",
    }
    text = one.perdure("config", "show", "--origin").out
    assert "perdure.toml:2)" in text and "\x1b" not in text
    assert "perdure.toml" not in one.perdure("config", "show").out
    (one.repo / "perdure.toml").write_text("attempts = 0\n")
    assert one.perdure("config", "show").code == 2


def test_settings_are_shown_as_they_may_be_written(stage: MakeStage) -> None:
    """`config` without `show` shows the settings, too. It and `doctor` print durations as in a
    settings file, and rules and sources readably. `doctor` reports a default agent that does not
    exist."""
    one = stage("say Done.")
    config = one.home / ".config/perdure/config.toml"
    config.parent.mkdir(parents=True)
    config.write_text(
        'agent = "clod"\ntimeout = "2h"\n[webhooks.shop]\nforge = "gitea"\nsecret_env = "SHOP"\n'
    )
    said = one.perdure("config").out
    rows = [line.split(None, 1) for line in said.splitlines()]
    assert ["timeout", "2h"] in rows and ["gc_workdirs", "14d"] in rows and "shop (gitea, " in said
    short = one.perdure("doctor")
    assert short.code == 1 and str(config) not in short.out
    assert re.search(
        r"^\d+ ok, .*\d+ problems?: a run would fail here \(-v: ", short.out.splitlines()[-1]
    )
    found = one.perdure("doctor", "-v")
    assert (
        found.code == 1
        and "bad   agents       the setting agent: There is no agent named 'clod'" in found.out
    )
    assert f"timeout = 2h  ({config}:2)" in found.out and "webhooks = shop (gitea, " in found.out


def test_the_shell_completes(stage: MakeStage) -> None:
    """bash completes verbs, flags, choices and the names of runs; the scripts for all shells are
    made without an error."""
    one = stage("say Done.")
    assert one.perdure(*RUN, "brisk-otter", "Do it.").code == 0
    script = one.perdure("completion", "bash").out
    launcher = one.tmp / "perdure"
    launcher.write_text(f'#!/bin/sh\nexec {sys.executable} -m perdure "$@"\n')
    launcher.chmod(0o755)
    environ = {**one.environ, "PATH": f"{one.tmp}:{one.environ['PATH']}"}

    def completed(*typed: str) -> set[str]:
        words = " ".join(f"'{word}'" for word in typed)
        ask = (
            f'COMP_WORDS=({words}); COMP_CWORD={len(typed) - 1}; _perdure; printf "%s\\n" '
            f'"${{COMPREPLY[@]}}"'
        )
        done = subprocess.run(
            ["bash", "-c", f"{script}\n{ask}"],
            cwd=one.repo,
            env=environ,
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stderr == ""
        return set(done.stdout.split())

    assert {"run", "diff", "apply", "rm"} <= completed("perdure", "")
    assert completed("perdure", "sho") == {"show"}
    assert completed("perdure", "show", "br") == {"brisk-otter"}
    assert "--permissions" in completed("perdure", "run", "--p")
    assert completed("perdure", "run", "--permissions", "f") == {"full"}
    assert "claude" in completed("perdure", "run", "--agent", "")
    assert completed("perdure", "completion", "") == {"bash", "zsh", "fish"}
    assert "--turn" in completed("perdure", "fork", "--")
    assert "--at" not in completed("perdure", "fork", "--")
    for shell in ("zsh", "fish"):
        assert "brisk-otter" not in (
            made := one.perdure("completion", shell).out
        ) and "--permissions" in made.replace("-l ", "--")
        assert "SUPPRESS" not in made


def test_the_short_way_and_the_long_way_agree(stage: MakeStage) -> None:
    """`ls` reads the database itself in the usual case. If the configuration names another
    database, or the database is damaged, `ls` gives the same list and errors as by the usual
    way."""
    assert tuple(RunState) == STATES
    one = stage("say Done.")
    assert one.perdure("ls", "--json").json["runs"] == []
    for name in ("one", "two", "three"):
        ran(one, name)
    assert one.perdure("rm", "two").code == 0
    submit(one, "four")
    submit(one, "five")
    # This run was made before the fifth, and changed after it.
    assert one.perdure("stop", "four").code == 0
    asked = (
        ("--json",),
        ("--json", "--state", "succeeded"),
        ("--json", "--state", "queued", "--state", "failed"),
        ("--json", "-n", "2"),
    )
    short = [one.perdure("ls", *words).json["runs"] for words in asked]
    assert [[run["name"] for run in runs] for runs in short] == [
        ["four", "five", "three", "one"],
        ["three", "one"],
        ["five"],
        ["four", "five"],
    ]
    config = one.home / ".config/perdure/config.toml"
    config.parent.mkdir(parents=True)
    config.write_text(f'state = "{one.state}"\n')
    assert [one.perdure("ls", *words).json["runs"] for words in asked] == short
    config.write_text('state = "relative"\n')
    assert one.perdure("ls").code == 2
    config.unlink()
    (one.state / "perdure.db").write_bytes(b"this is no database, " * 300)
    refused(one.perdure("ls"), 7, "damaged")
    shutil.rmtree(one.state)
    one.state.write_text("no directory\n")
    for words in (("ls",), ("show", "one"), ("run", "--agent", "claude", "Do it.")):
        refused(one.perdure(*words), 7, "state directory", "not a directory")


HEAVY = {
    *(
        "asyncio",
        "msgspec",
        "rich",
        "subprocess",
        "socket",
        "http",
        "urllib.parse",
        "selectors",
        "logging",
        "concurrent.futures",
    ),
    *(
        "typing",
        "dataclasses",
        "inspect",
        "pathlib",
        "shutil",
        "tomllib",
        "json",
        "contextlib",
        "perdure.model",
    ),
}
"""Modules that `perdure ls` and `--help` do not need. (Python itself loads some of them for `-m`,
so the test starts perdure by its script.)"""


NOT_BEFORE_THE_AGENT = {
    *(
        "http.server",
        "ssl",
        "email",
        "concurrent.futures",
        "logging",
        "importlib.metadata",
        "zoneinfo",
        "difflib",
        "asyncio",
        "yaml",
    ),
    *(
        "perdure.agents.rehearsal",
        "perdure.host.homes.link",
        "perdure.capsule",
        "perdure.engine.plan_file",
        "perdure.engine.sweeper",
    ),
}
"""Modules that a start of an agent does not need: servers, pools, and the packages of other
verbs."""


def test_a_start_loads_nothing_of_other_verbs(stage: MakeStage) -> None:
    """A start loads everything that it needs, and one driver. It does not load the rehearsal's
    server, the moves of homes and the like."""
    one = stage("say Done.")
    wired = (
        "from perdure.cli import compose; from perdure.cli.runs import run; from perdure.agents "
        "import registry as drivers; from perdure.engine import service, worker; "
        "compose.open_engine(compose.settings())"
    )
    words = f"import sys; {wired}; drivers.load('claude'); print(*sorted(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", words],
        cwd=one.repo,
        env=one.environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not NOT_BEFORE_THE_AGENT & set(done.stdout.split())


LATE = {
    *("dataclasses", "inspect", "json", "msgspec", "selectors", "shutil", "subprocess", "tomllib"),
    *("perdure.config", "perdure.model", "perdure.engine.service", "perdure.wiring"),
}
"""Modules that a verb does not need if no run has the given name."""


@pytest.mark.parametrize("words", [["retry", "nope"], ["update", "nope", "More."]])
def test_a_name_of_no_run_is_refused_at_once(stage: MakeStage, words: list[str]) -> None:
    """An unknown name is refused before any module is loaded that works on a run. The hint has
    similar names, and nothing is made."""
    one = stage("say Done.")
    done = _loading(one, words)
    assert done.returncode == 5
    assert "There is no run 'nope'" in done.stderr
    assert not one.state.exists()
    assert not LATE & set(done.stdout.split())
    assert len(done.stdout.split()) <= 75
    ran(one)
    words = [words[0], "tsk", *words[2:]]
    done = _loading(one, words)
    assert "did you mean task?" in done.stderr
    assert not LATE & set(done.stdout.split())


def _loading(one: Stage, words: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a command that prints the modules it imported after its own output, and return its
    result."""
    begin = "import sys; before = set(sys.modules); from perdure.cli.main import main"
    end = "code = main(sys.argv[1:]); print(*sorted(set(sys.modules) - before)); sys.exit(code)"
    return subprocess.run(
        [sys.executable, "-c", f"{begin}; {end}", *words],
        cwd=one.repo,
        env=one.environ,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )


def test_the_choices_of_flags_are_those_of_the_nouns() -> None:
    """The lists of words that a flag accepts equal the values of the nouns. They are kept beside
    the nouns, so that they can be read without loading them."""
    lists = {
        choices.CONTINUITY: ContinuityPolicy,
        choices.MAP_WHEN: MapWhen,
        choices.ON_EDIT: OnEdit,
        choices.PERMISSIONS: Permissions,
        choices.WHEN_FULL: WhenFull,
    }
    for listed, noun in lists.items():
        assert listed == tuple(str(each) for each in noun)


@pytest.mark.parametrize(
    "words", [["ls"], ["ls", "--state", "failed", "-n", "5"], ["--help"], ["--version"]]
)
def test_the_cheapest_verbs_import_nothing_heavy(stage: MakeStage, words: list[str]) -> None:
    """`perdure ls` and `--help` do not load modules that only other verbs need."""
    one = stage("say Done.")
    ran(one)
    begin = "import sys; before = set(sys.modules); from perdure.cli.main import main"
    end = (
        "code = main(sys.argv[1:]); print(*sorted(set(sys.modules) - before), file=sys.stderr); "
        "sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"{begin}; {end}", *words],
        cwd=one.repo,
        env=one.environ,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "perdure.cli.main" in done.stderr.split()
    assert not HEAVY & set(done.stderr.split())
