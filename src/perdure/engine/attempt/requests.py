"""Handles the requests of an attempt: the calls because of which the attempt ended, and the answers
that the next attempt receives.

`preparation` calls `answers_for` and `write_decisions` before the start is stored. `finish` calls
`asked` before the end is stored. The agent's hook reads the answers in the run's directory of
requests, and creates files there for the calls that it saw.

Saved approval rules answer similar calls in the future. They are in the file `approvals.toml` in
the state directory, which is read at the end of each attempt. `perdure approve --always` and
`perdure deny --always` write it, and people may edit it. The file is not in the repository, because
the agent that asks for approval could change it there.
"""

from __future__ import annotations

import fcntl
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import msgspec
from msgspec import Struct, field
from msgspec.structs import replace

from perdure.engine.attempt.engine import Engine, EngineStore
from perdure.engine.attempt.live_attempt import LiveAttempt
from perdure.errors import ConfigError, UsageError
from perdure.host.homes import durable
from perdure.model import Claim, Continuation, OnDenied, Outcome, OutcomeKind, Permissions, Start
from perdure.model.codec import resolved
from perdure.model.events import ToolStarted
from perdure.model.requests import AgentRequest, AnswerKind, OpenCall, RequestKind, RequestState
from perdure.patterns import late_pattern
from perdure.protocols import AgentDriver, Asks, Parks, ReadsDenials, RequestStore
from perdure.rules.approvals import ApprovalRule, decide
from perdure.rules.requests import (
    answers_text,
    digest,
    expired,
    questions,
    requests_of,
    undelivered_answers,
    unsettled_attempt,
    used_up,
)
from perdure.rules.unfinished import OpenEnds

HEAD = """\
# Calls of agents that are allowed or refused without asking again. Written by `perdure approve
# --always` and `perdure deny --always`; edit it as you like. A rule that denies wins.
"""
_HIDDEN = late_pattern(
    "[\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff"
    "\ufff9-\ufffb\U000e0000-\U000e007f]"
)
"""Pattern of characters that a reviewer would not see. They are written as TOML escape sequences.
"""


def path_of(state: Path) -> Path:
    """Return the path of the file of saved approval rules, whether or not the file exists."""
    return state / "approvals.toml"


def load(state: Path) -> tuple[ApprovalRule, ...]:
    """Return the saved rules. Raises ConfigError if the file cannot be read or is invalid."""
    path = path_of(state)
    try:
        text = path.read_text(encoding="utf-8")
        import tomllib  # imported late: most hosts have no such file

        rules = tomllib.loads(text).get("rule", [])
        return tuple(msgspec.convert(rules, resolved(list[ApprovalRule])))
    except FileNotFoundError:
        return ()
    except (OSError, ValueError) as error:
        raise ConfigError([f"{path}: {error}"], "repair the file, or remove it") from None


