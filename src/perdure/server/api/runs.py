"""Verbs for runs: submit, show, continue, stop, fork, restore, remove."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from msgspec import UNSET

from perdure.config import Settings
from perdure.config.files import LIMITS
from perdure.engine import checkpoints, service, steering
from perdure.engine.conversations import ForkRequest, fork
from perdure.engine.report import report_of, row_of, why_of
from perdure.engine.service import liveness_of
from perdure.errors import Conflict, NotFound, UsageError
from perdure.host.wakeup import ring
from perdure.model import Permissions, TaskRun, TaskSpec, TokenScope
from perdure.model.forge.postings import OWN_LABELS
from perdure.model.reports import RunReport, WhyReport
from perdure.rules.specification import with_defaults
from perdure.rules.text import visible
from perdure.server.api import forms
from perdure.server.api.shapes import Checkpoints, Records, Removed, Restored, Runs
from perdure.server.api.verbs import ApiCall, Raw, Verb, page_of
from perdure.server.context import Parts
from perdure.server.limits import Reach, refuse_outside, refuse_shared
from perdure.server.principal import Principal
from perdure.server.problems import Problem
from perdure.workspace.identity import is_remote

COLUMNS = 100
"""Width of a diff's summary, in characters."""
RAW_MOST = 16 * 1024 * 1024
"""Maximum number of bytes of an agent's raw output in an answer. If the output is longer, only its
end is returned."""
PATCH_MOST = 64 * 1024 * 1024
"""Maximum size of a patch in bytes. A patch is held in memory, so its size must be limited."""
ADMIN_ONLY = frozenset({"here", "agent_args", "env", "pass_env", "verify"})
"""Fields of a task that only an admin may set. With them, a client could run commands on the
server, pass the service's environment variables on, or choose any directory."""
LIMIT_OF = {
    "attempts": "attempts",
    "timeout_s": "timeout",
    "stall_s": "stall",
    "budget_usd": "budget_usd",
}
LIMIT_OF |= {"verify_timeout_s": "verify_timeout"}
assert set(LIMIT_OF.values()) == LIMITS


def report(parts: Parts, ref: str) -> RunReport:
    """Return the report of a run, as `perdure show --json` prints it."""
    run = parts.store.get(ref)
    liveness = liveness_of(parts.store, parts.engine.state, parts.engine.host, run)
    return report_of(
        parts.store, parts.store.get(ref) if liveness is None else run, liveness=liveness
    )


def ready(parts: Parts, run: TaskRun) -> RunReport:
    """Wake the pools, because the run may be due now. Return the run's report."""
    ring(parts.engine.state)
    return report(parts, run.id)


def listed(parts: Parts, asked: ApiCall) -> Runs:
    wanted = asked.query
    rows = parts.store.find(
        wanted.state,
        wanted.limit + 1,
        before=int(wanted.cursor or 0),
        agent=wanted.agent,
        scope=wanted.scope,
    )
    shown, last = page_of(rows, wanted.limit)
    told = []
    for row in shown:
        told.append(
            row_of(
                parts.store,
                row,
                liveness_of(parts.store, parts.engine.state, parts.engine.host, row),
            )
        )
    cursor = str(last.ordinal) if last is not None else None
    return Runs(schema_version=1, runs=told, next=cursor)


def submitted(parts: Parts, asked: ApiCall) -> RunReport:
    spec = task_of(parts, asked.body, asked.who)
    with hiding_other_runs(asked.who):
        run = service.submit(parts.engine, spec, Path("/"))
    return ready(parts, run)


@contextmanager
def hiding_other_runs(who: Principal) -> Iterator[None]:
    """Context manager for a block that submits a task. If the client has limits, a Conflict of the
    block is replaced by one that does not name the other run."""
    try:
        yield
    except Conflict:
        if not who.limits:
            raise
        # The original error names the run that already has this name or key. That run may be
        # outside of the client's limits.
        raise Conflict(
            "The name or the key of the task is taken by another run", "choose another one"
        ) from None


class Usual(Protocol):
    """A source of the settings and default values that `task_of` needs."""

    @property
    def settings(self) -> Settings: ...
    @property
    def seed(self) -> TaskSpec: ...


def task_of(parts: Usual, given: object, who: Principal) -> TaskSpec:
    """Return the task for a request. `given` has the request's fields as attributes; other fields
    come from the settings of the service. Raises Problem with 403 if the client may not submit such
    a task, and UsageError if the task is not valid."""
    settings = parts.settings
    said = {}
    for each in TaskSpec.__struct_fields__:
        if getattr(given, each, UNSET) is not UNSET:
            said[each] = getattr(given, each)
    if not who.may_widen:
        refuse_widening(said, settings)
    if own := sorted(OWN_LABELS & said.get("labels", {}).keys()):
        raise UsageError(
            f"perdure itself sets these labels: {', '.join(own)}", "choose other names"
        )
    if not {"repo", "here", "service"} & {name for name, value in said.items() if value}:
        raise UsageError(
            "missing the repository or service of the task",
            "give repo (an https address), or service and task",
        )
    if (repo := said.get("repo", "")) and not is_remote(repo) and not Path(repo).is_absolute():
        raise UsageError("A repository on the server's disk needs an absolute path")
    if (here := said.get("here", "")) and not Path(here).is_absolute():
        raise UsageError("A directory on the server's disk needs an absolute path")
    if who.limits:
        said["labels"] = {**who.limits.own_labels, **said.get("labels", {})}
        refuse_outside(who.limits, said.get("repo", ""), said["labels"])
        refuse_shared(who.limits, said)
    return with_defaults(parts.seed, said)


