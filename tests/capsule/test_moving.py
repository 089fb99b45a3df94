"""A run is moved from one machine to another, without an agent: what is copied, what is not
granted, and refusals that leave nothing behind."""

from __future__ import annotations

import fcntl
import io
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from perdure.capsule import container, move
from perdure.capsule.container import Capsule
from perdure.capsule.export import ExportRequest, export
from perdure.capsule.imports import ImportRequest, ImportResult, import_run
from perdure.capsule.manifest import CapsuleFile, Manifest
from perdure.capsule.objects import CheckpointStore, Term
from perdure.capsule.publication import CheckpointPublisher, OwnedElsewhere, SecretOptions, publish
from perdure.capsule.secret_search import SecretsFound
from perdure.engine.attempt import Engine
from perdure.engine.report import report_of
from perdure.errors import Conflict, NotFound, PerdureError
from perdure.model import Permissions, RunState, SessionKey, TaskRun
from perdure.model.events import Said
from perdure.rules.explanation import explained
from tests.capsule.conftest import SESSION, TALK, Machine, git, prints, worked
from tests.capsule.making import Given
from tests.capsule.test_container import HOSTILE, places
from tests.capsule.test_scan import SECRETS

TOKEN = SECRETS["GitHub token"]


def exported(engine: Engine, run: TaskRun, target: Path, **ways: bool) -> Path:
    return export(engine, run.name, ExportRequest(target=target, **ways)).path


def imported(engine: Engine, path: Path, **wish: Any) -> ImportResult:
    with path.open("rb") as file:
        capsule = Capsule(file, path.name)
        return import_run(
            engine, capsule.manifest, capsule, ImportRequest(source=path.name, **wish)
        )


def nothing_is_left(engine: Engine, into: Path) -> None:
    """Check that a failed import left no run, no target directory, no own copy of a transcript and
    no staged file."""
    assert list(engine.store.find()) == [] and not into.exists()
    assert [
        path for path in engine.state.rglob("*") if path.is_file() and path.name.startswith("main")
    ] == []
    assert [path.name for path in engine.state.glob(".import-*")] == []


def test_a_run_comes_whole(machine: Machine, repository: Path, tmp_path: Path) -> None:
    """An import into another directory restores files with their modes, links, staged changes,
    branch and commits, conversation, attempts, receipts, instructions and journal. No attempt is
    due afterwards."""
    one, two = machine("one"), machine("two")
    run = worked(one, repository, tmp_path / "agent")
    workdir = Path(run.workspace.path)
    path = exported(one, run, tmp_path / "task.capsule")
    taken = imported(two, path, into=tmp_path / "here", permissions=Permissions.FULL)
    here = tmp_path / "here"
    assert prints(here) == prints(workdir)
    for words in (
        ("status", "--porcelain"),
        ("ls-files", "--stage"),
        ("log", "--format=%H %s"),
        ("branch", "--show-current"),
    ):
        ours, theirs = git(here, *words), git(workdir, *words)
        assert ours == theirs or (words[0] == "log" and theirs.startswith(ours)), words
    assert taken.run.state is RunState.FAILED and taken.run.origin == run.id == taken.run.id
    assert two.store.claim("worker", 60.0) is None
    (attempt,) = two.store.attempts(run.id)
    (before,) = one.store.attempts(run.id)
    assert replace(attempt, directory="") == replace(before, directory="")
    assert [context.text for context in two.store.contexts(run.id)] == ["do it"]
    assert Said("I did it") in [record.event for record in two.store.history(run.id)]
    session = two.store.session(SessionKey("claude", f"run:{run.id}"))
    assert session is not None and (session.id, session.context_version, session.cwd) == (
        SESSION,
        1,
        str(workdir),
    )
    assert two.copies.of("claude", SESSION).read_bytes() == TALK
    beside = two.copies.of("claude", SESSION).parent / "beside" / SESSION
    assert [path.name for path in beside.rglob("*") if path.is_file()] == ["a b.txt"]


def test_an_imported_checkpoint_has_no_counts(
    machine: Machine, repository: Path, tmp_path: Path
) -> None:
    """A capsule does not say how many files were changed or new. So the report of the imported run
    has no such numbers, and `why` prints none."""
    one, two = machine("one"), machine("two")
    run = worked(one, repository, tmp_path / "agent")
    path = exported(one, run, tmp_path / "task.capsule")
    taken = imported(two, path, into=tmp_path / "here")
    counted = report_of(one.store, run).attempts[-1].checkpoints[-1]
    assert counted.changed is not None and counted.untracked is not None
    report = report_of(two.store, taken.run)
    attempt = report.attempts[-1]
    (checkpoint,) = attempt.checkpoints
    assert (checkpoint.changed, checkpoint.untracked) == (None, None)
    assert "changed and new files are not counted" in dict(explained(attempt, None))["saved"]


def test_the_same_checkpoint_gives_the_same_capsule(
    machine: Machine, repository: Path, tmp_path: Path
) -> None:
    """Two exports are byte for byte the same. An existing file is never overwritten."""
    one = machine("one")
    run = worked(one, repository, tmp_path / "agent")
    first, second = exported(one, run, tmp_path / "a"), exported(one, run, tmp_path / "b")
    assert first.read_bytes() == second.read_bytes()
    with pytest.raises(Conflict):
        exported(one, run, tmp_path / "a")


