"""Signed receipts: one that was changed, cut, replayed or signed by another key does not verify."""

from __future__ import annotations

import base64
import json
import random
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from perdure.cli import main
from perdure.engine.attestation import (
    PREDICATE,
    STATEMENT,
    Statement,
    Subject,
    signatures,
    statement_of,
)
from perdure.engine.attestation.signatures import Envelope, key_id, opened, signed
from perdure.engine.report import run_report
from perdure.errors import Conflict, NotFound, NotVerified, StoreError, UsageError
from perdure.forge.replies.sentences import MOST_RECEIPT, Account, comment
from perdure.model import (
    Attempt,
    Checkpoint,
    Context,
    Outcome,
    OutcomeKind,
    RunState,
    Saved,
    TaskRun,
    TaskSpec,
)

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
OTHER = Ed25519PrivateKey.from_private_bytes(bytes(32))
COMMIT, HEAD = "a" * 40, "b" * 40


def statement(run: str = "brisk-otter") -> Statement:
    """Return a statement about the second attempt of a run."""
    predicate = {
        "run": {"id": f"id-of-{run}", "name": run},
        "attempt": {"number": 2, "outcome": {"kind": "succeeded"}},
        "continuity": {"verdict": "continued", "reasons": ["ä" * 40]},
        "effects": [],
    }
    return Statement(subject=(Subject("HEAD", {"gitCommit": HEAD}),), predicate=predicate)


def keys(*among: Ed25519PrivateKey) -> dict[str, object]:
    """Return the public keys of these private keys, by key id."""
    return {key_id(each.public_key()): each.public_key() for each in among}


def verify(content: bytes, *among: Ed25519PrivateKey) -> Statement:
    """Return the statement of an envelope, verified with the public part of these keys (`KEY` if
    none is given)."""
    return opened(content, keys(*(among or (KEY,))))  # type: ignore[arg-type]


def test_what_is_signed_is_what_comes_out() -> None:
    """A statement is read back as it was signed. Another program can verify it by the DSSE and
    in-toto specifications alone."""
    content = signed(statement(), KEY)
    assert verify(content) == statement()
    envelope = json.loads(content)
    payload = base64.b64decode(envelope["payload"])
    kind = envelope["payloadType"].encode()
    text = b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)
    KEY.public_key().verify(base64.b64decode(envelope["signatures"][0]["sig"]), text)
    plain = json.loads(payload)
    assert (kind, plain["_type"]) == (b"application/vnd.in-toto+json", STATEMENT)
    assert (plain["predicateType"], plain["subject"][0]["digest"]) == (
        PREDICATE,
        {"gitCommit": HEAD},
    )


def test_a_changed_byte_fails() -> None:
    """Each of 400 random changes of an envelope (a byte changed, inserted or removed; two swapped)
    is refused with one sentence."""
    content = signed(statement(), KEY)
    chosen = random.Random(3)
    for number in range(400):
        at = chosen.randrange(len(content))
        byte = bytes([content[at] ^ chosen.randrange(1, 256)])
        changed = {
            0: content[:at] + byte + content[at + 1 :],
            1: content[:at] + byte + content[at:],
            2: content[:at] + content[at + 1 :],
            3: content[: at + 1] + content[at:],
        }[number % 4]
        assert changed != content
        with pytest.raises(NotVerified) as refused:
            verify(changed)
        assert str(refused.value) and "\n" not in str(refused.value), at


def test_every_cut_fails() -> None:
    """An envelope that ends too early is refused, wherever it ends. So is one with more data after
    it."""
    content = signed(statement(), KEY)
    for length in range(len(content)):
        with pytest.raises(NotVerified):
            verify(content[:length])
    for more in (b"\n", b" ", b"\0", content):
        with pytest.raises(NotVerified):
            verify(content + more)


