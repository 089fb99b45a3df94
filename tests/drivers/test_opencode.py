"""OpenCode's driver without the CLI: its command lines, and how it reads the CLI's output and
database rows. The recordings in `recorded/opencode.json` are of version 1.18.33."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from contextlib import closing
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from perdure.agents import registry
from perdure.agents.opencode.archive import ARCHIVE
from perdure.agents.transcripts import Copies, locate
from perdure.model import (
    Continuation,
    Exit,
    Launch,
    Outcome,
    OutcomeKind,
    Permissions,
    Program,
    Reply,
    Rung,
    Start,
    TaskSpec,
    Usage,
    codec,
)
from perdure.model.events import (
    ReplySeen,
    RetrySeen,
    Said,
    SessionSeen,
    ToolEnded,
    ToolStarted,
    TurnEnded,
    Unrecognised,
    UsageSeen,
)

K = OutcomeKind
ID = "ses_e02d74f19ffeNc6A2Emub9haj6"
OTHER = "ses_e02d74f19ffeNc6A2Emub9haj7"
DRIVER = registry.load("opencode")
AT = 1795249000_000
SCHEMA = """
create table session (id text primary key, directory text not null, title text not null, time_created integer not null);
create table message (id text primary key, session_id text not null, time_created integer not null, data text not null);
create table part (id text primary key, message_id text not null, session_id text not null, data text not null);
"""
"""The columns of 1.18.33 that the driver reads."""


# --- what is started
# ------------------------------------------------------------------------------------------------


def launch(
    kind: Start = Start.FRESH,
    session_id: str = ID,
    prompt: str = "hello",
    home: str = "/nonexistent",
    **spec: Any,
) -> Launch:
    return Launch(
        spec=TaskSpec(prompt=prompt, agent="opencode", **spec),
        continuation=Continuation(kind=kind, session_id=session_id),
        prompt=prompt,
        cwd="/nonexistent",
        home=home,
        program=Program(path="/bin/opencode", version="1.18.33"),
        mark="run-1.1",
    )


def argv(kind: Start = Start.FRESH, **how: Any) -> list[str]:
    return list(DRIVER.command(launch(kind, **how)).argv)


def test_how_opencode_is_told_which_conversation() -> None:
    """A new session gets the attempt's mark as its title. An existing session is named by its exact
    id. The directory is always given."""
    assert "--title=perdure run-1.1" in argv()
    assert "--title=perdure run-1.1" in argv(Start.REBUILD)
    assert not any("session" in word for word in argv())
    assert f"--session={ID}" in argv(Start.RESUME)
    assert {f"--session={ID}", "--fork"} <= set(argv(Start.FORK))
    assert all(
        "--dir=/nonexistent" in argv(kind) for kind in (Start.FRESH, Start.RESUME, Start.FORK)
    )
    by_path = launch(Start.RESUME)
    with pytest.raises(ValueError):
        DRIVER.command(replace(by_path, continuation=replace(by_path.continuation, rung=Rung.PATH)))


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "latest",
        "ses_",
        "ses_../../etc/passwd",
        f"{ID}\n",
        f"--continue {ID}",
        "3e86833f-e79e-4c46-88a6-cbeec5618e94",
    ],
)
def test_only_an_id_of_opencodes_own_is_one(bad: str, tmp_path: Path) -> None:
    """Any text that is not an id of OpenCode is refused before the launch. An empty id would
    silently start a new session."""
    for kind in (Start.RESUME, Start.FORK):
        with pytest.raises(ValueError):
            argv(kind, session_id=bad)
    assert ARCHIVE.read(tmp_path / "opencode.db", bad) is None
    assert list(DRIVER.writers(tmp_path / "opencode.db", bad)) == []
    with pytest.raises(ValueError):
        ARCHIVE.restore(Program(path="/bin/opencode"), bad, b"{}")


@pytest.mark.linux
def test_a_writer_is_found_from_a_directory_that_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Open pipes and sockets of a process, whose names are not paths, do not hide that it is a
    writer."""
    session, home, away = "ses_" + "a" * 26, tmp_path / "opencode.db", tmp_path / "away"
    home.touch()
    away.mkdir()
    program = "import sys; file = open(sys.argv[1]); print('open', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", program, str(home), session],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"open\n"
        with monkeypatch.context() as moved:
            moved.chdir(away)
            away.rmdir()
            found = list(DRIVER.writers(home, session))
        assert found == [writer.pid]
        writer.communicate()


