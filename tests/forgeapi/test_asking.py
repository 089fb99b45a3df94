"""Requests to a forge that fails as the test tells it. Every kind of failure gives one type of
error, and nothing is repeated without end."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path

import pytest

from perdure.errors import (
    ConfigError,
    Conflict,
    ForgeDenied,
    ForgeRefused,
    ForgeUnavailable,
    NotFound,
    PerdureError,
)
from perdure.forge.clients import gitea as gitea_client
from perdure.forge.clients import http
from perdure.forge.clients.connections import connect, forges
from perdure.forge.clients.github import api_of
from perdure.forge.clients.tokens import ForgeToken, token_at
from perdure.model.forge.deliveries import Forge
from perdure.model.forge.rules import rules
from perdure.model.forge.sources import sources
from perdure.model.forge.state import IssueRef
from tests.forgeapi.places import REPOSITORY, TOKENS, SmallPlace, small_place
from tests.servers.forge import gitea
from tests.servers.forge.server import Fault

REF = IssueRef(REPOSITORY, 1)


@pytest.fixture
def place() -> Iterator[SmallPlace]:
    with small_place(Forge.GITEA, gitea) as found:
        found.issue("ben", "One")
        yield found


def error_of(place: SmallPlace) -> PerdureError:
    with pytest.raises(PerdureError) as raised:
        place.forge.issue(REF)
    assert TOKENS["dev-bot"] not in f"{raised.value} {raised.value.hint}"
    return raised.value


@pytest.mark.parametrize(
    ("status", "kind", "exit_code"),
    [
        (401, ForgeDenied, 4), (403, ForgeDenied, 4), (404, NotFound, 5), (410, NotFound, 5), (409, Conflict, 6), (422, ForgeRefused, 1),
        (400, ForgeRefused, 1), (500, ForgeUnavailable, 75), (502, ForgeUnavailable, 75), (503, ForgeUnavailable, 75),
        (408, ForgeUnavailable, 75),
    ],
)  # fmt: skip
def test_every_status_is_one_kind_of_error(
    place: SmallPlace, status: int, kind: type[PerdureError], exit_code: int
) -> None:
    """Each error status is one error with the forge's message, on one line and without the token."""
    said = {
        "message": f"no,\n\x1b[2J {TOKENS['dev-bot']} is not it",
        "errors": [{"message": "see there"}],
    }
    place.small.fail(status, body=json.dumps(said).encode())
    found = error_of(place)
    assert type(found) is kind and found.exit_code == exit_code and str(found).isprintable()
    if status not in (401, 404, 410):
        assert "*** is not it: see there" in str(found)
    assert place.forge.issue(REF).title == "One"


@pytest.mark.parametrize(
    ("status", "headers", "wait"),
    [
        (429, {"retry_after": "120"}, 120.0),
        (429, {"retry_after": formatdate(time.time() + 3000, usegmt=True)}, 3000.0),
        (
            429,
            {"ratelimit_remaining": "0", "ratelimit_reset": str(int(time.time() + 3000))},
            3000.0,
        ),
        (
            403,
            {"x_ratelimit_remaining": "0", "x_ratelimit_reset": str(int(time.time() + 3000))},
            3000.0,
        ),
        (403, {"retry_after": "7"}, 7.0),
        (429, {}, http.LIMITED_S),
        (429, {"retry_after": "999999999"}, http.LONGEST_WAIT_S),
        (429, {"retry_after": "-5"}, 1.0),
        (429, {"retry_after": "soon"}, 1.0),
        (429, {"x_ratelimit_remaining": "0", "x_ratelimit_reset": "1"}, 1.0),
    ],
)
def test_too_many_requests(
    place: SmallPlace, status: int, headers: dict[str, str], wait: float
) -> None:
    """The forge says, in one of several ways, until when it accepts no requests. Until then the
    client sends none."""
    place.small.fail(status, **headers)
    found = error_of(place)
    assert isinstance(found, ForgeUnavailable) and wait - 2900 < found.retry_s <= wait
    asked = len(place.small.requests)
    again = error_of(place)
    assert isinstance(again, ForgeUnavailable) and 0 < again.retry_s <= wait
    assert len(place.small.requests) == asked


