"""The invented day that `pictures` shows: runs of several agents, in all states that a run may
have. The store is a real one; its clock is set back, so that the day is in the past."""

from __future__ import annotations

import hashlib
import time
from contextlib import closing
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from perdure import store as stores
from perdure.model import (
    Backend,
    Claim,
    Condition,
    Continuation,
    Decision,
    Evidence,
    Fill,
    Outcome,
    OutcomeKind,
    Parking,
    Receipt,
    RunState,
    Session,
    SessionKey,
    SessionState,
    Start,
    TaskRun,
    TaskSpec,
    Usage,
    Verdict,
    Workspace,
)
from perdure.model.events import AnyEvent, CheckpointTaken, Said, ToolEnded, ToolStarted
from perdure.protocols import Begun, Ending
from perdure.store.sql import SqlStore

HOUR_MS = 3_600_000
ROUNDING = "Totals are off by a cent when a discount applies: round half to even, once, at the end"
WORK: tuple[AnyEvent, ...] = (
    Said(text="I look at how totals are computed first."),
    ToolStarted(tool_id="1", name="Bash", summary="rg -n 'round\\(' src/shop"),
    ToolEnded(tool_id="1", ok=True),
    Said(
        text=(
            "Order.total rounds each line and the sum, with the discount between the two. I round "
            "once, at the end."
        )
    ),
    ToolStarted(tool_id="2", name="Edit", summary="src/shop/orders.py"),
    ToolEnded(tool_id="2", ok=True),
    ToolStarted(tool_id="3", name="Bash", summary="pytest -q tests/test_orders.py"),
    ToolEnded(tool_id="3", ok=False, summary="3 failed, 41 passed in 2.31s"),
    Said(
        text=(
            "Three tests expected the old rounding, and were wrong by the same cent. I correct "
            "them."
        )
    ),
    CheckpointTaken(number=1, why="turn", commit="ab" * 20, changed=3, untracked=1),
)
NATIVE = (
    "the same id came back",
    "41,204 bytes are the beginning of what is there now",
    "this attempt's prompt is in the new part",
)


