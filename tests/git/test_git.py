"""git as perdure runs it: with limits, without the caller's environment, and with one sentence as
the error."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path

import pytest

from perdure.errors import GitFailed, WorkspaceError
from perdure.host.git import Git, parse_status, parse_worktrees, unreachable
from tests.workspace.yard import Yard, make_yard


@pytest.fixture
def yard(tmp_path: Path) -> Yard:
    return make_yard(tmp_path)


@pytest.fixture
def git(yard: Yard) -> Git:
    return Git(cwd=yard.repo, environ=yard.environ)


def test_nothing_of_gits_environment_is_inherited(yard: Yard) -> None:
    """A leaked GIT_DIR, GIT_INDEX_FILE or GIT_CONFIG_* of the caller does not change where git
    works or what it reads."""
    leaked = {
        "GIT_DIR": "/nowhere",
        "GIT_WORK_TREE": "/",
        "GIT_INDEX_FILE": "/x",
        "GIT_CONFIG_PARAMETERS": "'core.bare=true'",
        "SECRET": "s",
    }
    git = Git(cwd=yard.repo, environ=yard.environ | leaked)
    assert git.head()[0] == yard.git("rev-parse", "HEAD")
    seen = git.run("-c", "alias.env=!env", "env").text
    assert not [value for value in ("/nowhere", "/agent", "s3cret", "core.bare") if value in seen]


def test_the_users_and_the_systems_configuration_are_not_read(yard: Yard, git: Git) -> None:
    """Settings in ~/.gitconfig affect plain git, but not perdure's git. Only the user's name is
    used."""
    assert yard.git("config", "init.defaultBranch") == "main"
    assert git.run("config", "init.defaultBranch", good=(1,)).stdout == b""
    assert git.user() == {"user.name": "Una User", "user.email": "una@example.org"}


@pytest.mark.parametrize(
    "key",
    [
        "core.hooksPath",
        "core.fsmonitor",
        "core.gitProxy",
        "core.sshCommand",
        "diff.external",
        "credential.helper",
        "core.askPass",
    ],
)
def test_a_repository_cannot_overrule_a_setting(yard: Yard, git: Git, key: str) -> None:
    """perdure's configuration in the environment has precedence over the settings that an agent
    made in the repository."""
    yard.git("config", key, "evil")
    assert yard.git("config", key) == "evil"
    assert git.run("config", key).text != "evil"


@pytest.mark.parametrize(
    "url",
    [
        "ext::touch x",
        "file:///",
        "ssh://h/o",
        "https://h/o",
        "http://h/o",
        "git://h/o",
        "fd::7",
        "/",
    ],
)
def test_no_transport_is_allowed_unless_asked_for(yard: Yard, git: Git, url: str) -> None:
    """Every transport is refused by default, even if the repository's configuration allows all of
    them."""
    yard.git("config", "protocol.allow", "always")
    yard.git("config", "protocol.ext.allow", "always")
    with pytest.raises(GitFailed, match="not allowed"):
        git.run("fetch", "--", url)


def test_one_transport_can_be_asked_for(yard: Yard, git: Git) -> None:
    """A call may use the transport that it asks for, and no other."""
    git.run("fetch", "--", str(yard.repo), allow=("file",))
    with pytest.raises(GitFailed, match="not allowed"):
        git.run("fetch", "--", "https://127.0.0.1:1/o/r", allow=("file",))


def test_a_call_over_its_deadline_is_ended_with_its_children(yard: Yard, git: Git) -> None:
    """After the timeout git and its children are ended, and the error names the timeout."""
    note = yard.top / "pid"
    for seconds in (
        0.3,
        2,
        10,
        60,
    ):  # on a busy machine the command may not have begun when the shortest is over
        with pytest.raises(GitFailed, match=rf"did not end within {seconds} s"):
            git.run("-c", f"alias.hang=!echo $$ >{note}; sleep 1000", "hang", timeout_s=seconds)
        if note.exists() and note.read_text():
            break
    pid = int(note.read_text())
    while alive(pid):
        time.sleep(0.01)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_output_has_a_cap(git: Git) -> None:
    """A git process with endless output is ended, and only the end of its stderr is kept."""
    with pytest.raises(GitFailed, match="more than 1000 bytes"):
        git.run("-c", "alias.flood=!yes", "flood", cap=1000)
    told = git.run("-c", "alias.loud=!yes x | head -c 1000000 >&2; echo end >&2", "loud")
    assert len(told.stderr) <= 65536 and told.stderr.endswith(b"end\n")


def test_a_failure_is_a_sentence_with_its_evidence(yard: Yard, git: Git) -> None:
    """The error's message names the command, the path and git's own reason. The error also has
    argv, exit code and stderr."""
    with pytest.raises(
        GitFailed, match=f"git show failed in {yard.repo}: bad revision 'nothing'"
    ) as caught:
        git.run("show", "nothing", "--")
    assert (
        caught.value.code == 128
        and "show" in caught.value.argv
        and "nothing" in caught.value.stderr
    )


def test_stdin_is_what_was_given_or_nothing(yard: Yard, git: Git) -> None:
    """git never waits for input from a terminal. Bytes or a file can be given as its stdin."""
    assert git.run("hash-object", "--stdin").text == "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"
    assert git.run("hash-object", "--stdin", stdin=b"second\n").text == yard.git(
        "rev-parse", "HEAD:README"
    )
    with (yard.repo / "README").open("rb") as file:
        assert git.run("hash-object", "--stdin", stdin=file).text == yard.git(
            "rev-parse", "HEAD:README"
        )


def test_a_descriptor_outlives_the_caller_in_gits_children(yard: Yard) -> None:
    """A lock's descriptor that is passed as `keep` is inherited by git and its children."""
    with (yard.top / "lock").open("w") as lock:
        git = Git(cwd=yard.repo, environ=yard.environ, keep=(lock.fileno(),))
        assert git.run(
            "-c", "alias.fds=!readlink /proc/self/fd/" + str(lock.fileno()), "fds"
        ).text == str(yard.top / "lock")


