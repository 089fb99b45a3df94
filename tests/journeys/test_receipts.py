"""Receipts of a real agent's attempt, signed on one host and verified in a home that shares nothing
with it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from perdure.agents.rehearsal import Rehearsal
from tests import spread
from tests.journeys.stage import Stage

pytestmark = pytest.mark.journey

WRITES = """by history
run echo one > one.txt; git push ../nowhere main
---
say The file is written.
"""


def test_a_receipt_leaves_the_machine() -> None:
    """A host without a key says how to make one. After that, the receipt of a real attempt is
    attached to its commit automatically. In another home it can be verified with only the public
    key."""
    directory = Path(tempfile.mkdtemp(prefix="pr"))
    one = Stage(directory, "claude", Rehearsal(WRITES).start(), {"PERDURE_RECEIPTS": "note"})
    try:
        none = one.perdure("key", "show")
        assert (none.code, "perdure key make" in none.err) == (5, True)
        made = one.perdure("key", "make")
        assert (made.code, "PRIVATE" in made.out + made.err) == (0, False)
        words = ("--agent", "claude", "--permissions", "full", "--name", "task")
        assert one.perdure("run", *words, prompt="Write one.txt, quicksilver").code == 0
        signed = one.perdure("receipt", "task", "--format", "intoto")
        assert (signed.code, signed.err) == (0, "")
        statement = one.perdure("receipt", "task").json
        head = git(one, "rev-parse", "main")
        noted = git(one, "notes", "--ref=perdure", "show", head)
        receipt, key = directory / "receipt.json", directory / "host.pub"
        receipt.write_text(signed.out)
        key.write_text(made.out)
    finally:
        one.close()
        one.rehearsal.stop()
    try:
        assert noted + "\n" == signed.out
        predicate = statement["predicate"]
        assert statement["subject"][0] == {"name": "HEAD", "digest": {"gitCommit": head}}
        assert predicate["attempt"]["outcome"]["kind"] == "succeeded"
        assert predicate["continuity"]["verdict"] == "fresh"
        effects = [(each["kind"], each["outcome"]) for each in predicate["effects"]]
        assert effects == [("push", "unknown")]
        assert "quicksilver" not in signed.out + json.dumps(statement)
        elsewhere = ["receipt", "verify", str(receipt), "--key", str(key), "--commit", head]
        spread.remove(one.home)
        done = away(directory, *elsewhere, "--run", "task")
        assert (done.returncode, done.stdout.startswith("verified: attempt 1 of task")) == (0, True)
        assert not (directory / "away" / ".local").exists()
        assert away(directory, *elsewhere, "--run", "other").returncode == 8
        receipt.write_text(signed.out.replace("payload", "paylaod", 1))
        changed = away(directory, *elsewhere)
        assert (changed.returncode, changed.stderr.count("\n")) == (8, 1)
        receipt.write_text(signed.out)
        files = (str(receipt), str(key), str(directory / "made"))
        own_name = ["unshare", "--map-root-user", "--uts", sys.executable, "-c", MUTATIONS, *files]
        mutated = elsewhere_run(directory, own_name)
        lines = mutated.stdout.splitlines()
        assert lines[:200] == ["8 True"] * 200
        assert lines[-1] == "0" and lines[200].startswith("verified: attempt 1 of task")
        sentences = [each for each in mutated.stderr.splitlines() if each.startswith("perdure: ")]
        assert len(sentences) == 200, "one each"
        key.write_text(away(directory, "key", "make").stdout)
        other = away(directory, *elsewhere)
        assert (other.returncode, "as its signer; the given key is" in other.stderr) == (8, True)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


MUTATIONS = """
import random, socket, sys
from pathlib import Path
from perdure.cli import main
socket.sethostname("another-machine")
receipt, key, made = map(Path, sys.argv[1:])
content, chosen = receipt.read_bytes(), random.Random(14)
words = ["receipt", "verify", str(made), "--key", str(key)]
for number in range(200):
    at = chosen.randrange(len(content))
    byte = bytes([content[at] ^ chosen.randrange(1, 256)])
    end = {0: content[at + 1 :], 1: content[at:], 2: content[at + 2 :], 3: b""}[number % 4]
    made.write_bytes(content[:at] + byte * (number % 4 < 2) + end)
    print(main.main(words), made.read_bytes() != content)
made.write_bytes(content)
print(main.main(words))
"""
"""A script that damages a receipt in four ways, 50 times each: it changes a byte, inserts one,
removes two, or cuts off the end."""


def git(one: Stage, *words: str) -> str:
    """Return the output of git in the stage's repository."""
    found = subprocess.run(
        ["git", *words], cwd=one.repo, env=one.environ, capture_output=True, text=True, check=True
    )
    return found.stdout.rstrip("\n")


def away(directory: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run perdure with an empty home, and return its result."""
    return elsewhere_run(directory, [sys.executable, "-m", "perdure", *words])


def elsewhere_run(directory: Path, command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a program with another home than the one in which the receipt was signed, and return its
    result."""
    home = directory / "away"
    home.mkdir(exist_ok=True)
    environ = {"PATH": os.environ["PATH"], "HOME": str(home), "LANG": "C.UTF-8"}
    return subprocess.run(
        command,
        cwd=home,
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )
