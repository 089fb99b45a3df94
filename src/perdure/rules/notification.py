"""Reads lines of the audit trail, decides which channels get a notice about each event, and writes
the notices. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime, time, timedelta
from itertools import chain
from urllib.parse import quote

from perdure.model import OutcomeKind, RunState, TaskRun, Usage
from perdure.model.codec import encode
from perdure.model.events import AnyEvent, RunFinished, RunQueued
from perdure.model.notices import (
    Channel,
    Notice,
    NoticeAnswer,
    NoticeBody,
    NoticeData,
    NoticeEvent,
    NoticeRun,
    PushMessage,
)
from perdure.model.runs import condition_of
from perdure.rules.requests import ASKING, WAITING
from perdure.rules.run_titles import role_of_run, title_of_run, worker_of
from perdure.rules.text import clean, dollars, one_line

LONG_MS = 5 * 60_000
"""Minimum waiting time of a queued run, in ms, for which people get a notice."""
TITLE_MOST, SENTENCE_MOST = 100, 300
"""Maximum lengths of the title and the sentence of a push message, in characters."""
KINDS = ("run_finished", "run_queued", "person_needed")
"""Kinds of audit lines that may become notices."""
WORDS = {
    NoticeEvent.NEEDS_YOU: "needs you",
    NoticeEvent.OVER_BUDGET: "is over its budget",
    NoticeEvent.FAILED: "has failed",
    NoticeEvent.DONE: "is done",
    NoticeEvent.WAITING: "waits",
}


def event_of(kind: str, event: AnyEvent | None, run: TaskRun) -> NoticeEvent | None:
    """Return the event that people are notified of because of a line of the audit trail. Return
    None if nobody needs to be notified. `event`: the journal record of the line; `run`: the run's
    current state."""
    asks = any(each.type in ASKING for each in run.conditions)
    if kind == "person_needed":
        if asks:
            return NoticeEvent.NEEDS_YOU
        return None
    if isinstance(event, RunFinished):
        if event.state == RunState.SUCCEEDED:
            return NoticeEvent.DONE
        if event.state != RunState.FAILED:
            return None  # A person stopped the run, so nobody has to be notified.
        if event.reason.startswith(OutcomeKind.BUDGET_SPENT):
            return NoticeEvent.OVER_BUDGET
        if asks:
            return NoticeEvent.NEEDS_YOU
        return NoticeEvent.FAILED
    if isinstance(event, RunQueued):
        if condition_of(run.conditions, WAITING) is not None:
            return NoticeEvent.NEEDS_YOU
        if event.run_after:
            return NoticeEvent.WAITING
        return None
    return None


def waits_long(event: AnyEvent | None, at: int) -> bool:
    """Return whether a run that was queued at the time `at` has to wait long enough to be
    reported."""
    return isinstance(event, RunQueued) and event.run_after - at >= LONG_MS


def wants(channel: Channel, event: NoticeEvent, run: TaskRun) -> bool:
    """Return whether the channel wants notices about this event of this run."""
    return (
        event in channel.events
        and all(run.spec.labels.get(name) == value for name, value in channel.labels)
        and (not channel.roles or role_of_run(run) in channel.roles)
    )


def id_of(store: str, channel: str, line: int) -> str:
    """Return the id of the notice about this line of the store's audit trail, to this channel. The
    id depends on nothing else, so a notice that is created twice is stored once."""
    digest = hashlib.sha256(f"{store}\n{channel}\n{line}".encode()).hexdigest()
    return f"ntc_{digest[:32]}"


def message_of(event: AnyEvent | None, run: TaskRun) -> str:
    """Return one clean line: the action that a person has to take, or the reason why the run ended
    or waits."""
    asked = []
    for each in run.conditions:
        if each.type in ASKING:
            asked.append(each.message)
    if isinstance(event, RunFinished | RunQueued):
        reason = event.reason
    else:
        reason = ""
    return one_line("; ".join(asked) or reason, 500)


def body_of(
    event: NoticeEvent, cause: AnyEvent | None, run: TaskRun, used: Usage, at: int, page: str
) -> str:
    """Return the JSON of a notice."""
    until = cause.run_after if isinstance(cause, RunQueued) else 0
    body = NoticeBody(
        type=f"run.{event}",
        timestamp=datetime.fromtimestamp(at / 1000, UTC).isoformat(timespec="milliseconds"),
        data=NoticeData(
            run=NoticeRun(
                id=run.id,
                name=run.name,
                title=title_of_run(run),
                link=run.spec.link,
                role=role_of_run(run),
                agent=run.spec.agent,
                state=str(run.state),
                attempt=run.attempt,
                cost_usd=used.cost_usd,
                estimated=used.estimated,
                page=page,
            ),
            message=message_of(cause, run),
            until=until if event is NoticeEvent.WAITING else 0,
        ),
    )
    return encode(body)


def subject_of(notice: Notice, body: NoticeBody) -> str:
    """Return the subject of a notice: the run's title, its role or agent, and the event."""
    run = body.data.run
    who = worker_of(run.role, run.agent)
    return one_line(f"{run.title or run.name}: {who} {WORDS[notice.event]}", 200)


