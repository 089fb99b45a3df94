"""Scopes and limits of tokens: a table of all routes, which is tested on a real `perdure serve`."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import http.client
import json
import re
import select
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlencode

import pytest
from msgspec import Struct
from starlette.routing import Mount, Route

from perdure import store as stores
from perdure.model import Backend, TaskSpec, TokenScope, Workspace
from perdure.rules.access import AccessLimits, limits_of, names_of
from perdure.server.application import routes
from perdure.store.sql import SqlStore
from tests.journeys.stage import native
from tests.patience import PATIENCE_S
from tests.web.serving import Serving

READ, ANSWER, DISPATCH, ADMIN = "read", "answer", "dispatch", "admin"
RUN, LIST, TASK, NOTHING, WHOLE = "run", "list", "task", "nothing", "whole"
API = "/api/v1"
ROUTES = {
    f"GET {API}/openapi.json": (READ, NOTHING),
    f"GET {API}/whoami": (READ, NOTHING),
    f"GET {API}/events": (READ, LIST),
    f"GET {API}/runs": (READ, LIST),
    f"POST {API}/runs": (DISPATCH, TASK),
    f"GET {API}/runs/{{run}}": (READ, RUN),
    f"DELETE {API}/runs/{{run}}": (ADMIN, RUN),
    f"GET {API}/runs/{{run}}/events": (READ, RUN),
    f"GET {API}/runs/{{run}}/why": (READ, RUN),
    f"GET {API}/runs/{{run}}/logs": (READ, RUN),
    f"GET {API}/runs/{{run}}/raw": (READ, RUN),
    f"GET {API}/runs/{{run}}/diff": (READ, RUN),
    f"GET {API}/runs/{{run}}/checkpoints": (READ, RUN),
    f"GET {API}/runs/{{run}}/requests": (READ, RUN),
    f"POST {API}/runs/{{run}}/answer": (ANSWER, RUN),
    f"POST {API}/runs/{{run}}/retry": (DISPATCH, RUN),
    f"POST {API}/runs/{{run}}/update": (DISPATCH, RUN),
    f"POST {API}/runs/{{run}}/tell": (DISPATCH, RUN),
    f"POST {API}/runs/{{run}}/stop": (DISPATCH, RUN),
    f"POST {API}/runs/{{run}}/fork": (DISPATCH, RUN),
    f"POST {API}/runs/{{run}}/restore": (DISPATCH, RUN),
    f"POST {API}/runs/{{run}}/resume": (DISPATCH, RUN),
    f"GET {API}/requests": (READ, LIST),
    f"GET {API}/audit": (READ, LIST),
    f"GET {API}/sessions": (READ, WHOLE),
    f"GET {API}/sessions/stats": (READ, WHOLE),
    f"GET {API}/sessions/{{session}}": (READ, WHOLE),
    f"GET {API}/sessions/{{session}}/spoken": (READ, WHOLE),
    f"POST {API}/sessions": (DISPATCH, WHOLE),
    f"POST {API}/sessions/{{session}}/resume": (DISPATCH, WHOLE),
    f"POST {API}/sessions/{{session}}/extend": (DISPATCH, WHOLE),
    f"POST {API}/sessions/{{session}}/close": (DISPATCH, WHOLE),
    f"GET {API}/agents": (READ, WHOLE),
    f"GET {API}/plans": (READ, WHOLE),
    f"POST {API}/plans": (DISPATCH, WHOLE),
    f"GET {API}/plans/{{plan}}": (READ, WHOLE),
    f"POST {API}/plans/{{plan}}/stop": (DISPATCH, WHOLE),
    f"POST {API}/plans/{{plan}}/retry": (DISPATCH, WHOLE),
    f"GET {API}/inbox": (READ, WHOLE),
    f"GET {API}/inbox/{{delivery}}": (READ, WHOLE),
    f"POST {API}/inbox/{{delivery}}/replay": (DISPATCH, WHOLE),
    f"GET {API}/disk": (READ, WHOLE),
    f"GET {API}/disk/sweep": (READ, WHOLE),
    f"POST {API}/admin/sweep": (ADMIN, WHOLE),
    f"POST {API}/admin/reset": (ADMIN, WHOLE),
    f"GET {API}/trash": (READ, WHOLE),
    f"POST {API}/trash/{{entry}}/restore": (ADMIN, WHOLE),
    f"DELETE {API}/trash/{{entry}}": (ADMIN, WHOLE),
    "GET /metrics": (READ, WHOLE),
    "GET /": (READ, LIST),
    "GET /new": (DISPATCH, TASK),
    "POST /new": (DISPATCH, TASK),
    "GET /live": (READ, LIST),
    "GET /digest": (READ, LIST),
    "GET /notify": (READ, NOTHING),
    "POST /notify/add": (READ, NOTHING),
    "POST /notify/renew": (READ, NOTHING),
    "POST /notify/{id}/remove": (READ, NOTHING),
    "POST /notify/{id}/test": (READ, NOTHING),
    "GET /audit": (READ, LIST),
    "GET /audit.jsonl": (READ, LIST),
    "GET /sessions": (READ, WHOLE),
    "GET /sessions/{id}": (READ, WHOLE),
    "GET /sessions/{id}/resume": (DISPATCH, WHOLE),
    "POST /sessions/{id}/resume": (DISPATCH, WHOLE),
    "GET /plans": (READ, WHOLE),
    "GET /plans/{name}": (READ, WHOLE),
    "GET /failures": (READ, WHOLE),
    "GET /continuity": (READ, WHOLE),
    "GET /continuity.json": (READ, WHOLE),
    "GET /disk": (READ, WHOLE),
    "POST /disk/measure": (DISPATCH, WHOLE),
    "GET /inbox": (READ, WHOLE),
    "GET /inbox/{number}": (READ, WHOLE),
    "GET /inbox/{number}/replay": (DISPATCH, WHOLE),
    "POST /inbox/{number}/replay": (DISPATCH, WHOLE),
    "GET /checks": (READ, WHOLE),
    "GET /runs/{name}": (READ, RUN),
    "GET /runs/{name}/live": (READ, RUN),
    "GET /runs/{name}/log": (READ, RUN),
    "GET /runs/{name}/diff": (READ, RUN),
    "GET /runs/{name}/patch": (READ, RUN),
    "GET /runs/{name}/checkpoints": (READ, RUN),
    "GET /runs/{name}/instructions": (READ, RUN),
    "GET /runs/{name}/report.json": (READ, RUN),
    "GET /runs/{name}/attempts/{number}/stdout": (READ, RUN),
    "POST /runs/{name}/retry": (DISPATCH, RUN),
    "GET /runs/{name}/update": (DISPATCH, RUN),
    "POST /runs/{name}/update": (DISPATCH, RUN),
    "POST /runs/{name}/answer": (ANSWER, RUN),
    "GET /runs/{name}/tell": (DISPATCH, RUN),
    "POST /runs/{name}/tell": (DISPATCH, RUN),
    "GET /runs/{name}/stop": (DISPATCH, RUN),
    "POST /runs/{name}/stop": (DISPATCH, RUN),
    "GET /runs/{name}/fork": (DISPATCH, RUN),
    "POST /runs/{name}/fork": (DISPATCH, RUN),
    "GET /runs/{name}/restore/{number}": (DISPATCH, RUN),
    "POST /runs/{name}/restore/{number}": (DISPATCH, RUN),
    "GET /runs/{name}/reset": (ADMIN, WHOLE),
    "POST /runs/{name}/reset": (ADMIN, WHOLE),
    "GET /runs/{name}/remove": (ADMIN, RUN),
    "POST /runs/{name}/remove": (ADMIN, RUN),
}
"""All routes that need a token: the smallest scope, and how the route keeps to the limits of a
token."""
BODIES = {
    "answer": {"answer": "deny"},
    "update": {"prompt": "x"},
    "tell": {"prompt": "x"},
    "restore": {"checkpoint": 1},
}
"""The bodies of requests that need fields, by the last word of the path."""
OPEN_TO_ALL = {"GET /sign-in", "POST /sign-in", "GET /link/{text}", "POST /link/{text}"}
OWN_SESSION = {"POST /sign-out"}
STREAMS = ("/events", "/live")
WEB, SECRET_RUN, TEAM = "web-run", "hidden-run", "team-run"
REPOSITORIES = {
    WEB: "https://git.example.com/shop/web.git",
    SECRET_RUN: "https://git.example.com/vault/keys.git",
    TEAM: "https://git.example.com/shop/team.git",
}


def fill(database: Path) -> None:
    """Store a run in each repository; one has a label."""
    database.parent.mkdir(parents=True, exist_ok=True)
    with closing(stores.open(database)) as store:
        for name, repo in REPOSITORIES.items():
            add(store, name, repo, {"team": "red"} if name == TEAM else {})


def add(store: SqlStore, name: str, repo: str, labels: dict[str, str]) -> None:
    """Store a waiting run with this name, repository and labels."""
    place = Workspace(
        id=name,
        path=f"/nowhere/{name}",
        backend=Backend.WORKTREE,
        repo=repo,
        branch=name,
        base="main",
    )
    spec = TaskSpec(prompt=f"the prompt of {name}", repo=repo, labels=labels)
    store.add(spec, hashlib.sha256(name.encode()).hexdigest()[:32], name, place)


@dataclass
class Client:
    """A token, and a browser that has signed in with it."""

    serving: Serving
    token: str
    cookie: str = field(default="", init=False)

    def sign_in(self) -> Client:
        body = urlencode({"token": self.token}).encode()
        _, headers, _ = self.send("POST", "/sign-in", body)
        self.cookie = re.findall(r"perdure=([^;]+)", headers["set-cookie"])[0]
        return self

    def send(
        self, method: str, path: str, body: bytes = b"", **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        """Send a request, and return status and body. Of a stream, only the head is read."""
        form = {"content-type": "application/x-www-form-urlencoded"} if body else {}
        with contextlib.closing(
            http.client.HTTPConnection("127.0.0.1", self.serving.port, timeout=PATIENCE_S)
        ) as connection:
            connection.request(method, path, body, form | headers)
            answer = connection.getresponse()
            found = {name.lower(): value for name, value in answer.getheaders()}
            if "event-stream" in found.get("content-type", ""):
                return answer.status, found, b""
            return answer.status, found, answer.read()

    def ask(self, method: str, path: str, body: object = None) -> tuple[int, bytes]:
        """Send a request to the API with the token, or one for a page as the signed-in browser."""
        if path.startswith(API) or path == "/metrics":
            sent = json.dumps({} if body is None else body).encode() if method == "POST" else b""
            headers = {"authorization": f"Bearer {self.token}", "content-type": "application/json"}
            status, _, found = self.send(method, path, sent, **headers)
            return status, found
        secret = hmac.new(self.cookie.encode(), b"form", hashlib.sha256).hexdigest()
        form = urlencode({"csrf": secret, **(body if isinstance(body, dict) else {})}).encode()
        status, _, found = self.send(
            method, path, form if method == "POST" else b"", cookie=f"perdure={self.cookie}"
        )
        return status, found


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    claude = str(native("claude"))
    serving = Serving(tmp_path_factory.mktemp("access"), PERDURE_CLAUDE=claude)
    fill(serving.state / "perdure.db")
    yield serving.start()
    serving.stop()


def client(serving: Serving, name: str, *words: str) -> Client:
    done = serving.perdure("token", "new", name, *words)
    assert done.returncode == 0, done.stderr
    return Client(serving, done.stdout.strip()).sign_in()


@pytest.fixture(scope="module")
def clients(served: Serving) -> dict[str, Client]:
    """Return a client for each scope."""
    return {str(each): client(served, f"of-{each}", "--scope", str(each)) for each in TokenScope}


@pytest.fixture(scope="module")
def limited(served: Serving) -> Client:
    """Return an admin who is limited to one group of repositories."""
    return client(served, "shop-admin", "--scope", "admin", "--repository", "shop/*")


class _Engine(Struct):
    """Replaces the engine, of which the metrics make a copy when the routes are made."""

    store: Any


def known() -> set[str]:
    """Return all routes of the server, as METHOD PATH."""
    nothing = SimpleNamespace()
    parts: Any = SimpleNamespace(
        engine=_Engine(nothing), store=nothing, settings=SimpleNamespace(serve_public_url="", openid=None),
        seed=nothing, checks=nothing, dispatch=nothing, journal=nothing, principals=nothing,
    )  # fmt: skip
    found = set()
    for each in routes(parts):
        if isinstance(each, Mount):
            assert each.path == "/static", "files of perdure's own, which anybody may read"
            continue
        assert isinstance(each, Route) and each.methods
        found |= {f"{method} {each.path}" for method in each.methods - {"HEAD"}}
    return found


def at(path: str, run: str) -> str:
    """Return the path about a run. Other parts of the path get names that do not exist."""
    return re.sub(r"{\w+}", "7", path.replace("{run}", run).replace("/runs/{name}", f"/runs/{run}"))


def test_every_route_is_in_the_table() -> None:
    """Every route is in the table. A new route must be added, with its scope and how it keeps to
    the limits of a token."""
    assert known() - OPEN_TO_ALL - OWN_SESSION == set(ROUTES)


@pytest.mark.parametrize("scope", [None, *TokenScope])
def test_a_route_needs_its_scope(
    served: Serving, clients: dict[str, Client], scope: TokenScope | None
) -> None:
    """Without a token a route answers 401 or leads to the sign-in. With a smaller scope it answers
    403 with one sentence. With its scope it gives an answer."""
    order = [str(each) for each in TokenScope]
    for route, (least, _) in ROUTES.items():
        method, path = route.split(" ")
        if scope is None:
            status, _, _ = Client(served, "").send(method, at(path, "nothing"))
            assert status == 401, route
            continue
        status, said = clients[scope].ask(method, at(path, "nothing"))
        if order.index(scope) < order.index(least):
            assert status == 403, (route, said)
            assert f"This needs the scope {least}" in said.decode().replace("&#39;", "'"), route
        else:
            assert status not in (401, 403), (route, said)


def test_the_limits_of_a_token(limited: Client) -> None:
    """No route shows a hidden run to an admin of `shop/*`, not even that it exists. The admin gets
    no page about the whole server, but sees the runs of these repositories."""
    for route, (_, reach) in ROUTES.items():
        method, path = route.split(" ")
        body = BODIES.get(path.rpartition("/")[2])
        status, said = limited.ask(method, at(path, SECRET_RUN), body)
        if reach == WHOLE:
            assert status == 403 and b"limited to repositories shop/*" in said, (route, said)
        elif reach == RUN:
            _, other = limited.ask(method, at(path, "no-such-run"), body)
            same = said.replace(SECRET_RUN.encode(), b"X"), other.replace(b"no-such-run", b"X")
            assert status == 404 and same[0] == same[1], (route, said)
        else:
            assert status not in (401, 403, 500), (route, said)
            assert SECRET_RUN.encode() not in said and b"vault" not in said, route
        if reach == RUN and method == "GET" and not path.endswith(("/raw", "/stdout")):
            status, said = limited.ask(method, at(path, WEB))
            assert status not in (401, 403, 500), (route, said)
    for path in (f"{API}/runs", "/", "/digest", "/audit", "/audit.jsonl", f"{API}/audit"):
        status, said = limited.ask("GET", path)
        assert status == 200 and (WEB.encode() in said or b"audit" in path.encode()), path
    assert json.loads(limited.ask("GET", f"{API}/runs?limit=1")[1])["next"]


def test_the_limits_hold_for_new_tasks(served: Serving) -> None:
    """A task outside of the token's limits is refused, however its address is spelled. A task
    inside of them gets the labels of the limits. A limited admin cannot go beyond the owner's
    settings."""
    red = client(
        served,
        "red",
        "--scope",
        "admin",
        "--repository",
        "git.example.com/shop/*",
        "--label",
        "team=red",
    )
    for repo in (
        "https://git.example.com/vault/keys.git",
        "https://git.example.com/shop/../vault/keys.git",
        "https://git.example.com/shop/%2e%2e/vault/keys.git",
        "https://git.example.com//shop/web.git",
        "https://other.example.com/shop/web.git",
        "https://git.example.com@other.example.com/shop/web.git",
        "/srv/shop/web.git",
    ):  # fmt: skip
        status, said = red.ask("POST", f"{API}/runs", {"prompt": "x", "repo": repo})
        assert status in (403, 422), (repo, said)
    for more in (
        {"service": "a", "task": "b"},
        {"labels": {"team": "blue"}},
        {"env": {"A": "b"}},
        {"scope": "forge:triage:vault/keys#7"},
        {"branch": "perdure/another-team"},
    ):  # fmt: skip
        task = {"prompt": "x"} | ({} if "service" in more else {"repo": REPOSITORIES[WEB]}) | more
        status, said = red.ask("POST", f"{API}/runs", task)
        assert status == 403, (more, said)
    names = [each["name"] for each in json.loads(red.ask("GET", f"{API}/runs")[1])["runs"]]
    assert names == [TEAM]
    page = red.ask("GET", "/")[1]
    assert TEAM.encode() in page and WEB.encode() not in page


def test_a_live_stream_keeps_to_the_limits(served: Serving, limited: Client) -> None:
    """The stream of all runs has only the records of runs that the token may see."""
    with contextlib.closing(
        http.client.HTTPConnection("127.0.0.1", served.port, timeout=PATIENCE_S)
    ) as connection:
        headers = {"authorization": f"Bearer {limited.token}"}
        connection.request("GET", f"{API}/events?after=0", headers=headers)
        answer = connection.getresponse()
        with closing(stores.open(served.state / "perdure.db")) as store:
            runs = {each.name: each.id for each in store.find()}
            add(store, "hidden-later", "https://git.example.com/vault/keys.git", {})
            add(store, "web-later", REPOSITORIES[WEB], {})
            last = store.get("web-later").id
        seen = b""
        while last.encode() not in seen:
            seen += answer.read1()
        assert runs[WEB].encode() in seen and runs[SECRET_RUN].encode() not in seen
        assert b"hidden-later" not in seen


@pytest.mark.parametrize("path", ["/live", f"{API}/events"])
def test_a_live_stream_keeps_still_about_others(
    served: Serving, limited: Client, path: str
) -> None:
    """News of a hidden run sends nothing in the stream, not even a heartbeat, because its time
    would show that something happens."""
    headers = {"authorization": f"Bearer {limited.token}", "cookie": f"perdure={limited.cookie}"}
    if path == "/live":
        del headers["authorization"]
    with (
        contextlib.closing(
            http.client.HTTPConnection("127.0.0.1", served.port, timeout=PATIENCE_S)
        ) as connection,
        closing(stores.open(served.state / "perdure.db")) as store,
    ):
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        assert answer.readline() == b"retry: 2000\n" and answer.readline() == b"\n"
        # The stream may send the last records before this one again.
        add(store, f"web-first{path[-4:]}".replace("/", "-"), REPOSITORIES[WEB], {})
        time.sleep(1)
        while select.select([connection.sock], [], [], 1)[0]:
            answer.read1()
        add(store, f"hidden{path[-4:]}".replace("/", "-"), REPOSITORIES[SECRET_RUN], {})
        assert not select.select([connection.sock], [], [], 2)[0], answer.read1()
        add(store, f"web{path[-4:]}".replace("/", "-"), REPOSITORIES[WEB], {})
        assert b"data: " in answer.read1()


def test_names_of_hidden_runs_in_refusals(served: Serving, clients: dict[str, Client]) -> None:
    """If a hidden run has a name or a key already, it is refused with the usual sentence, but
    without the run's name. A fork may not choose a branch that a hidden run may use."""
    red = client(served, "red-too", "--scope", "admin", "--label", "team=red")
    task = {"prompt": "x", "repo": REPOSITORIES[TEAM], "permissions": "edit"}
    secret = task | {"name": "plum-secret", "key": "nightly-7", "labels": {"team": "plum"}}
    assert clients["admin"].ask("POST", f"{API}/runs", secret)[0] == 201
    said = set()
    for more in ({"name": "plum-secret"}, {"key": "nightly-7"}):
        status, answer = red.ask("POST", f"{API}/runs", task | more)
        assert status == 409 and b"plum" not in answer, answer
        said.add(answer)
    assert len(said) == 1
    status, answer = clients["admin"].ask("POST", f"{API}/runs", task | {"key": "nightly-7"})
    assert status == 409 and b"plum-secret" in answer
    status, answer = red.ask("POST", "/new", task | {"name": "plum-secret"})
    assert status == 409 and b"perdure logs" not in answer, answer
    for path in (f"{API}/runs/{TEAM}/fork", f"/runs/{TEAM}/fork"):
        status, answer = red.ask("POST", path, {"branch": "perdure/plum-secret"})
        assert status == 403 and b"may use the same branch" in answer, answer