def refuse_widening(said: Mapping[str, Any], settings: Settings) -> None:
    """Raise Problem with 403 if the given fields (`said`) of a task go beyond the owner's settings.
    Some clients may go beyond these settings (`Principal.may_widen`); for them, callers skip this
    check."""
    beyond = sorted(name for name in ADMIN_ONLY & said.keys() if said[name])
    if said.get("permissions") is Permissions.FULL and settings.permissions is not Permissions.FULL:
        beyond.append("permissions: full")
    if (repo := said.get("repo", "")) and not repo.startswith("https://"):
        beyond.append("repo, unless it is an https address")
    for name, setting in sorted(LIMIT_OF.items()):
        if name in said and (said[name] or math.inf) > (getattr(settings, setting) or math.inf):
            beyond.append(name)
    if beyond:
        raise Problem(
            403,
            f"This needs the scope admin: {', '.join(beyond)}",
            "leave it out, or create a token: perdure token new NAME --scope admin",
        )


def shown(parts: Parts, asked: ApiCall) -> RunReport:
    return report(parts, asked.at["run"])


def why(parts: Parts, asked: ApiCall) -> WhyReport:
    return why_of(report(parts, asked.at["run"]))


def records(parts: Parts, asked: ApiCall) -> Records:
    run, wanted = parts.store.get(asked.at["run"]), asked.query
    found = parts.store.history(run.id, wanted.after, wanted.limit)
    return Records(
        schema_version=1,
        run=run.name,
        records=[record for record in found if wanted.attempt in (0, record.attempt)],
        next=found[-1].seq if len(found) == wanted.limit else None,
    )


def raw(parts: Parts, asked: ApiCall) -> Raw:
    run, number = parts.store.get(asked.at["run"]), asked.query.attempt
    attempt = next((each for each in parts.store.attempts(run.id) if each.number == number), None)
    if attempt is None:
        raise NotFound(f"{run.name} has no attempt {number}", f"perdure show {run.name}")
    try:
        with (Path(attempt.directory or "/nonexistent") / "stdout").open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - RAW_MOST))
            return Raw(content=file.read(RAW_MOST), name=f"{run.name}-{number}.log")
    except OSError:
        raise NotFound(
            f"The output of attempt {number} of {run.name} is not on this host",
            f"perdure logs {run.name}",
        ) from None


def diff(parts: Parts, asked: ApiCall) -> Raw:
    name = parts.store.get(asked.at["run"]).name
    if asked.query.stat:
        text = visible(
            service.diff(
                parts.engine.store,
                parts.engine.workspaces,
                parts.engine.host,
                asked.at["run"],
                stat=COLUMNS,
                most=PATCH_MOST,
            ).decode("utf-8", "replace")
        )
        return Raw(content=text.encode(), name=f"{name}.stat")
    return Raw(
        content=service.diff(
            parts.engine.store,
            parts.engine.workspaces,
            parts.engine.host,
            asked.at["run"],
            binary=True,
            most=PATCH_MOST,
        ),
        name=f"{name}.patch",
    )


def saved(parts: Parts, asked: ApiCall) -> Checkpoints:
    run = parts.store.get(asked.at["run"])
    newest_first = list(reversed(parts.store.checkpoints(run.id)))
    return Checkpoints(schema_version=1, run=run.name, checkpoints=newest_first)


def retried(parts: Parts, asked: ApiCall) -> RunReport:
    given = {}
    for name in service.Changes.__struct_fields__:
        value = getattr(asked.body, name)
        if value is not None:
            given[name] = value
    if not asked.who.may_widen:
        refuse_widening(given, parts.settings)
    return ready(
        parts,
        service.retry(parts.engine, asked.at["run"], asked.body.agent, service.Changes(**given)),
    )


def updated(parts: Parts, asked: ApiCall) -> RunReport:
    given = {name: getattr(asked.body, name) for name in service.POLICIES}
    changes = service.Changes(**given)
    run = service.update(parts.engine, asked.at["run"], asked.body.prompt, changes=changes)
    return ready(parts, run)


def send_message(parts: Parts, asked: ApiCall) -> RunReport:
    """Send a message to a run's agent and return the run's report. If the run has just ended, it
    continues with the message."""
    done = steering.tell(
        parts.engine.store, parts.engine.state, asked.at["run"], asked.body.prompt, asked.body.key
    )
    return ready(parts, done.run)


