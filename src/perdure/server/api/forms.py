"""The fields of requests: query and body, validated before anything is done. An unknown field is
refused."""

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
"""One line, without control characters."""
Text = Annotated[str, Meta(max_length=2_000_000, pattern=r"^[^\u0000]*$")]
Some = Annotated[str, Meta(min_length=1, max_length=2_000_000, pattern=r"^[^\u0000]*$")]
Count = Annotated[int, Meta(ge=0, le=LARGEST)]
Small = Annotated[int, Meta(ge=0, le=1000)]
Limit = Annotated[int, Meta(ge=1, le=500, description="maximum number")]
Number = Annotated[float, Meta(ge=0, le=1e9)]

INTERNAL = frozenset({"forks", "fork_at", "conflicts", "rule", "title", "link"})
"""Fields of a task that only perdure sets."""
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
"""Fields of a task that a caller may give. A new field must be in this set or in `INTERNAL`, else
the API does not start."""
TYPES: dict[Any, Any] = {
    str: Line,
    int: Small,
    float: Number,
    tuple[str, ...]: Annotated[tuple[Line, ...], Meta(max_length=100)],
    dict[str, str]: Annotated[dict[Line, Text], Meta(max_length=100)],
}


class Query(Struct, forbid_unknown_fields=True, kw_only=True):
    """No fields: the address says everything."""


class Page(Query):
    """The size of a page of a list."""

    limit: Limit = 50


class RunsQuery(Page):
    """Selects runs."""

    state: tuple[RunState, ...] = ()
    agent: Line = ""
    scope: Line = ""
    cursor: Annotated[
        str, Meta(pattern=r"^[0-9]{0,15}$", description="`next` of the page before")
    ] = ""


class RecordsQuery(Query):
    """Selects records of a run's journal."""

    after: Count = 0
    limit: Annotated[int, Meta(ge=1, le=5000)] = 1000
    attempt: Small = 0


class RawQuery(Query):
    """Selects the attempt whose output is returned."""

    attempt: Annotated[int, Meta(ge=1, le=1_000_000)] = 1


class DiffQuery(Query):
    """Options of a diff. `stat`: a summary instead of the patch."""

    stat: bool = False


class SessionsQuery(Page):
    """Selects conversations."""

    agent: tuple[Line, ...] = ()


class StatsQuery(Query):
    """Selects the attempts for the statistics."""

    agent: tuple[Line, ...] = ()
    scope: Line = ""
    since: Annotated[
        str, Meta(pattern=r"^([0-9]{1,9}(\.[0-9]{1,9})?[smhd]?)?$", description="24h, 7d, ...")
    ] = ""


class InboxQuery(Page):
    """Selects deliveries."""

    state: DeliveryState | None = None
    source: Line = ""
    before: Count = 0


class AuditQuery(Query):
    """Selects lines of the audit trail. `actor` is a part of its name, `run` a name or an id,
    `since` a time in ms, `after` the number of a line."""

    since: Count = 0
    actor: Line = ""
    run: Line = ""
    after: Count = 0
    limit: Limit = 100


class RemoveQuery(Query):
    """Options for removing a run."""

    force: bool = False


class SweepQuery(Query):
    """Options of a sweep."""

    all: bool = False


class Body(Struct, forbid_unknown_fields=True, kw_only=True):
    """An empty object."""


class Retry(Body):
    """Continues a run. `agent` hands the run over to another CLI. `attempts`: number of further
    attempts (default: one). All other given fields replace those of the task from now on."""

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
    """New instructions for the same conversation. The other fields stay in effect."""

    prompt: Some
    on_denied: OnDenied | None = None
    on_leftover: OnLeftover | None = None
    last_word: Literal["off", "on"] | None = None


class MessageForm(Body):
    """A message for the running agent. The same `key` and prompt are the same message."""

    prompt: Some
    key: Annotated[str, Meta(max_length=200)] = ""


class RequestAnswerForm(Body):
    """An answer to a request; request 0 is the only open one."""

    answer: AnswerKind
    words: Annotated[str, Meta(max_length=8000, pattern=r"^[^\u0000]*$")] = ""
    request: Small = 0


class Fork(Body):
    """A new run that begins with another run's conversation: after one of its turns, at a
    checkpoint, or now."""

    prompt: Text = ""
    at: Small = 0
    checkpoint: Small = 0
    name: Line = ""
    branch: Line = ""


class Resume(Body):
    """Continues a conversation; the fields after the prompt apply to one that has no run yet."""

    prompt: Text = ""
    name: Line = ""
    repo: Line = ""
    branch: Line = ""
    model: Line = ""
    permissions: Permissions | UnsetType = UNSET


class Restore(Body):
    """Restores a checkpoint; 0 is the newest."""

    checkpoint: Small = 0
    files_only: bool = False


class Reset(Body):
    """The work to clear: that of a run, of an agent on an issue or a branch of a repository, or of
    a service's task. Without `dry_run: false` nothing is cleared, and the answer lists what would
    be."""

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
    """A conversation for future runs with this agent and scope; the first of them starts it."""

    agent: Annotated[str, Meta(min_length=1, max_length=1000, pattern=LINE)]
    scope: Annotated[str, Meta(min_length=1, max_length=1000, pattern=LINE)]
    lifetime: Lifetime = ""


class ExtendedSession(Body):
    """Restarts the lifetime of a conversation, with another length if one is given."""

    lifetime: Lifetime = ""


class ClosedSession(Body):
    """The reason for closing a conversation."""

    cause: Line = ""


class PlanRetry(Body):
    """`task`: only this task of the plan; otherwise all that failed or were stopped."""

    task: Line = ""


class NewPlan(Body):
    """A plan: the object that a plan file contains, as JSON. Its name is its key."""

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
    """A sweep. Without `dry_run: false` nothing is removed, and the answer lists what would be."""

    dry_run: bool = True
    many: bool = False


def _submit() -> type[Struct]:
    """Return the form of a new task. Omitted fields come from the settings of the service."""
    hints = get_type_hints(TaskSpec)
    assert {"prompt", *GIVEN} | INTERNAL == set(TaskSpec.__struct_fields__)
    kinds = {
        name: Text if name == "verify" else TYPES.get(hints[name], hints[name]) for name in GIVEN
    }
    found: list[Any] = [
        ("prompt", Some),
        *((name, kind | UnsetType, UNSET) for name, kind in kinds.items()),
    ]
    return defstruct(
        "Submit",
        found,
        kw_only=True,
        forbid_unknown_fields=True,
        namespace={"__doc__": _submit.__doc__},
    )


Submit = _submit()
