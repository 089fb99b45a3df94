"""Builds the container images: `python -m tests.servers.image.build`, or `make test-image`.

buildah (a Debian package) reads the Containerfile; with `--isolation chroot` it needs no container
engine. The base image is made by debootstrap, because no package registry has it. The mirrors,
proxies and certificates for Debian's packages, PyPI and npm are read from this machine's
configuration. They are used only during the build, and are neither in the project nor in the image.

Must be run as root. The base and buildah's layers are kept below ~/.cache/perdure-tests/image, so a
second build redoes only what has changed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.servers import golang

TOP = Path(__file__).parents[3]
RELEASE = "trixie"
OLDER = "bookworm"
BASE = "localhost/debian:"
NAME = "localhost/perdure:test"
OPERATOR = "localhost/perdure-operator:test"
SOURCE = "https://git.example.com/team/perdure"
REVISION = "0123456789abcdef0123456789abcdef01234567"
PACKAGES = ("buildah", "debootstrap")
LEFT_OUT = tuple(f"/usr/share/{name}" for name in ("doc", "info", "lintian", "locale", "man"))
"""Directories that Debian's slim images leave empty (debuerreotype's list of exclusions)."""
TEAM = "localhost/team:test"
"""The image of a team: it has another Debian than perdure's image, and its own tool and user."""
TEAM_RECIPE = f"""FROM {BASE}{OLDER}
RUN apt-get update && apt-get install --no-install-recommends --yes ca-certificates git python3 python3-venv \\
    && printf '#!/bin/sh\\necho made by team-tool\\n' > /usr/local/bin/team-tool && chmod 755 /usr/local/bin/team-tool \\
    && useradd --uid 1000 --create-home builder
USER builder
"""
INJECTED = "localhost/team-perdure:test"
GUIDE = TOP / "docs/how-to/containers.md"
LABELED = (f"--build-arg=SOURCE={SOURCE}", f"--build-arg=REVISION={REVISION}")
MIRROR = "PERDURE_TEST_DEBIAN"
"""Variable with the address of Debian's mirror, for a machine whose own apt uses another
distribution."""
LENT = "/run/machine"
"""Directory of a build step in which the machine's configuration is mounted."""
PIP_OPTIONS = (
    *("index-url", "extra-index-url", "trusted-host", "proxy"),
    *("timeout", "default-timeout", "retries", "cert"),
)
NPM_OPTIONS = ("registry", "proxy", "https-proxy", "cafile")


def store() -> Path:
    """Return the directory in which these tests keep images and containers, separate from the
    machine's own."""
    return golang.cache() / "image" / "storage"


def buildah(*words: str) -> str:
    """Run buildah with the tests' own storage, and return its output."""
    done = subprocess.run(
        ["buildah", "--root", str(store()), "--runroot", str(store() / "run"), *words],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"buildah {words[0]}: {done.stdout[-4000:]}{done.stderr[-2000:]}")
    return done.stdout


def build() -> None:
    """Build both images from this checkout."""
    if os.geteuid() != 0:
        raise SystemExit("only root can build the image: debootstrap and buildah need mounts")
    with golang.alone():
        _install()
        store().mkdir(parents=True, exist_ok=True)
        for release in (RELEASE, OLDER):
            _make_base(release)
        for name, target in ((OPERATOR, ["--target=operator"]), (NAME, [])):
            build_file(TOP / "Containerfile", TOP, name, *target, *LABELED)
        _build_team()


def _build_team() -> None:
    """Build the image of a team, and the same image with perdure, by the recipe of the guide."""
    (recipe,) = re.findall(r"```dockerfile\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    for named, here in (("perdure", NAME), ("team/toolchain", TEAM)):
        line = f"FROM registry.example.com/{named}"
        assert line in recipe, line
        recipe = re.sub(f"^{line}(?= |$)", f"FROM {here}", recipe, flags=re.MULTILINE)
    with tempfile.TemporaryDirectory(prefix="team-") as scratch:
        for name, text in ((TEAM, TEAM_RECIPE), (INJECTED, recipe)):
            path = Path(scratch) / "Containerfile"
            path.write_text(text)
            build_file(path, Path(scratch), name)


def build_file(recipe: Path, directory: Path, name: str, *words: str) -> None:
    """Build an image from any recipe that takes its base as the argument BASE."""
    with _lent() as lent:
        buildah(
            "build",
            "--isolation=chroot",
            "--layers",
            "--pull-never",
            f"--build-arg=BASE={BASE}{RELEASE}",
            f"--volume={lent}:{LENT}:ro",
            f"--volume={lent / 'pip.conf'}:/etc/pip.conf:ro",
            f"--volume={lent / 'npmrc'}:/root/.npmrc:ro",
            f"--tag={name}",
            f"--file={recipe}",
            *words,
            str(directory),
        )


def _install() -> None:
    missing = [name for name in PACKAGES if shutil.which(name) is None]
    if missing:
        environ = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        subprocess.run(["apt-get", "update", "-qq"], env=environ, check=True)
        install = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing]
        subprocess.run(install, env=environ, check=True)