def test_into_a_repository_that_has_the_base(
    machine: Machine, repository: Path, tmp_path: Path
) -> None:
    """With `--repo` the run gets a worktree of that repository, on its branch, with its commits. A
    repository without the base is refused, and nothing is left in it."""
    one, two = machine("one"), machine("two")
    run = worked(one, repository, tmp_path / "agent")
    path = exported(one, run, tmp_path / "task.capsule")
    clone, other = tmp_path / "clone", tmp_path / "other"
    git(tmp_path, "clone", "-q", str(repository), str(clone))
    git(clone, "update-ref", "-d", f"refs/remotes/origin/{run.workspace.branch}")
    other.mkdir()
    git(other, "init", "-q", "-b", "main")
    git(other, "commit", "-q", "--allow-empty", "-m", "another story")
    with pytest.raises(NotFound) as refused:
        imported(two, path, repo=other)
    assert run.workspace.base in str(refused.value)
    assert refused.value.hint == f"Try: git -C {other} fetch --all, or leave --repo out"
    taken = imported(two, path, repo=clone)
    place = Path(taken.run.workspace.path)
    assert prints(place) == prints(Path(run.workspace.path))
    assert git(place, "log", "--format=%s").startswith("the agent's\nsecond\n")
    assert git(place, "branch", "--show-current").strip() == run.workspace.branch
    assert git(clone, "status", "--porcelain") == ""


def test_a_branch_of_any_name_moves(machine: Machine, repository: Path, tmp_path: Path) -> None:
    """A run whose agent switched to a branch such as `fix/#12` is on that branch on the other
    machine too, in a directory of its own and in a repository."""

    def change(top: Path) -> None:
        git(top, "checkout", "-q", "-b", "fix/#12")
        (top / "own.txt").write_text("own\n")

    one = machine("one")
    run = worked(one, repository, tmp_path / "agent", change=change)
    path = exported(one, run, tmp_path / "task.capsule")
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "-q", str(repository), str(clone))
    into = imported(machine("two"), path, into=tmp_path / "landed")
    beside = imported(machine("three"), path, repo=clone)
    assert beside.run.workspace.branch == "perdure/task"
    for taken in (into, beside):
        place = Path(taken.run.workspace.path)
        assert (place / "own.txt").read_text() == "own\n"
        assert git(place, "branch", "--show-current").strip() == "fix/#12"


def test_nothing_in_a_capsule_widens_what_this_machine_grants(
    machine: Machine, repository: Path, tmp_path: Path
) -> None:
    """Permissions are reduced to this machine's. Arguments, variables and the check command are
    dropped and named. With `trusted` they stay. Key and scope are never imported, and a note names
    them."""
    one, two = machine("one"), machine("two")
    path = exported(one, worked(one, repository, tmp_path / "agent"), tmp_path / "task.capsule")
    taken = imported(two, path, into=tmp_path / "a")
    spec = taken.run.spec
    assert (spec.permissions, spec.verify, spec.agent_args, spec.env, spec.pass_env) == (
        Permissions.EDIT,
        "",
        (),
        {},
        (),
    )
    assert (spec.key, taken.run.scope) == ("", f"run:{taken.run.id}")
    told = "\n".join(taken.dropped)
    assert (
        all(word in told for word in ("full", "--x", "COLOUR", "LANG", "touch /tmp/verified"))
        and "red" not in told
    )
    shared = (
        "the key `k` was not imported: a run with this key here is a new one",
        "the scope `shared` was not imported: the run here shares no conversation",
    )
    assert taken.notes[-2:] == shared
    granted_all = imported(machine("three"), path, into=tmp_path / "b", trusted=True)
    assert granted_all.notes[-2:] == shared and granted_all.dropped == ()
    trusted = granted_all.run.spec
    assert (trusted.permissions, trusted.verify, trusted.env) == (
        Permissions.FULL,
        "touch /tmp/verified",
        {"COLOUR": "red"},
    )
    assert trusted.key == ""


def test_a_second_import_is_another_run(machine: Machine, repository: Path, tmp_path: Path) -> None:
    """A second import of a capsule needs another name and another directory, because the first run
    has those. It gets another id. Both runs know the id that the run had on the first machine."""
    one, two = machine("one"), machine("two")
    path = exported(one, worked(one, repository, tmp_path / "agent"), tmp_path / "task.capsule")
    first = imported(two, path, into=tmp_path / "a").run
    with pytest.raises(Conflict):
        imported(two, path, into=tmp_path / "b")
    with pytest.raises(Conflict):
        imported(two, path, into=tmp_path / "a", name="again")
    second = imported(two, path, into=tmp_path / "b", name="again").run
    assert first.id != second.id and first.origin == second.origin == first.id


