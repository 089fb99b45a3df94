"""The fields of requests, in the query and in the body. They are validated before any work begins.
An unknown field is refused."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_type_hints

from msgspec import UNSET, Meta, Struct, UnsetType, defstruct

from perdure.model import (
    ContinuityPolicy,
    OnDenied,
    OnLeftover,
    Permissions,
    RunState,
    TaskSpec,
)
from perdure.model.forge.deliveries import DeliveryState
from perdure.model.requests import AnswerKind

LARGEST = 2**53
LINE = r"^[^\u0000-\u001f\u007f]*$"

Line = Annotated[str, Meta(max_length=1000, pattern=LINE)]
"""Text in one line, without control characters."""
Text = Annotated[str, Meta(max_length=2_000_000, pattern=r"^[^\u0000]*$")]
Some = Annotated[str, Meta(min_length=1, max_length=2_000_000, pattern=r"^[^\u0000]*$")]
Count = Annotated[int, Meta(ge=0, le=LARGEST)]
Small = Annotated[int, Meta(ge=0, le=1000)]
Limit = Annotated[int, Meta(ge=1, le=500, description="maximum number")]
Number = Annotated[float, Meta(ge=0, le=1e9)]

INTERNAL = frozenset({"forks", "fork_at", "conflicts", "rule", "title", "link"})
"""Fields of a task that only perdure itself sets."""
GIVEN = (
    *(
        "agent",
        "name",
        "key",
        "repo",
        "base",
        "branch",
        "here",
        "service",
        "task",
        "scope",
        "backend",
        "model",
        "permissions",
        "agent_args",
    ),
    *(
        "env",
        "pass_env",
        "timeout_s",
        "stall_s",
        "attempts",
        "budget_usd",
        "continuity",
        "when_full",
        "on_denied",
        "last_word",
        "on_leftover",
        "verify",
        "files",
        "verify_rounds",
    ),
    *("verify_timeout_s", "labels", "map"),
)
"""Fields of a task that a request may set. A new field must be added here or to `INTERNAL`;
otherwise the API does not start."""
TYPES: dict[Any, Any] = {
    str: Line,
    int: Small,
    float: Number,
    tuple[str, ...]: Annotated[tuple[Line, ...], Meta(max_length=100)],
    dict[str, str]: Annotated[dict[Line, Text], Meta(max_length=100)],
}


class Query(Struct, forbid_unknown_fields=True, kw_only=True):
    """A query without parameters. Base class of the other queries."""


class Page(Query):
    """Selects a page of a list."""

    limit: Limit = 50


class RunsQuery(Page):
    """Selects runs, in pages."""

    state: tuple[RunState, ...] = ()
    agent: Line = ""
    scope: Line = ""
    cursor: Annotated[
        str, Meta(pattern=r"^[0-9]{0,15}$", description="`next` of the page before")
    ] = ""


class RecordsQuery(Query):
    """Selects records of a run's journal. `after` is the number of the last record to skip."""

    after: Count = 0
    limit: Annotated[int, Meta(ge=1, le=5000)] = 1000
    attempt: Small = 0


class RawQuery(Query):
    """Selects the attempt whose raw output is returned."""

    attempt: Annotated[int, Meta(ge=1, le=1_000_000)] = 1


class DiffQuery(Query):
    """Options of a diff. `stat` requests a summary instead of the patch."""

    stat: bool = False


class SessionsQuery(Page):
    """Selects conversations."""

    agent: tuple[Line, ...] = ()


class StatsQuery(Query):
    """Selects the attempts to count in the statistics."""

    agent: tuple[Line, ...] = ()
    scope: Line = ""
    since: Annotated[
        str, Meta(pattern=r"^([0-9]{1,9}(\.[0-9]{1,9})?[smhd]?)?$", description="24h, 7d, ...")
    ] = ""


class InboxQuery(Page):
    """Selects deliveries by state and source. `before` is a delivery's number; only deliveries with
    smaller numbers are returned."""

    state: DeliveryState | None = None
    source: Line = ""
    before: Count = 0


class AuditQuery(Query):
    """Selects lines of the audit trail. `actor` is a part of the actor's name. `run` is a run's
    name or id. `since` is a time in milliseconds since 1970. `after` is a line's number; only lines
    with greater numbers are returned."""

    since: Count = 0
    actor: Line = ""
    run: Line = ""
    after: Count = 0
    limit: Limit = 100


class RemoveQuery(Query):
    """Options for removing a run. `force` removes it even if its workdir has unsaved changes."""

    force: bool = False


class SweepQuery(Query):
    """Options of the preview of a sweep. `all` also returns the entries that the sweep would
    keep."""

    all: bool = False


class Body(Struct, forbid_unknown_fields=True, kw_only=True):
    """A body without fields: an empty object. Base class of the other bodies."""


