"""A Kubernetes API as paths and plain dictionaries, for the node agent, the fixtures and the tests.
They must not use perdure's own client, because they help to test it.

`watch` does not end by itself. A read that stays silent is given up. After a watch ends for any
reason, the objects are listed again, and those that are gone are reported.
"""

from __future__ import annotations

import json
import ssl
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

Object = dict[str, Any]

STALE = 25
"""Maximum number of kept connections that may have ended with a restarted API server. A request
that may be made twice is repeated on the next connection."""
PATCHES = {
    "merge": "application/merge-patch+json",
    "strategic": "application/strategic-merge-patch+json",
}


class Refused(AssertionError):
    """Raised if the API server answers with another status than 2xx. `reason` is the server's own
    word (`NotFound`, `Conflict`, `Invalid` ...)."""

    def __init__(self, status: int, said: str) -> None:
        try:
            answer = json.loads(said)
            self.reason, message = str(answer.get("reason", "")), str(answer.get("message", said))
        except ValueError:
            self.reason, message = "", said
        super().__init__(f"{status} {self.reason}: {message[:2000]}")
        self.status = status
        self.message = message


@dataclass(frozen=True)
class Access:
    """The address of an API server, and an account."""

    server: str
    ca_file: Path
    token: str
    agent: str = "perdure-tests"

    def kubeconfig(self, path: Path, namespace: str = "default") -> Path:
        """Write this access as a kubeconfig file, for kubectl and all other clients."""
        context = {"cluster": "tests", "user": "tests", "namespace": namespace}
        cluster = {"server": self.server, "certificate-authority": str(self.ca_file)}
        text = json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "tests",
                "clusters": [{"name": "tests", "cluster": cluster}],
                "users": [{"name": "tests", "user": {"token": self.token}}],
                "contexts": [{"name": "tests", "context": context}],
            }
        )
        path.touch(mode=0o600)
        path.write_text(text)
        return path


class Api:
    """Calls by path, such as `/api/v1/namespaces/a/pods/b`. Threads may share one."""

    def __init__(self, access: Access) -> None:
        self.access = access
        headers = {"authorization": f"Bearer {access.token}", "user-agent": access.agent}
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=20)
        trust = ssl.create_default_context(cafile=str(access.ca_file))
        self._client = httpx2.Client(
            base_url=access.server,
            verify=trust,
            headers=headers,
            timeout=30.0,
            limits=limits,
            trust_env=False,
        )

    def close(self) -> None:
        self._client.close()

    def get(self, path: str, **parameters: str) -> Object:
        return self._call("GET", path, parameters=parameters)

    def find(self, path: str, **parameters: str) -> Object | None:
        """Return the object, or None if it does not exist."""
        try:
            return self.get(path, **parameters)
        except Refused as error:
            if error.status != 404:
                raise
            return None

    def items(self, path: str, **parameters: str) -> list[Object]:
        return list(self.get(path, **parameters)["items"])

    def create(self, path: str, body: Object) -> Object:
        return self._call("POST", path, body, parameters={"fieldValidation": "Strict"})

    def replace(self, path: str, body: Object) -> Object:
        return self._call("PUT", path, body)

    def patch(self, path: str, body: Object, kind: str = "merge") -> Object:
        return self._call("PATCH", path, body, content=PATCHES[kind])

    def delete(self, path: str, **options: Any) -> Object:
        return self._call("DELETE", path, options)

    def discard(self, path: str, **options: Any) -> None:
        """Delete an object. It is no error if the object is gone, or was replaced by another one
        with the same name."""
        try:
            self.delete(path, **options)
        except Refused as error:
            if error.status not in (404, 409):
                raise

    def text(self, path: str, **parameters: str) -> str:
        """Return an answer that is not JSON, such as a pod's log."""
        answer = self._client.get(path, params=parameters)
        if not answer.is_success:
            raise Refused(answer.status_code, answer.text)
        return answer.text

    def watch(
        self, path: str, ended: threading.Event, **parameters: str
    ) -> Iterator[tuple[str, Object]]:
        """Yield pairs of `PUT` or `GONE` and an object, beginning with the existing ones, until
        `ended`."""
        known: dict[str, Object] = {}
        while not ended.is_set():
            try:
                yield from self._follow(path, ended, known, parameters)
            except (httpx2.HTTPError, OSError, Refused, json.JSONDecodeError):
                ended.wait(0.2)

    def _follow(
        self,
        path: str,
        ended: threading.Event,
        known: dict[str, Object],
        parameters: dict[str, str],
    ) -> Iterator[tuple[str, Object]]:
        listed = self.get(path, **parameters)
        there = {each["metadata"]["uid"]: each for each in listed["items"]}
        for uid in [uid for uid in known if uid not in there]:
            yield "GONE", known.pop(uid)
        for uid, each in there.items():
            known[uid] = each
            yield "PUT", each
        options = {
            "watch": "1",
            "allowWatchBookmarks": "true",
            "timeoutSeconds": "240",
            "resourceVersion": listed["metadata"]["resourceVersion"],
        }
        # Bookmarks come about once a minute, so a server that is silent for longer has gone.
        patience = httpx2.Timeout(30.0, read=75.0)
        with self._client.stream(
            "GET", path, params={**parameters, **options}, timeout=patience
        ) as answer:
            if not answer.is_success:
                raise Refused(answer.status_code, answer.read().decode(errors="replace"))
            for line in answer.iter_lines():
                if ended.is_set():
                    return
                event = json.loads(line)
                one, kind = event["object"], event["type"]
                if kind == "ERROR":
                    raise Refused(int(one.get("code", 500)), json.dumps(one))
                if kind == "DELETED":
                    known.pop(one["metadata"]["uid"], None)
                    yield "GONE", one
                elif kind != "BOOKMARK":
                    known[one["metadata"]["uid"]] = one
                    yield "PUT", one

    def _call(
        self,
        method: str,
        path: str,
        body: Object | None = None,
        *,
        content: str = "application/json",
        parameters: Any = None,
    ) -> Object:
        headers = {"content-type": content, "accept": "application/json"}
        sent = None if body is None else json.dumps(body).encode()
        for left in reversed(range(STALE)):
            try:
                answer = self._client.request(
                    method, path, content=sent, headers=headers, params=parameters or None
                )
                break
            except (httpx2.RemoteProtocolError, httpx2.ReadError, httpx2.WriteError):
                if method == "POST" or not left:
                    raise
        if not answer.is_success:
            raise Refused(answer.status_code, answer.text)
        return dict(answer.json())


def now() -> str:
    """Return the time as the API writes it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def now_micro() -> str:
    """Return the time in the form of a Lease."""
    whole = time.time()
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole)) + f".{int(whole % 1 * 1e6):06d}Z"
