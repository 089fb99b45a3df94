"""The ACP driver and its bridge, with a small agent for behavior that no real one shows on request."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from perdure.agents import registry
from perdure.agents.acp import events as acp_events
from perdure.agents.acp.driver import BRIDGE
from perdure.errors import AgentMissing
from perdure.model import (
    Continuation,
    Exit,
    Launch,
    OutcomeKind,
    Permissions,
    Program,
    Start,
    TaskSpec,
    Usage,
)
from perdure.model.events import (
    AgentEvent,
    ItemsMarked,
    SaidPart,
    SessionSeen,
    TurnEnded,
    TurnStarted,
    Unrecognised,
    UsageSeen,
)
from tests.patience import PATIENCE_S

AGENT = Path(__file__).with_name("acp_agent.py")
NEW = {
    "start": "new",
    "session": "",
    "mode": "",
    "model": "",
    "hold": "",
    "home": "",
    "directories": [],
    "notices": False,
    "again": False,
}


def start(tmp_path: Path, *scene: str, **order: Any) -> subprocess.Popen[bytes]:
    whole = {
        **NEW,
        "command": [sys.executable, str(AGENT), *scene],
        "cwd": str(tmp_path),
        "allow": "work",
        **order,
    }
    words = [sys.executable, "-P", str(BRIDGE), json.dumps(whole)]
    environ = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    pipe = subprocess.PIPE
    return subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=pipe, cwd=tmp_path, env=environ)


def finish(started: subprocess.Popen[bytes]) -> tuple[int, Sequence[AgentEvent]]:
    out, err = started.communicate(b"hello", timeout=PATIENCE_S)
    assert b"Traceback" not in err, err.decode()
    return started.returncode, [
        event for line in out.split(b"\n") for event in acp_events.parse(line)
    ]


def run(tmp_path: Path, *scene: str, **order: Any) -> tuple[int, Sequence[AgentEvent]]:
    return finish(start(tmp_path, *scene, **order))


def said(events: Sequence[AgentEvent]) -> str:
    return "".join(event.text for event in events if isinstance(event, SaidPart))


def outcome(code: int, events: Sequence[AgentEvent]) -> tuple[OutcomeKind, str]:
    found = registry.load("acp-codex").outcome(Exit(code=code), events)
    return found.kind, found.detail


def test_the_replay_of_a_conversation_is_not_its_next_answer(tmp_path: Path) -> None:
    """An agent may replay old messages before and after its response to the request to load. They
    do not count as new messages."""
    code, events = run(tmp_path, "plain", start="resume", session="one")
    assert (code, said(events)) == (0, "The answer.")
    assert [event.session_id for event in events if isinstance(event, SessionSeen)] == ["one"]


def test_a_message_of_any_length_is_read(tmp_path: Path) -> None:
    """A message of 200,000 characters is read; asyncio alone would fail at 65,536. The event says
    how much it leaves out."""
    code, events = run(tmp_path, "long")
    assert code == 0
    assert said(events).startswith("x" * 16_000)


def test_an_agent_that_dies_in_its_turn(tmp_path: Path) -> None:
    """If an agent dies during its turn, the turn has failed, and the messages until then are
    kept."""
    code, events = run(tmp_path, "dies")
    assert (code, said(events)) == (1, "half")
    assert outcome(code, events) == (OutcomeKind.FAILED, "the agent ended before it had answered")


@pytest.mark.parametrize(
    ("scene", "kind", "words"),
    [
        ("newer", OutcomeKind.FAILED, "version 2 of the protocol"),
        ("forgets", OutcomeKind.FAILED, "neither resume nor load"),
        ("tires", OutcomeKind.MAX_TURNS, "max_turn_requests"),
    ],
)
def test_what_the_agent_cannot_do_is_said(
    tmp_path: Path, scene: str, kind: OutcomeKind, words: str
) -> None:
    """An agent that needs another version of the protocol, cannot continue the conversation, or
    reaches its limit of requests gives a failed turn with that reason. No new conversation is begun
    instead of the old one."""
    asked = {"start": "resume", "session": "one"} if scene == "forgets" else {}
    code, events = run(tmp_path, scene, **asked)
    found = outcome(code, events)
    assert (code, found[0]) == (1, kind)
    assert words in found[1]
    assert said(events) == ("The answer." if scene == "tires" else "")


@pytest.mark.parametrize(
    ("allow", "place", "answer"),
    [
        ("nothing", "in.txt", "no"),
        ("look", "in.txt", "no"),
        ("work", "in.txt", "yes"),
        ("work", "../out.txt", "no"),
        ("work", "link/out.txt", "no"),
        ("anything", "/etc/passwd", "yes"),
    ],
)
def test_questions_are_answered_by_the_level(
    tmp_path: Path, allow: str, place: str, answer: str
) -> None:
    """An edit inside the workdir is granted from the level that allows edits on. An edit outside of
    it, also through a link, is granted only at the last level."""
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "link").symlink_to(tmp_path)
    _, events = run(tmp_path, "asks", place, cwd=str(tmp_path / "work"), allow=allow)
    assert said(events) == answer


def test_nothing_of_the_workdir_is_imported(tmp_path: Path) -> None:
    """Modules in the workdir with the names of the ACP library and of standard modules are not
    imported."""
    for name in ("acp", "json", "asyncio", "pydantic"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('imported from the workdir')")
    assert run(tmp_path, "plain")[0] == 0


def test_the_agent_ends_with_the_bridge(tmp_path: Path) -> None:
    """An agent that does not exit when its input is closed is killed after its turn."""
    code, events = run(tmp_path, "stays")
    assert (code, said(events)) == (0, "The answer.")
    alive = [
        entry
        for entry in Path("/proc").iterdir()
        if entry.name.isdecimal() and _runs_in(entry, tmp_path)
    ]
    assert alive == []


def _runs_in(process: Path, directory: Path) -> bool:
    try:
        return (process / "cwd").readlink() == directory
    except OSError:
        return False


def test_a_conversation_that_a_load_would_destroy_is_waited_for(tmp_path: Path) -> None:
    """Gemini CLI names the files of conversations by the minute. While a file of the current minute
    exists, loading its conversation would overwrite it. So the turn waits until it is gone."""
    held = [
        tmp_path / time.strftime("held-%H-%M", time.gmtime(time.time() + 60 * minutes))
        for minutes in range(3)
    ]
    for path in held:
        path.touch()
    started = start(
        tmp_path, "plain", start="resume", session="one", home=str(tmp_path), hold="held-%H-%M"
    )
    with pytest.raises(subprocess.TimeoutExpired):
        started.communicate(b"hello", timeout=5)
    for path in held:
        path.unlink()
    out, _ = started.communicate(timeout=PATIENCE_S)
    assert (started.returncode, b"The answer." in out) == (0, True)


def test_a_library_that_is_not_installed_is_told(tmp_path: Path) -> None:
    """Without the `acp` extra the bridge starts no agent, and says what to install. The outcome is
    not counted as a failure of the agent."""
    done = subprocess.run(
        [sys.executable, "-S", "-P", str(BRIDGE), "{}"],
        input=b"",
        capture_output=True,
        env={"HOME": str(tmp_path)},
    )
    assert (done.returncode, done.stdout) == (3, b"")
    found = registry.load("acp-codex").outcome(Exit(code=3, stderr_tail=done.stderr.decode()), [])
    assert found.kind is OutcomeKind.CONFIG_ERROR
    assert "pip install 'perdure[acp]'" in found.detail


def launch(agent: str, prompt: str = "hello", **spec: Any) -> Launch:
    program = Program(path="/opt/the\\ agent acp")
    asked = Continuation(kind=Start.RESUME, session_id="6f0a1c1e-8b0e-4f0e-9d57-0d4f5f3c2a11")
    task = TaskSpec(prompt=prompt, agent=agent, **spec)
    return Launch(
        spec=task, continuation=asked, prompt=prompt, cwd="/w", home="/h", program=program
    )


def test_gemini_gets_its_flags_and_the_minute_is_guarded() -> None:
    """The flags of the permissions level come after `--acp`. The order for the bridge names the
    file that Gemini would overwrite if it loaded the conversation in the same minute."""
    order = json.loads(
        registry.load("acp-gemini")
        .command(launch("acp-gemini", permissions=Permissions.FULL, model="m"))
        .argv[-1]
    )
    assert order["command"][:2] == ["/opt/the agent", "acp"]
    assert {"--approval-mode=yolo", "--model=m"} <= set(order["command"])
    assert not any("output-format" in word or "session-id" in word for word in order["command"])
    assert (order["hold"], order["home"], order["model"]) == (
        "tmp/*/chats/session-%Y-%m-%dT%H-%M-6f0a1c1e.jsonl",
        "/h",
        "",
    )


def test_a_level_that_nothing_enforces_is_refused() -> None:
    """Claude Code over ACP only asks for permission. It has nothing that enforces `read`, so a
    launch at that level is refused. The other levels are accepted."""
    claude = registry.load("acp-claude")
    assert "read" in claude.refuse(launch("acp-claude", permissions=Permissions.READ))
    assert claude.refuse(launch("acp-claude", permissions=Permissions.EDIT)) == ""


def test_a_prompt_that_looks_like_a_command_is_labelled() -> None:
    """A prompt that begins with a slash gets a label before it. Other prompts are not changed."""
    codex = registry.load("acp-codex")
    assert codex.command(launch("acp-codex", "/logout")).stdin == b"Prompt: /logout"
    assert codex.command(launch("acp-codex", "a/b")).stdin == b"a/b"


def test_an_agent_that_nobody_knows_is_refused(tmp_path: Path) -> None:
    """The error says how to configure your own ACP agent. For an invalid name it lists the known
    agents."""
    with pytest.raises(AgentMissing) as error:
        registry.load("acp-nobody").locate({"PATH": str(tmp_path)})
    assert "PERDURE_ACP_NOBODY" in error.value.hint
    with pytest.raises(AgentMissing) as error:
        registry.load("acp-../x")
    assert "acp-codex" in error.value.hint


def test_the_command_may_be_given(tmp_path: Path) -> None:
    """The value of PERDURE_ACP_NAME is the agent's command. It is an error if its program is
    missing."""
    driver = registry.load("acp-opencode")
    given = {"PATH": "/usr/bin:/bin", "PERDURE_ACP_OPENCODE": "env A=b sh -c 'true it'"}
    assert driver.locate(given).path == "env A=b sh -c 'true it'"
    with pytest.raises(AgentMissing):
        driver.locate({"PATH": str(tmp_path), "PERDURE_ACP_OPENCODE": "nothing"})


@pytest.mark.parametrize(
    "line",
    [
        b"{}",
        b"x",
        b'{"type":"update","update":[1]}',
        b'{"type":"end","usage":3}',
        b'{"type":"tool","call":7}',
    ],
)
def test_no_line_is_fatal(line: bytes) -> None:
    """Any line is parsed to events, or to none, without an error."""
    assert all(
        isinstance(event, AgentEvent | Unrecognised | TurnEnded) for event in acp_events.parse(line)
    )


@pytest.mark.parametrize(("total", "output"), [(163, 57), (113, 7)])
def test_thoughts_count_as_output_once(total: int, output: int) -> None:
    """OpenCode 1.18.33 reports thoughts beside the output, and the protocol lets an agent include
    them in it. The total of all tokens tells which."""
    used = {"inputTokens": 100, "outputTokens": 7, "thoughtTokens": 50, "cachedReadTokens": 6}
    line = {"type": "end", "stop": "end_turn", "usage": {**used, "totalTokens": total}}
    found = acp_events.parse(json.dumps(line).encode())
    (counted,) = [event.usage for event in found if isinstance(event, UsageSeen)]
    assert counted == Usage(input=106, output=output, cached=6)


@pytest.mark.parametrize(
    ("command", "own"),
    [
        ("/opt/opencode acp", ["/opt/opencode"]),
        ("env A=b opencode acp", ["env", "A=b", "opencode"]),
        ("mine", ["mine"]),
    ],
)
def test_a_copy_goes_back_through_the_agents_own_program(command: str, own: list[str]) -> None:
    """The import of a copy is run by the agent's command, without the words that make it speak
    ACP."""
    archive = registry.load("acp-opencode").archive
    assert archive is not None
    session = "ses_e02d74f19ffeNc6A2Emub9haj6"
    copy = (
        json.dumps({"type": "session", "id": session, "directory": "/w", "created": 1}).encode()
        + b"\n"
    )
    assert list(archive.restore(Program(path=command), session, copy).argv) == [
        *own,
        "import",
        "/dev/stdin",
    ]


PROMPT = "prompt:" + hashlib.sha256(b"hello").hexdigest()[:16]


def marks(events: Sequence[AgentEvent]) -> tuple[str, ...]:
    """Return the marks of the completed turn, or nothing if no turn was completed."""
    return next(
        (event.marks for event in events if isinstance(event, ItemsMarked) and event.ended), ()
    )


def opened(events: Sequence[AgentEvent]) -> tuple[str, str, int | None]:
    (seen,) = [event for event in events if isinstance(event, SessionSeen)]
    return seen.session_id, seen.opened, seen.replayed


@pytest.mark.parametrize(
    ("scene", "word", "replayed"),
    [("keeps", "loaded", 4), ("late", "loaded", 4), ("resumes", "resumed", None)],
)
def test_what_is_taken_up_is_told(
    tmp_path: Path, scene: str, word: str, replayed: int | None
) -> None:
    """A loaded conversation is compared with its known items, even if the replay is late. A resumed
    conversation is not replayed, so there is nothing to compare."""
    _, first = run(tmp_path, scene, known=[])
    assert opened(first) == ("one", "new", None)
    known = marks(first)
    assert [each.partition(":")[0] for each in known] == [
        "prompt",
        "said",
        "tool",
        "said",
    ] and known[0] == PROMPT
    code, second = run(tmp_path, scene, known=list(known), start="resume", session="one")
    assert (code, opened(second)) == (0, ("one", word, replayed))
    assert said(second) == "I look.answer 4"


@pytest.mark.parametrize(
    ("scene", "lacks"),
    [
        ("lies", "1 prompt(s), 2 answer(s), 1 tool call(s)"),
        ("empty", "1 prompt(s)"),
        ("forgets the end", "1 answer(s)"),
    ],
)
def test_a_replay_that_lacks_something_gets_no_prompt(
    tmp_path: Path, scene: str, lacks: str
) -> None:
    """An agent reports that it loaded a conversation, but replays another one, none, or a shorter
    one. It does not get the prompt."""
    _, first = run(tmp_path, scene, known=[])
    before = (tmp_path / "acp-history.json").read_bytes()
    code, events = run(tmp_path, scene, known=list(marks(first)), start="resume", session="one")
    kind, detail = outcome(code, events)
    assert (code, kind) == (1, OutcomeKind.SESSION_BROKEN)
    assert f"its replay lacks {lacks}" in detail
    assert not [event for event in events if isinstance(event, SessionSeen | TurnStarted)]
    assert (tmp_path / "acp-history.json").read_bytes() == before


def test_an_agent_that_keeps_nothing_names_no_conversation(tmp_path: Path) -> None:
    """An agent that offers neither to load nor to resume gives no session id. A request to continue
    ends with `session_missing`."""
    _, first = run(tmp_path, "forgets", known=[])
    assert opened(first) == ("", "new", None) and marks(first) == ()
    code, events = run(tmp_path, "forgets", known=[], start="resume", session="one")
    assert outcome(code, events)[0] is OutcomeKind.SESSION_MISSING


def test_any_other_agent_is_driven_by_its_word(tmp_path: Path) -> None:
    """An unknown agent's command comes from a variable with the agent's name. A missing variable or
    program is an error. The driver reports that it cannot read transcripts. It does not fork, and
    refuses permissions that nothing would enforce."""
    driver = registry.load("acp-my-own")
    command = f"{sys.executable} {AGENT} plain"
    program = driver.locate({"PATH": "/usr/bin:/bin", "PERDURE_ACP_MY_OWN": command})
    assert program.path == command
    for environ, words in (
        ({}, "PERDURE_ACP_MY_OWN=COMMAND"),
        ({"PERDURE_ACP_MY_OWN": "/no/such/program"}, ""),
    ):
        with pytest.raises(AgentMissing) as told:
            driver.locate(environ)
        assert words in told.value.hint
    with pytest.raises(AgentMissing):
        registry.load("acp-no/name")
    spec = TaskSpec(prompt="hello", agent=driver.name)
    launch = Launch(
        spec=spec,
        continuation=Continuation(kind=Start.FRESH),
        prompt="hello",
        cwd=str(tmp_path),
        home=str(tmp_path),
        program=program,
    )
    assert driver.abilities.transcripts is False
    assert driver.refuse(launch) == ""
    assert "asks before some calls only" in driver.refuse(
        replace(launch, spec=replace(spec, permissions=Permissions.READ))
    )
    with pytest.raises(ValueError, match="no continuation fork"):
        driver.command(
            replace(launch, continuation=Continuation(kind=Start.FORK, session_id="one"))
        )
    goes_on = replace(
        launch, continuation=Continuation(kind=Start.RESUME, session_id="one"), marks=("prompt:1",)
    )
    order = json.loads(driver.command(goes_on).argv[-1])
    assert (order["start"], order["session"], order["known"]) == ("resume", "one", ["prompt:1"])
    asked = driver.command(launch)
    done = subprocess.run(
        asked.argv,
        input=asked.stdin,
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
        timeout=PATIENCE_S,
    )
    events = [event for line in done.stdout.split(b"\n") for event in driver.parse(line)]
    assert (said(events), driver.outcome(Exit(code=done.returncode), events).kind) == (
        "The answer.",
        OutcomeKind.SUCCEEDED,
    )
