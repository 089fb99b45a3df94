"""Every broken transcript of the corpus gets the answer that the reference promises, and the
original is not touched."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.agents import registry
from perdure.rules.transcript_repair import Harm, RepairResult, Trouble, claude, gemini
from tests.mending.corpus import CASES, IDS, NAMES, TOLD, Case, Recording

REFERENCE = Path(__file__).parents[2] / "docs" / "reference" / "mending.md"


def mend(agent: str, content: bytes, complaint: str = "") -> RepairResult:
    return registry.load(agent).repair(content, IDS[agent], NAMES[agent], complaint)


def answer(mended: RepairResult) -> str:
    if mended.refusal:
        return "refused"
    if mended.content is not None:
        return "repaired"
    return "told" if mended.harm is not Harm.NONE else "taken"


@pytest.mark.parametrize("case", CASES, ids=str)
def test_each_gets_its_answer(case: Case) -> None:
    """Each case gets the answer of the table and the finding that the table names. A repair lists
    its edits, and the repaired copy needs no second repair."""
    content = case.content()
    mended = mend(case.agent, content)
    assert answer(mended) == case.answer, mended
    assert case.trouble is None or case.trouble in {
        finding.trouble for finding in mended.findings
    }, mended.findings
    assert (mended.content is None) == (not mended.edits)
    if mended.content is not None:
        again = mend(case.agent, mended.content)
        assert again.content is None and again.harm is not Harm.REFUSED, again
        assert mended.content != content


@pytest.mark.parametrize("case", [case for case in CASES if case.answer == "repaired"], ids=str)
def test_what_was_said_stands_in_the_mended_copy(case: Case) -> None:
    """The repaired copy has no prompts or answers that the recording lacks. Some of the recording's
    may be missing."""
    driver = registry.load(case.agent)
    mended = mend(case.agent, case.content()).content or b""
    spoken = [each.text.strip().rstrip("\ufffd") for each in driver.messages_of(mended)]
    wanted = [words for words in TOLD if "tool-one" not in words and words not in case.missing]
    assert [words for words in spoken if not words.startswith("[perdure:")] == (
        wanted if "torn tail" not in case.name else spoken
    )
    assert [prompt.text for prompt in driver.prompts(mended)][:2] == [
        "tell me a word",
        "run the tool",
    ]


def test_every_recording_is_taken_as_it_is() -> None:
    """Transcripts as the CLIs wrote them need no repair."""
    for agent in IDS:
        mended = mend(agent, Recording(agent).content)
        assert mended.content is None and mended.harm is Harm.NONE, (agent, mended)
    compacted = claude.repair(Recording("claude", "claude-compacted").content, IDS["claude"])
    assert compacted == RepairResult()


def test_there_are_at_least_thirty() -> None:
    """There are cases for every CLI, and at least one case for every answer."""
    assert len(CASES) >= 30 and {case.agent for case in CASES} == set(IDS)
    assert {case.answer for case in CASES} == {"taken", "repaired", "told", "refused"}
    assert len(set(map(str, CASES))) == len(CASES)


def test_the_reference_has_the_table() -> None:
    """The table in the reference has one row for each case, with its answer, and no other row."""
    rows = [
        line
        for line in REFERENCE.read_text().splitlines()
        if line.startswith("| ") and line.count("|") == 5 and "---" not in line
    ]
    told = {
        tuple(cell.strip() for cell in row.strip("|").split("|"))[:3]
        for row in rows
        if not row.startswith("| agent")
    }
    assert told == {(case.agent, case.name, case.answer) for case in CASES}


def test_a_compacted_transcript_is_cut_where_it_was_compacted() -> None:
    """From a transcript over the memory limit, everything is removed that the CLI no longer loads.
    Everything that it still loads stays, even from before the compaction."""
    content = Recording("claude", "claude-compacted").content
    mended = claude.repair(content, IDS["claude"], memory=1000)
    assert mended.content is not None and len(mended.content) < len(content)
    assert (
        b"The word is plum." not in mended.content
        and b'"Four."' in mended.content
        and b"after compaction" in mended.content
    )
    assert [finding.trouble for finding in mended.findings] == [Trouble.OVERSIZE]


def test_what_the_service_said_decides_where_it_is_not_plain() -> None:
    """A thought with a signature, and a result beside its call, may be valid. They are removed only
    if the service refused them."""
    block = {"type": "thinking", "thinking": "", "signature": "once good"}
    thoughtful = Recording("claude").edited(
        "answer", lambda e: e["message"]["content"].insert(0, block)
    )
    assert mend("claude", thoughtful).content is None
    cleaned = mend(
        "claude", thoughtful, "messages.1.content.0: Invalid `signature` in `thinking` block"
    ).content
    assert cleaned is not None and b"once good" not in cleaned and b"The word is plum." in cleaned
    alone = next(case for case in CASES if "thought on a line of its own" in case.name).content()
    cleaned = mend(
        "claude", alone, "messages.1.content.0: Invalid `signature` in `thinking` block"
    ).content
    assert (
        cleaned is not None
        and b'"thinking"' not in cleaned
        and mend("claude", cleaned).content is None
    )
    answer_line = next(
        json.loads(line) for line in cleaned.splitlines() if b'"The word is plum."' in line
    )
    assert answer_line["parentUuid"] == Recording("claude").record("answer")["parentUuid"], (
        "it follows what the thought followed"
    )
    content = Recording("gemini").content
    refused = (
        "Please ensure that the number of function response parts is equal to the number of "
        "function call parts"
    )
    once = gemini.repair(content, IDS["gemini"], refused).content
    assert once is not None and content.count(b"functionResponse") == 2 * once.count(
        b"functionResponse"
    )


def test_a_fork_keeps_the_name_of_its_parent() -> None:
    """The torn first record of a Codex fork may still name the parent, which has the earlier
    history."""
    recording, parent = Recording("codex"), "01a1fda2-0049-78c1-af2c-2b1e63308200"
    head = recording.lines[0].replace(
        b'"payload":{', b'"payload":{"forked_from_id":"' + parent.encode() + b'",', 1
    )
    mended = mend("codex", recording.instead(0, head[:220]))
    assert mended.content is not None and registry.load("codex").parent(mended.content) == parent


@given(st.data())
def test_no_bytes_break_it(data: st.DataObject) -> None:
    """A part of a transcript is cut out, doubled or overwritten anywhere. There is an answer and no
    exception. A second repair changes nothing."""
    agent = data.draw(st.sampled_from(sorted(IDS)))
    content = Recording(agent).content
    at = data.draw(st.integers(0, len(content)))
    to = min(len(content), at + data.draw(st.integers(0, 3000)))
    piece = data.draw(
        st.one_of(
            st.binary(max_size=60),
            st.just(content[at:to] * 2),
            st.just(b""),
            st.just(b'{"type":[]}\n{"message":5,"type":"user"}'),
        )
    )
    mended = mend(agent, content[:at] + piece + content[to:])
    if mended.content is not None:
        assert mend(agent, mended.content).harm is not Harm.REFUSED or mended.harm is Harm.REFUSED


def test_a_hostile_line_takes_no_time() -> None:
    """A line made of a million beginnings of records, and one of nested brackets, are given up
    quickly."""
    for content in (
        b'{"type":"user","x":' * 100_000,
        b"[" * 1_000_000,
        b'{"type":' + b"[" * 500_000,
    ):
        for agent in IDS:
            assert answer(mend(agent, content + b"\n")) == "refused"


def test_the_findings_tell_nothing_hostile() -> None:
    """The sentences of findings have no control characters of the transcript."""
    record = Recording("claude").record("call")
    record["message"]["content"][0]["id"] = "toolu_\x1b[2J\u202e"
    broken = Recording("claude").instead("call", json.dumps(record).encode())
    said = "".join(finding.what for finding in mend("claude", broken).findings)
    assert said and all(letter.isprintable() for letter in said)


def test_many_troubles_take_no_more_than_their_size() -> None:
    """Thousands of calls without results, and of thoughts to leave out, are repaired in seconds,
    because no search starts again from the beginning."""
    recording = Recording("claude")
    call, answer = recording.record("call"), recording.record("answer")
    lines, parent = [recording.lines[0]], None
    for number in range(4000):
        for name, record in (("c", call), ("t", answer), ("a", answer)):
            entry = json.loads(json.dumps(record))
            entry |= {"uuid": f"{name}{number}", "parentUuid": parent}
            entry["message"]["id"] = f"{name}{number}"
            if name == "c":
                entry["message"]["content"][0]["id"] = f"toolu_{number}"
            if name == "t":
                entry["message"]["content"] = [
                    {"type": "thinking", "thinking": "", "signature": "s"}
                ]
            parent = entry["uuid"]
            lines.append(json.dumps(entry).encode())
    mended = mend("claude", b"\n".join(lines) + b"\n", "Invalid `signature` in `thinking` block")
    assert mended.content is not None and len(mended.edits) == 8000
    records = {
        record["uuid"]: record
        for line in mended.content.splitlines()
        if (record := json.loads(line)).get("uuid")
    }
    assert all(
        record["parentUuid"] in records
        for record in records.values()
        if record["parentUuid"] is not None
    )
    assert b'"thinking"' not in mended.content
