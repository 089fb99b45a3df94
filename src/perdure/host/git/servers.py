"""Decides which servers a git call may connect to, and makes sure that it connects to no other.

`workspace` calls this module before each fetch. A repository's address may come from outside: from
a task over the API, or from a webhook whose repository is inserted into the address of a rule. The
host name may resolve to an address in perdure's own network. So the name is resolved once and the
addresses are checked. git then connects only to these addresses (`http.curloptResolve`, git 2.37),
even if the name resolves differently a moment later. Each setting is named `http.<full URL>.*`,
because a setting for `http.*` would be overridden by one for a URL in any other configuration
(git-config(1), "http.<url>.*").

With a proxy, the proxy resolves the names, so only the names are checked here. ssh also resolves
names itself, and its configuration may map a name to another address. So repositories named from
outside are fetched by ssh only from servers that perdure's configuration names.
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
"""IPv6 prefix whose addresses contain an IPv4 address in their last 32 bits (RFC 6052)."""


class Hosts(Struct, frozen=True, kw_only=True):
    """The servers that git may connect to. Each is given as `host` or `host:port` (see `host_of`).

    `only`: if not empty, servers outside `only` and `named` are refused. `named`: servers that
    other settings name. `guarded`: a server on neither list must have a public address and use the
    scheme's default port, and is not reached by ssh.
    """

    only: frozenset[str] = frozenset()
    named: frozenset[str] = frozenset()
    guarded: bool = False

    def knows(self, url: str) -> bool:
        """Return whether the configuration names the server of a URL."""
        return host_of(url) in self.only | self.named

    def check(self, url: str) -> None:
        """Raise UsageError if the server of a URL is not allowed. The name is not resolved, so only
        the URL itself is checked."""
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
        if self.guarded and (why := refusal_reason(parts.hostname or "", private=False)):
            raise UsageError(
                f"Repositories are not fetched from {place}: its address is {why}.",
                "To allow this server, add it to clone_hosts.",
            )

    def settings(self, url: str, environ: Mapping[str, str]) -> list[tuple[str, str]]:
        """Return git's settings for one call to a URL, as (name, value) pairs. They forbid
        redirects, require a certificate check, set the proxy, and fix the addresses of the host
        name. The list is empty for a URL that is not HTTP. Raises UsageError like `check`, and if
        the name resolves to a forbidden address. Raises GitFailed if it does not resolve."""
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
            reasons = (refusal_reason(each, private=self.knows(url)) for each in found)
            if why := next(filter(None, reasons), ""):
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
"""Rules without any restriction, for a user at a terminal."""


def host_of(url: str) -> str:
    """Return the server of a URL as `host`, or as `host:port` if the port is not the scheme's
    default."""
    parts = parts_of(url)
    host = (parts.hostname or "").lower()
    if parts.port in (None, PORTS.get(parts.scheme)):
        return host
    return f"{host}:{parts.port}"


def parts_of(url: str) -> SplitResult:
    """Return the parts of a URL. The form `user@host:path` is read as ssh."""
    if "://" in url:
        return urlsplit(url)
    server, _, path = url.partition(":")
    return urlsplit(f"ssh://{server}/{path.lstrip('/')}")


def refusal_reason(address: str, *, private: bool) -> str:
    """Return why perdure may not connect to an IP address, in a few words, or "" if it may. A text
    that is not an IP address is accepted.

    `private`: addresses of private networks and of this machine are allowed. Never allowed are
    link-local addresses (where clouds serve credentials), multicast and reserved addresses.
    """
    try:
        ip = _embedded_ipv4(ipaddress.ip_address(address.partition("%")[0]))
    except ValueError:
        return ""
    if ip.is_link_local:
        return "link-local"
    if ip.is_unspecified or ip.is_multicast:
        return "not a server's"
    if ip.is_loopback:
        if private:
            return ""
        return "this machine's own"
    if ip.is_reserved:
        return "reserved"
    if ip.is_global or private:
        return ""
    return "private"


def is_loopback(host: str) -> bool:
    """Return whether a host name means this machine. Does no DNS lookup."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _embedded_ipv4(
    ip: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """Return the IPv4 address embedded in an IPv6 address; any other address unchanged."""
    if isinstance(ip, ipaddress.IPv4Address):
        return ip
    if ip in _NAT64:
        return ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    return ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None) or ip


def addresses(host: str, port: int) -> tuple[str, ...]:
    """Return the IP addresses that a host name resolves to now. Raises GitFailed with the message
    that git prints for a name that does not resolve."""
    import socket  # imported late: takes 3 ms, and most calls reach no server

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
    """Return the URL of the proxy that the environment sets for a server, by curl's rules; "" if
    there is none."""
    names = (
        f"{scheme}_proxy",
        *(["HTTPS_PROXY"] if scheme == "https" else []),
        "all_proxy",
        "ALL_PROXY",
    )
    proxy = next((environ[name] for name in names if environ.get(name)), "")
    without = []
    for each in re.split(r"[\s,]+", environ.get("no_proxy") or environ.get("NO_PROXY") or ""):
        if each:
            without.append(each.lower().lstrip("."))
    if any(each in ("*", host) or host.endswith(f".{each}") for each in without):
        return ""
    return proxy