def test_a_refused_request_is_on_the_audit_trail(served: Serving) -> None:
    """A 403 leaves one line in the audit trail, with the token and the request."""
    client(served, "curious").ask("POST", f"{API}/trash/seven/restore")
    done = served.perdure("audit", "--json")
    lines = [json.loads(each) for each in done.stdout.splitlines()]
    about = [each for each in lines if each["kind"] == "refused" and "seven" in each["about"]]
    assert [(each["actor"], each["about"]) for each in about] == [
        ("token:curious", f"POST {API}/trash/seven/restore")
    ]


def test_whoami(served: Serving, limited: Client) -> None:
    """A client can ask for its actor, scope and limits, by the API and by the command. Without a
    server the command shows the local user. An unknown token is an error."""
    status, said = limited.ask("GET", f"{API}/whoami")
    assert status == 200 and json.loads(said) == {
        "schema_version": 1, "actor": "token:shop-admin", "name": "shop-admin", "scope": "admin",
        "repositories": ["shop/*"], "labels": [], "expires": 0,
    }  # fmt: skip
    url, file = f"http://127.0.0.1:{served.port}", served.home / "a-token"
    file.write_text(limited.token)
    done = served.perdure("whoami", "--server", url, "--token-file", str(file))
    assert "token:shop-admin" in done.stdout and "shop/*" in done.stdout and not done.stderr
    file.write_text("prd_unknown")
    assert served.perdure("whoami", "--server", url, "--token-file", str(file)).returncode == 5
    assert (
        served.perdure("whoami", "--server", "ftp://x", "--token-file", str(file)).returncode == 2
    )
    plain = served.perdure("whoami", "--server", "http://192.0.2.1", "--token-file", str(file))
    assert plain.returncode == 2 and "unencrypted" in plain.stderr
    assert json.loads(served.perdure("whoami", "--json").stdout)["actor"].startswith("local:")


