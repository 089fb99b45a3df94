"""The ACP driver with two real agents and the rehearsal: the conformance suite, and what differs
over ACP."""

from __future__ import annotations

import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from perdure.agents import registry
from perdure.agents.rehearsal import Rehearsal
from perdure.model import OutcomeKind, Permissions
from perdure.model.events import RetrySeen, SaidPart, TurnEnded
from perdure.testing.drivers import Bench, DriverConformance
from perdure.testing.drivers.bench import PATIENCE_S, resume
from tests.drivers.test_driver_real import COMMANDS, Make


def benches(agent: str) -> Iterator[Make]:
    """Makes benches in a short scratch directory."""
    scratch = Path(tempfile.mkdtemp(prefix="pa"))
    started: list[Rehearsal] = []

    def make(script: str, **options: bool) -> Bench:
        rehearsal = Rehearsal(script).start()
        started.append(rehearsal)
        for name in ("home", "tmp", "work"):
            (scratch / name).mkdir(exist_ok=True)
        outer = {
            "PATH": f"{COMMANDS}:/usr/local/bin:/usr/bin:/bin",
            "HOME": str(scratch / "home"),
            "TMPDIR": str(scratch / "tmp"),
            "LANG": "C.UTF-8",
        }
        own = rehearsal.environ(agent, scratch / "home" / agent, **options)
        return Bench(
            driver=registry.load(f"acp-{agent}"),
            environ={**outer, **own},
            rehearsal=rehearsal,
            cwd=scratch / "work",
        )

    yield make
    for rehearsal in started:
        rehearsal.stop()
    shutil.rmtree(scratch, ignore_errors=True)


class OverAcp(DriverConformance):
    """Tests that are the same for every agent over ACP."""

    def test_a_second_writer_is_seen(self, bench: Make) -> None:
        """While the agent behind the bridge has the conversation open, the driver reports it as a
        writer. After the bridge has ended, it does not."""
        stage = bench("say One.\n---\nhang\n---\nsay Three.")
        first = stage.run("hello one")
        writers = lambda: list(stage.driver.writers(stage.home, first.session_id))  # noqa: E731
        assert writers() == []
        with stage.running("hello two", resume(first.session_id)) as process:
            self._wait(lambda: len(writers()) == 1)
            assert list(stage.driver.writers(stage.home, self.unknown_id())) == []
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE_S) == 143
        assert writers() == []

    def test_the_native_program_goes_on_with_the_conversation(self, bench: Make) -> None:
        """A conversation that began over ACP is the agent's own: its command line can resume it.
        One that began on the command line can be resumed over ACP."""
        stage = bench("say The word is plum.\n---\nsay Plum.\n---\nsay Plum, still.")
        by_hand = replace(stage, driver=registry.load(stage.driver.name.removeprefix("acp-")))
        first = stage.run("tell me a word")
        second = by_hand.run("which word was it?", resume(first.session_id))
        third = stage.run("and now?", resume(first.session_id))
        assert [ran.outcome.ok for ran in (first, second, third)] == [True] * 3
        assert first.session_id == second.session_id == third.session_id
        assert stage.prompts(first.session_id) == [
            "tell me a word",
            "which word was it?",
            "and now?",
        ]
        assert "The word is plum." in stage.reached_the_model()

    def test_a_model_that_is_not_offered_runs_no_turn(self, bench: Make) -> None:
        """If the model is not available, no turn is run with another one. The outcome names the
        available models."""
        stage = bench("say Never.")
        ran = stage.run("hello", model="no-such-model")
        assert ran.outcome.kind is OutcomeKind.CONFIG_ERROR, ran.outcome
        assert self.model in ran.outcome.detail
        assert stage.rehearsal.requests == []


class TestCodexOverAcp(OverAcp):
    """Codex, through codex-acp."""

    model = "gpt-5.5"

    @pytest.fixture
    def bench(self) -> Iterator[Make]:
        yield from benches("codex")

    def test_a_warning_is_not_the_models_answer(self, bench: Make) -> None:
        """codex-acp reports that a model is unknown in a message of the model. That message does
        not count as an answer."""
        ran = bench("say Plum.").run("hello")
        assert "".join(event.text for event in ran.events if isinstance(event, SaidPart)) == "Plum."

    def test_a_failed_turn_is_no_success_whatever_the_stop_reason_says(self, bench: Make) -> None:
        """After a stream that broke off, codex-acp reports the stop reason `end_turn`. The outcome
        is still a failure."""
        ran = bench("cut clean x99\nsay Never.").run("hello")
        assert ran.outcome.kind is OutcomeKind.OVERLOADED, ran.outcome
        assert [event.ok for event in ran.events if isinstance(event, TurnEnded)] == [False]


class TestOpenCodeOverAcp(OverAcp):
    """OpenCode, through `opencode acp`."""

    model = "rehearsal/some-model"

    def unknown_id(self) -> str:
        return "ses_e02d74f19ffeNc6A2Emub9haj6"

    @pytest.fixture
    def bench(self) -> Iterator[Make]:
        yield from benches("opencode")

    @pytest.mark.parametrize(("status", "kind"), [(401, OutcomeKind.AUTH_FAILED)])
    def test_a_failing_service_is_told_apart(
        self, bench: Make, status: int, kind: OutcomeKind
    ) -> None:
        """Only a rejected key (401) is tested. The errors that OpenCode retries by itself would
        take 73 seconds."""
        super().test_a_failing_service_is_told_apart(bench, status, kind)

    def test_the_end_of_a_usage_limit_is_known(self, bench: Make) -> None:
        """Over ACP the end of a limit is not known: OpenCode waits without output for as long as
        the service says."""
        assert bench("limit 2\nsay Later.").run("hello").outcome.ok

    def test_a_conversation_that_is_too_long_is_told_apart(self, bench: Make) -> None:
        """Over ACP the refusal of a too long conversation is not reported. OpenCode compacts by
        itself, and each repeated request is an event."""
        ran = bench("full\nsay Later.").run("hello")
        assert ran.outcome.ok
        assert len(ran.seen(RetrySeen)) >= 1

    def test_answers_that_break_off_are_counted(self, bench: Make) -> None:
        """A stream that ended before the end of the answer is requested again at once. Each
        repeated request is an event."""
        ran = bench("say half\ncut clean x3\n---\nsay Whole.").run("hello")
        assert len(ran.seen(RetrySeen)) == 3
        assert ran.outcome.ok


def test_gemini_over_acp() -> None:
    """A turn over ACP is in Gemini's own conversation: its transcript is found, and the command
    line continues it at once."""
    for bench in benches("gemini"):
        stage = bench("run echo made > made.txt\n---\nsay The word is plum.\n---\nsay Plum.")
        first = stage.run("tell me a word", permissions=Permissions.FULL)
        assert first.outcome.ok, first.outcome
        assert (stage.cwd / "made.txt").exists()
        second = replace(stage, driver=registry.load("gemini")).run(
            "which word was it?", resume(first.session_id)
        )
        assert second.outcome.ok, second.outcome
        assert stage.prompts(first.session_id) == ["tell me a word", "which word was it?"]
        assert "The word is plum." in stage.reached_the_model()
