"""The end of a failed job's log, on whichever host the forge keeps it. No other host gets a
request."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from perdure.errors import ForgeRefused
from perdure.forge.clients import http
from perdure.forge.clients.connections import JSON, connect
from perdure.forge.clients.github import ACCEPT, LOG_HOSTS, GitHub
from perdure.forge.clients.http import HttpClient
from perdure.forge.clients.tokens import ForgeToken
from perdure.model.forge.deliveries import Forge
from tests.servers.forge import SmallForge, gitea, github, gitlab

REPOSITORY, COMMIT, TOKEN = "shop/web", "ab" * 20, "t0ken"
DIALECTS: list[tuple[Forge, Any]] = [
    (Forge.GITHUB, github),
    (Forge.GITEA, gitea),
    (Forge.FORGEJO, gitea),
    (Forge.GITLAB, gitlab),
]


@pytest.fixture(params=DIALECTS, ids=lambda value: value[0].value)
def small(request: pytest.FixtureRequest) -> Iterator[SmallForge]:
    kind, dialect = request.param
    with SmallForge(dialect, check=getattr(dialect, "check", None)) as found:
        found.kind = kind  # type: ignore[attr-defined]
        found.state.person("dev-bot", TOKEN)
        found.state.repository(REPOSITORY, dev_bot="write")
        found.state.repositories[REPOSITORY].named["main"] = COMMIT
        yield found


def token() -> ForgeToken:
    return ForgeToken("a test", held=TOKEN)


def test_the_log_of_each_failed_job(small: SmallForge) -> None:
    """Each failed check is reported with its log and its address. A passed check is left out. For a
    repeated job only the newest result counts."""
    state = small.state
    state.job(REPOSITORY, COMMIT, "build", log="an old failure")
    state.job(REPOSITORY, COMMIT, "build", log="the newest failure")
    state.job(REPOSITORY, COMMIT, "lint", log="repaired since")
    state.job(REPOSITORY, COMMIT, "lint", "success", log="fine")
    state.job(REPOSITORY, COMMIT, "gone")
    with closing(connect(small.kind, small.url, token())) as forge:  # type: ignore[attr-defined]
        # A status of Gitea's own Actions has the name of its workflow before that of the job.
        failed = forge.failed_checks(REPOSITORY, COMMIT)
        found = {each.name.removeprefix("CI / ").removesuffix(" (push)"): each for each in failed}
    assert set(found) == {"build", "gone"}
    assert (found["build"].log, found["build"].note) == ("the newest failure", "") and found[
        "build"
    ].url.startswith("http")
    assert found["gone"].log == "" and found["gone"].note.startswith("There is no log: ")


def test_no_more_logs_than_a_few(small: SmallForge) -> None:
    """If many jobs failed, only the logs of the first few are read. For each other job the report
    says that its log was not read."""
    for number in range(9):
        small.state.job(REPOSITORY, COMMIT, f"job {number}", log=f"log {number}")
    with closing(connect(small.kind, small.url, token())) as forge:  # type: ignore[attr-defined]
        found = forge.failed_checks(REPOSITORY, COMMIT)
    assert len(found) == 9 and sum(bool(each.log) for each in found) == 5
    assert {each.note for each in found if not each.log} == {
        "Its log was not read: at most 5 logs are."
    }


@contextmanager
def storage(body: bytes) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """Run a host that stores logs. Yield its address, and the list of the headers that it gets."""
    asked: list[dict[str, str]] = []

    class One(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None: ...

        def do_GET(self) -> None:
            asked.append({name.lower(): value for name, value in self.headers.items()})
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), One)
    thread = threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
    )
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.parametrize("known", [True, False])
def test_a_log_on_another_host(known: bool) -> None:
    """GitHub redirects to the host that stores the log. perdure asks that host only if it is one of
    GitHub's, and without the token."""
    with SmallForge(github) as small, storage(b"it broke") as (host, asked):
        small.state.person("dev-bot", TOKEN)
        small.state.repository(REPOSITORY, dev_bot="write").logs = f"http://{host}/"
        small.state.job(REPOSITORY, COMMIT, "build", log="elsewhere")
        client = HttpClient(f"{small.url}/api/v3", token(), "Bearer", ACCEPT, None)
        with closing(GitHub(small.url, client, (host,) if known else LOG_HOSTS)) as forge:
            (found,) = forge.failed_checks(REPOSITORY, COMMIT)
    if known:
        assert (found.log, found.note) == ("it broke", "")
        assert len(asked) == 1 and "authorization" not in asked[0]
    else:
        assert (
            found.log == ""
            and "redirects a log to http://127.0.0.1, which perdure does not follow" in found.note
        )
        assert asked == []


@pytest.mark.parametrize("target", ["https://evil.example/x", "https://x.blob.core.windows.net.evil.example/x", "http://x.blob.core.windows.net/x",
                                    "//evil.example", "file:///etc/passwd", "http://["])  # fmt: skip
def test_a_redirect_to_nobody_knows_where(target: str) -> None:
    """A redirect to another host, to plain http or to an invalid address is not followed, and the
    check is reported without a log."""
    with SmallForge(github) as small:
        small.state.person("dev-bot", TOKEN)
        small.state.repository(REPOSITORY, dev_bot="write")
        small.state.job(REPOSITORY, COMMIT, "build", log="elsewhere")
        client = HttpClient(f"{small.url}/api/v3", token(), "Bearer", ACCEPT, None)
        with closing(GitHub(small.url, client)) as forge:
            small.state.repositories[REPOSITORY].logs = target
            (found,) = forge.failed_checks(REPOSITORY, COMMIT)
    assert found.log == "" and found.note.startswith("There is no log: ")


def test_only_the_end_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the end of a long log is kept in memory. A log that is far too long is not read further."""
    long = b"begin" + b"x" * 3_000_000 + b"end"
    with (
        storage(long) as (host, _),
        closing(HttpClient(f"http://{host}", token(), "token", JSON, None)) as client,
    ):
        found = client.tail("log")
        assert len(found) == http.LOG_KEPT and found.endswith("xend")
        monkeypatch.setattr(http, "LOG_MOST", 2_000_000)
        with pytest.raises(ForgeRefused, match="more than 1 MiB"):
            client.tail("log")
