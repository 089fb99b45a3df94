"""How an attempt ends: scripted endings with the real agents. Each has the outcome that the facts
support. Some of them are true successes."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.journeys.stage import Done, Stage, command_of, native

MakeStage = Callable[..., Stage]
pytestmark = pytest.mark.journey

QUESTION = {
    "questions": [
        {
            "question": "Which database?",
            "header": "Database",
            "multiSelect": False,
            "options": [
                {"label": "Postgres", "description": "the big one"},
                {"label": "SQLite", "description": "the small one"},
            ],
        }
    ]
}


@dataclass(frozen=True)
class Ending:
    """One scripted ending. `state`: the run's state; `kind`: the outcome of its only attempt;
    `why`: words that `perdure why` must print; `events`: kinds of events that the journal must
    have."""

    script: str
    state: str = "succeeded"
    kind: str = "succeeded"
    code: int = 0
    why: tuple[str, ...] = ()
    events: tuple[str, ...] = ()
    logs: tuple[str, ...] = ()
    """Words that `perdure logs` must print."""
    words: tuple[str, ...] = ()
    hook: str = ""
    """The answer of a hook in the repository, as JSON."""
    hooked: str = "PreToolUse"


def call(tool: str, **given: Any) -> str:
    return f"call {tool} {json.dumps(given)}\n"


def asks(*why: str, events: tuple[str, ...] = (), **more: Any) -> dict[str, Any]:
    """Return the fields of an ending after which a person is needed."""
    kind = more.pop("kind", "needs_input")
    return {"state": "failed", "kind": kind, "code": 3, "why": why, "events": events, **more}


def waits(*why: str, events: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return the fields of an ending whose run waits for a person's answer."""
    return {**asks(*why, events=(*events, "request_made")), "state": "queued"}


def decision(word: str) -> str:
    output = {"hookEventName": "PreToolUse", "permissionDecision": word}
    return json.dumps({"hookSpecificOutput": {**output, "permissionDecisionReason": "not now"}})


BLOCK = json.dumps({"decision": "block", "reason": "not now"})
WORD = {"status": "done", "summary": "I wrote it.", "questions": [], "follow_ups": ["add tests"]}
FETCH = call("WebFetch", url="https://example.invalid/a", prompt="what is there")
WRITE = call("Write", file_path="out.txt", content="hello")
STOPS = "---\nsay I cannot do that without the tool. I stop here.\n"
BACKGROUND = call("Bash", command="sleep 571", description="serve", run_in_background=True)
AWAY = (
    "run (setsid nohup sh -c 'trap \"\" TERM; exec sleep 573' >/dev/null 2>&1 &) ; "
    "(trap '' TERM; exec sleep 574) & (exec sleep 575) & echo started\n"
)

