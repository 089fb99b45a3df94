"""The drivers' results from reading the agents' own files. No agent is started."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.agents import registry
from perdure.agents.codex.driver import git_roots
from perdure.protocols import OpenRequest

RECORDED = Path(__file__).parent / "recorded"
ID = "3e86833f-e79e-4c46-88a6-cbeec5618e94"
CLAUDE, CODEX = registry.load("claude"), registry.load("codex")


def texts(driver: object, content: bytes) -> list[str]:
    return [prompt.text for prompt in driver.prompts(content)]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("agent", "name", "expected"),
    [
        (
            "claude",
            "claude-background.jsonl",
            ["hello", "BG RUN<python3 -c 'import time; time.sleep(3)'>"],
        ),
        ("claude", "claude-interrupted.jsonl", ["SLOW 1", "SLOW 2", "SLOW 2"]),
        (
            "codex",
            "codex-interrupted.jsonl",
            ["hello one", "RUN<id -u; touch made>", "RUN<echo no >&2; exit 3>", "SLOW 1"],
        ),
    ],
)
def test_the_clis_own_lines_are_no_prompts(agent: str, name: str, expected: list[str]) -> None:
    """In recorded transcripts with interruptions, tool results and background notices, only the
    texts that were sent are prompts."""
    assert texts(registry.load(agent), (RECORDED / name).read_bytes()) == expected


@pytest.mark.parametrize(
    ("agent", "name"),
    [("claude", "claude-interrupted.jsonl"), ("codex", "codex-interrupted.jsonl")],
)
def test_damage_costs_only_the_damaged_lines(agent: str, name: str) -> None:
    """Torn ends, NULs, foreign lines and a part cut from the middle leave all other prompts
    readable."""
    driver = registry.load(agent)
    whole = (RECORDED / name).read_bytes()
    lines = whole.splitlines(keepends=True)
    assert texts(
        driver, b'garbage\n\0\0\0\n[]\n"user"\n' + whole + b'{"type":"user","mess'
    ) == texts(driver, whole)
    assert texts(driver, whole[: len(whole) - 40]) == texts(driver, b"".join(lines[:-1]))
    assert (
        texts(driver, b"".join(lines[2:]))
        == texts(driver, whole)[len(texts(driver, b"".join(lines[:2]))) :]
    )


@pytest.mark.parametrize("agent", ["claude", "codex"])
@given(content=st.binary(max_size=300))
def test_any_bytes_have_prompts(agent: str, content: bytes) -> None:
    """Reading the prompts of a file with any content raises no error."""
    list(registry.load(agent).prompts(content + b'\n{"type":"user"}'))


def user_line(content: object, **more: object) -> bytes:
    return json.dumps(
        {"type": "user", "message": {"role": "user", "content": content}, "uuid": "u", **more}
    ).encode()


def queued_line(words: str, mode: str = "prompt", **more: object) -> bytes:
    """Return Claude Code's line of a prompt that it accepted while it was running a turn
    (2.1.329)."""
    attached = {"type": "queued_command", "prompt": words, "commandMode": mode}
    return json.dumps({"type": "attachment", "attachment": attached, **more}).encode()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (user_line("plain"), ["plain"]),
        (user_line([{"type": "text", "text": "in a block"}]), ["in a block"]),
        (
            user_line("<environment_context> begins a real prompt", promptSource="sdk"),
            ["<environment_context> begins a real prompt"],
        ),
        (
            user_line("<system-reminder>typed by a person</system-reminder>", promptSource="sdk"),
            ["<system-reminder>typed by a person</system-reminder>"],
        ),
        (user_line("<system-reminder>x</system-reminder>"), []),
        (user_line("Continue from where you left off."), []),
        (user_line("x", isMeta=True), []),
        (user_line("x", isSidechain=True), []),
        (user_line("This session is being continued ...", isCompactSummary=True), []),
        (user_line("<command-name>/usage</command-name>"), []),
        (user_line([{"type": "text", "text": "[Request interrupted by user for tool use]"}]), []),
        (user_line([{"type": "tool_result", "content": "x"}, {"type": "text", "text": "y"}]), []),
        (queued_line("beside a waiting call"), ["beside a waiting call"]),
        (queued_line("of a subagent", isSidechain=True), []),
        (queued_line("a task has ended", "task-notification"), []),
    ],
)
def test_prompts_of_claude_with_and_without_their_origin(line: bytes, expected: list[str]) -> None:
    """If a line names the origin of its text, the origin decides whether it is a prompt. Without an
    origin, as in older versions, known beginnings decide."""
    assert texts(CLAUDE, line) == expected


def codex_line(*blocks: tuple[str, str]) -> bytes:
    """Return a user message of texts and their origins. An empty origin leaves all origins out, as
    older versions do."""
    payload: dict[str, object] = {
        "type": "message",
        "role": "user",
        "content": [{"type": "input_text", "text": text} for text, _ in blocks],
    }
    if all(origin for _, origin in blocks):
        origins = [{"provenance": {"type": origin}} for _, origin in blocks]
        payload["internal_chat_message_metadata_passthrough"] = {"content_item_metadata": origins}
    return json.dumps({"type": "response_item", "payload": payload}).encode()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (codex_line(("plain", "user")), ["plain"]),
        (codex_line(("plain", "")), ["plain"]),
        (
            codex_line(("<environment_context> begins a real prompt", "user")),
            ["<environment_context> begins a real prompt"],
        ),
        (
            codex_line(
                ("# AGENTS.md instructions for /x", "agents_md"),
                ("<environment_context>", "harness"),
            ),
            [],
        ),
        (codex_line(("<environment_context>\n<cwd>/x</cwd>", "")), []),
        (codex_line(("<turn_aborted>\nThe user interrupted", "")), []),
    ],
)
def test_prompts_of_codex_with_and_without_their_origin(line: bytes, expected: list[str]) -> None:
    """If a message names its origin, the origin decides whether it is a prompt. Without an origin,
    as in older versions, known beginnings decide."""
    assert texts(CODEX, line) == expected


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip))
def test_what_is_sent_to_claude_is_what_is_found(prompt: str) -> None:
    """perdure puts a space before a slash, so that the prompt is not a command. That space is
    removed again when the prompt is read, whatever the prompt begins with."""
    from perdure.agents.claude.transcript import sent

    assert texts(CLAUDE, user_line(sent(prompt), promptSource="sdk")) == [prompt]


def test_of_several_files_of_a_conversation_the_newest_is_taken(tmp_path: Path) -> None:
    """If a conversation is in two project folders, the file that was written last is used."""
    paths = [tmp_path / "projects" / folder / f"{ID}.jsonl" for folder in ("-a", "-b", "-c")]
    for age, path in zip((100, 1, 50), paths, strict=True):
        path.parent.mkdir(parents=True)
        path.write_text("{}\n")
        os.utime(path, (path.stat().st_mtime - age,) * 2)
    assert CLAUDE.transcript(tmp_path, ID) == paths[1]


def test_what_lies_beside_a_conversation_belongs_to_it(tmp_path: Path) -> None:
    """Claude's files with the output of tools belong to the conversation. Codex has no files beside
    the transcript."""
    transcript = tmp_path / f"{ID}.jsonl"
    transcript.touch()
    assert list(CLAUDE.sidecar_files(transcript)) == []
    (tmp_path / ID / "tool-results").mkdir(parents=True)
    assert list(CLAUDE.sidecar_files(transcript)) == [tmp_path / ID]
    assert list(CODEX.sidecar_files(transcript)) == []


def test_a_rollout_goes_back_to_its_own_day(tmp_path: Path) -> None:
    """A copy of a rollout is restored to the folder of its day, which is in the copy's name or in
    its first line. A file that exists there is replaced. A copy of another thread is refused."""
    name = f"rollout-2026-11-21T07-42-43-{ID}.jsonl"
    place = tmp_path / "sessions/2026/11/21" / name
    copy = tmp_path / "main"
    copy.write_text(
        json.dumps(
            {"type": "session_meta", "payload": {"id": ID, "timestamp": "2026-11-21T07:42:43.120Z"}}
        )
        + "\n"
    )
    assert CODEX.place(tmp_path, ID, tmp_path, copy) == place
    assert CODEX.place(tmp_path, ID, tmp_path, tmp_path / name) == place
    with pytest.raises(ValueError):
        CODEX.place(tmp_path, ID.replace("3", "4"), tmp_path, copy)
    copy.write_text("garbage\n")
    with pytest.raises(ValueError):
        CODEX.place(tmp_path, ID, tmp_path, copy)
    left = tmp_path / "sessions/2025/01/02" / f"rollout-2025-01-02T03-04-05-{ID}.jsonl"
    left.parent.mkdir(parents=True)
    left.touch()
    assert CODEX.place(tmp_path, ID, tmp_path, copy) == left


def start_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]


def test_a_left_over_entry_of_the_register_is_no_writer(tmp_path: Path) -> None:
    """After a SIGKILL an entry remains in Claude's register. It does not count as a writer if its
    process is gone, or if another process has its process id now."""
    sessions = tmp_path / "sessions"
    sessions.mkdir()
    with subprocess.Popen(["true"]) as gone:
        gone.wait()
    me = os.getpid()
    entries = [
        {"pid": me, "procStart": start_of(me), "sessionId": ID},
        {"pid": me, "procStart": "1", "sessionId": ID},
        {"pid": gone.pid, "procStart": "", "sessionId": ID},
        {"pid": me, "procStart": start_of(me), "sessionId": ID.replace("3", "4")},
        {"pid": gone.pid, "sessionId": ID},
        {"sessionId": ID},
    ]
    for number, entry in enumerate(entries):
        (sessions / f"{number}.json").write_text(json.dumps(entry))
    (sessions / "x.json").write_bytes(b"\xff{")
    assert list(CLAUDE.writers(tmp_path, ID)) == [me]


def git(*words: str) -> None:
    subprocess.run(
        ["git", "-c", "user.name=a", "-c", "user.email=a@example.org", *words],
        check=True,
        capture_output=True,
        env={"PATH": os.environ["PATH"], "HOME": "/nonexistent"},
    )


def test_only_a_worktree_that_its_repository_knows_opens_the_sandbox(tmp_path: Path) -> None:
    """The sandbox may write to the directories that a commit in a worktree needs. A `.git` file
    that an agent could have written adds no directory."""
    repo, linked = tmp_path / "repo", tmp_path / "linked"
    git("init", "-q", str(repo))
    git("-C", str(repo), "commit", "-q", "--allow-empty", "-m", "base")
    git("-C", str(repo), "worktree", "add", "-q", str(linked))
    assert git_roots(repo) == [repo / ".git"]
    own = repo / ".git/worktrees/linked"
    assert git_roots(linked) == [own, repo / ".git/objects", repo / ".git/refs", repo / ".git/logs"]
    assert git_roots(tmp_path) == []

    forged = tmp_path / "forged"
    forged.mkdir()
    (forged / ".git").write_text(f"gitdir: {own}\n")
    assert git_roots(forged) == []
    mine = forged / "mine"
    mine.mkdir()
    (mine / "gitdir").write_text(f"{forged}/.git\n")
    (mine / "commondir").write_text(f"{repo}/.git\n")
    (forged / ".git").write_text(f"gitdir: {mine}\n")
    assert git_roots(forged) == []
    (forged / ".git").unlink()
    (forged / ".git").symlink_to(repo / ".git")
    assert git_roots(forged) == []


Entry = tuple[str, dict[str, object]]


def rollout(*entries: Entry) -> bytes:
    lines = (json.dumps({"type": kind, "payload": payload}) for kind, payload in entries)
    return "".join(f"{line}\n" for line in lines).encode()


def test_a_rollout_shows_which_replies_called_a_tool() -> None:
    """A reply is reported as calling a tool if the rollout has calls before the record of the
    reply's usage, as Codex 0.169.0 writes it."""

    def told(reply: str) -> Entry:
        return "token_usage_record", {"response_id": reply, "usage": {"input_tokens": 5}}

    call: Entry = ("response_item", {"type": "custom_tool_call", "call_id": "1"})
    result: Entry = ("response_item", {"type": "custom_tool_call_output", "call_id": "1"})
    searched: Entry = ("response_item", {"type": "web_search_call"})
    found = CODEX.replies(rollout(call, told("a"), result, searched, told("b")))
    assert [(reply.id, reply.calls) for reply in found] == [("a", True), ("b", False)]


