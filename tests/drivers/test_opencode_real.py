"""The OpenCode driver with the real CLI and the rehearsal: the conformance suite, and the problems
that only this CLI has.

After a 429 or a 5xx, OpenCode repeats the request six times in 73 seconds, without output, and no
setting changes this. That is too slow for the suite, so these ends are read from recordings in
`test_opencode`.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from perdure.model import Continuation, OutcomeKind, Permissions, Start
from perdure.model.events import RetrySeen
from perdure.testing.drivers import DriverConformance
from perdure.testing.drivers.bench import PATIENCE_S, resume
from tests.drivers.test_driver_real import Make, benches


class TestOpenCode(DriverConformance):
    """OpenCode."""

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
        """Only a rejected key is tested. The other errors take too long here."""
        super().test_a_failing_service_is_told_apart(bench, status, kind)

    def test_the_end_of_a_usage_limit_is_known(self, bench: Make) -> None:
        """The end of a limit is not known: OpenCode waits without output for as long as the service
        says."""
        stage = bench("limit 2\nsay Later.")
        assert stage.run("hello").outcome.ok
        first, second = stage.rehearsal.requests
        assert second.time - first.time >= 2000

    def test_a_conversation_without_a_word_is_found_by_its_mark(self, bench: Make) -> None:
        """OpenCode was killed before the model answered, and may have printed nothing. The session
        is found by its title, and continues."""
        stage = bench("hang\nsay Never.\n---\nsay I am here.")
        command = stage.driver.command(replace(stage.launch("hello one"), mark="run-1.1"))
        with stage._process(command) as process:
            assert process.stdin is not None
            process.stdin.write(command.stdin)
            process.stdin.close()
            process.stdin = None
            stage.rehearsal.wait_for(1, PATIENCE_S)
            process.send_signal(signal.SIGKILL)
            out, _ = process.communicate(timeout=PATIENCE_S)
        assert b"Never" not in out
        archive = stage.driver.archive
        assert archive is not None
        assert archive.find(stage.home, "run-1.2") == ""
        found = archive.find(stage.home, "run-1.1")
        assert stage.prompts(found) == ["hello one"]
        again = stage.run("still there?", resume(found))
        assert (again.outcome.ok, again.session_id) == (True, found)
        assert stage.prompts(found) == ["hello one", "still there?"]

    def test_a_conversation_of_another_directory_is_refused(self, bench: Make) -> None:
        """In another directory the CLI would hang for ever, so it is not launched. A link to the
        same directory is accepted."""
        stage = bench("say One.\n---\nsay Two.")
        first = stage.run("hello one")
        elsewhere = replace(stage, cwd=stage.cwd / "below")
        elsewhere.cwd.mkdir()
        for asked in (
            resume(first.session_id),
            Continuation(kind=Start.FORK, session_id=first.session_id),
        ):
            assert str(stage.cwd) in stage.driver.refuse(elsewhere.launch("hello two", asked))
        link = replace(stage, cwd=stage.cwd.with_name("link"))
        link.cwd.symlink_to(stage.cwd)
        assert link.driver.refuse(link.launch("hello two", resume(first.session_id))) == ""
        assert link.run("hello two", resume(first.session_id)).outcome.ok

    def test_answers_that_break_off_are_counted(self, bench: Make) -> None:
        """A stream that ended before the end of the answer is requested again at once. Each
        repeated request is an event."""
        ran = bench("say half\ncut clean x3\n---\nsay Whole.").run("hello")
        assert len(ran.seen(RetrySeen)) == 3
        assert ran.outcome.ok

    def test_a_copy_put_back_leaves_the_others_alone(self, bench: Make, tmp_path: Path) -> None:
        """A copy is restored while the database has other conversations, and newer turns of this
        one. No item of those is added or removed."""
        stage = bench("say One.\n---\nsay Two.\n---\nsay Three.")
        mine, other = stage.run("mine"), stage.run("other")
        copy = tmp_path / "main"
        copy.write_bytes(stage.content(mine.session_id))
        stage.run("mine again", resume(mine.session_id))
        before = [stage.content(ran.session_id) for ran in (mine, other)]
        stage.put_back(mine.session_id, copy)
        assert [stage.content(ran.session_id) for ran in (mine, other)] == before

    def test_the_workdir_may_not_widen_what_was_allowed(self, bench: Make) -> None:
        """A project's configuration allows everything, also for an agent that it defines. At the
        level `read` the agent still runs no command."""
        stage = bench("run touch made.txt\n---\nsay Tried.")
        allow = '{"permission":"allow","agent":{"build":{"permission":{"bash":"allow"}}}}'
        (stage.cwd / "opencode.json").write_text(allow)
        (stage.cwd / ".opencode").mkdir()
        (stage.cwd / ".opencode" / "opencode.json").write_text(allow)
        stage.run("make it", permissions=Permissions.READ)
        assert not (stage.cwd / "made.txt").exists()

    def test_a_path_outside_is_refused_and_the_agent_goes_on(self, bench: Make) -> None:
        """At the level `edit` a tool call that leaves the workdir fails. The model gets the error,
        and the turn continues to its end."""
        stage = bench("run ls /usr/share\n---\nsay I may not.")
        ran = stage.run("look around", permissions=Permissions.EDIT)
        assert ran.outcome.ok, ran.outcome
        assert "I may not." in str(ran.events)

    def test_arguments_of_the_user_stand_where_nothing_is_eaten(self, bench: Make) -> None:
        """If the user's last argument is a flag that takes any number of files, it takes neither
        the prompt nor a flag of perdure."""
        stage = bench("say One.")
        (stage.cwd / "note.txt").write_text("a note")
        assert stage.run("hello", agent_args=("--file", "note.txt")).outcome.ok
        assert "hello" in stage.reached_the_model()


def test_a_title_uses_up_no_script() -> None:
    """For a session without a title OpenCode asks the model for one. The rehearsal answers this as
    a side request, without using an answer of the script."""
    for bench in benches("opencode"):
        stage = bench("say One.\n---\nsay Two.")
        assert stage.run("hello one").outcome.ok
        assert [request.reply for request in stage.rehearsal.requests] == [0]
        assert "side" in {request.answer for request in stage.rehearsal.everything}
