"""The options of a task. `Runner.spec`, `submit` and `run` take these fields as keyword arguments,
so a type checker can verify the calls of a program.

At run time, an unknown field raises TypeError, and an invalid value raises UsageError.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Literal, TypeAlias, TypedDict

from perdure.errors import UsageError
from perdure.model import (
    ContinuityPolicy,
    MapWhen,
    OnDenied,
    OnEdit,
    OnLeftover,
    Permissions,
    WhenFull,
)
from perdure.model.durations import duration
from perdure.model.requests import AnswerKind

PathText: TypeAlias = str | os.PathLike[str]
Duration: TypeAlias = float | str
"""Type of a duration: a number of seconds, or a text such as `90s`, `30m` or `2h`."""
PermissionsText: TypeAlias = Permissions | Literal["read", "edit", "full"]
ContinuityText: TypeAlias = ContinuityPolicy | Literal["strict", "disclose", "fresh-ok"]
AnswerText: TypeAlias = AnswerKind | Literal["allow", "deny", "text"]
WhenFullText: TypeAlias = WhenFull | Literal["", "cli", "compact", "roll-over", "stop"]
MapText: TypeAlias = MapWhen | Literal["", "off", "fallback", "first", "always"]
OnDeniedText: TypeAlias = OnDenied | Literal["", "ask", "fail", "report"]
OnLeftoverText: TypeAlias = OnLeftover | Literal["", "end", "keep", "wait"]
LastWordText: TypeAlias = Literal["", "off", "on"]
BackendText: TypeAlias = Literal["", "worktree", "isolated"]
OnEditText: TypeAlias = OnEdit | Literal["keep", "replace", "merge"]


class TaskOptions(TypedDict, total=False):
    """The fields of a task besides its prompt. Omitted fields come from the settings."""

    agent: str
    name: str
    key: str
    repo: PathText
    base: str
    branch: str
    here: PathText
    service: str
    task: str
    scope: str
    forks: str
    fork_at: int
    backend: BackendText
    model: str
    permissions: PermissionsText
    agent_args: Sequence[str]
    env: Mapping[str, str]
    pass_env: Sequence[str]
    timeout: Duration
    timeout_s: float
    stall: Duration
    stall_s: float
    attempts: int
    budget_usd: float
    continuity: ContinuityText
    when_full: WhenFullText
    on_denied: OnDeniedText
    on_leftover: OnLeftoverText
    last_word: LastWordText
    verify: str
    conflicts: Sequence[str]
    verify_rounds: int
    verify_timeout: Duration
    verify_timeout_s: float
    labels: Mapping[str, str]
    map: MapText
    title: str
    link: str
    rule: str


class PolicyOptions(TypedDict, total=False):
    """The fields of a task that `retry` and `update` may replace."""

    on_denied: OnDeniedText
    on_leftover: OnLeftoverText
    last_word: LastWordText


class RetryOptions(PolicyOptions, total=False):
    """The fields of a task that `retry` may replace. `attempts`: number of further attempts."""

    continuity: ContinuityText
    model: str
    budget_usd: float
    timeout: Duration
    timeout_s: float
    attempts: int


_DURATIONS = ("timeout", "stall", "verify_timeout")


def fields_of(options: Mapping[str, Any], caller: str) -> dict[str, object]:
    """Convert the options to fields of `TaskSpec`, and return them. Raises TypeError for an unknown
    name, UsageError for an invalid duration."""
    check_names(options, TaskOptions.__annotations__, caller)
    return with_seconds(options)


def check_names(options: Iterable[str], known: Collection[str], caller: str) -> None:
    """Raise TypeError if one of the names is not in `known`."""
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise TypeError(f"{caller}() got an unexpected keyword argument {name!r}{hint}")


def with_seconds(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options with durations converted to seconds: `timeout` becomes `timeout_s`. Raises
    UsageError for an invalid duration, and if a field is given in both forms."""
    fields = dict(options)
    for name in _DURATIONS:
        if name not in fields:
            continue
        if f"{name}_s" in fields:
            raise UsageError(f"{name} and {name}_s are the same field", "leave one of them out")
        fields[f"{name}_s"] = seconds(fields.pop(name), name)
    return fields


def seconds(value: Any, name: str) -> Any:
    """Return a duration in seconds. Raises UsageError for an invalid text. A value that is not a
    string is returned unchanged; it is checked together with the whole task."""
    if not isinstance(value, str):
        return value
    try:
        return duration(value)
    except ValueError:
        raise UsageError(
            f"the task's field {name} cannot be {value[:80]!r}",
            "expected a number of seconds, or a duration such as 90s, 15m, 2h or 7d",
        ) from None
