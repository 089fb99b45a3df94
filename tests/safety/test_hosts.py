"""The servers from which perdure fetches if a stranger names the repository, with real git and real
servers on loopback.

The test has its own /etc/hosts, in a mount namespace, for names with chosen addresses.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from perdure.errors import GitFailed, UsageError
from perdure.host.git import Git
from perdure.host.git.servers import Hosts, proxy_of, refusal_reason
from perdure.model.forge.rules import rules
from perdure.workspace import Workspaces
from tests.conftest import TOP
from tests.safety.forge import SECRET, USER, make_served_yard, serving
from tests.safety.test_servers import certificate
from tests.workspace.yard import Yard


@pytest.fixture
def yard(tmp_path: Path) -> Yard:
    return make_served_yard(tmp_path)


GUARDED = Hosts(guarded=True)

PRIVATE = """127.0.0.1 127.1.2.3 10.0.0.1 172.16.5.4 192.168.1.1 100.64.0.1 198.18.0.1 192.0.2.1 ::1 fd00:ec2::254 ::ffff:10.0.0.1
::ffff:127.0.0.1 2002:7f00:1:: 64:ff9b::10.0.0.1 2001:db8::1"""
NEVER = (
    "169.254.169.254 ::ffff:169.254.169.254 64:ff9b::a9fe:a9fe fe80::1 fe80::1%lo 0.0.0.0 :: "
    "224.0.0.1 ff02::1 240.0.0.1 255.255.255.255"
)


def test_addresses_by_their_kind() -> None:
    """Private addresses are allowed for servers that the configuration names, but the metadata
    services of clouds for none. An IPv4 address inside an IPv6 one is judged as the IPv4
    address."""
    for address in PRIVATE.split():
        assert refusal_reason(address, private=False) and not refusal_reason(
            address, private=True
        ), address
    for address in NEVER.split():
        assert refusal_reason(address, private=False) and refusal_reason(address, private=True), (
            address
        )
    for address in ("1.1.1.1", "2606:4700::1111", "::ffff:1.1.1.1", "git.example.com"):
        assert not refusal_reason(address, private=False), address


@pytest.mark.parametrize(
    "url",
    [
        "https://127.0.0.1/o/r", "https://10.0.0.1/o/r", "https://169.254.169.254/latest/meta-data", "https://git.example.com:2222/o/r",
        "https://0.0.0.0/o/r", "http://127.0.0.1/o/r",
    ],
)  # fmt: skip
def test_what_is_refused_by_its_name(yard: Yard, url: str) -> None:
    """Addresses that are not public, and unusual ports, are refused when the task is accepted,
    before any request is sent."""
    spec = yard.spec("isolated", repo=url)
    with pytest.raises(UsageError) as refused:
        Workspaces(yard.root, environ=yard.environ, hosts=GUARDED).plan(
            spec, "brave-otter", yard.top
        )
    assert "clone_hosts" in refused.value.hint
    assert (
        Workspaces(yard.root, environ=yard.environ).plan(spec, "brave-otter", yard.top).repo == url
    )


@pytest.mark.parametrize("host", ["localhost", "127.1", "2130706433", "0x7f.1", "0177.0.0.1"])
def test_what_is_refused_by_its_address(yard: Yard, host: str) -> None:
    """Other spellings of this machine's address, and names that resolve to it, are refused before a
    connection is made."""
    url = f"https://{host}/owner/repo"
    with pytest.raises(UsageError, match="this machine's own"):
        GUARDED.settings(url, yard.environ)
    assert Hosts(guarded=True, named=frozenset({host})).settings(url, yard.environ)


def test_a_list_of_servers(yard: Yard) -> None:
    """With `clone_hosts`, repositories are fetched only from the hosts and ports that it lists, and
    from servers that a rule names."""
    hosts = Hosts(
        only=frozenset({"git.example.com", "10.0.0.5:3000"}), named=frozenset({"forge.example.com"})
    )
    for url in (
        "https://git.example.com/o/r",
        "https://git.example.com:443/o/r",
        "https://10.0.0.5:3000/o/r",
        "https://forge.example.com/o/r",
    ):
        hosts.check(url)
    for url in (
        "https://git.example.com:444/o/r",
        "https://10.0.0.5/o/r",
        "https://git.example.com.evil.example/o/r",
        "ssh://git@h/o/r",
    ):
        with pytest.raises(UsageError, match="not fetched from"):
            hosts.check(url)


def test_a_server_that_is_named_is_fetched_from(yard: Yard) -> None:
    """A private forge works once the configuration names it. The fetch goes to the address that was
    checked."""
    with serving(yard) as forge:
        place = forge.url.split("/")[2]
        asked = Workspaces(
            yard.root,
            environ=yard.environ,
            credentials=lambda url: (USER, SECRET),
            hosts=Hosts(guarded=True, named=frozenset({place})),
        )
        workspace = asked.plan(yard.spec("isolated", repo=forge.url), "brave-otter", yard.top)
        assert asked.prepare(workspace, "claude").created and forge.fetches == 1


REBIND = """
import json, sys
from pathlib import Path
from perdure.errors import PerdureError
from perdure.host.git import Git
from perdure.host.git.servers import Hosts

