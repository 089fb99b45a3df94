"""The environment of all tests: no test may touch the real home, and each has a scratch directory.

The guard is on in every test. A file of the real home that perdure or an agent would use
(`GUARDED`) may not be opened, listed, made or removed by the test's process, and no program may be
started with the real home as its HOME. Python itself and the programs of pyenv or a venv may be
below the home, so nothing else in it is guarded.
"""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings

from tests import spread

if TYPE_CHECKING:
    from tests.servers.gitea.server import Gitea
    from tests.servers.kubernetes.cluster import Cluster
    from tests.servers.postgres import Server

TOP = Path(__file__).parents[1]
MODULES = Path(os.environ.get("PERDURE_TEST_AGENTS") or TOP / "agents" / "node_modules")
# The pattern `[!l]` leaves out Claude Code's build for musl. Codex has only one build.
NATIVE = {
    "claude": "@anthropic-ai/claude-code-linux-*[!l]/claude",
    "codex": "@openai/codex-linux-*/vendor/*/bin/codex",
}

GUARDED = (
    *(
        ".claude",
        ".claude.json",
        ".codex",
        ".gemini",
        ".config",
        ".local/share/perdure",
        ".local/state/perdure",
    ),
    *(".local/share/opencode", ".local/state/opencode", ".cache/opencode"),
    *(".ssh", ".gitconfig", ".netrc"),
)
DROPPED = (
    "PERDURE_*",
    "ANTHROPIC_*",
    "OPENAI_*",
    "CODEX_*",
    "CLAUDE*",
    "GEMINI_*",
    "OPENCODE_*",
    "GIT_*",
)
KEPT = "PERDURE_TEST_*"

NO_BALLAST = {"PERDURE_DISK_BALLAST": "0"}
"""Switches the ballast off: a file of 64 MB beside the database of each test would take many
gigabytes."""

# How long an example takes says nothing on a machine that does other work as well.
settings.register_profile("perdure", deadline=None, suppress_health_check=[HealthCheck.too_slow])
if not os.access(
    TOP, os.W_OK
):  # a checkout of somebody else: hypothesis has nowhere to keep its examples
    settings.register_profile("perdure", settings.get_profile("perdure"), database=None)
settings.load_profile("perdure")


# --- the guard
# -----------------------------------------------------------------------------------------------------

try:
    _account = pwd.getpwuid(os.getuid()).pw_dir
except KeyError:  # a container's user, which the machine does not know by name
    _account = os.environ.get("HOME", "/")
HOMES = frozenset(
    str(place)
    for home in (os.environ.get("HOME") or _account, _account)
    for place in (Path(home), Path(home).resolve())
    # Debian's user `nobody` has the home /nonexistent. perdure sets the same HOME for git where git
    # must not have a home.
    if home != "/nonexistent"
)
_TOPS = tuple(f"{home.rstrip('/')}/{name}" for home in HOMES for name in GUARDED)
_BELOW = tuple(f"{top}/" for top in _TOPS)

_PATHS = {
    **dict.fromkeys(
        (
            "open",
            "os.listdir",
            "os.scandir",
            "os.chdir",
            "os.truncate",
            "os.utime",
            "os.chmod",
            "os.chown",
        ),
        1,
    ),
    **dict.fromkeys(("os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree", "sqlite3.connect"), 1),
    **dict.fromkeys(("os.rename", "os.link", "os.symlink"), 2),
}
"""Audit events that name files, with the number of leading arguments that are paths."""
_ENVIRONMENTS = {"subprocess.Popen": 3, "os.posix_spawn": 2, "os.exec": 2}
"""Audit events that start a program, with the index of the environment among their arguments."""


class RealHomeTouched(AssertionError):
    """A test used a file of the real home."""


_touched: list[str] = []


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    """The audit hook. It gets every event of the process and cannot be removed, so it returns
    quickly for events that do not matter."""
    if event in _PATHS:
        for path in arguments[: _PATHS[event]]:
            if isinstance(path, str | bytes | os.PathLike) and _is_guarded(os.fsdecode(path)):
                _deny(f"{event} on {os.fsdecode(path)}")
    elif event in _ENVIRONMENTS:
        environ = arguments[_ENVIRONMENTS[event]]
        if environ is not None and any(
            os.fsdecode(name) == "HOME" and os.fsdecode(value) in HOMES
            for name, value in environ.items()
        ):
            _deny(f"{event} of {arguments[0]!r} with the real home as HOME")


