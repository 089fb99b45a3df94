"""The relay of a pod refuses all but a few kinds of requests, because it protects credentials from
a hostile agent."""

from __future__ import annotations

import http.client
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

import pytest

from perdure.capsule import manifest as manifests
from perdure.capsule.container import LONGEST_FRAME, frame, part_of
from perdure.capsule.objects import CheckpointStore, RelayedBucket, Term, TooLarge, open_store
from perdure.errors import CapsuleError, Conflict, NotFound, StoreAway
from perdure.host import relay
from perdure.kubernetes.relay.forge import Upstream
from perdure.kubernetes.relay.server import RelayServer
from perdure.kubernetes.relay.store_access import RelayRefused, RunStoreAccess
from tests.capsule.making import Given, manifest
from tests.servers.githttp import GitHttp, serving

RUN, OTHER, LENDER = "0" * 32, "1" * 32, "2" * 32
NAMES = ("task", "task-00000000")


@contextmanager
def running(
    forge: Upstream | None, shelf: RunStoreAccess | None, at: Path
) -> Iterator[relay.RelayAddress]:
    """Run a relay, and write its address into a directory. It ends with the block."""
    server = RelayServer(forge, shelf)
    Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    at.mkdir(exist_ok=True)
    relay.write(at, server.address())
    try:
        yield server.address()
    finally:
        server.shutdown()
        server.server_close()


def ask(
    address: relay.RelayAddress, verb: str, path: str, body: bytes = b"", **headers: str
) -> tuple[int, bytes]:
    line = http.client.HTTPConnection("127.0.0.1", address.port, timeout=30)
    try:
        line.putrequest(verb, path, skip_host=True, skip_accept_encoding=True)
        for name, value in {"Host": "x", "Content-Length": str(len(body)), **headers}.items():
            line.putheader(name.replace("_", "-"), value)
        line.endheaders(body)
        answer = line.getresponse()
        return answer.status, answer.read()
    finally:
        line.close()


@pytest.fixture
def forge(tmp_path: Path, repository: Path) -> Iterator[GitHttp]:
    with serving(tmp_path / "served", "the-password") as server:
        server.make("r", repository)
        server.make("other", repository)
        yield server


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    """Make a store that has a checkpoint of another run."""
    made = open_store((tmp_path / "store").as_uri())
    given = Given()
    for run in (OTHER, LENDER):
        made.begin(run, Term(number=1, owner="x", at=1))
        held = manifest(given, run=run, name=f"run-{run[0]}")
        made.publish(run, 1, 1, held)
    return made


@pytest.mark.parametrize(
    ("verb", "path"),
    [
        ("POST", "/git/git-receive-pack"),
        ("GET", "/git/info/refs?service=git-receive-pack"),
        ("GET", "/git/info/refs"),
        ("GET", "/git/info/refs?service=git-upload-pack&x=1"),
        ("GET", "/git/../other.git/info/refs?service=git-upload-pack"),
        ("GET", "/git//other.git/info/refs?service=git-upload-pack"),
        ("GET", "/git/HEAD"),
        ("GET", "/git/objects/info/packs"),
        ("GET", "/git/git-upload-pack"),
        ("PUT", "/git/git-upload-pack"),
        ("GET", "/objects/members/" + "0" * 64),
        ("GET", "http://127.0.0.1/git/info/refs?service=git-upload-pack"),
    ],
)
def test_only_two_requests_reach_the_forge(
    verb: str, path: str, forge: GitHttp, tmp_path: Path
) -> None:
    """A push, another path, another repository, and a request of git's old HTTP protocol are all
    refused before anything is sent to the forge."""
    upstream = Upstream(forge.url("r"), ("ada", "the-password"), {})
    with running(upstream, None, tmp_path / "at") as address:
        status, said = ask(address, verb, f"/{address.secret}{path}")
        assert status in (403, 404), said
        assert b"the-password" not in said and forge.asked == []
        good = f"/{address.secret}/git/info/refs?service=git-upload-pack"
        assert ask(address, "GET", good)[0] == 200


def test_headers_of_the_agent_s_do_not_pass(forge: GitHttp, tmp_path: Path) -> None:
    """The relay always signs in with its own login, whatever the request contains, and no header of
    the request can name another host."""
    upstream = Upstream(forge.url("r"), ("ada", "the-password"), {})
    with running(upstream, None, tmp_path / "at") as address:
        path = f"/{address.secret}/git/info/refs?service=git-upload-pack"
        told = {"Authorization": "Basic eDp5", "X_Forwarded_Host": "evil", "Cookie": "a=b"}
        status, said = ask(address, "GET", path, **told)
        assert status == 200 and b"service=git-upload-pack" in said
        assert forge.users == {"ada"}