@pytest.mark.parametrize("name", ["nothing", "HEAD:README", "--all", "HEAD~9", ""])
def test_what_is_no_commit_is_empty(git: Git, name: str) -> None:
    """A revision that names no commit, or that looks like an option, gives an empty result. For the
    latter git is not started."""
    assert git.commit(name) == ""


def test_head_and_refs_are_read(yard: Yard, git: Git) -> None:
    """The branch is empty on a detached HEAD. Refs are found by full name, or below a path:
    `refs/heads/a` finds `a/b`, but `refs/heads/mai` does not find `main`."""
    oid = yard.git("rev-parse", "HEAD")
    yard.git("branch", "a/b")
    assert git.head() == (oid, "main")
    assert git.refs("refs/heads/a", "refs/heads/mai") == {"refs/heads/a/b": oid}
    yard.git("checkout", "-q", "--detach")
    assert git.head() == (oid, "")


def test_a_new_ref_is_not_written_over_an_old_one(yard: Yard, git: Git) -> None:
    """With `new`, an existing branch gives an error and is not changed."""
    with pytest.raises(GitFailed):
        git.set_ref("refs/heads/main", yard.git("rev-parse", "HEAD~1"), "x", new=True)
    assert yard.git("log", "-1", "--format=%s") == "second"


def test_a_status_survives_every_name(yard: Yard, git: Git) -> None:
    """A status has paths with newlines, quotes, arrows and bytes that are not text unchanged. A
    rename is a deletion and a new file."""
    names = ["a\nb", "a -> b", '"q"', " x ", "\udcff", "? y"]
    for name in names:
        (yard.repo / name).write_text("x")
    (yard.repo / "README").rename(yard.repo / "MOVED")
    yard.git("add", "MOVED")
    status = git.status()
    assert set(status.untracked) == set(names)
    assert set(status.changed) == {"README", "MOVED"}
    assert (status.head, status.branch) == git.head()


def test_unmerged_and_unborn_are_told_by_a_status() -> None:
    """A conflict is reported as a change. Before the first commit the status has no head."""
    text = (
        b"# branch.oid (initial)\0# branch.head main\0u UU N... 100644 100644 100644 100644 1 2 3 "
        b"a b\0? c\0"
    )
    status = parse_status(text)
    assert (status.head, status.branch, status.changed, status.untracked) == (
        "",
        "main",
        ("a b",),
        ("c",),
    )


def test_a_newline_in_a_path_forges_no_worktree(yard: Yard, git: Git) -> None:
    """The list of worktrees is split by NUL, so a directory's name cannot pretend to be another
    entry."""
    forged = yard.top / "x\nworktree " / "y\nbranch refs" / "heads" / "z"
    forged.parent.mkdir(parents=True)
    yard.git("worktree", "add", "-q", "-b", "odd", str(forged))
    assert [(tree.path, tree.branch) for tree in git.worktrees()] == [
        (yard.repo, "refs/heads/main"),
        (forged, "refs/heads/odd"),
    ]
    assert list(parse_worktrees(b"worktree /bare\0bare\0\0")) != []


