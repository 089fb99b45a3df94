"""`perdure serve` as a process: it starts or says why not, notifies systemd, drains, and loses no
acknowledged delivery when it is killed."""

from __future__ import annotations

import json
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.forges import payloads
from tests.forges.payloads import SECRET
from tests.patience import PATIENCE_S
from tests.web import kills
from tests.web.serving import SOURCES, Serving, answered

REFUSED = [
    ("", ["--listen", "0.0.0.0:0"], {}, "can be reached from outside"),
    ("", ["--listen", "nowhere"], {}, "expected HOST:PORT"),
    ("", ["--listen", "127.0.0.1:99999"], {}, "expected HOST:PORT"),
    ("", ["--listen", "192.0.2.1:8420"], {}, "cannot be listened on"),
    ('[webhooks.a]\nsecret_env = "MISSING"\n', [], {}, "is empty"),
    ('[webhooks.a]\nsecret_env = "SHORT"\n', [], {"SHORT": "secret"}, "fewer than 16"),
    (
        '[webhooks.a]\nsecret_env = "WRONG"\n',
        [],
        {"WRONG": "whsec_this is not base64"},
        "signing secret",
    ),
    ('[webhooks.a]\nsecret_file = "/nowhere/secret"\n', [], {}, "cannot be read"),
    ('[webhooks.a]\nforge = "github"\n', [], {}, "needs a secret"),
    ('[webhooks.a]\nsecret_file = "relative"\n', [], {}, "absolute path"),
    ('[webhooks.a]\nsecret = "written down here"\n', [], {}, "no setting 'secret'"),
    (
        '[webhooks.a]\nforge = "cvs"\nsecret_env = "X"\n',
        [],
        {},
        "one of github, gitea, forgejo, gitlab",
    ),
    ('[webhooks."A/B"]\nsecret_env = "X"\n', [], {}, "part of an address"),
    ("webhooks = 7\n", [], {}, "[webhooks.NAME]"),
    ('[serve]\nhosts = ["a:1"]\n', [], {}, "without port"),
]


@pytest.mark.parametrize(
    ("config", "words", "environ", "says"), REFUSED, ids=[case[3] for case in REFUSED]
)
def test_a_start_that_is_refused(
    serves: Callable[..., Serving],
    config: str,
    words: list[str],
    environ: dict[str, str],
    says: str,
) -> None:
    """With an unsafe or invalid configuration the server does not start. It prints one sentence, ends
    with exit code 2, and makes nothing."""
    serving = serves(config, **environ)
    done = serving.perdure("serve", *words)
    assert done.returncode == 2 and says in done.stderr, done.stderr
    assert not serving.state.exists()


def test_the_host_of_the_public_address(serves: Callable[..., Serving]) -> None:
    """perdure answers requests to the host of its public address without another setting."""
    config = SOURCES.replace(
        "[serve]\n", '[serve]\npublic_url = "https://Perdure.example.com:8443/team"\n'
    )
    one = serves(config).start()
    for host in ("perdure.example.com", "hooks.example.com", "localhost"):
        assert one.send("/healthz", b"", {"host": host}, "GET") == (200, {"ok": True})
    assert one.send("/healthz", b"", {"host": "example.com"}, "GET")[0] == 421


def test_a_project_cannot_open_the_door(serves: Callable[..., Serving]) -> None:
    """The settings file of a repository cannot define webhook sources or change the server's
    address."""
    serving = serves("")
    (serving.home / "perdure.toml").write_text(
        '[webhooks.a]\nsecret_env = "HOME"\n[serve]\nlisten = "0.0.0.0:1"\n'
    )
    done = serving.perdure("serve")
    assert done.returncode == 2 and done.stderr.count("may not be set by a project") == 2


