"""The order that a pod gets: a valid order is read back unchanged, and an impossible one is refused
with the field's name."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.errors import UsageError
from perdure.kubernetes.order import (
    NAME,
    Earlier,
    Order,
    ResumeOrder,
    decode,
    encode,
    name_of,
    read,
)
from perdure.kubernetes.result import EXIT_CODES
from perdure.model import OutcomeKind, TaskSpec

UID = "3f0c8a52-7a4e-4f5e-9a44-0c1de2b7f001"
SPEC = TaskSpec(prompt="", service="api", task="t-1")
NAMES = st.from_regex(NAME, fullmatch=True)
RISING = st.lists(st.integers(1, 2**31), min_size=1, max_size=8, unique=True).map(sorted).map(tuple)


def order(**changes: Any) -> Order:
    plain = Order(
        run=UID,
        name="t-1",
        attempt=2,
        attempts_allowed=3,
        spec=SPEC,
        contexts=(1, 4),
        earlier=(Earlier(number=1, outcome=OutcomeKind.LOST),),
    )
    return msgspec.structs.replace(plain, **changes)


@given(
    name=NAMES,
    uid=st.uuids().map(str),
    contexts=RISING,
    attempt=st.integers(1, 99),
    allowed=st.integers(1, 99),
    detail=st.text(max_size=50),
    kinds=st.lists(st.sampled_from(OutcomeKind), max_size=9),
    env=st.dictionaries(st.text(max_size=9), st.text(max_size=9), max_size=3),
)
def test_an_order_is_read_as_it_was_written(
    name, uid, contexts, attempt, allowed, detail, kinds, env
) -> None:
    """All fields of an order are read back. The run's id is the uid without its hyphens."""
    earlier = tuple(
        Earlier(number=n, outcome=kind, detail=detail)
        for n, kind in enumerate(kinds[: attempt - 1], 1)
    )
    spec = TaskSpec(prompt="", env=env, verify="make test")
    wanted = Order(
        run=uid,
        name=name,
        attempt=attempt,
        attempts_allowed=allowed,
        spec=spec,
        contexts=contexts,
        earlier=earlier,
    )
    assert decode(encode(wanted)) == wanted
    assert wanted.run_id == uid.replace("-", "")


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"version": 2}, "version"),
        ({"run": "../../etc"}, "run"),
        ({"run": UID.upper()}, "run"),
        ({"name": "Not A Name"}, "name"),
        ({"name": "a\n"}, "name"),
        ({"attempt": 0}, "attempt"),
        ({"attempts_allowed": 10**9}, "attempts_allowed"),
        ({"contexts": ()}, "contexts"),
        ({"contexts": (2, 1)}, "contexts"),
        ({"contexts": (0, 1)}, "contexts"),
        ({"unlisted": -1}, "unlisted"),
        ({"unlisted": 20_000}, "unlisted"),
        ({"earlier": (Earlier(number=2, outcome=OutcomeKind.LOST),)}, "earlier"),
        ({"earlier": (Earlier(number=1, outcome=OutcomeKind.LOST),) * 2}, "earlier"),
        ({"resume": ResumeOrder(mode="Session")}, "resume"),
        ({"resume": ResumeOrder(session_id="abc")}, "resume"),
        ({"resume": ResumeOrder(mode="Session", session_id="--version")}, "resume.session_id"),
        ({"resume": ResumeOrder(from_="../x")}, "resume.from"),
        ({"checkpoints": "s3://key:secret@bucket"}, "checkpoints"),
        ({"checkpoints": "/data"}, "checkpoints"),
        ({"state": "checkpoints"}, "state"),
        ({"spec": TaskSpec(prompt="do it")}, "spec.prompt"),
        ({"spec": TaskSpec(prompt="", here="/")}, "spec.here"),
    ],
)
def test_what_no_pod_can_follow_is_refused_with_the_fields_name(
    changes: dict[str, Any], field: str
) -> None:
    """An impossible order is refused by its writer and by its reader, with the field's name."""
    wrong = order(**changes)
    for step in (lambda: encode(wrong), lambda: decode(msgspec.json.encode(wrong))):
        with pytest.raises(UsageError, match=rf"cannot be followed: {field}[.:]"):
            step()


