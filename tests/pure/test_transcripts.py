"""perdure's own copies of transcripts, with real files and a small driver."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from perdure.agents.transcripts import (
    Copies,
    begins_with,
    fingerprint,
    locate,
    prompts_since,
    snapshot,
)
from perdure.errors import WorkspaceError
from perdure.host.redaction import Redactor
from perdure.model import Snapshot
from perdure.protocols import Abilities, Prompt

ID = "aaaa-1"


class Diary:
    """Driver of an agent that writes `prompt ...` and `answer ...` lines into
    `{home}/diaries/{id}.txt`, and has a directory `{id}` beside that file."""

    name = "diary"
    abilities = Abilities(
        choose_id=True,
        fork=False,
        resume_by_path=False,
        cwd_bound=False,
        cumulative_usage=False,
        max_prompt_bytes=0,
    )
    variables = ()
    archive = None

    def transcript(self, home: Path, session_id: str) -> Path | None:
        path = home / "diaries" / f"{session_id}.txt"
        return path if path.is_file() else None

    def place(self, home: Path, session_id: str, cwd: Path, copy: Path) -> Path:
        return home / "diaries" / f"{session_id}.txt"

    def parent(self, transcript: bytes) -> str:
        return ""

    def sidecar_files(self, transcript: Path) -> list[Path]:
        beside = transcript.with_suffix("")
        return [beside] if beside.is_dir() else []

    def prompts(self, transcript: bytes) -> list[Prompt]:
        return [
            Prompt(line[7:].decode("utf-8", "replace"))
            for line in transcript.split(b"\n")
            if line.startswith(b"prompt ")
        ]


class Desk:
    """A home with a diary, and the directory of perdure's own copies."""

    def __init__(self, top: Path, redactor: Redactor | None = None) -> None:
        self.driver: Any = Diary()
        self.home, self.state = top / "home", top / "state"
        self.transcript = self.home / "diaries" / f"{ID}.txt"
        self.transcript.parent.mkdir(parents=True)
        self.copies = (
            Copies(self.state / "transcripts", redactor)
            if redactor
            else Copies(self.state / "transcripts")
        )
        self.copy = self.copies.of("diary", ID)

    def write(self, text: str) -> None:
        self.transcript.write_text(text)

    def append(self, text: str) -> None:
        with self.transcript.open("a") as file:
            file.write(text)

    def take(self, *, replace: bool = False) -> bool:
        return self.copies.take(self.driver, ID, self.transcript, replace=replace)

    def put_back(self) -> Path:
        return self.copies.put_back(self.driver, ID, self.home, self.home)

    def belonging(self, name: str, text: str) -> Path:
        path = self.transcript.with_suffix("") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def beside(self, name: str) -> Path:
        return self.copy.parent / "beside" / ID / name


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


@contextmanager
def open_umask() -> Iterator[None]:
    """Set the most permissive umask, so that a private mode can only come from perdure."""
    before = os.umask(0)
    try:
        yield
    finally:
        os.umask(before)


def contents(top: Path) -> set[str]:
    """Return the content of every regular file below the directory, except for perdure's own
    notes."""
    own = ("lock", "known.json")
    return {
        path.read_text()
        for path in top.rglob("*")
        if path.is_file() and not path.is_symlink() and path.name not in own
    }


# --- take
# ----------------------------------------------------------------------------------------------------------


def test_only_the_tail_is_written(desk: Desk) -> None:
    """A transcript that grew is copied by appending the new part to the same file. The earlier part
    is not written again."""
    desk.write("prompt a\nanswer a\n")
    desk.take()
    inode = desk.copy.stat().st_ino
    with desk.copy.open("rb") as held:
        desk.append("prompt b\nanswer b\n")
        desk.take()
        assert held.read() == b"prompt a\nanswer a\nprompt b\nanswer b\n"
    assert desk.copy.stat().st_ino == inode
    assert [path.name for path in desk.copy.parent.glob("main*")] == ["main"]


def test_nothing_new_writes_nothing(desk: Desk) -> None:
    """If the transcript has not changed, the copy is not touched, not even its modification
    time."""
    desk.write("prompt a\n")
    desk.take()
    os.utime(desk.copy, (1, 1))
    desk.take()
    assert desk.copy.stat().st_mtime == 1


