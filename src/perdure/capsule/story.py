"""The story in a capsule: everything about a run except its files. These are spec, instructions,
attempts with their receipts, conversations, and journal.

`encode_story` and `journal` write the story. `read` and `records` read it from untrusted sources.
They check every value, make sure that every id agrees with the manifest, and remove paths and
process names of the other machine. `verification.limit_spec` decides which parts of the spec apply.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from typing import IO, Any, NoReturn

import msgspec
from msgspec.structs import replace

from perdure.capsule.manifest import Manifest, strict_json
from perdure.errors import CapsuleError, UsageError
from perdure.model import (
    Attempt,
    Context,
    Outcome,
    OutcomeKind,
    Session,
    SessionKey,
    SessionState,
    TaskRun,
)
from perdure.model.codec import encode, resolved
from perdure.model.events import AnyEvent, AttemptEnded, Record, Unrecognised
from perdure.model.requests import AgentRequest, AnswerKind, RequestState
from perdure.rules.requests import MOST_OF_RUN, SHOWN, WORDS, unsettled_attempt

MOST_RECORDS = 1_000_000
LONGEST_LINE = 4 << 20
LONGEST_STORY = 64 << 20
MOST_ATTEMPTS = 100_000
LATEST = 2**53
"""Latest valid time, in ms since 1970. It equals `store.rows.MAX_TIME`."""
MOVED = "the run was taken to another machine"
HELD = 16 << 20
"""Maximum size of a journal that is assembled in memory, in bytes. A larger one is assembled in a
temporary file."""


class CapsuleStory(msgspec.Struct, frozen=True, kw_only=True):
    """Everything about a run except its files. It describes the run at the time of the export or
    upload, which may be later than the checkpoint."""

    run: TaskRun
    contexts: tuple[Context, ...]
    attempts: tuple[Attempt, ...]
    sessions: tuple[Session, ...]
    """The lineage of the run's conversations, oldest first."""
    requests: tuple[AgentRequest, ...] = ()
    """The requests of the run's agent to people, oldest first."""


def encode_story(story: CapsuleStory) -> bytes:
    """Return the story as JSON."""
    return encode(story).encode() + b"\n"


def journal(records: Sequence[Record], near: str | None = None) -> IO[bytes]:
    """Return a temporary file with the records as JSON lines, positioned at its beginning. A
    journal of more than `HELD` bytes is stored on disk, in the directory `near`."""
    # The caller closes the file.
    file: IO[bytes] = tempfile.SpooledTemporaryFile(HELD, dir=near)  # noqa: SIM115
    for record in records:
        file.write(
            encode({"attempt": record.attempt, "at": record.at, "event": record.event}).encode()
            + b"\n"
        )
    file.seek(0)
    return file


def read(content: bytes, manifest: Manifest) -> CapsuleStory:
    """Return a story from untrusted bytes. Raises CapsuleError if it is invalid or contradicts
    itself or the manifest."""
    if len(content) > LONGEST_STORY:
        _refuse("the run's story is too long")
    try:
        story = msgspec.convert(strict_json(content), resolved(CapsuleStory), strict=False)
    except msgspec.ValidationError as error:
        _refuse(f"the run's story: {error}")
    except RecursionError:
        _refuse("the run's story is nested too deeply")
    run = story.run
    if run.origin != manifest.run and run.id != manifest.run:
        _refuse("the story belongs to another run")
    if (run.name, run.spec.agent) != (manifest.name, manifest.agent):
        _refuse("the story belongs to another run")
    versions = [context.version for context in story.contexts]
    if (
        not versions
        or versions != list(range(1, len(versions) + 1))
        or run.context_version != versions[-1]
    ):
        _refuse("the run's instructions are not complete")
    numbers = [attempt.number for attempt in story.attempts]
    if (
        numbers != list(range(1, len(numbers) + 1))
        or run.attempt != len(numbers)
        or len(numbers) > MOST_ATTEMPTS
    ):
        _refuse("the run's attempts are not complete")
    if not 1 <= run.attempts_allowed <= MOST_ATTEMPTS + 1000:
        _refuse("the run's attempts are not complete")
    live = [session for session in story.sessions if session.state is not SessionState.RETIRED]
    if len(live) > 1 or len({session.id for session in story.sessions}) != len(story.sessions):
        _refuse("the run's conversations contradict each other")
    times = [run.created, *(context.at for context in story.contexts)]
    for attempt in story.attempts:
        times += (attempt.started, attempt.ended or 0)
    for session in story.sessions:
        times += (session.created, session.updated)
    if not all(0 <= time <= LATEST for time in times):
        _refuse("it contains an impossible time")
    _check_texts(story.contexts)
    _check_requests(story.requests, len(numbers))
    return story


