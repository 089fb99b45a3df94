"""Every recorded webhook, sent in many ways to a real store: again, in any order, with another id,
changed, shortened, compressed, and as a form."""

from __future__ import annotations

import gzip
import json
import random
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import urlencode

import pytest

from perdure import store as stores
from perdure.forge.webhooks import DeliveryRefused, receive
from perdure.model.forge.deliveries import Arrived, DeliveryState, Forge
from perdure.store.sql import SqlStore
from tests.forges import payloads
from tests.forges.payloads import RECORDED, SECRET, SIGNING

FORGES = {
    "github": (Forge.GITHUB,),
    "gitea": (Forge.GITEA, Forge.FORGEJO),
    "gitea-1.26": (Forge.GITEA, Forge.FORGEJO),
    "gitlab": (Forge.GITLAB,),
}
WAYS = [
    (forge, secret, path)
    for path in sorted(RECORDED.glob("*/*.json"))
    for forge in FORGES[path.parent.name]
    for secret in ((SECRET, SIGNING) if forge is Forge.GITLAB else (SECRET,))
]
OTHER = {SECRET: f"{SECRET}?", SIGNING: SIGNING.replace("Mf", "Nf")}
YEAR_MS = 365 * 86_400_000


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqlStore]:
    with closing(stores.open(tmp_path / "perdure.db")) as found:
        yield found


def take(forge: Forge, secret: str, body: bytes, *, id: str = "", **change: str) -> Arrived:
    """Receive a body as the server does, with one source for each forge and secret."""
    headers = payloads.headers(forge, "push", body, secret, id=id) | change
    return receive(
        headers,
        body,
        source=f"{forge}-{secret[:5].strip()}",
        secrets=(SECRET, SIGNING),
        now_s=time.time(),
        expected=forge,
    )


def test_sent_again_in_any_order(store: SqlStore) -> None:
    """Each delivery is sent three times, out of order, some at once and some under new ids. Each is
    stored once, and every copy is counted. All answers for one delivery have the same number. A
    year later it is still recognized, although its body was deleted."""
    chance = random.Random(11)
    sends = [
        (at, f"id-{at}" if again % 2 else f"id-{at}-{again}")
        for at in range(len(WAYS))
        for again in range(3)
    ]
    chance.shuffle(sends)
    numbers: dict[int, set[int]] = {}
    new: Counter[int] = Counter()
    while sends:
        together = [sends.pop() for _ in range(min(len(sends), chance.randint(1, 40)))]
        arrived = [
            take(*WAYS[at][:2], WAYS[at][2].read_bytes(), id=named) for at, named in together
        ]
        for (at, _), accepted in zip(together, store.accept(arrived), strict=True):
            numbers.setdefault(at, set()).add(accepted.number)
            new[at] += accepted.new
    kept = store.inbox(limit=10_000)
    assert len(kept) == len(WAYS) and sum(each.times for each in kept) == 3 * len(WAYS)
    assert {len(found) for found in numbers.values()} == {1} and set(new.values()) == {1}
    for each in kept:
        if each.state is DeliveryState.RECEIVED:
            store.settle_delivery(each.number, DeliveryState.HANDLED, "done")
    store.thin_inbox(store.now() + 1, store.now() - YEAR_MS)
    late = store.accept(
        [take(forge, secret, path.read_bytes(), id="a new one") for forge, secret, path in WAYS[:1]]
    )
    assert not any(accepted.new for accepted in late)


@pytest.mark.parametrize(
    ("forge", "secret", "path"),
    WAYS,
    ids=lambda value: value.stem if isinstance(value, Path) else str(value)[:6],
)
def test_changed_on_the_way(forge: Forge, secret: str, path: Path) -> None:
    """A body with a flipped bit, a part missing or a byte more, and one with another secret, gets
    401. A compressed body, a form, and plain text get 415. No other error occurs, and no answer has
    any part of the secret or the body."""
    body = path.read_bytes()
    headers = payloads.headers(forge, "push", body, secret)
    at = random.Random(path.stem).randrange(len(body))
    signed = not (forge is Forge.GITLAB and secret == SECRET)
    changed = [
        body[:at] + bytes([body[at] ^ 4]) + body[at + 1 :],
        body[:-1],
        body[: len(body) // 2],
        body + b"\n",
        b"",
    ]
    cases = [(each, headers, 401) for each in changed if signed]
    cases += [
        (body, payloads.headers(forge, "push", body, OTHER[secret]), 401),
        (gzip.compress(body), headers | {"content-encoding": "gzip"}, 415),
        (
            urlencode({"payload": body.decode()}).encode(),
            headers | {"content-type": "application/x-www-form-urlencoded"},
            415,
        ),
        (body, headers | {"content-type": "text/plain"}, 415),
    ]
    for sent, with_headers, status in cases:
        with pytest.raises(DeliveryRefused) as refused:
            receive(
                with_headers,
                sent,
                source="shop",
                secrets=(SECRET, SIGNING),
                now_s=time.time(),
                expected=forge,
            )
        assert (
            refused.value.status,
            SECRET in str(refused.value),
            SIGNING in str(refused.value),
        ) == (status, False, False)


@pytest.mark.parametrize(
    "text",
    [
        "\ud800",
        "a\udfff\ud800b",
        "\x00",
        "\u202e\u2066",
        "\x1b]0;x\x07",
        "'; DROP TABLE inbox; --",
        "\U0010ffff",
    ],
)
def test_texts_that_break_stores(store: SqlStore, text: str) -> None:
    """A delivery is stored and read back with half characters, NUL, direction marks, escapes and
    quotes in each of its texts."""
    for directory, name in (
        ("github", "issue_comment_created"),
        ("gitlab", "issue_comment_create"),
        ("gitea", "issue_comment_created"),
    ):
        forge = FORGES[directory][0]
        body = json.dumps(_with(text, payloads.recorded(directory, name))).encode()
        (accepted,) = store.accept([take(forge, SECRET, body, id=f"it-{directory}")])
        found, kept = store.delivery(str(accepted.number))
        assert (
            accepted.new
            and kept.encode() == body
            and (found.forge, found.id) == (forge, f"it-{directory}")
        )


def _with(text: str, value: object) -> object:
    """Return the body with the text added to every string that contains a space."""
    if isinstance(value, dict):
        return {key: _with(text, each) for key, each in value.items()}
    if isinstance(value, list):
        return [_with(text, each) for each in value]
    return f"{value}{text}" if isinstance(value, str) and " " in value else value
