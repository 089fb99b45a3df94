"""A sample of the random kills; `make kills N=200` makes any number of them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from perdure.rules import continuation, receipt
from tests.journeys.harm import ALL, SENTENCES, is_told, untrue
from tests.journeys.kills import KEPT, table, trial

pytestmark = pytest.mark.journey


@pytest.mark.parametrize("seed", range(5))
def test_killed_at_a_random_point(agent: str, seed: int) -> None:
    """After a kill at any moment there is no false `native`, no silent fresh start, no process left
    running and no lost file."""
    result = trial(1_000 + seed, agent)
    assert not result.wrong, table([result])


@pytest.mark.parametrize("agent", KEPT)
@pytest.mark.parametrize("seed", range(3))
def test_killed_while_an_agent_is_kept(agent: str, seed: int) -> None:
    """One program keeps its agent between two turns. It is killed at any moment: in either turn,
    between the turns, or while the agent waits. The run recovers as in the test above."""
    result = trial(2_000 + seed, agent, warm=True)
    assert not result.wrong, table([result])


@pytest.mark.parametrize(
    ("said", "harm", "asked", "is_true"),
    [
        ("the transcript was missing; perdure's own copy was put back first", "home lost", 2, True),
        ("the transcript was missing; perdure's own copy was put back first", "flipped", 2, False),
        ("the transcript was not what perdure had recorded", "truncated", 2, True),
        ("the transcript was not what perdure had recorded", "workdir lost", 2, False),
        ("the transcript was not what perdure had recorded", "foreign", 2, False),
        ("another conversation was found in place of the transcript", "foreign", 2, True),
        ("another conversation was found in place of the transcript", "flipped", 2, False),
        ("the transcript was changed between the attempts", "", 2, False),
        ("1 foreign prompt(s) were added between perdure's attempts", "stranger", 2, True),
        ("1 foreign prompt(s) were added between perdure's attempts", "", 2, False),
        ("1 foreign prompt(s) came into the conversation while the attempt "
         "ran", "stranger", 2, False),
        ("the conversation was announced, but no agent answered in it", "", 1, True),
        ("the conversation was announced, but no agent answered in it", "", 2, False),
        ("announced but never began: no turn of it reached the agent", "", 0, False),
        ("a summary by the agent replaces 3 of them", "compacted", 2, True),
        ("a summary by the agent replaces 3 of them", "flipped", 2, False),
        ("no transcript of it was found, and perdure has no copy of it", "two retries", 2, False),
        ("same id aaaa; this attempt's prompt stands in the new part", "", 2, True),
    ],
)  # fmt: skip
def test_the_oracle_knows_untrue_sentences(said: str, harm: str, asked: int, is_true: bool) -> None:
    """The oracle judges each sentence of a receipt by the damage that was really done."""
    assert (untrue(said, harm, asked) == []) is is_true


def test_the_oracle_knows_a_transcript_that_was_never_written() -> None:
    """The oracle accepts that there is no transcript if the agent was killed after its request to
    the model and before it wrote the prompt."""
    said = "conversation aaaa cannot continue: no transcript of it was found"
    assert untrue(said, "", 1, unwritten=True) == []
    assert untrue(said, "", 1) != []


def test_the_oracle_knows_a_result_that_a_prompt_told() -> None:
    """The oracle finds a result in a prompt that has the command, its exit and its output. Codex
    puts its own lines around an output."""
    item = (
        "result",
        "c",
        "Chunk ID: 1 Process exited with code 0 Original token count: 1 Output: ha",
    )
    told = "- you ran `/bin/bash -lc 'cat it'`; it succeeded. --- output 1 --- ha --- end ---"
    assert is_told(item, {"c": "cat it"}, told)
    assert not is_told(item, {"c": "cat at"}, told)
    assert not is_told(item, {"c": "cat it"}, told.replace("ha ---", "hu ---"))
    assert not is_told(item, {"c": "cat it"}, told.replace("succeeded", "failed"))


def test_the_oracle_quotes_what_receipts_say() -> None:
    """Every sentence that the oracle judges occurs in perdure's source. Otherwise a reworded
    sentence would no longer be judged."""
    sources = (receipt, continuation)
    text = "".join(Path(str(each.__file__)).read_text() for each in sources)
    text = re.sub(r'"\s*\n\s*f?"', "", text)
    quoted = {*SENTENCES, ALL, "never started", "no agent answered", "while the attempt ran"}
    # An earlier version used this sentence where it was not true.
    quoted -= {"transcript is gone"}
    assert {each for each in quoted if each not in text} == set()
