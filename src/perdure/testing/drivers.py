"""The conformance suite for drivers: the real CLI, started as the driver says, against the rehearsal.

For perdure's own drivers and for those from outside. Make a class in a test module and give it the one fixture:

    class TestMyAgent(DriverConformance):
        @pytest.fixture
        def bench(self, tmp_path):
            def make(script, **options):
                rehearsal = Rehearsal(script).start()
                return Bench(driver=load("mine"), environ={...}, rehearsal=rehearsal, cwd=tmp_path)
            yield make

The environment must name scratch directories (HOME, TMPDIR) and lead the CLI to the rehearsal; the fixture stops what it made.
What an agent cannot do (`Abilities`) is not asked of it. Needs pytest, and an agent that speaks to a scripted model server.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import chain
from pathlib import Path

import pytest

from perdure.events import AgentEvent, RetrySeen, SessionSeen, ToolEnded, ToolStarted, TurnEnded, Unrecognised, UsageSeen
from perdure.lateclass import dataclass
from perdure.mending import Harm
from perdure.model import Command, CompactAt, Continuation, Exit, Launch, Outcome, OutcomeKind, Permissions, Rung, Start, TaskSpec, Usage
from perdure.protocols import AgentDriver
from perdure.rehearsal import Rehearsal

PATIENCE_S = 60.0
AWKWARD = (
    *("/cost", " /clear and more", "/no-such-command x", "-p --help", "@nothing.txt", "!ls", "# heading"),
    "  two\n\nparagraphs, with ümläuts, 日本 and 🙂\n",
)
"""Prompts that a CLI might take for something else."""


@dataclass(frozen=True, slots=True)
class Ran:
    """One run of the CLI, as the driver tells it."""

    events: list[AgentEvent]
    exit: Exit
    outcome: Outcome

    @property
    def session_id(self) -> str:
        return next((event.session_id for event in reversed(self.events) if isinstance(event, SessionSeen)), "")

    def seen(self, *kinds: type[AgentEvent]) -> list[AgentEvent]:
        return [event for event in self.events if isinstance(event, kinds)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """A driver, the environment of its CLI, the model server that it talks to, and the directory in which it works."""

    driver: AgentDriver
    environ: Mapping[str, str]
    rehearsal: Rehearsal
    cwd: Path

    @property
    def home(self) -> Path:
        return self.driver.home(self.environ)

    def launch(self, prompt: str, asked: Continuation | None = None, *, transcript: str = "", **spec: object) -> Launch:
        """A launch in the bench's directory; without a continuation a fresh one, with an id where the CLI takes one."""
        first = Continuation(kind=Start.FRESH, session_id=str(uuid.uuid4()) if self.driver.abilities.choose_id else "")
        task = TaskSpec(prompt=prompt, agent=self.driver.name, **spec)  # type: ignore[arg-type]
        program = self.driver.locate(self.environ)
        return Launch(
            spec=task,
            continuation=asked or first,
            prompt=prompt,
            cwd=str(self.cwd),
            home=str(self.home),
            program=program,
            transcript=transcript,
        )

    def run(
        self, prompt: str, asked: Continuation | None = None, *, transcript: str = "", compact_at: CompactAt | None = None, **spec: object
    ) -> Ran:
        """Runs the CLI to its end."""
        launch = self.launch(prompt, asked, transcript=transcript, **spec)
        command = self.driver.command(replace(launch, compact_at=compact_at))
        with self._process(command) as process:
            out, err = process.communicate(command.stdin, timeout=PATIENCE_S)
        return self.read(process.returncode, out, err)

    def run_until(self, prompt: str, retries: int) -> Ran:
        """Runs a CLI that would ask again for ever until it did so as often, as an attempt does; one that gives up (0) to its end."""
        if not retries:
            return self.run(prompt)
        said: list[bytes] = []
        with self.running(prompt) as process:
            assert process.stdout is not None
            for line in process.stdout:
                said.append(line)
                if sum(isinstance(event, RetrySeen) for each in said for event in self.driver.parse(each.rstrip(b"\n"))) >= retries:
                    break
        events = list(chain.from_iterable(self.driver.parse(line.rstrip(b"\n")) for line in said))
        end = Exit(signal=signal.SIGTERM, cause="retrying", at=int(time.time() * 1000))
        return Ran(events, end, self.driver.outcome(end, events))

    def read(self, returncode: int, out: bytes, err: bytes) -> Ran:
        """What the driver makes of output and end."""
        events = list(chain.from_iterable(self.driver.parse(line) for line in out.split(b"\n")))
        killed = -returncode if returncode < 0 else None
        end = Exit(
            code=None if killed else returncode, signal=killed, stderr_tail=err.decode("utf-8", "replace"), at=int(time.time() * 1000)
        )
        return Ran(events, end, self.driver.outcome(end, events))

    @contextmanager
    def running(self, prompt: str, asked: Continuation | None = None) -> Iterator[subprocess.Popen[bytes]]:
        """The CLI, left running until its request has reached the model; killed at the end of the block."""
        command = self.driver.command(self.launch(prompt, asked))
        before = len(self.rehearsal.requests)
        with self._process(command) as process:
            assert process.stdin is not None
            process.stdin.write(command.stdin)
            process.stdin.close()
            process.stdin = None
            try:
                self.rehearsal.wait_for(before + 1, PATIENCE_S)
                yield process
            finally:
                process.kill()

    @contextmanager
    def _process(self, command: Command) -> Iterator[subprocess.Popen[bytes]]:
        pipe, environ = subprocess.PIPE, {**command.env, **self.environ}
        with subprocess.Popen(
            command.argv, stdin=pipe, stdout=pipe, stderr=pipe, cwd=self.cwd, env=environ, start_new_session=True
        ) as process:
            try:
                yield process
            finally:
                with suppress(ProcessLookupError):
                    process.kill()

    def content(self, session_id: str) -> bytes:
        """The conversation as it lies on disk, from its own file or from the archive."""
        found = self.find(session_id)
        assert found is not None, f"no transcript of {session_id} in {self.home}"
        return found

    def find(self, session_id: str) -> bytes | None:
        """The same, or None."""
        if self.driver.archive is not None:
            return self.driver.archive.read(self.home, session_id)
        path = self.driver.transcript(self.home, session_id)
        return path.read_bytes() if path else None

    def prompts(self, session_id: str) -> list[str]:
        """The prompts that stand in the conversation's transcript."""
        return [prompt.text for prompt in self.driver.prompts(self.content(session_id))]

    def lose(self, session_id: str) -> None:
        """Takes the conversation away: its file, or the whole archive."""
        path = self.home if self.driver.archive is not None else self.driver.transcript(self.home, session_id)
        assert path is not None
        for each in [path, *path.parent.glob(f"{path.name}-*")]:
            each.unlink()

    def put_back(self, session_id: str, copy: Path) -> None:
        """Puts an own copy in place, as the driver says."""
        if self.driver.archive is None:
            place = self.driver.place(self.home, session_id, self.cwd, copy)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(copy, place)
            assert self.driver.transcript(self.home, session_id) == place
            return
        command = self.driver.archive.restore(self.driver.locate(self.environ), session_id, copy.read_bytes())
        with self._process(command) as process:
            process.communicate(command.stdin, timeout=PATIENCE_S)

    def reached_the_model(self) -> str:
        """All words of the last request, as one text."""
        return "\n".join(message.text for message in self.rehearsal.last.messages)


