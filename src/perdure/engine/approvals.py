"""Answers an agent's request, and stores a rule that answers similar calls in the future.
Implements the option `--always`."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct

from perdure.engine import service
from perdure.engine.attempt import Engine
from perdure.engine.attempt.approval_rules import load, rendered, save
from perdure.errors import Conflict, NotFound, UsageError
from perdure.model import TaskRun
from perdure.model.requests import AgentRequest, AnswerKind, RequestKind, RequestState
from perdure.protocols import RunStore
from perdure.rules.approvals import ApprovalRule, rule_for
from perdure.rules.requests import digest, late


class Always(Struct, frozen=True, kw_only=True):
    """Settings of the rule that `--always` derives from an answer. The rule answers similar calls
    in the future."""

    scope: str = "run"
    """Runs that the rule applies to: `run` for this run only, `repository` for all runs of the same
    repository, `all` for every run."""
    pattern: str = ""
    denies: bool = False


def _rule_of(
    store: RunStore, run: TaskRun, request: AgentRequest, always: Always, why: str, by: str
) -> ApprovalRule:
    """Return the rule that will answer calls like the one that this request is about. Raises
    UsageError if no such rule is possible."""
    if request.size == len(request.payload):
        given = json.loads(request.payload)
    else:
        given = None
    if request.kind is RequestKind.QUESTION:
        raise UsageError("A rule answers calls, and this is a question", "answer without --always")
    if not isinstance(given, dict) or digest(request.tool, given) != request.sha256:
        raise UsageError(
            "The call is too long, or has a secret, so it is not stored whole and no rule can be "
            "made of it",
            "answer without --always",
        )
    if always.scope == "repository" and not run.spec.repo:
        raise UsageError(f"{run.name} has no repository", "use --for run, or --for all")
    decision: Literal["allow", "deny"] = "deny" if always.denies else "allow"
    try:
        rule = rule_for(decision, request.tool, given, always.pattern)
    except ValueError as error:
        raise UsageError(f"No rule can be made: {error}", "answer without --pattern") from None
    at = datetime.fromtimestamp(store.now() / 1000, UTC).isoformat(timespec="seconds")
    return msgspec.structs.replace(
        rule,
        run=run.id if always.scope == "run" else "",
        repository=run.spec.repo if always.scope == "repository" else "",
        why=why,
        by=by,
        at=at,
    )


def answer_always(
    engine: Engine, ref: str, number: int, always: Always, why: str, by: str
) -> tuple[TaskRun, Path]:
    """Answer a request, and save a rule that answers similar calls in the future. Return the run
    and the path of the file with the rule.

    Raises UsageError, NotFound, Conflict, ConfigError.
    """
    run = engine.store.get(ref)
    made = engine.store.requests(run.id)
    opened = [each for each in made if each.state is RequestState.OPEN]
    verdict = AnswerKind.DENY if always.denies else AnswerKind.ALLOW
    number = number or service.only_open(run, made, verdict)
    meant = next((each for each in opened if each.number == number), None)
    if meant is None:
        ended = [each for each in engine.store.requests(run.id) if each.number == number]
        hint = f"perdure requests {run.name}"
        if ended:
            raise Conflict(late(ended[0]), hint)
        raise NotFound(f"{run.name} has no request {number}", hint)
    rule = _rule_of(engine.store, run, meant, always, why, by)
    rendered(rule)
    load(engine.state)
    run, _ = service.answer(engine, run.id, number, verdict, why)
    return run, save(engine.state, rule)
