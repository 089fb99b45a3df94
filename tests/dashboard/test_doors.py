"""Access to the dashboard, tested by a program: the sign-in, the secret of a form, and the headers
of every page."""

from __future__ import annotations

import hashlib
import http.client
import json
import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import quote, urlencode

import pytest

from perdure import store as stores
from perdure.model.events import Said
from perdure.server.dashboard import tasks
from perdure.server.dashboard.pages import CSP, HERE
from perdure.server.dashboard.sign_in import LOCAL
from perdure.testing.stores.samples import SUCCESS, claimed, submit
from tests.dashboard.filling import fill_many
from tests.web.serving import PATIENCE_S, Serving

BY_HAND = "0f0e0d0c-1111-4222-8333-444455556666"
FORM = "application/x-www-form-urlencoded"


class Door:
    """A client that keeps a cookie and sends the given requests."""

    def __init__(self, serving: Serving, token: str = "") -> None:
        self.port, self.cookie = serving.port, ""
        if token:
            status, headers, _ = self.ask(
                "POST", "/sign-in", urlencode({"token": token, "next": "/plans"})
            )
            assert (status, headers["location"]) == (303, "/plans")
            self.set = headers["set-cookie"]
            self.cookie = self.set.partition(";")[0]

    def ask(
        self, method: str, path: str, body: str | bytes = "", **more: str
    ) -> tuple[int, dict[str, str], str]:
        headers = {"accept": "text/html", "content-type": FORM} | (
            {"cookie": self.cookie} if self.cookie else {}
        )
        headers |= {name.replace("_", "-"): value for name, value in more.items()}
        with closing(
            http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        ) as connection:
            connection.request(method, path, body or None, headers)
            answer = connection.getresponse()
            return (
                answer.status,
                {name.lower(): value for name, value in answer.getheaders()},
                answer.read().decode(),
            )

    def csrf(self) -> str:
        found = re.search(r'name="csrf" value="([0-9a-f]{64})"', self.ask("GET", "/plans")[2])
        assert found is not None
        return found[1]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Serving, str]]:
    serving = Serving(tmp_path_factory.mktemp("doors"), PERDURE_AGENT="codex")
    fill_many(serving.state / "perdure.db", 120)
    token = serving.token("admin")
    yield serving.start(), token
    serving.stop()


def test_a_run_that_was_reset_after_its_success_can_be_retried(
    served: tuple[Serving, str],
) -> None:
    """The page of a run that succeeded offers a retry only if a person has reset the run since."""
    serving, token = served
    door = Door(serving, token)
    with closing(stores.open(serving.state / "perdure.db")) as store:
        run = submit(store, name="done")
        store.finish(claimed(store, run), SUCCESS)
        assert 'action="/runs/done/retry"' not in door.ask("GET", "/runs/done")[2]
        store.reset([run.id], "by hand")
        assert 'action="/runs/done/retry"' in door.ask("GET", "/runs/done")[2]


def test_signing_in_and_out(served: tuple[Serving, str]) -> None:
    """Without a sign-in each page redirects to the sign-in form, and from there back to the page.
    Scripts cannot read the cookie. After signing out it is no longer valid. An unknown token gets
    an error."""
    serving, token = served
    stranger = Door(serving)
    status, headers, _ = stranger.ask("GET", "/failures")
    assert (status, headers["location"]) == (303, "/sign-in?next=/failures")
    assert 'value="/failures"' in stranger.ask("GET", headers["location"])[2]
    status, _, said = stranger.ask(
        "POST", "/sign-in", urlencode({"token": "prd_wrong", "next": "/disk"})
    )
    assert status == 401 and "not known here" in said and 'value="/disk"' in said
    status, headers, _ = stranger.ask(
        "GET", "/", hx_request="true", hx_current_url=f"http://x/runs/n-1?q=%22&{'x' * 9}"
    )
    assert (status, headers["hx-redirect"]) == (401, "/sign-in?next=/runs/n-1")
    assert (
        stranger.ask("GET", "/", hx_request="true", hx_current_url="http://[")[1]["hx-redirect"]
        == "/sign-in?next="
    )
    door = Door(serving, token)
    assert {"httponly", "samesite=strict"} <= set(door.set.lower().split("; "))
    assert door.ask("GET", "/")[0] == 200
    assert door.ask("POST", "/sign-out", "csrf=wrong")[0] == 403
    assert door.ask("POST", "/sign-out", urlencode({"csrf": door.csrf()}))[0] == 303
    assert door.ask("GET", "/")[0] == 303


@pytest.mark.parametrize(
    "next",
    [
        "//evil.example",
        "/\\evil.example",
        "https://evil.example",
        "javascript:alert(1)",
        "/a\nb",
        "/\t/evil",
        "evil",
        "",
    ],
)
def test_the_door_leads_nowhere_else(served: tuple[Serving, str], next: str) -> None:
    """After the sign-in an address of another site is not opened."""
    serving, token = served
    assert not LOCAL.fullmatch(next)
    status, headers, _ = Door(serving).ask(
        "POST", "/sign-in", urlencode({"token": token, "next": next})
    )
    assert (status, headers["location"]) == (303, "/")
    assert (
        f'value="{next}"' not in Door(serving).ask("GET", f"/sign-in?next={quote(next)}")[2]
        or not next
    )