@pytest.mark.parametrize(
    "now",
    ["prompt a\n", "", "prompt a\nanswer X\nprompt b\n", "something else\n"],
    ids=["shrunk", "emptied", "changed", "new"],
)
def test_a_transcript_that_changed_moves_the_copy_aside(desk: Desk, now: str) -> None:
    """A copy that is replaced because of a deliberate change is kept under a number, however often
    that happens."""
    first = "prompt a\nanswer a\n"
    desk.write(first)
    desk.take()
    desk.write(now)
    desk.take(replace=True)
    desk.write("again\n")
    desk.take(replace=True)
    assert (desk.copy.parent / "main.1").read_text() == first
    assert desk.copy.read_text() == "again\n"
    assert {first, now, "again\n"} - {""} <= contents(desk.copy.parent)


@pytest.mark.parametrize(
    "now",
    ["prompt a\n", "", "prompt a\nanswer X\nprompt b\n", "something else, and longer than it\n"],
    ids=["shrunk", "emptied", "changed", "new"],
)
@pytest.mark.parametrize("notes", [True, False])
def test_a_transcript_that_lost_something_leaves_the_copy(
    desk: Desk, now: str, notes: bool
) -> None:
    """A transcript that no longer begins with the copy's content is not copied, with and without
    notes."""
    first = "prompt a\nanswer a\n"
    desk.write(first)
    assert desk.take()
    assert desk.copies.continued_by(desk.driver, ID, desk.transcript) is True
    if not notes:
        (desk.copy.parent / "known.json").unlink()
    desk.write(now)
    assert not desk.take()
    assert desk.copies.continued_by(desk.driver, ID, desk.transcript) is False
    assert desk.copy.read_text() == first
    assert not (desk.copy.parent / "main.1").exists()


@pytest.mark.parametrize("first", [True, False])
def test_a_secret_that_comes_or_goes_is_no_change(tmp_path: Path, first: bool) -> None:
    """The same transcript is recognized even if the environment's secrets have changed since."""
    desk = Desk(tmp_path)
    secret = Redactor.of({"SOME_TOKEN": "hunter2-hunter2"})
    desk.write("prompt a\nanswer hunter2-hunter2\n")
    before = replace(desk.copies, redactor=secret) if first else desk.copies
    after = desk.copies if first else replace(desk.copies, redactor=secret)
    assert before.take(desk.driver, ID, desk.transcript)
    (desk.copy.parent / "known.json").unlink()
    assert after.continued_by(desk.driver, ID, desk.transcript) is True
    desk.append("prompt b\n")
    assert after.take(desk.driver, ID, desk.transcript)
    desk.write("prompt x\nanswer hunter2-hunter2\nprompt b\n")
    assert after.continued_by(desk.driver, ID, desk.transcript) is False


def test_a_torn_line_waits_until_it_is_whole(desk: Desk) -> None:
    """The copy ends with a complete line. The rest is copied when the line is complete."""
    desk.write("prompt a\nansw")
    desk.take()
    assert desk.copy.read_text() == "prompt a\n"
    desk.append("er a\n")
    desk.take()
    assert desk.copy.read_text() == "prompt a\nanswer a\n"
    assert not (desk.copy.parent / "main.1").exists()


def test_a_copy_torn_by_a_kill_is_completed(desk: Desk) -> None:
    """A copy that ends in the middle of a line, because perdure died while writing, is completed
    and not moved aside."""
    desk.write("prompt a\nanswer a\n")
    desk.take()
    os.truncate(desk.copy, 12)
    desk.take()
    assert desk.copy.read_text() == "prompt a\nanswer a\n"
    assert not (desk.copy.parent / "main.1").exists()


def test_a_missing_transcript_leaves_the_copy(desk: Desk) -> None:
    """If the transcript is missing, the copy stays, and nothing is reported."""
    desk.take()
    assert not desk.copy.exists()
    desk.write("prompt a\n")
    desk.take()
    desk.transcript.unlink()
    desk.take()
    assert desk.copy.read_text() == "prompt a\n"


def test_what_cannot_be_written_is_a_sentence(desk: Desk) -> None:
    """If the target is not a directory, the error is a WorkspaceError that names the conversation.
    The transcript is not touched."""
    desk.write("prompt a\n")
    desk.state.write_text("in the way")
    with pytest.raises(WorkspaceError, match=f"{ID} could not be copied"):
        desk.take()
    assert desk.transcript.read_text() == "prompt a\n"