def test_the_list_of_tokens_shows_the_limits(served: Serving, limited: Client) -> None:
    """`perdure token` shows the patterns of a token's limits, and refuses an invalid one."""
    assert "shop/*" in served.perdure("token").stdout
    for words in (("--repository", ""), ("--repository", "https://a/b"), ("--label", "=x")):
        assert served.perdure("token", "new", "wrong", *words).returncode == 2


def test_the_scope_answer(tmp_path: Path) -> None:
    """The scope `answer` can answer questions and refuse calls, but start nothing."""
    serving = Serving(tmp_path)
    database = serving.state / "perdure.db"
    database.parent.mkdir(parents=True)
    with closing(stores.open(database)) as store:
        add(store, WEB, REPOSITORIES[WEB], {})
    serving.start()
    try:
        someone = client(serving, "someone", "--scope", "answer")
        for answer, status in (("deny", 409), ("text", 409), ("allow", 403)):
            asked = {"answer": answer, "words": "no"}
            found, said = someone.ask("POST", f"{API}/runs/{WEB}/answer", asked)
            assert found == status or (found in (404, 409, 422) and status == 409), (answer, said)
        assert someone.ask("POST", f"{API}/runs/{WEB}/stop")[0] == 403
    finally:
        serving.kill()


@pytest.mark.parametrize(
    ("repo", "names"),
    [
        ("https://git.example.com/shop/web.git", ("shop/web", "git.example.com/shop/web")),
        ("https://me:pw@GIT.example.com:8443/shop/web/", ("shop/web", "git.example.com/shop/web")),
        ("ssh://git@git.example.com/a/b/c.git", ("a/b/c", "git.example.com/a/b/c")),
        ("git@git.example.com:shop/web.git", ("shop/web", "git.example.com/shop/web")),
        ("/srv/git/web.git", ("/srv/git/web",)),
        ("/srv/git/../web.git", ()),
        ("https://git.example.com/shop/../vault/x", ()),
        ("https://git.example.com/shop/%2e%2e/vault", ()),
        ("https://git.example.com/shop//web", ()),
        ("https://git.example.com/shop/web?x=/y", ()),
        ("https://evil.example/git.example.com/a", ("evil.example/git.example.com/a",)),
        ("file:///srv/git/web.git", ()),
        ("https://[broken/shop/web", ()),
        ("", ()),
    ],
)
def test_the_names_of_a_repository(repo: str, names: tuple[str, ...]) -> None:
    """Spellings of one address have the same names. An address that could be resolved to another
    path has none, so that no pattern matches it."""
    assert names_of(repo) == names


def test_limits_of_patterns() -> None:
    """A run must match one of the repositories and all of the labels. Without limits all match."""
    limits = limits_of(["shop/*", "git.example.com/lib/a"], ["team=r*", "kind"])
    web = "https://git.example.com/shop/web"
    assert limits.see(web, {"team": "red", "kind": ""})
    assert not limits.see(web, {"team": "blue", "kind": ""})
    assert not limits.see(web, {"team": "red"})
    assert not limits.see("https://git.example.com/Shop/web", {"team": "red", "kind": ""})
    assert limits.see("https://git.example.com/lib/a.git", {"team": "r", "kind": "x"})
    assert not limits.see("", {"team": "r", "kind": "x"})
    assert AccessLimits().see("", {}) and not AccessLimits()
    assert limits_of([], ["a=b", "c=d*"]).own_labels == {"a": "b"}