def test_nothing_changes_without_the_secret_of_the_form(served: tuple[Serving, str]) -> None:
    """An action needs a POST from this site with the secret that this sign-in's forms have. Any
    other request leaves the run as it is."""
    serving, token = served
    door, other = Door(serving, token), Door(serving, token)
    csrf = door.csrf()
    assert csrf != other.csrf()
    for body, more in (
        ("", {}),
        ("csrf=", {}),
        (urlencode({"csrf": other.csrf()}), {}),
        (urlencode({"csrf": csrf[:-1]}), {}),
        (urlencode({"csrf": csrf}), {"origin": "https://evil.example"}),
        (urlencode({"csrf": csrf}), {"origin": "null"}),
        (urlencode({"csrf": csrf}), {"sec_fetch_site": "cross-site"}),
        (urlencode({"csrf": csrf}), {"sec_fetch_site": "same-site"}),
    ):
        assert door.ask("POST", "/runs/n-7/stop", body, **more)[0] == 403
    assert (
        door.ask(
            "POST", "/runs/n-7/stop", f'{{"csrf": "{csrf}"}}', content_type="application/json"
        )[0]
        == 415
    )
    bearer = {"authorization": f"Bearer {token}"}
    assert Door(serving).ask("POST", "/runs/n-7/stop", "csrf=", **bearer)[0] == 403
    for method in ("GET", "HEAD"):
        assert door.ask(method, f"/runs/n-7/stop?csrf={csrf}")[0] in (200, 405)
        assert door.ask(method, f"/runs/n-7/retry?csrf={csrf}")[0] == 405
    assert "queued" in serving.perdure("show", "n-7").stdout
    assert (
        door.ask(
            "POST",
            "/runs/n-7/stop",
            urlencode({"csrf": csrf}),
            origin=f"http://127.0.0.1:{serving.port}",
        )[0]
        == 303
    )
    assert "cancelled" in serving.perdure("show", "n-7").stdout


def test_who_may_dispatch_stays_within_what_the_owner_has_set(
    served: tuple[Serving, str], tmp_path: Path
) -> None:
    """As in the API, only an admin may use a repository that is not an https address, or continue a
    conversation in the directory where it began. For anybody else nothing is started."""
    serving, token = served
    said_by_hand(serving, tmp_path)
    door, admin = Door(serving, serving.token("dispatch")), Door(serving, token)
    csrf = door.csrf()
    for repo in (str(tmp_path), "git@git.example.com:a/b", "http://127.0.0.1/a/b", "ext::sh -c id"):
        status, _, said = door.ask(
            "POST",
            "/new",
            urlencode({"csrf": csrf, "prompt": "x", "repo": repo, "agent": "claude"}),
        )
        assert status == 403 and "admin" in said, repo
    assert (
        "started manually" in door.ask("GET", "/sessions")[2]
        and "/resume" not in door.ask("GET", f"/sessions/{BY_HAND}")[2]
    )
    for method, body in (("GET", ""), ("POST", urlencode({"csrf": csrf, "prompt": "x"}))):
        status, _, said = door.ask(method, f"/sessions/{BY_HAND}/resume", body)
        assert status == 403 and "admin" in said
    assert f'href="/sessions/{BY_HAND}/resume"' in admin.ask("GET", f"/sessions/{BY_HAND}")[2]
    assert admin.ask("GET", f"/sessions/{BY_HAND}/resume")[0] == 200
    assert BY_HAND not in serving.perdure("ls").stdout


def said_by_hand(serving: Serving, cwd: Path) -> None:
    """Make a conversation of Claude Code that no run began."""
    line = {
        "type": "user", "uuid": "u1", "parentUuid": None, "sessionId": BY_HAND, "cwd": str(cwd), "timestamp": "2026-11-21T10:00:00.000Z",
        "message": {"role": "user", "content": "started manually"},
    }  # fmt: skip
    path = serving.home / ".claude/projects/-x" / f"{BY_HAND}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(line) + "\n")


def test_forms_have_bounds(served: tuple[Serving, str]) -> None:
    """A form with too much data, too many fields, or data that is not text is refused with a
    sentence and has no effect."""
    serving, token = served
    assert Door(serving).ask("POST", "/sign-in", "token=" + "x" * 9000)[0] == 413
    door = Door(serving, token)
    assert door.ask("POST", "/new", "csrf=" + "x" * 1_100_000)[0] == 413
    assert door.ask("POST", "/new", "&".join(f"f{number}=1" for number in range(40)))[0] == 400
    assert door.ask("POST", "/new", b"csrf=%ff%fe\xff")[0] == 400
    assert "<option selected>codex</option>" in door.ask("GET", "/new")[2], (
        "the agent of the settings"
    )
    empty = urlencode({"csrf": door.csrf(), "prompt": "x", "repo": ""})
    status, _, said = door.ask("POST", "/new", empty)
    assert status == 422 and "missing the repository" in said


