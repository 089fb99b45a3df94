"""The setting `[openid]`: the provider with which people sign in to the dashboard (OpenID Connect),
and the rules for their rights. Does no input or output."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import msgspec

from perdure.model.forge.sources import address
from perdure.model.tokens import TokenScope


class OpenIdRule(msgspec.Struct, frozen=True, kw_only=True):
    """A rule that gives rights to people by the value of one of their claims. The first rule that
    matches applies."""

    claim: str
    value: str
    """Pattern for the claim's value. `*` stands for any characters."""
    scope: TokenScope
    repositories: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    """Labels that a run must have, each as NAME=PATTERN."""


class OpenIdProvider(msgspec.Struct, frozen=True, kw_only=True):
    """An OpenID provider, and the rules for the people who sign in with it."""

    issuer: str
    client_id: str
    secret_file: str = ""
    """File with the client secret; empty for a client without a secret."""
    scopes: tuple[str, ...] = ("openid", "email")
    """Scopes that are requested from the provider."""
    rules: tuple[OpenIdRule, ...] = ()
    name: str = ""
    """Name of the provider on the sign-in page; empty: the host of the issuer is shown."""

    def __str__(self) -> str:
        return f"{self.issuer} (client {self.client_id}, {len(self.rules)} rules)"


KNOWN = ("issuer", "client_id", "secret_file", "scopes", "rules", "name")
OF_RULE = ("claim", "value", "scope", "repositories", "labels")
VALUE_MOST = 500


def provider(value: object) -> OpenIdProvider | None:
    """Return the provider in an `[openid]` table; None if the table is empty. `value` is the table,
    or its content as JSON text. Raises ValueError."""
    if isinstance(value, str):
        try:
            value = json.loads(value or "{}")
        except (ValueError, RecursionError):
            raise ValueError("expected a table [openid], or the same as JSON") from None
    if not isinstance(value, Mapping):
        raise ValueError("expected a table [openid] with issuer, client_id and rules")
    if not value:
        return None
    if unknown := [key for key in value if key not in KNOWN]:
        raise ValueError(f"there is no setting {unknown[0]!r}; known are {', '.join(KNOWN)}")
    secret = value.get("secret_file", "")
    if not isinstance(secret, str) or (secret and not secret.startswith("/")):
        raise ValueError("secret_file must be an absolute path")
    scopes = _texts("scopes", value.get("scopes", ["openid", "email"]))
    if "openid" not in scopes:
        raise ValueError("scopes must contain openid")
    rules = value.get("rules", [])
    if not isinstance(rules, list) or not rules:
        raise ValueError("rules are missing: without [[openid.rules]] nobody could sign in")
    return OpenIdProvider(
        issuer=_issuer(value.get("issuer")),
        client_id=_text("client_id", value.get("client_id")),
        secret_file=secret,
        scopes=scopes,
        rules=tuple(map(_rule, rules)),
        name=_text("name", value["name"]) if "name" in value else "",
    )


def _issuer(value: object) -> str:
    """Check the address of the issuer and return it unchanged. It has to equal the issuer that the
    provider's tokens name. Raises ValueError."""
    address("issuer", value)
    return str(value)


def _rule(value: Any) -> OpenIdRule:
    if not isinstance(value, Mapping):
        raise ValueError("expected tables [[openid.rules]] with claim, value and scope")
    if unknown := [key for key in value if key not in OF_RULE]:
        raise ValueError(f"a rule has no {unknown[0]!r}; known are {', '.join(OF_RULE)}")
    scope = value.get("scope")
    if scope not in list(TokenScope):
        raise ValueError(f"scope of a rule must be one of {', '.join(TokenScope)}")
    return OpenIdRule(
        claim=_text("claim of a rule", value.get("claim")),
        value=_text("value of a rule", value.get("value")),
        scope=TokenScope(scope),
        repositories=_texts("repositories of a rule", value.get("repositories", [])),
        labels=_texts("labels of a rule", value.get("labels", [])),
    )


def _text(what: str, value: object) -> str:
    if not isinstance(value, str) or not value or len(value) > VALUE_MOST:
        raise ValueError(f"{what} must be a text")
    if not value.isprintable():
        raise ValueError(f"{what} has characters that cannot be printed")
    return value


def _texts(what: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise ValueError(f"{what} must be a list of texts")
    return tuple(_text(what, each) for each in value)