CLAUDE = {
    "denied": Ending(
        f"say I will look.\n{FETCH}{STOPS}",
        **waits("1 call was denied: WebFetch https://example.invalid/a", events=("tool_denied",)),
    ),
    "denied, and on_denied is fail": Ending(
        FETCH + STOPS,
        words=("--on-denied", "fail"),
        **asks("denied: WebFetch", events=("tool_denied",), kind="denied"),
    ),
    "denied, and on_denied is report": Ending(
        FETCH + STOPS, words=("--on-denied", "report"), events=("tool_denied",)
    ),
    "denied several times": Ending(
        f"{FETCH}---\n{FETCH}---\n{call('WebSearch', query='perdure')}{STOPS}",
        words=("--on-denied", "fail"),
        **asks(
            "3 calls were denied: WebFetch https://example.invalid/a (2 times), WebSearch perdure",
            kind="denied",
        ),
    ),
    "denied, and made once more": Ending(
        f"{FETCH}---\n{FETCH}{STOPS}",
        **waits("it waits for a person to allow a call: WebFetch https://example.invalid/a"),
    ),
    "denied by the level of permissions": Ending(
        WRITE + STOPS, words=("--permissions", "read"), **asks("1 call was denied: Write out.txt")
    ),
    "denied by a hook": Ending(
        WRITE + STOPS, hook=decision("deny"), **asks("denied: Write", events=("tool_denied",))
    ),
    "blocked by a hook": Ending(
        WRITE + STOPS, hook=BLOCK, **asks("denied: Write out.txt", events=("tool_denied",))
    ),
    "allowed by a hook against the level of permissions": Ending(
        WRITE + STOPS,
        hook=decision("allow"),
        words=("--permissions", "read"),
        **asks("1 call was denied: Write out.txt"),
    ),
    "deferred by a hook": Ending(
        f"{WRITE}---\nsay It is written.\n",
        hook=decision("defer"),
        **asks("a hook deferred a tool call", "Write", events=("tool_denied",)),
    ),
    "stopped by a hook": Ending(
        f"{WRITE}---\nsay It is written.\n",
        "failed",
        "config_error",
        7,
        hook=json.dumps({"continue": False, "stopReason": "no more"}),
        why=("a hook of the repository or of the user ended the turn",),
    ),
    "a question": Ending(
        f"{call('AskUserQuestion', **QUESTION)}---\nsay Which database do you want?\n",
        **waits("it asks: Which database? (Postgres, SQLite)", events=("question_asked",)),
    ),
    "cut at the limit of tokens": Ending(
        "---\n".join(f"say piece {n}\nstop max_tokens\n" for n in range(9)),
        "failed",
        "truncated",
        1,
        why=("truncated",),
        events=("reply_cut",),
    ),
    "a refusal": Ending(
        "say I cannot help with that.\nstop refusal\n---\nsay Never.\nstop refusal\n",
        **asks("the model refused", events=("reply_cut",), kind="refused"),
    ),
    "a refusal, then mere words": Ending(
        "say I cannot help with that.\nstop refusal\n",
        **asks("the model refused", events=("reply_cut",), kind="refused"),
    ),
    "an empty answer": Ending(
        "nothing\n---\nnothing\n---\nnothing\n",
        "failed",
        "truncated",
        1,
        why=("the model's last answer was empty",),
    ),
    "a command in the background": Ending(
        f"{BACKGROUND}---\nsay It runs.\n",
        events=("leftovers_found",),
        logs=("ended: 1 process(es): sleep 571",),
    ),
    "processes that got away": Ending(
        f"{AWAY}---\nsay They run.\n", events=("leftovers_found",), logs=("sleep 573", "sleep 574")
    ),
    "an error of the service as text": Ending(
        "fail 400 x9\nsay never\n", "failed", "failed", 1, why=("API Error",)
    ),
    "its own limit of turns": Ending(
        "run true\n---\nrun true\n---\nsay Done.\n",
        "failed",
        "max_turns",
        1,
        words=("--agent-arg=--max-turns", "--agent-arg=1"),
        why=("max_turns",),
    ),
    "a last word in a form: blocked": Ending(
        call("StructuredOutput", **WORD | {"status": "blocked", "questions": ["Which host?"]}),
        words=("--last-word", "on"),
        **asks("it says that it is blocked", "it asks: Which host?", events=("last_word_given",)),
    ),
    # True successes.
    "a last word in a form: done": Ending(
        f"run echo hello > out.txt\n---\n{call('StructuredOutput', **WORD)}",
        words=("--last-word", "on"),
        logs=("last word: done: I wrote it.; next: add tests",),
    ),
    "a form that the agent ignores": Ending(
        "run echo hello > out.txt\n---\nsay I wrote it.\n---\nsay I wrote it.\n",
        words=("--last-word", "on"),
    ),
    "the work": Ending("run echo hello > out.txt\n---\nsay I wrote it.\n"),
    "an answer about an error of the service": Ending(
        "say API Error: 429 means that too many requests were sent.\n"
    ),
    "nothing to do": Ending("say There is nothing to do: all of it is there already.\n"),
    "a sentence that ends with a question mark": Ending(
        "run echo hello > out.txt\n---\nsay It is done. Shall I write tests next?\n"
    ),
    "a command that failed, and was put right": Ending(
        "run false\n---\nrun echo hello > out.txt\n---\nsay Done now.\n"
    ),
    "cut, and taken up again by the agent": Ending(
        "say This is cut\nstop max_tokens\n---\nsay off, and here is the rest.\n",
        events=("reply_cut",),
    ),
    "refused once, and done another way": Ending(
        "say No.\nstop refusal\n---\nrun echo hello > out.txt\n---\nsay Done so.\n",
        events=("reply_cut",),
    ),
    "asked, and decided by itself": Ending(
        f"{call('AskUserQuestion', **QUESTION)}---\nrun echo sqlite > out.txt\n---\nsay SQLite.\n",
        # If a person can be asked, the question ends the turn.
        words=("--on-denied", "report"),
        events=("question_asked",),
    ),
    "an empty answer, then words": Ending("nothing\n---\nsay Nothing is left to do.\n"),
    "allowed by a hook": Ending(
        FETCH + "---\nsay There is no such host.\n", hook=decision("allow")
    ),
    "kept from its end by a hook": Ending(
        "run echo hello > out.txt\n" + "---\nsay It is written.\n" * 12, hook=BLOCK, hooked="Stop"
    ),
}


