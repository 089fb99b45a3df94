"""The words of a diagnosis: what is wrong where, what it costs, and what was changed."""

from __future__ import annotations

from enum import StrEnum

from perdure.lateclass import dataclass


class Trouble(StrEnum):
    """What can be wrong with a transcript."""

    EMPTY = "empty"
    """No byte, or no prompt and no answer, stands in it."""
    TORN = "torn tail"
    UNREADABLE = "unreadable line"
    ENCODING = "encoding"
    """Not plain UTF-8 lines: a byte order mark, UTF-16, other line ends."""
    GLUED = "glued records"
    """More than one record on a line, or a record behind the rest of another: the CLI reads
    neither."""
    HEAD = "head"
    """The first record, without which the CLI does not know the conversation."""
    DANGLING = "dangling tool call"
    ORPHAN = "tool result without its call"
    DOUBLED = "doubled tool result"
    ORDER = "tool result before its call"
    CHAIN = "broken parent chain"
    CONTENT = "content that the service refuses"
    WIPED = "history taken back"
    OVERSIZE = "oversize"
    TWO_PLACES = "one id in two places"


class Harm(StrEnum):
    """What it costs."""

    NONE = "none"
    """The agent takes it as it is; nothing is lost by it that was not lost before."""
    LOSS = "loss"
    """The agent goes on, without a part of the conversation, and does not say so."""
    REFUSED = "refused"
    """The agent, or the model's service, refuses the conversation."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong. `line` counts from 1; 0 is the file as a whole. `what` is a sentence
    without hostile characters."""

    trouble: Trouble
    harm: Harm
    line: int
    what: str


@dataclass(frozen=True, slots=True)
class Edit:
    """One change. `line` is the line of the original that was changed, or behind which something
    was put in."""

    line: int
    what: str
    why: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.what} ({self.why})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mended:
    """The answer to one transcript."""

    findings: tuple[Finding, ...] = ()
    edits: tuple[Edit, ...] = ()
    content: bytes | None = None
    """The new bytes; None where nothing was changed."""
    refusal: str = ""
    """Why it cannot be mended, in a sentence; empty where it could be, or need not be."""

    @property
    def log(self) -> tuple[str, ...]:
        """The edits as sentences."""
        return tuple(map(str, self.edits))

    @property
    def harm(self) -> Harm:
        """The worst of the findings."""
        found = {finding.harm for finding in self.findings}
        if Harm.REFUSED in found:
            return Harm.REFUSED
        if Harm.LOSS in found:
            return Harm.LOSS
        return Harm.NONE


def refused(
    trouble: Trouble, what: str, refusal: str, findings: tuple[Finding, ...] = ()
) -> Mended:
    """The answer where nothing can be done: the file as a whole has this trouble."""
    return Mended(findings=(*findings, Finding(trouble, Harm.REFUSED, 0, what)), refusal=refusal)