def test_secrets_stop_an_export(machine: Machine, repository: Path, tmp_path: Path) -> None:
    """The conversation has a token, and so has a file. The export is refused with a table that
    never shows them. On request they are redacted with their length, or the file is left out,
    unless it is committed. With `--allow-secrets` everything is exported as it is."""

    def change(workdir: Path) -> None:
        (workdir / ".env").write_text(f"A=1\nTOKEN={TOKEN}\n")
        (workdir / "fine.txt").write_text("fine\n")

    one, two = machine("one"), machine("two")
    talk = TALK + b'{"type":"assistant","text":"it is ' + TOKEN.encode() + b'"}\n'
    run = worked(one, repository, tmp_path / "agent", talk=talk, change=change)
    with pytest.raises(SecretsFound) as caught:
        exported(one, run, tmp_path / "no")
    told = str(caught.value) + caught.value.hint
    assert (
        ".env, line 2: GitHub token" in told
        and f"conversation {SESSION}, line 3" in told
        and TOKEN not in told
    )
    assert "--redact" in told and "--leave-out" in told
    for ways in ({"redact": True}, {"leave_out": True}):
        with pytest.raises(SecretsFound):
            exported(one, run, tmp_path / "no", **ways)
    assert not (tmp_path / "no").exists()
    done = export(one, "task", ExportRequest(target=tmp_path / "yes", redact=True, leave_out=True))
    assert done.manifest.left_out[-1] == ".env" and done.manifest.redacted >= 1
    imported(two, done.path, into=tmp_path / "here")
    assert not (tmp_path / "here/.env").exists() and (tmp_path / "here/fine.txt").exists()
    copy = two.copies.of("claude", SESSION).read_bytes()
    assert len(copy) == len(talk) and TOKEN.encode() not in copy and b"it is ****" in copy
    everything = exported(one, run, tmp_path / "all", allow=True)
    imported(machine("three"), everything, into=tmp_path / "there")
    assert TOKEN in (tmp_path / "there/.env").read_text()


def test_a_committed_secret_cannot_be_left_out(
    machine: Machine, repository: Path, tmp_path: Path
) -> None:
    """A secret in a file of a commit cannot be redacted or left out, so the export is refused."""

    def change(workdir: Path) -> None:
        (workdir / "key.txt").write_text(TOKEN)
        git(workdir, "add", ".")
        git(workdir, "commit", "-q", "-m", "oops")

    one = machine("one")
    run = worked(one, repository, tmp_path / "agent", change=change)
    with pytest.raises(PerdureError, match=r"cannot be left out|would leave"):
        exported(one, run, tmp_path / "no", redact=True, leave_out=True)
    assert not (tmp_path / "no").exists()


def test_a_secret_in_the_message_of_a_commit_is_found(
    machine: Machine, repository: Path, tmp_path: Path
) -> None:
    """A secret in the message of a commit is found. It cannot be left out, because the pack
    contains the commit."""

    def change(workdir: Path) -> None:
        git(workdir, "commit", "-q", "--allow-empty", "-m", f"Use {TOKEN} for now")

    one = machine("one")
    run = worked(one, repository, tmp_path / "agent", change=change)
    for leave_out, said in ((False, "would leave"), (True, "cannot be left out")):
        with pytest.raises(SecretsFound) as caught:
            exported(one, run, tmp_path / "no", leave_out=leave_out)
        told = str(caught.value) + caught.value.hint
        assert "a commit's message or author, line" in told and said in told and TOKEN not in told
    assert not (tmp_path / "no").exists()
    exported(one, run, tmp_path / "all", allow=True)


def is_inside(token: str, place: Path) -> bool:
    """Return whether the text is in a file below the directory, or in an object of its git
    repository."""
    words = ["git", "cat-file", "--batch-all-objects", "--batch"]
    objects = subprocess.run(words, cwd=place, capture_output=True, check=True).stdout
    contents = [path.read_bytes() for path in place.rglob("*") if path.is_file()]
    return any(token.encode() in content for content in [objects, *contents])


def test_copies_of_a_file_that_is_left_out_are_left_out(
    machine: Machine, repository: Path, tmp_path: Path
) -> None:
    """git lists only one path for files with equal content. Yet all copies of a file that is left
    out are left out and listed, also a staged one."""

    def change(workdir: Path) -> None:
        for name in ("a/.env", "backup/.env", "staged.txt"):
            (workdir / name).parent.mkdir(exist_ok=True)
            (workdir / name).write_text(f"TOKEN={TOKEN}\n")
        git(workdir, "add", "staged.txt")
        (workdir / "staged.txt").write_text("fine\n")

    one, two = machine("one"), machine("two")
    run = worked(one, repository, tmp_path / "agent", change=change)
    done = export(one, "task", ExportRequest(target=tmp_path / "yes", leave_out=True))
    assert set(done.manifest.left_out) >= {"a/.env", "backup/.env", "staged.txt"}
    imported(two, done.path, into=tmp_path / "here")
    assert (tmp_path / "here/greet.py").exists() and not is_inside(TOKEN, tmp_path / "here")
    everything = exported(one, run, tmp_path / "all", allow=True)
    imported(machine("three"), everything, into=tmp_path / "there")
    assert is_inside(TOKEN, tmp_path / "there")


