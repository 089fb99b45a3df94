"""Secrets are given only to the one git call that needs them. The tests use a real git server with
basic authentication."""

from __future__ import annotations

import base64
import contextlib
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from perdure.errors import GitFailed, PerdureError
from perdure.host.git import Git
from perdure.host.process.launch import run_quick
from perdure.host.system import VARIABLE
from perdure.workspace import Workspaces
from perdure.workspace.transport import broker, expected
from tests.safety.forge import SECRET, USER, make_served_yard, serving
from tests.workspace.yard import Yard


@pytest.fixture
def yard(tmp_path: Path) -> Yard:
    return make_served_yard(tmp_path)


def workspaces(
    yard: Yard, asked: list[str], login: tuple[str, str] | None = (USER, SECRET)
) -> Workspaces:
    def credentials(url: str) -> tuple[str, str] | None:
        asked.append(url)
        return login

    return Workspaces(
        yard.root,
        environ=yard.environ,
        transports=frozenset({"http", "https"}),
        credentials=credentials,
    )


def test_a_private_repository_is_fetched_and_the_secret_is_nowhere(yard: Yard) -> None:
    """The workdir is made. The secret is in no command line, environment or file of the agent,
    before, during or after."""
    asked: list[str] = []
    with serving(yard) as forge, watching() as seen:
        mine = workspaces(yard, asked)
        workspace = mine.plan(yard.spec("isolated", repo=forge.url), "brave-otter", yard.top)
        prepared = mine.prepare(workspace, "claude")
        url = forge.url
    assert prepared.created and (Path(workspace.path) / "README").read_text() == "second\n"
    assert asked == [url]
    encodings = [
        SECRET,
        base64.b64encode(f"{USER}:{SECRET}".encode()).decode(),
        "s3cret-kanarienvogel",
    ]
    assert any("fetch" in line for line in seen)
    everything = [*seen, *prepared.env.values(), *prepared.notes, repr(workspace)]
    everything += [
        path.read_text(errors="replace") for path in yard.root.rglob("*") if path.is_file()
    ]
    assert not [text for text in everything for canary in encodings if canary in text]
    assert list((yard.root / ".perdure/tmp").iterdir()) == []


@contextlib.contextmanager
def watching() -> Iterator[set[str]]:
    """Collect all command lines and environments of this machine's processes that can be read while
    the block runs."""
    seen, over = set[str](), threading.Event()
    own = str(os.getpid())

    def look() -> None:
        while not over.is_set():
            for process in Path("/proc").iterdir():
                if process.name.isdecimal() and process.name != own:
                    with contextlib.suppress(OSError):
                        seen.add((process / "cmdline").read_text(errors="replace"))
                        seen.add((process / "environ").read_text(errors="replace"))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


@pytest.mark.parametrize("login", [None, (USER, "wrong")])
def test_without_the_right_secret_the_refusal_is_one_sentence(
    yard: Yard, login: tuple[str, str] | None
) -> None:
    """With missing or refused credentials the error is one sentence with a hint. The next attempt
    with the right ones works."""
    with serving(yard) as forge:
        spec = yard.spec("isolated", repo=forge.url)
        poor = workspaces(yard, [], login)
        workspace = poor.plan(spec, "brave-otter", yard.top)
        with pytest.raises(GitFailed) as caught:
            poor.prepare(workspace, "claude")
        assert (
            "credentials" in caught.value.hint
            and "wrong" not in str(caught.value) + caught.value.stderr
        )
        assert workspaces(yard, []).prepare(workspace, "claude").created


def test_a_redirect_to_another_host_gets_nothing(yard: Yard) -> None:
    """A redirect to another server is not followed. Even if git followed the redirect, the other
    server would not receive the secret."""
    with (
        serving(yard) as thief,
        serving(yard, redirect=thief.url.removesuffix("/owner/repo")) as forge,
    ):
        mine = workspaces(yard, [])
        workspace = mine.plan(yard.spec("isolated", repo=forge.url), "brave-otter", yard.top)
        with pytest.raises(PerdureError):
            mine.prepare(workspace, "claude")
        assert thief.seen == []
        git = Git(cwd=yard.repo, environ=yard.environ)
        with broker(forge.url, (USER, SECRET), yard.top) as asking, pytest.raises(GitFailed):
            git.run(
                "fetch",
                "--",
                forge.url,
                env=asking,
                allow=("http",),
                settings=[("http.followRedirects", "true")],
            )
        assert thief.seen and not any(thief.seen)


