"""The manifest of a capsule: the run, the checkpoint and the list of files, with the digests of
their parts. `assembly` makes a manifest, `container` and `objects` store it, and `verification`
checks the files against it.

A manifest may come from anywhere and is not trusted. Before it is used, `read` refuses data that is
too large or too deep, duplicate names, numbers that are not finite, and names that could lead out
of a directory. docs/reference/capsule.md specifies the format for other programs.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Any, NoReturn

import msgspec

from perdure.errors import CapsuleError, UsageError
from perdure.model.codec import resolved
from perdure.workspace.identity import check_saved_branch

FORMAT = 1

PART = 4 << 20
"""Size of a part, in bytes; the last part of a file may be shorter."""
LONGEST_MANIFEST = 16 << 20
MOST_FILES = 50_000
MOST_PARTS = 200_000
MOST_PACKS = 100
DEEPEST = 40
LONGEST_NUMBER = 18
"""Maximum number of digits of a number in a manifest. No valid size or time has more digits."""

_DIGEST = re.compile(r"[0-9a-f]{64}")
_OID = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_RUN = re.compile(r"[0-9a-f]{32}")
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_SESSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")


class Part(msgspec.Struct, frozen=True):
    """A piece of a file, identified by its SHA-256. A capsule has the parts of a file in order. An
    object store has each part as `members/{sha256}`."""

    sha256: str
    size: int


class CapsuleFile(msgspec.Struct, frozen=True):
    """A file of a capsule, as a list of parts. `name` is a relative path. Files of different
    conversations may have the same name."""

    name: str
    size: int
    sha256: str
    parts: tuple[Part, ...]


class CapsuleConversation(msgspec.Struct, frozen=True, kw_only=True):
    """A conversation: its transcript at the checkpoint, and the files that belong to it."""

    agent: str
    id: str
    main: CapsuleFile
    beside: tuple[CapsuleFile, ...] = ()


class CapsuleWorkdir(msgspec.Struct, frozen=True, kw_only=True):
    """The checkpoint's commit, and the git packs that contain it. `base` is the commit at which the
    run began. Commits before `base` are not included."""

    commit: str
    base: str = ""
    shallow: tuple[str, ...] = ()
    """Commits whose parents are not in the packs."""
    head: str = ""
    branch: str = ""
    packs: tuple[CapsuleFile, ...] = ()
    """Git packs, in order. Each may need objects of the packs before it."""
    tips: tuple[str, ...] = ()
    """For each pack, the commit that it adds. The last one equals `commit`."""


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """The description of one checkpoint of one run, with the list of its files."""

    format: int
    perdure: str
    """The version of perdure that wrote the manifest."""
    run: str
    """The id that the run has on the machine where it began. It is the same in all capsules of the
    run."""
    name: str
    agent: str
    agent_version: str = ""
    number: int
    """The number of the checkpoint among those of the run's workdir."""
    attempt: int
    at: int
    """Time at which the checkpoint was taken, in ms since 1970."""
    context_version: int = 0
    """The newest version of the instructions that the conversation has received."""
    story: CapsuleFile
    """The run with its spec, instructions, attempts, receipts and sessions, as JSON."""
    journal: CapsuleFile
    """The run's records, one per line."""
    conversations: tuple[CapsuleConversation, ...] = ()
    """The run's own conversation, followed by the conversations that it continues."""
    given: tuple[CapsuleFile, ...] = ()
    """Contents of task files, named by their digests: the newest versions, and the earlier versions
    with which an update is merged."""
    workdir: CapsuleWorkdir | None = None
    redacted: int = 0
    """Number of secrets that were replaced by asterisks in conversations and records."""
    left_out: tuple[str, ...] = ()
    """Names of files that are in the checkpoint but not in the capsule. Either the file contains a
    secret and the user asked to leave it out, or no capsule may contain a file of this name."""

    def files(self) -> Iterator[CapsuleFile]:
        """Yield all files, in the order of their parts in a capsule."""
        yield self.story
        yield self.journal
        for carried in self.conversations:
            yield carried.main
            yield from carried.beside
        yield from self.given
        if self.workdir is not None:
            yield from self.workdir.packs

    @property
    def size(self) -> int:
        """The total size of all files, in bytes."""
        return sum(file.size for file in self.files())


def encode(manifest: Manifest) -> bytes:
    """Return the manifest as bytes. Equal manifests give equal bytes."""
    return (
        msgspec.json.format(msgspec.json.encode(manifest, order="deterministic"), indent=1) + b"\n"
    )


def read(content: bytes) -> Manifest:
    """Return a manifest from untrusted bytes. Raises CapsuleError if they are not a valid
    manifest."""
    if len(content) > LONGEST_MANIFEST:
        _refuse("it is too long")
    plain = strict_json(content)
    if not isinstance(plain, dict):
        _refuse("expected an object")
    if type(plain.get("format")) is not int or plain["format"] != FORMAT:
        if type(plain.get("format")) is int:
            shown = plain.get("format")
        else:
            shown = "none"
        raise CapsuleError(
            f"the capsule has format {shown}; this perdure reads format {FORMAT}",
            "use a newer perdure",
        )
    try:
        manifest = msgspec.convert(plain, resolved(Manifest), strict=True)
    except msgspec.ValidationError as error:
        _refuse(str(error))
    _check(manifest)
    return manifest


