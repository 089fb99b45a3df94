"""Bad input at the command line gives one clear sentence and the right exit code. Nothing is lost,
and nothing incomplete is left behind."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from perdure.agents.rehearsal import Rehearsal
from tests.journeys.stage import Done, Stage

RUN = ("run", "--agent", "claude", "--permissions", "full", "--attempts", "1")


@pytest.fixture
def stage() -> Iterator[Stage]:
    """A machine with Claude Code and a model that gives one answer."""
    directory = Path(tempfile.mkdtemp(prefix="pb"))
    with Rehearsal("say Done.") as rehearsal:
        made = Stage(directory, "claude", rehearsal)
        yield made
        made.close()
    shutil.rmtree(directory, ignore_errors=True)


def refused(done: Done, code: int, *words: str) -> None:
    """Check a refusal: one sentence on stderr with these words, no traceback, the exit code, and
    nothing on stdout."""
    assert done.code == code, done.err
    assert "Traceback" not in done.err
    assert done.out == ""
    lines = [line for line in done.err.splitlines() if line.startswith("perdure")]
    assert len(lines) == 1, done.err
    for word in words:
        assert word in done.err, done.err


def nothing_made(stage: Stage) -> None:
    """Check that there is no run, no branch and no workdir, and that nothing reached the model."""
    assert stage.perdure("ls", "--json").json["runs"] == []
    branches = subprocess.run(
        ["git", "branch", "--list", "--format=%(refname:short)"],
        cwd=stage.repo,
        env=stage.environ,
        capture_output=True,
    )
    assert branches.stdout.split() in ([b"main"], [])
    assert list(stage.home.glob(".local/share/perdure/.perdure/work/*")) == []
    assert stage.rehearsal.requests == []


def test_unknown_agent(stage: Stage) -> None:
    """An unknown agent is refused, and the error lists the known ones."""
    refused(stage.perdure("run", "--agent", "clod", "Do it."), 5, "clod", "claude")
    nothing_made(stage)


def test_agent_not_installed(stage: Stage) -> None:
    """If an agent is not installed, the error says how to install it."""
    refused(stage.perdure("run", "--agent", "codex", "Do it."), 5, "npm install")
    nothing_made(stage)


def test_not_a_repository(stage: Stage) -> None:
    """Outside of a repository the error names two ways to continue."""
    shutil.rmtree(stage.repo / ".git")
    refused(stage.perdure(*RUN, "Do it."), 5, "not in a git repository", "--here")
    assert stage.perdure("ls", "--json").json["runs"] == []


def test_unborn_branch(stage: Stage) -> None:
    """A repository without a commit is refused."""
    shutil.rmtree(stage.repo / ".git")
    subprocess.run(["git", "init", "-q"], cwd=stage.repo, env=stage.environ, check=True)
    refused(stage.perdure(*RUN, "Do it."), 7, "no commit")


@pytest.mark.parametrize(
    "branch", ["-D", "../x", "a..b", "x.lock", "a b", "refs@{0}", "a;id", "$(id)", "a\nb", "é"]
)
def test_hostile_branch(stage: Stage, branch: str) -> None:
    """A branch name that git or a shell could misread is never passed to git."""
    refused(stage.perdure(*RUN, f"--branch={branch}", "Do it."), 2, "branch")
    nothing_made(stage)


@pytest.mark.parametrize("task", ["..", "a/b", "-x", "a\nb", "\u202eabc", "x" * 300, ".git"])
def test_hostile_task_name(stage: Stage, task: str) -> None:
    """A task's id that could leave its service's directory is refused."""
    refused(stage.perdure(*RUN, "--service", "billing", f"--task={task}", "Do it."), 2, "task")
    nothing_made(stage)


@pytest.mark.parametrize(
    "words",
    [
        ("run", "--permissions", "all", "Do it."),
        ("run", "--timeout", "soon", "Do it."),
        ("run", "--nmae", "x", "Do it."),
        ("rm",),
        ("plan", "chek", "x.toml"),
        ("--cluster", "ls", "--al"),
    ],
)
def test_words_that_a_verb_does_not_take(stage: Stage, words: tuple[str, ...]) -> None:
    """A misspelt or missing word gives one sentence and the help to read, not a screen of usage."""
    done = stage.perdure(*words)
    refused(done, 2, "--help")
    assert len(done.err.splitlines()) == 2, done.err


@pytest.mark.parametrize(
    "words",
    [
        ("--help",),
        ("--version",),
        ("ls", "--help"),
        ("ls", "--json"),
        ("doctor",),
        ("completion", "bash"),
    ],
)
def test_a_reader_that_went_away(stage: Stage, words: tuple[str, ...]) -> None:
    """`perdure ... | true` prints no error and exits as on success, in each of Python's buffering
    modes."""
    for environ in (stage.environ, stage.environ | {"PYTHONUNBUFFERED": "1"}):
        read, write = os.pipe()
        os.close(read)
        with os.fdopen(write, "w") as pipe:
            command = [sys.executable, "-m", "perdure", *words]
            done = subprocess.run(
                command, cwd=stage.repo, env=environ, stdout=pipe, stderr=subprocess.PIPE, text=True
            )
        assert (done.returncode, done.stderr) == (0, "")


def test_nowhere_to_write(stage: Stage) -> None:
    """If standard output is closed, a verb does its work. If it is full, perdure says so and exits
    with 7."""
    shell = f"{sys.executable} -m perdure"
    for words in ("--help", "ls --json", "doctor", "show nosuch"):
        done = subprocess.run(
            ["sh", "-c", f"{shell} {words} >&-"],
            cwd=stage.repo,
            env=stage.environ,
            capture_output=True,
            text=True,
        )
        assert done.returncode == (5 if "nosuch" in words else 0), done.stderr
        assert "Traceback" not in done.stderr
        full = subprocess.run(
            ["sh", "-c", f"{shell} {words} >/dev/full"],
            cwd=stage.repo,
            env=stage.environ,
            capture_output=True,
            text=True,
        )
        assert full.returncode == (5 if "nosuch" in words else 7), full.stderr
        assert len(full.stderr.splitlines()) == 2, full.stderr


def test_missing_base(stage: Stage) -> None:
    """A base that does not exist is named in the error."""
    refused(stage.perdure(*RUN, "--base", "no-such", "Do it."), 5, "no-such")
    nothing_made(stage)


def test_empty_prompt(stage: Stage) -> None:
    """An empty or blank prompt is refused before anything is made."""
    refused(stage.perdure(*RUN, ""), 2, "empty")
    refused(stage.perdure(*RUN, "-", prompt=" \n\t"), 2, "empty")
    nothing_made(stage)


def test_prompt_over_the_limit(stage: Stage) -> None:
    """A prompt that is too long for the agent is refused with its length and the limit."""
    file = stage.directory / "long.txt"
    file.write_text("x" * 10_500_000)
    refused(stage.perdure(*RUN, "--prompt-file", str(file)), 2, "10,500,000")
    nothing_made(stage)


def test_task_files_that_cannot_be_given(stage: Stage) -> None:
    """As a task file, a missing file, a place outside the workdir, and a directory are refused
    before anything is made."""
    refused(stage.perdure(*RUN, "--file", "none.md", "Do it."), 5, "none.md")
    refused(
        stage.perdure(*RUN, "--file", "greet.py=../greet.py", "Do it."),
        2,
        "not a path in the workdir",
    )
    refused(
        stage.perdure(*RUN, "--file", "greet.py=.git/hooks/pre-commit", "Do it."),
        2,
        ".git belongs to git",
    )
    refused(stage.perdure(*RUN, "--file", ".", "Do it."), 2, "--context")
    nothing_made(stage)


def test_a_key_means_its_files_too(stage: Stage) -> None:
    """The same key with the same file is the same run; with a changed one it is a conflict."""
    file = stage.directory / "spec.md"
    file.write_text("one\n")
    words = (*RUN, "--key", "k", "--file", str(file), "--json", "Do it.")
    first = stage.perdure(*words)
    assert first.code == 0, first.err
    assert stage.perdure(*words).json["id"] == first.json["id"]
    file.write_text("two\n")
    refused(stage.perdure(*words), 6, "other files")


@pytest.mark.parametrize(
    "prompt",
    [
        "- item one\n- item two",
        "--help me",
        "/cost is what I want to know",
        "/compact",
        "@greet.py what is it?",
    ],
)
def test_a_prompt_of_any_shape_reaches_the_model(stage: Stage, prompt: str) -> None:
    """A prompt that begins like a flag or a command of the CLI is still a prompt, and is found in
    the transcript."""
    done = stage.perdure(*RUN, "--json", "-", prompt=prompt)
    assert done.code == 0, done.err
    assert any(prompt.strip() in said for said in stage.rehearsal.prompts()), (
        stage.rehearsal.prompts()
    )
    assert done.json["attempts"][0]["receipt"]["evidence"]["prompt_found"] is True
    assert done.json["attempts"][0]["receipt"]["evidence"]["foreign_turns"] == 0


def test_invalid_configuration(stage: Stage) -> None:
    """All problems of all sources are reported at once, each with its file and line."""
    (stage.repo / "perdure.toml").write_text(
        'agent = "claude"\n\nattempts = "many"\npermissions = "full"\ncolour = 1\n'
    )
    stage.environ["PERDURE_STALL"] = "soon"
    done = stage.perdure(*RUN, "Do it.")
    assert done.code == 2
    for place in ("perdure.toml:3", "perdure.toml:4", "perdure.toml:5", "PERDURE_STALL"):
        assert place in done.err
    assert "4 problem(s)" in done.err


def test_state_directory_that_cannot_be_written(stage: Stage) -> None:
    """If the state cannot be written, nothing is started. (/proc is read-only for every user.)"""
    stage.environ["PERDURE_STATE"] = "/proc/perdure"
    refused(stage.perdure(*RUN, "Do it."), 7, "/proc/perdure")
    assert stage.rehearsal.requests == []


def test_corrupt_database(stage: Stage) -> None:
    """A damaged database is reported, and stays as it is."""
    stage.state.mkdir(parents=True)
    database = stage.state / "perdure.db"
    database.write_bytes(b"this is no database, " * 300)
    before = database.read_bytes()
    refused(stage.perdure(*RUN, "Do it."), 7, "perdure.db")
    assert database.read_bytes() == before
    assert stage.rehearsal.requests == []


def test_disk_full(stage: Stage) -> None:
    """Without disk space for the state, the run is refused with one sentence. The same command
    works when there is space again."""
    stage.state.mkdir(parents=True)
    inside = (
        f"mount -t tmpfs -o size=64k none {stage.state} && exec {sys.executable} -m perdure "
        f"{' '.join(RUN)} Do"
    )
    full = subprocess.run(
        ["unshare", "--map-root-user", "--mount", "sh", "-c", inside],
        cwd=stage.repo,
        env=stage.environ,
        capture_output=True,
        text=True,
    )
    refused(Done(full.returncode, full.stdout, full.stderr), 7, "full")
    assert stage.rehearsal.requests == []
    assert stage.perdure(*RUN, "Do it.").code == 0


def test_corrupt_transcript(stage: Stage) -> None:
    """A transcript that became garbage is moved aside and never overwritten. The run continues
    natively from perdure's own copy."""
    first = stage.perdure(*RUN, "--name", "task", "--json", "Do it.").json
    (transcript,) = stage.transcripts()
    transcript.write_bytes(b"\0garbage\n" * 50)
    done = stage.perdure("update", "task", "Go further.", "--json")
    assert done.code == 0, done.err
    assert done.json["attempts"][1]["session_id"] == first["attempts"][0]["session_id"]
    assert done.json["attempts"][1]["receipt"]["verdict"] == "native"
    assert stage.rehearsal.prompts()[0] == "Do it."
    aside = list(stage.agent_home.rglob("*unusable*"))
    assert [path.read_bytes()[:8] for path in aside] == [b"\0garbage"]


