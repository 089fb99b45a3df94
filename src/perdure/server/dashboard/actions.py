"""Actions on runs. Each does the same as a command of the command line, by the same rules."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

from starlette.responses import Response

from perdure.engine import service, steering
from perdure.engine.checkpoints import restore
from perdure.engine.sweeper import Target, reset
from perdure.errors import NotFound, UsageError
from perdure.model import RunState
from perdure.model.requests import AnswerKind
from perdure.rules.text import clock
from perdure.server.api.runs import hiding_other_runs, task_of
from perdure.server.dashboard.visits import Field, Visit, ask
from perdure.server.problems import Problem

ROOT = Path("/")
"""Directory from which relative paths are resolved. It is fixed, so that the server's working
directory does not matter."""


def retry(visit: Visit) -> Response:
    run = service.retry(visit.desk.engine, visit.named("name"))
    visit.desk.ring()
    return visit.to(f"/runs/{run.name}", "retried")


def ask_update(visit: Visit) -> Response:
    run = visit.desk.look.get(visit.named("name"))
    if run.state is RunState.RUNNING:
        at_work = [f"{run.name} is running: the agent gets them when its attempt has ended."]
    else:
        at_work = []
    return ask(
        visit,
        f"New instructions for {run.name}",
        yes="Send",
        back=f"/runs/{run.name}",
        consequences=at_work,
        fields=[
            Field(
                "prompt",
                "The same conversation continues with only what is new",
                "text",
                needed=True,
            )
        ],
    )


def update(visit: Visit) -> Response:
    run = service.update(visit.desk.engine, visit.named("name"), visit.given("prompt").strip())
    visit.desk.ring()
    return visit.to(f"/runs/{run.name}", "updated")


def ask_tell(visit: Visit) -> Response:
    run = visit.desk.look.get(visit.named("name"))
    return ask(
        visit,
        f"Tell {run.name} something",
        yes="Tell",
        back=f"/runs/{run.name}",
        consequences=[
            "The agent gets it while it works, if its CLI can take it; else when it has ended "
            "its turn."
        ],
        fields=[Field("prompt", "A message for the running agent", "text", needed=True)],
    )


def tell(visit: Visit) -> Response:
    run = steering.tell(
        visit.desk.engine.store,
        visit.desk.engine.state,
        visit.named("name"),
        visit.given("prompt").strip(),
    ).run
    visit.desk.ring()
    return visit.to(f"/runs/{run.name}", "told")


def answer(visit: Visit) -> Response:
    """Store the user's answer to a request of the run's agent. Only an admin may allow a tool
    call."""
    given = visit.given("answer")
    if given not in tuple(AnswerKind):
        raise UsageError("expected allow, deny or text as the answer", "use the buttons")
    kind = AnswerKind(given)
    if kind is AnswerKind.ALLOW and not visit.may("admin"):
        raise Problem(403, "Only a token with the scope admin allows a call", "sign in with one")
    run, _ = service.answer(
        visit.desk.engine,
        visit.named("name"),
        visit.number("request"),
        kind,
        visit.given("words").strip(),
    )
    visit.desk.ring()
    return visit.to(f"/runs/{run.name}", "answered")


def ask_stop(visit: Visit) -> Response:
    run = visit.desk.look.get(visit.named("name"))
    running = run.state is RunState.RUNNING
    if running:
        follows = ["The agent is stopped; its workdir and conversation are saved as a checkpoint."]
    else:
        follows = []
    follows += [] if running else ["It is not running; it leaves the queue."]
    return ask(
        visit,
        f"Stop {run.name}?",
        yes="Stop it",
        back=f"/runs/{run.name}",
        consequences=follows,
        undo="Retry continues where it stopped.",
    )


def stop(visit: Visit) -> Response:
    run = service.stop(visit.desk.engine, visit.named("name"))
    return visit.to(f"/runs/{run.name}", "stopped")


def ask_reset(visit: Visit) -> Response:
    """Show a page that asks for confirmation of a reset. It contains the result of a dry run."""
    run = visit.desk.look.get(visit.named("name"))
    found = reset(
        visit.desk.engine.store,
        visit.desk.engine.workspaces,
        visit.desk.engine.host,
        Target(run=run.id),
        ROOT,
        dry=True,
    )
    others = [each.name for each in found.runs if each.id != run.id]
    return ask(
        visit,
        f"Reset {run.name}?",
        yes="Reset",
        back=f"/runs/{run.name}",
        danger=True,
        consequences=[
            "The next attempt starts a new conversation in a new workdir. Nothing is deleted: the "
            "workdir goes to the trash."
        ],
        lists=[
            ("These start over too, because they share its workdir or conversation", others),
            ("Kept only in the trash", found.unsaved),
            ("Not changed", found.kept),
        ],
        undo="perdure trash restore restores it, files and conversation.",
    )


def do_reset(visit: Visit) -> Response:
    run = visit.desk.look.get(visit.named("name"))
    reset(
        visit.desk.engine.store,
        visit.desk.engine.workspaces,
        visit.desk.engine.host,
        Target(run=run.id),
        ROOT,
    )
    return visit.to(f"/runs/{run.name}", "reset")


def ask_remove(visit: Visit) -> Response:
    run = visit.desk.look.get(visit.named("name"))
    place = run.workspace
    if place is not None and place.backend != "here":
        lost = visit.desk.engine.workspaces.unsaved(place)
    else:
        lost = []
    if lost:
        fields = [
            Field("force", "remove it even if it has unsaved changes: the trash keeps them", "tick")
        ]
    else:
        fields = []
    return ask(
        visit,
        f"Remove {run.name}?",
        yes="Remove",
        back=f"/runs/{run.name}",
        danger=True,
        fields=fields,
        consequences=[
            "Its workdir goes to the trash; the branch, the journal and perdure's copies of the "
            "conversation stay."
        ],
        lists=[("Kept only in the trash", list(lost))],
        undo="perdure trash restore restores it.",
    )


def remove(visit: Visit) -> Response:
    service.remove(
        visit.desk.engine.store,
        visit.desk.engine.workspaces,
        visit.desk.engine.host,
        visit.named("name"),
        force=visit.given("force") == "yes",
    )
    return visit.to("/", "removed")


def ask_restore(visit: Visit) -> Response:
    run = visit.desk.look.get(visit.named("name"))
    wanted = visit.named("number")
    checkpoints = {str(each.number): each for each in visit.desk.look.checkpoints(run.id)}
    if wanted not in checkpoints:
        raise NotFound(f"{run.name} has no checkpoint {wanted}", f"perdure checkpoints {run.name}")
    checkpoint = checkpoints[wanted]
    left_out = [f"{name}: {why}" for name, why in checkpoint.workdir.left_out[:20]]
    return ask(
        visit,
        f"Restore {run.name} to checkpoint {checkpoint.number}?",
        yes="Restore",
        back=f"/runs/{run.name}/checkpoints",
        danger=True,
        consequences=[
            f"Workdir and conversation will be as they were {clock(checkpoint.at)}, in attempt "
            f"{checkpoint.attempt}.",
            "The present state is saved first, as a checkpoint of its own.",
        ],
        fields=[
            Field("files", "restore only the workdir; the conversation stays as it is", "tick")
        ],
        lists=[("Not in that checkpoint", left_out)],
        undo="To undo: restore the newest checkpoint.",
    )


def do_restore(visit: Visit) -> Response:
    run = visit.desk.look.get(visit.named("name"))
    number = visit.named("number")
    if not number.isdecimal() or not 0 < len(number) < 10:
        raise UsageError(
            f"{number!r} is not the number of a checkpoint", f"perdure checkpoints {run.name}"
        )
    restore(visit.desk.engine, run.id, int(number), files_only=visit.given("files") == "yes")
    return visit.to(f"/runs/{run.name}/checkpoints", "restored")


def ask_new(visit: Visit) -> Response:
    """Show `/new`, the form for a task in a repository."""
    fields = [
        Field("prompt", "Prompt", "text", needed=True),
        Field("repo", "Repository", hint=_repositories(visit), needed=True),
        Field("agent", "Agent", "choice", visit.desk.settings.agent, options=visit.desk.agents),
        Field("branch", "Branch", hint="default: perdure/NAME"),
        Field("name", "Name", hint="default: a generated name"),
    ]
    return ask(visit, "New task", yes="Begin", back="/", fields=fields)


def new(visit: Visit) -> Response:
    given = {}
    for name in ("repo", "name", "agent", "branch"):
        if text := visit.given(name).strip():
            given[name] = text
    if "repo" not in given:
        raise UsageError("missing the repository", _repositories(visit))
    spec = task_of(
        visit.desk, SimpleNamespace(prompt=visit.given("prompt").strip(), **given), visit.principal
    )
    with hiding_other_runs(visit.principal):
        run = service.submit(visit.desk.engine, spec, Path("/"))
    visit.desk.ring()
    return visit.to(f"/runs/{run.name}", "begun")


def _repositories(visit: Visit) -> str:
    if visit.principal.may_widen:
        return "a path on the server, or an address"
    return "an https address"
