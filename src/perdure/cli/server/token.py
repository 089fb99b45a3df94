"""`token`: manages access to `perdure serve`. A token is shown once, when it is created; perdure
keeps only its SHA-256."""

from __future__ import annotations

import argparse
import json
import re
import sys

from msgspec.structs import asdict

from perdure.cli.compose import open_engine, open_to_read, settings
from perdure.cli.runs.ls import table
from perdure.cli.text import age, clean, clock
from perdure.engine.attempt.engine import EngineStore
from perdure.errors import NotFound, UsageError
from perdure.model import Token, TokenScope

OPENID = "openid:"
"""Prefix of the name of a person who signed in with a provider of OpenID Connect."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


def token_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "what",
        nargs="?",
        choices=["ls", "new", "rm"],
        default="ls",
        help="ls (default), new NAME, or rm NAME ...",
    )
    parser.add_argument(
        "name", nargs="*", help="name of the token's owner: letters, digits, `.`, `_`, `-`"
    )
    parser.add_argument(
        "--scope",
        choices=list(map(str, TokenScope)),
        default=str(TokenScope.READ),
        help=(
            "for new: read (default); answer: also answer agents' questions and refuse calls; "
            "dispatch: also start agents; admin: also allow calls, remove and restore"
        ),
    )
    parser.add_argument(
        "--repository",
        action="append",
        default=[],
        metavar="PATTERN",
        help="for new: only runs in matching repositories, such as 'shop/*'; repeatable",
    )
    parser.add_argument(
        "--label",
        action="append",
        default=[],
        metavar="NAME=PATTERN",
        help="for new: only runs with this label; repeatable, and then all labels must match",
    )
    parser.add_argument(
        "--expires",
        default="",
        metavar="DURATION",
        help="for new: lifetime such as 12h or 30d (default: unlimited)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def token_verb(arguments: argparse.Namespace) -> int:
    if (arguments.what == "ls") == bool(arguments.name):
        raise UsageError("new and rm need a name; ls takes none", "perdure token new NAME")
    if arguments.what == "new":
        return _new(arguments)
    if arguments.what == "rm":
        store = open_engine(settings()).store
        for name in arguments.name:
            if name.startswith(OPENID):
                _sign_out(store, name.removeprefix(OPENID))
                continue
            print(f"the token {clean(store.remove_token(name).name)} is revoked")
        return 0
    store = open_to_read(settings())
    now, found = store.now(), store.tokens()
    if arguments.json:
        print(json.dumps({"schema_version": 1, "tokens": list(map(asdict, found))}, indent=2))
        return 0
    rows = [_line(each, now) for each in found]
    table(("NAME", "SCOPE", "LIMITS", "MADE", "USED", "EXPIRES"), rows)
    if not found and sys.stdout.isatty():
        print("no tokens yet; make one with: perdure token new NAME")
    return 0


def _sign_out(store: EngineStore, person: str) -> None:
    """Sign a person out of all browsers. Works only for a person who signed in with a provider of
    OpenID Connect. Raises NotFound if the person has no sign-in."""
    if not store.sign_out_person(person):
        raise NotFound(f"{person!r} is not signed in", "perdure audit --actor openid:")
    print(f"{clean(person)} is signed out everywhere")


def _new(arguments: argparse.Namespace) -> int:
    from perdure.model.durations import duration
    from perdure.rules.access import limits_of
    from perdure.server.principal import new_token

    if len(arguments.name) != 1 or not NAME.fullmatch(arguments.name[0]):
        raise UsageError(
            "expected one name of at most 63 letters, digits, `.`, `_` and `-`",
            "perdure token new NAME",
        )
    store = open_engine(settings()).store
    try:
        if arguments.expires:
            expires = store.now() + int(duration(arguments.expires) * 1000)
        else:
            expires = 0
    except ValueError as error:
        raise UsageError(f"--expires {arguments.expires}: {error}") from None
    try:
        limits_of(arguments.repository, arguments.label)
    except ValueError as error:
        raise UsageError(str(error), "perdure token new NAME --repository 'shop/*'") from None
    secret, sha256 = new_token()
    made = store.add_token(
        Token(
            name=arguments.name[0],
            scope=TokenScope(arguments.scope),
            created=0,
            expires=expires,
            repositories=tuple(arguments.repository),
            labels=tuple(arguments.label),
        ),
        sha256,
    )
    if arguments.json:
        print(json.dumps({"schema_version": 1, **asdict(made), "token": secret}, indent=2))
        return 0
    print(secret)
    print(
        f"this is shown only once; send it as: Authorization: Bearer TOKEN; its scope is "
        f"{made.scope}{_within(made)}",
        file=sys.stderr,
    )
    return 0


def _within(token: Token) -> str:
    limits = ", ".join((*token.repositories, *token.labels))
    if limits:
        return f" within {clean(limits)}"
    return ""


def _line(token: Token, now: int) -> tuple[str, ...]:
    if not token.expires:
        expires = "never"
    else:
        over = "expired " if token.expires <= now else ""
        expires = f"{over}{clock(token.expires)}"
    return (
        clean(token.name),
        token.scope.value,
        clean(", ".join((*token.repositories, *token.labels))) or "none",
        age(token.created, now),
        age(token.used, now) if token.used else "never",
        expires,
    )