def test_the_prompt_goes_by_stdin_alone() -> None:
    """The prompt is passed only on stdin. As an argument it would arrive in quotes."""
    command = DRIVER.command(launch(prompt="-secret words"))
    assert command.stdin == b"-secret words"
    assert not any("secret" in word for word in command.argv)


def test_permissions_are_set_again_on_each_resume() -> None:
    """The permissions are the same for a first launch, a resume and a fork. They are in the
    variable that overrides every configuration file."""
    told = {
        level: {
            json.dumps(DRIVER.command(launch(kind, permissions=level)).env)
            for kind in (Start.FRESH, Start.RESUME, Start.FORK)
        }
        for level in Permissions
    }
    assert [len(words) for words in told.values()] == [1, 1, 1]
    assert len(set.union(*told.values())) == 3


@pytest.mark.parametrize(
    "arguments",
    [
        ("--continue",),
        ("-s", "x"),
        ("--session=x",),
        ("--fork",),
        ("--dir=/x",),
        ("--auto",),
        ("--title", "x"),
    ],
)
def test_arguments_that_would_undo_perdures_own_are_refused(arguments: tuple[str, ...]) -> None:
    """The user's arguments cannot choose the conversation, the directory or the permissions."""
    assert "perdure sets it" in DRIVER.refuse(launch(agent_args=arguments))
    assert DRIVER.refuse(launch(agent_args=("--variant", "high"))) == ""


def test_where_the_conversations_are_kept() -> None:
    """All conversations are in one file, which is found by the CLI's own variables, else in the
    user's home."""
    assert DRIVER.home({"HOME": "/h"}) == Path("/h/.local/share/opencode/opencode.db")
    assert DRIVER.home({"HOME": "/h", "XDG_DATA_HOME": "/d"}) == Path("/d/opencode/opencode.db")
    assert DRIVER.home({"HOME": "/h", "OPENCODE_DB": "mine.db"}) == Path(
        "/h/.local/share/opencode/mine.db"
    )
    assert DRIVER.home({"HOME": "/h", "OPENCODE_DB": "/x/mine.db"}) == Path("/x/mine.db")


def test_the_native_program_is_found_behind_the_wrapper() -> None:
    """From the npm command on PATH the driver finds the executable file of the platform's package,
    with its version."""
    modules = Path(__file__).parents[2] / "agents" / "node_modules"
    program = DRIVER.locate({"PATH": str(modules / ".bin")})
    assert Path(program.path).read_bytes()[:4] == b"\x7fELF"
    assert "opencode-linux-" in program.path
    assert program.version == "1.18.33"


# --- what its output means
# ------------------------------------------------------------------------------------------


@cache
def recorded() -> dict[str, Any]:
    return json.loads((Path(__file__).parent / "recorded" / "opencode.json").read_text())


def events(name: str) -> list[Any]:
    return list(
        chain.from_iterable(DRIVER.parse(line.encode()) for line in recorded()[name]["stdout"])
    )


def outcome(name: str) -> Outcome:
    run = recorded()[name]
    return DRIVER.outcome(
        Exit(code=run["code"], signal=run["signal"], stderr_tail=run["stderr"], at=AT), events(name)
    )