url, other, top = sys.argv[1:4]
environ = json.loads(sys.argv[4])
known = Hosts(guarded=True, named=frozenset({url.split("/")[2]}))
found = {}

def point(name, address):
    Path("/etc/hosts").write_text(f"{address} {name}\\n")

def reached(settings):
    git = Git(cwd=Path(top), environ=environ)
    try:
        return git.run("ls-remote", "--", url, allow=("http", "https"), settings=settings, timeout_s=60).text[40:46].strip()
    except PerdureError as error:
        return str(error)

point("forge.example", "127.0.0.1")
settings = known.settings(url, environ)
found["before"] = reached(settings)
point("forge.example", other)
found["unpinned"] = reached([])
found["pinned"] = reached(settings)
for name, address in {"rebound": "10.1.2.3", "metadata": "169.254.169.254", "mixed": "93.184.216.34\\n127.0.0.1"}.items():
    host = f"{name}.example"
    Path("/etc/hosts").write_text("".join(f"{each} {host}\\n" for each in address.split()))
    for hosts in (Hosts(guarded=True), Hosts(guarded=True, named=frozenset({host}))):
        try:
            found.setdefault(name, []).append(bool(hosts.settings(f"https://{host}/o/r", environ)))
        except PerdureError as error:
            found.setdefault(name, []).append(str(error))