def save(state: Path, rule: ApprovalRule) -> Path:
    """Add a rule to the file, and return the file's path. Raises ConfigError if the file is
    invalid, and UsageError if the rule cannot be written as TOML."""
    path = path_of(state)
    with (state / "approvals.lock").open("w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        load(state)
        if path.exists():
            before = path.read_text(encoding="utf-8")
        else:
            before = HEAD
        durable.write(path, f"{before}\n{rendered(rule)}")
    return path


def rendered(rule: ApprovalRule) -> str:
    """Return the rule as a TOML table. Raises UsageError if it has characters that are not
    Unicode."""
    values = msgspec.structs.asdict(rule)
    lines = []
    for key, value in values.items():
        if value:
            lines.append(f"{key} = {_quoted(value)}")
    text = "\n".join(("[[rule]]", *lines, ""))
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UsageError(
            "No rule can be made: the call or your answer contains invalid Unicode",
            "answer without --always",
        ) from None
    return text


def _quoted(text: str) -> str:
    """Return the text as a TOML string on one line, with hidden characters escaped."""
    return _HIDDEN.sub(_escape, json.dumps(text, ensure_ascii=False))


def _escape(found: re.Match[str]) -> str:
    return f"\\U{ord(found[0]):08X}"


TAIL = 16 * 1024 * 1024
"""Number of bytes at the end of an agent's output that are searched for open calls."""


class Answers(Struct, frozen=True, kw_only=True):
    """The answers to an agent's requests that an attempt receives."""

    requests: tuple[AgentRequest, ...] = ()
    refused: tuple[AgentRequest, ...] = ()
    """All calls that a person has refused in this run."""
    used_up: tuple[AgentRequest, ...] = ()
    """Calls that still wait in the conversation although their approval was already used. The
    attempt that used the approval was killed before the calls had a result. They must not run
    again."""
    prompt: str = ""
    """Text of the answers that the prompt contains; empty if it contains none."""
    parked: tuple[str, ...] = field(default=())
    """Ids of the parked calls whose requests were answered. If there are any, the attempt has no
    prompt."""


REQUESTS = "requests"
"""Name of the directory for a run's requests, beside the directories of its attempts."""


def directory_of(state: Path, run_id: str) -> Path:
    """Return the directory for the run's requests, which need not exist."""
    return state / "runs" / run_id / REQUESTS


def asks(
    on_denied: OnDenied, request_expiry_s: float, driver: AgentDriver, claim: Claim, version: str
) -> bool:
    """Return whether the run's agent may ask a person. `version`: version of the agent's CLI."""
    spec = claim.run.spec
    policy = OnDenied(spec.on_denied or on_denied)
    return (
        bool(request_expiry_s)
        and isinstance(driver, Asks)
        and policy is OnDenied.ASK
        and spec.permissions is not Permissions.READ
        and driver.may_ask(spec, version)
    )


def answers_for(
    store: EngineStore,
    directory: Path,
    claim: Claim,
    driver: AgentDriver,
    asked: Continuation,
    before: Path | None,
    *,
    news: bool,
) -> Answers:
    """Return the answers that the attempt has to receive. `directory`: the attempt's directory.
    `before`: the transcript that the attempt continues. `news`: whether there are new instructions,
    so that the attempt needs a prompt."""
    now = store.now()
    requests = [expired(each, now) for each in store.requests(claim.run.id)]
    if not requests:
        return Answers()
    spent = _used_answers(directory.with_name(REQUESTS), requests)
    previous = unsettled_attempt(store.attempts(claim.run.id))
    given = []
    for each in undelivered_answers(requests, previous, spent):
        if not each.given or directory.with_name(str(each.given)).exists():
            given.append(each)
    goes_on = asked.kind is Start.RESUME and isinstance(driver, Parks)
    if not goes_on:
        # If the conversation is new, no parked call can receive the answer. So the prompt contains
        # the answer.
        given = [replace(each, parked=False) for each in given]
    elif isinstance(driver, Parks) and before is not None and any(each.parked for each in given):
        given = list(_still_parked(driver, given, before))
    refused = []
    for each in requests:
        if each.state is RequestState.ANSWERED and each.answer is AnswerKind.DENY:
            refused.append(each)
    parked = []
    for each in given:
        if each.parked and each.state in (RequestState.ANSWERED, RequestState.EXPIRED):
            parked.append(each.call)
    return Answers(
        requests=tuple(given),
        used_up=used_up(requests, previous, spent),
        refused=tuple(refused),
        prompt=answers_text(given),
        parked=() if news or answers_text(given) else tuple(parked),
    )


def _still_parked(
    driver: Parks, given: Iterable[AgentRequest], before: Path
) -> Iterator[AgentRequest]:
    """Yield the answers that the attempt still has to receive. Only a parked call that has no
    result in the transcript still waits. If the call got its result from this answer, nothing is
    yielded. If it got its result in another way, the answer is yielded for the prompt."""
    content = before.read_bytes()
    for each in given:
        if not each.parked or not driver.answered(content, [each.call]):
            yield each
        elif not each.given:
            yield replace(each, parked=False)


def _used_answers(directory: Path, requests: Iterable[AgentRequest]) -> frozenset[int]:
    """Return the numbers of the requests whose answers the agent's hook has used."""
    found = []
    for each in requests:
        if (directory / f"used-{each.number}").exists():
            found.append(each.number)
    return frozenset(found)


def write_decisions(state: Path, run_id: str, answers: Answers) -> None:
    """Write the answers where the agent's hook finds them. Remove the hook's files from earlier
    attempts, except those for used answers."""
    directory = directory_of(state, run_id)
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    for name in ("asked", "parked", "armed"):
        (directory / name).unlink(missing_ok=True)
    refused = [replace(each, parked=False) for each in answers.refused]
    decisions = list(map(_decision, (*answers.requests, *answers.used_up, *refused)))
    if decisions:
        durable.write(directory / "decisions.json", json.dumps(decisions))
        (directory / "armed").touch()
    else:
        (directory / "decisions.json").unlink(missing_ok=True)


def _decision(request: AgentRequest) -> dict[str, object]:
    texts = [str(each.get("question", "")) for each in questions(request)]
    lines = request.words.splitlines()
    several = len(texts) > 1 and len(lines) == len(texts)
    return {
        "number": request.number,
        "call": request.call,
        "sha256": request.sha256,
        "parked": request.parked,
        "answer": str(request.answer),
        "words": request.words,
        "each": dict(zip(texts, lines, strict=True)) if several else {},
    }


def resumed_calls(store: RequestStore, opened: LiveAttempt) -> list[ToolStarted]:
    """Return the parked calls that this attempt resumes, as events."""
    number = opened.attempt.number
    found = []
    for each in store.requests(opened.claim.run.id):
        if each.parked and each.given == number:
            found.append(ToolStarted(each.call, each.tool, each.summary))
    return found


def settle_refused(
    store: RequestStore, opened: LiveAttempt
) -> tuple[set[str], set[tuple[str, str]]]:
    """Return the calls that were refused: their ids, and their pairs of tool and main argument.
    They do not count as unfinished work of the turn. A superseded request refuses only the call
    that waited: if the agent makes such a call again, a person is asked."""
    requests = store.requests(opened.claim.run.id)
    superseded = [each for each in requests if each.state is RequestState.SUPERSEDED]
    denied = []
    for each in requests:
        if each.answer is AnswerKind.DENY and each.state is not RequestState.SUPERSEDED:
            denied.append(each)
    ids = {each.call for each in (*denied, *superseded)}
    return ids, {(each.tool, each.summary) for each in denied}


def asked(
    engine: Engine, opened: LiveAttempt, outcome: Outcome, ends: OpenEnds
) -> tuple[AgentRequest, ...]:
    """Return the requests to a person with which the attempt ends. `ends`: the unfinished work of
    the attempt's turn."""
    claim, driver = opened.claim, opened.driver
    if outcome.kind is not OutcomeKind.NEEDS_INPUT:
        return ()
    if not asks(
        engine.on_denied, engine.request_expiry_s, driver, claim, opened.attempt.agent_version
    ):
        return ()
    assert isinstance(driver, Asks)
    directory = directory_of(engine.state, claim.run.id)
    ids = ends.open_ids()
    calls = []
    for each in driver.open_calls(
        _tail(opened.directory / "stdout"), directory, _transcript(opened)
    ):
        if each.parked or each.call in ids:
            calls.append(each)
    parked = [each for each in calls if each.parked]
    earlier = engine.store.requests(claim.run.id)
    if isinstance(driver, Parks):
        # The agent's own settings may stop a call that a person approved. In that case the approval
        # was not used.
        spent: frozenset[int] = frozenset()
    else:
        spent = _used_answers(directory, earlier)
    found = requests_of(
        parked or calls,
        earlier,
        spent=spent,
        run=claim.run.id,
        attempt=claim.attempt,
        now=engine.store.now(),
        lasts_ms=int(engine.request_expiry_s * 1000),
    )
    found = _ruled(engine.state, claim, found, _arguments(calls))
    redacted = []
    for request in found:
        payload = engine.redactor.text(request.payload)
        summary = engine.redactor.text(request.summary)
        rule = engine.redactor.text(request.rule)
        redacted.append(replace(request, payload=payload, summary=summary, rule=rule))
    return tuple(redacted)


def _arguments(calls: Iterable[OpenCall]) -> dict[str, object]:
    """Return the complete arguments of the calls. The key is a digest of the tool and its
    arguments, because call ids may repeat."""
    found = {}
    for each in calls:
        try:
            given = json.loads(each.input)
        except ValueError:
            continue
        found[digest(each.tool, given)] = given
    return found


def _ruled(
    state: Path,
    claim: Claim,
    requests: tuple[AgentRequest, ...],
    given: Mapping[str, object],
) -> tuple[AgentRequest, ...]:
    """Return the requests, with an answer filled in for each one that a saved rule decides. If the
    rules cannot be read, return the requests without answers, so that a person has to answer them.
    `given`: the complete arguments of each call, by its digest."""
    approvals = [each for each in requests if each.kind is RequestKind.APPROVAL]
    if not approvals:
        return requests
    try:
        rules = load(state)
    except ConfigError as error:
        # Imported late, because the start of an agent does not need it.
        import logging

        logging.getLogger(__name__).warning("the saved approval rules are not used: %s", error)
        return requests
    spec = claim.run.spec
    answered = list(requests)
    for index, each in enumerate(requests):
        if each not in approvals:
            continue
        arguments = given.get(each.sha256)
        # A rule applies only to a call that is completely known. If the name of the tool was cut
        # off, it may equal the name of another tool.
        if not isinstance(arguments, dict) or digest(each.tool, arguments) != each.sha256:
            continue
        rule = decide(
            rules, run=claim.run.id, repository=spec.repo, tool=each.tool, given=arguments
        )
        if rule is not None:
            allows = rule.decision == "allow"
            answered[index] = replace(
                each,
                state=RequestState.ANSWERED,
                answer=AnswerKind.ALLOW if allows else AnswerKind.DENY,
                words=rule.why,
                by=rule.by,
                answered=each.asked,
                rule=str(rule),
            )
    return tuple(answered)


def _transcript(opened: LiveAttempt) -> bytes:
    """Return the transcript of an agent whose output does not report denied calls; empty for other
    agents."""
    session = opened.session
    path = opened.transcript(session.id) if session is not None else None
    if path is None or not isinstance(opened.driver, ReadsDenials):
        return b""
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _tail(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(max(path.stat().st_size - TAIL, 0))
            return file.read(TAIL)
    except OSError:
        return b""
