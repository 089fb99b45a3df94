"""The report of `perdure doctor` on a machine on which `perdure serve` is to run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from tests.web.serving import Serving

WRONG = """
[webhooks.tea]
forge = "gitea"
secret_file = "{home}/nowhere"
[webhooks.lab]
forge = "gitlab"
secret_env = "SHORT"
[agents.dev]
agent = "acp-nobody"
clone = "https://git.example.com/{{repository}}.git"
authors = ["ann"]
login = "dev"
templates = "{home}/no-templates"
[serve]
listen = "0.0.0.0:8420"
"""


def _serve(found: Serving) -> list[tuple[str, str]]:
    said = found.perdure("doctor", "--json")
    return [
        (each["state"], each["message"])
        for each in json.loads(said.stdout)["findings"]
        if each["topic"] == "serve"
    ]


def test_what_serve_needs(serves: Callable[..., Serving]) -> None:
    """Each missing secret, template and program is named with the setting that needs it. On a
    complete machine the report lists what was found."""
    wrong = serves(WRONG, SHORT="short")
    (Path(wrong.home) / "no-templates").write_text("a file")
    bad = " ".join(message for state, message in _serve(wrong) if state == "bad")
    for word in ("nowhere", "webhooks.lab", "no-templates", "agents.dev", "acp-nobody"):
        assert word in bad
    assert "short " not in bad
    assert any("no valid token" in message for state, message in _serve(wrong) if state == "warn")
    good = serves()
    good.token("read")
    found = _serve(good)
    assert {state for state, _ in found} == {"ok"}
    assert any("hub, tea, jo" in message for _, message in found) and any(
        "1 token(s)" in message for _, message in found
    )


def test_where_nothing_is_served(serves: Callable[..., Serving]) -> None:
    """On a machine without webhooks, rules and a public address, the report says nothing about what
    `perdure serve` would need."""
    assert _serve(serves("")) == []
