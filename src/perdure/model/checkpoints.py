"""Workdir and conversation, saved together."""

from __future__ import annotations

from dataclasses import field

from perdure.lateclass import dataclass


@dataclass(frozen=True, slots=True)
class CopyPart:
    """The first `size` bytes of an own copy: what a checkpoint keeps of a conversation. Copies only
    grow, so it stays."""

    session_id: str
    name: str
    """`main` is the transcript; `beside/...` a file beside it."""
    size: int
    sha256: str
    """Of these bytes: the part is found by it, also where the copy was moved aside since."""


BUILT_AGAIN = "it can be built again"
NO_WORK = frozenset(
    {
        BUILT_AGAIN,
        "it is a pipe",
        "it is a socket",
        "it is a device",
        "it is neither a file nor a link",
        "it is special",
    }
)
"""Why something is left out of a checkpoint that is nobody's work."""


CLEAN_UP = "clean-up"
"""Why a checkpoint was taken of a workdir that goes to the trash."""
KEEPSAKES = ("restore", CLEAN_UP)
"""Checkpoints of what a person or a clean-up took away: they say nothing of where the agent
stopped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """A workdir as a checkpoint keeps it: a commit under a ref of perdure's own. Nobody's HEAD,
    index or branch is touched."""

    commit: str
    ref: str
    git_dir: str
    """Where commit and ref lie: the user's repository, or a git directory of perdure's own."""
    head: str = ""
    """What the workdir stood at; empty without git."""
    branch: str = ""
    """Empty without git, and for a detached HEAD."""
    changed: int = 0
    untracked: int = 0
    left_out: tuple[tuple[str, str], ...] = ()
    """Name and reason; a directory's name ends in a slash."""
    unsteady: tuple[str, ...] = ()
    """Files that were written to while they were being read."""

    @property
    def whole(self) -> bool:
        """Whether no work was left out: what is not there can be built again, or holds nothing."""
        return all(why in NO_WORK for _, why in self.left_out)


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """Workdir and conversation of a run, saved together. It exists only when both halves are
    there."""

    run: str
    number: int
    """Counts the checkpoints of a workdir, which several runs may share."""
    attempt: int
    at: int
    why: str
    """`turn`, `tool` (while it worked), `stop` (asked to end), `end` of the attempt, `adopted`,
    `restore` (before one), `clean-up` (before one)."""
    workdir: Saved
    session_id: str = ""
    """Empty where nothing had been said yet."""
    conversation: tuple[CopyPart, ...] = ()
    """The transcript first; then what lies beside it, and the conversations that it goes on
    from."""
    context_version: int = 0
    """The newest version of the instructions that the conversation had been given."""
    agent: str = ""
    agent_version: str = ""
    flags: dict[str, str] = field(default_factory=dict)
