"""The life of one pod on a machine: a thread of the node agent, which compares the wanted state
with the actual one, and does the next step.

All state is on the machine's disk or in the API, so an agent that was killed continues where it
was: running containers are found again, and an end that came meanwhile is reported. While the API
server is down, containers still start, end and time out.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import httpx2

from tests.servers.kubernetes import environment, mounts
from tests.servers.kubernetes.api import Api, Object, Refused
from tests.servers.kubernetes.environment import Sources, Wrong
from tests.servers.kubernetes.images import Image
from tests.servers.kubernetes.limits import limited, release
from tests.servers.kubernetes.probes import Probes
from tests.servers.kubernetes.started import Started
from tests.servers.kubernetes.status import Seen, is_sidecar, status

RETRY_S = 0.5


@dataclass(frozen=True)
class Room:
    """Settings that all pods of a machine share. `address` is the API server's host and port."""

    api: Api
    node: str
    directory: Path
    network: Path
    images: dict[str, Image]
    address: tuple[str, str]


class PodLife(threading.Thread):
    """The thread of one pod. Other threads may call `see` and `gone` at any time."""

    def __init__(self, room: Room, pod: Object) -> None:
        super().__init__(daemon=True, name=pod["metadata"]["name"])
        self.room = room
        self.pod = pod
        self.uid = pod["metadata"]["uid"]
        self.place = room.directory / "pods" / self.uid
        self.volumes = mounts.Volumes(room.api, self.place, room.directory / "disk", room.network)
        self.seen = Seen(starts=self._found(), probes=Probes(self.wake))
        self._bell = os.eventfd(0, os.EFD_NONBLOCK)
        self._is_gone = False
        self._ended_at: dict[str, float] = {}
        self._told: Object = {}
        self._said: set[str] = set()
        self._stop_at: float | None = None
        self._asked: list[Started] = []
        self._retry_at = 0.0

    def see(self, pod: Object) -> None:
        self.pod = pod
        self.wake()

    def gone(self) -> None:
        """Record that the pod is no longer in the API, so that nothing is waited for or
        reported."""
        self._is_gone = True
        self.wake()

    def evict(self, message: str) -> None:
        """Evict the pod, as a kubelet does whose machine runs out of memory or disk."""
        self.seen.reason, self.seen.message = "Evicted", message
        self.seen.disrupted = True
        self.wake()

    def wake(self) -> None:
        os.eventfd_write(self._bell, 1)

    def log(self, container: str, previous: bool) -> Started | None:
        """Return the start of a container whose log is requested, or None if there is none."""
        found = self.seen.starts.get(container, [])
        wanted = found[:-1] if previous else found
        return wanted[-1] if wanted else None

    # --- the thread
    # ----------------------------------------------------------------------------------------------

    def run(self) -> None:
        while not self._step():
            self._wait()
        for one in self._all():
            release(self.room.directory, self.uid, one.place)
        shutil.rmtree(self.place, ignore_errors=True)
        # The descriptor is not closed, because another thread may be about to write to it.

    def _step(self) -> bool:
        """Do the next step. Return whether nothing is left to do."""
        try:
            if self._is_gone:
                self._end(0)
                return not self._running()
            self.seen.began = self.seen.began or self._began()
            grace = self._grace()
            if grace is not None:
                self._end(grace)
            elif self.seen.has_ended(self.pod):
                # Only sidecars are left.
                self._end(int(self.pod["spec"].get("terminationGracePeriodSeconds", 30)))
            else:
                self._go_on()
            self._tell()
            if (
                "deletionTimestamp" in self.pod["metadata"]
                and not self._running()
                and self.seen.is_told
            ):
                self._leave()
        except (httpx2.HTTPError, Refused, OSError) as error:
            print(f"{self.name}: {error!r}", flush=True)
            self._retry_at = time.time() + RETRY_S
        return False

    def _wait(self) -> None:
        ready = select.poll()
        ready.register(self._bell, select.POLLIN)
        for one in self._all():
            if (watched := one.watched()) >= 0:
                ready.register(watched, select.POLLIN)
        due = [
            each
            for each in (self._retry_at, self._stop_at, self._deadline())
            if each and each > time.time()
        ]
        ready.poll(max(1, 1 + int(1000 * (min(due) - time.time()))) if due else None)
        try:
            os.eventfd_read(self._bell)
        except BlockingIOError:
            return

    # --- what is wanted
    # ------------------------------------------------------------------------------------------

    def _grace(self) -> int | None:
        """Return the seconds in which the pod's containers have to end, or None if they may
        continue."""
        if "deletionTimestamp" in self.pod["metadata"]:
            return int(self.pod["metadata"].get("deletionGracePeriodSeconds", 0))
        deadline = self._deadline()
        if deadline and time.time() >= deadline and not self.seen.reason and not self._is_over():
            self.seen.reason, self.seen.message = (
                "DeadlineExceeded",
                "Pod was active on the node longer than the specified deadline",
            )
        if self.seen.reason == "Evicted":
            return 0
        return (
            int(self.pod["spec"].get("terminationGracePeriodSeconds", 30))
            if self.seen.reason
            else None
        )

    def _deadline(self) -> float:
        limit = self.pod["spec"].get("activeDeadlineSeconds")
        return self.seen.began + limit if limit and self.seen.began else 0.0

    def _began(self) -> float:
        """Return the time when this machine began to run the pod, which is the age of the pod's
        directory."""
        told = self.pod["status"].get("startTime")
        if told and not self.place.exists():
            self.seen.lost = True
        self.place.mkdir(parents=True, exist_ok=True)
        mark = self.place / "began"
        if not mark.exists():
            mark.write_text(str(time.time()))
        return float(mark.read_text() or time.time())

    def _sidecars(self) -> list[Started]:
        """Return the running sidecars, which end after the other containers."""
        return [
            one
            for container in self.pod["spec"].get("initContainers", ())
            if is_sidecar(container)
            for one in self.seen.starts.get(container["name"], [])
            if one.is_running()
        ]

    def _is_over(self) -> bool:
        return self.seen.phase(self.pod) in ("Succeeded", "Failed")

    # --- what is done
    # --------------------------------------------------------------------------------------------

    def _end(self, grace: int) -> None:
        running = self._running()
        if not running:
            return
        sidecars = self._sidecars()
        first = [one for one in running if one not in sidecars] or running
        if self._stop_at is None:
            self._stop_at = time.time() + grace
        for one in first:
            if one not in self._asked:
                self._asked.append(one)
                one.kill(signal.SIGTERM)
        self._stop_at = min(self._stop_at, time.time() + grace)
        if time.time() >= self._stop_at:
            for one in running:
                one.kill(signal.SIGKILL)
            self._retry_at = time.time() + 0.05

    def _go_on(self) -> None:
        """Start the next containers: the first init container that has not succeeded, or all
        others."""
        if self._is_over() or self.seen.lost or time.time() < self._retry_at:
            return
        policy = self.pod["spec"]["restartPolicy"]
        for container in self.pod["spec"].get("initContainers", ()):
            code = self.seen.code(container["name"])
            if is_sidecar(container):
                starts = self.seen.starts.get(container["name"], [])
                if not starts or code is not None:
                    self._start(container, again=code is not None)
                if not self.seen.starts.get(container["name"]):
                    return
                continue
            if code == 0:
                continue
            if code is None or policy != "Never":
                self._start(container, again=code is not None)
            return
        for container in self.pod["spec"]["containers"]:
            code = self.seen.code(container["name"])
            if code is None or policy == "Always" or (policy == "OnFailure" and code):
                self._start(container, again=code is not None)
        for container in self.pod["spec"]["containers"]:
            starts = self.seen.starts.get(container["name"], [])
            if starts and starts[-1].is_running() and self.seen.probes.is_dead(container["name"]):
                starts[-1].kill(signal.SIGKILL)

    def _start(self, container: Object, *, again: bool) -> None:
        name = container["name"]
        starts = self.seen.starts.setdefault(name, [])
        if starts and starts[-1].is_running():
            return
        if again:
            due = self._ended_at.setdefault(f"{name}/{len(starts)}", time.time()) + min(
                10, len(starts)
            )
            if time.time() < due:
                self.seen.waiting[name] = (
                    "CrashLoopBackOff",
                    f"back-off restarting failed container={name} pod={self.name}",
                )
                self._retry_at = due
                return
        try:
            self._try(container, starts)
            self.seen.waiting.pop(name, None)
        except Wrong as error:
            self._wrong(name, error)
        except Refused as error:
            self._wrong(name, Wrong(mounts.TRANSIENT, str(error)))

    def _try(self, container: Object, starts: list[Started]) -> None:
        pod, name = self.pod, container["name"]
        image = self._image(container)
        directories = self.volumes.directories(pod)
        sources = Sources(self.room.api, pod["metadata"]["namespace"])
        environ = environment.environ(pod, container, image, sources, self.room.address)
        uid, gid, groups = environment.user(pod, container, image)
        place = self.place / "containers" / name / str(len(starts))
        security = container.get("securityContext", {})
        one = Started(place)
        plan = {
            "asked": time.time(), "uid": uid, "gid": gid, "groups": groups, "environ": environ, "hostname": self.name[:63],
            "command": environment.command(container, image, environ) or ["/bin/sh"],
            "directory": container.get("workingDir") or image.directory, "mounts": mounts.mounts(container, directories, environ),
            "readonly": bool(security.get("readOnlyRootFilesystem")),
            "no_new_privileges": security.get("allowPrivilegeEscalation") is False,
            "drop": list(range(41)) if "ALL" in security.get("capabilities", {}).get("drop", ()) else [],
            "message": container.get("terminationMessagePath", "/dev/termination-log"),
            "fallback": container.get("terminationMessagePolicy") == "FallbackToLogsOnError",
            "cgroups": limited(self.room.directory, self.uid, place, container),
        }  # fmt: skip
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        one.start(image, plan)
        starts.append(one)
        self.seen.probes.follow(container, one, lambda: self._is_gone)

    def _image(self, container: Object) -> Image:
        wanted = container["image"]
        if wanted in self.room.images:
            return self.room.images[wanted]
        if container.get("imagePullPolicy") == "Never":
            raise Wrong(
                "ErrImageNeverPull",
                f'Container image "{wanted}" is not present with pull policy of Never',
            )
        said = (
            f'failed to pull and unpack image "{wanted}": failed to resolve reference "{wanted}": '
            "not found"
        )
        if self.seen.waiting.get(container["name"], ("",))[0] in (
            "ErrImagePull",
            "ImagePullBackOff",
        ):
            raise Wrong(
                "ImagePullBackOff", f'Back-off pulling image "{wanted}": ErrImagePull: {said}'
            )
        raise Wrong("ErrImagePull", said)

    def _wrong(self, name: str, error: Wrong) -> None:
        transient = error.reason == mounts.TRANSIENT
        self.seen.waiting[name] = (
            ("ContainerCreating", "") if transient else (error.reason, str(error))
        )
        self._retry_at = time.time() + RETRY_S
        self._event(error.reason if transient else "Failed", str(error))

    # --- what is told
    # --------------------------------------------------------------------------------------------

    def _tell(self) -> None:
        wanted = status(self.pod, self.seen)
        self.seen.is_told = wanted == self._told
        if self.seen.is_told:
            return
        try:
            self.room.api.patch(
                f"{self._path}/status",
                {"metadata": {"uid": self.uid}, "status": wanted},
                "strategic",
            )
        except Refused as error:
            if error.status not in (404, 409):
                raise
            # The pod is gone, or another one has its name now. The watch will report it.
        self._told = wanted
        self.seen.is_told = True

    def _leave(self) -> None:
        self.room.api.discard(self._path, gracePeriodSeconds=0, preconditions={"uid": self.uid})

    def _event(self, reason: str, message: str) -> None:
        """Send an event, but only once for each message."""
        if message in self._said:
            return
        self._said.add(message)
        metadata = self.pod["metadata"]
        about = {
            "kind": "Pod",
            "apiVersion": "v1",
            "namespace": metadata["namespace"],
            "name": metadata["name"],
            "uid": self.uid,
        }
        body = {
            "metadata": {"generateName": f"{metadata['name'][:50]}."},
            "involvedObject": about,
            "reason": reason,
            "message": message[:1000],
            "type": "Warning",
            "source": {"component": "kubelet", "host": self.room.node},
            "count": 1,
        }
        try:
            self.room.api.create(f"/api/v1/namespaces/{metadata['namespace']}/events", body)
        except Refused:
            return

    # --- what runs
    # -----------------------------------------------------------------------------------------------

    @property
    def _path(self) -> str:
        return f"/api/v1/namespaces/{self.pod['metadata']['namespace']}/pods/{self.pod['metadata']['name']}"

    def _found(self) -> dict[str, list[Started]]:
        """Return the containers that an earlier node agent started, by name."""
        found: dict[str, list[Started]] = {}
        for place in sorted((self.place / "containers").glob("*/*"), key=lambda one: int(one.name)):
            one = Started(place)
            if one.was_started():
                found.setdefault(place.parent.name, []).append(one)
        return found

    def _all(self) -> list[Started]:
        return [one for starts in list(self.seen.starts.values()) for one in starts]

    def _running(self) -> list[Started]:
        return [one for one in self._all() if one.is_running()]