@pytest.mark.parametrize("name", [".env", "worktree/key.txt"])
def test_a_secret_in_an_earlier_commit_cannot_be_left_out(
    machine: Machine, repository: Path, tmp_path: Path, name: str
) -> None:
    """The agent committed a secret, then removed it from git in another commit. The pack would
    contain both commits, so neither an export nor an upload leaves the machine."""

    def change(workdir: Path) -> None:
        (workdir / name).parent.mkdir(exist_ok=True)
        (workdir / name).write_text(f"TOKEN={TOKEN}\n")
        git(workdir, "add", ".")
        git(workdir, "commit", "-q", "-m", "oops")
        git(workdir, "rm", "-q", "--cached", name)
        (workdir / ".gitignore").write_text(".env\n")
        git(workdir, "add", ".gitignore")
        git(workdir, "commit", "-q", "-m", "better")
        if name != ".env":
            (workdir / name).write_text("fine\n")
            (workdir / "key.txt").write_text("fine too\n")

    one = machine("one")
    run = worked(one, repository, tmp_path / "agent", change=change)
    with pytest.raises(PerdureError, match="cannot be left out"):
        exported(one, run, tmp_path / "no", redact=True, leave_out=True)
    assert not (tmp_path / "no").exists()
    store = move.open_store((tmp_path / "store").as_uri())
    ways = SecretOptions(redact=True, leave_out=True)
    with pytest.raises(PerdureError, match="cannot be left out"):
        publish(one, store, run, one.store.checkpoints(run.id)[-1], ways)
    members = tmp_path / "store/members"
    assert not members.exists() or list(members.iterdir()) == []


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Manifest, dict[str, bytes]]:
    """Return a real capsule in pieces: its manifest, and its files by their names."""
    import os

    from perdure import wiring
    from perdure.config.files import load

    top = tmp_path_factory.mktemp("whole")
    repository = top / "repository"
    repository.mkdir()
    git(repository, "init", "-q", "-b", "main")
    (repository / "greet.py").write_text("hello\n")
    git(repository, "add", ".")
    git(repository, "commit", "-q", "-m", "first")
    own = {"HOME": str(top), "PATH": os.environ["PATH"]}
    engine = wiring.open_engine(load(own, top), own)
    path = exported(engine, worked(engine, repository, top / "agent"), top / "capsule")
    with path.open("rb") as file:
        capsule = Capsule(file, "it")
        return capsule.manifest, {
            file.name: b"".join(capsule.parts(file)) for file in capsule.manifest.files()
        }


def again(manifest: Manifest, files: dict[str, bytes], **changed: bytes) -> bytes:
    """Return a capsule with some files replaced and their digests updated, as an attacker would
    make it."""
    from msgspec.structs import replace as with_

    given = Given()
    content = {**files, **changed}

    def file(old: CapsuleFile) -> CapsuleFile:
        return given.file(old.name, content[old.name], 1 << 20)

    talks = tuple(
        with_(each, main=file(each.main), beside=tuple(map(file, each.beside)))
        for each in manifest.conversations
    )
    workdir = with_(manifest.workdir, packs=tuple(map(file, manifest.workdir.packs)))
    target = io.BytesIO()
    made = with_(
        manifest,
        story=file(manifest.story),
        journal=file(manifest.journal),
        conversations=talks,
        workdir=workdir,
    )
    container.write(target, made, given)
    return target.getvalue()


def try_in(engine: Engine, content: bytes, into: Path) -> bool:
    """Return whether the capsule was imported. An incomplete import fails the test, and so does any
    error that is not perdure's own."""
    capsule = Capsule(io.BytesIO(content), "it")
    try:
        import_run(engine, capsule.manifest, capsule, ImportRequest(source="it", into=into))
    except PerdureError as error:
        assert str(error)
        nothing_is_left(engine, into)
        return False
    return True


