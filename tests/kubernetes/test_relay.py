"""The relay of a pod: a real agent works with a repository and a checkpoint store, but only the
relay has their credentials."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from perdure.model import Backend, OutcomeKind, Verdict
from tests.kubernetes.pods import PROMPT, Ended, cluster
from tests.servers.githttp import serving
from tests.servers.s3 import bucket
from tests.servers.sshd import serving as sshd_serving

pytestmark = pytest.mark.kubernetes

PASSWORD = "a-password-of-git"
SCRIPT = (
    "by history\nrun env > ../env.txt; cat /proc/[0-9]*/environ >> ../env.txt; echo new > new.txt; "
    "git add new.txt; git commit -q -m new\n---\nsay Done.\n---\nrun git log --format=%s > "
    "../log.txt\n---\nsay More.\n"
)


@pytest.fixture(params=["claude", "codex"])
def agent(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def succeeded(ended: Ended) -> Ended:
    assert ended.result.outcome.kind is OutcomeKind.SUCCEEDED, (ended.result, ended.log[-3000:])
    return ended


def test_an_agent_has_neither_the_repository_s_nor_the_store_s_credentials(
    agent: str, tmp_path: Path, repository: Path
) -> None:
    """A repository that needs a password and an S3 bucket that needs a key are used through the
    relay. No file and no environment of the agent's container has one of the credentials. The next
    attempt, in a new pod, has the commit and the conversation from the bucket."""
    with serving(tmp_path / "served", PASSWORD) as server, bucket() as kept:
        server.make("r", repository)
        spec = {"service": "", "task": "", "repo": server.url("r"), "backend": Backend.ISOLATED}
        with cluster(
            tmp_path / "c", agent, SCRIPT, claim=False, checkpoints=kept.url, spec=spec, relay=True
        ) as one:
            one.repository = {"username": "ada", "password": PASSWORD}
            one.store_secrets = kept.environ()
            first = succeeded(one.run(1))
            assert first.result.saved and server.users == {"ada"}
            second = succeeded(one.run(2, {1: PROMPT, 2: "Now more."}))
            receipt = second.result.receipt
            assert receipt is not None and receipt.verdict is Verdict.NATIVE
            (log,) = (one.pods[-1].directory / "data").rglob("log.txt")
            assert log.read_text().split() == ["new", "second", "first"]
            for pod in one.pods:
                for secret in (PASSWORD, kept.environ()["AWS_SECRET_ACCESS_KEY"]):
                    found = subprocess.run(
                        ["grep", "-rl", secret, "--exclude-dir=relay-secrets", str(pod.directory)],
                        capture_output=True,
                        text=True,
                    )
                    assert found.stdout == "", found.stdout
            assert all("receive-pack" not in each for each in server.asked)


def test_a_wrong_password_is_the_attempt_s_reason(tmp_path: Path, repository: Path) -> None:
    """The server refuses the login. The result says so and names the repository's address, but
    neither the relay's address nor the password."""
    with serving(tmp_path / "served", PASSWORD) as server:
        server.make("r", repository)
        spec = {"service": "", "task": "", "repo": server.url("r"), "backend": Backend.ISOLATED}
        with cluster(tmp_path / "c", "claude", SCRIPT, spec=spec, relay=True) as one:
            one.repository = {"token": "another-password"}
            ended = one.run(1).result
            assert ended.outcome.kind is OutcomeKind.CONFIG_ERROR
            assert "the server refused the credentials" in ended.outcome.detail
            assert "/git" not in ended.outcome.detail, ended.outcome.detail
            assert "another-password" not in ended.outcome.detail


def test_a_server_that_is_away_is_tried_again(tmp_path: Path, repository: Path) -> None:
    """If the server answers with 503, the attempt is lost, and no person is needed. The next
    attempt works when the server is back."""
    with serving(tmp_path / "served", PASSWORD) as server:
        server.make("r", repository)
        spec = {"service": "", "task": "", "repo": server.url("r"), "backend": Backend.ISOLATED}
        with cluster(tmp_path / "c", "claude", SCRIPT, spec=spec, relay=True) as one:
            one.repository = {"token": PASSWORD}
            server.down = True
            ended = one.run(1).result
            assert ended.outcome.kind is OutcomeKind.OVERLOADED, ended
            server.down = False
            succeeded(one.run(2))


def test_a_secret_that_is_not_valid_is_the_attempt_s_reason(tmp_path: Path) -> None:
    """The relay reads the Secret and finds it invalid. The agent's container reports what is wrong
    with it."""
    spec = {"service": "", "task": "", "repo": "https://git.example.com/a/b"}
    with cluster(tmp_path / "c", "claude", SCRIPT, spec=spec, relay=True) as one:
        one.repository = {"ssh-privatekey": "hush-hush"}
        ended = one.run(1)
        assert ended.result.outcome.kind is OutcomeKind.CONFIG_ERROR
        assert "perdure takes `token`" in ended.result.outcome.detail
        assert "hush-hush" not in ended.log


def test_an_agent_works_on_a_repository_by_ssh_without_its_key(
    tmp_path: Path, repository: Path
) -> None:
    """A repository behind a real sshd is fetched through the relay, with the key and the known
    hosts of the Secret. Nothing in the agent's container has the key."""
    with sshd_serving(tmp_path / "sshd") as server:
        bare = server.top / "shop" / "r.git"
        subprocess.run(["git", "clone", "-q", "--bare", repository, bare], check=True)
        key = server.key.read_text()
        spec = {"service": "", "task": "", "repo": server.url(bare), "backend": Backend.ISOLATED}
        with cluster(tmp_path / "c", "claude", SCRIPT, spec=spec, relay=True) as one:
            one.repository = {
                "ssh-privatekey": key,
                "known_hosts": server.known_hosts.read_text(),
            }
            succeeded(one.run(1, transport="ssh"))
            (new,) = one.claimed.rglob("new.txt")
            assert new.read_text() == "new\n"
            found = subprocess.run(
                ["grep", "-rl", key.split("\n")[1], "--exclude-dir=relay-secrets", one.directory],
                capture_output=True,
                text=True,
            )
            assert found.stdout == ""


@pytest.mark.parametrize("address", ["http://127.0.0.2:1/r.git", "ssh://git@127.0.0.2:1/r"])
def test_without_the_operator_s_word_nothing_is_fetched(address: str, tmp_path: Path) -> None:
    """If the order has an address but no permission for it, the pod contacts no server."""
    spec = {"service": "", "task": "", "repo": address, "backend": Backend.ISOLATED}
    with cluster(tmp_path / "c", "claude", SCRIPT, spec=spec, relay=True) as one:
        if address.startswith("ssh"):
            one.repository = {"ssh-privatekey": "x", "known_hosts": "y"}
        else:
            one.repository = {"token": PASSWORD}
        ended = one.run(1).result
        assert ended.outcome.kind is OutcomeKind.CONFIG_ERROR
        assert "Repositories are not fetched by the scheme" in ended.outcome.detail
