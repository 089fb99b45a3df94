"""Sign-in by a provider of OpenID Connect: a real `perdure serve`, and a provider that can send
wrong answers."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import http.client
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlencode, urlsplit

import pytest

from perdure.config.values import READERS
from perdure.errors import ConfigError
from perdure.model import TokenScope
from perdure.model.openid import OpenIdProvider, OpenIdRule, provider
from perdure.rules.openid import claims_problem, person_of, rule_for
from perdure.server import openid
from perdure.server.openid import Provider, ProviderAway, ready
from tests.patience import PATIENCE_S
from tests.servers.ports import free_port
from tests.web.provider import SECRET
from tests.web.serving import Serving

CONFIG = """
[serve]
public_url = "http://127.0.0.1:{port}"
[openid]
issuer = "http://127.0.0.1:{issuer}"
client_id = "perdure"
secret_file = "{{home}}/openid-secret"
scopes = ["openid", "email", "groups"]
name = "Team login"
[[openid.rules]]
claim = "groups"
value = "shop-*"
scope = "answer"
repositories = ["shop/*"]
[[openid.rules]]
claim = "email"
value = "*@example.com"
scope = "dispatch"
"""
HERE = Path(__file__).parents[2]
Answer = tuple[int, dict[str, str], str]


class World:
    """A server, and the provider where people sign in."""

    def __init__(self, serving: Serving, port: int, provider_port: int) -> None:
        self.serving, self.port, self.provider_port = serving, port, provider_port

    def get(self, path: str, cookie: str = "", method: str = "GET", body: str = "") -> Answer:
        return ask(self.port, path, cookie, method, body)

    def lie(self, **lies: object) -> None:
        assert ask(self.provider_port, "/lie", "", "POST", json.dumps(lies))[0] == 200

    def start(self, next: str = "/") -> tuple[str, str]:
        """Begin a sign-in. Return the address of the provider's page, and the browser's cookie."""
        status, headers, _ = self.get(f"/sign-in/openid?next={quote(next)}")
        assert status == 303, headers
        cookie = headers["set-cookie"]
        assert (
            "HttpOnly" in cookie and "SameSite=lax" in cookie and "Path=/sign-in/openid" in cookie
        )
        return headers["location"], cookie.partition(";")[0]

    def back(self, place: str) -> str:
        """Sign in at the provider. Return the path of perdure to which the provider sends the
        browser back."""
        parts = urlsplit(place)
        status, headers, _ = ask(self.provider_port, f"{parts.path}?{parts.query}")
        assert status == 303
        found = urlsplit(headers["location"])
        assert found.netloc == f"127.0.0.1:{self.port}"
        return f"{found.path}?{found.query}"

    def sign_in(self, next: str = "/") -> Answer:
        place, cookie = self.start(next)
        return self.get(self.back(place), cookie)


def ask(port: int, path: str, cookie: str = "", method: str = "GET", body: str = "") -> Answer:
    """Send a request as a browser. Return status, headers and text."""
    with contextlib.closing(
        http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
    ) as connection:
        headers = {"cookie": cookie, "accept": "text/html"} if cookie else {"accept": "text/html"}
        connection.request(method, path, body.encode(), headers)
        answer = connection.getresponse()
        found: dict[str, str] = {}
        for name, value in answer.getheaders():
            found[name.lower()] = "\n".join(filter(None, (found.get(name.lower()), value)))
        return answer.status, found, answer.read().decode()


def signed_in(answer: Answer) -> str:
    """Return the cookie of the browser, which must be signed in by this answer."""
    cookies = answer[1].get("set-cookie", "").split("\n")
    return next((each.partition(";")[0] for each in cookies if each.startswith("perdure=")), "")


@contextlib.contextmanager
def providing() -> Iterator[int]:
    """Run a provider, and yield its port."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.web.provider"], cwd=HERE, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
    ) as process:  # fmt: skip
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.kill()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with providing() as issuer:
        port = free_port()
        home = tmp_path_factory.mktemp("openid")
        (home / "openid-secret").write_text(f"{SECRET}\n")
        serving = Serving(home, CONFIG.format(port=port, issuer=issuer))
        serving.start("--listen", f"127.0.0.1:{port}", "--jobs", "0")
        assert serving.port == port
        try:
            yield World(serving, port, issuer)
        finally:
            serving.stop()


