"""Tests of what the driver reads from conversations on disk: their list, their messages, their
usage, how much of the context window they fill, and whether they are complete."""

from __future__ import annotations

from pathlib import Path

from perdure.model import CompactAt, Permissions, Usage
from perdure.model.events import UsageSeen
from perdure.rules.transcript_repair import Harm
from perdure.testing.drivers.bench import Make, Suite, resume


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