def text_of(notice: Notice, body: NoticeBody) -> str:
    """Return the text of a notice for people, without markup."""
    run = body.data.run
    until = ""
    if body.data.until:
        moment = datetime.fromtimestamp(body.data.until / 1000).astimezone()
        until = f" until {moment:%Y-%m-%d %H:%M %z}"
    lines = [
        f"{worker_of(run.role, run.agent)} {WORDS[notice.event]}{until}: {run.title or run.name}",
        body.data.message,
        f"Run {run.name}, attempt {run.attempt}, {dollars(run.cost_usd, estimated=run.estimated)}",
        f"perdure show {run.name}",
        run.page,
        run.link,
        *chain.from_iterable(map(_links_of, body.data.answers)),
    ]
    return "\n".join(clean(line) for line in lines if line)


def push_of(notice: Notice, body: NoticeBody) -> bytes:
    """Return the JSON of a push message. It says in one sentence what happened, and contains the
    path of the run's page. It has no address of a forge, no cost and no links, and is shorter than
    3 kB."""
    run = body.data.run
    sentence = f"{worker_of(run.role, run.agent)} {WORDS[notice.event]}"
    if body.data.message:
        sentence = f"{sentence}: {body.data.message}"
    path = f"/runs/{quote(run.name, safe='')}"
    if not notice.line:  # A test message is about no run.
        path = "/notify"
    message = PushMessage(
        id=notice.id,
        title=one_line(run.title or run.name, TITLE_MOST),
        text=one_line(sentence, SENTENCE_MOST),
        path=path,
        tag=run.name,
    )
    return encode(message).encode()


def _links_of(answer: NoticeAnswer) -> list[str]:
    """Return the lines that describe a call, followed by the links that allow or refuse it."""
    lines = [f"The agent wants to call {answer.tool}: {answer.call}"]
    lines += [f"Allow it once: {answer.allow}"] if answer.allow else []
    return [*lines, f"Refuse it: {answer.deny}"]


def due_at(channel: Channel, now: datetime) -> datetime:
    """Return when a notice may be sent to the channel: now, or at the end of the channel's quiet
    hours."""
    hours = channel.hours
    if hours is None:
        return now
    first, last = hours
    clock = now.time().replace(tzinfo=None)
    if not _within(clock, first, last):
        return now
    end = now.replace(hour=last.hour, minute=last.minute, second=0, microsecond=0)
    if end > now:
        return end
    return end + timedelta(days=1)


def _within(clock: time, first: time, last: time) -> bool:
    """Return whether a time of day is between `first` and `last`, which may be on different sides
    of midnight."""
    if first < last:
        return first <= clock < last
    return clock >= first or clock < last


def chosen(channels: Sequence[Channel], event: NoticeEvent, run: TaskRun) -> list[Channel]:
    """Return the channels that want notices about this event of this run."""
    return [channel for channel in channels if wants(channel, event, run)]