def play(stage: Stage, ending: Ending, agent: str) -> Done:
    """Run one task with one attempt to its end."""
    if ending.hook:
        settings = stage.repo / ".claude/settings.json"
        settings.parent.mkdir()
        (settings.parent / "answer.json").write_text(ending.hook)
        command = {"type": "command", "command": 'cat "$CLAUDE_PROJECT_DIR"/.claude/answer.json'}
        settings.write_text(json.dumps({"hooks": {ending.hooked: [{"hooks": [command]}]}}))
        identity = ["-c", "user.name=Ada", "-c", "user.email=ada@example.invalid"]
        for arguments in (["add", "."], [*identity, "commit", "-q", "-m", "hooks"]):
            command_line = ["git", *arguments]
            subprocess.run(command_line, cwd=stage.repo, env=stage.environ, check=True)
    asked = ["--repo", str(stage.repo), "--name", "task", "--attempts", "1", "--agent", agent]
    may = () if "--permissions" in ending.words else ("--permissions", "edit")
    return stage.perdure("run", *asked, *may, *ending.words, "Do the task.")


def kinds(stage: Stage) -> set[str]:
    """Return the kinds of the events in the run's journal."""
    done = stage.perdure("logs", "task", "--json")
    assert done.code == 0, done.err
    return {json.loads(line)["event"]["kind"] for line in done.out.splitlines()}


def holds(stage: Stage, ending: Ending, agent: str = "") -> None:
    """Play the ending and check all its expectations. `agent`: the agent over ACP, if one is
    used."""
    done = play(stage, ending, agent or stage.agent)
    report = stage.show()
    (attempt,) = report["attempts"]
    found = (report["state"], attempt["outcome"]["kind"], done.code)
    assert found == (ending.state, ending.kind, ending.code), (attempt["outcome"], done.err)
    why = stage.perdure("why", "task").out
    for words in ending.why:
        assert words in why, why
    logs = stage.perdure("logs", "task").out if ending.logs else ""
    for words in ending.logs:
        assert words in logs, logs
    assert set(ending.events) <= kinds(stage)
    stage.nothing_survives()


@pytest.mark.parametrize("agent", ["claude"], indirect=True)
@pytest.mark.parametrize("name", CLAUDE)
def test_an_attempt_of_claude_ends_as_the_facts_say(
    stage: MakeStage, agent: str, name: str
) -> None:
    """The outcome of each scripted ending follows from calls, results and stop reasons."""
    holds(stage(CLAUDE[name].script), CLAUDE[name])


ASK_CODEX = call("request_user_input", questions=[{**QUESTION["questions"][0], "id": "db"}])
ESCALATED = call(
    "exec_command",
    cmd="make install",
    sandbox_permissions="require_escalated",
    justification="it needs more",
)
REMOTE = "run git ls-remote https://example.invalid/a.git\n"
OUTSIDE = "run echo x > /etc/perdure-of-a-test.txt\n"