def test_every_page_has_the_policy(served: tuple[Serving, str]) -> None:
    """Pages, errors and the sign-in form have a policy that forbids all content from elsewhere. A
    log is served as a file, never as a page."""
    serving, token = served
    door = Door(serving, token)
    for path, status in (
        ("/", 200),
        ("/runs/n-3", 200),
        ("/runs/nosuch", 404),
        ("/?state=nosuch", 422),
        ("/sign-in", 200),
        ("/inbox/99", 404),
    ):
        found, headers, said = door.ask("GET", path)
        assert (found, headers["content-security-policy"]) == (status, CSP), path
        assert (headers["x-content-type-options"], headers["referrer-policy"]) == (
            "nosniff",
            "same-origin",
        )
        assert (
            "<style" not in said
            and " style=" not in said
            and not re.search(r"<script(?! src=\"/static/)", said)
        )
    assert (
        "no such" in door.ask("GET", "/runs/nosuch")[2].lower()
        or "There is no run" in door.ask("GET", "/runs/nosuch")[2]
    )


def test_what_a_browser_may_keep(served: tuple[Serving, str]) -> None:
    """Pages are never cached. A script with its version in its name is cached, and perdure's own
    scripts and styles are revalidated."""
    serving, token = served
    door = Door(serving, token)
    kept = {
        path: door.ask("GET", path)[1]["cache-control"]
        for path in ("/", "/static/style.css", "/static/htmx-4.0.1.min.js")
    }
    assert list(kept.values()) == ["no-store", "no-cache", "max-age=31536000, immutable"]
    own = door.ask("GET", "/static/style.css")[1]
    assert door.ask("GET", "/static/style.css", if_none_match=own["etag"])[0] == 304
    assert door.ask("GET", "/static/../rendering.py")[0] in (303, 404)


def test_a_board_is_paged(served: tuple[Serving, str]) -> None:
    """Each run of a long list is on exactly one of its pages."""
    serving, token = served
    door, path, found = Door(serving, token), "/?state=queued&q=n-1", list[str]()
    while path:
        said = door.ask("GET", path)[2]
        found += re.findall(r'data-words="(n-1\d*)"', said)
        older = re.search(r'<a href="([^"]+)">older', said)
        path = older[1].replace("&amp;", "&") if older else ""
    assert sorted(found) == sorted(
        f"n-{number}" for number in range(120) if str(number).startswith("1")
    )
    for place in (f"{'9' * 25}.1", f"1.{'9' * 25}", "9" * 400, "\u0669.\u0669", "-1.-1", "x"):
        assert door.ask("GET", f"/?state=queued&before={quote(place)}")[0] == 200, place


def test_a_long_log_is_paged(served: tuple[Serving, str]) -> None:
    """Each line of a log with many pages is on one of them, from its end to its beginning and back.
    New lines follow the last one."""
    serving, token = served
    with closing(stores.open(serving.state / "perdure.db")) as store:
        claim = claimed(store, submit(store, name="long"))
        store.record(claim, [Said(text=f"line {number}") for number in range(2 * tasks.PAGE + 10)])
        newest = store.newest_record()
    door = Door(serving, token)
    for link, path in (("earlier", "/runs/long/log"), ("later", "/runs/long/log?after=0")):
        pages = [door.ask("GET", path)[2]]
        while found := re.search(rf'<a href="(\?after=\d+)">{link}<', pages[-1]):
            pages.append(door.ask("GET", "/runs/long/log" + found[1])[2])
        shown = [
            int(line) for each in pages for line in re.findall(r"<span>line (\d+)</span>", each)
        ]
        # The first page is full, in both directions of paging.
        assert (sorted(set(shown)) if link == "earlier" else shown) == list(
            range(2 * tasks.PAGE + 10)
        ) and len(pages) == 3
        assert f"/runs/long/live?after={newest}" in pages[0 if link == "earlier" else -1]
    assert f"/runs/long/live?after={newest}" in door.ask("GET", "/runs/long")[2]


def test_what_is_vendored_is_what_was_published() -> None:
    """Every vendored script and style has the digest in the file beside it, and there is no other."""
    listed = dict(
        re.findall(
            r"\| `([\w.-]+)` \|.*`([0-9a-f]{64})` \|", (HERE / "static/README.md").read_text()
        )
    )
    assert len(listed) == 4
    own = {
        "style.css",
        "keys.js",
        "chart.js",
        "push.js",
        "push-worker.js",
        "manifest.json",
        "icon.svg",
        "README.md",
        "htmx-LICENSE.txt",
        "uplot-LICENSE.txt",
    }
    assert {each.name for each in Path(HERE / "static").iterdir()} == own | set(listed)
    for name, digest in listed.items():
        assert hashlib.sha256((HERE / "static" / name).read_bytes()).hexdigest() == digest
