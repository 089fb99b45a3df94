"""The checkpoint store: a published checkpoint is complete, and only one of two machines may
publish."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from obstore.store import LocalStore, MemoryStore

from perdure.capsule.container import frame
from perdure.capsule.objects import CheckpointStore, DirectBucket, Term, open_store
from perdure.errors import CapsuleError, Conflict, NotFound, PerdureError, UsageError
from tests.capsule.making import Given, manifest

RUN = "0" * 32


@pytest.fixture(params=["directory", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[CheckpointStore]:
    """Make a store: a directory, or obstore's own store in memory, which behaves like those of the
    clouds."""
    yield CheckpointStore(
        "store",
        DirectBucket(
            LocalStore(tmp_path / "store", mkdir=True)
            if request.param == "directory"
            else MemoryStore()
        ),
    )


def test_a_published_checkpoint_comes_back(store: CheckpointStore) -> None:
    """The parts are written first, then the manifest. It is found as the run's newest, and every
    file is read back and verified."""
    given = Given()
    made = manifest(given)
    for file in made.files():
        for part, content in zip(file.parts, given.parts(file), strict=True):
            store.put(part, frame(content))
            assert store.has(part)
    store.publish(RUN, 1, 1, made)
    assert store.runs() == [RUN]
    name, found = store.newest(RUN)
    assert (name, found) == ("000001-00000001.json", made)
    assert b"".join(store.parts(found.conversations[0].main)) == b'{"type":"user"}\n' * 300


def test_a_part_that_is_not_there_or_was_changed_is_noticed(store: CheckpointStore) -> None:
    """If a store has lost or swapped an object, the error names the store, and nothing is used."""
    given = Given()
    file = given.file("main", b"one")
    with pytest.raises(CapsuleError, match="missing"):
        list(store.parts(file))
    store.put(file.parts[0], frame(b"two"))
    with pytest.raises(CapsuleError, match="changed or damaged"):
        list(store.parts(file))


def test_of_many_machines_one_begins_a_term(store: CheckpointStore) -> None:
    """Eight machines take a run over at the same moment. One gets the term, and all others get an
    error that another machine was faster."""
    store.begin(RUN, Term(number=1, owner="a", at=1))
    won: list[str] = []
    lost: list[Conflict] = []

    def take(owner: str) -> None:
        try:
            store.begin(RUN, Term(number=2, owner=owner, at=2))
            won.append(owner)
        except Conflict as conflict:
            lost.append(conflict)

    threads = [threading.Thread(target=take, args=(str(each),)) for each in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1 and len(lost) == 7
    assert store.term(RUN) == Term(number=2, owner=won[0], at=2)


def test_a_term_of_an_older_perdure_is_read(tmp_path: Path) -> None:
    """Terms stay in a store for years. A field that is no longer written (`after`) does not prevent
    a machine from reading a term or beginning the next one."""
    place = tmp_path / "s" / "runs" / RUN / "terms" / "000001.json"
    place.parent.mkdir(parents=True)
    place.write_bytes(
        b'{"format":1,"number":1,"owner":"a","host":"h","at":1,"after":"000001-00000007.json","token":"%s"}'
        % (b"0" * 32)
    )
    store = open_store((tmp_path / "s").as_uri())
    found = store.term(RUN)
    assert found == Term(number=1, owner="a", host="h", at=1)
    store.begin(RUN, Term(number=2, owner="b", at=2))
    assert store.term(RUN) == Term(number=2, owner="b", at=2)


def test_a_late_manifest_hides_nothing(store: CheckpointStore) -> None:
    """A machine that has lost its term may still write a manifest, but that manifest never counts
    as newer than the next machine's."""
    ours, late = manifest(Given(), number=1), manifest(Given(), number=900)
    store.publish(RUN, 2, 1, ours)
    store.publish(RUN, 1, 900, late)
    assert store.newest(RUN) == ("000002-00000001.json", ours)
    with pytest.raises(Conflict):
        store.publish(RUN, 2, 1, late)


def test_a_run_that_is_not_there_is_not_found(store: CheckpointStore) -> None:
    """An empty store has no runs and no terms, and a sentence says so."""
    assert store.runs() == [] and store.term(RUN) is None
    with pytest.raises(NotFound):
        store.newest(RUN)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b'{"number": "x"}',
        b"[" * 9000,
        b"x" * (1 << 20),
        msgspec.json.encode({"format": 1}),
    ],
)
def test_a_strange_object_is_a_sentence(tmp_path: Path, content: bytes) -> None:
    """An object that is neither a term nor a manifest, stored where one is expected, gives an error
    with a sentence."""
    store = open_store((tmp_path / "s").as_uri())
    for name in ("terms/000001.json", "000001-00000001.json"):
        place = tmp_path / "s" / "runs" / RUN / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
    for look in (store.term, store.newest):
        with pytest.raises(PerdureError):
            look(RUN)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "x",
        "http://h/x",
        "file://x",
        "s3://",
        "s3://key:secret@bucket/x",
        "s3://b/x?token=1",
        "file:///a b\n",
        "az:",
    ],
)
def test_what_is_no_store_is_refused(url: str) -> None:
    """Other schemes, relative directories and credentials in a URL are refused, and no secret is
    repeated."""
    with pytest.raises(UsageError) as caught:
        open_store(url)
    assert "secret" not in str(caught.value)