@settings(max_examples=25, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_hostile_story_is_read_or_refused(
    machine: Machine,
    whole: tuple[Manifest, dict[str, bytes]],
    tmp_path_factory: pytest.TempPathFactory,
    data: st.DataObject,
) -> None:
    """A capsule with matching digests has an arbitrary value anywhere in the run's record or
    journal. It is imported, or it is refused with a sentence and leaves nothing behind."""
    manifest, files = whole
    top = tmp_path_factory.mktemp("story")
    name = data.draw(st.sampled_from(["run.json", "journal.jsonl"]))
    lines = files[name].split(b"\n")
    at = data.draw(st.integers(0, len(lines) - 2))
    plain = json.loads(lines[at])
    place = data.draw(st.sampled_from(places(plain)))
    value = data.draw(HOSTILE)
    if place:
        node = plain
        for key in place[:-1]:
            node = node[key]
        node[place[-1]] = value
    else:
        plain = value
    lines[at] = json.dumps(plain).encode()
    engine = machine(f"m-{top.name}")
    into = top / "into"
    if try_in(engine, again(manifest, files, **{name: b"\n".join(lines)}), into):
        (row,) = engine.store.find()
        assert (
            row.state in (RunState.FAILED, RunState.CANCELLED, RunState.SUCCEEDED)
            and engine.store.claim("w", 1.0) is None
        )
        assert engine.store.get(row.id).spec.permissions in (Permissions.READ, Permissions.EDIT)
    engine.store.close()


@settings(max_examples=10, suppress_health_check=list(HealthCheck))
@given(at=st.floats(0, 0.999), flip=st.integers(1, 255))
def test_a_hostile_pack_is_refused(
    machine: Machine,
    whole: tuple[Manifest, dict[str, bytes]],
    tmp_path_factory: pytest.TempPathFactory,
    at: float,
    flip: int,
) -> None:
    """A git pack with any one byte changed, and the matching digest in the manifest, is refused by
    git's own checks. Nothing is left."""
    manifest, files = whole
    pack = bytearray(files["packs/0.pack"])
    pack[int(at * len(pack))] ^= flip
    top = tmp_path_factory.mktemp("pack")
    engine = machine(f"m-{top.name}")
    assert not try_in(engine, again(manifest, files, **{"packs/0.pack": bytes(pack)}), top / "into")
    engine.store.close()


def hostile(
    whole: tuple[Manifest, dict[str, bytes]],
    there: Path,
    files: dict[str, tuple[str, bytes]],
    **about: object,
) -> bytes:
    """Return a capsule whose checkpoint has these files, as an attacker would make it. `files`:
    mode and content by the name in the tree, with at most one folder, whose name may have slashes
    too. `about`: values to change in `checkpoint.json`."""
    manifest, others = whole
    there.mkdir()
    git(there, "init", "-q")

    def put(kind: str, content: bytes) -> str:
        words = ["git", "hash-object", "-t", kind, "-w", "--stdin", "--literally"]
        return (
            subprocess.run(words, cwd=there, input=content, capture_output=True, check=True)
            .stdout.decode()
            .strip()
        )

    def entry(mode: str, called: str, oid: str) -> bytes:
        return f"{mode} {called}\0".encode() + bytes.fromhex(oid)

    worktree = b""
    for name, (mode, content) in sorted(files.items()):
        folder, _, last = name.rpartition("/")
        made = entry(mode, last, put("blob", content))
        worktree += entry("40000", folder, put("tree", made)) if folder else made
    says = {
        "format": 1,
        "head": "",
        "branch": "",
        "empty": [],
        "left_out": [],
        "operation": {},
        "index": {},
        "modes": {},
        "umask": "022",
    }
    said = put("blob", json.dumps(says | about).encode())
    top = put(
        "tree",
        entry("100644", "checkpoint.json", said)
        + entry("40000", "worktree", put("tree", worktree)),
    )
    commit = put(
        "commit", f"tree {top}\nauthor a <a@b> 0 +0000\ncommitter a <a@b> 0 +0000\n\nx\n".encode()
    )
    packed = subprocess.run(
        ["git", "pack-objects", "--revs", "--stdout", "-q"],
        cwd=there,
        input=f"{commit}\n".encode(),
        capture_output=True,
        check=True,
    ).stdout
    workdir = replace(
        manifest.workdir, commit=commit, tips=(commit,), head="", base="", shallow=(), branch=""
    )
    return again(replace(manifest, workdir=workdir), others, **{"packs/0.pack": packed})


@pytest.mark.parametrize(
    "name", ["..", ".", ".git", ".GIT", "a/b", "git~1", ".g\u200cit", ".git ", ".git::$DATA"]
)
def test_a_tree_that_climbs_is_refused(
    machine: Machine, whole: tuple[Manifest, dict[str, bytes]], tmp_path: Path, name: str
) -> None:
    """A pack whose checkpoint has a name that leads out of the workdir, or into its git directory
    on some file system, is refused completely. One with an ordinary name is imported."""
    engine, blob = machine("two"), ("100644", b"gotcha\n")
    inner = "hooks" if "git" in name.lower() else "out.txt"
    evil = hostile(whole, tmp_path / "evil", {f"{name}/{inner}": blob})
    assert not try_in(engine, evil, tmp_path / "into")
    assert not (tmp_path / "out.txt").exists() and not list(tmp_path.rglob("out.txt"))
    fine = hostile(whole, tmp_path / "fine", {"folder/hooks": blob})
    assert try_in(engine, fine, tmp_path / "into")
    assert (tmp_path / "into/folder/hooks").read_bytes() == b"gotcha\n"


@pytest.mark.parametrize(
    "about",
    [
        {"operation": {"MERGE_HEAD": "A"}},
        {"operation": {"MERGE_HEAD": "\u00e9"}},
        {"operation": {"MERGE_HEAD": 7}},
        {"operation": []},
        {"modes": {"600": ["a\0b"]}},
        {"modes": {"700": ["\ud800/"]}},
        {"empty": ["a\0b"]},
        {"empty": ["\ud800"]},
        {"index": {"intent": ["\ud800"]}},
        {"index": {"skipped": ["a\0b"]}},
        {"index": {"stages": [["100644", "0" * 40, "1", "\ud800"]]}},
        {"index": {"stages": [["100644", "0" * 40, "1", 7]]}},
    ],
    ids=repr,
)
def test_a_hostile_description_is_refused(
    machine: Machine,
    whole: tuple[Manifest, dict[str, bytes]],
    tmp_path: Path,
    about: dict[str, Any],
) -> None:
    """A checkpoint has text that is not base64, or names that no file can have. It is refused with
    a sentence, and nothing is left."""
    evil = hostile(whole, tmp_path / "evil", {"a": ("100644", b"a\n")}, **about)
    assert not try_in(machine("two"), evil, tmp_path / "into")


@pytest.mark.parametrize("target", [b"", b"x\0y"])
def test_a_link_that_cannot_exist_is_refused(
    machine: Machine, whole: tuple[Manifest, dict[str, bytes]], tmp_path: Path, target: bytes
) -> None:
    """An import refuses a link whose target is empty or has a null character. It names the link,
    and leaves nothing behind."""
    evil = hostile(whole, tmp_path / "evil", {"a": ("100644", b"a\n"), "b": ("120000", target)})
    capsule, engine = Capsule(io.BytesIO(evil), "it"), machine("two")
    wanted = ImportRequest(source="it", into=tmp_path / "into")
    with pytest.raises(PerdureError, match="'b' could not be restored"):
        import_run(engine, capsule.manifest, capsule, wanted)
    nothing_is_left(engine, tmp_path / "into")


# --- the checkpoint store
# ------------------------------------------------------------------------------------------


def test_only_what_is_new_travels(machine: Machine, repository: Path, tmp_path: Path) -> None:
    """A second checkpoint of a run adds only its new parts: a longer conversation and one changed
    file are a few kilobytes. Another machine gets everything from both packs."""
    one, two = machine("one"), machine("two")
    big = TALK + b'{"type":"system","text":"' + bytes(range(97, 123)) * 40_000 + b'"}\n'
    run = worked(one, repository, tmp_path / "agent", talk=big)
    store = move.open_store((tmp_path / "store").as_uri())
    first = publish(one, store, run, one.store.checkpoints(run.id)[-1], SecretOptions())
    members = {path.name: path.stat().st_size for path in (tmp_path / "store/members").iterdir()}
    workdir = Path(run.workspace.path)
    (workdir / "greet.py").write_text("later\n")
    transcript = tmp_path / "agent/projects/x" / f"{SESSION}.jsonl"
    transcript.write_bytes(
        big + b'{"type":"user","message":{"role":"user","content":"more"},"uuid":"c"}\n'
    )
    driver = one.driver("claude")
    one.copies.take(driver, SESSION, transcript)
    checkpoint = replace(
        one.store.checkpoints(run.id)[-1],
        number=2,
        workdir=one.workspaces.checkpoints.save(run.workspace, 2),
        conversation=one.copies.parts(driver, SESSION),
    )
    one.store.add_checkpoint(checkpoint)
    second = publish(one, store, run, checkpoint, SecretOptions())
    new = [path for path in (tmp_path / "store/members").iterdir() if path.name not in members]
    assert len(second.workdir.packs) == 2 and second.workdir.packs[0] == first.workdir.packs[0]
    assert sum(path.stat().st_size for path in new) < 40_000
    move.move_from(
        two, "task", store.url, ImportRequest(source=store.url, into=tmp_path / "here"), over=True
    )
    assert prints(tmp_path / "here") == prints(workdir)
    assert two.copies.of("claude", SESSION).read_bytes() == transcript.read_bytes()


def test_several_runs_are_brought_out_by_one_process(machine: Machine) -> None:
    """While several attempts upload at the same time, perdure never runs two uploads of one run at
    once. Otherwise two manifests would have the same number, and one of them would be refused as if
    another machine had published it first."""

    class SupervisionResult:
        """Stub of a store. It is queried at the beginning of each upload, counts uploads of one run
        that overlap, and fails every upload."""

        def __init__(self) -> None:
            self.turn, self.inside, self.twice = threading.Lock(), Counter[str](), 0

        def checkpoints(self, run: str) -> list[object]:
            return [object()]

        def get(self, run: str) -> None:
            with self.turn:
                self.inside[run] += 1
                self.twice += self.inside[run] > 1
            time.sleep(0.001)
            with self.turn:
                self.inside[run] -= 1
            raise NotFound(f"{run} is not there")

    store = SupervisionResult()
    publishing = CheckpointPublisher(
        replace(machine("one"), store=cast(Any, store)), "memory://", SecretOptions()
    )

    def work(run: str) -> None:
        for _ in range(30):
            for _ in range(3):
                publishing.published(cast(Any, SimpleNamespace(run=run)))
            assert "is not there" in publishing.settle(run)

    with ThreadPoolExecutor(3) as threads:
        for each in [threads.submit(work, run) for run in ("a", "b", "c")]:
            each.result()
    assert store.twice == 0


def test_who_lost_its_place_publishes_nothing(
    machine: Machine, repository: Path, tmp_path: Path
) -> None:
    """After a take-over the first machine's checkpoints and attempts are refused, and the error
    names the machine that has the run. The first machine may take the run back as any other machine
    would."""
    one, two = machine("one"), machine("two")
    run = worked(one, repository, tmp_path / "agent")
    url = (tmp_path / "store").as_uri()
    store = move.open_store(url)
    checkpoint = one.store.checkpoints(run.id)[-1]
    publish(one, store, run, checkpoint, SecretOptions())
    publishing = CheckpointPublisher(one, url, SecretOptions())
    assert publishing.refused(run) == ""
    with pytest.raises(Conflict, match="may be running"):
        move.move_from(two, run.id, url, ImportRequest(source=url, into=tmp_path / "here"))
    move.move_from(two, run.id, url, ImportRequest(source=url, into=tmp_path / "here"), over=True)
    names = sorted(path.name for path in (tmp_path / "store").rglob("*.json"))
    with pytest.raises(OwnedElsewhere):
        publish(one, store, run, checkpoint, SecretOptions())
    assert "taken over by" in publishing.refused(run) and publishing.settle(run.id)
    assert sorted(path.name for path in (tmp_path / "store").rglob("*.json")) == names
    back = move.move_from(
        one,
        run.id,
        url,
        ImportRequest(source=url, into=tmp_path / "back", name="task-2"),
        over=True,
    )
    assert back.run.origin == run.id and CheckpointPublisher(two, url, SecretOptions()).refused(
        two.store.get("task")
    )


def test_who_loses_the_race_leaves_nothing_and_may_try_again(
    machine: Machine, repository: Path, tmp_path: Path
) -> None:
    """Two machines take over one run at the same moment. The slower one gets an error and has
    neither run nor workdir. With `--take-over` it then takes the run from the faster one."""
    one, two, three = machine("one"), machine("two"), machine("three")
    run = worked(one, repository, tmp_path / "agent")
    url, into = (tmp_path / "store").as_uri(), tmp_path / "slow"
    publish(one, move.open_store(url), run, one.store.checkpoints(run.id)[-1], SecretOptions())
    # The slower machine waits for the lock of its new workdir. At that moment it has read who owns
    # the run, but has not yet claimed the run.
    lock = two.workspaces.root / ".perdure/locks" / f"{two.workspaces.plan_new(into).id}.shelf.lock"
    lock.parent.mkdir(parents=True, mode=0o700)
    with lock.open("w") as file, ThreadPoolExecutor(1) as beside:
        fcntl.flock(file, fcntl.LOCK_EX)
        slower = beside.submit(
            move.move_from, two, run.id, url, ImportRequest(source=url, into=into), over=True
        )
        while not (into / ".git").exists():
            assert not slower.done(), slower.exception()
            time.sleep(0.01)
        move.move_from(
            three, run.id, url, ImportRequest(source=url, into=tmp_path / "quick"), over=True
        )
        fcntl.flock(file, fcntl.LOCK_UN)
        with pytest.raises(Conflict, match="another machine"):
            slower.result()
    assert list(two.store.find()) == [] and not into.exists()
    assert prints(tmp_path / "quick") == prints(Path(run.workspace.path))
    move.move_from(two, run.id, url, ImportRequest(source=url, into=into), over=True)
    assert prints(into) == prints(tmp_path / "quick") and CheckpointPublisher(
        three, url, SecretOptions()
    ).refused(three.store.get("task"))


def test_who_is_taken_over_brings_nothing_out_that_is_not_seen(
    machine: Machine, repository: Path, tmp_path: Path
) -> None:
    """While another machine is taking the run over, the machine that had it cannot publish. It gets
    an error, so it does not report work as saved that nobody would continue. If the take-over
    fails, it can publish again."""
    one, two = machine("one"), machine("two")
    run = worked(one, repository, tmp_path / "agent")
    url, into = (tmp_path / "store").as_uri(), tmp_path / "here"
    store, newest = move.open_store(url), one.store.checkpoints(run.id)[-1]
    publish(one, store, run, newest, SecretOptions())
    (tmp_path / "taken").mkdir()
    with pytest.raises(Conflict):
        move.move_from(
            two, run.id, url, ImportRequest(source=url, into=tmp_path / "taken"), over=True
        )
    publish(one, store, run, newest, SecretOptions())
    with pytest.raises(Conflict, match="may be running there"):
        move.move_from(two, run.id, url, ImportRequest(source=url, into=into))
    lock = two.workspaces.root / ".perdure/locks" / f"{two.workspaces.plan_new(into).id}.shelf.lock"
    lock.parent.mkdir(parents=True, mode=0o700)
    with lock.open("w") as file, ThreadPoolExecutor(1) as beside:
        fcntl.flock(file, fcntl.LOCK_EX)
        taking = beside.submit(
            move.move_from, two, run.id, url, ImportRequest(source=url, into=into), over=True
        )
        try:
            while not (into / ".git").exists():
                assert not taking.done(), taking.exception()
                time.sleep(0.01)
            with pytest.raises(OwnedElsewhere):
                publish(one, store, run, newest, SecretOptions())
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)
        taking.result()
    assert prints(into) == prints(Path(run.workspace.path))


