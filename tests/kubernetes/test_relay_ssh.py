"""The relay of a pod fetches by ssh from a real sshd for a git client that speaks HTTP."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from perdure.errors import UsageError
from perdure.host.git.environment import Ssh
from perdure.host.git.upload_pack import command
from perdure.kubernetes import secrets as given
from perdure.kubernetes.relay.forge import SshUpstream
from tests.kubernetes.test_relay_refusals import ask, running
from tests.servers.sshd import Sshd, serving

WHO = {
    f"GIT_{role}_{part}": "a@b" for role in ("AUTHOR", "COMMITTER") for part in ("NAME", "EMAIL")
}


@dataclass(frozen=True)
class Relayed:
    """A repository that only ssh reaches, and a directory in which a relay's address is written."""

    server: Sshd
    bare: Path
    at: Path

    def upstream(self, **changes: Path) -> SshUpstream:
        files = {"key": self.server.key, "known_hosts": self.server.known_hosts, **changes}
        ssh = Ssh(config=Path(os.devnull), **files)
        return SshUpstream(url=self.server.url(self.bare), ssh=ssh, environ=dict(os.environ))

    def git(self, *words: str, stdin: str = "", **environ: str) -> subprocess.CompletedProcess[str]:
        own = {"PATH": os.environ["PATH"], "HOME": str(self.at.parent), **WHO, **environ}
        command = ["git", *words]
        return subprocess.run(command, env=own, capture_output=True, text=True, input=stdin)


@pytest.fixture
def relayed(tmp_path: Path, repository: Path) -> Iterator[Relayed]:
    with serving(tmp_path / "sshd") as server:
        bare = server.top / "shop" / "r.git"
        subprocess.run(["git", "clone", "-q", "--bare", repository, bare], check=True)
        yield Relayed(server, bare, tmp_path / "at")


def test_git_clones_and_fetches_by_http_what_only_ssh_reaches(
    relayed: Relayed, tmp_path: Path
) -> None:
    """A clone has the repository's commits. A later fetch gets new ones; its request is long enough
    for git to compress it. The server runs only git-upload-pack."""
    with running(relayed.upstream(), None, relayed.at) as address:
        copy = str(tmp_path / "copy")
        done = relayed.git("clone", "-q", address.url("git"), copy)
        assert done.returncode == 0, done.stderr
        head = relayed.git("-C", str(relayed.bare), "rev-parse", "main").stdout
        assert relayed.git("-C", copy, "rev-parse", "HEAD").stdout == head
        commits = "".join(
            f"commit refs/heads/main\ncommitter a <a@b> {4_000_000_000 + number} +0000\ndata 1\nx\n"
            for number in range(40)
        )
        commits = commits.replace("data 1\nx\n", f"data 1\nx\nfrom {head.strip()}\n", 1)
        relayed.git("-C", copy, "fast-import", "--quiet", stdin=commits)
        tree = relayed.git("-C", str(relayed.bare), "write-tree").stdout.strip()
        made = relayed.git("-C", str(relayed.bare), "commit-tree", tree, "-p", "main", "-m", "new")
        relayed.git("-C", str(relayed.bare), "update-ref", "refs/heads/main", made.stdout.strip())
        done = relayed.git("-C", copy, "fetch", GIT_TRACE_CURL="1")
        assert done.returncode == 0, done.stderr
        assert "Content-Encoding: gzip" in done.stderr
        assert relayed.git("-C", copy, "rev-parse", "origin/main").stdout == made.stdout
        done = relayed.git("-C", copy, "push", "origin", "HEAD:evil")
        assert (
            done.returncode and "evil" not in relayed.git("-C", str(relayed.bare), "branch").stdout
        )
    assert "SSH_CONNECTION" in relayed.server.given
    assert f"SSH_ORIGINAL_COMMAND=git-upload-pack '{relayed.bare}'" in relayed.server.given


def told(relayed: Relayed, upstream: SshUpstream) -> tuple[int, str]:
    """Return the relay's answer to the first request of a fetch."""
    with running(upstream, None, relayed.at) as address:
        path = f"/{address.secret}/git/info/refs?service=git-upload-pack"
        status, said = ask(address, "GET", path, Git_Protocol="version=2")
    return status, said.decode()


