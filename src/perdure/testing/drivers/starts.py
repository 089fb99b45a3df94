"""Tests of how a conversation starts: its id and its transcript, its permissions, and the text that
reaches the model."""

from __future__ import annotations

import uuid

import pytest
from msgspec.structs import replace

from perdure.model import Continuation, Permissions, Start
from perdure.model.events import ToolEnded, ToolStarted, TurnEnded, Unrecognised, UsageSeen
from perdure.testing.drivers.bench import Make, Suite, resume

AWKWARD = (
    *(
        "/cost",
        " /clear and more",
        "/no-such-command x",
        "-p --help",
        "@nothing.txt",
        "!ls",
        "# heading",
    ),
    "  two\n\nparagraphs, with ümläuts, 日本 and 🙂\n",
)
"""Prompts with unusual characters, or that a CLI might mistake for an option or a command."""


class StartSuite(Suite):
    """Tests of the first prompt of a conversation and of the launch options."""

    def test_a_conversation_starts_and_is_found(self, bench: Make) -> None:
        """The conversation has the requested id, if the CLI accepts one. The driver finds its
        transcript, which contains the prompt, and recognizes every line of the CLI's output."""
        stage = bench("say Hello there.")
        launch = stage.launch("hello one")
        ran = stage.run("hello one", launch.continuation)
        assert ran.outcome.ok, ran.outcome
        assert ran.session_id == (launch.continuation.session_id or ran.session_id) != ""
        assert stage.prompts(ran.session_id) == ["hello one"]
        assert not ran.seen(Unrecognised)
        usage = [event.cumulative for event in ran.events if isinstance(event, UsageSeen)]
        assert usage == [stage.driver.abilities.cumulative_usage]
        assert [event.ok for event in ran.events if isinstance(event, TurnEnded)] == [True]

    def test_a_tool_runs_where_editing_is_allowed(self, bench: Make) -> None:
        """With the permissions `edit`, a command changes the workdir without asking, and its start
        and end are reported as events."""
        stage = bench("run echo made > made.txt\n---\nsay Made.")
        ran = stage.run("make it", permissions=Permissions.EDIT)
        assert ran.outcome.ok, ran.outcome
        assert (stage.cwd / "made.txt").read_text() == "made\n"
        started, ended = [], []
        for event in ran.events:
            if isinstance(event, ToolStarted):
                started.append(event.tool_id)
            elif isinstance(event, ToolEnded) and event.ok:
                ended.append(event.tool_id)
        assert started == ended
        assert len(started) == 1

    def test_reading_changes_nothing(self, bench: Make) -> None:
        """With the permissions `read`, a command that tries to write a file does not create it."""
        stage = bench("run echo made > made.txt\n---\nsay Tried.")
        stage.run("make it", permissions=Permissions.READ)
        assert not (stage.cwd / "made.txt").exists()

    @pytest.mark.parametrize("level", list(Permissions))
    def test_every_level_is_accepted_at_the_start_and_on_resume(
        self, bench: Make, level: Permissions
    ) -> None:
        """The CLI accepts the flags of every permission level, together with a model, both at the
        start and on a resume."""
        stage = bench("say One.\n---\nsay Two.")
        first = stage.run("one", permissions=level, model=self.model)
        assert first.outcome.ok, first.outcome
        assert stage.run(
            "two", resume(first.session_id), permissions=level, model=self.model
        ).outcome.ok

    def test_exactly_the_prompts_that_were_sent_are_found(self, bench: Make) -> None:
        """The CLI takes no prompt for a command or an option. Each prompt reaches the model, and
        the transcript contains exactly the prompts that were sent."""
        stage = bench("say Yes.")
        session = ""
        for prompt in AWKWARD:
            ran = stage.run(prompt, resume(session) if session else None)
            assert ran.outcome.ok, (prompt, ran.outcome)
            assert prompt.strip() in stage.reached_the_model()
            session = ran.session_id
        assert stage.prompts(session) == list(AWKWARD)

    def test_nothing_but_an_id_reaches_the_cli_or_a_path(self, bench: Make) -> None:
        """The driver refuses an empty text, a name, an option or a path in place of an id, and
        finds no file for it."""
        stage = bench("say Never.")
        for bad in (
            "",
            "latest",
            "--last",
            "../../x",
            f"{uuid.uuid4()}/../x",
            f"{uuid.uuid4()}\n",
            "*",
        ):
            for kind in (Start.RESUME, Start.FORK):
                with pytest.raises(ValueError):
                    stage.driver.command(stage.launch("x", Continuation(kind=kind, session_id=bad)))
            assert stage.find(bad) is None
            assert list(stage.driver.writers(stage.home, bad)) == []
            with pytest.raises(ValueError):
                stage.driver.place(stage.home, bad, stage.cwd, stage.cwd / "copy")

    def test_what_a_person_types_names_the_conversation(self, bench: Make) -> None:
        """The command that a person types starts the agent's own program, in the same home and with
        this conversation. An invalid id is refused."""
        stage = bench("say One.")
        launch = stage.launch("", resume(self.unknown_id()))
        command = stage.driver.interactive_command(launch)
        assert command.argv[0] and not command.argv[0].startswith("-")
        assert launch.continuation.session_id in " ".join(command.argv)
        assert stage.driver.home({**stage.environ, **command.env}) == stage.home
        with pytest.raises(ValueError):
            stage.driver.interactive_command(replace(launch, continuation=resume("--help")))
