"""Content that a person's checkout has and a new workdir lacks: submodules and files of Git LFS.
perdure names them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.workspace.yard import REPOSITORIES, Yard, make_yard

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize 12345\n"


@pytest.mark.parametrize("backend", REPOSITORIES)
def test_submodules_and_pointers_are_named(yard: Yard, backend: str, tmp_path: Path) -> None:
    """The notes of a new workdir name empty submodules, and files of Git LFS that are only
    pointers. An existing workdir has no notes."""
    other = make_yard(tmp_path / "other")
    yard.git(
        "-c", "protocol.file.allow=always", "submodule", "add", "-q", str(other.repo), "lib/other"
    )
    (yard.repo / "art").mkdir()
    (yard.repo / "art/.gitattributes").write_text("*.png filter=lfs diff=lfs merge=lfs -text\n")
    for name in "abcde":
        (yard.repo / f"art/{name}.png").write_text(POINTER.format(name * 64))
    (yard.repo / "art/story.txt").write_text(
        "It begins: version https://git-lfs.github.com/spec/v1\n"
    )
    yard.git("add", ".")
    yard.git("commit", "-qm", "a submodule and pictures")
    workspace = yard.plan(backend)
    assert yard.workspaces.prepare(workspace, "claude").notes == (
        "Submodules are empty directories here: 'lib/other'.",
        "Files of Git LFS are pointers here, without their contents: 'art/a.png', 'art/b.png', "
        "'art/c.png' and 2 more.",
    )
    assert list((Path(workspace.path) / "lib/other").iterdir()) == []
    assert yard.workspaces.prepare(workspace, "claude").notes == ()


@pytest.mark.parametrize("backend", REPOSITORIES)
def test_an_ordinary_repository_has_no_notes(yard: Yard, backend: str) -> None:
    """If nothing is missing, there are no notes."""
    assert yard.workspaces.prepare(yard.plan(backend), "claude").notes == ()
