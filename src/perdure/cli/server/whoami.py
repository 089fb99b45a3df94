"""`whoami`: prints the name and the rights that the user has on this machine or on a server."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from perdure.cli.compose import settings
from perdure.cli.text import clean, clock
from perdure.errors import ConfigError, NotFound, PerdureError, UsageError
from perdure.host.actors import local_person
from perdure.host.git.servers import is_loopback

TOKEN = "PERDURE_TOKEN"
TIMEOUT_S = 30.0
ANSWER_MOST = 1 << 20
"""Maximum size of an answer that is read from a server, in bytes."""


def whoami_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--server", default="", metavar="URL", help="show what you may do on this server instead"
    )
    parser.add_argument(
        "--token-file",
        default="",
        metavar="FILE",
        help=f"with --server: file with the token (default: the variable {TOKEN})",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def whoami_verb(arguments: argparse.Namespace) -> int:
    if arguments.server:
        found = _of_server(arguments.server, _token(arguments.token_file))
    elif arguments.token_file:
        raise UsageError("--token-file needs --server", "perdure whoami --server URL")
    else:
        found = _of_machine()
    if arguments.json:
        print(json.dumps({"schema_version": 1, **found}, indent=2))
        return 0
    width = max(map(len, found))
    for name, value in found.items():
        print(f"{name:<{width}}  {clean(_text(name, value))}")
    return 0


def _of_machine() -> Mapping[str, object]:
    """Return the name and the rights of the user of the command line. A user who can write to the
    state directory may do everything."""
    state = Path(settings().state)
    scope = "admin" if os.access(state, os.W_OK) or not state.exists() else "none"
    return {
        "actor": local_person(),
        "scope": scope,
        "repositories": [],
        "labels": [],
        "expires": 0,
        "state": str(state),
    }


def _of_server(url: str, token: str) -> Mapping[str, object]:
    """Ask a server for the name and the rights of the token, and return its answer. No redirect is
    followed, because that could send the token elsewhere. Raises UsageError, NotFound,
    PerdureError."""
    from http.client import HTTPConnection, HTTPException, HTTPSConnection
    from urllib.parse import urlsplit

    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError(f"expected the address of a server, got {url!r}", "--server https://host")
    if parts.scheme == "http" and not is_loopback(parts.hostname):
        raise UsageError(
            f"{url} is on another machine, and http would send the token unencrypted",
            f"--server https://{parts.netloc}",
        )
    kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
    connection = kind(parts.hostname, parts.port, timeout=TIMEOUT_S)
    try:
        connection.request(
            "GET",
            f"{parts.path.rstrip('/')}/api/v1/whoami",
            headers={"Authorization": f"Bearer {token}", "Accept": "application/json"},
        )
        answer = connection.getresponse()
        status, body = answer.status, answer.read(ANSWER_MOST)
    except (OSError, HTTPException) as error:
        raise PerdureError(f"{url} does not answer: {error}", "check the address") from None
    finally:
        connection.close()
    if status == 401:
        raise NotFound(
            f"{url} does not know this token, or it has expired", "perdure token new NAME"
        )
    try:
        found = json.loads(body)
    except ValueError:
        found = None
    if status != 200 or not isinstance(found, dict) or "actor" not in found:
        raise PerdureError(
            f"{url} answered with status {status}, and not as a perdure server does",
            "check the address",
        )
    found.pop("schema_version", None)
    return found


def _token(file: str) -> str:
    """Return the token from `file`, or from the environment variable TOKEN if `file` is empty.
    Raises UsageError or ConfigError."""
    try:
        found = Path(file).read_text().strip() if file else os.environ.get(TOKEN, "").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"the token in {file} cannot be read: {error}"]) from None
    if not found or not found.isascii() or not found.isprintable():
        raise UsageError("missing the token", f"--token-file FILE, or the variable {TOKEN}")
    return found


def _text(name: str, value: Any) -> str:
    if name == "expires":
        return clock(value) if value else "never"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "all"
    return str(value)