def test_no_credentials(stage: Stage) -> None:
    """Without a key the exit code is 4, and the sentence says what to do."""
    del stage.environ["ANTHROPIC_API_KEY"]
    done = stage.perdure(*RUN, "--name", "task", "--json", "Do it.")
    assert done.code == 4, done.err
    assert done.json["attempts"][0]["outcome"]["kind"] == "auth_failed"
    assert "log in" in done.json["conditions"][0]["message"]
    stage.environ["ANTHROPIC_API_KEY"] = "dummy-key"
    assert stage.perdure("retry", "task").code == 0


def test_the_same_key(stage: Stage) -> None:
    """The same key and task is the same run; the same key with another task is a conflict."""
    first = stage.perdure(*RUN, "--key", "job-7", "--json", "Do it.")
    again = stage.perdure(*RUN, "--key", "job-7", "--json", "Do it.")
    assert (first.code, again.code) == (0, 0), again.err
    assert first.json["id"] == again.json["id"]
    assert len(stage.rehearsal.requests) == 1
    refused(stage.perdure(*RUN, "--key", "job-7", "Do something else."), 6, "job-7")


def test_unknown_run(stage: Stage) -> None:
    """An unknown name exits with 5 in every verb, and the error lists similar names."""
    assert stage.perdure(*RUN, "--name", "brisk-otter", "Do it.").code == 0
    for verb in ("show", "why", "logs", "retry", "stop"):
        refused(stage.perdure(verb, "brisk-oter"), 5, "brisk-otter")


