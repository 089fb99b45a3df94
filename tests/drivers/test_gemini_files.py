"""The driver's results from reading Gemini CLI's own files and command lines, and the commands that
start the CLI. The CLI is not started."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.agents import registry
from perdure.agents.gemini import driver, transcript
from perdure.agents.transcripts import begins_with, fingerprint, prompts_since, snapshot
from perdure.errors import AgentMissing
from perdure.model import Continuation, Launch, Permissions, Program, Rung, Start, TaskSpec

MODULES = Path(
    os.environ.get("PERDURE_TEST_AGENTS") or Path(__file__).parents[2] / "agents" / "node_modules"
)
ID = "3e86833f-e79e-4c46-88a6-cbeec5618e94"
GEMINI = registry.load("gemini")


def head(session: str = ID, **more: object) -> dict[str, object]:
    return {
        "sessionId": session,
        "projectHash": "x",
        "startTime": "2026-11-21T08:19:07.493Z",
        "kind": "main",
        **more,
    }


def user(key: str, text: str) -> dict[str, object]:
    return {"id": key, "type": "user", "content": [{"text": text}]}


def model(key: str, text: str) -> dict[str, object]:
    return {"id": key, "type": "gemini", "content": text}


def replaced(*messages: dict[str, object]) -> dict[str, object]:
    return {"$set": {"messages": list(messages), "lastUpdated": "2026-11-21T08:19:07.493Z"}}


CONTEXT = user("c", "<session_context>\nThis is the Gemini CLI.</session_context>")


def written(*records: object) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


def texts(content: bytes) -> list[str]:
    return [prompt.text for prompt in GEMINI.prompts(content)]


def test_what_is_still_in_the_conversation_follows_from_the_whole_file() -> None:
    """A prompt counts only if the file as a whole keeps it. A new list of messages removes a failed
    turn, and a rewind removes later messages."""
    begun = (head(), replaced(CONTEXT), user("1", "one"), model("a", "One."), user("2", "two"))
    assert texts(written(*begun)) == ["one", "two"]
    assert texts(written(*begun, replaced(CONTEXT, user("1", "one"), model("a", "One.")))) == [
        "one"
    ]
    assert texts(written(*begun, {"$rewindTo": "2"}, user("3", "three"))) == ["one", "three"]
    assert texts(written(*begun, {"$rewindTo": "unknown"})) == []


def test_a_resume_within_the_same_minute_writes_the_list_twice() -> None:
    """On a resume within the same minute the CLI writes an empty list, then the full one. All
    prompts are found again, in order."""
    begun = (head(), replaced(CONTEXT), user("1", "one"), model("a", "One."), user("2", "two"))
    full = replaced(CONTEXT, user("1", "one"), model("a", "One."), user("2", "two"))
    assert texts(written(*begun, head(), replaced(CONTEXT))) == []
    assert texts(written(*begun, head(), replaced(CONTEXT), full, user("3", "three"))) == [
        "one",
        "two",
        "three",
    ]


def test_what_was_condensed_stays() -> None:
    """After a compression the earlier prompts count as part of the summary, even if a resume writes
    the list of messages again."""
    begun = (head(), replaced(CONTEXT), user("1", "one"), model("a", "One."), user("2", "two"))
    short = (
        CONTEXT,
        user("s", "<state_snapshot>x</state_snapshot>"),
        model("k", "Got it. Thanks for the additional context!"),
        user("2", "two"),
    )
    assert texts(written(*begun, replaced(*short))) == ["one", "two"]
    again = written(
        *begun,
        replaced(*short),
        user("3", "three"),
        replaced(CONTEXT),
        replaced(*short, user("3", "three")),
        user("4", "four"),
    )
    assert texts(again) == ["one", "two", "three", "four"]


@pytest.mark.parametrize(
    "own",
    [
        CONTEXT,
        user("x", "<hook_context>x</hook_context>"),
        user("x", "/cost"),
        user("x", " ?what"),
        user("x", " "),
        {
            "id": "x",
            "type": "user",
            "content": [
                {"functionResponse": {"id": "1", "name": "n", "response": {"output": "o"}}}
            ],
        },
        {"id": "x", "type": "info", "content": "Imported session"},
    ],
)
def test_what_is_no_prompt(own: dict[str, object]) -> None:
    """Text that the CLI inserts itself, tool results, and messages that it drops on a resume are
    not prompts."""
    assert texts(written(head(), own, user("1", "one"))) == ["one"]


@given(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)
    | st.from_regex(r"(Prompt: ){0,2} ?[/?]x")
)
def test_what_is_sent_is_what_is_found(prompt: str) -> None:
    """The label that keeps a prompt from being dropped is removed again, whatever the prompt begins
    with."""
    assert texts(written(head(), user("1", transcript.sent(prompt)))) == [prompt]


@given(content=st.binary(max_size=300))
def test_any_bytes_have_prompts(content: bytes) -> None:
    """Reading the prompts of a file with any content raises no error."""
    GEMINI.prompts(
        content + b'\n{"type":"user"}\n{"$set":{"messages":[{"id":[]},3]}}\n{"$rewindTo":"x"}'
    )


def test_damage_costs_only_the_damaged_lines() -> None:
    """Torn ends, NULs and foreign lines leave all other prompts readable."""
    whole = written(
        head(), replaced(CONTEXT), user("1", "one"), model("a", "One."), user("2", "two")
    )
    assert texts(b'garbage\n\0\0\0\n[]\n"user"\n' + whole + b'{"type":"user","id":"3","cont') == [
        "one",
        "two",
    ]
    assert texts(whole[:-20]) == ["one"]


def test_bytes_that_are_there_do_not_hide_a_history_that_is_gone(tmp_path: Path) -> None:
    """If a record that removes the history is appended, all earlier bytes are still in the file.
    Even so, the driver must not report that the file continues the snapshot."""
    path = tmp_path / "session.jsonl"
    path.write_bytes(written(head(), replaced(CONTEXT), user("1", "one"), model("a", "One.")))
    earlier = snapshot(GEMINI, path)
    assert earlier is not None
    path.write_bytes(path.read_bytes() + written(replaced(CONTEXT), user("2", "two")))
    assert not begins_with(GEMINI, path, earlier)
    path.write_bytes(
        path.read_bytes()
        + written(replaced(CONTEXT, user("1", "one"), model("a", "One."), user("2", "two")))
    )
    assert begins_with(GEMINI, path, earlier)
    assert prompts_since(GEMINI, path, earlier) == [fingerprint("two")]


def chat(home: Path, project: str, minute: str, session: str, *records: object) -> Path:
    path = home / "tmp" / project / "chats" / f"session-2026-11-21T08-{minute}-{session[:8]}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(written(head(session), *records))
    return path


def test_of_several_files_the_one_with_the_conversation_is_taken(tmp_path: Path) -> None:
    """A resume leaves a newer, empty file with the same id, and another id may have the same first
    eight letters. The file that has the conversation is returned, or None if there is no such
    file."""
    real = chat(tmp_path, "a", "19", ID, user("1", "one"))
    chat(tmp_path, "a", "21", ID, replaced(CONTEXT))
    other = ID[:9] + "0000" + ID[13:]
    alike = chat(tmp_path, "a", "22", other, user("1", "another"))
    assert GEMINI.transcript(tmp_path, ID) == real
    assert GEMINI.transcript(tmp_path, other) == alike
    assert GEMINI.transcript(tmp_path, ID.replace("3e", "4e")) is None
    real.unlink()
    left = GEMINI.transcript(tmp_path, ID)
    assert left is not None and texts(left.read_bytes()) == []


def test_a_file_whose_first_line_is_torn_is_what_remains(tmp_path: Path) -> None:
    """Neither the CLI nor a resume finds a file whose first line is torn. But the file exists, so
    perdure does not report it as missing. The empty file that a resume leaves does not count."""
    torn = chat(tmp_path, "a", "19", ID, user("1", "one"))
    torn.write_bytes(torn.read_bytes()[:40])
    assert GEMINI.transcript(tmp_path, ID) is None
    assert list(GEMINI.files_of(tmp_path, ID)) == [torn]
    taken = chat(tmp_path, "b", "20", ID, user("1", "one"))
    chat(tmp_path, "b", "21", ID, replaced(CONTEXT))
    assert list(GEMINI.files_of(tmp_path, ID)) == [taken, torn]


def test_a_copy_goes_back_to_its_own_project_and_minute(tmp_path: Path) -> None:
    """A copy is restored to the folder of its project. That folder is found in the CLI's register,
    by the mark of its owner, or by the name that the CLI will give it. A copy of another
    conversation is refused."""
    home, copy, cwd = tmp_path / "home", tmp_path / "main", tmp_path / "My_App"
    cwd.mkdir()
    copy.write_bytes(written(head(), user("1", "one")))
    name = f"session-2026-11-21T08-19-{ID[:8]}.jsonl"
    assert GEMINI.place(home, ID, cwd, copy) == home / "tmp/my-app/chats" / name
    (home / "tmp/my-app").mkdir(parents=True)
    (home / "tmp/my-app/.project_root").write_text("/somebody/elses/my-app")
    assert GEMINI.place(home, ID, cwd, copy) == home / "tmp/my-app-1/chats" / name
    (home / "tmp/kept").mkdir()
    (home / "tmp/kept/.project_root").write_text(str(cwd))
    assert GEMINI.place(home, ID, cwd, copy) == home / "tmp/kept/chats" / name
    (home / "projects.json").write_text(json.dumps({"projects": {str(cwd): "known"}}))
    assert GEMINI.place(home, ID, cwd, copy) == home / "tmp/known/chats" / name
    with pytest.raises(ValueError):
        GEMINI.place(home, ID.replace("3e", "4e"), cwd, copy)
    copy.write_text("garbage\n")
    with pytest.raises(ValueError):
        GEMINI.place(home, ID, cwd, copy)


def test_the_sub_agents_belong_to_the_conversation(tmp_path: Path) -> None:
    """The files of subagents belong to the conversation. Their directory is named by the whole id,
    and is beside the transcript, whose name has only a part of the id."""
    path = chat(tmp_path, "a", "19", ID)
    assert list(GEMINI.sidecar_files(path)) == []
    (path.parent / ID).mkdir()
    assert list(GEMINI.sidecar_files(path)) == [path.parent / ID]


@pytest.mark.parametrize("named", ["..", "../..", "/etc", ""])
def test_only_a_valid_id_names_the_sub_agents(tmp_path: Path, named: str) -> None:
    """The agent writes the id, so a text that is no id never becomes a path."""
    path = chat(tmp_path, "a", "19", ID)
    path.write_bytes(written({"sessionId": named}))
    assert list(GEMINI.sidecar_files(path)) == []


def test_who_was_started_on_a_conversation_is_on_it(tmp_path: Path) -> None:
    """A live process counts as a writer by its arguments and its home, because the CLI has no
    register. A process with another home, and another program, do not count."""
    script = tmp_path / "gemini.js"
    script.write_text("import time; time.sleep(60)")

    def start(
        *words: str, home: Path = tmp_path, program: Path = script
    ) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, str(program), *words],
            env={"PATH": os.environ["PATH"], "GEMINI_CLI_HOME": str(home)},
        )

    other = tmp_path / "other.py"
    other.write_text(script.read_text())
    started = [
        start(f"--resume={ID}"),
        start("-r", ID),
        start(f"--session-id={ID}"),
        start(f"--resume={ID}", home=tmp_path / "elsewhere"),
        start(f"--resume={ID}", program=other),
        start("--prompt", f"look at {ID}"),
    ]
    try:
        for each in started:
            while not Path(f"/proc/{each.pid}/cmdline").read_bytes():
                pass
        assert list(GEMINI.writers(tmp_path / ".gemini", ID)) == sorted(
            each.pid for each in started[:3]
        )
    finally:
        for each in started:
            each.kill()
            each.wait()
    assert list(GEMINI.writers(tmp_path / ".gemini", ID)) == []


# --- how it is found and started
# -----------------------------------------------------------------------------------


def launch(
    prompt: str = "hello", kind: Start = Start.FRESH, home: str = "/nonexistent", **spec: object
) -> Launch:
    task = TaskSpec(prompt=prompt, agent="gemini", **spec)  # type: ignore[arg-type]
    asked = Continuation(kind=kind, session_id=ID)
    return Launch(
        spec=task,
        continuation=asked,
        prompt=prompt,
        cwd="/nonexistent",
        home=home,
        program=Program(path="/bin/gemini"),
    )


def test_the_script_is_found_behind_the_command(tmp_path: Path) -> None:
    """npm's link leads to the bundle and its version. Any other program is used as it is. A missing
    program is an error that says how to install it."""
    node = shutil.which("node")
    assert node is not None
    program = GEMINI.locate({"PATH": f"{MODULES / '.bin'}:{Path(node).parent}"})
    assert Path(program.path).name == "gemini.js"
    assert program.version == "0.61.0"
    own = tmp_path / "gemini"
    own.write_text("#!/bin/sh\n")
    own.chmod(0o755)
    assert GEMINI.locate({"PATH": str(tmp_path)}) == Program(path=str(own), version="")
    assert GEMINI.locate({"PATH": "", "PERDURE_GEMINI": str(own)}).path == str(own)
    with pytest.raises(AgentMissing) as error:
        GEMINI.locate({"PATH": str(tmp_path / "empty")})
    assert error.value.hint == "npm install -g @google/gemini-cli"


def test_where_the_conversations_are_kept() -> None:
    """Conversations are in `.gemini` in the directory that the CLI's own variable names, else in
    the user's home."""
    assert GEMINI.home({"HOME": "/h"}) == Path("/h/.gemini")
    assert GEMINI.home({"HOME": "/h", "GEMINI_CLI_HOME": "/g"}) == Path("/g/.gemini")


