"""Gives the verdict on an attempt's work, by a table of rules. The first rule that matches decides.
Also finds claims in an agent's last message. Pure.

docs/reference/work_report.md shows the table. Each rule names its evidence; without any evidence,
the work is `unverified`.

`claims_of` finds the claims of an English message that facts could contradict. Only plain
statements count. A sentence that asks, doubts, denies or speaks of the future claims nothing. If a
claim is missed, the report only lacks one sentence. If a claim is found that was not made, honest
work gets a bad verdict.
"""

from __future__ import annotations

import re
from enum import StrEnum

from msgspec import Struct

from perdure.model import Outcome, OutcomeKind
from perdure.model.work import CheckOfWork, WorkReport, WorkVerdict
from perdure.patterns import late_pattern

NEEDS_PERSON = frozenset(
    {
        OutcomeKind.NEEDS_INPUT,
        OutcomeKind.DENIED,
        OutcomeKind.AUTH_FAILED,
        OutcomeKind.CONFIG_ERROR,
        OutcomeKind.BUDGET_SPENT,
    }
)
"""Outcomes after which the run needs a person."""


class Facts(Struct, frozen=True, kw_only=True):
    """Facts that the rules use in addition to the fields of the work report."""

    outcome: Outcome
    earlier: bool = False
    """Whether an earlier attempt with the same instructions changed something."""
    stale: bool = False
    """Whether files may have changed after the agent's last check."""


def judge(report: WorkReport, facts: Facts) -> tuple[WorkVerdict, tuple[str, ...]]:
    """Return the verdict, and the sentences that give the reasons for it."""
    outcome = facts.outcome
    ended = f"the attempt ended as {outcome.kind}"
    ended = f"{ended}: {outcome.detail}" if outcome.detail else ended
    verify = last_check(report, "verify")
    agents = last_check(report, "agent")
    verified = verify is not None and verify.passed is True
    if outcome.kind is OutcomeKind.REFUSED:
        return WorkVerdict.REFUSED, (ended,)
    if outcome.kind in NEEDS_PERSON:
        return WorkVerdict.BLOCKED, (ended,)
    if not outcome.ok:
        return WorkVerdict.INCOMPLETE, (ended,)
    if report.question:
        return WorkVerdict.BLOCKED, (f"the agent asks: {report.question}",)
    if report.denied and not verified:
        calls = sum(each.count for each in report.denied)
        words = (
            f"{calls} tool call(s) were denied, and no check shows that the work is complete "
            "without them"
        )
        return WorkVerdict.BLOCKED, (words,)
    if report.contradictions and not verified:
        return WorkVerdict.INCOMPLETE, report.contradictions
    if agents is not None and agents.passed is False and not verified:
        return WorkVerdict.INCOMPLETE, (_sentence(agents),)
    if report.observed and not facts.earlier and not _did_anything(report):
        return WorkVerdict.NOTHING_TO_DO, (
            "it changed no file, made no commit and had no other effect",
        )
    if verify is not None and verified:
        return WorkVerdict.DONE, (_sentence(verify),)
    if agents is not None and agents.passed is True and not facts.stale:
        return WorkVerdict.DONE, (_sentence(agents),)
    return WorkVerdict.UNVERIFIED, (_why_unverified(report, agents),)


def last_check(report: WorkReport, by: str) -> CheckOfWork | None:
    """Return the last check that `agent` or `verify` made; None if there is none."""
    for check in reversed(report.checks):
        if check.by == by:
            return check
    return None


def _did_anything(report: WorkReport) -> bool:
    return bool(report.file_count or report.commit_count or report.effects)


def _sentence(check: CheckOfWork) -> str:
    if check.by == "verify":
        whose = "the check"
    else:
        whose = "the agent's last check"
    return f"{whose} `{check.command}` ended with exit code {check.code}"


def _why_unverified(report: WorkReport, agents: CheckOfWork | None) -> str:
    if agents is None:
        return "not checked: no --verify, and no test command of the agent"
    if agents.passed is None:
        return f"unknown how the agent's last check `{agents.command}` ended"
    return f"files may have changed after the agent's last check `{agents.command}`"


LOOKED_AT = 8000
"""Length of the end of a message that is searched for claims, in characters."""


class WorkClaim(StrEnum):
    """Something that an agent claims to have done."""

    TESTS_PASS = "tests_pass"
    COMMITTED = "committed"
    PUSHED = "pushed"
    CHANGED = "changed"


