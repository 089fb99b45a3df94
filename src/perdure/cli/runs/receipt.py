"""`receipt` and `key`: print the facts about an attempt as a statement, which may be signed, and
manage the keys for signatures."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from perdure.cli.compose import open_to_read, settings
from perdure.cli.text import clean, clock, one_line
from perdure.errors import NotVerified, UsageError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    from perdure.engine.attestation import Statement

VERIFY = "verify"


def receipt_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "what", nargs="+", help="the run's name, id or key; or verify FILE (-: standard input)"
    )
    parser.add_argument(
        "--attempt", type=int, default=0, help="which attempt (default: the newest)"
    )
    parser.add_argument(
        "--format",
        choices=["json", "intoto"],
        default="json",
        help="json (default): the plain statement; intoto: signed, in a DSSE envelope",
    )
    parser.add_argument(
        "--note",
        action="store_true",
        help="also attach it, signed, as a git note to the attempt's commit (refs/notes/perdure)",
    )
    parser.add_argument(
        "--key",
        type=Path,
        metavar="FILE",
        help="for verify: the signer's public key (default: the trusted keys of this host)",
    )
    parser.add_argument(
        "--run",
        default="",
        metavar="NAME",
        help="for verify: fail unless the receipt is about this run",
    )
    parser.add_argument(
        "--commit",
        default="",
        metavar="ID",
        help="for verify: fail unless the receipt is about this commit (its full id)",
    )
    parser.add_argument("--json", action="store_true", help="for verify: print the statement")


def receipt_verb(arguments: argparse.Namespace) -> int:
    if arguments.what[0] == VERIFY and len(arguments.what) == 2:
        return _verify(arguments)
    if len(arguments.what) != 1 or arguments.what[0] == VERIFY:
        raise UsageError(
            "expected one run, or verify and one file", "perdure receipt verify FILE --key PUB"
        )
    return _print(arguments)


def _print(arguments: argparse.Namespace) -> int:
    from perdure.engine.attestation.attachment import repository_of, statement_in

    chosen = settings()
    store = open_to_read(chosen)
    run = store.get(arguments.what[0])
    statement = statement_in(store, run, arguments.attempt)
    if arguments.format == "json" and not arguments.note:
        print(_readable(statement))
        return 0
    from perdure.engine.attestation import attachment, signatures

    content = signatures.signed(statement, signatures.load(chosen.state))
    if arguments.note:
        commit = attachment.attach(repository_of(run), statement, content)
        print(f"attached to commit {commit} as a note of {attachment.REF}", file=sys.stderr)
    if arguments.format == "json":
        print(_readable(statement))
    else:
        sys.stdout.write(content.decode())
    return 0


def _readable(statement: Statement) -> str:
    import msgspec

    return json.dumps(msgspec.to_builtins(statement), indent=2, ensure_ascii=False)


def _verify(arguments: argparse.Namespace) -> int:
    from perdure.engine.attestation import signatures

    signatures.require()
    content = _content(arguments.what[1])
    keys = _keys(arguments.key)
    public_keys = {each: key for each, (_, key) in keys.items()}
    statement = signatures.opened(content, public_keys)
    _expected(statement, arguments.run, arguments.commit)
    if arguments.json:
        print(_readable(statement))
        return 0
    run_id, name = statement.run
    print(f"verified: attempt {statement.attempt} of {one_line(name, 80)} ({one_line(run_id, 40)})")
    for subject in statement.subject:
        digests = ", ".join(f"{kind}:{value}" for kind, value in subject.digest.items())
        print(f"  {one_line(subject.name, 40):12} {one_line(digests, 120)}")
    for label, text in _main_facts(statement.predicate):
        print(f"  {label:12} {one_line(text, 160)}")
    return 0


def _main_facts(predicate: Mapping[str, object]) -> list[tuple[str, str]]:
    """Return the main facts of a statement, as pairs of label and text. They are shown as the
    signer wrote them."""
    continuity, work = predicate.get("continuity"), predicate.get("work")
    attempt = predicate.get("attempt")
    outcome = attempt.get("outcome") if isinstance(attempt, dict) else None
    found = []
    if isinstance(outcome, dict):
        found.append(("outcome", str(outcome.get("kind"))))
    if isinstance(continuity, dict):
        found.append(("continuity", str(continuity.get("verdict"))))
    if isinstance(work, dict):
        found.append(("work", str(work.get("verdict"))))
    effects = predicate.get("effects")
    if isinstance(effects, list):
        found.append(("effects", str(len(effects))))
    ended = attempt.get("ended") if isinstance(attempt, dict) else None
    if isinstance(ended, int) and 0 < ended < 1 << 44:
        found.append(("ended", clock(ended)))
    return found


def _expected(statement: Statement, run: str, commit: str) -> None:
    """Raise NotVerified if the statement is about another run or commit. An empty `run` or `commit`
    means any."""
    if run and run not in statement.run:
        name = one_line(statement.run[1] or statement.run[0], 80)
        raise NotVerified(
            f"the signature is valid, but the receipt is about another run: {name}, and not {run}"
        )
    commits = [each.digest.get("gitCommit", "") for each in statement.subject]
    if commit and commit.lower() not in commits:
        about = ", ".join(one_line(each, 64) for each in filter(None, commits)) or "no commit"
        raise NotVerified(
            f"the signature is valid, but the receipt is about {about}, and not about {commit}"
        )


def _content(name: str) -> bytes:
    from perdure.engine.attestation.signatures import LONGEST_ENVELOPE

    try:
        if name == "-":
            return sys.stdin.buffer.read(LONGEST_ENVELOPE + 1)
        with Path(name).open("rb") as file:
            return file.read(LONGEST_ENVELOPE + 1)
    except OSError as error:
        raise UsageError(f"{name} cannot be read: {error.strerror}") from None


def _keys(given: Path | None) -> dict[str, tuple[str, Ed25519PublicKey]]:
    """Return the trusted keys by their ids. If a key file is `given`, only the key in it is
    trusted, and nothing else on this host is read, not even the state directory."""
    from perdure.engine.attestation import signatures
    from perdure.engine.attestation.signatures import key_id

    if given is not None:
        key = signatures.read(given)
        return {key_id(key): (str(given), key)}
    return signatures.trusted(settings().state)


def key_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "what",
        nargs="?",
        choices=["show", "make", "trust", "ls"],
        default="show",
        help="show (default): print the public key; make: create a key; trust: trust the key in "
        "FILE; ls: list the trusted keys",
    )
    parser.add_argument("file", nargs="?", type=Path, help="for trust: a public key in PEM")
    parser.add_argument(
        "--name",
        default="",
        help="for trust: name of the key's owner (default: the name of the file)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def key_verb(arguments: argparse.Namespace) -> int:
    from perdure.engine.attestation import signatures
    from perdure.engine.attestation.signatures import key_id

    if (arguments.what == "trust") != (arguments.file is not None):
        raise UsageError(
            "trust needs one file; the other actions take none", "perdure key trust FILE"
        )
    state = settings().state
    if arguments.what == "trust":
        key = signatures.read(arguments.file)
        name = arguments.name or arguments.file.stem
        signatures.trust(state, key, name)
        print(f"trusted as {clean(name)}: key {key_id(key)[:16]}")
        return 0
    if arguments.what == "ls":
        return _list(signatures.trusted(state), arguments.json)
    if arguments.what == "make":
        own = signatures.make(state)
    else:
        own = signatures.load(state).public_key()
    if arguments.json:
        shown = {"schema_version": 1, "id": key_id(own), "public": signatures.written(own)}
        print(json.dumps(shown, indent=2))
        return 0
    sys.stdout.write(signatures.written(own))
    print(f"key {key_id(own)}", file=sys.stderr)
    return 0


def _list(keys: dict[str, tuple[str, Ed25519PublicKey]], as_json: bool) -> int:
    from perdure.cli.runs.ls import table

    if as_json:
        rows = [{"id": each, "name": name} for each, (name, _) in keys.items()]
        print(json.dumps({"schema_version": 1, "keys": rows}, indent=2))
        return 0
    table(("NAME", "KEY"), [(clean(name), each) for each, (name, _) in keys.items()])
    return 0
