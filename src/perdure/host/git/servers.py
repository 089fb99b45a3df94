"""Decides which servers a git call may connect to, and makes sure that it connects to no other.

`workspace` asks before each fetch, with the address of a repository. That address may come from
outside (a webhook's repository in a rule's address, a task over the API), and its name may resolve
to an address in perdure's own network. So the name is resolved once, the addresses are checked, and
git gets exactly those (`http.curloptResolve`, git 2.37), even if the name resolves differently a
moment later. The settings use the full address, because git lets `http.<address>.*` of any
configuration beat `http.*` (git-config(1), "http.<url>.*").

With a proxy, the proxy resolves names, so only the names are checked here. ssh resolves names
itself (its configuration may map a name to another address). So repositories named from outside are
fetched by ssh only from servers that the configuration names.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from urllib.parse import SplitResult, urlsplit

from msgspec import Struct

from perdure.errors import GitFailed, UsageError

PORTS = {"https": 443, "http": 80, "ssh": 22}
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
"""Prefix of IPv6 addresses that have an IPv4 address in their last 32 bits (RFC 6052)."""


class Hosts(Struct, frozen=True, kw_only=True):
    """The owner's rules about servers, each as `host` or `host:port` (see `host_of`).

    `only`: all other servers are refused; empty means no such list. `named`: servers that the
    configuration names elsewhere. `guarded`: a server on neither list must have a public address
    and the scheme's default port.
    """

    only: frozenset[str] = frozenset()
    named: frozenset[str] = frozenset()
    guarded: bool = False

    def knows(self, url: str) -> bool:
        """Return whether the configuration names the server of an address."""
        return host_of(url) in self.only | self.named

    def check(self, url: str) -> None:
        """Raise UsageError for a server that is not allowed, as far as its name shows. Nothing is
        resolved."""
        place, parts = host_of(url), parts_of(url)
        if self.knows(url):
            return
        if self.only:
            raise UsageError(
                f"Repositories are not fetched from {place}.",
                f"Add it to clone_hosts ({', '.join(sorted(self.only))}).",
            )
        if self.guarded and parts.scheme == "ssh":
            raise UsageError(
                f"Repositories are not fetched by ssh from {place}.",
                "To allow this server, add it to clone_hosts.",
            )
        if self.guarded and parts.port not in (None, PORTS.get(parts.scheme)):
            raise UsageError(
                f"Repositories are not fetched from {place}: it is not the default port.",
                "To allow this server, add it to clone_hosts.",
            )
        if self.guarded and (why := unfit(parts.hostname or "", private=False)):
            raise UsageError(
                f"Repositories are not fetched from {place}: its address is {why}.",
                "To allow this server, add it to clone_hosts.",
            )

    def settings(self, url: str, environ: Mapping[str, str]) -> list[tuple[str, str]]:
        """Return git's settings for one call to an address: they forbid redirects, require a
        certificate check, name the proxy, and fix the addresses of the name. Raises UsageError like
        `check`, and for a name that resolves to a forbidden address; GitFailed if it does not
        resolve."""
        self.check(url)
        parts = parts_of(url)
        scheme, host = parts.scheme, parts.hostname or ""
        if scheme not in ("http", "https"):
            return []
        proxy = proxy_of(scheme, host, environ)
        told = [
            ("followRedirects", "false"),
            ("sslVerify", "true"),
            ("proxy", proxy),
            ("curloptResolve", ""),
        ]
        if self.guarded and not proxy:
            port = parts.port or PORTS[scheme]
            found = addresses(host, port)
            if why := next(
                (why for each in found if (why := unfit(each, private=self.knows(url)))), ""
            ):
                if self.knows(url):
                    hint = ""
                else:
                    hint = "To allow this server, add it to clone_hosts."
                raise UsageError(
                    f"Repositories are not fetched from {host_of(url)}: its address is {why} "
                    f"({', '.join(found)}).",
                    hint,
                )
            listed = ",".join(f"[{each}]" if ":" in each else each for each in found)
            told.append(("curloptResolve", f"{host}:{port}:{listed}"))
        return [(f"http.{url}.{name}", value) for name, value in told]


ANYWHERE = Hosts()
"""No restrictions, for a user at a terminal, who may name any server."""


def host_of(url: str) -> str:
    """Return `host`, or `host:port` if the port is not the scheme's default."""
    parts = parts_of(url)
    host = (parts.hostname or "").lower()
    if parts.port in (None, PORTS.get(parts.scheme)):
        return host
    return f"{host}:{parts.port}"


def parts_of(url: str) -> SplitResult:
    """Return the parts of an address; `user@host:path` is ssh."""
    if "://" in url:
        return urlsplit(url)
    server, _, path = url.partition(":")
    return urlsplit(f"ssh://{server}/{path.lstrip('/')}")


def unfit(address: str, *, private: bool) -> str:
    """Return why an address may not be connected to, in a few words, or "" if it may.

    A text that is not an address is not judged. `private`: addresses of private networks and of
    this machine are allowed. Link-local (where clouds keep their secrets), multicast and reserved
    addresses never are.
    """
    try:
        ip = _meant(ipaddress.ip_address(address.partition("%")[0]))
    except ValueError:
        return ""
    if ip.is_link_local:
        return "link-local"
    if ip.is_unspecified or ip.is_multicast:
        return "no server's"
    if ip.is_loopback:
        if private:
            return ""
        return "this machine's own"
    if ip.is_reserved:
        return "reserved"
    if ip.is_global or private:
        return ""
    return "private"


def _meant(
    ip: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """Return the IPv4 address embedded in an IPv6 address; any other address unchanged."""
    if isinstance(ip, ipaddress.IPv4Address):
        return ip
    if ip in _NAT64:
        return ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    return ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None) or ip


def addresses(host: str, port: int) -> tuple[str, ...]:
    """Return the addresses that a name resolves to now. Raises GitFailed, in git's own words for an
    unreachable server."""
    import socket  # late: most calls reach no server, and it takes 3 ms

    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        said = f"Could not resolve host: {host}"
        raise GitFailed(
            f"{said}.",
            argv=("git",),
            code=128,
            stderr=said,
            hint="Check the network and try again.",
        ) from error
    return tuple(dict.fromkeys(str(each[4][0]) for each in found))


def proxy_of(scheme: str, host: str, environ: Mapping[str, str]) -> str:
    """Return the proxy that the environment sets for a server, as curl reads it; "" if there is
    none."""
    names = (
        f"{scheme}_proxy",
        *(["HTTPS_PROXY"] if scheme == "https" else []),
        "all_proxy",
        "ALL_PROXY",
    )
    proxy = next((environ[name] for name in names if environ.get(name)), "")
    without = [
        each.lower().lstrip(".")
        for each in re.split(r"[\s,]+", environ.get("no_proxy") or environ.get("NO_PROXY") or "")
        if each
    ]
    if any(each in ("*", host) or host.endswith(f".{each}") for each in without):
        return ""
    return proxy
