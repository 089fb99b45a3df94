"""Homes are moved to a volume and back. A kill at any step loses nothing, and an impossible move is
refused before it begins."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from perdure.agents.shared.homes import HOMES
from perdure.errors import Conflict, WorkspaceError
from perdure.host.homes.link import Linking
from perdure.host.homes.linked_homes import HomeEnvironment, Linked, LinkedHomes
from perdure.host.homes.merge import CONFLICT
from perdure.host.homes.verification import kept_beside, verify
from perdure.host.homes.volume import volume_at
from tests.homes.killing import SITUATIONS, World, command, database, died_at, made, words_in, write

TOP = Path(__file__).parents[2]
WAYS = ("variable", "symlink")


@pytest.mark.parametrize("situation", SITUATIONS)
def test_killed_at_any_step_the_next_call_completes_it(tmp_path: Path, situation: str) -> None:
    """After a kill at a named step of `link` or `unlink`, or before a change of the file system, no
    file's content is lost, and the next call completes the move. Every fourth step is tested (all
    of them if both sides conflict), and every 61st change. `make home-kills` tests all."""
    steps = 1 if situation == "conflict" else 4
    done = subprocess.run(
        command("killing", tmp_path, "61", str(steps), situation),
        cwd=TOP,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout.split()[0]) >= {"conflict": 90, "empty": 10, "dangling": 12}.get(
        situation, 25
    )


def test_a_volume_that_cannot_take_the_home_leaves_it_where_it_was(tmp_path: Path) -> None:
    """If the volume is read-only, too small, or becomes full, the move is refused and nothing is
    lost. This holds also if perdure is killed at any step before. After the volume is repaired, the
    move succeeds."""
    done = subprocess.run(command("refusing", tmp_path), cwd=TOP, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert [(code, wrong) for _, _, _, code, wrong in told] == [(7, [])] * 6
    assert all(
        kills > 0 for kind, _, kills, _, _ in told if kind != "read-only"
    )  # A read-only volume is refused before the first step, so no kill is possible.


@pytest.fixture(params=WAYS)
def world(request: pytest.FixtureRequest, tmp_path: Path) -> World:
    return made(tmp_path / "world", "full", request.param)


def target(world: World) -> Path:
    return world.volume / "homes/claude"


def test_linked_twice_is_linked_once(world: World) -> None:
    """If a home is linked twice, the second call finds nothing to do. It writes no file and moves
    nothing aside."""
    world.link()
    before = {path: path.lstat().st_mtime_ns for path in world.top.rglob("*") if path.is_file()}
    kept = kept_beside(*LinkedHomes(world.top / "state").all())
    world.link()
    assert kept_beside(*LinkedHomes(world.top / "state").all()) == kept
    after = {path: path.lstat().st_mtime_ns for path in world.top.rglob("*") if path.is_file()}
    assert {path for path in before if after.get(path) != before[path]} == {
        world.top / "state/homes.json"
    }


def test_of_two_versions_both_are_kept_and_a_transcript_that_goes_on_keeps_its_name(
    tmp_path: Path,
) -> None:
    """If home and volume have different settings, the volume's file keeps its name, and the home's
    file is kept beside it. Of two states of one transcript the longer one keeps the name."""
    world = made(tmp_path / "world", "conflict", "variable")
    world.link()
    assert (target(world) / "settings.json").read_text() == '{"theirs": true}'
    assert [path.read_text() for path in target(world).glob(f"settings.json{CONFLICT}*")] == [
        '{"mine": true}'
    ]
    assert (target(world) / "projects/-w/one.jsonl").read_text() == '{"turn": 1}\n{"turn": 2}\n'
    assert (target(world) / "projects/-x/two.jsonl").read_text() == '{"turn": "other"}\n'
    assert (target(world) / f"commands{CONFLICT}directory/a/deep.md").read_text() == "deep\n"
    assert words_in(target(world) / "store.db") == ["three"]
    assert any(
        "two versions" in finding.message
        for finding in verify(LinkedHomes(world.top / "state").all()[0], world.environ)
    )


def test_what_was_written_between_a_kill_and_the_next_call_has_the_name(world: World) -> None:
    """If the home was used again after a killed call, the home's files keep their names. The files
    that the killed call had copied are kept beside them."""
    steps: list[str] = []
    died_at(
        lambda tell: world.link(lambda step: tell(step) if step == "durable" else None),
        2,
        changes=False,
    )
    assert (target(world) / "settings.json").exists()
    (world.home / ".claude/store.db-wal").unlink()
    (world.home / ".claude/store.db").unlink()
    database(world.home / ".claude/store.db", "one", "two", "three")
    write(world.home / ".claude/settings.json", '{"newer": true}')
    world.link(steps.append)
    assert (target(world) / "settings.json").read_text() == '{"newer": true}'
    assert [path.read_text() for path in target(world).glob(f"settings.json{CONFLICT}*")] == [
        '{"mine": true}'
    ]
    assert words_in(target(world) / "store.db") == ["one", "two", "three"]
    (older,) = [
        path
        for path in target(world).glob(f"store.db{CONFLICT}*")
        if path.suffix[-4:] not in ("-wal", "-shm")
    ]
    assert words_in(older) == ["one", "two"]


def test_everything_comes_back_with_what_was_written_meanwhile(world: World) -> None:
    """After `unlink` the home has all its files, also those made on the volume, with their modes
    and times. The file that was beside the home is beside it again."""
    old = world.home / ".claude/projects/-w/one.jsonl"
    old.chmod(0o600)
    os.utime(old, ns=(10**18, 10**18))
    world.link()
    assert (target(world) / ".claude.json").read_text() == '{"servers": []}'
    write(target(world) / "projects/-w/new.jsonl", "new\n")
    write(target(world) / ".claude.json", '{"servers": ["one"]}')
    world.unlink()
    assert (world.home / ".claude/projects/-w/new.jsonl").read_text() == "new\n"
    assert (world.home / ".claude.json").read_text() == '{"servers": ["one"]}'
    assert not (world.home / ".claude.json").is_symlink()
    assert not (world.home / ".claude/.claude.json").exists()
    assert (old.stat().st_mode & 0o777, old.stat().st_mtime_ns) == (0o600, 10**18)
    assert not target(world).exists()
    assert [path.name[:19] for path in target(world).parent.iterdir()] == ["claude.pre-perdure-"]


def test_a_home_that_somebody_made_at_the_old_place_is_taken_in(tmp_path: Path) -> None:
    """A program that did not follow the variable created a new home. Its files are moved to the
    volume, which keeps its own versions."""
    world = made(tmp_path / "world", "full", "variable")
    world.link()
    write(world.home / ".claude/projects/-y/stray.jsonl", "stray\n")
    write(world.home / ".claude/settings.json", "{}")
    assert any(
        "another home" in finding.message
        for finding in verify(LinkedHomes(world.top / "state").all()[0], world.environ)
    )
    world.link()
    assert (target(world) / "projects/-y/stray.jsonl").read_text() == "stray\n"
    assert (target(world) / "settings.json").read_text() == '{"mine": true}'
    assert not (world.home / ".claude").exists()


def test_links_lead_where_they_led(world: World) -> None:
    """A link within the home leads to the copy. A link that leads out of the home leads to the same
    target from the volume. Pipes are not moved, and are named."""
    (world.home / "dotfiles").mkdir()
    write(world.home / "dotfiles/CLAUDE.md", "mine\n")
    (world.home / ".claude/CLAUDE.md").symlink_to("../dotfiles/CLAUDE.md")
    (world.home / ".claude/latest").symlink_to(world.home / ".claude/settings.json")
    (moved,) = Linking(
        volume=volume_at(world.volume, make=True, new=True),
        state=world.top / "state",
        environ=world.environ,
        symlink=world.way == "symlink",
    ).link("claude", HOMES["claude"])
    assert moved.taken.left == ["pipe"]
    assert (target(world) / "CLAUDE.md").read_text() == "mine\n"
    assert (target(world) / "inner").readlink() == Path("settings.json")
    assert (target(world) / "latest").resolve() == target(world) / "settings.json"
    assert not (target(world) / "pipe").exists()


def test_a_hostile_volume_leads_nowhere(world: World) -> None:
    """If the volume has a link in place of a directory of the home, nothing is written through that
    link."""
    outside = world.top / "outside"
    outside.mkdir()
    target(world).joinpath("commands").symlink_to(outside)
    world.link()
    assert list(outside.iterdir()) == []
    assert (target(world) / f"commands{CONFLICT}directory/a/deep.md").read_text() == "deep\n"


@pytest.mark.parametrize("where", ["home", "volume"])
def test_nothing_moves_while_somebody_has_a_file_of_it_open(world: World, where: str) -> None:
    """While a process has a file of the home open, at its old place or on the volume, nothing is
    moved, and the error names the process id."""
    opened = {
        "home": world.home / ".claude/settings.json",
        "volume": target(world) / "projects/-x/two.jsonl",
    }[where]
    with opened.open("rb") as file, subprocess.Popen(["sleep", "60"], stdin=file) as sleeper:
        with pytest.raises(Conflict, match=f"process {sleeper.pid} has {opened} open"):
            world.link()
        sleeper.kill()
    assert not (world.home / ".claude").is_symlink()
    assert (world.home / ".claude/settings.json").exists()
    assert LinkedHomes(world.top / "state").all() == ()


def test_nothing_moves_while_an_agent_lives_in_it(world: World) -> None:
    """While a process of the agent has this home in its environment, the home is not moved, even if
    no file is open. A process with another home does not count."""
    program = world.top / "claude"
    program.symlink_to(shutil.which("sleep") or "/bin/sleep")
    here, elsewhere = (
        {"HOME": str(world.home)},
        {"HOME": str(world.home), "CLAUDE_CONFIG_DIR": str(world.top / "other")},
    )
    with (
        subprocess.Popen([program, "60"], env=elsewhere) as other,
        subprocess.Popen([program, "60"], env=here) as agent,
    ):
        with pytest.raises(Conflict, match=f"process {agent.pid} is claude"):
            world.link()
        agent.kill()
        agent.wait()
        world.link()
        other.kill()
    assert target(world).joinpath("settings.json").exists()


def test_nothing_moves_while_an_attempt_starts(world: World) -> None:
    """Between an attempt's question where the home is and the agent's start in it, no home is
    moved."""
    with LinkedHomes(world.top / "state").still(), pytest.raises(Conflict, match="just starting"):
        world.link()
    world.link()


def test_a_link_that_is_gone_is_found_out_before_an_attempt(world: World) -> None:
    """If a home is linked by symlink, and the link is missing because the home was wiped, an
    attempt is refused. A home that is linked by variable needs no link."""
    world.link()
    shutil.rmtree(world.home)
    world.home.mkdir()
    note = LinkedHomes(world.top / "state")
    if world.way == "variable":
        note.check("claude")
        return
    with pytest.raises(WorkspaceError, match="is not a link to the volume"):
        note.check("claude")
    world.link()
    note.check("claude")


def test_a_volume_must_be_the_one_and_be_there(world: World) -> None:
    """A volume that is unmounted, exchanged, read-only or not initialized is refused with the
    reason, also when an attempt is to start."""
    with pytest.raises(WorkspaceError, match="a mount point"):
        volume_at(world.volume, make=True)
    world.link()
    note = LinkedHomes(world.top / "state")
    note.check("claude")
    note.check("acp-claude")
    world.volume.rename(world.top / "away")
    with pytest.raises(WorkspaceError, match="is missing"):
        note.check("claude")
    world.volume.mkdir()
    with pytest.raises(WorkspaceError, match="not mounted"):
        note.check("claude")
    assert [finding.state for finding in verify(note.all()[0], world.environ)] == ["bad"]
    volume_at(world.volume, make=True, new=True)
    with pytest.raises(WorkspaceError, match="another volume"):
        note.check("claude")
    with pytest.raises(WorkspaceError, match="another volume"):
        world.unlink()


def test_the_environment_follows_the_note_and_the_user_goes_before_it(tmp_path: Path) -> None:
    """A driver's answer changes as soon as a home is linked. A variable that the user has set to
    another directory is kept."""
    world = made(tmp_path / "world", "full", "variable")
    seen = HomeEnvironment(world.top / "state", world.environ)
    own = HomeEnvironment(world.top / "state", {**world.environ, "CLAUDE_CONFIG_DIR": "/elsewhere"})
    former = HomeEnvironment(
        world.top / "state", {**world.environ, "CLAUDE_CONFIG_DIR": f"{world.home}/.claude/"}
    )
    assert "CLAUDE_CONFIG_DIR" not in seen
    world.link()
    assert seen["CLAUDE_CONFIG_DIR"] == former["CLAUDE_CONFIG_DIR"] == str(target(world))
    assert own["CLAUDE_CONFIG_DIR"] == "/elsewhere"
    world.unlink()
    assert "CLAUDE_CONFIG_DIR" not in seen


def test_places_that_lie_in_one_another_are_refused(tmp_path: Path) -> None:
    """A volume within the home, and a home that leads to the volume's own directory by another
    path, are refused."""
    world = made(tmp_path / "world", "full", "variable")
    inside = world.home / ".claude/volume"
    inside.mkdir()
    call = Linking(
        volume=volume_at(inside, make=True, new=True),
        state=world.top / "state",
        environ=world.environ,
    )
    with pytest.raises(Conflict, match="is inside the other"):
        call.link("claude", HOMES["claude"])


def test_an_index_that_names_another_place_is_set_aside(tmp_path: Path) -> None:
    """Codex's index is moved aside, not to the volume, if it names another path than the
    volume's."""
    home, state = tmp_path / "home", tmp_path / "state"
    write(home / ".codex/sessions/2026/01/01/rollout-x.jsonl", "{}\n")
    write(home / ".codex/state_5.sqlite", "old paths")
    volume = tmp_path / "volume"
    volume.mkdir()

    def link() -> None:
        call = Linking(
            volume=volume_at(volume, make=True, new=True), state=state, environ={"HOME": str(home)}
        )
        call.link("codex", HOMES["codex"])

    link()
    assert not (volume / "homes/codex/state_5.sqlite").exists()
    write(volume / "homes/codex/state_5.sqlite", "these paths")
    link()
    assert (volume / "homes/codex/state_5.sqlite").exists()
    volume.rename(tmp_path / "elsewhere")
    volume, state = tmp_path / "elsewhere", tmp_path / "another-state"
    link()
    assert [path.read_text() for path in (volume / "homes/codex").glob("state_5*")] == [
        "these paths"
    ]
    assert not (volume / "homes/codex/state_5.sqlite").exists()


