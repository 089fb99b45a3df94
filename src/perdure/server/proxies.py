"""Finds the address and scheme of a client behind a trusted proxy, from the headers of the proxy.

`application` runs the middleware `Forwarded` before everything else. The setting `serve_proxies`
names the trusted proxies. Without it these headers are ignored.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address
HOPS_MOST = 20
"""Maximum number of addresses that are read from `X-Forwarded-For`, beginning with the last one,
which the nearest proxy added."""


class Proxies:
    """The trusted proxies, as addresses or networks such as `127.0.0.1` and `10.0.0.0/8`."""

    def __init__(self, places: Sequence[str] = ()) -> None:
        self.networks: list[Network] = []
        for place in places:
            self.networks.append(ipaddress.ip_network(place, strict=False))

    def has(self, address: str) -> bool:
        """Return whether an address is one of the proxies."""
        found = plain_address(address)
        return found is not None and any(found in network for network in self.networks)

    def is_near(self, address: str) -> bool:
        """Return whether many clients may share an address. That may be so if the address is a
        proxy, is on this machine, or is not valid."""
        found = plain_address(address)
        return found is None or found.is_loopback or self.has(address)

    def client(self, peer: str, forwarded: str) -> str:
        """Return the address of the original client. The search starts with the peer and continues
        backwards through `X-Forwarded-For`. It ends at the first address that is not a trusted
        proxy."""
        names = [name.strip() for name in forwarded.split(",") if name.strip()][-HOPS_MOST:]
        while names and self.has(peer):
            found = plain_address(names.pop())
            if found is None:  # The addresses before an invalid entry cannot be trusted either.
                break
            peer = str(found)
        return peer


class Forwarded:
    """Middleware that sets the client and the scheme of a request to the values that a trusted
    proxy reports."""

    def __init__(self, app: ASGIApp, proxies: Proxies) -> None:
        self.app, self.proxies = app, proxies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            peer = (scope.get("client") or ("", 0))[0]
        else:
            peer = ""
        if peer and self.proxies.has(peer):
            headers = Headers(scope=scope)
            client = self.proxies.client(peer, ",".join(headers.getlist("x-forwarded-for")))
            scheme = (
                ",".join(headers.getlist("x-forwarded-proto")).rpartition(",")[2].strip().lower()
            )
            scope = {
                **scope,
                "client": (client, 0),
                "scheme": "https" if scheme == "https" else scope["scheme"],
            }
        await self.app(scope, receive, send)


def plain_address(text: str) -> Address | None:
    """Parse an address, with or without a port: `192.0.2.1`, `192.0.2.1:80`, `[::1]:80` or `::1`.
    An IPv4 address mapped into IPv6 becomes IPv4. Return None for anything else."""
    host = text.strip()
    if host.startswith("["):
        host = host[1:].partition("]")[0]
    elif host.count(":") == 1:
        host = host.partition(":")[0]
    try:
        found = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None
    if isinstance(found, ipaddress.IPv6Address):
        mapped = found.ipv4_mapped
    else:
        mapped = None
    return mapped or found
