"""The few calls of an API server that the operator makes, served in this process and its event
loop. It has the features that kmock (0.8) lacks: resource versions, 409 for a stale or repeated
write, the status subresource, finalizers, bookmarks, and a history from which a watch continues.

It also plays a minimal Job controller, garbage collector and kubelet: a Job gets a pod, and a pod
ends as `script` says. The tests marked `kubernetes` use the real ones; this one is for tests of
what happens between two requests.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from aiohttp import web

from tests.kubernetes.making import told

Body = dict[str, Any]
KINDS = {
    "": {
        "pods": "Pod",
        "configmaps": "ConfigMap",
        "secrets": "Secret",
        "persistentvolumeclaims": "PersistentVolumeClaim",
        "events": "Event",
        "resourcequotas": "ResourceQuota",
        "namespaces": "Namespace",  # kopf checks that there are namespaces, but reads none
    },
    "batch": {"jobs": "Job"},
    "perdure.dev": {"taskruns": "TaskRun"},
}
VERSIONS = {"": "v1", "batch": "v1", "perdure.dev": "v1alpha1"}


class Server:
    """`script` returns how the pod of an attempt ends (a container's state), or None for not yet.
    `before` and `after` are called with method and path of each write. An exception that they raise
    is sent as the answer."""

    def __init__(self, script: Callable[[int], Body | None]) -> None:
        self.script = script
        self.objects: dict[str, dict[tuple[str, str], Body]] = {
            kind: {} for kinds in KINDS.values() for kind in kinds
        }
        self.history: dict[str, list[tuple[int, str, Body]]] = {kind: [] for kind in self.objects}
        self.version, self.oldest = 100, 100
        self.changed = asyncio.Event()
        self.counted: Counter[str] = Counter()
        self.jobs_made: Counter[str] = Counter()
        self.began: list[int] = []
        self.leaving: set[str] = set()
        """Namespaces that are being deleted."""
        self.before: Callable[[str, str], None] = lambda method, path: None
        self.after: Callable[[str, str], None] = lambda method, path: None
        self.listed: Callable[[], None] = lambda: None
        """Called after each page of a list was read, before it is sent."""
        self.pages: list[int] = []
        """The length of each page of a list."""
        self.cut = 0
        self.port = 0
        self.forbidden: set[str] = set()
        """Accesses that a review denies, such as `create jobs`."""

    async def start(self) -> web.AppRunner:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._answer)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.port = int(runner.addresses[0][1])
        return runner

    # --- what is kept
    # ----------------------------------------------------------------------------------------------

    def put(self, kind: str, body: Body, event: str = "MODIFIED") -> Body:
        self.version += 1
        body = json.loads(json.dumps(body))
        meta = body["metadata"]
        meta["resourceVersion"] = str(self.version)
        key = (meta.get("namespace", "default"), meta["name"])
        gone = event == "DELETED" or (meta.get("deletionTimestamp") and not meta.get("finalizers"))
        if gone:
            self.objects[kind].pop(key, None)
        else:
            self.objects[kind][key] = body
        self.history[kind].append((self.version, "DELETED" if gone else event, body))
        if gone and kind in ("taskruns", "jobs"):
            self._collect(meta["uid"])
        self.changed.set()
        self.changed = asyncio.Event()
        return body

    def add(self, kind: str, body: Body) -> Body:
        meta = body["metadata"]
        meta.setdefault("namespace", "default")
        meta["uid"], meta["generation"] = str(uuid.uuid4()), 1
        meta["creationTimestamp"] = (
            datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        )
        body = self.put(kind, body, "ADDED")
        if kind == "jobs":
            self.jobs_made[meta["name"]] += 1
            labels = body["spec"]["template"]["metadata"]["labels"]
            owner = {"kind": "Job", "uid": body["metadata"]["uid"], "controller": True}
            pod = {"metadata": {"name": f"{meta['name']}-pod", "labels": labels, "ownerReferences": [owner]},
                   "spec": body["spec"]["template"]["spec"], "status": {"phase": "Pending"}}  # fmt: skip
            self.add("pods", pod)
            asyncio.get_running_loop().call_soon(self.turn)
        return body

    def remove(self, kind: str, body: Body) -> None:
        if body["metadata"].get("finalizers"):
            body["metadata"]["deletionTimestamp"] = body["metadata"].get(
                "deletionTimestamp", "2026-11-21T10:00:00Z"
            )
            self.put(kind, body)
        else:
            self.put(kind, body, "DELETED")

    def _collect(self, uid: str) -> None:
        for kind in ("jobs", "pods", "configmaps"):
            for body in list(self.objects[kind].values()):
                if any(each["uid"] == uid for each in body["metadata"].get("ownerReferences", ())):
                    self.remove(kind, body)

    def turn(self) -> None:
        """Play kubelet and Job controller: let pods begin and end, then their Jobs."""
        for pod in [
            each
            for each in self.objects["pods"].values()
            if each["metadata"].get("ownerReferences")
        ]:
            attempt = int(pod["metadata"]["labels"]["perdure.dev/attempt"])
            if pod["status"]["phase"] == "Pending":
                self.began.append(attempt)
                state: Body | None = {"running": {"startedAt": "2026-11-21T10:00:00Z"}}
                pod["status"] = {
                    "phase": "Running",
                    "containerStatuses": [{"name": "perdure", "state": state}],
                }
                pod = self.put("pods", pod)
            if pod["status"]["phase"] == "Running" and (state := self.script(attempt)):
                well = state["terminated"]["exitCode"] == 0
                pod["status"] = {
                    "phase": "Succeeded" if well else "Failed",
                    "containerStatuses": [{"name": "perdure", "state": state}],
                }
                self.put("pods", pod)
                owner = pod["metadata"]["ownerReferences"][0]["uid"]
                for job in [
                    each
                    for each in self.objects["jobs"].values()
                    if each["metadata"]["uid"] == owner
                ]:
                    reason = {
                        "type": "Complete" if well else "Failed",
                        "status": "True",
                        "reason": "BackoffLimitExceeded",
                    }
                    self.put("jobs", job | {"status": {"conditions": [reason]}})

    # --- what is answered
    # ------------------------------------------------------------------------------------------

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        parts = request.path.strip("/").split("/")
        group, rest = (
            ("", parts[2:])
            if parts[0] == "api"
            else (parts[1] if len(parts) > 1 else "", parts[3:])
        )
        if not rest:
            return self._discover(parts, group)
        if rest[0] == "namespaces" and len(rest) == 2 and request.method == "GET":
            return self._namespace(rest[1])
        namespace, rest = (rest[1], rest[2:]) if rest[0] == "namespaces" else ("", rest)
        kind, name, part = (
            rest[0],
            rest[1] if len(rest) > 1 else "",
            rest[2] if len(rest) > 2 else "",
        )
        if kind == "selfsubjectaccessreviews":
            return await self._review(request)
        if kind not in KINDS.get(group, {}):
            return _status(404, f"no {kind}")
        if request.query.get("watch"):
            return await self._watch(request, kind, namespace)
        self.counted[request.method] += 1
        if request.method != "GET":
            self.before(request.method, request.path)
        answer = await self._do(request, kind, namespace, name, part)
        if request.method != "GET":
            self.after(request.method, request.path)
        return answer

    def _namespace(self, name: str) -> web.Response:
        """Answer with a namespace. Every namespace exists."""
        body: Body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
        if name in self.leaving:
            body["metadata"]["deletionTimestamp"] = "2026-11-21T10:00:00Z"
        return web.json_response(body)

    async def _review(self, request: web.Request) -> web.Response:
        body = await request.json()
        asked = body["spec"]["resourceAttributes"]
        resource = "/".join(each for each in (asked["resource"], asked.get("subresource")) if each)
        body["status"] = {"allowed": f"{asked['verb']} {resource}" not in self.forbidden}
        return web.json_response(body, status=201)

    async def _do(
        self, request: web.Request, kind: str, namespace: str, name: str, part: str
    ) -> web.Response:
        key, there = (namespace, name), self.objects[kind].get((namespace, name))
        if request.method == "GET" and not name:
            items = [
                each
                for each in self.objects[kind].values()
                if _chosen(each, namespace, request.query.get("labelSelector", ""))
            ]
            return self._page(items, request.query)
        if request.method == "POST":
            body = await request.json()
            if (namespace, body["metadata"]["name"]) in self.objects[kind]:
                return _status(409, "already exists")
            return web.json_response(self.add(kind, body), status=201)
        if there is None:
            return _status(404, f"{kind} {key} not found")
        if request.method == "GET":
            return web.json_response(there)
        if request.method == "DELETE":
            meta = there["metadata"]
            if any(
                request.query.get(name, meta[name]) != meta[name]
                for name in ("uid", "resourceVersion")
            ):
                return _status(409, "the precondition failed")
            self.remove(kind, there)
            return web.json_response({"kind": "Status", "status": "Success"})
        patch = await request.json()
        version = patch.get("metadata", {}).pop("resourceVersion", None)
        if version not in (None, there["metadata"]["resourceVersion"]):
            return _status(409, "the object has been modified")
        fields = (
            {"status": patch.get("status", {})}
            if part == "status"
            else {k: v for k, v in patch.items() if k != "status"}
        )
        merged = _merge(there, fields)
        return web.json_response(there if merged == there else self.put(kind, merged))

    def _page(self, items: list[Body], query: Mapping[str, str]) -> web.Response:
        """Return a page of a list. The token of the next one has the version and the place."""
        version, _, start = query.get("continue", f"{self.version}:0").partition(":")
        if int(version) < self.oldest:
            return _status(410, "The provided continue parameter is too old")
        begin = int(start)
        end = begin + int(query.get("limit") or len(items))
        meta = {"resourceVersion": version}
        if end < len(items):
            meta["continue"] = f"{version}:{end}"
        self.pages.append(len(items[begin:end]))
        self.listed()
        return web.json_response({"kind": "List", "metadata": meta, "items": items[begin:end]})

    async def _watch(self, request: web.Request, kind: str, namespace: str) -> web.StreamResponse:
        answer = web.StreamResponse(headers={"Content-Type": "application/json"})
        await answer.prepare(request)
        since, cut = int(request.query.get("resourceVersion") or 0), self.cut
        if since < self.oldest:
            await answer.write(
                json.dumps(
                    {"type": "ERROR", "object": json.loads(_status(410, "too old").body)}
                ).encode()
                + b"\n"
            )  # type: ignore[arg-type]
            return answer
        while self.cut == cut:
            changed = self.changed
            for version, event, body in self.history[kind]:
                if version > since and _chosen(
                    body, namespace, request.query.get("labelSelector", "")
                ):
                    await answer.write(json.dumps({"type": event, "object": body}).encode() + b"\n")
            since = self.version
            bookmark = {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": str(since)}}}
            await answer.write(json.dumps(bookmark).encode() + b"\n")
            await changed.wait()
        return answer

    def _discover(self, parts: list[str], group: str) -> web.Response:
        if parts in (["api"], ["version"]):
            return web.json_response({"versions": ["v1"]})
        versions = {
            name: [{"groupVersion": f"{name}/{version}", "version": version}]
            for name, version in VERSIONS.items()
            if name
        }
        if parts == ["apis"]:
            groups = [
                {"name": name, "versions": found, "preferredVersion": found[0]}
                for name, found in versions.items()
            ]
            return web.json_response({"groups": groups})
        if group not in KINDS:
            return _status(404, "no such group")
        resources = [
            {
                "name": kind,
                "singularName": name.lower(),
                "kind": name,
                "namespaced": True,
                "verbs": ["get", "list", "watch", "patch", "create", "delete"],
            }
            for kind, name in KINDS[group].items()
        ]
        return web.json_response({"resources": resources})

    def end_watches(self, *, expired: bool = False) -> None:
        """End all watches. `expired`: whether the version from which they would continue is
        gone."""
        self.cut += 1
        if expired:
            self.version += 1
            self.oldest = self.version
        self.changed.set()
        self.changed = asyncio.Event()


def fails(times: int) -> Callable[[int], Body]:
    """Return a `script` by which the pods of this many attempts fail and the next one succeeds."""
    from perdure.model import OutcomeKind

    return lambda attempt: told(
        attempt, OutcomeKind.FAILED if attempt <= times else OutcomeKind.SUCCEEDED
    )


def _chosen(body: Body, namespace: str, selector: str) -> bool:
    meta = body["metadata"]
    labels = meta.get("labels") or {}
    wanted = [part.split("=") for part in selector.split(",") if part]
    fits = all(
        labels.get(part[0]) == part[1] if len(part) > 1 else part[0] in labels for part in wanted
    )
    return fits and namespace in ("", meta.get("namespace"))


def _merge(there: Any, patch: Any) -> Any:
    """Apply a JSON merge patch (RFC 7386)."""
    if not isinstance(patch, dict):
        return patch
    found = dict(there) if isinstance(there, dict) else {}
    for name, value in patch.items():
        if value is None:
            found.pop(name, None)
        else:
            found[name] = _merge(found.get(name), value)
    return found


def _status(code: int, message: str) -> web.Response:
    return web.json_response(
        {"kind": "Status", "code": code, "reason": "", "message": message, "status": "Failure"},
        status=code,
    )


class Fault(web.HTTPException):
    """An error that the server sends in place of its answer."""

    def __init__(self, code: int) -> None:
        self.status_code = code
        super().__init__(
            text=json.dumps(
                {"kind": "Status", "code": code, "message": "a fault", "status": "Failure"}
            ),
            content_type="application/json",
        )