def test_copies_are_private_whatever_the_umask(desk: Desk) -> None:
    """Every file is 0600 and every directory 0700, even those beside the transcript, and copies
    that were moved aside."""
    with open_umask():
        desk.write("prompt a\n")
        desk.belonging("sub/spilled.txt", "out")
        desk.take()
        desk.write("other\n")
        desk.take()
    for path in [desk.copies.directory, *desk.copies.directory.rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_secrets_stay_out_and_places_stay_right(tmp_path: Path) -> None:
    """In the copies of the transcript and the files beside it, a secret is replaced by a text of
    the same length. So the next part still fits."""
    desk = Desk(tmp_path, Redactor.of({"API_KEY": "sk-very-secret"}))
    desk.write("prompt sk-very-secret\n")
    desk.belonging("spilled.txt", "key=sk-very-secret")
    desk.take()
    desk.append("prompt b\n")
    desk.take()
    assert desk.copy.read_text() == f"prompt {'*' * 14}\nprompt b\n"
    assert desk.beside("spilled.txt").read_text() == f"key={'*' * 14}"
    assert not (desk.copy.parent / "main.1").exists()


def test_ids_never_become_paths(desk: Desk) -> None:
    """The copy is always inside the directory of the copies, whatever id an agent gives its
    conversation."""
    for name in ("../../../etc/passwd", "/etc/passwd", "a/b", "..", "", "a" * 5000, "\0"):
        path = desk.copies.of("diary", name)
        assert path.resolve().is_relative_to(desk.copies.directory.resolve())
        assert path.parent.parent == desk.copies.directory / "diary"


# --- belongings
# ----------------------------------------------------------------------------------------------------


def test_belongings_follow(desk: Desk) -> None:
    """Files beside the transcript are copied, grow with it, and stay when the agent deletes
    them."""
    desk.write("prompt a\n")
    spilled = desk.belonging("tools/1.txt", "one")
    desk.take()
    spilled.write_text("one and more")
    desk.take()
    assert desk.beside("tools/1.txt").read_text() == "one and more"
    spilled.unlink()
    desk.take()
    assert desk.beside("tools/1.txt").read_text() == "one and more"


def test_links_in_belongings_are_not_followed(desk: Desk, tmp_path: Path) -> None:
    """Through a linked file, a linked directory, a link in place of all files beside the
    transcript, or a pipe, nothing is copied."""
    secret = tmp_path / "ssh"
    secret.mkdir()
    (secret / "id").write_text("a private key")
    desk.write("prompt a\n")
    top = desk.belonging("real.txt", "mine").parent
    (top / "file").symlink_to(secret / "id")
    (top / "folder").symlink_to(secret)
    os.mkfifo(top / "pipe")
    desk.take()
    assert contents(desk.copies.directory) == {"prompt a\n", "mine"}
    (top / "pipe").unlink()
    top.rename(tmp_path / "elsewhere")
    top.symlink_to(secret)
    desk.take()
    assert contents(desk.copies.directory) == {"prompt a\n", "mine"}


def test_a_belonging_that_changed_at_its_size_is_copied(desk: Desk) -> None:
    """A file beside the transcript that was overwritten with the same length is copied again. The
    previous copy is kept aside."""
    desk.write("prompt a\n")
    spilled = desk.belonging("tools/1.json", "state one")
    desk.take()
    spilled.write_text("state two")
    desk.take()
    assert desk.beside("tools/1.json").read_text() == "state two"
    assert {"state one", "state two"} <= contents(desk.copies.directory)


def test_half_a_secret_in_a_belonging_is_not_kept(tmp_path: Path) -> None:
    """A file was copied while a secret was being written into it. The secret is replaced as soon as
    it is complete."""
    desk = Desk(tmp_path, Redactor.of({"API_KEY": "sk-very-secret"}))
    desk.write("prompt a\n")
    spilled = desk.belonging("1.txt", "key=sk-very")
    desk.take()
    with spilled.open("a") as file:
        file.write("-secret and more")
    desk.take()
    assert desk.beside("1.txt").read_text() == f"key={'*' * 14} and more"


# --- incremental
# ---------------------------------------------------------------------------------------------------


class Counting(Redactor):
    """A redactor that counts the bytes that it is given."""

    seen: ClassVar[list[int]] = []

    def bytes(self, content: bytes) -> bytes:
        self.seen.append(len(content))
        return super().bytes(content)


def written() -> int:
    """Return how many bytes this process has written."""
    return int(
        next(
            line
            for line in Path("/proc/self/io").read_text().splitlines()
            if line.startswith("wchar")
        ).split()[1]
    )


def test_a_long_transcript_that_grew_costs_what_is_new(tmp_path: Path) -> None:
    """When 4 MB grow by 4 KB, little more than 4 KB is written and redacted. A first secret in the
    file does not change that."""
    secrets = Redactor.of({"API_KEY": "sk-very-secret"})
    desk = Desk(tmp_path, Counting(secrets.pattern, secrets.reach))
    desk.write("prompt sk-very-secret\n" + "answer with some words in it\n" * 150_000)
    desk.take()
    desk.append("answer sk-very-secret\n" * 186)
    Counting.seen.clear()
    before = written()
    desk.take()
    assert written() - before < 6_000
    assert sum(Counting.seen) < 5_000
    assert desk.copy.read_text() == desk.transcript.read_text().replace("sk-very-secret", "*" * 14)
    assert not (desk.copy.parent / "main.1").exists()


def test_a_change_far_before_the_end_is_noticed(desk: Desk) -> None:
    """If an early byte of the transcript changed while it grew, it is not copied, and the copy
    stays."""
    text = "prompt a\n" + "answer with some words in it\n" * 1000
    desk.write(text)
    desk.take()
    desk.write(text.replace("prompt a", "prompt b") + "more\n")
    assert not desk.take()
    assert desk.copy.read_text() == text
    assert desk.take(replace=True)
    assert (desk.copy.parent / "main.1").read_text() == text
    assert desk.copy.read_text().startswith("prompt b")


@pytest.mark.parametrize("damage", ["changed", "noted wrong", "notes gone"])
def test_what_is_known_is_only_a_shortcut(desk: Desk, damage: str) -> None:
    """If a copy was changed without a change of its size, or its notes are wrong or missing,
    everything is compared again, and the copy is corrected."""
    desk.write("prompt a\nanswer a\n")
    desk.take()
    notes = desk.copy.parent / "known.json"
    if damage == "changed":
        desk.copy.write_text("prompt X\nanswer a\n")
    elif damage == "noted wrong":
        notes.write_text(notes.read_text().replace('"raw": "', '"raw": "0'))
    else:
        notes.unlink()
    desk.append("prompt b\n")
    desk.take()
    assert desk.copy.read_text() == "prompt a\nanswer a\nprompt b\n"


# --- parts
# ---------------------------------------------------------------------------------------------------------


def test_a_part_is_found_whatever_came_after_it(desk: Desk) -> None:
    """The part of a conversation that a checkpoint names is restored exactly: after the copy grew,
    was moved aside, or was changed."""
    desk.write("prompt a\nanswer a\n")
    spilled = desk.belonging("tools/1.json", "one")
    desk.take()
    named = desk.copies.parts(desk.driver, ID)
    assert [(part.name, part.size) for part in named] == [
        ("main", 18),
        (f"beside/{ID}/tools/1.json", 3),
    ]
    desk.append("prompt b\n")
    spilled.write_text("two")
    desk.take()
    desk.write("something else\n")
    spilled.unlink()
    desk.take()
    desk.copies.put_back(desk.driver, ID, desk.home, desk.home, named, exactly=True)
    assert (desk.transcript.read_text(), spilled.read_text()) == ("prompt a\nanswer a\n", "one")
    assert "something else\n" in contents(desk.home)


def test_a_part_that_is_lost_is_said_to_be(desk: Desk) -> None:
    """If no copy begins with a checkpoint's part any more, nothing is restored, and the agent's
    home is not touched."""
    desk.write("prompt a\n")
    desk.take()
    named = desk.copies.parts(desk.driver, ID)
    desk.copy.write_text("prompt X\n")
    desk.write("mine\n")
    with pytest.raises(WorkspaceError, match="9 bytes of 'main' is lost"):
        desk.copies.put_back(desk.driver, ID, desk.home, desk.home, named)
    assert contents(desk.home) == {"mine\n"}
    assert desk.copies.parts(desk.driver, "another") == ()


# --- put back
# ------------------------------------------------------------------------------------------------------


def test_a_copy_goes_back_where_the_file_is_gone(desk: Desk) -> None:
    """The conversation and the files beside it are restored byte for byte, with private modes. The
    copy stays."""
    desk.write("prompt a\nanswer a\n")
    spilled = desk.belonging("tools/1.txt", "one")
    desk.take()
    for path in (desk.transcript, spilled):
        path.unlink()
    with open_umask():
        assert desk.put_back() == desk.transcript
    assert desk.transcript.read_text() == "prompt a\nanswer a\n"
    assert spilled.read_text() == "one"
    assert [stat.S_IMODE(path.stat().st_mode) for path in (desk.transcript, spilled)] == [
        0o600,
        0o600,
    ]
    assert desk.copy.read_text() == "prompt a\nanswer a\n"
    assert sorted(path.name for path in desk.transcript.parent.iterdir()) == [ID, f"{ID}.txt"]


def test_what_lies_there_is_moved_aside(desk: Desk) -> None:
    """The unusable transcript is moved aside under a new number each time, and never
    overwritten."""
    desk.write("prompt a\n")
    desk.take()
    desk.write("broken one")
    desk.put_back()
    desk.write("broken two")
    desk.put_back()
    assert desk.transcript.read_text() == "prompt a\n"
    assert {"broken one", "broken two", "prompt a\n"} <= contents(desk.home)


def test_belongings_of_the_agent_are_not_overwritten(desk: Desk) -> None:
    """A file beside the transcript that differs from the copy is moved aside. One that is equal, or
    that only grew, stays in place."""
    desk.write("prompt a\n")
    for name in ("shrunk", "grown", "same"):
        desk.belonging(name, "from before")
    desk.take()
    desk.belonging("shrunk", "short")
    desk.belonging("grown", "from before and since")
    desk.put_back()
    beside = desk.transcript.with_suffix("")
    assert (beside / "shrunk").read_text() == "from before"
    assert (beside / "grown").read_text() == "from before and since"
    assert contents(beside) == {"from before", "from before and since", "short"}
    assert len(list(beside.iterdir())) == 4


def test_a_link_in_the_way_is_not_written_through(desk: Desk, tmp_path: Path) -> None:
    """A link in place of the transcript, of its temporary file or of a file beside it is moved
    aside. The link's target keeps its content."""
    precious = tmp_path / "precious"
    precious.write_text("mine, and longer than what is copied")
    desk.write("prompt a\n")
    spilled = desk.belonging("spilled.txt", "long enough to be copied")
    desk.take()
    for path in (desk.transcript, spilled):
        path.unlink()
        path.symlink_to(precious)
    stage = desk.transcript.with_name(f".{desk.transcript.name}.perdure")
    stage.symlink_to(precious)
    desk.put_back()
    assert precious.read_text() == "mine, and longer than what is copied"
    assert (desk.transcript.read_text(), spilled.read_text()) == (
        "prompt a\n",
        "long enough to be copied",
    )
    assert not desk.transcript.is_symlink()
    assert not stage.is_symlink()


def test_a_dangling_link_is_kept_too(desk: Desk) -> None:
    """Even a link to nowhere is moved aside and not overwritten."""
    desk.write("prompt a\n")
    desk.take()
    desk.transcript.unlink()
    desk.transcript.symlink_to("/nonexistent")
    desk.put_back()
    assert desk.transcript.read_text() == "prompt a\n"
    assert [path.readlink() for path in desk.transcript.parent.iterdir() if path.is_symlink()] == [
        Path("/nonexistent")
    ]


def test_without_a_copy_the_agents_file_stays(desk: Desk) -> None:
    """If the copy cannot be read, the error is one sentence, and the file in the agent's home
    stays."""
    desk.write("broken one")
    with pytest.raises(WorkspaceError, match=f"{ID} could not be restored"):
        desk.put_back()
    assert [path.name for path in desk.transcript.parent.iterdir()] == [desk.transcript.name]
    assert desk.transcript.read_text() == "broken one"


def test_half_a_restore_leaves_no_stage(desk: Desk) -> None:
    """If the files beside the transcript cannot be restored, the error says so, and nothing
    incomplete is left."""
    desk.write("prompt a\n")
    top = desk.belonging("spilled.txt", "one").parent
    desk.take()
    (top / "spilled.txt").unlink()
    top.rmdir()
    top.write_text("in the way")
    with pytest.raises(WorkspaceError, match="could not be restored"):
        desk.put_back()
    assert contents(desk.home) == {"prompt a\n", "in the way"}
    assert not [path for path in desk.transcript.parent.iterdir() if path.name.startswith(".")]


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["append", "write", "delete", "take", "put back"]),
            st.text("ab\n", max_size=8),
        ),
        max_size=12,
    )
)
def test_no_whole_line_that_was_copied_is_ever_lost(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, str]]
) -> None:
    """After any sequence of actions of agent and perdure, each earlier state of the copy is the
    beginning of some file in the store or in the home. So no copied line is lost."""
    desk = Desk(tmp_path_factory.mktemp("d", numbered=True))
    taken: list[str] = []
    for step, text in steps:
        if step == "append":
            desk.append(text)
        elif step == "write":
            desk.write(text)
        elif step == "delete":
            desk.transcript.unlink(missing_ok=True)
        elif step == "take":
            desk.take()
            taken += [desk.copy.read_text()] if desk.copy.exists() else []
        elif desk.copy.exists():
            desk.put_back()
            assert desk.transcript.read_text() == desk.copy.read_text()
        kept = contents(desk.copies.directory) | contents(desk.home)
        assert all(any(each.startswith(earlier) for each in kept) for earlier in taken)


