"""Both images as products: their size, their labels, and the list of what they contain; the
operator's image running; and perdure in a team's own image, built by the recipe of
docs/how-to/containers.md.

`make test-image` builds the images first.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import tempfile
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import perdure
from perdure.agents.rehearsal import Rehearsal
from tests.image.test_image import repository
from tests.kubernetes.apiserver import fails
from tests.kubernetes.staging import Stage, play
from tests.servers.image.build import INJECTED, NAME, OPERATOR, REVISION, SOURCE, TOP, buildah
from tests.servers.image.container import ImageContainer, configuration

pytestmark = pytest.mark.image

MOST_BYTES = 150_000_000
SBOM = "usr/share/perdure/sbom.cdx.json"
LABEL = "org.opencontainers.image."
LABELS = {
    OPERATOR: (
        "perdure-operator",
        "The operator of perdure, which runs coding agents on Kubernetes",
    ),
    NAME: ("perdure", "perdure and the coding agents that it runs"),
}
SCRIPT = "by history\nrun team-tool > made.txt\n---\nsay It is made."
BUILDER = 1000

Make = Callable[..., ImageContainer]


@pytest.fixture
def make() -> Iterator[Make]:
    """Make containers of any image, on a volume that belongs to their user."""
    made: list[ImageContainer] = []
    directory = Path(tempfile.mkdtemp(prefix="pimage-"))
    directory.chmod(0o755)
    volume = directory / "volume"
    volume.mkdir()

    def one(of: str, user: int = 10001, **given: Any) -> ImageContainer:
        os.chown(volume, user, user)
        named = {"of": of, "as_user": f"{user}:{user}", **given}
        made.append(ImageContainer(volume, directory / "log", **named))
        return made[-1]

    yield one
    for each in made:
        each.remove()
    shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def files(of: str) -> Iterator[Path]:
    """Mount the files of an image, and yield the directory."""
    name = buildah("from", "--pull-never", of).strip()
    try:
        yield Path(buildah("mount", name).strip())
    finally:
        buildah("umount", name)
        buildah("rm", name)


def purls(sbom: dict[str, Any], kind: str) -> set[str]:
    """Return name and version of each component of a kind, such as `npm`."""
    found = set()
    for component in sbom["components"]:
        place, _, rest = component.get("purl", "").partition("?")
        if place.startswith(f"pkg:{kind}/") and "arch=source" not in rest:
            found.add(f"{component['name']} {component.get('version', '')}")
    return found


def installed_debs(root: Path) -> set[str]:
    text = (root / "var/lib/dpkg/status").read_text()
    return {
        f"{found[1]} {found[2]}"
        for paragraph in text.split("\n\n")
        if "Status: install ok installed" in paragraph
        and (found := re.search(r"^Package: (.*)\n(?s:.*)^Version: (.*)$", paragraph, re.MULTILINE))
    }


def test_the_operators_image_is_small(tmp_path: Path, record_property: Any) -> None:
    """The operator's image needs less than 150 MB of a node's disk when it is unpacked. The
    download of a node is less than half of that."""
    layers = json.loads(buildah("inspect", "--type=image", OPERATOR))["Manifest"]
    unpacked = sum(each["size"] for each in json.loads(layers)["layers"])
    buildah("push", OPERATOR, f"oci:{tmp_path}/image")
    packed = sum(each.stat().st_size for each in tmp_path.glob("image/blobs/sha256/*"))
    print(f"operator: {unpacked / 1e6:.1f} MB unpacked, {packed / 1e6:.1f} MB compressed")
    assert unpacked < MOST_BYTES
    assert packed < MOST_BYTES / 2


@pytest.mark.parametrize("of", [OPERATOR, NAME])
def test_the_labels_are_the_projects_own(of: str) -> None:
    """Title, version, commit, repository and license in the labels equal those of the package's
    metadata."""
    project = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]
    labels = configuration(of)["Labels"]
    found = {name.removeprefix(LABEL): text for name, text in labels.items() if LABEL in name}
    title, description = LABELS[of]
    assert found == {
        "title": title,
        "description": description,
        "version": perdure.__version__,
        "revision": REVISION,
        "source": SOURCE,
        "licenses": project["license"],
        "base.name": "localhost/debian:trixie",
    }


@pytest.mark.parametrize("of", [OPERATOR, NAME])
def test_the_list_has_all_that_is_in_the_image(of: str) -> None:
    """Each installed package of Debian and of Python is in the image's CycloneDX list, with its
    version, and each pinned agent if there are agents."""
    with files(of) as root:
        sbom = json.loads((root / SBOM).read_text())
        debs = installed_debs(root)
        packages = {
            re.sub(r"[-_.]+", "-", each.name.removesuffix(".dist-info").rpartition("-")[0]).lower()
            for each in root.glob("opt/venv/lib/python3*/site-packages/*.dist-info")
        }
    assert sbom["bomFormat"] == "CycloneDX"
    named = sbom["metadata"]["component"]
    assert (named["name"], named["version"]) == (LABELS[of][0], perdure.__version__)
    assert purls(sbom, "deb") == debs and len(debs) > 50
    assert any("distro=trixie" in each.get("purl", "") for each in sbom["components"])
    listed = {re.sub(r"[-_.]+", "-", each.split()[0]).lower() for each in purls(sbom, "pypi")}
    assert packages - {"perdure"} <= listed and "kopf" in listed
    assert f"perdure {perdure.__version__}" in {
        f"{each['name']} {each.get('version')}" for each in sbom["components"]
    }
    agents = json.loads((TOP / "agents/package.json").read_text())["dependencies"]
    pinned = {f"{name.rpartition('/')[2]} {version}" for name, version in agents.items()}
    if of == OPERATOR:
        assert not purls(sbom, "npm")
    else:
        assert pinned <= purls(sbom, "npm")


def test_the_operators_image_holds_nothing_that_it_does_not_use() -> None:
    """The operator's image has no agent, no Node, no git, no package manager and no compiler."""
    with files(OPERATOR) as root:
        for name in ("apt", "gcc", "git", "node", "npm", "perl", "curl", "ssh"):
            assert not (root / "usr/bin" / name).exists(), name
        assert not (root / "opt/agents").exists()
        assert not (root / "opt/venv/bin/pip").exists()


