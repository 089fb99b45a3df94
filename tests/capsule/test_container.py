"""Capsules as files: equal contents give equal bytes, and nothing of a capsule is used before it is
checked."""

from __future__ import annotations

import hashlib
import io
import json
import os
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from perdure.capsule import container, verification
from perdure.capsule import manifest as manifests
from perdure.capsule.container import MAGIC, Capsule
from perdure.capsule.manifest import PART, CapsuleFile, Part
from perdure.errors import CapsuleError
from tests.capsule.making import Given, capsule, manifest

WHOLE = capsule()
PLAIN = json.loads(manifests.encode(manifest(Given())))


def unpack(content: bytes, near: Path) -> dict[str, bytes]:
    """Unpack a capsule as `imports` does, and return every file of it by name."""
    read = Capsule(io.BytesIO(content), "it")
    with verification.verified(read.manifest, read, near) as found:
        read.end()
        return {file.name: found.path(file).read_bytes() for file in read.manifest.files()}


def test_what_went_in_comes_out(tmp_path: Path) -> None:
    """Every file of a capsule is unpacked byte for byte, and the directory used for that is gone."""
    files = unpack(WHOLE, tmp_path)
    assert (
        files["main"] == b'{"type":"user"}\n' * 300
        and files["beside/tool-results/a b.txt"] == bytes(range(256)) * 9
    )
    assert list(tmp_path.iterdir()) == []


def test_equal_contents_give_equal_bytes() -> None:
    """Two capsules with the same contents are the same file, so a cache or a signature may use its
    bytes."""
    assert capsule() == WHOLE


def test_it_is_plain_zstd_behind_lengths(tmp_path: Path) -> None:
    """Without perdure the manifest can be read with the ordinary zstd program, as the reference
    says."""
    (length,) = struct.unpack(">I", WHOLE[40:44])
    told = subprocess.run(
        ["zstd", "-d", "-c"], input=WHOLE[44 : 44 + length], capture_output=True, check=True
    )
    assert json.loads(told.stdout)["name"] == "task"


@settings(max_examples=300)
@given(st.data())
def test_a_changed_capsule_is_refused_whole(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """A capsule whose bytes were flipped, cut, repeated or inserted either unpacks to exactly the
    same files, or is refused with a sentence. Nothing is left on the disk."""
    content = bytearray(WHOLE)
    for _ in range(data.draw(st.integers(1, 3))):
        if not content:
            break
        at = data.draw(st.integers(0, len(content) - 1))
        length = data.draw(st.integers(0, 40))
        match data.draw(st.sampled_from(["flip", "cut", "double", "put", "end"])):
            case "flip":
                content[at] ^= data.draw(st.integers(1, 255))
            case "cut":
                del content[at : at + length]
            case "double":
                content[at:at] = content[at : at + length]
            case "put":
                content[at:at] = data.draw(st.binary(max_size=40))
            case "end":
                del content[max(at, 1) :]
    near = tmp_path_factory.mktemp("near")
    try:
        files = unpack(bytes(content), near)
    except CapsuleError as error:
        assert str(error) and error.hint
    else:
        assert files == unpack(WHOLE, near)
    assert list(near.iterdir()) == []


NAMES = [
    "../../x",
    "/etc/passwd",
    "a/../b",
    "",
    ".",
    "..",
    "a\0b",
    "a\nb",
    "\ud800",
    "con\u202e",
    "x" * 300,
    "hooks/x",
    "A" * 64,
    "0" * 64,
]
HOSTILE = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.sampled_from(NAMES)
    ),
    lambda children: (
        st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=9), children, max_size=3)
    ),
    max_leaves=6,
)