CODEX = {
    "stopped by the sandbox": Ending(
        f"{OUTSIDE}{STOPS}", **waits("1 call was denied:", events=("tool_denied",))
    ),
    "an escalation that was rejected": Ending(
        f"{ESCALATED}{STOPS}",
        **waits("1 call was denied: exec_command make install", events=("tool_denied",)),
    ),
    "rejected, and on_denied is fail": Ending(
        f"{ESCALATED}{STOPS}",
        words=("--on-denied", "fail"),
        **asks("1 call was denied", kind="denied"),
    ),
    "no network in the sandbox": Ending(
        f"{REMOTE}{STOPS}",
        **waits("1 call was denied: exec_command git ls-remote", events=("tool_denied",)),
    ),
    "a question": Ending(
        f"{ASK_CODEX}---\nsay Which database do you want?\n",
        **waits("it asks: Which database? (Postgres, SQLite)", events=("question_asked",)),
    ),
    "cut at the limit of tokens": Ending(
        "say This is cut\nstop max_output_tokens\n",
        "failed",
        "truncated",
        1,
        ("max_output_tokens",),
    ),
    "a refusal": Ending(
        "say I cannot help with that.\nstop content_filter\n---\nsay No.\nstop content_filter\n",
        **asks("the model refused", kind="refused"),
    ),
    "an empty answer": Ending(
        "nothing\n", "failed", "truncated", 1, ("the model's last answer was empty",)
    ),
    "processes that got away": Ending(
        f"{AWAY}---\nsay They run.\n",
        # At the other permissions levels the sandbox ends the processes together with the command.
        words=("--permissions", "full"),
        logs=("sleep 573", "sleep 574"),
    ),
    "a last word in a form: incomplete": Ending(
        f"say {json.dumps(WORD | {'status': 'incomplete'})}\n",
        "failed",
        "failed",
        1,
        ("it says that the work is incomplete: I wrote it.",),
        words=("--last-word", "on"),
    ),
    # True successes.
    "a last word in a form: done": Ending(
        f"run echo hello > out.txt\n---\nsay {json.dumps(WORD)}\n",
        words=("--last-word", "on"),
        logs=("last word: done: I wrote it.; next: add tests",),
    ),
    "the work": Ending("run echo hello > out.txt\n---\nsay I wrote it.\n"),
    "nothing to do": Ending("say There is nothing to do.\n"),
    "a form that the agent ignores": Ending(
        "run echo hello > out.txt\n---\nsay I wrote it.\n", words=("--last-word", "on")
    ),
    "stopped by the sandbox, and done another way": Ending(
        f"{OUTSIDE}---\nrun echo x > out.txt\n---\nsay It is in the workdir now.\n"
    ),
    "no network in the sandbox, and done another way": Ending(
        f"{REMOTE}---\nrun echo x > out.txt\n---\nsay It is written without it.\n"
    ),
    "a host that is not there, without a sandbox": Ending(
        f"{REMOTE}---\nsay The host is not there.\n", words=("--permissions", "full")
    ),
    "asked, and decided by itself": Ending(
        f"{ASK_CODEX}---\nrun echo sqlite > out.txt\n---\nsay SQLite.\n",
        events=("question_asked",),
    ),
}


@pytest.mark.parametrize("agent", ["codex"], indirect=True)
@pytest.mark.parametrize("name", CODEX)
def test_an_attempt_of_codex_ends_as_the_facts_say(stage: MakeStage, agent: str, name: str) -> None:
    """Facts that the output of Codex omits are read from its rollout."""
    holds(stage(CODEX[name].script), CODEX[name])


AWAY_QUIET = (
    "run (setsid nohup sh -c 'trap \"\" TERM; exec sleep 573' >/dev/null 2>&1 &) ; echo started\n"
)

GEMINI = {
    "denied: outside of the workdir": Ending(
        call("write_file", file_path="/etc/perdure-of-a-test.txt", content="x") + STOPS,
        **asks("1 call was denied: write_file /etc/perdure", events=("tool_denied",)),
    ),
    "denied: the CLI would ask at a terminal": Ending(
        call("run_shell_command", command="rm -rf old") + STOPS,
        **waits("run_shell_command rm -rf old", events=("tool_denied",)),
    ),
    "denied by the level of permissions": Ending(
        f"run echo x > out.txt\n{STOPS}",
        words=("--permissions", "read"),
        **asks("1 call was denied: run_shell_command echo x > out.txt"),
    ),
    "a question": Ending(
        f"{call('ask_user', **QUESTION)}---\nsay Which database do you want?\n",
        **asks("it asks: Which database? (Postgres, SQLite)", events=("question_asked",)),
    ),
    "cut at the limit of tokens": Ending(
        "say This is cut\nstop MAX_TOKENS\n", "failed", "truncated", 1, ("broke off (max_tokens)",)
    ),
    "a refusal": Ending(
        "say I cannot help with that.\nstop SAFETY\n",
        **asks("the model refused: I cannot help with that.", kind="refused"),
    ),
    "a command in the background": Ending(
        call("run_shell_command", command="sleep 571", is_background=True) + "---\nsay It runs.\n",
        logs=("ended: 1 process(es): sleep 571",),
    ),
    "a process that got away": Ending(f"{AWAY_QUIET}---\nsay It runs.\n", logs=("sleep 573",)),
    # True successes.
    "the work": Ending("run echo hello > out.txt\n---\nsay I wrote it.\n"),
    "nothing to do": Ending("say There is nothing to do.\n"),
}

