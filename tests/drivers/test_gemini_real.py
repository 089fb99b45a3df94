"""The driver with the real Gemini CLI and the rehearsal: the conformance suite, and the problems
that only this CLI has."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from perdure.agents import registry
from perdure.agents.rehearsal import Rehearsal
from perdure.agents.transcripts import begins_with, fingerprint, prompts_since, snapshot
from perdure.model import (
    Continuation,
    ContinuityPolicy,
    OutcomeKind,
    Permissions,
    Session,
    SessionKey,
    SessionState,
    Start,
)
from perdure.rules.continuation import Situation, choose
from perdure.testing.drivers import Bench, DriverConformance
from perdure.testing.drivers.bench import resume
from tests.patience import PATIENCE_S

MODULES = Path(
    os.environ.get("PERDURE_TEST_AGENTS") or Path(__file__).parents[2] / "agents" / "node_modules"
)
Make = Callable[..., Bench]


@pytest.fixture
def bench() -> Iterator[Make]:
    """Make benches in one scratch directory, without the CLI's own retries, which take five seconds
    each."""
    scratch = Path(tempfile.mkdtemp(prefix="pg"))
    started: list[Rehearsal] = []

    def make(script: str, subscription: bool = False, retries: int = 0) -> Bench:
        rehearsal = Rehearsal(script).start()
        started.append(rehearsal)
        for name in ("home", "tmp", "work"):
            (scratch / name).mkdir(exist_ok=True)
        environ = {
            "PATH": f"{MODULES / '.bin'}:{os.environ['PATH']}",
            "HOME": str(scratch / "home"),
            "TMPDIR": str(scratch / "tmp"),
            "LANG": "C.UTF-8",
            **rehearsal.environ("gemini", scratch / "home" / "gemini", retries=retries),
        }
        return Bench(
            driver=registry.load("gemini"),
            environ=environ,
            rehearsal=rehearsal,
            cwd=scratch / "work",
        )

    yield make
    for rehearsal in started:
        rehearsal.stop()
    shutil.rmtree(scratch, ignore_errors=True)


class TestGemini(DriverConformance):
    """The Gemini CLI."""

    @pytest.fixture
    def bench(self, bench: Make) -> Make:
        return bench

    def test_the_clean_up_keeps_away_from_conversations(self, bench: Make) -> None:
        """A resume in a later minute leaves an empty file. Because of that file, the next run of
        the CLI deletes the conversation, even if it is in use. A run that perdure starts does not.
        A run without perdure does, and this test shows it."""
        stage = bench("say One.")
        first = stage.run("hello one")
        path = stage.driver.transcript(stage.home, first.session_id)
        assert path is not None
        left = path.with_name(f"session-2026-01-02T03-04-{first.session_id[:8]}.jsonl")
        left.write_bytes(path.read_bytes().splitlines(keepends=True)[0])
        assert stage.run("another conversation").outcome.ok
        assert stage.driver.transcript(stage.home, first.session_id) == path
        command = stage.driver.command(stage.launch("by hand"))
        subprocess.run(
            command.argv,
            input=command.stdin,
            cwd=stage.cwd,
            env=stage.environ,
            capture_output=True,
            check=True,
            timeout=PATIENCE_S,
        )
        assert stage.driver.transcript(stage.home, first.session_id) is None

    def test_tools_do_not_inherit_the_guard(self, bench: Make) -> None:
        """A command of the agent gets the user's own NODE_OPTIONS, without the words that perdure
        adds."""
        stage = bench('run echo "[$NODE_OPTIONS]" > options.txt\n---\nsay Done.')
        assert stage.run("look", permissions=Permissions.FULL).outcome.ok
        assert (stage.cwd / "options.txt").read_text() == "[]\n"
        other = bench('run echo "[$NODE_OPTIONS]" > options.txt\n---\nsay Done.')
        command = other.driver.command(
            other.launch(
                "look", permissions=Permissions.FULL, env={"NODE_OPTIONS": "--no-warnings"}
            )
        )
        env = {**other.environ, **command.env}
        subprocess.run(
            command.argv,
            input=command.stdin,
            cwd=other.cwd,
            env=env,
            capture_output=True,
            check=True,
            timeout=PATIENCE_S,
        )
        assert (other.cwd / "options.txt").read_text() == "[--no-warnings]\n"

    def test_it_is_one_process_that_ends_on_request(self, bench: Make) -> None:
        """There is no second process that would outlive a kill. SIGTERM ends the CLI at once, with
        code 0 and no result, which is not a success."""
        stage = bench("hang\nsay Never.")
        with stage.running("hello") as process:
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            assert [
                child
                for child in children
                if b"gemini" in Path(f"/proc/{child}/cmdline").read_bytes()
            ] == []
            process.terminate()
            out, err = process.communicate(timeout=PATIENCE_S)
        ended = stage.read(process.returncode, out, err)
        assert (ended.exit.code, ended.outcome.kind) == (0, OutcomeKind.FAILED)

    def test_a_first_turn_that_failed_leaves_nothing_to_resume(self, bench: Make) -> None:
        """The CLI rolls the turn back, and accepts the id neither for a resume nor for a new start.
        The next attempt begins with a new id."""
        stage = bench("fail 503\nsay One.")
        first = stage.run("hello one")
        assert first.outcome.kind is OutcomeKind.OVERLOADED
        assert stage.prompts(first.session_id) == []
        assert (
            stage.run("go on", resume(first.session_id)).outcome.kind is OutcomeKind.SESSION_MISSING
        )
        again = Continuation(kind=Start.FRESH, session_id=first.session_id)
        assert stage.run("once more", again).outcome.kind is OutcomeKind.WRITER_CONFLICT
        key = SessionKey("gemini", "run:x")
        session = Session(
            key=key, id=first.session_id, state=SessionState.PINNED, created=1, updated=1
        )
        found = snapshot(stage.driver, stage.driver.transcript(stage.home, first.session_id))
        new = str(uuid.uuid4())
        chosen = choose(
            Situation(
                policy=ContinuityPolicy.STRICT, now=1, session=session, transcript=found, new_id=new
            )
        )
        assert (chosen.kind, chosen.session_id) == (Start.FRESH, new)
        assert stage.run("hello one", chosen).outcome.ok

    def test_a_later_turn_that_failed_is_taken_back_and_the_rest_goes_on(self, bench: Make) -> None:
        """The history no longer has the prompt of the failed turn. All earlier records stay, and
        their bytes in the file are unchanged."""
        stage = bench("say One.\n---\nfail 503\nsay Three.")
        first = stage.run("hello one")
        path = stage.driver.transcript(stage.home, first.session_id)
        before = snapshot(stage.driver, path)
        assert path is not None and before is not None
        assert (
            stage.run("hello two", resume(first.session_id)).outcome.kind is OutcomeKind.OVERLOADED
        )
        assert begins_with(stage.driver, path, before)
        assert prompts_since(stage.driver, path, before) == []
        assert stage.run("hello three", resume(first.session_id)).outcome.ok
        assert stage.rehearsal.prompts() == ["hello one", "hello three"]
        assert begins_with(stage.driver, path, before)

    def test_a_prompt_like_a_command_stays_in_the_conversation(self, bench: Make) -> None:
        """On a resume, Gemini CLI drops prompts with a leading slash or question mark from the
        history. Such prompts stay if perdure sent them."""
        stage = bench("say Yes.")
        session = stage.run("/first of all").session_id
        for prompt in ("?second", "third"):
            assert stage.run(prompt, resume(session)).outcome.ok
        shown = stage.reached_the_model()
        assert "/first of all" in shown
        assert "?second" in shown
        assert stage.prompts(session) == ["/first of all", "?second", "third"]

    def test_the_workdir_may_not_widen_what_was_allowed(self, bench: Make) -> None:
        """Settings in the repository allow every command, which would be enough without perdure. At
        the level `read` the agent still runs none."""
        stage = bench("run touch made.txt\n---\nsay Tried.")
        (stage.cwd / ".gemini").mkdir()
        (stage.cwd / ".gemini" / "settings.json").write_text(
            '{"tools":{"allowed":["run_shell_command"]}}'
        )
        stage.run("make it", permissions=Permissions.READ)
        assert not (stage.cwd / "made.txt").exists()

    def test_from_another_directory_nothing_is_found(self, bench: Make) -> None:
        """A conversation belongs to its directory. From another directory it counts as missing, and
        no new one is begun."""
        stage = bench("say One.")
        first = stage.run("hello one")
        elsewhere = replace(stage, cwd=stage.cwd.with_name("elsewhere"))
        elsewhere.cwd.mkdir()
        assert stage.driver.abilities.cwd_bound
        assert (
            elsewhere.run("go on", resume(first.session_id)).outcome.kind
            is OutcomeKind.SESSION_MISSING
        )
        assert len(stage.rehearsal.requests) == 1

    def test_a_compression_is_no_loss(self, bench: Make) -> None:
        """The CLI replaces its history by a summary. The conversation continues, and the earlier
        prompts count as part of it."""
        stage = bench("say One.\n---\nsay Two.\n---\nsay Three.")
        first = stage.run("hello one " + "and more " * 20_000)
        path = stage.driver.transcript(stage.home, first.session_id)
        before = snapshot(stage.driver, path)
        assert path is not None and before is not None
        place = stage.home / "settings.json"
        settings = json.loads(place.read_text())
        place.write_text(
            json.dumps(
                {**settings, "model": {**settings["model"], "compressionThreshold": 0.000001}}
            )
        )
        assert stage.run("hello two", resume(first.session_id)).outcome.ok
        assert "hello one" not in stage.reached_the_model()
        place.write_text(json.dumps(settings))
        assert stage.run("hello three", resume(first.session_id)).outcome.ok
        assert begins_with(stage.driver, path, before)
        assert prompts_since(stage.driver, path, before) == [
            fingerprint("hello two"),
            fingerprint("hello three"),
        ]