# --- what is observed
# ----------------------------------------------------------------------------------------------


def test_a_snapshot_tells_growth_from_change(desk: Desk) -> None:
    """A transcript that has only grown still begins with what its snapshot recorded. A transcript
    that changed in any other way does not."""
    desk.write("prompt a\nanswer a\n")
    seen = snapshot(desk.driver, desk.transcript)
    assert seen is not None
    assert (seen.size, seen.turns) == (18, 1)
    desk.append("prompt b\n")
    assert begins_with(desk.driver, desk.transcript, seen)
    assert prompts_since(desk.driver, desk.transcript, seen) == [fingerprint("b")]
    assert prompts_since(desk.driver, desk.transcript, None) == [fingerprint("a"), fingerprint("b")]
    for changed in ("prompt a\nanswer X\nprompt b\n", "prompt a\n", ""):
        desk.write(changed)
        assert not begins_with(desk.driver, desk.transcript, seen)


def test_what_is_not_there_is_nothing(desk: Desk) -> None:
    """A missing file, an empty path, and a directory have no snapshot, no beginning and no prompts.
    None of them is an error."""
    nothing = Snapshot("", 0, "", 0)
    for path in (desk.home / "none", desk.home):
        assert snapshot(desk.driver, path) is None
        assert not begins_with(desk.driver, path, nothing)
        assert prompts_since(desk.driver, path, None) == []
    assert snapshot(desk.driver, None) is None