def places(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path (keys and indexes) of every value in a JSON value."""
    inside = (
        node.items()
        if isinstance(node, dict)
        else enumerate(node)
        if isinstance(node, list)
        else ()
    )
    return [path, *(each for key, value in inside for each in places(value, (*path, key)))]


@settings(max_examples=400)
@given(st.sampled_from(places(PLAIN)), HOSTILE)
def test_a_hostile_manifest_is_refused_in_words(place: tuple[Any, ...], value: Any) -> None:
    """A manifest with an arbitrary value in any place is either read or refused with a sentence. No
    other error occurs."""
    changed = json.loads(json.dumps(PLAIN))
    if not place:
        changed = value
    else:
        node = changed
        for key in place[:-1]:
            node = node[key]
        node[place[-1]] = value
    try:
        found = manifests.read(json.dumps(changed).encode())
    except CapsuleError:
        return
    for file in found.files():
        assert (
            not file.name.startswith("/")
            and ".." not in file.name.split("/")
            and file.name.isprintable()
        )


NO_MANIFESTS = [
    *(
        b"",
        b"nothing",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"format":1,"format":1}',
        b'{"format":1}',
    ),
    *(
        b'{"format":' + value + b"}"
        for value in (b"NaN", b"Infinity", b"1e999", b"9" * 5000, b"true", b'"1"', b"2")
    ),
    *(b'{"format":1,"name":"\\ud800"}', b" " * (manifests.LONGEST_MANIFEST + 1)),
]


@pytest.mark.parametrize("number", [b"1e999", b"-1e999"])
def test_a_number_that_would_be_infinite_is_refused(number: bytes) -> None:
    """Every part of a capsule in JSON is read so that no limit in it can become infinite."""
    with pytest.raises(CapsuleError, match="too large"):
        manifests.strict_json(b'{"timeout_s": ' + number + b"}")


@pytest.mark.parametrize("content", NO_MANIFESTS, ids=lambda content: repr(content[:24]))
def test_what_is_no_manifest_is_refused_in_words(content: bytes) -> None:
    """Deep nesting, duplicate fields, missing fields, infinite and overlong numbers, lone
    surrogates and other formats are each refused with one sentence and no traceback."""
    with pytest.raises(CapsuleError) as caught:
        manifests.read(content)
    assert "\n" not in str(caught.value)


LEADING_OUT = [
    "/x",
    "../x",
    "a/../x",
    "a//b",
    "",
    ".",
    "a/.",
    "a\0",
    "a\nb",
    "a\\b",
    "x" * 256,
    "a/" * 20 + "b",
    "\u202eb",
]
FORBIDDEN_NAMES = [
    "b/.credentials.json",
    "auth.json",
    "x/oauth_creds.json",
    "settings.local.json",
    "hooks/run.sh",
    ".mcp.json",
    "x/config.toml",
    "AUTH.JSON",
]


@pytest.mark.parametrize("name", [*LEADING_OUT, *FORBIDDEN_NAMES])
def test_a_name_that_could_lead_out_or_is_never_carried_is_refused(name: str) -> None:
    """Paths that climb, absolute paths, hidden characters, credentials, settings, hooks and servers
    are refused in a manifest."""
    with pytest.raises(CapsuleError):
        manifests.check_path(name)


def _framed(*frames_: bytes, digest: bytes = bytes(32)) -> bytes:
    return MAGIC + digest + b"".join(struct.pack(">I", len(each)) + each for each in frames_)


def test_a_bomb_is_refused_before_it_unfolds(tmp_path: Path) -> None:
    """A compressed frame that would unpack to more than a hundred times its size, or to more than a
    part may hold, is not unpacked."""
    bomb = zstandard.ZstdCompressor(level=19).compress(bytes(PART))
    assert len(bomb) * 100 < PART
    digest = container.part_of(bytes(PART))
    lying = manifest(Given(), journal=CapsuleFile("journal.jsonl", PART, digest.sha256, (digest,)))
    told = manifests.encode(lying)
    content = _framed(
        container.frame(told), container.frame(b"{}"), bomb, digest=hashlib.sha256(told).digest()
    )
    with pytest.raises(CapsuleError, match="unpack to more"):
        unpack(content, tmp_path)
    manifest_bomb = zstandard.ZstdCompressor().compress(b" " * (12 << 20))
    with pytest.raises(CapsuleError, match="unpack to more"):
        unpack(_framed(manifest_bomb), tmp_path)
    nameless = zstandard.ZstdCompressor(write_content_size=False).compress(b"{}")
    with pytest.raises(CapsuleError, match="unpack to more"):
        unpack(_framed(nameless), tmp_path)


@pytest.mark.parametrize("content", [bytes(PART), b"a" * 5000, os.urandom(PART), b"x"])
def test_perdure_keeps_to_its_own_limits(content: bytes) -> None:
    """perdure can read what it writes: zeros are padded up to the ratio, and incompressible data
    still fits."""
    packed = container.frame(content)
    assert len(packed) * 100 >= len(content)
    assert container.unframe(packed, container.part_of(content)) == content


def test_more_than_the_disk_holds_is_refused_at_once(tmp_path: Path) -> None:
    """A capsule whose stated size is over the limit, or over the free space, is refused before
    anything is written."""
    part = Part("0" * 64, PART)
    for count in (20_000, 190_000):
        huge = manifest(
            Given(), journal=CapsuleFile("journal.jsonl", PART * count, "0" * 64, (part,) * count)
        )
        with pytest.raises(CapsuleError, match=r"at most 64 GiB|MiB free"):
            verification.refuse_too_large(huge, tmp_path)


def test_a_link_in_the_way_is_not_written_through(tmp_path: Path) -> None:
    """A file is created, never written through a link, even if another process put a link in its
    place."""
    given = Given()
    file = given.file("main", b"mine")
    (tmp_path / "victim").write_text("kept")
    (tmp_path / "0").symlink_to(tmp_path / "victim")
    with pytest.raises(CapsuleError):
        verification._fetch_file(file, given, tmp_path / "0")
    assert (tmp_path / "victim").read_text() == "kept"