print(json.dumps(found))
"""


def test_a_name_that_leads_elsewhere_a_moment_later(yard: Yard, tmp_path: Path) -> None:
    """git connects to the address that was checked, even if the name resolves to another one by
    then (DNS rebinding). A public name is refused if any of its addresses is private."""
    hosts = tmp_path / "hosts"
    hosts.write_text("")
    with serving(yard, anybody=True) as forge:
        url = forge.url.replace("127.0.0.1", "forge.example")
        words = [
            sys.executable,
            "-c",
            REBIND,
            url,
            "127.0.0.2",
            str(yard.top),
            json.dumps(yard.environ),
        ]
        inside = 'mount --bind "$1" /etc/hosts && shift && exec "$@"'
        command = [
            "unshare",
            "--map-root-user",
            "--mount",
            "sh",
            "-c",
            inside,
            "sh",
            str(hosts),
            *words,
        ]
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(TOP / "src")},
        )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["before"], found["pinned"]) == ("HEAD", "HEAD"), found
    assert "127.0.0.2" in found["unpinned"] or "connect" in found["unpinned"], found
    assert "private (10.1.2.3)" in found["rebound"][0] and found["rebound"][1] is True
    assert all("link-local" in said for said in found["metadata"])
    assert "this machine's own" in found["mixed"][0] and found["mixed"][1] is True


def test_what_a_repository_says_of_its_servers_does_not_count(yard: Yard) -> None:
    """A repository's configuration has no effect if it sends an address through a proxy, follows
    redirects, or rewrites the address."""
    with serving(yard, anybody=True) as forge, serving(yard, anybody=True) as thief:
        port = forge.url.split(":")[2].split("/")[0]
        evil = {
            "proxy": thief.url.removesuffix("/owner/repo"),
            "curloptResolve": f"127.0.0.1:{port}:127.0.0.3",
            "followRedirects": "true",
        }
        git = Git(cwd=yard.repo, environ=yard.environ)
        settings = Hosts(guarded=True, named=frozenset({f"127.0.0.1:{port}"})).settings(
            forge.url, yard.environ
        )
        for name, value in evil.items():
            yard.git("config", f"http.{forge.url}.{name}", value)
        with_its_own = git.run("ls-remote", "--", forge.url, allow=("http",), good=range(256))
        assert with_its_own.code or thief.seen
        thief.seen.clear()
        before = len(forge.seen)
        assert git.run("ls-remote", "--", forge.url, allow=("http",), settings=settings).code == 0
        assert thief.seen == [] and len(forge.seen) > before


def test_a_redirect_by_a_server_is_not_followed(yard: Yard) -> None:
    """The redirect is not followed even if the repository's own configuration allows it for this
    address."""
    with (
        serving(yard, anybody=True) as thief,
        serving(yard, redirect=thief.url.removesuffix("/owner/repo")) as forge,
    ):
        yard.git("config", f"http.{forge.url}.followRedirects", "true")
        git = Git(cwd=yard.repo, environ=yard.environ)
        settings = Hosts().settings(forge.url, yard.environ)
        with pytest.raises(GitFailed):
            git.run("ls-remote", "--", forge.url, allow=("http",), settings=settings)
        assert thief.seen == []
        assert git.run("ls-remote", "--", forge.url, allow=("http",)).code == 0 and thief.seen


def test_a_certificate_of_nobodys_is_not_taken(yard: Yard) -> None:
    """A repository's configuration that turns the check of certificates off for this address has no
    effect."""
    tls, _ = certificate(yard.top)
    with serving(yard, tls=tls, anybody=True) as forge:
        yard.git("config", f"http.{forge.url}.sslVerify", "false")
        git = Git(cwd=yard.repo, environ=yard.environ)
        with pytest.raises(GitFailed):
            git.run(
                "ls-remote",
                "--",
                forge.url,
                allow=("https",),
                settings=Hosts().settings(forge.url, yard.environ),
            )
        assert forge.seen == []


def test_proxies() -> None:
    """The proxy settings are read as curl reads them: the one for the scheme before the general
    one, HTTP_PROXY not at all, and no proxy for hosts in no_proxy."""
    named = {
        "https_proxy": "http://p:1",
        "ALL_PROXY": "http://all:1",
        "HTTP_PROXY": "http://evil:1",
        "no_proxy": ".corp, git.example.com",
    }
    assert proxy_of("https", "h", named) == "http://p:1"
    assert proxy_of("http", "h", named) == "http://all:1"
    assert proxy_of("https", "git.example.com", named) == proxy_of("https", "a.corp", named) == ""
    assert proxy_of("https", "agit.example.com", named) == "http://p:1"
    assert (
        proxy_of("https", "h", {})
        == ""
        == proxy_of("https", "h", {"https_proxy": "http://p:1", "NO_PROXY": "*"})
    )


def test_a_rule_never_lets_a_payload_name_the_server() -> None:
    """In a rule's address, `{repository}` must come after the server's name. Credentials and other
    schemes are refused when the configuration is read."""

    def rule(clone: str) -> str:
        return rules({"dev": {"agent": "claude", "authors": ["ada"], "clone": clone}})[0].clone

    good = (
        "https://git.example.com/{repository}.git",
        "https://10.0.0.5:3000/{repository}",
        "http://127.0.0.1:3000/{repository}.git",
        "/srv/{repository}",
        "ssh://git@git.example.com:2222/{repository}.git",
        "git@git.example.com:{repository}.git",
    )
    assert [rule(clone) for clone in good] == list(good)
    for clone in (
        "https://{repository}/x", "https://git.example.com{repository}", "https://git.{repository}/x", "https://u:p@git.example.com/{repository}",
        "http://git.example.com/{repository}", "http://127.0.0.1.evil.example/{repository}", "ssh://git:word@git.example.com/{repository}",
        "ssh://{repository}/x", "git@{repository}:x", "git@-oProxyCommand=x:{repository}", "git@git.example.com",
        "ext::sh -c x", "https://git.example.com", "file:///srv/{repository}",
    ):  # fmt: skip
        with pytest.raises(ValueError, match="clone of dev"):
            rule(clone)
