"""Removes the newest turn of a conversation, or compacts it, as a person does in the agent's own
program."""

from __future__ import annotations

import json
import re
import sqlite3
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from perdure.agents import registry
from perdure.agents.claude import transcript as claude_files
from tests.drivers.codex_terminal import CodexTerminal
from tests.journeys.stage import Stage, native

LISTENING = re.compile(r"listening on (http://127\.0\.0\.1:\d+)")


def go_back(one: Stage, session: str, workdir: Path) -> None:
    """Remove the second turn, and give another prompt instead."""
    if one.agent == "claude":
        (transcript,) = one.transcripts()
        at = claude_files.end_of_turn(transcript.read_bytes(), 1)
        _claude(one, workdir, f"--resume={session}", f"--resume-session-at={at}", "another way")
        return
    if one.agent == "codex":
        with _codex(one, session, workdir) as terminal:
            terminal.go_back(1)
    elif one.agent == "gemini":
        # `/rewind` is a screen of the CLI and cannot be used here, so the record that it would
        # append is written directly.
        transcript = registry.load("gemini").transcript(one.agent_home / ".gemini", session)
        assert transcript is not None
        lines = [line for line in transcript.read_bytes().splitlines() if b'"user"' in line]
        # A tool's result is recorded as a user's message too.
        records = [json.loads(line) for line in lines if b"functionResponse" not in line]
        last = next(each["id"] for each in reversed(records) if each.get("type") == "user")
        with transcript.open("a") as file:
            file.write(json.dumps({"$rewindTo": last}) + "\n")
    else:
        question = (
            "select id from message where session_id = ? and json_extract(data, '$.role') = 'user' "
            "order by time_created desc limit 1"
        )
        with closing(sqlite3.connect(one.agent_home / "opencode/opencode.db")) as database:
            (message,) = database.execute(question, (session,)).fetchone()
        _opencode(one, workdir, f"session/{session}/revert", messageID=message)
    by_hand = one.resume_by_hand(session, "another way", workdir)
    assert by_hand.returncode == 0, by_hand.stderr


def compact(one: Stage, session: str, workdir: Path) -> None:
    """Replace the conversation so far by a summary, as a person would."""
    if one.agent == "claude":
        _claude(one, workdir, f"--resume={session}", "/compact")
    elif one.agent == "codex":
        with _codex(one, session, workdir) as terminal:
            terminal.compact()
    elif one.agent == "gemini":
        # `/compress` works only on the CLI's own screen. A low threshold has the same effect before
        # a prompt.
        place = one.agent_home / ".gemini/settings.json"
        settings = json.loads(place.read_text())
        small = {**settings["model"], "compressionThreshold": 0.000001}
        place.write_text(json.dumps({**settings, "model": small}))
        by_hand = one.resume_by_hand(session, "A person asks.", workdir)
        assert by_hand.returncode == 0, by_hand.stderr
        place.write_text(json.dumps(settings))
    else:
        model = {"providerID": "rehearsal", "modelID": "rehearsal"}
        _opencode(one, workdir, f"session/{session}/summarize", **model)


def _claude(one: Stage, workdir: Path, *words: str) -> None:
    *given, prompt = words
    subprocess.run(
        [str(native("claude")), "-p", "--output-format=stream-json", "--verbose", *given],
        cwd=workdir,
        env=one.environ,
        input=prompt,
        text=True,
        check=True,
        capture_output=True,
        timeout=90,
    )


@contextmanager
def _codex(one: Stage, session: str, workdir: Path) -> Iterator[CodexTerminal]:
    terminal = CodexTerminal(str(native("codex")), session, workdir, one.environ)
    try:
        yield terminal
    finally:
        terminal.close()


def _opencode(one: Stage, workdir: Path, path: str, **body: str) -> None:
    """Call the server that OpenCode's own screen uses."""
    with subprocess.Popen(
        [str(native("opencode")), "serve", "--hostname=127.0.0.1", "--port=0"],
        cwd=workdir,
        env=one.environ,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as server:
        assert server.stdout is not None
        try:
            url = next(found[1] for line in server.stdout if (found := LISTENING.search(line)))
            asked = urllib.request.Request(
                f"{url}/{path}",
                json.dumps(body).encode(),
                {"Content-Type": "application/json", "x-opencode-directory": str(workdir)},
            )
            with urllib.request.urlopen(asked, timeout=90) as answer:
                assert answer.status == 200, answer.read()
        finally:
            server.kill()