OPENCODE = {
    "denied: outside of the workdir": Ending(
        call("write", filePath="/etc/perdure-of-a-test.txt", content="x") + STOPS,
        **waits("write /etc/perdure", events=("tool_denied",)),
    ),
    "a question": Ending(
        f"{call('question', **QUESTION)}---\nsay Which database do you want?\n",
        **asks("it asks: Which database do you want?", events=("question_asked",)),
    ),
    "cut at the limit of tokens": Ending(
        "say This is cut\nstop length\n", "failed", "truncated", 1, ("'length'",)
    ),
    "a refusal": Ending(
        "say I cannot help with that.\nstop content_filter\n",
        **asks("the model refused", kind="refused"),
    ),
    "an empty answer": Ending(
        "nothing\n", "failed", "truncated", 1, ("the model's last answer was empty",)
    ),
    "a process that got away": Ending(f"{AWAY_QUIET}---\nsay It runs.\n", logs=("sleep 573",)),
    # True successes.
    "the work": Ending("run echo hello > out.txt\n---\nsay I wrote it.\n"),
    "nothing to do": Ending("say There is nothing to do.\n"),
}

ACP_CODEX = {
    "stopped by the sandbox": Ending(f"{OUTSIDE}{STOPS}", **asks("denied:")),
    "a question": Ending(
        f"{ASK_CODEX}---\nsay Which database do you want?\n", **asks("it asks: Which database?")
    ),
    "an empty answer": Ending(
        "nothing\n", "failed", "truncated", 1, ("the model's last answer was empty",)
    ),
    "a process that got away": Ending(
        f"{AWAY_QUIET}---\nsay It runs.\n",
        words=("--permissions", "full"),
        logs=("sleep 573",),
    ),
    # True successes.
    "the work": Ending("run echo hello > out.txt\n---\nsay I wrote it.\n"),
    "nothing to do": Ending("say There is nothing to do.\n"),
}


