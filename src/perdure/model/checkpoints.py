"""Workdir and conversation, saved together."""

from __future__ import annotations

from msgspec import Struct, field


class CopyPart(Struct, frozen=True):
    """The first `size` bytes of an own copy, which a checkpoint keeps of a conversation. Copies
    only grow, so these bytes do not change."""

    session_id: str
    name: str
    """`main` is the transcript; `beside/...` is a file next to it."""
    size: int
    sha256: str
    """The digest of these bytes. The part is found by this digest, even if the copy was moved aside
    since."""


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
"""Those reasons for leaving something out of a checkpoint that mean that no work is missing."""


CLEAN_UP = "clean-up"
"""`why` of a checkpoint of a workdir that is moved to the trash."""
KEEPSAKES = ("restore", CLEAN_UP)
"""`why` of checkpoints that save the state before a restore or a clean-up. They say nothing about
where the agent stopped."""


class Saved(Struct, frozen=True, kw_only=True):
    """A workdir as a checkpoint keeps it: a commit under one of perdure's own refs. The user's
    HEAD, index and branches are not touched."""

    commit: str
    ref: str
    git_dir: str
    """The git directory that has the commit and the ref: the user's repository, or one of perdure's
    own."""
    head: str = ""
    """The commit of the workdir's HEAD; empty without git."""
    branch: str = ""
    """The workdir's branch; empty without git, and for a detached HEAD."""
    changed: int = 0
    untracked: int = 0
    left_out: tuple[tuple[str, str], ...] = ()
    """Names of files and directories that were left out, each with the reason; a directory's name
    ends in a slash."""
    unsteady: tuple[str, ...] = ()
    """Files that were written to while they were being read."""

    @property
    def whole(self) -> bool:
        """Whether no work was left out: everything missing can be built again, or has no
        content."""
        return all(why in NO_WORK for _, why in self.left_out)


class Checkpoint(Struct, frozen=True, kw_only=True):
    """Workdir and conversation of a run, saved together. A checkpoint exists only when both halves
    are there."""

    run: str
    number: int
    """Number of the checkpoint among those of its workdir. Several runs may share one workdir."""
    attempt: int
    at: int
    why: str
    """Why the checkpoint was taken: `turn` (after a turn), `tool` (while the agent worked), `stop`
    (perdure was asked to stop), `end` of the attempt, `adopted`, `restore` (before a restore),
    `clean-up` (before a clean-up)."""
    workdir: Saved
    session_id: str = ""
    """The conversation's id; empty if nothing had been said yet."""
    conversation: tuple[CopyPart, ...] = ()
    """The transcript first, then the files that belong to it, then the conversations that it goes
    on from."""
    context_version: int = 0
    """The newest version of the instructions that the conversation had been given."""
    agent: str = ""
    agent_version: str = ""
    flags: dict[str, str] = field(default_factory=dict)
