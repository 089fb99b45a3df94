"""The user's own credential helpers are asked for https if there is no other login. Those of a
repository are never asked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

from perdure.config import Settings
from perdure.errors import GitFailed
from perdure.host.git import helpers
from perdure.host.git.servers import host_of
from perdure.wiring import helper_logins
from perdure.workspace import Workspaces
from tests.servers.githttp import GitHttp, serving
from tests.workspace.yard import Yard, make_yard

PASSWORD = "kanarienvogel-s3cret"


@pytest.fixture
def yard(tmp_path: Path) -> Yard:
    return make_yard(tmp_path)


@pytest.fixture
def http(yard: Yard) -> Iterator[GitHttp]:
    with serving(yard.top / "forge", PASSWORD) as found:
        found.make("shop/web", yard.repo)
        yield found


def teach(yard: Yard, http: GitHttp, user: str = "una", password: str = PASSWORD) -> Path:
    """Configure a credential helper in the user's global git configuration, as `gh auth setup-git`
    does. Return the file in which the helper records its calls."""
    asked, program = yard.top / "asked", yard.top / "helper"
    program.write_text(
        f"#!/bin/sh\necho \"$1\" >> {asked}\ncat >> {asked}\nenv | grep -q ^GIT_ASKPASS=. && exit "
        f"1\n[ \"$1\" = get ] && printf 'username={user}\\npassword={password}\\n'\n"
    )  # fmt: skip
    program.chmod(0o755)
    address = f"http://127.0.0.1:{http.port}"
    with (yard.top / "home/.gitconfig").open("a") as config:
        config.write(f'[credential "{address}"]\n\thelper =\n\thelper = !{program}\n')
    return asked


def workspaces(
    yard: Yard, environ: dict[str, str] | None = None, login: tuple[str, str] | None = None
) -> Workspaces:
    environ = yard.environ | (environ or {})
    return Workspaces(
        yard.root, environ=environ, credentials=lambda url: login,
        helpers=helper_logins(Settings(root=yard.root, state=yard.root), environ, guarded=False),
    )  # fmt: skip


def test_a_helper_of_the_user_logs_in(yard: Yard, http: GitHttp) -> None:
    """A private repository is fetched and pushed with the login of the user's helper. The secret is
    in no file that perdure makes."""
    asked = teach(yard, http)
    mine = workspaces(yard)
    workspace = mine.plan(yard.spec("isolated", repo=http.url("shop/web")), "brave-otter", yard.top)
    assert mine.prepare(workspace, "claude").created
    assert http.users == {"una"}
    assert asked.read_text().split("\n")[0] == "get" and "path=" not in asked.read_text()
    who = {
        f"GIT_{role}_{part}": "a@b"
        for role in ("AUTHOR", "COMMITTER")
        for part in ("NAME", "EMAIL")
    }
    yard.git("commit", "-qm", "more", "--allow-empty", cwd=workspace.path, env=who)
    with mine.outgoing(workspace, nullcontext()) as found:
        found.push()
    assert yard.git("rev-parse", "work", cwd=yard.top / "forge/shop/web.git") == yard.git(
        "rev-parse", "HEAD", cwd=workspace.path
    )
    for file in yard.root.rglob("*"):
        assert not file.is_file() or PASSWORD.encode() not in file.read_bytes(), file
    assert not {"store", "erase"} & set(asked.read_text().split("\n"))


def test_a_helper_of_a_repository_is_never_asked(
    yard: Yard, http: GitHttp, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Commands in a repository's configuration do not run, even if perdure is started in that
    repository."""
    fired = yard.top / "fired"
    yard.git("config", "credential.helper", f"!touch {fired}")
    yard.git("config", f"credential.http://127.0.0.1:{http.port}.helper", f"!touch {fired}")
    monkeypatch.chdir(yard.repo)
    mine = workspaces(
        yard,
        {
            "GIT_DIR": str(yard.repo / ".git"),
            "GIT_CONFIG_PARAMETERS": f"'credential.helper=!touch {fired}'",
        },
    )
    workspace = mine.plan(
        yard.spec("isolated", repo=http.url("shop/web")), "brave-otter", yard.repo
    )
    with pytest.raises(GitFailed, match="could not read Username") as caught:
        mine.prepare(workspace, "claude")
    assert "PERDURE_GIT_TOKEN" in caught.value.hint and "gh auth setup-git" in caught.value.hint
    assert not fired.exists()


def test_the_settings_go_before_the_helpers(yard: Yard, http: GitHttp) -> None:
    """If the settings have a login, no helper is asked. For a repository that needs no login, none
    is asked either."""
    asked = teach(yard, http, password="wrong")
    mine = workspaces(yard, login=("dev-bot", PASSWORD))
    workspace = mine.plan(yard.spec("isolated", repo=http.url("shop/web")), "brave-otter", yard.top)
    assert mine.prepare(workspace, "claude").created
    assert http.users == {"dev-bot"} and not asked.exists()


def test_a_helper_with_a_wrong_or_no_answer(yard: Yard, http: GitHttp) -> None:
    """After a refused login there is one sentence without the secret. A helper that fails, or
    answers for another server, gives no login."""
    teach(yard, http, password="wrong-kanarienvogel")
    mine = workspaces(yard)
    workspace = mine.plan(yard.spec("isolated", repo=http.url("shop/web")), "brave-otter", yard.top)
    with pytest.raises(GitFailed, match="Authentication failed") as caught:
        mine.prepare(workspace, "claude")
    assert "wrong-kanarienvogel" not in f"{caught.value} {caught.value.stderr} {caught.value.argv}"
    assert helpers.login("https://elsewhere.example/o/r", yard.environ) is None
    (yard.top / "helper").write_text(
        "#!/bin/sh\necho host=elsewhere.example\necho username=una\necho password=x\n"
    )
    assert helpers.login(http.url("shop/web"), yard.environ) is None
    (yard.top / "helper").write_text("#!/bin/sh\nexit 3\n")
    assert helpers.login(http.url("shop/web"), yard.environ) is None


def test_what_somebody_outside_names_gets_no_login_of_the_owner(yard: Yard, http: GitHttp) -> None:
    """A pool that works for other people asks the owner's helpers only for servers that the
    configuration names."""
    asked = teach(yard, http)
    url = http.url("shop/web")
    poor = Settings(root=yard.root, state=yard.root)
    assert helper_logins(poor, yard.environ, guarded=True)(url) is None and not asked.exists()
    named = Settings(root=yard.root, state=yard.root, clone_hosts=(host_of(url),))
    assert helper_logins(named, yard.environ, guarded=True)(url) == ("una", PASSWORD)