_SENTENCES = late_pattern(r"(?<=[.!?:])\s+|\n+|;\s")
_PAST_FAILURE = late_pattern(
    r"\b(?:failing|failed|broken)\s+(?=(?:unit |integration "
    r")?(?:tests?|cases?|specs?|checks?|suite)\b)"
    r"|\b(?:0|no|zero) (?:failed|failures?|errors?|failing)\b|\bno longer\b"
)
_DOUBT = late_pattern(
    r"\?|\b(?:not|never|without|cannot|fail\w*|should|would|could|might|may|will|once|if|when|"
    r"until|unless|please|expect\w*|need\w*|try|tried|except|but|unable|nothing|none|wanted?|"
    r"let me)\b"
    r"|\bto (?:make|ensure|see|get|check|verify|pass|commit|push|run|fix|be)\b|n't\b|\bno\b"
)
_BEFORE = late_pattern(r"\b(?:already|previous\w*|earlier|last time|before)\b")
_I = r"\bi(?:'ve| have| just)?(?: also| now| then| successfully| just)*"
_CLAIMS: tuple[tuple[WorkClaim, tuple[str, ...], re.Pattern[str]], ...] = (
    (
        WorkClaim.TESTS_PASS,
        ("pass", "succe", "green"),
        late_pattern(
            r"\b(?:tests?|suite|specs?|checks?)\b.{0,40}\b(?:pass|passes|passed|passing|succeeds?|"
            r"succeeded|green)\b|\b(?:pass|passes|passed) (?:all|every|the) .{0,20}\btests?\b"
            r"|\b\d+ (?:tests? )?passed\b"
        ),
    ),
    (
        WorkClaim.COMMITTED,
        ("commit",),
        late_pattern(
            rf"{_I}.{{0,120}}\bcommitted\b|^\W*committed\b|\b(?:changes?|work|fix|everything|all|"
            rf"it|files?)\b.{{0,20}}\b(?:is|are|was|were|been) (?:now )?committed\b|{_I} "
            r"(?:created|made)"
            r" (?:a|the|one|two|\d+) (?:\w+ )?commits?\b"
        ),
    ),
    (
        WorkClaim.PUSHED,
        ("pushed",),
        late_pattern(
            rf"{_I}.{{0,120}}\bpushed\b|^\W*pushed\b|\b(?:changes?|work|fix|everything|it|branch|"
            r"commits?)\b.{0,20}\b(?:is|are|was|were|been) (?:now |committed and )*pushed\b"
        ),
    ),
    (
        WorkClaim.CHANGED,
        ("ed", "wrote"),
        late_pattern(
            rf"(?:{_I}|^\W*) "
            r"(?:fixed|implemented|added|created|wrote|updated|changed|refactored|removed|"
            r"renamed|deleted|rewrote|modified|edited)\b.{0,60}(?:\b(?:files?|functions?|tests?|"
            r"bugs?|code|class(?:es)?|methods?|modules?|scripts?|features?)\b|`"
            r"|\b[\w/-]+\.[a-z]{1,4}\b)"
        ),
    ),
)
"""Each claim with fragments of words, and the pattern of sentences that make the claim. Every such
sentence contains at least one of the fragments. The fragments are searched first, because most
messages claim nothing, and the patterns take 5 ms to compile."""


def claims_of(message: str) -> frozenset[WorkClaim]:
    """Return the claims that the message makes."""
    found: set[WorkClaim] = set()
    text = message[-LOOKED_AT:].replace("\u2019", "'").lower()
    if not _possible(text):
        return frozenset()
    for sentence in _SENTENCES.split(text):
        possible = _possible(sentence[:500])
        if not possible:
            continue
        plain = _PAST_FAILURE.sub("", sentence[:500])
        if _DOUBT.search(plain) or _BEFORE.search(plain):
            continue
        for claim, pattern in possible:
            if pattern.search(plain):
                found.add(claim)
    return frozenset(found)


def _possible(text: str) -> list[tuple[WorkClaim, re.Pattern[str]]]:
    """Return the claims that the text may make, with their patterns. A claim is possible if the
    text contains one of its word fragments (see `_CLAIMS`)."""
    found = []
    for claim, letters, pattern in _CLAIMS:
        if any(each in text for each in letters):
            found.append((claim, pattern))
    return found