@pytest.fixture(autouse=True)
def honest(request: pytest.FixtureRequest) -> Iterator[None]:
    """After each test, reset the provider to correct answers."""
    yield
    if "world" in request.fixturenames:
        request.getfixturevalue("world").lie()


def test_a_person_signs_in(world: World) -> None:
    """The sign-in page offers the provider. After the sign-in the person gets the requested page,
    and acts under their own name with the scope of the rule. PKCE, state and nonce are new each
    time."""
    status, headers, _ = world.get("/audit?since=all")
    assert status == 303 and headers["location"] == "/sign-in?next=/audit"
    assert "Team login" in world.get(headers["location"])[2]
    place, cookie = world.start("/audit")
    asked = parse_qs(urlsplit(place).query)
    assert asked["scope"] == ["openid email groups"] and asked["code_challenge_method"] == ["S256"]
    other = parse_qs(urlsplit(world.start()[0]).query)
    assert all(asked[name] != other[name] for name in ("state", "nonce", "code_challenge"))
    answer = world.get(world.back(place), cookie)
    assert answer[0] == 200 and 'content="0; url=/audit"' in answer[2]
    own = signed_in(answer)
    assert own and "SameSite=strict" in answer[1]["set-cookie"]
    status, _, page = world.get("/audit", own)
    assert status == 200 and "openid:ada@example.com" in page and "ada@example.com</span>" in page
    who = json.loads(world.get("/api/v1/whoami", own)[2])
    assert (who["actor"], who["scope"]) == ("openid:ada@example.com", "dispatch")
    assert world.get("/runs/x/reset", own)[0] == 403


def test_the_first_rule_that_fits_decides(world: World) -> None:
    """A group gives its scope and limits. A person without a rule does not get in, and no e-mail
    address counts that the provider has not verified."""
    world.lie(claims={"groups": ["staff", "shop-web"]})
    who = json.loads(world.get("/api/v1/whoami", signed_in(world.sign_in()))[2])
    assert (who["scope"], who["repositories"]) == ("answer", ["shop/*"])
    for claims in (
        {"email": "eve@evil.example"},
        {"email_verified": False},
        {"email_verified": None},
        {"email_verified": "true"},
        {"email": None, "groups": "staff"},
    ):
        world.lie(claims=claims)
        answer = world.sign_in()
        assert answer[0] == 403 and not signed_in(answer), claims
        assert "may not use this perdure" in answer[2]


