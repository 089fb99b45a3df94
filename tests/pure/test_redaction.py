"""Secrets of the environment do not appear in anything that perdure writes."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.host.redaction import NO_SECRETS, Redactor

SECRET = 'sk-"quoted"/and+plus='
REDACTOR = Redactor.of(
    {"SOME_API_KEY": SECRET, "HOME": "/home/ada", "SHORT_TOKEN": "abc", "PATH": "/usr/bin"}
)


@pytest.mark.parametrize(
    "form",
    [
        SECRET,
        json.dumps(SECRET)[1:-1],
        quote(SECRET, safe=""),
        base64.b64encode(SECRET.encode()).decode(),
    ],
    ids=["plain", "json", "url", "base64"],
)
def test_each_way_to_write_a_secret_is_replaced(form: str) -> None:
    """A secret is replaced in plain text, JSON, URLs and base64 by as many asterisks as it has
    characters."""
    clean = REDACTOR.text(f"before {form} after")
    assert clean == f"before {'*' * len(form)} after"


def test_what_is_no_secret_stays() -> None:
    """Ordinary variables, and values that are too short to recognize, are not changed."""
    assert REDACTOR.text("/home/ada abc /usr/bin") == "/home/ada abc /usr/bin"
    assert NO_SECRETS.bytes(b"anything") == b"anything"


def test_names_that_only_look_like_secrets() -> None:
    """The host of the forge and the author of commits are not redacted, whatever their variables
    are called. Credentials are."""
    environ = {
        "PERDURE_GIT_TOKEN_HOST": "git.example.com",
        "GIT_AUTHOR_NAME": "Ada Lovelace",
        "PROXY_AUTHORIZATION": "Basic YWRhOng=",
    }
    assert (
        Redactor.of(environ).text("git.example.com Ada Lovelace Basic YWRhOng=")
        == f"git.example.com Ada Lovelace {'*' * 14}"
    )


def test_who_has_a_key_is_no_secret() -> None:
    """The id of a key, and the name that belongs to a token, are not secret. The key itself is."""
    words = {
        "AWS_ACCESS_KEY_ID": "checkpoints",
        "PERDURE_GIT_TOKEN_USER": "gitlab-ci-token",
        "AWS_SECRET_ACCESS_KEY": "swordfish",
    }
    assert (
        Redactor.of(words).text("checkpoints of gitlab-ci-token: swordfish")
        == f"checkpoints of gitlab-ci-token: {'*' * 9}"
    )


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_lengths_are_kept_whatever_stands_around(before: bytes, after: bytes) -> None:
    """Redaction never changes the length of a text, and never leaves a secret in it."""
    content = before + SECRET.encode() + after
    clean = REDACTOR.bytes(content)
    assert len(clean) == len(content)
    assert SECRET.encode() not in clean


def test_a_file_is_redacted_in_place(tmp_path: Path) -> None:
    """A log keeps its size and its other bytes. Empty and missing files are not an error."""
    log = tmp_path / "stdout"
    log.write_bytes(b"x" * 5000 + SECRET.encode() + b"\0\xff" + SECRET.encode())
    size = log.stat().st_size
    assert REDACTOR.file(log) == 2
    assert log.stat().st_size == size
    assert SECRET.encode() not in log.read_bytes()
    assert log.read_bytes().startswith(b"x" * 5000 + b"*")
    (tmp_path / "empty").touch()
    assert REDACTOR.file(tmp_path / "empty") == REDACTOR.file(tmp_path / "missing") == 0


def test_more_secrets_besides() -> None:
    """Variables that the caller names are redacted as well, even if one begins with a known secret
    or contains a bar."""
    both = REDACTOR.also({"OTHER_TOKEN": f"{SECRET}-and-more", "A_KEY": "one|two|three"})
    assert (
        both.text(f"{SECRET}-and-more {SECRET} one|two|three one two")
        == f"{'*' * len(SECRET + '-and-more')} {'*' * len(SECRET)} {'*' * 13} one two"
    )
    assert (
        REDACTOR.also({}).text(SECRET)
        == "*" * len(SECRET)
        == NO_SECRETS.also({"A_KEY": SECRET}).text(SECRET)
    )


@pytest.mark.parametrize(
    "secret",
    [
        "k" * 300,
        '{"type": "service_account", "private_key": "' + "M" * 2000 + '"}',
        "/proc/1/fd/" + "k" * 40,
        "a\0bcdefgh",
    ],
)
def test_a_secret_that_no_file_could_be_called(secret: str) -> None:
    """A value that looks like a path is redacted if it is too long for a file name, or is in a
    directory that cannot be read."""
    redactor = Redactor.of({"GOOGLE_SERVICE_ACCOUNT_KEY": secret})
    assert redactor.text(f"it is {secret}.") == f"it is {'*' * len(secret)}."