def test_an_address_that_configuration_rewrites_gets_nothing(yard: Yard) -> None:
    """`url.insteadOf` sends git to another host. git's prompt for the password then names that
    host, and is not answered."""
    with serving(yard) as thief, serving(yard) as forge:
        git = Git(cwd=yard.repo, environ=yard.environ)
        yard.git("config", f"url.{thief.url}.insteadOf", forge.url)
        with broker(forge.url, (USER, SECRET), yard.top) as asking, pytest.raises(GitFailed):
            git.run("fetch", "--", forge.url, env=asking, allow=("http",))
        assert thief.seen and not any(thief.seen)
        with broker(thief.url, (USER, SECRET), yard.top) as asking:
            git.run("fetch", "--", forge.url, env=asking, allow=("http",))
        assert any(thief.seen)


def test_each_prompt_is_answered_once_and_no_other(tmp_path: Path) -> None:
    """A prompt for another path, port or user, and a second prompt, get no answer, and the caller
    fails."""
    url = "http://127.0.0.1:8080/owner/repo"

    def ask(program: str, prompt: str) -> tuple[int, str]:
        done = subprocess.run([program, prompt], capture_output=True, text=True)
        return done.returncode, done.stdout

    with broker(url, ("u", "p"), tmp_path) as asking:
        program = asking["GIT_ASKPASS"]
        for wrong in (
            "",
            "x",
            url,
            f"Username for '{url}2': ",
            "Password for 'http://u@127.0.0.1:8080/owner/other': ",
        ):
            assert ask(program, wrong) == (1, "")
        assert ask(program, f"Username for '{url}': ") == (0, "u")
        assert ask(program, f"Username for '{url}': ") == (1, "")
        assert ask(program, "Password for 'http://u@127.0.0.1:8080/owner/repo': ") == (0, "p")
        assert ask(program, "Password for 'http://u@127.0.0.1:8080/owner/repo': ") == (1, "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("chosen", ["", "python"])
def test_an_agent_that_has_read_the_program_gets_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chosen: str
) -> None:
    """A child of a shim, such as an agent of the same user, gets no answer, although it runs the
    same program as git. This holds for the compiled shim, if there is one, and the one in
    Python."""
    monkeypatch.setenv(VARIABLE, chosen)
    url = "http://127.0.0.1:8080/owner/repo"
    with broker(url, ("u", "p"), tmp_path) as asking:
        code, said = run_quick(
            [asking["GIT_ASKPASS"], f"Username for '{url}': "],
            directory=tmp_path / "quick",
            cwd=tmp_path,
            env={},
            timeout_s=60,
        )
        assert (code, said.strip()) == (1, "")
        code = subprocess.run(
            [asking["GIT_ASKPASS"], f"Username for '{url}': "], stdout=subprocess.DEVNULL
        ).returncode
        assert code == 0, "its own child is answered after that"


def test_both_spellings_of_a_user_are_known() -> None:
    """Older gits show the user unchanged in the prompt, newer ones percent-encoded."""
    prompts = expected("https://h/o/r", "a@b", "p")
    assert (
        prompts["Password for 'https://a@b@h/o/r': "]
        == prompts["Password for 'https://a%40b@h/o/r': "]
        == "p"
    )


def test_the_users_netrc_is_not_used(yard: Yard) -> None:
    """libcurl would read a password from ~/.netrc for any call. perdure's git calls do not use that
    file."""
    (yard.top / "home/.netrc").write_text(f"machine 127.0.0.1 login {USER} password {SECRET}\n")
    with serving(yard) as forge:
        yard.git("ls-remote", forge.url)
        assert any(forge.seen)
        forge.seen.clear()
        mine = workspaces(yard, [], None)
        with pytest.raises(GitFailed):
            mine.prepare(
                mine.plan(yard.spec("isolated", repo=forge.url), "brave-otter", yard.top), "claude"
            )
        assert not any(forge.seen)