def stopped(parts: Parts, asked: ApiCall) -> RunReport:
    return report(parts, service.stop(parts.engine, asked.at["run"]).id)


def forked(parts: Parts, asked: ApiCall) -> RunReport:
    said = asked.body
    refuse_shared(asked.who.limits, {"branch": said.branch})
    wanted = ForkRequest(
        prompt=said.prompt,
        at=said.at,
        checkpoint=said.checkpoint,
        name=said.name,
        branch=said.branch,
    )
    return ready(parts, fork(parts.engine, asked.at["run"], wanted))


def restored(parts: Parts, asked: ApiCall) -> Restored:
    done = checkpoints.restore(
        parts.engine, asked.at["run"], asked.body.checkpoint, files_only=asked.body.files_only
    )
    return Restored(
        schema_version=1,
        run=done.run.name,
        checkpoint=done.checkpoint,
        undo=done.undo,
        transcript=done.transcript,
    )


def removed(parts: Parts, asked: ApiCall) -> Removed:
    done = service.remove(
        parts.engine.store,
        parts.engine.workspaces,
        parts.engine.host,
        asked.at["run"],
        force=asked.query.force,
    )
    return Removed(
        schema_version=1,
        run=done.run.name,
        id=done.run.id,
        trash=done.trash.name if done.trash is not None else None,
        kept=done.kept,
        unsaved=list(done.unsaved),
    )


ADMIN, DISPATCH = TokenScope.ADMIN, TokenScope.DISPATCH
RUN = "/runs/{run}"

VERBS = (
    Verb(
        method="GET",
        path="/runs",
        says="Runs, newest first, as `perdure ls` lists them.",
        does=listed,
        answer="Runs",
        query=forms.RunsQuery,
        reach=Reach.LIST,
    ),
    Verb(
        method="POST",
        path="/runs",
        says="Submits a task. The same `key` and task is the same run.",
        does=submitted,
        answer="Run",
        scope=DISPATCH,
        body=forms.Submit,
        status=201,
        reach=Reach.TASK,
    ),
    Verb(
        method="GET",
        path=RUN,
        says="A run with its attempts and receipts, as `perdure show` has it.",
        does=shown,
        answer="Run",
    ),
    Verb(
        method="GET",
        path=f"{RUN}/why",
        says="How each attempt started, its evidence and its receipt.",
        does=why,
        answer="Why",
    ),
    Verb(
        method="GET",
        path=f"{RUN}/logs",
        says="Records of the run's journal, oldest first.",
        does=records,
        answer="Records",
        query=forms.RecordsQuery,
    ),
    Verb(
        method="GET",
        path=f"{RUN}/raw",
        says="The agent's own output in one attempt, its last 16 MiB: hostile bytes.",
        does=raw,
        answer="text",
        query=forms.RawQuery,
    ),
    Verb(
        method="GET",
        path=f"{RUN}/diff",
        says="What the run changed, as a patch that `git apply` takes.",
        does=diff,
        answer="text",
        query=forms.DiffQuery,
    ),
    Verb(
        method="GET",
        path=f"{RUN}/checkpoints",
        says="Checkpoints of the run, newest first.",
        does=saved,
        answer="Checkpoints",
    ),
    Verb(
        method="POST",
        path=f"{RUN}/retry",
        says="Continues where the run stopped.",
        does=retried,
        answer="Run",
        scope=DISPATCH,
        body=forms.Retry,
    ),
    Verb(
        method="POST",
        path=f"{RUN}/update",
        says="Gives the run new instructions, in the same conversation.",
        does=updated,
        answer="Run",
        scope=DISPATCH,
        body=forms.Update,
    ),
    Verb(
        method="POST",
        path=f"{RUN}/tell",
        says="Tells the running agent something, without ending its turn; its state is in "
        "`messages`.",
        does=send_message,
        answer="Run",
        scope=DISPATCH,
        body=forms.MessageForm,
    ),
    Verb(
        method="POST",
        path=f"{RUN}/stop",
        says="Stops the run; a retry continues it later.",
        does=stopped,
        answer="Run",
        scope=DISPATCH,
        body=forms.Body,
    ),
    Verb(
        method="POST",
        path=f"{RUN}/fork",
        says="Forks the run: a new run starts from its conversation and files.",
        does=forked,
        answer="Run",
        scope=DISPATCH,
        body=forms.Fork,
        status=201,
    ),
    Verb(
        method="POST",
        path=f"{RUN}/restore",
        says="Restores workdir and conversation from a checkpoint; the present state is saved "
        "first.",
        does=restored,
        answer="Restored",
        scope=DISPATCH,
        body=forms.Restore,
    ),
    Verb(
        method="DELETE",
        path=RUN,
        says="Removes a finished run; its workdir goes to the trash if all of it is saved.",
        does=removed,
        answer="Removed",
        scope=ADMIN,
        query=forms.RemoveQuery,
    ),
)