def test_how_it_is_told_which_conversation(tmp_path: Path) -> None:
    """The id is set for a new conversation. A conversation is resumed by its id, or forked from the
    parent's file. `latest`, a path and an empty id are never used."""
    assert f"--session-id={ID}" in GEMINI.command(launch()).argv
    assert f"--session-id={ID}" in GEMINI.command(launch(kind=Start.REBUILD)).argv
    assert f"--resume={ID}" in GEMINI.command(launch(kind=Start.RESUME)).argv
    parent = chat(tmp_path, "a", "19", ID, user("1", "one"))
    assert (
        f"--session-file={parent}"
        in GEMINI.command(launch(kind=Start.FORK, home=str(tmp_path))).argv
    )
    for kind in (Start.FORK, Start.WAIT, Start.REFUSE):
        with pytest.raises(ValueError):
            GEMINI.command(launch(kind=kind))
    by_path = launch(kind=Start.RESUME)
    with pytest.raises(ValueError):
        GEMINI.command(
            Launch(
                spec=by_path.spec,
                continuation=Continuation(kind=Start.RESUME, session_id=ID, rung=Rung.PATH),
                prompt="x",
                cwd="/x",
                home="/x",
                program=by_path.program,
            )
        )


@pytest.mark.parametrize("level", list(Permissions))
def test_permissions_are_set_again_on_each_resume(level: Permissions) -> None:
    """The permissions flags are the same for the first launch and for a resume."""

    def flags(kind: Start) -> list[str]:
        return [
            word
            for word in GEMINI.command(launch(kind=kind, permissions=level)).argv
            if "mode" in word or "tools" in word or "policy" in word
        ]

    assert flags(Start.FRESH) == flags(Start.RESUME) != []