LIES: dict[str, dict[str, Any]] = {
    "alg none": {"alg": "none"},
    "signed with a public text": {"alg": "HS256"},
    "signed by a stranger": {"alg": "stranger"},
    "another issuer": {"claims": {"iss": "http://127.0.0.1:1"}},
    "no issuer": {"claims": {"iss": None}},
    "another audience": {"claims": {"aud": "other"}},
    "no audience": {"claims": {"aud": None}},
    "several audiences": {"claims": {"aud": ["perdure", "other"]}},
    "for another party": {"claims": {"azp": "other"}},
    "expired": {"claims": {"exp": 1}},
    "never expires": {"claims": {"exp": None}},
    "in the future": {"claims": {"iat": 10**11}},
    "not yet": {"claims": {"nbf": 10**11}},
    "another nonce": {"claims": {"nonce": "x"}},
    "no nonce": {"claims": {"nonce": None}},
    "nobody": {"claims": {"sub": ""}},
    "a number as person": {"claims": {"sub": 7, "email": 8}},
    "times as text": {"claims": {"exp": "never"}},
    "no token": {"token": {}},
    "a token that is none": {"token": {"id_token": "a.b.c"}},
    "a token of another type": {"token": {"id_token": 7}},
    "a huge token": {"token": {"id_token": "a" * 100_000}},
    "a list": {"token": []},
    "an error": {"status": 500},
    "a redirect": {"status": 302},
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
def test_a_lie_lets_nobody_in(world: World, lie: dict[str, Any]) -> None:
    """If the provider sends a wrong answer, the person gets one sentence, the log has the reason,
    and there is no cookie."""
    world.lie(**lie)
    seen = len(world.serving.said())
    answer = world.sign_in("/audit")
    assert answer[0] == 403 and not signed_in(answer)
    assert "did not work" in answer[2] and "Traceback" not in world.serving.said()
    assert "sign-in: " in world.serving.said()[seen:]


class Direct:
    """A client of the provider without a server."""

    def __init__(self, port: int, secret: Path) -> None:
        secret.write_text(SECRET)
        self.port = port
        self.chosen = OpenIdProvider(
            issuer=f"http://127.0.0.1:{port}", client_id="perdure", secret_file=str(secret)
        )
        self.found = Provider(self.chosen)

    def claims(self) -> Any:
        """Sign in, and return the claims of the ID token."""
        verifier, back = "v" * 43, "http://127.0.0.1:1/x"
        digest = hashlib.sha256(verifier.encode()).digest()
        challenge = base64.urlsafe_b64encode(digest).decode().rstrip("=")
        parts = urlsplit(self.found.place(back, "s", "n", challenge))
        _, headers, _ = ask(self.port, f"{parts.path}?{parts.query}")
        code = parse_qs(urlsplit(headers["location"]).query)["code"][0]
        return self.found.claims(code, back, verifier, "n")

    def lie(self, **lies: object) -> None:
        ask(self.port, "/lie", "", "POST", json.dumps(lies))


def test_a_new_key_of_the_provider(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A key that perdure has not seen is fetched, but not again and again because of unknown keys.
    A provider's configuration of another issuer, or with an unsafe address, is refused."""
    with providing() as port:
        direct = Direct(port, tmp_path / "secret")
        assert direct.claims()["sub"] == "u-7"
        direct.lie(rotate=True)
        with pytest.raises(ProviderAway, match="signature"):
            direct.claims()
        monkeypatch.setattr(openid, "AGAIN_S", 0.0)
        assert direct.claims()["sub"] == "u-7"
        direct.lie(configuration={"issuer": "http://127.0.0.1:1"})
        with pytest.raises(ProviderAway, match="another issuer"):
            Provider(direct.chosen).configuration()
        for place in ("http://example.com/token", "file:///etc/passwd", "https://u:p@x/y", "", 7):
            direct.lie(configuration={"token_endpoint": place})
            with pytest.raises(ProviderAway, match="token_endpoint"):
                Provider(direct.chosen).configuration()
    with pytest.raises(ProviderAway, match="does not answer"):
        Provider(direct.chosen).configuration()


def test_a_way_back_is_for_one_browser_and_once(world: World) -> None:
    """The address to which the provider sends the browser back works once, and only with the right
    cookie and state. After the provider has refused a sign-in, that sign-in is over."""
    place, cookie = world.start()
    _, foreign = world.start()
    path = world.back(place)
    for given in ("", foreign, "perdure_way=x", "perdure_way=x.y", f"{cookie}x"):
        answer = world.get(path, given)
        assert answer[0] == 403 and not signed_in(answer), given
    state = parse_qs(urlsplit(path).query)["state"][0]
    assert world.get(path.replace(state, "x" * 43), cookie)[0] == 403
    assert signed_in(world.get(path, cookie))
    assert world.get(path, cookie)[0] == 403
    for change in ({"error": "access_denied"}, {"iss": "https://evil.example", "code": "x"}, {}):
        place, cookie = world.start()
        state = parse_qs(urlsplit(place).query)["state"][0]
        answer = world.get(f"/sign-in/openid/back?{urlencode({'state': state, **change})}", cookie)
        assert answer[0] == 403 and not signed_in(answer), change


@pytest.mark.parametrize(
    "next", ["//evil.example", "https://evil.example", "/\\evil.example", "javascript:alert(1)", ""]
)
def test_nobody_is_sent_elsewhere(world: World, next: str) -> None:
    """The page after the sign-in is always one of perdure's."""
    assert 'content="0; url=/"' in world.sign_in(next)[2]


def test_a_sign_in_ends(world: World) -> None:
    """Signing out, or `perdure token rm openid:PERSON`, ends a sign-in at once."""
    first, second = signed_in(world.sign_in()), signed_in(world.sign_in())
    secret = hmac.new(first.partition("=")[2].encode(), b"form", hashlib.sha256).hexdigest()
    with contextlib.closing(
        http.client.HTTPConnection("127.0.0.1", world.port, timeout=PATIENCE_S)
    ) as connection:
        form = {"cookie": first, "content-type": "application/x-www-form-urlencoded"}
        connection.request("POST", "/sign-out", f"csrf={secret}", form)
        assert connection.getresponse().status == 303
    assert world.get("/", first)[0] == 303 and world.get("/", second)[0] == 200
    done = world.serving.perdure("token", "rm", "openid:ada@example.com")
    assert done.returncode == 0 and world.get("/", second)[0] == 303
    assert world.serving.perdure("token", "rm", "openid:ada@example.com").returncode == 5


# --- the configuration

TABLE: dict[str, Any] = {
    "issuer": "https://id.example.com/",
    "client_id": "perdure",
    "rules": [{"claim": "email", "value": "*@example.com", "scope": "read"}],
}


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("x", "same as JSON"),
        ([], "a table"),
        (TABLE | {"secret": "x"}, "no setting 'secret'"),
        (TABLE | {"issuer": "http://id.example.com"}, "must be https"),
        (TABLE | {"issuer": ""}, "must be an address"),
        (TABLE | {"client_id": ""}, "client_id must be a text"),
        (TABLE | {"secret_file": "x"}, "absolute path"),
        (TABLE | {"scopes": ["email"]}, "contain openid"),
        (TABLE | {"rules": []}, "nobody could sign in"),
        (TABLE | {"rules": [{"claim": "a", "value": "b", "scope": "root"}]}, "must be one of"),
        (TABLE | {"rules": [{"claim": "a", "value": "", "scope": "read"}]}, "value of a rule"),
        (TABLE | {"rules": [{"claims": "a"}]}, "has no 'claims'"),
        (TABLE | {"rules": [TABLE["rules"][0] | {"labels": ["=x"]}]}, "NAME=PATTERN"),
    ],
)
def test_a_wrong_table(table: object, said: str) -> None:
    """A mistake in the table is named at the start, before anybody signs in."""
    with pytest.raises(ValueError, match=said):
        READERS["openid"](table)