def _is_guarded(path: str) -> bool:
    place = os.path.abspath(path.removeprefix("file:"))  # noqa: PTH100 - resolve() would look at the file
    return place in _TOPS or place.startswith(_BELOW)


def _deny(what: str) -> None:
    _touched.append(what)
    raise RealHomeTouched(f"a test must not touch the real home: {what}")


for _name in [
    name
    for name in os.environ
    if any(fnmatchcase(name, each) for each in DROPPED) and not fnmatchcase(name, KEPT)
]:
    del os.environ[_name]
sys.addaudithook(_watch)


@pytest.fixture(scope="session", autouse=True)
def _home_of_the_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Give fixtures that live longer than a test a scratch home too. Only in a worker: the process
    that starts workers needs the real one."""
    with pytest.MonkeyPatch.context() as patch:
        _move_into(tmp_path_factory.mktemp("session"), patch)
        yield


@pytest.fixture(autouse=True)
def touched(_scratch_directory: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Guard one test: give it a home of its own, and yield the list of files that it touches in the
    real home. The list must stay empty, even if the code under test swallows the guard's error."""
    _touched.clear()
    mounted = spread.count()
    _move_into(_scratch_directory, monkeypatch)
    yield _touched
    spread.together(mounted)
    assert _touched == [], "the real home was touched"


def _move_into(directory: Path, patch: pytest.MonkeyPatch) -> None:
    for name, value in {**_places(directory), **NO_BALLAST}.items():
        patch.setenv(name, value)


def _places(directory: Path) -> dict[str, str]:
    """Make the directories in which a program may write, and return the variables that name
    them."""
    home = directory / "home"
    xdg = {"CONFIG": ".config", "DATA": ".local/share", "STATE": ".local/state", "CACHE": ".cache"}
    places = {
        "HOME": home,
        "TMPDIR": directory / "t",
        **{f"XDG_{name}_HOME": home / place for name, place in xdg.items()},
    }
    (directory / "t").mkdir(mode=0o700, exist_ok=True)
    home.mkdir(exist_ok=True)
    return {
        name: str(place) for name, place in {**places, "XDG_RUNTIME_DIR": directory / "t"}.items()
    }


_numbers = count()


@pytest.fixture
def _scratch_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory beside `tmp_path`, not in it, because tests list its contents. Its name is
    short, because the path of a socket has at most 108 bytes."""
    directory = tmp_path_factory.getbasetemp() / f"s{next(_numbers)}"
    directory.mkdir(mode=0o700)
    return directory


# --- what tests need
# -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scratch:
    """A small environment for a real program: `environ` is all of its variables."""

    home: Path
    tmp: Path
    environ: dict[str, str]


@pytest.fixture
def scratch(_scratch_directory: Path) -> Scratch:
    """Return the test's own home and temporary directory, and an environment that names no
    others."""
    places = _places(_scratch_directory)
    # As root, Claude Code accepts full permissions only in a sandbox. A scratch directory is one.
    environ = {
        "PATH": os.environ["PATH"],
        "LANG": "C.UTF-8",
        "IS_SANDBOX": "1",
        **places,
        **NO_BALLAST,
    }
    return Scratch(Path(places["HOME"]), Path(places["TMPDIR"]), environ)


@pytest.fixture(scope="session")
def agents() -> dict[str, Path]:
    """The native programs of the pinned agent CLIs, by name. A test that needs one fails if it is
    not installed."""
    found = {
        name: next(iter(sorted(MODULES.glob(pattern))), None) for name, pattern in NATIVE.items()
    }
    missing = [name for name, path in found.items() if path is None]
    assert not missing, f"{', '.join(missing)}: not installed below {MODULES}; run `make agents`"
    return {name: path for name, path in found.items() if path is not None}


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    """A fast PostgreSQL for the session. A test that restarts or kills one makes its own `Server`."""
    from tests.servers.postgres import running

    with running() as server:
        yield server


@pytest.fixture(scope="session")
def gitea() -> Iterator[Gitea]:
    """A Gitea for the session, for tests marked `forge`. A test that stops or kills one makes its
    own `Gitea`."""
    from tests.servers.gitea.server import running

    with running() as server:
        yield server


@pytest.fixture(scope="session")
def kubernetes() -> Iterator[Cluster]:
    """A cluster with two nodes for the session, for tests marked `kubernetes`. Tests use `cluster`,
    which is repaired first."""
    from tests.servers.kubernetes.cluster import running

    with running() as found:
        yield found


@pytest.fixture
def cluster(kubernetes: Cluster) -> Cluster:
    """The session's cluster, repaired if the previous test broke a machine."""
    return kubernetes.mend()