def test_a_secondary_limit_by_its_words(place: SmallPlace) -> None:
    """GitHub's answer about a secondary limit may have no header. Its message is enough to
    recognize the limit. Other answers with 403 are not a limit."""
    place.small.fail(
        403, body=b'{"message": "You have exceeded a secondary rate limit. Please wait"}'
    )
    assert isinstance(error_of(place), ForgeUnavailable)


@pytest.mark.parametrize(
    "body",
    [
        b"<html>Sign in</html>", b"", b"[]", b"null", b"1", b'{"a": NaN}', b'{"a": 1, "a": 2}', b"[" * 5000, b'{"x": ' * 5000,
        b"\xff\xfe", b'{"number": ' + b"9" * 6000 + b"}",
    ],
)  # fmt: skip
def test_an_answer_that_is_none(place: SmallPlace, body: bytes) -> None:
    """An answer that is not the expected kind of JSON is an error, and the request is repeated
    later."""
    place.small.fail(200, body=body)
    assert isinstance(error_of(place), ForgeUnavailable)


def test_an_object_of_nonsense(place: SmallPlace) -> None:
    """An object whose fields all have wrong types is read without an error."""
    place.small.fail(
        200,
        body=json.dumps(
            {"number": "1", "title": [], "user": 5, "labels": {"a": 1}, "created_at": 7, "id": -1}
        ).encode(),
    )
    found = place.forge.issue(REF)
    assert (found.title, found.author, found.labels, found.created, found.open) == (
        "",
        "",
        (),
        0,
        False,
    )


def test_a_list_of_nonsense(place: SmallPlace) -> None:
    """A list of items that are not objects is read without an error."""
    place.small.fail(200, body=b'[null, 1, "x", [], {}]')
    assert all(each.text == "" for each in place.forge.comments(REF))