def _make_base(release: str) -> None:
    name = f"{BASE}{release}"
    if name in buildah("images", "--format", "{{.Name}}:{{.Tag}}").split():
        return
    with tempfile.TemporaryDirectory(prefix="base-", dir=store().parent) as scratch:
        root = Path(scratch) / "root"
        subprocess.run(
            # A base from a registry has no certificates. The base made here needs them: if they
            # were installed later, the installation would replace a file that is mounted then.
            ["debootstrap", "--variant=minbase", release, str(root), _mirror()],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        _slim(root)
        (root / "etc/apt/apt.conf.d/machine").write_text(_apt_configuration())
        archive = Path(scratch) / "base.tar"
        subprocess.run(["tar", "-C", str(root), "-cf", str(archive), "."], check=True)
        recipe = Path(scratch) / "Containerfile"
        recipe.write_text("FROM scratch\nADD base.tar /\n")
        buildah("build", "--isolation=chroot", f"--tag={name}", f"--file={recipe}", scratch)


def _slim(root: Path) -> None:
    """Remove what Debian's slim images leave out: documentation, manuals, translations, lists."""
    patterns = "".join(f"path-exclude {place}/*\n" for place in LEFT_OUT)
    kept = "path-include /usr/share/locale/locale.alias\n"
    (root / "etc/dpkg/dpkg.cfg.d/docker").write_text(patterns + kept)
    for place in (*LEFT_OUT, "/var/lib/apt/lists", "/var/cache/apt"):
        for found in (root / place[1:]).glob("*"):
            if found.is_dir() and not found.is_symlink():
                shutil.rmtree(found)
            elif found.name != "locale.alias":
                found.unlink()


def _mirror() -> str:
    """Return the address of Debian's mirror, from the variable or from this machine's apt."""
    if named := os.environ.get(MIRROR):
        return named
    # security.debian.org and similar archives belong to Debian too, but do not have a complete
    # release.
    form = "$(ORIGIN) $(LABEL) $(REPO_URI)"
    listed = subprocess.run(
        ["apt-get", "indextargets", "--format", form], stdout=subprocess.PIPE, text=True, check=True
    )
    for line in listed.stdout.splitlines():
        if line.startswith("Debian Debian "):
            return line.split()[2]
    raise SystemExit(f"this machine's apt has no mirror of Debian: set {MIRROR}")


def _apt_configuration() -> str:
    """Return this machine's settings for fetching packages: proxies, and checks of dates."""
    dump = subprocess.run(["apt-config", "dump"], stdout=subprocess.PIPE, text=True, check=True)
    kinds = ("Acquire::http", "Acquire::https", "Acquire::Check-", "Acquire::Retries")
    return "".join(f"{line}\n" for line in dump.stdout.splitlines() if line.startswith(kinds))


@contextmanager
def _lent() -> Iterator[Path]:
    """Make a directory with the machine's certificates and its configuration of pip and npm, and
    yield it."""
    with tempfile.TemporaryDirectory(prefix="lent-") as scratch:
        lent = Path(scratch)
        pip, npm = _pip_options(), _npm_options()
        for options, name in ((pip, "cert"), (npm, "cafile")):
            if certificates := options.get(name):
                shutil.copy(certificates, lent / name)
                options[name] = f"{LENT}/{name}"
        lines = [f"{name} = {value}" for name, value in pip.items()]
        (lent / "pip.conf").write_text("\n".join(["[global]", *lines, ""]))
        (lent / "npmrc").write_text("".join(f"{name}={value}\n" for name, value in npm.items()))
        yield lent


def _pip_options() -> dict[str, str]:
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found = {}
    for line in listed.stdout.splitlines():
        name, _, value = line.partition("=")
        option = name.rpartition(".")[2]
        if option in PIP_OPTIONS:
            found[option] = value.strip("'")
    return found


def _npm_options() -> dict[str, str]:
    listed = subprocess.run(
        ["npm", "config", "ls", "--json"], stdout=subprocess.PIPE, text=True, check=True, cwd="/"
    )
    options = json.loads(listed.stdout)
    return {name: options[name] for name in NPM_OPTIONS if isinstance(options.get(name), str)}


if __name__ == "__main__":
    build()
    print(f"built {OPERATOR}, {NAME} and {INJECTED}")
