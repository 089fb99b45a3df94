"""The types of a diagnosis: the kind of damage, its place, its consequence, and the changes that
repair it."""

from __future__ import annotations

from enum import StrEnum

from msgspec import Struct


class Trouble(StrEnum):
    """The kinds of damage that a transcript can have."""

    EMPTY = "empty"
    """The file is empty, or has neither a prompt nor an answer."""
    TORN = "torn tail"
    UNREADABLE = "unreadable line"
    ENCODING = "encoding"
    """The file is not plain UTF-8 lines: it has a byte order mark, UTF-16, or other line ends."""
    GLUED = "glued records"
    """A line has several records, or a record after the remains of another. The CLI reads none of
    them."""
    HEAD = "head"
    """The first record is damaged. Without it the CLI does not recognize the conversation."""
    DANGLING = "dangling tool call"
    ORPHAN = "tool result without its call"
    DOUBLED = "doubled tool result"
    ORDER = "tool result before its call"
    CHAIN = "broken parent chain"
    CONTENT = "content that the service refuses"
    WIPED = "history rewound"
    OVERSIZE = "oversize"
    TWO_PLACES = "one id in two places"


class Harm(StrEnum):
    """The consequence of a finding when an agent is to continue from the damaged transcript."""

    NONE = "none"
    """The agent accepts the damage. Apart from the damaged part, nothing is lost."""
    LOSS = "loss"
    """The agent continues without a part of the conversation, and does not report that."""
    REFUSED = "refused"
    """The agent, or the model's service, refuses the conversation."""


class Finding(Struct, frozen=True):
    """One defect of a transcript. `line` counts from 1; 0 means the whole file. `what` is a
    sentence without unsafe characters."""

    trouble: Trouble
    harm: Harm
    line: int
    what: str


class Edit(Struct, frozen=True):
    """One change of a repaired copy. `line` is the number of the original line that was changed, or
    of the line after which something was inserted."""

    line: int
    what: str
    why: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.what} ({self.why})"


class RepairResult(Struct, frozen=True, kw_only=True):
    """The diagnosis of one transcript, with the repaired content."""

    findings: tuple[Finding, ...] = ()
    edits: tuple[Edit, ...] = ()
    content: bytes | None = None
    """The bytes of the repaired transcript; None if nothing was changed."""
    refusal: str = ""
    """Sentence that says why the transcript cannot be repaired; empty if it was repaired or has no
    damage."""

    @property
    def log(self) -> tuple[str, ...]:
        """Return the edit log: one sentence for each change."""
        return tuple(map(str, self.edits))

    @property
    def harm(self) -> Harm:
        """Return the worst harm of the findings."""
        found = {finding.harm for finding in self.findings}
        if Harm.REFUSED in found:
            return Harm.REFUSED
        if Harm.LOSS in found:
            return Harm.LOSS
        return Harm.NONE


def refused(
    trouble: Trouble, what: str, refusal: str, findings: tuple[Finding, ...] = ()
) -> RepairResult:
    """Return the result for a file that cannot be repaired, because this damage affects the whole
    file."""
    return RepairResult(
        findings=(*findings, Finding(trouble, Harm.REFUSED, 0, what)), refusal=refusal
    )
