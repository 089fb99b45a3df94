"""Repositories by ssh: a real sshd with scratch keys. perdure uses the user's own ssh agent or a
key from the settings, and nothing else."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import pytest

from perdure.agents import registry
from perdure.engine.attempt.engine import ORDINARY, is_passed
from perdure.errors import GitFailed, NotFound, UsageError
from perdure.host.git import Git
from perdure.host.git.environment import Ssh
from perdure.host.git.servers import Hosts
from perdure.model import Workspace
from perdure.workspace import Workspaces
from perdure.workspace.transport import RemoteSource
from tests import spread
from tests.servers.sshd import Sshd, agent, serving
from tests.workspace.yard import Yard, make_yard


@dataclass(frozen=True)
class SharedCache:
    """A repository that is also on a server which only ssh reaches."""

    yard: Yard
    sshd: Sshd

    @property
    def bare(self) -> Path:
        return self.sshd.top / "shop/web.git"

    def workspaces(
        self, ssh: Ssh, environ: dict[str, str] | None = None, hosts: Hosts | None = None
    ) -> Workspaces:
        return Workspaces(
            self.yard.root,
            environ=self.yard.environ | (environ or {}),
            ssh=ssh,
            hosts=hosts or Hosts(),
        )

    def ssh(self, *, key: Path | None = None, known_hosts: Path | None = None) -> Ssh:
        return Ssh(
            key=key, known_hosts=known_hosts or self.sshd.known_hosts, config=self.sshd.config
        )

    def prepared(self, repo: str, ssh: Ssh, environ: dict[str, str] | None = None) -> Workspace:
        mine = self.workspaces(ssh, environ)
        workspace = mine.plan(self.yard.spec("isolated", repo=repo), "brave-otter", self.yard.top)
        assert mine.prepare(workspace, "claude").created
        assert (Path(workspace.path) / "README").read_text() == "second\n"
        return workspace


@pytest.fixture
def far(tmp_path: Path) -> Iterator[SharedCache]:
    yard = make_yard(tmp_path)
    with serving(tmp_path / "sshd") as sshd:
        subprocess.run(
            ["git", "clone", "-q", "--bare", str(yard.repo), str(sshd.top / "shop/web.git")],
            check=True,
            env=yard.environ,
        )
        yield SharedCache(yard, sshd)


def test_a_key_of_the_settings_fetches_and_pushes(far: SharedCache) -> None:
    """With a deploy key from the settings the workdir is made and its branch is pushed. Neither the
    key nor its path is in the workdir, or available to the agent."""
    ssh = far.ssh(key=far.sshd.key)
    workspace = far.prepared(f"{far.sshd.user}@forge:shop/web.git", ssh)
    path = Path(workspace.path)
    who = {
        f"GIT_{role}_{part}": "a@b"
        for role in ("AUTHOR", "COMMITTER")
        for part in ("NAME", "EMAIL")
    }
    far.yard.git("commit", "-qm", "more", "--allow-empty", cwd=path, env=who)
    with far.workspaces(ssh).outgoing(workspace, nullcontext()) as found:
        assert found.commits == 1
        found.push()
        assert found.default_branch() == "main"
    assert far.yard.git("rev-parse", "work", cwd=far.bare) == far.yard.git(
        "rev-parse", "HEAD", cwd=path
    )
    texts = [file.read_text(errors="replace") for file in path.rglob("*") if file.is_file()]
    assert not [text for text in texts if str(far.sshd.key) in text or "sshCommand" in text]


@pytest.mark.parametrize(
    "spelling",
    [
        "ssh://{user}@127.0.0.1:{port}{top}/shop/web.git",
        "{user}@forge:{top}/shop/web.git",
        "forge:shop/web",
    ],
)
def test_every_spelling_of_an_address_leads_there(far: SharedCache, spelling: str) -> None:
    """`ssh://` with a port, `user@host:` with an absolute path, and a name of the user's own ssh
    configuration all work."""
    far.sshd.configure(f"User {far.sshd.user}")
    repo = spelling.format(user=far.sshd.user, port=far.sshd.port, top=far.sshd.top)
    far.prepared(repo, far.ssh(key=far.sshd.key))


def test_the_users_own_agent_is_asked(far: SharedCache) -> None:
    """Without a key in the settings the user's ssh agent is used. Its socket is not available on
    the server or to a coding agent."""
    far.sshd.configure("ForwardAgent yes", "RemoteForward 0 127.0.0.1:1")
    with agent(far.sshd.key) as socket:
        far.prepared("forge:shop/web.git", far.ssh(), {"SSH_AUTH_SOCK": socket})
    assert "SSH_CONNECTION" in far.sshd.given and "SSH_AUTH_SOCK" not in far.sshd.given
    for name in registry.names():
        assert not is_passed("SSH_AUTH_SOCK", (*ORDINARY, *registry.load(name).variables)), name


def test_an_unknown_server_is_refused(far: SharedCache, tmp_path: Path) -> None:
    """perdure does not log in to a server whose key was not confirmed, and does not remember the
    key, whatever the user's configuration says."""
    far.sshd.configure("StrictHostKeyChecking no")
    empty = tmp_path / "nobody"
    empty.write_text("")
    with pytest.raises(GitFailed, match="Host key verification failed") as caught:
        far.prepared("forge:shop/web.git", far.ssh(key=far.sshd.key, known_hosts=empty))
    assert "git_ssh_known_hosts" in caught.value.hint
    assert empty.read_text() == "" and "Accepted" not in far.sshd.said


