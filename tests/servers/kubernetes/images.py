"""The images by name. An image is a set of read-only directories of the host that a container can
see, with the command of its program.

`perdure:test` has the layout of the Containerfile with this checkout in it: perdure in a virtual
environment below /opt/venv, the pinned agent CLIs below /opt/agents/node_modules, user 10001.
`scripted:test` is the same, with tests/kubernetes/scripted/attempt.py instead of perdure: an
attempt without an agent. `shell:test` has only the host's /usr. Any other name cannot be pulled.
"""

from __future__ import annotations

import shutil
import site
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

PERDURE = "perdure:test"
SCRIPTED = "scripted:test"
SHELL = "shell:test"

TOP = Path(__file__).parents[3]
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
USER = 10001
SYSTEM = ("usr", "etc", "bin", "sbin", "lib", "lib32", "lib64", "libx32")

PROGRAM = """#!/opt/venv/bin/python
import sys
from perdure.cli.main import main
sys.exit(main())
"""


@dataclass(frozen=True)
class Image:
    """An image. `sees`: directories or files of the host, by their path in the container. `links`:
    symbolic links, by their path."""

    sees: dict[str, str]
    links: dict[str, str] = field(default_factory=dict)
    environ: dict[str, str] = field(default_factory=dict)
    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    directory: str = "/"
    user: int = 0
    group: int = 0


def images(store: Path) -> dict[str, Image]:
    """Return all images by name. Files that they need besides the host's own are written below
    `store`."""
    shell = _shell(store)
    return {
        SHELL: shell,
        PERDURE: _perdure(store / "perdure", shell, PROGRAM),
        SCRIPTED: _scripted(store / "scripted", shell),
    }


def _shell(store: Path) -> Image:
    sees, links = {}, {}
    for name in SYSTEM:
        place = Path("/") / name
        if place.is_symlink():
            links[str(place)] = str(place.readlink())
        elif place.is_dir():
            sees[str(place)] = str(place)
    accounts = {
        "passwd": f"perdure:x:{USER}:{USER}::/home/perdure:/bin/sh",
        "group": f"perdure:x:{USER}:",
    }
    for name, line in accounts.items():
        first = "root:x:0:0:root:/root:/bin/sh" if name == "passwd" else "root:x:0:"
        sees[f"/etc/{name}"] = str(_file(store / name, f"{first}\n{line}\n"))
    return Image(sees, links, {"PATH": PATH}, command=("/bin/sh",))


def _scripted(store: Path, shell: Image) -> Image:
    made = _perdure(
        store,
        shell,
        f"#!/opt/venv/bin/python\n{(TOP / 'tests/kubernetes/scripted/attempt.py').read_text()}",
    )
    return replace(made, entrypoint=())


def _perdure(store: Path, shell: Image, main: str) -> Image:
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    program = Path(sys.base_prefix) / "bin" / version
    venv = store / "venv"
    _file(venv / "pyvenv.cfg", f"home = {program.parent}\ninclude-system-site-packages = false\n")
    _file(
        venv / "lib" / version / "site-packages" / "perdure.pth",
        "/opt/perdure/src\n/opt/perdure/site-packages\n",
    )
    _file(venv / "bin" / "perdure", main).chmod(0o755)
    for name in ("python", "python3"):
        if not (venv / "bin" / name).is_symlink():
            (venv / "bin" / name).symlink_to(program)
    sees = {
        **shell.sees,
        "/opt/venv": str(venv),
        "/opt/perdure/src": str(TOP / "src"),
        "/opt/perdure/site-packages": next(
            each for each in site.getsitepackages() if Path(each).is_dir()
        ),
        "/opt/agents/node_modules": str(TOP / "agents/node_modules"),
    }
    paths = ["/opt/agents/node_modules/.bin", "/opt/venv/bin", PATH]
    node = shutil.which("node")
    for used in (sys.base_prefix, str(Path(node).resolve().parents[1]) if node else ""):
        if used and not used.startswith("/usr"):
            sees[used] = used
            paths.insert(2, f"{used}/bin")
    environ = {
        "PATH": ":".join(paths),
        "LANG": "C.UTF-8",
        "PERDURE_STATE": "/data/perdure/state",
        "PERDURE_ROOT": "/data/perdure/root",
    }
    start = ("perdure", "entrypoint", "--volume", "/data", "--")
    return Image(sees, shell.links, environ, start, ("perdure", "work"), "/data", USER, USER)


def _file(path: Path, text: str) -> Path:
    """Write a file unless it exists, because running containers may use it after a restart of the
    node agent. Return its path."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return path