def test_a_store_that_cannot_be_reached_stops_nobody(
    machine: Machine, repository: Path, tmp_path: Path
) -> None:
    """If the checkpoint store cannot be reached, attempts still start, and a sentence says what
    could not be uploaded."""
    one = machine("one")
    run = worked(one, repository, tmp_path / "agent")
    (tmp_path / "store").write_text("a file")
    publishing = CheckpointPublisher(one, (tmp_path / "store").as_uri(), SecretOptions())
    assert publishing.refused(run) == ""
    assert "cannot be used" in publishing.settle(run.id)
    shutil.rmtree(tmp_path / "agent")


def test_what_is_no_capsule_is_refused_by_the_command(
    machine: Machine, repository: Path, tmp_path: Path
) -> None:
    """`perdure import` of another kind of file, of a truncated capsule, from a pipe and of nothing
    gives a sentence and a hint, but no traceback. It makes nothing."""
    path = exported(
        machine("one"),
        worked(machine("one"), repository, tmp_path / "agent"),
        tmp_path / "task.capsule",
    )
    (tmp_path / "text").write_text("not a capsule\n" * 100)
    cut_off = path.read_bytes()[:-100]
    home = tmp_path / "two"
    home.mkdir()
    environ = {"HOME": str(home), "PATH": os.environ["PATH"]}

    def bring(content: bytes, *words: str) -> subprocess.CompletedProcess[bytes]:
        command = [sys.executable, "-m", "perdure", "import", *words]
        return subprocess.run(
            command, cwd=tmp_path, env=environ, input=content, capture_output=True, check=False
        )

    for word, sent, code in (("text", b"", 7), ("-", cut_off, 7), ("-", b"", 7), ("none", b"", 5)):
        done = bring(sent, word)
        told = done.stderr.decode()
        assert (
            done.returncode == code and told.startswith("perdure: ") and "Traceback" not in told
        ), told
        assert len(told.splitlines()) == 2
    assert not (tmp_path / "task").exists()
    whole = bring(path.read_bytes(), "-", "--json")
    assert whole.returncode == 0 and json.loads(whole.stdout)["workdir"] == str(
        tmp_path / "task"
    ), whole.stderr