def test_a_dry_run_changes_nothing(world: World) -> None:
    """A dry run reports what would be copied, and makes no file, directory or note."""
    before = sorted(world.top.rglob("*"))
    call = Linking(
        volume=volume_at(world.volume, make=True, new=True, dry_run=True),
        state=world.top / "state",
        environ=world.environ,
        dry_run=True,
    )
    (moved,) = call.link("claude", HOMES["claude"])
    assert moved.taken.files == 7
    assert sorted(world.top.rglob("*")) == before


def test_the_command_refuses_what_it_cannot_do(tmp_path: Path) -> None:
    """The exit code is 2 without a volume, 5 for an unknown agent, 7 for a directory that is not a
    volume, and 7 for `verify` if the volume is gone."""
    environ = {**os.environ, "HOME": str(tmp_path / "home"), "PYTHONPATH": str(TOP / "src")}

    def perdure(*words: str) -> int:
        return subprocess.run(
            [sys.executable, "-m", "perdure", "home", *words], env=environ, capture_output=True
        ).returncode

    (tmp_path / "home").mkdir()
    volume = tmp_path / "volume"
    volume.mkdir()
    assert perdure("link") == 2
    assert perdure("link", "nobody", "--volume", str(volume)) == 5
    assert perdure("link", "claude", "--volume", str(volume)) == 7
    assert perdure("link", "claude", "--new", "--volume", str(volume)) == 0
    assert perdure("verify") == 0
    volume.rename(tmp_path / "away")
    assert perdure("verify") == 7
    assert perdure("status") == 0


def test_an_environment_that_is_copied_while_a_home_is_unlinked(tmp_path: Path) -> None:
    """A copy of the environment that is made during a link or an unlink is complete: it has the
    home's variable, or does not. A pool that made such a copy once ended with a KeyError."""
    home = Linked(
        agent="claude", name="claude", volume="/v", volume_id="i", target="/v/claude", place="/h/.claude", way="variable",
        variable="CLAUDE_CONFIG_DIR", value="/v/claude", was="/h/.claude",
    )  # fmt: skip
    note, environ, over = (
        LinkedHomes(tmp_path),
        HomeEnvironment(tmp_path, {"HOME": "/h", "PATH": "/bin"}),
        threading.Event(),
    )

    def move() -> None:
        for _ in range(200):
            note.put(home)
            note.forget("claude")
        over.set()

    moving = threading.Thread(target=move)
    moving.start()
    found = set[str]()
    while True:
        found.add(json.dumps({**environ}, sort_keys=True))
        if over.is_set():
            break
    moving.join()
    assert {each.replace('"CLAUDE_CONFIG_DIR": "/v/claude", ', "") for each in found} == {
        '{"HOME": "/h", "PATH": "/bin"}'
    }
    assert "CLAUDE_CONFIG_DIR" not in environ
