"""Searches for secrets in data that leaves the machine: known shapes of tokens, and the exact
values of this environment's secrets.

`assembly` passes every stream through a `Scan` once. Findings are reported by place, line and kind,
never by value. A redacted secret is replaced by as many asterisks as it had bytes, so sizes and
positions stay the same. Secrets that were transformed, split or compressed before they were written
cannot be found.

`SHAPES` has the patterns of the tokens of many services, as these services document them.

The selection follows the default rules of gitleaks (github.com/gitleaks/gitleaks,
config/gitleaks.toml, MIT). The gitleaks rules that depend on the name of a variable or on entropy
are omitted, because many false alarms would teach people to override the check.

Each shape has a few strings that are rare in ordinary text (its anchors). Most secrets are one long
word. Therefore only the long words of a text are searched for the anchors of these secrets. One
expression for all shapes would take hundreds of times as long.

`search` searches the files that a checkpoint's commit has added since the run began. `export` calls
it, for a file and for a checkpoint store.

Files that are unchanged since the run began are not searched, because every receiver with the
repository has them. All other files are searched, also those that are only staged or only in
earlier commits of the run.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

from msgspec import Struct, field

from perdure.errors import CapsuleError
from perdure.host.git import Git
from perdure.host.git.output import excluded, one_a_line
from perdure.host.redaction import NO_SECRETS, Redactor
from perdure.workspace.snapshot.trees import unescape

_END = rb"(?![A-Za-z0-9_])"


class TokenShape(Struct, frozen=True):
    """A kind of secret, with the pattern that recognizes it. `back` is the maximum number of bytes
    between the start of the secret and its anchor."""

    name: str
    anchors: tuple[bytes, ...]
    pattern: re.Pattern[bytes]
    back: int = 0
    word: bool = True
    """Whether the secret is one word of at least 20 characters. `_WORDS` defines the characters of
    a word."""


def _shape(
    name: str, anchors: str, pattern: bytes, back: int = 0, *, word: bool = True
) -> TokenShape:
    return TokenShape(
        name, tuple(anchor.encode() for anchor in anchors.split()), re.compile(pattern), back, word
    )


_WORDS = bytes(
    byte if (chr(byte).isalnum() and byte < 128) or byte in b"_-.~:/+=" else 32
    for byte in range(256)
)
_LONG = re.compile(rb" [^ ]{20,}")


SHAPES: tuple[TokenShape, ...] = (
    # perdure's own tokens: see server.principal
    _shape("perdure token", "prd_", rb"prd_[A-Za-z0-9_-]{43}" + _END),
    # docs.anthropic.com: API, admin and OAuth keys
    _shape("Anthropic key", "sk-ant-", rb"sk-ant-(?:api|admin|oat|ort|sid)\d\d-[A-Za-z0-9_-]{20,}"),
    # platform.openai.com: project, service-account and older keys
    _shape(
        "OpenAI key", "sk-proj- sk-svcacct- sk-admin- sk-None-", rb"sk-[A-Za-z]+-[A-Za-z0-9_-]{20,}"
    ),
    _shape("OpenAI key", "T3BlbkFJ", rb"sk-[A-Za-z0-9]{20}T3BlbkFJ[A-Za-z0-9]{20}", 23),
    _shape("OpenRouter key", "sk-or-v1-", rb"sk-or-v1-[0-9a-f]{64}"),
    # cloud.google.com/docs/authentication: API keys, OAuth access tokens and client secrets
    _shape("Google API key", "AIza", rb"AIza[A-Za-z0-9_-]{35}" + _END),
    _shape(
        "Google OAuth token",
        "ya29. GOCSPX-",
        rb"ya29\.[A-Za-z0-9_-]{30,}|GOCSPX-[A-Za-z0-9_-]{28}" + _END,
    ),
    # github.blog/2021-04-05: prefixes and lengths; fine-grained tokens have 82 characters
    _shape("GitHub token", "ghp_ gho_ ghu_ ghs_ ghr_", rb"gh[pousr]_[A-Za-z0-9]{36,251}" + _END),
    _shape("GitHub token", "github_pat_", rb"github_pat_[A-Za-z0-9_]{82}" + _END),
    # docs.gitlab.com/security/tokens: prefixes
    _shape(
        "GitLab token",
        "glpat- gldt- glrt- glcbt- glptt- glft- glsoat- glagent- gloas- glfeed-",
        rb"gl[a-z]+-[A-Za-z0-9_-]{20,}",
    ),
    # docs.aws.amazon.com/IAM: unique id prefixes
    _shape(
        "AWS access key", "AKIA ASIA ABIA ACCA", rb"(?<![A-Za-z0-9])A[A-Z]{3}[A-Z2-7]{16}" + _END
    ),
    _shape("Azure storage key", "AccountKey=", rb"AccountKey=[A-Za-z0-9+/]{86}=="),
    _shape("Azure client secret", "Q~", rb"(?<![\w~.-])[\w~.]{3}\dQ~[\w~.-]{31,34}(?![\w~.-])", 4),
    _shape("DigitalOcean token", "dop_v1_ doo_v1_ dor_v1_", rb"do[opr]_v1_[0-9a-f]{64}" + _END),
    # api.slack.com/authentication/token-types
    _shape(
        "Slack token",
        "xoxa- xoxb- xoxe- xoxo- xoxp- xoxr- xoxs- xoxe.",
        rb"xox[abeoprs][.-][A-Za-z0-9.-]{20,}",
    ),
    _shape("Slack token", "xapp-", rb"xapp-\d-[A-Z0-9]+-\d+-[a-z0-9]{20,}"),
    _shape(
        "Slack webhook",
        "hooks.slack.com/",
        rb"hooks\.slack\.com/(?:services|workflows)/[A-Za-z0-9+/]{40,}",
    ),
    _shape("Discord webhook", "/api/webhooks/", rb"/api/webhooks/\d{15,}/[A-Za-z0-9_-]{60,}"),
    _shape("Telegram bot token", ":AA", rb"(?<!\d)\d{8,10}:AA[A-Za-z0-9_-]{33}" + _END, 10),
    # docs.stripe.com/keys
    _shape(
        "Stripe key",
        "sk_live_ sk_test_ rk_live_ rk_test_",
        rb"[sr]k_(?:live|test)_[A-Za-z0-9]{16,}",
    ),
    _shape("Stripe key", "whsec_", rb"whsec_[A-Za-z0-9]{32,}"),
    _shape("SendGrid key", "SG.", rb"SG\.[A-Za-z0-9_-]{22}\.[A-Za-z0-9_-]{43}" + _END),
    _shape("Mailgun key", "key-", rb"(?<![A-Za-z0-9])key-[0-9a-f]{32}" + _END),
    # docs.npmjs.com, pypi.org/help, docs.docker.com, guides.rubygems.org, doc.rust-lang.org/cargo
    _shape("npm token", "npm_", rb"npm_[A-Za-z0-9]{36}" + _END),
    _shape("PyPI token", "pypi-AgE", rb"pypi-AgE[A-Za-z0-9_-]{50,}"),
    _shape("Docker token", "dckr_pat_ dckr_oat_", rb"dckr_[op]at_[A-Za-z0-9_-]{27,}"),
    _shape("RubyGems key", "rubygems_", rb"rubygems_[0-9a-f]{48}" + _END),
    _shape(
        "Hugging Face token", "hf_ api_org_", rb"(?<![A-Za-z0-9])(?:hf|api_org)_[A-Za-z]{34}" + _END
    ),
    _shape("Groq key", "gsk_", rb"gsk_[A-Za-z0-9]{52}" + _END),
    _shape("xAI key", "xai-", rb"xai-[A-Za-z0-9]{70,}"),
    _shape("Replicate token", "r8_", rb"(?<![A-Za-z0-9])r8_[A-Za-z0-9]{37}" + _END),
    _shape("Databricks token", "dapi", rb"(?<![A-Za-z0-9])dapi[0-9a-f]{32}" + _END),
    # developer.hashicorp.com/vault: service, batch and recovery tokens
    _shape("Vault token", "hvs. hvb. hvr.", rb"hv[sbr]\.[A-Za-z0-9_-]{24,}"),
    _shape("Terraform token", ".atlasv1.", rb"[A-Za-z0-9]{14}\.atlasv1\.[A-Za-z0-9_=-]{60,70}", 14),
    _shape("Atlassian token", "ATATT3 ATCTT3", rb"AT[AC]TT3[A-Za-z0-9_=-]{60,}"),
    _shape("Linear key", "lin_api_ lin_oauth_", rb"lin_(?:api|oauth)_[A-Za-z0-9]{40}"),
    _shape("Notion token", "ntn_", rb"(?<![A-Za-z0-9])ntn_[A-Za-z0-9]{43,}"),
    _shape("Sentry token", "sntrys_ sntryu_", rb"sntry[su]_[A-Za-z0-9+/=_-]{40,}"),
    _shape("Grafana token", "glsa_ glc_", rb"gl(?:sa|c)_[A-Za-z0-9+/=_]{32,}"),
    _shape("New Relic key", "NRAK-", rb"NRAK-[A-Z0-9]{27}" + _END),
    _shape(
        "Shopify token",
        "shpat_ shpca_ shppa_ shpss_",
        rb"shp(?:at|ca|pa|ss)_[0-9a-fA-F]{32}" + _END,
    ),
    _shape(
        "Supabase key",
        "sbp_ sb_secret_",
        rb"sbp_[0-9a-f]{40}" + _END + rb"|sb_secret_[A-Za-z0-9_-]{22,}",
    ),
    _shape(
        "age key", "AGE-SECRET-KEY-1", rb"AGE-SECRET-KEY-1[QPZRY9X8GF2TVDW0S3JN54KHCE6MUA7L]{58}"
    ),
    # RFC 7468: the pattern includes the lines between BEGIN and END, so that the whole key is
    # replaced. In JSON a newline is `\n`.
    _shape(
        "private key",
        "-----BEGIN",
        rb"-----BEGIN (?:[A-Z0-9]+ ){0,3}PRIVATE KEY(?: BLOCK)?-----(?:[A-Za-z0-9+/=:,. "
        rb"\t\r\n-]|\\+[rn]){40,16384}?"
        rb"-----END (?:[A-Z0-9]+ ){0,3}PRIVATE KEY(?: BLOCK)?-----",
        word=False,
    ),
    # RFC 3986, 3.2.1: user and password in a URL
    _shape(
        "password in a URL",
        "://",
        rb"://[^\s/:@\"'<>\\${}*()]{1,64}:[^\s/:@\"'<>\\${}*()]{6,128}@(?=[A-Za-z0-9\[])",
        word=False,
    ),
)

LONGEST = 17_000
"""Maximum length of a secret, in bytes. Pieces of a text can be searched separately if they overlap
by this much."""


def find_tokens(content: bytes) -> Iterator[tuple[str, int, int]]:
    """Yield kind, start and end of every known secret in the content. The secrets may overlap."""
    words = b"".join(_LONG.findall(b" " + content.translate(_WORDS)))
    for shape in SHAPES:
        for anchor in shape.anchors:
            if shape.word and anchor not in words:
                continue
            at = content.find(anchor)
            while at >= 0:
                starts = range(max(0, at - shape.back), at + 1)
                if match := _first_match(shape.pattern, content, starts):
                    yield shape.name, *match.span()
                at = content.find(anchor, at + 1)


def _first_match(
    pattern: re.Pattern[bytes], content: bytes, starts: Iterable[int]
) -> re.Match[bytes] | None:
    """Return the match at the first of the starts at which the pattern matches."""
    for start in starts:
        if match := pattern.match(content, start):
            return match
    return None


WINDOW = 4 << 20
FROM_HERE = "value of a variable"
SHOWN = 20


class Readable(Protocol):
    """A source of bytes that is read in pieces."""

    def read(self, size: int, /) -> bytes: ...


class SecretFinding(Struct, frozen=True):
    """A secret that was found, described by its place and its kind. `line` is a line number from
    1."""

    place: str
    line: int
    kind: str
    file: str = ""
    """If the secret is in a file of the workdir: the file's path in the checkpoint's git tree. If
    it is in the message or author of a commit: `a commit`. Otherwise empty. Secrets in files and
    commits are never redacted. A file can only be left out."""
    blob: str = ""
    """The id of the file's content in git. `file` is only one of the paths that have this content.
    """


class Scan(Struct):
    """A search for secrets in any number of streams. `findings` collects what it finds."""

    redactor: Redactor = NO_SECRETS
    keep: bool = False
    """Whether secrets are kept in the streams instead of being redacted. They are reported in any
    case."""
    findings: list[SecretFinding] = field(default_factory=list)

    def over(self, place: str, source: Readable) -> Iterator[bytes]:
        """Yield the stream in pieces, with secrets redacted unless `keep` is set. Record each
        secret once."""
        held, line = b"", 1
        while True:
            piece = source.read(WINDOW)
            held += piece
            spans = self._spans(held)
            # A secret that begins shortly before the end may be incomplete, so the last bytes are
            # searched again with the next piece.
            cut = len(held) if not piece else max(0, len(held) - LONGEST)
            for start, end, _ in spans:
                if start < cut < end:
                    cut = start
            clean = held[:cut] if self.keep or not spans else bytearray(held[:cut])
            for start, end, kind in spans:
                if end <= cut:
                    self.findings.append(
                        SecretFinding(place, line + held.count(b"\n", 0, start), kind)
                    )
                    if isinstance(clean, bytearray):
                        clean[start:end] = b"*" * (end - start)
            if clean:
                yield bytes(clean)
            line += held.count(b"\n", 0, cut)
            held = held[cut:]
            if not piece:
                return

    def look(self, place: str, content: bytes, file: str = "", blob: str = "") -> None:
        """Record the secrets in `content`. Unlike in `over`, the whole content is in memory. If the
        content is a file of the workdir, `file` is the file's path in the checkpoint's git tree,
        and `blob` is the id of the content in git."""
        for start, _, kind in self._spans(content):
            self.findings.append(
                SecretFinding(place, content.count(b"\n", 0, start) + 1, kind, file, blob)
            )

    def _spans(self, content: bytes) -> list[tuple[int, int, str]]:
        """Return start, end and kind of each secret, in order of their starts. Secrets that overlap
        are merged into one."""
        spans = [(start, end, kind) for kind, start, end in find_tokens(content)]
        if self.redactor.pattern is not None:
            for match in self.redactor.pattern.finditer(content):
                spans.append((*match.span(), FROM_HERE))
        joined: list[tuple[int, int, str]] = []
        for start, end, kind in sorted(spans):
            if joined and start < joined[-1][1]:
                joined[-1] = joined[-1][0], max(end, joined[-1][1]), joined[-1][2]
            else:
                joined.append((start, end, kind))
        return joined


def table(findings: list[SecretFinding]) -> str:
    """Return a text with one line for each secret: its place, its line and its kind. The list is
    cut after `SHOWN` secrets."""
    lines = [f"  {each.place}, line {each.line}: {each.kind}" for each in findings[:SHOWN]]
    return "\n".join(
        [*lines, *([f"  and {len(findings) - SHOWN} more"] if len(findings) > SHOWN else [])]
    )


class SecretsFound(CapsuleError):
    """Raised before anything is written, if secrets were found that no option covers. `findings`
    lists their places."""

    exit_code = 3

    def __init__(self, findings: list[SecretFinding], hint: str) -> None:
        if len(findings) > 1:
            count = f"{len(findings)} secrets"
        else:
            count = "a secret"
        super().__init__(
            f"{count} would leave this machine; nothing was written\n{table(findings)}", hint
        )
        self.findings = findings


def without_secrets(redactor: Redactor, text: str) -> str:
    """Return the text with each secret replaced by as many asterisks as it has bytes."""
    pieces = Scan(redactor).over("", io.BytesIO(text.encode("utf-8", "replace")))
    return b"".join(pieces).decode("utf-8", "replace")


BATCH = 16 << 20
LARGEST = 64 << 20
"""Maximum size of a file that is searched, in bytes. Larger files are reported as not searched."""


def shown(name: str) -> str:
    """Return the display name for a path in a checkpoint's git tree. It shows whether the file is
    in the workdir, is staged, or is only in a commit of the run."""
    top, _, rest = name.partition("/")
    if rest:
        return {"worktree": rest, "index": f"{rest} (staged)"}.get(
            top, f"{name} (in a commit of the run)"
        )
    return name


def search(
    git: Git, commit: str, have: Sequence[str], scan: Scan, called: Callable[[str], str] = shown
) -> list[str]:
    """Search for secrets in the files that are in `commit` but in none of the commits `have`.
    Findings are added to `scan`.

    Return the display names of the files that are too large to search. `called` returns the display
    name for a path in the git tree.
    """
    large = []
    held: list[tuple[str, str]] = []
    size = 0
    for oid, name, length in _new(git, commit, have):
        if length > LARGEST:
            large.append(called(name))
            continue
        held.append((oid, name))
        size += length
        if size > BATCH:
            _search(git, held, scan, called)
            held, size = [], 0
    _search(git, held, scan, called)
    return large


def search_commits(git: Git, commit: str, have: Sequence[str], scan: Scan) -> None:
    """Search for secrets in the messages and authors of the commits that `commit` adds to the
    commits `have`. Findings are added to `scan` with `a commit` as the name of their file. Such a
    secret is in no file of the workdir, so leaving out a file would not remove it. Therefore
    `on_disk` returns an empty string for this name."""
    raw = git.run(
        "rev-list",
        "--format=raw",
        "--stdin",
        stdin=_since(commit, have),
        cap=1 << 28,
        timeout_s=1800.0,
    ).stdout
    scan.look("a commit's message or author", raw, file="a commit")


def _since(commit: str, have: Sequence[str]) -> bytes:
    return one_a_line([commit, *excluded(have)]).encode()


def _new(git: Git, commit: str, have: Sequence[str]) -> Iterator[tuple[str, str, int]]:
    """Yield id, path and size in bytes of each blob that is in `commit` but in none of the commits
    `have`. git names each blob once, by the first path that it finds."""
    said = git.run(
        "rev-list",
        "--objects",
        "--stdin",
        stdin=_since(commit, have),
        cap=1 << 30,
        timeout_s=1800.0,
    ).stdout
    names = {}
    for line in said.split(b"\n"):
        blob, _, name = line.partition(b" ")
        if name:
            names[blob.decode()] = os.fsdecode(name)
    asked = one_a_line(names).encode()
    told = git.run(
        "cat-file", "--batch-check", stdin=asked, cap=1 << 30, timeout_s=1800.0
    ).stdout.decode()
    for answer in told.splitlines():
        oid, kind, *length = answer.split(" ")
        if kind == "blob":
            yield oid, names[oid], int(length[0])


def _search(
    git: Git, held: Sequence[tuple[str, str]], scan: Scan, called: Callable[[str], str]
) -> None:
    if not held:
        return
    asked = "".join(f"{oid}\n" for oid, _ in held).encode()
    said = memoryview(
        git.run(
            "cat-file", "--batch", stdin=asked, cap=BATCH + 2 * LARGEST, timeout_s=1800.0
        ).stdout
    )
    at = 0
    for oid, name in held:
        end = bytes(said[at : at + 200]).index(b"\n") + at
        length = int(bytes(said[at:end]).split(b" ")[2])
        at = end + 1 + length + 1
        scan.look(called(name), bytes(said[end + 1 : end + 1 + length]), name, oid)


def on_disk(name: str) -> str:
    """Return the path in the workdir for a name in a checkpoint's git tree. Names below `worktree/`
    (files) and `index/` (staged content) have such a path. Return an empty string for every other
    name: it belongs to a commit of the run."""
    top, _, rest = name.partition("/")
    if top in ("worktree", "index"):
        return unescape(rest)
    return ""
