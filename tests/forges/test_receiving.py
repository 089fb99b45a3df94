"""A delivery's forge is recognized, and its signature is checked. Any defect causes a refusal and
nothing else."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perdure.forge.webhooks import DeliveryRefused, detect, parsed, read, receive, verify
from perdure.model.forge.deliveries import Arrived, Forge, IntentKind
from tests.forges import payloads as p
from tests.forges.payloads import SECRET, SIGNING

EVENTS = {
    Forge.GITHUB: ("issue_comment", "github", "issue_comment_created"),
    Forge.GITEA: ("issue_comment", "gitea", "issue_comment_created"),
    Forge.FORGEJO: ("issue_comment", "gitea", "issue_comment_created"),
    Forge.GITLAB: ("Note Hook", "gitlab", "issue_comment_create"),
}
WAYS = [(forge, SECRET) for forge in Forge] + [(Forge.GITLAB, SIGNING)]
way = pytest.mark.parametrize(
    ("forge", "secret"), WAYS, ids=lambda value: value if isinstance(value, Forge) else value[:5]
)


def sent(forge: Forge, secret: str) -> tuple[dict[str, str], bytes]:
    event, directory, name = EVENTS[forge]
    body = p.raw(directory, name)
    return p.headers(forge, event, body, secret, id="delivery-1"), body


def take(headers: dict[str, str], body: bytes, *secrets: str, **more: Any) -> Arrived:
    return receive(
        headers, body, source="shop", secrets=secrets or (SECRET,), now_s=time.time(), **more
    )


def status(headers: dict[str, str], body: bytes, *secrets: str, **more: Any) -> int:
    with pytest.raises(DeliveryRefused) as refused:
        take(headers, body, *secrets, **more)
    assert "\n" not in str(refused.value) and not any(
        secret in str(refused.value) for secret in (SECRET, SIGNING)
    )
    return refused.value.status


@way
def test_an_authentic_delivery(forge: Forge, secret: str) -> None:
    """Each forge is recognized by its headers, and each delivery has the id that the forge gave it.
    A delivery that is signed with the second active secret is authentic, too."""
    headers, body = sent(forge, secret)
    assert detect(headers) is forge
    found = take(headers, body, "another secret, the old one", secret, expected=forge)
    assert (found.forge, found.id, found.source, found.body) == (
        forge,
        "delivery-1",
        "shop",
        body.decode(),
    )
    assert found.reading.intent is not None and found.reading.intent.kind is IntentKind.COMMENTED


@way
def test_a_flipped_bit(forge: Forge, secret: str) -> None:
    """A body with a flipped bit or a missing part, or with another signature, is refused. GitLab's
    plain token does not protect the body, so only the token is changed there."""
    headers, body = sent(forge, secret)
    signed = not (forge is Forge.GITLAB and secret == SECRET)
    for at in range(0, len(body), 97) if signed else ():
        assert not verify(
            forge,
            headers,
            body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :],
            [secret],
            time.time(),
        )
    if signed:
        assert status(headers, body[:-1], secret) == status(headers, body + b" ", secret) == 401
    names = [name for name in headers if "signature" in name or "token" in name]
    assert (
        status({name: value for name, value in headers.items() if name not in names}, body, secret)
        == 401
    )
    for wrong in ("", "sha256=", "v1,", "\u00ff\u20ac", "0" * 64, "sha1=" + "0" * 40):
        assert status(headers | dict.fromkeys(names, wrong), body, secret) == 401


@way
def test_no_secret_no_trust(forge: Forge, secret: str) -> None:
    """Without a secret, or with an empty one, no delivery is authentic, even if it was signed with
    the empty secret."""
    event, directory, name = EVENTS[forge]
    body = p.raw(directory, name)
    empty = p.headers(forge, event, body, "")
    for secrets in ([], [""], [secret, ""]):
        assert not verify(forge, empty, body, secrets, time.time())


def test_the_order_of_detection() -> None:
    """Forgejo also sends Gitea's and GitHub's headers, and Gitea sends GitHub's. The most specific
    header decides which forge it is, and that forge's signature is checked."""
    headers, body = sent(Forge.FORGEJO, SECRET)
    assert detect(headers) is Forge.FORGEJO
    assert status(headers | {"x-forgejo-signature": ""}, body) == 401
    without = {name: value for name, value in headers.items() if "forgejo" not in name}
    assert detect(without) is Forge.GITEA
    assert status(without | {"x-gitea-signature": ""}, body) == 401
    assert (
        detect({name: value for name, value in without.items() if "gitea" not in name})
        is Forge.GITHUB
    )
    assert detect({"content-type": "application/json"}) is None
    assert status({"content-type": "application/json"}, body) == 400
    assert status(headers, body, expected=Forge.GITHUB) == 400


