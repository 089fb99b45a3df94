"""Threads that read the same type for the first time at the same moment."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import perdure

READERS = {
    "dataclass": "@dataclasses.dataclass(frozen=True)\nclass {}:",
    "struct": "class {}(msgspec.Struct):",
}
RACE = """
import sys, threading, types
from perdure.model.codec import decode

FIELDS = "".join(f"\\n    f{number}: int = 0" for number in range(10))
TEXT = '{"inner": {"f1": 3, "f9": 3, "new": 1}, "f9": 3, "more": [{}, {"f9": 2}], "f7": 2}'
head = sys.argv[1]
sys.setswitchinterval(1e-6)
for number in range(300):
    module = types.ModuleType(f"shapes{number}")
    sys.modules[module.__name__] = module
    inner, outer = head.format("Inner"), head.format("Outer")
    outer += f"\\n    inner: Inner{FIELDS}\\n    more: 'list[Inner] | None' = None"
    exec(f"import dataclasses, msgspec\\n{inner}{FIELDS}\\n{outer}", vars(module))
    gate, read = threading.Barrier(8), []

    def go():
        gate.wait()
        read.append(decode(TEXT, module.Outer))

    threads = [threading.Thread(target=go) for _ in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert [(each.inner.f9, each.more[1].f9, each.f7) for each in read] == [(3, 2, 2)] * 8, read
print("all read")
"""


@pytest.mark.parametrize("kind", READERS)
def test_a_type_that_several_threads_read_first(kind: str) -> None:
    """Eight threads read a type for the first time, three hundred times, and each gets the complete
    type. (With msgspec alone the process ends with SIGSEGV after a few rounds.)"""
    ended = subprocess.run(
        [sys.executable, "-c", RACE, READERS[kind]], capture_output=True, text=True, timeout=300
    )
    assert (ended.returncode, ended.stdout) == (0, "all read\n"), ended.stderr


def test_no_room_reads_a_type_another_way() -> None:
    """Every type that perdure reads with msgspec is passed through `resolved` first. A call without
    a type does not need this."""
    found = []
    for path in Path(perdure.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Call) and (kind := _read_as(node)) is not None:
                found.append(
                    (
                        path.name,
                        node.lineno,
                        ast.unparse(kind).startswith("resolved(") or path.name == "codec.py",
                    )
                )
    assert len(found) >= 12
    assert [(name, line) for name, line, good in found if not good] == []


def _read_as(call: ast.Call) -> ast.expr | None:
    """Return the type that a call passes to msgspec, or None."""
    words = ast.unparse(call.func)
    if not words.startswith("msgspec."):
        return None
    by_name = {each.arg: each.value for each in call.keywords}
    match words.rpartition(".")[2]:
        case "convert":
            return by_name.get("type") or call.args[1]
        case "decode":
            return by_name.get("type")
        case "Decoder":
            return by_name.get("type") or (call.args[0] if call.args else None)
    return None
