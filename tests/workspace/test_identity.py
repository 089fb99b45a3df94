"""Names: invalid ones are refused with a sentence, and valid ones can neither escape nor collide."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perdure.errors import NotFound, PerdureError, UsageError, WorkspaceError
from perdure.model import TaskSpec
from perdure.workspace import Workspaces
from perdure.workspace.identity import (
    Places,
    check_branch,
    check_name,
    check_saved_branch,
    identify,
    parse_remote,
)
from tests import spread
from tests.workspace.yard import Yard, make_yard

HOSTILE = [
    "-D", "-f", "--upload-pack=x", "..", "a/../b", "a..b", ".git", "a/.git", "a/.hidden", "x.lock", "a/x.lock", "a//b", "/a", "a/", "a.",
    "@", "@{-1}", "a@{1}", "HEAD", "head", "refs/heads/x", "a b", "a\nb", "a\0b", "a;b", "$(id)", "`id`", "a'b", 'a"b', "a\\b", "a:b",
    "a?b", "a*b", "a[b", "a~1", "a^", "café", "café", "\u202ea", "a%2fb", "a" * 201, "a" * 300, "0" * 40, " ", "~", "a/-b",
    "a\udcff", "a\u2028b", "x" * 251, "cafe\u0301",
]  # fmt: skip

names = (
    st.text(max_size=300)
    | st.sampled_from(HOSTILE)
    | st.text("aA1-._/@{}%\\\n\0é", max_size=12)
    | st.from_regex(r"\A[A-Za-z0-9._/-]{1,20}\Z")
)
ROOT = Path("/srv/root")


@settings(max_examples=400, deadline=None)
@given(st.lists(st.tuples(names, names, names), min_size=2, max_size=6, unique=True))
def test_every_planned_path_stays_below_the_root_and_means_one_identity(
    triples: list[tuple[str, str, str]],
) -> None:
    """Hostile services, tasks, agents and branches are refused, or get a unique path below the
    root."""
    workspaces, seen = Workspaces(ROOT, environ={}), dict[str, object]()
    for agent, one, two in triples:
        for spec in (
            TaskSpec(prompt="p", agent=agent, service=one, task=two),
            TaskSpec(prompt="p", agent=agent, repo=f"https://forge.example/{one}/repo", branch=two),
        ):
            try:
                workspace = workspaces.plan(spec, "run", Path("/"))
            except (UsageError, NotFound):
                continue
            path = Path(workspace.path)
            assert (
                path == Path(*path.parts)
                and ".." not in path.parts
                and path.is_relative_to(ROOT)
                and path != ROOT
            )
            identity = (
                workspace.backend,
                workspace.repo,
                "" if spec.service else agent,
                workspace.branch,
                spec.service,
                spec.task or "run",
            )
            assert seen.setdefault(workspace.path, identity) == identity
            assert seen.setdefault(workspace.id, identity) == identity


@settings(max_examples=60, deadline=None)
@given(names)
def test_gits_own_grammar_takes_every_branch_that_is_accepted(name: str) -> None:
    """git accepts every branch name that perdure's grammar accepts, and `git check-ref-format
    --branch` returns it unchanged."""
    try:
        check_branch(name)
    except UsageError:
        return
    said = subprocess.run(
        ["git", "check-ref-format", "--branch", name], capture_output=True, text=True, cwd="/"
    )
    assert (said.returncode, said.stdout) == (0, f"{name}\n")


@pytest.mark.parametrize("name", [*HOSTILE, "fix/#12", "a+b", "user@x", "_wip", "x.lock.y", ".a"])
def test_a_saved_branch_is_whatever_git_allows(name: str) -> None:
    """A saved branch is accepted if and only if git accepts its name as a branch."""
    try:
        accepted = check_saved_branch(name) == name
    except UsageError:
        accepted = False
    if "\0" in name:
        assert not accepted
        return
    said = subprocess.run(
        ["git", "check-ref-format", "--branch", name], capture_output=True, cwd="/"
    )
    assert accepted == (said.stdout == os.fsencode(f"{name}\n"))


@given(st.lists(st.text(), max_size=4), st.lists(st.text(), max_size=4))
def test_ids_are_the_same_only_for_the_same_parts(one: list[str], two: list[str]) -> None:
    """If text is moved from one part of an identity to the next, the id changes. Its characters are
    safe in any file system."""
    try:
        ids = identify(*one), identify(*two)
    except UnicodeEncodeError:
        return
    assert (ids[0] == ids[1]) == (one == two)
    assert len(ids[0]) == 26 and ids[0].isalnum() and ids[0] == ids[0].lower()


@pytest.mark.parametrize("form", ["file://{}", "file://localhost{}", "FILE://{}"])
def test_a_file_url_is_a_path(tmp_path: Path, form: str) -> None:
    """A file URL of this machine names the same repository and workdir as its path."""
    yard = make_yard(tmp_path / "a yard")
    asked = form.format(quote(str(yard.repo)))
    by_url, by_path = yard.plan("worktree", repo=asked), yard.plan("worktree")
    assert by_url == by_path and by_url.backend == "worktree"


@pytest.mark.parametrize(
    "url", ["file://server/srv/repo.git", "file:relative", "file:///repo?x=1", "file:///repo%00x"]
)
def test_a_file_url_of_elsewhere_is_refused(tmp_path: Path, url: str) -> None:
    """A URL that names no directory of this machine is refused. The error says how to write a file
    URL, and does not mention https."""
    with pytest.raises(UsageError, match="names no directory on this machine") as refused:
        make_yard(tmp_path).plan("worktree", repo=url)
    assert "https" not in refused.value.hint


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_branches_are_refused(name: str) -> None:
    """Each name that once moved, deleted or ran something is refused before git gets it."""
    with pytest.raises(UsageError, match="is not a valid branch name"):
        check_branch(name)


@pytest.mark.parametrize(
    "name",
    [
        *[
            name
            for name in HOSTILE
            if name not in ("a.", "x.lock", "HEAD", "head", "refs", "a..b", "0" * 40)
        ],
        ".task",
        ".perdure",
        "a" * 65,
    ],
)
def test_hostile_service_and_task_names_are_refused(name: str) -> None:
    """A service or task name is used for a directory, so it must have no slash, no leading dot or
    dash, and at most 64 plain characters. Others are refused."""
    with pytest.raises(UsageError):
        check_name("task", name)


@pytest.mark.parametrize(
    ("repo", "why"),
    [
        ("https://user:s3cret@forge.example/o/r", "holds credentials"),
        ("https://s3cret@forge.example/o/r", "holds credentials"),
        ("http://forge.example/o/r", "not fetched by the scheme 'http'"),
        ("git://forge.example/o/r", "not fetched by the scheme 'git'"),
        ("ext::sh -c id", "not fetched by"),
        ("fd::17", "not fetched by"),
        ("https://forge.example/../../etc", "not a repository address"),
        ("https://forge.example/o/r?x=1", "not a repository address"),
        ("https://forge.example/o/r#x", "not a repository address"),
        ("https://forge.example/-oProxyCommand=x", "not a repository address"),
        ("https://-x/o/r", "not a repository address"),
        ("https://forge.example:99999/o/r", "not a repository address"),
        ("https://forge.example", "not a repository address"),
        ("https:///o/r", "not a repository address"),
        ("https://forge.example/o/r\n", "not a repository address"),
        ("https://for ge/o/r", "not a repository address"),
    ],
)
def test_hostile_addresses_are_refused_without_telling_a_secret(repo: str, why: str) -> None:
    """Credentials in an address, transports that run commands, and paths with `..` are refused with
    one sentence each."""
    with pytest.raises(UsageError, match=why) as caught:
        Workspaces(ROOT, environ={}).plan(TaskSpec(prompt="p", repo=repo), "run", Path("/"))
    assert "s3cret" not in str(caught.value) + caught.value.hint
    assert "\n" not in str(caught.value)


def test_spellings_of_one_address_are_one_repository() -> None:
    """Addresses that differ only in the case of scheme and host, the default port, a final slash or
    .git use the same cache."""
    allowed = frozenset({"https", "ssh"})
    spellings = (
        "https://Forge.example/o/r",
        "HTTPS://forge.example:443/o/r.git",
        "https://forge.example/o/r/",
    )
    assert len({parse_remote(url, allowed).key for url in spellings}) == 1
    assert (
        parse_remote("https://forge.example/O/r", allowed).key
        != parse_remote("https://forge.example/o/r", allowed).key
    )
    assert (
        parse_remote("git@forge.example:o/r.git", allowed).key
        == parse_remote("git@Forge.example:o/r/", allowed).key
    )
    assert (
        parse_remote("git@forge.example:/o/r", allowed).key
        == parse_remote("ssh://git@forge.example:22/o/r", allowed).key
    )
    # On an ordinary server a path without a leading slash begins at the user's home. Only on forges
    # do both spellings name one repository.
    assert (
        parse_remote("git@forge.example:o/r", allowed).key
        != parse_remote("git@forge.example:/o/r", allowed).key
    )


def test_task_directories_lie_where_they_are_documented(yard: Yard) -> None:
    """The path is {root}/{service}/.task/{task}, with the run's name if no task is named."""
    assert yard.plan("task").path == str(yard.root / "shop/.task/t1")
    assert yard.plan("task", task="").path == str(yard.root / "shop/.task/brave-otter")
    assert Places(Path("/r")).task("s", "t") == Path("/r/s/.task/t")


def test_look_alikes_of_services_and_tasks_are_refused(yard: Yard) -> None:
    """`Shop` is refused while `shop` exists, and so are tasks whose names differ only in case."""
    yard.workspaces.prepare(yard.plan("task"), "claude")
    with pytest.raises(UsageError, match="looks like 'shop'"):
        yard.plan("task", service="Shop")
    with pytest.raises(UsageError, match="looks like 't1'"):
        yard.plan("task", task="T1")
    yard.plan("task", task="t2")


@pytest.mark.parametrize(
    ("spec", "kind", "why"),
    [
        ({"repo": "nonsense"}, NotFound, "neither a directory nor the address"),
        ({"repo": "../plain"}, NotFound, "not in a git repository"),
        ({"base": "no-such"}, NotFound, "no branch, tag or commit 'no-such'"),
        ({"base": "--all"}, UsageError, "is not a valid base"),
        ({"base": "HEAD:README"}, UsageError, "is not a valid base"),
        ({"base": ":/first"}, UsageError, "is not a valid base"),
        ({"branch": "main"}, WorkspaceError, "is checked out in"),
        ({"branch": "main/sub"}, UsageError, "conflicts with 'main'"),
        ({"branch": "taken"}, UsageError, "conflicts with 'taken/up'"),
        ({"backend": "magic"}, UsageError, "no backend 'magic'"),
        ({"backend": "task"}, UsageError, "no backend 'task'"),
        (
            {"repo": "https://forge.example/o/r", "backend": "worktree"},
            UsageError,
            "on this machine",
        ),
        ({"here": ".", "branch": "x"}, UsageError, "--here works"),
        ({"here": ".", "service": "x"}, UsageError, "--here works"),
        ({"here": "missing"}, NotFound, "There is no directory"),
        ({"task": "t"}, UsageError, "needs a service"),
        ({"service": "s", "branch": "x"}, UsageError, "plain directory"),
        ({"service": "s", "backend": "isolated"}, UsageError, "plain directory"),
        ({"agent": "../x"}, UsageError, "agent name"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_a_way_out(
    yard: Yard, spec: dict[str, str], kind: type[PerdureError], why: str
) -> None:
    """Each impossible request is refused with one sentence, a hint and the right exit code, and
    nothing is made."""
    yard.git("branch", "taken/up")
    with pytest.raises(kind, match=why) as caught:
        yard.workspaces.plan(TaskSpec(prompt="p", **spec), "brave-otter", yard.repo)
    assert caught.value.hint
    assert spread.is_untouched(yard.root)


def test_a_repository_without_a_commit_is_refused(yard: Yard) -> None:
    """A repository without a commit has nothing to start from. The hint says how to make a first
    commit."""
    yard.git("init", "-q", str(yard.top / "unborn"))
    with pytest.raises(WorkspaceError, match="no commit yet") as caught:
        yard.plan("worktree", repo=str(yard.top / "unborn"))
    assert "git commit" in caught.value.hint


def test_the_default_branch_and_backend_follow_from_the_run(yard: Yard) -> None:
    """A run without --branch gets the branch perdure/<run name>. A local repository gets a
    worktree, an address an isolated clone."""
    local = yard.workspaces.plan(TaskSpec(prompt="p"), "brave-otter", yard.repo)
    far = yard.workspaces.plan(
        TaskSpec(prompt="p", repo="https://forge.example/o/r"), "brave-otter", yard.repo
    )
    assert (local.branch, local.backend, local.repo) == (
        "perdure/brave-otter",
        "worktree",
        str(yard.repo),
    )
    assert (far.branch, far.backend, far.base) == ("perdure/brave-otter", "isolated", "")


@pytest.mark.parametrize(
    "repo",
    [
        "ssh://-oProxyCommand=touch/o/r",
        "ssh://-oProxyCommand=touch@forge.example/o/r",
        "git@-oProxyCommand=x:o/r",
        "-oX@forge:o/r",
    ],
)
def test_no_part_of_an_ssh_address_is_an_option(repo: str) -> None:
    """Where ssh is allowed, a host or user that begins with a dash is refused before ssh or git
    gets it."""
    with pytest.raises(UsageError):
        parse_remote(repo, frozenset({"https", "ssh"}))


def test_branches_that_look_alike_have_paths_that_do_not(yard: Yard) -> None:
    """`Foo` and `foo`, and `a-b`, `a_b` and `a/b`, all have different workdirs, even on a file
    system that ignores case."""
    names = ["Foo", "foo", "a-b", "a_b", "a.b"]
    plans = [yard.plan(backend, branch=name) for name in names for backend in ("worktree",)]
    for workspace in plans:
        yard.workspaces.prepare(workspace, "claude")
    assert len({workspace.path.casefold() for workspace in plans}) == len(names)


def test_two_roots_do_not_share_a_branch(yard: Yard) -> None:
    """The same agent and branch below another root would use the same branch of the repository. The
    error says where the branch is checked out."""
    first = yard.plan("worktree")
    yard.workspaces.prepare(first, "claude")
    second = Workspaces(yard.top / "root2", environ=yard.environ)
    with pytest.raises(WorkspaceError, match="is checked out in"):
        second.plan(yard.spec("worktree"), "brave-otter", yard.repo)
    other = second.plan(yard.spec("worktree", branch="other"), "brave-otter", yard.repo)
    assert (
        second.prepare(other, "claude").created
        and not yard.workspaces.prepare(first, "claude").created
    )


@pytest.mark.parametrize("name", ["a\nb", 'q"\\', "\udcff", "a\u2028b", "-D", "#x", " x "])
@pytest.mark.parametrize("backend", ["worktree", "isolated"])
def test_a_root_with_an_odd_name_works(yard: Yard, backend: str, name: str) -> None:
    """If the root's path has a newline or a quote, git's files with paths still work: a workdir is
    made, checked, reused and rescued."""
    workspaces = Workspaces(yard.top / name, environ=yard.environ)
    workspace = workspaces.plan(yard.spec(backend), "brave-otter", yard.repo)
    assert workspaces.prepare(workspace, "claude").created
    (Path(workspace.path) / "README").write_text("x")
    assert workspaces.state(workspace).paths == ("README",)
    assert workspaces.rescue(workspace, "x")
    assert not workspaces.prepare(workspace, "claude").created