OUTCOMES = {
    "ok": (K.SUCCEEDED, ""),
    "tool": (K.SUCCEEDED, ""),
    "fork": (K.SUCCEEDED, ""),
    "cut-clean": (K.SUCCEEDED, ""),
    "unknown": (K.SESSION_MISSING, "Session not found"),
    "400": (K.FAILED, "refused by the rehearsal"),
    "401": (K.AUTH_FAILED, "Incorrect API key"),
    "403": (K.AUTH_FAILED, "not supported"),
    "404": (K.CONFIG_ERROR, "does not exist"),
    "429": (K.RATE_LIMITED, "Rate limit reached"),
    "500": (K.OVERLOADED, "server had an error"),
    "refused": (K.OVERLOADED, "Cannot connect to API"),
    "cut": (K.OVERLOADED, "socket connection was closed"),
    "broken-part": (K.SESSION_BROKEN, "JSON Parse error"),
    "flag": (K.CONFIG_ERROR, "--agent-arg"),
    "model": (K.CONFIG_ERROR, "Model not found"),
    "model-name": (K.CONFIG_ERROR, "Model not found"),
    "garbage": (K.CONFIG_ERROR, "file is not a database"),
    "rejected": (K.NEEDS_INPUT, "--permissions"),
    "sigint": (K.CANCELLED, "interrupted"),
    "sigterm": (K.FAILED, "killed by SIGTERM"),
    "sigkill": (K.FAILED, "killed by SIGKILL"),
}


@pytest.mark.parametrize("name", OUTCOMES)
def test_every_recorded_end_is_understood(name: str) -> None:
    """Each recorded end gives the right kind of outcome, and a sentence that helps a person."""
    kind, words = OUTCOMES[name]
    found = outcome(name)
    assert (found.kind, words in found.detail) == (kind, True), found
    assert "\x1b" not in found.detail


@pytest.mark.parametrize("name", OUTCOMES)
def test_every_recorded_line_is_known(name: str) -> None:
    """No line of the real CLI is Unrecognised."""
    assert [event for event in events(name) if isinstance(event, Unrecognised)] == []


def test_what_a_turn_says() -> None:
    """The events are the session, each reply, each tool with its command and its end, the text, the
    tokens of each step, and the end of the turn."""
    kinds = [type(event) for event in events("tool")]
    first = [SessionSeen, ReplySeen, ToolStarted, ToolEnded, UsageSeen]
    assert kinds == [*first, SessionSeen, ReplySeen, Said, UsageSeen, TurnEnded]
    started = next(event for event in events("tool") if isinstance(event, ToolStarted))
    ended = next(event for event in events("tool") if isinstance(event, ToolEnded))
    assert (started.name, started.summary, ended.tool_id, ended.ok) == (
        "bash",
        "echo hi; exit 3",
        started.tool_id,
        False,
    )
    assert [event.usage for event in events("ok") if isinstance(event, UsageSeen)] == [
        Usage(input=100, output=7)
    ]


def test_a_session_with_an_open_message_goes_on() -> None:
    """After an answer that fills the window, OpenCode 1.18.33 prints the end of the turn and then
    requests a summary. Its database shows that the turn is not over."""

    def line(role: str, **more: Any) -> bytes:
        data = {"role": role, **more}
        return json.dumps({"type": "message", "id": "m", "data": data}).encode() + b"\n"

    part = b'{"type":"part","id":"p","message":"m","role":"user","data":{"type":"compaction"}}\n'
    asked, answered = line("user"), line("assistant", time={"created": 1, "completed": 2})
    driver = registry.load("opencode")
    assert not driver.will_continue(asked + answered)
    assert driver.will_continue(asked + answered + asked + part)
    assert driver.will_continue(asked + answered + asked + line("assistant", time={"created": 3}))
    assert not driver.will_continue(b"") and not driver.will_continue(b"torn\n")


def test_an_answer_that_broke_off_is_a_retry_and_no_end() -> None:
    """Three answers that break off with the reason `unknown` are retries. Only the complete answer
    after them ends the turn."""
    assert [
        type(event) for event in events("cut-clean") if isinstance(event, RetrySeen | TurnEnded)
    ] == [RetrySeen] * 3 + [TurnEnded]


def test_an_agent_that_retried_without_end_was_overloaded() -> None:
    """If perdure ended the agent because it retried too often, the outcome is `overloaded`, and the
    run is tried again later."""
    found = DRIVER.outcome(Exit(signal=15, cause="retrying"), [RetrySeen()] * 5)
    assert (found.kind, "again and again" in found.detail) == (K.OVERLOADED, True)


