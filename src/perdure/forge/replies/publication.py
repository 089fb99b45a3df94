"""Publishes a run's branch on the forge: commits, searches for secrets, pushes, and opens a pull
request.

This happens only after the run has succeeded. Every commit is searched, not only the last one,
because a secret that was committed and removed again stays in the history. perdure pushes the
branch itself, so an agent needs no permission to push.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from msgspec import Struct
from msgspec.structs import replace

from perdure.capsule import secret_search
from perdure.capsule.secret_search import Scan, SecretFinding, table
from perdure.engine import checkpoints
from perdure.engine.attempt import Engine
from perdure.errors import PerdureError
from perdure.forge.replies.sentences import title
from perdure.host.redaction import Redactor
from perdure.model import Backend, RunState, TaskRun, Workspace
from perdure.model.forge.postings import Origin, Posting
from perdure.model.forge.state import IssueRef, Pull
from perdure.protocols import ForgeApi
from perdure.workspace import Credentials, Outgoing


class HeldBack(PerdureError):
    """Raised if the branch must not be pushed as it is, until a person has looked at the reason."""

    exit_code = 3


class Pushed(Struct, frozen=True, kw_only=True):
    """The published branch. `commit` is empty if there was nothing to push. `base` is the
    repository's default branch, and is set only if the caller asked for it."""

    branch: str
    commit: str
    base: str = ""


def push(
    engine: Engine,
    run: TaskRun,
    credentials: Credentials | None,
    redactor: Redactor,
    *,
    needs_base: bool,
) -> Pushed | None:
    """Push the commits of the run, and return the published branch. Returns None if another attempt
    of the run has begun meanwhile. Raises Conflict while the workdir is in use, HeldBack, Diverged,
    GitFailed, WorkspaceError."""
    place = run.workspace
    if place is None or place.backend is not Backend.ISOLATED:
        # The branch of a worktree is already in the user's own repository, so it is not pushed to a
        # forge.
        return Pushed(branch=place.branch if place else "", commit="")
    try:
        with engine.workspaces.outgoing(place, _ready(engine, run, place), credentials) as found:
            if found.commits or found.tip not in ("", found.commit):
                _search(found, redactor)
                found.push()
            elif not found.tip:
                return Pushed(branch=found.branch, commit="")
            return Pushed(
                branch=found.branch,
                commit=found.commit,
                base=found.default_branch() if needs_base else "",
            )
    except _BranchAdvanced:
        return None


class _BranchAdvanced(Exception):
    """Raised if the run has continued, so that its earlier result must not be published any
    more."""


@contextlib.contextmanager
def _ready(engine: Engine, run: TaskRun, place: Workspace) -> Iterator[None]:
    """Commit the whole content of the workdir, and hold the workdir's lock during the block. An
    attempt that begins meanwhile waits. Raises _BranchAdvanced if the run has continued."""
    fd = engine.workspaces.lock(
        place, f"perdure publish {run.name}", keep_waiting_agents=True, brief=True
    )
    try:
        now = engine.store.get(run.id)
        if now.state is not RunState.SUCCEEDED or now.attempt != run.attempt:
            raise _BranchAdvanced
        _commit(engine, run)
        yield
    finally:
        os.close(fd)


def _commit(engine: Engine, run: TaskRun) -> None:
    """Commit the files that the agent left uncommitted, and make a checkpoint. Without the
    checkpoint, the new HEAD would be mistaken for a change by somebody else."""
    assert run.workspace is not None
    issue = run.spec.labels.get("issue", "")
    text = (
        f"Work on {issue}\n\nLeft uncommitted by the agent at the end of attempt {run.attempt} of "
        f"the run {run.name}.\n"
    )
    before = engine.workspaces.state(run.workspace).head
    if (
        engine.workspaces.commit(run.workspace, run.spec.agent, text, engine.committer(run))
        != before
    ):
        checkpoints.save_current(engine, run, run.workspace, "publish")


def _search(found: Outgoing, redactor: Redactor) -> None:
    """Search new files, file names and commit messages for secrets. Raises HeldBack if there is a
    secret, or a file that is too large to be searched."""
    scan = Scan(redactor)
    large = secret_search.search(found.git, found.commit, found.have, scan, called=str)
    scan.look("a commit's message or author", found.raw_commits())
    scan.look("a file's name", found.names())
    if scan.findings:
        raise HeldBack(
            f"{_what(scan.findings)}; nothing was pushed",
            "remove it from the commits, or push it yourself",
        )
    if large:
        raise HeldBack(
            f"{large[0]!r} is too large to be searched for secrets; nothing was pushed",
            "remove it, or push it yourself",
        )


def _what(findings: list[SecretFinding]) -> str:
    count = f"{len(findings)} secrets" if len(findings) > 1 else "a secret"
    lines = map(str.strip, table(findings[:3]).splitlines())
    return f"{count} would go to the forge: {'; '.join(lines)}"


def pull_request(
    api: ForgeApi, origin: Origin, run: TaskRun, posting: Posting, pushed: Pushed, page: str
) -> Pull | None:
    """Return the open pull request of the branch. Opens one if there is none, or if the last one
    was merged. Returns None if a person closed the pull request without merging it, or if the
    branch to merge into is not known. Raises ForgeError, NotFound."""
    if posting.pull:
        there = api.pull(origin.repository, posting.pull)
        if there.open or not there.merged:
            if there.open:
                return there
            return None
    base = run.spec.base or pushed.base
    if not base:
        return None
    issue = api.issue(IssueRef(origin.repository, origin.number, origin.pull))
    closes = "For" if origin.pull else "Closes"
    text = (
        f"{closes} #{origin.number}.\n\nMade by **{origin.rule}** ({run.spec.agent}), run "
        f"`{run.name}`."
    )
    text += f" [Its page](<{page}>)." if page else ""
    # A pull request may be visible to people who cannot see a confidential issue, so it does not
    # repeat the title of such an issue.
    what = "Work" if issue.confidential else title(issue.title)
    return api.open_pull(
        origin.repository,
        head=pushed.branch,
        base=base,
        title=f"{what} (#{origin.number})",
        text=text,
    )


def published(posting: Posting, run: TaskRun, pushed: Pushed, pull: Pull | None) -> Posting:
    """Return the posting, updated with the published attempt, its commit and its pull request."""
    found = replace(posting, attempt=run.attempt, commit=pushed.commit or posting.commit)
    if pull is not None:
        return replace(found, pull=pull.ref.number, pull_url=pull.url)
    return found