def test_standard_webhooks() -> None:
    """The signature of the specification's own example is accepted. A time that differs by five
    minutes, another id, and an unknown version are refused."""
    body = b'{"test": 2432232314}'
    headers = {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek", "webhook-timestamp": "1614265330",
        "webhook-signature": "v2,x v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }  # fmt: skip
    at = 1614265330.0
    assert verify(Forge.GITLAB, headers, body, [SIGNING], at + 299)
    assert not verify(Forge.GITLAB, headers, body, [SIGNING], at + 301)
    assert not verify(Forge.GITLAB, headers, body, [SIGNING], at - 301)
    assert not verify(Forge.GITLAB, headers | {"webhook-id": "msg_2"}, body, [SIGNING], at)
    assert not verify(
        Forge.GITLAB, headers | {"webhook-timestamp": "\u0661" * 10}, body, [SIGNING], at
    )
    assert not verify(
        Forge.GITLAB,
        headers | {"webhook-signature": "g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="},
        body,
        [SIGNING],
        at,
    )
    assert not verify(Forge.GITLAB, headers, body, ["whsec_not base64"], at)
    assert not verify(Forge.GITLAB, {"x-gitlab-token": SIGNING}, body, [SIGNING], at), (
        "the signing secret is no token"
    )


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"content-type": "application/x-www-form-urlencoded"}, 415),
        ({"content-type": "text/plain"}, 415),
        ({"content-type": ""}, 415),
        ({"content-encoding": "gzip"}, 415),
    ],
)
def test_only_plain_json(change: dict[str, str], expected: int) -> None:
    """A form is refused, and the answer names the forge's setting to change. Any other body that is
    not plain JSON is refused, too."""
    headers, body = sent(Forge.GITEA, SECRET)
    assert status(headers | change, body) == expected
    assert (
        take(headers | {"content-type": "Application/JSON; charset=utf-8"}, body).id == "delivery-1"
    )


@pytest.mark.parametrize(
    "body",
    [
        b"", b"null", b"[]", b"7", b'"x"', b"{", b'{"a": NaN}', b'{"a": ' + b"9" * 5000 + b"}", b"\xff\xfe{}",
        b'{"a":' * 100_000 + b"1" + b"}" * 100_000, b'{"a":' * 80 + b"1" + b"}" * 80, b'{"a": "\x00"}', b"\xef\xbb\xbf{}", b"[" * 100_000,
    ],
    ids=range(14),
)  # fmt: skip
def test_authentic_nonsense(body: bytes) -> None:
    """A signed body that is not a JSON object is refused with 400, and causes no other error."""
    assert status(p.headers(Forge.GITHUB, "push", body), body) == 400


@pytest.mark.parametrize("forge", list(Forge))
def test_a_key_that_is_there_twice(forge: Forge) -> None:
    """A delivery with a duplicate key is accepted, and the last value counts. GitLab has sent such
    bodies, and disables a webhook after four refusals."""
    body = (
        b'{"object_kind": "note", "project": {"id": 1}, "object_kind": "push", "ref": '
        b'"refs/heads/main"}'
    )
    found = receive(
        p.headers(forge, "Push Hook", body),
        body,
        source="shop",
        secrets=(p.SECRET,),
        now_s=time.time(),
    )
    assert found.reading.intent is None and found.body == body.decode()
    assert parsed(body).name("object_kind") == "push"


def test_too_large() -> None:
    """A body of more than 25 MiB is not read."""
    body = b" " * (26 * 1024 * 1024)
    assert status(p.headers(Forge.GITHUB, "push", body), body) == 413


