"""The search for secrets: its findings, and texts without a secret."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.capsule import secret_search as scans
from perdure.capsule.secret_search import FROM_HERE, Scan, find_tokens
from perdure.host.redaction import Redactor

SECRETS = {
    "Anthropic key": "sk-ant-" + "api03-" + "aB3_" * 23 + "AA",
    "OpenAI key": "sk-" + "proj-" + "aB3-" * 12,
    "Google API key": "AI" + "za" + "Sy" + "a1B2c3D4e5F" * 3,
    "GitHub token": "gh" + "p_" + "a1B2c3" * 6,
    "GitLab token": "gl" + "pat-" + "a1B2c3D4e5F6g7H8i9J0",
    "AWS access key": "AK" + "IA" + "QWERTYUIOPASDFGH",
    "Azure storage key": "Account" + "Key=" + "a1B2" * 21 + "ab==",
    "Azure client secret": "abc" + "8Q" + "~" + "a1B2c3D4" * 4,
    "Slack token": "xo" + "xb-123456789012-123456789012-" + "a1B2c3D4e5F6",
    "Telegram bot token": "123456789" + ":A" + "A" + "a1B2c3D4e5F" * 3,
    "Stripe key": "sk_" + "live_" + "a1B2c3D4e5F6g7H8",
    "npm token": "np" + "m_" + "a1B2c3" * 6,
    "PyPI token": "py" + "pi-AgE" + "a1B2c3" * 10,
    "Hugging Face token": "h" + "f_" + "aBcDeFgHiJkLmNoPqRsTuVwXyZaBcDeFgH",
    "Vault token": "hv" + "s." + "a1B2c3D4e5F6g7H8i9J0k1L2",
    "Terraform token": "a1B2c3D4e5F6g7" + ".atlas" + "v1." + "a1B2c3D4e5" * 6,
    "perdure token": "pr" + "d_" + ("a1B2c3D4e5F-" * 4)[:43],
    "password in a URL": "postgres:" + "//ada:correct-horse@db.example/x",
    "private key": "-----BEGIN RSA "
    + "PRIVATE KEY-----\n"
    + "a1B2c3D4e5F6g7H8\n" * 9
    + "-----END RSA "
    + "PRIVATE KEY-----",
}
ORDINARY = (
    'sk-learn key-value glance npm_config_registry https://example.com:8080/a@b "://" '
    "hf_hub_download_of_a_model AKIA, "
    "https://user:${PASSWORD}@host git@github.com:owner/name.git "
    "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08 "
    "-----BEGIN PUBLIC KEY----- AAAA -----END PUBLIC KEY----- 12:34:56:AA "
    "toolu_01a1B2c3D4e5F6g7H8i9J0 the-xoxb-of-slack"
)


@pytest.mark.parametrize("kind", SECRETS)
@pytest.mark.parametrize("around", ["{}", '{{"key": "{}"}}', "export KEY='{}'\n", "  {}  \n"])
def test_a_known_shape_is_found_whole(kind: str, around: str) -> None:
    """Each kind of token is found wherever it is, from its first byte to its last."""
    text = around.format(SECRETS[kind]).encode()
    spans = [text[start:end] for name, start, end in find_tokens(text) if name == kind]
    assert spans, text
    if kind != "password in a URL":
        assert spans[0] == SECRETS[kind].encode()


def test_a_private_key_in_json_is_found() -> None:
    """A key whose lines are joined by backslash-n, as in a transcript or a service account, is
    found completely."""
    text = (
        b'{"private_key": "' + SECRETS["private key"].replace("\n", "\\n").encode() + b'", "x": 1}'
    )
    ((_, start, end),) = find_tokens(text)
    assert text[end : end + 2] == b'",' and text[start:].startswith(b"-----BEGIN")


def test_ordinary_text_holds_no_secret() -> None:
    """Words that begin like tokens, hashes, placeholders, addresses and public keys are not
    findings."""
    assert list(find_tokens(ORDINARY.encode())) == []


FORMS = {
    "plain": str,
    "url": lambda value: quote(value, safe=""),
    "path": quote,
    "form": quote_plus,
    "base64": lambda value: base64.b64encode(value.encode()).decode(),
    "base64 for urls": lambda value: base64.urlsafe_b64encode(value.encode()).decode().rstrip("="),
}


@pytest.mark.parametrize("name", ["", "me:", "ada:", "lovelace:"])
def test_a_password_in_basic_authentication_is_found(name: str) -> None:
    """A password in a header for basic authentication is found. Its base64 follows a user name of
    any length, so hardly any letter of the password can be recognized."""
    scan = Scan(Redactor.of({"DEPLOY_TOKEN": "hunter/2 horse battery"}))
    text = b"Authorization: Basic " + base64.b64encode(f"{name}hunter/2 horse battery".encode())
    clean = b"".join(scan.over("here", io.BytesIO(text)))
    assert len(scan.findings) == 1 and len(clean) == len(text)
    assert clean.count(b"*") >= 28 and clean.startswith(b"Authorization: Basic ")


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_the_values_of_this_environment_are_found(form) -> None:
    """A secret variable's exact value is found unchanged, URL-encoded and in base64, even without a
    known shape."""
    scan = Scan(Redactor.of({"DEPLOY_TOKEN": "hunter/2 horse battery"}))
    text = f"one\ntwo {form('hunter/2 horse battery')} three".encode()
    clean = b"".join(scan.over("here", io.BytesIO(text)))
    assert [(each.place, each.line, each.kind) for each in scan.findings] == [
        ("here", 2, FROM_HERE)
    ]
    assert (
        len(clean) == len(text)
        and b"horse" not in clean
        and clean.startswith(b"one\ntwo *")
        and clean.endswith(b"* three")
    )


@given(
    st.lists(
        st.one_of(st.sampled_from(sorted(SECRETS.values())), st.text("ab \n", max_size=40)),
        max_size=12,
    ),
    st.integers(1, 97),
)
def test_where_a_stream_is_cut_changes_nothing(pieces: list[str], window: int) -> None:
    """However a text is cut into windows, the findings and the redacted text are the same. The
    redacted text is as long as the original."""
    text = " ".join(pieces).encode()
    whole = Scan()
    expected = b"".join(whole.over("x", io.BytesIO(text)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scans, "WINDOW", window)
        scan = Scan()
        clean = b"".join(scan.over("x", io.BytesIO(text)))
    assert (clean, scan.findings) == (expected, whole.findings)
    assert len(clean) == len(text)


def test_the_table_never_shows_a_value() -> None:
    """The table of findings shows place, line and kind, but never the secret."""
    scan = Scan()
    scan.look("notes.md", "\n\n".join(SECRETS.values()).encode())
    told = str(scans.SecretsFound(scan.findings, ""))
    assert "notes.md, line 1: Anthropic key" in told
    assert not any(value[8:24] in told for value in SECRETS.values())


def test_the_shapes_do_not_match_their_own_source() -> None:
    """The patterns find nothing in perdure's own source, so it can be exported."""
    top = Path(__file__).parents[2]
    for path in (*top.glob("src/perdure/capsule/*.py"), Path(__file__)):
        assert list(find_tokens(path.read_bytes())) == [], path
