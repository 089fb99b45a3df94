"""A clone of a hostile agent is forked, and merged into another one. Nothing in its git directory
runs or is copied."""

from __future__ import annotations

from pathlib import Path

import pytest

from perdure.errors import WorkspaceError
from tests.workspace.test_clones import clones
from tests.workspace.test_photograph import made
from tests.workspace.yard import Yard, make_yard


@pytest.fixture
def yard(tmp_path: Path) -> Yard:
    return make_yard(tmp_path)


def test_objects_of_somebody_else_are_not_taken_along(yard: Yard) -> None:
    """An agent points its alternates at another tenant's objects, or links to them. None of those
    objects gets into a fork or a merge."""
    source, top, target, place = clones(yard)
    tenant = make_yard(yard.top / "tenant")
    (tenant.repo / "secret").write_text("TOPSECRET\n")
    tenant.git("add", ".")
    tenant.git("commit", "-qm", "private")
    secret = tenant.git("rev-parse", "HEAD")
    with (top / ".git/objects/info/alternates").open("a") as file:
        file.write(f"{tenant.repo / '.git/objects'}\n")
    (top / ".git/refs/heads/one").write_text(f"{secret}\n")
    with pytest.raises(WorkspaceError, match=r"Not all objects|info/alternates was changed"):
        yard.workspaces.checkpoints.copy_state(source, target)
    with pytest.raises(WorkspaceError, match=r"Not all objects|info/alternates was changed"):
        yard.workspaces.checkpoints.copy_commit(source, target, secret)
    assert (
        "fatal" in yard.complaint("cat-file", "-p", secret, cwd=place)
        and not (place / "secret").exists()
    )


def test_nothing_of_an_agents_git_directory_goes_along(yard: Yard) -> None:
    """Hooks, filters, drivers and other programs that an agent configured in one clone do not run
    in either clone, and are not copied to the other clone's git directory."""
    source, top, target, place = clones(yard)
    fired = yard.top / "fired"
    evil = f"touch {fired}; cat"
    (top / ".gitattributes").write_text("* filter=evil merge=evil diff=evil\n")
    (top / ".git/info").mkdir(exist_ok=True)
    (top / ".git/info/attributes").write_text("* filter=evil merge=evil diff=evil\n")
    for key in (
        "filter.evil.clean",
        "filter.evil.smudge",
        "merge.evil.driver",
        "diff.evil.textconv",
        "diff.external",
        "core.fsmonitor",
    ):
        yard.git("config", key, evil, cwd=top)
    yard.git("config", "core.alternateRefsCommand", evil, cwd=top)
    for hook in (
        "post-checkout",
        "reference-transaction",
        "post-index-change",
        "pre-commit",
        "post-merge",
    ):
        script = top / ".git/hooks" / hook
        script.parent.mkdir(exist_ok=True)
        script.write_text(f"#!/bin/sh\ntouch {fired}\n")
        script.chmod(0o755)
    fired.unlink(missing_ok=True)
    head = yard.workspaces.commit(source, "claude", "Theirs")
    yard.workspaces.checkpoints.copy_commit(source, target, head)
    yard.workspaces.merge(target, "claude", head, "Merge one")
    yard.workspaces.changed(source, yard.git("rev-parse", "main"), head, 9)
    third, there = made(yard, "isolated", branch="three")
    yard.workspaces.checkpoints.copy_state(source, third)
    assert not fired.exists()
    for git_directory in (place / ".git", there / ".git"):
        assert "evil" not in (git_directory / "config").read_text()
        assert (
            not (git_directory / "hooks").exists()
            and not (git_directory / "info/attributes").exists()
        )
