"""Nouns and events as JSON and back, the report, the names of runs, and the imports of the cheapest
verbs."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args, get_type_hints

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from perdure import model
from perdure import store as stores
from perdure.engine.report import SCHEMA_VERSION, run_report
from perdure.model import Attempt, Context, Outcome, OutcomeKind, RunState, TaskRun, TaskSpec, Usage
from perdure.model.codec import builtins, decode, decode_event, encode, plain, printed
from perdure.model.events import (
    AgentEvent,
    AnyEvent,
    Compacted,
    Event,
    NotCompacted,
    Record,
    RolledOver,
    RunEvent,
    Said,
    Summarised,
    TurnEnded,
)
from perdure.model.reports import AttemptOfRun, AttemptWhy
from perdure.rules import run_names
from perdure.testing.stores.samples import submit

EVENTS = get_args(AnyEvent)
NOUNS = [
    kind
    for kind in vars(model).values()
    if isinstance(kind, type) and hasattr(kind, "__struct_fields__")
]


def values_of(kind: type[Any]) -> st.SearchStrategy[Any]:
    """Return a strategy that draws every field of a type. Hypothesis by itself would sometimes pass
    the factory of a default."""
    fields = msgspec.structs.fields(kind)
    return st.builds(kind, **{each.name: st.from_type(each.type) for each in fields})


for _noun in NOUNS:
    st.register_type_strategy(_noun, values_of)
WRITTEN = {
    str: st.text(st.characters(codec="utf-8"), max_size=9),
    int: st.integers(-(2**63), 2**64 - 1),
    float: st.floats(-1e9, 1e9),
}
for _type, _strategy in WRITTEN.items():
    st.register_type_strategy(_type, _strategy)
st.register_type_strategy(
    TurnEnded,
    st.builds(
        TurnEnded, ok=st.booleans(), facts=st.dictionaries(WRITTEN[str], WRITTEN[str], max_size=3)
    ),
)


@pytest.mark.parametrize("kind", EVENTS, ids=lambda kind: kind.__name__)
@settings(max_examples=15)
@given(data=st.data())
def test_every_event_comes_back_as_it_was(kind: type[Event], data: st.DataObject) -> None:
    """An event that is written and read is equal to the original, alone and in its record. Its kind
    is in the JSON."""
    event = data.draw(st.from_type(kind))
    text = encode(event)
    assert decode_event(text) == event
    assert json.loads(text)["kind"] == kind.__struct_config__.tag
    record = Record("r1", 1, 2, 3, event)  # type: ignore[arg-type]
    assert decode(encode(record), Record) == record


@pytest.mark.parametrize("kind", NOUNS, ids=lambda kind: kind.__name__)
@settings(max_examples=15)
@given(data=st.data())
def test_every_noun_comes_back_as_it_was(kind: type[Any], data: st.DataObject) -> None:
    """A noun that is written and read is equal to the original. Its plain values are the values of
    its JSON."""
    noun = data.draw(st.from_type(kind))
    if kind is not model.Command:  # its stdin is never stored
        assert decode(encode(noun), kind) == noun
        assert plain(noun) == json.loads(encode(noun))


def test_all_events_are_readable() -> None:
    """Each event belongs to one of the two families, and has its own tag."""
    assert (
        {*get_args(AgentEvent), *get_args(RunEvent)} == set(EVENTS) == set(Event.__subclasses__())
    )
    assert len({kind.__struct_config__.tag for kind in EVENTS}) == len(EVENTS)


def test_an_older_perdure_reads_what_a_newer_one_wrote() -> None:
    """Unknown fields are ignored. An unknown kind, a missing field and a wrong type are errors."""
    assert decode_event('{"kind":"said","text":"hi","colour":"red"}') == Said("hi")
    assert decode('{"version":1,"text":"t","at":2,"new":[]}', Context) == Context(1, "t", 2)
    for text in (
        '{"kind":"sung","text":"la"}',
        '{"kind":"said"}',
        '{"kind":"said","text":5}',
        "[]",
        "",
    ):
        with pytest.raises(msgspec.DecodeError):
            decode_event(text)


# --- the report
# ----------------------------------------------------------------------------------------------------


@settings(max_examples=25)
@given(
    st.from_type(TaskRun),
    st.lists(st.from_type(Attempt), max_size=3),
    st.lists(st.from_type(Context), max_size=2),
)
def test_a_report_has_the_published_fields(
    run: TaskRun, attempts: list[Attempt], contexts: list[Context]
) -> None:
    """For any run, its report can be written as JSON and has the fields that scripts rely on."""
    report = json.loads(printed(run_report(run, attempts, contexts)))
    assert report["schema_version"] == SCHEMA_VERSION
    assert {
        "id",
        "name",
        "state",
        "agent",
        "context_version",
        "workspace",
        "attempts",
        "usage",
        "conditions",
    } <= set(report)
    assert set(report["workspace"]) >= {"path", "branch", "backend"}
    assert report["state"] in [str(state) for state in RunState]
    for shown, attempt in zip(report["attempts"], attempts, strict=True):
        assert {"number", "continuation", "session_id", "outcome", "receipt", "usage"} <= set(shown)
        assert shown["number"] == attempt.number
        assert shown["outcome"] is None or {"kind", "detail"} <= set(shown["outcome"])
        assert shown["receipt"] is None or {"verdict", "reasons", "evidence"} <= set(
            shown["receipt"]
        )


def test_a_report_sums_what_the_attempts_used() -> None:
    """The report has the tokens and dollars of all attempts together."""
    run = TaskRun(
        id="1", name="n", spec=TaskSpec(prompt="p"), state=RunState.RUNNING, created=1, updated=2
    )
    one = Attempt(
        run="1", number=1, context_version=1, worker="w", started=1, usage=Usage(10, 1, 5, 2, 0.25)
    )
    attempts = [one, replace(one, number=2, outcome=Outcome(kind=OutcomeKind.LOST))]
    report = run_report(run, attempts, [])
    assert report.usage == Usage(20, 2, 10, 4, 0.5)
    assert [each.outcome.kind for each in report.attempts if each.outcome] == ["lost"]
    assert set(Usage.__struct_fields__) == set(builtins(report)["usage"])


SIZES = [
    Compacted(session_id="s", before=9, after=3, times=2, asked=True),
    NotCompacted(session_id="s", tokens=9),
    Summarised(session_id="s", text="t", usage=Usage(input=1), reason="r"),
    RolledOver(session_id="s", tokens=9, window=10, cause="c"),
]


def test_a_report_has_all_fields_of_what_happened_to_the_size() -> None:
    """Each entry of `sizes` is the event itself, with its name as `event` before it."""
    run = TaskRun(
        id="1", name="n", spec=TaskSpec(prompt="p"), state=RunState.RUNNING, created=1, updated=2
    )
    attempt = Attempt(run="1", number=1, context_version=1, worker="w", started=1)
    records = [Record(run="1", seq=1, attempt=1, at=1, event=event) for event in SIZES]
    report = builtins(run_report(run, [attempt], [], records=records))
    expected = [{"event": each["kind"], **each} for each in map(plain, SIZES)]
    assert json.dumps(report["attempts"][0]["sizes"]) == json.dumps(expected)


def test_why_is_a_part_of_the_report() -> None:
    """`why` shows fields of the report, with the same types."""
    whole = get_type_hints(AttemptOfRun)
    assert get_type_hints(AttemptWhy).items() <= whole.items()


# --- names
# ---------------------------------------------------------------------------------------------------------


def test_names_can_be_said_and_typed() -> None:
    """A name is two plain words. If all tried names exist already, a number is added, so that a
    free name is always found."""
    assert all(
        re.fullmatch(r"[a-z]+-[a-z]+", run_names.suggest(tries))
        for tries in range(5)
        for _ in range(50)
    )
    assert all(re.fullmatch(r"[a-z]+-[a-z]+-\d+", run_names.suggest(5)) for _ in range(50))
    assert len({run_names.suggest(9) for _ in range(500)}) > 490


# --- imports
# -------------------------------------------------------------------------------------------------------

HEAVY = (
    "msgspec",
    "asyncio",
    "rich",
    "subprocess",
    "http",
    "email",
    "ssl",
    "socket",
    "concurrent",
    "multiprocessing",
)
LS = """
import sys
import perdure.cli.main, perdure.cli.runs.ls
assert perdure.cli.main.main(["ls"]) == 0
print("loaded:", *sys.modules)
"""


def ls(scratch: Any, cwd: Path) -> tuple[str, list[str]]:
    """Return the output of `perdure ls` in a fresh interpreter, and the modules that are loaded
    afterwards."""
    done = subprocess.run(
        [sys.executable, "-c", LS],
        env=scratch.environ,
        cwd=cwd,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    shown, _, loaded = done.stdout.rpartition("loaded:")
    return shown, loaded.split()


def test_ls_pays_for_nothing_that_it_does_not_need(tmp_path: Path, scratch: Any) -> None:
    """Neither the import of `perdure ls` nor the complete verb loads a heavy library, with or
    without a run. The verb creates no file."""
    shown, loaded = ls(scratch, tmp_path)
    assert [heavy for heavy in HEAVY if heavy in loaded] == []
    assert [path for path in scratch.home.rglob("*") if path.is_file()] == []
    store = stores.open(scratch.home / ".local/state/perdure/perdure.db")
    submit(store, name="brave-otter")
    store.close()
    shown, loaded = ls(scratch, tmp_path)
    assert "brave-otter" in shown
    assert [heavy for heavy in HEAVY if heavy in loaded] == []