def slow(names: Iterable[str], quick: str) -> list[Any]:
    """Mark all endings except `quick` for the slow tier."""
    return [name if name == quick else pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.mark.parametrize("agent", ["gemini"], indirect=True)
@pytest.mark.parametrize("name", slow(GEMINI, "cut at the limit of tokens"))
def test_an_attempt_of_gemini_ends_as_the_facts_say(
    stage: MakeStage, agent: str, name: str
) -> None:
    """Facts that the output of Gemini CLI omits are read from the answers of its service."""
    holds(stage(GEMINI[name].script), GEMINI[name])


@pytest.mark.parametrize("agent", ["opencode"], indirect=True)
@pytest.mark.parametrize("name", slow(OPENCODE, "denied: outside of the workdir"))
def test_an_attempt_of_opencode_ends_as_the_facts_say(
    stage: MakeStage, agent: str, name: str
) -> None:
    """A question by a tool that does not exist counts as a question."""
    holds(stage(OPENCODE[name].script), OPENCODE[name])


def acp_command() -> str:
    """Return the command of Codex over ACP."""
    adapter = native("codex").parents[5] / "@agentclientprotocol/codex-acp/dist/index.js"
    return f"env CODEX_PATH={native('codex')} node {adapter}"


@pytest.mark.parametrize("agent", ["codex"], indirect=True)
@pytest.mark.parametrize("name", slow(ACP_CODEX, "a question"))
def test_an_attempt_over_acp_ends_as_the_facts_say(stage: MakeStage, agent: str, name: str) -> None:
    """Over ACP the same facts are found in the protocol and in the transcript of the agent behind
    the bridge."""
    one = stage(ACP_CODEX[name].script, extra={"PERDURE_ACP_CODEX": acp_command()})
    holds(one, ACP_CODEX[name], "acp-codex")


LINGERS = """#!/bin/sh
{program} "$@"
trap '' TERM
case "$* {always}" in *json*) exec sleep 579 ;; esac
"""
"""A program that does not exit after its turn, nor on request, and leaves no other process
running."""


ONE_TWO = "run echo one > one.txt\n---\nsay One.\n---\nsay Two.\n"


def lingering(directory: Path, program: str, always: str = "") -> str:
    """Write a program that runs the given one and then does not exit. `always`: if set, it does
    this after every command line."""
    made = directory / "lingers"
    made.write_text(LINGERS.format(program=program, always=always))
    made.chmod(0o755)
    return str(made)


def lingers(one: Stage, agent: str = "") -> None:
    """Check that the run ends long before the agent would count as stalled, and that its turn
    counts."""
    # OpenCode 1.18.33 may say nothing for 21 s in a fresh home, on a busy machine.
    words = ("--stall", "27s", "--permissions", "full")
    done = play(one, Ending("", words=words), agent or one.agent)
    (attempt,) = one.show()["attempts"]
    assert (done.code, attempt["outcome"]["kind"]) == (0, "succeeded"), (attempt, done.err)
    one.nothing_survives()
    assert one.perdure("update", "task", "Go on.").code == 0
    assert one.show()["attempts"][-1]["receipt"]["verdict"] == "native"


@pytest.mark.parametrize("agent", slow(["claude", "codex", "gemini", "opencode"], "claude"))
def test_an_agent_that_does_not_exit_is_ended_when_it_is_silent(
    stage: MakeStage, agent: str, tmp_path: Path
) -> None:
    """The last result of a silent agent is final, because the agent prints nothing more and left
    nothing running."""
    program = lingering(tmp_path, str(native(agent)))
    lingers(stage(ONE_TWO, extra={f"PERDURE_{agent.upper()}": program}))


@pytest.mark.slow
@pytest.mark.parametrize("agent", ["codex", "opencode"], indirect=True)
def test_an_agent_over_acp_that_does_not_exit_is_ended(
    stage: MakeStage, agent: str, tmp_path: Path
) -> None:
    """The agent's response to the prompt is final, whether its process exits or not."""
    command = acp_command() if agent == "codex" else f"{native(agent)} acp"
    program = lingering(tmp_path, command, always="json")
    lingers(stage(ONE_TWO, extra={f"PERDURE_ACP_{agent.upper()}": program}), f"acp-{agent}")


@pytest.mark.parametrize("agent", ["claude"], indirect=True)
def test_policies_change_with_a_retry_and_with_new_instructions(stage: MakeStage) -> None:
    """The policy for a denied call, and the request for a work report, may be set by a retry or an
    update. The report then is beside the agent's message."""
    turn = f"{FETCH}{STOPS}"
    one = stage(f"{turn}---\n{turn}---\n{FETCH}---\n{call('StructuredOutput', **WORD)}")
    assert play(one, Ending(""), one.agent).code == 3
    assert one.perdure("ls", "--format", "{name} {work}").out == "task blocked\n"
    again = one.perdure("retry", "task", "--on-denied", "report")
    assert again.code == 0, again.err
    assert "blocked: Do the task." in one.perdure("ls").out
    changed = ("--on-denied", "fail", "--last-word", "on")
    more = one.perdure("update", "task", "Once more.", *changed, "--attempts", "1")
    assert more.code == 2
    more = one.perdure("update", "task", "Once more.", *changed)
    assert more.code == 3, more.err
    report = one.show()
    newest = report["attempts"][-1]
    assert newest["outcome"]["kind"] == "denied"
    assert newest["work"]["last_word"] == {**WORD, "questions": []}
    assert (report["on_denied"], report["last_word"]) == ("fail", "on")
    why = one.perdure("why", "task").out
    assert "done: I wrote it." in why and "next: add tests" in why


@pytest.mark.parametrize("agent", ["claude"], indirect=True)
def test_a_denied_call_with_a_hostile_input(stage: MakeStage, agent: str) -> None:
    """An input of 5 MB of markup and control characters is shown short and without control
    characters."""
    evil = "<img src=x onerror=alert(1)>\x1b[31m\x1b]0;owned\x07\u202e`@ada"
    text = evil * (5_000_000 // len(evil))
    one = stage(call("Write", file_path=f"{evil}.txt", content=text) + STOPS)
    done = play(one, Ending("", words=("--permissions", "read")), agent)
    assert done.code == 3, done.err
    (denied,) = one.show()["attempts"][0]["work"]["denied"]
    assert (denied["name"], denied["count"]) == ("Write", 1)
    assert "<img src=x" in denied["input"] and len(denied["input"]) <= 300
    shown = [done.err, *(one.perdure(verb, "task").out for verb in ("show", "why", "logs"))]
    for screen in shown:
        assert "<img src=x" in screen
        assert not {"\x1b", "\x07", "\u202e"} & set(screen) and len(screen) < 20_000


@pytest.mark.slow
@pytest.mark.parametrize("agent", ["claude"], indirect=True)
def test_ten_thousand_denied_calls(stage: MakeStage, agent: str) -> None:
    """All ten thousand calls are counted, but only a few are named."""
    calls = [call("Write", file_path=f"{max(n, 9)}.txt", content="x") for n in range(10_000)]
    one = stage("".join(calls) + STOPS)
    done = play(one, Ending("", words=("--permissions", "read")), agent)
    assert done.code == 3, done.err
    (attempt,) = one.show()["attempts"]
    named = "10000 calls were denied: Write 9.txt (10 times), Write 10.txt, Write 11.txt and 9988 "
    assert attempt["outcome"]["detail"].startswith(named)
    denied = attempt["work"]["denied"]
    assert (len(denied), sum(each["count"] for each in denied)) == (50, 10_000)
    assert named in one.perdure("why", "task").out
    one.nothing_survives()


def alive(stage: Stage, words: str) -> list[int]:
    """Return the live processes of the stage with these words in their command line."""
    wanted = words.encode().replace(b" ", b"\0")
    return [pid for pid in stage.marked() if wanted in command_of(pid)]


@pytest.mark.parametrize("agent", ["claude"], indirect=True)
def test_what_is_to_be_kept_runs_on(stage: MakeStage, agent: str) -> None:
    """If leftovers are to be kept, the agent is ended but its background command runs on. So does a
    process that left the agent's process tree."""
    one = stage(
        "run (setsid nohup sleep 576 >/dev/null 2>&1 &) ; echo started\n---\n"
        + call("Bash", command="sleep 577", description="serve", run_in_background=True)
        + "---\nsay They run.\n"
    )
    ending = Ending("", words=("--on-leftover", "keep"), logs=("kept: 2 process(es)",))
    done = play(one, ending, agent)
    assert done.code == 0, done.err
    assert "kept: 2 process(es)" in done.err
    assert len(alive(one, "sleep 576")) == len(alive(one, "sleep 577")) == 1
    later = one.perdure("update", "task", "Go on.")
    assert later.code == 0, later.err
    assert alive(one, "sleep 576") and alive(one, "sleep 577")


@pytest.mark.parametrize("agent", ["claude"], indirect=True)
def test_what_is_to_be_waited_for_comes_to_its_end(stage: MakeStage, agent: str) -> None:
    """If leftovers are to be waited for, the attempt ends only when they have ended."""
    one = stage(
        "run (setsid sh -c 'sleep 3; echo late > late.txt' &) ; echo started\n---\nsay It runs.\n"
    )
    done = play(one, Ending("", words=("--on-leftover", "wait")), agent)
    assert done.code == 0, done.err
    assert [path.read_text() for path in one.home.rglob("late.txt")] == ["late\n"]


@pytest.mark.parametrize("agent", ["claude"], indirect=True)
def test_a_cut_answer_goes_on_in_the_same_conversation(stage: MakeStage, agent: str) -> None:
    """The next attempt starts at once and resumes natively, and its answer ends the run."""
    cut = "---\n".join(f"say piece {n}\nstop max_tokens\n" for n in range(4))
    one = stage(f"{cut}---\nsay That was all of it.\n")
    words = ("--repo", str(one.repo), "--name", "task", "--agent", agent)
    done = one.perdure("run", *words, "Write a long text.")
    assert done.code == 0, done.err
    first, second = one.show()["attempts"]
    assert (first["outcome"]["kind"], second["outcome"]["kind"]) == ("truncated", "succeeded")
    assert second["continuation"] == "resume"
    assert second["session_id"] == first["session_id"]
    assert second["receipt"]["verdict"] == "native"
