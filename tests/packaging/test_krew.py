"""`kubectl perdure` for Krew: its manifest, and the packages that the command needs."""

from __future__ import annotations

import hashlib
import re
import runpy
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

import yaml

import perdure
from perdure.cli.kubernetes.verbs import VERBS

TOP = Path(__file__).parents[2]
KREW = runpy.run_path(str(TOP / "packaging/krew.py"))
ADDRESS = f"https://git.example.com/team/perdure/releases/download/v{perdure.__version__}"
WITHOUT = """
import sys
from importlib.abc import MetaPathFinder

class Absent(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {absent!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
sys.argv = ["kubectl-perdure", *{words!r}]
from perdure.cli.main import kubectl_perdure
sys.exit(kubectl_perdure())
"""


def test_the_manifest_names_each_archive_with_its_digest(tmp_path: Path) -> None:
    """Krew finds the archive for its platform, verifies its digest, and finds the program in it."""
    archives = []
    for platform in ("darwin-arm64", "linux-amd64"):
        program = tmp_path / "program"
        program.write_text(platform)
        path = tmp_path / f"kubectl-perdure-{platform}.tar.gz"
        with tarfile.open(path, "w:gz") as archive:
            archive.add(program, "kubectl-perdure")
        archives.append(path)
    found = yaml.safe_load(KREW["manifest"](ADDRESS, archives))
    assert found["apiVersion"] == "krew.googlecontainertools.github.com/v1alpha2"
    assert found["metadata"]["name"] == "perdure"
    assert found["spec"]["version"] == f"v{perdure.__version__}"
    assert found["spec"]["homepage"] == "https://git.example.com/team/perdure"
    assert len(found["spec"]["shortDescription"]) <= 50
    for each, path in zip(found["spec"]["platforms"], archives, strict=True):
        labels = each["selector"]["matchLabels"]
        assert path.name == f"kubectl-perdure-{labels['os']}-{labels['arch']}.tar.gz"
        assert each["uri"] == f"{ADDRESS}/{path.name}"
        assert each["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        assert each["bin"] == "kubectl-perdure" == each["files"][0]["from"]


def test_the_plugin_needs_nothing_of_the_operator_or_the_server(tmp_path: Path) -> None:
    """Each verb works if only perdure[kubectl] is installed."""
    extras = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    names = {
        re.split(r"[\[>=<~;]", each)[0].strip().replace("-", "_")
        for name in ("kubernetes", "serve", "top")
        for each in extras[name]
    }
    absent = {*names, *KREW["ABSENT"]} - {"perdure"}
    for words in (["ls"], *([verb, "--help"] for verb in VERBS)):
        code = WITHOUT.format(absent=absent - {"httpx2"}, words=words)
        environ = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
        done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True)
        said = done.stdout + done.stderr
        if words == ["ls"]:
            assert (done.returncode, b"no cluster is named" in said) == (2, True), said
        else:
            assert done.returncode == 0, said