def test_the_prompt_goes_by_stdin_alone() -> None:
    """No part of a prompt is an argument. A prompt that begins like a command gets a word before
    it."""
    command = GEMINI.command(launch(prompt="-secret words"))
    assert command.stdin == b"-secret words"
    assert not any("secret" in word for word in command.argv)
    assert GEMINI.command(launch(prompt="/cost")).stdin == b"Prompt: /cost"


def test_what_every_launch_is_given() -> None:
    """Every launch runs as one process, trusts the workdir, and loads the guard of the
    conversations beside the modules that the task sets."""
    env = GEMINI.command(launch()).env
    assert env == {
        "GEMINI_CLI_NO_RELAUNCH": "true",
        "GEMINI_CLI_TRUST_WORKSPACE": "true",
        "NODE_OPTIONS": f"--import={driver.KEEP.as_uri()}",
    }
    own = GEMINI.command(launch(env={"NODE_OPTIONS": "--trace-warnings"})).env
    assert own["NODE_OPTIONS"] == f"--trace-warnings --import={driver.KEEP.as_uri()}"


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        " \n\t",
        "half \ud83d a pair",
        "x" * (8 * 1024 * 1024 + 1),
        "/" + "x" * (8 * 1024 * 1024 - 1),
    ],
)
def test_a_prompt_that_cannot_work_is_refused_in_one_sentence(prompt: str) -> None:
    """Empty, unwritable and too long prompts are refused before the launch. The CLI would cut a
    long one without saying so."""
    sentence = GEMINI.refuse(launch(prompt=prompt))
    assert sentence.endswith(".")
    assert "\n" not in sentence
    assert not GEMINI.refuse(launch(prompt="x" * (8 * 1024 * 1024)))


