"""Installs one npm package into a directory that belongs to perdure, for `perdure demo`."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from perdure.errors import AgentMissing

PATIENCE_S = 600.0
SHOWN = 300
"""Maximum number of characters of npm's output that an error message contains."""


def install(package: str, directory: Path, environ: Mapping[str, str]) -> None:
    """Install the package `NAME@VERSION` into the directory, completely or not at all. Do nothing
    if the directory exists.

    No install script of a package is run. Raises AgentMissing if npm is missing or fails.
    """
    if directory.is_dir():
        return
    npm = shutil.which("npm", path=environ.get("PATH", os.defpath))
    if npm is None:
        raise AgentMissing(
            "No agent is installed, and npm, which could install one, is missing.",
            f"Install node and npm, or an agent: npm install -g {package}",
        )
    directory.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".new-", dir=directory.parent))
    flags = ("--no-audit", "--no-fund", "--no-package-lock", "--ignore-scripts", "--loglevel=error")
    try:
        done = subprocess.run(
            [npm, "install", "--prefix", str(scratch), *flags, package],
            cwd=scratch,
            env=dict(environ),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=PATIENCE_S,
            check=False,
        )
        if done.returncode:
            said = " ".join((done.stderr or done.stdout).decode("utf-8", "replace").split())
            raise AgentMissing(
                f"npm could not install {package}: {said[-SHOWN:]}", "perdure doctor"
            )
        try:
            scratch.rename(directory)
        except OSError:
            if not directory.is_dir():  # otherwise another process has installed it meanwhile
                raise
    except subprocess.TimeoutExpired:
        raise AgentMissing(
            f"npm has not installed {package} within {PATIENCE_S:g} s.", "try again"
        ) from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
