"""Ways in which an agent, with its ordinary rights, can make another user's git run a program.

Each vector plants files in a git directory and a working directory, and has a plain git command
that triggers the program.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.workspace.yard import Yard


@dataclass(frozen=True)
class Ground:
    """The directories in which a vector is planted. `common` is the git directory with the
    configuration, `admin` is the workdir's own."""

    yard: Yard
    top: Path
    common: Path
    admin: Path

    @property
    def canary(self) -> Path:
        """Return the path of a file that exists as soon as the planted program has run."""
        return self.yard.top / "CANARY"

    @property
    def program(self) -> str:
        return self._script("fire", f"#!/bin/sh\n: > '{self.canary}'\n")

    @property
    def filter(self) -> str:
        return self._script("filter", f"#!/bin/sh\n: > '{self.canary}'\nexec cat\n")

    def config(self, *pairs: tuple[str, str], file: Path | None = None) -> None:
        for key, value in pairs:
            self.yard.git(
                "config", "--file", str(file or self.common / "config"), "--add", key, value
            )

    def hook(self, name: str, directory: Path | None = None) -> None:
        directory = directory or self.common / "hooks"
        directory.mkdir(exist_ok=True)
        (directory / name).write_text(f"#!/bin/sh\n: > '{self.canary}'\n")
        (directory / name).chmod(0o755)

    def git(self, *args: str) -> None:
        self.yard.git(*args, cwd=self.top, check=False, env={"GIT_TERMINAL_PROMPT": "0"})

    def _script(self, name: str, text: str) -> str:
        path = self.yard.top / name
        path.write_text(text)
        path.chmod(0o755)
        return str(path)


Step = Callable[[Ground], None]


@dataclass(frozen=True)
class Vector:
    name: str
    plant: Step
    spring: Step


def commit(ground: Ground) -> None:
    (ground.top / "README").write_text("agent\n")
    ground.git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qam", "x")


def run(*args: str) -> Step:
    return lambda ground: ground.git(*args)


def configured(*pairs: tuple[str, str]) -> Step:
    """Return a step that sets these values in git's configuration, with {program} and {filter}
    filled in."""

    def plant(ground: Ground) -> None:
        programs = {"program": ground.program, "filter": ground.filter}
        ground.config(*((key.format(**programs), value.format(**programs)) for key, value in pairs))

    return plant


def hooked(name: str) -> Step:
    return lambda ground: ground.hook(name)


def _hooks_path(ground: Ground) -> None:
    ground.hook("post-checkout", ground.yard.top / "hooks")
    ground.config(("core.hooksPath", str(ground.yard.top / "hooks")))


def _include(ground: Ground) -> None:
    ground.config(("core.fsmonitor", ground.program), file=ground.yard.top / "included")
    ground.config(("include.path", str(ground.yard.top / "included")))


def _evil_commondir(ground: Ground, *pairs: tuple[str, str]) -> None:
    evil = ground.yard.top / "evil"
    ground.yard.git("clone", "-q", "--bare", str(ground.common), str(evil))
    ground.yard.git("update-ref", "refs/heads/work", "HEAD", cwd=evil)
    ground.config(*pairs, file=evil / "config")
    (ground.admin / "commondir").write_text(f"{evil}\n")


def _alternate_refs(ground: Ground) -> None:
    ground.yard.git(
        "clone", "-q", "--bare", str(ground.yard.repo), str(ground.yard.top / "alternate")
    )
    with (ground.common / "objects/info/alternates").open("a") as file:
        file.write(f"{ground.yard.top / 'alternate' / 'objects'}\n")
    ground.config(("core.alternateRefsCommand", ground.program))
    ground.yard.git("clone", "-q", "--bare", str(ground.yard.repo), str(ground.yard.top / "far"))
    tree = ground.yard.git("rev-parse", "HEAD^{tree}")
    ground.yard.git(
        "update-ref",
        "HEAD",
        ground.yard.git("commit-tree", tree, "-m", "new"),
        cwd=ground.yard.top / "far",
        check=False,
    )


def _attributes(line: str, *, in_tree: bool = False) -> Step:
    def plant(ground: Ground) -> None:
        place = ground.top / ".gitattributes" if in_tree else ground.common / "info/attributes"
        place.parent.mkdir(exist_ok=True)
        place.write_text(f"{line}\n")

    return plant


def both(*steps: Step) -> Step:
    return lambda ground: [step(ground) for step in steps].clear()


def _touch(ground: Ground) -> None:
    (ground.top / "README").write_text("agent\n")


