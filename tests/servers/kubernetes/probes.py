"""Readiness and liveness probes of containers by HTTP and TCP, with one thread for each container.

Pods share the host's network, so a probe is sent to 127.0.0.1. A probe that would run a command
counts as passed.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable

import httpx2

from tests.servers.kubernetes.api import Object
from tests.servers.kubernetes.started import Started


class Probes:
    """The probes of all containers of a pod. `wake` is called when the result of a probe
    changes."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._ready: dict[str, bool] = {}
        self._dead: dict[str, bool] = {}
        self._awake: dict[str, bool] = {}

    def is_ready(self, name: str) -> bool:
        return self._ready.get(name, True) and self._awake.get(name, True)

    def is_dead(self, name: str) -> bool:
        return self._dead.get(name, False)

    def follow(self, container: Object, started: Started, ended: Callable[[], bool]) -> None:
        """Probe a container until it ends."""
        name = container["name"]
        self._ready[name], self._dead[name] = "readinessProbe" not in container, False
        self._awake[name] = "startupProbe" not in container
        for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
            if kind in container:
                threading.Thread(
                    target=self._probe, args=(kind, container, started, ended), daemon=True
                ).start()

    def _probe(
        self, kind: str, container: Object, started: Started, ended: Callable[[], bool]
    ) -> None:
        name, probe = container["name"], container[kind]
        passed = failed = 0
        time.sleep(probe.get("initialDelaySeconds", 0))
        while started.place.exists() and not (started.place / "exit.json").exists() and not ended():
            if kind == "startupProbe" or self._awake[name]:
                is_good = _asks(container, probe)
                passed, failed = (passed + 1, 0) if is_good else (0, failed + 1)
                before = (self._ready[name], self._dead[name], self._awake[name])
                if passed >= probe.get("successThreshold", 1):
                    self._ready[name] = True if kind == "readinessProbe" else self._ready[name]
                    self._awake[name] = True
                elif failed >= probe.get("failureThreshold", 3):
                    self._ready[name] = False if kind == "readinessProbe" else self._ready[name]
                    self._dead[name] = self._dead[name] or kind != "readinessProbe"
                if before != (self._ready[name], self._dead[name], self._awake[name]):
                    self._wake()
                if kind == "startupProbe" and self._awake[name]:
                    return
            time.sleep(
                probe.get("periodSeconds", 10)
                if not (kind == "readinessProbe" and passed == 0)
                else 0.2
            )


def _asks(container: Object, probe: Object) -> bool:
    patience = probe.get("timeoutSeconds", 1)
    if "httpGet" in probe:
        wanted = probe["httpGet"]
        scheme = wanted.get("scheme", "HTTP").lower()
        try:
            answer = httpx2.get(
                f"{scheme}://127.0.0.1:{_port(container, wanted['port'])}{wanted.get('path', '/')}",
                timeout=patience,
                verify=False,
                trust_env=False,
            )
        except httpx2.HTTPError:
            return False
        return 200 <= answer.status_code < 400
    if "tcpSocket" in probe:
        try:
            socket.create_connection(
                ("127.0.0.1", _port(container, probe["tcpSocket"]["port"])), patience
            ).close()
        except OSError:
            return False
    return True


def _port(container: Object, wanted: int | str) -> int:
    """Return the number of a port that is given by its number or its name."""
    named = {each.get("name"): each["containerPort"] for each in container.get("ports", ())}
    return int(named.get(wanted, wanted))