def test_a_step_counts_its_cached_input() -> None:
    """OpenCode subtracts the cached part from the input; perdure's input includes it."""
    part = {
        "reason": "stop",
        "cost": 0.5,
        "tokens": {"input": 60, "output": 5, "reasoning": 2, "cache": {"read": 40, "write": 3}},
    }
    used, ended = DRIVER.parse(json.dumps({"type": "step_finish", "part": part}).encode())
    assert used == UsageSeen(Usage(input=103, output=7, cached=40, cache_write=3, cost_usd=0.5))
    assert ended == TurnEnded(ok=True, turns=1)


words = st.sampled_from(
    (
        "type",
        "part",
        "text",
        "state",
        "input",
        "status",
        "reason",
        "tokens",
        "cache",
        "error",
        "data",
        "metadata",
    )
) | st.text(max_size=9)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | words
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=4),
    max_leaves=20,
)
types = st.sampled_from(
    (
        "step_start",
        "text",
        "tool_use",
        "step_finish",
        "error",
        "reasoning",
        "session",
        "message",
        "part",
    )
)


@settings(max_examples=200, deadline=None)
@given(kind=types, rest=st.dictionaries(words, values, max_size=5), cut=st.integers(0, 200))
def test_any_line_is_events(kind: str, rest: dict[str, Any], cut: int) -> None:
    """A complete or torn line, whatever the types of its fields are, raises no error, and its
    events can be stored."""
    line = json.dumps({**rest, "type": kind}).encode("utf-8", "surrogatepass")
    for piece in (line, line[:cut], line[:cut] + b"\xff" + line[cut:]):
        found = DRIVER.parse(piece)
        assert [codec.decode_event(codec.encode(event)) for event in found] == list(found)
        DRIVER.outcome(Exit(code=1, at=1), found)
        DRIVER.prompts(piece)


# --- what its rows mean
# ---------------------------------------------------------------------------------------------


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """Make a database with one session and a turn in it."""
    path = tmp_path / "opencode.db"
    with closing(sqlite3.connect(path)) as made, made:
        made.execute("pragma journal_mode = wal")
        made.executescript(SCHEMA)
        made.execute("insert into session values (?, '/work/dir', 'perdure run-1.1', 1)", (ID,))
    say(path, "msg_1", "user", [{"type": "text", "text": "hello one"}])
    say(path, "msg_2", "assistant", [{"type": "text", "text": "One."}])
    return path


def say(
    path: Path,
    message: str,
    role: str,
    parts: list[dict[str, Any]],
    session: str = ID,
    **more: Any,
) -> None:
    with closing(sqlite3.connect(path)) as found, found:
        at = int(message.rpartition("_")[2])
        found.execute(
            "insert into message values (?, ?, ?, ?)",
            (message, session, at, json.dumps({"role": role, "time": {"created": at}} | more)),
        )
        for number, part in enumerate(parts):
            found.execute(
                "insert into part values (?, ?, ?, ?)",
                (f"prt_{message}_{number}", message, session, json.dumps(part)),
            )


def change(path: Path, statement: str, *values: str) -> None:
    with closing(sqlite3.connect(path)) as found, found:
        found.execute(statement, values)


def read(path: Path) -> bytes:
    found = ARCHIVE.read(path, ID)
    assert found is not None
    return found


def test_a_conversation_that_goes_on_begins_with_what_it_was(database: Path) -> None:
    """After a turn was added, the content of a session begins with its earlier content, and the
    added part begins on a new line. Other sessions are not included."""
    before = read(database)
    say(database, "msg_3", "user", [{"type": "text", "text": "hello two"}])
    say(database, "msg_4", "user", [{"type": "text", "text": "a stranger's"}], session=OTHER)
    after = read(database)
    assert after.startswith(before)
    assert [prompt.text for prompt in DRIVER.prompts(after[len(before) :])] == ["hello two"]
    assert b"stranger" not in after