def strict_json(content: bytes) -> Any:
    """Parse JSON strictly, and return the value. Raises CapsuleError for duplicate names, for NaN
    and infinite numbers, and for numbers that are too long or values that are nested too deeply."""
    depth = 0
    for mark in re.finditer(rb'"(?:[^"\\]|\\.)*"|[\[{]|[\]}]', content, re.DOTALL):
        depth += (mark[0] in (b"[", b"{")) - (mark[0] in (b"]", b"}"))
        if depth > DEEPEST:
            _refuse("it is nested too deeply")
    try:
        # Refuse lone surrogates here. Otherwise they would break the database and the terminal
        # later.
        found = json.loads(
            content.decode("utf-8"),
            object_pairs_hook=_reject_duplicate_keys,
            parse_constant=_no_constant,
            parse_float=_parse_float,
            parse_int=_parse_integer,
        )
        json.dumps(found, ensure_ascii=False).encode("utf-8")
    except CapsuleError:
        raise
    except (ValueError, RecursionError) as error:  # UnicodeError is a subclass of ValueError
        _refuse(f"it is not JSON: {str(error)[:100]}")
    return found


def _reject_duplicate_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        _refuse("it has the same key twice")
    return found


def _no_constant(word: str) -> NoReturn:
    _refuse(f"{word} is not a number")


def _parse_integer(digits: str) -> int:
    if len(digits) > LONGEST_NUMBER:
        _refuse("a number in it is too long")
    return int(digits)


def _parse_float(digits: str) -> float:
    """Parse a number with a fraction or an exponent. Python would read `1e999` as infinity."""
    value = float(digits)
    if not math.isfinite(value):
        _refuse("a number in it is too large")
    return value


def _check(manifest: Manifest) -> None:
    """Check the syntax of all names, ids and digests, and that the sizes of parts add up. Raises
    CapsuleError."""
    _match(_RUN, manifest.run, "run")
    _match(_NAME, manifest.name, "name")
    _match(_WORD, manifest.agent, "agent")
    if (
        min(
            manifest.number,
            manifest.attempt,
            manifest.at,
            manifest.context_version,
            manifest.redacted,
        )
        < 0
    ):
        _refuse("a number in it is negative")
    for carried in manifest.conversations:
        _match(_WORD, carried.agent, "agent")
        _match(_SESSION, carried.id, "conversation")
        names = [file.name for file in carried.beside]
        _refuse_doubles(names)
    if (workdir := manifest.workdir) is not None:
        _match(_OID, workdir.commit, "commit")
        for oid in filter(None, (workdir.base, workdir.head, *workdir.tips, *workdir.shallow)):
            _match(_OID, oid, "commit")
        if len(workdir.tips) > MOST_PACKS or len(workdir.shallow) > MOST_FILES:
            _refuse("it lists too many files")
        if workdir.branch:
            check_branch(workdir.branch)
        if (
            not workdir.packs
            or len(workdir.tips) != len(workdir.packs)
            or workdir.tips[-1] != workdir.commit
        ):
            _refuse("the workdir's packs are not complete")
    files = parts = 0
    for file in manifest.files():
        check_path(file.name)
        files, parts = files + 1, parts + len(file.parts)
        if files > MOST_FILES or parts > MOST_PARTS:
            _refuse("it lists too many files")
        _match(_DIGEST, file.sha256, "digest")
        for part in file.parts:
            _match(_DIGEST, part.sha256, "digest")
            if not 0 < part.size <= PART:
                _refuse("the size of a part is impossible")
        if sum(part.size for part in file.parts) != file.size:
            _refuse(f"the parts of {file.name!r} do not add up to its size")


def check_branch(branch: str) -> None:
    """Raise CapsuleError if git does not allow this branch name, or if the name has characters that
    cannot be printed."""
    try:
        check_saved_branch(branch)
    except UsageError:
        _refuse(f"{branch[:60]!r} is not a valid branch name")
    if not branch.isprintable():
        _refuse(f"{branch[:60]!r} is not a valid branch name")


def _is_valid_part(part: str) -> bool:
    return part not in ("", ".", "..") and len(part.encode("utf-8", "replace")) <= 255


def check_path(name: str) -> None:
    """Raise CapsuleError if the name is not a plain relative path, or if no capsule may contain a
    file of this name."""
    parts = name.split("/")
    plain = (
        name.isprintable()
        and len(name.encode("utf-8", "replace")) <= 1024
        and len(parts) <= 16
        and "\\" not in name
    )
    if not plain or not all(map(_is_valid_part, parts)):
        _refuse(f"{name[:60]!r} is not a valid file name")
    if not is_carried(name):
        _refuse(f"{name[:60]!r} must not be in a capsule")


FORBIDDEN_NAMES = re.compile(
    r"(?:^|/)(?:\.credentials\.json|auth\.json|oauth_creds\.json|google_accounts\.json"
    r"|mcp-oauth-tokens(?:-v2)?\.json|settings[^/]*\.json"
    r"|\.mcp\.json|\.claude\.json|config\.toml|hooks(?:\.json)?|opencode\.jsonc?)(?:/|$)",
    re.IGNORECASE,
)
"""Pattern of the names of agents' files with credentials, settings, hooks or MCP servers. Such
files are in the same home directories as the conversations, but must never be in a capsule."""


def is_carried(name: str) -> bool:
    """Return whether a capsule may contain a file of this name."""
    return FORBIDDEN_NAMES.search(name) is None


def _match(pattern: re.Pattern[str], text: str, what: str) -> None:
    if not pattern.fullmatch(text):
        _refuse(f"{text[:60]!r} is not a valid {what}")


def _refuse_doubles(names: list[str]) -> None:
    if len(set(names)) != len(names):
        _refuse("it lists a file twice")


def _refuse(why: str) -> NoReturn:
    raise CapsuleError(
        f"the capsule's manifest cannot be used: {why}",
        "nothing was imported; ask for the capsule again",
    )
