"""The title of a run: from its issue, else from the first words of its prompt, whatever these
contain."""

from __future__ import annotations

import pytest

from perdure.capsule.verification import limit_spec
from perdure.model import Permissions, RunState, TaskRun, TaskSpec
from perdure.rules.run_titles import (
    LONGEST,
    link_to,
    role_of_run,
    title_of,
    title_of_run,
    title_of_thing,
    worker_of,
)
from perdure.telemetry.metrics.exposition import ROLES_MOST, _by_role

MARKS = "Text between <<<FORGE-12ab and FORGE-12ab>>> was written by people on the forge.\n\nDo it."
HOSTILE = {
    "direction": "Fix \u202elogin\u202c page\u2066",
    "escapes": "Fix \x1b[31mlogin\x1b[0m page\x1b]0;gone\x07",
    "lines": "Fix login\r\n\tpage\u2028",
    "hidden": "Fix\u200b login\ufeff page\U000e0041",
}


@pytest.mark.parametrize("title", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_title_is_cleaned(title: str) -> None:
    assert title_of_thing(title, 12) == "#12 Fix login page"
    assert title_of(title, "") == "Fix login page"


def test_titles_are_short_and_on_one_line() -> None:
    for found in (title_of_thing("long " * 2000, 12), title_of("", "long " * 2000)):
        assert len(found) == LONGEST and found.endswith("…")
    assert title_of_thing("<script>alert(1)</script>", 1) == "#1 <script>alert(1)</script>"
    assert title_of_thing("Fix it", 7, mark="!") == "!7 Fix it"
    assert title_of_thing("", 7) == "#7"
    assert "secret" not in title_of_thing("secret plans", 7, confidential=True)


def test_the_first_words_of_a_prompt_are_a_title() -> None:
    assert title_of("", "\n  \n Fix the test.\nIt is red.") == "Fix the test."
    assert title_of("", "") == title_of("", " \n\t") == ""


def test_an_old_run_of_a_forge_is_called_after_its_issue() -> None:
    assert title_of("", MARKS, "delivery:1:ab", "hub:dev:shop/web#12") == "#12 of shop/web"
    assert title_of("", "A template.", "delivery:1:ab", "lab:dev:a/b/c!3") == "!3 of a/b/c"
    for scope in ("", "run:1", "cut/web#"):
        assert title_of("", MARKS, "", scope) == "an issue of a forge"


def test_links_are_addresses_and_nothing_else() -> None:
    page = "https://tea.example/shop/web/issues/12"
    assert link_to(f"{page}#issuecomment-5") == link_to(page) == page
    for bad in ("javascript:alert(1)", "//x", "https://", "https://x/\n", 'https://x/"onclick="a',
                "https://x/\u202e", "data:text/html,x", f"https://x/{'a' * 3000}", "ftp://x/y"):  # fmt: skip
        assert link_to(bad) == "", bad


def test_roles() -> None:
    assert worker_of("reviewer", "claude") == "reviewer (claude)"
    assert worker_of("", "claude") == worker_of("claude", "claude") == "claude"
    old = TaskSpec(prompt=MARKS, labels={"delivery": "1", "agent": "dev", "issue": "shop/web#4"})
    mine = TaskSpec(prompt="Go.", labels={"agent": "dev"})
    runs = [TaskRun(id="1", name="a", spec=spec, state=RunState.QUEUED, created=0, updated=0) for spec in (old, mine)]  # fmt: skip
    assert [role_of_run(run) for run in runs] == ["dev", ""]
    assert title_of_run(runs[0]) == "an issue of a forge"


def test_a_capsule_brings_no_hostile_title_or_link() -> None:
    spec = TaskSpec(prompt="Go.", title="a\x1b[2J\nb", link="javascript:alert(1)")
    for trusted in (False, True):
        found, _ = limit_spec(spec, "name", Permissions.EDIT, trusted=trusted)
        assert (found.title, found.link) == ("a b", "")


def test_the_label_role_has_few_values() -> None:
    roles = {(f"role-{number:03}", RunState.FAILED): 1 for number in range(200)}
    found = _by_role(roles | {("no plain word", RunState.FAILED): 5})
    names = {role for (role, _), _ in found}
    assert len(names) == ROLES_MOST + 1 and "other" in names
    assert dict(found)["other", RunState.FAILED] == 155
    assert dict(found)["role-001", RunState.QUEUED] == 0
