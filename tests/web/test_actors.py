"""One run, used through the forge, the API, the dashboard, the library and the command line. Each
change of its state names the person who made it, and a changed line in the audit trail is found."""

from __future__ import annotations

import json
import os
import pwd
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

import perdure
from perdure.model.forge.deliveries import Forge
from tests.dashboard.test_doors import Door
from tests.forges import payloads
from tests.web.serving import Serving
from tests.workspace.yard import make_yard

CONFIG = """
[webhooks.tea]
forge = "gitea"
secret_file = "{{home}}/secret"
[agents.dev]
agent = "claude"
login = "dev-bot"
authors = ["unknwon"]
labels = ["agent"]
clone = "{repo}"
"""
ME = f"local:{pwd.getpwuid(os.getuid()).pw_name}@{os.uname().nodename}"


def labelled(body: Any) -> None:
    payloads.gitea_labels(body)
    body["issue"]["title"] = "Rounding"


def trail(serving: Serving, *words: str) -> list[dict[str, Any]]:
    done = serving.perdure("audit", "--json", *words)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_one_run_through_five_doors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repo = make_yard(tmp_path / "yard").repo
    serving = Serving(tmp_path / "home", CONFIG.format(repo=repo), PERDURE_CLAUDE="/bin/true")
    ada, ben = serving.token("dispatch"), serving.token("dispatch")
    serving.start("--jobs", "0")
    try:
        # A delivery of the forge begins the run.
        body = payloads.derived("gitea", "issues_opened", labelled)
        sent = payloads.headers(Forge.GITEA, "issue_label", body)
        assert serving.send("/webhooks/tea", body, sent)[0] == 202
        serving.until(lambda: trail(serving, "--actor", "forge:"), "the label became a task")
        name = serving.ask("GET", "/api/v1/runs", ada)[1]["runs"][0]["name"]
        # The API stops the run, and the dashboard queues it again.
        assert serving.ask("POST", f"/api/v1/runs/{name}/stop", ada)[0] in (200, 202)
        door = Door(serving, ben)
        form = urlencode({"csrf": door.csrf()})
        assert door.ask("POST", f"/runs/{name}/retry", form)[0] == 303
        # The command line stops the run, the dashboard queues it, and the library stops it.
        assert serving.perdure("stop", name).returncode == 0
        assert door.ask("POST", f"/runs/{name}/retry", form)[0] == 303
        for variable, value in {**serving.environ, "PERDURE_STATE": str(serving.state)}.items():
            monkeypatch.setenv(variable, value)
        with perdure.open() as library:
            library.stop(name)
        found = [(line["kind"], line["actor"]) for line in trail(serving, "--run", name)]
        assert found == [
            ("run_submitted", "forge:tea/unknwon"),
            ("cancel_requested", "token:dispatch-1"),
            ("run_finished", "token:dispatch-1"),
            ("run_queued", "token:dispatch-2"),
            ("cancel_requested", ME),
            ("run_finished", ME),
            ("run_queued", "token:dispatch-2"),
            ("cancel_requested", ME),
            ("run_finished", ME),
        ]
    finally:
        serving.kill()
    everything = trail(serving)
    assert [line["about"] for line in everything if line["kind"] == "token_added"] == [
        "dispatch-1 (dispatch)", "dispatch-2 (dispatch)",
    ]  # fmt: skip
    assert [line["actor"] for line in everything if line["kind"] == "signed_in"] == ["token:dispatch-2"]  # fmt: skip
    shown = serving.perdure("audit", "--actor", "unknwon").stdout
    assert "run_submitted" in shown and name in shown and "forge:tea/unknwon" in shown
    # The trail is valid in the database and as a file, and invalid if a line was changed.
    assert serving.perdure("audit", "--check").stdout == "the audit trail is whole\n"
    file = tmp_path / "trail.jsonl"
    file.write_text("".join(f"{json.dumps(line)}\n" for line in everything))
    assert serving.perdure("audit", "--check", str(file)).returncode == 0
    everything[2]["actor"] = "token:eve"
    file.write_text("".join(f"{json.dumps(line)}\n" for line in everything))
    done = serving.perdure("audit", "--check", str(file))
    assert done.returncode == 8 and "line 3 was changed" in done.stdout
    with closing(sqlite3.connect(serving.state / "perdure.db")) as raw, raw:
        raw.execute("DROP TRIGGER records_stay")
        raw.execute("UPDATE records SET actor = 'token:eve' WHERE kind = 'run_submitted'")
    done = serving.perdure("audit", "--check")
    assert done.returncode == 8
    assert "was changed: run_submitted" in done.stdout and "1 problem" in done.stderr
    # Bad input.
    for words, code, said in (
        (("--run", "nobody"), 5, "nobody"),
        (("--since", "soon"), 2, "a duration such as"),
        (("--check", str(tmp_path / "none")), 2, "cannot be read"),
        (("--check", "--json"), 2, "without filters"),
        (("--check", __file__), 2, "not a line of an audit trail"),
    ):
        done = serving.perdure("audit", *words)
        assert done.returncode == code and said in done.stderr, (words, done)
