"""Codex as a kept agent: the bridge with the real app server, and with a small one for behavior
that the real one does not show on request."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from perdure.agents import registry
from perdure.agents.codex.driver import CodexDriver
from perdure.agents.codex.warm import BRIDGE
from perdure.model import Command, Exit, Launch, Permissions, Program, Start
from perdure.protocols import TurnStatus
from perdure.testing.drivers import Bench, DriverConformance
from perdure.testing.drivers.bench import resume
from tests.drivers import test_driver_commands
from tests.drivers.test_driver_commands import ID
from tests.drivers.test_driver_real import Make, benches
from tests.patience import PATIENCE_S

SERVER = Path(__file__).with_name("codex_server.py")


class Kept(CodexDriver):
    """The Codex driver with launches by the app server: each launch is the first turn of a process
    that then ends. Forks use `exec`."""

    def command(self, launch: Launch) -> Command:
        assert self.warm is not None
        return self.warm.command(launch) or super().command(launch)


def kept(make: Make, script: str, **options: bool) -> Bench:
    return replace(make(script, **options), driver=Kept())


class TestKept(DriverConformance):
    """Runs the driver's conformance suite for Codex as a kept agent: threads, ends and errors are
    the same."""

    @pytest.fixture
    def bench(self) -> Iterator[Make]:
        for make in benches("codex"):
            yield partial(kept, make)

    def test_a_second_writer_is_seen(self, bench: Make) -> None:
        """The process that has the thread open is the server, below the bridge. When the bridge is
        killed, the server is killed too, and the thread has no record of an interruption by the
        user."""
        stage = bench("say One.\n---\nhang\n---\nsay Three.")
        first = stage.run("hello one")
        assert list(stage.driver.writers(stage.home, first.session_id)) == []
        with stage.running("hello two", resume(first.session_id)) as process:
            self._wait(lambda: len(stage.driver.writers(stage.home, first.session_id)) == 1)
            (server,) = stage.driver.writers(stage.home, first.session_id)
            above = int(Path(f"/proc/{server}/stat").read_bytes().rpartition(b")")[2].split()[1])
            assert above == process.pid
        self._wait(lambda: not stage.driver.writers(stage.home, first.session_id))
        rollout = stage.driver.transcript(stage.home, first.session_id)
        assert rollout is not None
        assert b"turn_aborted" not in rollout.read_bytes()

    def test_a_kept_process_has_many_turns(self, bench: Make) -> None:
        """Prompts that are already waiting become turns one after the other, all in one thread. The
        process ends after the last turn. All events are seen."""
        stage = bench("say One.\n---\nsay Two.\n---\nsay Three.")
        command = stage.driver.command(stage.launch("hello one"))
        more = [
            stage.driver.command(stage.launch(f"hello {word}\nand {'x' * 100_000}")).stdin
            for word in ("two", "three")
        ]
        with stage._process(command) as process:
            out, err = process.communicate(command.stdin + b"".join(more), timeout=PATIENCE_S)
        told = [json.loads(line) for line in out.splitlines()]
        assert process.returncode == 0, err
        assert len({line["thread_id"] for line in told if line["type"] == "thread.started"}) == 1
        assert [
            line["usage"]["input_tokens"] for line in told if line["type"] == "turn.completed"
        ] == [100, 200, 300]
        assert "hello one" in stage.reached_the_model()
        assert "Two." in stage.reached_the_model()


def carry_out(
    scene: str, *prompts: str, thread: str = "", messages: str = ""
) -> tuple[int, list[dict[str, Any]], str]:
    """Run the bridge with the small server. Return the bridge's exit code, its output lines and its
    stderr."""
    order = {
        "command": [sys.executable, str(SERVER), scene],
        "thread": thread,
        "sandbox": "read-only",
        "model": "",
        "version": "1",
    }
    given = [{"prompt": prompt, "messages": messages} for prompt in prompts]
    lines = "".join(json.dumps(each) + "\n" for each in given)
    argv = [sys.executable, "-I", "-S", str(BRIDGE), json.dumps(order)]
    done = subprocess.run(argv, input=lines, capture_output=True, text=True, timeout=PATIENCE_S)
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()], done.stderr


def said(lines: list[dict[str, Any]]) -> list[str]:
    return [
        line["item"]["text"]
        for line in lines
        if line.get("item", {}).get("type") == "agent_message"
    ]


def test_what_the_server_asks_for_is_refused() -> None:
    """The server's request to allow a command gets an error, as with `exec`, because no person is
    there to allow it."""
    code, lines, _ = carry_out("asks", "hello")
    assert (code, said(lines)) == (0, ["refused", "The answer."])


def messages_in(directory: Path) -> str:
    """Write two messages for the running turn to the directory, and return its path."""
    for version in (2, 3):
        (directory / f"{version}.json").write_text(json.dumps(f"message {version}"))
    (directory / "armed").touch()
    return str(directory)


def test_a_message_that_a_turn_left_behind_reaches_no_other_turn(tmp_path: Path) -> None:
    """If the server accepts a message, but its turn ends before the model has got it, the bridge
    ends without another turn. Otherwise the message would reach that turn twice: left over in the
    thread, and in the next prompt."""
    (tmp_path / "taken-3").touch()
    code, lines, _ = carry_out("keeps", "hello", "again", messages=messages_in(tmp_path))
    assert (code, said(lines)) == (0, ["message 2", "The answer."])
    assert (tmp_path / "taken-2").read_text() == "turn"


def test_no_message_overtakes_a_refused_one(tmp_path: Path) -> None:
    """If the server refuses a message, as it does at the end of a turn, the later message is not
    passed on either. The turn ends as usual."""
    code, lines, _ = carry_out("refuses", "hello", messages=messages_in(tmp_path))
    assert (code, said(lines)) == (0, ["message 2", "The answer."])
    assert not (tmp_path / "taken-3").exists()


@pytest.mark.parametrize("scene", ["wider", "asking", "strange"])
def test_no_turn_begins_with_other_permissions(scene: str) -> None:
    """A server with a sandbox other than ordered, or one that would ask for permission, gets no
    prompt. The attempt fails with the server's message."""
    code, lines, err = carry_out(scene, "hello")
    assert (code, lines) == (1, [])
    assert registry.load("codex").outcome(Exit(code=1, stderr_tail=err), []).kind == "config_error"


