"""The published distribution: its metadata, and the hint for a missing extra."""

from __future__ import annotations

import email
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from perdure.host.process.launch import source_hash

TOP = Path(__file__).parents[2]


def test_the_distribution(tmp_path: Path) -> None:
    """`python -m build` makes a wheel and a source distribution that `twine check --strict`
    accepts. The links of the long description lead to the repository in which it is built."""
    environ = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "GITHUB_SERVER_URL": "https://forge.example",
        "GITHUB_REPOSITORY": "ada/perdure",
    }
    words = ["-m", "build", "--no-isolation", "--outdir", str(tmp_path / "dist"), str(TOP)]
    built = subprocess.run(
        [sys.executable, *words], env=environ, capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stdout + built.stderr
    files = sorted((tmp_path / "dist").iterdir())
    checked = subprocess.run(
        [sys.executable, "-m", "twine", "check", "--strict", *map(str, files)],
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
    wheel = next(path for path in files if path.suffix == ".whl")
    with zipfile.ZipFile(wheel) as packed:
        names = packed.namelist()
        record = next(name for name in names if name.endswith(".dist-info/METADATA"))
        metadata = email.message_from_bytes(packed.read(record))
    pages = dict(page.split(", ", 1) for page in metadata.get_all("Project-URL") or [])
    assert {"Homepage", "Documentation", "Source", "Issues", "Changelog"} <= pages.keys()
    assert pages["Issues"] == "https://forge.example/ada/perdure/issues"
    assert {"all", "top", "plans", "serve"} <= set(metadata.get_all("Provides-Extra") or [])
    text = str(metadata.get_payload())
    assert "](https://forge.example/ada/perdure/blob/main/docs/" in text
    assert "](docs/" not in text
    assert {"perdure/py.typed", "perdure/rules/plan/plan.schema.json"} <= set(names)
    source = next(path for path in files if path.name.endswith(".tar.gz"))
    with tarfile.open(source) as packed_source:
        inside = packed_source.getnames()
    assert not any("node_modules" in name or "/.venv/" in name for name in inside)
    assert any(name.endswith("/src/perdure/host/shim.c") for name in inside)
    assert not any("/host/shim-" in name for name in inside)


@pytest.mark.parametrize(
    ("given", "compiled"),
    [({"CC": "cc"}, True), ({"CC": "no-such-compiler"}, False), ({"PERDURE_SHIM": "none"}, False)],
)
def test_the_shim_in_a_wheel(tmp_path: Path, given: dict[str, str], compiled: bool) -> None:
    """A wheel that is built with a C compiler has an executable shim, the hash of its source in its
    name, and the tag of this platform. Without a compiler it has none, and is for any platform."""
    environ = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), **given}
    words = ["-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path / "dist")]
    subprocess.run([sys.executable, *words, str(TOP)], env=environ, capture_output=True, check=True)
    (wheel,) = (tmp_path / "dist").iterdir()
    compiled = compiled and sys.platform == "linux" and shutil.which("cc") is not None
    with zipfile.ZipFile(wheel) as packed:
        found = [each for each in packed.infolist() if "/host/shim-" in each.filename]
        source = packed.read("perdure/host/shim.c")
    assert [each.filename for each in found] == (
        [f"perdure/host/shim-{source_hash(source)}"] if compiled else []
    )
    assert all(each.external_attr >> 16 & 0o777 == 0o755 for each in found)
    tag = f"py3-none-linux_{platform.machine()}" if compiled else "py3-none-any"
    assert wheel.name.endswith(f"-{tag}.whl")


INSTALLED = {
    "pipx": ("pipx_metadata.json", "{}", "pipx inject perdure 'perdure[plans]'"),
    "uv": (
        "uv-receipt.toml",
        '[tool]\nrequirements = [{ name = "perdure", extras = ["top"] }]\n',
        "uv tool install 'perdure[plans,top]'",
    ),
    "venv": ("pyvenv.cfg", "", "{python} -m pip install 'perdure[plans]'"),
}


@pytest.mark.parametrize("tool", INSTALLED)
def test_hint_of_an_installation(tool: str, tmp_path: Path) -> None:
    """The hint uses the tool that installed perdure. The tool is recognized by files that pipx, uv
    and venv leave in an environment. The hint for uv keeps the extras that are installed."""
    mark, text, expected = INSTALLED[tool]
    place = tmp_path / "venv"
    packages = place / "site"
    (packages / "perdure-1.0.dist-info").mkdir(parents=True)
    record = packages / "perdure-1.0.dist-info"
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: perdure\nVersion: 1.0\n")
    (record / "INSTALLER").write_text("pip\n")
    (place / mark).write_text(text)
    assert hint(place, packages) == expected.format(python=sys.executable)


def test_hint_of_a_checkout(tmp_path: Path) -> None:
    """If perdure was installed from a checkout, the hint installs it from there, and in editable
    mode if it was installed so. If the checkout is gone, the hint names the package. In an
    environment that uv made, which has no pip, the hint is a command of uv."""
    checkout, place = tmp_path / "my code", tmp_path / "venv"
    packages = place / "site"
    record = packages / "perdure-1.0.dist-info"
    record.mkdir(parents=True)
    checkout.mkdir()
    (checkout / "pyproject.toml").touch()
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: perdure\nVersion: 1.0\n")
    source = {"url": checkout.as_uri(), "dir_info": {"editable": True}}
    (record / "direct_url.json").write_text(json.dumps(source))
    wanted = shlex.quote(f"{checkout}[plans]")
    assert hint(place, packages) == f"{sys.executable} -m pip install -e {wanted}"
    (record / "INSTALLER").write_text("uv\n")
    assert hint(place, packages) == f"uv pip install --python {sys.executable} -e {wanted}"
    (checkout / "pyproject.toml").unlink()
    expected = f"uv pip install --python {sys.executable} 'perdure[plans]'"
    assert hint(place, packages) == expected


def hint(place: Path, packages: Path) -> str:
    """Return the output of a perdure that is installed in this environment."""
    words = (
        f"import sys; sys.prefix = {str(place)!r}; sys.path[:0] = [{str(packages)!r}]; "
        "from perdure.host.extras import install_command; print(install_command('plans'))"
    )
    source = f"import sys; sys.path[:0] = [{str(TOP / 'src')!r}]; {words}"
    done = subprocess.run(
        [sys.executable, "-S", "-c", source], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_an_error_leads_to_its_page(tmp_path: Path) -> None:
    """If colors are shown, the first word of an error is a link to the page about its exit code, in
    the repository of the release. In a pipe there is no link."""
    record = tmp_path / "perdure-1.0.dist-info"
    record.mkdir()
    (record / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: perdure\nVersion: 1.0\n"
        "Project-URL: Source, https://forge.example/ada/perdure\n"
    )
    source = (
        f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(TOP / 'src')!r}]; "
        "from perdure.cli.main import main; sys.exit(main(['nothing-like-a-verb']))"
    )
    page = "https://forge.example/ada/perdure/blob/main/docs/errors/exit-2.md"
    expected = {"1": f"\x1b]8;;{page}\x1b\\perdure\x1b]8;;\x1b\\: ", "0": "perdure: "}
    for forced, start in expected.items():
        done = subprocess.run(
            [sys.executable, "-c", source],
            env={"HOME": str(tmp_path), "PATH": os.defpath, "CLICOLOR_FORCE": forced},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stderr[: len(start)]) == (2, start)