@dataclass
class Day:
    """A store whose clock the program sets."""

    store: SqlStore
    at: int

    def __post_init__(self) -> None:
        self._numbers = count(1)
        self.store._database.now = lambda: self.at  # type: ignore[method-assign]

    def passes(self, seconds: float) -> None:
        self.at += int(seconds * 1000)

    def task(self, name: str, agent: str, prompt: str, repo: str) -> TaskRun:
        run_id = hashlib.sha256(name.encode()).hexdigest()[:32]
        path = f"/srv/perdure/work/{repo}--{name}-7j4okh"
        place = Workspace(
            id=name,
            path=path,
            backend=Backend.WORKTREE,
            repo=f"/srv/git/{repo}",
            branch=f"perdure/{name}",
            base="main",
        )
        return self.store.add(
            TaskSpec(prompt=prompt, agent=agent, repo=place.repo), run_id, name, place
        )

    def begins(self, run: TaskRun, why: str, start: Start) -> tuple[Claim, Session]:
        claim = self.store.claim("pool", 86_400, run.id)
        assert claim is not None and run.workspace is not None
        native = f"{run.id[:8]}-9b1e-4c7a-8f21-{run.id[8:20]}"
        key = SessionKey(run.spec.agent, run.scope)
        session = Session(
            key=key,
            id=native,
            state=SessionState.CONFIRMED,
            created=self.at,
            updated=self.at,
            cwd=run.workspace.path,
        )
        self.store.begin(
            claim,
            Begun(
                continuation=Continuation(kind=start, session_id=native, reason=why),
                directory="",
                prompt_sha256="",
                agent_version="2.1.329",
                flags={"permissions": "edit"},
                before=None,
                session=session,
                workspace=run.workspace,
            ),
        )
        return claim, session

    def says(self, claim: Claim, said: tuple[AnyEvent, ...], seconds: float) -> None:
        for each in said:
            self.passes(seconds / (len(said) + 1))
            self.store.record(claim, [each])
        self.passes(seconds / (len(said) + 1))

    def attempt(
        self,
        run: TaskRun,
        kind: OutcomeKind,
        detail: str = "",
        *,
        said: tuple[AnyEvent, ...] = WORK,
        why: str = "first attempt",
        state: RunState = RunState.QUEUED,
        waits_s: float = 0,
        asks: str = "",
        seconds: float = 240,
        verdict: Verdict = Verdict.NATIVE,
    ) -> None:
        start = (
            Start.FRESH
            if why == "first attempt"
            else Start.REBUILD
            if verdict is Verdict.REBUILT
            else Start.RESUME
        )
        verdict = Verdict.FRESH if start is Start.FRESH else verdict
        claim, session = self.begins(run, why, start)
        self.says(claim, said, seconds)
        tokens = 60_000 + 37_000 * (next(self._numbers) % 7)
        reason = "" if state is RunState.SUCCEEDED else f"{kind}: {detail}" if detail else str(kind)
        condition = Condition(type="needs_person", message=asks, at=self.at) if asks else None
        self.store.finish(
            claim,
            Ending(
                outcome=Outcome(kind=kind, detail=detail),
                sessions=(session,),
                decision=Decision(
                    state=state,
                    reason=reason,
                    run_after=self.at + int(waits_s * 1000),
                    condition=condition,
                ),
                receipt=Receipt(
                    verdict=verdict,
                    reasons=NATIVE if verdict is Verdict.NATIVE else (),
                    evidence=Evidence(asked=session.id),
                ),
                usage=Usage(
                    input=tokens,
                    output=tokens // 40,
                    cached=tokens * 7 // 10,
                    cost_usd=tokens / 900_000,
                ),
                fill=Fill(tokens=tokens // 2, window=200_000),
            ),
        )
        self.passes(waits_s + 2)


def a_day(database: Path) -> None:
    """Fill a new store with the day's runs."""
    database.parent.mkdir(parents=True, exist_ok=True)
    now = time.time_ns() // 1_000_000
    lost, went_on = (
        "nobody saw the end of its process",
        "attempt 1 was lost; its transcript is there",
    )
    kinds = OutcomeKind
    with closing(stores.open(database)) as store:
        day = Day(store, now - 30 * HOUR_MS)
        for name, agent, prompt, repo in (
            ("invoice-pdf", "opencode", "Invoice PDFs: no page break inside a line item", "shop"),
            (
                "upload-resumes",
                "gemini",
                "Find out why test_upload_resumes fails one time in twenty",
                "parcel",
            ),
            (
                "typing-shims",
                "claude",
                "Drop Python 3.9: pyproject, CI and the typing shims",
                "parcel",
            ),
            (
                "currency-names",
                "codex",
                "Currency names from CLDR instead of the list by hand",
                "shop",
            ),
        ):
            run = day.task(name, agent, prompt, repo)
            if agent != "opencode":
                day.attempt(run, kinds.LOST, lost, said=WORK[:4], seconds=90, waits_s=2)
            day.attempt(
                run,
                kinds.SUCCEEDED,
                said=WORK[4:],
                state=RunState.SUCCEEDED,
                why=went_on if agent != "opencode" else "first attempt",
            )
        day.at = now - 3 * HOUR_MS
        run = day.task("fix-rounding", "claude", ROUNDING, "shop")
        day.passes(4)
        day.attempt(run, kinds.LOST, lost, said=WORK[:4], waits_s=2)
        day.attempt(
            run,
            kinds.RATE_LIMITED,
            "the limit of five hours is reached",
            said=WORK[4:6],
            waits_s=1260,
            why=went_on,
        )
        day.attempt(
            run,
            kinds.VERIFY_FAILED,
            "pytest -q failed with exit code 1",
            said=WORK[6:8],
            why="the usage limit is over",
        )
        day.attempt(
            run,
            kinds.SUCCEEDED,
            said=WORK[6:],
            state=RunState.SUCCEEDED,
            why="the check went back to the agent",
        )
        run = day.task("session-names", "codex", "Names for sessions that people can say", "web")
        day.attempt(
            run, kinds.SESSION_MISSING, "no conversation with this id", said=WORK[:1], seconds=20
        )
        done = RunState.SUCCEEDED
        day.attempt(
            run, kinds.SUCCEEDED, state=done, why="the transcript is gone", verdict=Verdict.REBUILT
        )
        run = day.task(
            "read-only-cache", "codex", "A cache directory that may be read-only", "parcel"
        )
        day.attempt(
            run,
            kinds.FAILED,
            "API Error: 400 the request is not valid",
            said=WORK[:2],
            state=RunState.FAILED,
        )
        run = day.task(
            "migrate-auth", "claude", "Move the session middleware to the new auth service", "web"
        )
        ask = "it asks: Should old sessions be dropped or migrated? (Drop them, Migrate them)"
        day.attempt(
            run,
            kinds.NEEDS_INPUT,
            ask,
            said=WORK[:3],
            state=RunState.FAILED,
            asks=ask,
        )
        run = day.task(
            "flaky-upload", "gemini", "Uploads over 2 GB stop at the first part", "parcel"
        )
        day.attempt(run, kinds.OVERLOADED, "529 overloaded", said=WORK[:2], waits_s=10 * 3600)
        day.at = now - 25 * 60_000
        for name, agent, prompt, repo, said in (
            (
                "search-paging",
                "codex",
                "Cursor pagination for /search, with tests",
                "shop",
                WORK[:5],
            ),
            (
                "slow-import",
                "claude",
                "Importing 40k rows takes nine minutes: find the reason",
                "shop",
                WORK[:2],
            ),
            ("dark-mode", "claude", "Dark mode for the settings page", "web", WORK[:7]),
        ):
            run = day.task(name, agent, prompt, repo)
            if name == "slow-import":
                day.attempt(run, kinds.LOST, lost, said=WORK[:4], seconds=60, waits_s=2)
            claim, _ = day.begins(
                run, went_on if name == "slow-import" else "first attempt", Start.RESUME
            )
            day.says(claim, said, 150)
        day.at = now
        day.task("bump-deps", "opencode", "Bump the dependencies that have advisories", "parcel")
        store.park(
            Parking(
                what="gemini/personal", until=now + HOUR_MS, reason="the day's quota is reached"
            )
        )