def test_a_git_that_cannot_be_hardened_is_refused(yard: Yard) -> None:
    """If git is missing, or so old that it would ignore perdure's settings, no git command is
    run."""
    for version, why in (
        ("git version 2.30.2", "too old"),
        ("nonsense", "too old"),
        (None, "not installed"),
    ):
        place = yard.top / f"bin-{version}"
        place.mkdir()
        if version:
            (place / "git").write_text(f"#!/bin/sh\necho {version}\n")
            (place / "git").chmod(0o755)
        with pytest.raises(WorkspaceError, match=why):
            Git(cwd=yard.repo, environ={"PATH": str(place)}).head()


@pytest.mark.parametrize(
    "args",
    [
        ("fetch", "--", "--upload-pack=touch fired;", "x"),
        ("ls-remote", "--", "--upload-pack=touch fired"),
        ("rev-parse", "--verify", "--end-of-options", "--output=fired"),
        ("worktree", "add", "--detach", "--", "-D", "HEAD"),
    ],
)
def test_an_operand_that_looks_like_an_option_is_an_operand(
    yard: Yard, git: Git, args: tuple[str, ...]
) -> None:
    """After `--` or --end-of-options no word is read as an option. Without them `worktree add -b
    -D` really deletes a branch."""
    yard.git("branch", "victim")
    git.run(*args, allow=("file",), good=range(256))
    assert "victim" in yard.git("branch") and not (yard.repo / "fired").exists()
    yard.git("worktree", "add", "-b", "-D", str(yard.top / "w"), "victim", check=False)
    assert "victim" not in yard.git("branch")


def test_a_status_on_a_broken_repository_is_never_empty(yard: Yard, git: Git) -> None:
    """If git cannot read the repository, a status is an error and not `clean`."""
    (yard.repo / ".git/index").write_bytes(b"torn")
    with pytest.raises(GitFailed):
        git.status()


def test_a_silent_server_is_given_up(yard: Yard, git: Git) -> None:
    """A request to a server that accepts the connection and sends nothing ends with an error that
    has a hint. A repository's configuration cannot remove the time limit."""
    yard.git("config", "http.lowSpeedTime", "0")
    assert git.run("config", "http.lowSpeedTime").text == "30"
    with socket.create_server(("127.0.0.1", 0)) as server, pytest.raises(GitFailed) as caught:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/o/r"
        git.run("fetch", "--", url, allow=("http",), settings=[("http.lowSpeedTime", "1")])
    assert unreachable(caught.value) and "network" in caught.value.hint


HALF = (
    b"HTTP/1.1 200 OK\r\nContent-Type: "
    b"application/x-git-upload-pack-advertisement\r\nContent-Length: 900\r\n\r\n001e# service=git"
)


@pytest.mark.parametrize(
    ("scheme", "answer", "reached"),
    [
        ("https", b"", False),
        ("http", b"", False),
        ("http", HALF, False),
        ("http", b"HTTP/1.1 429 x\r\nContent-Length: 0\r\n\r\n", True),
    ],
    ids=["handshake", "question", "answer", "too many"],
)
def test_a_server_that_goes_away(git: Git, scheme: str, answer: bytes, reached: bool) -> None:
    """A server that is killed during the handshake, before its answer or during it, counts as
    temporarily unavailable, like an overloaded one."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(65536)
                    connection.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        with pytest.raises(GitFailed) as caught:
            git.run(
                "ls-remote",
                "--",
                f"{scheme}://127.0.0.1:{server.getsockname()[1]}/o/r",
                allow=(scheme,),
            )
        server.shutdown(socket.SHUT_RDWR)
        thread.join()
    assert caught.value.transient and unreachable(caught.value) is not reached


def test_a_servers_words_cannot_steer_a_terminal(yard: Yard, git: Git) -> None:
    """Escape sequences and direction overrides in git's stderr become question marks in the
    error."""
    evil = r"printf 'fatal: \033]0;pwned\007 \342\200\256 x\033[2J\n' >&2; exit 1"
    with pytest.raises(GitFailed) as caught:
        git.run("-c", f"alias.evil=!{evil}", "evil")
    for text in (str(caught.value), caught.value.stderr):
        assert "pwned" in text and not set("\x1b\x07\u202e") & set(text)


def test_grafts_are_not_believed(yard: Yard, git: Git) -> None:
    """`info/grafts` changes the history for plain git, but not for perdure's git."""
    (yard.repo / ".git/info").mkdir(exist_ok=True)
    (yard.repo / ".git/info/grafts").write_text(yard.git("rev-parse", "HEAD") + "\n")
    assert yard.git("rev-list", "--count", "HEAD") == "1"
    assert git.run("rev-list", "--count", "HEAD").text == "2"
