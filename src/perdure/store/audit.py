"""The audit trail in SQL: `perdure.protocols.AuditStore`. `transaction` appends lines; this module
reads and checks them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING

from perdure.store.board import pattern
from perdure.store.reads import StoreReads
from perdure.store.rows import Row, columns_of

if TYPE_CHECKING:
    from perdure.rules.audit_chain import AuditLine

PAGE = 1000
UNAUDITED_MOST = 100


class AuditTrail(StoreReads):
    """Adds the methods of `AuditStore` to the store."""

    def audit(
        self, *, since: int = 0, actor: str = "", run: str = "", after: int = 0, limit: int = PAGE
    ) -> Sequence[AuditLine]:
        values = {"since": since, "actor": pattern(actor), "after": after, "limit": limit}
        if run:
            rows = self._rows("audit_of_run", run=run, **values)
        else:
            rows = self._rows("audit", **values)
        return list(map(_line_of, rows))

    def audit_head(self) -> tuple[int, str]:
        head = self._rows("audit_head")
        if not head:
            return 0, ""
        return head[0]["number"], head[0]["hash"]

    def audit_problems(self) -> Iterator[str]:
        from perdure.rules.audit_chain import problems

        yield from problems(chain.from_iterable(self._pages()), whole=True)
        after = 0
        while lines := self.audit(after=after):
            yield from self._changed(lines)
            after = lines[-1].number
        heads = self._rows("audit_head")
        if not heads:
            yield "the record of the trail's last line is missing, so lines may be missing too"
            return
        head = heads[0]
        last = self.audit(after=max(head["number"] - 1, 0), limit=1)
        if head["number"] and (not last or last[0].hash != head["hash"]):
            yield f"the end of the trail is missing: line {head['number']} was its last"
        for row in self._rows("unaudited_records", since=head["since"], limit=UNAUDITED_MOST):
            yield f"record {row['seq']} ({row['kind']} of run {row['run']}) is not in the trail"

    def _pages(self) -> Iterator[Sequence[AuditLine]]:
        after = 0
        while lines := self.audit(after=after):
            yield lines
            after = lines[-1].number

    def _changed(self, lines: Sequence[AuditLine]) -> Iterator[str]:
        """Check lines of the audit trail against the journal. Yield a sentence for each line whose
        record is missing in the journal or was changed there."""
        from perdure.rules.audit_chain import digest, named

        values = {"after": lines[0].number - 1, "until": lines[-1].number}
        records = {row["number"]: row for row in self._rows("audited_records", **values)}
        for line in lines:
            row = records.get(line.number)
            if not line.record or row is None:
                continue
            if row["seq"] is None:
                yield f"record {line.record} is missing: {named(line)} (line {line.number})"
                continue
            found = (row["run"], row["attempt"], row["at"], row["kind"], row["actor"])
            known = (line.run, line.attempt, line.at, line.kind, line.actor)
            if found != known or digest(row["event"]) != line.sha256:
                yield f"record {line.record} was changed: {named(line)} (line {line.number})"


def _line_of(row: Row) -> AuditLine:
    from perdure.rules.audit_chain import AuditLine

    return AuditLine(**columns_of(row, AuditLine.__struct_fields__))
