"""Sends notices to people, in a thread next to the worker pool.

Only one process of a host sends at a time. Several hosts share one outbox, in which each notice
that is being sent is leased. Every notice is stored before it is sent. Sending is repeated until
the receiver accepts the notice, for at most a week.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import datetime
from types import TracebackType

import msgspec

from perdure.engine.attempt import Engine
from perdure.engine.notices.push import DeviceGone, Devices, channels_for
from perdure.engine.notices.senders import NoticeRefused, PartlyRefused, send
from perdure.errors import NotFound, PerdureError
from perdure.host.rounds import OneOfHost, Rounds
from perdure.model import TaskRun, Usage
from perdure.model.events import AnyEvent
from perdure.model.notices import PREFIX, Channel, Notice, NoticeEvent, NoticeState, PushDevice
from perdure.rules import notification
from perdure.rules.audit_chain import AuditLine

LOOK_S = 1.0
"""Poll interval of the audit trail and the outbox, in seconds."""
PAGE = 500
LEASE_S = 120.0
AGAIN_S, LONGEST_S = 10.0, 3600.0
"""Pause after the first failed try to send a notice, and longest pause between two tries, in
seconds."""
REST_S = 60.0
"""Pause in seconds after a notice to a channel or browser failed. Nothing is sent to it during the
pause, because each try may take until its timeout, and all other notices wait meanwhile."""
WEEK_MS = 7 * 86_400_000
"""Age in milliseconds from which a notice is no longer sent, and a line of the audit trail is
ignored."""
KEPT_MS = 30 * 86_400_000
"""Age in milliseconds at which a notice that was sent or given up is deleted from the outbox."""
Page = Callable[[str], str]


class Notifier:
    """Sends notices to people while it is used as a context manager (`with`). `page` returns the
    address of a run's page. If a channel fails, `say` is called with a line of text about the
    failure. `linked` adds links to a notice. `deliver` sends a notice, or raises NoticeRefused.
    `devices` finds the browsers of people in the store and sends notices to them; None if push
    messages are off."""

    def __init__(
        self,
        engine: Engine,
        channels: Sequence[Channel],
        say: Callable[[str], None],
        page: Page = lambda name: "",
        deliver: Callable[[Channel, Notice], None] = send,
        linked: Callable[[Channel, Notice], Notice] = lambda channel, notice: notice,
        devices: Devices | None = None,
    ) -> None:
        self._engine, self._channels, self._say, self._page = engine, tuple(channels), say, page
        self._deliver, self._linked, self._devices = deliver, linked, devices
        self._resting: dict[str, float] = {}
        self._by_name = {channel.name: channel for channel in channels}
        self._store = engine.store
        self._identity = ""
        self._said = ""
        self._thinned = 0.0
        self._lock = OneOfHost(engine.state / "notices.lock")
        # When this process ends, one last round reports runs that have just ended.
        self._rounds = Rounds("notices", self._try, LOOK_S, self._failed, last=self._last)

    def __enter__(self) -> Notifier:
        self._rounds.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._rounds.stop()
        self._lock.close()

    def _try(self) -> None:
        if self._lock.is_mine():
            self.round()

    def _failed(self, error: Exception) -> None:
        self._tell(f"notices could not be sent: {error or type(error).__name__}")

    def _last(self) -> None:
        try:
            self._try()
        except Exception as error:
            self._failed(error)

    def round(self) -> None:
        """Read new lines of the audit trail, and send the notices that are due. While the process
        is ending, send only notices that were not tried yet. Once an hour, delete old notices from
        the outbox. Raises StoreError."""
        while self._follow():
            pass
        # Notices to browsers come last, because the browsers' push services may be slow.
        for notice in sorted(self._store.notices_due(), key=_is_to_device):
            if notice.tries == 0 or not self._rounds.is_over():
                self._one(notice)
        if time.monotonic() - self._thinned > 3600 or not self._thinned:
            self._thinned = time.monotonic()
            self._store.thin_notices(self._store.now() - KEPT_MS)

    # --- from the audit trail to the outbox ---

    def _follow(self) -> bool:
        """Read the next lines of the audit trail, and store the notices about them in the outbox.
        Return whether there may be more lines."""
        seen = self._store.notices_seen()
        if seen is None:
            # A channel has just been configured for the first time. Events before this moment are
            # not reported.
            self._store.put_notices(None, self._store.audit_head()[0], ())
            return False
        lines = self._store.audit(after=seen, limit=PAGE)
        if not lines:
            return False
        since = self._store.now() - WEEK_MS
        found: list[Notice] = []
        devices = self._devices.all() if self._devices is not None else ()
        for line in lines:
            if line.run and line.at >= since and line.kind in notification.KINDS:
                found += self._notices_of(line, devices)
        self._store.put_notices(seen, lines[-1].number, found)
        return len(lines) == PAGE

    def _notices_of(self, line: AuditLine, devices: Sequence[PushDevice]) -> Iterator[Notice]:
        try:
            run = self._store.get(line.run)
        except NotFound:
            return  # The run was removed from the list, so no notice is made.
        cause = self._record(line)
        event = notification.event_of(line.kind, cause, run)
        if event is NoticeEvent.WAITING and not notification.waits_long(cause, line.at):
            return
        if event is None:
            return
        body = ""
        channels = (*self._channels, *channels_for(devices, run, line.at))
        for channel in notification.chosen(channels, event, run):
            body = body or self._body(event, cause, run, line)
            yield Notice(
                id=notification.id_of(self._store_id(), channel.name, line.number),
                channel=channel.name,
                line=line.number,
                event=event,
                run=run.id,
                at=line.at,
                body=body,
                due=self._due(channel),
            )

    def _record(self, line: AuditLine) -> AnyEvent | None:
        if not line.record:
            return None
        found = self._store.history(line.run, line.record - 1, 1)
        if found and found[0].seq == line.record:
            return found[0].event
        return None

    def _body(
        self, event: NoticeEvent, cause: AnyEvent | None, run: TaskRun, line: AuditLine
    ) -> str:
        used = sum((each.usage for each in self._store.attempts(run.id)), start=Usage())
        text = notification.body_of(event, cause, run, used, line.at, self._page(run.name))
        return self._engine.redactor.text(text)

    def _store_id(self) -> str:
        self._identity = self._identity or self._store.identity()[0]
        return self._identity

    def _due(self, channel: Channel) -> int:
        now = datetime.now().astimezone()
        wait_s = (notification.due_at(channel, now) - now).total_seconds()
        return self._store.now() + int(wait_s * 1000)

    # --- from the outbox to people ---

    def _one(self, due: Notice) -> None:
        """Send a notice. If sending to the same channel or browser has failed within the last
        `REST_S` seconds, postpone the notice instead."""
        notice = self._store.hold_notice(due.id, LEASE_S)
        if notice is None:
            return
        if time.monotonic() < self._resting.get(notice.channel, 0.0):
            self._later(notice, f"{notice.channel} has just failed")
            return
        channel = self._by_name.get(notice.channel)
        devices = self._devices if _is_to_device(notice) else None
        if channel is None and devices is None:
            self._settle(notice, NoticeState.GIVEN_UP, "the channel is no longer configured")
            return
        try:
            if devices is not None:
                devices.send(notice)
            elif channel is not None:
                self._deliver(channel, self._linked(channel, notice))
        except DeviceGone as error:
            self._settle(notice, NoticeState.GIVEN_UP, str(error))
        except PartlyRefused as error:
            self._settle(notice, NoticeState.SENT, str(error))
            self._tell(str(error))
        except NoticeRefused as error:
            self._resting[notice.channel] = time.monotonic() + REST_S
            self._later(notice, str(error))
            self._tell(str(error))
        else:
            self._settle(notice, NoticeState.SENT, "")

    def _later(self, notice: Notice, why: str) -> None:
        now, tries = self._store.now(), notice.tries + 1
        if now - notice.at > WEEK_MS:
            self._settle(notice, NoticeState.GIVEN_UP, why)
            return
        pause_s = min(LONGEST_S, AGAIN_S * 2 ** min(tries - 1, 10))
        due = now + int(pause_s * 1000)
        changed = msgspec.structs.replace(notice, due=due, tries=tries, reason=why)
        self._store.settle_notice(changed)

    def _settle(self, notice: Notice, state: NoticeState, reason: str) -> None:
        self._store.settle_notice(
            msgspec.structs.replace(notice, state=state, tries=notice.tries + 1, reason=reason)
        )

    def _tell(self, line: str) -> None:
        if line != self._said:
            self._said = line
            with suppress(PerdureError):
                self._say(line)


def _is_to_device(notice: Notice) -> bool:
    return notice.channel.startswith(PREFIX)
