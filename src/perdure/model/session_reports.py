"""Data types for reports about conversations, which `--json`, the API and the library return.

`engine.conversations` and `engine.sessions` make them. The OpenAPI schema is made from some of
these classes. The order of the fields is their order in the JSON. Import this module only where
reports are made or shown, so that the start of an agent does not load it.
"""

from __future__ import annotations

from perdure.model import RunState, Verdict
from perdure.model.reports import Answer, Shape


class SessionOfList(Shape):
    id: str
    agent: str
    state: str
    cause: str
    parent: str
    run: str | None
    run_state: RunState | None
    scope: str | None
    cwd: str
    on_disk: bool
    path: str
    turns: int | None
    first: str
    title: str
    link: str
    role: str
    updated: int
    cost_usd: float
    cost_estimated: bool


class SessionList(Answer):
    sessions: list[SessionOfList]


class SessionRecord(Answer):
    """perdure's record of a conversation. `expires` is null if the conversation never expires."""

    id: str
    agent: str
    scope: str
    state: str
    cause: str
    created: int
    updated: int
    lifetime_s: float
    expires: int | None
    tasks: int


class StatisticsReport(Answer):
    attempts: int
    begun: int
    to_go_on: int
    went_on: int
    expired: int
    verdicts: dict[Verdict, int]
    fallbacks: dict[str, int]
    bought: int
    cached: int
    saved: int | None
    success_rate: float | None


class OtherConversation(Shape):
    """Another conversation that a person started while the run was open. `fork` says whether it is
    a fork of the run's conversation."""

    id: str
    fork: bool
    turns: int
    path: str


class TakeBackReport(Answer):
    """The report that `perdure take-back` shows."""

    run: str
    state: RunState
    session_id: str
    turns: int
    history_kept: bool
    rewound: bool
    others: list[OtherConversation]