def test_without_the_word_nothing_is_answered(forge: GitHttp, tmp_path: Path) -> None:
    """A request without the relay's secret word gets 404, for each path."""
    upstream = Upstream(forge.url("r"), ("ada", "the-password"), {})
    with running(upstream, None, tmp_path / "at") as address:
        for word in ("", "x", address.secret[:-1], address.secret + "x", "%C3%A9"):
            path = f"/{word}/git/info/refs?service=git-upload-pack"
            assert ask(address, "GET", path)[0] == 404
        assert forge.asked == []


def test_a_redirect_is_not_followed(tmp_path: Path, forge: GitHttp) -> None:
    """If the server answers with 401 or is down, git gets an answer that has the reason and does
    not make it ask for a login."""
    upstream = Upstream(forge.url("r"), ("ada", "wrong"), {})
    with running(upstream, None, tmp_path / "at") as address:
        path = f"/{address.secret}/git/info/refs?service=git-upload-pack"
        assert ask(address, "GET", path) == (403, b"perdure: the server refused the credentials")
        forge.down = True
        assert ask(address, "GET", path)[0] == 503
    gone = Upstream("http://127.0.0.1:1/r.git", None, {})
    with running(gone, None, tmp_path / "at") as address:
        path = f"/{address.secret}/git/info/refs?service=git-upload-pack"
        status, said = ask(address, "GET", path)
        assert status == 502 and b"127.0.0.1 cannot be reached" in said


def test_a_run_reads_and_writes_its_own_checkpoints(tmp_path: Path, store: CheckpointStore) -> None:
    """A store that is used through the relay keeps the promises of a store, for terms, manifests
    and parts."""
    at = tmp_path / "at"
    with running(None, RunStoreAccess(store, RUN, NAMES), at):
        own = open_store(f"relay://{at}")
        assert own.url == store.url and own.runs() == [] and own.term(RUN) is None
        own.begin(RUN, Term(number=1, owner="me", at=1))
        with pytest.raises(Conflict):
            own.begin(RUN, Term(number=1, owner="me", at=2))
        part = part_of(b"content")
        assert not own.has(part)
        own.put(part, frame(b"content"))
        assert own.has(part)
        given = Given()
        made = manifest(given, run=RUN)
        for file in made.files():
            for each, content in zip(file.parts, given.parts(file), strict=True):
                own.put(each, frame(content))
        own.publish(RUN, 1, 1, made)
        assert own.newest(RUN)[1] == made == store.newest(RUN)[1]
        assert own.runs() == [RUN]


def test_other_runs_are_out_of_reach(tmp_path: Path, store: CheckpointStore) -> None:
    """Another run cannot be listed, read or written, and no key leads out of the store."""
    at = tmp_path / "at"
    with running(None, RunStoreAccess(store, RUN, NAMES), at) as address:
        own = open_store(f"relay://{at}")
        assert own.runs() == []
        for attempt in (
            lambda: own.term(OTHER),
            lambda: own.newest(OTHER),
            lambda: own.begin(OTHER, Term(number=2, owner="me", at=1)),
            lambda: own.manifest(OTHER, "000001-00000001.json"),
        ):
            with pytest.raises(CapsuleError, match="refuses"):
                attempt()
        keys = (
            f"runs/{OTHER}/000001-00000001.json",
            f"runs/{RUN}/../{OTHER}/000001-00000001.json",
            f"runs/{RUN}/%2e%2e/{OTHER}/000001-00000001.json",
            "../../etc/passwd",
            "members/../runs",
            f"members/{'A' * 64}",
            f"runs/{RUN}/terms/1.json",
            f"runs/{RUN}/000001-00000001.json\n",
            "",
        )
        for key in keys:
            for verb in ("GET", "HEAD", "PUT", "POST"):
                path = f"/{address.secret}/objects/{key}".replace("\n", "%0A")
                assert ask(address, verb, path)[0] == 403, (verb, key)
        for verb in ("DELETE", "PATCH", "COPY"):
            assert ask(address, verb, f"/{address.secret}/objects/{keys[0]}")[0] == 501
        assert store.term(OTHER).number == 1  # type: ignore[union-attr]


