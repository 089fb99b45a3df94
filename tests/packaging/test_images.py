"""The Containerfile and `make images`, as far as they need no container engine."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import perdure

TOP = Path(__file__).parents[2]
CONTAINERFILE = (TOP / "Containerfile").read_text(encoding="utf-8")
DIGEST = "docker.io/library/debian:trixie-slim@sha256:" + "0" * 64


def images(*words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(TOP / "packaging/images.py"), "--registry", "r.example.com/team"]
    return subprocess.run(
        [*command, "--print", *words], env=os.environ | environ, capture_output=True, text=True
    )


def test_the_containerfile_has_the_projects_version_and_license() -> None:
    """An image that is built without arguments has the right labels, too."""
    project = tomllib.loads((TOP / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert f"\nARG VERSION={perdure.__version__}\n" in CONTAINERFILE
    licenses = re.findall(r'image\.licenses="(.*?)"', CONTAINERFILE)
    assert licenses == [project["license"]] * 2


def test_nothing_in_the_containerfile_is_bound_to_one_platform() -> None:
    """No step of the Containerfile, and no file that it uses, names a processor type or fetches a
    program from a fixed address."""
    made_with = [CONTAINERFILE, (TOP / "packaging/sbom.sh").read_text(encoding="utf-8")]
    for text in made_with:
        steps = "\n".join(line for line in text.split("\n") if not line.startswith("#"))
        assert not re.search(r"amd64|x86|x64|arm64|aarch64|https?://", steps)


@pytest.mark.parametrize(
    ("engine", "last"), [("docker", "docker buildx build"), ("buildah", "buildah manifest push")]
)
def test_both_images_are_built_for_both_platforms_on_a_base_with_a_digest(
    engine: str, last: str
) -> None:
    """`make images` names base, version, commit and repository, for each image and platform."""
    done = images(
        "--base", DIGEST, "--engine", engine, PERDURE_HOME_URL="https://git.example.com/p"
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    builds = [line for line in lines if " build " in line]
    assert ["--target=operator" in line for line in builds] == [True, False]
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=TOP, capture_output=True, text=True
    ).stdout.strip()
    for line in builds:
        assert "--platform=linux/amd64,linux/arm64" in line
        for value in (
            f"BASE={DIGEST}",
            f"VERSION={perdure.__version__}",
            f"REVISION={commit}",
            "SOURCE=https://git.example.com/p",
        ):
            assert f"--build-arg={value}" in line, value
    assert lines[-1].startswith(last)
    for name in ("perdure", "perdure-operator"):
        assert f"r.example.com/team/{name}:{perdure.__version__}" in done.stdout


@pytest.mark.parametrize("base", ["", "debian:trixie-slim", "debian@sha256:abc"])
def test_a_base_without_a_digest_is_refused(base: str) -> None:
    """A release cannot be built on a base without a digest, because a tag may mean another image
    tomorrow."""
    done = images("--base", base)
    assert done.returncode == 2
    assert "expected NAME@sha256:..." in done.stderr


@pytest.mark.parametrize("cpu", ["x64", "arm64"])
def test_every_agent_is_found_for_each_platform(tmp_path: Path, cpu: str) -> None:
    """The lock file has each agent's program for this platform. Otherwise the agent is removed from
    the lock file, so that npm asks the registry for its pinned version."""
    for name in ("package.json", "package-lock.json", "select.mjs"):
        shutil.copy(TOP / "agents" / name, tmp_path)
    environ = os.environ | {"npm_config_cpu": cpu}
    subprocess.run(["node", "select.mjs"], cwd=tmp_path, env=environ, check=True)
    pins = json.loads((tmp_path / "package.json").read_text())["dependencies"]
    assert pins == json.loads((TOP / "agents/package.json").read_text())["dependencies"]
    left = json.loads((tmp_path / "package-lock.json").read_text())["packages"]
    locked = json.loads((TOP / "agents/package-lock.json").read_text())["packages"]
    for place, each in locked.items():
        programs = [
            f"node_modules/{name}"
            for name in each.get("optionalDependencies", {})
            if name.endswith(f"-linux-{cpu}")
        ]
        assert (place in left) == all(program in left for program in programs), place
    if cpu == "x64":
        assert left == locked


def test_some_of_the_agents_are_selected(tmp_path: Path) -> None:
    """Only the named agents stay. A name that is not an agent's is refused."""
    for name in ("package.json", "package-lock.json", "select.mjs"):
        shutil.copy(TOP / "agents" / name, tmp_path)
    subprocess.run(["node", "select.mjs", "@openai/codex"], cwd=tmp_path, check=True)
    kept = json.loads((tmp_path / "package.json").read_text())["dependencies"]
    assert list(kept) == ["@openai/codex"]
    done = subprocess.run(
        ["node", "select.mjs", "codex"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "not in agents/package.json: codex" in done.stderr