@pytest.mark.parametrize(
    "word",
    [
        "--resume=latest",
        "--session-file=x",
        "-o",
        "--prompt=x",
        "--yolo",
        "--delete-session=1",
        "--acp",
        "--worktree",
    ],
)
def test_arguments_that_would_undo_perdures_own_are_refused(word: str) -> None:
    """The user's arguments cannot choose the conversation, the permissions or the output format."""
    assert "perdure sets it" in GEMINI.refuse(launch(agent_args=(word,)))
    assert not GEMINI.refuse(launch(agent_args=("--include-directories", "/x")))


def test_which_variables_are_its_own() -> None:
    """Settings and credentials are passed on. Variables that a running CLI, or the editor around
    it, sets for its children are not."""

    def passes(name: str) -> bool:
        taken_out = any(
            fnmatchcase(name, pattern[1:])
            for pattern in GEMINI.variables
            if pattern.startswith("!")
        )
        return not taken_out and any(fnmatchcase(name, pattern) for pattern in GEMINI.variables)

    wanted = (
        "GEMINI_API_KEY",
        "GEMINI_CLI_HOME",
        "GOOGLE_CLOUD_PROJECT",
        "GOOGLE_GEMINI_BASE_URL",
        "https_proxy",
    )
    assert [name for name in wanted if not passes(name)] == []
    others = (
        "GEMINI_CLI",
        "GEMINI_CLI_IDE_AUTH_TOKEN",
        "GEMINI_PTY_INFO",
        "GITHUB_TOKEN",
        "PERDURE_STATE",
        "NODE_OPTIONS",
    )
    assert [name for name in others if passes(name)] == []


