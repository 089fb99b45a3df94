"""The drivers with the real CLIs and the rehearsal: the conformance suite, and the behavior of
single CLIs."""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from msgspec.structs import replace

from perdure.agents import registry
from perdure.agents.rehearsal import Rehearsal, ReplySource
from perdure.model import OutcomeKind, Permissions
from perdure.testing.drivers import Bench, DriverConformance
from perdure.testing.drivers.bench import resume
from tests.patience import PATIENCE_S

COMMANDS = Path(__file__).parents[2] / "agents" / "node_modules" / ".bin"
DOT = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
Make = Callable[..., Bench]


def benches(agent: str, parent: str | None = None) -> Iterator[Make]:
    """Make benches in a scratch directory with a short path, because the path of a socket has at
    most 108 bytes. At the end, stop what they started."""
    scratch = Path(tempfile.mkdtemp(prefix="pd", dir=parent))
    started: list[Rehearsal] = []

    def make(script: str | ReplySource, **options: bool) -> Bench:
        rehearsal = Rehearsal(script).start()
        started.append(rehearsal)
        for name in ("home", "tmp", "work"):
            (scratch / name).mkdir(exist_ok=True)
        outer = {
            "PATH": f"{COMMANDS}:{os.environ['PATH']}",
            "HOME": str(scratch / "home"),
            "TMPDIR": str(scratch / "tmp"),
            "LANG": "C.UTF-8",
        }
        own = rehearsal.environ(agent, scratch / "home" / agent, **options)
        return Bench(
            driver=registry.load(agent),
            environ={**outer, "IS_SANDBOX": "1", **own},
            rehearsal=rehearsal,
            cwd=scratch / "work",
        )

    yield make
    for rehearsal in started:
        rehearsal.stop()
    shutil.rmtree(scratch, ignore_errors=True)


class TestClaude(DriverConformance):
    """Claude Code."""

    @pytest.fixture
    def bench(self) -> Iterator[Make]:
        yield from benches("claude")

    def test_full_permissions_as_root_need_a_word_of_the_user(self, bench: Make) -> None:
        """As root, the CLI refuses full permissions without IS_SANDBOX=1, and the outcome says what
        to do. Other users need no such variable."""
        stage = bench("say One.")
        bare = replace(
            stage,
            environ={name: value for name, value in stage.environ.items() if name != "IS_SANDBOX"},
        )
        ran = bare.run("hello", permissions=Permissions.FULL)
        if os.geteuid() == 0:
            assert ran.outcome.kind is OutcomeKind.CONFIG_ERROR
            assert "IS_SANDBOX=1" in ran.outcome.detail
        else:
            assert ran.outcome.ok

    def test_the_workdir_may_not_widen_what_was_allowed(self, bench: Make) -> None:
        """Settings in the repository allow every command. At the level `read` the agent still runs
        none."""
        stage = bench("run touch made.txt\n---\nsay Tried.")
        (stage.cwd / ".claude").mkdir()
        (stage.cwd / ".claude" / "settings.json").write_text(
            '{"permissions":{"allow":["Bash"],"defaultMode":"bypassPermissions"}}'
        )
        stage.run("make it", permissions=Permissions.READ)
        assert not (stage.cwd / "made.txt").exists()

    @pytest.mark.parametrize("depth", [1, 4])
    def test_a_copy_lies_where_the_cli_itself_would_put_it(self, bench: Make, depth: int) -> None:
        """A copy is restored to the folder that the CLI itself would use for the project, also for
        long paths and for letters beyond ASCII."""
        stage = bench("say One.")
        deep = replace(stage, cwd=stage.cwd.joinpath(*[f"{'a_b.c' * 10}-ü-日本-🙂"] * depth))
        deep.cwd.mkdir(parents=True)
        ran = deep.run("hello")
        assert deep.driver.transcript(deep.home, ran.session_id) == deep.driver.place(
            deep.home, ran.session_id, deep.cwd, deep.cwd
        )

    def test_no_conversation_is_cleaned_away(self, bench: Make) -> None:
        """A run lasts long enough for the CLI's own clean-up to start. Yet a conversation from
        forty days ago stays."""
        stage = bench("say One.\n---\nslow 6\nsay This one takes its time.")
        old = stage.driver.transcript(stage.home, stage.run("hello").session_id)
        assert old is not None
        os.utime(old, (time.time() - 40 * 86400,) * 2)
        assert stage.run("another").outcome.ok
        assert old.exists()

    def test_settings_of_the_user_do_not_switch_the_clean_up_on(self, bench: Make) -> None:
        """With settings given by the user, a conversation from forty days ago still stays, and the
        user's setting is used."""
        stage = bench("say One.\n---\nslow 6\nsay This one takes its time.")
        old = stage.driver.transcript(stage.home, stage.run("hello").session_id)
        assert old is not None
        os.utime(old, (time.time() - 40 * 86400,) * 2)
        assert stage.run(
            "another", agent_args=("--settings", '{"model":"claude-haiku-5-5"}')
        ).outcome.ok
        assert old.exists()
        assert stage.rehearsal.last.model == "claude-haiku-5-5"

    def test_arguments_of_the_user_stand_where_nothing_is_eaten(self, bench: Make) -> None:
        """If the user's last argument is a flag that takes any number of words, it takes neither
        the prompt nor a flag of perdure."""
        stage = bench("say One.")
        assert stage.run("hello", agent_args=("--add-dir", str(stage.cwd))).outcome.ok
        assert "hello" in stage.reached_the_model()


