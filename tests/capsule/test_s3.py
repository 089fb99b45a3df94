"""The checkpoint store over HTTP in the S3 dialect. `test_objects` tests the same with a directory
and with memory."""

from __future__ import annotations

import pytest

from perdure.capsule.container import frame
from perdure.capsule.objects import Term, open_store
from perdure.errors import CapsuleError, Conflict, NotFound
from tests.capsule.making import Given, manifest
from tests.servers.s3 import bucket

RUN = "0" * 32


def test_a_checkpoint_comes_back_from_s3(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts, manifests and terms are uploaded and downloaded over HTTP. Only one of two machines
    can begin a term. A missing object is not found."""
    with bucket() as kept:
        for name, value in kept.environ().items():
            monkeypatch.setenv(name, value)
        store = open_store(f"{kept.url}/some/where")
        assert store.runs() == [] and store.term(RUN) is None
        with pytest.raises(NotFound):
            store.newest(RUN)
        given = Given()
        made = manifest(given)
        for file in made.files():
            for part, content in zip(file.parts, given.parts(file), strict=True):
                store.put(part, frame(content))
                assert store.has(part)
        store.begin(RUN, Term(number=1, owner="a", at=1))
        with pytest.raises(Conflict):
            store.begin(RUN, Term(number=1, owner="b", at=1))
        store.publish(RUN, 1, 1, made)
        assert store.runs() == [RUN] and store.term(RUN) == Term(number=1, owner="a", at=1)
        assert store.newest(RUN) == ("000001-00000001.json", made)
        assert b"".join(store.parts(made.conversations[0].main)) == b'{"type":"user"}\n' * 300
        assert all(name.startswith("some/where/") for name in kept.names())


def test_a_write_whose_answer_was_lost_is_known_as_ones_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """If the answer to a write is lost, the client writes again and finds its own object, which is
    no conflict. Another machine's object is a conflict."""
    with bucket() as kept:
        for name, value in kept.environ().items():
            monkeypatch.setenv(name, value)
        store, term, made = open_store(kept.url), Term(number=1, owner="a", at=1), manifest(Given())
        kept.lose = 1
        store.begin(RUN, term)
        kept.lose = 1
        store.publish(RUN, 1, 1, made)
        assert kept.lose == 0 and store.term(RUN) == term and store.newest(RUN)[1] == made
        for lose in (0, 1):
            kept.lose = lose
            with pytest.raises(Conflict):
                open_store(kept.url).begin(RUN, term)
            with pytest.raises(Conflict):
                store.publish(RUN, 1, 1, manifest(Given(), number=2))


def test_without_credentials_s3_is_told_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """If S3 refuses access, the error names the store and gives advice."""
    with bucket() as kept:
        for name, value in {**kept.environ(), "AWS_ACCESS_KEY_ID": "nobody"}.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(CapsuleError, match="cannot be used"):
            open_store(kept.url).runs()