def test_another_form_of_the_same_fails() -> None:
    """An envelope with extra blanks, another order of fields, a second signature, an unknown field,
    or other padding bits in its base64 is refused, although the signed bytes are the same."""
    content = signed(statement(), KEY)
    envelope = json.loads(content)
    twice = {**envelope, "signatures": envelope["signatures"] * 2}
    loose = envelope["signatures"][0]["sig"]
    assert loose.endswith("==")
    bits = chr(ord(loose[-3]) + 1) + "=="
    padded = {**envelope["signatures"][0], "sig": loose[:-3] + bits}
    others = [
        envelope | {"more": 1},
        dict(reversed(envelope.items())),
        twice,
        {**envelope, "signatures": []},
        {**envelope, "signatures": [padded]},
    ]
    texts = [json.dumps(each, separators=(",", ":")).encode() + b"\n" for each in others]
    for changed in [json.dumps(envelope).encode() + b"\n", b"\xef\xbb\xbf" + content, *texts]:
        with pytest.raises(NotVerified):
            verify(changed)


def test_another_key_is_named() -> None:
    """A statement that another key signed is refused, and the error names that key's id. It is also
    refused if its key id was replaced by the id of the trusted key."""
    content = signed(statement(), OTHER)
    with pytest.raises(NotVerified, match=f"names key '{key_id(OTHER.public_key())[:16]}'"):
        verify(content)
    forged = content.replace(key_id(OTHER.public_key()).encode(), key_id(KEY.public_key()).encode())
    with pytest.raises(NotVerified, match="was changed after it was signed"):
        verify(forged)
    assert verify(content, KEY, OTHER) == statement()
    key = key_id(OTHER.public_key()).encode()
    close = content.replace(key, key[:-1] + (b"0" if key[-1:] != b"0" else b"1"))
    with pytest.raises(NotVerified, match="was changed: its key id has the beginning"):
        verify(close, OTHER)


def test_signed_content_of_another_type_is_refused() -> None:
    """A valid signature of content that is no statement of perdure is refused."""
    other = Statement(subject=(), predicate_type="https://slsa.dev/provenance/v1", predicate={})
    with pytest.raises(NotVerified, match=r"of the type 'https://slsa.dev/provenance/v1'"):
        verify(signed(other, KEY))
    assert Envelope.__struct_config__.forbid_unknown_fields


