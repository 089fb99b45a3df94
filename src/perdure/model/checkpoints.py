"""Data types of a checkpoint: a workdir and a conversation that were saved together."""

from __future__ import annotations

from msgspec import Struct, field


class CopyPart(Struct, frozen=True):
    """The first `size` bytes of perdure's own copy of a transcript, as part of a checkpoint. Copies
    only grow, so these bytes do not change."""

    session_id: str
    name: str
    """`main` for the transcript, `beside/...` for a file next to it."""
    size: int
    sha256: str
    """SHA-256 of the first `size` bytes of the copy. It identifies the part even if perdure's copy
    has been moved to another path since."""


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
"""Reasons for leaving a file out of a checkpoint that do not count as a loss of work. Such a file
can be built again, or has no content."""


CLEAN_UP = "clean-up"
"""Value of `Checkpoint.why` for a checkpoint that is made before its workdir is moved to the trash.
"""
IMPORTED = "import"
"""Value of `Checkpoint.why` for a checkpoint that was imported from another machine."""
SAFETY_REASONS = ("restore", CLEAN_UP)
"""Values of `Checkpoint.why` for checkpoints that are made before a restore or a clean-up. The
saved state need not be one in which an agent stopped."""


class Saved(Struct, frozen=True, kw_only=True):
    """The workdir of a checkpoint: a commit under a ref that belongs to perdure. The user's HEAD,
    index and branches are not changed."""

    commit: str
    ref: str
    git_dir: str
    """Git directory that has the commit and the ref: the user's repository, or one that belongs to
    perdure."""
    head: str = ""
    """Commit id of the workdir's HEAD; empty without git."""
    branch: str = ""
    """Name of the workdir's branch; empty without git, and for a detached HEAD."""
    changed: int = 0
    """Number of files that differ from HEAD; 0 for an imported checkpoint, where it is not
    known."""
    untracked: int = 0
    """Number of files that are not tracked; 0 for an imported checkpoint, where it is not known."""
    left_out: tuple[tuple[str, str], ...] = ()
    """Names of files and directories that were left out, each with the reason; a directory's name
    ends in a slash."""
    unsteady: tuple[str, ...] = ()
    """Names of files that changed while they were being read."""

    @property
    def whole(self) -> bool:
        """Whether all work was saved: each file that was left out can be built again or has no
        content (see `NO_WORK`)."""
        return all(why in NO_WORK for _, why in self.left_out)


class Checkpoint(Struct, frozen=True, kw_only=True):
    """Workdir and conversation of a run, saved together. A checkpoint is stored only when both are
    complete."""

    run: str
    number: int
    """Number of the checkpoint, counted per workdir. Several runs may share one workdir."""
    attempt: int
    at: int
    why: str
    """Why the checkpoint was taken: `turn` (after a turn), `tool` (while the agent worked), `stop`
    (perdure was asked to stop), `end` (end of the attempt), `adopted` (another supervisor took
    over), `restore` (before a restore), `clean-up` (before a clean-up), `IMPORTED` (it was imported
    from another machine)."""
    workdir: Saved
    session_id: str = ""
    """The conversation's id; empty if there was no conversation yet."""
    conversation: tuple[CopyPart, ...] = ()
    """The transcript, then the files that belong to it, then the earlier conversations that it
    continues."""
    context_version: int = 0
    """Newest version of the instructions that the conversation contained."""
    agent: str = ""
    agent_version: str = ""
    flags: dict[str, str] = field(default_factory=dict)