def test_a_rollout_shows_a_request_that_is_under_way() -> None:
    """A request to the model is open after its prompt or the results of its tools were recorded,
    until its usage is recorded (Codex 0.169.0). After two parallel calls, the next request begins
    only when both have ended."""

    def item(kind: str, **more: object) -> Entry:
        return "response_item", {"type": kind, **more}

    def ended(call: str) -> Entry:
        return item("function_call_output", call_id=call, output="x" * 400)

    def message(role: str, text: str) -> Entry:
        return item("message", role=role, content=[{"type": "text", "text": text}])

    told: Entry = ("token_usage_record", {"response_id": "r", "usage": {"input_tokens": 5}})
    asked: list[Entry] = [
        ("turn_context", {"model": "gpt-5.5"}),
        message("user", "<environment_context>a</environment_context>"),
        message("user", "Do all of it."),
    ]
    said = [
        *asked,
        message("assistant", "I look."),
        item("function_call", call_id="1"),
        item("function_call", call_id="2"),
    ]
    calls = [*said, told]
    full = OpenRequest(added=200, model="gpt-5.5")
    one = OpenRequest(added=100, model="gpt-5.5")
    again = OpenRequest(added=3, model="gpt-5.5")
    done: Entry = ("event_msg", {"type": "task_complete"})

    def count(tokens: int) -> Entry:
        used = {"input_tokens": tokens}
        return "event_msg", {"type": "token_count", "info": {"total_token_usage": used}}

    expected: list[tuple[list[Entry], OpenRequest | None]] = [
        ([], None),
        (asked[:2], None),
        (asked, OpenRequest(added=3, model="gpt-5.5")),
        (said, OpenRequest(added=3, model="gpt-5.5")),
        (calls, None),
        ([*calls, ended("1")], None),
        ([*calls, ended("1"), ended("2")], full),
        ([*calls, ended("2"), ended("1"), ("event_msg", {"type": "token_count"})], full),
        ([*calls, ended("1"), ended("2"), told], None),
        ([*calls, ended("1"), ended("2"), ("event_msg", {"type": "turn_aborted"})], None),
        ([*calls, ended("1"), ended("2"), told, ("compacted", {})], OpenRequest(model="gpt-5.5")),
        # Versions before 0.169.0 write only totals.
        ([*asked, count(5)], None),
        ([*said, count(5), ended("1"), ended("2")], full),
        ([*said, count(5), ended("1"), ended("2"), count(5)], full),
        ([*said, count(5), ended("1"), ended("2"), count(9)], None),
        ([*calls, ended("1"), ended("2"), count(9)], full),
        # This call of an earlier turn never gets its result.
        (
            [
                *calls,
                ended("1"),
                done,
                *asked,
                told,
                item("function_call", call_id="3"),
                ended("3"),
            ],
            one,
        ),
        ([*calls, *asked], again),
    ]
    for entries, request in expected:
        assert CODEX.open_request(rollout(*entries)) == request, entries
    assert registry.load("acp-codex").open_request(rollout(*asked)) is not None
    assert registry.load("acp-claude").open_request(rollout(*asked)) is None
