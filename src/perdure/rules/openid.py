"""Checks the claims of an OpenID Connect provider about a person (OpenID Connect Core 1.0,
3.1.3.7), and decides what the person may do. Pure; the caller checks the signature."""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from fnmatch import fnmatchcase

from perdure.model.openid import OpenIdProvider, OpenIdRule
from perdure.rules.text import one_line

SKEW_S = 60
"""Maximum difference between the clocks of provider and server, in seconds."""
NAME_MOST = 150
ALGORITHMS = (
    *("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    *("ES256", "ES384", "ES512", "Ed25519"),
)
"""The accepted signature algorithms. `none` is not accepted, because it means no signature. The
HS... algorithms are not accepted, because their secret is shared with the provider. An attacker
could make the client use the provider's public key as that secret."""


Claims = Mapping[str, object]
"""The claims of an ID token by name (OpenID Connect Core 1.0, section 2). The value of a claim may
have any type, so it is checked before use."""


def claims_problem(claims: Claims, provider: OpenIdProvider, nonce: str, now_s: float) -> str:
    """Return why an ID token is not valid for this sign-in, as a clause; empty if it is valid."""
    audience = claims.get("aud")
    several = [audience] if isinstance(audience, str) else audience
    party = claims.get("azp", "")
    if claims.get("iss") != provider.issuer:
        return "it is from another issuer"
    if not isinstance(several, list) or provider.client_id not in several:
        return "it is for another client"
    if (party or len(several) > 1) and party != provider.client_id:
        return "it was given to another client"
    if not _is_text(claims.get("sub")):
        return "it names no user"
    if not _same(claims.get("nonce"), nonce):
        return "it belongs to another sign-in"
    return _time_problem(claims, now_s)


def _time_problem(claims: Claims, now_s: float) -> str:
    expires, issued = _seconds(claims.get("exp")), _seconds(claims.get("iat"))
    begins = _seconds(claims.get("nbf", 0))
    if expires is None or issued is None or begins is None:
        return "it has no issue or expiry time"
    if expires <= now_s - SKEW_S:
        return "it has expired"
    if max(issued, begins) > now_s + SKEW_S:
        return "its issue time is in the future"
    return ""


def person_of(claims: Claims) -> str:
    """Return the name of a person: the e-mail address if the provider has verified it, else the
    subject."""
    mail = verified_claims(claims).get("email")
    if _is_text(mail):
        return one_line(str(mail), NAME_MOST)
    return one_line(str(claims["sub"]), NAME_MOST)


def verified_claims(claims: Claims) -> Claims:
    """Return the claims without an e-mail address that the provider has not verified. Anybody could
    have entered somebody else's address."""
    if claims.get("email_verified") is True:
        return claims
    found = dict(claims)
    found.pop("email", None)
    return found


def rule_for(claims: Claims, provider: OpenIdProvider) -> OpenIdRule | None:
    """Return the first rule that matches the claims about a person; None if the person may not sign
    in."""
    known = verified_claims(claims)
    for rule in provider.rules:
        if _fits(rule, known.get(rule.claim)):
            return rule
    return None


def _fits(rule: OpenIdRule, value: object) -> bool:
    values = value if isinstance(value, list) else [value]
    return any(isinstance(each, str) and fnmatchcase(each, rule.value) for each in values)


def _seconds(value: object) -> float | None:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    return None


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _same(value: object, expected: str) -> bool:
    return isinstance(value, str) and hmac.compare_digest(value.encode(), expected.encode())
