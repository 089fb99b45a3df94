"""Tokens in SQL: `perdure.protocols.TokenStore`. This module gets only digests of tokens and
sign-ins, never their secrets."""

from __future__ import annotations

import json
from collections.abc import Sequence

from msgspec.structs import replace

from perdure.errors import Conflict, NotFound
from perdure.host.actors import actor
from perdure.model import Token, TokenScope
from perdure.store.notices import StoredDevices
from perdure.store.rows import Row

USED_EVERY_MS = 3_600_000
"""Minimum time in milliseconds between two writes that record the use of a token. Most requests
therefore cause no write."""


class StoredTokens(StoredDevices):
    """Adds the methods of `TokenStore` to the store."""

    def add_token(self, token: Token, sha256: str) -> Token:
        with self._write() as write:
            row = write.one(
                "add_token",
                name=token.name,
                sha256=sha256,
                scope=token.scope.value,
                expires=token.expires,
                repositories=json.dumps(token.repositories),
                labels=json.dumps(token.labels),
                now=write.now,
            )
            if row is None:
                raise Conflict(
                    f"A token named {token.name!r} already exists",
                    f"perdure token rm {token.name}, or choose another name",
                )
            # Remove sign-ins and devices of an earlier token with this name. Such entries exist if
            # they were made at the moment when that token was removed.
            write.do("sign_out_token", token=token.name)
            write.all("forget_devices_of", person=actor("token", token.name))
            write.audit_action("token_added", _named(token))
            return _token_of(row)

    def tokens(self) -> Sequence[Token]:
        return list(map(_token_of, self._rows("tokens")))

    def token_of(self, sha256: str) -> Token | None:
        return _first(self._rows("token_of", sha256=sha256, now=self.now()))

    def use_token(self, name: str) -> None:
        with self._write() as write:
            write.do("use_token", name=name, now=write.now, before=write.now - USED_EVERY_MS)

    def remove_token(self, name: str) -> Token:
        with self._write() as write:
            row = write.one("remove_token", name=name)
            if row is None:
                raise NotFound(f"There is no token {name!r}", "perdure token ls")
            write.do("sign_out_token", token=name)
            write.all("forget_devices_of", person=actor("token", name))
            write.audit_action("token_removed", name)
            return _token_of(row)

    def note_refusal(self, actor: str, what: str) -> None:
        with self._write() as write:
            write.audit_action("refused", what, actor)

    def sign_in(self, name: str, sha256: str, lasts_s: float) -> None:
        with self._write() as write:
            write.do("forget_sign_ins", now=write.now)
            write.audit_action("signed_in", name, actor("token", name))
            write.do(
                "sign_in",
                sha256=sha256,
                token=name,
                now=write.now,
                expires=write.now + int(lasts_s * 1000),
            )

    def sign_in_person(self, person: Token, sha256: str, lasts_s: float) -> None:
        with self._write() as write:
            write.do("forget_people", now=write.now)
            write.audit_action("signed_in", _named(person), actor(person.kind, person.name))
            write.do(
                "sign_in_person",
                sha256=sha256,
                person=person.name,
                scope=person.scope.value,
                repositories=json.dumps(person.repositories),
                labels=json.dumps(person.labels),
                now=write.now,
                expires=write.now + int(lasts_s * 1000),
            )

    def signed_in(self, sha256: str) -> Token | None:
        now = self.now()
        found = _first(self._rows("signed_in", sha256=sha256, now=now))
        if found is not None:
            return found
        person = _first(self._rows("signed_in_person", sha256=sha256, now=now))
        if person is None:
            return None
        return replace(person, kind="openid")

    def sign_out(self, sha256: str) -> None:
        with self._write() as write:
            write.do("sign_out", sha256=sha256)
            write.do("sign_out_person", sha256=sha256)
            write.do("forget_device_signed_in", sha256=sha256)

    def sign_out_person(self, person: str) -> int:
        with self._write() as write:
            ended = len(write.all("sign_out_everywhere", person=person))
            ended += len(write.all("forget_devices_of", person=actor("openid", person)))
            if ended:
                write.audit_action("signed_out", person)
            return ended


def _first(rows: list[Row]) -> Token | None:
    if rows:
        return _token_of(rows[0])
    return None


def _token_of(row: Row) -> Token:
    return Token(
        name=row["name"],
        scope=TokenScope(row["scope"]),
        created=row["created"],
        expires=row["expires"],
        used=row["used"],
        repositories=tuple(json.loads(row["repositories"])),
        labels=tuple(json.loads(row["labels"])),
    )


def _named(token: Token) -> str:
    """Return a token's name with its scope and limits, for the audit trail."""
    limits = ", ".join((*token.repositories, *token.labels))
    if limits:
        return f"{token.name} ({token.scope.value}, limited to {limits})"
    return f"{token.name} ({token.scope.value})"
