"""A person finds "the reviewer's work on issue 12" by its title: in `ls`, on the board, in the
picker, in `top` and on the run's page."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from html import unescape
from pathlib import Path

from msgspec.structs import replace

from perdure.cli.runs.picker import Picker, screen
from perdure.cli.top.view import View, peek, run_line
from perdure.engine.conversations import ConversationEntry
from perdure.engine.report import report_of
from perdure.model import Session, SessionKey, SessionState
from perdure.model.forge.deliveries import Forge, IntentKind
from perdure.model.forge.rules import Rule
from perdure.store.fast_list import newest
from tests.dashboard.test_doors import Door
from tests.dispatching.office import Office, intent
from tests.web.serving import Serving

DEV = Rule(
    name="dev", agent="claude", authors=("ada",), login="dev-bot", labels=("agent",), clone=""
)
REVIEWER = replace(DEV, name="reviewer", login="review-bot", labels=("review",))
LINK = "https://tea.example/shop/web/issues/12"


def assigned(number: int, label: str, title: str, **more: object):
    return intent(IntentKind.LABELLED, number=number, labels=(label,), title=title, url=f"https://tea.example/shop/web/issues/{number}#note", **more)  # fmt: skip


def filled(make: Callable[..., Office]) -> Office:
    office = make(DEV, REVIEWER)
    office.told(
        assigned(11, "agent", "Paint it blue"),
        assigned(12, "agent", "Fix the login page"),
        assigned(12, "review", "Fix the \u202elogin\u202c page"),
        assigned(13, "review", "Tidy <b>up</b>"),
    )
    assert len(office.runs()) == 4
    return office


def visible(page: str) -> list[str]:
    """Return the rows of a page of the dashboard as text."""
    rows = re.findall(r"<a class=\"row.*?</a>", page, re.DOTALL)
    return [unescape(" ".join(re.sub(r"<[^>]+>", " ", row).split())) for row in rows]


def finds(lines: list[str]) -> str:
    (found,) = [line for line in lines if "reviewer" in line and "#12" in line]
    assert "Fix the login page" in found and "FORGE" not in found
    return found


def test_it_is_found_by_its_words(make: Callable[..., Office], tmp_path: Path) -> None:
    office = filled(make)
    store, now = office.engine.store, office.engine.store.now()
    run = next(run for run in office.runs() if run.scope == "hub:reviewer:shop/web#12")
    # `ls`, in its short and its long form.
    listed = subprocess.run(
        [sys.executable, "-m", "perdure", "ls"], check=True, capture_output=True, text=True,
        env={**os.environ, "PERDURE_STATE": str(office.engine.state)},
    ).stdout  # fmt: skip
    assert "reviewer (claude)" in finds(listed.splitlines())
    rows = newest(f"{office.engine.state}/perdure.db", (), 50, ["reviewer"])
    assert rows is not None and {row["role"] for row in rows} == {"reviewer"} and len(rows) == 2
    # The board with a search, with a filter and without either, and the page of the run.
    serving = Serving(tmp_path / "web", "", PERDURE_STATE=str(office.engine.state))
    try:
        token = serving.token("read")
        reader = Door(serving.start("--jobs", "0"), token)
        for address in ("/", "/?q=login", "/?agent=reviewer", "/digest"):
            assert "reviewer (claude)" in finds(visible(reader.ask("GET", address)[2]))
        assert reader.ask("GET", "/digest?since=ever")[0] == 422
        page = reader.ask("GET", f"/runs/{run.name}")[2]
        assert f'href="{LINK}"' in page and "reviewer (claude)" in page
        assert "Text between" not in page.partition('id="h-log"')[0]
    finally:
        serving.kill()
    assert store.board_roles() == ["dev", "reviewer"]
    assert sum(store.board_counts(agent="reviewer").values()) == 2
    # The picker and `top`.
    entries = [
        ConversationEntry(agent="claude", id=f"{number}", updated=now, run=each, session=Session(
            key=SessionKey("claude", each.scope), id=f"{number}", state=SessionState.CONFIRMED, created=now, updated=now, cwd="/", home="/"
        )) for number, each in enumerate(office.runs())
    ]  # fmt: skip
    picker = Picker(load=lambda _: entries, spoken=lambda _: (), workdir=lambda _: "", place="here")
    finds(screen(picker, 100, 24, now, plain=True))
    picker.search = "reviewer #12"
    assert [entry.run.id for entry in picker.shown if entry.run] == [run.id]
    view = View(groups=(), words={}, now=now)
    lines = [run_line(row, view).plain for row in store.board("queued")]
    assert "reviewer (claude)" in finds(lines)
    row = next(row for row in store.board("queued") if row.id == run.id)
    assert LINK in peek(row, (), now).plain
    # The report of one run.
    report = report_of(store, run)
    assert (report.title, report.link, report.role) == (
        "#12 Fix the login page", LINK, "reviewer",
    )  # fmt: skip
    assert office.engine.committer(run) == {"GIT_AUTHOR_NAME": "reviewer (claude)"}
    assert store.counts().roles == {("dev", "queued"): 2, ("reviewer", "queued"): 2}


def test_the_title_of_a_confidential_issue_is_not_passed_on(make: Callable[..., Office]) -> None:
    office = make(replace(DEV, confidential=True))
    office.told(
        intent(IntentKind.LABELLED, forge=Forge.GITLAB, labels=("agent",), title="Our secret", confidential=True)
    )  # fmt: skip
    assert office.run().spec.title == "#4 (confidential)"


def test_a_renamed_issue_renames_its_runs(make: Callable[..., Office]) -> None:
    """A run is renamed even if its rule ignores edits. The audit trail names the person who renamed
    the issue."""
    office = make(DEV, REVIEWER)
    office.told(assigned(12, "agent", "Fix it"), assigned(12, "review", "Fix it"))
    runs = {run.spec.rule: run.id for run in office.runs()}
    edited = intent(
        IntentKind.EDITED, number=12, author="ben", title="Mend \x1b[2Jit", title_before="Fix it"
    )
    office.told(edited)
    office.told(edited)
    store = office.engine.store
    for run in runs.values():
        assert store.get(run).spec.title == "#12 Mend it"
        (line,) = [line for line in store.audit(run=run) if line.kind == "retitled"]
        assert (line.actor, line.about) == ("forge:hub/ben", "#12 Mend it")
    assert {row.title for row in store.board("queued")} == {"#12 Mend it"}