def test_a_clone_is_cut_where_the_run_began(
    machine: Machine, repository: Path, tmp_path: Path
) -> None:
    """The agent commits before its first checkpoint. The uploaded changes are based on a commit
    that the repository has, so that a clone on another machine can import them. The same holds if
    the repository has got new commits and the clone is created again."""
    one = machine("one")
    began = git(repository, "rev-parse", "HEAD").strip()
    run = worked(one, repository, tmp_path / "home", backend="isolated")
    url = (tmp_path / "store").as_uri()
    assert run.workspace is not None
    manifest = move.move_to(one, run.id, url, SecretOptions(allow=True))
    assert manifest.workdir is not None and (manifest.workdir.base, manifest.workdir.shallow) == (
        began,
        (began,),
    )
    (repository / "later.txt").write_text("later")
    git(repository, "add", "later.txt")
    git(repository, "commit", "-q", "-m", "later")
    two = machine("two")
    wish = ImportRequest(source=url, name="task", spec=replace(run.spec, prompt=""))
    taken = move.move_from(two, run.id, url, wish).run
    assert (taken.spec, taken.scope, taken.id) == (run.spec, run.scope, run.id)
    assert (
        taken.workspace is not None
        and git(Path(taken.workspace.path), "log", "--format=%s").split("\n")[0] == "the agent's"
    )
    again = move.move_to(two, taken.id, url, SecretOptions(allow=True))
    assert again.workdir is not None and again.workdir.base == began