@given(st.text(), st.sampled_from([" ", "\n", "\t", "\r\n", "  "]))
def test_a_fingerprint_is_the_same_as_sent_and_as_stored(text: str, space: str) -> None:
    """The spacing of a prompt does not change its fingerprint; other words do."""
    assert fingerprint(f"{space}{text}{space}") == fingerprint(text)
    assert fingerprint(f"{text} x1y2") != fingerprint(text)


class Ledger(Diary):
    """The same agent, but with all conversations in one database."""

    def __init__(self, rows: dict[str, bytes]) -> None:
        self.rows = rows
        self.archive: Any = self

    def read(self, home: Path, session_id: str) -> bytes | None:
        return self.rows.get(session_id)


def test_a_conversation_in_an_archive_becomes_a_private_file(tmp_path: Path) -> None:
    """The current state of a conversation in a database replaces the copy of its previous state. A
    missing conversation gives no file."""
    rows = {ID: b"prompt a\n"}
    driver: Any = Ledger(rows)
    directory = tmp_path / "attempt"
    assert locate(driver, tmp_path, "other", directory) is None
    with open_umask():
        for content in (b"prompt a\n", b"prompt a\nprompt b\n"):
            rows[ID] = content
            path = locate(driver, tmp_path, ID, directory)
            assert path is not None
            assert path.read_bytes() == content
    assert [stat.S_IMODE(each.stat().st_mode) for each in (path, directory)] == [0o600, 0o700]
    assert list(directory.iterdir()) == [path]