def test_secrets_stay_out(stage: Stage) -> None:
    """perdure's and the forge's secrets never reach the agent. The agent's key is in no file that
    perdure writes."""
    stage.environ |= {
        "PERDURE_GIT_TOKEN": "canary-git-token",
        "GITHUB_TOKEN": "canary-forge",
        "ANTHROPIC_API_KEY": "canary-model-key",
    }
    with Rehearsal("run env > env.txt\n---\nsay Done.") as rehearsal:
        stage.environ["ANTHROPIC_BASE_URL"] = rehearsal.url
        done = stage.perdure(*RUN, "--name", "task", "--json", "Do it.")
    assert done.code == 0, done.err
    seen = (Path(done.json["workspace"]["path"]) / "env.txt").read_text()
    assert "canary-model-key" in seen
    assert "canary-git-token" not in seen
    assert "canary-forge" not in seen
    for path in stage.state.rglob("*"):
        assert not path.is_file() or b"canary" not in path.read_bytes(), path
    shown = stage.perdure("doctor", "--json").out
    assert "ANTHROPIC_API_KEY" in shown
    assert "canary-model-key" not in shown


def test_doctor_with_a_misspelled_setting(stage: Stage) -> None:
    """`perdure doctor` reports a misspelled setting of the user's file, and still runs the other
    checks."""
    file = stage.home / ".config/perdure/config.toml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text('timeuot = "1h"\n')
    done = stage.perdure("doctor")
    assert done.code == 1, done.err
    lines = {tuple(line.split()[:2]): line for line in done.out.splitlines()}
    assert "timeuot" in lines["bad", "settings"]
    assert ("ok", "git") in lines and ("ok", "claude") in lines
