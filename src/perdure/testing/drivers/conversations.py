"""The four parts of the conformance suite for drivers.

- `StartSuite` tests how a conversation starts: its id and its transcript, its permissions, and the
  text that reaches the model.
- `GoingOn` tests how a conversation continues: by id, by path, as a fork, after a kill, and from a
  restored copy. It also tests that a second process that uses the conversation is noticed.
- `Transcripts` tests what the driver reads from conversations on disk: their list, their messages,
  their usage, how much of the context window they fill, and whether they are complete.
- `Failing` tests how an attempt fails. The model service may refuse a request for several reasons.
  Each reason must have its own outcome, because each is handled differently.
"""

from __future__ import annotations

import signal
import time
import uuid
from pathlib import Path

import pytest
from msgspec.structs import replace

from perdure.model import CompactAt, Continuation, OutcomeKind, Permissions, Rung, Start, Usage
from perdure.model.events import ToolEnded, ToolStarted, TurnEnded, Unrecognised, UsageSeen
from perdure.rules.transcript_repair import Harm
from perdure.testing.drivers.bench import PATIENCE_S, Make, Suite, resume

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


class Transcripts(Suite):
    """Tests of how the driver reads transcripts that the CLI itself wrote."""

    def test_conversations_on_disk_are_listed_and_read(self, bench: Make) -> None:
        """Conversations are listed newest first, each with its directory, first prompt and number
        of turns. A single conversation is found by its id. Its messages are read without tool
        calls."""
        stage = bench("by history\nsay One.\n---\nsay Two.")
        first = stage.run("hello one")
        second = stage.run("hello two")
        stage.run("hello again", resume(first.session_id))
        found = stage.driver.conversations(stage.home, 10)
        assert [each.id for each in found] == [first.session_id, second.session_id]
        assert [(each.first, each.turns, each.parent) for each in found] == [
            ("hello one", 2, ""),
            ("hello two", 1, ""),
        ]
        assert all(Path(each.cwd).resolve() == stage.cwd.resolve() for each in found)
        assert found[0].updated >= found[1].updated > 1_500_000_000_000
        assert [each.id for each in stage.driver.conversations(stage.home, 1)] == [first.session_id]
        only = stage.driver.conversations(stage.home, 10, second.session_id)
        assert [each.id for each in only] == [second.session_id]
        assert not stage.driver.conversations(stage.home, 10, self.unknown_id())
        assert not stage.driver.conversations(stage.home, 10, "../*")
        said = []
        for each in stage.driver.messages_of(stage.content(first.session_id)):
            said.append((each.by_agent, each.text.strip()))
        assert said == [
            (False, "hello one"),
            (True, "One."),
            (False, "hello again"),
            (True, "Two."),
        ]

    def test_the_running_total_is_read_where_it_is_cumulative(self, bench: Make) -> None:
        """If the CLI counts tokens over the whole conversation, the total in the transcript equals
        the total that the CLI last reported. The total is zero if the CLI counts each launch
        separately."""
        stage = bench("by history\nsay One.\n---\nsay Two.")
        first = stage.run("hello one")
        second = stage.run("hello two", resume(first.session_id))
        told = [event.usage for event in second.events if isinstance(event, UsageSeen)][-1]
        total = stage.driver.total(stage.content(first.session_id))
        assert total == (told if stage.driver.abilities.cumulative_usage else Usage())

    def test_how_full_a_conversation_is_stands_in_its_transcript(self, bench: Make) -> None:
        """The transcript shows how many tokens of the context window are in use: the size of the
        newest request, including cached tokens. The driver never raises because of invalid bytes.
        """
        stage = bench(
            "by history\nsay One.\nusage in=5000 out=9 cached=1000\n---\nsay Two.\nusage in=70000 "
            "out=9 cached=30000"
        )
        first = stage.run("hello one")
        before = stage.driver.fill(stage.content(first.session_id))
        second = stage.run("hello two", resume(first.session_id))
        after = stage.driver.fill(stage.content(first.session_id))
        assert (before.tokens, after.tokens) in (((6000, 100_000), (5000, 70_000)))
        if not stage.driver.abilities.cumulative_usage:
            used = [event.usage.input for event in second.events if isinstance(event, UsageSeen)]
            assert after.tokens == sum(used)
        assert (before.compactions, after.compactions) == (0, 0)
        content = stage.content(first.session_id)
        for broken in (
            b"",
            b"\0" * 99,
            content[: len(content) // 2],
            content.replace(b'":', b'"'),
            content[::-1],
        ):
            stage.driver.fill(broken)

    def test_a_level_for_compacting_is_kept_to(self, bench: Make) -> None:
        """A launch may set the number of tokens at which the CLI compacts the conversation. If the
        CLI supports this, it compacts the conversation at that size. The transcript only grows, and
        the model gets the summary."""
        stage = bench(
            "summary The word was plum.\nrun echo one\n---\nrun echo two\n---\nsay One.\nusage "
            "in=90000\n---\nsay Two."
        )
        if not stage.driver.abilities.compacts:
            return
        first = stage.run("tell me a word", permissions=Permissions.FULL)
        before = stage.content(first.session_id)
        level = CompactAt(
            tokens=60_000, window=stage.driver.fill(before).window or 1_000_000, percent=80
        )
        second = stage.run("which word was it?", resume(first.session_id), compact_at=level)
        assert second.outcome.ok, second.outcome
        after = stage.content(first.session_id)
        assert after.startswith(before)
        fill = stage.driver.fill(after)
        assert (fill.compactions, fill.held >= 90_000, 0 < fill.left < 60_000) == (1, True, True), (
            fill
        )
        assert [prompt.text for prompt in stage.driver.prompts(after)] == [
            "tell me a word",
            "which word was it?",
        ]
        assert "The word was plum." in stage.reached_the_model()

    def test_a_whole_transcript_needs_no_mending(self, bench: Make) -> None:
        """A transcript that the CLI wrote needs no repair. Its file is the first of the files that
        the driver lists for the conversation. The driver never raises because of invalid bytes."""
        stage = bench("run echo one\n---\nsay One.\n---\nsay Two.")
        ran = stage.run("hello one")
        stage.run("hello two", resume(ran.session_id))
        content = stage.content(ran.session_id)
        path = stage.driver.transcript(stage.home, ran.session_id)
        mended = stage.driver.repair(content, ran.session_id, path.name if path else "")
        assert (mended.content, mended.harm, mended.refusal) == (None, Harm.NONE, ""), mended
        assert path is None or stage.driver.files_of(stage.home, ran.session_id)[0] == path
        assert not stage.driver.files_of(
            stage.home, self.unknown_id()
        ) and not stage.driver.files_of(stage.home, "../*")
        for broken in (
            b"",
            b"\0" * 99,
            content[: len(content) // 2],
            content.replace(b'":', b'"'),
            content[::-1],
        ):
            stage.driver.repair(broken, ran.session_id)


class Failing(Suite):
    """Tests of rejected API keys, limits, overload, and conversations that are too long."""

    def test_a_conversation_that_is_too_long_is_told_apart(self, bench: Make) -> None:
        """If the service refuses a request because it is too long, the outcome is
        CONTEXT_EXHAUSTED."""
        stage = bench("full x99\nsay Never.")
        ran = stage.run_until("hello", stage.driver.abilities.retries_in_a_row)
        assert ran.outcome.kind is OutcomeKind.CONTEXT_EXHAUSTED, ran.outcome

    @pytest.mark.parametrize(
        ("status", "kind"),
        [
            (401, OutcomeKind.AUTH_FAILED),
            (429, OutcomeKind.RATE_LIMITED),
            (500, OutcomeKind.OVERLOADED),
        ],
    )
    def test_a_failing_service_is_told_apart(
        self, bench: Make, status: int, kind: OutcomeKind
    ) -> None:
        """A rejected API key, a rate limit and an overloaded service have different outcomes."""
        assert bench(f"fail {status} x99\nsay Never.").run("hello").outcome.kind is kind

    def test_the_end_of_a_usage_limit_is_known(self, bench: Make) -> None:
        """If a usage limit ends in two hours, the outcome contains this time, to within a few
        minutes."""
        before = int(time.time() * 1000)
        ran = bench("limit 7200 x99\nsay Never.", subscription=True).run("hello")
        assert ran.outcome.kind is OutcomeKind.RATE_LIMITED, ran.outcome
        assert ran.outcome.until is not None
        assert 7_100_000 < ran.outcome.until - before < 7_400_000
