"""A transcript or an output may have any value at any place: an agent, a damaged disk or a later
version of a CLI wrote it. Every function that reads one returns a result."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from perdure.agents import registry
from perdure.model import Exit, Program
from perdure.protocols import AgentDriver
from perdure.protocols.agents import (
    Asks,
    ContinuesSilently,
    Parks,
    ReadsDenials,
    TakesMessages,
    TellsRequests,
)
from tests.mending.corpus import IDS, Recording, whole

MISSING = object()
"""Stands for a value that is left out."""
WRONG = (MISSING, None, True, 7, -1.5, "text", [], ["text"], [[]], {}, {"type": []})
Reader = Callable[[bytes], object]


def places(value: object, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Yield the path of each value within a JSON value. Of a list, only the first two items are
    entered."""
    if path:
        yield path
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from places(inner, (*path, key))
    elif isinstance(value, list):
        for number, inner in enumerate(value[:2]):
            yield from places(inner, (*path, number))


def changed(value: Any, path: tuple[str | int, ...], wrong: object) -> Any:
    """Return a copy of a JSON value with another value at the path, or without any."""
    if not path:
        return wrong
    copy = dict(value) if isinstance(value, dict) else list(value)
    if wrong is MISSING and len(path) == 1:
        del copy[path[0]]
    else:
        copy[path[0]] = changed(copy[path[0]], path[1:], wrong)
    return copy


def kinds(lines: list[bytes]) -> Iterator[tuple[int, Mapping[str, Any], tuple[str | int, ...]]]:
    """Yield the number of a line, its record, and the path of a value in it: once for each path in
    records of the same kind."""
    seen = set()
    for number, line in enumerate(lines):
        with suppress(ValueError):
            record = json.loads(line)
            inner = next((record[key] for key in ("payload", "data") if key in record), {})
            kind = record.get("type"), inner.get("type") if isinstance(inner, dict) else ""
            for path in places(record):
                if (kind, path) not in seen:
                    seen.add((kind, path))
                    yield number, record, path


def readers(driver: AgentDriver, session: str) -> dict[str, Reader]:
    """Return the functions of a driver that read a transcript, by name."""
    found: dict[str, Reader] = {
        "loads": driver.loads,
        "damaged": driver.damaged,
        "replies": lambda content: list(driver.replies(content)),
        "prompts": driver.prompts,
        "messages_of": driver.messages_of,
        "parent": driver.parent,
        "total": driver.total,
        "fill": driver.fill,
        "repair": lambda content: driver.repair(content, session),
    }
    if isinstance(driver, ReadsDenials):
        found["denials_in_transcript"] = driver.denials_in_transcript
    if isinstance(driver, TellsRequests):
        found["open_request"] = driver.open_request
    if isinstance(driver, ContinuesSilently):
        found["will_continue"] = driver.will_continue
    if isinstance(driver, Parks):
        parks = driver
        found["answered"] = lambda content: parks.answered(content, ("call",))
    if isinstance(driver, TakesMessages):
        found["messages"] = driver.messages
    if isinstance(driver, Asks):
        asks = driver
        found["open_calls"] = lambda content: asks.open_calls(content, Path("/none"), content)
    archive = driver.archive
    if archive is not None:
        program = Program(path="/opencode", version="1.0.0")
        found |= {
            "unreported_events": archive.unreported_events,
            "cut_off": lambda content: archive.cut_off(content, 0),
            "relocated": lambda content: archive.relocated(content, Path("/w")),
            "restore": lambda content: archive.restore(program, session, content),
        }
    return found


def failures(name: str, reader: Reader, content: bytes) -> list[str]:
    """Return the error that a reader raises, unless it may raise it."""
    try:
        reader(content)
    except ValueError as error:
        return [] if name == "restore" else [f"{name}: {error!r}"]
    except Exception as error:
        return [f"{name}: {error!r}"]
    return []


@pytest.mark.parametrize("agent", [*IDS])
def test_a_transcript_with_a_value_of_another_type_is_read(agent: str) -> None:
    """However one value of a transcript is changed, each function returns. Only `restore` refuses
    with an error of its own."""
    driver, lines = registry.load(agent), Recording(agent).lines
    every = readers(driver, IDS[agent])
    found: dict[str, object] = {}
    for number, record, path in kinds(lines):
        for wrong in WRONG:
            line = json.dumps(changed(record, path, wrong)).encode()
            harmed = whole([*lines[:number], line, *lines[number + 1 :]])
            for name, reader in every.items():
                for failure in failures(name, reader, harmed):
                    found.setdefault(failure, (path, wrong))
    assert not found, found


@pytest.mark.parametrize("agent", [*IDS])
def test_an_output_with_a_value_of_another_type_is_read(agent: str) -> None:
    """However one value of an output line is changed, the line is parsed, and the end of the
    attempt is judged."""
    driver = registry.load(agent)
    recorded = json.loads(
        Path(__file__).with_name("recorded").joinpath(f"{agent}.json").read_text()
    )
    lines = list(dict.fromkeys(line for each in recorded.values() for line in each["stdout"]))
    exited = Exit(cause="exited", code=1, at=1)
    found: dict[str, object] = {}
    for number, record, path in kinds([line.encode() for line in lines]):
        for wrong in WRONG:
            line = json.dumps(changed(record, path, wrong)).encode()
            try:
                driver.outcome(exited, driver.parse(line))
            except Exception as error:
                found.setdefault(repr(error), (number, path, wrong))
    assert not found, found
