"""The final message of an agent, and the line with which a run ends."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from msgspec.structs import replace

from perdure.cli.runs import progress as summaries
from perdure.cli.runs.progress import summary
from perdure.cli.style import fitted, is_colored, width_of, wrapped
from perdure.engine.report import run_report
from perdure.model import (
    Attempt,
    Backend,
    Outcome,
    OutcomeKind,
    Receipt,
    Rung,
    RunState,
    TaskRun,
    TaskSpec,
    Usage,
    Verdict,
    Workspace,
)
from perdure.model.events import MAX_TEXT, AnyEvent, Record, Said, ToolEnded, ToolStarted, TurnEnded
from perdure.model.reports import RunReport
from perdure.model.work import FileOfWork, WorkVerdict
from perdure.rules.final_message import last_message

TOOL = (ToolStarted(tool_id="1", name="Bash"), ToolEnded(tool_id="1", ok=True))


def journal(*events: tuple[int, AnyEvent]) -> list[Record]:
    return [
        Record(run="r", seq=number, attempt=attempt, at=0, event=event)
        for number, (attempt, event) in enumerate(events, 1)
    ]


def one(*events: AnyEvent) -> list[Record]:
    return journal(*((1, event) for event in events))


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([], ""),
        (one(*TOOL), ""),
        (one(Said("I look."), *TOOL, Said("Done.")), "Done."),
        (one(Said("I look."), *TOOL), "I look."),
        (one(Said("I look."), *TOOL, Said("First."), Said("Second.")), "First.\n\nSecond."),
        (one(*TOOL, Said("Done."), TurnEnded(ok=True, text="Done.")), "Done."),
        (one(Said("Done."), Said("a helper", aside=True)), "Done."),
        (
            one(Said("Done."), ToolStarted(tool_id="2", name="x", aside=True), Said("!")),
            "Done.\n\n!",
        ),
        (one(TurnEnded(ok=True, text="the cost is 3")), "the cost is 3"),
        (one(Said("I try."), *TOOL, TurnEnded(ok=False, text="overloaded")), "I try."),
        (journal((1, Said("One.")), (2, Said("Two."))), "Two."),
        (journal((1, Said("One.")), (2, TOOL[0])), "One."),
    ],
)
def test_the_final_message_is_what_the_agent_said_last(records: list[Record], message: str) -> None:
    """The final message is the last text of the agent: it begins after the last tool call. Messages
    of subagents and errors do not count. The parts of one message are joined."""
    assert last_message(records) == message


def test_the_message_of_one_attempt_is_only_its_own() -> None:
    """An attempt that printed no message has none, even if the previous attempt had one."""
    records = journal((1, Said("One.")), (2, TOOL[0]))
    assert (last_message(records, 1), last_message(records, 2)) == ("One.", "")


def test_a_message_is_bounded() -> None:
    """A message of many parts is cut, and its end says where the rest is."""
    message = last_message(one(*(Said("x" * 5000) for _ in range(9))))
    assert len(message) == MAX_TEXT and message.endswith("is in perdure logs]")


RUN = TaskRun(
    id="1",
    name="greeting",
    spec=TaskSpec(prompt="p"),
    state=RunState.SUCCEEDED,
    created=1,
    updated=2,
)


def tried(verdict: Verdict, started: int, ended: int, cost: float = 0.0) -> Attempt:
    return Attempt(
        run="1",
        number=1,
        context_version=1,
        worker="w",
        started=started,
        ended=ended,
        outcome=Outcome(kind=OutcomeKind.SUCCEEDED),
        receipt=Receipt(verdict=verdict, rung=Rung.NATIVE),
        usage=Usage(cost_usd=cost),
    )


def report(
    *attempts: Attempt, state: RunState = RunState.SUCCEEDED, verdict: WorkVerdict | None = None
) -> RunReport:
    found = run_report(replace(RUN, state=state), attempts, [])
    found.verdict = verdict
    return found


CONTINUED = tried(Verdict.NATIVE, 1000, 135_000, 0.42)


def test_a_run_ends_with_one_line() -> None:
    """The line has name, time, cost, changes and the receipt in words. A failed run says so.
    Without an attempt there is no time."""
    line = summary(report(CONTINUED), "3 files +41 −7")
    assert line == "✓ greeting · 2m14s · $0.42 · 3 files +41 −7 · continued ✓"
    fresh = tried(Verdict.FRESH, 0, 2000, 0.21)
    doubted = report(CONTINUED, verdict=WorkVerdict.INCOMPLETE)
    assert summary(doubted, "3 files +41 −7") == f"{line} · work incomplete"
    failed = summary(report(fresh, fresh, state=RunState.FAILED))
    assert failed == "✗ greeting · failed · 2 attempts · 4s · $0.42 · new conversation"
    assert summary(report(state=RunState.CANCELLED)) == "■ greeting · cancelled"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_symbols_have_plain_letters_where_the_encoding_lacks_them(encoding: str) -> None:
    """perdure's own symbols are never written as escapes."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    line = fitted(summary(report(CONTINUED), "3 files +41 −7"), stream)
    assert line.encode(encoding) and line.startswith("ok greeting") and "+41 -7" in line
    assert fitted("✓", io.TextIOWrapper(io.BytesIO(), encoding="utf-8")) == "✓"


