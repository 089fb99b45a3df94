"""Gives the verdict on an attempt's work, by a table of rules. The first rule that matches decides.
Pure.

docs/reference/work_report.md shows the table. Each rule names its evidence; without any evidence,
the work is `unverified`.
"""

from __future__ import annotations

from msgspec import Struct

from perdure.model import Outcome, OutcomeKind
from perdure.model.work import CheckOfWork, WorkReport, WorkVerdict

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
    verify = _last(report, "verify")
    agents = _last(report, "agent")
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


def _last(report: WorkReport, by: str) -> CheckOfWork | None:
    found = [each for each in report.checks if each.by == by]
    if found:
        return found[-1]
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
