"""Gives a running agent a message without ending its turn (`tell`), and answers an agent's request
with a rule for similar calls in the future (`answer_always`, the option `--always`). Called by
every interface.

A message is first stored as a version of the run's instructions, so it cannot be lost. If the
agent's CLI accepts messages during a turn, the running turn gets it. Otherwise the prompt of the
next attempt contains it. That attempt starts as soon as the turn has ended.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct

from perdure.engine import service
from perdure.engine.attempt import Engine
from perdure.engine.attempt.engine import moved_to
from perdure.engine.attempt.messages import place_messages
from perdure.engine.attempt.requests import load, rendered, save
from perdure.engine.service import SCOPE, check_prompt
from perdure.errors import Conflict, NotFound, UsageError
from perdure.host.wakeup import ring
from perdure.model import Attempt, Context, RunState, TaskRun
from perdure.model.requests import AgentRequest, AnswerKind, RequestKind, RequestState
from perdure.protocols import RunStore
from perdure.rules.approvals import ApprovalRule, rule_for
from perdure.rules.messages import LONGEST
from perdure.rules.requests import digest, late


class Told(Struct, frozen=True, kw_only=True):
    """The result of accepting a message."""

    run: TaskRun
    """The run after the message was accepted. If it ended at the same moment, it is queued again,
    with the message as new instructions."""
    version: int
    into_turn: bool
    """Whether the running turn gets the message. If not, the next attempt gets it."""
    known: bool = False
    """Whether the same message was already accepted earlier, under the same key."""


def tell(store: RunStore, state: Path, ref: str, text: str, key: str = "") -> Told:
    """Accept a message for the running attempt of a run, and return the result. Repeating the same
    key and text has no further effect. Raises UsageError, NotFound, and Conflict if the run is not
    running."""
    run = store.get(ref)
    check_message(text, LONGEST)
    if key and not SCOPE.fullmatch(key):
        raise UsageError("--key must be one line of at most 200 characters")
    known = [each for each in store.contexts(run.id) if key and each.message == key]
    if not known:
        if (moved := moved_to(state, run.id)).exists():
            raise Conflict(
                f"{run.name} was moved to {moved.read_text(encoding='utf-8').strip()}",
                f"tell it on the machine that has it now: perdure show {run.name}",
            )
        if run.state is not RunState.RUNNING:
            raise Conflict(
                f"{run.name} is not running ({run.state}), so nothing can be told to its agent",
                f'perdure update {run.name} "..."',
            )
    key = key or uuid.uuid4().hex
    run = store.update(run.id, text, message=key)
    contexts = store.contexts(run.id)
    version = next(each.version for each in contexts if each.message == key)
    attempts = store.attempts(run.id)
    taken = _placed_messages(attempts[-1], contexts) if run.state is RunState.RUNNING else ()
    ring(state)
    return Told(run=run, version=version, into_turn=version in taken, known=bool(known))


def _placed_messages(attempt: Attempt, contexts: Sequence[Context]) -> Sequence[int]:
    """Place the messages for the running turn. Return the versions of the instructions that were
    placed; empty if the turn takes no messages. If a file cannot be written now, the attempt's
    supervisor hands the messages over later."""
    if not attempt.directory or attempt.ended is not None:
        return ()
    try:
        return place_messages(Path(attempt.directory), contexts, attempt.context_version)
    except OSError:
        return ()


def check_message(text: str, limit: int) -> None:
    """Raise UsageError for a message that is empty, not valid text, or too long."""
    if not text.strip():
        raise UsageError("the message is empty", 'perdure tell NAME "your message"')
    if len(text.encode("utf-8", "surrogatepass")) > limit:
        raise UsageError(
            f"the message is longer than {limit // 1024} KiB", "perdure update takes longer text"
        )
    check_prompt(text, limit)


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