def _check_requests(requests: Sequence[AgentRequest], attempts: int) -> None:
    fit = [each.number for each in requests] == list(range(1, len(requests) + 1))
    for each in requests:
        fit = fit and 1 <= each.attempt <= attempts and 0 <= each.given <= attempts
        fit = fit and len(each.payload) <= min(SHOWN, each.size) and len(each.words) <= WORDS
        fit = fit and all(0 <= at <= LATEST for at in (each.asked, each.expires, each.answered))
    if not fit or len(requests) > MOST_OF_RUN:
        _refuse("the requests of its agent contradict each other")


def _check_texts(contexts: Sequence[Context]) -> None:
    from perdure.engine.service import check_prompt
    from perdure.workspace.task_files import check_name

    for context in contexts:
        try:
            check_prompt(context.text, 0)
            for file in context.given.files:
                check_name(file.name)
        except UsageError as error:
            _refuse(str(error))


def import_story(
    story: CapsuleStory, run_id: str, now: int, scope: str
) -> tuple[tuple[Attempt, ...], tuple[Session, ...]]:
    """Return the run's attempts and sessions as this machine stores them. Every attempt has ended,
    every session has the given scope, and paths of the other machine are removed."""
    lost = Outcome(kind=OutcomeKind.LOST, detail="the machine that ran it has given it up")
    attempts = []
    for attempt in story.attempts:
        is_over = attempt.ended is not None and attempt.outcome is not None
        attempts.append(
            replace(
                attempt,
                run=run_id,
                directory="",
                before=None,
                ended=attempt.ended if is_over else now,
                outcome=attempt.outcome or lost,
            )
        )
    key = SessionKey(story.run.spec.agent, scope)
    sessions = []
    for session in story.sessions:
        sessions.append(replace(session, key=key, home="", snapshot=None))
    return tuple(attempts), tuple(sessions)


def import_requests(
    story: CapsuleStory, run_id: str, now: int, lasts_ms: int
) -> tuple[AgentRequest, ...]:
    """Return the requests as this machine stores them.

    An approval is valid only on the machine where a person gave it. An approval that no attempt has
    received becomes an open request again. An approval that the newest attempt has received, and
    may not have used, is superseded. The time limit for answers starts again on this machine.
    """
    previous = unsettled_attempt(story.attempts)
    found = []
    for each in story.requests:
        found.append(replace(_import_request(each, previous), run=run_id, expires=now + lasts_ms))
    return tuple(found)


def _import_request(request: AgentRequest, previous: int) -> AgentRequest:
    if request.answer is not AnswerKind.ALLOW:
        return request
    if not request.given and request.state is RequestState.ANSWERED:
        return replace(
            request, state=RequestState.OPEN, answer=None, by="", rule="", via="", answered=0
        )
    if request.given == previous:
        return replace(request, state=RequestState.SUPERSEDED, words=MOVED)
    return request


def records(source: IO[bytes], attempts: Sequence[Attempt]) -> tuple[Record, ...]:
    """Return the records of an untrusted journal. Each ended attempt gets exactly one record of its
    end, even if the journal has none. Raises CapsuleError."""
    known = {attempt.number: attempt for attempt in attempts}
    found: list[Record] = []
    ended: set[int] = set()
    while line := source.readline(LONGEST_LINE + 1):
        if len(line) > LONGEST_LINE or len(found) >= MOST_RECORDS:
            _refuse("the run's journal is too long")
        number, at, event = _record(strict_json(line))
        if (number != 0 and number not in known) or not 0 <= at <= LATEST:
            _refuse("a record belongs to no attempt of this run")
        if isinstance(event, AttemptEnded):
            if number in ended:
                continue
            ended.add(number)
        found.append(Record("", 0, number, at, event))
    for number, attempt in known.items():
        if number not in ended and attempt.outcome is not None:
            found.append(
                Record(
                    "",
                    0,
                    number,
                    attempt.ended or 0,
                    AttemptEnded(outcome=attempt.outcome, receipt=attempt.receipt),
                )
            )
    return tuple(found)


def _record(line: Any) -> tuple[int, int, AnyEvent]:
    if (
        not isinstance(line, dict)
        or type(line.get("attempt")) is not int
        or type(line.get("at")) is not int
    ):
        _refuse("the run's journal is not valid")
    try:
        event: AnyEvent = msgspec.convert(line.get("event"), resolved(AnyEvent))
    except msgspec.ValidationError:
        event = Unrecognised(text=encode(line.get("event"))[:1000])
    return line["attempt"], line["at"], event


def _refuse(why: str) -> NoReturn:
    raise CapsuleError(
        f"the capsule cannot be used: {why}", "nothing was imported; ask for the capsule again"
    )