def test_a_key_that_the_server_does_not_know(far: SharedCache) -> None:
    """The error for a refused key is one sentence that says what to do. Afterwards the right key
    works."""
    with pytest.raises(GitFailed, match=r"Permission denied \(publickey\)") as caught:
        far.prepared("forge:shop/web.git", far.ssh(key=far.sshd.stranger))
    assert "git_ssh_key" in caught.value.hint and "\n" not in str(caught.value)
    far.prepared("forge:shop/web.git", far.ssh(key=far.sshd.key))


def test_what_is_not_there(far: SharedCache, tmp_path: Path) -> None:
    """A missing repository on the server, a missing file that the settings name, and an unreachable
    server each give a different sentence."""
    with pytest.raises(NotFound, match="no repository at"):
        far.prepared("forge:shop/nothing", far.ssh(key=far.sshd.key))
    with pytest.raises(UsageError, match=r"git_ssh_key names .*cannot be read"):
        far.prepared("forge:shop/web", far.ssh(key=tmp_path / "gone"))
    with pytest.raises(UsageError, match="ssh is not installed"):
        (tmp_path / "bin").mkdir()
        (tmp_path / "bin/git").symlink_to("/usr/bin/git")
        far.prepared("forge:shop/web", far.ssh(key=far.sshd.key), {"PATH": str(tmp_path / "bin")})
    with pytest.raises(GitFailed, match=r"Connection refused\.$"):
        far.prepared(f"ssh://{far.sshd.user}@127.0.0.1:1/shop/web", far.ssh(key=far.sshd.key))


def test_a_repository_chooses_no_ssh(far: SharedCache) -> None:
    """`core.sshCommand`, `ssh.variant` and a rewritten address in a repository's own configuration
    are not used."""
    fired = far.yard.top / "fired"
    for key, value in (("core.sshCommand", f"touch {fired}; false"), ("ssh.variant", "plink")):
        far.yard.git("config", key, value)
    url = far.sshd.url(far.yard.top / "link")
    (far.yard.top / "link").symlink_to(far.bare)
    source = RemoteSource(key=url, url=url, scheme="ssh", ssh=far.ssh(key=far.sshd.key))
    git = Git(
        cwd=far.yard.repo,
        environ=far.yard.environ | {"GIT_SSH_COMMAND": f"touch {fired}", "GIT_SSH": "false"},
    )
    said = source.call(git, far.yard.top, "ls-remote", "--", url, timeout_s=60.0)
    assert "refs/heads/main" in said.text and not fired.exists()


@pytest.mark.parametrize(
    "repo",
    [
        "git@forge:-oProxyCommand=x", "git@forge:--upload-pack=x", "-oX:o/r", "git@-x:o/r", "-x@forge:o/r", "ssh://forge:-1/o/r",
        "ssh://git:word@forge/o/r", "git@forge:o/../../r", "git@forge:o;id", "git@forge:o r", "git@forge:o\nr", "git@fo_rge:o/r",
    ],
)  # fmt: skip
def test_no_part_of_an_address_is_an_option(far: SharedCache, repo: str) -> None:
    """A user, host or path that looks like an option, climbs, or names a command is refused before
    anything runs."""
    with pytest.raises((UsageError, NotFound)):
        far.prepared(repo, far.ssh(key=far.sshd.key))
    assert spread.is_untouched(far.yard.root) and "Accepted" not in far.sshd.said


def test_what_somebody_outside_names_needs_the_owners_word(far: SharedCache) -> None:
    """A pool that works for other people fetches by ssh only from servers that the configuration
    names, because the key is the owner's."""
    ssh, spec = (
        far.ssh(key=far.sshd.key),
        far.yard.spec("isolated", repo=f"{far.sshd.user}@forge:shop/web"),
    )
    with pytest.raises(UsageError, match="not fetched by ssh from forge") as caught:
        far.workspaces(ssh, hosts=Hosts(guarded=True)).plan(spec, "brave-otter", far.yard.top)
    assert "clone_hosts" in caught.value.hint
    mine = far.workspaces(ssh, hosts=Hosts(only=frozenset({"forge"}), guarded=True))
    assert mine.prepare(mine.plan(spec, "brave-otter", far.yard.top), "claude").created


def test_ssh_finds_what_a_server_says(far: SharedCache) -> None:
    """The message of an ssh server cannot control a terminal."""
    (far.sshd.top / "authorized").write_text(
        (far.sshd.top / "authorized")
        .read_text()
        .replace("env >", "printf '\\033[2Jgone\\n' >&2; exit 1; env >")
    )
    with pytest.raises(GitFailed) as caught:
        far.prepared("forge:shop/web", far.ssh(key=far.sshd.key))
    assert "\033" not in str(caught.value) + caught.value.stderr and "gone" in str(caught.value)
