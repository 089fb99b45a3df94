"""The image that the tests' pods run in, which no container engine made."""

from __future__ import annotations

import json
import re
from pathlib import Path

from tests.servers.kubernetes.images import PERDURE, TOP, images


def test_the_image_is_the_containerfiles(tmp_path: Path) -> None:
    """Entry point, command, user, directory and variables are those of the Containerfile, and the
    agents lie where it puts them."""
    image = images(tmp_path)[PERDURE]
    last = (TOP / "Containerfile").read_text().rpartition("\nFROM ")[2].replace("\\\n", " ")
    said = dict(re.findall(r"^(ENTRYPOINT|CMD|USER|WORKDIR|ENV) (.*)$", last, re.MULTILINE))
    assert (list(image.entrypoint), list(image.command)) == (
        json.loads(said["ENTRYPOINT"]),
        json.loads(said["CMD"]),
    )
    assert (f"{image.user}:{image.group}", image.directory) == (said["USER"], said["WORKDIR"])
    variables = dict(each.split("=", 1) for each in said["ENV"].split())
    first, *_ = variables.pop("PATH").split(":")
    assert image.environ["PATH"].split(":")[0] == first == "/opt/agents/node_modules/.bin"
    assert "/opt/agents/node_modules" in image.sees
    assert {**image.environ, "HOME": "/home/perdure"}.items() >= variables.items()
