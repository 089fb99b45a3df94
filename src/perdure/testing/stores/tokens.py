"""Tests of tokens, and of sign-ins in a browser. Both are found by a digest, and are invalid once
they are removed or have expired."""

from __future__ import annotations

from hashlib import sha256

import pytest

from perdure.errors import Conflict, NotFound
from perdure.model import Token, TokenScope
from perdure.testing.stores.samples import Store

LONG_S = 86_400.0


def digest(secret: str) -> str:
    return sha256(secret.encode()).hexdigest()


def token(name: str, scope: TokenScope = TokenScope.READ, expires: int = 0) -> Token:
    """Return a token to pass to `add_token`. The store sets its creation time."""
    return Token(name=name, scope=scope, created=0, expires=expires)


class TokenSuite:
    """Tests of `add_token`, `tokens`, `token_of`, `use_token`, `remove_token`, `sign_in`,
    `sign_in_person`, `signed_in`, `sign_out` and `sign_out_person`."""

    def test_a_token_is_known_by_its_digest(self, store: Store) -> None:
        """A token is found only by the digest of its secret. Tokens are listed in the order of
        their creation."""
        first = store.add_token(token("ci", TokenScope.DISPATCH), digest("one"))
        second = store.add_token(token("board"), digest("two"))
        assert first.created > 0 and first.scope is TokenScope.DISPATCH
        assert list(store.tokens()) == [first, second]
        assert store.token_of(digest("one")) == first
        assert (
            store.token_of("one") is None
            and store.token_of(digest("ci")) is None
            and store.token_of("") is None
        )

    def test_a_token_keeps_its_limits(self, store: Store) -> None:
        """A token keeps the limits with which it was added. A sign-in with the token has the same
        limits."""
        wanted = Token(
            name="team", scope=TokenScope.ANSWER, created=0, repositories=("shop/*", "a/b"),
            labels=("team=red", "kind=*"),
        )  # fmt: skip
        made = store.add_token(wanted, digest("one"))
        store.sign_in("team", digest("cookie"), LONG_S)
        assert (made.repositories, made.labels) == (wanted.repositories, wanted.labels)
        assert list(store.tokens()) == [made] == [store.token_of(digest("one"))]
        assert store.signed_in(digest("cookie")) == made

    def test_a_token_has_its_name_to_itself(self, store: Store) -> None:
        """A second token with the same name or secret is refused. The first token is not
        changed."""
        first = store.add_token(token("ci"), digest("one"))
        for name, secret in (("ci", "two"), ("other", "one")):
            with pytest.raises(Conflict):
                store.add_token(token(name, TokenScope.ADMIN), digest(secret))
        assert list(store.tokens()) == [first] and store.token_of(digest("two")) is None

    def test_a_token_expires(self, store: Store) -> None:
        """After a token has expired, it is still listed. Neither the token nor a sign-in with it is
        valid any more."""
        now = store.now()
        store.add_token(token("old", expires=now - 1), digest("old"))
        store.add_token(token("new", expires=now + 3_600_000), digest("new"))
        store.sign_in("old", digest("cookie"), LONG_S)
        assert store.token_of(digest("old")) is None and store.signed_in(digest("cookie")) is None
        assert store.token_of(digest("new")) is not None and len(store.tokens()) == 2

    def test_a_token_is_taken_away(self, store: Store) -> None:
        """After a token was removed, neither the token nor a sign-in with it is valid, even if a
        new token gets the same name. Removing a token that does not exist raises NotFound."""
        store.add_token(token("ci"), digest("one"))
        store.sign_in("ci", digest("cookie"), LONG_S)
        store.remove_token("ci")
        store.add_token(token("ci"), digest("two"))
        assert store.token_of(digest("one")) is None and store.signed_in(digest("cookie")) is None
        store.remove_token("ci")
        with pytest.raises(NotFound):
            store.remove_token("ci")

    def test_a_sign_in_lasts(self, store: Store) -> None:
        """A sign-in is valid until it expires or the person signs out. Other sign-ins with the same
        token are not affected."""
        made = store.add_token(token("ci", TokenScope.ADMIN), digest("one"))
        for cookie in ("a", "b"):
            store.sign_in("ci", digest(cookie), LONG_S)
        store.sign_in("ci", digest("late"), -1.0)
        assert store.signed_in(digest("a")) == made and store.signed_in(digest("late")) is None
        store.sign_out(digest("a"))
        store.sign_out(digest("a"))
        assert store.signed_in(digest("a")) is None and store.signed_in(digest("b")) == made
        assert store.token_of(digest("b")) is None, "a browser's secret is no token"

    def test_a_person_signs_in_without_a_token(self, store: Store) -> None:
        """A person can sign in without a token. The sign-in has the person's scope and limits. It
        ends when it expires, when the person signs out, or when all of the person's sign-ins are
        ended."""
        person = Token(
            name="ada@example.com", scope=TokenScope.ANSWER, created=0, repositories=("shop/*",),
            labels=("team=red",), kind="openid",
        )  # fmt: skip
        for cookie in ("a", "b", "c"):
            store.sign_in_person(person, digest(cookie), LONG_S)
        store.sign_in_person(person, digest("late"), -1.0)
        found = store.signed_in(digest("a"))
        assert found is not None and store.signed_in(digest("late")) is None
        assert (found.name, found.kind, found.scope) == (person.name, "openid", person.scope)
        assert (found.repositories, found.labels) == (person.repositories, person.labels)
        store.sign_out(digest("a"))
        assert store.signed_in(digest("a")) is None and store.tokens() == []
        assert store.sign_out_person("bob") == 0
        assert store.sign_out_person(person.name) >= 2 and store.signed_in(digest("b")) is None

    def test_a_use_is_written_down(self, store: Store) -> None:
        """The time at which a token is used is stored at most once an hour. Recording the use of an
        unknown token has no effect."""
        store.add_token(token("ci"), digest("one"))
        store.use_token("ci")
        used = store.tokens()[0].used
        store.use_token("ci")
        store.use_token("nobody")
        assert used > 0 and store.tokens()[0].used == used