def test_what_the_cli_notes_afterwards_changes_nothing(database: Path) -> None:
    """The summary of changes to a prompt, the mark of a pruned output and the order of keys do not
    change the content of a conversation."""
    say(
        database,
        "msg_3",
        "assistant",
        [
            {
                "type": "tool",
                "state": {"status": "completed", "output": "x", "time": {"start": 1, "end": 2}},
            }
        ],
    )
    before = read(database)
    summed = json.dumps({"time": {"created": 1}, "summary": {"diffs": []}, "role": "user"})
    change(database, "update message set data = ? where id = 'msg_1'", summed)
    pruned = json.dumps(
        {
            "type": "tool",
            "state": {
                "status": "completed",
                "output": "x",
                "time": {"start": 1, "end": 2, "compacted": 3},
            },
        }
    )
    change(database, "update part set data = ? where message_id = 'msg_3'", pruned)
    assert read(database) == before


@pytest.mark.parametrize(
    "statement",
    [
        "delete from part where message_id = 'msg_1'",
        "delete from message where id = 'msg_2'",
        """update part set data = '{"type":"text","text":"Two."}' where message_id = 'msg_2'""",
        """update message set data = '{"role":"assistant"}' where id = 'msg_1'""",
        "update part set data = 'broken' where message_id = 'msg_1'",
    ],
)
def test_a_history_that_was_changed_does_not_begin_with_what_it_was(
    database: Path, statement: str
) -> None:
    """Missing rows, changed text, another role and broken content are each noticed."""
    before = read(database)
    change(database, statement)
    assert not read(database).startswith(before)


@pytest.mark.parametrize(
    ("statement", "same"),
    [
        ("update part set data = replace(data, 'begun', 'over') where id = 'prt_msg_3_1'", True),
        (
            "update part set data = replace(data, 'Let me', 'Let us') where message_id = 'msg_3'",
            True,
        ),
        ("update part set data = replace(data, 'hello', 'howdy')", False),
        ("update part set data = replace(data, 'alder', 'al?er')", False),
        ("delete from part where id = 'prt_msg_3_0'", False),
    ],
)
def test_rows_that_are_complete_stay_as_they_are_in_the_copy(
    database: Path, tmp_path: Path, statement: str, same: bool
) -> None:
    """A copy that was made during a turn has rows that may still change. The content of a finished
    row must not change."""
    ended = {"status": "completed", "input": {"command": "cat"}, "output": "alder"}
    parts = [
        {"type": "tool", "state": ended},
        {"type": "tool", "state": {"status": "running", "metadata": "begun"}},
        {"type": "text", "text": "Let me", "time": {"start": 1}},
    ]
    say(database, "msg_3", "assistant", parts)
    copies = Copies(tmp_path / "copies")
    path = locate(DRIVER, database, ID, tmp_path)
    assert path is not None and copies.take(DRIVER, ID, path)
    change(database, statement)
    path = locate(DRIVER, database, ID, tmp_path)
    assert path is not None
    assert copies.continued_by(DRIVER, ID, path) is same
    assert copies.take(DRIVER, ID, path) is same


@pytest.mark.parametrize(
    ("grows", "same"), [("msg_4", True), ("msg_5", True), ("msg_3", False), ("msg_1", False)]
)
def test_a_message_may_grow_in_front_of_another_process(
    database: Path, tmp_path: Path, grows: str, same: bool
) -> None:
    """Two processes write into one session. An answer that was unfinished in the copy may get its
    last part before the other process's prompt; so may a prompt whose text was missing. A finished
    message gets no more parts."""
    finished = {"time": {"created": 1, "completed": 2}}
    say(database, "msg_3", "assistant", [{"type": "step-start"}], **finished)
    say(database, "msg_4", "assistant", [{"type": "step-start"}])
    say(database, "msg_5", "user", [])
    say(database, "msg_6", "assistant", [{"type": "step-start"}])
    copies = Copies(tmp_path / "copies")
    path = locate(DRIVER, database, ID, tmp_path)
    assert path is not None and copies.take(DRIVER, ID, path)
    change(
        database,
        "insert into part (id, message_id, session_id, data) values ('prt_zz', ?, ?, ?)",
        grows,
        ID,
        json.dumps({"type": "text", "text": "more", "time": {"start": 1, "end": 2}}),
    )
    path = locate(DRIVER, database, ID, tmp_path)
    assert path is not None
    assert copies.continued_by(DRIVER, ID, path) is same


