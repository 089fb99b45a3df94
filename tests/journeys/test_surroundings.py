"""Unusual surroundings: no home, no /proc, a terminal that is not UTF-8, an unreachable server, a
missing program."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import perdure
from perdure.agents.rehearsal import Rehearsal
from perdure.cli.main import VERBS
from perdure.model import Permissions
from tests import spread
from tests.journeys.stage import PATIENCE_S, Done, Stage

STRANGER = 54321
"""A user id that no account has."""
WORDS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("show", "logs", "attach", "wait", "path", "cost", "why", "stop", "open", "take-back", "diff", "apply", "checkpoints", "retry", "receipt"), ("task",)),
    **dict.fromkeys(("restore", "rm", "_drive"), ("task",)),
    "run": ("Do it.", "--name", "other"), "update": ("task", "More."), "resume": ("0000", "More."), "fork": ("task", "More."),
    "export": ("task", "-o", "out.capsule"), "import": ("out.capsule",), "move": ("task", "--to", "file:///proc/nowhere"),
    "reset": ("--agent", "claude", "--repository", "shop/web", "--issue", "1"), "work": ("--once",), "serve": ("--listen", "nowhere"),
    "token": ("ls",), "plan": ("ls",), "home": ("status",), "entrypoint": ("true",), "completion": ("bash",),
    "prove": ("claude", "--quick"), "answer": ("task", "More."),
}  # fmt: skip


def test_every_verb_has_words() -> None:
    """For every verb these tests have arguments, or the verb needs none. A new verb must be added
    here."""
    assert set(WORDS) <= set(VERBS)


@pytest.fixture(params=["claude", "codex"])
def stage(request: pytest.FixtureRequest) -> Iterator[Callable[..., Stage]]:
    """Make a machine for a script."""
    yield from machines(request.param)


@pytest.fixture
def one() -> Iterator[Stage]:
    """A machine with Claude Code and a finished run, whose prompt is not plain ASCII."""
    for make in machines("claude"):
        made = make("---\n".join(["say Fertig … ≈ 🎉.\n"] * 8))
        done = made.perdure("run", "--name", "task", "--permissions", "full", "Grüße … 🎉")
        assert done.code == 0, done.err
        yield made


def machines(agent: str) -> Iterator[Callable[..., Stage]]:
    directory = Path(tempfile.mkdtemp(prefix="ps"))
    directory.chmod(0o755)
    made: list[Stage] = []

    def make(script: str, **settings: object) -> Stage:
        made.append(Stage(directory, agent, Rehearsal(script).start(), **settings))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for each in made:
        each.close()
        each.rehearsal.stop()
    shutil.rmtree(directory, ignore_errors=True)


def through(
    stage: Stage, before: tuple[str, ...], *words: str, environ: dict[str, str] | None = None
) -> Done:
    """Run perdure by another program that changes its environment, and return the result."""
    command = [*before, sys.executable, "-m", "perdure", *words]
    done = subprocess.run(
        command, cwd=stage.repo, env=stage.environ if environ is None else environ, stdin=subprocess.DEVNULL, capture_output=True,
        timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    return Done(done.returncode, done.stdout.decode("latin-1"), done.stderr.decode("latin-1"))


def as_stranger() -> tuple[str, ...]:
    """Return the words that run a program as a user without an account. If the tests run as root,
    the program may still read all files, because the Python interpreter may be in a home."""
    if os.getuid() == 0:
        may = "+dac_read_search"
        return (
            "setpriv",
            f"--reuid={STRANGER}",
            f"--regid={STRANGER}",
            "--clear-groups",
            f"--inh-caps={may}",
            f"--ambient-caps={may}",
        )
    return ("unshare", "--user", f"--map-user={STRANGER}")


def without_proc() -> tuple[str, ...]:
    more = () if os.getuid() == 0 else ("--map-root-user",)
    return ("unshare", "--mount", *more, "sh", "-c", 'mount -t tmpfs none /proc && exec "$@"', "sh")


def every_verb(
    stage: Stage,
    before: tuple[str, ...],
    but: tuple[str, ...],
    environ: dict[str, str] | None = None,
) -> dict[str, Done]:
    """Run each verb once; verbs that delete something come last. Check that none ends in a
    traceback."""
    verbs = sorted(
        (verb for verb in VERBS if verb not in ("top", "operator", *but)),
        key=lambda verb: verb in ("rm", "reset"),
    )
    ended = {
        verb: through(stage, before, verb, *WORDS.get(verb, ()), environ=environ) for verb in verbs
    }
    assert {verb: done.err for verb, done in ended.items() if "Traceback" in done.err} == {}
    return ended


def test_a_stream_that_is_not_utf8(one: Stage) -> None:
    """On a stream that is latin-1, other characters are replaced by letters of latin-1, or escaped
    as in JSON. No verb ends in a traceback."""
    ended = every_verb(one, (), ("prove",), one.environ | {"PYTHONIOENCODING": "latin-1"})
    assert "Fertig ... ~ \\ud83c\\udf89." in ended["logs"].out and ended["logs"].code == 0


def test_json_in_latin1_is_still_json(one: Stage) -> None:
    """The output of --json has the same content in every encoding."""
    odd = through(
        one, (), "show", "task", "--json", environ=one.environ | {"PYTHONIOENCODING": "latin-1"}
    )
    assert odd.code == 0 and odd.json == one.show("task")
    assert "\\ud83c\\udf89" in odd.out and odd.json["contexts"][0]["text"] == "Grüße … 🎉"


def test_without_proc(one: Stage) -> None:
    """If /proc is not mounted, each verb works without it or says so in a sentence. No process is
    considered dead for that reason."""
    ended = every_verb(one, without_proc(), ())
    for verb in ("run", "update", "retry", "gc", "work", "prove"):
        assert ended[verb].code == 7 and "/proc" in ended[verb].err, (verb, ended[verb])
    assert ended["doctor"].code == 1 and "/proc" in ended["doctor"].out
    assert one.show("task")["state"] == "succeeded"


@pytest.mark.parametrize("home", [(), ("HOME=/",)])
def test_without_a_home(one: Stage, home: tuple[str, ...]) -> None:
    """For a user without an account and without HOME, a verb that needs no home works; the others
    end with a sentence."""
    environ = {
        name: value
        for name, value in one.environ.items()
        if name != "HOME" and not name.startswith("CLAUDE")
    }
    ended = every_verb(one, (*as_stranger(), "env", *home), ("prove",), environ)
    assert ended["doctor"].code == 1 and "could not save its conversation" in ended["doctor"].out
    assert {
        verb: ended[verb].code for verb in ("ls", "agents", "sessions", "config", "map")
    } == dict.fromkeys(("ls", "agents", "sessions", "config"), 0) | {"map": 7}
    assert ended["run"].code == 7


def test_without_home_the_account_s_home_is_used(one: Stage) -> None:
    """Without HOME, as in a service of systemd, the command and the library keep settings and state
    in the account's home directory, where the agents keep their conversations too."""
    environ = {name: value for name, value in one.environ.items() if name != "HOME"}
    account = (
        "import pwd, sys\n"
        "from types import SimpleNamespace\n"
        "home = sys.argv.pop(1)\n"
        "pwd.getpwuid = lambda number: SimpleNamespace(pw_dir=home, pw_name='ada')\n"
    )
    command = account + "from perdure.cli.main import main\nsys.exit(main())\n"
    library = (
        account + "import perdure\nwith perdure.open() as runner: print(runner.get('task').state)"
    )
    for words in ((command, one.home, "ls"), (command, one.home, "doctor"), (library, one.home)):
        done = subprocess.run(
            [sys.executable, "-c", *map(str, words)],
            cwd=one.repo,
            env=environ,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert "succeeded" in done.stdout or str(one.state) in done.stdout, done.stdout


def test_a_home_that_cannot_be_written(stage: Callable[..., Stage]) -> None:
    """If the home is not writable, so that no conversation could be saved later, the task is refused
    with one sentence before anything is made. With a writable home the task runs."""
    one = stage("say Done.")
    other = one.directory / "other"
    (other / "root").mkdir(parents=True)
    (other / "home").mkdir()
    for path in (other, other / "root", other / "home", one.repo):
        path.chmod(0o777)
    subprocess.run(["chmod", "-R", "a+rwX", str(one.repo)], check=True)
    words = (
        "run",
        "--agent",
        one.agent,
        "--name",
        "task",
        "--permissions",
        "read",
        "--here",
        "Do it.",
    )
    kept = {
        name: value
        for name, value in one.environ.items()
        if name not in ("CLAUDE_CONFIG_DIR", "CODEX_HOME")
    }
    environ = kept | {
        "PERDURE_ROOT": str(other / "root"),
        "PERDURE_STATE": str(other / "root"),
        "HOME": "/",
    }
    refused = through(one, as_stranger(), *words, environ=environ)
    assert (refused.code, refused.out) == (7, ""), refused.err
    assert (
        "could not save its conversation" in refused.err
        and "HOME" in refused.err
        and "Traceback" not in refused.err
    )
    assert one.rehearsal.requests == []
    locked = other / "home" / f".{one.agent}"
    locked.mkdir(mode=0o555)
    refused = through(one, as_stranger(), *words, environ=environ | {"HOME": str(other / "home")})
    assert refused.code == 7 and f"{locked} is not writable" in refused.err, refused.err
    listed = through(one, as_stranger(), "ls", "--json", environ=environ)
    assert listed.json["runs"] == []


NO_TEMPORARY = """
mount --rbind "$1" /srv
for place in /tmp /var/tmp; do mount --rbind $place $place; mount -o remount,bind,ro $place; done
mount --rbind /srv "$1"
cd /proc
shift
exec setpriv --inh-caps=-all --ambient-caps=-all "$@"
"""
NEW_USER = 54321
"""A user id for which Codex's sandbox has never made its directory in /tmp."""


def only_home_writable(one: Stage, user: int) -> tuple[str, ...]:
    """Return the words that run a program with a read-only /tmp, as a user with this id."""
    maps = (f"--map-user={user}", f"--map-group={user}")
    spaces = ("unshare", *maps, "--keep-caps", "--mount")
    return (*spaces, "sh", "-euc", NO_TEMPORARY, "sh", str(one.directory))


def test_without_a_directory_for_temporary_files(stage: Callable[..., Stage]) -> None:
    """If only the home can be written, as in a container with a read-only root, Claude Code and
    Codex's sandbox cannot run commands. perdure refuses that, and doctor says the same. Codex runs
    without its sandbox. It also runs with the sandbox if TMPDIR is elsewhere and the sandbox's own
    directory in /tmp exists. A verb that itself needs a temporary directory says so."""
    one = stage("by history\nrun echo one > one.txt\n---\nsay Done.")
    before = only_home_writable(one, os.getuid())
    environ = {name: value for name, value in one.environ.items() if name != "TMPDIR"}
    words = ("run", "--agent", one.agent, "--name", "task", "--permissions", "full", "--json")
    ended = through(one, before, *words, "--repo", str(one.repo), "Do it.", environ=environ)
    checked = through(one, before, "doctor", "--agent", one.agent, environ=environ)
    proved = through(one, before, "prove", one.agent, "--quick", environ=environ)
    assert "Traceback" not in ended.err + checked.err + proved.err
    assert proved.code == 7 and "set TMPDIR" in proved.err, proved.err
    if one.agent == "claude":
        assert ended.code == 7 and "claude could run no command" in ended.err, ended.err
        assert "Set TMPDIR to a directory that can be written" in ended.err
        assert one.rehearsal.requests == []
        assert checked.code == 1 and "claude could run no command" in checked.out
        # A pool writes the reason to the run, with the command that helps.
        with perdure.open(one.repo, one.environ) as runner:
            runner.submit("Do it.", name="queued", agent="claude", permissions=Permissions.FULL)
        through(one, before, "work", "--once", environ=environ)
        why = one.perdure("why", "queued").out
        assert "claude could run no command" in why and "Set TMPDIR to a directory" in why, why
    else:
        assert ended.code == 0, ended.err
        assert (Path(ended.json["workspace"]["path"]) / "one.txt").read_text() == "one\n"
        free = environ | {"PERDURE_PERMISSIONS": "full"}
        assert checked.code == 1 and "codex could run no command" in checked.out
        checked = through(one, before, "doctor", "--agent", one.agent, environ=free)
        assert checked.code == 0 and "the login was not checked" in checked.out, checked.out
        asked = len(one.rehearsal.requests)
        words = ("run", "--agent", "codex", "--permissions", "edit", "--json")
        words = (*words, "--repo", str(one.repo), "Do it.", "--name")
        ended = through(one, before, *words, "confined", environ=environ)
        assert ended.code == 7 and "codex could run no command" in ended.err, ended.err
        assert "Set TMPDIR to a directory that can be written" in ended.err
        # Even if TMPDIR is elsewhere, the sandbox of 0.169.0 needs /tmp/codex-daemon-UID.
        stranger = only_home_writable(one, NEW_USER)
        ended = through(one, stranger, *words, "never", environ=one.environ)
        assert ended.code == 7 and f"/tmp/codex-daemon-{NEW_USER} cannot be created" in ended.err
        checked = through(one, stranger, "doctor", "--agent", "codex", environ=one.environ)
        assert checked.code == 1 and "codex could run no command: its sandbox" in checked.out
        assert len(one.rehearsal.requests) == asked
        ended = one.perdure(*words, "first")
        assert ended.code == 0, ended.out + ended.err
        ended = through(one, before, *words, "elsewhere", environ=one.environ)
        assert ended.code == 0, ended.out + ended.err
        assert (Path(ended.json["workspace"]["path"]) / "one.txt").read_text() == "one\n"


def test_doctor_warns_of_a_small_volume(one: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A volume that is nearly empty may still be too small for the ballast. `doctor` names such a
    volume and its free space."""
    monkeypatch.setitem(one.environ, "PERDURE_DISK_BALLAST", "900 TB")
    checked = one.perdure("doctor")
    assert f"warn  workdirs     {one.home}" in checked.out and ", only " in checked.out, checked.out


def test_new_instructions_on_a_full_disk_are_given_once(
    one: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If an update is stored but its attempt cannot start, the message says so and names the
    command that continues, so that nobody gives the instructions twice."""
    if spread.is_on():  # That file system is nearly empty, and 99 % is the highest limit.
        (one.home / ".local/share/filler").write_bytes(bytes(50 << 20))
    with monkeypatch.context() as full:
        full.setitem(one.environ, "PERDURE_DISK_REFUSE", "99%")
        full.setitem(one.environ, "PERDURE_DISK_REFUSE_BYTES", "900 TB")
        refused = one.perdure("update", "task", "Again.")
    assert refused.code == 7 and "nearly full" in refused.err, refused.err
    assert "are stored; perdure retry task continues with them" in refused.err
    assert one.perdure("retry", "task").code == 0
    assert [each["version"] for each in one.show("task")["contexts"]][-1] == 2


def test_an_unreachable_server_is_told_at_once(one: Stage) -> None:
    """If a caller waits for a run by URL and the server is unreachable, the error says so at once.
    Nothing is stored, retried or left behind."""
    before = one.perdure("ls", "--json").json["runs"]
    done = one.perdure(
        "run", "--repo", "http://127.0.0.1:9/shop/web.git", "--name", "far", "Do it."
    )
    assert done.code == 7 and "http://127.0.0.1:9/shop/web.git cannot be reached" in done.err, (
        done.err
    )
    assert "Check the network" in done.err and "attempt" not in done.err
    assert one.perdure("ls", "--json").json["runs"] == before


def test_a_missing_interpreter_is_no_reason_to_try_again(one: Stage) -> None:
    """If node is missing, an agent that visibly needs it is refused, and the error names node. If
    this becomes clear only when the agent starts, the run ends at once and needs a person."""
    (one.directory / "bin").mkdir()
    for tool in ("git", "sh", "env"):
        (one.directory / "bin" / tool).symlink_to(str(shutil.which(tool)))
    script = one.directory / "agent.js"
    script.write_text("#!/usr/bin/env node\n")
    script.chmod(0o755)
    poor = one.environ | {"PATH": str(one.directory / "bin"), "PERDURE_CLAUDE": str(script)}
    done = through(one, (), "run", "Do it.", environ=poor)
    assert done.code == 5 and "needs node" in done.err and "Traceback" not in done.err, done.err
    script.write_text("#!/bin/sh\nexec node agent.js\n")
    done = through(
        one,
        (),
        "run",
        "--name",
        "second",
        "--permissions",
        "full",
        "--json",
        "Do it.",
        environ=poor,
    )
    assert done.code != 0
    (attempt,) = done.json["attempts"]
    assert (attempt["outcome"]["kind"], attempt["outcome"]["code"]) == ("config_error", 127)
    assert "node" in attempt["outcome"]["detail"]


def test_new_instructions_for_a_run_at_work(stage: Callable[..., Stage]) -> None:
    """An update for a running run says that its instructions wait until the current attempt has
    ended. After SIGTERM it says that the run continues."""
    one = stage("hang\n---\nsay Done.")
    begun = one.start(
        "run", "--agent", one.agent, "--name", "task", "--permissions", "full", "Begin."
    )
    one.until(lambda: one.rehearsal.requests, "the model is asked")
    more = one.start("update", "task", "Then this.")
    one.until(lambda: len(one.show("task")["contexts"]) == 2, "the instructions are stored")
    read = one.until(lambda: os.read(more.stderr.fileno(), 4096), "it says where it stands")  # type: ignore[union-attr]
    said = read.decode()
    while "start when it ends" not in said:
        said += os.read(more.stderr.fileno(), 4096).decode()  # type: ignore[union-attr]
    assert "attempt 1 is running" in said
    more.terminate()
    last = one.finish(more)
    assert (
        "still running" in last.err
        and "perdure attach task" in last.err
        and "retry" not in last.err
    ), last.err
    assert one.perdure("stop", "task").code == 0
    one.finish(begun)


def test_a_current_directory_that_is_gone(one: Stage) -> None:
    """In a directory that was removed, a command says so in two lines, with exit code 2."""
    gone = one.repo.parent / "gone"
    gone.mkdir()
    script = f'cd "{gone}" && rmdir "{gone}" && exec {sys.executable} -m perdure show task'
    environ = one.environ | {"PYTHONPATH": str(Path(perdure.__file__).parents[1])}
    done = subprocess.run(
        ["sh", "-c", script], cwd=one.repo, env=environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    assert "the current directory does not exist any more" in done.stderr
    assert len(done.stderr.splitlines()) == 2, done.stderr