def _nested(ground: Ground) -> None:
    nested = ground.top / "nested"
    ground.yard.git("init", "-q", str(nested))
    ground.yard.git("commit", "--allow-empty", "-qm", "x", cwd=nested)
    ground.git("add", "nested")
    ground.config(("core.fsmonitor", ground.program), file=nested / ".git/config")
    (ground.top / ".gitmodules").write_text(
        '[submodule "nested"]\n\tpath = nested\n\turl = ./x\n\tignore = none\n'
    )


def _serve_by_users_setting(ground: Ground) -> None:
    """Set a hook that git accepts only in the user's configuration, and clone from the workdir."""
    ground.yard.git("config", "--global", "uploadpack.packObjectsHook", ground.program)
    ground.git(
        "clone", "-q", "--no-local", str(ground.top), str(ground.yard.top / "served-by-hook")
    )


_FILTER = (("filter.evil.clean", "{filter}"), ("filter.evil.smudge", "{filter}"))
_ASK = r'printf "protocol=https\nhost=h\n\n" | git credential fill'
_EXT = (("protocol.ext.allow", "always"),)
_PROMISE = (
    ("core.repositoryFormatVersion", "1"),
    ("extensions.partialClone", "evil"),
    ("remote.evil.promisor", "true"),
    ("remote.evil.url", "/"),
    ("remote.evil.uploadpack", "{program}"),
)

VECTORS = (
    Vector("hook-post-checkout", hooked("post-checkout"), run("checkout", "-q", "-b", "x")),
    Vector("hook-reference-transaction", hooked("reference-transaction"), run("update-ref", "refs/heads/x", "HEAD")),
    Vector("hook-post-index-change", both(hooked("post-index-change"), _touch), run("add", "-u")),
    Vector("hook-pre-commit", hooked("pre-commit"), commit),
    Vector("hook-pre-push", hooked("pre-push"), lambda ground: ground.git("push", "-q", str(ground.yard.repo), "HEAD:refs/heads/pushed")),
    Vector("core.hooksPath", _hooks_path, run("checkout", "-q", "-b", "x")),
    Vector("core.fsmonitor", configured(("core.fsmonitor", "{program}")), run("status")),
    Vector("include.path", _include, run("status")),
    Vector("commondir-fsmonitor", lambda ground: _evil_commondir(ground, ("core.fsmonitor", ground.program)), run("status")),
    Vector("remote.vcs", configured(*_EXT, ("remote.evil.vcs", "ext"), ("remote.evil.url", "sh -c '{program}'")), run("fetch", "evil")),
    Vector("url.insteadOf-ext", configured(*_EXT, ("url.ext::{program} .insteadOf", "https://")), run("fetch", "https://forge.invalid/o/r")),
    Vector("core.sshCommand", configured(("core.sshCommand", "{program}")), run("fetch", "ssh://forge.invalid/o/r")),
    Vector("core.gitProxy", configured(("core.gitProxy", "{program}")), run("fetch", "git://forge.invalid/o/r")),
    Vector("core.alternateRefsCommand", _alternate_refs, lambda ground: ground.git("fetch", str(ground.yard.top / "far"))),
    Vector("credential.helper", configured(("credential.helper", "{program}")), run("-c", f"alias.ask=!{_ASK}", "ask")),
    Vector("diff.external", both(configured(("diff.external", "{program}")), _touch), run("diff")),
    Vector("textconv", both(configured(("diff.evil.textconv", "{program}")), _attributes("* diff=evil"), _touch), run("diff")),
    Vector("gpg.program", configured(("gpg.program", "{program}"), ("commit.gpgSign", "true")), commit),
    Vector("core.editor", configured(("core.editor", "{program}")), run("commit", "--allow-empty")),
    Vector(
        "remote.uploadpack", configured(("remote.evil.url", "/"), ("remote.evil.uploadpack", "{program}")), run("fetch", "evil")
    ),
    Vector(
        "remote.receivepack", configured(("remote.evil.url", "/"), ("remote.evil.receivepack", "{program}")), run("push", "evil", "HEAD")
    ),
    Vector("promisor", configured(*_PROMISE), run("cat-file", "-p", "1" * 40)),
    Vector(
        "packObjectsHook",
        configured(("uploadpack.packObjectsHook", "{program}")),
        _serve_by_users_setting,
    ),
    Vector("nested-fsmonitor", _nested, run("status")),
    Vector("filter-info", both(configured(*_FILTER), _attributes("* filter=evil"), _touch), run("add", "README")),
    Vector("filter-in-tree", both(configured(*_FILTER), _attributes("* filter=evil", in_tree=True), _touch), run("add", "README")),
    Vector(
        "commondir-filter",
        both(
            lambda ground: _evil_commondir(ground, *((key, value.format(filter=ground.filter)) for key, value in _FILTER)),
            _attributes("* filter=evil", in_tree=True),
            _touch,
        ),
        run("add", "README"),
    ),
)  # fmt: skip
