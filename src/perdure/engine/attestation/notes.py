"""Attaches an envelope to a commit as a git note (`refs/notes/perdure`), and reads it from there.

The notes are in the run's repository. They change no branch, index or file, and git pushes them
only on request (`git push origin refs/notes/perdure`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from perdure.engine.attestation import Statement
from perdure.errors import NotFound
from perdure.host.git import Git

REF = "refs/notes/perdure"
_IDENTITY = {
    "GIT_AUTHOR_NAME": "perdure",
    "GIT_AUTHOR_EMAIL": "perdure@localhost",
    "GIT_COMMITTER_NAME": "perdure",
    "GIT_COMMITTER_EMAIL": "perdure@localhost",
}


def attach(
    repository: Path, statement: Statement, content: bytes, environ: Mapping[str, str] = os.environ
) -> str:
    """Attach the envelope to the commit that was HEAD at the end of the attempt. An envelope that
    is already attached there is replaced. Return the commit. Raises GitFailed, and NotFound if the
    statement names no commit."""
    commit = next((s.digest["gitCommit"] for s in statement.subject if s.name == "HEAD"), "")
    if not commit:
        raise NotFound("the attempt left no commit to attach a note to")
    git = Git(cwd=repository, environ=environ)
    git.run(
        "notes", f"--ref={REF}", "add", "--force", "--file=-", commit, stdin=content, env=_IDENTITY
    )
    return commit


def attached(repository: Path, commit: str, environ: Mapping[str, str] = os.environ) -> bytes:
    """Return the envelope that is attached to a commit. Raises NotFound if there is none."""
    git = Git(cwd=repository, environ=environ)
    if not (oid := git.commit(commit)):
        raise NotFound(f"there is no commit {commit!r} here")
    found = git.run("notes", f"--ref={REF}", "show", oid, good=(0, 1))
    if found.code:
        raise NotFound(
            f"no receipt is attached to commit {oid[:12]}", f"git fetch origin {REF}:{REF}"
        )
    return found.stdout