def test_colors_are_for_terminals_that_want_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe has no colors unless CLICOLOR_FORCE is set. A terminal has them unless it is dumb or
    NO_COLOR is set."""

    class Screen(io.StringIO):
        def isatty(self) -> bool:
            return True

    for name in ("NO_COLOR", "CLICOLOR_FORCE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert is_colored(Screen()) and not is_colored(io.StringIO())
    monkeypatch.setenv("CLICOLOR_FORCE", "1")
    assert is_colored(io.StringIO())
    monkeypatch.setenv("NO_COLOR", "1")
    assert not is_colored(Screen()) and not is_colored(io.StringIO())
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("CLICOLOR_FORCE", "0")
    monkeypatch.setenv("TERM", "dumb")
    assert not is_colored(Screen())


def test_lines_wrap_at_words_with_a_hanging_indent() -> None:
    """No line is wider than the terminal, except for a single long word. Colors take no columns,
    and wide characters take two."""
    text = "  note: the file is changed 界界界界界界界界 and more words follow it here"
    for width in (20, 30, 40):
        lines = wrapped(text, width).split("\n")
        assert all(width_of(line) <= width for line in lines)
        assert all(line.startswith("    ") for line in lines[1:])
        assert " ".join(line.strip() for line in lines) == text.strip()
    path = "/a/very/long/path/that/is/wider/than/the/terminal"
    assert path in wrapped(f"in {path} it is", 20).split("\n")[1]
    assert wrapped(text, 0) == text and width_of("\x1b[31mab\x1b[m") == 2


def test_git_counts_what_attributes_may_convert(tmp_path: Path) -> None:
    """If git's attributes apply to a file, from a directory above it or from the repository, its
    content does not show what git counts. A deleted file cannot be judged either."""
    (tmp_path / ".git/info").mkdir(parents=True)
    (tmp_path / "src/below").mkdir(parents=True)
    place = Workspace(id="w", path=str(tmp_path), backend=Backend.ISOLATED)
    listed = (FileOfWork(name="src/a.txt", state="changed"),)
    assert not summaries._converts(listed, place)
    for name, applies in (
        (".git/info/attributes", True),
        (".gitattributes", True),
        ("src/.gitattributes", True),
        ("src/below/.gitattributes", False),
    ):
        (tmp_path / name).write_text("* text=auto\n")
        assert summaries._converts(listed, place) is applies, name
        (tmp_path / name).unlink()
    assert not summaries._is_plain(listed[0], str(tmp_path), tmp_path)
