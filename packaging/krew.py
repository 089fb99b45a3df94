"""Makes `kubectl perdure` for Krew, the plugin manager of kubectl. Run by `make krew`.

    python packaging/krew.py build              # dist/krew/kubectl-perdure-linux-amd64.tar.gz
    python packaging/krew.py manifest ADDRESS   # dist/krew/perdure.yaml, from all archives there

Krew installs no Python, so an archive has one program with its own Python in it, made by
PyInstaller for the machine that it runs on. It is made only from perdure[kubectl], without the
operator, the server and the packages that they need. Call `manifest` when the archives of all
platforms are in dist/krew. ADDRESS is the address below which they can be downloaded.
"""

from __future__ import annotations

import hashlib
import platform
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

TOP = Path(__file__).parents[1]
sys.path[:0] = [str(TOP / "src")]
DIST = TOP / "dist" / "krew"
NAME = "kubectl-perdure"
PYINSTALLER = "pyinstaller==6.22.3"
ABSENT = ("kopf", "aiohttp", "starlette", "uvicorn", "prometheus_client", "textual")
"""Packages of the operator, the server and `perdure top`, which must not be in the program."""
PROCESSORS = {"x86_64": "amd64", "aarch64": "arm64", "arm64": "arm64"}
PROGRAM = """import sys
from perdure.cli.main import kubectl_perdure
sys.exit(kubectl_perdure())
"""


def build() -> Path:
    """Make the archive for this machine. Return its path. Raise SystemExit if the program does not
    start, or contains a package of `ABSENT`."""
    system, processor = platform.system().lower(), PROCESSORS[platform.machine()]
    with tempfile.TemporaryDirectory(prefix="krew-") as scratch:
        place = Path(scratch)
        venv = place / "venv"
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
        pip = [str(venv / "bin/python"), "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, f"{TOP}[kubectl]", PYINSTALLER], check=True)
        entry = place / "program.py"
        entry.write_text(PROGRAM)
        words = ["--onefile", "--name", NAME, "--log-level", "WARN"]
        # perdure imports verbs by their names, which PyInstaller cannot find.
        for each in ("perdure.cli.kubernetes", "perdure.cli.runs"):
            words += ["--collect-submodules", each]
        words += ["--collect-data", "perdure"]
        make = [str(venv / "bin/pyinstaller"), *words, str(entry)]
        subprocess.run(make, cwd=place, check=True)
        made = place / "dist" / NAME
        _check(made, venv)
        return _packed(made, f"{NAME}-{system}-{processor}.tar.gz")


def _check(made: Path, venv: Path) -> None:
    shown = [str(venv / "bin/pyi-archive_viewer"), "--list", "--recursive", "--brief", str(made)]
    listed = subprocess.run(shown, stdout=subprocess.PIPE, text=True, check=True).stdout
    held = {line.strip().partition(".")[0] for line in listed.splitlines()}
    if "lightkube" not in held:
        raise SystemExit(f"{NAME} has no lightkube, or the list of its packages is not understood")
    if needless := held & set(ABSENT):
        raise SystemExit(f"{NAME} has {', '.join(sorted(needless))}, which it does not need")
    subprocess.run([str(made), "run", "--help"], env={}, stdout=subprocess.DEVNULL, check=True)


def _packed(made: Path, name: str) -> Path:
    DIST.mkdir(parents=True, exist_ok=True)
    with tarfile.open(DIST / name, "w:gz") as archive:
        archive.add(made, NAME)
        archive.add(TOP / "LICENSE", "LICENSE")
    return DIST / name


def manifest(address: str, archives: Sequence[Path]) -> str:
    """Return Krew's manifest of these archives, which can be downloaded below `address`."""
    import perdure

    lines = [
        "apiVersion: krew.googlecontainertools.github.com/v1alpha2",
        "kind: Plugin",
        "metadata:",
        "  name: perdure",
        "spec:",
        f'  version: "v{perdure.__version__}"',
        f"  homepage: {_homepage(address)}",
        "  shortDescription: Run coding agents that survive pods and nodes",
        "  description: |",
        "    Creates, shows and changes TaskRuns: tasks of a coding agent whose workdir and",
        "    conversation are kept over attempts, pods and nodes. The cluster needs perdure's",
        "    operator.",
        "  platforms:",
    ]
    for archive in archives:
        system, processor = archive.name.removesuffix(".tar.gz").split("-")[-2:]
        lines += [
            f"    - selector: {{matchLabels: {{os: {system}, arch: {processor}}}}}",
            f"      uri: {address.rstrip('/')}/{archive.name}",
            f"      sha256: {hashlib.sha256(archive.read_bytes()).hexdigest()}",
            f"      bin: {NAME}",
            "      files:",
            f"        - {{from: {NAME}, to: .}}",
            "        - {from: LICENSE, to: .}",
        ]
    return "\n".join([*lines, ""])


def _homepage(address: str) -> str:
    """Return the repository's address from that of a release, or the address itself if it is no
    release's."""
    return address.partition("/releases/")[0]


def main(words: Sequence[str]) -> int:
    """Run `build` or `manifest ADDRESS`. Return the exit code."""
    if list(words) == ["build"]:
        print(build())
        return 0
    if len(words) == 2 and words[0] == "manifest" and words[1].startswith("https://"):
        archives = sorted(DIST.glob(f"{NAME}-*.tar.gz"))
        if not archives:
            print(f"no archive in {DIST}: build them first", file=sys.stderr)
            return 1
        (DIST / "perdure.yaml").write_text(manifest(words[1], archives), encoding="utf-8")
        print(DIST / "perdure.yaml")
        return 0
    print("usage: krew.py build | krew.py manifest https://ADDRESS", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
