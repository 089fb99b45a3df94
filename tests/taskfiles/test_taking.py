"""The task files that a person gives: all of them are checked before one is stored, and a refusal
says what to do."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from perdure.errors import NotFound, UsageError
from perdure.model import Given, OnEdit
from perdure.workspace.task_files import Contents, FileRequest, intake, take


@pytest.fixture
def contents(tmp_path: Path) -> Contents:
    return Contents(tmp_path / "state")


@pytest.fixture
def user(tmp_path: Path) -> Path:
    path = tmp_path / "user"
    path.mkdir()
    return path


def names(given: Given) -> list[str]:
    return [file.name for file in given.files]


def test_files_and_where_they_go(contents: Contents, user: Path) -> None:
    """PATH keeps its name, PATH=DEST is stored as DEST, and DEST/ is a directory. If a file with =
    in its name exists, that is its name."""
    for name in ("a.md", "b=c.md", "run.sh"):
        (user / name).write_text(name)
    (user / "run.sh").chmod(0o755)
    (user / "link.md").symlink_to("a.md")
    asked = FileRequest(
        cwd=user,
        files=(
            "a.md=docs/x.md",
            "b=c.md",
            "run.sh=bin/",
            str(user / "a.md"),
            "./link.md=./l//m.md",
        ),
    )
    given = take(contents, asked)
    assert names(given) == ["a.md", "b=c.md", "bin/run.sh", "docs/x.md", "l/m.md"]
    assert [file.executable for file in given.files] == [False, False, True, False, False]
    assert contents.get(given.files[-1].sha256) == b"a.md"
    assert (given.whole, given.on_edit) == (False, OnEdit.MERGE)


def test_a_directory_is_all_of_the_files(contents: Contents, user: Path) -> None:
    """All regular files below the directory are given, with the same names. Links, pipes and git
    directories are left out and reported. --file has precedence."""
    context = user / "ctx"
    (context / "d/e").mkdir(parents=True)
    (context / ".git").mkdir()
    (context / ".git/config").write_text("no")
    (context / "d/e/f.txt").write_text("f")
    (context / "a b\n.txt").write_text("odd")
    (context / "link").symlink_to("/etc/passwd")
    (context / "dirlink").symlink_to("/etc")
    os.mkfifo(context / "pipe")
    (user / "other").write_text("other")
    said: list[str] = []
    given = take(
        contents,
        FileRequest(
            cwd=user,
            context="ctx",
            files=("other=d/e/f.txt",),
            on_edit=OnEdit.KEEP,
            tell=said.append,
        ),
    )
    assert names(given) == ["a b\n.txt", "d/e/f.txt"]
    assert contents.get(given.files[1].sha256) == b"other"
    assert (given.whole, given.on_edit) == (True, OnEdit.KEEP)
    assert len(said) == 1 and all(
        word in said[0]
        for word in (".git (git)", "link (a link)", "dirlink (a link)", "pipe (not a regular file)")
    )


@pytest.mark.parametrize(
    "dest",
    [
        "../x",
        "/etc/passwd",
        "a/../../x",
        ".git/config",
        "a/.GIT/hooks/x",
        ".perdure-1234",
        "..",
        "x" * 256,
        "d/" * 600 + "x",
        "a\0b",
    ],
)
def test_places_that_no_file_may_have(contents: Contents, user: Path, dest: str) -> None:
    """A path outside of the workdir, in git's directory, or too long is refused, and nothing is
    stored."""
    (user / "a").write_text("a")
    with pytest.raises(UsageError):
        take(contents, FileRequest(cwd=user, files=(f"a={dest}",)))
    assert not contents.directory.exists()


def test_what_cannot_be_taken(
    contents: Contents, user: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A missing file, a directory, a pipe, a file that is too large or given twice, and a file and
    a directory with one name: each gives one sentence, and nothing is stored."""
    (user / "a").write_text("a")
    (user / "d").mkdir()
    os.mkfifo(user / "pipe")
    with (user / "large").open("wb") as file:
        file.truncate(intake.LARGEST + 1)
    (user / "d/bad").symlink_to("nowhere")
    (user / os.fsdecode(b"\xff")).write_text("no name")
    refusals: list[tuple[tuple[str, ...], type[Exception], str]] = [
        (("none",), NotFound, "there is no file"),
        (("d",), UsageError, "is a directory"),
        (("d/bad",), NotFound, "there is no file"),
        (("pipe",), UsageError, "not a regular file"),
        (("large",), UsageError, "16,777,216"),
        (("a=x", "a=x"), UsageError, "given twice"),
        (("a=x", "a=x/y"), UsageError, "a file and a directory"),
        ((os.fsdecode(b"\xff"),), UsageError, "not UTF-8"),
        (("=x",), UsageError, "PATH=DEST"),
    ]
    for files, kind, words in refusals:
        with pytest.raises(kind, match=words):
            take(contents, FileRequest(cwd=user, files=("a", *files)))
    with pytest.raises(NotFound, match="no directory"):
        take(contents, FileRequest(cwd=user, context="a"))
    monkeypatch.setattr(intake, "TOGETHER", 3)
    monkeypatch.setattr(intake, "MOST", 2)
    for number in range(4):
        (user / f"n{number}").write_text("nn")
    with pytest.raises(UsageError, match="together"):
        take(contents, FileRequest(cwd=user, files=("n0", "n1")))
    with pytest.raises(UsageError, match="at most 2 files"):
        take(contents, FileRequest(cwd=user, files=("n0", "n1", "n2")))
    assert not contents.directory.exists()


def test_contents_are_private_whole_and_never_trusted(contents: Contents) -> None:
    """Only the owner can read the stored contents. A damaged content counts as missing, and is
    written again. A digest that somebody else sends leads to no file."""
    digest = contents.put(b"text")
    path = contents.path(digest)
    assert path.stat().st_mode & 0o777 == 0o600 and path.parent.stat().st_mode & 0o777 == 0o700
    path.write_bytes(b"tex")
    assert contents.get(digest) is None
    assert contents.put(b"text") == digest and contents.get(digest) == b"text"
    assert contents.get("../../etc/passwd") is None and contents.get("") is None
