"""Notices, browsers that get push messages, and postings in SQL: `NoticeStore`, `DeviceStore` and
`PostingStore` of `perdure.protocols`.

Notices are made from the lines of the audit trail. The number of the last processed line is stored
in the same transaction as the notices, so each line is processed exactly once.

The state of a run is compared with what was posted about it, which shows whether a posting is due.
A missed event therefore does no harm.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from msgspec.structs import replace

from perdure.errors import Conflict, LostLease
from perdure.model import Condition, TaskRun
from perdure.rules.requests import ASKING
from perdure.rules.text import one_line
from perdure.store.inbox import Inbox
from perdure.store.rows import Row, columns_of, events_of, noun_of, run_of

if TYPE_CHECKING:
    from perdure.model.events import AnyEvent
    from perdure.model.forge.postings import Posting
    from perdure.model.notices import Notice, PushDevice

HERE = "here"
"""Name that is stored as the holder of a posting if no other host shares the database. On one host,
a lock in the state directory prevents two processes from posting at the same time."""


class Postings(Inbox):
    """Adds the methods of `PostingStore` to the store."""

    def posting(self, run_id: str) -> Posting | None:
        rows = self._rows("posting", run=run_id)
        if rows:
            return _posting_of(rows[0])
        return None

    def postings_due(self, limit: int = 50) -> Sequence[Posting]:
        rows = self._rows(
            "postings_due",
            now=self.now(),
            host=self._host.id,
            holder=self._host.id or HERE,
            limit=limit,
        )
        return list(map(_posting_of, rows))

    def postings_waiting(self, limit: int = 50) -> Sequence[Posting]:
        return list(map(_posting_of, self._rows("postings_waiting", limit=limit)))

    def hold_posting(self, run_id: str, lease_s: float) -> Posting | None:
        with self._write() as write:
            until = write.now + int(lease_s * 1000)
            row = write.one(
                "hold_posting", run=run_id, holder=self._host.id or HERE, until=until, now=write.now
            )
            if row is not None:
                return _posting_of(row)
            return None

    def put_posting(self, posting: Posting) -> None:
        from perdure.model.codec import encode

        with self._write() as write:
            values = {
                "seen": posting.seen,
                "due": posting.due,
                "tries": posting.tries,
                "body": encode(posting),
            }
            if (
                write.one(
                    "put_posting",
                    run=posting.run,
                    holder=self._host.id or HERE,
                    now=write.now,
                    **values,
                )
                is None
            ):
                raise LostLease(
                    f"Another process reports {posting.run} to the forge; nothing was stored",
                    "perdure inbox",
                )

    def hurry_posting(self, run_id: str) -> bool:
        with self._write() as write:
            return write.one("hurry_posting", run=run_id) is not None

    def final_words(self, run_id: str) -> str:
        from perdure.model.events import TurnEnded

        rows = self._rows("final_words", run=run_id)
        events = events_of(row["event"] for row in rows)
        return "".join(event.text for event in events if isinstance(event, TurnEnded))

    def record_outside_attempt(
        self,
        run_id: str,
        events: Sequence[AnyEvent],
        condition: Condition | None = None,
        solved: str = "",
    ) -> TaskRun:
        from perdure.model.codec import encode

        with self._write() as write:
            run = run_of(write.named(run_id))
            write.note(run.id, 0, events)
            if condition is not None and condition.type in ASKING:
                write.audit_action("person_needed", one_line(condition.message, 400), run=run.id)
            kept = []
            for each in run.conditions:
                if each.type not in ((condition.type if condition else ""), solved):
                    kept.append(each)
            if condition is not None:
                kept.append(replace(condition, at=condition.at or write.now))
            found = tuple(kept)
            if found == run.conditions:
                return run
            return run_of(write.one("tell_run", id=run.id, conditions=encode(found), now=write.now))


def _posting_of(row: Row) -> Posting:
    from perdure.model.forge.postings import Posting

    if row["body"]:
        found = noun_of(row["body"], Posting)
    else:
        found = Posting(run=row["run"])
    return replace(
        found, seen=row["seen"], due=row["due"], tries=row["tries"], updated=row["updated"]
    )


class Notices(Postings):
    """Adds the methods of `NoticeStore` to the store."""

    def notices_seen(self) -> int | None:
        rows = self._rows("notices_seen")
        return rows[0]["line"] if rows else None

    def put_notices(self, before: int | None, after: int, notices: Sequence[Notice]) -> bool:
        from msgspec.structs import asdict

        with self._write(by_itself=True) as write:
            if before is None:
                moved = write.one("begin_notices", line=after)
            else:
                moved = write.one("move_notices", before=before, line=after)
            if moved is None:
                return False
            for notice in notices:
                values = asdict(notice) | {"now": write.now}
                values |= {"event": str(notice.event), "state": str(notice.state)}
                write.do("add_notice", **values)
            return True

    def notices_due(self, limit: int = 50) -> Sequence[Notice]:
        holder = self._host.id or HERE
        rows = self._rows("notices_due", now=self.now(), holder=holder, limit=limit)
        return list(map(_notice_of, rows))

    def notices(self, limit: int = 50) -> Sequence[Notice]:
        return list(map(_notice_of, self._rows("notices", limit=limit)))

    def hold_notice(self, notice: str, lease_s: float) -> Notice | None:
        with self._write(by_itself=True) as write:
            row = write.one(
                "hold_notice",
                id=notice,
                holder=self._host.id or HERE,
                until=write.now + int(lease_s * 1000),
                now=write.now,
            )
            if row is not None:
                return _notice_of(row)
            return None

    def settle_notice(self, notice: Notice) -> bool:
        with self._write(by_itself=True) as write:
            row = write.one(
                "settle_notice",
                id=notice.id,
                holder=self._host.id or HERE,
                state=str(notice.state),
                due=notice.due,
                tries=notice.tries,
                reason=notice.reason,
                now=write.now,
            )
            return row is not None

    def thin_notices(self, before: int) -> int:
        with self._write(by_itself=True) as write:
            return len(write.all("thin_notices", before=before))


def _notice_of(row: Row) -> Notice:
    from perdure.model.notices import Notice, NoticeEvent, NoticeState

    values = columns_of(row, Notice.__struct_fields__)
    values |= {"event": NoticeEvent(row["event"]), "state": NoticeState(row["state"])}
    return Notice(**values)


class StoredDevices(Notices):
    """Adds the methods of `DeviceStore` to the store."""

    def put_device(self, device: PushDevice) -> None:
        from msgspec.structs import asdict

        from perdure.model.notices import DEVICES_MOST

        with self._write() as write:
            # The token may have been removed since the request was authenticated.
            if write.one("is_signed_in", sha256=device.sign_in, now=write.now) is None:
                raise Conflict("You are not signed in any more", "sign in again")
            write.do("forget_devices", now=write.now)
            others = write.all("other_devices", person=device.person, id=device.id)
            if len(others) >= DEVICES_MOST:
                raise Conflict(
                    f"{DEVICES_MOST} of your devices get messages already, which is the maximum",
                    "remove one of them first",
                )
            write.do("drop_endpoint", endpoint=device.endpoint, id=device.id)
            values = asdict(device) | _limits(device) | {"now": write.now}
            del values["added"]
            write.do("put_device", **values)
            write.audit_action("device_added", device.name)

    def renew_device(self, device: PushDevice) -> bool:
        with self._write() as write:
            row = write.one(
                "renew_device",
                id=device.id,
                sign_in=device.sign_in,
                expires=device.expires,
                now=write.now,
                **_limits(device),
            )
            return row is not None

    def devices(self) -> Sequence[PushDevice]:
        return list(map(_device_of, self._rows("devices", now=self.now())))

    def remove_device(self, device: str) -> bool:
        with self._write() as write:
            row = write.one("remove_device", id=device)
            if row is not None:
                write.audit_action("device_removed", row["name"])
            return row is not None


def _limits(device: PushDevice) -> dict[str, str]:
    return {
        "repositories": json.dumps(device.repositories),
        "labels": json.dumps(device.labels),
    }


def _device_of(row: Row) -> PushDevice:
    from perdure.model.notices import PushDevice

    values = columns_of(row, PushDevice.__struct_fields__)
    values["repositories"] = tuple(json.loads(row["repositories"]))
    values["labels"] = tuple(json.loads(row["labels"]))
    return PushDevice(**values)