def resume(session_id: str, rung: Rung = Rung.NATIVE) -> Continuation:
    return Continuation(kind=Start.RESUME, session_id=session_id, rung=rung)


Make = Callable[..., Bench]


class DriverConformance:
    """Every promise of `AgentDriver` that the real CLI can show."""

    model = "some-model"
    """A model's name in the agent's own way of naming them."""

    def unknown_id(self) -> str:
        """An id in the agent's own grammar that no conversation has."""
        return str(uuid.uuid4())

    @pytest.fixture
    def bench(self) -> Make:
        """Makes a bench whose model plays the given script. To be given by the subclass."""
        raise NotImplementedError

    def test_a_conversation_starts_and_is_found(self, bench: Make) -> None:
        """The id is the one asked for, the transcript lies where the driver says and holds the prompt, every line is known."""
        stage = bench("say Hello there.")
        launch = stage.launch("hello one")
        ran = stage.run("hello one", launch.continuation)
        assert ran.outcome.ok, ran.outcome
        assert ran.session_id == (launch.continuation.session_id or ran.session_id) != ""
        assert stage.prompts(ran.session_id) == ["hello one"]
        assert not ran.seen(Unrecognised)
        assert [event.cumulative for event in ran.events if isinstance(event, UsageSeen)] == [stage.driver.abilities.cumulative_usage]
        assert [event.ok for event in ran.events if isinstance(event, TurnEnded)] == [True]

    def test_a_tool_runs_where_editing_is_allowed(self, bench: Make) -> None:
        """At the level `edit` a command changes the workdir without being asked for, and its start and end are events."""
        stage = bench("run echo made > made.txt\n---\nsay Made.")
        ran = stage.run("make it", permissions=Permissions.EDIT)
        assert ran.outcome.ok, ran.outcome
        assert (stage.cwd / "made.txt").read_text() == "made\n"
        started = [event.tool_id for event in ran.events if isinstance(event, ToolStarted)]
        assert started == [event.tool_id for event in ran.events if isinstance(event, ToolEnded) and event.ok]
        assert len(started) == 1

    def test_reading_changes_nothing(self, bench: Make) -> None:
        """At the level `read` the same command leaves no file."""
        stage = bench("run echo made > made.txt\n---\nsay Tried.")
        stage.run("make it", permissions=Permissions.READ)
        assert not (stage.cwd / "made.txt").exists()

    @pytest.mark.parametrize("level", list(Permissions))
    def test_every_level_is_accepted_at_the_start_and_on_resume(self, bench: Make, level: Permissions) -> None:
        """The CLI takes the flags of every level in both positions, with a model named too."""
        stage = bench("say One.\n---\nsay Two.")
        first = stage.run("one", permissions=level, model=self.model)
        assert first.outcome.ok, first.outcome
        assert stage.run("two", resume(first.session_id), permissions=level, model=self.model).outcome.ok

    def test_a_resume_by_id_goes_on(self, bench: Make) -> None:
        """The same id comes back, both turns reach the model, and the file only grew."""
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
        known = 0 if not stage.driver.abilities.rewinds else len(stage.driver.prompts(before))
        tail = after if stage.driver.abilities.rewinds else after[len(before) :]
        assert [prompt.text for prompt in stage.driver.prompts(tail)[known:]] == ["which word was it?"]

    def test_conversations_on_disk_are_listed_and_read(self, bench: Make) -> None:
        """The newest first, each with its directory, first prompt and turns; one of them by its id; what was said, without tools."""
        stage = bench("by history\nsay One.\n---\nsay Two.")
        first = stage.run("hello one")
        second = stage.run("hello two")
        stage.run("hello again", resume(first.session_id))
        found = stage.driver.conversations(stage.home, 10)
        assert [each.id for each in found] == [first.session_id, second.session_id]
        assert [(each.first, each.turns, each.parent) for each in found] == [("hello one", 2, ""), ("hello two", 1, "")]
        assert all(Path(each.cwd).resolve() == stage.cwd.resolve() for each in found)
        assert found[0].updated >= found[1].updated > 1_500_000_000_000
        assert [each.id for each in stage.driver.conversations(stage.home, 1)] == [first.session_id]
        assert [each.id for each in stage.driver.conversations(stage.home, 10, second.session_id)] == [second.session_id]
        assert not stage.driver.conversations(stage.home, 10, self.unknown_id())
        assert not stage.driver.conversations(stage.home, 10, "../*")
        said = [(each.by_agent, each.text.strip()) for each in stage.driver.spoken(stage.content(first.session_id))]
        assert said == [(False, "hello one"), (True, "One."), (False, "hello again"), (True, "Two.")]

    def test_the_running_total_is_read_where_it_is_cumulative(self, bench: Make) -> None:
        """What the transcript says is what the CLI said last; zero where its counts stand for one launch alone."""
        stage = bench("by history\nsay One.\n---\nsay Two.")
        first = stage.run("hello one")
        second = stage.run("hello two", resume(first.session_id))
        told = [event.usage for event in second.events if isinstance(event, UsageSeen)][-1]
        total = stage.driver.total(stage.content(first.session_id))
        assert total == (told if stage.driver.abilities.cumulative_usage else Usage())

    def test_how_full_a_conversation_is_stands_in_its_transcript(self, bench: Make) -> None:
        """What the newest request carried, cached parts included, and no bytes make the driver raise."""
        stage = bench("by history\nsay One.\nusage in=5000 out=9 cached=1000\n---\nsay Two.\nusage in=70000 out=9 cached=30000")
        first = stage.run("hello one")
        before = stage.driver.fill(stage.content(first.session_id))
        second = stage.run("hello two", resume(first.session_id))
        after = stage.driver.fill(stage.content(first.session_id))
        assert (before.tokens, after.tokens) in (((6000, 100_000), (5000, 70_000)))
        if not stage.driver.abilities.cumulative_usage:
            assert after.tokens == sum(event.usage.input for event in second.events if isinstance(event, UsageSeen))
        assert (before.compactions, after.compactions) == (0, 0)
        content = stage.content(first.session_id)
        for broken in (b"", b"\0" * 99, content[: len(content) // 2], content.replace(b'":', b'"'), content[::-1]):
            stage.driver.fill(broken)

    def test_a_level_for_compacting_is_kept_to(self, bench: Make) -> None:
        """Where a launch can say at which fill the conversation is compacted, it is: the file only grew, the model got the summary."""
        stage = bench("summary The word was plum.\nrun echo one\n---\nrun echo two\n---\nsay One.\nusage in=90000\n---\nsay Two.")
        if not stage.driver.abilities.compacts:
            return
        first = stage.run("tell me a word", permissions=Permissions.FULL)
        before = stage.content(first.session_id)
        level = CompactAt(tokens=60_000, window=stage.driver.fill(before).window or 1_000_000, percent=80)
        second = stage.run("which word was it?", resume(first.session_id), compact_at=level)
        assert second.outcome.ok, second.outcome
        after = stage.content(first.session_id)
        assert after.startswith(before)
        fill = stage.driver.fill(after)
        assert (fill.compactions, fill.held >= 90_000, 0 < fill.left < 60_000) == (1, True, True), fill
        assert [prompt.text for prompt in stage.driver.prompts(after)] == ["tell me a word", "which word was it?"]
        assert "The word was plum." in stage.reached_the_model()

    def test_a_conversation_that_is_too_long_is_told_apart(self, bench: Make) -> None:
        """A request that the service refuses as too long is neither a failure of the task nor of the service."""
        stage = bench("full x99\nsay Never.")
        ran = stage.run_until("hello", stage.driver.abilities.retries_in_a_row)
        assert ran.outcome.kind is OutcomeKind.CONTEXT_EXHAUSTED, ran.outcome

    def test_a_whole_transcript_needs_no_mending(self, bench: Make) -> None:
        """What the CLI wrote itself is taken as it is, its file is among its remains, and no bytes make the driver raise."""
        stage = bench("run echo one\n---\nsay One.\n---\nsay Two.")
        ran = stage.run("hello one")
        stage.run("hello two", resume(ran.session_id))
        content = stage.content(ran.session_id)
        path = stage.driver.transcript(stage.home, ran.session_id)
        mended = stage.driver.mend(content, ran.session_id, path.name if path else "")
        assert (mended.content, mended.harm, mended.refusal) == (None, Harm.NONE, ""), mended
        assert path is None or stage.driver.remains(stage.home, ran.session_id)[0] == path
        assert not stage.driver.remains(stage.home, self.unknown_id()) and not stage.driver.remains(stage.home, "../*")
        for broken in (b"", b"\0" * 99, content[: len(content) // 2], content.replace(b'":', b'"'), content[::-1]):
            stage.driver.mend(broken, ran.session_id)

    def test_what_a_person_types_names_the_conversation(self, bench: Make) -> None:
        """The agent's own program, this conversation, and its home; a bad id is refused."""
        stage = bench("say One.")
        launch = stage.launch("", resume(self.unknown_id()))
        command = stage.driver.by_hand(launch)
        assert command.argv[0] and not command.argv[0].startswith("-")
        assert launch.continuation.session_id in " ".join(command.argv)
        assert stage.driver.home({**stage.environ, **command.env}) == stage.home
        with pytest.raises(ValueError):
            stage.driver.by_hand(replace(launch, continuation=resume("--help")))

    def test_a_resume_by_path_goes_on(self, bench: Make) -> None:
        """Where a transcript can be named by its file, the same conversation goes on in the same file."""
        stage = bench("say One.\n---\nsay Two.")
        first = stage.run("hello one")
        path = stage.driver.transcript(stage.home, first.session_id)
        if not stage.driver.abilities.resume_by_path:
            with pytest.raises(ValueError):
                stage.driver.command(stage.launch("x", resume(first.session_id, Rung.PATH), transcript=str(path)))
            return
        second = stage.run("hello two", resume(first.session_id, Rung.PATH), transcript=str(path))
        assert second.outcome.ok, second.outcome
        assert second.session_id == first.session_id
        assert stage.prompts(first.session_id) == ["hello one", "hello two"]

    def test_a_fork_leaves_its_parent_alone(self, bench: Make) -> None:
        """A new id, the whole history at the model, not a byte of the parent changed."""
        stage = bench("say One.\n---\nsay Two.")
        if not stage.driver.abilities.fork:
            return
        first = stage.run("hello one")
        before = stage.content(first.session_id)
        forked = stage.run("another way", Continuation(kind=Start.FORK, session_id=first.session_id))
        assert forked.outcome.ok, forked.outcome
        assert forked.session_id not in ("", first.session_id)
        assert "hello one" in stage.reached_the_model()
        assert stage.content(first.session_id) == before
        assert stage.prompts(forked.session_id)[-1] == "another way"

    def test_an_unknown_conversation_is_said_to_be_missing(self, bench: Make) -> None:
        """Nothing starts afresh: no request reaches the model, and the outcome names the cause."""
        stage = bench("say Never.")
        ran = stage.run("go on", resume(self.unknown_id()))
        assert ran.outcome.kind is OutcomeKind.SESSION_MISSING, ran.outcome
        assert stage.rehearsal.requests == []

    def test_a_kill_in_the_reply_is_a_failure_that_can_be_gone_on_from(self, bench: Make) -> None:
        """SIGKILL is named in the outcome; the prompt stands in the transcript, and a resume goes on from it."""
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
        """While a process has the conversation open its id is in the register, and no longer after it was killed."""
        stage = bench("say One.\n---\nhang\n---\nsay Three.")
        first = stage.run("hello one")
        assert list(stage.driver.writers(stage.home, first.session_id)) == []
        with stage.running("hello two", resume(first.session_id)) as process:
            self._wait(lambda: list(stage.driver.writers(stage.home, first.session_id)) == [process.pid])
            assert list(stage.driver.writers(stage.home, self.unknown_id())) == []
        assert list(stage.driver.writers(stage.home, first.session_id)) == []

    def test_a_copy_put_back_in_place_goes_on(self, bench: Make, tmp_path: Path) -> None:
        """After the transcript was deleted the CLI finds nothing; the copy at the driver's place is found by its id."""
        stage = bench("say The word is plum.\n---\nsay Plum.")
        first = stage.run("tell me a word")
        copy = tmp_path / "main"
        copy.write_bytes(stage.content(first.session_id))
        stage.lose(first.session_id)
        assert stage.find(first.session_id) is None
        assert stage.run("go on", resume(first.session_id)).outcome.kind is OutcomeKind.SESSION_MISSING
        stage.put_back(first.session_id, copy)
        assert stage.content(first.session_id) == copy.read_bytes()
        second = stage.run("which word was it?", resume(first.session_id))
        assert second.outcome.ok, second.outcome
        assert "The word is plum." in stage.reached_the_model()
        assert stage.prompts(first.session_id) == ["tell me a word", "which word was it?"]

    def test_exactly_the_prompts_that_were_sent_are_found(self, bench: Make) -> None:
        """No prompt is eaten as a command, each reaches the model, and the transcript gives back these and no others."""
        stage = bench("say Yes.")
        session = ""
        for prompt in AWKWARD:
            ran = stage.run(prompt, resume(session) if session else None)
            assert ran.outcome.ok, (prompt, ran.outcome)
            assert prompt.strip() in stage.reached_the_model()
            session = ran.session_id
        assert stage.prompts(session) == list(AWKWARD)

    def test_nothing_but_an_id_reaches_the_cli_or_a_path(self, bench: Make) -> None:
        """An empty id, a name, an option or a path is refused before the launch, and finds no file."""
        stage = bench("say Never.")
        for bad in ("", "latest", "--last", "../../x", f"{uuid.uuid4()}/../x", f"{uuid.uuid4()}\n", "*"):
            for kind in (Start.RESUME, Start.FORK):
                with pytest.raises(ValueError):
                    stage.driver.command(stage.launch("x", Continuation(kind=kind, session_id=bad)))
            assert stage.find(bad) is None
            assert list(stage.driver.writers(stage.home, bad)) == []
            with pytest.raises(ValueError):
                stage.driver.place(stage.home, bad, stage.cwd, stage.cwd / "copy")

    @pytest.mark.parametrize(
        ("status", "kind"), [(401, OutcomeKind.AUTH_FAILED), (429, OutcomeKind.RATE_LIMITED), (500, OutcomeKind.OVERLOADED)]
    )
    def test_a_failing_service_is_told_apart(self, bench: Make, status: int, kind: OutcomeKind) -> None:
        """A refused key, a limit and an overloaded service are three things."""
        assert bench(f"fail {status} x99\nsay Never.").run("hello").outcome.kind is kind

    def test_the_end_of_a_usage_limit_is_known(self, bench: Make) -> None:
        """A limit that ends in two hours is waited for until then, to the minute."""
        before = int(time.time() * 1000)
        ran = bench("limit 7200 x99\nsay Never.", subscription=True).run("hello")
        assert ran.outcome.kind is OutcomeKind.RATE_LIMITED, ran.outcome
        assert ran.outcome.until is not None
        assert 7_100_000 < ran.outcome.until - before < 7_400_000

    @staticmethod
    def _wait(met: Callable[[], bool]) -> None:
        end = time.monotonic() + PATIENCE_S
        while not met():
            assert time.monotonic() < end, "it did not come"
            time.sleep(0.05)