def test_only_the_end_of_an_attempt_is_all_of_it(
    machine: Machine, repository: Path, tmp_path: Path
) -> None:
    """`settled` means that nothing would be lost. It is not set if the last checkpoint was not
    taken at the end of the attempt, or leaves out work. Build output and pipes do not count as
    work."""
    one = machine("one")
    run = worked(one, repository, tmp_path / "agent")
    publishing = CheckpointPublisher(one, (tmp_path / "store").as_uri(), SecretOptions())
    assert run.workspace is not None
    place, number = Path(run.workspace.path), 1
    newest = one.store.checkpoints(run.id)[-1]
    newest = replace(
        newest,
        conversation=tuple(part for part in newest.conversation if "settings" not in part.name),
    )

    def settled(why: str) -> bool:
        nonlocal number
        number += 1
        one.store.add_checkpoint(
            replace(
                newest,
                number=number,
                why=why,
                workdir=one.workspaces.checkpoints.save(run.workspace, number),
            )
        )
        assert publishing.settle(run.id) == ""
        return publishing.settled(run.id)

    assert not settled("tool")
    os.mkfifo(place / "pipe")
    assert settled("end")
    (place / ".gitignore").write_text("*.log\nmodel.bin\nnode_modules/\n")
    (place / "node_modules").mkdir()
    (place / "node_modules/x").write_text("x")
    assert settled("end")
    with (place / "model.bin").open("wb") as file:
        file.truncate(11 << 20)
    assert not settled("end")


class Overtaken(CheckpointStore):
    """A store in which another machine takes over the run at the moment when a manifest is written."""

    def publish(self, run: str, term: int, number: int, manifest: Manifest) -> str:
        self.begin(run, Term(number=term + 1, owner="another", host="another", at=1))
        return CheckpointStore.publish(self, run, term, number, manifest)


def test_who_is_overtaken_while_it_publishes_knows_it(
    machine: Machine, repository: Path, tmp_path: Path
) -> None:
    """If another machine takes the run over just before the manifest is written, that machine has
    not read the manifest. So the checkpoint is not reported as saved."""
    one = machine("one")
    run = worked(one, repository, tmp_path / "agent")
    url = (tmp_path / "store").as_uri()
    store = move.open_store(url)
    with pytest.raises(OwnedElsewhere):
        publish(
            one,
            Overtaken(store.url, store.objects),
            run,
            one.store.checkpoints(run.id)[-1],
            SecretOptions(),
        )


def test_what_a_conversation_was_told_its_own_copy_says(
    machine: Machine, repository: Path, tmp_path: Path
) -> None:
    """If a checkpoint is uploaded after the run got newer instructions, its conversation does not
    contain them. So they do not count as given to the agent."""
    one, two = machine("one"), machine("two")
    run = worked(one, repository, tmp_path / "agent")
    store = move.open_store((tmp_path / "store").as_uri())
    session = one.store.session(SessionKey("claude", run.scope))
    assert session is not None
    run = one.store.update(run.id, "do more")
    one.store.put_session(replace(session, context_version=2))
    publish(one, store, run, one.store.checkpoints(run.id)[-1], SecretOptions())
    taken = move.move_from(
        two, run.id, store.url, ImportRequest(source=store.url, into=tmp_path / "here"), over=True
    ).run
    came = two.store.session(SessionKey("claude", taken.scope))
    assert came is not None and (came.context_version, taken.context_version) == (1, 2)