def test_a_prompt_that_names_a_file_is_the_prompt_as_it_was_given() -> None:
    """If a prompt names a file, the CLI records the prompt with the file's content after it, and
    the prompt alone beside that. The driver returns the prompt alone. A resume writes both
    again."""
    sections = [
        "look at @f.txt please",
        "\n--- Content from referenced files ---",
        "\nContent from @f.txt:\n",
        "secret plan",
    ]
    content = [{"text": each} for each in sections]
    named = {
        "id": "a",
        "type": "user",
        "content": content,
        "displayContent": [{"text": "look at @f.txt please"}],
    }
    for recorded in (
        written(head(), named),
        written(head(), replaced(named)),
        written(head(), named, replaced(named)),
    ):
        assert texts(recorded) == ["look at @f.txt please"]
        found = GEMINI.loads(recorded)
        assert found is not None
        assert [each.said for each in found.items] == ["look at @f.txt please"]


def test_what_is_loaded_after_a_rewind() -> None:
    """A rewind removes the named message and all later ones. A rewind to a message that does not
    exist removes everything."""
    talk = [head(), user("a", "one"), model("b", "One."), user("c", "two"), model("d", "Two.")]
    found = GEMINI.loads(written(*talk, {"$rewindTo": "c"}, user("e", "three")))
    assert found is not None
    assert [each.said for each in found.items] == ["one", "One.", "three"]
    assert [each.said for each in found.dropped] == ["two", "Two."]
    lost = GEMINI.loads(written(*talk, {"$rewindTo": "x"}))
    assert lost is not None
    assert (lost.items, len(lost.dropped)) == ((), 4)
