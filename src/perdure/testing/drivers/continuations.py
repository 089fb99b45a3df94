"""Tests of how a conversation continues: by id, by path, as a fork, after a kill, and from a
restored copy. Also tests that a second process that uses the conversation is noticed."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from perdure.model import Continuation, OutcomeKind, Rung, Start
from perdure.testing.drivers.bench import PATIENCE_S, Make, Suite, resume


class GoingOn(Suite):
    """Tests every way to continue a conversation. None of them may silently start a new
    conversation."""

    def test_a_resume_by_id_goes_on(self, bench: Make) -> None:
        """A resume by id keeps the id, and the model gets both turns. The transcript only grows:
        what it contained before is not changed."""
        stage = bench("say The word is plum.\n---\nsay Plum.")
        first = stage.run("tell me a word")
        before = stage.content(first.session_id)
        second = stage.run("which word was it?", resume(first.session_id))
        assert second.outcome.ok, second.outcome
        assert second.session_id == first.session_id
        assert "tell me a word" in stage.reached_the_model()
        assert "The word is plum." in stage.reached_the_model()
        after = stage.content(first.session_id)
        assert after.startswith(before)
        if not stage.driver.abilities.rewinds:
            known = 0
        else:
            known = len(stage.driver.prompts(before))
        if stage.driver.abilities.rewinds:
            tail = after
        else:
            tail = after[len(before) :]
        assert [prompt.text for prompt in stage.driver.prompts(tail)[known:]] == [
            "which word was it?"
        ]

    def test_a_resume_by_path_goes_on(self, bench: Make) -> None:
        """If the agent can resume from a file, the same conversation continues in this file.
        Otherwise the driver raises ValueError."""
        stage = bench("say One.\n---\nsay Two.")
        first = stage.run("hello one")
        path = stage.driver.transcript(stage.home, first.session_id)
        if not stage.driver.abilities.resume_by_path:
            with pytest.raises(ValueError):
                stage.driver.command(
                    stage.launch("x", resume(first.session_id, Rung.PATH), transcript=str(path))
                )
            return
        second = stage.run("hello two", resume(first.session_id, Rung.PATH), transcript=str(path))
        assert second.outcome.ok, second.outcome
        assert second.session_id == first.session_id
        assert stage.prompts(first.session_id) == ["hello one", "hello two"]

    def test_a_fork_leaves_its_parent_alone(self, bench: Make) -> None:
        """A fork has a new id, and the model gets the whole history. The parent's transcript is
        byte-identical afterwards."""
        stage = bench("say One.\n---\nsay Two.")
        if not stage.driver.abilities.fork:
            return
        first = stage.run("hello one")
        before = stage.content(first.session_id)
        forked = stage.run(
            "another way", Continuation(kind=Start.FORK, session_id=first.session_id)
        )
        assert forked.outcome.ok, forked.outcome
        assert forked.session_id not in ("", first.session_id)
        assert "hello one" in stage.reached_the_model()
        assert stage.content(first.session_id) == before
        assert stage.prompts(forked.session_id)[-1] == "another way"

    def test_an_unknown_conversation_is_said_to_be_missing(self, bench: Make) -> None:
        """Resuming an unknown id fails as SESSION_MISSING. No request reaches the model, so no new
        conversation starts."""
        stage = bench("say Never.")
        ran = stage.run("go on", resume(self.unknown_id()))
        assert ran.outcome.kind is OutcomeKind.SESSION_MISSING, ran.outcome
        assert stage.rehearsal.requests == []

    def test_a_kill_in_the_reply_is_a_failure_that_can_be_gone_on_from(self, bench: Make) -> None:
        """If the CLI is killed during a reply, the outcome names SIGKILL and the transcript
        contains the prompt. A resume then continues the conversation."""
        stage = bench("say One.\n---\nsay Two is half\nhang\n---\nsay Three.")
        first = stage.run("hello one")
        with stage.running("hello two", resume(first.session_id)) as process:
            self._wait(lambda: "hello two" in stage.prompts(first.session_id))
            process.send_signal(signal.SIGKILL)
            out, err = process.communicate(timeout=PATIENCE_S)
        killed = stage.read(process.returncode, out, err)
        assert (killed.outcome.kind, killed.outcome.signal) == (OutcomeKind.FAILED, signal.SIGKILL)
        assert "SIGKILL" in killed.outcome.detail
        again = stage.run("what was I saying?", resume(first.session_id))
        assert again.outcome.ok, again.outcome
        assert again.session_id == first.session_id
        assert stage.prompts(first.session_id) == ["hello one", "hello two", "what was I saying?"]

    def test_a_second_writer_is_seen(self, bench: Make) -> None:
        """A process that has the conversation open is reported as its writer. After this process
        was killed, no writer is reported."""
        stage = bench("say One.\n---\nhang\n---\nsay Three.")
        first = stage.run("hello one")
        assert list(stage.driver.writers(stage.home, first.session_id)) == []
        with stage.running("hello two", resume(first.session_id)) as process:
            self._wait(
                lambda: list(stage.driver.writers(stage.home, first.session_id)) == [process.pid]
            )
            assert list(stage.driver.writers(stage.home, self.unknown_id())) == []
        assert list(stage.driver.writers(stage.home, first.session_id)) == []

    def test_a_copy_put_back_in_place_goes_on(self, bench: Make, tmp_path: Path) -> None:
        """If a conversation's transcript was deleted, the CLI does not find the conversation. After
        the transcript is restored from a copy, a resume continues the conversation."""
        stage = bench("say The word is plum.\n---\nsay Plum.")
        first = stage.run("tell me a word")
        copy = tmp_path / "main"
        copy.write_bytes(stage.content(first.session_id))
        stage.lose(first.session_id)
        assert stage.find(first.session_id) is None
        assert (
            stage.run("go on", resume(first.session_id)).outcome.kind is OutcomeKind.SESSION_MISSING
        )
        stage.put_back(first.session_id, copy)
        assert stage.content(first.session_id) == copy.read_bytes()
        second = stage.run("which word was it?", resume(first.session_id))
        assert second.outcome.ok, second.outcome
        assert "The word is plum." in stage.reached_the_model()
        assert stage.prompts(first.session_id) == ["tell me a word", "which word was it?"]