class TestCodex(DriverConformance):
    """The Codex CLI."""

    @pytest.fixture
    def bench(self) -> Iterator[Make]:
        yield from benches("codex")

    def test_arguments_of_the_user_stand_where_nothing_is_eaten(self, bench: Make) -> None:
        """If the user's last argument is a flag that takes any number of files, it does not take
        the subcommand."""
        stage = bench("say One.\n---\nsay Two.")
        first = stage.run("hello one")
        (stage.cwd / "dot.png").write_bytes(DOT)
        second = stage.run(
            "hello two",
            resume(first.session_id),
            agent_args=("-c", "model_reasoning_effort=low", "-i", "dot.png"),
        )
        assert second.outcome.ok, second.outcome
        assert second.session_id == first.session_id

    @pytest.mark.parametrize("linked", [True, False])
    def test_a_commit_works_where_editing_is_allowed(self, linked: bool) -> None:
        """In the sandbox the agent can commit to its branch, also after a resume. In a linked
        worktree it cannot write git's hooks."""
        # The sandbox lets a tool write anywhere below /tmp, so the repository is made elsewhere,
        # where its hooks are protected.
        place = Path(tempfile.gettempdir())
        for bench in benches("codex", "/var/tmp" if place.is_relative_to("/tmp") else str(place)):
            stage = bench(
                "run git add -A && git commit -q -m agent; touch $(git rev-parse "
                "--git-common-dir)/hooks/planted\n---\nsay Done."
            )
            repo = stage.cwd.with_name("repo") if linked else stage.cwd
            identity = ("-c", "user.name=a", "-c", "user.email=a@example.org")
            git = {
                "PATH": stage.environ["PATH"],
                "HOME": stage.environ["HOME"],
                "GIT_CONFIG_NOSYSTEM": "1",
            }
            for step in (
                ("init", "-q", str(repo)),
                ("-C", str(repo), "config", "user.name", "agent"),
                ("-C", str(repo), "config", "user.email", "agent@example.org"),
                ("-C", str(repo), *identity, "commit", "-q", "--allow-empty", "-m", "base"),
                *(
                    [("-C", str(repo), "worktree", "add", "-q", "-f", "-b", "side", str(stage.cwd))]
                    if linked
                    else []
                ),
            ):
                subprocess.run(["git", *step], env=git, check=True, capture_output=True)
            (stage.cwd / "new.txt").write_text("new")
            ran = stage.run("commit it", permissions=Permissions.EDIT)
            assert ran.outcome.ok, ran.outcome
            log = subprocess.run(
                ["git", "-C", str(stage.cwd), "log", "--format=%s", "--name-only"],
                env=git,
                check=True,
                capture_output=True,
            )
            assert log.stdout.split() == [b"agent", b"new.txt", b"base"], ran.events
            assert (repo / ".git/hooks/planted").exists() is not linked


# --- the CLI's own clean-up
# ----------------------------------------------------------------------------------------


def test_an_old_conversation_survives_a_start_under_perdure(tmp_path: Path) -> None:
    """Claude's clean-up removes conversations older than 30 days in every start that lasts a few
    seconds. When perdure starts Claude, none is removed."""
    for parent in ("without", "with"):
        (tmp_path / parent).mkdir()
    kept = {}
    for name in ("without", "with"):
        for make in benches("claude", str(tmp_path / name)):
            go = tmp_path / name / "go"
            # Without perdure, the reply waits until the clean-up is seen. With perdure there is no
            # event to wait for, so the reply is slow.
            wait = f"hold {go}" if name == "without" else "slow 12"
            stage = make(
                f"say One.\n---\n{wait}\nsay A long answer in many words, so that the clean-up has "
                "its time."
            )
            old = stage.run("hello one").session_id
            path = stage.driver.transcript(stage.home, old)
            assert path is not None
            long_ago = time.time() - 40 * 86400
            os.utime(path, (long_ago, long_ago))
            command = stage.driver.command(stage.launch("hello two"))
            words = tuple(
                word for word in command.argv if name == "with" or not word.startswith("--settings")
            )
            with (
                stage._process(replace(command, argv=words)) as process,
                ThreadPoolExecutor(1) as pool,
            ):
                talk = pool.submit(process.communicate, command.stdin, timeout=PATIENCE_S)
                while name == "without" and path.exists() and not talk.done():
                    time.sleep(0.05)
                go.touch()
                talk.result()
            kept[name] = path.exists()
            assert (stage.driver.retention(stage.home) or pytest.fail("it has one")).days == 30
    assert kept == {"without": False, "with": True}


def test_the_users_own_retention_is_read(tmp_path: Path) -> None:
    """The retention in the user's settings is read. It is the default if the setting is missing or
    cannot be read, and None if clean-up is switched off or does not exist."""
    claude, gemini = registry.load("claude"), registry.load("gemini")
    for text, days in (
        ("", 30),
        ("{", 30),
        ('{"cleanupPeriodDays": 5}', 5),
        ('{"cleanupPeriodDays": 0}', None),
        ('{"cleanupPeriodDays": "x"}', 30),
    ):
        (tmp_path / "settings.json").write_text(text)
        found = claude.retention(tmp_path)
        assert (found.days if found else None) == days, text
    for text, days in (
        ("", 30),
        ('{"general":{"sessionRetention":{"enabled":false}}}', None),
        ('{"general":{"sessionRetention":{"maxAge":"2w"}}}', 14),
    ):
        (tmp_path / "settings.json").write_text(text)
        found = gemini.retention(tmp_path)
        assert (found.days if found else None) == days, text
    assert (
        registry.load("codex").retention(tmp_path) is None
        and registry.load("opencode").retention(tmp_path) is None
    )
