"""One TaskRun on a cluster: its object, its Jobs and pods, a person's actions on it, and the
promises about it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tests.servers.kubernetes.api import Object
from tests.servers.kubernetes.machine import Process

if TYPE_CHECKING:
    from tests.kubernetes.place import Place


ENDED = ("Succeeded", "Failed", "Cancelled")


class Run:
    """A new TaskRun. `uid` remains known when the object is gone."""

    def __init__(self, place: Place, name: str, body: Object) -> None:
        self.place, self.name = place, name
        self.uid: str = body["metadata"]["uid"]
        self.path = place.runs(name)
        self.mode: str = body["spec"]["workspace"]["mode"]

    # --- what the cluster says
    # ---------------------------------------------------------------------------------------

    def body(self) -> Object:
        return dict(self.place.api.get(self.path))

    def status(self) -> Object:
        return dict(self.body().get("status") or {})

    def attempts(self) -> list[Object]:
        return list(self.status().get("attempts") or ())

    def condition(self, kind: str) -> Object | None:
        """Return the condition of this type if it is true, else None."""
        return next(
            (
                each
                for each in self.status().get("conditions") or ()
                if each["type"] == kind and each["status"] == "True"
            ),
            None,
        )

    def waits_for(self, reason: str) -> Object:
        """Wait until the condition Waiting has this reason, and return the condition."""

        def told() -> Object | None:
            found = self.condition("Waiting")
            return found if found is not None and found["reason"] == reason else None

        return dict(self.until(told, f"it waits: {reason}"))

    def jobs(self) -> list[Object]:
        return list(
            self.place.api.items(
                self.place.of("batch/v1", "jobs"),
                labelSelector=f"perdure.dev/taskrun-uid={self.uid}",
            )
        )

    def pods(self) -> list[Object]:
        return list(
            self.place.api.items(
                self.place.of("v1", "pods"), labelSelector=f"perdure.dev/taskrun-uid={self.uid}"
            )
        )

    def pod(self) -> Object:
        """Wait until a pod of the run is running, and return the pod."""

        def running() -> Object | None:
            live = [each for each in self.pods() if "deletionTimestamp" not in each["metadata"]]
            return next(
                (each for each in live if each.get("status", {}).get("phase") == "Running"), None
            )

        return dict(self.until(running, "a pod runs"))

    def processes(self) -> list[Process]:
        """Return all processes in the run's pods, the first process of each container first."""
        machines = self.place.cluster.machines
        placed = [(pod["spec"].get("nodeName", ""), pod["metadata"]["uid"]) for pod in self.pods()]
        return [
            each
            for node, uid in placed
            if node in machines
            for each in machines[node].processes(uid)
        ]

    def until(self, met: Callable[[], Any], what: str) -> Any:
        """Wait as `Cluster.until` does. After the timeout, the error shows the state of the run."""

        def looked() -> Any:
            self.place.operator.is_there()
            return met()

        try:
            return self.place.cluster.until(looked, f"{self.name}: {what}")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.told()}") from error

    def settled(self, phase: str = "Succeeded") -> Object:
        """Wait until the run is in this phase and has read the newest version of its instructions.
        Return its status."""

        def there() -> Object | None:
            body = self.body()
            status = body.get("status") or {}
            if status.get("contextVersion", 0) < body["spec"]["contextVersion"]:
                return None
            over = status.get("phase") if not self._asked(body) else ""
            assert over not in ENDED or over == phase, f"it is {over}, and should be {phase}"
            return status if status.get("phase") == phase else None

        return dict(self.until(there, f"it is {phase}"))

    @staticmethod
    def _asked(body: Object) -> bool:
        """Return whether a person has asked for something that the status does not show yet."""
        retry = body["metadata"].get("annotations", {}).get("perdure.dev/retry", "")
        return bool(
            retry != body["status"].get("retried", "")
            or body["metadata"]["generation"] > body["status"].get("observedGeneration", 0)
        )

    def told(self) -> str:
        """Return everything that a person would look at, as the message of a failed assertion."""
        body = self.place.api.find(self.path) or {"status": "it is gone"}
        lines = [json.dumps(body.get("status", {}), indent=1), self.place.operator.said()]
        for pod in self.pods():
            name = pod["metadata"]["name"]
            lines.append(
                f"--- {name} on {pod['spec'].get('nodeName')}: "
                f"{json.dumps(pod.get('status', {}))[:1500]}"
            )
            lines.append(self.place.said(name))
        return "\n".join(lines)

    # --- what a person does
    # ------------------------------------------------------------------------------------------

    def patch(self, **body: Any) -> None:
        self.place.api.patch(self.path, body)

    def update(self, prompt: str) -> None:
        """Set the next version of the instructions."""
        self.patch(
            spec={"prompt": prompt, "contextVersion": self.body()["spec"]["contextVersion"] + 1}
        )

    def annotate(self, name: str, value: str) -> None:
        self.patch(metadata={"annotations": {f"perdure.dev/{name}": value}})

    def delete(self) -> None:
        self.place.api.delete(self.path)

    def gone(self) -> None:
        self.until(lambda: self.place.api.find(self.path) is None, "it is gone")

    # --- what is promised
    # --------------------------------------------------------------------------------------------

    def wrong(self) -> list[str]:
        """Return the promises about a finished run that do not hold: one Job, one pod and one
        outcome for each attempt."""
        attempts = self.attempts()
        numbers = [each["number"] for each in attempts]
        found = []
        if numbers != list(range(1, len(numbers) + 1)):
            found.append(f"attempts are numbered {numbers}")
        found += [
            f"attempt {each['number']} has no outcome"
            for each in attempts
            if not each.get("outcome")
        ]
        jobs = [int(job["metadata"]["labels"]["perdure.dev/attempt"]) for job in self.jobs()]
        found += [
            f"attempt {each} has {jobs.count(each)} Jobs"
            for each in sorted(set(jobs))
            if jobs.count(each) > 1
        ]
        found += [
            f"the Job of attempt {each} belongs to none" for each in jobs if each not in numbers
        ]
        pods = [int(pod["metadata"]["labels"]["perdure.dev/attempt"]) for pod in self.pods()]
        return found + [
            f"attempt {each} has {pods.count(each)} pods"
            for each in sorted(set(pods))
            if pods.count(each) > 1
        ]

    def one_of_each(self) -> None:
        assert not self.wrong(), f"{self.wrong()}\n{self.told()}"
