"""Finds an agent's native program, and reasons why a launch of it cannot work.

`locate` is used by the drivers' `locate`. An npm wrapper is never started, because a kill would end
only the wrapper and leave the agent running. Observed layouts: `@anthropic-ai/claude-code` 2.1.329,
`@openai/codex` 0.169.0 and `opencode-ai` 1.18.33.

`prompt` and `arguments` are used by the drivers' `refuse`. Both return the reason as one sentence
for a person, or an empty string if they find none.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from msgspec import Struct

from perdure.agents.shared import json_lines
from perdure.errors import AgentMissing
from perdure.model import Launch, Program
from perdure.patterns import late_pattern

_MACHINES = {"x86_64": "x64", "amd64": "x64", "aarch64": "arm64", "arm64": "arm64"}
_NUMBER = late_pattern(r"\d+\.\d+\.\d+[\w.+]*")


class Package(Struct, frozen=True):
    """How an agent is installed with npm.

    - `variable`: name of the environment variable that may hold the path of the program to use.
    - `scope`: npm scope of the package, or `node_modules` if it has none.
    - `native`: glob for the program inside the platform package; empty if the agent is only a
      script.

    The platform package is named `platform`-linux-x64, `platform`-darwin-arm64 and so on.
    """

    command: str
    variable: str
    scope: str
    name: str
    native: str
    platform: str = ""
    """Prefix of the platform package's name. Empty if the prefix is `name`."""

    @property
    def install(self) -> str:
        return f"npm install -g {self.scope}/{self.name}".replace("node_modules/", "")


def locate(package: Package, environ: Mapping[str, str]) -> Program:
    """Return the program that the package's variable names, else the first program on PATH with the
    name `package.command`. Raise AgentMissing if there is no such program, or if the program cannot
    be started."""
    given = environ.get(package.variable, "")
    found = given if given else shutil.which(package.command, path=environ.get("PATH", os.defpath))
    if found is None:
        raise AgentMissing(
            f"{package.command} is not installed: it is not on PATH.", package.install
        )
    path = native(package, Path(found).absolute())
    if not path.is_file() or not os.access(path, os.X_OK):
        place = f"{package.variable}={given}" if given else str(path)
        raise AgentMissing(
            f"{package.command} cannot be started: {place} is not a program.", package.install
        )
    needs = interpreter(path)
    if needs and shutil.which(needs, path=environ.get("PATH", os.defpath)) is None:
        raise AgentMissing(
            f"{package.command} cannot be started: it needs {needs}, which is not on PATH.",
            f"Install {needs}.",
        )
    return Program(path=str(path), version=version(path))


def native(package: Package, path: Path, target: str = "") -> Path:
    """Return the native program behind the npm wrapper at `path`. If no native program is found,
    return the wrapper's path with all links resolved. A path outside of the npm package is
    returned unchanged. `target`: system and processor as in the names of npm's platform packages
    (`darwin-arm64`); default: those of this machine."""
    real = path.resolve()
    scope = next((folder for folder in real.parents if folder.name == package.scope), None)
    if scope is None or package.name not in (folder.name for folder in real.parents):
        return path
    if not package.native:
        return real
    system = f"{package.platform or package.name}-{target or _target()}"
    inner = scope / package.name / "node_modules"
    homes = (scope, inner if package.scope == inner.name else inner / package.scope)
    for home in homes:
        for folder in (home / system, home / f"{system}-musl", home / f"{system}-baseline"):
            if file := next(iter(sorted(folder.glob(package.native))), None):
                return file
    return real


def _target() -> str:
    """Return this machine's system and processor, as in the names of npm's platform packages."""
    machine = platform.machine()
    return f"{platform.system().lower()}-{_MACHINES.get(machine.lower(), machine)}"


def interpreter(path: Path) -> str:
    """Return the name of the interpreter in a script's first line (`node` in `#!/usr/bin/env
    node`). Empty if the file is not a script or cannot be read."""
    try:
        with path.open("rb") as file:
            first = file.readline(256)
    except OSError:
        return ""
    if first.startswith(b"#!"):
        words = first[2:].decode("utf-8", "replace").split()
    else:
        words = []
    if words and Path(words[0]).name == "env":
        words = [word for word in words[1:] if not word.startswith("-") and "=" not in word]
    if words:
        return words[0]
    return ""


def version(program: Path) -> str:
    """Return the program's version. The native installer puts the version into the file name. For
    other programs, the version is read from a package file in a directory above the program. Empty
    if neither has a version."""
    real = program.resolve()
    if _NUMBER.fullmatch(real.name):
        return real.name
    for folder in list(real.parents)[:5]:
        for name in ("codex-package.json", "package.json"):
            try:
                stated = json_lines.part(json_lines.read((folder / name).read_bytes()), "version")
            except OSError:
                continue
            if number := _NUMBER.match(json_lines.text(stated)):
                return number[0]
        if folder.parent.name == "node_modules":
            break
    return ""


def prompt(launch: Launch) -> str:
    """Return why the prompt cannot be sent: it is empty, or it is not valid Unicode. Return an
    empty string if it can be sent."""
    if not launch.prompt.strip():
        return "The prompt is empty."
    try:
        launch.prompt.encode()
    except UnicodeEncodeError as error:
        return (
            f"The prompt is not valid text: character {error.start + 1} is half of a "
            "surrogate pair."
        )
    return ""


def arguments(launch: Launch, reserved: frozenset[str]) -> str:
    """Return why one of the agent's arguments is refused: it has a NUL character, or it is one of
    `reserved`. Return an empty string if none is refused. Every form that the CLIs accept is
    recognized: `--name=value`, `-nvalue`, and `--camelCase` for `--camel-case` (yargs, of Gemini
    CLI and OpenCode)."""
    for argument in launch.spec.agent_args:
        if "\0" in argument:
            return "An argument for the agent has a NUL character in it."
        flag = re.sub(
            r"(?<=[a-z])[A-Z]", lambda found: f"-{found[0].lower()}", argument.partition("=")[0]
        )
        if not flag.startswith("--") and flag not in reserved:
            flag = flag[:2]
        if flag in reserved:
            return (
                f"The argument {flag} cannot be passed to {launch.spec.agent}: perdure sets it "
                "itself."
            )
    return ""