def test_the_run_that_lends_its_conversation_is_only_read(
    tmp_path: Path, store: CheckpointStore
) -> None:
    """If resume.from names another TaskRun, its checkpoints can be read but not written."""
    at = tmp_path / "at"
    with running(None, RunStoreAccess(store, RUN, NAMES, "run-2"), at):
        own = open_store(f"relay://{at}")
        assert own.runs() == [LENDER] and own.newest(LENDER)[1].name == "run-2"
        with pytest.raises(CapsuleError, match="refuses"):
            own.begin(LENDER, Term(number=2, owner="me", at=1))
        with pytest.raises(CapsuleError, match="refuses"):
            own.newest(OTHER)
    with running(None, RunStoreAccess(store, RUN, NAMES, "nobody"), at):
        assert open_store(f"relay://{at}").runs() == []


@pytest.mark.parametrize(("run", "name"), [(RUN, "run-1"), (OTHER, "task")])
def test_a_manifest_is_that_of_its_run(
    tmp_path: Path, store: CheckpointStore, run: str, name: str
) -> None:
    """A checkpoint of this run cannot have another run's name or id. Otherwise somebody who looks
    for that run would get this one."""
    at = tmp_path / "at"
    with running(None, RunStoreAccess(store, RUN, NAMES), at):
        content = manifests.encode(manifest(Given(), run=run, name=name))
        with pytest.raises(CapsuleError, match="another run"):
            RelayedBucket(at).create(f"runs/{RUN}/000001-00000001.json", content)
    assert not store.objects.names(f"runs/{RUN}").objects


def test_a_part_is_what_its_name_says(tmp_path: Path, store: CheckpointStore) -> None:
    """A part that other runs may use cannot be replaced. Content that does not have the digest in
    its name is refused, and so is content that unpacks to more than a part may hold."""
    part = part_of(b"shared by all")
    store.put(part, frame(b"shared by all"))
    at = tmp_path / "at"
    with running(None, RunStoreAccess(store, RUN, NAMES), at):
        own = RelayedBucket(at)
        for content in (frame(b"poison"), b"no frame", b"", frame(bytes(5 << 20))):
            with pytest.raises(CapsuleError, match="refuses"):
                own.put(f"members/{part.sha256}", content)
        # The relay may close the connection before all of it was sent.
        with pytest.raises((CapsuleError, OSError)):
            own.put(f"members/{part.sha256}", bytes(6 << 20))
        with pytest.raises(TooLarge):
            own.get(f"members/{part.sha256}", 3)
        # A valid frame with so much data after it that it is over every reader's limit.
        large = frame(b"shared by all") + bytes(LONGEST_FRAME)
        with pytest.raises(RelayRefused, match="larger"):
            RunStoreAccess(store, RUN, NAMES).put(f"members/{part.sha256}", large)
        with pytest.raises(FileNotFoundError):
            own.get(f"members/{'0' * 64}", 3)
    assert store.objects.get(f"members/{part.sha256}", 1000) == frame(b"shared by all")


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Length": f"{LONGEST_FRAME + 1:030}"},
        {"Content-Length": "-1"},
        {"Transfer-Encoding": "chunked"},
    ],
)
def test_the_length_of_a_request_is_bounded(
    tmp_path: Path, store: CheckpointStore, headers: dict[str, str]
) -> None:
    """A length with many leading zeros, and a negative one, are refused before the content is
    read."""
    with running(None, RunStoreAccess(store, RUN, NAMES), tmp_path / "at") as address:
        line = http.client.HTTPConnection("127.0.0.1", address.port, timeout=30)
        line.putrequest("PUT", f"/{address.secret}/objects/members/{'0' * 64}", skip_host=True)
        for name, value in {"Host": "x", **headers}.items():
            line.putheader(name, value)
        line.endheaders(b"-1\r\n" if "Transfer-Encoding" in headers else None)
        try:
            assert line.getresponse().status == 413
        except (ConnectionError, http.client.RemoteDisconnected):
            assert "Transfer-Encoding" in headers
        line.close()


def test_a_relay_that_is_gone_is_tried_again_later(tmp_path: Path, store: CheckpointStore) -> None:
    """While the relay is down, its store counts as temporarily unavailable. When the relay is back
    at another port, it is found."""
    at = tmp_path / "at"
    with running(None, RunStoreAccess(store, RUN, NAMES), at):
        own = open_store(f"relay://{at}")
        assert own.term(RUN) is None
    with pytest.raises(StoreAway):
        own.term(RUN)
    with running(None, RunStoreAccess(store, RUN, NAMES), at):
        assert own.term(RUN) is None
        with pytest.raises(NotFound):
            own.newest(RUN)
