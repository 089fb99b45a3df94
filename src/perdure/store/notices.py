"""The notices to people in SQL: `perdure.protocols.NoticeStore`.

Notices are made from the lines of the audit trail. The number of the last processed line is stored
in the same transaction as the notices, so each line is processed exactly once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from perdure.store.postings import HERE, Postings
from perdure.store.rows import Row, columns_of

if TYPE_CHECKING:
    from perdure.model.notices import Notice


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