def test_too_much_is_not_read(place: SmallPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that exceeds the limit is refused while it arrives."""
    monkeypatch.setattr(http, "ANSWER_MOST", 1000)
    place.small.fail(200, body=b"[" + b" " * 5000 + b"]")
    assert isinstance(error_of(place), ForgeRefused)


def test_a_compressed_answer_is_refused(place: SmallPlace) -> None:
    """A compressed answer is refused, because a small body can unpack to a very large one."""
    place.small.fail(200, body=b"\x1f\x8b", content_encoding="gzip")
    assert isinstance(error_of(place), ForgeUnavailable)


def test_endless_pages_end(place: SmallPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a forge always names a next page, no more pages than the limit are requested, and the part
    that was read does not count as the list."""
    monkeypatch.setattr(http, "PAGES_MOST", 3)
    place.small.fail(
        200, times=10, body=b"[{}]", link='<https://elsewhere.invalid/?page=2>; rel="next"'
    )
    with pytest.raises(ForgeRefused, match="more than 3 pages"):
        place.forge.open_issues(REPOSITORY, label="")
    assert len(place.small.faults) == 7


def test_a_pull_request_is_sought_among_the_newest(
    place: SmallPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A repository with more pull requests than are read counts as one without a pull request for
    the branch."""
    monkeypatch.setattr(gitea_client, "NEWEST_MOST", 3)
    body = json.dumps([{"number": 9, "head": {"ref": "other"}}] * 2).encode()
    place.small.fail(
        200, times=10, body=body, link='<https://elsewhere.invalid/?page=2>; rel="next"'
    )
    assert place.forge.find_pull(REPOSITORY, "perdure/one") is None
    assert len(place.small.faults) == 6


@pytest.mark.parametrize(
    "location",
    ["http://127.0.0.2:1/x", "https://{host}/x", "//evil.example/x", "file:///etc/passwd", ""],
)
def test_no_other_host_is_followed(place: SmallPlace, location: str) -> None:
    """A redirect to another host, port or scheme is not followed, and the token is not sent there."""
    place.small.fail(302, location=location.format(host=f"127.0.0.1:{place.small.port}"))
    assert isinstance(error_of(place), ForgeRefused)
    assert not place.small.requests


def test_a_redirect_within_the_host(place: SmallPlace) -> None:
    """A read follows a redirect within the host (a renamed repository), a write does not. A loop of
    redirects ends."""
    place.small.fail(301, location=f"/api/v1/repos/{REPOSITORY}/issues/1")
    assert place.forge.issue(REF).title == "One"
    place.small.fail(307, location=f"/api/v1/repos/{REPOSITORY}/issues/1/comments")
    with pytest.raises(ForgeRefused, match="redirects a POST"):
        place.forge.comment(REF, "x")
    place.small.fail(302, times=10, location="/api/v1/user")
    assert isinstance(error_of(place), ForgeRefused)


def test_nobody_listens() -> None:
    """If nothing listens at the forge's address, each request gives the error that the forge is
    unavailable. The error says when to retry."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        down = connect(
            Forge.GITEA, f"http://127.0.0.1:{taken.getsockname()[1]}", ForgeToken("x", held="t0ken")
        )
        for _ in range(3):
            with pytest.raises(ForgeUnavailable, match="does not answer") as raised:
                down.whoami()
            assert raised.value.retry_s == http.RETRY_S
        down.close()


def test_a_connection_that_breaks(place: SmallPlace) -> None:
    """If the connection is closed without an answer, the forge is unavailable. For a new pull
    request, the forge is then asked whether the request was carried out, and the pull request is
    found."""
    place.branch("perdure/dev-3")
    place.small.fail(break_off=True)
    assert isinstance(error_of(place), ForgeUnavailable)
    given = {"head": "perdure/dev-3", "base": "main", "title": "Once", "text": ""}
    place.small.fail(break_off=True, done=True)
    place.small.faults[:0] = [Fault(200, body=b"[]"), Fault(200, body=b"[]")]
    with pytest.raises(ForgeUnavailable):
        place.forge.open_pull(REPOSITORY, **given)
    assert place.forge.open_pull(REPOSITORY, **given).title == "Once"
    assert sum(bool(each.head) for each in place.repo.items.values()) == 1


def test_a_forge_that_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """If a forge accepts the connection but never answers, or sends only a byte now and then, the
    request is given up."""
    monkeypatch.setattr(http, "CALL_S", 0.5)
    over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def slowly() -> None:
            end, _ = server.accept()
            with end:
                end.recv(4096)
                end.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n")
                while not over.wait(0.05):
                    try:
                        end.sendall(b" ")
                    except OSError:
                        return

        thread = threading.Thread(target=slowly)
        thread.start()
        slow = connect(
            Forge.GITEA,
            f"http://127.0.0.1:{server.getsockname()[1]}",
            ForgeToken("x", held="t0ken"),
        )
        try:
            with pytest.raises(ForgeUnavailable, match="took longer"):
                slow.whoami()
        finally:
            over.set()
            thread.join()
            slow.close()
        monkeypatch.setattr(http, "SILENT_S", 0.2)
        silent = connect(
            Forge.GITEA,
            f"http://127.0.0.1:{server.getsockname()[1]}",
            ForgeToken("x", held="t0ken"),
        )
        with pytest.raises(ForgeUnavailable, match="does not answer"):
            silent.whoami()
        silent.close()


def test_headers_that_never_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A forge that sends headers without end is disconnected. Otherwise this test would not end."""
    monkeypatch.setattr(http, "CALL_S", 0.5)
    cut = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def slowly() -> None:
            end, _ = server.accept()
            with end:
                end.recv(4096)
                end.sendall(b"HTTP/1.1 200 OK\r\n")
                end.settimeout(0.05)
                while not cut.is_set():
                    try:
                        end.sendall(b"x: y\r\n")
                        if not end.recv(1):
                            cut.set()
                    except TimeoutError:
                        continue
                    except OSError:
                        cut.set()

        thread = threading.Thread(target=slowly)
        thread.start()
        slow = connect(
            Forge.GITEA,
            f"http://127.0.0.1:{server.getsockname()[1]}",
            ForgeToken("x", held="t0ken"),
        )
        with pytest.raises(ForgeUnavailable, match="took longer"):
            slow.whoami()
        thread.join()
        slow.close()


def test_a_token_is_read_anew(place: SmallPlace, tmp_path: Path) -> None:
    """If the token's file is replaced, the next request uses the new token. If the file is missing,
    empty or invalid, the error names its path."""
    file = tmp_path / "token"
    client = connect(Forge.GITEA, place.small.url, ForgeToken(f"the file {file}", file))
    for wrong in (None, b"", b"\n", b"two words", "tökèn".encode(), b"x" * 5000, b"a\nb"):
        if wrong is not None:
            file.write_bytes(wrong)
        with pytest.raises(ForgeDenied, match=str(file)):
            client.whoami()
    file.write_text("expired\n")
    with pytest.raises(ForgeDenied, match="expired or was revoked"):
        client.whoami()
    file.write_text(TOKENS["dev-bot"] + "\n")
    assert client.whoami() == "dev-bot"
    client.close()


def test_https_is_checked(place: SmallPlace) -> None:
    """An https address whose server does not use TLS gives an error."""
    client = connect(
        Forge.GITEA, place.small.url.replace("http:", "https:"), ForgeToken("x", held="t0ken")
    )
    with pytest.raises(ForgeUnavailable, match="does not answer"):
        client.whoami()
    client.close()


TABLE = {
    "tea": {
        "forge": "gitea",
        "secret_file": "/s",
        "url": "https://git.example.com/tea/",
        "token_env": "TEA",
    }
}
RULE = {"dev": {"agent": "claude", "clone": "/srv/{repository}"}}


def test_the_configuration_of_a_forge() -> None:
    """The address and the token of a source are read from the configuration. GitHub and GitLab have
    default addresses."""
    (tea,) = sources(TABLE)
    assert (tea.url, tea.token_env, tea.token_file) == ("https://git.example.com/tea", "TEA", "")
    (hub,) = sources({"hub": {"forge": "github", "secret_file": "/s", "token_file": "/t"}})
    assert hub.url == "https://github.com" and api_of(hub.url) == "https://api.github.com"
    assert api_of("https://hub.example.com") == "https://hub.example.com/api/v3"
    assert sources(
        {
            "local": {
                "forge": "gitea",
                "secret_file": "/s",
                "url": "http://127.0.0.1:3000",
                "token_file": "/t",
            }
        }
    )


def test_a_forge_without_its_address() -> None:
    """Only GitHub and GitLab have a default address."""
    with pytest.raises(ValueError, match="tea needs url, the address of its gitea"):
        sources({"tea": {"forge": "gitea", "secret_file": "/s", "token_file": "/t"}})


@pytest.mark.parametrize(
    "wrong",
    [
        {"url": "http://git.example.com"}, {"url": "https://user:pass@git.example.com"}, {"url": "https://git.example.com/?a=b"},
        {"url": "ftp://git.example.com"}, {"url": 5}, {"token_file": "relative"}, {"token_file": 5}, {"token_env": "A-B"},
        {"token_file": "/t", "token_env": "T"}, {"forge": None}, {"url": "https://"}, {"url": "http://127.0.0.1.example.com"},
        {"url": "http://localhost@evil.example"}, {"url": ""},
    ],
)  # fmt: skip
def test_a_wrong_configuration_of_a_forge(wrong: dict[str, object]) -> None:
    """An address that is not https, no token or more than one, and an unknown forge are errors of
    the configuration."""
    table = {
        key: value
        for key, value in {**TABLE["tea"], "token_env": "", **wrong}.items()
        if value is not None
    }
    if wrong != {"url": ""}:
        table = {key: value for key, value in table.items() if value != ""}
        if not {"token_file", "token_env"} & set(wrong):
            table["token_env"] = "TEA"
    else:
        table["token_env"] = "TEA"
    with pytest.raises(ValueError, match="tea"):
        sources({"tea": table})


def test_clients_of_a_configuration(place: SmallPlace, tmp_path: Path) -> None:
    """An agent uses its own token, else its source's. The variables with tokens are removed from
    the environment afterwards. Without a token there is no client."""
    (tmp_path / "own").write_text(TOKENS["cid"])
    tables = {
        "tea": {"forge": "gitea", "secret_file": "/s", "url": place.small.url, "token_env": "TEA"},
        "deaf": {"forge": "gitea", "secret_file": "/s", "url": place.small.url},
    }
    known = rules(
        {
            "dev": {**RULE["dev"], "authors": ["ada"]},
            "own": {**RULE["dev"], "sources": ["tea"], "token_file": f"{tmp_path}/own"},
        }
    )
    environ = {"TEA": TOKENS["dev-bot"], "KEPT": "x"}
    with forges(sources(tables), known, environ) as found:
        logins = {
            rule: api.whoami() for rule in ("", "dev", "own") if (api := found.of("tea", rule))
        }
        assert logins == {"": "dev-bot", "dev": "dev-bot", "own": "cid"}
        assert found.of("deaf", "dev") is None and found.of("none") is None
    assert environ == {"KEPT": "x"}


def test_clients_that_cannot_be(tmp_path: Path) -> None:
    """A missing token is an error before anything starts. So is a rule for everybody with write
    access if there is no token with which the forge can be asked."""
    (tea,) = sources(TABLE)
    with pytest.raises(ConfigError, match=r"webhooks.tea: .*the variable TEA is empty") as raised:
        forges([tea], rules(RULE), {})
    assert len(raised.value.problems) == 1, "what follows from it is not told as well"
    (deaf,) = sources({"deaf": {"forge": "gitea", "secret_file": "/s"}})
    with pytest.raises(
        ConfigError,
        match=r"agents.dev: it works for those who may write, and webhooks.deaf has no token",
    ):
        forges([deaf], rules(RULE), {})
    two = sources(
        {**TABLE, "hub": {"forge": "github", "secret_file": "/s"} | {"url": "https://github.com"}}
    )
    own = {**RULE["dev"], "token_env": "OWN", "authors": ["ada"]}
    with pytest.raises(
        ConfigError,
        match=r"agents.dev: its token would go to https://git.example.com/tea and https://github.com",
    ):
        forges(two, rules({"dev": own}), {"TEA": "t0ken", "OWN": "t0ken"})
    with forges(
        two, rules({"dev": {**own, "sources": ["tea"]}}), {"TEA": "t0ken", "OWN": "t0ken"}
    ) as found:
        assert found.of("tea", "dev") is not found.of("tea") and found.of("hub", "dev") is None
    for ca_file in (tmp_path / "none", tmp_path):
        with pytest.raises(ConfigError, match=r"ca_file: .* holds no certificates"):
            forges([tea], (), {"TEA": "t0ken"}, ca_file)
    assert token_at("", "", "", {}) is None


@pytest.mark.parametrize("address", ["http://[::1", "https://[x]/", f"/x?{'a=b&' * 60}"])
def test_an_address_that_is_none(place: SmallPlace, address: str) -> None:
    """If the next page or a redirect has an invalid address, the error has a type that callers
    handle."""
    place.small.fail(200, body=b"[{}]", link=f'<{address}>; rel="next"')
    with pytest.raises(PerdureError):
        place.forge.comments(REF)
    place.small.faults.clear()
    place.small.fail(302, times=4, location=address)
    assert isinstance(error_of(place), ForgeUnavailable | ForgeRefused)


def test_a_token_at_the_cut(place: SmallPlace) -> None:
    """The token is removed from the forge's message before the message is shortened, so that a part
    of the token cannot remain."""
    place.small.fail(422, body=json.dumps({"message": "x" * 295 + TOKENS["dev-bot"]}).encode())
    assert TOKENS["dev-bot"][:4] not in str(error_of(place))


def test_slow_pages_end(place: SmallPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    """A list is given up if all its pages together take too long, even if each page comes in
    time."""
    monkeypatch.setattr(http, "PAGES_S", -1.0)
    with pytest.raises(ForgeUnavailable, match="for one list"):
        place.forge.comments(REF)
