"""Postings in SQL: `perdure.protocols.PostingStore`. The state of a run is compared with what was
posted about it, which shows whether a posting is due. A missed event therefore does no harm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from msgspec.structs import replace

from perdure.errors import LostLease
from perdure.model import Condition, TaskRun
from perdure.rules.requests import ASKING
from perdure.rules.text import one_line
from perdure.store.inbox import Inbox
from perdure.store.rows import Row, event_of, noun_of, run_of

if TYPE_CHECKING:
    from perdure.model.events import AnyEvent
    from perdure.model.forge.postings import Posting

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
        event = event_of(rows[0]["event"]) if rows else None
        if isinstance(event, TurnEnded):
            return event.text
        return ""

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
            found = (*kept, *([replace(condition, at=write.now)] if condition else []))
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