class Retry(Body):
    """Continues a run. `agent` hands the run over to another agent. `attempts` is the number of
    further attempts (default: one). Every other given field permanently replaces the same field of
    the task."""

    agent: Line = ""
    continuity: ContinuityPolicy | None = None
    model: Line | None = None
    budget_usd: Number | None = None
    timeout_s: Number | None = None
    on_denied: OnDenied | None = None
    on_leftover: OnLeftover | None = None
    last_word: Literal["off", "on"] | None = None
    attempts: Annotated[int, Meta(ge=1, le=1000)] | None = None


class Update(Body):
    """Gives a run new instructions. Its conversation continues with them. Settings that are left
    out keep their values."""

    prompt: Some
    on_denied: OnDenied | None = None
    on_leftover: OnLeftover | None = None
    last_word: Literal["off", "on"] | None = None


class MessageForm(Body):
    """A message for the running agent. A request with the same `key` and prompt as before sends no
    second message."""

    prompt: Some
    key: Annotated[str, Meta(max_length=200)] = ""


class RequestAnswerForm(Body):
    """An answer to a request of the run's agent. `request` is the request's number; 0 means the
    only open request."""

    answer: AnswerKind
    words: Annotated[str, Meta(max_length=8000, pattern=r"^[^\u0000]*$")] = ""
    request: Small = 0


class Fork(Body):
    """A new run that begins with a copy of another run's conversation. The copy ends after turn
    `at`, at a checkpoint, or at the end of the conversation."""

    prompt: Text = ""
    at: Small = 0
    checkpoint: Small = 0
    name: Line = ""
    branch: Line = ""


class Resume(Body):
    """Continues a conversation. The fields after `prompt` apply only if the conversation has no run
    yet."""

    prompt: Text = ""
    name: Line = ""
    repo: Line = ""
    branch: Line = ""
    model: Line = ""
    permissions: Permissions | UnsetType = UNSET


class Restore(Body):
    """Restores a checkpoint. 0 means the newest checkpoint. `files_only` leaves the conversation as
    it is."""

    checkpoint: Small = 0
    files_only: bool = False


class Reset(Body):
    """Names the work to clear: one run, an agent's work on an issue or branch of a repository, or a
    task of a service. Without `dry_run: false` nothing is cleared, and the answer lists what would
    be cleared."""

    run: Line = ""
    agent: Line = ""
    repository: Annotated[Line, Meta(description="an address, an absolute path, or owner/name")] = (
        ""
    )
    issue: Line | Annotated[int, Meta(ge=1, le=LARGEST)] = ""
    branch: Line = ""
    service: Line = ""
    task: Line = ""
    dry_run: bool = True


Lifetime = Annotated[
    str,
    Meta(
        pattern=r"^([0-9]{1,9}(\.[0-9]{1,9})?[smhd]?)?$",
        description="90s, 2h, 7d, ...; 0: never; empty: the setting's value",
    ),
]


class NewSession(Body):
    """Reserves a conversation for future runs with this agent and scope. The first of these runs
    starts it."""

    agent: Annotated[str, Meta(min_length=1, max_length=1000, pattern=LINE)]
    scope: Annotated[str, Meta(min_length=1, max_length=1000, pattern=LINE)]
    lifetime: Lifetime = ""


class ExtendedSession(Body):
    """Restarts the lifetime of a conversation. If `lifetime` is given, it becomes the new
    length."""

    lifetime: Lifetime = ""


class ClosedSession(Body):
    """Closes a conversation. `cause` is the reason to record."""

    cause: Line = ""


class PlanRetry(Body):
    """Continues a plan. If `task` is given, only that task continues; otherwise all failed or
    stopped tasks continue."""

    task: Line = ""


class NewPlan(Body):
    """A plan: the content of a plan file as a JSON object. The plan's name identifies it, so
    sending the same plan again does not create a second one."""

    plan: dict[str, Any]
    repo: Annotated[
        Line,
        Meta(
            description=(
                "an https address, or an absolute path on the server's disk; overrides the plan's"
            )
        ),
    ] = ""


class SweepShape(Body):
    """Options of a sweep. Without `dry_run: false` nothing is removed, and the answer lists what
    would be removed."""

    dry_run: bool = True
    many: bool = False


def _submit() -> type[Struct]:
    """Return the class `Submit`, with the field `prompt` and one for each name in `GIVEN`."""
    hints = get_type_hints(TaskSpec)
    assert {"prompt", *GIVEN} | INTERNAL == set(TaskSpec.__struct_fields__)
    kinds = {}
    for name in GIVEN:
        kinds[name] = Text if name == "verify" else TYPES.get(hints[name], hints[name])
    found: list[Any] = [
        ("prompt", Some),
        *((name, kind | UnsetType, UNSET) for name, kind in kinds.items()),
    ]
    return defstruct(
        "Submit",
        found,
        kw_only=True,
        forbid_unknown_fields=True,
        namespace={
            "__doc__": "A new task. Fields that are left out come from the service's settings."
        },
    )


Submit = _submit()
