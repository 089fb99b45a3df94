"""Task files are placed in the workdir by their rules. With any contents, no version is lost."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perdure.errors import WorkspaceError
from perdure.model import FileAction, OnEdit
from perdure.model.events import CheckpointRestored, CheckpointTaken
from tests.taskfiles.scene import Scene

BASE, OURS, THEIRS, BOTH = (
    b"1\n2\n3\n4\n5\n",
    b"1\n2\n3\n4\nfive\n",
    b"one\n2\n3\n4\n5\n",
    b"one\n2\n3\n4\nfive\n",
)
CLASH = b"eins\n2\n3\n4\n5\n"
KEEP, REPLACE, MERGE = OnEdit.KEEP, OnEdit.REPLACE, OnEdit.MERGE


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


ROWS = [
    # Each row: the contents of base, workdir and given file; then, for each of keep, replace and
    # merge: what was done, the content afterwards, and whether a backup was made.
    (None, None, THEIRS, ("written", THEIRS, 0), ("written", THEIRS, 0), ("written", THEIRS, 0)),
    (None, THEIRS, THEIRS, ("same", THEIRS, 0), ("same", THEIRS, 0), ("same", THEIRS, 0)),
    (None, OURS, THEIRS, ("kept", OURS, 0), ("replaced", THEIRS, 1), ("conflict", "marks", 1)),
    (BASE, BASE, THEIRS, ("written", THEIRS, 0), ("written", THEIRS, 0), ("written", THEIRS, 0)),
    (BASE, THEIRS, THEIRS, ("same", THEIRS, 0), ("same", THEIRS, 0), ("same", THEIRS, 0)),
    (BASE, OURS, THEIRS, ("kept", OURS, 0), ("replaced", THEIRS, 1), ("merged", BOTH, 1)),
    (BASE, CLASH, THEIRS, ("kept", CLASH, 0), ("replaced", THEIRS, 1), ("conflict", "marks", 1)),
    (BASE, None, THEIRS, ("kept", None, 0), ("written", THEIRS, 0), ("conflict", THEIRS, 0)),
    (BASE, OURS, BASE, (None, OURS, 0), (None, OURS, 0), (None, OURS, 0)),
    (BASE, None, BASE, (None, None, 0), (None, None, 0), (None, None, 0)),
    (
        BASE,
        b"\0ours",
        THEIRS,
        ("kept", b"\0ours", 0),
        ("replaced", THEIRS, 1),
        ("conflict", b"\0ours", 1),
    ),
    (
        BASE,
        OURS,
        b"\0theirs",
        ("kept", OURS, 0),
        ("replaced", b"\0theirs", 1),
        ("conflict", OURS, 1),
    ),
]


@pytest.mark.parametrize("row", ROWS, ids=range(len(ROWS)))
@pytest.mark.parametrize("strategy", [KEEP, REPLACE, MERGE])
def test_every_combination(scene: Scene, row: tuple, strategy: OnEdit) -> None:
    """The action on a file depends only on three contents (base, workdir, given) and the
    strategy."""
    base, there, new, *outcomes = row
    action, content, backups = outcomes[(KEEP, REPLACE, MERGE).index(strategy)]
    if base is not None:
        scene.give({"docs/a.md": base})
        scene.place()
    if there is None:
        (scene.work / "docs/a.md").unlink(missing_ok=True)
    else:
        scene.write("docs/a.md", there)
    scene.give({"docs/a.md": new}, strategy)
    done = scene.place()
    assert [str(change.action) for change in done.values()] == ([action] if action else [])
    now = scene.read("docs/a.md")
    if content == "marks":
        assert now is not None and there is not None
        assert (
            b"<<<<<<< as it was in the workdir\n" in now and b">>>>>>> as given with version" in now
        )
    else:
        assert now == content
    assert len(scene.backups()) == backups
    assert scene.backups() == [there] * backups
    assert scene.strays() == [] and scene.left() == ()
    assert scene.place() == {}, "once is enough"
    assert scene.read("docs/a.md") == now


contents = st.one_of(
    st.none(),
    st.binary(max_size=40),
    st.lists(st.sampled_from([b"a\n", b"b\n", b"c\n", b"d"]), max_size=6).map(b"".join),
)


@settings(max_examples=60)
@given(
    base=contents,
    there=contents,
    new=st.binary(max_size=40) | st.just(b"a\nb\n"),
    strategy=st.sampled_from(OnEdit),
)
def test_no_version_is_lost(
    base: bytes | None, there: bytes | None, new: bytes, strategy: OnEdit
) -> None:
    """With any three contents, the workdir's content is still in the workdir or in a backup, and
    the given content is kept."""
    with tempfile.TemporaryDirectory() as directory:
        scene = Scene(Path(directory))
        if base is not None:
            scene.give({"f": base})
            scene.place()
        (scene.work / "f").unlink(missing_ok=True)
        if there is not None:
            scene.write("f", there)
        scene.give({"f": new}, strategy)
        scene.place()
        assert there is None or there == base or there in [scene.read("f"), *scene.backups()]
        for context in scene.contexts:
            assert scene.contents.get(context.given.files[0].sha256) in (base, new)
        assert scene.strays() == []


def test_versions_add_up(scene: Scene) -> None:
    """Single files are added to the earlier ones. A directory replaces all of them: a file that the
    directory lacks stays in the workdir and is reported."""
    scene.give({"a": b"1", "b": b"1"}, whole=True)
    scene.give({"c": b"1"})
    assert {name: change.action for name, change in scene.place().items()} == dict.fromkeys(
        "abc", FileAction.WRITTEN
    )
    scene.give({"a": b"2"}, whole=True)
    done = scene.place()
    assert {name: str(change.action) for name, change in done.items()} == {
        "a": "written",
        "b": "dropped",
        "c": "dropped",
    }
    assert [scene.read(name) for name in "abc"] == [b"2", b"1", b"1"]
    scene.give({"b": b"3"})
    assert str(scene.place()["b"].action) == "conflict", "a file given again has no base"


def test_an_update_without_files_changes_none(scene: Scene) -> None:
    """New instructions without files do not change the files, edited or not."""
    scene.give({"a": BASE})
    scene.place()
    scene.write("a", OURS)
    scene.give({})
    assert scene.place() == {} and scene.read("a") == OURS


def test_each_file_has_the_strategy_that_it_came_with(scene: Scene) -> None:
    """Two updates that wait together are placed at once, and each file by the strategy of its own
    update."""
    scene.give({"a": BASE, "b": BASE})
    scene.place()
    scene.write("a", OURS)
    scene.write("b", OURS)
    scene.give({"a": THEIRS}, KEEP)
    scene.give({"b": THEIRS}, REPLACE)
    done = scene.place()
    assert (str(done["a"].action), str(done["b"].action)) == ("kept", "replaced")
    assert (done["a"].version, done["b"].version) == (2, 3)


def test_the_executable_bit_is_part_of_a_file(scene: Scene) -> None:
    """A file's executable bit is set as in the given file, changed by a new version, and merged by
    the same rule as the lines. Other access rights stay."""
    scene.give({"run": BASE}, executable=["run"])
    scene.place()
    assert (scene.work / "run").stat().st_mode & 0o100
    scene.write("run", OURS)
    (scene.work / "run").chmod(0o740)
    scene.give({"run": THEIRS}, executable=["run"])
    scene.place()
    assert scene.read("run") == BOTH and stat.S_IMODE((scene.work / "run").stat().st_mode) == 0o740
    scene.give({"run": BOTH})
    scene.place()
    assert scene.read("run") == BOTH and not (scene.work / "run").stat().st_mode & 0o111


def test_a_workdir_that_was_made_anew_gets_its_files_again(scene: Scene) -> None:
    """A file that was written once and is gone with its workdir is written again. An existing file
    stays."""
    scene.give({"a": BASE, "b": BASE})
    scene.place()
    (scene.work / "a").unlink()
    scene.write("b", OURS)
    done = scene.place(fresh=True)
    assert {name: str(change.action) for name, change in done.items()} == {"a": "written"}
    assert (scene.read("a"), scene.read("b")) == (BASE, OURS)
    assert scene.place() == {}


def test_a_checkpoint_has_the_versions_of_its_time(scene: Scene) -> None:
    """After a restore, the version that was given at that time counts as the base. So the newest
    version is written again, merged with the right base."""
    scene.give({"a": BASE})
    scene.place()
    scene.record([CheckpointTaken(number=7, why="end", commit="0" * 40)])
    scene.give({"a": THEIRS})
    scene.place()
    scene.write("a", OURS)
    scene.record([CheckpointRestored(number=7, attempt=1, attempts=2)])
    assert str(scene.place()["a"].action) == "merged"
    assert scene.read("a") == BOTH


def test_many_files_are_planned_in_many_records(scene: Scene) -> None:
    """Many files are planned in several records of the journal, so that no record grows with their
    number."""
    scene.give({f"d/{number}": b"%d" % number for number in range(120)})
    assert len(scene.place()) == 120
    assert [
        len(record.event.files) for record in scene.journal if hasattr(record.event, "files")
    ] == [50, 50, 20]
    assert scene.place() == {}


def test_a_content_that_is_not_here_is_a_conflict(scene: Scene) -> None:
    """A version whose content is on another machine, or damaged here, is reported as a conflict,
    and nothing is changed."""
    scene.give({"a": BASE})
    scene.place()
    scene.give({"a": THEIRS})
    scene.contents.path(scene.contexts[1].given.files[0].sha256).write_bytes(b"other")
    done = scene.place()["a"]
    assert (str(done.action), done.why) == ("conflict", "its content is missing on this machine")
    assert scene.read("a") == BASE


def test_backups_never_overwrite_one_another(scene: Scene) -> None:
    """Two backups of the same file for the same version of the instructions get different paths."""
    scene.give({"a": THEIRS}, REPLACE)
    for mine in (OURS, CLASH):
        scene.write("a", mine)
        scene.journal.clear()
        scene.place()
    assert sorted(scene.backups()) == sorted([OURS, CLASH])
    assert all(
        stat.S_IMODE(path.stat().st_mode) == 0o600
        for path in scene.state.rglob("*")
        if path.is_file()
    )


@pytest.mark.parametrize(
    "plant", ["link", "dangling", "directory", "fifo", "parent link", "parent file", "huge"]
)
@pytest.mark.parametrize("strategy", [KEEP, REPLACE, MERGE])
def test_what_an_agent_plants_stays_and_leads_nowhere(
    scene: Scene, plant: str, strategy: OnEdit
) -> None:
    """A link, a pipe, a directory or a giant file is in place of the task file, or a link in place
    of its directory. It is not followed, written or removed."""
    outside = scene.directory / "outside"
    outside.mkdir()
    (outside / "a.md").write_bytes(b"not yours")
    scene.give({"docs/a.md": BASE})
    scene.place()
    place = scene.work / "docs/a.md"
    place.unlink()
    match plant:
        case "link":
            place.symlink_to(outside / "a.md")
        case "dangling":
            place.symlink_to(outside / "new.md")
        case "directory":
            place.mkdir()
        case "fifo":
            os.mkfifo(place)
        case "parent link":
            place.parent.rmdir()
            place.parent.symlink_to(outside)
        case "parent file":
            place.parent.rmdir()
            place.parent.write_bytes(b"a file")
        case "huge":
            with place.open("wb") as file:
                file.truncate(300 << 20)
    seen = place.lstat() if "parent" not in plant else place.parent.lstat()
    scene.give({"docs/a.md": THEIRS}, strategy)
    done = scene.place()["docs/a.md"]
    assert (str(done.action), done.before, done.after) == (
        "kept" if strategy is KEEP else "conflict",
        "?",
        "?",
    )
    now = place.lstat() if "parent" not in plant else place.parent.lstat()
    assert (now.st_ino, now.st_mode, now.st_mtime_ns) == (
        seen.st_ino,
        seen.st_mode,
        seen.st_mtime_ns,
    )
    assert {path.name: path.read_bytes() for path in outside.iterdir()} == {"a.md": b"not yours"}


def test_a_workdir_that_became_a_link_is_refused(scene: Scene) -> None:
    """If the workdir was replaced by a link, nothing is written, and the attempt ends with the
    reason."""
    outside = scene.directory / "outside"
    outside.mkdir()
    scene.work.rmdir()
    scene.work.symlink_to(outside)
    scene.give({"a": BASE})
    with pytest.raises(WorkspaceError, match="could not be put into"):
        scene.place()
    assert list(outside.iterdir()) == []


def test_an_unfinished_plan_is_completed_before_the_next(scene: Scene) -> None:
    """The unfinished plan of the second version is completed first. Then the third version is
    placed, merged with the result of the second."""
    scene.give({"a": BASE})
    scene.place()
    scene.write("a", OURS)
    scene.give({"a": THEIRS})
    with pytest.raises(Ended):
        scene.place(after=end)
    assert scene.read("a") == OURS
    scene.give({"a": THEIRS.replace(b"3", b"three")})
    assert str(scene.place()["a"].action) == "merged"
    assert scene.read("a") == BOTH.replace(b"3", b"three")
    assert sorted(scene.backups()) == sorted([OURS, BOTH])


class Ended(Exception):
    """Raised to end perdure as soon as the plan is in the journal."""


def end() -> None:
    raise Ended


def test_a_hard_link_outside_keeps_its_bytes(scene: Scene) -> None:
    """The agent has hard-linked a task file to a file outside of the workdir. The task file is
    replaced, and never written into."""
    outside = scene.directory / "outside"
    outside.write_bytes(OURS)
    (scene.work / "a").hardlink_to(outside)
    scene.give({"a": THEIRS}, REPLACE)
    scene.place()
    assert (scene.read("a"), outside.read_bytes()) == (THEIRS, OURS)


@pytest.mark.parametrize(
    "name", ["a\nb", "-x", "--zdiff3", " ", "…", "\u202eabc", "a" * 255, "d/" * 100 + "f"]
)
def test_odd_names_are_only_names(scene: Scene, name: str) -> None:
    """A name that a shell, git or a terminal could misread is placed, merged and backed up like any
    other."""
    scene.give({name: BASE})
    scene.place()
    scene.write(name, OURS)
    scene.give({name: THEIRS})
    assert str(scene.place()[name].action) == "merged"
    assert scene.read(name) == BOTH and scene.backups() == [OURS]