def test_a_delivery_without_an_id() -> None:
    """If the forge sends no id, or an implausible one, the digest of the body is the id."""
    headers, body = sent(Forge.GITLAB, SECRET)
    bare = {
        name: value
        for name, value in headers.items()
        if name not in ("idempotency-key", "x-gitlab-event-uuid")
    }
    for each in (
        bare,
        bare | {"idempotency-key": "two words"},
        bare | {"idempotency-key": "x" * 201},
        bare | {"idempotency-key": "\u20ac"},
    ):
        found = take(each, body)
        assert found.id == f"sha256:{found.sha256}"


def test_hostile_fields() -> None:
    """Text from the forge is limited in length and valid. An address with a password, a path with
    `..`, and an invalid number are dropped."""
    body = p.recorded("github", "issue_comment_created")
    body["comment"] |= {"body": "x\x00\ud800" + "y" * 100_000, "html_url": "javascript:alert(1)"}
    body["issue"] |= {"title": "a\nb\x1b[31m" + "c" * 1000, "number": 1}
    body["repository"]["clone_url"] = "https://user:word@host/x.git"
    body["sender"]["login"] = {"not": "a text"}
    intent = read(Forge.GITHUB, "issue_comment", parsed(json.dumps(body).encode())).intent
    assert intent is not None
    assert intent.text.startswith("x\ufffd?y") and len(intent.text) < 60_100
    assert intent.text.endswith("y\n[cut here: 40003 more characters]")
    assert (intent.url, intent.clone_url, intent.author) == (
        p.recorded("github", "issue_comment_created")["issue"]["html_url"],
        "",
        "",
    )
    assert intent.title.startswith("a b [31mc") and len(intent.title) <= 255
    for name in ("../..", "a/../b", "a", "a b/c", "/a/b", "a/b\x00", "", 7, None):
        body["repository"]["full_name"] = name
        assert read(Forge.GITHUB, "issue_comment", parsed(json.dumps(body).encode())).intent is None
    body["repository"]["full_name"] = "a/b"
    for number in (-1, 0, True, 1.5, "1", 2**60, None, []):
        body["issue"]["number"] = number
        assert read(Forge.GITHUB, "issue_comment", parsed(json.dumps(body).encode())).intent is None


scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20)
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)
BODIES = [
    (forge, event, body)
    for forge, (event, directory, name) in EVENTS.items()
    for body in [p.raw(directory, name)]
]
BODIES += [
    (Forge.GITHUB, "check_run", p.raw("github", "check_run_completed")),
    (
        Forge.GITEA,
        "pull_request_review_rejected",
        p.derived("gitea", "pull_request_opened", p.gitea_rejected),
    ),
    (Forge.GITLAB, "Issue Hook", p.derived("gitlab", "issue_labeled", p.gitlab_assigned)),
]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_payload_raises(data: st.DataObject) -> None:
    """A real body with any value in any place is read without an error, and the result is within
    its limits."""
    forge, event, body = data.draw(st.sampled_from(BODIES))
    payload = json.loads(body)
    for _ in range(data.draw(st.integers(1, 4))):
        place = payload
        while True:
            keys = [*place] if isinstance(place, dict) else [*range(len(place))]
            if not keys:
                break
            key = data.draw(st.sampled_from(keys))
            if isinstance(place[key], dict | list) and place[key] and data.draw(st.booleans()):
                place = place[key]
                continue
            place[key] = data.draw(values)
            break
    intent = read(forge, event, parsed(json.dumps(payload).encode())).intent
    if intent is not None:
        assert (
            len(intent.text) <= 60_000
            and len(intent.title) <= 255
            and 0 <= intent.number < 2**53
            and "/" in intent.repository
        )
        for text in (
            intent.text,
            intent.title,
            intent.author,
            intent.branch,
            *intent.labels,
            *intent.whom,
        ):
            text.encode()


@settings(max_examples=150, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["content-type", "x-github-event", "x-hub-signature-256", "x-gitea-event", "x-gitea-signature", "x-gitlab-event",
                         "x-gitlab-token", "webhook-id", "webhook-timestamp", "webhook-signature", "x-forgejo-event"]),
        st.text(max_size=30) | st.sampled_from(["application/json", "push", "v1,AAAA", "1614265330"]),
    ),
    st.binary(max_size=60),
)  # fmt: skip
def test_nobody_gets_in_without_the_secret(headers: dict[str, str], body: bytes) -> None:
    """A sender without the secret is refused, whatever the headers and the body are. There is no
    other error."""
    assert status(headers | {"content-type": "application/json"}, body) in (400, 401)