def test_what_the_cli_says_in_the_users_name_is_no_prompt(database: Path) -> None:
    """Synthetic texts, attachments and compactions do not count as prompts."""
    parts = [
        {"type": "text", "text": "Continue", "synthetic": True},
        {"type": "file", "url": "x"},
        {"type": "compaction"},
        {"type": "text", "text": ""},
    ]
    say(database, "msg_3", "user", parts)
    assert [prompt.text for prompt in DRIVER.prompts(read(database))] == ["hello one"]


def test_a_conversation_is_found_by_the_mark_of_its_launch(database: Path) -> None:
    """A session is found by the whole mark of its launch. If several have the mark, the newest is
    returned."""
    assert ARCHIVE.find(database, "run-1.1") == ID
    assert ARCHIVE.find(database, "run-1") == ARCHIVE.find(database, "%") == ""
    change(database, "insert into session values (?, '/work/dir', 'perdure run-1.1', 2)", OTHER)
    assert ARCHIVE.find(database, "run-1.1") == OTHER


@pytest.mark.parametrize("content", [None, b"", b"garbage" * 2000])
def test_a_database_that_cannot_be_read_holds_nothing(
    tmp_path: Path, content: bytes | None
) -> None:
    """A missing, empty or invalid database gives no conversations and no error. It is not
    created."""
    path = tmp_path / "opencode.db"
    if content is not None:
        path.write_bytes(content)
    assert ARCHIVE.read(path, ID) is None
    assert ARCHIVE.find(path, "run-1.1") == ""
    assert DRIVER.refuse(launch(Start.RESUME, home=str(path))) == ""
    assert [each.name for each in tmp_path.iterdir()] == (
        [] if content is None else ["opencode.db"]
    )


def test_reading_does_not_disturb_a_writer(database: Path) -> None:
    """While another process writes, committed data is read at once, and the write succeeds."""
    with closing(sqlite3.connect(database, isolation_level=None)) as writer:
        writer.execute("begin immediate")
        writer.execute("insert into part values ('prt_9', 'msg_2', ?, '{}')", (ID,))
        assert b"prt_9" not in read(database)
        writer.execute("commit")
    assert b"prt_9" in read(database)


def test_a_copy_goes_back_as_the_export_that_it_came_from(database: Path) -> None:
    """A restored copy has the form that `opencode import` reads, and every message and part keeps
    its id. A copy of something else is refused."""
    say(database, "msg_3", "user", [])
    command = ARCHIVE.restore(Program(path="/bin/opencode", version="1.18.33"), ID, read(database))
    assert command.argv == ("/bin/opencode", "import", "/dev/stdin")
    export = json.loads(command.stdin)
    assert (export["info"]["id"], export["info"]["directory"]) == (ID, "/work/dir")
    assert [(message["info"]["id"], len(message["parts"])) for message in export["messages"]] == [
        ("msg_1", 1),
        ("msg_2", 1),
        ("msg_3", 0),
    ]
    assert export["messages"][0]["parts"][0] == {
        "type": "text",
        "text": "hello one",
        "id": "prt_msg_1_0",
        "sessionID": ID,
        "messageID": "msg_1",
    }
    with pytest.raises(ValueError):
        ARCHIVE.restore(Program(path="/bin/opencode"), OTHER, read(database))


def test_a_tool_that_never_ended_is_told_from_its_row(database: Path) -> None:
    """Calls that were running or waiting at a kill are read from the database with their commands.
    Calls that ended are in the output."""
    before = read(database)
    states = [
        {"status": status, "input": {"command": f"{status} it"}}
        for status in ("completed", "error", "pending", "running")
    ]
    say(
        database,
        "msg_3",
        "assistant",
        [
            {"type": "tool", "tool": "bash", "callID": f"call_{n}", "state": state}
            for n, state in enumerate(states)
        ],
    )
    told = ARCHIVE.unreported_events(read(database)[len(before) :])
    assert told == (
        ToolStarted("call_2", "bash", "pending it"),
        ToolStarted("call_3", "bash", "running it"),
    )
    assert ARCHIVE.unreported_events(before) == ()


