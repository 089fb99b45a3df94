"""Access: tokens and sign-ins, made and removed while `perdure serve` runs, and addresses that no
token opens."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable, Iterator
from contextlib import closing
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace

import pytest
from starlette.requests import Request

from perdure import store as stores
from perdure.model import Token, TokenScope
from perdure.server import principal
from perdure.server.principal import (
    FAILURES_MOST,
    Principal,
    Principals,
    authenticated,
    new_cookie,
    new_token,
)
from perdure.server.problems import Problem
from perdure.store.sql import SqlStore
from tests.web.serving import Serving


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqlStore]:
    with closing(stores.open(tmp_path / "perdure.db")) as found:
        yield found


def add(store: SqlStore, name: str, scope: TokenScope = TokenScope.READ) -> str:
    secret, digest = new_token()
    store.add_token(Token(name=name, scope=scope, created=0), digest)
    return secret


def refused(call: Callable[[], object]) -> int:
    with pytest.raises(Problem) as error:
        call()
    return error.value.status


def test_the_verb(serving: Serving) -> None:
    """A token is shown once and stored only as a digest. It is in the list, and becomes invalid at
    once when it is removed."""
    made = serving.perdure(
        "token", "new", "ci", "--scope", "dispatch", "--expires", "30d", "--json"
    )
    found = json.loads(made.stdout)
    secret = found["token"]
    assert (
        made.returncode == 0
        and (found["name"], found["scope"]) == ("ci", "dispatch")
        and len(secret) >= 43
    )
    assert 29 * 86_400_000 < found["expires"] - found["created"] <= 30 * 86_400_000
    kept = b"".join(path.read_bytes() for path in serving.state.glob("perdure.db*"))
    assert sha256(secret.encode()).hexdigest().encode() in kept and secret.encode() not in kept
    assert all(
        stat.S_IMODE(path.stat().st_mode) & 0o077 == 0 for path in serving.state.glob("perdure.db*")
    )
    listed = serving.perdure("token")
    assert (
        "ci" in listed.stdout
        and "dispatch" in listed.stdout
        and secret not in listed.stdout + serving.said()
    )
    assert serving.perdure("token", "new", "ci").returncode == 6
    assert serving.perdure("token", "new", "a b").returncode == 2
    assert serving.perdure("token", "new", "x", "--expires", "soon").returncode == 2
    assert serving.ask("GET", "/api/v1/nothing", secret)[0] == 404
    assert serving.perdure("token", "rm", "ci").returncode == 0
    assert serving.ask("GET", "/api/v1/nothing", secret)[0] == 401
    assert serving.perdure("token", "rm", "ci").returncode == 5


def test_every_address_is_closed(serving: Serving) -> None:
    """Without a token no answer reveals anything, not even whether an address exists. Only health
    and the webhooks are open."""
    for path in (
        "/",
        "/api/v1/runs",
        "/api/v1/openapi.json",
        "/metrics",
        "/runs",
        "/nothing",
        "//healthz",
        "/webhooks",
        "/api/../healthz",
    ):
        status, said = serving.ask("GET", path)
        assert (status, said["status"], said["hint"]) == (401, 401, "perdure token new NAME"), path
    assert serving.ask("GET", "/healthz")[0] == 200
    token = serving.token("read")
    for wrong in (
        token[:-1],
        token + "x",
        token.upper(),
        token.removeprefix("prd_"),
        "x" * 4000,
        "\u00e9",
    ):
        assert serving.ask("GET", "/api/v1/nothing", wrong)[0] == 401
    assert serving.ask("GET", f"/api/v1/nothing?token={token}")[0] == 401
    assert serving.ask("GET", "/api/v1/nothing", authorization=f"Basic {token}")[0] == 401
    assert serving.ask("GET", "/api/v1/nothing", authorization=f"bearer {token}")[0] == 404


def test_a_browser_is_sent_to_the_sign_in_page(serving: Serving) -> None:
    """After a sign-in the browser gets the page that it asked for. The page after the sign-in must
    be one of perdure's."""
    status, _ = serving.ask("GET", "/runs/x?y=1", accept="text/html,*/*")
    assert status == 303


def test_other_sites_change_nothing(serving: Serving) -> None:
    """A write that a page of another site made the browser send is refused, even with a token.
    Programs and perdure's own pages are accepted."""
    token = serving.token("admin")
    here = f"127.0.0.1:{serving.port}"
    for headers in (
        {"origin": "https://evil.example.com"},
        {"origin": "null"},
        {"origin": "http://["},
        {"origin": f"http://127.0.0.1:{serving.port + 1}"},
        {"sec_fetch_site": "cross-site"},
        {"sec_fetch_site": "same-site"},
    ):
        assert serving.ask("POST", "/api/v1/nothing", token, {}, **headers)[0] == 403, headers
    for headers in (
        {},
        {"origin": f"http://{here}"},
        {"origin": f"https://{here}", "sec_fetch_site": "same-origin"},
    ):
        assert serving.ask("POST", "/api/v1/nothing", token, {}, **headers)[0] == 404, headers


