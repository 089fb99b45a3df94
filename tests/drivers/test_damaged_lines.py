"""Damaged lines in the middle of a transcript are found for every CLI, and nothing that a CLI
writes is reported as damaged. The tests read recordings of the CLIs and start no process."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from perdure.agents import registry
from perdure.agents.transcripts import snapshot
from perdure.engine.attempt.baseline import Baseline, damage_of
from perdure.model import Snapshot
from tests.mending.corpus import IDS, Recording

AGENTS = pytest.mark.parametrize("agent", [*IDS])


def zeros(line: bytes) -> bytes:
    return b"\0" * len(line)


def partly_zeros(line: bytes) -> bytes:
    return line[:20] + b"\0" * 20 + line[40:]


def not_utf8(line: bytes) -> bytes:
    return line.replace(b"tool-one", b"tool\xffone")


def cut_off(line: bytes) -> bytes:
    return line[:-20]


def glued(line: bytes) -> bytes:
    return line + line


def no_object(line: bytes) -> bytes:
    return b"null"


def without_type(line: bytes) -> bytes:
    return re.sub(rb'"(type|data|payload|message)":', b'"x":', line)


def one_bit_of_a_key(line: bytes) -> bytes:
    return line.replace(b'"type":', b'"tipe":')


HARMS = (
    zeros,
    partly_zeros,
    not_utf8,
    cut_off,
    glued,
    no_object,
    without_type,
    one_bit_of_a_key,
)


def lines_of(agent: str) -> tuple[list[bytes], int]:
    """Return the lines of a recording, and the index of the line with a tool's result."""
    lines = Recording(agent).content.split(b"\n")
    return lines, next(at for at, each in enumerate(lines) if b"tool-one" in each)


@AGENTS
def test_a_recording_has_no_damaged_line(agent: str) -> None:
    """No line of a transcript is reported as damaged if the CLI wrote it."""
    assert not registry.load(agent).damaged(Recording(agent).content)


@AGENTS
@pytest.mark.parametrize("harm", HARMS)
def test_a_damaged_line_is_found(agent: str, harm: Callable[[bytes], bytes]) -> None:
    """Only the damaged line is reported, by its start and end offset."""
    lines, at = lines_of(agent)
    lines[at] = harm(lines[at])
    start = sum(len(line) + 1 for line in lines[:at])
    found = registry.load(agent).damaged(b"\n".join(lines))
    assert found == ((start, start + len(lines[at])),)


@AGENTS
def test_the_end_of_a_transcript(agent: str) -> None:
    """An incomplete last record, as a kill leaves it, is not damage. Zero bytes are damage, because
    no kill leaves them."""
    driver, content = registry.load(agent), Recording(agent).content
    assert not driver.damaged(content + b'{"type":"us')
    assert driver.damaged(content + b'{"ty\0\0') == ((len(content), len(content) + 6),)
    assert driver.damaged(content + b"\0" * 99) == ((len(content), len(content) + 99),)


def look(path: Path, content: bytes) -> Snapshot:
    path.write_bytes(content)
    found = snapshot(registry.load("claude"), path)
    assert found is not None
    return found


def test_what_no_receipt_has_told_of(tmp_path: Path) -> None:
    """An incomplete record is not damage if an earlier snapshot of the file ended with it. A
    damaged line counts until an attempt has continued after it. A damaged line that is found later
    counts again."""
    driver, whole = registry.load("claude"), Recording("claude").content
    torn = look(tmp_path / "main", whole + b'{"type":"us')
    after = whole + b'{"type":"us\n' + whole
    assert damage_of(driver, after, Baseline()) == 1
    assert damage_of(driver, after, Baseline(recorded_states=(torn,))) == 0
    zeroed = look(tmp_path / "main", whole + b"\0\0\0\0")
    after = whole + b"\0\0\0\0\n" + whole
    assert damage_of(driver, after, Baseline(recorded_states=(zeroed,))) == 1
    assert damage_of(driver, after, Baseline(last_continued=zeroed, recorded_states=(zeroed,))) == 0
    assert damage_of(driver, after + b"null\n", Baseline(last_continued=zeroed)) == 1
    # If the transcript has been replaced since, every damaged line in it counts.
    assert damage_of(driver, b"x\n" + after, Baseline(last_continued=zeroed)) == 2


def test_a_deep_record_is_read() -> None:
    """A record may be nested as deeply as Python's JSON reader allows."""
    driver = registry.load("claude")
    for depth in range(950, 1001, 5):
        deep = b'{"type":"user","content":' * depth + b"1" + b"}" * depth + b"\n"
        assert driver.damaged(deep) in ((), ((0, len(deep) - 1),))