def counted(read: int, wrote: int, cost: float = 0.0) -> dict[str, Any]:
    """Return the fields of an answer whose tokens are known."""
    tokens = {"input": read, "output": wrote, "reasoning": 0, "cache": {"read": 0, "write": 0}}
    return {"tokens": tokens, "cost": cost, "time": {"created": 1, "completed": 2}}


def test_an_answer_that_was_cut_off_is_estimated(database: Path) -> None:
    """The input of an interrupted answer is estimated as the previous answer's context and
    everything since: results of tools, a prompt, and the text of an answer without a count. Its
    output is estimated from its own text."""

    def tool(output: str, **given: str) -> dict[str, Any]:
        state = {"status": "completed", "input": given, "output": output}
        return {"type": "tool", "tool": "bash", "callID": "c", "state": state}

    def amend(**more: Any) -> None:
        data = json.dumps({"role": "assistant"} | counted(0, 0) | more)
        change(database, "update message set data = ? where id = 'msg_4'", data)

    before = len(read(database))
    assert ARCHIVE.cut_off(read(database), before) is None
    first = tool("x" * 300, command="y" * 90)
    say(database, "msg_3", "assistant", [first], **counted(1000, 50, 0.2))
    known = len(read(database))
    assert ARCHIVE.cut_off(read(database), 0) is None
    running = {"type": "tool", "state": {"status": "running", "input": {"command": "z" * 30}}}
    words = {"type": "text", "text": "w" * 60}
    say(database, "msg_4", "assistant", [words, running], **counted(0, 0))
    assert ARCHIVE.cut_off(read(database), known) is None, "its request failed"
    amend(time={"created": 3})
    found = ARCHIVE.cut_off(read(database), known)
    assert found is not None
    cost = round(0.2 * 1180 / 1050, 6)
    assert found == Reply(id="msg_4", usage=Usage(1150, 30, 1000, 0, cost, estimated=True))
    assert ARCHIVE.cut_off(read(database), len(read(database))) is None, "another attempt's"
    amend(time={"created": 3, "completed": 4}, error={"name": "MessageAbortedError"})
    assert ARCHIVE.cut_off(read(database), known) == found
    say(database, "msg_5", "user", [{"type": "text", "text": "p" * 12}])
    say(database, "msg_6", "assistant", [])
    later = ARCHIVE.cut_off(read(database), known)
    assert later is not None
    assert (later.id, later.usage.input, later.usage.output) == ("msg_6", 1184, 0)
    assert ARCHIVE.cut_off(b"no json\n{}\n", 0) is None


def test_a_writer_is_known_by_its_command_line_and_its_open_file(database: Path) -> None:
    """A process is a writer if its command line names the session and it has this database open. A
    process that forks from the session, or that uses another database, is not a writer."""
    code = (
        "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute('select 1 from "
        "session'); print(1, flush=True); sys.stdin.read()"
    )

    def start(*arguments: str, path: Path = database) -> subprocess.Popen[bytes]:
        started = subprocess.Popen(
            [sys.executable, "-c", code, str(path), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert started.stdout is not None
        started.stdout.readline()
        return started

    other = database.with_name("other.db")
    with closing(sqlite3.connect(other)) as made:
        made.executescript(SCHEMA)
    running = [
        start(f"--session={ID}"),
        start("-s", ID),
        start(f"--session={ID}", "--fork"),
        start(f"--session={OTHER}"),
        start(f"--session={ID}", path=other),
    ]
    assert list(DRIVER.writers(database, ID)) == sorted(each.pid for each in running[:2])
    for each in running:
        each.communicate()
    assert list(DRIVER.writers(database, ID)) == []
