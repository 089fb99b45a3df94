"""A store in which every field that an agent, a repository or a forge fills is hostile, and one
with very many runs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import closing
from itertools import cycle, islice
from pathlib import Path

from msgspec.structs import replace

from perdure import store as stores
from perdure.model import (
    Backend,
    Checkpoint,
    Condition,
    Continuation,
    CopyPart,
    Decision,
    Evidence,
    Fill,
    Outcome,
    OutcomeKind,
    Parking,
    Receipt,
    RunState,
    Saved,
    Session,
    SessionKey,
    SessionState,
    Start,
    TaskSpec,
    Usage,
    Verdict,
    Workspace,
)
from perdure.model.events import (
    CollisionSeen,
    Leftover,
    LeftoversFound,
    LimitSeen,
    QuestionAsked,
    RetrySeen,
    Said,
    SessionRetired,
    ToolDenied,
    ToolEnded,
    ToolStarted,
    Unrecognised,
    VerifyEnded,
    WorkSeen,
    WritesLost,
)
from perdure.model.forge.deliveries import Arrived, Forge, Intent, IntentKind, PayloadReading
from perdure.model.work import CommitOfWork, FileOfWork
from perdure.protocols import Begun, Ending
from perdure.rules.plan import Forking, Plan, PlanRun, PlanTask
from perdure.rules.plan.conversations import assign_strands
from perdure.store.sql import SqlStore
from tests.dashboard.hostile import PAYLOADS

STATES = (RunState.SUCCEEDED, RunState.FAILED, RunState.QUEUED, RunState.CANCELLED)


def storable(text: str) -> str:
    """Return the text without NUL characters, which cannot be stored."""
    return text.replace("\x00", "")


def fill(database: Path) -> None:
    """Fill a new database so that each payload is in each field of some run."""
    database.parent.mkdir(parents=True, exist_ok=True)
    with closing(stores.open(database)) as store:
        for number in range(0, len(PAYLOADS), 4):
            run(store, number, *_rotated(number))
        everything(store)
        store.accept(
            [delivery(number, storable(payload)) for number, payload in enumerate(PAYLOADS)]
        )
        store.park(
            Parking(
                what=f"gemini/{PAYLOADS[0]}",
                until=store.now() + 3_600_000,
                reason=storable(PAYLOADS[1]),
            )
        )
        plan(store)


def _rotated(number: int) -> Iterator[str]:
    return (storable(each) for each in islice(cycle(PAYLOADS), number, number + len(PAYLOADS)))


def run(store: SqlStore, number: int, *words: str) -> None:
    """Make a run that has ended, with a payload in each of its fields."""
    prompt, detail, reason, branch, path, session, flag, version, tool, said, why, ask = words[:12]
    name, state = f"r-{number}", STATES[number % len(STATES)]
    place = Workspace(
        id=name,
        path=f"/nowhere/{number}/{path}",
        backend=Backend.WORKTREE,
        repo=f"/nowhere/{path}.git",
        branch=branch,
        base="main",
    )
    spec = TaskSpec(
        prompt=prompt,
        repo=place.repo,
        scope=f"{path}#{number}"[:200],
        model=flag,
        labels={said: why},
        verify=tool,
    )
    found = store.add(spec, hashlib.sha256(name.encode()).hexdigest()[:32], name, place)
    claim = store.claim("pool", 600, found.id)
    assert claim is not None
    kept = Session(
        key=SessionKey("claude", found.scope),
        id=f"{session}-{number}",
        state=SessionState.RETIRED,
        created=1,
        updated=number,
        cwd=path,
        cause=why,
    )
    continuation = Continuation(kind=Start.FRESH, session_id=kept.id, reason=reason)
    store.begin(
        claim,
        Begun(
            continuation=continuation,
            directory="",
            prompt_sha256="0",
            flags={"model": flag},
            agent_version=version,
            before=None,
            session=kept,
            workspace=place,
        ),
    )
    store.record(
        claim,
        [
            Said(text=said),
            ToolStarted(tool_id="1", name=tool, summary=said),
            ToolEnded(tool_id="1", ok=False, summary=why),
            RetrySeen(status=500, detail=detail),
            LimitSeen(detail=detail),
            WritesLost(detail=detail),
            Unrecognised(text=said),
            CollisionSeen(session_id=session, detail=detail),
            SessionRetired(session_id=session, cause=why),
            VerifyEnded(code=1, output=said, command=tool, log=path),
            ToolDenied(tool_id="2", name=tool, summary=said, reason=why),
            QuestionAsked(tool_id="3", text=ask or said, options=(why,)),
            LeftoversFound(processes=(Leftover(pid=1, command=said, age_s=1.0),), count=1),
            WorkSeen(
                against=branch,
                files=(FileOfWork(name=path, state="added", added=1, removed=0),),
                file_count=1,
                commits=(CommitOfWork(id="cd" * 20, subject=said),),
                commit_count=1,
                pushed=False,
            ),
        ],
    )
    saved = Saved(
        commit="ab" * 20,
        ref="refs/x",
        git_dir="/nowhere",
        head=version,
        branch=branch,
        left_out=((path, why),),
    )
    store.add_checkpoint(
        Checkpoint(
            run=found.id,
            number=1,
            attempt=1,
            at=store.now(),
            why=why,
            workdir=saved,
            session_id=session,
            conversation=(CopyPart(session, "main", 1, ""),),
        ),
        claim,
    )
    condition = (
        Condition(type="needs_person", message=ask, at=1)
        if state is RunState.FAILED and number % 8 == 1
        else None
    )
    kind = (
        OutcomeKind.SUCCEEDED
        if state is RunState.SUCCEEDED
        else OutcomeKind.CANCELLED
        if state is RunState.CANCELLED
        else OutcomeKind.FAILED
    )
    receipt = Receipt(
        verdict=Verdict.FRESH, reasons=(why, reason), evidence=Evidence(asked=session)
    )
    store.finish(
        claim,
        Ending(
            outcome=Outcome(kind=kind, detail=detail),
            receipt=receipt,
            usage=Usage(input=100, output=10, cost_usd=0.01),
            fill=Fill(tokens=10, window=100, model=flag),
            decision=Decision(
                state=state,
                reason=reason,
                run_after=store.now() + 10**8 if state is RunState.QUEUED else 0,
                condition=condition,
            ),
        ),
    )


def everything(store: SqlStore) -> None:
    """Make one run whose log has all payloads."""
    place = Workspace(id="all", path="/nowhere/all", backend=Backend.TASK)
    found = store.add(TaskSpec(prompt="everything"), "e" * 32, "everything", place)
    claim = store.claim("pool", 600, found.id)
    assert claim is not None
    store.record(claim, [Said(text=storable(each)) for each in PAYLOADS])
    store.finish(
        claim,
        Ending(outcome=Outcome(kind=OutcomeKind.FAILED), decision=Decision(state=RunState.FAILED)),
    )


def delivery(number: int, payload: str) -> Arrived:
    intent = Intent(
        kind=IntentKind.COMMENTED,
        forge=Forge.GITEA,
        repository=payload,
        number=number + 1,
        author=payload,
        whom=(payload,),
        labels=(payload,),
        title=payload,
        description=payload,
        text=payload,
        branch=payload,
        url=f"https://tea.example/{payload}" if number % 2 else payload,
    )
    body = f'{{"body": "{number}", "text": {payload!r}}}'
    digest = hashlib.sha256(body.encode()).hexdigest()
    return Arrived(
        source="tea",
        id=f"{number}-{payload}",
        forge=Forge.GITEA,
        event=payload[:100],
        sha256=digest,
        body=body,
        reading=PayloadReading(intent=intent),
    )


def plan(store: SqlStore) -> None:
    tasks = (
        PlanTask(name="one", prompt="x", agent="claude"),
        PlanTask(name="two", prompt="x", agent=PAYLOADS[0], needs=("one",)),
    )
    made = Plan(name="hostile", tasks=tasks, repo=PAYLOADS[17], verify=PAYLOADS[2])
    strands = assign_strands(made, lambda agent: Forking.ANYWHERE)
    store.add_plan(
        PlanRun(
            id="p" * 32,
            name="hostile",
            plan=made,
            strands=strands,
            seed=TaskSpec(prompt="", repo=PAYLOADS[17]),
            file=PAYLOADS[4],
            reason=PAYLOADS[69],
        )
    )


def fill_many(database: Path, many: int) -> None:
    """Fill a store with many queued runs, all with long prompts."""
    database.parent.mkdir(parents=True, exist_ok=True)
    with closing(stores.open(database)) as store:
        place = Workspace(id="", path="/nowhere", backend=Backend.TASK)
        for number in range(many):
            spec = TaskSpec(prompt=f"task {number}: " + "look into it. " * 50)
            store.add(
                spec,
                f"{number:032x}",
                f"n-{number}",
                replace(place, id=str(number), path=f"/nowhere/{number}"),
            )