def test_no_prompt_goes_into_another_thread() -> None:
    """A server that resumes another thread than requested gets no prompt."""
    code, lines, err = carry_out("another", "hello", thread="one")
    assert (code, lines) == (1, [])
    assert "and two was opened" in err


def test_only_its_own_thread_and_turn_count() -> None:
    """Messages and the end of another thread's turn, or of an earlier turn, are ignored. So are
    unknown notifications. Commands that are still running are ended and reported before the turn is
    over."""
    code, lines, _ = carry_out("crowd", "hello")
    assert (code, said(lines)) == (0, ["The answer."])
    assert [line["type"] for line in lines][-2:] == ["item.completed", "turn.completed"]


def test_a_long_line_arrives_whole() -> None:
    """A message of three megabytes arrives in one line."""
    code, lines, _ = carry_out("long", "hello", "again")
    assert (code, [len(words) for words in said(lines)]) == (0, [3_000_000] * 2)


def test_how_the_server_ends_is_how_the_bridge_ends() -> None:
    """If the server is killed, the bridge ends by the same signal. If the server exits, the bridge
    exits with the same code. A failed turn gives exit code 1."""
    assert carry_out("dies", "hello")[0] == -9
    assert carry_out("leaves", "hello", "again")[0] == 3
    code, lines, _ = carry_out("fails", "hello")
    assert (code, lines[-1]) == (
        1,
        {"type": "turn.failed", "error": {"message": "the model is gone"}},
    )


def test_a_turn_that_nobody_asked_for() -> None:
    """If a server begins a turn by itself, it is ended, as with `exec`, and gets no other
    prompt."""
    code, lines, _ = carry_out("by itself", "hello", "again")
    assert (code, said(lines)) == (0, ["The answer."])


def test_where_a_turn_is_over() -> None:
    """A turn is over when its end is reported. The mark that is returned is the text by which the
    record of that end is found in the rollout."""
    warm = registry.load("codex").warm
    assert warm is not None
    lines = (
        b'{"type":"turn.completed","turn_id":"t"}',
        b'{"type":"turn.started"}',
        b'{"type":"turn.failed"}',
        b'not "turn.completed"',
    )
    heard = list(
        accumulate(
            lines, lambda so_far, line: warm.update_status(line, so_far), initial=TurnStatus()
        )
    )
    assert [each.over for each in heard] == [False, True, False, True, True]
    assert heard[1].mark == '"turn_id":"t","last_agent_message"'


def launch(version: str = "0.169.0", **how: Any) -> Launch:
    """Return a launch of a Codex of this version."""
    return replace(
        test_driver_commands.launch("codex", **how),
        program=Program(path="/bin/codex", version=version),
    )


def order(how: Launch) -> dict[str, Any]:
    warm = registry.load("codex").warm
    assert warm is not None
    command = warm.command(how)
    assert command is not None
    found: dict[str, Any] = json.loads(command.argv[-1])
    return found


def test_what_is_ordered() -> None:
    """The order for the bridge has the thread to resume, the permissions level, the model, and the
    settings that `exec` also gets."""
    fresh = order(
        launch(
            permissions=Permissions.FULL, model="m", agent_args=("-c", "a=1", "--enable=b", "-cc=2")
        )
    )
    assert (fresh["thread"], fresh["sandbox"], fresh["model"]) == ("", "danger-full-access", "m")
    assert fresh["command"][1:6] == ["app-server", "-c", "a=1", "--enable=b", "-cc=2"]
    assert order(launch(kind=Start.RESUME, permissions=Permissions.READ))["thread"] == ID
    assert (
        "sandbox_workspace_write.writable_roots=[]"
        in order(launch(permissions=Permissions.EDIT))["command"]
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ("-i", "dot.png"),
        ("--oss",),
        ("-p", "mine"),
        ("-c",),
        ("--add-dir=/x",),
        ("x",),
        ("-C", "/"),
    ],
)
def test_what_only_exec_takes_has_a_process_of_its_own(arguments: tuple[str, ...]) -> None:
    """Forks, and launches with arguments that the app server does not know, are run with `exec`. An
    invalid id is refused."""
    warm = registry.load("codex").warm
    assert warm is not None
    assert warm.command(launch(agent_args=arguments)) is None
    assert warm.command(launch(kind=Start.FORK)) is None
    with pytest.raises(ValueError, match="id"):
        warm.command(launch(kind=Start.RESUME, session_id="--last"))


@pytest.mark.parametrize(
    ("version", "is_kept"),
    [("0.169.0", True), ("0.170.1", True), ("1.0.0", True), ("0.98.0", False), ("", False)],
)
def test_a_codex_that_nobody_tried_has_a_process_for_each_turn(version: str, is_kept: bool) -> None:
    """The app server is used for tested versions of Codex and newer ones. For older or unknown
    versions, each turn has its own process."""
    warm = registry.load("codex").warm
    assert warm is not None
    assert (warm.command(launch(version)) is not None) is is_kept