@pytest.fixture
def namespace(cluster: Cluster) -> Iterator[str]:
    """A namespace for the test. Everything in it ends with the test."""
    name = cluster.namespace()
    yield name
    cluster.forget(name)


@pytest.fixture
def repository(tmp_path: Path, scratch: Scratch) -> Path:
    """A small real git repository on branch `main`: two commits, a few files, no hooks."""
    path = tmp_path / "repository"
    (path / "src").mkdir(parents=True)

    def git(*words: str) -> None:
        who = {
            f"GIT_{role}_{part}": value
            for role in ("AUTHOR", "COMMITTER")
            for part, value in IDENTITY.items()
        }
        subprocess.run(
            ["git", *words],
            cwd=path,
            env={**scratch.environ, **who},
            check=True,
            capture_output=True,
        )

    git("init", "-q", "-b", "main")
    git("config", "core.hooksPath", os.devnull)
    (path / "greet.py").write_text("def greet(name):\n    return 'Hello ' + name\n")
    (path / "src" / "numbers.txt").write_text("1\n2\n3\n")
    (path / ".gitignore").write_text("*.log\n")
    git("add", ".")
    git("commit", "-q", "-m", "first")
    (path / "greet.py").write_text("def greet(name):\n    return f'Hello {name}'\n")
    git("commit", "-q", "-a", "-m", "second")
    return path


IDENTITY = {"NAME": "Ada", "EMAIL": "ada@example.invalid", "DATE": "2026-01-02T03:04:05Z"}


SLOW_AGENTS = ("gemini", "opencode", "acp")
"""CLIs that take seconds to start. Their whole conformance and most of their journeys run in `make
test-slow`."""

ALWAYS = ("test_a_task_succeeds_in_a_worktree_of_its_own", "test_everything_is_killed_at_once")
"""The journeys that `make test` also runs with the slow CLIs: one from start to end, and one that
is killed and continued."""


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> Iterator[None]:
    """Mark the tests of slow CLIs, so that `make test` takes less than ten minutes on two cores.
    Then sort all tests."""
    for item in items:
        name = getattr(item, "originalname", item.name)
        agent = item.callspec.params.get("agent", "") if hasattr(item, "callspec") else ""
        conformance = (
            item.path.parent.name == "drivers"
            and item.path.stem.endswith("_real")
            and item.path.stem != "test_driver_real"
        )
        journey = item.path.parent.name == "journeys" and (
            agent in SLOW_AGENTS or item.path.stem == "test_acp"
        )
        if conformance or (journey and not (name in ALWAYS and item.path.stem != "test_acp")):
            item.add_marker(pytest.mark.slow)
    if os.geteuid() != 0:
        others = [item for item in items if item.get_closest_marker("root")]
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if item not in others]
    yield
    items[:] = _longest_first(items, int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))


def _longest_first(items: list[pytest.Item], workers: int) -> list[pytest.Item]:
    """Let each worker begin with its share of the journeys, which take seconds, so that only short
    tests are left at the end.

    xdist gives each worker an equal part of the list, in order, and lets idle workers take tests
    from the end of others' parts.
    """
    long = [item for item in items if item.path.parent.name == "journeys"]
    short = [item for item in items if item.path.parent.name != "journeys"]
    cuts = [len(short) * number // workers for number in range(workers + 1)]
    return [
        item
        for number in range(workers)
        for item in (*long[number::workers], *short[cuts[number] : cuts[number + 1]])
    ]


ELSEWHERE = {
    "slow": "test-slow",
    "forge": "test-forge",
    "kubernetes": "test-kubernetes",
    "image": "test-image",
}
"""Markers of tests that a command may leave out, with the `make` target that runs them."""


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Report which tests did not run, because a suite may pass and yet be incomplete."""
    expression = config.option.markexpr or ""
    if os.geteuid() != 0:
        terminalreporter.write_line("not run: what is marked root; root runs it", yellow=True)
    for marker, target in ELSEWHERE.items():
        if f"not {marker}" in expression:
            terminalreporter.write_line(
                f"not run: what is marked {marker}; `make {target}` runs it", yellow=True
            )


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Report a failure at once, because an interrupted run never reaches its summary."""
    if report.failed and "PYTEST_XDIST_WORKER" not in os.environ:
        print(
            f"\n{report.nodeid} failed ({report.when}):\n{report.longreprtext[-2000:]}",
            file=sys.__stderr__,
            flush=True,
        )