def test_each_refusal_has_its_sentence(relayed: Relayed, tmp_path: Path) -> None:
    """A server with another host key, a key that the server or ssh does not accept, and a missing
    repository each give their own sentence, without a path of the relay and without a secret."""
    empty, broken = tmp_path / "empty", tmp_path / "broken"
    empty.write_text("")
    broken.touch(mode=0o600)
    broken.write_text("no key\n")
    upstream = relayed.upstream()
    gone = SshUpstream(url=f"{upstream.url}x", ssh=upstream.ssh, environ=upstream.environ)
    away = SshUpstream(url="ssh://git@127.0.0.1:1/r", ssh=upstream.ssh, environ=upstream.environ)
    answers = [
        (relayed.upstream(known_hosts=empty), 403, "the key of 127.0.0.1:"),
        (relayed.upstream(key=relayed.server.stranger), 403, "refused the key of the Secret"),
        (relayed.upstream(key=broken), 403, "ssh cannot read ssh-privatekey"),
        (gone, 404, "the server has no such repository"),
        (away, 502, "cannot be reached by ssh"),
    ]
    for each, status, words in answers:
        found = told(relayed, each)
        assert found[0] == status and words in found[1], (found, words)
        assert str(tmp_path) not in found[1]
    assert empty.read_text() == ""


def test_another_version_of_git_s_protocol_is_refused(relayed: Relayed, tmp_path: Path) -> None:
    """A server that does not speak version 2 of git's protocol, and a client that does not ask for
    it, get a reason and no answer that git could misread."""
    with running(relayed.upstream(), None, relayed.at) as address:
        words = ("-c", "protocol.version=0", "ls-remote", address.url("git"))
        done = relayed.git(*words)
        assert done.returncode and "only version 2 of git's protocol" in done.stderr
    forced = relayed.server.top / "authorized"
    forced.write_text(forced.read_text().replace("cd ", "unset GIT_PROTOCOL; cd "))
    status, said = told(relayed, relayed.upstream())
    assert status == 403 and "AcceptEnv GIT_PROTOCOL" in said


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("ssh://git@h:22/a/b.git", ["-p", "22", "--", "git@h", "git-upload-pack '/a/b.git'"]),
        ("ssh://h/~me/b", ["--", "h", "git-upload-pack '~me/b'"]),
        ("git@h:a/b", ["--", "git@h", "git-upload-pack 'a/b'"]),
        ("git@h:/a/b", ["--", "git@h", "git-upload-pack '/a/b'"]),
    ],
)
def test_the_command_line_of_ssh(url: str, words: list[str]) -> None:
    """Each spelling of an address gives ssh the path that git itself would give, and no option."""
    found = command(url, Ssh(key=Path("/k"), known_hosts=Path("/h"), config=Path(os.devnull)))
    assert found[-len(words) :] == words
    assert {"-oStrictHostKeyChecking=yes", "-oGlobalKnownHostsFile=none"} <= set(found)
    assert {"-oIdentitiesOnly=yes", "-oBatchMode=yes", "-oForwardAgent=no"} <= set(found)


def test_the_secret_of_a_repository_by_ssh(tmp_path: Path) -> None:
    """A repository by ssh needs the private key and the known host keys. The private key is
    redacted wherever it appears."""
    place = tmp_path / "repository"
    place.mkdir()
    (place / "ssh-privatekey").write_text("-----BEGIN\nabc\n-----END\n")
    with pytest.raises(UsageError, match="needs the keys ssh-privatekey and known_hosts"):
        given.read(tmp_path, "ssh://git@h/a")
    (place / "known_hosts").write_text("h ssh-ed25519 AAAA\n")
    found = given.read(tmp_path, "git@h:a")
    assert found.ssh["known_hosts"] == "h ssh-ed25519 AAAA" and not found.git
    assert found.values() == ["-----BEGIN\nabc\n-----END"]
    with pytest.raises(UsageError, match="wrong keys: known_hosts, ssh-privatekey"):
        given.read(tmp_path, "https://h/a")