def test_the_verb_verifies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`receipt verify` needs only the file and the key. A statement about another run or commit is
    reported as such. The exit code is 8 if anything does not hold."""
    receipt, key = tmp_path / "receipt.json", tmp_path / "pub.pem"
    receipt.write_bytes(signed(statement("calm-heron"), KEY))
    key.write_text(signatures.written(KEY.public_key()))
    words = ["receipt", "verify", str(receipt), "--key", str(key)]
    assert main.main([*words, "--run", "calm-heron", "--commit", HEAD]) == 0
    assert "verified: attempt 2 of calm-heron" in capsys.readouterr().out
    assert main.main([*words, "--run", "brisk-otter"]) == 8
    assert "about another run: calm-heron, and not brisk-otter" in capsys.readouterr().err
    assert main.main([*words, "--commit", COMMIT]) == 8
    assert f"about {HEAD}, and not about {COMMIT}" in capsys.readouterr().err
    receipt.write_bytes(receipt.read_bytes()[:-40])
    assert main.main(words) == 8
    assert "it is truncated" in capsys.readouterr().err
    key.write_text("no key")
    assert main.main(words) == 2


def test_a_statement_is_about_what_the_attempt_left() -> None:
    """The subject is HEAD and the newest checkpoint of the attempt. Prompts appear as digests. A
    running attempt has no statement."""
    ended = Outcome(kind=OutcomeKind.SUCCEEDED)
    spec = TaskSpec(agent="claude", prompt="the secret plan")
    run = TaskRun(
        id="r", name="brisk-otter", spec=spec, state=RunState.SUCCEEDED, created=1, updated=2
    )
    attempts = [
        Attempt(
            run="r", number=1, context_version=1, worker="w", started=1, ended=2, outcome=ended
        ),
        Attempt(run="r", number=2, context_version=1, worker="w", started=3),
    ]
    report = run_report(run, attempts, [Context(1, spec.prompt, 1)])
    saved = Saved(commit=COMMIT, ref="refs/x", git_dir="/x", head=HEAD)
    checkpoints = [Checkpoint(run="r", number=1, attempt=1, at=2, why="end", workdir=saved)]
    made = statement_of(report, checkpoints, 1, "edit")
    assert [(each.name, each.digest) for each in made.subject] == [
        ("HEAD", {"gitCommit": HEAD}),
        ("checkpoint 1", {"gitCommit": COMMIT}),
    ]
    assert "secret plan" not in json.dumps(made.predicate)
    report.workspace.repo = "/srv/\udcff"
    odd = statement_of(report, checkpoints, 1, "edit")
    assert verify(signed(odd, KEY)).predicate["run"]["repository"] == "/srv/?"
    assert (made.run, made.attempt) == (("r", "brisk-otter"), 1)
    assert len(statement_of(report, [], 1, "edit").subject[0].digest["sha256"]) == 64
    with pytest.raises(NotFound, match="attempt 2 of brisk-otter has not ended"):
        statement_of(report, checkpoints, 0, "edit")
    with pytest.raises(NotFound, match="brisk-otter has no attempt 7"):
        statement_of(report, checkpoints, 7, "edit")


def test_the_key_of_a_host(tmp_path: Path) -> None:
    """A host has one key, which only its owner can read. A key file that others can read is
    refused, as is an invalid key. Trusted keys have names."""
    with pytest.raises(NotFound, match="no signing key"):
        signatures.load(tmp_path)
    made = signatures.make(tmp_path)
    path = tmp_path / "keys" / "host.pem"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [each.name for each in path.parent.iterdir()] == ["host.pem"]
    assert key_id(signatures.load(tmp_path).public_key()) == key_id(made)
    with pytest.raises(Conflict):
        signatures.make(tmp_path)
    path.chmod(0o640)
    with pytest.raises(StoreError, match="can be read by others"):
        signatures.load(tmp_path)
    path.chmod(0o600)
    with pytest.raises(UsageError, match="private key; expected a public one"):
        signatures.read(path)
    signatures.trust(tmp_path, OTHER.public_key(), "ci")
    signatures.trust(tmp_path, OTHER.public_key(), "ci")
    assert sorted(name for name, _ in signatures.trusted(tmp_path).values()) == ["ci", "this host"]
    with pytest.raises(Conflict, match="another key is trusted as ci"):
        signatures.trust(tmp_path, KEY.public_key(), "ci")
    with pytest.raises(UsageError):
        signatures.trust(tmp_path, KEY.public_key(), "../../x")
    path.write_bytes(b"-----BEGIN PRIVATE KEY-----\n")
    with pytest.raises(StoreError, match="does not hold an ed25519 key"):
        signatures.load(tmp_path)


def test_a_receipt_in_a_comment() -> None:
    """The comment on a forge has the receipt on a line of its own, in the form that the verifier
    reads. A receipt that is too long is left out, and the comment says so."""
    spec = TaskSpec(agent="claude", prompt="p")
    run = TaskRun(
        id="r", name="brisk-otter", spec=spec, state=RunState.SUCCEEDED, created=1, updated=2
    )
    content = signed(statement(), KEY).decode()
    account = Account(rule="fixer", run=run, attempts=[], receipt=content)
    lines = comment(account, "<!-- m -->").splitlines(keepends=True)
    found = [line for line in lines if line.startswith('{"payloadType"')]
    assert [verify(line.encode()) for line in found] == [statement()]
    long = Account(rule="fixer", run=run, attempts=[], receipt="x" * (MOST_RECEIPT + 1))
    assert "too long for a comment" in comment(long, "<!-- m -->")