def test_the_operator_of_the_image_completes_a_task(make: Make, tmp_path: Path) -> None:
    """The image's own command, as its user, watches TaskRuns and makes their Jobs. `perdure
    --cluster` of the same image lists them, as the pod of `helm test` does."""

    async def story(stage: Stage) -> None:
        server = f"http://127.0.0.1:{stage.server.port}"
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": {"server": server}}],
            "users": [{"name": "test", "user": {"token": "x"}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
            "current-context": "test",
        }
        file = tmp_path / "kubeconfig"
        file.write_text(json.dumps(config))
        container = make(
            OPERATOR, mounts={"/srv/kubeconfig": file}, environ={"KUBECONFIG": "/srv/kubeconfig"}
        )
        flags = ("--namespace", "default", "--image", "perdure:1", "--port", "0")
        container.start("operator", *flags)
        stage.make()
        status = await stage.done()
        assert status["phase"] == "Succeeded", container.said()
        # The operator's last request goes to the server that runs in this event loop, so the wait
        # must not block it.
        assert await asyncio.to_thread(container.stop) == 0, container.said()

    play(fails(0), story)


@pytest.mark.parametrize(
    ("user", "home", "agent"),
    [
        (10001, "/home/perdure", "claude"),
        (BUILDER, "/home/builder", "claude"),
        (BUILDER, "/home/builder", "codex"),
    ],
)
def test_a_teams_image_with_perdure_performs_an_attempt(
    make: Make, tmp_path: Path, user: int, home: str, agent: str
) -> None:
    """An agent with perdure works in an image with an older Debian, another Python and no Node, as
    the user that pods have and as the team's own user. It uses a tool that only the team's image
    has."""
    with Rehearsal(SCRIPT) as rehearsal:
        environ = {**rehearsal.environ(agent), "HOME": home}
        own = repository(tmp_path, user)
        container = make(INJECTED, user, environ=environ, mounts={"/srv/repository": own}).start(
            "sleep", "infinity"
        )
        container.wait(
            lambda: container.execute("test", "-L", f"{home}/.codex").returncode == 0,
            "the homes are linked",
        )
        if agent == "codex":
            linked = container.execute("readlink", "-f", f"{home}/.codex").stdout.strip()
            place = container.volume / Path(linked).relative_to("/data")
            rehearsal.write_codex_home(place)
            shutil.chown(place / "config.toml", user, user)
        release = container.execute("sh", "-c", ". /etc/os-release; echo $VERSION_CODENAME")
        assert release.stdout == "bookworm\n"
        done = container.execute(
            *("perdure", "run", "--agent", agent, "--permissions", "full"),
            *("--repo", "/srv/repository", "--name", "make", "Make it"),
        )
        assert done.returncode == 0, done.stdout + done.stderr + container.said()
        report = json.loads(container.execute("perdure", "show", "make", "--json").stdout)
        assert report["state"] == "succeeded"
        made = container.execute("cat", "made.txt", directory=report["workspace"]["path"])
        assert made.stdout == "made by team-tool\n"
