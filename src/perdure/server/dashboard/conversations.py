"""The pages of conversations and of plans. A person can search, read, resume and fork the
conversations on this machine and in the store. The page of a plan shows its tasks in columns; tasks
in one column may run at the same time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from msgspec.structs import replace
from starlette.responses import Response

from perdure.engine.conversations import ConversationEntry, ForkRequest, ResumeRequest, fork, resume
from perdure.engine.plans import report_of
from perdure.engine.service import probe_of
from perdure.model.reports import TaskOfPlan
from perdure.rules.run_titles import worker_of
from perdure.rules.specification import with_defaults
from perdure.server.api.runs import refuse_widening
from perdure.server.dashboard.visits import Field, Visit, ask
from perdure.server.limits import refuse_shared

LIMIT = 400
SHOWN = 100
SAID = 60
LONGEST = 6000


def sessions(visit: Visit) -> Response:
    """Show `/sessions`: conversations, newest first. The parameter `q` searches id, agent, run,
    directory, title and first words."""
    words, state = visit.asked("q").strip().lower(), visit.asked("state")
    entries = visit.desk.conversations().entries(LIMIT)
    states = sorted({entry.state for entry in entries})
    found = []
    for entry in entries:
        if (not state or entry.state == state) and _has(entry, words):
            found.append(entry)
    return visit.page(
        "sessions.html",
        entries=found[:SHOWN],
        left=len(found[SHOWN:]),
        words=visit.asked("q"),
        state=state,
        states=states,
    )


def _has(entry: ConversationEntry, words: str) -> bool:
    run, who = entry.run.name if entry.run else "", worker_of(entry.role, entry.agent)
    text = f"{entry.id} {who} {run} {entry.cwd} {entry.title} {entry.first}".lower()
    return all(word in text for word in words.split())


def session(visit: Visit) -> Response:
    """Show `/sessions/ID`: the latest messages, the lineage, and the actions."""
    index = visit.desk.conversations()
    entry = index.find(visit.named("id"))
    spoken = [replace(each, text=each.text[:LONGEST]) for each in list(index.spoken(entry))[-SAID:]]
    facts: Mapping[str, Any] = {
        "agent": worker_of(entry.role, entry.agent),
        "state": entry.state,
        "directory": entry.cwd,
        "turns": entry.turns or "unknown",
    }
    return visit.page(
        "session.html", entry=entry, lineage=index.lineage(entry), spoken=spoken, facts=facts
    )


def ask_resume(visit: Visit) -> Response:
    """Show `/sessions/ID/resume`, which asks for instructions before resuming."""
    entry = _to_resume(visit)
    unfinished = entry.run is not None and entry.run.state != "succeeded"
    hint = "default: continue the task" if unfinished else ""
    name = entry.run.name if entry.run else entry.id[:13]
    return ask(
        visit,
        f"Continue {name}?",
        back=f"/sessions/{quote(entry.id, safe='')}",
        yes="Resume",
        consequences=[f"It is about: {entry.title}"] if entry.title else [],
        fields=[Field("prompt", "New instructions", "text", hint=hint, needed=not unfinished)],
    )


def do_resume(visit: Visit) -> Response:
    entry = _to_resume(visit)
    # The conversation continues with its own model. The model in the settings may be for another
    # agent.
    given = {"prompt": visit.given("prompt").strip(), "model": ""}
    spec = with_defaults(visit.desk.seed, given)
    run = resume(visit.desk.engine, entry, ResumeRequest(spec=spec))
    visit.desk.ring()
    return visit.to(f"/runs/{run.name}", "resumed")


def _to_resume(visit: Visit) -> ConversationEntry:
    entry = visit.desk.conversations().find(visit.named("id"))
    if entry.run is None and not visit.principal.may_widen:
        # A conversation without a run would continue in the directory where it began. That may be
        # any directory, so it counts like the field `here`, which only an admin may set.
        refuse_widening({"here": "its own directory"}, visit.desk.settings)
    return entry


def ask_fork(visit: Visit) -> Response:
    """Show `/runs/NAME/fork`, the form for a fork. With the parameter `checkpoint`, the fork begins
    at that checkpoint."""
    run = visit.desk.look.get(visit.named("name"))
    if visit.asked("checkpoint").isdecimal():
        checkpoint = visit.asked("checkpoint")
    else:
        checkpoint = ""
    if checkpoint:
        where = f"at checkpoint {checkpoint}"
    else:
        where = "its present state"
    fields = [
        Field("prompt", "Prompt of the fork", "text", hint="default: finish the task"),
        Field("name", "Its name", hint="default: a generated name"),
        Field("branch", "Its branch", hint="default: perdure/NAME"),
    ]
    fields += [Field("checkpoint", "Checkpoint", value=checkpoint)] if checkpoint else []
    fields += [] if checkpoint else [Field("at", "Start after turn", hint="default: the last turn")]
    return ask(
        visit,
        f"Fork {run.name} {where}?",
        back=f"/runs/{run.name}",
        yes="Fork",
        fields=fields,
        consequences=[
            f"A new run with the conversation and the files of {run.name}, in a workdir of its "
            f"own. {run.name} stays as it is."
        ],
    )


def do_fork(visit: Visit) -> Response:
    refuse_shared(visit.principal.limits, {"branch": visit.given("branch").strip()})
    wanted = ForkRequest(
        prompt=visit.given("prompt").strip(),
        at=visit.number("at"),
        checkpoint=visit.number("checkpoint"),
        name=visit.given("name").strip(),
        branch=visit.given("branch").strip(),
    )
    run = fork(visit.desk.engine, visit.named("name"), wanted)
    visit.desk.ring()
    return visit.to(f"/runs/{run.name}", "forked")


def plans(visit: Visit) -> Response:
    """Show `/plans`, the list of plans."""
    look, probe = visit.desk.look, probe_of(visit.desk.engine.state, visit.desk.engine.host)
    reports = [report_of(look, each, probe) for each in look.plans(SHOWN)]
    return visit.page("plans.html", plans=reports)


def plan(visit: Visit) -> Response:
    """Show `/plans/NAME`, the tasks of one plan."""
    look = visit.desk.look
    report = report_of(
        look,
        look.plan(visit.named("name")),
        probe_of(visit.desk.engine.state, visit.desk.engine.host),
    )
    return visit.page("plan.html", plan=report, columns=columns(report.tasks), here=visit.here)


def columns(tasks: Sequence[TaskOfPlan]) -> list[list[TaskOfPlan]]:
    """Return the tasks in columns, from left to right. Each task is in a later column than all
    tasks that it needs."""
    depth: dict[str, int] = {}
    left = list(tasks)
    while left:
        ready = [each for each in left if all(name in depth for name in each.needs)]
        # This never happens, because a plan with a cycle is refused when it is submitted.
        if not ready:
            ready = left
        for each in ready:
            depth[each.name] = 1 + max((depth.get(name, 0) for name in each.needs), default=0)
        left = [each for each in left if each.name not in depth]
    found = []
    for column in range(1, max(depth.values(), default=0) + 1):
        found.append([each for each in tasks if depth[each.name] == column])
    return found