@given(
    st.one_of(
        st.binary(max_size=200),
        st.recursive(st.none() | st.integers() | st.text(), st.lists, max_leaves=9)
        .map(json.dumps)
        .map(str.encode),
    )
)
def test_nonsense_is_refused_in_a_sentence(content: bytes) -> None:
    """Any bytes are read as an order, or give a UsageError."""
    with pytest.raises(UsageError, match="cannot be followed"):
        decode(content)


@pytest.mark.parametrize(
    "content", [b"[" * 100_000, b" " * (2 << 20), b'{"run": "\xff"}', b'{"version": 1}']
)
def test_hostile_json_is_refused(content: bytes) -> None:
    """Deep nesting, long input and broken text are refused, and have no other effect."""
    with pytest.raises(UsageError, match="cannot be followed"):
        decode(content)


def test_a_directory_gives_the_order_and_its_texts_in_their_order() -> None:
    """The texts of the instructions are read in the order of their versions."""
    files = {
        "order.json": encode(order()),
        "contexts/1": b"First.",
        "contexts/4": "Zweitens: ü".encode(),
    }
    assert read(files.__getitem__) == (order(), ("First.", "Zweitens: ü"))


def test_an_older_text_may_be_missing() -> None:
    """An older text may be missing, because its Secret is gone and the run may have stored it
    already."""
    files = {"order.json": encode(order()), "contexts/4": b"Second."}

    def get(wanted: str) -> bytes:
        if wanted not in files:
            raise FileNotFoundError(wanted)
        return files[wanted]

    assert read(get) == (order(), (None, "Second."))


@pytest.mark.parametrize("name", ["order.json", "contexts/4"])
def test_a_file_that_is_missing_is_named(name: str) -> None:
    """A missing file is named, even if it is only the newest text."""
    files = {"order.json": encode(order()), "contexts/1": b"First.", "contexts/4": b"Second."}
    del files[name]

    def get(wanted: str) -> bytes:
        if wanted not in files:
            raise FileNotFoundError(wanted)
        return files[wanted]

    with pytest.raises(UsageError, match=name):
        read(get)


def test_a_text_that_is_no_text_is_refused() -> None:
    """A version of the instructions that is not UTF-8 is refused, and its number is named."""
    files = {"order.json": encode(order()), "contexts/1": b"\xff", "contexts/4": b"Second."}
    with pytest.raises(UsageError, match="contexts/1 is not UTF-8"):
        read(files.__getitem__)


@given(name=st.text(max_size=300), uid=st.uuids().map(str))
def test_any_taskrun_has_a_name_for_its_run(name: str, uid: str) -> None:
    """A valid run name is kept. Any other name is converted, with the uid's first digits to make it
    unique."""
    made = name_of(name, uid)
    assert NAME.fullmatch(made)
    assert made == name or made.endswith(uid[:8])


def test_the_documented_order_and_exit_codes_are_the_real_ones() -> None:
    """docs/reference/pod.md has a valid order, and lists each outcome with its exit code."""
    page = (Path(__file__).parents[2] / "docs/reference/pod.md").read_text()
    example = decode(page.partition("```json\n")[2].partition("```")[0].encode())
    assert (example.attempt, example.contexts, len(example.earlier)) == (3, (1, 4), 2)
    rows = re.findall(r"^\| (\d+) \| (.+) \|$", page, re.MULTILINE)
    told = {
        OutcomeKind(word): int(code)
        for code, words in rows
        for word in re.findall(r"`(\w+)`", words)
    }
    assert told == EXIT_CODES