def test_systemd_is_told(serves: Callable[..., Serving], tmp_path: Path) -> None:
    """systemd gets READY=1 when the server listens, and STOPPING=1 when it ends. After SIGTERM the
    server exits with 0."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
        end.bind(str(tmp_path / "n"))
        end.settimeout(60)
        serving = serves(NOTIFY_SOCKET=str(tmp_path / "n")).start()
        assert end.recv(100) == b"READY=1"
        assert serving.send("/readyz", b"", {}, "GET")[0] == 200
        assert serving.stop() == 0
        assert end.recv(100) == b"STOPPING=1"


def test_a_drain_answers_what_is_under_way(serves: Callable[..., Serving]) -> None:
    """A delivery of which only half the body has arrived at SIGTERM is still stored and answered.
    Then the server ends."""
    serving = serves().start("--jobs", "1")
    body = payloads.raw("github", "push")
    headers = payloads.headers(payloads.Forge.GITHUB, "push", body) | {
        "host": "localhost",
        "content-length": str(len(body)),
    }
    head = (
        "POST /webhooks/hub HTTP/1.1\r\n"
        + "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        + "\r\n"
    )
    assert serving.process is not None
    with serving.raw() as connection:
        connection.sendall(head.encode() + body[:-1])
        assert serving.send("/healthz", b"", {}, "GET")[0] == 200
        serving.process.send_signal(signal.SIGTERM)
        serving.until(lambda: "draining" in serving.said(), "it drains")
        connection.sendall(body[-1:])
        assert answered(connection).startswith(b"HTTP/1.1 202")
    assert serving.process.wait(PATIENCE_S) == 0
    assert len(serving.inbox()) == 1


def test_a_fault_in_a_library_is_told(serves: Callable[..., Serving]) -> None:
    """A server that crashes (SIGSEGV) prints the stack of each of its threads."""
    serving = serves().start()
    assert serving.stop(signal.SIGSEGV) == -signal.SIGSEGV
    assert (
        "Segmentation fault" in serving.said() and "perdure/cli/server/serve.py" in serving.said()
    )


def test_killed_under_load(serves: Callable[..., Serving]) -> None:
    """The server is killed three times while senders send. Every acknowledged delivery is stored
    once, and all others are accepted when they are sent again."""
    found = kills.campaign(serves(), kills=3, seed=1)
    assert found.acknowledged >= 3 and not found.lost and not found.twice, found


def test_the_inbox_verb(serves: Callable[..., Serving]) -> None:
    """`ls`, `show` and `replay` of the inbox print text for a person or JSON. Text from the forge
    has no effect on the terminal."""
    serving = serves().start()
    serving.deliver("tea", id="one")
    body = payloads.derived(
        "gitea",
        "issue_comment_created",
        lambda found: found["issue"].update(title="x\x1b]0;owned\x07\u202ey"),
    )
    serving.send(
        "/webhooks/tea",
        body,
        payloads.headers(payloads.Forge.GITEA, "issue_comment", body, id="two-of-two"),
    )
    ping = payloads.raw("github", "ping")
    serving.send(
        "/webhooks/hub", ping, payloads.headers(payloads.Forge.GITHUB, "ping", ping, id="three")
    )
    listed = serving.perdure("inbox")
    assert (
        listed.returncode == 0
        and "commented gogits/hello-world#1" in listed.stdout
        and "no action for ping" in listed.stdout
    )
    rows = json.loads(
        serving.perdure("inbox", "--state", "received", "--source", "tea", "--json").stdout
    )
    assert rows["schema_version"] == 1 and [row["id"] for row in rows["deliveries"]] == [
        "two-of-two",
        "one",
    ]
    assert rows["deliveries"][1]["intent"]["text"] == "Got it"
    shown = serving.perdure("inbox", "show", "two-")
    assert (
        shown.returncode == 0
        and "\x1b" not in shown.stdout + listed.stdout
        and "\u202e" not in shown.stdout + listed.stdout
    )
    number = str(rows["deliveries"][0]["number"])
    replayed = serving.perdure("inbox", "replay", number)
    assert replayed.returncode == 0 and f"{number} is received again" in replayed.stdout
    assert serving.perdure("inbox", "show", "nobody").returncode == 5
    assert serving.perdure("inbox", "show").returncode == 2
    assert SECRET not in listed.stdout + shown.stdout
