"""Task files of a TaskRun, from a ConfigMap and a Secret, through updates and the agent's changes;
on the real control plane with the real Claude Code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.journeys.stage import said
from tests.kubernetes.place import Place
from tests.kubernetes.story import tell

pytestmark = [pytest.mark.kubernetes, pytest.mark.journey, pytest.mark.timeout(900)]

FIRST = "title\n\nthree retries\n\nend\n"
SECOND = "title\n\nno retries\n\nend\n"
SCRIPT = """by history
run sed -i s/title/TITLE/ docs/spec.md && cat secret.txt > seen.txt
---
say First.
---
say Second.
---
say Third.
"""


def test_files_over_updates(place: Place, tmp_path: Path) -> None:
    """Both files exist before the agent begins. A new version is merged with the agent's changes,
    or replaces them if the TaskRun says so. An attempt waits for a missing ConfigMap."""
    maps = place.of("v1", "configmaps")

    def give(name: str, text: str) -> None:
        place.api.create(maps, {"metadata": {"name": name}, "data": {"spec.md": text}})

    def files(name: str) -> list[dict[str, Any]]:
        return [
            {"path": "docs/spec.md", "configMapKeyRef": {"name": name, "key": "spec.md"}},
            {"path": "secret.txt", "secretKeyRef": {"name": "given", "key": "word"}},
        ]

    def copied(path: str) -> str:
        place.perdure("cp", f"given:{path}", str(tmp_path / "copy"))
        return (tmp_path / "copy").read_text()

    place.secret("given", {"word": "sesame"})
    story = tell(place, "given", script=SCRIPT, files=files("first"))
    story.waits_for("ConfigMapMissing")
    give("first", FIRST)
    story.settled()
    assert copied("docs/spec.md") == FIRST.replace("title", "TITLE")
    assert copied("seen.txt") == "sesame"
    assert "docs/spec.md" in said(story.asked[0].messages)

    give("second", SECOND)
    change = {"prompt": "Look again.", "contextVersion": 2, "files": files("second")}
    story.patch(spec=change)
    story.settled()
    assert copied("docs/spec.md") == SECOND.replace("title", "TITLE")

    give("third", FIRST)
    change = {"prompt": "Once more.", "contextVersion": 3, "files": files("third")}
    story.patch(spec=change | {"onEdit": "Replace"})
    story.settled()
    assert copied("docs/spec.md") == FIRST
    assert story.status()["attempt"] == 3 and story.status()["receipt"] == "native"
