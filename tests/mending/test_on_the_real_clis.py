"""The promises of the table, with the installed CLIs: before the repair they refuse the
conversation or forget a part of it. After the repair the whole history reaches the model.

The rehearsal is strict here: it refuses what the real services refuse.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from perdure.agents import registry
from perdure.agents.proof import prover
from perdure.agents.rehearsal import Rehearsal
from perdure.rules.transcript_repair import Harm, claude
from perdure.testing.drivers import Bench
from perdure.testing.drivers.bench import BenchRun, resume
from tests.mending.corpus import CASES, IDS, NAMES, TOLD, Case, Recording
from tests.mending.test_corpus import mend

MODULES = Path(
    os.environ.get("PERDURE_TEST_AGENTS") or Path(__file__).parents[2] / "agents" / "node_modules"
)
Make = Callable[[str], Bench]
SLOW = ("gemini", "opencode")
REAL = [
    pytest.param(case, id=str(case), marks=[pytest.mark.slow] if case.agent in SLOW else [])
    for case in CASES
    if case.real
]
COMMAND = "tool-one"


@pytest.fixture
def bench() -> Iterator[Make]:
    """Make a bench with its own home and a strict model."""
    scratch, started = Path(tempfile.mkdtemp(prefix="pm")), []

    def make(agent: str) -> Bench:
        started.append(rehearsal := Rehearsal("say I am here.", strict=True).start())
        home = scratch / str(len(started))
        for name in ("home", "tmp", "work"):
            (home / name).mkdir(parents=True)
        outer = {
            "PATH": f"{MODULES / '.bin'}:{os.environ['PATH']}",
            "HOME": str(home / "home"),
            "TMPDIR": str(home / "tmp"),
        }
        own = rehearsal.environ(agent, home / "home" / agent, retries=0)
        return Bench(
            driver=registry.load(agent),
            environ={**outer, "IS_SANDBOX": "1", **own},
            rehearsal=rehearsal,
            cwd=home / "work",
        )

    yield make
    for rehearsal in started:
        rehearsal.stop()
    shutil.rmtree(scratch, ignore_errors=True)


def put(stage: Bench, content: bytes) -> Path:
    """Write the content as a transcript where the CLI looks for it, and return its path."""
    agent = stage.driver.name
    whole = stage.home.parent / NAMES[agent]
    whole.parent.mkdir(parents=True, exist_ok=True)
    if agent == "opencode":
        whole.write_bytes(content)
        stage.put_back(IDS[agent], whole)
        return whole
    whole.write_bytes(Recording(agent).content)
    place = stage.driver.place(stage.home, IDS[agent], stage.cwd, whole)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(content)
    return place


def missing(stage: Bench, ran: BenchRun, case: Case) -> list[str]:
    """Return the items of the case that the model did not get, which are all of them if the CLI did
    not continue."""
    if not ran.outcome.ok or not stage.rehearsal.requests:
        return list(TOLD)
    said = [message.text for message in stage.rehearsal.last.messages]
    return [
        words
        for words in TOLD
        if words not in case.missing and not any(words in each for each in said)
    ]


@pytest.mark.parametrize("case", REAL)
def test_before_and_after(case: Case, bench: Make) -> None:
    """A transcript that needs a repair is refused by the CLI, or a part of it forgotten. After the
    repair the CLI continues with everything that is left. A transcript with the answer `taken`
    continues without a repair, one with `refused` does not continue."""
    content = case.content()
    before = bench(case.agent)
    put(before, content)
    lost = missing(before, before.run("are you here?", resume(IDS[case.agent])), case)
    if case.answer == "taken":
        assert not lost or lost == ["Four."], lost
        return
    assert lost, "the CLI took it as it is: nothing is to be mended"
    if case.answer == "refused":
        assert lost == list(TOLD)
        return
    mended = mend(case.agent, content).content
    assert mended is not None
    after = bench(case.agent)
    place = put(after, mended)
    ran = after.run("are you here?", resume(IDS[case.agent]))
    assert not missing(after, ran, case), (
        ran.outcome,
        [message.text[:60] for message in after.rehearsal.last.messages],
    )
    assert ran.session_id == IDS[case.agent]
    if case.agent != "opencode":
        assert place.read_bytes().startswith(mended)


AGENTS = [pytest.param(agent, marks=[pytest.mark.slow] if agent in SLOW else []) for agent in IDS]


@pytest.mark.parametrize("agent", AGENTS)
def test_a_proof_is_a_real_resume(agent: str, bench: Make, tmp_path: Path) -> None:
    """A complete conversation is proven. A conversation that the CLI refuses, or of which the model
    gets only a part, is not. Nothing is written to the real home."""
    stage = bench(agent)
    prove = prover(stage.environ)
    content, driver = Recording(agent).content, stage.driver
    home = stage.home
    before = fingerprint(home)
    assert prove(driver, IDS[agent], content, NAMES[agent], home) == ""
    assert prove(driver, IDS[agent], b"", NAMES[agent], home) != ""
    if agent == "claude":
        hidden = Recording(agent).edited("prompt", lambda e: e.update(parentUuid=None))
        assert "the model did not get 'tell me a word'" in prove(
            driver, IDS[agent], hidden, NAMES[agent], home
        )
        poisoned = Recording(agent).edited(
            "call", lambda e: e["message"]["content"][0].pop("input")
        )
        assert "session_broken" in prove(driver, IDS[agent], poisoned, NAMES[agent], home)
    assert fingerprint(home) == before


def fingerprint(home: Path) -> dict[str, str]:
    """Return every file of a home, by its content."""
    return (
        {
            str(path): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in home.rglob("*")
            if path.is_file()
        }
        if home.is_dir()
        else {}
    )


@pytest.mark.parametrize("agent", ["claude", "codex"])
def test_what_a_kill_leaves_is_the_clis_own_affair(agent: str, bench: Make) -> None:
    """A call that a kill interrupted needs no repair, neither right after the kill nor after the
    CLI has continued from it twice."""
    stage = bench(agent)
    place = put(stage, Recording(agent).until("result"))
    for prompt in ("are you here?", "and now?"):
        assert (
            mend(agent, place.read_bytes()).content is None
            and mend(agent, place.read_bytes()).harm is Harm.NONE
        )
        assert stage.run(prompt, resume(IDS[agent])).outcome.ok
    assert (
        mend(agent, place.read_bytes()).content is None
        and mend(agent, place.read_bytes()).harm is Harm.NONE
    )
    assert any(
        message.role == "tool_call" and COMMAND in message.text
        for message in stage.rehearsal.last.messages
    )


def test_a_cut_conversation_goes_on_from_its_summary(bench: Make) -> None:
    """After old records were cut off, Claude sends the model the same items as before."""
    content = Recording("claude", "claude-compacted").content
    cut = claude.repair(content, IDS["claude"], memory=1000).content
    assert cut is not None
    told = []
    for each in (content, cut):
        stage = bench("claude")
        put(stage, each)
        assert stage.run("are you here?", resume(IDS["claude"])).outcome.ok
        told.append([(message.role, message.text) for message in stage.rehearsal.last.messages])
    assert told[0] == told[1] and len(told[1]) > 3
