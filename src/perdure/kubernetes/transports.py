"""Decides which repositories attempts may fetch by http without TLS, or by ssh. Pure. The
operator's options `--http-host` and `--ssh-host` name the permitted servers.

Three kinds of repository need no permission: https, a path in the pod, and http on the loopback
address. If a repository needs a permission and has none, `step` refuses the TaskRun before an
attempt begins. The order tells the pod which transport was permitted.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from perdure.host.git.servers import host_of, parts_of
from perdure.kubernetes.spec import Spec

Transport = Literal["", "http", "ssh"]
_LOOPBACK = frozenset({"127.0.0.1", "localhost"})
_VALUES = {"http": "attempts.repositories.httpHosts", "ssh": "attempts.repositories.sshHosts"}


class Permitted(msgspec.Struct, frozen=True, kw_only=True):
    """The permitted servers by transport, as `host`, or as `host:port` if the port is not the
    default."""

    http: frozenset[str] = frozenset()
    ssh: frozenset[str] = frozenset()


NONE_PERMITTED = Permitted()


def transport_of(url: str) -> Transport:
    """Return the transport of a repository URL if it needs a permission; empty if it needs none."""
    if not url or url.startswith("/"):
        return ""
    parts = parts_of(url)
    if parts.scheme == "ssh":
        return "ssh"
    if parts.scheme == "http" and parts.hostname not in _LOOPBACK:
        return "http"
    return ""


def refusal(spec: Spec, permitted: Permitted) -> str:
    """Return an error message if attempts may not fetch the TaskRun's repository; empty if they
    may. The message names the setting with which the operator would permit it."""
    url = spec.repository.url if spec.repository else ""
    transport = transport_of(url)
    if not transport:
        return ""
    try:
        host = host_of(url)
    except ValueError as error:
        return f"spec.repository.url is not valid: {error}"
    hosts = permitted.ssh if transport == "ssh" else permitted.http
    if host in hosts:
        return ""
    why = "" if transport == "ssh" else ", which protects neither code nor credentials,"
    return (
        f"spec.repository.url: the operator does not permit {transport}{why} to {host}: add it to "
        f"{_VALUES[transport]} of the chart (perdure operator --{transport}-host {host}), then "
        f"kubectl perdure retry"
    )