def test_scopes_are_one_above_the_other(store: SqlStore) -> None:
    """The scope `dispatch` includes `read`, and `admin` includes both. The error for a client
    without the scope names the scope that is needed."""
    found = Principals(store, store)
    may = {scope: found.bearer(add(store, scope.value, scope), "here") for scope in TokenScope}
    order = list(TokenScope)
    for scope, who in may.items():
        request = Request({"type": "http", "headers": [], "state": {"principal": who}})
        for wanted in order:
            if order.index(wanted) <= order.index(scope):
                assert authenticated(request, wanted) == who
            else:
                assert (
                    refused(lambda wanted=wanted, request=request: authenticated(request, wanted))
                    == 403
                )
    assert refused(lambda: authenticated(Request({"type": "http", "headers": []}))) == 401
    assert (
        refused(
            lambda: authenticated(
                Request({"type": "http", "headers": [], "state": {"principal": SimpleNamespace()}})
            )
        )
        == 401
    )


def test_guesses_are_not_looked_up_without_end(
    store: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After twenty wrong tokens from an address, further wrong ones from there get 429 for a while.
    A valid token is still accepted, even if it was never used before, because many people may share
    that address. Other addresses are not affected. A token that was wrong is not looked up
    again."""
    lines: list[str] = []
    found = Principals(store, store, lines.append)
    known, fresh = add(store, "known"), add(store, "fresh")
    found.bearer(known, "there")
    assert [refused(lambda: found.bearer("prd_wrong", "there")) for _ in range(FAILURES_MOST)] == [
        401
    ] * FAILURES_MOST
    assert (
        refused(lambda: found.bearer("prd_wrong", "there")) == 429
        and refused(lambda: found.bearer("prd_other", "there")) == 429
    )
    assert (
        found.bearer(fresh, "there").name == "fresh"
        and found.sign_in(fresh, "there")[0].name == "fresh"
    )
    assert (
        found.bearer(known, "there").name == "known"
        and refused(lambda: found.bearer("prd_other", "elsewhere")) == 401
    )
    assert refused(lambda: found.bearer("prd_wrong", "elsewhere")) == 429, (
        "the same token from many addresses is counted, too"
    )
    assert len(lines) == 1 and "there" in lines[0]
    monkeypatch.setattr(principal, "WINDOW_S", 0.0)
    assert (
        found.bearer(add(store, "new"), "there").name == "new"
        and refused(lambda: found.bearer("prd_wrong", "there")) == 401
    )


def test_a_sign_in(store: SqlStore) -> None:
    """For a token, a browser gets its own secret, which ends with the sign-out or with the token.
    Its forms have a value that only perdure's own pages know."""
    found = Principals(store, store)
    token = add(store, "me", TokenScope.ADMIN)
    who, cookie = found.sign_in(f" {token}\n", "here")
    assert found.cookie(cookie) == who and who.may(TokenScope.ADMIN) and cookie not in repr(who)
    other, second = found.sign_in(token, "here")
    assert (
        who.sent_form(who.form_secret)
        and not who.sent_form(other.form_secret)
        and not who.sent_form("")
        and not who.sent_form("\u00e9")
    )
    assert not Principal("me", who.scopes).sent_form("")
    found.sign_out(who)
    assert refused(lambda: found.cookie(cookie)) == 401 and found.cookie(second) == other
    assert (
        refused(lambda: found.cookie(token)) == 401
        and refused(lambda: found.bearer(second, "here")) == 401
    )
    store.remove_token("me")
    assert refused(lambda: found.cookie(second)) == 401
    assert refused(lambda: found.sign_in(token, "here")) == 401
    late, digest = new_cookie()
    store.sign_in("me", digest, 3600.0)
    add(store, "me", TokenScope.ADMIN)
    assert refused(lambda: found.cookie(late)) == 401, (
        "a token knows no sign-in of an earlier one of its name"
    )


def test_a_cookie_alone_changes_nothing(serving: Serving) -> None:
    """A signed-in browser may read the API. To write, it also needs the value that only perdure's
    own pages know."""
    token = serving.token("admin")
    with closing(stores.open(serving.state / "perdure.db")) as store:
        who, cookie = Principals(store, store).sign_in(token, "here")
    sent = {"cookie": f"other=1; {principal.COOKIE}={cookie}"}
    assert serving.ask("GET", "/api/v1/nothing", **sent)[0] == 404
    assert serving.ask("POST", "/api/v1/nothing", body={}, **sent)[0] == 403
    assert serving.ask("POST", "/api/v1/nothing", body={}, x_form_secret="0" * 64, **sent)[0] == 403
    assert (
        serving.ask("POST", "/api/v1/nothing", body={}, x_form_secret=who.form_secret, **sent)[0]
        == 404
    )
    assert serving.ask("GET", "/api/v1/nothing", cookie=f"{principal.COOKIE}=x")[0] == 401


def test_a_public_address_needs_a_token(serves: Callable[..., Serving]) -> None:
    """perdure listens on a public address only if there is a token or a webhook's secret. An
    expired token does not count."""
    serving = serves("")
    assert serving.perdure("token", "new", "old", "--expires", "0s").returncode == 0
    assert (
        "neither a token nor a webhook" in serving.perdure("serve", "--listen", "0.0.0.0:0").stderr
    )
    serving.token("read")
    serving.start("--jobs", "0", "--listen", "0.0.0.0:0")
    assert serving.stop() == 0
