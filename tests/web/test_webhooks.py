"""Webhooks to a real `perdure serve`: stored exactly once, or refused with a sentence."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

import pytest

from perdure.model.forge.deliveries import DeliveryState, Forge, IntentKind
from tests.forges import payloads
from tests.forges.payloads import SECRET, SIGNING
from tests.web.serving import EVENTS, Serving, answered, command_line


@pytest.mark.parametrize("source", EVENTS)
def test_a_delivery_of_each_forge(serving: Serving, source: str) -> None:
    """A delivery that is answered with 202 is stored in the database, parsed. If it is sent again,
    even with another id, it is recognized and not stored twice."""
    forge = EVENTS[source][0]
    status, said = serving.deliver(source, id=f"first-{source}")
    assert (status, said["new"], said["of_interest"]) == (202, True, True)
    (kept,) = [each for each in serving.inbox() if each.id == f"first-{source}"]
    assert (kept.number, kept.source, kept.forge, kept.state) == (
        said["delivery"],
        source,
        forge,
        DeliveryState.RECEIVED,
    )
    assert kept.intent is not None and kept.intent.kind is IntentKind.COMMENTED
    for again in (f"first-{source}", f"second-{source}"):
        assert serving.deliver(source, id=again) == (
            202,
            {"delivery": kept.number, "new": False, "of_interest": True},
        )
    assert [(each.number, each.times) for each in serving.inbox() if each.source == source] == [
        (kept.number, 3)
    ]


def test_what_is_of_no_interest(serving: Serving) -> None:
    """An authentic event without consequences gets the usual answer, and is in the inbox with the
    reason why it is ignored."""
    body = payloads.raw("github", "ping")
    status, said = serving.send("/webhooks/hub", body, payloads.headers(Forge.GITHUB, "ping", body))
    assert (status, said["of_interest"]) == (202, False)
    kept = serving.inbox()[-1]
    assert (kept.state, kept.reason) == (DeliveryState.IGNORED, "no action for ping")


def test_what_is_refused(serving: Serving) -> None:
    """A request that is not authentic, not JSON, or for a wrong address, method or host is refused
    with one sentence, and nothing is stored."""
    before = len(serving.inbox())
    body = payloads.raw("github", "push")
    good = payloads.headers(Forge.GITHUB, "push", body)
    form = good | {"content-type": "application/x-www-form-urlencoded"}
    nonsense = b"[1]"
    cases = [
        (401, "/webhooks/hub", body[:-2], good, "POST"),
        (401, "/webhooks/hub", bytes([body[0] ^ 4]) + body[1:], good, "POST"),
        (
            401,
            "/webhooks/hub",
            body,
            payloads.headers(Forge.GITHUB, "push", body, SECRET + "x"),
            "POST",
        ),
        (
            401,
            "/webhooks/hub",
            body,
            {key: good[key] for key in good if "signature" not in key},
            "POST",
        ),
        (
            401,
            "/webhooks/tea",
            body,
            payloads.headers(Forge.GITEA, "push", body) | {"x-gitea-signature": ""},
            "POST",
        ),
        (400, "/webhooks/tea", body, good, "POST"),
        (400, "/webhooks/hub", nonsense, payloads.headers(Forge.GITHUB, "push", nonsense), "POST"),
        (415, "/webhooks/hub", body, form, "POST"),
        (415, "/webhooks/hub", body, good | {"content-encoding": "gzip"}, "POST"),
        (404, "/webhooks/none", body, good, "POST"),
        (404, "/webhook/hub", body, good, "POST"),
        (404, "/webhooks", body, good, "POST"),
        (401, "/webhooks", body, {"content-type": "application/json"}, "POST"),
        (401, "/webhooks", body, good | {"authorization": "Bearer prd_wrong"}, "POST"),
        (401, "/", b"", {}, "GET"),
        (405, "/webhooks/hub", b"", {}, "GET"),
        (405, "/healthz", b"", {}, "POST"),
        (421, "/webhooks/hub", body, good | {"host": "evil.example.com"}, "POST"),
        (421, "/readyz", b"", {"host": "127.0.0.1.evil.example.com"}, "GET"),
    ]
    for expected, path, sent, headers, method in cases:
        status, said = serving.send(path, sent, headers, method)
        assert status == expected, (expected, said)
        sentence = said["error"] if "error" in said else said["detail"]
        assert sentence and "\n" not in sentence and SECRET not in sentence
    assert "application/json" in serving.send("/webhooks/hub", body, form)[1]["error"]
    assert len(serving.inbox()) == before


def test_names_that_are_allowed(serving: Serving) -> None:
    """The names of loopback and those in the setting are accepted as hosts, with any port and in
    any case."""
    for host in (
        "localhost",
        "LOCALHOST:1234",
        "[::1]:80",
        "hooks.example.com",
        "hooks.example.com:443",
    ):
        assert serving.send("/healthz", b"", {"host": host}, "GET") == (200, {"ok": True})
    assert serving.send("/readyz", b"", {}, "GET") == (200, {"ready": True, "problems": []})


def test_two_host_headers(serving: Serving) -> None:
    """A request with two Host headers is refused, because a proxy in front of perdure may have
    checked the other one."""
    with serving.raw() as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nHost: evil\r\n\r\n")
        assert answered(connection).startswith((b"HTTP/1.1 421", b"HTTP/1.1 400"))


def test_a_body_that_is_too_large(serving: Serving) -> None:
    """A body whose length is over the limit is refused before it is sent. A body without a length
    is refused as soon as it exceeds 25 MiB. The server continues."""
    before = len(serving.inbox())
    head = b"POST /webhooks/hub HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with serving.raw() as connection:
        connection.sendall(head + b"Content-Length: 27262976\r\n\r\n")
        assert answered(connection).startswith(b"HTTP/1.1 413")
    piece = b"a" * 1024 * 1024
    with serving.raw() as connection:
        connection.sendall(head + b"Transfer-Encoding: chunked\r\n\r\n")
        for _ in range(25):
            connection.sendall(b"100000\r\n" + piece + b"\r\n")
        connection.sendall(b"1\r\na")
        assert answered(connection).startswith(b"HTTP/1.1 413")
    assert serving.deliver("hub", id="after a flood")[0] == 202
    assert len(serving.inbox()) <= before + 1


def test_a_sender_that_goes_away(serving: Serving) -> None:
    """A sender that disconnects in the middle of a body leaves nothing in the inbox, and the server
    continues."""
    before = [each.number for each in serving.inbox()]
    with serving.raw() as connection:
        connection.sendall(
            b"POST /webhooks/hub HTTP/1.1\r\nHost: localhost\r\nContent-Type: "
            b"application/json\r\nContent-Length: 99\r\n\r\n{"
        )
    with serving.raw() as connection:
        connection.sendall(b"\x16\x03\x01 no http at all\r\n\r\n")
        assert b" 400 " in answered(connection)
    assert serving.send("/healthz", b"", {}, "GET")[0] == 200
    assert [each.number for each in serving.inbox()] == before


def test_a_storm_of_redeliveries(serving: Serving) -> None:
    """Six senders send each of sixty deliveries four times, in any order, a third of the time with
    a new id. Exactly sixty are stored."""
    before = len(serving.inbox())
    sends = [number for number in range(1, 61) for _ in range(4)]
    random.Random(6).shuffle(sends)
    ids = random.Random(7)
    wishes = [
        (number, f"storm-{number}" if ids.random() < 0.7 else f"other-{at}")
        for at, number in enumerate(sends)
    ]
    with ThreadPoolExecutor(6) as senders:
        answers = list(
            senders.map(
                lambda wish: serving.deliver("tea", number=1000 + wish[0], id=wish[1]), wishes
            )
        )
    assert {status for status, _ in answers} == {202}
    assert sum(said["new"] for _, said in answers) == 60
    kept = serving.inbox()[before:]
    assert len(kept) == 60 and sum(each.times for each in kept) == 240


def test_secrets_stay_secret(serving: Serving) -> None:
    """The secrets are in no argument of a process, no log, no answer and no file of the state."""
    assert serving.process is not None
    serving.deliver("signed", id="for the secrets")
    places = [serving.home / "log", *(path for path in serving.state.rglob("*") if path.is_file())]
    for found in [*(path.read_bytes() for path in places), command_line(serving.process.pid)]:
        assert (
            SECRET.encode() not in found
            and SIGNING.encode() not in found
            and SIGNING[6:].encode() not in found
        )


def test_no_agent_is_configured(serving: Serving) -> None:
    """Without a rule, deliveries stay received, and the inbox says why."""
    serving.deliver("hub", id="unattended")
    said = serving.perdure("inbox")
    assert said.returncode == 0 and said.stdout.rstrip().endswith(
        "No [agents.NAME] is configured, so nothing works on what is received."
    )
    assert "configured" not in serving.perdure("inbox", "--state", "failed").stdout