def test_what_a_sign_in_needs(tmp_path: Path) -> None:
    """Without a public address or a readable secret, the server does not start."""
    found = provider(TABLE | {"secret_file": str(tmp_path / "secret")})
    assert found is not None and provider({}) is None and found.issuer.endswith("/")
    with pytest.raises(ConfigError) as error:
        ready(found, "")
    assert len(error.value.problems) == 2
    (tmp_path / "secret").write_text("x")
    ready(found, "https://perdure.example.com")


def test_the_claims_of_a_person() -> None:
    """The clocks may differ by a minute. The first of two matching rules counts. A person without a
    verified e-mail address is named by the subject."""
    rules = (
        OpenIdRule(claim="sub", value="u-7", scope=TokenScope.READ),
        OpenIdRule(claim="sub", value="u-*", scope=TokenScope.ADMIN),
    )
    chosen = OpenIdProvider(issuer="https://i", client_id="c", rules=rules)
    now = time.time()
    claims = {
        "iss": "https://i",
        "sub": "u-7",
        "aud": ["c"],
        "exp": now - 50,
        "iat": now + 50,
        "nonce": "n",
    }
    assert claims_problem(claims, chosen, "n", now) == ""
    assert claims_problem(claims | {"exp": now - 70}, chosen, "n", now) == "it has expired"
    assert claims_problem(claims | {"iat": True}, chosen, "n", now) == (
        "it has no issue or expiry time"
    )
    assert person_of(claims | {"email": "a@b"}) == "u-7"
    assert rule_for(claims, chosen) is rules[0]
    assert rule_for(claims | {"sub": "u-8"}, chosen) is rules[1]
    assert rule_for(claims | {"sub": "x"}, chosen) is None


def test_the_provider_refuses_the_code(tmp_path: Path) -> None:
    """If the provider refuses the code, the log has the provider's error code, and for a wrong
    secret also what to check. Nothing else of the answer is repeated."""
    with providing() as port:
        direct = Direct(port, tmp_path / "secret")
        for said, logged in (
            ({"error": "invalid_client"}, ": invalid_client; check client_id and the secret"),
            ({"error": "invalid_grant", "error_description": "hunter2"}, ": invalid_grant"),
            ({"error": "hunter2 <b>"}, ""),
            ({"error": ["x"]}, ""),
            ([], ""),
        ):
            direct.lie(status=401, token=said)
            with pytest.raises(ProviderAway) as found:
                direct.claims()
            message = str(found.value)
            assert message.startswith(f"127.0.0.1 answered 401{logged}")
            assert "hunter2" not in message
